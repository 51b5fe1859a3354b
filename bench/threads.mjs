// What a second thread brings a browser: the demo's fill epoch and cached epochs in one tab, with one thread and with two.
//
//   node bench/threads.mjs [--rounds 5] [--json FILE]
//
// The two take turns, a new tab each time, so that both always fetch, fill and train the same; medians and minima of the rounds
// are printed, and the ratio of the medians. Needs `cargo xtask web` and the built program, whose pages these are.

import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { program } from './program.mjs';
import { Harness } from '../tests/browser/harness.mjs';
import { Household } from '../tests/browser/household.mjs';

const { values: options } = parseArgs({ options: { rounds: { type: 'string', default: '5' }, json: { type: 'string' } } });
process.env.BARYCENTER = program;
const THREADS = [1, 2];
const WHAT = ['fill epoch', 'cached epoch', 'self-test, GFLOP/s'];

const harness = new Harness();
try {
  const household = await Household.start(harness);
  const browser = await harness.browser();
  /** Values by thread count and then by what they are of. */
  const values = Object.fromEntries(THREADS.map((threads) => [threads, WHAT.map(() => [])]));
  for (let round = 0; round < Number(options.rounds); round++) {
    for (const threads of THREADS) {
      const { page, context } = await harness.page(browser);
      const name = `${threads} in round ${round}`;
      await page.goto(household.joinUrl(name, { threads }));
      await household.untilJoined(name);
      const [node] = (await household.snapshot()).nodes;
      const found = Number(/(\d+) threads?$/.exec(node.backend.description)?.[1]);
      if (found !== threads) throw new Error(`${node.backend.description}: ${node.backend.reason}`);
      const info = await household.api('/api/runs', { method: 'POST', body: { model: 'demo', dataset: 'demo-home', epochs: 4, seed: 7, exact_match_rows: 0, min_stages: 2 } });
      const run = await household.untilRun(info, 'the run ends', (view) => view.info.state === 'done', 300_000);
      const [fill, ...cached] = run.epochs.map((epoch) => epoch.seconds);
      const median = [...cached].sort((a, b) => a - b)[Math.floor(cached.length / 2)];
      [fill, median, node.gflops].forEach((value, at) => values[threads][at].push(value));
      console.log(`round ${round + 1}, ${node.backend.description}: fill ${fill.toFixed(2)} s, cached ${cached.map((s) => s.toFixed(2)).join(', ')} s, ${node.gflops.toFixed(1)} GFLOP/s`);
      await context.close();
      await household.untilNobody();
    }
  }
  const sorted = (list) => [...list].sort((a, b) => a - b);
  const median = (list) => sorted(list)[Math.floor(list.length / 2)];
  console.log(`\n${browser.version()}, median (least) of ${options.rounds} rounds`);
  const rows = WHAT.map((what, at) => {
    const [one, two] = THREADS.map((threads) => values[threads][at]);
    const ratio = at < 2 ? median(one) / median(two) : median(two) / median(one);
    console.log(`${what.padEnd(20)} 1 thread ${median(one).toFixed(2)} (${sorted(one)[0].toFixed(2)})   2 threads ${median(two).toFixed(2)} (${sorted(two)[0].toFixed(2)})   ${ratio.toFixed(2)} ×`);
    return { what, one, two, ratio };
  });
  if (options.json) writeFileSync(options.json, `${JSON.stringify({ browser: browser.version(), rows }, null, 2)}\n`);
} finally {
  await harness.close();
}
