// The bulk channel: bytes per second of our links beside a bare RTCDataChannel loop in the same browser.
//
//   node bench/bulk.mjs [--mib 32] [--rounds 3] [--no-build] [--json FILE]
//
//   bare:  page ── data channel ── page           (also within one page)
//   ours:  wasm in a Worker ── page ── data channel ── page ── wasm in a Worker
//          wasm in a Worker ── page ── data channel ── native program
//
// Greeting, proof, 64 KiB frames, windows and assembly are those of a run; a message is 1 MiB. Every round measures all
// of them one after the other, and the median of the rounds counts. Rates are the receiver's: what came after the first
// message, by the time it took. LINK_PAGE and LINK_PEER name modules built elsewhere.

import { spawn, spawnSync } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import { Harness, root } from '../tests/browser/harness.mjs';

const { values: options } = parseArgs({
  options: {
    mib: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '3' },
    'no-build': { type: 'boolean', default: false },
    json: { type: 'string' },
  },
});
const mib = Number(options.mib);
const messageBytes = 1 << 20;
const total = mib * messageBytes;
const secret = '00112233445566778899aabbccddeeff';
const target = resolve(root, process.env.CARGO_TARGET_DIR ?? 'target');
const linkPage = process.env.LINK_PAGE ?? join(target, 'wasm32-unknown-unknown/wasm/examples/link_page.wasm');
const linkPeer = process.env.LINK_PEER ?? join(target, 'release/examples/link_peer');
const bound = join(target, 'bench');

if (!options['no-build']) {
  cargo('build', '-q', '-p', 'barycenter-node-wasm', '--example', 'link_page', '--target', 'wasm32-unknown-unknown', '--profile', 'wasm');
  cargo('build', '-q', '--release', '-p', 'barycenter-transport', '--example', 'link_peer');
  cargo('run', '-q', '-p', 'xtask-bindgen', '--', linkPage, bound);
}

const worker = `
  import init, { Link } from '/node.js';
  let link;
  onmessage = async ({ data }) => {
    if (data.start) {
      await init({ module_or_path: '/node_bg.wasm' });
      link = new Link(data.start.own, data.start.peer, data.start.secret, data.port, (line) => postMessage(line));
      postMessage('READY');
    }
    if (data.signal) link?.signal(data.signal); // Before it dials it misses nothing: the offer is still to come.
    if (data.send) link.send(data.send);
  };`;

