//! What goes into a [`crate::node::Node`], and what comes out of it.
//!
//! Rules for the driver:
//! 1. Bytes never enter the core. A tensor that arrived, or that a job made, lies in the driver's table under a
//!    [`BlobId`] the driver chose. **A blob lives until [`NodeOutput::DropBlob`]**: neither a job that reads it nor
//!    [`NodeOutput::ToPeer`] that sends it releases it. Ids are never reused.
//! 2. Jobs run one at a time, in the order of [`NodeOutput::Run`]; each is answered by one [`NodeInput::JobDone`].
//!    A failure is [`JobResult::Failed`]: the node then reports it, and the run re-plans without this node.
//! 3. [`NodeOutput::CancelAll`] ends the generation: jobs that have not started are forgotten (except
//!    [`Job::Generate`]), the result of a running one may still be given (the node drops its blobs), engine state is
//!    dropped when the next [`Job::Prepare`] runs or at once. Downloaded weights and the cache stay.
//! 4. Gradients are zero after [`Job::Prepare`] and after [`Job::ApplyUpdate`]; [`Job::Backward`] and
//!    [`Job::CachedStep`] add to them.
//! 5. `FromNode::{Alive, Progress, Signal, LinkUp}` are the driver's own: `Alive` each second with its counters,
//!    `Progress` at least every 10 s while a `Prepare` downloads, `LinkUp` with what the transport measured (besides
//!    [`NodeInput::LinkUp`]). `FromNode::{LinkDown, Leaving, Leave}`: the node says `LinkDown`, the driver the others. `ToNode::{Ping, Signal}` are the driver's too. `ToNode::{Dial,
//!    HangUp, Goodbye}` may be given to the node, which ignores them, or not.
//! 6. Ping, Pong and ProbeResult stay in the transport.

use barycenter_protocol::control::{Assignment, FromNode, GenerateRequest, Holding, RunSpec, ToNode};
use barycenter_protocol::peer::{MicroKey, PeerMessage, StepKey};
use barycenter_protocol::{NodeId, RunId, SampleId};
use std::ops::Range;

/// Time: microseconds on any clock that never goes back.
pub type Micros = u64;

/// One second.
pub const SECOND: Micros = 1_000_000;

/// Bytes in the driver's keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(pub u64);

/// A job of one node, numbered by the node machine from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Into a node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeInput {
    /// From the server.
    Server(ToNode),
    /// A link is up and proved.
    LinkUp {
        /// The other end.
        peer: NodeId,
    },
    /// A link is gone.
    LinkDown {
        /// The other end.
        peer: NodeId,
        /// For people.
        reason: String,
    },
    /// A message of a peer; its data, if any, lies under `blob`.
    Peer {
        /// Who sent it.
        from: NodeId,
        /// Header.
        message: PeerMessage,
        /// Data (always given for bulk messages, even when empty).
        blob: Option<BlobId>,
    },
    /// A job is over.
    JobDone {
        /// Which.
        job: JobId,
        /// Its result.
        result: JobResult,
    },
    /// What [`NodeOutput::Fetch`] asked for last is here, or could not be had: then the preparation says why.
    Fetched,
    /// Time has passed.
    Tick,
}

/// Out of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeOutput {
    /// To the server.
    ToServer(FromNode),
    /// To a peer whose link is up. The blob is not released by sending.
    ToPeer {
        /// To whom.
        to: NodeId,
        /// Header.
        message: PeerMessage,
        /// Data.
        blob: Option<BlobId>,
    },
    /// The node needs these bytes no more.
    DropBlob(BlobId),
    /// Do this after the jobs given before.
    Run(JobId, Job),
    /// The generation is abandoned, see rule 3.
    CancelAll,
    /// Fetch these weights into the storage, beside the jobs: what a later [`Job::Prepare`] will ask for. A later one replaces an
    /// earlier one, [`NodeOutput::CancelAll`] ends it. Answer [`NodeInput::Fetched`].
    Fetch {
        /// Whose weights.
        spec: Box<RunSpec>,
        /// The part whose frozen layers are wanted; `None`: none of them.
        part: Option<StagePart>,
        /// Whether the node takes part in the train phase.
        trains: bool,
    },
    /// Nothing to do until an input, or until this time.
    Wait(Option<Micros>),
}

/// Rows of some samples, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// From or to whom.
    pub node: NodeId,
    /// Whose rows, ascending slot order.
    pub samples: Vec<SampleId>,
}

/// Rows that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsIn {
    /// Whose rows, ascending slot order.
    pub samples: Vec<SampleId>,
    /// The bytes, as [`PeerMessage::Activation`] or [`PeerMessage::SideGradient`] describe them.
    pub blob: BlobId,
}

