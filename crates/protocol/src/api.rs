//! What pages and programs ask of the server over HTTP, and what a dashboard sees.
//!
//! Every path under `/api/` but `/api/version` wants `Authorization: Bearer <RoomSecret::server_token()>`; a call of a
//! joined node also carries `x-barycenter-session`. Errors are `{"error": "one sentence"}` with a fitting status.

use crate::control::{BackendReport, CacheType, Counters, GradientType, NodeKind, PhaseKind, WeightFormat};
use crate::plan::Plan;
use crate::{NodeId, ProtocolVersion, RunId};
use serde::{Deserialize, Serialize};

/// `GET /api/version` (open to all): a page older than the server reloads itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Protocol.
    pub protocol: ProtocolVersion,
    /// Build of the server, for people.
    pub server: String,
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// One sentence: what was expected, what came, what to do.
    pub error: String,
}

/// `GET /api/invite`: the address to scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// With the secret in its fragment.
    pub url: String,
    /// The QR code as SVG text.
    pub svg: String,
}

/// A model the server can hand out (`GET /api/models`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Id in paths: letters, digits, `.`, `_`, `-`.
    pub id: String,
    /// For people.
    pub name: String,
    /// `llama`, `qwen2`, …
    pub family: String,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of weights.
    pub bytes: u64,
    /// Transformer layers.
    pub layers: u32,
    /// Width.
    pub width: u32,
    /// Longest context, tokens.
    pub max_positions: u32,
    /// Why it cannot be used, if so.
    pub problem: Option<String>,
}

/// A data set the server holds (`GET /api/datasets`; `POST /api/datasets?name=…` uploads one as the body).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Id in paths.
    pub id: String,
    /// For people.
    pub name: String,
    /// Training rows.
    pub train_rows: u32,
    /// Held-out rows (an own file for the demo, otherwise split off by seed).
    pub held_out_rows: u32,
}

/// `GET /api/datasets/{id}/preview?model={model}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetPreview {
    /// First rows.
    pub rows: Vec<PreviewRow>,
    /// Tokens of all rows.
    pub total_tokens: u64,
    /// Labelled tokens of all rows.
    pub labelled_tokens: u64,
    /// Shortest row, tokens.
    pub min_tokens: u32,
    /// Median row.
    pub median_tokens: u32,
    /// Longest row.
    pub max_tokens: u32,
    /// Sentences about duplicates, rows that will be left out, and so on.
    pub warnings: Vec<String>,
}

/// One row of a preview.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewRow {
    /// What is asked.
    pub prompt: String,
    /// What is learnt.
    pub response: String,
    /// Tokens.
    pub tokens: u32,
    /// Part of the held-out rows.
    pub held_out: bool,
}

/// `POST /api/plan` (answer: [`PlanPreview`]) and `POST /api/runs` (answer: [`RunInfo`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRequest {
    /// Model id.
    pub model: String,
    /// Data set id.
    pub dataset: String,
    /// Reduction k; default by the model's recommendation or 8.
    #[serde(default)]
    pub reduction: Option<u32>,
    /// Every so many-th layer is read by the side network, counted back from the last; default 2.
    #[serde(default)]
    pub tap_every: Option<u32>,
    /// How the cache holds what is read; default 8-bit integers.
    #[serde(default)]
    pub cache: Option<CacheType>,
    /// Epochs, the fill epoch included.
    #[serde(default)]
    pub epochs: Option<u32>,
    /// Mini-batch.
    #[serde(default)]
    pub batch: Option<u32>,
    /// Peak learning rate.
    #[serde(default)]
    pub learning_rate: Option<f64>,
    /// Warm-up steps.
    #[serde(default)]
    pub warmup_steps: Option<u32>,
    /// Seed.
    #[serde(default)]
    pub seed: Option<u64>,
    /// At least so many pipeline stages in the fill phase, if there are as many nodes (the demo asks for 2).
    #[serde(default)]
    pub min_stages: Option<u32>,
    /// Every node takes part in the train phase even where the planner would leave it out (the demo).
    #[serde(default)]
    pub use_all_nodes: bool,
    /// Held-out prompts to answer before and after for exact match; 0 = none.
    #[serde(default)]
    pub exact_match_rows: Option<u32>,
    /// How gradients travel between nodes; the planner chooses if it is not said.
    #[serde(default)]
    pub gradients: Option<GradientType>,
    /// In which number format nodes hold the frozen matrices; as they are stored if it is not said.
    #[serde(default)]
    pub weights: WeightFormat,
    /// Nodes that are to be given nothing to do.
    #[serde(default)]
    pub without: Vec<NodeId>,
}

/// What a run would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanPreview {
    /// Who does what, with predictions and reasons.
    pub plan: Plan,
    /// Cache in all, bytes.
    pub cache_bytes: u64,
    /// Predicted seconds in all.
    pub seconds: f64,
    /// Steps per epoch.
    pub steps_per_epoch: u32,
    /// Epochs.
    pub epochs: u32,
}

