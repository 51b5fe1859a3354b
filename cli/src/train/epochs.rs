//! What every trainer on one computer does in an epoch: its steps, and the held-out rows.

use super::Job;
use anyhow::Result;
use barycenter_core::order::EpochOrder;
use barycenter_engine::packed::MicroBatch;
use barycenter_engine::tape::no_yield;
use barycenter_engine::trainer::{self, SampleEntries, Trainer};
use std::time::Instant;

/// The entries of some samples, by their numbers; none where nothing is kept.
pub(super) fn entries_of(cache: Option<&[SampleEntries]>, ids: &[usize]) -> Option<Vec<SampleEntries>> {
    cache.map(|cache| ids.iter().map(|&id| cache[id].clone()).collect())
}

/// Bytes of a cache.
pub(super) fn cache_bytes(cache: Option<&[SampleEntries]>) -> usize {
    cache.unwrap_or_default().iter().flat_map(|of_sample| of_sample.iter()).map(Vec::len).sum()
}

/// The optimiser steps of an epoch; the loss of each goes to `losses`. Returns its seconds and the mean loss of a label.
pub(super) async fn train(job: &Job<'_>, trainer: &mut dyn Trainer, cache: Option<&[SampleEntries]>, order: &EpochOrder, losses: &mut Vec<f32>) -> Result<(f64, f64)> {
    let began = Instant::now();
    let (mut sum, mut labels) = (0.0, 0);
    for step in 0..order.steps() {
        let ids: Vec<usize> = order.mini_batch(step).iter().map(|slotted| slotted.sample.0 as usize).collect();
        let batch = MicroBatch::of(ids.iter().map(|&id| &job.data.samples[id]));
        let loss = trainer::step(trainer, &batch, entries_of(cache, &ids).as_deref(), &no_yield()).await?.loss;
        losses.push(loss);
        sum += f64::from(loss) * batch.classes.len() as f64;
        labels += batch.classes.len();
    }
    Ok((began.elapsed().as_secs_f64(), sum / labels.max(1) as f64))
}

/// The held-out rows in batches, with the numbers of their samples.
pub(super) fn held_out<'a>(job: &'a Job<'_>) -> impl Iterator<Item = (Vec<usize>, MicroBatch)> + 'a {
    let ids: Vec<usize> = (job.data.train..job.data.samples.len()).collect();
    let batches: Vec<Vec<usize>> = ids.chunks(job.spec.batch as usize).map(<[usize]>::to_vec).collect();
    batches.into_iter().map(|ids| {
        let batch = MicroBatch::of(ids.iter().map(|&id| &job.data.samples[id]));
        (ids, batch)
    })
}
