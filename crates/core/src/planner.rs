//! Planner: who holds which layers, and which share, from measured speeds, memory and links.
//!
//! A plan is a pipeline for the fill phase and a set of devices for the train phase. `planner/objective.rs` says what it
//! is chosen by, `planner/search.rs` how, `docs/PLANNER.md` what is exact and what is not. The best single device is always
//! a candidate, so that a plan is never predicted to be slower than it, unless the options ask for more stages or for
//! everybody.

mod costs;
mod describe;
mod exact;
mod feasible;
mod missing;
mod objective;
mod playback;
mod polish;
mod programme;
mod redistribute;
mod search;
mod shares;
mod storage;
#[cfg(test)]
mod tests;
mod train;

use barycenter_protocol::NodeId;
use barycenter_protocol::control::{GradientType, Measurements};
use barycenter_protocol::plan::{ModelCost, Plan};
use costs::Costs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Wishes and facts about a job that are not in [`ModelCost`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanOptions {
    /// Name of the model, for sentences.
    pub model: String,
    /// At least so many stages, as far as there are nodes and layers.
    pub min_stages: u32,
    /// Every node takes part in both phases, even where it slows the others down.
    pub use_all_nodes: bool,
    /// Mean tokens of a sample.
    pub mean_tokens: f64,
    /// Most tokens of a sample.
    pub max_tokens: u32,
    /// Mean labelled tokens of a sample.
    pub mean_labels: f64,
    /// The whole cache, bytes.
    pub cache_bytes: u64,
    /// How the cache may be filled.
    #[serde(default)]
    pub fill: FillWish,
    /// Epochs, the first one included.
    #[serde(default = "some_epochs")]
    pub epochs: u32,
    /// Optimiser steps of an epoch.
    #[serde(default = "some_steps")]
    pub steps_per_epoch: u32,
    /// Bits of a frozen weight as held in memory, to say which type would fit; 0: not known.
    #[serde(default)]
    pub weight_bits: u32,
    /// Nodes that are given nothing to do.
    #[serde(default)]
    pub without: Vec<NodeId>,
    /// How gradients travel; `None`: in half precision where that makes a train step at least 5 % faster, else as f32.
    #[serde(default)]
    pub gradients: Option<GradientType>,
}

/// How the cache may be filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FillWish {
    /// While the first epoch trains, as in the paper.
    #[default]
    Hybrid,
    /// By forward passes alone; all epochs are trained from the cache.
    ForwardOnly,
    /// Whichever is predicted to be faster.
    Fastest,
}

impl Default for PlanOptions {
    /// Free of wishes; short samples of a small run.
    fn default() -> Self {
        Self {
            model: "the model".into(),
            min_stages: 1,
            use_all_nodes: false,
            mean_tokens: 64.0,
            max_tokens: 128,
            mean_labels: 32.0,
            cache_bytes: 0,
            fill: FillWish::default(),
            epochs: some_epochs(),
            steps_per_epoch: some_steps(),
            weight_bits: 0,
            without: Vec::new(),
            gradients: Some(GradientType::F32),
        }
    }
}

/// Of a job that does not say.
fn some_epochs() -> u32 {
    3
}

/// Of a job that does not say.
fn some_steps() -> u32 {
    100
}

/// A change of how gradients travel has to make a train step faster by at least this.
const WORTHWHILE: f64 = 0.95;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nobody is there.
    #[error("no device has joined yet: open the invitation's address on a device")]
    NoDevices,
    /// Everybody is left out.
    #[error("every device is left out: take at least one in again")]
    NobodyWanted,
    /// Not enough memory.
    #[error("{model} needs {} of memory on one device, or pieces of it on several, and all devices together offer {}: at least {} are missing; {remedy}", human_bytes(*needed_bytes), human_bytes(*offered_bytes), human_bytes(*missing_bytes))]
    Memory {
        /// Model.
        model: String,
        /// Needed by one device that does everything.
        needed_bytes: u64,
        /// Offered by all together.
        offered_bytes: u64,
        /// Missing on the roomiest device.
        missing_bytes: u64,
        /// What would make it fit.
        remedy: String,
    },
    /// Not enough storage.
    #[error("the cache of this run takes {}, and the devices offer storage, with the memory to make use of it, for {}: join a device with more of both, or choose less data", human_bytes(*needed_bytes), human_bytes(*offered_bytes))]
    Storage {
        /// Needed.
        needed_bytes: u64,
        /// Offered.
        offered_bytes: u64,
    },
}

