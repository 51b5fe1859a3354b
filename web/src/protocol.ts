//! The HTTP types of `crates/protocol/src/{api,control,plan}.rs`, mirrored by hand.
//!
//! Units are in the names; a Rust `Range<u32>` is `{ start, end }`, a tuple an array, an absent `Option` null or missing.

/** Version this page speaks; a server with another major version asks for a reload. */
export const PROTOCOL_VERSION: ProtocolVersion = { major: 1, minor: 2 };

export interface ProtocolVersion {
  major: number;
  minor: number;
}

/** `GET /api/version`. */
export interface Version {
  protocol: ProtocolVersion;
  server: string;
}

export interface ApiErrorBody {
  error: string;
}

export interface Invite {
  url: string;
  svg: string;
}

export interface ModelInfo {
  id: string;
  name: string;
  family: string;
  parameters: number;
  bytes: number;
  layers: number;
  width: number;
  max_positions: number;
  problem?: string | null;
}

export interface DatasetInfo {
  id: string;
  name: string;
  train_rows: number;
  held_out_rows: number;
}

export interface DatasetPreview {
  rows: PreviewRow[];
  total_tokens: number;
  labelled_tokens: number;
  min_tokens: number;
  median_tokens: number;
  max_tokens: number;
  warnings: string[];
}

export interface PreviewRow {
  prompt: string;
  response: string;
  tokens: number;
  held_out: boolean;
}

export type WeightFormat = 'keep' | 'f16' | 'int8' | 'int4';

/** Everything but model and data has a default at the server. */
export interface RunRequest {
  model: string;
  dataset: string;
  reduction?: number | null;
  /** Every so many-th layer is read by the side network. */
  tap_every?: number | null;
  /** How the cache holds what is read. */
  cache?: 'f16' | 'int8' | null;
  epochs?: number | null;
  batch?: number | null;
  learning_rate?: number | null;
  warmup_steps?: number | null;
  seed?: number | null;
  min_stages?: number | null;
  use_all_nodes?: boolean;
  exact_match_rows?: number | null;
  gradients?: 'f32' | 'f16' | null;
  /** In which number format devices hold the frozen matrices; `keep`, as they are stored, if it is not said. */
  weights?: WeightFormat;
  /** Nodes that are to be given nothing to do. */
  without?: number[];
}

export interface PlanPreview {
  plan: Plan;
  cache_bytes: number;
  seconds: number;
  steps_per_epoch: number;
  epochs: number;
}

export interface RunInfo {
  run: number;
  model: string;
  dataset: string;
  /** Unix seconds. */
  started_at: number;
  state: RunState;
  note: string;
  epochs: number;
  steps_per_epoch: number;
  /** 0 … 1. */
  exact_match_before?: number | null;
  exact_match_after?: number | null;
  loss?: number | null;
  held_out_loss?: number | null;
  seconds: number;
}

export type RunState = 'waiting' | 'preparing' | 'running' | 'paused' | 'done' | 'stopped' | 'failed';

export interface Snapshot {
  now_millis: number;
  nodes: NodeView[];
  links: LinkView[];
  run?: RunView | null;
  events: EventView[];
}

export interface NodeView {
  node: number;
  name: string;
  kind: NodeKind;
  backend: BackendReport;
  gflops: number;
  memory_budget_bytes: number;
  counters: Counters;
  activity: string;
  progress?: number | null;
  layers?: [number, number] | null;
  train_slots?: [number, number] | null;
}

export type NodeKind = 'browser' | 'native';

export interface BackendReport {
  /** `cpu` or `webgpu`. */
  kind: string;
  description: string;
  reason: string;
}

export interface LinkView {
  a: number;
  b: number;
  round_trip_millis: number;
  bytes_per_second: number;
  /** Through the server, because the devices do not reach each other directly. */
  relayed: boolean;
}

export interface RunView {
  info: RunInfo;
  plan?: Plan | null;
  phase?: PhaseKind | null;
  epoch: number;
  step: number;
  seconds_left?: number | null;
  losses: LossPoint[];
  held_out: LossPoint[];
  epochs: EpochView[];
  cache_bytes: number;
  example?: ExampleView | null;
}

export type PhaseKind = 'fill' | 'refill' | 'redistribute' | 'train';

/** Mean loss, nats per labelled token, `at` so many optimiser steps. */
export interface LossPoint {
  at: number;
  loss: number;
}

export interface EpochView {
  /** 0 = fill. */
  epoch: number;
  phase: PhaseKind;
  seconds: number;
  loss: number;
  backbone_seconds: number;
  side_seconds: number;
  wait_seconds: number;
}

export interface ExampleView {
  prompt: string;
  expected: string;
  base: string;
  tuned?: string | null;
}

export interface EventView {
  at_millis: number;
  level: string;
  text: string;
}

export interface AskRequest {
  prompt: string;
  run?: number | null;
  max_new_tokens?: number | null;
}

export interface AskReply {
  base: string;
  tuned: string;
  run: number;
  answered_by: string;
  seconds: number;
}

export interface Counters {
  memory_bytes: number;
  peak_memory_bytes: number;
  fill_peak_memory_bytes: number;
  train_peak_memory_bytes: number;
  backbone_bytes: number;
  cache_bytes: number;
  weights_downloaded_bytes: number;
  compute_seconds: number;
  wait_seconds: number;
  links: LinkCounters[];
}

/** Bytes sent over one link, by kind. */
export interface LinkCounters {
  peer: number;
  activations_bytes: number;
  side_gradients_bytes: number;
  adapter_gradients_bytes: number;
  cache_bytes: number;
  other_bytes: number;
}

export interface Range {
  start: number;
  end: number;
}

export interface StageMember {
  node: number;
  slots: Range;
}

export interface Stage {
  layers: Range;
  members: StageMember[];
}

export interface DeviceReason {
  node: number;
  /** Its name, also after it has left. */
  name?: string;
  reason: string;
  fill_memory_bytes: number;
  train_memory_bytes: number;
}

/** Predicted bytes over a link, both directions together. */
export interface LinkTraffic {
  a: number;
  b: number;
  activation_bytes: number;
  side_gradient_bytes: number;
  fill_reduce_bytes: number;
  train_reduce_bytes: number;
  redistribution_bytes: number;
  /** Cache entries from who keeps them to who trains on them, per epoch from the cache. */
  epoch_stream_bytes?: number;
}

export interface PlanBound {
  objective_seconds: number;
  lower_bound_seconds: number;
  is_exact: boolean;
}

/** What sending gradients in half precision, or less often, would bring. */
export interface ReduceAdvice {
  reduce_seconds: number;
  accumulate: number;
  accumulated_step_seconds: number;
  sentence: string;
}

export interface Plan {
  stages: Stage[];
  micro_batches: number;
  /** The first epoch fills the cache while it trains, or forward passes fill it before all training. */
  fill?: 'hybrid' | 'forward_only';
  /** How gradients travel. */
  gradients?: 'f32' | 'f16';
  train: StageMember[];
  /** Who keeps the cache entries of which slots, where that is not who trains on them; else empty. */
  stores?: StageMember[];
  fill_step_seconds: number;
  train_step_seconds: number;
  single_device_fill_step_seconds: number;
  single_device_train_step_seconds?: number;
  redistribution_seconds?: number;
  bound?: PlanBound;
  links?: LinkTraffic[];
  advice?: ReduceAdvice | null;
  reasons: DeviceReason[];
}
