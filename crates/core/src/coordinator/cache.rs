//! Who holds which cache entries, what is missing, and what has to travel.

use crate::order::SampleOrder;
use barycenter_protocol::control::{CacheSend, Holding, RunSpec};
use barycenter_protocol::plan::{Plan, StageMember};
use barycenter_protocol::{NodeId, SampleId};
use std::collections::BTreeMap;
use std::ops::Range;

/// Taps held of every sample, as bits.
pub(super) type Held = Vec<u128>;

/// Most layers a run may have: taps 0 ..= L are bits of a u128.
pub(super) const MAX_LAYERS: u32 = 127;

/// All samples of a run.
pub(super) fn samples(spec: &RunSpec) -> u32 {
    spec.train_samples + spec.held_out_samples
}

/// All taps of a sample.
pub(super) fn all_taps(spec: &RunSpec) -> u128 {
    bits(&(0..spec.tap_count()))
}

fn bits(taps: &Range<u32>) -> u128 {
    let below = |n: u32| if n >= 128 { u128::MAX } else { (1u128 << n) - 1 };
    below(taps.end) & !below(taps.start)
}

/// A node's report as bits; what is out of range is left out.
pub(super) fn held(spec: &RunSpec, holdings: &[Holding]) -> Held {
    let mut held = vec![0u128; samples(spec) as usize];
    let all = all_taps(spec);
    for holding in holdings {
        for range in &holding.samples {
            let (start, end) = (range.start.min(samples(spec)) as usize, range.end.min(samples(spec)) as usize);
            for sample in held.get_mut(start..end).unwrap_or_default() {
                *sample |= bits(&holding.taps) & all;
            }
        }
    }
    held
}

/// Notes that some taps of a sample are held.
pub(super) fn note(held: &mut Held, sample: SampleId, taps: &Range<u32>) {
    if let Some(held) = held.get_mut(sample.0 as usize) {
        *held |= bits(taps);
    }
}

/// What these nodes hold together.
pub(super) fn union<'a>(spec: &RunSpec, nodes: impl Iterator<Item = &'a Held>) -> Held {
    let mut union = vec![0; samples(spec) as usize];
    for held in nodes {
        union.iter_mut().zip(held).for_each(|(u, h)| *u |= h);
    }
    union
}

/// Samples of which some tap is held by none of these nodes.
pub(super) fn missing<'a>(spec: &RunSpec, nodes: impl Iterator<Item = &'a Held>) -> Vec<SampleId> {
    let all = all_taps(spec);
    union(spec, nodes).iter().enumerate().filter(|(_, taps)| **taps != all).map(|(i, _)| SampleId(i as u32)).collect()
}

/// What each node sends, and the number of entries each receives, so that who keeps a sample's entries has all its taps.
pub(super) fn transfers(spec: &RunSpec, plan: &Plan, order: &SampleOrder, nodes: &BTreeMap<NodeId, &Held>) -> BTreeMap<NodeId, (Vec<CacheSend>, u64)> {
    let mut groups: BTreeMap<(NodeId, NodeId, u32, u32), Vec<SampleId>> = BTreeMap::new();
    let mut load: BTreeMap<NodeId, u64> = BTreeMap::new();
    let all = all_taps(spec);
    for member in plan.keepers() {
        let owned = [order.train_samples_of(&member.slots), order.held_out_samples_of(&member.slots, spec.held_out_samples)].concat();
        for sample in owned {
            let has = |node: &NodeId| nodes.get(node).and_then(|h| h.get(sample.0 as usize)).copied().unwrap_or(0);
            let mut need = all & !has(&member.node);
            while need != 0 {
                let holders = nodes.keys().filter(|n| **n != member.node && has(n) & need != 0);
                let Some(&holder) = holders.min_by_key(|n| (load.get(n).copied().unwrap_or(0), **n)) else { break };
                let mut take = has(&holder) & need;
                need &= !take;
                while take != 0 {
                    let start = take.trailing_zeros();
                    let length = (take >> start).trailing_ones();
                    take &= !bits(&(start..start + length));
                    groups.entry((holder, member.node, start, start + length)).or_default().push(sample);
                    *load.entry(holder).or_default() += u64::from(length);
                }
            }
        }
    }
    let mut result: BTreeMap<NodeId, (Vec<CacheSend>, u64)> = BTreeMap::new();
    for ((from, to, start, end), samples) in groups {
        result.entry(to).or_default().1 += samples.len() as u64 * u64::from(end - start);
        result.entry(from).or_default().0.push(CacheSend { to, samples, taps: start..end });
    }
    result
}

/// How many entries of these samples each node gets from others to keep, while the pipeline computes them in the order given.
pub(super) fn deliveries(spec: &RunSpec, plan: &Plan, order: &SampleOrder, samples: &[SampleId]) -> BTreeMap<NodeId, u64> {
    let mut expected: BTreeMap<NodeId, u64> = plan.stores.iter().map(|m| (m.node, 0)).collect();
    for (at, sample) in (0u32..).zip(samples) {
        let Some(keeper) = plan.keeper_for_others(order.slot_of(*sample)) else { continue };
        for stage in &plan.stages {
            let computes = |m: &StageMember| m.slots.contains(&(at % spec.batch.max(1)));
            if stage.members.iter().any(|m| computes(m) && m.node != keeper) {
                *expected.entry(keeper).or_default() += spec.taps_of(&stage.layers).len() as u64;
            }
        }
    }
    expected
}
