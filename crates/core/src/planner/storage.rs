//! Devices that keep cache entries for others.
//!
//! Only where the search finds no plan because the storage of those who can compute does not suffice. It is then asked again with
//! storage counted for the household as a whole: the pipeline fills forward-only and hands every entry on to who keeps it, and who
//! trains asks for the entries that it does not keep a step ahead.
//!
//! A train set has one assignment: everybody keeps its own slots as far as its storage goes, and what is left over goes to the
//! devices with the best links to who trains on it. With compute C (AllReduce A) and S seconds in which the busiest end of a
//! link sends or receives a step's entries, at a latency of L, a step takes
//!
//! ```text
//! max( C + A,  S,  (C + S + 2 L) / 2 )
//! ```
//!
//! the last because a step's entries are asked for when the step before the one before it has been computed.

use super::costs::{Costs, FORWARD_ONLY_AHEAD};
use super::objective::Candidate;
use super::redistribute;
use super::search::is_possible;
use super::train::TrainChoice;
use std::ops::Range;

/// A device and the slots whose entries it keeps.
pub(super) type Kept = (usize, Range<u32>);

/// Whether there would be a plan if every device had storage without limit.
pub(super) fn is_what_lacks(costs: &Costs) -> bool {
    let mut devices = costs.devices.to_vec();
    devices.iter_mut().for_each(|d| d.storage_budget_bytes = u64::MAX / 4);
    is_possible(&costs.with_devices(&devices))
}

/// Who keeps what, in the order of slots; `None`: all storage together does not suffice, or who has it lacks the memory to
/// pass entries on.
pub(super) fn assign(costs: &Costs, members: &[(usize, u32)]) -> Option<Vec<Kept>> {
    let slots_of = |d: usize| members.iter().find(|m| m.0 == d).map_or(0, |m| m.1);
    let mut free: Vec<u32> = (0..costs.devices.len()).map(|d| costs.storage_slots(d).saturating_sub(slots_of(d))).collect();
    let mut room: Vec<u32> = (0..costs.devices.len()).map(|d| pass_on_slots(costs, d, slots_of(d))).collect();
    let mut kept: Vec<Kept> = Vec::new();
    let mut start = 0;
    let mut keep = |d: usize, count: u32| {
        match kept.last_mut() {
            Some(last) if last.0 == d => last.1.end += count,
            _ if count > 0 => kept.push((d, start..start + count)),
            _ => {}
        }
        start += count;
    };
    for &(owner, slots) in members {
        let own = slots.min(costs.storage_slots(owner));
        keep(owner, own);
        let mut left = slots - own;
        let mut others: Vec<_> = (0..costs.devices.len()).filter(|d| *d != owner && free[*d].min(room[*d]) > 0).collect();
        others.sort_by(|a, b| costs.link(owner, *b).bytes_per_second.total_cmp(&costs.link(owner, *a).bytes_per_second).then(a.cmp(b)));
        for d in others {
            let count = left.min(free[d]).min(room[d]);
            keep(d, count);
            (left, free[d], room[d]) = (left - count, free[d] - count, room[d] - count);
        }
        if left > 0 {
            return None;
        }
    }
    Some(kept)
}

/// Slots whose entries a device has the memory to pass on, beside its own share; none if it has not even the memory to take in
/// entries of the smallest micro-batches.
fn pass_on_slots(costs: &Costs, d: usize, own: u32) -> u32 {
    let own_bytes = if own > 0 { costs.train_fixed_bytes() + u64::from(own) * (costs.train_sample_bytes() + costs.stream_slot_bytes()) } else { 0 };
    let memory = costs.devices[d].memory_budget_bytes;
    if take_in_bytes(costs, costs.batch) > memory {
        return 0;
    }
    u32::try_from(memory.saturating_sub(own_bytes) / costs.stream_slot_bytes().max(1)).unwrap_or(u32::MAX)
}

/// Bytes of storage that a device has the memory to make use of: as much as it offers if it can hold a layer, else what it can
/// pass on.
pub(super) fn usable_bytes(costs: &Costs, d: usize) -> u64 {
    let offered = costs.devices[d].storage_budget_bytes;
    let passed_on = u64::from(pass_on_slots(costs, d, 0)).saturating_mul(costs.cache_slot_bytes(0, costs.layers()));
    if costs.holds_a_layer(d) { offered } else { offered.min(passed_on) }
}

