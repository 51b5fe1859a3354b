//! Planner: who holds which layers, and which share, from measured speeds, memory and links.
//!
//! Fill: the paper's dynamic programme (`planner/search.rs`). Train: the set of devices whose shares in proportion to speed,
//! with the AllReduce among them, give the shortest step. The best single device is always a candidate, so that a
//! plan is never predicted to be slower than it, unless the options ask for more stages or for everybody.

mod costs;
mod search;
#[cfg(test)]
mod tests;

use barycenter_protocol::NodeId;
use barycenter_protocol::control::Measurements;
use barycenter_protocol::plan::{DeviceReason, ModelCost, Plan, Stage, StageMember};
use costs::{Costs, shares};
use search::{Candidate, best_pipeline};
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
    #[error("{model} needs {} of memory over all devices in pieces that fit, and {} are offered: at least {} are missing; join another device or let one give more memory", human_bytes(*needed_bytes), human_bytes(*offered_bytes), human_bytes(*missing_bytes))]
    Memory {
        /// Model.
        model: String,
        /// Needed.
        needed_bytes: u64,
        /// Offered.
        offered_bytes: u64,
        /// Missing on the roomiest device.
        missing_bytes: u64,
    },
    /// Not enough storage.
    #[error("the cache of this run takes {}, and the devices with memory for a part of the model offer to store {}: join a device with more storage, or choose less data", human_bytes(*needed_bytes), human_bytes(*offered_bytes))]
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

struct TrainChoice {
    members: Vec<(usize, u32)>,
    seconds: f64,
}

/// Chooses a plan for mini-batches of `batch` samples.
pub fn plan(cost: &ModelCost, measurements: &Measurements, batch: u32, options: &PlanOptions) -> Result<Plan, PlanError> {
    if measurements.devices.is_empty() {
        return Err(PlanError::NoDevices);
    }
    let mut measurements = measurements.clone();
    measurements.devices.sort_by_key(|d| d.node);
    let costs = Costs::new(cost, &measurements, batch, options);
    let all: Vec<_> = (0..costs.devices.len()).collect();
    let train = best_train(&costs, &all).ok_or_else(|| space_error(&costs, costs.train_fixed_bytes() + costs.train_sample_bytes()))?;
    let wanted = (options.min_stages.max(1) as usize).min(all.len()).min(costs.layers());
    let fill = (options.use_all_nodes.then(|| best_pipeline(&costs, &all, wanted, false)).flatten())
        .or_else(|| best_pipeline(&costs, &all, wanted, true))
        .or_else(|| best_pipeline(&costs, &all, 1, true))
        .ok_or_else(|| space_error(&costs, costs.fill_fixed_bytes(0, costs.layers()) + costs.fill_sample_bytes(0, costs.layers())))?;
    let single = all.iter().filter_map(|d| best_pipeline(&costs, &[*d], 1, true)).map(|c| c.seconds).fold(f64::INFINITY, f64::min);
    Ok(describe(&costs, fill, train, single))
}

/// Of all sets of up to 8 devices (of more: the fastest k), the one with the shortest step.
fn best_train(costs: &Costs, all: &[usize]) -> Option<TrainChoice> {
    let sets: Vec<Vec<usize>> = if all.len() <= 8 {
        (1u32..1 << all.len()).map(|mask| all.iter().copied().filter(|d| mask & (1 << d) != 0).collect()).collect()
    } else {
        let mut fastest = all.to_vec();
        fastest.sort_by(|a, b| costs.devices[*b].gflops.total_cmp(&costs.devices[*a].gflops).then(a.cmp(b)));
        (1..=all.len()).map(|k| fastest[..k].to_vec()).collect()
    };
    let choices = sets.into_iter().filter_map(|set| train_choice(costs, set));
    let everybody = if costs.options.use_all_nodes { train_choice(costs, all.to_vec()) } else { None };
    everybody.or_else(|| choices.min_by(|a, b| a.seconds.total_cmp(&b.seconds)))
}

fn train_choice(costs: &Costs, mut set: Vec<usize>) -> Option<TrainChoice> {
    set.sort();
    let speeds: Vec<_> = set.iter().map(|d| costs.devices[*d].gflops.max(1e-3)).collect();
    let caps: Vec<u32> = set.iter().map(|d| costs.train_slots(*d)).collect();
    let slots = shares(&speeds, &caps, costs.batch, costs.options.use_all_nodes)?;
    let members: Vec<_> = set.iter().copied().zip(slots).collect();
    let slowest = members.iter().map(|&(d, slots)| costs.train_seconds(d, f64::from(slots))).fold(0.0, f64::max);
    let seconds = slowest + costs.all_reduce(&set, costs.adapter_parameters(0, costs.layers()));
    Some(TrainChoice { members, seconds })
}

/// What is missing: storage, if those with memory for a layer offer too little of it for the cache; else memory.
fn space_error(costs: &Costs, needed: u64) -> PlanError {
    let able: Vec<_> = (0..costs.devices.len()).filter(|d| costs.group_fits(*d)).collect();
    let offered = able.iter().map(|d| costs.devices[*d].storage_budget_bytes).fold(0u64, u64::saturating_add);
    if !able.is_empty() && offered < costs.options.cache_bytes {
        return PlanError::Storage { needed_bytes: costs.options.cache_bytes, offered_bytes: offered };
    }
    memory_error(costs, needed)
}