/// `GET /api/runs`, `GET /api/runs/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Number.
    pub run: RunId,
    /// Model id.
    pub model: String,
    /// Data set id.
    pub dataset: String,
    /// Unix seconds.
    pub started_at: u64,
    /// Where it stands.
    pub state: RunState,
    /// For people, where the state needs it ("stopped by you", a failure's sentence).
    pub note: String,
    /// Epochs planned.
    pub epochs: u32,
    /// Steps per epoch.
    pub steps_per_epoch: u32,
    /// Exact match of the base on held-out prompts, 0 … 1.
    pub exact_match_before: Option<f64>,
    /// Of the tuned model.
    pub exact_match_after: Option<f64>,
    /// Last training loss.
    pub loss: Option<f64>,
    /// Last held-out loss.
    pub held_out_loss: Option<f64>,
    /// Seconds from start to end, pauses included.
    pub seconds: f64,
}

/// States of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waiting for nodes.
    Waiting,
    /// Weights and links.
    Preparing,
    /// Steps are made.
    Running,
    /// Paused by a person.
    Paused,
    /// Finished.
    Done,
    /// Stopped by a person.
    Stopped,
    /// Cannot go on.
    Failed,
}

/// One line of `GET /api/snapshots`, a stream of JSON lines (first line at once, then at every change, ≤ 4 per second).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Unix milliseconds at the server.
    pub now_millis: u64,
    /// Every joined node.
    pub nodes: Vec<NodeView>,
    /// Every link.
    pub links: Vec<LinkView>,
    /// The current run (the newest, if none is active).
    pub run: Option<RunView>,
    /// The newest events, oldest first (≤ 100).
    pub events: Vec<EventView>,
}

/// A node as a dashboard sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Id.
    pub node: NodeId,
    /// Name.
    pub name: String,
    /// Browser or native.
    pub kind: NodeKind,
    /// Back end and why.
    pub backend: BackendReport,
    /// Measured speed.
    pub gflops: f64,
    /// Memory offered.
    pub memory_budget_bytes: u64,
    /// Latest counters.
    pub counters: Counters,
    /// What it does now, for people: "stage 1, layers 1–3", "fetching weights", "idle".
    pub activity: String,
    /// Progress of that, 0 … 1, where there is one.
    pub progress: Option<f32>,
    /// Layers it holds in the fill phase.
    pub layers: Option<(u32, u32)>,
    /// Slots of the mini-batch it computes in the train phase.
    pub train_slots: Option<(u32, u32)>,
}

/// A link as a dashboard sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkView {
    /// One end.
    pub a: NodeId,
    /// The other.
    pub b: NodeId,
    /// Milliseconds.
    pub round_trip_millis: f64,
    /// Bytes per second, measured at joining.
    pub bytes_per_second: f64,
    /// Through the server, because the devices do not reach each other directly.
    #[serde(default)]
    pub relayed: bool,
}

/// The current run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Facts.
    pub info: RunInfo,
    /// Plan in force.
    pub plan: Option<Plan>,
    /// Phase.
    pub phase: Option<PhaseKind>,
    /// Current epoch.
    pub epoch: u32,
    /// Current step in it.
    pub step: u32,
    /// Predicted seconds to the end.
    pub seconds_left: Option<f64>,
    /// Loss of every step so far.
    pub losses: Vec<LossPoint>,
    /// Held-out loss per epoch.
    pub held_out: Vec<HeldOutPoint>,
    /// Finished epochs.
    pub epochs: Vec<EpochView>,
    /// Cache in the swarm, bytes.
    pub cache_bytes: u64,
    /// One held-out prompt answered before and after.
    pub example: Option<ExampleView>,
}

/// Loss of one optimiser step: mean over its labelled tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Optimiser steps before it.
    pub at: u32,
    /// Mean loss, nats per labelled token.
    pub loss: f64,
}

/// Held-out loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutPoint {
    /// After so many optimiser steps.
    pub at: u32,
    /// Mean loss.
    pub loss: f64,
}

/// One finished epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochView {
    /// Number, 0 = fill.
    pub epoch: u32,
    /// Phase.
    pub phase: PhaseKind,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Mean loss.
    pub loss: f64,
    /// Frozen layers, seconds summed over nodes.
    pub backbone_seconds: f64,
    /// Side network, seconds summed over nodes.
    pub side_seconds: f64,
    /// Waiting, seconds summed over nodes.
    pub wait_seconds: f64,
}

/// A prompt and its answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExampleView {
    /// The prompt.
    pub prompt: String,
    /// What was wanted.
    pub expected: String,
    /// The base model's answer.
    pub base: String,
    /// The tuned model's answer, once there is one.
    pub tuned: Option<String>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Unix milliseconds.
    pub at_millis: u64,
    /// `info`, `good`, `warning`, `bad`.
    pub level: String,
    /// A sentence.
    pub text: String,
}

/// `POST /api/ask` (answer: [`AskReply`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskRequest {
    /// What is asked.
    pub prompt: String,
    /// Which run's adapter; the newest with a checkpoint if absent.
    #[serde(default)]
    pub run: Option<RunId>,
    /// At most so many tokens (default 64).
    #[serde(default)]
    pub max_new_tokens: Option<u32>,
}

/// Both answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AskReply {
    /// Base model.
    pub base: String,
    /// Tuned model.
    pub tuned: String,
    /// Which run.
    pub run: RunId,
    /// Name of the node that answered.
    pub answered_by: String,
    /// Seconds it took.
    pub seconds: f64,
}
