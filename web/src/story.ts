//! The state of the household as sentences and as view models, computed from a snapshot.

import { count, duration, loss as lossText, percent, plural, timeLeft } from './format';
import type { Counters, LossPoint, NodeView, Plan, PlanPreview, RunInfo, RunState, RunView, Snapshot } from './protocol';

/** What the top of the dashboard says. */
export interface Headline {
  title: string;
  detail: string;
  tone: 'calm' | 'busy' | 'good' | 'bad';
}

/** Whether a run holds the swarm. */
export function isActive(state: RunState): boolean {
  return state === 'waiting' || state === 'preparing' || state === 'running' || state === 'paused';
}

export function headline(snapshot: Snapshot): Headline {
  const { nodes, run } = snapshot;
  if (run && (isActive(run.info.state) || run.info.state === 'done' || run.info.state === 'failed')) return runHeadline(run, nodes.length);
  if (nodes.length === 0) return { title: 'Waiting for the first device', detail: 'Scan the code with a phone, or open the address on another computer.', tone: 'calm' };
  return {
    title: nodes.length === 1 ? 'One device is here' : `${countWord(nodes.length)} devices are here`,
    detail: run?.info.state === 'stopped' ? `Run ${run.info.run} was stopped. Choose a model and data to start another.` : 'Choose a model and data, then look at the plan.',
    tone: 'calm',
  };
}

function runHeadline(run: RunView, nodes: number): Headline {
  const { info } = run;
  const who = nodes === 1 ? 'One device' : `${countWord(nodes)} devices`;
  const place = placeInRun(run);
  const left = run.seconds_left == null ? '' : `${timeLeft(run.seconds_left)} left`;
  switch (info.state) {
    case 'waiting':
      return { title: 'Waiting for devices', detail: info.note || 'The run goes on as soon as enough devices are here.', tone: 'calm' };
    case 'preparing':
      return { title: `${who} ${nodes === 1 ? 'is' : 'are'} getting ready`, detail: info.note || 'Fetching weights and opening links.', tone: 'busy' };
    case 'running':
      return { title: runningTitle(run, who, nodes), detail: [place, left].filter(Boolean).join(' · '), tone: 'busy' };
    case 'paused':
      return { title: 'Paused', detail: [place, info.note].filter(Boolean).join(' · '), tone: 'calm' };
    case 'done':
      return { title: doneTitle(info), detail: `Run ${info.run} took ${duration(info.seconds)}.`, tone: 'good' };
    case 'failed':
      return { title: `Run ${info.run} could not go on`, detail: info.note || 'The event log says more.', tone: 'bad' };
    case 'stopped':
      return { title: `Run ${info.run} was stopped`, detail: info.note, tone: 'calm' };
  }
}

function runningTitle(run: RunView, who: string, nodes: number): string {
  const verb = nodes === 1 ? 'is' : 'are';
  switch (run.phase) {
    case 'fill':
      return `${who} ${verb} filling the cache`;
    case 'refill':
      return `${who} ${verb} completing the cache`;
    case 'redistribute':
      return `${who} ${verb} sharing out the cache`;
    case 'train':
      return `${who} ${verb} training from the cache`;
    default:
      return `${who} ${verb} at work`;
  }
}

function doneTitle(info: RunInfo): string {
  if (info.exact_match_before != null && info.exact_match_after != null) {
    return `From ${percent(info.exact_match_before)} to ${percent(info.exact_match_after)} right answers`;
  }
  return info.held_out_loss == null ? 'The model is tuned' : `Tuned to a held-out loss of ${lossText(info.held_out_loss)}`;
}

/** `Epoch 2 of 3 · step 12 of 50`. */
export function placeInRun(run: RunView): string {
  const { epochs, steps_per_epoch: steps } = run.info;
  const epoch = epochs > 0 ? `Epoch ${Math.min(run.epoch + 1, epochs)} of ${epochs}` : '';
  const step = steps > 0 ? `step ${Math.min(run.step, steps)} of ${steps}` : '';
  return [epoch, step].filter(Boolean).join(' · ');
}

