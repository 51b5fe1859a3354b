//! The order in which samples are trained on: a function of the seed alone, never of the devices.
//!
//! A seeded permutation deals the N training samples into B slots. In epoch e each slot's samples are permuted by
//! (seed, e, slot); mini-batch t is the t-th sample of every slot that still has one. A device's share is a set of
//! slots, so that it owns the same samples in every epoch and cache entries never move.

use barycenter_protocol::SampleId;
use barycenter_protocol::control::RunSpec;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::ops::Range;

/// Samples dealt into slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    seed: u64,
    train_samples: u32,
    batch: u32,
    slots: Vec<Vec<SampleId>>,
    slot_of: Vec<u32>,
}

/// The order of one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochOrder {
    slots: Vec<Vec<SampleId>>,
}

/// A sample of a mini-batch at its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slotted {
    /// Position within the mini-batch.
    pub slot: u32,
    /// Which sample.
    pub sample: SampleId,
}

impl SampleOrder {
    /// For `train_samples` samples in mini-batches of `batch` (at least 1).
    pub fn new(train_samples: u32, batch: u32, seed: u64) -> Self {
        let batch = batch.max(1);
        let mut order: Vec<_> = (0..train_samples).map(SampleId).collect();
        shuffle(&mut order, &mut stream(seed, u32::MAX, u32::MAX));
        let mut slots = vec![Vec::new(); batch as usize];
        let mut slot_of = vec![0; train_samples as usize];
        for (i, &sample) in order.iter().enumerate() {
            let slot = i as u32 % batch;
            slots[slot as usize].push(sample);
            slot_of[sample.0 as usize] = slot;
        }
        Self { seed, train_samples, batch, slots, slot_of }
    }

    /// For a run.
    pub fn of(spec: &RunSpec) -> Self {
        Self::new(spec.train_samples, spec.batch, spec.seed)
    }

    /// Order of an epoch.
    pub fn epoch(&self, epoch: u32) -> EpochOrder {
        let mut slots = self.slots.clone();
        for (slot, samples) in slots.iter_mut().enumerate() {
            shuffle(samples, &mut stream(self.seed, epoch, slot as u32));
        }
        EpochOrder { slots }
    }

    /// Slot of a sample; held-out samples are dealt in the order of their ids.
    pub fn slot_of(&self, sample: SampleId) -> u32 {
        match self.slot_of.get(sample.0 as usize) {
            Some(&slot) => slot,
            None => (sample.0 - self.train_samples) % self.batch,
        }
    }

    /// Training samples of some slots, ascending.
    pub fn train_samples_of(&self, slots: &Range<u32>) -> Vec<SampleId> {
        let mut samples: Vec<_> = self.slots.iter().enumerate().filter(|(i, _)| slots.contains(&(*i as u32))).flat_map(|(_, s)| s.iter().copied()).collect();
        samples.sort();
        samples
    }

    /// Held-out samples of some slots, ascending.
    pub fn held_out_samples_of(&self, slots: &Range<u32>, held_out_samples: u32) -> Vec<SampleId> {
        (self.train_samples..self.train_samples + held_out_samples).map(SampleId).filter(|s| slots.contains(&self.slot_of(*s))).collect()
    }
}

impl EpochOrder {
    /// Number of mini-batches.
    pub fn steps(&self) -> u32 {
        self.slots.iter().map(|s| s.len() as u32).max().unwrap_or(0)
    }

    /// Mini-batch `step`, ascending slots.
    pub fn mini_batch(&self, step: u32) -> Vec<Slotted> {
        self.slots.iter().enumerate().filter_map(|(slot, samples)| samples.get(step as usize).map(|&sample| Slotted { slot: slot as u32, sample })).collect()
    }
}

/// The generator of one permutation: seed, epoch and slot side by side in the 32-byte state.
fn stream(seed: u64, epoch: u32, slot: u32) -> Pcg64 {
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..12].copy_from_slice(&epoch.to_le_bytes());
    bytes[12..16].copy_from_slice(&slot.to_le_bytes());
    bytes[16..].copy_from_slice(b"barycenter order");
    let mut generator = Pcg64::from_seed(bytes);
    for _ in 0..8 {
        generator.next_u64(); // a PCG's first outputs are close for close seeds
    }
    generator
}

/// Fisher–Yates, written out so that the order is pinned by this file.
fn shuffle<T>(items: &mut [T], generator: &mut Pcg64) {
    for i in (1..items.len()).rev() {
        let j = ((u128::from(generator.next_u64()) * (i as u128 + 1)) >> 64) as usize;
        items.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_epoch_is_a_permutation_with_one_sample_per_slot(n in 0u32..300, batch in 1u32..40, seed: u64, epoch in 0u32..5) {
            let order = SampleOrder::new(n, batch, seed);
            let epoch = order.epoch(epoch);
            prop_assert_eq!(epoch.steps(), n.div_ceil(batch));
            let mut seen = BTreeSet::new();
            for step in 0..epoch.steps() {
                let mini_batch = epoch.mini_batch(step);
                prop_assert_eq!(mini_batch.len() as u32, batch.min(n - step * batch));
                prop_assert!(mini_batch.windows(2).all(|w| w[0].slot < w[1].slot));
                for s in mini_batch {
                    prop_assert_eq!(order.slot_of(s.sample), s.slot);
                    prop_assert!(seen.insert(s.sample));
                }
            }
            prop_assert_eq!(seen.len() as u32, n);
        }

        #[test]
        fn shares_are_a_partition_however_the_slots_are_split(n in 1u32..200, held in 0u32..50, batch in 1u32..17, cut in 0u32..17, seed: u64) {
            let order = SampleOrder::new(n, batch, seed);
            let cut = cut.min(batch);
            let mut all = [order.train_samples_of(&(0..cut)), order.train_samples_of(&(cut..batch)), order.held_out_samples_of(&(0..cut), held), order.held_out_samples_of(&(cut..batch), held)].concat();
            all.sort();
            prop_assert_eq!(all, (0..n + held).map(SampleId).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_of_a_seed_is_pinned() {
        let order = SampleOrder::new(10, 4, 7);
        let epoch = |e| (0..3).map(|t| order.epoch(e).mini_batch(t).iter().map(|s| s.sample.0).collect::<Vec<_>>()).collect::<Vec<_>>();
        assert_eq!(epoch(0), epoch(0));
        assert_ne!(epoch(0), epoch(1));
        assert_ne!(SampleOrder::new(10, 4, 8), order);
    }
}
