//! The pure parts of the pages: words, lines, layouts, view models.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { test } from 'node:test';
import { load } from './load.mjs';

/** Numbers and units are held together by no-break spaces, which tests write as plain ones. */
const plain = (text) => text.replaceAll('\u00a0', ' ');

const format = await load('format.ts');
const { LineSplitter, readLines } = await load('ndjson.ts');
const secret = await load('secret.ts');
const api = await load('api.ts');
const { judge } = await load('capability.ts');
const device = await load('device.ts');
const { placeBodies, shorten } = await load('orbit.ts');
const { TrafficMeter, sumOfKinds } = await load('traffic.ts');
const story = await load('story.ts');
const { requestOf } = await load('dashboard/settings.ts');
const join = await load('join/state.ts');
const { planThreads } = await load('threads.ts');

const counters = (links = []) => ({
  memory_bytes: 0, peak_memory_bytes: 0, fill_peak_memory_bytes: 0, train_peak_memory_bytes: 0, backbone_bytes: 0, cache_bytes: 0, weights_downloaded_bytes: 0, compute_seconds: 0, wait_seconds: 0, links,
});
const node = (id, name = `n${id}`, links = []) => ({
  node: id, name, kind: 'browser', backend: { kind: 'cpu', description: '', reason: '' }, gflops: 10, memory_budget_bytes: 1e9, counters: counters(links), activity: 'idle', progress: null, layers: null, train_slots: null,
});
const sent = (peer, activations) => ({ peer, activations_bytes: activations, side_gradients_bytes: 0, adapter_gradients_bytes: 0, cache_bytes: 0, other_bytes: 100 });
const info = (more = {}) => ({ run: 1, model: 'm', dataset: 'd', started_at: 0, state: 'running', note: '', epochs: 3, steps_per_epoch: 10, exact_match_before: null, exact_match_after: null, loss: null, held_out_loss: null, seconds: 0, ...more });
const run = (more = {}, moreInfo = {}) => ({ info: info(moreInfo), plan: null, phase: 'fill', epoch: 0, step: 0, seconds_left: null, losses: [], held_out: [], epochs: [], cache_bytes: 0, example: null, ...more });
const plan = {
  stages: [{ layers: { start: 0, end: 3 }, members: [{ node: 2, slots: { start: 0, end: 8 } }] }, { layers: { start: 3, end: 4 }, members: [{ node: 1, slots: { start: 0, end: 8 } }] }],
  micro_batches: 4, train: [{ node: 1, slots: { start: 0, end: 6 } }, { node: 2, slots: { start: 6, end: 8 } }], fill_step_seconds: 1, train_step_seconds: 0.25, single_device_fill_step_seconds: 2,
  reasons: [{ node: 3, reason: 'Too slow to help.', fill_memory_bytes: 0, train_memory_bytes: 0 }],
};

test('a_device_that_left_keeps_the_name_that_the_plan_remembers', () => {
  const remembered = { ...plan, reasons: [{ ...plan.reasons[0], name: 'Tablet' }] };
  assert.equal(story.nameOf(3, [], remembered), 'Tablet');
  assert.equal(story.nameOf(3, [node(3, 'Renamed')], remembered), 'Renamed');
  assert.equal(story.nameOf(4, [], remembered), 'device 4');
});

test('bytes_keep_three_figures_at_most_and_never_show_1000_of_a_unit', () => {
  assert.deepEqual([0, 999, 999.6, 1234, 99_949, 99_951, 999_600, 1.5e9, -3].map(format.bytes).map(plain), ['0 B', '999 B', '1.0 kB', '1.2 kB', '99.9 kB', '100 kB', '1.0 MB', '1.5 GB', '0 B']);
});

test('durations_round_to_what_a_person_wants_to_know', () => {
  assert.deepEqual([0, 0.012, 0.84, 9.96, 59.6, 200, 3600, 7499, NaN].map(format.duration).map(plain), ['0.0 s', '12 ms', '0.8 s', '10 s', '1 min', '3 min 20 s', '1 h', '2 h 5 min', 'unknown']);
});

test('numbers_and_layers_read_as_people_count', () => {
  assert.equal(plain(format.count(3_020_000)), '3.0 M');
  assert.equal(plain(format.percent(0.854)), '85 %');
  assert.equal(plain(format.percent(0.005)), '0.5 %');
  assert.equal(format.layers([0, 3]), 'layers 1–3');
  assert.equal(format.layers([5, 6]), 'layer 6');
  assert.equal(format.plural(1, 'device'), '1 device');
});

