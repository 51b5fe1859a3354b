// A whole training step in Chromium: ours beside TensorFlow.js and jax-js, same browser, same model, same batch, f32, in a Worker.
//
//   cd bench && npm ci && node train_step.mjs [--rounds 6] [--only 'wasm, 1 thread'] [--json FILE]
//
// The model is the demo's (Llama's layers, six of width 192, tied embedding of 1,280) with as many key and value heads as query
// heads; every token is labelled, every weight is trained, by AdamW. A step is forward pass, loss, backward pass and update. All
// start from the same weights, which ours draws from a seed, and see the same tokens; before anything is timed, the losses of the
// first steps must agree. The others are written as their users would: `train_step/tensorflow.mjs`, `train_step/jax.mjs`.
//
// Needs the built pages, and the browser node with what is called here: `cargo xtask web && cargo xtask wasm --bench`. WebGPU is
// Chromium's software adapter where the machine has no GPU. On wasm, one page is not cross-origin isolated, where everybody gets one
// thread, and another is, where ours and TensorFlow.js get two and jax-js takes as many as there are processors.

import { build } from 'esbuild';
import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Harness, dist } from '../tests/browser/harness.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const option = (name, otherwise) => (process.argv.includes(name) ? process.argv[process.argv.indexOf(name) + 1] : otherwise);
/** In each all take turns; the best counts, because other programs on the machine only ever slow one down. */
const rounds = Number(option('--rounds', 6));

const model = {
  model_type: 'llama', hidden_size: 192, num_hidden_layers: 6, num_attention_heads: 6, num_key_value_heads: 6, head_dim: 32,
  intermediate_size: 512, vocab_size: 1280, max_position_embeddings: 128, rms_norm_eps: 1e-5, rope_theta: 10000,
  hidden_act: 'silu', tie_word_embeddings: true,
};
const small = { ...model, num_hidden_layers: 2, vocab_size: 320 };
/** What is measured: back end, threads, model, sequences × tokens, and the steps of one turn. */
const cases = [
  { backend: 'wasm', threads: 1, config: model, sequences: 16, tokens: 64, steps: 1 },
  { backend: 'wasm', threads: 1, config: model, sequences: 16, tokens: 32, steps: 2 },
  { backend: 'wasm', threads: 2, config: model, sequences: 16, tokens: 64, steps: 1 },
  { backend: 'webgpu', threads: 1, config: small, sequences: 4, tokens: 32, steps: 1 },
];
const names = ['Barycenter', 'TensorFlow.js', 'jax-js'];
/** Steps whose losses are compared, and how far apart they may be: f32, summed in another order by each. */
const compared = { steps: 5, apart: 1e-4 };
const training = { seed: 7, rate: 1e-3, adam: { beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.01 } };

/** Sequences that can be learned: each token is followed by one that depends on it, with a few exceptions. */
function batchOf({ sequences, tokens, config: { vocab_size: vocab } }) {
  let state = 12345;
  const random = (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const batch = { ids: [], classes: [], sequences, tokens };
  for (let sequence = 0; sequence < sequences; sequence++) {
    let id = random(vocab);
    for (let token = 0; token < tokens; token++) {
      batch.ids.push(id);
      id = random(8) === 0 ? random(vocab) : (id * 31 + 7) % vocab;
      batch.classes.push(id);
    }
  }
  return batch;
}

const page = `<!doctype html><title>bench</title><script type="module">
  const worker = new Worker('/train-step-worker.js', { type: 'module' });
  const next = () => new Promise((found) => { worker.onmessage = ({ data }) => found(data); worker.onerror = (event) => found({ failed: event.message }); });
  const ready = next();
  window.ask = async (what) => { await ready; const answer = next(); worker.postMessage(what); return answer; };
</script>`;

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

const harness = new Harness();
try {
  const { outputFiles } = await build({
    entryPoints: [join(here, 'train_step/worker.mjs')],
    bundle: true,
    format: 'esm',
    write: false,
    logLevel: 'error',
    external: ['/assets/*'],
    define: { global: 'globalThis' },
  });
  const routes = { '/bench.html': page, '/train-step-worker.js': outputFiles[0].text };
  for (const file of ['tfjs-backend-wasm-simd.wasm', 'tfjs-backend-wasm.wasm', 'tfjs-backend-wasm-threaded-simd.wasm']) {
    routes[`/${file}`] = await readFile(join(here, 'node_modules/@tensorflow/tfjs-backend-wasm/dist', file));
  }
  const browser = await harness.browser({ webgpu: true });
  const addresses = { 1: await harness.files(dist, routes, { isolated: false }), 2: await harness.files(dist, routes, { isolated: true }) };
  const rows = [];
  for (const { backend, threads, config, sequences, tokens, steps } of cases) {
    const what = `${backend}, ${threads} thread${threads > 1 ? 's' : ''}, ${config.num_hidden_layers} layers, ${sequences} × ${tokens} tokens`;
    if (!what.includes(option('--only', ''))) continue;
    const { page: tab, context } = await harness.page(browser);
    await tab.goto(`${addresses[threads]}/bench.html`);
    await tab.waitForFunction(() => 'ask' in window);
    const ask = async (asked) => {
      const { answer, failed } = await tab.evaluate((asked) => window.ask(asked), asked);
      if (failed) throw new Error(`${what}, ${JSON.stringify(asked).slice(0, 60)}: ${failed}`);
      return answer;
    };
    const task = { config, batch: batchOf({ sequences, tokens, config }), ...training };
    await ask({ what: 'start', backend, threads, names, task });
    const losses = new Map();
    for (const name of names) losses.set(name, await ask({ what: 'losses', name, steps: compared.steps }));
    const ours = losses.get('Barycenter');
    console.log(`${what}: losses ${ours.map((loss) => loss.toFixed(4)).join(' ')}`);
    for (const [name, theirs] of losses) {
      const apart = Math.max(...theirs.map((loss, at) => Math.abs(loss / ours[at] - 1)));
      if (!(apart <= compared.apart)) throw new Error(`${name} computes something else: ${theirs} instead of ${ours}`);
      if (name !== 'Barycenter') console.log(`  ${name} is ${apart.toExponential(1)} away at most`);
    }
    if (!(ours.at(-1) < ours[0] * 0.99)) throw new Error(`nothing is learned: ${ours}`);
    const times = new Map(names.map((name) => [name, []]));
    for (let round = 0; round < rounds; round++) {
      for (const name of names) times.get(name).push(await ask({ what: 'time', name, steps }));
    }
    const best = Math.min(...names.slice(1).map((name) => Math.min(...times.get(name))));
    for (const name of names) {
      const [least, middle] = [Math.min(...times.get(name)), median(times.get(name))];
      rows.push({ backend, threads, layers: config.num_hidden_layers, sequences, tokens, name, millis: times.get(name), losses: losses.get(name) });
      const ratio = name === 'Barycenter' ? `${(best / least).toFixed(2)} × the speed of the better of the others` : '';
      console.log(`  ${name.padEnd(14)} ${least.toFixed(1).padStart(8)} ms a step (median ${middle.toFixed(1)})  ${ratio}`);
    }
    await context.close();
  }
  const json = option('--json');
  if (json) await writeFile(json, `${JSON.stringify({ browser: browser.version(), rows }, null, 2)}\n`);
} finally {
  await harness.close();
}
