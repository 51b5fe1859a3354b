//! What all trainers on one device share: loss, answers and optimiser steps on one mini-batch.

use crate::EngineError;
use crate::backbone::Head;
use crate::loss::{labelled_loss, logits};
use crate::optim::{AdamW, clip_factor};
use crate::packed::MicroBatch;
use crate::params::ParameterSet;
use crate::tape::{Tape, Var, YieldHook};
use crate::tensor::Device;
use crate::train_full::{FullTraining, StepReport};
use barycenter_model::RawTensor;
use futures::future::LocalBoxFuture;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The cache entries of one sample: one for each activation that is kept of it. A clone is a handle of the same bytes.
pub type SampleEntries = Rc<Vec<Vec<u8>>>;

/// A model with something trained in it or beside it.
pub trait Trainer {
    /// The head that the loss is taken with.
    fn head(&self) -> Result<&Head, EngineError>;
    /// Everything that is trained, in the order of [`Optimiser::new`].
    fn sets(&self) -> Vec<&ParameterSet>;
    /// Flat vectors of the sets, values or gradients, as tensors by the names that files have.
    fn named(&self, flats: &[Vec<f32>]) -> Result<BTreeMap<String, RawTensor>, EngineError>;
    /// How it is trained.
    fn optimiser(&self) -> &Optimiser;
    /// To count a step.
    fn optimiser_mut(&mut self) -> &mut Optimiser;
    /// Where it computes.
    fn device(&self) -> &Device {
        &self.optimiser().device
    }
    /// What the head is applied to: the labelled rows of a batch, `[labelled, width]`, from token ids or, where the
    /// trainer has a cache, from the entries of its samples.
    fn labelled<'a>(
        &'a self,
        tape: &'a Tape,
        batch: &'a MicroBatch,
        cached: Option<&'a [SampleEntries]>,
        hook: &'a YieldHook,
    ) -> LocalBoxFuture<'a, Result<Var, EngineError>>;
}

/// AdamW over several parameter sets that share schedule and clipping.
pub struct Optimiser {
    parts: Vec<AdamW>,
    training: FullTraining,
    step: u32,
    device: Device,
}

impl Optimiser {
    /// For these sets; their gradients become 0.
    pub fn new(device: &Device, sets: &[&ParameterSet], training: FullTraining) -> Self {
        sets.iter().for_each(|set| set.zero_grads());
        Self { parts: sets.iter().map(|set| AdamW::new(device, set, training.optimiser)).collect(), training, step: 0, device: device.clone() }
    }

    /// Steps done.
    pub fn steps(&self) -> u32 {
        self.step
    }

    /// How it trains.
    pub fn training(&self) -> FullTraining {
        self.training
    }

    /// One step with the gradients that the sets hold, times `grad_factor`.
    fn apply(&self, sets: &[&ParameterSet], step: u32, lr: f32, grad_factor: f32) {
        for (part, set) in self.parts.iter().zip(sets) {
            part.step(set, step, lr, grad_factor);
        }
    }
}

/// Norm of all gradients together.
async fn grad_norm(sets: &[&ParameterSet]) -> Result<f32, EngineError> {
    let mut squares = 0.0;
    for set in sets {
        squares += f64::from(set.grad_norm().await?).powi(2);
    }
    Ok(squares.sqrt() as f32)
}

/// Σ loss over the labelled rows of a batch. With a `factor` the gradients of factor · Σ loss are added to the parameters'.
pub async fn loss(
    trainer: &dyn Trainer,
    batch: &MicroBatch,
    cached: Option<&[SampleEntries]>,
    factor: Option<f32>,
    hook: &YieldHook,
) -> Result<f64, EngineError> {
    let device = trainer.device();
    let tape = if factor.is_some() { Tape::recording(device) } else { Tape::computing(device) };
    let hidden = trainer.labelled(&tape, batch, cached, hook).await?;
    finish(tape, trainer.head()?, hidden, batch, factor, hook).await
}

/// Loss at the rows that the head is applied to and, with a factor, the backward pass.
pub(crate) async fn finish(tape: Tape, head: &Head, hidden: Var, batch: &MicroBatch, factor: Option<f32>, hook: &YieldHook) -> Result<f64, EngineError> {
    let losses = labelled_loss(&tape, head, &hidden, batch, factor.unwrap_or(0.0));
    drop(hidden);
    if factor.is_some() {
        tape.backward_yielding(hook).await;
    }
    Ok(losses.sum().await?)
}

