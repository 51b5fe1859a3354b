// What a device keeps: weights (by their hash) and cache entries of an earlier run.
//
//   barycenter serve ── https ── one device, joining twice with the same storage

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { Harness, phone, until } from './harness.mjs';
import { Household } from './household.mjs';

const rows = 24;
const batch = 8;

const harness = new Harness();
let household;
let dataset;

before(async () => {
  household = await Household.start(harness);
  dataset = await household.uploadRows(rows);
});
after(() => harness.close());

/** A run by whoever is there; answers the device's counters and the run. */
async function run() {
  const info = await household.startRun(dataset, { epochs: 2, batch, min_stages: 1, exact_match_rows: 0 });
  const view = await household.untilRun(info, 'the run ends', ({ info: { state } }) => state === 'done');
  // Counters come once a second: those that count are there when two looks, more than that apart, see the same.
  let before;
  const counters = await until('the counters come to rest', async () => {
    const [{ counters: now }] = (await household.snapshot()).nodes;
    const rests = now.cache_bytes > 0 && isDeepStrictEqual(now, before);
    before = now;
    return rests && now;
  }, 30_000, 2_200);
  return { counters, view };
}

async function twice(join, leave) {
  const first = await join();
  const { counters: cold, view: filled } = await run();
  assert.ok(cold.weights_downloaded_bytes > 1e6, `the first join fetched ${cold.weights_downloaded_bytes} bytes of weights`);
  assert.ok(filled.epochs[0].backbone_seconds > 0, 'the first run computes the frozen layers');
  await leave(first);
  await household.untilNobody();
  await join();
  const { counters: warm } = await run();
  assert.equal(warm.weights_downloaded_bytes, 0, 'the second join downloads nothing');
  assert.equal(warm.cache_bytes, cold.cache_bytes, 'the cache of the first run is there, and nothing is kept twice');
}

test('a page that joins again downloads nothing', async () => {
  const opened = await harness.page(await harness.browser(), phone);
  await twice(
    () => household.joinAgain(opened, 'Phone'),
    () => opened.page.goto('about:blank'),
  );
  await opened.context.close();
  await household.untilNobody();
});

test('a native node that joins again downloads nothing', async () => {
  const data = harness.folder();
  await twice(
    () => household.joinNative('Desktop', data),
    (node) => node.end(),
  );
});
