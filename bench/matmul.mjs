// The matrix product in Chromium: ours beside TensorFlow.js, same browser, same size, f32, in a Worker.
//
//   cd bench && npm ci && node matmul.mjs [--json FILE]
//
// Ours is a linear layer's product, A · Bᵀ; theirs is measured both ways, because its wasm back end has its fast kernel
// for A · B only. Needs the built browser node: `cargo xtask web`. WebGPU is Chromium's software adapter where the machine has no GPU.

import { build } from 'esbuild';
import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Harness, dist } from '../tests/browser/harness.mjs';

const here = dirname(fileURLToPath(import.meta.url));
/** Side of the square matrices; twin of `SIZE` in crates/node/src/self_test.rs. */
const size = 256;
/** Rounds of which the best counts: other programs on the machine only ever slow one down. */
const rounds = 5;

const tensorflow = `
  import * as tf from '@tensorflow/tfjs-core';
  import { setThreadsCount, setWasmPaths } from '@tensorflow/tfjs-backend-wasm';
  import '@tensorflow/tfjs-backend-webgpu';
  export async function measure(backend, transposed) {
    setWasmPaths('/');
    setThreadsCount(1);
    if (!(await tf.setBackend(backend))) throw new Error('no back end ' + backend);
    await tf.ready();
    const a = tf.randomUniform([${size}, ${size}]);
    const b = tf.randomUniform([${size}, ${size}]);
    const multiply = () => tf.matMul(a, b, false, transposed);
    const first = multiply();
    await first.data();
    first.dispose();
    let products = 0;
    const started = performance.now();
    while (performance.now() - started < 120) {
      let last;
      for (let i = 0; i < 4; i++) {
        last?.dispose();
        last = multiply();
        products++;
      }
      await last.data();
      last.dispose();
    }
    return products * 2 * ${size} ** 3 / ((performance.now() - started) * 1e6);
  }`;

const worker = `
  import { measure } from '/tensorflow.js';
  const node = await import('/assets/node.js');
  await node.default({ module_or_path: '/assets/node_bg.wasm' });
  onmessage = async ({ data: [whose, backend, transposed] }) => {
    try {
      postMessage(whose === 'ours' ? (await node.self_test(backend)).gflops : await measure(backend, transposed));
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
  const bundle = await build({
    stdin: { contents: tensorflow, resolveDir: here },
    bundle: true,
    format: 'esm',
    write: false,
    logLevel: 'error',
    define: { global: 'globalThis' },
  });
  const routes = { '/bench.html': page, '/bench-worker.js': worker, '/tensorflow.js': bundle.outputFiles[0].text };
  for (const file of ['tfjs-backend-wasm-simd.wasm', 'tfjs-backend-wasm.wasm', 'tfjs-backend-wasm-threaded-simd.wasm']) {
    routes[`/${file}`] = await readFile(join(here, 'node_modules/@tensorflow/tfjs-backend-wasm/dist', file));
  }
  const address = await harness.files(dist, routes);
  const browser = await harness.browser({ webgpu: true });
  const { page: tab } = await harness.page(browser);
  await tab.goto(`${address}/bench.html`);
  await tab.waitForFunction(() => 'measure' in window);
  const rows = [];
  for (const [name, what] of [
    ['Barycenter, CPU (wasm simd128, 1 thread)', ['ours', 'cpu']],
    ['TensorFlow.js, wasm (simd, 1 thread), A · Bᵀ', ['theirs', 'wasm', true]],
    ['TensorFlow.js, wasm (simd, 1 thread), A · B', ['theirs', 'wasm', false]],
    ['Barycenter, WebGPU', ['ours', 'gpu']],
    ['TensorFlow.js, WebGPU, A · Bᵀ', ['theirs', 'webgpu', true]],
    ['TensorFlow.js, WebGPU, A · B', ['theirs', 'webgpu', false]],
  ]) {
    const measured = [];
    for (let round = 0; round < rounds; round++) {
      const value = await tab.evaluate((asked) => window.measure(asked), what);
      if (typeof value !== 'number') throw new Error(`${name}: ${value}`);
      measured.push(value);
    }
    rows.push({ name, gflops: Math.max(...measured) });
    console.log(`${name.padEnd(48)} ${rows.at(-1).gflops.toFixed(2).padStart(8)} GFLOP/s`);
  }
  const json = process.argv.indexOf('--json');
  if (json > 0) await writeFile(process.argv[json + 1], `${JSON.stringify({ size, browser: browser.version(), rows }, null, 2)}\n`);
} finally {
  await harness.close();
}