/// Mean loss over the labelled rows of a batch, whose gradients replace those of the parameters.
pub async fn gradients(trainer: &dyn Trainer, batch: &MicroBatch, cached: Option<&[SampleEntries]>, hook: &YieldHook) -> Result<f32, EngineError> {
    trainer.sets().iter().for_each(|set| set.zero_grads());
    let factor = 1.0 / batch.classes.len().max(1) as f32;
    let loss = loss(trainer, batch, cached, Some(factor), hook).await?;
    Ok((loss * f64::from(factor)) as f32)
}

/// One optimiser step on the mean loss of a batch.
pub async fn step(trainer: &mut dyn Trainer, batch: &MicroBatch, cached: Option<&[SampleEntries]>, hook: &YieldHook) -> Result<StepReport, EngineError> {
    let loss = gradients(trainer, batch, cached, hook).await?;
    clipped_update(trainer, loss, batch.tokens()).await
}

/// Some samples of a mini-batch that go through together, with the entries of each where they are cached.
pub type Piece = (MicroBatch, Option<Vec<SampleEntries>>);

/// One optimiser step on the mean loss of a mini-batch of so many labelled rows that goes through in pieces, whose gradients
/// add up. A piece is made when its turn comes, and gone before the next.
pub async fn step_in_pieces<E: From<EngineError>>(
    trainer: &mut dyn Trainer,
    labelled: usize,
    pieces: impl IntoIterator<Item = Result<Piece, E>>,
    hook: &YieldHook,
) -> Result<StepReport, E> {
    trainer.sets().iter().for_each(|set| set.zero_grads());
    let factor = 1.0 / labelled.max(1) as f32;
    let (mut sum, mut tokens) = (0.0, 0);
    for piece in pieces {
        let (batch, cached) = piece?;
        sum += loss(trainer, &batch, cached.as_deref(), Some(factor), hook).await?;
        tokens += batch.tokens();
    }
    Ok(clipped_update(trainer, (sum * f64::from(factor)) as f32, tokens).await?)
}

/// The step of the schedule with the gradients that are there, clipped; `loss` and `tokens` are for the report.
pub(crate) async fn clipped_update(trainer: &mut dyn Trainer, loss: f32, tokens: usize) -> Result<StepReport, EngineError> {
    let grad_norm = grad_norm(&trainer.sets()).await?;
    let Optimiser { step, training, .. } = trainer.optimiser();
    let (lr, grad_factor) = (training.schedule.lr(step + 1), clip_factor(grad_norm, training.max_norm));
    let step = update(trainer, lr, grad_factor);
    Ok(StepReport { step, loss, grad_norm, lr, tokens })
}

/// One optimiser step with the gradients that are there; gives its number, from 1.
pub fn update(trainer: &mut dyn Trainer, lr: f32, grad_factor: f32) -> u32 {
    let optimiser = trainer.optimiser_mut();
    optimiser.step += 1;
    let step = optimiser.step;
    trainer.optimiser().apply(&trainer.sets(), step, lr, grad_factor);
    trainer.device().submit();
    step
}

/// Σ loss of a batch, and the outputs of the head at its labelled rows, `[labelled][classes]`: for heads of few classes.
pub async fn answers(
    trainer: &dyn Trainer,
    batch: &MicroBatch,
    cached: Option<&[SampleEntries]>,
    hook: &YieldHook,
) -> Result<(f64, Vec<Vec<f32>>), EngineError> {
    let tape = Tape::computing(trainer.device());
    let hidden = trainer.labelled(&tape, batch, cached, hook).await?;
    let losses = labelled_loss(&tape, trainer.head()?, &hidden, batch, 0.0);
    let mut rows = vec![Vec::new(); hidden.value.rows()];
    for chunk in logits(&tape, trainer.head()?, &hidden) {
        let cols = chunk.cols();
        rows.iter_mut().zip(chunk.read().await?.chunks(cols)).for_each(|(row, values)| row.extend_from_slice(values));
    }
    Ok((losses.sum().await?, rows))
}

/// The trained values by the names that files have.
pub async fn tensors(trainer: &dyn Trainer) -> Result<BTreeMap<String, RawTensor>, EngineError> {
    let mut flats = Vec::new();
    for set in trainer.sets() {
        flats.push(set.read_values().await?);
    }
    trainer.named(&flats)
}

/// The gradients by the names that files have for values.
pub async fn gradient_tensors(trainer: &dyn Trainer) -> Result<BTreeMap<String, RawTensor>, EngineError> {
    let mut flats = Vec::new();
    for set in trainer.sets() {
        flats.push(set.read_grads().await?);
    }
    trainer.named(&flats)
}
