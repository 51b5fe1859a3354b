// Size of the browser node, and how long a page takes from opening to being in the swarm.
//
//   node bench/open.mjs [--rounds 5]
//
// On loopback, with a warm cache: the page was there before. Needs `cargo xtask web` and the built program, whose pages
// these are.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { brotliCompressSync, gzipSync } from 'node:zlib';
import { program } from './program.mjs';
import { Harness, dist } from '../tests/browser/harness.mjs';
import { Household } from '../tests/browser/household.mjs';

const { values: options } = parseArgs({ options: { rounds: { type: 'string', default: '5' } } });
process.env.BARYCENTER = program;

const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(2)} MiB`;
for (const name of ['node_bg.wasm', 'node_threads_bg.wasm']) {
  const wasm = readFileSync(join(dist, 'assets', name));
  console.log(`${name}: ${mib(wasm.length)}, ${mib(gzipSync(wasm, { level: 9 }).length)} gzip, ${mib(brotliCompressSync(wasm).length)} brotli`);
}

const harness = new Harness();
try {
  const household = await Household.start(harness);
  const browser = await harness.browser();
  const { page } = await harness.page(browser);
  const times = [];
  for (let visit = 0; visit <= Number(options.rounds); visit++) {
    const began = performance.now();
    await page.goto(household.joinUrl('Bench'), { waitUntil: 'commit' });
    await page.waitForFunction(() => document.body?.dataset.state === 'in', undefined, { timeout: 60_000, polling: 20 });
    times.push((performance.now() - began) / 1e3);
    await page.goto('about:blank');
    await household.untilNobody();
  }
  const [cold, ...warm] = times;
  warm.sort((a, b) => a - b);
  console.log(`open to in the swarm: first visit ${cold.toFixed(2)} s; with a warm cache median ${warm[warm.length >> 1].toFixed(2)} s (${warm[0].toFixed(2)} to ${warm.at(-1).toFixed(2)}) of ${warm.length}`);
} finally {
  await harness.close();
}
