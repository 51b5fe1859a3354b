//! The train phase: which devices share the mini-batch.

use super::costs::{Costs, JOB_SECONDS};
use super::shares::shares;
use super::storage::{self, Kept};
use std::collections::BTreeSet;

/// All subsets of so many devices are compared (255 of them).
pub(super) const ALL_SUBSETS: usize = 8;
/// Of more devices, so many of the best sets are kept for the choice together with the pipeline.
const KEPT: usize = 12;
/// Improvements of the best set by one device more or less that are tried at most.
const IMPROVEMENTS: usize = 400;

/// A set of devices with their shares and the step's prediction.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TrainChoice {
    /// (device, slots), by device.
    pub members: Vec<(usize, u32)>,
    pub seconds: f64,
    /// Part of it that is AllReduce.
    pub reduce_seconds: f64,
    /// Who keeps which slots' entries, if not everybody its own.
    pub stores: Vec<Kept>,
}

impl TrainChoice {
    /// Who keeps the entries of how many slots, in the order of slots.
    pub fn keepers(&self) -> Vec<(usize, u32)> {
        if self.stores.is_empty() { self.members.clone() } else { self.stores.iter().map(|(d, slots)| (*d, slots.end - slots.start)).collect() }
    }
}

/// Sets of devices, the fastest step first. With `use_all_nodes` only the set of all, if it can be.
pub(super) fn train_choices(costs: &Costs) -> Vec<TrainChoice> {
    let all: Vec<_> = (0..costs.devices.len()).collect();
    if costs.options.use_all_nodes
        && let Some(everybody) = train_choice(costs, &all)
    {
        return vec![everybody];
    }
    let able: Vec<_> = all.into_iter().filter(|d| costs.train_slots(*d) > 0).collect();
    let mut choices = if able.len() <= ALL_SUBSETS { subsets(costs, &able) } else { likely_sets(costs, &able) };
    choices.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.members.len().cmp(&b.members.len())));
    choices
}

/// One set (ascending): shares in proportion to speed, AllReduce among them.
pub(super) fn train_choice(costs: &Costs, set: &[usize]) -> Option<TrainChoice> {
    let speeds: Vec<_> = set.iter().map(|d| costs.speed(*d)).collect();
    let caps: Vec<_> = set.iter().map(|d| costs.train_slots(*d)).collect();
    let slots = shares(&speeds, &caps, costs.batch, costs.options.use_all_nodes)?;
    let members: Vec<_> = set.iter().copied().zip(slots).collect();
    let slowest = members.iter().map(|&(d, slots)| costs.train_seconds(d, f64::from(slots))).fold(0.0, f64::max);
    let reduce_seconds = costs.all_reduce(set.iter().copied(), costs.adapter_parameters(0, costs.layers()));
    let choice = TrainChoice { members, seconds: slowest + reduce_seconds, reduce_seconds, stores: Vec::new() };
    if !costs.stores {
        return Some(choice);
    }
    let choice = TrainChoice { stores: storage::assign(costs, &choice.members)?, ..choice };
    Some(TrainChoice { seconds: storage::step_seconds(costs, &choice, slowest), ..choice })
}

fn subsets(costs: &Costs, able: &[usize]) -> Vec<TrainChoice> {
    let set = |mask: u32| able.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0).map(|(_, d)| *d).collect::<Vec<_>>();
    (1u32..1 << able.len()).filter_map(|mask| train_choice(costs, &set(mask))).collect()
}