const script = `
  import { startRtcBridge } from ${JSON.stringify(join(root, 'web/src/rtc-bridge.ts'))};

  // The receiver's account: bytes after the first message, and the time since.
  const counter = () => {
    let got = 0, first = 0, firstAt = 0, lastAt = 0;
    return {
      reset() { got = 0; },
      at(bytes) { this.add(bytes - got); },
      add(bytes) { lastAt = performance.now(); if (got === 0) { first = bytes; firstAt = lastAt; } got += bytes; },
      get got() { return got; },
      get rate() { return (got - first) / (lastAt - firstAt) / 1e3; },
    };
  };

  // Ours.
  window.link = (own, peer, secret) => new Promise((ready) => {
    const { port1, port2 } = new MessageChannel();
    startRtcBridge(port1);
    const worker = new Worker('/worker.js', { type: 'module' });
    window.linkState = { up: false, down: '', count: counter(), before: 0 };
    worker.onmessage = ({ data: line }) => {
      const rest = line.slice(line.indexOf(' ') + 1);
      if (line === 'READY') ready();
      else if (line.startsWith('SIGNAL ')) window.outward(rest);
      else if (line === 'UP') window.linkState.up = true;
      else if (line.startsWith('DOWN ')) window.linkState.down = rest;
      else if (line.startsWith('RECEIVED ')) { window.linkState.count.add(Number(rest) - window.linkState.before); window.linkState.before = Number(rest); }
    };
    window.signalIn = (text) => worker.postMessage({ signal: text });
    window.sendMiB = (mib) => worker.postMessage({ send: mib });
    worker.postMessage({ start: { own, peer, secret }, port: port2 }, [port2]);
  });

  // Bare.
  const pump = async (channel, total) => {
    const chunk = new Uint8Array(65536);
    channel.bufferedAmountLowThreshold = 512 * 1024;
    for (let sent = 0; sent < total; sent += chunk.length) {
      if (channel.bufferedAmount > 2 << 20) await new Promise((low) => { channel.onbufferedamountlow = low; });
      channel.send(chunk);
    }
  };
  const open = (peer, count) => {
    const channel = peer.createDataChannel('bulk', { negotiated: true, id: 1 });
    channel.binaryType = 'arraybuffer';
    channel.onmessage = ({ data }) => count.add(data.byteLength);
    return channel;
  };
  window.bareLoop = async (total) => {
    const [a, b] = [new RTCPeerConnection(), new RTCPeerConnection()];
    a.onicecandidate = ({ candidate }) => candidate && b.addIceCandidate(candidate);
    b.onicecandidate = ({ candidate }) => candidate && a.addIceCandidate(candidate);
    const count = counter();
    const [from] = [open(a, count), open(b, count)];
    await a.setLocalDescription();
    await b.setRemoteDescription(a.localDescription);
    await b.setLocalDescription();
    await a.setRemoteDescription(b.localDescription);
    if (from.readyState !== 'open') await new Promise((opened) => { from.onopen = opened; });
    await pump(from, total);
    while (count.got < total) await new Promise((soon) => setTimeout(soon, 5));
    a.close();
    b.close();
    return count.rate;
  };
  window.bareEnd = () => {
    const peer = new RTCPeerConnection();
    const count = counter();
    const channel = open(peer, count);
    window.bare = { count, isOpen: () => channel.readyState === 'open', send: (total) => pump(channel, total) };
    const gathered = () => peer.iceGatheringState === 'complete' ? undefined : new Promise((done) => { peer.onicegatheringstatechange = () => peer.iceGatheringState === 'complete' && done(); });
    window.bareStep = async (remote) => {
      if (remote) await peer.setRemoteDescription(remote);
      if (remote?.type !== 'answer') { await peer.setLocalDescription(); await gathered(); }
      return { type: peer.localDescription.type, sdp: peer.localDescription.sdp };
    };
  };`;

/** `link_peer`, spoken to in lines. */
class Native {
  #child;
  #earlier = 0;
  #onReceived = () => {};

