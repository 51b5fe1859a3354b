//! Tuning beside a frozen backbone: LoRA or bottleneck adapters, from token ids or from one cached activation.
//!
//! No layer before the first trained one ever needs a gradient. What leaves them, the *boundary* `[tokens, width]`, is
//! therefore the same in every epoch: [`Tuner::boundary`] computes it once, [`Tuner::drop_prefix`] frees those layers, and
//! later epochs run only the layers behind it. Of an encoder-decoder model nothing in the encoder may be trained then: the
//! boundary is the encoder's normed end `[source tokens, width]` and, behind it, what leaves the decoder's frozen layers.

use crate::EngineError;
use crate::backbone::{Backbone, Head, Memory, Start};
use crate::bottleneck::Bottlenecks;
use crate::cache_entry::CacheDtype;
use crate::lora::{Lora, peft_saved_name};
use crate::packed::{DeviceBatch, MicroBatch, cross_attention};
use crate::params::ParameterSet;
use crate::tape::{Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use crate::train_full::{FullTraining, StepReport};
use crate::trainer::{self, Optimiser, SampleEntries, Trainer};
use barycenter_model::names::Parts;
use barycenter_model::{ModelConfig, RawTensor, TensorSource};
use futures::future::LocalBoxFuture;
use std::collections::BTreeMap;
use std::ops::Range;

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

    /// Whether the encoder of an encoder-decoder model has something trained.
    fn is_in_encoder(&self, config: &ModelConfig) -> bool {
        match self {
            Self::Lora(lora) => lora.modules().iter().any(|module| module.in_encoder),
            Self::Bottlenecks(_) => config.encoder.is_some(),
        }
    }

    /// Puts them into a model of the same sizes, which then computes with the trained values.
    pub fn attach(&self, model: &mut Backbone) {
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

impl BoundaryDtype {
    fn len_bytes(self, tokens: usize, width: usize) -> usize {
        match self {
            Self::F32 => 4 * tokens * width,
            Self::F16 => CacheDtype::F16.len_bytes(tokens, width, tokens),
        }
    }
}

/// A trainer of inserts in the layers of a frozen model.
pub struct Tuner {
    /// The model with its inserts: whole, or from the boundary on once the prefix is dropped.
    pub model: Backbone,
    /// What is trained.
    pub inserts: Inserts,
    /// What is trained of the model's own head, where it is a classifier.
    pub head: Option<ParameterSet>,
    /// How boundaries are stored that come through [`Trainer`].
    pub boundary_dtype: BoundaryDtype,
    optimiser: Optimiser,
    device: Device,
}

impl Tuner {
    /// Loads the frozen model and puts the inserts into it.
    ///
    /// # Errors
    /// Those of [`Backbone::load`].
    pub fn load(device: &Device, config: &ModelConfig, source: &mut dyn TensorSource, inserts: Inserts, training: FullTraining) -> Result<Self, EngineError> {
        Self::load_with_head(device, config, source, inserts, None, training)
    }

    /// [`Tuner::load`] with a head that is trained too ([`crate::heads::trained_head`]).
    pub fn load_with_head(
        device: &Device,
        config: &ModelConfig,
        source: &mut dyn TensorSource,
        inserts: Inserts,
        head: Option<ParameterSet>,
        training: FullTraining,
    ) -> Result<Self, EngineError> {
        let model = Backbone::load_partly(device, config, source, &Parts::all(config), head.as_ref())?;
        let sets: Vec<&ParameterSet> = [inserts.parameters()].into_iter().chain(&head).collect();
        let optimiser = Optimiser::new(device, &sets, training);
        let mut tuner = Self { model, inserts, head, boundary_dtype: BoundaryDtype::F16, optimiser, device: device.clone() };
        tuner.inserts.attach(&mut tuner.model);
        Ok(tuner)
    }

    /// Frees the layers before the boundary, the embedding and the encoder; from now on every batch comes with its boundary.
    ///
    /// # Errors
    /// If something is trained in the encoder of an encoder-decoder model.
    pub fn drop_prefix(&mut self, source: &mut dyn TensorSource) -> Result<(), EngineError> {
        let config = self.model.config.clone();
        self.check_boundary()?;
        let parts = Parts { layers: self.inserts.first_layer()..config.layers, embedding: false, head: true };
        // The old layers go before the new ones come.
        self.model.layers.clear();
        self.model.embeddings = None;
        self.model.encoder = None;
        self.model = Backbone::load_partly(&self.device, &config, source, &parts, self.head.as_ref())?;
        self.inserts.attach(&mut self.model);
        Ok(())
    }

    /// What leaves the frozen prefix, encoded for each sequence of the batch; the encoder's end first, where there is one.
    ///
    /// # Errors
    /// If something is trained in the encoder of an encoder-decoder model.
    pub async fn boundary(&self, batch: &MicroBatch, dtype: BoundaryDtype, hook: &YieldHook) -> Result<Vec<Vec<u8>>, EngineError> {
        batch.check(&self.model.config)?;
        self.check_boundary()?;
        let tape = Tape::computing(&self.device);
        let on_device = DeviceBatch::new(&self.device, batch);
        let memory = self.model.memory(&tape, &on_device)?;
        let mut x = self.model.embed(&tape, &on_device).ok_or_else(no_prefix)?;
        for index in 0..self.inserts.first_layer() {
            x = self.model.layer_across(&tape, index, &x, &on_device, memory.as_ref())?;
            self.device.submit();
            hook().await;
        }
        let of_decoder = encode(&tape, &x.value, &batch.segments, dtype).await?;
        let (Some(memory), Some(source)) = (memory, &batch.encoder) else { return Ok(of_decoder) };
        let of_encoder = encode(&tape, &memory.hidden.value, &source.segments, dtype).await?;
        Ok(of_encoder.into_iter().zip(of_decoder).map(|(source, target)| [source, target].concat()).collect())
    }

    fn check_boundary(&self) -> Result<(), EngineError> {
        if self.inserts.is_in_encoder(&self.model.config) {
            return Err(EngineError::BadStage("something is trained in its encoder, so no activation of it stays the same: train it without a cached boundary".into()));
        }
        Ok(())
    }

    /// Where a pass over a batch goes on from its encoded boundary.
    fn start(&self, batch: &MicroBatch, on_device: &DeviceBatch, entries: &[&[u8]], dtype: BoundaryDtype) -> Result<Start, EngineError> {
        let layer = self.inserts.first_layer() - self.model.range.start;
        let (Some(source), Some(source_on_device)) = (&batch.encoder, &on_device.encoder) else {
            return Ok(Start { rows: self.decode(batch, entries, dtype)?, layer, memory: None });
        };
        let width = self.model.config.width;
        let both = entries.iter().zip(&source.segments).map(|(entry, segment)| entry.split_at_checked(dtype.len_bytes(segment.len(), width)));
        let (of_encoder, of_decoder): (Vec<_>, Vec<_>) = both.collect::<Option<_>>().ok_or_else(damaged)?;
        let context = cross_attention(&self.model.config, on_device, source_on_device);
        let memory = Memory { hidden: self.decode(source, &of_encoder, dtype)?, context };
        Ok(Start { rows: self.decode(batch, &of_decoder, dtype)?, layer, memory: Some(memory) })
    }

    /// The rows of a batch's entries.
    fn decode(&self, batch: &MicroBatch, entries: &[&[u8]], dtype: BoundaryDtype) -> Result<Var, EngineError> {
        let width = self.model.config.width;
        let shape = [batch.tokens(), width];
        if dtype == BoundaryDtype::F32 {
            let mut values: Vec<f32> = Vec::with_capacity(batch.tokens() * width);
            for (at, segment) in batch.segments.iter().enumerate() {
                let bytes = entries.get(at).filter(|bytes| bytes.len() == dtype.len_bytes(segment.len(), width)).ok_or_else(damaged)?;
                values.extend(bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)));
            }
            return Ok(Var::constant(Tensor::from_f32(&self.device, &shape, &values)));
        }
        let of_sequence = |(at, segment): (usize, &Range<usize>)| (entries.get(at).copied(), segment.clone(), segment.len());
        let of_sequences = batch.segments.iter().enumerate().map(of_sequence);
        let (rows, rho) = CacheDtype::F16.restore(&self.device, (shape[0], width), of_sequences).ok_or_else(damaged)?;
        let rho = Tensor::from_f32(&self.device, &[batch.tokens()], &rho);
        Ok(Var::constant(Tape::computing(&self.device).tap_unscale(&rows, &rho)))
    }

    /// The labelled rows behind the last layer, from token ids or from the boundary.
    async fn labelled_rows(&self, tape: &Tape, batch: &MicroBatch, cached: Option<(Vec<&[u8]>, BoundaryDtype)>, hook: &YieldHook) -> Result<Var, EngineError> {
        batch.check(&self.model.config)?;
        let on_device = DeviceBatch::new(&self.device, batch);
        let start = match cached {
            Some((entries, dtype)) => Some(self.start(batch, &on_device, &entries, dtype)?),
            None => None,
        };
        let hidden = self.model.run(tape, &on_device, start, hook).await?;
        Ok(tape.gather_rows(&hidden, &on_device.labelled_rows))
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
        let tape = if factor.is_some() { Tape::recording(&self.device) } else { Tape::computing(&self.device) };
        let cached = cached.map(|(entries, dtype)| (entries.iter().map(Vec::as_slice).collect(), dtype));
        let hidden = self.labelled_rows(&tape, batch, cached, hook).await?;
        trainer::finish(tape, self.model.whole_head()?, hidden, batch, factor, hook).await
    }

    /// One optimiser step on the mean loss over a mini-batch's labelled tokens.
    pub async fn step(&mut self, batch: &MicroBatch, cached: Option<(&[Vec<u8>], BoundaryDtype)>, hook: &YieldHook) -> Result<StepReport, EngineError> {
        self.sets().iter().for_each(|set| set.zero_grads());
        let factor = 1.0 / batch.classes.len().max(1) as f32;
        let loss = self.loss(batch, cached, Some(factor), hook).await?;
        trainer::clipped_update(self, (loss * f64::from(factor)) as f32, batch.tokens()).await
    }

    /// The trained values by name: PEFT's names for LoRA, and for a head beside it.
    pub async fn tensors(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        trainer::tensors(self).await
    }
}

