//! What every trainer on one computer does in an epoch: its steps, and the held-out rows.

use super::{Job, check_loss};
use super::cache::Cache;
use anyhow::Result;
use barycenter_core::order::EpochOrder;
use barycenter_engine::packed::MicroBatch;
use barycenter_engine::tape::no_yield;
use barycenter_engine::trainer::{self, SampleEntries, Trainer};
use std::time::Instant;

/// The entries of some samples, by their numbers; none where nothing is kept.
pub(super) fn entries_of(cache: Option<&Cache>, ids: &[usize]) -> Result<Option<Vec<SampleEntries>>> {
    cache.map(|cache| ids.iter().map(|&id| cache.entries(id)).collect()).transpose()
}

/// The optimiser steps of an epoch; the loss of each goes to `losses`. Returns its seconds and the mean loss of a label.
pub(super) async fn train(job: &Job<'_>, trainer: &mut dyn Trainer, cache: Option<&Cache>, order: &EpochOrder, losses: &mut Vec<f32>) -> Result<(f64, f64)> {
    let began = Instant::now();
    let (mut sum, mut labels) = (0.0, 0);
    for step in 0..order.steps() {
        let ids: Vec<usize> = order.mini_batch(step).iter().map(|slotted| slotted.sample.0 as usize).collect();
        let labelled: usize = ids.iter().map(|&id| job.data.samples[id].sequence.labels.len()).sum();
        let pieces = ids.chunks(job.micro_batch()).map(|ids| anyhow::Ok((batch_of(job, ids), entries_of(cache, ids)?)));
        let loss = trainer::step_in_pieces(trainer, labelled, pieces, &no_yield()).await?.loss;
        check_loss(loss.into(), losses.len(), &job.spec)?;
        losses.push(loss);
        sum += f64::from(loss) * labelled as f64;
        labels += labelled;
    }
    Ok((began.elapsed().as_secs_f64(), sum / labels.max(1) as f64))
}

/// The held-out rows in batches, with the numbers of their samples.
pub(super) fn held_out<'a>(job: &'a Job<'_>) -> impl Iterator<Item = (Vec<usize>, MicroBatch)> + 'a {
    let ids: Vec<usize> = (job.data.train..job.data.samples.len()).collect();
    let batches: Vec<Vec<usize>> = ids.chunks(job.micro_batch()).map(<[usize]>::to_vec).collect();
    batches.into_iter().map(|ids| {
        let batch = batch_of(job, &ids);
        (ids, batch)
    })
}

fn batch_of(job: &Job<'_>, ids: &[usize]) -> MicroBatch {
    MicroBatch::of(ids.iter().map(|&id| &job.data.samples[id]))
}
