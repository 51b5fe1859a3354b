// A LoRA adapter that `barycenter export --gguf` wrote means the same in llama.cpp: the same base model, the same adapter, and
// every held-out row answered greedily by both, without the adapter and with it.
//
//   pip install gguf safetensors numpy && npm install --no-save node-llama-cpp
//   barycenter train --method lora --model assets/demo --data assets/demo/train.jsonl --out /tmp/lora --epochs 3
//   barycenter export --model assets/demo --adapter /tmp/lora --gguf /tmp/lora.gguf
//   python scripts/llama_gguf.py assets/demo /tmp/base.gguf
//   node scripts/check_llama_cpp.mjs target/release/barycenter /tmp/base.gguf /tmp/lora /tmp/lora.gguf assets/demo/heldout.jsonl
//
// This project reads the same GGUF base, so that its reading is checked too. Exits 1 where an answer differs.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { getLlama } from 'node-llama-cpp';

const MAX_NEW_TOKENS = 64;
const [program, base, folder, adapter, rowsFile] = process.argv.slice(2);
if (!rowsFile) {
  console.error('usage: check_llama_cpp.mjs PROGRAM BASE.gguf ADAPTER_FOLDER ADAPTER.gguf ROWS.jsonl');
  process.exit(2);
}
const rows = readFileSync(rowsFile, 'utf8').trim().split('\n').map((line) => JSON.parse(line));

/** llama.cpp's answers to all rows, with an adapter or without. */
async function theirs(model, adapters) {
  const context = await model.createContext({ contextSize: 256, threads: 1, lora: adapters && { adapters } });
  const sequence = context.getSequence();
  const answers = [];
  for (const { prompt } of rows) {
    await sequence.clearHistory();
    const tokens = [];
    for await (const token of sequence.evaluate(model.tokenize(`${prompt}\n`), { temperature: 0 })) {
      if (token === model.tokens.eos || tokens.length === MAX_NEW_TOKENS) break;
      tokens.push(token);
    }
    answers.push(model.detokenize(tokens).trim());
  }
  await context.dispose();
  return answers;
}

/** This project's answers: `base` and `tuned` of each row. */
function ours() {
  return rows.map(({ prompt }) => {
    const options = ['generate', '--device', 'cpu', '--model', base, '--adapter', folder, '--max-new-tokens', String(MAX_NEW_TOKENS), prompt];
    const said = execFileSync(program, options, { encoding: 'utf8' });
    const answer = (label) => said.match(new RegExp(`^\\s*${label}\\s(.*)$`, 'm'))?.[1].trim();
    return { base: answer('base'), tuned: answer('tuned') };
  });
}

const llama = await getLlama({ gpu: false, build: 'never' });
const model = await llama.loadModel({ modelPath: base, gpuLayers: 0, useMmap: false });
const [bare, tuned, mine] = [await theirs(model), await theirs(model, [{ filePath: adapter, scale: 1 }]), ours()];
let different = 0;
for (const [at, { prompt }] of rows.entries()) {
  for (const [what, answer, other] of [['base', mine[at].base, bare[at]], ['tuned', mine[at].tuned, tuned[at]]]) {
    if (answer === other) continue;
    different += 1;
    console.log(`${what}, ${prompt}\n  here       ${answer}\n  llama.cpp  ${other}`);
  }
}
const exact = (answers) => answers.filter((answer, at) => answer === rows[at].response).length;
console.log(`${rows.length} rows: ${exact(bare)} exact without the adapter, ${exact(tuned)} with it in llama.cpp, ${exact(mine.map((answer) => answer.tuned))} here; ${different} answers differ`);
process.exit(different === 0 && exact(tuned) > exact(bare) ? 0 : 1);
