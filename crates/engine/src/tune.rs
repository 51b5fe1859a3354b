//! Tuning beside a frozen backbone: LoRA or bottleneck adapters, from token ids or from one cached activation.
//!
//! No layer before the first trained one ever needs a gradient. What leaves them, the *boundary* `[tokens, width]`, is
//! therefore the same in every epoch: [`Tuner::boundary`] computes it once, [`Tuner::drop_prefix`] frees those layers, and
//! later epochs run only the layers behind it.

use crate::EngineError;
use crate::backbone::Backbone;
use crate::bottleneck::Bottlenecks;
use crate::cache_entry;
use crate::lora::Lora;
use crate::loss::cross_entropy;
use crate::op::Op;
use crate::optim::{AdamW, clip_factor};
use crate::packed::{DeviceBatch, MicroBatch};
use crate::params::ParameterSet;
use crate::tape::{Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use crate::train_full::{FullTraining, StepReport};
use barycenter_model::names::Parts;
use barycenter_model::{ModelConfig, RawTensor, TensorSource};
use std::collections::BTreeMap;

/// What is trained.
pub enum Inserts {
    /// Products beside linear layers.
    Lora(Lora),
    /// Bottleneck adapters behind sub-layers.
    Bottlenecks(Bottlenecks),
}

impl Inserts {
    /// The trained values.
    pub fn parameters(&self) -> &ParameterSet {
        match self {
            Self::Lora(lora) => &lora.parameters,
            Self::Bottlenecks(adapters) => &adapters.parameters,
        }
    }

    /// The first layer that has something trained.
    fn first_layer(&self) -> usize {
        match self {
            Self::Lora(lora) => lora.modules().iter().map(|module| module.layer).min().unwrap_or(0),
            Self::Bottlenecks(adapters) => adapters.config.layers.start,
        }
    }

    fn attach(&self, model: &mut Backbone) {
        match self {
            Self::Lora(lora) => lora.attach(model),
            Self::Bottlenecks(adapters) => adapters.attach(model),
        }
    }
}

/// How a boundary is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundaryDtype {
    /// As computed: `[tokens, width]` f32.
    F32,
    /// Scaled to unit root mean square, f16, and the scale of each token in f32 (large residual streams overflow f16).
    F16,
}

/// A trainer of inserts in the layers of a frozen model.
pub struct Tuner {
    /// The model with its inserts: whole, or from the boundary on once the prefix is dropped.
    pub model: Backbone,
    /// What is trained.
    pub inserts: Inserts,
    optimiser: AdamW,
    training: FullTraining,
    step: u32,
    device: Device,
}

impl Tuner {
    /// Loads the frozen model and puts the inserts into it.
    ///
    /// # Errors
    /// If the model has an encoder beside its decoder; those of [`Backbone::load`].
    pub fn load(device: &Device, config: &ModelConfig, source: &mut dyn TensorSource, inserts: Inserts, training: FullTraining) -> Result<Self, EngineError> {
        Backbone::check_decoder(config)?;
        let mut model = Backbone::load(device, config, source, &Parts::all(config))?;
        inserts.attach(&mut model);
        inserts.parameters().zero_grads();
        let optimiser = AdamW::new(device, inserts.parameters(), training.optimiser);
        Ok(Self { model, inserts, optimiser, training, step: 0, device: device.clone() })
    }

    /// Frees the layers before the boundary and the embedding; from now on every batch comes with its boundary.
    pub fn drop_prefix(&mut self, source: &mut dyn TensorSource) -> Result<(), EngineError> {
        let config = self.model.config.clone();
        let parts = Parts { layers: self.inserts.first_layer()..config.layers, embedding: false, head: true };
        // The old layers go before the new ones come.
        self.model.layers.clear();
        self.model.embeddings = None;
        self.model = Backbone::load(&self.device, &config, source, &parts)?;
        self.inserts.attach(&mut self.model);
        Ok(())
    }

    /// What leaves the frozen prefix, encoded for each sequence of the batch.
    pub async fn boundary(&self, batch: &MicroBatch, dtype: BoundaryDtype, hook: &YieldHook) -> Result<Vec<Vec<u8>>, EngineError> {
        batch.check(&self.model.config)?;
        let tape = Tape::computing(&self.device);
        let on_device = DeviceBatch::new(&self.device, batch);
        let mut x = self.model.embed(&tape, &on_device).ok_or_else(no_prefix)?;
        for index in 0..self.inserts.first_layer() {
            x = self.model.layer(&tape, index, &x, &on_device)?;
            self.device.submit();
            hook().await;
        }
        let width = self.model.config.width;
        if dtype == BoundaryDtype::F32 {
            let values = x.value.read().await?;
            let encode = |rows: &[f32]| rows.iter().flat_map(|value| value.to_le_bytes()).collect();
            return Ok(batch.segments.iter().map(|segment| encode(&values[segment.start * width..segment.end * width])).collect());
        }
        let (scaled, rho) = tape.tap_scale(&x.value);
        let (values, rho) = (scaled.read().await?, rho.read().await?);
        let encode = |segment: &std::ops::Range<usize>| cache_entry::encode(&values[segment.start * width..segment.end * width], &rho[segment.clone()]);
        Ok(batch.segments.iter().map(encode).collect())
    }

