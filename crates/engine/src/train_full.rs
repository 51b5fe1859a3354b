//! Full training: every weight of a fresh or loaded model, in f32, on one device.

use crate::EngineError;
use crate::backbone::{Backbone, Head};
use crate::optim::{AdamWConfig, LinearSchedule};
use crate::packed::{DeviceBatch, MicroBatch};
use crate::params::ParameterSet;
use crate::side::{named_rng, norm_start};
use crate::tape::{Tape, Var, YieldHook};
use crate::tensor::Device;
use crate::trainer::{self, Optimiser, SampleEntries, Trainer};
use futures::future::LocalBoxFuture;
use barycenter_model::names::{self, Parts, is_norm_weight};
use barycenter_model::{ModelConfig, RawTensor, TensorSource};
use rand::RngExt;
use std::collections::BTreeMap;

/// Standard deviation fresh weights are drawn with (`initializer_range` of `transformers`).
pub(crate) const INITIAL_DEVIATION: f32 = 0.02;

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
    /// All weights, named as in the weight file; but the bias on BART's logits, which is none in `transformers` either.
    pub parameters: ParameterSet,
    optimiser: Optimiser,
    device: Device,
}

impl FullTrainer {
    /// A model of random weights; equal seeds give equal weights.
    pub fn fresh(device: &Device, config: &ModelConfig, seed: u64, training: FullTraining) -> Result<Self, EngineError> {
        let trained = |parameters: &ParameterSet| Backbone::trained(device, config, parameters);
        Self::start(device, config, training, |_| true, trained, |name, target| {
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
        let parts = Parts::all(config);
        names::check(config, &parts, source)?;
        let source = std::cell::RefCell::new(source);
        let trained = |parameters: &ParameterSet| Backbone::load_with(device, config, &mut **source.borrow_mut(), &parts, parameters);
        // What a family keeps beside its weights stays as it is.
        let constant = names::constants(config);
        Self::start(device, config, training, |name| !constant.iter().any(|constant| constant == name), trained, |name, target| {
            target.copy_from_slice(&source.borrow_mut().load(name)?.to_f32());
            Ok(())
        })
    }

    fn start(
        device: &Device,
        config: &ModelConfig,
        training: FullTraining,
        is_trained: impl Fn(&str) -> bool,
        model: impl FnOnce(&ParameterSet) -> Result<Backbone, EngineError>,
        mut fill: impl FnMut(&str, &mut [f32]) -> Result<(), EngineError>,
    ) -> Result<Self, EngineError> {
        let list = Parts::all(config).parameters(config).into_iter().filter(|parameter| is_trained(&parameter.name));
        let parameters = ParameterSet::new(device, list.map(|parameter| (parameter.name, parameter.shape)));
        let mut values = vec![0f32; parameters.flat_len()];
        for info in parameters.layout() {
            fill(&info.name, &mut values[info.offset..info.offset + info.elements()])?;
        }
        parameters.write_values(&values);
        let optimiser = Optimiser::new(device, &[&parameters], training);
        let model = model(&parameters)?;
        Ok(Self { model, parameters, optimiser, device: device.clone() })
    }

    /// The mean loss over the labelled tokens of all micro-batches, and its gradients in `parameters`.
    pub async fn gradients(&self, batches: &[MicroBatch], hook: &YieldHook) -> Result<f32, EngineError> {
        self.parameters.zero_grads();
        let labelled: usize = batches.iter().map(|batch| batch.classes.len()).sum();
        let factor = 1.0 / labelled.max(1) as f32;
        let mut loss = 0.0;
        for batch in batches {
            loss += trainer::loss(self, batch, None, Some(factor), hook).await?;
        }
        Ok((loss * f64::from(factor)) as f32)
    }

    /// One optimiser step on the mean loss over the labelled tokens of all micro-batches.
    pub async fn step(&mut self, batches: &[MicroBatch], hook: &YieldHook) -> Result<StepReport, EngineError> {
        let loss = self.gradients(batches, hook).await?;
        let tokens = batches.iter().map(MicroBatch::tokens).sum();
        trainer::clipped_update(self, loss, tokens).await
    }

    /// The weights, named as in the weight file, in f32.
    pub async fn weights(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        self.parameters.tensors().await
    }
}

impl Trainer for FullTrainer {
    fn head(&self) -> Result<&Head, EngineError> {
        self.model.whole_head()
    }

    fn sets(&self) -> Vec<&ParameterSet> {
        vec![&self.parameters]
    }

    fn named(&self, flats: &[Vec<f32>]) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        Ok(flats.first().map(|flat| self.parameters.named(flat)).unwrap_or_default())
    }

    fn optimiser(&self) -> &Optimiser {
        &self.optimiser
    }

    fn optimiser_mut(&mut self) -> &mut Optimiser {
        &mut self.optimiser
    }

    fn labelled<'a>(
        &'a self,
        tape: &'a Tape,
        batch: &'a MicroBatch,
        _cached: Option<&'a [SampleEntries]>,
        hook: &'a YieldHook,
    ) -> LocalBoxFuture<'a, Result<Var, EngineError>> {
        Box::pin(async move {
            batch.check(&self.model.config)?;
            let on_device = DeviceBatch::new(&self.device, batch);
            let hidden = self.model.run(tape, &on_device, None, hook).await?;
            Ok(tape.gather_rows(&hidden, &on_device.labelled_rows))
        })
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
pub(crate) fn normal(rng: &mut impl rand::Rng) -> f32 {
    let (a, b): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - a).ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}
