// The method beside full fine-tuning on one computer: seconds per epoch and peak memory, taken in turns.
//
//   node bench/alone.mjs [--rounds 3] [--epochs 4] [--device cpu] [--model FOLDER]
//
// The best epoch of each kind counts: other programs on the machine only ever slow one down.

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { program, root } from './program.mjs';

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    epochs: { type: 'string', default: '4' },
    device: { type: 'string', default: 'cpu' },
    model: { type: 'string', default: join(root, 'assets/demo') },
  },
});
const files = ['--model', options.model, '--data', join(options.model, 'train.jsonl'), '--held-out', join(options.model, 'heldout.jsonl')];
const common = [...files, '--device', options.device, '--epochs', options.epochs];

const seconds = { fill: [], train: [], full: [] };
const memory = {};
const match = {};
for (let round = 0; round < Number(options.rounds); round++) {
  const adapters = run(['train', ...common]);
  const [, fill, train] = adapters.match(/peak memory: (\S+) MB while filling, (\S+) MB/);
  Object.assign(memory, { fill: Number(fill), train: Number(train) });
  match.adapters = adapters.match(/after (\S+) %/)[1];
  const full = run(['bench', 'full', ...common]);
  memory.full = Number(full.match(/peak memory: (\S+) MB/)[1]);
  match.full = full.match(/after (\S+) %/)[1];
}
const best = (kind) => Math.min(...seconds[kind]);
console.log('phase             s/epoch (range)          peak MB   beside full fine-tuning');
for (const [kind, name] of [['fill', 'fill epoch'], ['train', 'cached epoch'], ['full', 'full fine-tuning']]) {
  const range = `${best(kind).toFixed(2)} (to ${Math.max(...seconds[kind]).toFixed(2)})`;
  console.log(`${name.padEnd(17)} ${range.padEnd(24)} ${memory[kind].toFixed(1).padStart(7)}   ${(best('full') / best(kind)).toFixed(1)} × the speed, ${((100 * memory[kind]) / memory.full).toFixed(0)} % of the memory`);
}
console.log(`cached epoch: ${(best('fill') / best('train')).toFixed(2)} × the speed of the fill epoch`);
console.log(`held-out exact match after ${options.epochs} epochs: adapters ${match.adapters} %, full fine-tuning ${match.full} %`);

function run(parameters) {
  const { status, stdout, stderr } = spawnSync(program, parameters, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${parameters[0]} failed: ${stderr}`);
  for (const [, kind, time] of stdout.matchAll(/^ +\d+ +(fill|train|full) +(\S+)/gm)) seconds[kind].push(Number(time));
  return stdout;
}