test('lines_survive_any_cut_of_the_stream', () => {
  const text = '{"a":1}\n\n{"b":"ü"}\r\n{"c":3}\n';
  for (let cut = 0; cut <= text.length; cut += 1) {
    const splitter = new LineSplitter();
    assert.deepEqual([...splitter.push(text.slice(0, cut)), ...splitter.push(text.slice(cut))], ['{"a":1}', '{"b":"ü"}', '{"c":3}']);
  }
});

test('a_letter_cut_in_two_by_the_network_is_put_together', async () => {
  const whole = new TextEncoder().encode('{"name":"Zoë"}\n');
  const body = new ReadableStream({
    start(controller) {
      for (const byte of whole) controller.enqueue(Uint8Array.of(byte));
      controller.close();
    },
  });
  const lines = [];
  await readLines(body, (line) => lines.push(line));
  assert.deepEqual(lines, ['{"name":"Zoë"}']);
});

test('only_32_hexadecimal_digits_are_a_secret', () => {
  const key = '0123456789abcdef'.repeat(2);
  assert.deepEqual(secret.parseFragment(`#k=${key}&c=ff`), { secret: key, fragment: `#k=${key}&c=ff` });
  assert.equal(secret.parseFragment(`#c=ff&k=${key}`).secret, key);
  for (const bad of ['', '#', '#k=', `#k=${key}0`, `#k=${key.toUpperCase()}`, '#k=xyz']) assert.equal(secret.parseFragment(bad), null, bad);
});

test('the_bearer_token_is_the_one_the_server_derives', async () => {
  const key = '07'.repeat(16);
  assert.equal(await secret.serverToken(key), createHmac('sha256', key).update('barycenter server 1').digest('hex'));
});

test('another_protocol_major_asks_for_a_reload_and_another_minor_does_not', () => {
  assert.equal(api.versionProblem({ protocol: { major: 1, minor: 9 }, server: '' }), null);
  assert.match(api.versionProblem({ protocol: { major: 2, minor: 0 }, server: '' }).sentence, /older.*reload/);
});

test('reconnecting_waits_longer_each_time_but_at_most_five_seconds', () => {
  assert.deepEqual([0, 1, 2, 3, 4, 99].map(api.reconnectMillis), [500, 1000, 2000, 4000, 5000, 5000]);
});

test('an_error_becomes_a_sentence', () => {
  assert.equal(api.sentence('line 3 is broken'), 'Line 3 is broken.');
  assert.equal(api.sentence('Done!'), 'Done!');
  assert.equal(api.sentence('one.jsonl holds one row'), 'one.jsonl holds one row.');
  assert.match(api.sentenceOf(new TypeError('fetch failed')), /does not answer/);
});

const surroundings = { isSecureContext: true, origin: 'https://h', hasWasmSimd: true, hasWebRtc: true, gpu: { kind: 'hardware', name: 'apple' }, choice: 'auto' };

test('an_insecure_page_is_named_before_a_missing_gpu', () => {
  const result = judge({ ...surroundings, isSecureContext: false, origin: 'http://192.168.1.4', gpu: { kind: 'no-webgpu' } });
  assert.equal(result.backend, null);
  assert.deepEqual(result.findings.map((f) => [f.name, f.level]), [['secure', 'stop']]);
  assert.match(result.findings[0].advice, /https/);
});

test('every_gpu_answer_has_its_own_sentence_and_ends_on_the_processor', () => {
  const kinds = [{ kind: 'no-webgpu' }, { kind: 'no-adapter' }, { kind: 'software', name: 'SwiftShader' }];
  const results = kinds.map((gpu) => judge({ ...surroundings, gpu }));
  assert.deepEqual(results.map((r) => r.backend), ['cpu', 'cpu', 'cpu']);
  assert.equal(new Set(results.map((r) => r.findings.at(-1).title)).size, 3);
  assert.equal(judge(surroundings).backend, 'gpu');
});

test('a_forced_gpu_takes_the_software_adapter_but_not_none', () => {
  assert.equal(judge({ ...surroundings, choice: 'gpu', gpu: { kind: 'software', name: '' } }).backend, 'gpu');
  assert.equal(judge({ ...surroundings, choice: 'gpu', gpu: { kind: 'no-adapter' } }).backend, null);
  assert.equal(judge({ ...surroundings, choice: 'cpu' }).backend, 'cpu');
});

