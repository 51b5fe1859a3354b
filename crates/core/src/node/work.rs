//! Which samples of a mini-batch a node computes, and between whom their rows travel.

use crate::io::Rows;
use crate::order::Slotted;
use barycenter_protocol::peer::{MicroKey, StepKey};
use barycenter_protocol::plan::{Plan, StageMember};
use barycenter_protocol::{NodeId, SampleId};

/// One node's part of a micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MicroPart {
    pub key: MicroKey,
    /// Slot order, never empty.
    pub samples: Vec<SampleId>,
    /// From the stage before, empty on the first.
    pub inputs: Vec<Rows>,
    /// To the next stage, empty on the last.
    pub outputs: Vec<Rows>,
}

/// Cuts a mini-batch into micro-batches (slot s goes to micro-batch s mod M, so that every member of a group has
/// samples in nearly every one) and finds `me`'s part of each; micro-batches without samples of `me` are left out.
pub(super) fn micro_parts(plan: &Plan, stage: usize, me: NodeId, key: StepKey, mini_batch: &[Slotted], forward_only: bool) -> Vec<MicroPart> {
    let count = plan.micro_batches.max(1);
    let neighbours = |index: Option<usize>| index.and_then(|i| plan.stages.get(i)).map_or(&[][..], |s| &s.members[..]);
    (0..count)
        .filter_map(|micro| {
            let mine: Vec<_> = mini_batch.iter().filter(|s| s.slot % count == micro && is_mine(&plan.stages[stage].members, me, s.slot)).copied().collect();
            let split = |members: &[StageMember]| -> Vec<Rows> {
                let rows = members.iter().map(|m| Rows { node: m.node, samples: mine.iter().filter(|s| m.slots.contains(&s.slot)).map(|s| s.sample).collect() });
                rows.filter(|r| !r.samples.is_empty()).collect()
            };
            let key = MicroKey { step: key, micro: micro as u16, forward_only };
            let part = MicroPart { key, samples: mine.iter().map(|s| s.sample).collect(), inputs: split(neighbours(stage.checked_sub(1))), outputs: split(neighbours(Some(stage + 1))) };
            (!part.samples.is_empty()).then_some(part)
        })
        .collect()
}

fn is_mine(members: &[StageMember], me: NodeId, slot: u32) -> bool {
    members.iter().any(|m| m.node == me && m.slots.contains(&slot))
}
