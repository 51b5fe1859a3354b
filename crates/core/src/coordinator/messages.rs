//! What goes into a [`super::Coordinator`], and what comes out of it.
//!
//! Rules for the server around it:
//! 1. A node joins by `NodeJoined` when its stream is open; it ends by `NodeLeft` at once when the stream ends. Ids are
//!    never reused; a device that comes again has a new id (tell `NodeLeft` of the old one first).
//! 2. `CoordinatorOutput::Drop` asks to end a node's stream; no `NodeLeft` is needed then (it does no harm).
//! 3. Uploaded parts of a checkpoint count only if [`super::Coordinator::accepts_checkpoint`] says so at that moment; the
//!    checkpoint that nodes download is replaced only by one with more optimiser steps, and when `CheckpointComplete` is given in the same breath.
//! 4. `Persist` is stored atomically; after a restart it goes to [`super::Coordinator::restore`], with
//!    `checkpoint` set to what the stored checkpoint file says of itself (the server may have died between the two).
//! 5. A device that the run was started without is left out under every id: tell `LeaveOut` before the `NodeJoined` of a new one.
//! 6. `ToNode::{Ping, Signal}` and `FromNode::Signal` are the server's own; `FromNode::Alive` is to be passed on.

use crate::io::Micros;
use crate::planner::PlanOptions;
use barycenter_protocol::api::{EpochView, RunState};
use barycenter_protocol::control::{CheckpointRef, FromNode, GenerateRequest, PhaseKind, RunSpec, ToNode};
use barycenter_protocol::plan::{DeviceProfile, ModelCost, Plan};
use barycenter_protocol::{Generation, NodeId, ProtocolVersion, RunId};
use serde::{Deserialize, Serialize};

/// A run to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStart {
    /// Its number.
    pub run: RunId,
    /// Its mathematics.
    pub spec: RunSpec,
    /// What its layers cost.
    pub cost: ModelCost,
    /// Wishes about the plan.
    pub plan: PlanOptions,
    /// Start when so many nodes are there (at least 1).
    pub wait_for_nodes: u32,
}

/// Into the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorInput {
    /// A node's stream is open.
    NodeJoined {
        /// Who, and what it can do.
        profile: DeviceProfile,
        /// What it speaks.
        version: ProtocolVersion,
    },
    /// A node that comes now is a device that the run was started without ([`PlanOptions::without`] under an earlier id).
    LeaveOut {
        /// Who.
        node: NodeId,
    },
    /// A node's stream has ended.
    NodeLeft {
        /// Who.
        node: NodeId,
    },
    /// A message of a node.
    FromNode {
        /// Who.
        node: NodeId,
        /// What it says.
        message: FromNode,
    },
    /// Start a run; refused with an event if one is active.
    StartRun(Box<RunStart>),
    /// Start no further step.
    Pause,
    /// Go on.
    Resume,
    /// End the run; its newest checkpoint stays.
    Stop,
    /// All parts of a checkpoint have arrived, and nodes that ask get this one from now on.
    CheckpointComplete {
        /// Which.
        checkpoint: CheckpointRef,
        /// From the generation that uploaded it.
        generation: Generation,
    },
    /// Have prompts answered by a node that can hold the whole model.
    Generate {
        /// What to answer; `request` is echoed.
        request: Box<GenerateRequest>,
        /// Memory it takes, bytes.
        memory_bytes: u64,
    },
    /// Time has passed.
    Tick,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the record.
    Info,
    /// Good news.
    Good,
    /// Something went wrong and was dealt with.
    Warning,
    /// Needs a person.
    Bad,
}

impl Level {
    /// As in [`barycenter_protocol::api::EventView`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// What happened in a run, for records and pages. A redone step or epoch overwrites its earlier record.
#[derive(Clone, Debug, PartialEq)]
pub enum RunProgress {
    /// The run is in this state now.
    State {
        /// State.
        state: RunState,
        /// A sentence where it needs one.
        note: String,
    },
    /// A new plan is in force.
    Planned {
        /// Its generation.
        generation: Generation,
        /// Who does what.
        plan: Plan,
    },
    /// A phase began.
    Phase {
        /// Which.
        phase: PhaseKind,
        /// Epoch it belongs to.
        epoch: u32,
        /// Predicted seconds to the end of the run.
        seconds_left: f64,
    },
    /// A step is applied everywhere.
    Step(StepRecord),
    /// An epoch is complete.
    Epoch(EpochView),
    /// Held-out loss after an epoch.
    HeldOut {
        /// Epoch.
        epoch: u32,
        /// Optimiser steps before it.
        optimiser_steps: u32,
        /// Mean over labelled tokens.
        loss: f64,
    },
    /// A checkpoint counts from now on.
    Checkpoint(CheckpointRef),
}

/// A step of the run, over all nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRecord {
    /// Epoch.
    pub epoch: u32,
    /// Step in it.
    pub step: u32,
    /// Optimiser steps before it.
    pub optimiser_steps: u32,
    /// Mean over its labelled tokens.
    pub loss: f64,
    /// Before clipping.
    pub gradient_norm: f64,
    /// Wall clock since the step before (or the phase's begin), seconds.
    pub seconds: f64,
    /// Predicted seconds to the end of the run.
    pub seconds_left: f64,
}

/// Answers to a [`CoordinatorInput::Generate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Who answered.
    pub node: NodeId,
    /// Base model's, if asked for.
    pub base: Option<Vec<Vec<u32>>>,
    /// Tuned model's, if asked for.
    pub tuned: Option<Vec<Vec<u32>>>,
}

/// What survives a restart of the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSnapshot {
    /// The run.
    pub start: RunStart,
    /// Highest generation used.
    pub generation: Generation,
    /// Newest complete checkpoint.
    pub checkpoint: Option<CheckpointRef>,
    /// Paused by a person.
    pub paused: bool,
    /// Nodes of the last plan: when as many are back, the run goes on at once.
    pub nodes: u32,
    /// Last epoch whose held-out loss is known.
    pub held_out_epoch: Option<u32>,
    /// Steps before the checkpoint in its epoch.
    pub steps: Vec<SavedStep>,
    /// Seconds spent in that epoch before the snapshot.
    pub epoch_seconds: f64,
}

/// Sums of one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedStep {
    /// Step in the checkpoint's epoch.
    pub step: u32,
    /// Sum of losses.
    pub loss_sum: f64,
    /// Labelled tokens.
    pub tokens: u64,
    /// Frozen layers, seconds summed over nodes.
    pub backbone_seconds: f64,
    /// Side network, seconds summed over nodes.
    pub side_seconds: f64,
    /// Waiting, seconds summed over nodes.
    pub wait_seconds: f64,
}

/// Out of the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorOutput {
    /// To a node.
    ToNode {
        /// Whom.
        node: NodeId,
        /// What.
        message: ToNode,
    },
    /// End this node's stream: it was silent, stood still while others waited, or wished to leave and may go now.
    Drop {
        /// Whom.
        node: NodeId,
        /// For people.
        reason: String,
    },
    /// For people.
    Event {
        /// How much it matters.
        level: Level,
        /// A sentence.
        text: String,
    },
    /// Of a run.
    Progress(RunId, RunProgress),
    /// Store this (None: nothing to resume) for a restart.
    Persist(Option<Box<RunSnapshot>>),
    /// Answer to a `Generate`.
    Generated {
        /// Which.
        request: u64,
        /// The answers, or a sentence.
        result: Result<Answers, String>,
    },
    /// Nothing to do until an input, or until this time.
    Wait(Option<Micros>),
}
