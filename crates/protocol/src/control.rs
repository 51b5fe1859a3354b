//! Signalling between the server and one node: JSON, `POST` up and a streamed response down.
//!
//! The server numbers nothing and keeps no queue beyond a bound: a node whose stream ends is gone and joins anew. What a run is,
//! that messages speak of, stands in `control/spec.rs`.

mod spec;

pub use spec::{CacheType, GRADIENT_BLOCK, GradientType, RunSpec, SampleSize, WeightFormat, tapped};

use crate::plan::{DeviceProfile, LinkProfile, Plan};
use crate::{Generation, NodeId, ProtocolVersion, RunId, SampleId};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What a device says when it joins (`POST /api/join`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Version the page or program speaks.
    pub version: ProtocolVersion,
    /// Name for people: "Mia's phone". Up to 40 characters, control characters refused.
    pub name: String,
    /// Browser or native.
    pub kind: NodeKind,
    /// Back end and why.
    pub backend: BackendReport,
    /// Result of the self-test and measured speed.
    pub gflops: f64,
    /// Memory the node offers, bytes.
    pub memory_budget_bytes: u64,
    /// Cache storage the node offers, bytes.
    pub storage_budget_bytes: u64,
    /// Random token chosen by the device at its first visit: a device that reloads takes its old place at once.
    pub device_token: String,
}

/// The server's answer to a join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinReply {
    /// The id for this stay.
    pub node: NodeId,
    /// Bearer of later calls of this node (`x-barycenter-session` header).
    pub session: String,
    /// Version the server speaks.
    pub version: ProtocolVersion,
}

/// What a node runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A page.
    Browser,
    /// The `barycenter node` program.
    Native,
}

/// Which back end a node uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// `cpu` or `webgpu`.
    pub kind: String,
    /// Device name.
    pub description: String,
    /// Why this one.
    pub reason: String,
}

/// Server → node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNode {
    /// Keeps the stream alive; sent every second.
    Ping,
    /// Make a link to `peer`; the lower id offers.
    Dial {
        /// The other end.
        peer: NodeId,
    },
    /// Drop the link to `peer`: it left or is not needed.
    HangUp {
        /// The other end.
        peer: NodeId,
    },
    /// Pairing data from another node, passed on unread.
    Signal {
        /// Who sent it.
        from: NodeId,
        /// SDP or candidate, see the transport.
        payload: String,
    },
    /// Get ready for a generation: load weights, open links, restore the checkpoint. Answer [`FromNode::Prepared`].
    Prepare(Box<Assignment>),
    /// Start (or go on with) a phase of the current generation. Answer at its end: [`FromNode::PhaseDone`].
    Begin {
        /// Which generation.
        generation: Generation,
        /// What to do.
        phase: Phase,
    },
    /// Somebody is about to leave. Beside the work of the generation in force: fetch what the plan without it asks of this node, send
    /// these cache entries, and store those that come. Answer [`FromNode::TakenOver`] once the first two are done.
    TakeOver {
        /// Which generation.
        generation: Generation,
        /// Number of this message in the run; a later one replaces an earlier one.
        round: u32,
        /// The plan without the leaver.
        plan: Box<Plan>,
        /// What this node sends, in order.
        sends: Vec<CacheSend>,
    },
    /// Begin no step of this epoch from `step` on: the checkpoint lies there, and the phase ends there. Answer as to `Begin`. Who
    /// has begun that step already goes on as if nothing had been said.
    StopBefore {
        /// Which generation.
        generation: Generation,
        /// Epoch.
        epoch: u32,
        /// The first step that is not done.
        step: u32,
    },
    /// Start no further step until [`ToNode::Resume`].
    Pause,
    /// Go on.
    Resume,
    /// Forget the generation: stop all work of it. The next message is a `Prepare`, or nothing.
    Abort {
        /// Which generation ends.
        generation: Generation,
    },
    /// Answer prompts with the base and/or the tuned model. Answer [`FromNode::Generated`].
    Generate(Box<GenerateRequest>),
    /// The node may go (run ended, or the server says why in a sentence).
    Goodbye {
        /// For people.
        reason: String,
    },
}