test('an_ipad_that_calls_itself_a_mac_is_known_by_its_touch_points', () => {
  const mac = 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15';
  assert.equal(device.platformOf(mac, 5), 'ipad');
  assert.equal(device.platformOf(mac, 0), 'mac');
  assert.equal(device.platformOf('Mozilla/5.0 (Linux; Android 14; Pixel 8) Mobile Safari', 5), 'android');
  assert.equal(device.nounOf('ipad'), 'tablet');
});

test('names_are_cleaned_as_the_server_wants_them', () => {
  assert.equal(device.cleanName('  Mia\u0007s \n phone '), 'Mia s phone');
  assert.equal(Array.from(device.cleanName('🪐'.repeat(60))).length, 40);
  assert.match(device.defaultName('iphone', 'ffff'), /^iPhone \d\d$/);
});

test('a_page_that_the_browser_ended_offers_less_memory', () => {
  const offers = [0, 1, 2, 3].map((caution) => device.memoryBudgetBytes('iphone', undefined, caution));
  assert.ok(offers[0] <= 500 * 1024 * 1024);
  assert.deepEqual(offers, [...offers].sort((a, b) => b - a));
  assert.ok(device.memoryBudgetBytes('android', 2, 0) < device.memoryBudgetBytes('android', 8, 0));
});

test('the_common_point_is_the_centre_of_mass_and_bodies_stay_in_the_picture_apart', () => {
  for (const masses of [[5], [1, 1], [90, 10], [96, 38, 14], [1000, 1, 1, 1], [3, 1, 4, 1, 5, 9, 2, 6]]) {
    const { bodies, barycentre } = placeBodies(masses.map((mass, id) => ({ id, mass })));
    const total = masses.reduce((a, b) => a + b, 0);
    for (const axis of ['x', 'y']) {
      const moment = bodies.reduce((sum, body, i) => sum + body[axis] * masses[i], 0) / total;
      assert.ok(Math.abs(moment - barycentre[axis]) < 1e-9);
      assert.ok(bodies.every((body) => Math.abs(body[axis]) <= 1 + 1e-9));
    }
    for (const a of bodies) for (const b of bodies) if (a.id < b.id) assert.ok(Math.hypot(a.x - b.x, a.y - b.y) > 0.5);
  }
  assert.equal(shorten('Grandma’s tablet', 8), 'Grandma…');
});

test('traffic_is_a_rate_by_direction_and_a_node_that_rejoins_shows_no_negative_one', () => {
  const meter = new TrafficMeter();
  const snapshot = (at, bytes) => ({ now_millis: at, nodes: [node(1, 'a', [sent(2, bytes)]), node(2)], links: [{ a: 1, b: 2, round_trip_millis: 3, bytes_per_second: 1e6, relayed: true }], run: null, events: [] });
  assert.equal(meter.update(snapshot(0, 0))[0].forth.rate, 0);
  const [link] = meter.update(snapshot(2000, 4000));
  assert.equal(link.forth.rate, 2000);
  assert.equal(link.forth.dominant, 'activations');
  assert.equal(link.back.rate, 0);
  assert.equal(sumOfKinds(link.forth.totals), 4100);
  assert.equal(meter.update(snapshot(3000, 0))[0].forth.rate, 0);
});

test('the_headline_says_what_the_household_does', () => {
  const snapshot = (nodes, r = null) => ({ now_millis: 0, nodes, links: [], run: r, events: [] });
  assert.match(story.headline(snapshot([])).title, /first device/);
  assert.equal(story.headline(snapshot([node(1), node(2)])).title, 'Two devices are here');
  const busy = story.headline(snapshot([node(1), node(2), node(3)], run({ step: 4, seconds_left: 130 })));
  assert.equal(busy.title, 'Three devices are filling the cache');
  assert.equal(plain(busy.detail), 'Epoch 1 of 3 · step 4 of 10 · about 2 min left');
  assert.equal(plain(story.headline(snapshot([node(1)], run({}, { state: 'done', exact_match_before: 0.01, exact_match_after: 0.91 }))).title), 'From 1 % to 91 % right answers');
  assert.equal(story.headline(snapshot([], run({}, { state: 'failed', note: 'Why.' }))).detail, 'Why.');
});

