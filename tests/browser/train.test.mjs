// A run with browsers in it, seen on the dashboard.
//
//   dashboard ─────────┐
//   tab "Tablet"  ── https ── barycenter serve ── https ── barycenter node "Desktop"
//   tab "Phone"   ──────┘
//        └──────── WebRTC between Tablet, Phone and Desktop: activations, gradients, cache

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { Harness, laptop, phone, screenshot } from './harness.mjs';
import { Household } from './household.mjs';

const rows = 40;
const batch = 8;
const epochs = 3;

let harness;
let household;
let browser;
let dashboard;

before(async () => {
  harness = new Harness();
  household = await Household.start(harness);
  browser = await harness.browser();
  dashboard = await harness.page(browser, laptop);
  await dashboard.page.goto(household.dashboardUrl);
});
after(() => harness.close());

let guests = [];
afterEach(async () => {
  for (const leave of guests.splice(0)) await leave();
});

async function threeNodes() {
  const tablet = await household.joinPage(browser, 'Tablet');
  const phonePage = await household.joinPage(browser, 'Phone', phone);
  const desktop = await household.joinNative('Desktop');
  guests = [() => tablet.context.close(), () => phonePage.context.close(), () => desktop.end()];
  return { tablet, phone: phonePage, desktop };
}

/** Loss of every optimiser step, in order, each exactly once. */
function assertWhole(run, counted) {
  const steps = run.info.epochs * run.info.steps_per_epoch;
  assert.deepEqual(run.losses.map((point) => point.at), Array.from({ length: steps }, (_, at) => at));
  assert.ok(run.losses.every((point) => Number.isFinite(point.loss)));
  assert.ok(run.losses.at(-1).loss < run.losses[0].loss, 'the loss fell');
  assert.equal(run.epochs.length, counted);
}

test('two tabs and a native node train together, and the dashboard shows the curve', async () => {
  const { phone: phonePage, tablet } = await threeNodes();
  const dataset = await household.uploadRows(rows);
  const info = await household.startRun(dataset, { epochs, batch });
  await household.untilRun(info, 'the fill epoch goes on', (run) => run.losses.length > 0);
  await screenshot(dashboard.page, 'dashboard-fill');
  await screenshot(phonePage.page, 'join-phone-working', { fullPage: true });
  const run = await household.untilRun(info, 'the run ends', (view) => view.info.state === 'done', 240_000);

  assertWhole(run, epochs);
  const [fill, ...cached] = run.epochs;
  assert.equal(fill.phase, 'fill');
  assert.ok(fill.backbone_seconds > 0);
  for (const epoch of cached) assert.equal(epoch.backbone_seconds, 0, 'a cached epoch runs no backbone');
  const { nodes } = await household.snapshot();
  assert.equal(nodes.length, 3);
  for (const node of nodes) {
    assert.ok(node.counters.links.length > 0, `${node.name} has links to its peers`);
    assert.ok(node.counters.compute_seconds > 0, `${node.name} computed: ${JSON.stringify(node)}`);
    assert.equal(node.counters.backbone_bytes, 0, `${node.name} holds no backbone in the train phase`);
  }
  await dashboard.page.getByTestId('curves').locator('canvas').first().waitFor();
  await dashboard.page.waitForFunction(() => document.querySelector('[data-testid=band]')?.dataset.state === 'done');
  await screenshot(dashboard.page, 'dashboard-done', { fullPage: true });
  assert.deepEqual(dashboard.problems, []);
  assert.deepEqual([...phonePage.problems, ...tablet.problems], []);
});

test('the tuned model answers beside the base, and the adapter can be taken along', async () => {
  await threeNodes();
  const { page, problems } = await harness.page(browser, laptop);
  await page.goto(household.dashboardUrl.replace('/#', '/try#'));
  await page.getByTestId('prompt').fill('turn on the light in the kitchen');
  await page.getByTestId('ask').click();
  await page.getByTestId('answer').first().waitFor({ timeout: 60_000 });
  await screenshot(page, 'try');
  const [{ run }] = await household.api('/api/runs');
  const adapter = await household.api(`/api/runs/${run}/adapter/adapter_model.safetensors`);
  const header = JSON.parse(adapter.subarray(8, 8 + Number(adapter.readBigUInt64LE())).toString());
  assert.ok('side.gate' in header);
  const config = await household.api(`/api/runs/${run}/adapter/adapter_config.json`);
  assert.equal(typeof (Buffer.isBuffer(config) ? JSON.parse(config.toString()) : config), 'object');
  assert.deepEqual(problems, []);
});

for (const phase of ['fill', 'train']) {
  test(`a tab closed in the ${phase} phase is missed, and the others finish`, async () => {
    const { tablet } = await threeNodes();
    const dataset = await household.uploadRows(rows, `closed-${phase}.jsonl`);
    const info = await household.startRun(dataset, { epochs, batch });
    await household.untilRun(info, `the ${phase} phase goes on`, (run) => run.phase === phase && run.step > 0 && run.info.state === 'running');
    await tablet.context.close();
    const run = await household.untilRun(info, 'the run ends', (view) => view.info.state === 'done', 240_000);
    assertWhole(run, epochs);
    assert.deepEqual((await household.snapshot()).nodes.map((node) => node.name).sort(), ['Desktop', 'Phone']);
    await screenshot(dashboard.page, `dashboard-closed-in-${phase}`, { fullPage: true });
  });
}

test('the dashboard reads well on a phone', async () => {
  const { page } = await harness.page(browser, { ...phone, colorScheme: 'dark' });
  await page.goto(household.dashboardUrl);
  await page.getByTestId('band').waitFor();
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  await screenshot(page, 'dashboard-phone-dark', { fullPage: true });
});