/// Bytes for people: "12 MB".
pub fn human_bytes(bytes: u64) -> String {
    let b = bytes as f64;
    if b >= 1e9 {
        format!("{:.1} GB", b / 1e9)
    } else if b >= 1e6 {
        format!("{:.0} MB", b / 1e6)
    } else {
        format!("{:.0} kB", (b / 1e3).ceil())
    }
}

/// Chooses a plan for mini-batches of `batch` samples.
pub fn plan(cost: &ModelCost, measurements: &Measurements, batch: u32, options: &PlanOptions) -> Result<Plan, PlanError> {
    if measurements.devices.is_empty() {
        return Err(PlanError::NoDevices);
    }
    let mut measurements = without(measurements, &options.without);
    if measurements.devices.is_empty() {
        return Err(PlanError::NobodyWanted);
    }
    measurements.devices.sort_by_key(|d| d.node);
    let own = Costs::new(cost, &measurements, batch, options);
    let (costs, found) = match search::search(&own) {
        Ok(found) => (own, found),
        Err(search::NoPlan) => {
            let costs = own.with_stores();
            let found = if storage::is_what_lacks(&own) { search::search(&costs) } else { Err(search::NoPlan) };
            (costs, found.map_err(|search::NoPlan| missing::space_error(cost, &measurements, batch, options))?)
        }
    };
    let half = costs.with_gradients(GradientType::F16);
    let train_seconds = found.choice.train.seconds;
    // What fits does so whatever travels, so the second search finds something too.
    if options.gradients.is_none()
        && train::train_choices(&half).first().is_some_and(|best| best.seconds <= WORTHWHILE * train_seconds)
        && let Ok(with_half) = search::search(&half)
        && with_half.choice.train.seconds <= WORTHWHILE * train_seconds
    {
        return Ok(describe::describe(&half, &with_half));
    }
    Ok(describe::describe(&costs, &found))
}

/// What was measured of all but some nodes.
pub(crate) fn without(measurements: &Measurements, nodes: &[NodeId]) -> Measurements {
    let stays = |n: NodeId| !nodes.contains(&n);
    Measurements {
        devices: measurements.devices.iter().filter(|d| stays(d.node)).cloned().collect(),
        links: measurements.links.iter().filter(|l| stays(l.a) && stays(l.b)).copied().collect(),
    }
}

/// The largest set of nodes linked among each other: whoever has the fewest links goes first (then the slower).
pub fn linked_subset(measurements: &Measurements) -> Measurements {
    let mut devices = measurements.devices.clone();
    let mut linked: BTreeMap<NodeId, BTreeSet<NodeId>> = devices.iter().map(|d| (d.node, BTreeSet::new())).collect();
    for (a, b) in measurements.links.iter().flat_map(|l| [(l.a, l.b), (l.b, l.a)]).filter(|(a, b)| a != b) {
        if linked.contains_key(&a) && linked.contains_key(&b) {
            linked.entry(a).or_default().insert(b);
        }
    }
    loop {
        let count = |n: NodeId| linked.get(&n).map_or(0, BTreeSet::len);
        let Some(worst) = devices.iter().min_by(|a, b| count(a.node).cmp(&count(b.node)).then(a.gflops.total_cmp(&b.gflops)).then(b.node.cmp(&a.node))) else { break };
        if count(worst.node) + 1 >= devices.len() {
            break;
        }
        let node = worst.node;
        devices.retain(|d| d.node != node);
        linked.remove(&node);
        for peers in linked.values_mut() {
            peers.remove(&node);
        }
    }
    let stays: BTreeSet<_> = devices.iter().map(|d| d.node).collect();
    let links = measurements.links.iter().filter(|l| stays.contains(&l.a) && stays.contains(&l.b)).copied().collect();
    Measurements { devices, links }
}
