//! A plan: who computes what, with its prediction and its reasons.

use crate::NodeId;
use crate::control::GradientType;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What a node measured of itself. Times are seconds for one token, memory is bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// Who.
    pub node: NodeId,
    /// Name a person gave the device.
    pub name: String,
    /// Multiply-accumulate throughput of the matrix product the engine uses, GFLOP/s (2 FLOP per multiply-add).
    pub gflops: f64,
    /// Bytes the node is willing to hold in weights, activations, gradients and optimiser state.
    pub memory_budget_bytes: u64,
    /// Bytes of cache it is willing to store.
    pub storage_budget_bytes: u64,
}

/// A measured link between two nodes (both directions alike).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkProfile {
    /// One end.
    pub a: NodeId,
    /// The other end.
    pub b: NodeId,
    /// Round trip, milliseconds.
    pub round_trip_millis: f64,
    /// Bulk bandwidth, bytes per second.
    pub bytes_per_second: f64,
}

/// Costs of one layer (or embedding, or head) of a model, independent of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerCost {
    /// Frozen forward, FLOP per token.
    pub forward_flops: f64,
    /// Side network forward, FLOP per token.
    pub side_forward_flops: f64,
    /// Side network backward, FLOP per token.
    pub side_backward_flops: f64,
    /// Frozen weights, bytes as held in memory.
    pub weight_bytes: u64,
    /// Adapter parameters (each costs 4 × this in f32: value, gradient, two moments), count.
    pub adapter_parameters: u64,
    /// Activations kept per token between forward and backward, bytes.
    pub activation_bytes: u64,
    /// Taps that it gives to the cache.
    pub taps: u32,
}

impl LayerCost {
    /// The same layer without a tap: the side network has no part in it.
    pub fn untapped(&self) -> Self {
        Self { forward_flops: self.forward_flops, weight_bytes: self.weight_bytes, ..Self::default() }
    }
}

/// What the planner knows about a model and a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCost {
    /// One entry per transformer layer.
    pub layers: Vec<LayerCost>,
    /// The embedding, on the first stage.
    pub embedding: LayerCost,
    /// Final norm and head, on the last stage (FLOP per *labelled* token).
    pub head: LayerCost,
    /// Width of the residual stream, elements.
    pub width: u32,
    /// Width of the side network, elements.
    pub side_width: u32,
    /// Bytes of frozen weights that embedding and head have in common, the matrix of a tied head: a device with both holds
    /// them once.
    #[serde(default)]
    pub shared_bytes: u64,
}

/// A device inside a stage and the slots of every mini-batch it computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageMember {
    /// Who.
    pub node: NodeId,
    /// Slots of the mini-batch (0 .. batch), contiguous and disjoint, together all slots.
    pub slots: Range<u32>,
}

/// Contiguous layers held by a group of devices that split every micro-batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Layers `start .. end` (0-based) of the backbone.
    pub layers: Range<u32>,
    /// The group, in rank order.
    pub members: Vec<StageMember>,
}

/// Layers `start .. end` (0-based) as people count them: `layer 6`, `layers 1–5`.
pub fn layers_text(start: u32, end: u32) -> String {
    if end == start + 1 { format!("layer {end}") } else { format!("layers {}–{end}", start + 1) }
}

/// What a device was given, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceReason {
    /// Who.
    pub node: NodeId,
    /// Its name, also after it has left.
    #[serde(default)]
    pub name: String,
    /// A sentence for people.
    pub reason: String,
    /// Predicted peak memory in the fill phase, bytes.
    pub fill_memory_bytes: u64,
    /// Predicted peak memory in the train phase, bytes.
    pub train_memory_bytes: u64,
}

/// How the cache is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FillMode {
    /// The first epoch fills the cache and trains at once, through the pipeline (1F1B).
    #[default]
    Hybrid,
    /// A stream of forward passes fills the cache, then every epoch, the first one too, is trained from it.
    ForwardOnly,
}