/// Bytes of the entries that are on their way to who keeps them while the cache is filled.
fn take_in_bytes(costs: &Costs, micro_batches: u32) -> u64 {
    let samples = costs.batch.div_ceil(micro_batches.max(1)) * (FORWARD_ONLY_AHEAD + 1).min(micro_batches);
    u64::from(samples) * costs.entries_bytes(0, costs.layers())
}

/// Slots of a mini-batch from who keeps them to who trains on them: (from, to, slots).
pub(super) fn streamed(train: &TrainChoice) -> Vec<(usize, usize, u32)> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for &(owner, slots) in &train.members {
        let own = start..start + slots;
        start += slots;
        for (keeper, kept) in train.stores.iter().filter(|(keeper, _)| *keeper != owner) {
            let common = own.end.min(kept.end).saturating_sub(own.start.max(kept.start));
            if common > 0 {
                pieces.push((*keeper, owner, common));
            }
        }
    }
    pieces
}

/// Bytes of one slot's entries, all samples, held-out ones too: what is read of them in an epoch.
pub(super) fn epoch_slot_bytes(costs: &Costs) -> f64 {
    costs.options.cache_bytes as f64 / f64::from(costs.batch)
}

/// Seconds of a step with `compute` of which everything but the AllReduce hides entries on their way.
pub(super) fn step_seconds(costs: &Costs, train: &TrainChoice, compute: f64) -> f64 {
    let per_slot = epoch_slot_bytes(costs) / f64::from(costs.options.steps_per_epoch.max(1));
    let moves: Vec<_> = streamed(train).into_iter().map(|(from, to, slots)| (from, to, f64::from(slots) * per_slot)).collect();
    if moves.is_empty() {
        return compute + train.reduce_seconds;
    }
    let (busiest, latency) = redistribute::busiest(costs, &moves);
    (compute + train.reduce_seconds).max(busiest).max((compute + busiest + 2.0 * latency) / 2.0)
}

/// Seconds by which handing the entries on takes longer than filling, once; `None`: who keeps them lacks the memory to take
/// them in beside its layers.
pub(super) fn seconds_beyond_filling(costs: &Costs, fill: &Candidate, train: &TrainChoice) -> Option<f64> {
    if train.stores.iter().any(|(keeper, _)| fill_bytes(costs, fill, train, *keeper) > costs.devices[*keeper].memory_budget_bytes) {
        return None;
    }
    let seconds = redistribute::seconds(costs, &redistribute::moves(costs, fill.mode, &fill.stages, train));
    Some((seconds - fill.seconds * f64::from(costs.options.steps_per_epoch.max(1))).max(0.0))
}

/// Bytes of a device while the cache is filled: its stage, and what it takes in to keep.
pub(super) fn fill_bytes(costs: &Costs, fill: &Candidate, train: &TrainChoice, d: usize) -> u64 {
    let count = fill.stages.len();
    let place = fill.stages.iter().enumerate().find_map(|(i, s)| s.members.iter().find(|m| m.0 == d).map(|m| (i, s, m.1)));
    let stage = place.map_or(0, |(i, s, slots)| {
        let in_flight = costs.in_flight(fill.mode, count - i, fill.micro_batches);
        costs.fill_bytes(fill.mode, (s.from, s.to), slots, in_flight, fill.micro_batches)
    });
    stage + if train.stores.iter().any(|kept| kept.0 == d) { take_in_bytes(costs, fill.micro_batches) } else { 0 }
}

/// Bytes of a device in the train phase: its share, and what it streams to itself and to others.
pub(super) fn train_bytes(costs: &Costs, train: &TrainChoice, d: usize) -> u64 {
    let share = train.members.iter().find(|m| m.0 == d).map_or(0, |m| costs.train_fixed_bytes() + u64::from(m.1) * costs.train_sample_bytes());
    let slots: u32 = streamed(train).into_iter().filter(|(from, to, _)| *from == d || *to == d).map(|piece| piece.2).sum();
    share + u64::from(slots) * costs.stream_slot_bytes()
}