/// Cache entries of one sample, taps `first_tap ..`, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Whose.
    pub sample: SampleId,
    /// First tap.
    pub first_tap: u32,
    /// Length of each tap's entry, bytes.
    pub lengths: Vec<u32>,
    /// The bytes.
    pub blob: BlobId,
}

/// A node's place in the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagePart {
    /// Index of the stage.
    pub stage: usize,
    /// Frozen layers `start .. end`, and the side layers beside them.
    pub layers: Range<u32>,
    /// Taps this stage produces: `start + 1 .. end + 1`, from 0 on the first stage.
    pub taps: Range<u32>,
    /// Holds the embedding (and down_0).
    pub is_first: bool,
    /// Holds final norm and head (and the side network's norm and up).
    pub is_last: bool,
}

/// A piece of work for the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Get ready for a generation: dataset, weights where `needs_backbone`, adapter and optimiser state from the seeded
    /// start or the checkpoint. The checkpoint the server hands out must be the one the assignment names, else it failed.
    /// → [`JobResult::Prepared`].
    Prepare {
        /// All of it.
        assignment: Box<Assignment>,
        /// Place in the pipeline, `None` if not in it. The frozen layers are needed only if `assignment.needs_backbone`.
        part: Option<StagePart>,
        /// Slots in the train phase. The adapter to hold: `part`'s if `assignment.fills`, otherwise the whole one if
        /// this is given, otherwise none.
        train_slots: Option<Range<u32>>,
    },
    /// Stage forward for this node's samples of a micro-batch. → [`JobResult::ForwardDone`]. Not forward-only: keeps what
    /// the backward pass needs.
    Forward {
        /// Which.
        key: MicroKey,
        /// This node's samples, slot order; never empty.
        samples: Vec<SampleId>,
        /// From the stage before (empty on the first); together exactly `samples`.
        inputs: Vec<RowsIn>,
        /// How to split the output for the next stage (empty on the last); together exactly `samples`.
        outputs: Vec<Rows>,
        /// Labelled tokens of the whole mini-batch: the loss gradient is scaled by 1 / this.
        total_labels: u64,
        /// Write this stage's taps to the cache.
        cache_write: bool,
        /// Samples whose entries are not written here but given back, because somebody else keeps them.
        hand_on: Vec<SampleId>,
    },
    /// Stage backward of the side network. → [`JobResult::BackwardDone`].
    Backward {
        /// Which.
        key: MicroKey,
        /// As in the forward.
        samples: Vec<SampleId>,
        /// Gradient of a from the next stage (empty on the last); together exactly `samples`.
        inputs: Vec<RowsIn>,
        /// How to split the gradient for the stage before (empty on the first).
        outputs: Vec<Rows>,
    },
    /// Forward and backward of the whole side network from the cache. → [`JobResult::CachedStepDone`].
    CachedStep {
        /// Which.
        key: StepKey,
        /// This node's samples, slot order; never empty.
        samples: Vec<SampleId>,
        /// Labelled tokens of the whole mini-batch.
        total_labels: u64,
        /// What the next step will read, as a hint.
        next_samples: Vec<SampleId>,
        /// Entries that others keep and have sent for this step: those of these samples are not read from the cache here.
        streamed: Vec<Entries>,
    },
    /// Squared norm of the gradient held here. → [`JobResult::GradientMeasured`].
    MeasureGradient {
        /// Which step.
        key: StepKey,
    },
    /// The flat gradient in n shards (element `i` of P is in shard j if jP/n ≤ i < (j+1)P/n, integer division). →
    /// [`JobResult::GradientRead`].
    ReadGradient {
        /// Which step.
        key: StepKey,
        /// n.
        shards: u16,
    },
    /// Sum of one shard over the ranks, in the order given, f32. → [`JobResult::ShardSummed`].
    SumShard {
        /// Which step.
        key: StepKey,
        /// Rank order.
        inputs: Vec<BlobId>,
    },
    /// One AdamW step; then the gradient is zero. → [`JobResult::Applied`].
    ApplyUpdate {
        /// Which step.
        key: StepKey,
        /// The reduced gradient in shard order; empty: the gradient held here is the whole one.
        shards: Vec<BlobId>,
        /// Steps applied before this one (AdamW's t is this + 1).
        optimiser_step: u32,
        /// Learning rate of this step.
        learning_rate: f64,
        /// Factor on the gradient: 1, or less where clipping bites.
        clip_factor: f64,
    },
    /// Take a copy of this node's adapter part and moments, and upload it (in the background) as
    /// `checkpoint/{generation}/{epoch}/{step}/{part}`. → [`JobResult::CheckpointTaken`] once the copy is taken.
    SaveCheckpoint {
        /// Which run.
        run: RunId,
        /// The step that comes next (epoch and step of the checkpoint).
        next: StepKey,
        /// Steps applied.
        optimiser_steps: u32,
        /// Index of the stage in the fill phase, 0 in the train phase.
        part: u16,
        /// How many parts make the whole.
        parts: u16,
    },
    /// Loss over held-out samples, from the cache. → [`JobResult::HeldOut`].
    EvaluateHeldOut {
        /// After which epoch.
        epoch: u32,
        /// Which, at most a mini-batch at a time.
        samples: Vec<SampleId>,
        /// As in [`Job::CachedStep`].
        streamed: Vec<Entries>,
    },
    /// Read cache entries for sending. → [`JobResult::CacheRead`].
    ReadCache {
        /// Whose.
        sample: SampleId,
        /// Which.
        taps: Range<u32>,
    },
    /// Store cache entries that arrived. → [`JobResult::CacheWritten`].
    WriteCache {
        /// Whose.
        sample: SampleId,
        /// First tap.
        first_tap: u32,
        /// Length of each tap's entry, bytes.
        lengths: Vec<u32>,
        /// The entries.
        blob: BlobId,
    },
    /// What the cache of this run's model and data holds (all writes before it done). → [`JobResult::Holdings`].
    Holdings,
    /// Free the frozen weights. → [`JobResult::Released`].
    ReleaseBackbone,
    /// Answer prompts; survives [`NodeOutput::CancelAll`]. → [`JobResult::Generated`].
    Generate(Box<GenerateRequest>),
}