/// Who does what in both phases, with the prediction it was chosen by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Pipeline of the fill phase, first stage first; covers all layers.
    pub stages: Vec<Stage>,
    /// Number of micro-batches a mini-batch is cut into in the fill phase.
    pub micro_batches: u32,
    /// How the cache is filled.
    #[serde(default)]
    pub fill: FillMode,
    /// Shares of the train phase: slots per node, contiguous, disjoint, together all slots.
    pub train: Vec<StageMember>,
    /// Who keeps the cache entries of each slot's samples, where the storage of who trains on them does not suffice: slots
    /// contiguous, disjoint, together all slots; a node may be there more than once. Empty: everybody keeps its own. Such a
    /// plan fills forward-only (since 1.2).
    #[serde(default)]
    pub stores: Vec<StageMember>,
    /// How gradients travel.
    #[serde(default)]
    pub gradients: GradientType,
    /// Predicted seconds of one step of the first epoch: of a fill step, or of a mini-batch's forward passes and its
    /// train step.
    pub fill_step_seconds: f64,
    /// Predicted seconds of one train step.
    pub train_step_seconds: f64,
    /// Predicted seconds of a fill step on the best single device; 0 if the job fits on none alone.
    pub single_device_fill_step_seconds: f64,
    /// Predicted seconds of a train step on that device; 0 if the job fits on none alone.
    #[serde(default)]
    pub single_device_train_step_seconds: f64,
    /// Predicted seconds in which cache entries travel to their owners, once.
    #[serde(default)]
    pub redistribution_seconds: f64,
    /// How far from the best this plan can be.
    #[serde(default)]
    pub bound: PlanBound,
    /// Predicted bytes on every link that is used, per step.
    #[serde(default)]
    pub links: Vec<LinkTraffic>,
    /// What would make the train phase faster and is not done yet.
    #[serde(default)]
    pub advice: Option<ReduceAdvice>,
    /// A sentence per device.
    pub reasons: Vec<DeviceReason>,
}

/// What is known of the best possible plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanBound {
    /// The plan's objective: seconds per step of the whole job, as the planner defines them.
    pub objective_seconds: f64,
    /// No plan has a lower objective than this.
    pub lower_bound_seconds: f64,
    /// Whether all plans were compared, so that none is better.
    pub is_exact: bool,
}

/// Predicted bytes over a link, both directions together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkTraffic {
    /// The lower node.
    pub a: NodeId,
    /// The higher node.
    pub b: NodeId,
    /// Activations, per fill step.
    pub activation_bytes: u64,
    /// Side gradients, per fill step.
    pub side_gradient_bytes: u64,
    /// AllReduce inside a stage's group, per fill step.
    pub fill_reduce_bytes: u64,
    /// AllReduce, per train step.
    pub train_reduce_bytes: u64,
    /// Cache entries to their owners, once.
    pub redistribution_bytes: u64,
    /// Cache entries from who keeps them to who trains on them, per epoch from the cache.
    #[serde(default)]
    pub epoch_stream_bytes: u64,
}

/// What summing gradients less often would bring. The nodes do not do it yet: it is a prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReduceAdvice {
    /// Part of a train step that is AllReduce, seconds.
    pub reduce_seconds: f64,
    /// Mini-batches per AllReduce that leave it at most a tenth of the time.
    pub accumulate: u32,
    /// A mini-batch with that interval, seconds.
    pub accumulated_step_seconds: f64,
    /// A sentence for people.
    pub sentence: String,
}

impl Plan {
    /// Every node that computes in some phase, or keeps cache entries for others, ascending.
    pub fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self.stages.iter().flat_map(|s| s.members.iter()).chain(&self.train).chain(&self.stores).map(|m| m.node).collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }

    /// Who keeps the cache entries of each slot's samples in the train phase: [`Plan::stores`], or who trains on them.
    pub fn keepers(&self) -> &[StageMember] {
        if self.stores.is_empty() { &self.train } else { &self.stores }
    }

    /// Who keeps the cache entries of a slot's samples, where [`Plan::stores`] says so.
    pub fn keeper_for_others(&self, slot: u32) -> Option<NodeId> {
        self.stores.iter().find(|m| m.slots.contains(&slot)).map(|m| m.node)
    }
}
