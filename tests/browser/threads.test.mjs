// One tab does a whole run: with one thread, with two, and with its frozen weights as int8.
//
//   tab "One" / "Two" / "Small" (one after the other) ── https ── barycenter serve

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Harness, needsThreads } from './harness.mjs';
import { Household } from './household.mjs';

const harness = new Harness();
after(() => harness.close());

let household;
let browser;
let dataset;
/** Runs by the tab that did them: what the run and its only node say at the end. */
const done = new Map();

async function runAlone(name, { threads, ...wishes }) {
  const { page, context, problems } = await harness.page(browser);
  await page.goto(household.joinUrl(name, { threads }));
  await household.untilJoined(name);
  const info = await household.startRun(dataset, { epochs: 2, exact_match_rows: 0, ...wishes });
  const run = await household.untilRun(info, 'the run ends', (view) => view.info.state === 'done', 240_000);
  const [node] = (await household.snapshot()).nodes;
  assert.deepEqual(problems, []);
  await context.close();
  await household.untilNobody();
  done.set(name, { run, node });
  return { run, node };
}

before(async () => {
  household = await Household.start(harness);
  browser = await harness.browser();
  dataset = await household.uploadRows(40);
});

test('a tab with two threads has the losses of one with one, and both say how many they have', needsThreads, async () => {
  const one = await runAlone('One', { threads: 1 });
  const two = await runAlone('Two', {});
  assert.match(one.node.backend.description, /, 1 thread$/);
  assert.match(one.node.backend.reason, /one thread, because this link asks for it/);
  assert.match(two.node.backend.description, /, \d+ threads$/);
  assert.equal(two.run.losses.length, one.run.losses.length);
  const errors = two.run.losses.map(({ loss }, step) => Math.abs(loss / one.run.losses[step].loss - 1));
  console.log(`largest relative difference over ${errors.length} steps: ${Math.max(...errors).toExponential(1)}`);
  // Sums over rows are taken in other pieces, and every step enlarges their rounding a little.
  assert.ok(Math.max(...errors) < 1e-5, `losses ${JSON.stringify(two.run.losses)} and ${JSON.stringify(one.run.losses)}`);
});

test('frozen weights as int8 take about half of the memory of f16, and the loss falls as without', async () => {
  const { run, node } = await runAlone('Small', { weights: 'int8' });
  const whole = done.get('Two') ?? await runAlone('Whole', {});
  assert.ok(run.losses.at(-1).loss < run.losses[0].loss, JSON.stringify(run.losses));
  const error = Math.abs(run.losses[0].loss / whole.run.losses[0].loss - 1);
  console.log(`first loss: ${run.losses[0].loss} as int8, ${whole.run.losses[0].loss} as f16`);
  assert.ok(error > 0 && error < 0.02, 'rounded weights change the first loss, and not by much');
  const [small, large] = [node, whole.node].map(({ counters }) => counters.fill_peak_memory_bytes);
  console.log(`peak memory of the fill phase: ${small} bytes as int8, ${large} as f16`);
  // 34 bytes for 32 values instead of 64, of the demo model's weights.
  const [model] = await household.api('/api/models');
  assert.ok(large - small > 0.4 * model.bytes, `${large - small} bytes of ${model.bytes} are saved`);
  const planned = ({ plan }) => plan.reasons.reduce((sum, reason) => sum + reason.fill_memory_bytes, 0);
  assert.ok(planned(whole.run) - planned(run) > 0.4 * model.bytes, 'the planner counts with it');
});
