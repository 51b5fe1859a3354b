//! Does the jobs the core names: one at a time, with the engine, the cache, the weights and the server.

mod entries;
mod fetch;
mod generation;
mod prepare;

use crate::blobs::Blobs;
use crate::cache::ActivationCache;
use crate::gradients;
use crate::meter::{MemoryPhase, Meter};
use crate::storage::{Storage, StorageError};
use crate::NodeShell;
use barycenter_core::io::{BlobId, Entries, Job, JobResult, LossPart, Rows, RowsIn};
use barycenter_engine::cache_entry::CacheDtype;
use barycenter_engine::side::{SideConfig, SideLayout, flat_from_named};
use barycenter_engine::stage::{ForwardPass, StageInput};
use barycenter_engine::tape::YieldHook;
use barycenter_engine::{Device, EngineError, generate};
use barycenter_model::names::Parts;
use barycenter_model::{MemoryTensors, ModelError, write_safetensors};
use barycenter_protocol::SampleId;
use barycenter_protocol::control::{CacheType, GenerateRequest, Holding, RunSpec};
use barycenter_protocol::peer::MicroKey;
use barycenter_transport::{Http, HttpError, platform};
use bytes::Bytes;
use entries::{holdings_of, split_entries, taps_of};
use fetch::Model;
use generation::Generation;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

pub(crate) use fetch::Fetcher;

/// Part of the cache's key: changes whenever the bytes of an entry change their meaning.
pub const CACHE_FORMAT: &str = "taps version 2";

/// Why a job could not be done; the sentence goes to the dashboard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{0}")]
    Other(String),
    #[error("the generation was abandoned")]
    Cancelled,
}

/// Tells the server and the page how far a long job is: text, 0 … 1.
pub(crate) type Progress<'a> = &'a dyn Fn(String, f32);

/// The engine side of a node.
pub(crate) struct Worker {
    device: Device,
    http: Http,
    storage: Rc<dyn Storage>,
    storage_budget_bytes: u64,
    blobs: Rc<RefCell<Blobs>>,
    meter: Rc<Meter>,
    cancelled: Rc<Cell<u64>>,
    hook: YieldHook,
    /// The model last used, with its weights on this device.
    weights: Fetcher,
    /// The cache last used, by key.
    cache: Option<(String, ActivationCache)>,
    generation: Option<Generation>,
}

impl Worker {
    pub fn new(shell: &NodeShell, device: Device, blobs: Rc<RefCell<Blobs>>, storage_budget_bytes: u64) -> Self {
        Self {
            device,
            http: shell.http.clone(),
            storage: Rc::clone(&shell.storage),
            storage_budget_bytes,
            blobs,
            meter: Rc::clone(&shell.meter),
            cancelled: Rc::clone(&shell.cancelled),
            hook: Rc::new(|| Box::pin(platform::yield_now())),
            weights: Fetcher { http: shell.http.clone(), meter: Rc::clone(&shell.meter), model: Rc::default() },
            cache: None,
            generation: None,
        }
    }

    /// Fetches weights beside the jobs; not while a job fetches some, see [`fetches`].
    pub fn fetcher(&self) -> Fetcher {
        self.weights.clone()
    }

    /// Drops what belongs to a generation; weights and cache on disk stay.
    pub fn forget_generation(&mut self) {
        self.generation = None;
        self.note_memory();
    }

    /// Does one job.
    pub async fn run(&mut self, job: Job, progress: Progress<'_>) -> JobResult {
        let started = platform::now_millis();
        let result = self.try_run(job, progress).await.unwrap_or_else(|error| JobResult::Failed { reason: error.to_string() });
        self.meter.update(|c| c.compute_seconds += (platform::now_millis() - started) / 1_000.0);
        self.note_memory();
        result
    }

