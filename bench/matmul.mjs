// The matrix product in Chromium: ours beside TensorFlow.js and jax-js, same browser, same size, f32, in a Worker.
//
//   cd bench && npm ci && node matmul.mjs [--json FILE]
//
// Ours is a linear layer's product, A · Bᵀ; TensorFlow.js is measured both ways, because its wasm back end has its fast kernel
// for A · B only. Needs the built browser node: `cargo xtask web`. WebGPU is Chromium's software adapter where the machine has
// no GPU. In one page everybody gets one thread (it is not cross-origin isolated), in another, on wasm, two: ours and
// TensorFlow.js (jax-js takes as many as there are processors there, and is not in that comparison). All warm up first, and fill the same time with products before the clock is read.

import { build } from 'esbuild';
import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Harness, dist } from '../tests/browser/harness.mjs';

const here = dirname(fileURLToPath(import.meta.url));
/** Sides of the square matrices. */
const sizes = { wasm: [256, 512], webgpu: [256] };
/** Rounds of which the best counts: other programs on the machine only ever slow one down. All take turns in each. */
const rounds = 5;

// Each answers GFLOP/s of `multiply`, which starts one product; `finish` waits for all of them and lets them go (jax-js computes
// nothing that nobody asks for). Twin of `matmul_millis` in crates/engine/src/bench.rs.
const timing = `
  export async function rate(size, multiply, finish) {
    const timed = async (repeats) => {
      const started = performance.now();
      await finish(Array.from({ length: repeats }, multiply));
      return (performance.now() - started) / repeats;
    };
    await timed(1);
    const once = await timed(1);
    const millis = await timed(Math.floor(Math.min(200, Math.max(1, 300 / Math.max(once, 0.01)))));
    return 2 * size ** 3 / (millis * 1e6);
  }`;

const tensorflow = `
  import * as tf from '@tensorflow/tfjs-core';
  import { setThreadsCount, setWasmPaths } from '@tensorflow/tfjs-backend-wasm';
  import '@tensorflow/tfjs-backend-webgpu';
  import { rate } from './timing.js';
  export async function measure(threads, backend, size, transposed) {
    setWasmPaths('/');
    setThreadsCount(threads);
    if (!(await tf.setBackend(backend))) throw new Error('no back end ' + backend);
    await tf.ready();
    const [a, b] = [tf.randomUniform([size, size]), tf.randomUniform([size, size])];
    return rate(size, () => tf.matMul(a, b, false, transposed), async (products) => {
      await products.at(-1).data();
      tf.dispose(products);
    });
  }`;

const jax = `
  import { defaultDevice, init, numpy as np } from '@jax-js/jax';
  import { rate } from './timing.js';
  export async function measure(threads, backend, size, transposed) {
    if (!(await init(backend)).includes(backend)) throw new Error('no device ' + backend);
    defaultDevice(backend);
    const make = () => np.array(Float32Array.from({ length: size * size }, Math.random)).reshape([size, size]);
    const [a, b] = [make(), make()];
    const multiply = () => np.matmul(a.ref, transposed ? b.ref.transpose() : b.ref);
    return rate(size, multiply, async (products) => {
      for (const product of products) (await product.blockUntilReady()).dispose();
    });
  }`;

const worker = `
  import * as tensorflow from '/tensorflow.js';
  import * as jax from '/jax.js';
  import { loadNode } from '/assets/load-node.js';
  const load = (threads) => loadNode({
    wasmModule: threads > 1 ? '/assets/node_threads_bg.wasm' : '/assets/node_bg.wasm',
    threads, threadsRemark: '', memoryBudgetBytes: 2 ** 30, failures: 'bench',
  });
  let node;
  const ours = {
    async measure(threads, backend, size, weights) {
      node ??= await load(threads);
      const { backend: { description } } = await node.self_test('cpu');
      if (!description.endsWith(threads > 1 ? threads + ' threads' : '1 thread')) throw new Error(description);
      return (await node.matmul_rates(backend, [size])).find((row) => row.weights === weights).gflops;
    },
  };
  const whose = { ours, tensorflow, jax };
  onmessage = async ({ data: [who, ...what] }) => {
    try {
      postMessage(await whose[who].measure(...what));
    } catch (error) {
      postMessage(String(error));
    }
  };
  postMessage('ready');`;