    /// The rows of a batch's encoded boundary.
    fn decode(&self, batch: &MicroBatch, entries: &[Vec<u8>], dtype: BoundaryDtype) -> Result<Tensor, EngineError> {
        let width = self.model.config.width;
        let damaged = || EngineError::BadBatch("the cached boundary of a sample is missing or damaged: compute it again".into());
        let (mut values, mut rho) = (Vec::with_capacity(batch.tokens() * width), Vec::new());
        for (at, segment) in batch.segments.iter().enumerate() {
            let bytes = entries.get(at).ok_or_else(damaged)?;
            match dtype {
                BoundaryDtype::F32 if bytes.len() == 4 * segment.len() * width => {
                    values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
                }
                BoundaryDtype::F32 => return Err(damaged()),
                BoundaryDtype::F16 => {
                    let (rows, scales) = cache_entry::decode(bytes, segment.len(), width, segment.len()).ok_or_else(damaged)?;
                    values.extend(rows);
                    rho.extend(scales);
                }
            }
        }
        let shape = [batch.tokens(), width];
        let rows = Tensor::from_f32(&self.device, &shape, &values);
        if dtype == BoundaryDtype::F32 {
            return Ok(rows);
        }
        let rho = Tensor::from_f32(&self.device, &[batch.tokens()], &rho);
        let out = Tensor::empty(&self.device, &shape);
        out.run(Op::ScaleRows { x: rows.slice(), rho: rho.slice(), out: out.slice(), rows: shape[0] as u32, cols: width as u32, accumulate: false });
        Ok(out)
    }

    /// Σ loss over the labelled tokens of a batch, from token ids or, with `cached`, from its boundary. With a `factor` the
    /// gradients of factor · Σ loss are added to the parameters'.
    pub async fn loss(
        &self,
        batch: &MicroBatch,
        cached: Option<(&[Vec<u8>], BoundaryDtype)>,
        factor: Option<f32>,
        hook: &YieldHook,
    ) -> Result<f64, EngineError> {
        batch.check(&self.model.config)?;
        let on_device = DeviceBatch::new(&self.device, batch);
        let tape = if factor.is_some() { Tape::recording(&self.device) } else { Tape::computing(&self.device) };
        let held = self.model.range.start;
        let (mut x, first) = match cached {
            Some((entries, dtype)) => (Var::constant(self.decode(batch, entries, dtype)?), self.inserts.first_layer() - held),
            None => (self.model.embed(&tape, &on_device).ok_or_else(no_prefix)?, 0),
        };
        for index in first..self.model.layers.len() {
            x = self.model.layer(&tape, index, &x, &on_device)?;
            self.device.submit();
            hook().await;
        }
        let rows = Tensor::from_u32(&self.device, &batch.labelled_rows);
        let classes = Tensor::from_u32(&self.device, &batch.classes);
        let labelled = tape.gather_rows(&x, &rows);
        drop(x);
        let head = self.model.head.as_ref().ok_or_else(|| EngineError::BadStage("it does not hold the head".into()))?;
        let losses = cross_entropy(&tape, head, &labelled, &classes, factor.unwrap_or(0.0));
        drop(labelled);
        if factor.is_some() {
            tape.backward_yielding(hook).await;
        }
        Ok(losses.sum().await?)
    }

    /// One optimiser step on the mean loss over a mini-batch's labelled tokens.
    pub async fn step(&mut self, batch: &MicroBatch, cached: Option<(&[Vec<u8>], BoundaryDtype)>, hook: &YieldHook) -> Result<StepReport, EngineError> {
        let parameters = self.inserts.parameters();
        parameters.zero_grads();
        let factor = 1.0 / batch.classes.len().max(1) as f32;
        let loss = self.loss(batch, cached, Some(factor), hook).await?;
        self.step += 1;
        let lr = self.training.schedule.lr(self.step);
        let grad_norm = parameters.grad_norm().await?;
        self.optimiser.step(parameters, self.step, lr, clip_factor(grad_norm, self.training.max_norm));
        self.device.submit();
        Ok(StepReport { step: self.step, loss: (loss * f64::from(factor)) as f32, grad_norm, lr, tokens: batch.tokens() })
    }

    /// The trained values by name: PEFT's names for LoRA.
    pub async fn tensors(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        self.inserts.parameters().tensors().await
    }
}

fn no_prefix() -> EngineError {
    EngineError::BadStage("its frozen prefix was dropped: batches must come with their cached boundary".into())
}