test('epochs_fill_one_after_the_other', () => {
  assert.deepEqual(story.epochProgress(run({ epoch: 1, step: 5 })), [1, 0.5, 0]);
  assert.deepEqual(story.epochProgress(run({ epoch: 2, step: 10 }, { state: 'done' })), [1, 1, 1]);
  assert.deepEqual(story.epochStarts(info()), [10, 20]);
});

test('both_curves_share_one_axis_with_gaps', () => {
  assert.deepEqual(story.curveColumns([{ at: 1, loss: 2 }, { at: 0, loss: 3 }], [{ at: 1, loss: 2.5 }, { at: 10, loss: 1 }]), [[0, 1, 10], [3, 2, null], [null, 2.5, 1]]);
});

test('a_plan_lists_every_device_also_those_without_work', () => {
  const devices = story.plannedDevices(plan, [node(1, 'Phone'), node(2, 'Desktop'), node(3, 'Watch')]);
  assert.deepEqual(devices.map((d) => [d.name, d.fill, d.train]), [
    ['Desktop', 'layers 1–3', '2 of 8 samples per step'],
    ['Phone', 'layer 4', '6 of 8 samples per step'],
    ['Watch', 'no part', 'no part'],
  ]);
  assert.equal(devices[2].reason, 'Too slow to help.');
  assert.deepEqual(story.pictureOrder([node(3), node(1), node(2)], plan).map((n) => n.node), [2, 1, 3]);
});

test('the_comparison_is_honest_in_both_directions', () => {
  const preview = (together, single) => ({ plan: { ...plan, fill_step_seconds: together, single_device_fill_step_seconds: single }, cache_bytes: 0, seconds: 0, steps_per_epoch: 10, epochs: 3 });
  assert.match(story.comparison(preview(1, 2)), /2\.0 times as fast/);
  assert.match(story.comparison(preview(2, 1)), /2\.0 times as long/);
  const alone = { ...preview(1, 1), plan: { ...plan, stages: [plan.stages[0]], train: [{ node: 2, slots: { start: 0, end: 8 } }] } };
  assert.match(story.comparison(alone), /One device does it all/);
  assert.deepEqual(story.predictedPhases(preview(1, 2)), { fill: 10, train: 5 });
});

test('settings_leave_empty_fields_to_the_server_and_name_a_wrong_one', () => {
  assert.deepEqual(requestOf('m', 'd', { epochs: '4', batch: ' ' }), { request: { model: 'm', dataset: 'd', epochs: 4 } });
  assert.deepEqual(requestOf('m', 'd', { learning_rate: '1e-3' }).request.learning_rate, 0.001);
  for (const texts of [{ epochs: '0' }, { epochs: '1.5' }, { learning_rate: '0' }, { batch: 'x' }]) assert.match(requestOf('m', 'd', texts).problem, /must be/);
  assert.deepEqual(requestOf('m', 'd', { weights: 'keep' }), { request: { model: 'm', dataset: 'd' } });
  assert.equal(requestOf('m', 'd', { weights: 'int8' }).request.weights, 'int8');
});

test('the_processor_gets_all_cores_but_one_of_many_and_says_why_it_gets_one', () => {
  const eight = { cores: 8, isolated: true, shares: true, wanted: null };
  const threads = (more) => planThreads({ ...eight, ...more });
  assert.deepEqual([1, 2, 3, 4, 8, 64].map((cores) => threads({ cores }).threads), [1, 2, 2, 3, 7, 8]);
  assert.deepEqual(threads({}), { threads: 7, remark: '' });
  assert.equal(threads({ wanted: 2 }).threads, 2);
  assert.equal(threads({ wanted: 50 }).threads, 7);
  const alone = [{ isolated: false }, { shares: false }, { cores: 1 }, { wanted: 1 }].map(threads);
  assert.ok(alone.every((plan) => plan.threads === 1));
  assert.equal(new Set(alone.map((plan) => plan.remark)).size, 4);
  assert.match(alone[0].remark, /^one thread, because .* isolated$/);
});

