//! Getting ready for a generation: tokens, weights, adapter state.

use super::fetch::{Model, wanted};
use super::{CACHE_FORMAT, Generation, JobError, Progress, Worker, cache_dtype, side_config};
use crate::cache::ActivationCache;
use crate::meter::MemoryPhase;
use crate::weights::WeightStore;
use barycenter_core::io::StagePart;
use barycenter_engine::optim::AdamWConfig;
use barycenter_engine::packed::Sequence;
use barycenter_engine::stage::StageRuntime;
use barycenter_model::names::Parts;
use barycenter_model::{Manifest, ManifestTensor, MemoryTensors, ModelConfig, TensorEntry, TensorSource, hash_bytes};
use barycenter_protocol::control::{Assignment, RunSpec};
use barycenter_transport::platform;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

impl Worker {
    pub(super) async fn prepare(&mut self, assignment: Box<Assignment>, part: Option<StagePart>, train_slots: Option<Range<u32>>, progress: Progress<'_>) -> Result<(), JobError> {
        self.generation = None;
        let cancelled_before = self.cancelled.get();
        let spec = &assignment.spec;
        let backbone_layers = part.as_ref().filter(|_| assignment.needs_backbone).map(|p| p.layers.start as usize..p.layers.end as usize);
        let trains = train_slots.is_some();
        // Who only keeps entries for others needs nothing of the model, and no tokens.
        let computes = part.is_some() || trains || assignment.plan.stores.is_empty();
        let without_layers = Parts { head: computes, ..Parts::head_only() };
        let frozen = part.as_ref().filter(|_| assignment.needs_backbone);
        let parts = |config: &ModelConfig| if frozen.is_some() { wanted(config, frozen, trains) } else { without_layers.clone() };
        self.open_model(spec, parts, progress).await?;
        self.check_cancelled(cancelled_before)?;
        let samples = if computes { self.fetch_samples(spec).await? } else { Vec::new() };
        self.open_cache(spec).await?;
        self.check_cancelled(cancelled_before)?;

        let model = self.model()?;
        let config = model.config.clone();
        // While the pipeline trains, a node holds the side network beside its layers; afterwards all of it.
        let side_layers = match (&part, assignment.fills) {
            (Some(part), true) => Some(part.layers.start as usize..part.layers.end as usize),
            _ => train_slots.as_ref().map(|_| 0..config.layers),
        };
        self.device.reset_peak();
        let layers = backbone_layers.clone().unwrap_or(0..config.layers);
        let mut runtime = StageRuntime::new(&self.device, config.clone(), layers, Rc::clone(&self.hook), Rc::new(|| platform::now_millis() / 1_000.0));
        let parts = match &backbone_layers {
            Some(layers) => Parts::stage(&config, layers.clone()),
            None => without_layers.clone(),
        };
        let backbone_bytes = {
            let mut store = model.weights.borrow_mut();
            let mut weights = store.held_as(spec.weights);
            runtime.load_backbone(&mut weights, &parts)?;
            let held = |(name, _): (String, &ManifestTensor)| weights.entry(&name).map_or(0, |entry| entry.end - entry.start);
            if backbone_layers.is_some() { model.manifest.entries(&config, &parts)?.into_iter().map(held).sum() } else { 0 }
        };
        runtime.cache_as(cache_dtype(spec), &side_config(spec));
        self.meter.update(|c| c.backbone_bytes = backbone_bytes);
        if let Some(side_layers) = side_layers {
            let side_config = side_config(spec);
            let optimiser = AdamWConfig { weight_decay: spec.weight_decay as f32, ..AdamWConfig::default() };
            match assignment.checkpoint {
                Some(checkpoint) => {
                    let bytes = self.http.get(&format!("/api/runs/{}/checkpoint", assignment.run)).await?;
                    let header = barycenter_model::SafetensorsHeader::parse(&bytes)?;
                    let number = |key: &str| header.metadata.get(key).and_then(|value| value.parse::<u32>().ok());
                    if (number("epoch"), number("step")) != (Some(checkpoint.epoch), Some(checkpoint.step)) {
                        return Err(JobError::Other(format!("the server's checkpoint is of epoch {:?} step {:?}, expected {} and {}", number("epoch"), number("step"), checkpoint.epoch, checkpoint.step)));
                    }
                    let tensors = MemoryTensors::from_safetensors("the checkpoint", &bytes)?.tensors;
                    runtime.restore_side(&side_config, side_layers, optimiser, |name| tensors.get(name).cloned())?;
                }
                None => runtime.start_side(&side_config, side_layers, optimiser, spec.seed)?,
            }
        }
        let taps = part.map_or(0..0, |part| part.taps);
        let phase = if backbone_layers.is_some() { MemoryPhase::Fill } else { MemoryPhase::Train };
        self.generation = Some(Generation { assignment, samples, runtime, taps, keys: HashMap::new(), next_key: 0, phase, trains });
        progress("ready".into(), 1.0);
        Ok(())
    }