fn memory_error(costs: &Costs, needed: u64) -> PlanError {
    let offered = costs.devices.iter().map(|d| d.memory_budget_bytes).fold(0u64, u64::saturating_add);
    let roomiest = costs.devices.iter().map(|d| d.memory_budget_bytes).max().unwrap_or(0);
    let missing = if needed > offered { needed - offered } else { needed.saturating_sub(roomiest).max(1) };
    PlanError::Memory { model: costs.options.model.clone(), needed_bytes: needed, offered_bytes: offered, missing_bytes: missing }
}

fn describe(costs: &Costs, fill: Candidate, train: TrainChoice, single: f64) -> Plan {
    let node = |d: usize| costs.devices[d].node;
    let members = |list: &[(usize, u32)]| -> Vec<StageMember> {
        let mut start = 0;
        list.iter()
            .map(|&(d, slots)| {
                start += slots;
                StageMember { node: node(d), slots: start - slots..start }
            })
            .collect()
    };
    let stages: Vec<_> = fill.stages.iter().map(|s| Stage { layers: s.from as u32..s.to as u32, members: members(&s.members) }).collect();
    let reasons = (0..costs.devices.len()).map(|d| reason(costs, &fill, &train, single, d)).collect();
    Plan {
        stages,
        micro_batches: fill.micro_batches,
        train: members(&train.members),
        fill_step_seconds: fill.seconds,
        train_step_seconds: train.seconds,
        single_device_fill_step_seconds: if single.is_finite() { single } else { 0.0 },
        reasons,
    }
}

fn reason(costs: &Costs, fill: &Candidate, train: &TrainChoice, single: f64, d: usize) -> DeviceReason {
    let device = &costs.devices[d];
    let count = fill.stages.len();
    let place = fill.stages.iter().enumerate().find_map(|(i, s)| s.members.iter().find(|m| m.0 == d).map(|m| (i, s, m.1)));
    let fill_memory_bytes = place.map_or(0, |(i, s, slots)| costs.fill_bytes(s.from, s.to, slots, (count - i) as u32, fill.micro_batches));
    let in_train = train.members.iter().find(|m| m.0 == d).map(|m| m.1);
    let train_memory_bytes = in_train.map_or(0, |slots| costs.train_fixed_bytes() + u64::from(slots) * costs.train_sample_bytes());
    let speed = format!("{:.0} GFLOP/s", device.gflops);
    let first = match place {
        Some((_, s, _)) if count == 1 && s.members.len() == 1 && costs.devices.len() > 1 && single <= fill.seconds * 1.0001 => {
            format!("{} ({speed}) fills the cache alone: with the others a step would not be faster", device.name)
        }
        Some((_, s, _)) if count == 1 && s.members.len() == 1 => format!("{} ({speed}) holds all {} layers", device.name, s.to),
        Some((i, s, slots)) => {
            let share = if s.members.len() > 1 { format!(" for {slots} of {} samples", costs.batch) } else { String::new() };
            format!("{} ({speed}) holds layers {}–{}{share} as stage {} of {count}, {} of its {}", device.name, s.from + 1, s.to, i + 1, human_bytes(fill_memory_bytes), human_bytes(device.memory_budget_bytes))
        }
        None if costs.cache_slot_bytes(1, 2).saturating_mul(u64::from(costs.batch)) > device.storage_budget_bytes => {
            format!("{} holds no layers: the {} it offers to store are too few for a layer's part of the cache", device.name, human_bytes(device.storage_budget_bytes))
        }
        None if costs.group_fits(d) => format!("{} ({speed}) holds no layers: it would slow the others down", device.name),
        None => format!("{} holds no layers: its {} of memory take none beside the others", device.name, human_bytes(device.memory_budget_bytes)),
    };
    let second = match in_train {
        Some(slots) => format!("then trains {slots} of {} samples from the cache", costs.batch),
        None if costs.train_slots(d) == 0 => "then rests: it has too little memory or storage for a share of the cache".to_owned(),
        None => "then rests: exchanging gradients with it would take longer than it saves".to_owned(),
    };
    DeviceReason { node: device.node, reason: format!("{first}; {second}."), fill_memory_bytes, train_memory_bytes }
}

impl Costs<'_> {
    /// Whether a device has the memory for at least one layer in the middle.
    fn group_fits(&self, d: usize) -> bool {
        let middle = self.layers() / 2;
        self.fill_fixed_bytes(middle, middle + 1) + self.fill_sample_bytes(middle, middle + 1) <= self.devices[d].memory_budget_bytes
    }
}

/// The largest set of nodes linked among each other: whoever has the fewest links goes first (then the slower).
pub fn linked_subset(measurements: &Measurements) -> Measurements {
    let linked = |a: NodeId, b: NodeId| measurements.links.iter().any(|l| (l.a, l.b) == (a, b) || (l.b, l.a) == (a, b));
    let mut devices = measurements.devices.clone();
    loop {
        let count = |n: NodeId| devices.iter().filter(|d| d.node != n && linked(d.node, n)).count();
        let Some(worst) = devices.iter().min_by(|a, b| count(a.node).cmp(&count(b.node)).then(a.gflops.total_cmp(&b.gflops)).then(b.node.cmp(&a.node))) else { break };
        if count(worst.node) + 1 >= devices.len() {
            break;
        }
        let node = worst.node;
        devices.retain(|d| d.node != node);
    }
    let stays = |n: NodeId| devices.iter().any(|d| d.node == n);
    let links = measurements.links.iter().filter(|l| stays(l.a) && stays(l.b)).copied().collect();
    Measurements { devices, links }
}
