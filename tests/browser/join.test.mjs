// Joining and leaving, as a person with a phone does it.
//
//   phone page ── https ── barycenter serve
//   stranger   ── https ──┘ (wrong secret)

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Harness, phone, screenshot } from './harness.mjs';
import { Household } from './household.mjs';

const harness = new Harness();
let household;
let browser;

before(async () => {
  household = await Household.start(harness);
  browser = await harness.browser();
});
after(() => harness.close());

/** A page "Leaves" and a native node that train together. */
async function besideNative(name) {
  const dataset = await household.uploadRows(64);
  const native = await household.joinNative(name);
  const { page, context } = await household.joinPage(browser, 'Leaves', phone);
  const run = await household.startRun(dataset, { epochs: 400, exact_match_rows: 0 });
  await household.untilRun(run, 'both train', ({ phase, plan }) => phase === 'train' && plan.train.length === 2);
  return { native, page, context, run };
}

test('a phone joins by the address of the code, says what it does, and leaves', async () => {
  const { page, problems } = await harness.page(browser, phone);
  await page.goto(household.joinUrl('My phone', { auto: false }));
  assert.match(await page.getByTestId('promise').innerText({ timeout: 20_000 }), /\w/);
  await screenshot(page, 'join-phone-door', { fullPage: true });
  assert.equal(await page.getByTestId('name').inputValue(), 'My phone');
  await page.getByTestId('join').click();
  await household.untilJoined('My phone');
  await page.waitForFunction(() => document.body.dataset.state === 'in');
  const [node] = (await household.snapshot()).nodes;
  assert.equal(node.kind, 'browser');
  assert.equal(node.backend.kind, 'cpu');
  assert.ok(node.backend.reason.length > 0, 'the node says why it computes on this back end');
  assert.ok(node.gflops > 0);
  await screenshot(page, 'join-phone-inside', { fullPage: true });
  await page.getByTestId('leave').click();
  await page.getByTestId('over').waitFor();
  await household.untilNobody();
  assert.deepEqual(problems, []);
});

test('an address typed with http leads to the page, invitation and all', async () => {
  const { page, problems } = await harness.page(browser, phone);
  await page.goto(household.joinUrl('Typed', { auto: false }).replace('https:', 'http:'));
  await page.getByTestId('join').waitFor();
  assert.equal(new URL(page.url()).protocol, 'https:');
  assert.deepEqual(problems, []);
});

test('the page fits a phone without scrolling sideways', async () => {
  const { page } = await harness.page(browser, phone);
  await page.goto(household.joinUrl('Narrow', { auto: false }));
  await page.getByTestId('join').waitFor();
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
});

test('a page without the right secret is refused and gets nothing', async () => {
  const { page } = await harness.page(browser, phone);
  const wrong = household.joinUrl('Stranger').replace(/k=[0-9a-f]{32}/, `k=${'0'.repeat(32)}`);
  const refused = [];
  page.on('response', (response) => {
    if (new URL(response.url()).pathname.startsWith('/api/')) refused.push([new URL(response.url()).pathname, response.status()]);
  });
  await page.goto(wrong);
  await page.waitForFunction(() => document.body.dataset.state === 'closed');
  await screenshot(page, 'join-phone-refused', { fullPage: true });
  for (const [path, status] of refused) assert.ok(path === '/api/version' || status === 401, `${path}: ${status}`);
  assert.deepEqual((await household.snapshot()).nodes, []);
  for (const path of ['/api/models', '/api/datasets', '/api/runs', '/api/snapshots', '/api/invite']) {
    assert.equal(await household.status(path, { token: '0'.repeat(64) }), 401, path);
  }
});

test('a page without any secret says what to do', async () => {
  const { page } = await harness.page(browser, phone);
  await page.goto(household.joinUrl('Stranger').replace(/#.*/, ''));
  await page.getByTestId('refusal').waitFor();
});

test('a page that leaves a run at work hands its part over', async () => {
  const { native, page, context, run } = await besideNative('Stays');
  await page.getByTestId('leave').click();
  await page.getByTestId('over').waitFor({ timeout: 60_000 });
  await household.untilRun(run, 'the other goes on alone', ({ plan }) => plan.train.length === 1);
  const said = (await household.snapshot()).events.map((event) => event.text);
  assert.ok(said.includes('Leaves is about to leave: the others take over first.'), said.join('\n'));
  assert.deepEqual(said.filter((text) => /is gone|broke/.test(text)), [], said.join('\n'));
  await household.api(`/api/runs/${run.run}/stop`, { method: 'POST' });
  await context.close();
  await native.end();
  await household.untilNobody();
});

test('a page that hands its part over may leave at once', async () => {
  const { native, page, context, run } = await besideNative('Stands still');
  native.signal('SIGSTOP');
  await page.getByTestId('leave').click();
  await page.getByTestId('leave-now').waitFor();
  assert.equal(await page.getByTestId('doing').innerText(), 'Handing over to the others');
  await screenshot(page, 'join-phone-hands-over', { fullPage: true });
  await page.getByTestId('leave-now').click();
  await page.getByTestId('over').waitFor({ timeout: 3_000 });
  await household.api(`/api/runs/${run.run}/stop`, { method: 'POST' });
  await native.kill();
  await context.close();
  await household.untilNobody();
});

test('a closed page is noticed within five seconds', async () => {
  const { context } = await household.joinPage(browser, 'Closing');
  await context.close();
  await household.untilNobody();
});
