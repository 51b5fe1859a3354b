//! What a job that fits nowhere lacks, and what would make it fit.

use super::costs::Costs;
use super::search::{is_possible, modes};
use super::storage;
use super::{PlanError, PlanOptions, human_bytes};
use barycenter_protocol::NodeId;
use barycenter_protocol::control::Measurements;
use barycenter_protocol::plan::{DeviceProfile, FillMode, ModelCost};
use std::cell::Cell;

/// The memory that is missing is given to this part of itself.
const PRECISION: u64 = 100;

/// Weight types that take less memory, by bits.
const WEIGHT_TYPES: [(u32, &str); 3] = [(16, "f16"), (8, "int8"), (4, "int4")];

/// Why there is no plan: storage, if more memory would not help; else memory.
pub(super) fn space_error(cost: &ModelCost, measurements: &Measurements, batch: u32, options: &PlanOptions) -> PlanError {
    let looked_at = Cell::new(0);
    space_error_counting(cost, measurements, batch, options, &looked_at)
}

/// The same; counts the households for which it was asked whether the job fits.
pub(super) fn space_error_counting(cost: &ModelCost, measurements: &Measurements, batch: u32, options: &PlanOptions, looked_at: &Cell<usize>) -> PlanError {
    let costs = Costs::new(cost, measurements, batch, options);
    let all = 0..costs.devices.len();
    let whole = costs.fill_bytes(FillMode::Hybrid, (0, costs.layers()), 1, 1, 1);
    let roomiest = all.clone().max_by_key(|d| (costs.devices[*d].memory_budget_bytes, costs.devices[*d].storage_budget_bytes)).unwrap_or(0);
    // the whole mini-batch in one go is more than any device ever needs
    let plenty = whole.saturating_add(costs.train_fixed_bytes()).saturating_add(u64::from(costs.batch) * (costs.fill_sample_bytes(FillMode::Hybrid, 0, costs.layers()) + costs.train_sample_bytes()));
    let fits = |changed: &Measurements, cost: &ModelCost| {
        looked_at.set(looked_at.get() + 1);
        let costs = Costs::new(cost, changed, batch, options);
        is_possible(&costs) || storage::is_what_lacks(&costs) && is_possible(&costs.with_stores())
    };
    let with_more = |more: u64| {
        let mut changed = measurements.clone();
        let memory = &mut changed.devices[roomiest].memory_budget_bytes;
        *memory = memory.saturating_add(more);
        changed
    };
    let Some(missing_bytes) = least(plenty, |more| fits(&with_more(more), cost)) else {
        let offered_bytes = all.map(|d| storage::usable_bytes(&costs, d)).fold(0u64, u64::saturating_add);
        return PlanError::Storage { needed_bytes: options.cache_bytes, offered_bytes };
    };
    let mut remedies = vec![format!("{} would do if it offered {} more", costs.devices[roomiest].name, human_bytes(missing_bytes))];
    let another = |memory: u64| {
        let mut changed = measurements.clone();
        let node = NodeId(changed.devices.iter().map(|d| d.node.0).max().unwrap_or(0) + 1);
        let speeds = changed.devices.iter().map(|d| d.gflops);
        let gflops = speeds.fold(f64::INFINITY, f64::min);
        changed.devices.push(DeviceProfile { node, name: "another".into(), gflops, memory_budget_bytes: memory, storage_budget_bytes: u64::MAX / 4 });
        changed
    };
    if let Some(memory) = least(plenty, |memory| fits(&another(memory), cost)) {
        remedies.push(format!("a further device with {} would do too", human_bytes(memory)));
    }
    let smaller = WEIGHT_TYPES.iter().filter(|(bits, _)| *bits < options.weight_bits);
    let light = smaller.into_iter().find(|(bits, _)| fits(measurements, &with_weights(cost, *bits, options.weight_bits)));
    if let Some((_, name)) = light {
        remedies.push(format!("the model's weights as {name} would fit as it is"));
    }
    PlanError::Memory {
        model: options.model.clone(),
        needed_bytes: needed_alone(&costs),
        offered_bytes: costs.devices.iter().map(|d| d.memory_budget_bytes).fold(0u64, u64::saturating_add),
        missing_bytes,
        remedy: remedies.join("; "),
    }
}

/// Bytes that one device needs to do the whole job alone: the frozen layers with what is in flight of the smallest
/// micro-batches, or the adapter with the activations of a whole mini-batch.
fn needed_alone(costs: &Costs) -> u64 {
    let whole = (0, costs.layers());
    let fill = |mode: &FillMode| costs.fill_bytes(*mode, whole, costs.batch, costs.in_flight(*mode, 1, costs.batch), costs.batch);
    let train = costs.train_fixed_bytes().saturating_add(u64::from(costs.batch).saturating_mul(costs.train_sample_bytes().max(1)));
    modes(costs).iter().map(fill).min().unwrap_or(0).max(train)
}

/// About the least number up to `most` for which something that is true of all larger ones holds.
fn least(most: u64, holds: impl Fn(u64) -> bool) -> Option<u64> {
    if !holds(most) {
        return None;
    }
    let (mut low, mut high) = (0, most);
    while high - low > high / PRECISION + 1 {
        let middle = low + (high - low) / 2;
        if holds(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// The model with its frozen weights in another type. A twentieth is added to int8 and int4 for their scales.
fn with_weights(cost: &ModelCost, bits: u32, held_bits: u32) -> ModelCost {
    let mut cost = cost.clone();
    let parts = cost.layers.iter_mut().chain([&mut cost.embedding, &mut cost.head]).map(|part| &mut part.weight_bytes);
    for held in parts.chain([&mut cost.shared_bytes]) {
        let bytes = *held * u64::from(bits) / u64::from(held_bits.max(1));
        *held = if bits < 16 { bytes + bytes / 20 } else { bytes };
    }
    cost
}
