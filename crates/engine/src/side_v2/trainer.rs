//! A side network of version 2 beside its frozen encoder: components are fitted, entries filled, the side network trained.

use super::cache;
use super::components::{Components, Moments};
use super::config::SideV2Config;
use super::network::{Encoded, SideV2};
use super::sentences::Sentences;
use crate::EngineError;
use crate::backbone::{Backbone, Head};
use crate::packed::{DeviceBatch, MicroBatch};
use crate::params::ParameterSet;
use crate::side::named_rng;
use crate::tape::{Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use crate::train_full::FullTraining;
use crate::trainer::{self, Optimiser, SampleEntries, Trainer};
use barycenter_model::names::Parts;
use barycenter_model::{ModelConfig, RawTensor, TensorSource};
use futures::future::LocalBoxFuture;
use rand::Rng;
use std::collections::BTreeMap;

/// Trains a side network of version 2.
pub struct SideV2Trainer {
    /// What is trained, the head included.
    pub side: SideV2,
    model: ModelConfig,
    /// None once it is dropped.
    backbone: Option<Backbone>,
    /// One for each tap; none before [`SideV2Trainer::fit`].
    components: Vec<Components>,
    optimiser: Optimiser,
    device: Device,
    seed: u64,
}

impl SideV2Trainer {
    /// Samples from which components are fitted.
    pub const FIT_SAMPLES: usize = 1024;

    /// Beside a frozen encoder (with the head that the labels call for); its components are still to be fitted.
    pub fn fresh(
        device: &Device,
        model: &ModelConfig,
        source: &mut dyn TensorSource,
        config: SideV2Config,
        seed: u64,
        training: FullTraining,
    ) -> Result<Self, EngineError> {
        let side = SideV2::fresh(device, model, config, seed)?;
        Self::start(device, model, source, side, Vec::new(), seed, training)
    }

    /// Goes on from the tensors of an adapter folder, its components included.
    ///
    /// # Errors
    /// If one is missing or of another shape.
    pub fn load(
        device: &Device,
        model: &ModelConfig,
        source: &mut dyn TensorSource,
        config: SideV2Config,
        mut find: impl FnMut(&str) -> Option<RawTensor>,
        seed: u64,
        training: FullTraining,
    ) -> Result<Self, EngineError> {
        let side = SideV2::load(device, model, config, &mut find)?;
        let of_tap = |i| Components::load(i, model.width, side.config.components, &mut find);
        let components = (0..side.config.taps.len()).map(of_tap).collect::<Result<_, _>>()?;
        Self::start(device, model, source, side, components, seed, training)
    }

    fn start(
        device: &Device,
        model: &ModelConfig,
        source: &mut dyn TensorSource,
        side: SideV2,
        components: Vec<Components>,
        seed: u64,
        training: FullTraining,
    ) -> Result<Self, EngineError> {
        let backbone = Backbone::load(device, model, source, &Parts { head: false, ..Parts::all(model) })?;
        let optimiser = Optimiser::new(device, &[&side.parameters], training);
        Ok(Self { side, model: model.clone(), backbone: Some(backbone), components, optimiser, device: device.clone(), seed })
    }

    /// Finds the components of every tap from the tokens of these batches, the first samples of the training set.
    pub async fn fit(&mut self, batches: impl IntoIterator<Item = MicroBatch>, hook: &YieldHook) -> Result<(), EngineError> {
        let mut moments: Vec<Moments> = self.side.config.taps.iter().map(|_| Moments::new(self.model.width)).collect();
        for batch in batches {
            for (moments, tap) in moments.iter_mut().zip(self.taps(&batch, hook).await?) {
                moments.add(&tap).await?;
            }
        }
        self.components = moments.iter().map(|moments| moments.components(self.side.config.components)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// What the taps are projected on; empty before they are fitted.
    pub fn components(&self) -> &[Components] {
        &self.components
    }

    /// Frees the frozen model; from now on every batch comes with the entries of its samples.
    pub fn drop_backbone(&mut self) {
        self.backbone = None;
    }

    /// Runs the frozen model over a batch; the cache entries of each sample, one a tap ([`cache::encode`]).
    ///
    /// # Errors
    /// If components were not fitted, or a sample has another number of sentences.
    pub async fn fill(&self, batch: &MicroBatch, hook: &YieldHook) -> Result<Vec<SampleEntries>, EngineError> {
        if self.components.is_empty() {
            return Err(EngineError::BadStage("its principal components were not fitted".into()));
        }
        let sentences = Sentences::of(batch, self.side.config.sentences)?;
        let tape = Tape::computing(&self.device);
        let averages = Var::constant(sentences.mean_of(&self.device, sentences.segments.iter().cloned()));
        let (p, d) = (self.side.config.components, self.model.width);
        let mut entries = vec![Vec::new(); sentences.samples.len()];
        for (tap, components) in self.taps(batch, hook).await?.into_iter().zip(&self.components) {
            let z = components.apply(&tape, &tap).read().await?;
            let means = tape.linear(&averages, &Var::constant(tap), None, true).value.read().await?;
            for (sample, list) in sentences.samples.iter().zip(&mut entries) {
                let rows = sentences.rows(sample);
                list.push(cache::encode(&z[rows.start * p..rows.end * p], p, &means[sample.start * d..sample.end * d]));
            }
        }
        Ok(entries.into_iter().map(SampleEntries::new).collect())
    }

    /// What is written into a folder: all that is trained, and the components.
    pub async fn tensors(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        let mut tensors = trainer::tensors(self).await?;
        tensors.extend(self.components.iter().enumerate().flat_map(|(i, components)| components.tensors(i)));
        Ok(tensors)
    }

    /// The scaled taps of a batch, `[tokens, d]` each.
    async fn taps(&self, batch: &MicroBatch, hook: &YieldHook) -> Result<Vec<Tensor>, EngineError> {
        batch.check(&self.model)?;
        let dropped = || EngineError::BadStage("its frozen layers were dropped: batches must come with their cached entries".into());
        let backbone = self.backbone.as_ref().ok_or_else(dropped)?;
        let tape = Tape::computing(&self.device);
        let batch = DeviceBatch::new(&self.device, batch);
        let mut x = backbone.embed(&tape, &batch).ok_or_else(dropped)?;
        let mut taps = Vec::new();
        for layer in 0..=self.model.layers {
            if layer > 0 {
                x = backbone.layer(&tape, layer - 1, &x, &batch)?;
            }
            if self.side.config.taps.contains(&layer) {
                taps.push(tape.tap_scale(&x.value).0);
            }
            self.device.submit();
            hook().await;
        }
        Ok(taps)
    }

    /// What the side network reads, from the entries of a batch's samples.
    fn restore(&self, sentences: &Sentences, entries: &[SampleEntries]) -> Result<Encoded, EngineError> {
        let (p, d, taps) = (self.side.config.components, self.model.width, self.side.config.taps.len());
        let (tokens, count) = (sentences.tokens(), sentences.segments.len());
        let pairs = self.side.config.sentences == 2;
        let mut means = vec![0f32; taps * count * d];
        let mut alignment = vec![0f32; if pairs { tokens * taps } else { 0 }];
        let mut components = Vec::new();
        let mut g = Vec::new();
        for (tap, means) in means.chunks_exact_mut(count * d).enumerate() {
            let mut z = vec![0f32; tokens * p];
            for (at, sample) in sentences.samples.iter().enumerate() {
                let rows = sentences.rows(sample);
                let (z, means) = (&mut z[rows.start * p..rows.end * p], &mut means[sample.start * d..sample.end * d]);
                let bytes = entries.get(at).and_then(|entries| entries.get(tap));
                let restored = bytes.and_then(|bytes| cache::decode(bytes, p, z, means));
                restored.ok_or_else(|| EngineError::BadBatch(format!("cached tap {tap} of a sample is missing or damaged: compute it again")))?;
                if pairs {
                    g.resize(rows.len(), 0.0);
                    let (first, second) = z.split_at(sentences.segments[sample.start].len() * p);
                    cache::alignment(first, second, p, &mut g);
                    g.iter().zip(rows).for_each(|(g, row)| alignment[row * taps + tap] = g - 0.5);
                }
            }
            components.push(Tensor::from_f32(&self.device, &[tokens, p], &z));
        }
        let alignment = pairs.then(|| Tensor::from_f32(&self.device, &[tokens, taps], &alignment));
        Ok(Encoded { components, means: Tensor::from_f32(&self.device, &[taps, count * d], &means), alignment })
    }

    /// Factors of the `block`-th block for the next step: 0 for what is left out. They depend on the run's seed, the step,
    /// the block and the sample's tokens, not on where in which batch the sample stands.
    fn dropout(&self, batch: &MicroBatch, sentences: &Sentences, block: usize) -> Tensor {
        let share = self.side.config.dropout as f32;
        let (limit, kept) = ((share * 65536.0) as u16, 1.0 / (1.0 - share));
        let width = self.model.width / self.side.config.reduction;
        let mut factors = Vec::with_capacity(sentences.tokens() * width);
        for rows in sentences.sample_rows() {
            let ids = batch.ids[rows.clone()].iter().fold(0u64, |hash, id| (hash ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3));
            let mut rng = named_rng(&format!("dropout {} {block} {ids:x}", self.optimiser.steps()), self.seed);
            let end = factors.len() + rows.len() * width;
            while factors.len() < end {
                let bits = rng.next_u64();
                let part = (0..4).map(|at| if (bits >> (16 * at)) as u16 >= limit { kept } else { 0.0 });
                factors.extend(part.take(end - factors.len()));
            }
        }
        Tensor::from_f32(&self.device, &[sentences.tokens(), width], &factors)
    }
}

impl Trainer for SideV2Trainer {
    fn head(&self) -> Result<&Head, EngineError> {
        Ok(&self.side.head)
    }

    fn sets(&self) -> Vec<&ParameterSet> {
        vec![&self.side.parameters]
    }

    fn named(&self, flats: &[Vec<f32>]) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        Ok(flats.first().map(|flat| self.side.parameters.named(flat)).unwrap_or_default())
    }

    fn optimiser(&self) -> &Optimiser {
        &self.optimiser
    }

    fn optimiser_mut(&mut self) -> &mut Optimiser {
        &mut self.optimiser
    }

    /// h of each sample; dropout acts on a tape that records. Without entries they are computed, as a cache would keep them.
    fn labelled<'a>(
        &'a self,
        tape: &'a Tape,
        batch: &'a MicroBatch,
        cached: Option<&'a [SampleEntries]>,
        hook: &'a YieldHook,
    ) -> LocalBoxFuture<'a, Result<Var, EngineError>> {
        Box::pin(async move {
            batch.check(&self.model)?;
            let sentences = Sentences::of(batch, self.side.config.sentences)?;
            let encoded = match cached {
                Some(entries) => self.restore(&sentences, entries)?,
                None => self.restore(&sentences, &self.fill(batch, hook).await?)?,
            };
            let factors = |block| self.dropout(batch, &sentences, block);
            let is_training = tape.is_recording() && self.side.config.dropout > 0.0;
            self.side.features(tape, &encoded, &sentences, is_training.then_some(&factors as &dyn Fn(usize) -> Tensor), hook).await
        })
    }
}