/// Node → server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// Sign of life, each second, with fresh counters.
    Alive {
        /// Counters since joining.
        counters: Counters,
    },
    /// Pairing data for another node.
    Signal {
        /// To whom.
        to: NodeId,
        /// Passed on unread.
        payload: String,
    },
    /// A link is up and both ends proved the secret.
    LinkUp {
        /// The other end.
        peer: NodeId,
        /// Measured round trip, milliseconds.
        round_trip_millis: f64,
        /// Measured bandwidth of the bulk channel, bytes per second.
        bytes_per_second: f64,
        /// Through the server, because no direct connection came about.
        #[serde(default)]
        relayed: bool,
    },
    /// A link is gone (or could not be made).
    LinkDown {
        /// The other end.
        peer: NodeId,
        /// For people.
        reason: String,
    },
    /// Ready for the generation.
    Prepared {
        /// Which.
        generation: Generation,
        /// What this node's cache holds.
        holdings: Vec<Holding>,
    },
    /// Progress of a long preparation, for the dashboard.
    Progress {
        /// For people: "weights 12 of 31 MB".
        text: String,
        /// 0 … 1.
        fraction: f32,
    },
    /// One optimiser step was applied. Sent by every node of the plan that took part.
    StepDone(StepReport),
    /// No progress for some seconds for want of messages from these nodes; repeated while it lasts.
    Waiting {
        /// Which generation.
        generation: Generation,
        /// Whose messages are missing.
        peers: Vec<NodeId>,
    },
    /// The phase is over here; `holdings` is complete.
    PhaseDone {
        /// Which generation.
        generation: Generation,
        /// Which phase.
        phase: PhaseKind,
        /// What the cache holds now.
        holdings: Vec<Holding>,
    },
    /// Loss over this node's share of the held-out samples after a train epoch.
    HeldOutLoss {
        /// Which generation.
        generation: Generation,
        /// After which epoch.
        epoch: u32,
        /// Sum of losses over labelled tokens.
        loss_sum: f64,
        /// Labelled tokens.
        tokens: u64,
    },
    /// Answers to a `Generate`.
    Generated {
        /// Request.
        request: u64,
        /// Token ids of the base model's answers, if asked for.
        base: Option<Vec<Vec<u32>>>,
        /// Token ids of the tuned model's answers, if asked for.
        tuned: Option<Vec<Vec<u32>>>,
    },
    /// The prompts of a `Generate` could not be answered.
    GenerateFailed {
        /// Request.
        request: u64,
        /// For people.
        reason: String,
    },
    /// The node cannot do what it was asked; the sentence goes to the dashboard. The run re-plans without it.
    Failed {
        /// Which generation (or the latest).
        generation: Generation,
        /// For people.
        reason: String,
    },
    /// Has what a [`ToNode::TakeOver`] asked for.
    TakenOver {
        /// Which generation.
        generation: Generation,
        /// Of that message.
        round: u32,
    },
    /// About to leave: the others may take over this node's part first. The server answers with a `Goodbye`, at once where there is
    /// nothing to take over.
    Leaving,
    /// Leaves now.
    Leave,
}

/// Which samples of which taps a node's cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Samples, as disjoint ascending ranges of ids.
    pub samples: Vec<Range<u32>>,
    /// Taps, ascending (0 … layers).
    pub taps: Range<u32>,
}

/// The phases a node is told to begin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Phase {
    /// Epoch 0 through the pipeline, optimiser steps `from_step ..`.
    Fill {
        /// First step (the checkpoint's).
        from_step: u32,
    },
    /// Forward-only through the pipeline for these samples, to fill their cache. Where the plan's `stores` says who keeps a
    /// sample's entries, they go there as they are computed.
    Refill {
        /// Which, ascending.
        samples: Vec<SampleId>,
        /// Number of (sample, tap) entries that others send to this node to keep (since 1.2).
        #[serde(default)]
        expect: u64,
    },
    /// Move cache entries to their owners.
    Redistribute {
        /// What this node sends, in order.
        sends: Vec<CacheSend>,
        /// Number of (sample, tap) entries this node will receive.
        expect: u64,
    },
    /// Data-parallel steps from the cache, from (epoch, step) up to and with `last_epoch`; held-out loss after each.
    Train {
        /// First epoch (≥ 1; epoch 0 too when the cache was complete from the start).
        epoch: u32,
        /// First step in it.
        from_step: u32,
        /// Last epoch of this phase.
        last_epoch: u32,
    },
}

