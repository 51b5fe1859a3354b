// The browser node as it is built and shipped, loaded in a Worker.
//
//   page ── Worker ── /assets/node.js ── /assets/node_bg.wasm

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Harness, dist, root } from './harness.mjs';

const harness = new Harness();
after(() => harness.close());

// Runs the text that it is sent as an async function of the module, and answers what that returns.
const worker = `
  const module = await import('/assets/node.js');
  await module.default();
  onmessage = async ({ data }) => {
    try {
      postMessage({ value: await new Function('node', 'return (async () => {' + data + '})()')(module) });
    } catch (error) {
      postMessage({ error: String(error) });
    }
  };
  postMessage({ ready: true });`;

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

async function open(options) {
  const address = await harness.files(dist, { '/test.html': page, '/test-worker.js': worker });
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
