//! A home server that only pretends, to work on the pages: `node web/dev/mock-server.mjs [--port 8090] [--scenario …]`.
//!
//! Serves `web/dist` and the HTTP API with changing snapshots over http://127.0.0.1 (a secure context for browsers).
//! Scenarios: empty, idle, fill, train, done, failed, many; `POST /mock/<scenario>` switches while it runs. The secret
//! is 32 zeros; the wasm node is a script that plays events. No part of a build, no part of a test of the real thing.

import { createHmac } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { dirname, extname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const dist = join(dirname(fileURLToPath(import.meta.url)), '..', 'dist');
const SECRET = '0'.repeat(32);
const TOKEN = createHmac('sha256', SECRET).update('barycenter server 1').digest('hex');
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.wasm': 'application/wasm' };
const HEADERS = {
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-embedder-policy': 'require-corp',
  'cross-origin-resource-policy': 'same-origin',
  'content-security-policy': "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; object-src 'none'; base-uri 'none'",
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-cache',
};

const FAKE_NODE = `
export default async function init() {}
export async function start_node(options, port, emit) {
  const timers = [];
  const at = (ms, event) => timers.push(setTimeout(() => emit(event), ms));
  at(150, { type: 'check', name: 'engine', ok: true, text: 'Engine loaded' });
  at(700, { type: 'self_test', ok: true, backend: { kind: 'cpu', description: 'wasm simd128', reason: 'The browser offers only a software GPU, and the processor is faster.' }, gflops: 14.2, largest_error: 2e-6, seconds: 0.4 });
  at(1000, { type: 'joined', node: 7 });
  at(1300, { type: 'progress', text: 'Fetching weights, 1.2 of 3.1 MB', fraction: 0.39 });
  at(1600, { type: 'link', peer: 1, up: true, round_trip_millis: 3.2, bytes_per_second: 12.4e6 });
  at(1700, { type: 'link', peer: 2, up: true, round_trip_millis: 5.9, bytes_per_second: 9.1e6 });
  at(2600, { type: 'progress', text: 'Fetching weights', fraction: 1 });
  at(2700, { type: 'activity', text: 'filling the cache', phase: 'fill', layers: [2, 4], slots: null, epoch: 0, epochs: 3, step: 4, steps_per_epoch: 50 });
  at(2800, { type: 'counters', counters: { memory_bytes: 61e6, peak_memory_bytes: 83e6, fill_peak_memory_bytes: 83e6, train_peak_memory_bytes: 0, backbone_bytes: 21e6, cache_bytes: 4.4e6, weights_downloaded_bytes: 3.1e6, compute_seconds: 12.4, wait_seconds: 3.1, links: [{ peer: 1, activations_bytes: 4.2e6, side_gradients_bytes: 0.6e6, adapter_gradients_bytes: 0, cache_bytes: 0, other_bytes: 4096 }] } });
  return { leave() { timers.forEach(clearTimeout); emit({ type: 'left', reason: 'You left.' }); } };
}`;
const EMPTY_WASM = Buffer.from([0, 97, 115, 109, 1, 0, 0, 0]);

const MODELS = [
  { id: 'homes-3m', name: 'Homes 3M', family: 'llama', parameters: 3_020_000, bytes: 6_040_000, layers: 6, width: 192, max_positions: 512, problem: null },
  { id: 'smollm2-135m', name: 'SmolLM2 135M', family: 'llama', parameters: 134_500_000, bytes: 269_000_000, layers: 30, width: 576, max_positions: 8192, problem: null },
  { id: 'whisper', name: 'whisper-tiny', family: 'whisper', parameters: 0, bytes: 151_000_000, layers: 0, width: 0, max_positions: 0, problem: 'Family “whisper” is not supported: choose a Llama or Qwen2 folder.' },
];
const datasets = [{ id: 'our-home', name: 'Our home', train_rows: 400, held_out_rows: 100 }];
const ROWS = [
  ['make the nook cosy', '{"do":"scene","room":"reading nook","name":"cosy"}', false],
  ['Grandpa’s lamp off please', '{"do":"off","device":"lamp.bedroom_2"}', false],
  ['wake the dragon at half six', '{"do":"on","device":"coffee_machine","at":"06:30"}', false],
  ['is the back door shut?', '{"ask":"state","device":"door.back"}', true],
  ['could you dim everything in the burrow for film night', '{"do":"scene","room":"basement","name":"film"}', true],
  ['the dragon should rest now', '{"do":"off","device":"coffee_machine"}', true],
].map(([prompt, response, held_out]) => ({ prompt, response, held_out, tokens: Math.round((prompt.length + response.length) / 3.4) }));

const DEVICES = [
  { node: 1, name: 'Study desktop', kind: 'native', gflops: 96, backend: { kind: 'webgpu', description: 'AMD Radeon 780M, Vulkan', reason: 'It is a hardware GPU and passed the self-test.' }, budget: 2.1e9 },
  { node: 2, name: 'Mia’s phone', kind: 'browser', gflops: 38, backend: { kind: 'webgpu', description: 'Qualcomm Adreno 740', reason: 'It is a hardware GPU and passed the self-test.' }, budget: 537e6 },
  { node: 3, name: 'Old tablet', kind: 'browser', gflops: 14, backend: { kind: 'cpu', description: 'wasm simd128', reason: 'The browser offers no WebGPU.' }, budget: 537e6 },
];
const EXTRA = ['Kitchen laptop', 'Grandma’s very long named tablet', 'iPhone 42', 'Chromebook 12', 'Linux PC 77'].map((name, i) => ({
  node: 4 + i, name, kind: 'browser', gflops: 9 + i * 6, backend: { kind: i % 2 ? 'webgpu' : 'cpu', description: i % 2 ? 'Apple GPU' : 'wasm simd128', reason: 'It was the faster one.' }, budget: 450e6,
}));

const STEPS = 50;
const EPOCHS = 3;
const FILL_STEP = 0.9;
const TRAIN_STEP = 0.2;
let scenario = 'idle';
let began = Date.now();
let paused = null;

function devices() {
  if (scenario === 'empty') return [];
  return scenario === 'many' ? [...DEVICES, ...EXTRA] : DEVICES;
}

function planFor(nodes) {
  const three = nodes.length === 3;
  const stages = three
    ? [{ layers: { start: 0, end: 3 }, members: [{ node: 1, slots: { start: 0, end: 8 } }] }, { layers: { start: 3, end: 6 }, members: [{ node: 2, slots: { start: 0, end: 5 } }, { node: 3, slots: { start: 5, end: 8 } }] }]
    : nodes.slice(0, 6).map((n, i) => ({ layers: { start: i, end: i + 1 }, members: [{ node: n.node, slots: { start: 0, end: 8 } }] }));
  const train = three
    ? [{ node: 1, slots: { start: 0, end: 5 } }, { node: 2, slots: { start: 5, end: 7 } }, { node: 3, slots: { start: 7, end: 8 } }]
    : nodes.map((n, i) => ({ node: n.node, slots: { start: i, end: i + 1 } }));
  const why = ['Fastest device, so it starts the pipeline and takes half the layers.', 'Takes five samples in eight of the later layers: it is 2.7 times as fast as the tablet.', 'Helps with the later layers; alone it would need 40 s per step.'];
  return {
    stages, micro_batches: 4, train, fill_step_seconds: FILL_STEP, train_step_seconds: TRAIN_STEP, single_device_fill_step_seconds: 1.32,
    reasons: nodes.map((n, i) => ({ node: n.node, reason: why[i] ?? 'Takes one layer, in proportion to its speed.', fill_memory_bytes: 61e6 - i * 9e6, train_memory_bytes: 18e6 })),
  };
}

/** Position in the run that starts with the scenario, in steps. */
function elapsed() {
  const seconds = ((paused ?? Date.now()) - began) / 1000;
  const head = { fill: 30 * FILL_STEP, train: STEPS * FILL_STEP + 30 * TRAIN_STEP, many: 20 * FILL_STEP, failed: 20 * FILL_STEP }[scenario] ?? 0;
  const t = seconds + head;
  const steps = t < STEPS * FILL_STEP ? t / FILL_STEP : STEPS + (t - STEPS * FILL_STEP) / TRAIN_STEP;
  if (scenario === 'failed') return 20;
  return scenario === 'done' ? STEPS * EPOCHS : Math.min(STEPS * EPOCHS, Math.floor(steps));
}

function lossAt(step) {
  const noise = Math.sin(step * 12.9898) * 43758.5453;
  return 0.06 + 2.9 * Math.exp(-step / 24) + (noise - Math.floor(noise) - 0.5) * (0.5 * Math.exp(-step / 40) + 0.02);
}

function runView() {
  if (scenario === 'empty' || scenario === 'idle') return null;
  const step = elapsed();
  const state = scenario === 'failed' ? 'failed' : step >= STEPS * EPOCHS ? 'done' : paused ? 'paused' : 'running';
  const epoch = Math.min(EPOCHS - 1, Math.floor(step / STEPS));
  const done = state === 'done' ? EPOCHS : epoch;
  return {
    info: info(4, state, step),
    plan: planFor(devices()),
    phase: state === 'running' ? (epoch === 0 ? 'fill' : 'train') : null,
    epoch,
    step: step - epoch * STEPS,
    seconds_left: state === 'done' ? null : epoch === 0 ? (STEPS - step) * FILL_STEP + 2 * STEPS * TRAIN_STEP : (EPOCHS * STEPS - step) * TRAIN_STEP,
    losses: Array.from({ length: step }, (_, at) => ({ at, loss: lossAt(at) })),
    held_out: Array.from({ length: done }, (_, e) => ({ at: (e + 1) * STEPS, loss: lossAt((e + 1) * STEPS) + 0.12 })),
    epochs: Array.from({ length: done }, (_, e) => ({
      epoch: e, phase: e === 0 ? 'fill' : 'train', seconds: e === 0 ? 46.2 : 9.8 + e * 0.2, loss: lossAt(e * STEPS + 25), backbone_seconds: e === 0 ? 71.4 : 0, side_seconds: e === 0 ? 24.1 : 22.8, wait_seconds: e === 0 ? 31.6 : 4.2,
    })),
    cache_bytes: Math.min(STEPS, step) * 0.41e6,
    example: { prompt: 'could you dim everything in the burrow for film night', expected: '{"do":"scene","room":"basement","name":"film"}', base: 'The burrow is a warm place and the film is', tuned: state === 'done' ? '{"do":"scene","room":"basement","name":"film"}' : null },
  };
}

function info(run, state, step) {
  return {
    run, model: 'homes-3m', dataset: 'our-home', started_at: Math.floor(began / 1000), state,
    note: state === 'failed' ? 'No device is left that can hold layers 4–6 (24 MB): let a device with more memory join, then start again.' : '',
    epochs: EPOCHS, steps_per_epoch: STEPS, exact_match_before: step > 0 ? 0.01 : null, exact_match_after: state === 'done' ? 0.91 : null,
    loss: step > 0 ? lossAt(step) : null, held_out_loss: step > STEPS ? 0.19 : null, seconds: 71.3,
  };
}

function snapshot() {
  const nodes = devices();
  const run = runView();
  const step = run ? elapsed() : 0;
  const filling = run?.info.state === 'running' && run.epoch === 0;
  const fillSteps = Math.min(step, STEPS);
  const trainSteps = Math.max(0, step - STEPS);
  const fine = run?.info.state === 'running' ? ((Date.now() - began) % 900) / 900 : 0;
  const links = nodes.flatMap((a, i) => nodes.slice(i + 1).map((b) => ({ a: a.node, b: b.node, relayed: a.node + b.node === 5, round_trip_millis: 2.1 + a.node + b.node * 0.7, bytes_per_second: 14e6 / b.node + 1e6 })));
  return {
    now_millis: Date.now(),
    nodes: nodes.map((d, i) => ({
      node: d.node, name: d.name, kind: d.kind, backend: d.backend, gflops: d.gflops, memory_budget_bytes: d.budget,
      counters: {
        memory_bytes: run ? (run.epoch === 0 ? 58e6 : 17e6) - i * 6e6 + 8e6 : 2e6, peak_memory_bytes: run ? 71e6 - i * 6e6 : 4e6, fill_peak_memory_bytes: run ? 71e6 - i * 6e6 : 0, train_peak_memory_bytes: trainSteps ? 19e6 : 0,
        backbone_bytes: filling ? 21e6 - i * 4e6 : 0, cache_bytes: fillSteps * 0.14e6, weights_downloaded_bytes: run ? 3.1e6 : 0, compute_seconds: step * (0.5 - i * 0.1), wait_seconds: step * (0.12 + i * 0.06),
        links: nodes.filter((o) => o !== d).map((o) => ({
          peer: o.node,
          activations_bytes: d.node < o.node && d.node === 1 ? (fillSteps + (filling ? fine : 0)) * 0.42e6 : 0,
          side_gradients_bytes: d.node > o.node && o.node === 1 ? (fillSteps + (filling ? fine : 0)) * 0.05e6 : 0,
          adapter_gradients_bytes: (d.node + o.node === 5 ? fillSteps * 0.03e6 : 0) + (trainSteps + (trainSteps ? fine : 0)) * 0.09e6,
          cache_bytes: trainSteps > 0 && d.node === 1 ? 3.1e6 : 0, other_bytes: 40_000,
        })),
      },
      activity: !run || run.info.state !== 'running' ? 'idle' : filling ? ['stage 1, layers 1–3', 'stage 2, layers 4–6', 'stage 2, layers 4–6'][i] ?? 'stage 3, layer 6' : 'training on its share of the cache',
      progress: scenario === 'many' && i === 4 ? 0.4 : null,
      layers: filling ? (i === 0 ? [0, 3] : i < 6 ? [3, 6] : null) : null,
      train_slots: run && !filling ? [[0, 5], [5, 7], [7, 8]][i] ?? [i, i + 1] : null,
    })),
    links,
    run,
    events: [
      { at_millis: began - 60_000, level: 'info', text: 'The home server started.' },
      ...nodes.map((d, i) => ({ at_millis: began - 40_000 + i * 7000, level: 'good', text: `${d.name} joined: ${d.backend.kind === 'cpu' ? 'processor' : 'GPU'}, ${d.gflops} GFLOP/s.` })),
      ...(run ? [{ at_millis: began, level: 'info', text: 'Run 4 began: homes-3m on our-home, 3 epochs.' }] : []),
      ...(step > 40 ? [{ at_millis: began + 36_000, level: 'warning', text: 'Old tablet was gone for 4 s; layers 4–6 went on without it, and its 12 cache entries were computed again.' }] : []),
      ...(scenario === 'failed' ? [{ at_millis: began + 50_000, level: 'bad', text: 'No device is left that can hold layers 4–6 (24 MB).' }] : []),
      ...(step > STEPS ? [{ at_millis: began + 47_000, level: 'good', text: 'The cache is full: 20.5 MB. The frozen layers are no longer needed.' }] : []),
    ],
  };
}

const QR = (() => {
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  const cells = [];
  const finder = (x, y) => (x < 7 && y < 7) || (x > 25 && y < 7) || (x < 7 && y > 25);
  for (let y = 0; y < 33; y += 1) for (let x = 0; x < 33; x += 1) if (!finder(x, y) && random() > 0.52) cells.push(`M${x + 2} ${y + 2}h1v1h-1z`);
  for (const [x, y] of [[0, 0], [26, 0], [0, 26]]) cells.push(`M${x + 2} ${y + 2}h7v7h-7zM${x + 3} ${y + 3}v5h5v-5zM${x + 4} ${y + 4}h3v3h-3z`);
  return `<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="296" height="296" viewBox="0 0 37 37"><path fill="#fff" d="M0 0h37v37H0z"/><path fill="#000" fill-rule="evenodd" d="${cells.join('')}"/></svg>`;
})();

async function answer(request, response) {
  const url = new URL(request.url, 'http://x');
  const path = url.pathname;
  const json = (value, status = 200) => response.writeHead(status, { ...HEADERS, 'content-type': 'application/json' }).end(JSON.stringify(value));
  const refuse = (status, error) => json({ error }, status);
  if (path.startsWith('/mock/')) {
    scenario = path.slice(6);
    began = Date.now();
    paused = null;
    return json({ scenario });
  }
  if (path === '/api/version') return json({ protocol: { major: scenario === 'newer' ? 2 : 1, minor: 1 }, server: 'mock' });
  if (path.startsWith('/api/')) {
    if (request.headers.authorization !== `Bearer ${TOKEN}`) return refuse(401, 'the invitation is not known');
    const body = request.method === 'POST' ? await read(request) : '';
    if (path === '/api/snapshots') {
      response.writeHead(200, { ...HEADERS, 'content-type': 'application/x-ndjson' });
      const send = () => response.write(`${JSON.stringify(snapshot())}\n`);
      send();
      const timer = setInterval(send, 400);
      request.on('close', () => clearInterval(timer));
      return undefined;
    }
    if (path === '/api/invite') return json({ url: `https://192.168.178.21:8443/join#k=${SECRET}&c=${'ab'.repeat(32)}`, svg: QR });
    if (path === '/api/models') return json(MODELS);
    if (path === '/api/datasets' && request.method === 'POST') {
      if (body.includes('broken')) return refuse(400, 'line 3 of the file is not JSON: expected an object with "prompt" and "response", found "broken"; correct the line and add the file again');
      const made = { id: `data-${datasets.length + 1}`, name: url.searchParams.get('name'), train_rows: 90, held_out_rows: 10 };
      datasets.push(made);
      return json(made);
    }
    if (path === '/api/datasets') return json(datasets);
    if (/^\/api\/datasets\/[^/]+\/preview$/.test(path)) return json({ rows: ROWS, total_tokens: 21_480, labelled_tokens: 9_120, min_tokens: 14, median_tokens: 41, max_tokens: 96, warnings: ['3 rows occur twice; each counts once.'] });
    if (path === '/api/plan') {
      const asked = JSON.parse(body);
      const epochs = asked.epochs ?? EPOCHS;
      return json({ plan: planFor(devices()), cache_bytes: 20.5e6, seconds: STEPS * FILL_STEP + (epochs - 1) * STEPS * TRAIN_STEP, steps_per_epoch: STEPS, epochs });
    }
    if (path === '/api/runs' && request.method === 'POST') {
      scenario = 'fill';
      began = Date.now();
      return json(info(4, 'preparing', 0));
    }
    if (path === '/api/runs') return json([{ ...info(2, 'done', 150), started_at: 1795000000 }, { ...info(3, 'stopped', 12), started_at: 1795100000, note: 'stopped by you', exact_match_after: null }]);
    if (/^\/api\/runs\/\d+\/(pause|resume|stop)$/.test(path)) {
      if (path.endsWith('pause')) paused = Date.now();
      if (path.endsWith('resume') && paused) [began, paused] = [began + Date.now() - paused, null];
      if (path.endsWith('stop')) scenario = 'idle';
      return response.writeHead(204, HEADERS).end();
    }
    if (/^\/api\/runs\/\d+\/view$/.test(path)) {
      const before = scenario;
      scenario = 'done';
      const view = runView();
      scenario = before;
      return json(view);
    }
    if (path.includes('/adapter/')) return response.writeHead(200, { ...HEADERS, 'content-type': 'application/octet-stream' }).end('{}');
    if (path === '/api/ask') {
      await new Promise((resolve) => setTimeout(resolve, 600));
      return json({ base: 'The dragon is a big animal that lives in the hills and sleeps. The dragon is', tuned: '{"do":"off","device":"coffee_machine"}', run: 2, answered_by: 'Study desktop', seconds: 0.84 });
    }
    return refuse(404, `there is no ${path}`);
  }
  if (path === '/assets/node.js') return response.writeHead(200, { ...HEADERS, 'content-type': 'text/javascript' }).end(FAKE_NODE);
  if (path === '/assets/node_bg.wasm') return response.writeHead(200, { ...HEADERS, 'content-type': 'application/wasm' }).end(EMPTY_WASM);
  const file = { '/': 'index.html', '/join': 'join.html', '/try': 'try.html' }[path] ?? (/^\/assets\/[\w.-]+$/.test(path) ? path.slice(1) : null);
  const content = file && (await readFile(join(dist, file)).catch(() => null));
  if (!content) return refuse(404, `there is no ${path}`);
  return response.writeHead(200, { ...HEADERS, 'content-type': TYPES[extname(file)] ?? 'application/octet-stream' }).end(content);
}

async function read(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString();
}

/** Starts the server; port 0 takes a free one. */
export function startMock({ port = 8090, start = 'idle' } = {}) {
  scenario = start;
  began = Date.now();
  const server = createServer((request, response) => {
    answer(request, response).catch((error) => response.destroy(error));
  });
  return new Promise((resolve) => server.listen(port, '127.0.0.1', () => resolve({ server, origin: `http://127.0.0.1:${server.address().port}`, fragment: `#k=${SECRET}&c=${'ab'.repeat(32)}` })));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const option = (name, otherwise) => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? otherwise : process.argv[at + 1];
  };
  const { origin, fragment } = await startMock({ port: Number(option('port', '8090')), start: option('scenario', 'idle') });
  console.log(`${origin}/${fragment}`);
}