const page = `<!doctype html><title>bench</title><script type="module">
  const worker = new Worker('/bench-worker.js', { type: 'module' });
  const next = () => new Promise((found) => { worker.onmessage = ({ data }) => found(data); worker.onerror = (event) => found(event.message); });
  const ready = next();
  window.measure = async (what) => { await ready; const answer = next(); worker.postMessage(what); return answer; };
</script>`;

const harness = new Harness();
try {
  const bundled = async (contents) => {
    const { outputFiles } = await build({
      stdin: { contents: contents.replace("import { rate } from './timing.js';", timing.replace('export ', '')), resolveDir: here },
      bundle: true,
      format: 'esm',
      write: false,
      logLevel: 'error',
      define: { global: 'globalThis' },
    });
    return outputFiles[0].text;
  };
  const routes = { '/bench.html': page, '/bench-worker.js': worker, '/tensorflow.js': await bundled(tensorflow), '/jax.js': await bundled(jax) };
  for (const file of ['tfjs-backend-wasm-simd.wasm', 'tfjs-backend-wasm.wasm', 'tfjs-backend-wasm-threaded-simd.wasm']) {
    routes[`/${file}`] = await readFile(join(here, 'node_modules/@tensorflow/tfjs-backend-wasm/dist', file));
  }
  const browser = await harness.browser({ webgpu: true });
  const open = async (isolated) => {
    const address = await harness.files(dist, routes, { isolated });
    const { page: tab } = await harness.page(browser);
    await tab.goto(`${address}/bench.html`);
    await tab.waitForFunction(() => 'measure' in window);
    return tab;
  };
  const tabs = { 1: await open(false), 2: await open(true) };
  const rows = [];
  for (const [backend, ourBackend] of [['wasm', 'cpu'], ['webgpu', 'gpu']]) {
    for (const size of sizes[backend]) {
      const contenders = [
        ['Barycenter, A · Bᵀ', ['ours', 1, ourBackend, size, 'f32']],
        // int8 weights and activations, counted as the same product: nothing that the others have.
        ...(backend === 'wasm' ? [['Barycenter, 8 bits', ['ours', 1, ourBackend, size, 'int8']]] : []),
        ['TensorFlow.js, A · Bᵀ', ['tensorflow', 1, backend, size, true]],
        ['TensorFlow.js, A · B', ['tensorflow', 1, backend, size, false]],
        ['jax-js, A · Bᵀ', ['jax', 1, backend, size, true]],
        ['jax-js, A · B', ['jax', 1, backend, size, false]],
      ];
      if (backend === 'wasm') {
        contenders.push(
          ['Barycenter, A · Bᵀ, 2 threads', ['ours', 2, ourBackend, size, 'f32']],
          ['TensorFlow.js, A · Bᵀ, 2 threads', ['tensorflow', 2, backend, size, true]],
          ['TensorFlow.js, A · B, 2 threads', ['tensorflow', 2, backend, size, false]],
        );
      }
      const best = new Map();
      for (let round = 0; round < rounds; round++) {
        for (const [name, what] of contenders) {
          const value = await tabs[what[1]].evaluate((asked) => window.measure(asked), what);
          if (typeof value !== 'number') throw new Error(`${name}, ${backend}: ${value}`);
          best.set(name, Math.max(best.get(name) ?? 0, value));
        }
      }
      for (const [name, gflops] of best) {
        rows.push({ backend, size, name, gflops });
        console.log(`${backend.padEnd(7)} ${String(size).padStart(4)}  ${name.padEnd(32)} ${gflops.toFixed(2).padStart(8)} GFLOP/s`);
      }
    }
  }
  const json = process.argv.indexOf('--json');
  if (json > 0) await writeFile(process.argv[json + 1], `${JSON.stringify({ browser: browser.version(), rows }, null, 2)}\n`);
} finally {
  await harness.close();
}
