// A device without a direct path to the others: everything it says goes through the home server, sealed.
//
//   tab "Phone" (relayed) ── https ── barycenter serve ── https ── barycenter node "Desktop"

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Harness, phone } from './harness.mjs';
import { Household } from './household.mjs';

let harness;
let household;
let browser;

before(async () => {
  harness = new Harness();
  household = await Household.start(harness);
  browser = await harness.browser();
});
after(() => harness.close());

test('a phone that nobody reaches directly trains with the others through the server', async () => {
  const desktop = await household.joinNative('Desktop');
  const { page, problems } = await household.joinPage(browser, 'Phone', phone, { relay: true });
  const dataset = await household.uploadRows(16);
  const info = await household.startRun(dataset, { epochs: 3, batch: 8 });
  const run = await household.untilRun(info, 'the run ends', (view) => view.info.state === 'done', 120_000);

  assert.deepEqual(run.losses.map((point) => point.at), Array.from({ length: 6 }, (_, at) => at));
  assert.ok(run.losses.at(-1).loss < run.losses[0].loss, `the loss fell: ${JSON.stringify(run.losses)}`);
  assert.equal(run.epochs[0].phase, 'fill');
  const { links, nodes } = await household.snapshot();
  assert.equal(links.length, 1);
  assert.ok(links[0].relayed, 'the link goes through the server');
  // What goes over it depends on the plan: side gradients need not come back, nor need both train.
  const sent = nodes.flatMap(({ counters }) => counters.links).reduce((sum, link) => sum + link.activations_bytes + link.side_gradients_bytes + link.adapter_gradients_bytes + link.cache_bytes, 0);
  assert.ok(sent > 50_000, `${sent} bytes of tensors went through the server`);
  assert.match(await page.locator('body').innerText(), /relayed/);
  assert.deepEqual(problems, []);
  await desktop.end();
});