/// Loss over some labelled tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossPart {
    /// Sum, nats.
    pub loss_sum: f64,
    /// Labelled tokens.
    pub tokens: u64,
}

/// What a job gave.
#[derive(Clone, Debug, PartialEq)]
pub enum JobResult {
    /// See [`Job::Prepare`].
    Prepared {
        /// What the cache holds.
        holdings: Vec<Holding>,
    },
    /// See [`Job::Forward`].
    ForwardDone {
        /// One per entry of `outputs`.
        outputs: Vec<BlobId>,
        /// One per sample of `hand_on` (none where the stage has no taps).
        entries: Vec<Entries>,
        /// On the last stage, unless forward-only.
        loss: Option<LossPart>,
        /// Frozen layers.
        backbone_seconds: f64,
        /// Side network.
        side_seconds: f64,
    },
    /// See [`Job::Backward`].
    BackwardDone {
        /// One per entry of `outputs`.
        outputs: Vec<BlobId>,
        /// Side network.
        side_seconds: f64,
    },
    /// See [`Job::CachedStep`].
    CachedStepDone {
        /// Over its samples.
        loss: LossPart,
        /// Side network.
        side_seconds: f64,
    },
    /// See [`Job::MeasureGradient`].
    GradientMeasured {
        /// Σ g².
        squared_norm: f64,
    },
    /// See [`Job::ReadGradient`].
    GradientRead {
        /// One per shard.
        shards: Vec<BlobId>,
    },
    /// See [`Job::SumShard`].
    ShardSummed {
        /// The sum.
        blob: BlobId,
        /// Its Σ g².
        squared_norm: f64,
    },
    /// See [`Job::ApplyUpdate`].
    Applied {
        /// Optimiser, and reading and summing gradients.
        side_seconds: f64,
    },
    /// See [`Job::SaveCheckpoint`].
    CheckpointTaken,
    /// See [`Job::EvaluateHeldOut`].
    HeldOut(LossPart),
    /// See [`Job::ReadCache`].
    CacheRead {
        /// Entries one after the other.
        blob: BlobId,
        /// Length of each.
        lengths: Vec<u32>,
    },
    /// See [`Job::WriteCache`].
    CacheWritten,
    /// See [`Job::Holdings`].
    Holdings(Vec<Holding>),
    /// See [`Job::ReleaseBackbone`].
    Released,
    /// See [`Job::Generate`].
    Generated {
        /// The base's answers, if asked for.
        base: Option<Vec<Vec<u32>>>,
        /// The tuned model's answers, if asked for.
        tuned: Option<Vec<Vec<u32>>>,
    },
    /// It could not be done: one sentence for people.
    Failed {
        /// What was expected, what came, what to do.
        reason: String,
    },
}

impl JobResult {
    /// Blobs the job made.
    pub fn blobs(&self) -> Vec<BlobId> {
        match self {
            Self::ForwardDone { outputs, entries, .. } => outputs.iter().copied().chain(entries.iter().map(|e| e.blob)).collect(),
            Self::BackwardDone { outputs, .. } => outputs.clone(),
            Self::GradientRead { shards } => shards.clone(),
            Self::ShardSummed { blob, .. } | Self::CacheRead { blob, .. } => vec![*blob],
            _ => Vec::new(),
        }
    }
}
