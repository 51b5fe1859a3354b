// The browser node as it is built and shipped, loaded in a Worker.
//
//   page ── Worker ── /assets/node.js ── /assets/node_bg.wasm
//   page ── Worker ── /assets/load-node.js ── /assets/node_threads.js ── /assets/node_threads_bg.wasm
//              └── /assets/compute-thread.js ── the same module on the same memory

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Harness, dist, needsThreads, root } from './harness.mjs';

const harness = new Harness();
after(() => harness.close());

// Runs the text that it is sent as an async function of the module, and answers what that returns.
const workerOf = (load) => `${load}
  onmessage = async ({ data }) => {
    try {
      postMessage({ value: await new Function('node', 'return (async () => {' + data + '})()')(module) });
    } catch (error) {
      postMessage({ error: String(error) });
    }
  };
  postMessage({ ready: true });`;

/** The module without threads. */
const single = `
  const module = await import('/assets/node.js');
  await module.default({ module_or_path: '/assets/node_bg.wasm' });`;

/** The module with two threads, by the loader that the join page's Worker uses. */
const threaded = `
  const { loadNode } = await import('/assets/load-node.js');
  const source = { wasmModule: '/assets/node_threads_bg.wasm', threads: 2, threadsRemark: '', memoryBudgetBytes: 512 * 2 ** 20, failures: 'test' };
  const module = await loadNode(source);`;

const page = `<!doctype html><title>test</title><script type="module">
  const worker = new Worker('/test-worker.js', { type: 'module' });
  const next = () => new Promise((found, failed) => {
    worker.onmessage = ({ data }) => found(data);
    worker.onerror = (event) => failed(new Error(event.message));
  });
  const ready = next();
  window.inWorker = async (text) => {
    await ready;
    const answer = next();
    worker.postMessage(text);
    const { value, error } = await answer;
    if (error) throw new Error(error);
    return value;
  };
</script>`;

async function open({ load = single, routes = {}, isolated = true, ...options } = {}) {
  const address = await harness.files(dist, { '/test.html': page, '/test-worker.js': workerOf(load), ...routes }, { isolated });
  const opened = await harness.page(await harness.browser(options));
  await opened.page.goto(`${address}/test.html`);
  await opened.page.waitForFunction(() => 'inWorker' in window);
  return { ...opened, inWorker: (text) => opened.page.evaluate((body) => window.inWorker(body), text) };
}

test('the module loads in a worker over https and knows its version', async () => {
  const { inWorker, problems } = await open();
  const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
  assert.equal(await inWorker('return isSecureContext'), true);
  assert.equal(await inWorker('return node.version()'), version);
  assert.deepEqual(problems, []);
});

// Twin of `TOLERANCE` in crates/node/src/self_test.rs: f32 in any order of summation stays far below.
const tolerance = 1e-3;

test('both back ends give the same answers, the software WebGPU adapter among them', async () => {
  const { inWorker, problems } = await open({ webgpu: true });
  const cpu = await inWorker('return node.self_test("cpu")');
  const gpu = await inWorker('return node.self_test("gpu")');
  console.log(`${cpu.backend.description}: ${cpu.gflops.toFixed(1)} GFLOP/s; ${gpu.backend.description}: ${gpu.gflops.toFixed(1)} GFLOP/s`);
  assert.equal(cpu.backend.kind, 'cpu');
  assert.equal(gpu.backend.kind, 'webgpu');
  assert.match(gpu.backend.reason, /software/);
  cpu.answers.forEach((answer, index) => {
    assert.ok(Number.isFinite(answer) && answer > 0, `answers on the CPU: ${cpu.answers}`);
    const error = Math.abs(gpu.answers[index] / answer - 1);
    assert.ok(error < tolerance, `answer ${index}: ${gpu.answers[index]} by WGSL, ${answer} on the CPU`);
  });
  assert.deepEqual(problems, []);
});

test('products of odd shapes are exact on the CPU and in every form that WebGPU has', async () => {
  const { inWorker, problems } = await open({ webgpu: true });
  assert.equal(await inWorker('return node.product_error("cpu")'), 0);
  assert.equal(await inWorker('return node.product_error("gpu")'), 0);
  assert.deepEqual(problems, []);
});

test('a software adapter is passed over in favour of the CPU, and the reason is said', async () => {
  const { inWorker } = await open({ webgpu: true });
  const { backend } = await inWorker('return node.self_test("auto")');
  assert.equal(backend.kind, 'cpu');
  assert.match(backend.reason, /software/);
});

test('without WebGPU the CPU computes, and the reason is said', async () => {
  const { inWorker } = await open({ flags: ['--disable-features=WebGPUService'] });
  const { backend, gflops } = await inWorker('return node.self_test("auto")');
  assert.equal(backend.kind, 'cpu');
  assert.match(backend.reason, /adapter|WebGPU/);
  assert.ok(gflops > 0);
});

test('two threads give the answers of one, and are said', needsThreads, async () => {
  const [one, two] = [await open(), await open({ load: threaded })];
  const [alone, shared] = [await one.inWorker('return node.self_test("cpu")'), await two.inWorker('return node.self_test("cpu")')];
  console.log(`${alone.backend.description}: ${alone.gflops.toFixed(1)} GFLOP/s; ${shared.backend.description}: ${shared.gflops.toFixed(1)} GFLOP/s`);
  assert.match(alone.backend.description, /, 1 thread$/);
  assert.match(shared.backend.description, /, 2 threads$/);
  shared.answers.forEach((answer, index) => {
    const error = Math.abs(answer / alone.answers[index] - 1);
    // The largest difference comes from sums over rows, taken in other pieces: a few times the rounding of f32.
    assert.ok(error < 1e-6, `answer ${index}: ${answer} with two threads, ${alone.answers[index]} with one`);
  });
  assert.equal(await two.inWorker('return node.product_error("cpu")'), 0);
  assert.deepEqual([...one.problems, ...two.problems], []);
});

for (const [what, options] of [
  ['a page that is not cross-origin isolated', { isolated: false }],
  ['threads that cannot be started', { routes: { '/assets/compute-thread.js': 'throw new Error("broken on purpose")' } }],
  ['a module with threads that cannot be compiled', { routes: { '/assets/node_threads_bg.wasm': 'no wasm' } }],
]) {
  test(`${what}: one thread computes, and the reason is said`, needsThreads, async () => {
    const { inWorker } = await open({ load: threaded, ...options });
    const { backend, answers } = await inWorker('return node.self_test("cpu")');
    assert.match(backend.description, /, 1 thread$/);
    assert.match(backend.reason, /one thread, because the others did not start \(.+\)/);
    assert.ok(answers.every(Number.isFinite));
  });
}