impl Trainer for Tuner {
    fn head(&self) -> Result<&Head, EngineError> {
        self.model.whole_head()
    }

    fn sets(&self) -> Vec<&ParameterSet> {
        [self.inserts.parameters()].into_iter().chain(&self.head).collect()
    }

    fn named(&self, flats: &[Vec<f32>]) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        let mut named = BTreeMap::new();
        let is_lora = matches!(self.inserts, Inserts::Lora(_));
        for (at, (set, flat)) in self.sets().into_iter().zip(flats).enumerate() {
            let of_head = |name: String| if is_lora { peft_saved_name(&name) } else { name };
            named.extend(set.named(flat).into_iter().map(|(name, tensor)| (if at == 0 { name } else { of_head(name) }, tensor)));
        }
        Ok(named)
    }

    fn optimiser(&self) -> &Optimiser {
        &self.optimiser
    }

    fn optimiser_mut(&mut self) -> &mut Optimiser {
        &mut self.optimiser
    }

    /// The one entry of a sample is its boundary, in `boundary_dtype`.
    fn labelled<'a>(
        &'a self,
        tape: &'a Tape,
        batch: &'a MicroBatch,
        cached: Option<&'a [SampleEntries]>,
        hook: &'a YieldHook,
    ) -> LocalBoxFuture<'a, Result<Var, EngineError>> {
        let first = |entries: &'a SampleEntries| entries.first().map(Vec::as_slice).unwrap_or_default();
        let cached = cached.map(|samples| (samples.iter().map(first).collect(), self.boundary_dtype));
        Box::pin(self.labelled_rows(tape, batch, cached, hook))
    }
}

/// The rows of each sequence as a boundary stores them.
async fn encode(tape: &Tape, rows: &Tensor, segments: &[Range<usize>], dtype: BoundaryDtype) -> Result<Vec<Vec<u8>>, EngineError> {
    let width = rows.cols();
    if dtype == BoundaryDtype::F32 {
        let values = rows.read().await?;
        let encode = |segment: &Range<usize>| CacheDtype::F32.encode(&values[segment.start * width..segment.end * width], width, &[]);
        return Ok(segments.iter().map(encode).collect());
    }
    let (scaled, rho) = tape.tap_scale(rows);
    let (values, rho) = (scaled.read().await?, rho.read().await?);
    let encode = |segment: &Range<usize>| CacheDtype::F16.encode(&values[segment.start * width..segment.end * width], width, &rho[segment.clone()]);
    Ok(segments.iter().map(encode).collect())
}

fn damaged() -> EngineError {
    EngineError::BadBatch("the cached boundary of a sample is missing or damaged: compute it again".into())
}

fn no_prefix() -> EngineError {
    EngineError::BadStage("its frozen prefix was dropped: batches must come with their cached boundary".into())
}
