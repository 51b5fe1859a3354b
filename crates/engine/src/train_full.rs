//! Full training: every weight of a fresh or loaded model, in f32, on one device.

use crate::EngineError;
use crate::backbone::Backbone;
use crate::loss::cross_entropy;
use crate::optim::{AdamW, AdamWConfig, LinearSchedule, clip_factor};
use crate::packed::{DeviceBatch, MicroBatch};
use crate::params::ParameterSet;
use crate::side::{named_rng, norm_start};
use crate::tape::{Tape, YieldHook};
use crate::tensor::{Device, Tensor};
use barycenter_model::names::{Parts, is_norm_weight};
use barycenter_model::{ModelConfig, RawTensor, TensorSource};
use rand::RngExt;
use std::collections::BTreeMap;

/// Standard deviation fresh weights are drawn with (`initializer_range` of `transformers`).
const INITIAL_DEVIATION: f32 = 0.02;

/// How a full training goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FullTraining {
    /// Learning rates.
    pub schedule: LinearSchedule,
    /// Constants of AdamW.
    pub optimiser: AdamWConfig,
    /// Gradients are scaled down to this global norm; 0 = never.
    pub max_norm: f32,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u32,
    /// Mean loss over the labelled tokens, before the step.
    pub loss: f32,
    /// Norm of all gradients, before clipping.
    pub grad_norm: f32,
    /// Learning rate used.
    pub lr: f32,
    /// Tokens computed, labelled or not.
    pub tokens: usize,
}

/// A model all of whose weights are trained.
pub struct FullTrainer {
    /// The model; its weights are `parameters`.
    pub model: Backbone,
    /// All weights, named as in the weight file.
    pub parameters: ParameterSet,
    optimiser: AdamW,
    training: FullTraining,
    step: u32,
    device: Device,
}

impl FullTrainer {
    /// A model of random weights; equal seeds give equal weights.
    pub fn fresh(device: &Device, config: &ModelConfig, seed: u64, training: FullTraining) -> Result<Self, EngineError> {
        Self::start(device, config, training, |name, target| {
            if is_norm_weight(name) {
                target.fill(norm_start(config));
            } else if name.ends_with(".weight") {
                let mut rng = named_rng(name, seed);
                target.iter_mut().for_each(|value| *value = normal(&mut rng) * INITIAL_DEVIATION);
            }
            Ok(())
        })
    }

    /// Goes on from weights.
    pub fn load(device: &Device, config: &ModelConfig, source: &mut dyn TensorSource, training: FullTraining) -> Result<Self, EngineError> {
        barycenter_model::names::check(config, &Parts::all(config), source)?;
        Self::start(device, config, training, |name, target| {
            target.copy_from_slice(&source.load(name)?.to_f32());
            Ok(())
        })
    }

    fn start(
        device: &Device,
        config: &ModelConfig,
        training: FullTraining,
        mut fill: impl FnMut(&str, &mut [f32]) -> Result<(), EngineError>,
    ) -> Result<Self, EngineError> {
        Backbone::check_decoder(config)?;
        let list = Parts::all(config).parameters(config);
        let parameters = ParameterSet::new(device, list.into_iter().map(|parameter| (parameter.name, parameter.shape)));
        let mut values = vec![0f32; parameters.flat_len()];
        for info in parameters.layout() {
            fill(&info.name, &mut values[info.offset..info.offset + info.elements()])?;
        }
        parameters.write_values(&values);
        let optimiser = AdamW::new(device, &parameters, training.optimiser);
        let model = Backbone::trained(device, config, &parameters)?;
        Ok(Self { model, parameters, optimiser, training, step: 0, device: device.clone() })
    }

    /// The mean loss over the labelled tokens of all micro-batches, and its gradients in `parameters`.
    pub async fn gradients(&self, batches: &[MicroBatch], hook: &YieldHook) -> Result<f32, EngineError> {
        self.parameters.zero_grads();
        let labelled: usize = batches.iter().map(|batch| batch.classes.len()).sum();
        let factor = 1.0 / labelled.max(1) as f32;
        let mut loss = 0.0;
        for batch in batches {
            batch.check(&self.model.config)?;
            loss += self.forward_backward(batch, factor, hook).await?;
        }
        Ok((loss * f64::from(factor)) as f32)
    }

    /// One optimiser step on the mean loss over the labelled tokens of all micro-batches.
    pub async fn step(&mut self, batches: &[MicroBatch], hook: &YieldHook) -> Result<StepReport, EngineError> {
        let loss = self.gradients(batches, hook).await?;
        self.step += 1;
        let lr = self.training.schedule.lr(self.step);
        let grad_norm = self.parameters.grad_norm().await?;
        self.optimiser.step(&self.parameters, self.step, lr, clip_factor(grad_norm, self.training.max_norm));
        self.device.submit();
        let tokens = batches.iter().map(MicroBatch::tokens).sum();
        Ok(StepReport { step: self.step, loss, grad_norm, lr, tokens })
    }

    async fn forward_backward(&self, batch: &MicroBatch, factor: f32, hook: &YieldHook) -> Result<f64, EngineError> {
        let not_whole = || EngineError::BadStage("it does not hold the whole model".into());
        let on_device = DeviceBatch::new(&self.device, batch);
        let tape = Tape::recording(&self.device);
        let mut x = self.model.embed(&tape, &on_device).ok_or_else(not_whole)?;
        for index in 0..self.model.layers.len() {
            x = self.model.layer(&tape, index, &x, &on_device)?;
            self.device.submit();
            hook().await;
        }
        let rows = Tensor::from_u32(&self.device, &batch.labelled_rows);
        let classes = Tensor::from_u32(&self.device, &batch.classes);
        let labelled = tape.gather_rows(&x, &rows);
        drop(x);
        let losses = cross_entropy(&tape, self.model.head.as_ref().ok_or_else(not_whole)?, &labelled, &classes, factor);
        drop(labelled);
        tape.backward_yielding(hook).await;
        Ok(losses.sum().await?)
    }

    /// The weights, named as in the weight file, in f32.
    pub async fn weights(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        self.parameters.tensors().await
    }
}

/// Trains on the mini-batches given (each a list of micro-batches) and returns the trainer, for its weights.
pub async fn train_full(
    mut trainer: FullTrainer,
    batches: impl IntoIterator<Item = Vec<MicroBatch>>,
    hook: &YieldHook,
    mut progress: impl FnMut(StepReport),
) -> Result<FullTrainer, EngineError> {
    for batch in batches {
        progress(trainer.step(&batch, hook).await?);
    }
    Ok(trainer)
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut impl rand::Rng) -> f32 {
    let (a, b): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - a).ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}