/** Done part of each epoch, 0 … 1. */
export function epochProgress(run: RunView): number[] {
  const { epochs, steps_per_epoch: steps, state } = run.info;
  return Array.from({ length: epochs }, (_, epoch) => {
    if (state === 'done' || epoch < run.epoch) return 1;
    if (epoch > run.epoch || steps === 0) return 0;
    return Math.min(1, run.step / steps);
  });
}

/** Steps at which epochs begin, for the curves; the first one left out. */
export function epochStarts(info: RunInfo): number[] {
  return Array.from({ length: Math.max(0, info.epochs - 1) }, (_, i) => (i + 1) * info.steps_per_epoch);
}

/** Points of both curves on one x axis, as uPlot wants them: sorted, `null` where a curve has no point. */
export function curveColumns(losses: readonly LossPoint[], heldOut: readonly LossPoint[]): [number[], (number | null)[], (number | null)[]] {
  const rows = new Map<number, [number | null, number | null]>();
  for (const { at, loss } of losses) rows.set(at, [loss, rows.get(at)?.[1] ?? null]);
  for (const { at, loss } of heldOut) rows.set(at, [rows.get(at)?.[0] ?? null, loss]);
  const sorted = [...rows].sort(([x], [y]) => x - y);
  return [sorted.map(([at]) => at), sorted.map(([, [l]]) => l), sorted.map(([, [, h]]) => h)];
}

/** Share of the time a node computed rather than waited, 0 … 1; `null` before it did either. */
export function busyShare(counters: Counters): number | null {
  const whole = counters.compute_seconds + counters.wait_seconds;
  return whole > 0 ? counters.compute_seconds / whole : null;
}

/** `GPU` or `CPU`. */
export function backendName(kind: string): string {
  return kind === 'webgpu' ? 'GPU' : kind === 'cpu' ? 'CPU' : kind;
}

/** Nodes in the order of the picture: along the pipeline first, then the rest by age. */
export function pictureOrder(nodes: readonly NodeView[], plan: Plan | null | undefined): NodeView[] {
  const rank = new Map<number, number>();
  for (const member of plan?.stages.flatMap((stage) => stage.members) ?? []) if (!rank.has(member.node)) rank.set(member.node, rank.size);
  return [...nodes].sort((a, b) => (rank.get(a.node) ?? nodes.length) - (rank.get(b.node) ?? nodes.length) || a.node - b.node);
}

/** One device's part of a plan, in words. */
export interface PlannedDevice {
  node: number;
  name: string;
  fill: string;
  train: string;
  /** Empty unless devices keep cache entries for others. */
  keep: string;
  reason: string;
  fillMemoryBytes: number;
  trainMemoryBytes: number;
}

/** Devices of a plan, along the pipeline, then those without work. */
export function plannedDevices(plan: Plan, nodes: readonly NodeView[]): PlannedDevice[] {
  const slotsInAll = plan.train.reduce((sum, member) => sum + member.slots.end - member.slots.start, 0);
  const ids = new Set([...plan.stages.flatMap((stage) => stage.members.map((m) => m.node)), ...plan.train.map((m) => m.node), ...plan.reasons.map((r) => r.node)]);
  return [...ids].map((node) => {
    const reason = plan.reasons.find((r) => r.node === node);
    const stage = plan.stages.find((s) => s.members.some((m) => m.node === node));
    const share = plan.train.find((m) => m.node === node);
    const slots = share ? share.slots.end - share.slots.start : 0;
    return {
      node,
      name: nameOf(node, nodes),
      fill: stage ? layerText(stage.layers.start, stage.layers.end) + (stage.members.length > 1 ? `, shared by ${stage.members.length}` : '') : 'no part',
      train: slots > 0 ? `${slots} of ${slotsInAll} samples per step` : 'no part',
      keep: plan.stores?.length ? (kept(plan, node) > 0 ? `entries of ${kept(plan, node)} of ${slotsInAll} samples` : 'nothing') : '',
      reason: reason?.reason ?? '',
      fillMemoryBytes: reason?.fill_memory_bytes ?? 0,
      trainMemoryBytes: reason?.train_memory_bytes ?? 0,
    };
  });
}

