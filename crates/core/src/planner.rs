//! Planner: who holds which layers, and which share, from measured speeds, memory and links.

use barycenter_protocol::control::Measurements;
use barycenter_protocol::plan::{ModelCost, Plan};
use serde::{Deserialize, Serialize};

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
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nobody is there.
    #[error("no device has joined yet: open the invitation's address on a device")]
    NoDevices,
    /// Not enough memory.
    #[error("{model} needs {needed_bytes} bytes of memory over all devices, and {offered_bytes} are offered: {missing_bytes} are missing; join another device or give one more memory")]
    Memory {
        /// Model.
        model: String,
        /// Needed.
        needed_bytes: u64,
        /// Offered.
        offered_bytes: u64,
        /// Missing.
        missing_bytes: u64,
    },
    /// Not enough storage.
    #[error("the cache of this run takes {needed_bytes} bytes, and the devices offer to store {offered_bytes}: join another device, or choose less data")]
    Storage {
        /// Needed.
        needed_bytes: u64,
        /// Offered.
        offered_bytes: u64,
    },
}

/// Chooses a plan for mini-batches of `batch` samples.
pub fn plan(cost: &ModelCost, measurements: &Measurements, batch: u32, options: &PlanOptions) -> Result<Plan, PlanError> {
    todo!("{cost:?} {measurements:?} {batch} {options:?}")
}
