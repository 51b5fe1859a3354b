//! What the join page knows of its stay, folded from node events.

import { sentence } from '../api';
import { bytes, gflops, layers as layerText, rate } from '../format';
import type { NodeEvent } from '../node-events';
import type { BackendReport, Counters, Snapshot } from '../protocol';

/** A link to a peer. */
export interface Peer {
  peer: number;
  roundTripMillis: number | null;
  bytesPerSecond: number | null;
  /** Through the server. */
  relayed: boolean;
}

/** The stay so far. */
export interface StayView {
  stage: 'starting' | 'testing' | 'in' | 'reconnecting' | 'over';
  checks: { name: string; ok: boolean; text: string }[];
  selfTest: { ok: boolean; backend: BackendReport; gflops: number; largestError: number; seconds: number } | null;
  node: number | null;
  activity: Extract<NodeEvent, { type: 'activity' }> | null;
  progress: { text: string; fraction: number | null } | null;
  counters: Counters | null;
  peers: Peer[];
  remark: string;
  /** Asked to leave: the others take over first. */
  leaving: boolean;
  end: { sentence: string; bad: boolean } | null;
}

export const NEW_STAY: StayView = {
  stage: 'starting',
  checks: [],
  selfTest: null,
  node: null,
  activity: null,
  progress: { text: 'Starting the compute engine', fraction: null },
  counters: null,
  peers: [],
  remark: '',
  leaving: false,
  end: null,
};

/** The next view. */
export function fold(view: StayView, event: NodeEvent): StayView {
  switch (event.type) {
    case 'check': {
      const checks = [...view.checks.filter((c) => c.name !== event.name), { name: event.name, ok: event.ok, text: event.text }];
      if (view.stage !== 'starting') return { ...view, checks };
      return { ...view, checks, stage: 'testing', progress: { text: 'Testing whether this device computes correctly', fraction: null } };
    }
    case 'self_test':
      return {
        ...view,
        stage: 'testing',
        selfTest: { ok: event.ok, backend: event.backend, gflops: event.gflops, largestError: event.largest_error, seconds: event.seconds },
        progress: event.ok ? { text: 'Joining', fraction: null } : null,
      };
    case 'joined':
      // Links are made anew after each join.
      return { ...view, stage: 'in', node: event.node, progress: null, peers: [], remark: '' };
    case 'activity':
      return { ...view, activity: event };
    case 'progress':
      return { ...view, progress: event.fraction != null && event.fraction >= 1 ? null : { text: event.text, fraction: event.fraction ?? null } };
    case 'counters':
      return { ...view, counters: event.counters };
    case 'link': {
      const others = view.peers.filter((p) => p.peer !== event.peer);
      if (!event.up) return { ...view, peers: others };
      return { ...view, peers: [...others, { peer: event.peer, roundTripMillis: event.round_trip_millis ?? null, bytesPerSecond: event.bytes_per_second ?? null, relayed: event.relayed === true }] };
    }
    case 'reconnecting':
      return { ...view, stage: 'reconnecting', remark: `${sentence(event.reason)} Trying again (${event.attempt}).` };
    case 'leaving':
      return { ...view, leaving: true };
    case 'left':
      return { ...view, stage: 'over', progress: null, peers: [], end: { sentence: sentence(event.reason || 'You left'), bad: false } };
    case 'error':
      return event.fatal
        ? { ...view, stage: 'over', progress: null, peers: [], end: { sentence: sentence(event.message), bad: true } }
        : { ...view, remark: sentence(event.message) };
  }
}

/** What this device will do, before it has joined. */
export function promise(noun: string, backend: 'cpu' | 'gpu', memoryBudgetBytes: number): string {
  const on = backend === 'gpu' ? 'on its GPU' : 'on its processor';
  return `This ${noun} will hold a few layers of the model and train them ${on}, in at most ${bytes(memoryBudgetBytes)} of memory.`;
}

/** What the device's own events do not tell. */
export interface Surroundings {
  /** Names of the devices by their id. */
  names: ReadonlyMap<number, string>;
  /** Whether a run goes on in which this device has no part. */
  resting: boolean;
}

/** The surroundings of `node` in a snapshot. */
export function surroundingsOf(snapshot: Snapshot | null, node: number | null): Surroundings {
  const names = new Map((snapshot?.nodes ?? []).map((other) => [other.node, other.name]));
  const own = snapshot?.nodes.find((other) => other.node === node);
  const planned = snapshot?.run?.info.state === 'running' && snapshot.run.plan != null;
  const keeps = (snapshot?.run?.plan?.stores ?? []).some((member) => member.node === node);
  return { names, resting: planned && own !== undefined && !own.layers && !own.train_slots && !keeps };
}

/** What this device does now, in one sentence. */
export function doing(view: StayView, around: Surroundings): string {
  if (view.stage === 'reconnecting') return 'Looking for the home server';
  if (view.leaving) return 'Handing over to the others';
  const { activity } = view;
  if (around.resting && view.stage === 'in' && !activity?.phase) return 'Resting: the others are faster without help';
  if (!activity) return view.stage === 'in' ? 'Waiting for a run to start' : 'Getting ready';
  return activity.text.charAt(0).toUpperCase() + activity.text.slice(1);
}

/** Its place in the run: `Layers 1–3 · epoch 1 of 3 · step 4 of 50`. */
export function placeOf(view: StayView): string {
  const { activity } = view;
  if (!activity) return '';
  const parts: string[] = [];
  if (activity.layers) parts.push(layerText(activity.layers));
  else if (activity.slots) parts.push(`${activity.slots[1] - activity.slots[0]} samples per step`);
  if (activity.epoch != null) parts.push(`epoch ${activity.epoch + 1}${activity.epochs ? ` of ${activity.epochs}` : ''}`);
  if (activity.step != null) parts.push(`step ${activity.step}${activity.steps_per_epoch ? ` of ${activity.steps_per_epoch}` : ''}`);
  return parts.join(' · ').replace(/^./, (first) => first.toUpperCase());
}

/** Self-test in a sentence. */
export function testSentence(test: NonNullable<StayView['selfTest']>): string {
  const on = test.backend.kind === 'webgpu' ? 'GPU' : 'processor';
  return test.ok
    ? `Computes correctly on its ${on} at ${gflops(test.gflops)}${test.backend.description ? ` (${test.backend.description})` : ''}.`
    : `Its ${on} computes wrong numbers (error ${test.largestError.toExponential(1)}), so it cannot take part: update the browser or the graphics driver, or join with the processor.`;
}

/** One peer in a few words. */
export function peerText(peer: Peer): string {
  const facts = [peer.relayed ? 'relayed' : 'direct', peer.roundTripMillis !== null ? `${peer.roundTripMillis.toFixed(1)} ms` : '', peer.bytesPerSecond ? rate(peer.bytesPerSecond) : ''].filter(Boolean);
  return facts.join(', ');
}
