//! The invariants: what must hold after every event, of every checkpoint, and of a run that is done.
//!
//! Others hold where they could break: a sample that enters a layer twice in an epoch, or a blob used after it was dropped,
//! stops the engine; a message to a peer without a link, or to a node that is gone, stops the household.

use super::World;
use crate::engine::{Adapter, Counts};
use barycenter_core::order::SampleOrder;
use barycenter_protocol::control::{CheckpointRef, PhaseKind, RunSpec};
use barycenter_protocol::plan::StageMember;

/// More blobs than this on one device are a leak: an honest step needs a few per peer and micro-batch.
const MOST_BLOBS: usize = 200;

impl World {
    /// Each layer and slot of the plan in force, and each slot's cache entries, have an owner who is there; no device is above its memory budget. Looks at
    /// what the last event may have changed.
    pub(super) fn check(&mut self) {
        if std::mem::take(&mut self.plan_is_unchecked) {
            self.check_plan();
        }
        for device in std::mem::take(&mut self.unchecked) {
            self.check_memory(device);
        }
    }

    fn check_plan(&self) {
        let Some(plan) = self.server.as_ref().and_then(|s| s.plan()) else { return };
        let spec = &self.start.spec;
        let mut next = 0;
        for stage in &plan.stages {
            assert_eq!(stage.layers.start, next, "stages are contiguous");
            assert!(stage.layers.end > next, "a stage has layers");
            next = stage.layers.end;
            check_slots(&stage.members, spec.batch);
        }
        assert_eq!(next, spec.layers, "each layer has an owner");
        check_slots(&plan.train, spec.batch);
        check_slots(plan.keepers(), spec.batch);
        let at_work: Vec<_> = match self.phase {
            Some(PhaseKind::Fill | PhaseKind::Refill) => plan.stages.iter().flat_map(|s| &s.members).chain(&plan.stores).map(|m| m.node).collect(),
            Some(PhaseKind::Train) => plan.train.iter().chain(&plan.stores).map(|m| m.node).collect(),
            _ => Vec::new(),
        };
        for node in at_work {
            assert!(self.joined.contains(&node), "{node} is at work in the plan and is gone");
        }
    }

    fn check_memory(&mut self, device: usize) {
        let device = &self.devices[device];
        if let Some(session) = &device.session {
            let memory = session.engine.memory(&self.costs, self.start.plan.max_tokens);
            assert!(memory <= device.spec.memory_bytes, "{memory} bytes on {}, which offers {}", device.spec.name, device.spec.memory_bytes);
            self.most_blobs = self.most_blobs.max(session.engine.blobs.len());
        }
        assert!(self.most_blobs < MOST_BLOBS.max(8 * self.devices.len()), "blobs pile up");
    }

    /// Every sample of every step before the checkpoint is in every layer exactly once, and nothing else.
    pub(super) fn check_checkpoint(&self, at: &CheckpointRef, adapter: &Adapter) {
        assert!(adapter.counts == samples_before(at, &self.start.spec, &self.order), "the checkpoint {at:?} holds other samples than the steps before it");
    }

    /// What must hold of a run that is done: everything counted once, every step and held-out loss known, nothing left over.
    ///
    /// # Panics
    /// Where it does not.
    pub fn check_done(&self) {
        assert!(self.is_done());
        let spec = &self.start.spec;
        let (at, adapter) = self.stored.as_ref().expect("a checkpoint");
        let steps = spec.train_samples.div_ceil(spec.batch);
        assert_eq!((at.epoch, at.step, at.optimiser_steps), (spec.epochs, 0, spec.epochs * steps));
        self.check_checkpoint(at, adapter);
        assert!(self.snapshot.is_none(), "nothing to resume");
        for session in self.devices.iter().filter_map(|d| d.session.as_ref()) {
            assert!(session.engine.blobs.len() < 20, "blobs left over");
        }
    }

    /// How often each sample counted in each layer and epoch of the finished adapter: (layer, epoch, sample) → count.
    pub fn samples_counted(&self) -> std::collections::BTreeMap<(u32, u32, u32), u32> {
        self.stored.as_ref().map(|s| s.1.counts.clone()).unwrap_or_default()
    }
}

fn samples_before(at: &CheckpointRef, spec: &RunSpec, order: &SampleOrder) -> Counts {
    let mut expected = Counts::new();
    for epoch in 0..=at.epoch {
        let order = order.epoch(epoch);
        let steps = if epoch < at.epoch { order.steps() } else { at.step };
        for sample in (0..steps).flat_map(|step| order.mini_batch(step)) {
            expected.extend((0..spec.layers).map(|l| ((l, epoch, sample.sample.0), 1)));
        }
    }
    expected
}

fn check_slots(members: &[StageMember], batch: u32) {
    let mut next = 0;
    for member in members {
        assert_eq!(member.slots.start, next);
        next = member.slots.end;
    }
    assert_eq!(next, batch, "each slot has an owner");
}