/** Samples of a mini-batch whose cache entries a device keeps. */
function kept(plan: Plan, node: number): number {
  return (plan.stores ?? []).filter((m) => m.node === node).reduce((sum, m) => sum + m.slots.end - m.slots.start, 0);
}

/** Together against the best single device, in one sentence. */
export function comparison({ plan }: PlanPreview): string {
  const { single_device_fill_step_seconds: single, fill_step_seconds: together } = plan;
  const workers = new Set([...plan.stages.flatMap((stage) => stage.members.map((m) => m.node)), ...plan.train.map((m) => m.node), ...(plan.stores ?? []).map((m) => m.node)]).size;
  if (workers <= 1) return 'One device does it all: with these links and speeds, sharing would be slower.';
  if (!(single > 0) || !(together > 0)) return '';
  const ratio = single / together;
  if (ratio >= 1.05) return `Filling the cache is ${ratio.toFixed(1)} times as fast as on the best device alone.`;
  if (ratio > 0.95) return 'Filling the cache takes as long as on the best device alone, but each device needs less memory.';
  return `Filling the cache takes ${(1 / ratio).toFixed(1)} times as long as on the best device alone.`;
}

/** Seconds of the fill epoch and of all train epochs, as the plan predicts them. */
export function predictedPhases({ plan, steps_per_epoch: steps, epochs }: PlanPreview): { fill: number; train: number } {
  return { fill: steps * plan.fill_step_seconds, train: Math.max(0, epochs - 1) * steps * plan.train_step_seconds };
}

/** One link of a plan: bytes of a fill step, of a train step, and once between them. */
export interface PlannedLink {
  name: string;
  fillBytes: number;
  trainBytes: number;
  onceBytes: number;
  /** Cache entries that are streamed in every epoch. */
  epochBytes: number;
}

/** Links that a plan uses, the busiest first. */
export function plannedLinks(plan: Plan, nodes: readonly NodeView[]): PlannedLink[] {
  const links = (plan.links ?? []).map((link) => ({
    name: `${nameOf(link.a, nodes)} – ${nameOf(link.b, nodes)}`,
    fillBytes: link.activation_bytes + link.side_gradient_bytes + link.fill_reduce_bytes,
    trainBytes: link.train_reduce_bytes,
    onceBytes: link.redistribution_bytes,
    epochBytes: link.epoch_stream_bytes ?? 0,
  }));
  return links.sort((x, y) => y.fillBytes + y.trainBytes - (x.fillBytes + x.trainBytes));
}

/** What a changed choice of devices changes, in one sentence; empty where there is nothing to compare. */
export function change(before: PlanPreview | null, after: PlanPreview, dropped: number, words: (seconds: number) => string): string {
  if (!before || dropped === 0 || !(before.seconds > 0)) return '';
  const ratio = after.seconds / before.seconds;
  const whom = dropped === 1 ? 'this device' : `these ${dropped} devices`;
  if (Math.abs(ratio - 1) < 0.01) return `Without ${whom} it takes as long: ${words(after.seconds)}.`;
  return `Without ${whom} it takes ${words(after.seconds)} instead of ${words(before.seconds)}.`;
}

/** The name of a device that is here, or that the plan remembers. */
export function nameOf(node: number, nodes: readonly NodeView[], plan?: Plan): string {
  return nodes.find((n) => n.node === node)?.name ?? (plan?.reasons.find((r) => r.node === node)?.name || `device ${node}`);
}

/** One sentence about a model. */
export function modelFacts(parameters: number, layers: number, width: number): string {
  return `${count(parameters)} parameters, ${plural(layers, 'layer')}, width ${width}`;
}

function layerText(start: number, end: number): string {
  return end - start === 1 ? `layer ${end}` : `layers ${start + 1}–${end}`;
}

const COUNT_WORDS = ['No', 'One', 'Two', 'Three', 'Four', 'Five', 'Six', 'Seven', 'Eight', 'Nine', 'Ten', 'Eleven', 'Twelve'];

function countWord(n: number): string {
  return COUNT_WORDS[n] ?? String(n);
}