    async fn try_run(&mut self, job: Job, progress: Progress<'_>) -> Result<JobResult, JobError> {
        Ok(match job {
            Job::Prepare { assignment, part, train_slots } => {
                self.prepare(assignment, part, train_slots, progress).await?;
                JobResult::Prepared { holdings: self.holdings()? }
            }
            Job::Forward { key, samples, inputs, outputs, total_labels, cache_write, hand_on } => {
                let writes = cache_write.then_some(&hand_on[..]);
                self.forward(key, &samples, inputs, &outputs, total_labels, writes).await?
            }
            Job::Backward { key, samples, inputs, outputs } => self.backward(key, &samples, inputs, &outputs).await?,
            Job::CachedStep { samples, total_labels, streamed, .. } => {
                let started = platform::now_millis();
                let loss = self.cached(&samples, &streamed, 1.0 / total_labels.max(1) as f32, true).await?;
                JobResult::CachedStepDone { loss, side_seconds: seconds_since(started) }
            }
            Job::EvaluateHeldOut { samples, streamed, .. } => JobResult::HeldOut(self.cached(&samples, &streamed, 0.0, false).await?),
            Job::MeasureGradient { .. } => JobResult::GradientMeasured { squared_norm: self.generation()?.runtime.gradient_squared_norm().await? },
            Job::ReadGradient { shards, .. } => {
                let generation = self.generation()?;
                let (flat, kind) = (generation.runtime.gradients().await?, generation.gradients());
                let n = shards.max(1) as usize;
                let bounds: Vec<usize> = (0..=n).map(|j| j * flat.len() / n).collect();
                let shards = bounds.windows(2).map(|w| self.keep(gradients::encode(&flat[w[0]..w[1]], kind))).collect();
                JobResult::GradientRead { shards }
            }
            Job::SumShard { inputs, .. } => self.sum_shard(&inputs)?,
            Job::ApplyUpdate { shards, optimiser_step, learning_rate, clip_factor, .. } => {
                let started = platform::now_millis();
                if !shards.is_empty() {
                    let mut flat = Vec::new();
                    for &shard in &shards {
                        flat.extend(self.gradients_of(shard)?);
                    }
                    self.generation()?.runtime.set_gradients(&flat)?;
                }
                self.generation()?.runtime.apply(optimiser_step + 1, learning_rate as f32, clip_factor as f32)?;
                JobResult::Applied { side_seconds: seconds_since(started) }
            }
            Job::SaveCheckpoint { run, next, part, .. } => {
                let tensors = self.generation()?.runtime.checkpoint().await?;
                let body = Bytes::from(write_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &BTreeMap::new()));
                let path = format!("/api/runs/{run}/checkpoint/{}/{}/{}/{part}", next.generation, next.epoch, next.step);
                let http = self.http.clone();
                platform::spawn_local(async move {
                    // A part that does not arrive costs only the steps since the checkpoint before.
                    if let Err(error) = http.put(&path, body).await {
                        log::warn!("checkpoint part not saved: {error}");
                    }
                });
                JobResult::CheckpointTaken
            }
            Job::ReadCache { sample, taps } => {
                let (_, cache) = self.cache.as_ref().ok_or_else(no_generation)?;
                let mut lengths = Vec::new();
                let mut bytes = Vec::new();
                for tap in taps {
                    let entry = cache.read(sample.0, tap as u16)?.ok_or_else(|| JobError::Other(format!("cache entry {tap} of sample {sample} is not on this device")))?;
                    lengths.push(entry.len() as u32);
                    bytes.extend(entry);
                }
                JobResult::CacheRead { blob: self.keep(bytes.into()), lengths }
            }
            Job::WriteCache { sample, first_tap, lengths, blob } => {
                let bytes = self.blobs.borrow().get(blob);
                let entries = split_entries(&bytes, &lengths)?;
                let taps = taps_of(first_tap, entries.len())?;
                let cache = self.cache_mut()?;
                // What is computed again after an interruption is here already: storage is for new entries.
                if !cache.holds(sample.0, taps.clone()) {
                    cache.write(sample.0, taps.start, &entries)?;
                }
                JobResult::CacheWritten
            }
            Job::Holdings => JobResult::Holdings(self.holdings()?),
            Job::ReleaseBackbone => {
                self.release_backbone().await?;
                JobResult::Released
            }
            Job::Generate(request) => self.generate(*request, progress).await?,
        })
    }

    async fn forward(&mut self, key: MicroKey, samples: &[SampleId], inputs: Vec<RowsIn>, outputs: &[Rows], total_labels: u64, writes: Option<&[SampleId]>) -> Result<JobResult, JobError> {
        let blobs = Rc::clone(&self.blobs);
        let generation = self.generation.as_mut().ok_or_else(no_generation)?;
        let batch = generation.pack(samples)?;
        let (width, side_width) = (generation.width(), if key.forward_only { 0 } else { generation.runtime.side_width() });
        let input = if inputs.is_empty() { None } else {
            let parts = with_bytes(&blobs.borrow(), inputs);
            let b = generation.gather(samples, &parts, width, 0)?;
            let a = if key.forward_only { None } else { Some(generation.gather(samples, &parts, side_width, width)?) };
            Some(StageInput { b, a })
        };
        let number = generation.next_key;
        generation.next_key += 1;
        let pass = ForwardPass { batch: &batch, input, forward_only: key.forward_only, cache: writes.is_some(), loss_factor: 1.0 / total_labels.max(1) as f32 };
        let output = generation.runtime.forward(number, pass).await?;
        if !key.forward_only {
            generation.keys.insert(key, number);
        }
        let first_tap = generation.taps.start;
        let pieces = outputs.iter().map(|rows| generation.split(samples, &rows.samples, &[(&output.b, width), (&output.a, side_width)])).collect::<Result<Vec<_>, _>>()?;
        let loss = output.loss_sum.map(|loss_sum| LossPart { loss_sum, tokens: batch.classes.len() as u64 });
        let hand_on = writes.unwrap_or_default();
        let mut handed_on = Vec::new();
        for (&sample, entries) in samples.iter().zip(&output.entries) {
            // A stage between two taps has nothing to keep.
            if entries.is_empty() {
                continue;
            }
            if hand_on.contains(&sample) {
                let lengths = entries.iter().map(|entry| entry.len() as u32).collect();
                handed_on.push(Entries { sample, first_tap, lengths, blob: self.keep(entries.concat().into()) });
            } else {
                let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
                self.cache_mut()?.write(sample.0, first_tap as u16, &entries)?;
            }
        }
        Ok(JobResult::ForwardDone { entries: handed_on, outputs: pieces.into_iter().map(|bytes| self.keep(bytes)).collect(), loss, backbone_seconds: output.backbone_seconds, side_seconds: output.side_seconds })
    }

    async fn backward(&mut self, key: MicroKey, samples: &[SampleId], inputs: Vec<RowsIn>, outputs: &[Rows]) -> Result<JobResult, JobError> {
        let blobs = Rc::clone(&self.blobs);
        let generation = self.generation.as_mut().ok_or_else(no_generation)?;
        let width = generation.runtime.side_width();
        let gradient = if inputs.is_empty() { None } else {
            let parts = with_bytes(&blobs.borrow(), inputs);
            Some(generation.gather(samples, &parts, width, 0)?)
        };
        let number = generation.keys.remove(&key).ok_or_else(|| JobError::Other("a backward pass was asked for that had no forward pass".into()))?;
        let (back, side_seconds) = generation.runtime.backward(number, gradient).await?;
        let back = back.unwrap_or_default();
        let pieces = outputs.iter().map(|rows| generation.split(samples, &rows.samples, &[(&back, width)])).collect::<Result<Vec<_>, _>>()?;
        Ok(JobResult::BackwardDone { outputs: pieces.into_iter().map(|bytes| self.keep(bytes)).collect(), side_seconds })
    }

    async fn cached(&mut self, samples: &[SampleId], streamed: &[Entries], loss_factor: f32, train: bool) -> Result<LossPart, JobError> {
        let blobs = Rc::clone(&self.blobs);
        let (_, cache) = self.cache.as_ref().ok_or_else(no_generation)?;
        let generation = self.generation.as_mut().ok_or_else(no_generation)?;
        let taps = generation.assignment.spec.tap_count() as u16;
        let batch = generation.pack(samples)?;
        let entries = samples.iter().map(|sample| match streamed.iter().find(|entries| entries.sample == *sample) {
            Some(entries) => Ok(split_entries(&blobs.borrow().get(entries.blob), &entries.lengths)?.into_iter().map(<[u8]>::to_vec).collect()),
            None => (0..taps).map(|tap| cache.read(sample.0, tap)?.ok_or_else(|| JobError::Other(format!("cache entry {tap} of sample {sample} is not on this device")))).collect(),
        });
        let entries: Vec<Vec<Vec<u8>>> = entries.collect::<Result<_, JobError>>()?;
        let loss_sum = generation.runtime.train_cached(&batch, &entries, loss_factor, train).await?;
        Ok(LossPart { loss_sum, tokens: batch.classes.len() as u64 })
    }

    fn sum_shard(&self, inputs: &[BlobId]) -> Result<JobResult, JobError> {
        let mut sum: Vec<f32> = Vec::new();
        for (rank, &input) in inputs.iter().enumerate() {
            let part = self.gradients_of(input)?;
            if rank == 0 {
                sum = part;
            } else if part.len() == sum.len() {
                sum.iter_mut().zip(&part).for_each(|(s, p)| *s += p);
            } else {
                return Err(JobError::Other(format!("a gradient shard has {} values, expected {}: all devices must run the same version", part.len(), sum.len())));
            }
        }
        // The norm is that of what every rank will read, this one too.
        let blob = self.keep(gradients::encode(&sum, self.generation()?.gradients()));
        let squared_norm = self.gradients_of(blob)?.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        Ok(JobResult::ShardSummed { blob, squared_norm })
    }

    async fn release_backbone(&mut self) -> Result<(), JobError> {
        let Some(generation) = &mut self.generation else { return Ok(()) };
        generation.runtime.drop_backbone();
        if generation.trains {
            let model = self.weights.model().ok_or_else(no_generation)?;
            let format = generation.assignment.spec.weights;
            generation.runtime.load_backbone(&mut model.weights.borrow_mut().held_as(format), &Parts::head_only())?;
        }
        generation.phase = MemoryPhase::Train;
        self.meter.update(|c| c.backbone_bytes = 0);
        self.device.reset_peak();
        Ok(())
    }

    async fn generate(&mut self, request: GenerateRequest, progress: Progress<'_>) -> Result<JobResult, JobError> {
        let parts = |config: &barycenter_model::ModelConfig| Parts::all(config);
        self.open_model(&request.spec, parts, progress).await?;
        let tensors = match (request.tuned, request.run) {
            (true, Some(run)) => Some(MemoryTensors::from_safetensors("the checkpoint", &self.http.get(&format!("/api/runs/{run}/checkpoint")).await?)?.tensors),
            _ => None,
        };
        let model = self.model()?;
        let config = model.config.clone();
        let side_config = side_config(&request.spec);
        let side = match tensors {
            Some(tensors) => {
                let layout = SideLayout::whole(&config, &side_config)?;
                let flat = flat_from_named(&layout, |name| tensors.get(name).cloned())?;
                Some((layout, flat))
            }
            None => None,
        };
        let stage = barycenter_engine::backbone::Backbone::load(&self.device, &config, &mut model.weights.borrow_mut().held_as(request.spec.weights), &Parts::all(&config))?;
        let side = match side {
            Some((layout, flat)) => Some(barycenter_engine::side::Side::new(&self.device, layout, &flat)?),
            None => None,
        };
        let options = generate::GenerateOptions { max_new_tokens: request.max_new_tokens as usize, stop: config.eos.clone() };
        let base = if request.base { Some(generate::generate(&stage, None, &request.prompts, &options, &self.hook).await?) } else { None };
        let tuned = match (&side, request.tuned) {
            (Some(side), true) => Some(generate::generate(&stage, Some(side), &request.prompts, &options, &self.hook).await?),
            _ => None,
        };
        Ok(JobResult::Generated { base, tuned })
    }

    fn holdings(&self) -> Result<Vec<Holding>, JobError> {
        let Some((_, cache)) = &self.cache else { return Ok(Vec::new()) };
        cache.flush()?;
        self.meter.update(|c| c.cache_bytes = cache.len_bytes());
        Ok(holdings_of(&cache.contents()))
    }

    fn note_memory(&self) {
        let memory = self.device.memory();
        self.meter.memory(memory.current_bytes, memory.peak_bytes, self.generation.as_ref().map(|g| g.phase));
        if let Some((_, cache)) = &self.cache {
            self.meter.update(|c| c.cache_bytes = cache.len_bytes());
        }
    }

    fn keep(&self, bytes: Bytes) -> BlobId {
        self.blobs.borrow_mut().insert(bytes)
    }

    fn gradients_of(&self, blob: BlobId) -> Result<Vec<f32>, JobError> {
        let kind = self.generation()?.gradients();
        gradients::decode(&self.blobs.borrow().get(blob), kind).ok_or_else(|| JobError::Other("a gradient message has a length that no gradient has: all devices must run the same version".into()))
    }

    fn generation(&self) -> Result<&Generation, JobError> {
        self.generation.as_ref().ok_or_else(no_generation)
    }

    fn model(&self) -> Result<Rc<Model>, JobError> {
        self.weights.model().ok_or_else(no_generation)
    }

    fn cache_mut(&mut self) -> Result<&mut ActivationCache, JobError> {
        self.cache.as_mut().map(|(_, cache)| cache).ok_or_else(no_generation)
    }
}

/// Rows with their bytes.
fn with_bytes(blobs: &Blobs, inputs: Vec<RowsIn>) -> Vec<(Vec<SampleId>, Bytes)> {
    inputs.into_iter().map(|rows| (rows.samples, blobs.get(rows.blob))).collect()
}

/// Whether a job may fetch weights.
pub(crate) fn fetches(job: &Job) -> bool {
    matches!(job, Job::Prepare { .. } | Job::Generate(_))
}

/// The side network of a run.
fn side_config(spec: &RunSpec) -> SideConfig {
    SideConfig { taps: spec.tapped().map(|tap| tap as usize).collect(), ..SideConfig::new(spec.reduction as usize, spec.layers as usize) }
}

/// How the engine encodes a run's cache entries.
fn cache_dtype(spec: &RunSpec) -> CacheDtype {
    match spec.cache {
        CacheType::F16 => CacheDtype::F16,
        CacheType::Int8 => CacheDtype::Int8,
    }
}

fn no_generation() -> JobError {
    JobError::Other("work was asked for before the preparation".into())
}

fn seconds_since(started_millis: f64) -> f64 {
    (platform::now_millis() - started_millis) / 1_000.0
}