    /// Makes `self.model` the spec's, with at least the wanted parts on this device.
    pub(super) async fn open_model(&mut self, spec: &RunSpec, wanted: impl Fn(&ModelConfig) -> Parts, progress: Progress<'_>) -> Result<(), JobError> {
        if self.weights.model().is_none_or(|model| model.manifest.model_hash != spec.model_hash) {
            self.weights.model.replace(None);
            let manifest: Manifest = self.http.get_json(&format!("/api/models/{}/manifest", spec.model)).await?;
            if manifest.model_hash != spec.model_hash {
                return Err(JobError::Other(format!("the server's model {} has changed since the run was started: start a new run", spec.model)));
            }
            let config = manifest.parse_config()?;
            let entries: BTreeMap<String, TensorEntry> = manifest
                .tensors
                .iter()
                .map(|(name, t)| (name.clone(), TensorEntry { dtype: t.dtype, shape: t.shape.clone(), start: 0, end: t.len_bytes }))
                .collect();
            let weights = WeightStore::open(self.storage.as_ref(), &spec.model_hash, entries).await?;
            self.weights.model.replace(Some(Rc::new(Model { manifest, config, weights: RefCell::new(weights) })));
        }
        let model = self.model()?;
        self.weights.fetch(&spec.model, &model, &wanted(&model.config), progress).await
    }

    async fn fetch_samples(&self, spec: &RunSpec) -> Result<Vec<Sequence>, JobError> {
        let count = spec.train_samples + spec.held_out_samples;
        let path = format!("/api/datasets/{}/samples?model={}&range=0..{count}", spec.dataset, spec.model);
        let samples: Vec<Sequence> = self.http.get_json(&path).await?;
        if samples.len() != count as usize {
            return Err(JobError::Other(format!("the server sent {} samples, expected {count}: start a new run", samples.len())));
        }
        Ok(samples)
    }

    async fn open_cache(&mut self, spec: &RunSpec) -> Result<(), JobError> {
        let taps: Vec<String> = spec.tapped().map(|tap| tap.to_string()).collect();
        // Rounded weights give other taps.
        let form = format!("{}\n{}\n{CACHE_FORMAT}\n{:?}\n{:?}\n{}", spec.model_hash, spec.dataset_hash, spec.weights, spec.cache, taps.join(","));
        let key = hash_bytes(form.as_bytes())[..32].to_owned();
        if self.cache.as_ref().is_some_and(|(open, _)| *open == key) {
            return Ok(());
        }
        self.cache = None;
        let cache = ActivationCache::open(self.storage.as_ref(), &key, self.storage_budget_bytes).await?;
        self.cache = Some((key, cache));
        Ok(())
    }

    fn check_cancelled(&self, before: u64) -> Result<(), JobError> {
        if self.cancelled.get() == before { Ok(()) } else { Err(JobError::Cancelled) }
    }
}
