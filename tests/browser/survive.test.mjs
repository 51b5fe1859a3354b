// What a household does to a run: a node is killed, a node leaves, the server is restarted, a node comes late.
//
//   barycenter serve (killed and started again)
//     ├── barycenter node "A"
//     ├── barycenter node "B"  (killed, or interrupted)
//     └── barycenter node "C"  (comes late)

import assert from 'node:assert/strict';
import { after, afterEach, test } from 'node:test';
import { Harness, until } from './harness.mjs';
import { Household } from './household.mjs';

const harness = new Harness();
after(() => harness.close());

let guests = [];
afterEach(async () => {
  for (const guest of guests.splice(0)) await guest.end();
});

/** Every optimiser step exactly once, and the loss fell. */
function assertWhole(run) {
  const steps = run.info.epochs * run.info.steps_per_epoch;
  assert.deepEqual(run.losses.map((point) => point.at), Array.from({ length: steps }, (_, at) => at));
  assert.ok(run.losses.at(-1).loss < run.losses[0].loss, 'the loss fell');
}

const done = ({ info }) => info.state === 'done';
const filling = ['the fill epoch is on its way', ({ losses }) => losses.length >= 5];
const training = ['a cached epoch is on its way', ({ epoch, phase }) => phase === 'train' && epoch >= 1];

/** A household of the nodes A and B that train the demo and are so far. */
async function pairAtWork(options, what, isSoFar) {
  const household = await Household.start(harness);
  const [a, b] = [await household.joinNative('A'), await household.joinNative('B')];
  guests = [a, b];
  const run = await household.startRun('demo-home', { model: 'demo', batch: 16, epochs: 12, exact_match_rows: 0, ...options });
  await household.untilRun(run, what, isSoFar);
  return { household, a, b, run };
}

test('a node killed while the cache fills is missed, and the others finish', async () => {
  const { household, a, b, run } = await pairAtWork({ epochs: 3 }, ...filling);
  guests = [a];
  const killed = Date.now();
  b.kill();
  await until('B is missed', async () => (await household.snapshot()).nodes.every((node) => node.name !== 'B'), 5_000);
  console.log(`missed after ${Date.now() - killed} ms`);
  assertWhole(await household.untilRun(run, 'the run ends', done));
});

test('a node killed while training from the cache costs no sample', async () => {
  const { household, a, b, run } = await pairAtWork({}, ...training);
  guests = [a];
  b.kill();
  const whole = await household.untilRun(run, 'the run ends', done);
  assertWhole(whole);
  assert.deepEqual(whole.plan.train.map((share) => share.slots), [{ start: 0, end: 16 }], 'A trains alone');
});

for (const [phase, epoch, signal] of [['fill', 0, 'SIGINT'], ['train', 1, 'SIGTERM']]) {
  test(`a node that leaves in the ${phase} phase hands its part over, and nothing is done again`, async () => {
    const { household, b, run } = await pairAtWork({ batch: 8 }, 'its phase is on its way', (now) => now.phase === phase && now.epoch >= epoch && now.losses.length >= 5);
    const asked = Date.now();
    b.signal(signal);
    await b.says(/leaving: the others take over first/);
    await b.says(/You left\./, 60_000);
    console.log(`let go after ${Date.now() - asked} ms`);
    await b.ended;
    const whole = await household.untilRun(run, 'the run ends', done);
    assertWhole(whole);
    assert.deepEqual(whole.plan.train.map((share) => share.slots), [{ start: 0, end: 8 }], 'A trains alone');
    const said = (await household.snapshot()).events.map((event) => event.text);
    assert.ok(said.includes('B is about to leave: the others take over first.'), said.join('\n'));
    assert.deepEqual(said.filter((text) => /is gone|broke|had begun/.test(text)), [], said.join('\n'));
    const refills = said.filter((text) => text.startsWith('Computing the cache entries'));
    assert.deepEqual(refills, ['Computing the cache entries of 100 samples.'], 'the held-out rows, and none a second time');
  });
}

test('a node that is asked to leave a second time waits for nobody', async () => {
  const { a, b } = await pairAtWork({ batch: 8 }, ...filling);
  guests = [b];
  a.signal('SIGSTOP'); // nobody can take over
  b.signal('SIGINT');
  await b.says(/leaving: the others take over first/);
  await new Promise((done) => setTimeout(done, 1_000));
  assert.doesNotMatch(b.output, /You left/, 'it waits');
  const asked = Date.now();
  b.signal('SIGINT');
  assert.equal(await b.ended, 0);
  assert.ok(Date.now() - asked < 3_000, `${Date.now() - asked} ms`);
  a.kill();
});

test('a restarted server resumes the run where it was, and the nodes come back by themselves', async () => {
  const { household, run } = await pairAtWork({}, ...training);
  await household.server.kill();
  await household.serve();
  const whole = await household.untilRun(run, 'the run ends', done);
  assertWhole(whole);
});

test('a node that comes during a run is used from the next epoch on', async () => {
  const household = await Household.start(harness);
  guests = [await household.joinNative('A')];
  // Long enough for a node that first has to test itself and to link: an epoch takes a fraction of a second.
  const run = await household.startRun('demo-home', { model: 'demo', batch: 16, epochs: 80, exact_match_rows: 0 });
  await household.untilRun(run, 'the fill epoch is on its way', ({ losses }) => losses.length >= 2);
  guests.push(await household.joinNative('C'));
  await household.untilRun(run, 'both train', ({ plan }) => plan.train.length === 2);
  assertWhole(await household.untilRun(run, 'the run ends', done));
});
