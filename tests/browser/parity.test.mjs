// The mathematics of a run does not depend on the devices: one computer alone against a swarm of three.
//
//   barycenter train (no network)          barycenter serve ── https ── barycenter node "Desktop"
//            │                                    └── https ── tab "Tablet", tab "Phone"
//            └────────── losses, step by step ──────────┘

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Harness, phone } from './harness.mjs';
import { Household, demo } from './household.mjs';

// One epoch through the pipeline, two from the cache.
const epochs = 3;

const tolerance = { f32: 1e-3, f16: 1e-3 };

const harness = new Harness();
after(() => harness.close());

test('three nodes give the losses of one, every step within a thousandth', async () => {
  const files = ['--model', demo, '--data', join(demo, 'train.jsonl'), '--held-out', join(demo, 'heldout.jsonl')];
  const lossesAlone = async (cache) => {
    const report = join(harness.folder(), 'alone.json');
    const alone = harness.program(['train', ...files, '--device', 'cpu', '--epochs', String(epochs), '--seed', '7', '--exact-match-rows', '1', '--cache', cache, '--json', report]);
    assert.equal(await alone.ended, 0, alone.output);
    return JSON.parse(await readFile(report, 'utf8')).losses;
  };

  const household = await Household.start(harness);
  const browser = await harness.browser();
  await household.joinPage(browser, 'Tablet');
  await household.joinPage(browser, 'Phone', phone);
  await household.joinNative('Desktop');
  // A cache of another form each time, so that the second run fills its own: one that finds a cache trains its first epoch from
  // rounded taps too, and one computer alone does not.
  for (const [gradients, cache] of [['f32', 'int8'], ['f16', 'f16']]) {
    const one = await lossesAlone(cache);
    const started = await household.api('/api/runs', {
      method: 'POST',
      body: { model: 'demo', dataset: 'demo-home', epochs, seed: 7, min_stages: 2, use_all_nodes: true, exact_match_rows: 0, gradients, cache },
    });
    const run = await household.untilRun(started, 'the run ends', ({ info }) => info.state === 'done', 240_000);
    const three = run.losses.map((point) => point.loss);

    assert.equal(run.plan.train.length, 3, 'all three nodes train');
    assert.equal(three.length, one.length, 'as many steps');
    const worst = Math.max(...one.map((loss, step) => Math.abs(loss - three[step]) / Math.abs(loss)));
    console.log(`${gradients} gradients, ${cache} cache: largest relative difference over ${one.length} steps: ${worst.toExponential(1)}, epochs of ${run.epochs.map((epoch) => epoch.seconds.toFixed(1)).join(', ')} s`);
    assert.ok(worst <= tolerance[gradients], `${gradients} gradients: largest relative difference ${worst}`);
  }
});