/// The fastest k of all devices and of those with good links to the fastest one, for many k; then the best of these with
/// one device more or less as long as that helps; and every device alone that is among the fastest.
fn likely_sets(costs: &Costs, able: &[usize]) -> Vec<TrainChoice> {
    let mut fastest = able.to_vec();
    fastest.sort_by(|a, b| costs.speed(*b).total_cmp(&costs.speed(*a)).then(a.cmp(b)));
    let first = fastest[0];
    let bandwidth = |d: usize| if d == first { f64::INFINITY } else { costs.link(first, d).bytes_per_second };
    let mut bandwidths: Vec<_> = fastest[1..].iter().map(|d| bandwidth(*d)).collect();
    bandwidths.sort_by(f64::total_cmp);
    let mut seen = BTreeSet::new();
    let mut choices = Vec::new();
    let mut consider = |mut set: Vec<usize>, choices: &mut Vec<TrainChoice>| {
        set.sort();
        if seen.insert(set.clone()) {
            choices.extend(train_choice(costs, &set));
        }
    };
    for quarter in 0..4 {
        let threshold = bandwidths[bandwidths.len() * quarter / 4];
        let well_linked: Vec<_> = fastest.iter().copied().filter(|d| bandwidth(*d) >= threshold).collect();
        let most = well_linked.len().min(costs.batch as usize);
        let mut k = 1;
        while k <= most {
            consider(well_linked[..k].to_vec(), &mut choices);
            k += 1 + k / 8;
        }
    }
    for d in fastest.iter().take(KEPT) {
        consider(vec![*d], &mut choices);
    }
    let best = |choices: &[TrainChoice]| choices.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds)).cloned();
    let mut tried = 0;
    while let Some(before) = best(&choices) {
        let members: Vec<_> = before.members.iter().map(|m| m.0).collect();
        for d in fastest.iter().take(4 * KEPT) {
            tried += 1;
            let set = if members.contains(d) { members.iter().copied().filter(|m| m != d).collect() } else { [&members[..], &[*d]].concat() };
            if !set.is_empty() {
                consider(set, &mut choices);
            }
        }
        if tried >= IMPROVEMENTS || best(&choices).is_none_or(|after| after.seconds >= before.seconds) {
            break;
        }
    }
    choices.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    choices.truncate(KEPT);
    choices
}

/// No set makes a faster step than this: of each size, the fastest devices of that number share the work without
/// rounding, and the AllReduce takes what it takes at least on that number of devices, each with its own best links.
pub(super) fn train_bound(costs: &Costs) -> f64 {
    let able: Vec<_> = (0..costs.devices.len()).filter(|d| costs.train_slots(*d) > 0).collect();
    let mut speeds: Vec<_> = able.iter().map(|d| costs.speed(*d)).collect();
    speeds.sort_by(|a, b| b.total_cmp(a));
    let most = able.len().min(costs.batch as usize);
    // per device the seconds per byte of its k best links together
    let mut latency = f64::INFINITY;
    let best_links: Vec<Vec<f64>> = able
        .iter()
        .map(|&a| {
            let mut links: Vec<_> = able.iter().filter(|b| **b != a).map(|b| 1.0 / costs.link(a, *b).bytes_per_second).collect();
            latency = able.iter().filter(|b| **b != a).map(|b| costs.link(a, *b).latency).fold(latency, f64::min);
            links.sort_by(f64::total_cmp);
            links.iter().take(most).scan(0.0, |sum, link| { *sum += link; Some(*sum) }).collect()
        })
        .collect();
    let gradient = costs.gradients.wire_bytes(costs.adapter_parameters(0, costs.layers())) as f64;
    let work = f64::from(costs.batch) * costs.train_sample_flops();
    let mut speed = 0.0;
    let by_size = speeds.iter().enumerate().take(most).map(|(i, own)| {
        speed += own;
        let reduce = if i == 0 {
            0.0
        } else {
            // of k devices one at least has no better links than the k-th best of all has
            let mut sums: Vec<_> = best_links.iter().map(|sums| sums[i - 1]).collect();
            let (_, busiest, _) = sums.select_nth_unstable_by(i, f64::total_cmp);
            2.0 * (latency + *busiest * gradient / (i + 1) as f64 + JOB_SECONDS)
        };
        3.0 * JOB_SECONDS + work / speed + reduce
    });
    by_size.fold(f64::INFINITY, f64::min)
}