  start(onSignal) {
    this.#child = spawn(linkPeer, ['1', '2', secret], { stdio: ['pipe', 'pipe', 'inherit'] });
    const lines = createInterface({ input: this.#child.stdout });
    this.up = new Promise((isUp, failed) => {
      this.#child.on('exit', () => failed(new Error('the native program ended')));
      lines.on('line', (line) => {
        if (line.startsWith('SIGNAL ')) void onSignal(line.slice(7));
        else if (line.startsWith('UP')) isUp();
        else if (line.startsWith('DOWN')) failed(new Error(line));
        else if (line.startsWith('RECEIVED')) this.#onReceived(Number(line.split(' ')[1]), Number(line.split(' ')[2]));
      });
    });
  }

  write(line) {
    this.#child?.stdin.write(`${line}\n`);
  }

  /** Its clock starts with its first message ever, so differences count. */
  async receive(start) {
    let first;
    const rate = new Promise((found) => {
      this.#onReceived = (bytes, seconds) => {
        first ??= { bytes, seconds };
        if (bytes - this.#earlier < total) return;
        this.#earlier = bytes;
        found((bytes - first.bytes) / (seconds - first.seconds) / 1e6);
      };
    });
    await start();
    return rate;
  }

  end() {
    this.#child.removeAllListeners('exit');
    this.#child.kill();
  }
}

const harness = new Harness();
const rates = new Map();
try {
  const bundle = await build({ stdin: { contents: script, resolveDir: root, loader: 'ts' }, bundle: true, format: 'iife', write: false, logLevel: 'error' });
  const address = await harness.files(bound, { '/bulk.html': '<!doctype html><title>bulk</title><script src="/bulk.js"></script>', '/bulk.js': bundle.outputFiles[0].text, '/worker.js': worker });
  const browser = await harness.browser();
  const tab = async () => {
    const { page, problems } = await harness.page(browser);
    page.problems = problems;
    await page.goto(`${address}/bulk.html`);
    return page;
  };

  // Two pages without us.
  const [a, b] = [await tab(), await tab()];
  for (const page of [a, b]) await page.evaluate(() => window.bareEnd());
  const offer = await a.evaluate(() => window.bareStep());
  const answer = await b.evaluate((remote) => window.bareStep(remote), offer);
  await a.evaluate((remote) => window.bareStep(remote), answer);
  await a.waitForFunction(() => window.bare.isOpen());

  // Two pages with us.
  const [c, d] = [await tab(), await tab()];
  await c.exposeFunction('outward', (text) => d.evaluate((signal) => window.signalIn(signal), text));
  await d.exposeFunction('outward', (text) => c.evaluate((signal) => window.signalIn(signal), text));
  // The higher number only answers: it listens before the other one speaks.
  await d.evaluate(([own, peer, key]) => window.link(own, peer, key), [2, 1, secret]);
  await c.evaluate(([own, peer, key]) => window.link(own, peer, key), [1, 2, secret]);
  await up(c);
  await up(d);

  // A page and a native program.
  const e = await tab();
  const native = new Native();
  await e.exposeFunction('outward', (text) => native.write(`SIGNAL ${text}`));
  await e.evaluate(([own, peer, key]) => window.link(own, peer, key), [2, 1, secret]);
  native.start((text) => e.evaluate((signal) => window.signalIn(signal), text));
  await up(e);
  await native.up;

  const receive = async (page, start) => {
    await page.evaluate(() => window.linkState.count.reset());
    await start();
    await page.waitForFunction((wanted) => window.linkState.count.got >= wanted || window.linkState.down, total, { timeout: 120_000, polling: 50 });
    return page.evaluate(() => window.linkState.count.rate);
  };
  for (let round = 0; round < Number(options.rounds); round++) {
    note('bare, within one page', await a.evaluate((bytes) => window.bareLoop(bytes), total));
    await b.evaluate(() => window.bare.count.reset());
    await a.evaluate((bytes) => window.bare.send(bytes), total);
    await b.waitForFunction((wanted) => window.bare.count.got >= wanted, total, { timeout: 120_000, polling: 50 });
    note('bare, page → page', await b.evaluate(() => window.bare.count.rate));
    note('ours, page → page', await receive(d, () => c.evaluate((n) => window.sendMiB(n), mib)));
    note('ours, native → page', await receive(e, () => native.write(`SEND ${mib}`)));
    note('ours, page → native', await native.receive(() => e.evaluate((n) => window.sendMiB(n), mib)));
  }
  const median = (values) => values.toSorted((x, y) => x - y)[values.length >> 1];
  const rows = [...rates].map(([name, values]) => ({ name, megabytesPerSecond: median(values), rounds: values }));
  const bare = rows.find(({ name }) => name === 'bare, page → page').megabytesPerSecond;
  const loop = rows.find(({ name }) => name === 'bare, within one page').megabytesPerSecond;
  console.log(`\n${mib} MiB, median of ${options.rounds}         MB/s   of one page   of two pages`);
  for (const { name, megabytesPerSecond: rate } of rows) {
    console.log(`${name.padEnd(28)} ${rate.toFixed(1).padStart(7)} ${`${(100 * rate / loop).toFixed(0)} %`.padStart(13)} ${`${(100 * rate / bare).toFixed(0)} %`.padStart(14)}`);
  }
  if (options.json) await writeFile(options.json, `${JSON.stringify({ mib, browser: browser.version(), rows }, null, 2)}\n`);
  native.end();
} finally {
  await harness.close();
}

function note(name, rate) {
  if (!Number.isFinite(rate)) throw new Error(`${name}: nothing was measured`);
  rates.set(name, [...(rates.get(name) ?? []), rate]);
}

async function up(page) {
  await page.waitForFunction(() => window.linkState.up || window.linkState.down, undefined, { timeout: 30_000, polling: 50 });
  const down = await page.evaluate(() => window.linkState.down);
  if (down) throw new Error(`the link did not come up: ${down}`);
}

function cargo(...parameters) {
  if (spawnSync('cargo', parameters, { cwd: root, stdio: 'inherit' }).status !== 0) throw new Error(`cargo ${parameters.join(' ')} failed`);
}
