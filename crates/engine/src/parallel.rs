//! Parallel adapters on one device, for models of any kind: from token ids, or from cached taps with the frozen layers gone.
//!
//! A stage of a swarm does the same for some layers of a decoder: see [`crate::stage`].

use crate::EngineError;
use crate::backbone::{Backbone, Head};
use crate::cache_entry::CacheDtype;
use crate::chains::{Chains, Taps};
use crate::packed::{DeviceBatch, MicroBatch};
use crate::params::ParameterSet;
use crate::tape::{Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use crate::train_full::FullTraining;
use crate::trainer::{Optimiser, SampleEntries, Trainer};
use barycenter_model::names::Parts;
use barycenter_model::{ModelConfig, RawTensor, TensorSource};
use futures::future::LocalBoxFuture;
use std::collections::BTreeMap;
use std::ops::Range;

/// A trainer of side networks beside a frozen model, and of its head where that is a classifier.
pub struct ParallelTrainer {
    /// The frozen model: whole, or its head alone once the rest is dropped.
    pub model: Backbone,
    /// What is trained beside it.
    pub chains: Chains,
    /// What is trained of its head.
    pub head: Option<ParameterSet>,
    /// Number format of the cache entries it makes and reads.
    pub cache_dtype: CacheDtype,
    optimiser: Optimiser,
    device: Device,
}

impl ParallelTrainer {
    /// Loads the frozen model; `head` is what is trained of it ([`crate::heads::trained_head`]).
    pub fn load(
        device: &Device,
        config: &ModelConfig,
        source: &mut dyn TensorSource,
        mut chains: Chains,
        head: Option<ParameterSet>,
        training: FullTraining,
    ) -> Result<Self, EngineError> {
        let model = Backbone::load_partly(device, config, source, &Parts::all(config), head.as_ref())?;
        chains.share_bias(&model);
        let sets: Vec<&ParameterSet> = chains.parameters().chain(&head).collect();
        let optimiser = Optimiser::new(device, &sets, training);
        Ok(Self { model, chains, head, cache_dtype: CacheDtype::default(), optimiser, device: device.clone() })
    }

    /// Frees everything frozen but the head; from now on every batch comes with its cached taps.
    pub fn drop_backbone(&mut self, source: &mut dyn TensorSource) -> Result<(), EngineError> {
        let config = self.model.config.clone();
        // The old weights go before the new ones come.
        self.model.layers.clear();
        self.model.embeddings = None;
        self.model.encoder = None;
        self.model = Backbone::load_partly(&self.device, &config, source, &Parts::head_only(), self.head.as_ref())?;
        Ok(())
    }

    /// Runs the frozen model over a batch; the cache entries of each sample: its taps, the encoder's first, scaled, as
    /// `cache_dtype` says, the last one with ρ(b_L) at its labelled rows (docs/METHOD.md).
    pub async fn fill(&self, batch: &MicroBatch, hook: &YieldHook) -> Result<Vec<SampleEntries>, EngineError> {
        batch.check(&self.model.config)?;
        if self.chains.layouts().last().and_then(|layout| layout.config().taps.last()) != Some(&self.model.config.layers) {
            return Err(EngineError::BadStage("its last layer is not tapped, so a cache of taps would lack what the head needs".into()));
        }
        let taps = Taps::compute(&self.model, &self.chains, &DeviceBatch::new(&self.device, batch), hook).await?;
        let rho = taps.rho.read().await?;
        let mut entries = vec![Vec::new(); batch.segments.len()];
        let width = self.model.config.width;
        for (stack, of_stack) in taps.stacks.iter().enumerate() {
            let is_last = stack + 1 == taps.stacks.len();
            let rows = if is_last { Some(batch) } else { batch.encoder.as_deref() };
            let segments = rows.map(|rows| rows.segments.as_slice()).unwrap_or_default();
            for (at, tap) in of_stack.iter().enumerate() {
                let values = tap.read().await?;
                let has_rho = is_last && at + 1 == of_stack.len();
                for ((segment, labelled), list) in segments.iter().zip(&batch.labelled_ranges).zip(&mut entries) {
                    let rho = if has_rho { &rho[labelled.clone()] } else { &[] };
                    list.push(self.cache_dtype.encode(&values[segment.start * width..segment.end * width], width, rho));
                }
            }
        }
        Ok(entries.into_iter().map(SampleEntries::new).collect())
    }

    /// The taps of a batch from its samples' entries.
    fn restore(&self, batch: &MicroBatch, on_device: &DeviceBatch, samples: &[SampleEntries]) -> Result<Taps, EngineError> {
        let config = &self.model.config;
        let mut number = 0;
        let mut stacks = Vec::new();
        let mut rho = Vec::new();
        let rows = config.encoder.as_ref().and(batch.encoder.as_deref()).into_iter().chain([batch]);
        for (layout, rows) in self.chains.layouts().zip(rows) {
            let mut taps = Vec::new();
            let count = layout.config().taps.len();
            for tap in 0..count {
                let has_rho = layout.has_up() && tap + 1 == count;
                let of_sequence = |(at, (segment, labelled)): (usize, (&Range<usize>, &Range<usize>))| {
                    let bytes = samples.get(at).and_then(|entries| entries.get(number)).map(Vec::as_slice);
                    (bytes, segment.clone(), if has_rho { labelled.len() } else { 0 })
                };
                let of_sequences = rows.segments.iter().zip(&batch.labelled_ranges).enumerate().map(of_sequence);
                let damaged = || EngineError::BadBatch(format!("cached tap {number} of a sample is missing or damaged: compute it again"));
                let (scaled, at_labels) = self.cache_dtype.restore(&self.device, (rows.tokens(), config.width), of_sequences).ok_or_else(damaged)?;
                rho.extend(at_labels);
                taps.push(scaled);
                number += 1;
            }
            stacks.push(taps);
        }
        let last = stacks.last().and_then(|taps| taps.last()).ok_or_else(|| EngineError::BadStage("the model has no stack".into()))?;
        let rho = Tensor::from_f32(&self.device, &[rho.len()], &rho);
        let computing = Tape::computing(&self.device);
        let base = computing.tap_unscale(&computing.gather_rows(&Var::constant(last.clone()), &on_device.labelled_rows).value, &rho);
        Ok(Taps { stacks, base, rho })
    }
}

impl Trainer for ParallelTrainer {
    fn head(&self) -> Result<&Head, EngineError> {
        self.model.whole_head()
    }

    fn sets(&self) -> Vec<&ParameterSet> {
        self.chains.parameters().chain(&self.head).collect()
    }

    fn named(&self, flats: &[Vec<f32>]) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        let mut named = self.chains.named(flats)?;
        if let (Some(head), Some(flat)) = (&self.head, flats.last()) {
            named.extend(head.named(flat));
        }
        Ok(named)
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
        cached: Option<&'a [SampleEntries]>,
        hook: &'a YieldHook,
    ) -> LocalBoxFuture<'a, Result<Var, EngineError>> {
        Box::pin(async move {
            batch.check(&self.model.config)?;
            let on_device = DeviceBatch::new(&self.device, batch);
            let taps = match cached {
                Some(entries) => self.restore(batch, &on_device, entries)?,
                None => Taps::compute(&self.model, &self.chains, &on_device, hook).await?,
            };
            self.chains.output(tape, &taps, &on_device, hook).await
        })
    }
}