test('a_stay_is_told_by_its_events', () => {
  const events = [
    { type: 'check', name: 'engine', ok: true, text: '' },
    { type: 'self_test', ok: true, backend: { kind: 'cpu', description: '', reason: '' }, gflops: 12, largest_error: 1e-6, seconds: 0.1 },
    { type: 'joined', node: 3 },
    { type: 'link', peer: 1, up: true, round_trip_millis: 2 },
    { type: 'progress', text: 'weights', fraction: 0.5 },
    { type: 'activity', text: 'filling the cache', phase: 'fill', layers: [0, 3], epoch: 0, epochs: 3, step: 2, steps_per_epoch: 10 },
  ];
  const view = events.reduce(join.fold, join.NEW_STAY);
  assert.equal(view.stage, 'in');
  assert.equal(view.peers.length, 1);
  assert.equal(view.progress.fraction, 0.5);
  assert.equal(join.doing(view, join.surroundingsOf(null, null)), 'Filling the cache');
  assert.equal(join.placeOf(view), 'Layers 1–3 · epoch 1 of 3 · step 2 of 10');
  assert.equal(join.fold(view, { type: 'progress', text: '', fraction: 1 }).progress, null);
  assert.equal(join.fold(view, { type: 'reconnecting', reason: 'no answer', attempt: 2 }).stage, 'reconnecting');
  assert.deepEqual(join.fold(view, { type: 'error', message: 'out of memory', fatal: true }).end, { sentence: 'Out of memory.', bad: true });
  assert.equal(join.fold(view, { type: 'error', message: 'link lost', fatal: false }).stage, 'in');
});

test('a_plan_says_what_leaving_out_a_device_changes_and_what_the_links_carry', () => {
  const preview = (seconds) => ({ seconds });
  const words = (seconds) => `${seconds} s`;
  assert.equal(story.change(preview(100), preview(150), 1, words), 'Without this device it takes 150 s instead of 100 s.');
  assert.equal(story.change(preview(100), preview(100.5), 2, words), 'Without these 2 devices it takes as long: 100.5 s.');
  assert.equal(story.change(null, preview(150), 1, words), '');
  assert.equal(story.change(preview(100), preview(150), 0, words), '');
  const link = { a: 1, b: 2, activation_bytes: 3, side_gradient_bytes: 4, fill_reduce_bytes: 5, train_reduce_bytes: 6, redistribution_bytes: 7 };
  const [first] = story.plannedLinks({ links: [{ ...link, activation_bytes: 0, b: 3 }, link] }, []);
  assert.deepEqual(first, { name: 'device 1 – device 2', fillBytes: 12, trainBytes: 6, onceBytes: 7, epochBytes: 0 });
  assert.deepEqual(story.plannedLinks({}, []), []);
});

test('a_device_that_only_keeps_cache_entries_has_a_part_in_the_plan', () => {
  const member = (node, start, end) => ({ node, slots: { start, end } });
  const plan = {
    stages: [{ layers: { start: 0, end: 6 }, members: [member(1, 0, 8)] }],
    train: [member(1, 0, 8)],
    stores: [member(1, 0, 3), member(2, 3, 8)],
    reasons: [{ node: 2, name: 'NAS', reason: 'NAS keeps the cache entries of 5 of 8 samples, and computes nothing.', fill_memory_bytes: 1, train_memory_bytes: 2 }],
    links: [{ a: 1, b: 2, activation_bytes: 0, side_gradient_bytes: 0, fill_reduce_bytes: 0, train_reduce_bytes: 0, redistribution_bytes: 7, epoch_stream_bytes: 9 }],
  };
  const [phone, nas] = story.plannedDevices(plan, []);
  assert.deepEqual([phone.keep, nas.fill, nas.train, nas.keep], ['entries of 3 of 8 samples', 'no part', 'no part', 'entries of 5 of 8 samples']);
  assert.equal(story.plannedLinks(plan, [])[0].epochBytes, 9);
  assert.equal(story.comparison({ plan: { ...plan, single_device_fill_step_seconds: 0, fill_step_seconds: 1 } }), '', 'it is not one device that does it all');
  assert.equal(story.plannedDevices({ ...plan, stores: [] }, [])[0].keep, '');
});

test('a_device_without_layers_or_share_rests_unless_it_keeps_entries_for_others', () => {
  const resting = (stores) => join.surroundingsOf({ nodes: [node(3)], run: run({ plan: { ...plan, stores } }) }, 3).resting;
  assert.equal(resting(undefined), true);
  assert.equal(resting([{ node: 1, slots: { start: 0, end: 8 } }]), true);
  assert.equal(resting([{ node: 3, slots: { start: 0, end: 8 } }]), false);
});