/// Names of the phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseKind {
    /// See [`Phase::Fill`].
    Fill,
    /// See [`Phase::Refill`].
    Refill,
    /// See [`Phase::Redistribute`].
    Redistribute,
    /// See [`Phase::Train`].
    Train,
}

/// Cache entries one node sends to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSend {
    /// To whom.
    pub to: NodeId,
    /// Which samples.
    pub samples: Vec<SampleId>,
    /// Which taps of each.
    pub taps: Range<u32>,
}

/// A node's part in a generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which run.
    pub run: RunId,
    /// Which plan of it.
    pub generation: Generation,
    /// Method, data and model of the run.
    pub spec: RunSpec,
    /// The whole plan: a node finds its own part.
    pub plan: Plan,
    /// Checkpoint to start from; `None` = the seeded start.
    pub checkpoint: Option<CheckpointRef>,
    /// Whether the backbone is needed in this generation (fill or refill to come).
    pub needs_backbone: bool,
    /// Whether this generation trains through the pipeline, so that a node holds its stage's part of the adapter
    /// (otherwise every node of `plan.train` holds the whole adapter).
    #[serde(default)]
    pub fills: bool,
}

/// A consistent state of adapter and optimiser on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// Epoch the next step belongs to.
    pub epoch: u32,
    /// The next step within the epoch.
    pub step: u32,
    /// Optimiser steps applied so far.
    pub optimiser_steps: u32,
}

/// One step as one node saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Which generation.
    pub generation: Generation,
    /// Epoch (0 = fill).
    pub epoch: u32,
    /// Step in the epoch.
    pub step: u32,
    /// Sum of losses over the labelled tokens this node computed the loss of.
    pub loss_sum: f64,
    /// Those tokens.
    pub tokens: u64,
    /// Samples this node computed the loss of.
    pub samples: Vec<SampleId>,
    /// Frozen layers, seconds.
    pub backbone_seconds: f64,
    /// Side network forward and backward, optimiser, seconds.
    pub side_seconds: f64,
    /// Waiting for peers, seconds.
    pub wait_seconds: f64,
    /// Norm of the whole gradient before clipping.
    pub gradient_norm: f64,
}

/// Prompts for a node that can hold the whole model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// Echoed in the answer.
    pub request: u64,
    /// Model and method; the sample fields are not used.
    pub spec: RunSpec,
    /// Which run's adapter (its latest checkpoint) answers as "tuned".
    pub run: Option<RunId>,
    /// Prompts as token ids, separator included.
    pub prompts: Vec<Vec<u32>>,
    /// At most so many new tokens each.
    pub max_new_tokens: u32,
    /// Ask the base model.
    pub base: bool,
    /// Ask the tuned model.
    pub tuned: bool,
}

/// What a node has done since it joined.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Engine buffers held now, bytes.
    pub memory_bytes: u64,
    /// Most at any time, bytes.
    pub peak_memory_bytes: u64,
    /// Most during the fill phase (backbone present), bytes.
    pub fill_peak_memory_bytes: u64,
    /// Most during the train phase, bytes.
    pub train_peak_memory_bytes: u64,
    /// Frozen backbone weights held now, bytes.
    pub backbone_bytes: u64,
    /// Cache entries stored here, bytes.
    pub cache_bytes: u64,
    /// Weights fetched from the server since joining, bytes (0 on a warm second join).
    pub weights_downloaded_bytes: u64,
    /// Computing, seconds.
    pub compute_seconds: f64,
    /// Waiting within steps, seconds.
    pub wait_seconds: f64,
    /// Per link.
    pub links: Vec<LinkCounters>,
}

/// Bytes sent over one link, by kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkCounters {
    /// The other end.
    pub peer: NodeId,
    /// Activations b and a, forward.
    pub activations_bytes: u64,
    /// Side gradients, backward.
    pub side_gradients_bytes: u64,
    /// Adapter gradients (AllReduce).
    pub adapter_gradients_bytes: u64,
    /// Cache entries.
    pub cache_bytes: u64,
    /// Everything else (hello, probes, norms).
    pub other_bytes: u64,
}

/// Fill in by the coordinator for the planner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurements {
    /// Devices.
    pub devices: Vec<DeviceProfile>,
    /// Links.
    pub links: Vec<LinkProfile>,
}
