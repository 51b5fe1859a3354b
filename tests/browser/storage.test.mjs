// Two devices that could train have storage for a part of the cache; a third one stores the rest for them.
//
//   barycenter serve
//     ├── barycenter node "A"    4 MB of storage
//     ├── barycenter node "B"    4 MB of storage
//     └── barycenter node "NAS"  2 MB of memory: no layer, no adapter

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { Harness, until } from './harness.mjs';
import { Household } from './household.mjs';

const harness = new Harness();
after(() => harness.close());

const wishes = { model: 'demo', batch: 16, epochs: 3, min_stages: 1, use_all_nodes: false, exact_match_rows: 0 };
const done = ({ info }) => info.state === 'done';

/** The last of `times` runs in a household of `offers`: (name → MB of memory and storage). */
async function runWith(offers, times = 1) {
  const household = await Household.start(harness);
  for (const [name, offer] of Object.entries(offers)) await household.joinNative(name, harness.folder(), offer);
  const count = Object.keys(offers).length;
  await until('all are linked', async () => (await household.snapshot()).links.length === (count * (count - 1)) / 2);
  let run;
  for (let i = 0; i < times; i++) run = await household.untilRun(await household.startRun('demo-home', wishes), 'the run ends', done);
  return { household, run, snapshot: await household.snapshot() };
}

test('a run whose cache fits on nobody who trains goes on with entries that another device keeps, and has the same losses', async () => {
  const small = { storage: 4 };
  await assert.rejects(runWith({ A: small, B: small }), /the cache of this run takes 10 MB, and the devices offer storage/);
  const { household, run, snapshot } = await runWith({ A: small, B: small, NAS: { memory: 2, storage: 1000 } });
  const nas = snapshot.nodes.find((node) => node.name === 'NAS');
  assert.ok(run.plan.stores.some((kept) => kept.node === nas.node), JSON.stringify(run.plan));
  assert.ok([...run.plan.train, ...run.plan.stages.flatMap((stage) => stage.members)].every((member) => member.node !== nas.node), 'it computes nothing');
  assert.match(run.plan.reasons.find((reason) => reason.node === nas.node).reason, /^NAS keeps the cache entries of .* and computes nothing\.$/);
  assert.equal(nas.counters.weights_downloaded_bytes, 0, 'it needs no weights');
  assert.ok(nas.counters.cache_bytes > 0);
  for (const node of snapshot.nodes) assert.ok(node.name === 'NAS' || node.counters.cache_bytes <= 4 << 20, `${node.name} stores ${node.counters.cache_bytes} bytes`);
  const sent = nas.counters.links.reduce((sum, link) => sum + link.cache_bytes, 0);
  // Counters come each second: the last epoch may be missing.
  assert.ok(sent >= nas.counters.cache_bytes, `it sent ${sent} bytes`);

  // While others train, the dashboard says what it does for them.
  const again = await household.startRun('demo-home', { ...wishes, epochs: 200 });
  await until('it is seen to keep entries', async () => (await household.snapshot()).nodes.find((node) => node.name === 'NAS').activity === 'keeps cache entries for the others');
  await household.api(`/api/runs/${again.run}/stop`, { method: 'POST' });

  // The first run may train while it fills the cache; the second one trains every epoch from it, as above.
  const { run: alone } = await runWith({ A: {} }, 2);
  assert.deepEqual(run.losses.map((point) => point.at), alone.losses.map((point) => point.at));
  for (const [i, { loss }] of run.losses.entries()) {
    assert.ok(Math.abs(loss - alone.losses[i].loss) <= 1e-4 * loss, `step ${i}: ${loss} and ${alone.losses[i].loss}`);
  }
});
