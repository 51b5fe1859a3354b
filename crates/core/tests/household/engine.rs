//! An engine without arithmetic: it counts. An adapter is, for every layer, how often each (epoch, sample) went into it;
//! so "each sample counts exactly once per epoch" can be read off the final state, layer by layer.

use barycenter_core::io::{BlobId, Job, JobResult, LossPart, RowsIn, StagePart};
use barycenter_protocol::control::{Assignment, CheckpointRef, Holding};
use barycenter_protocol::peer::{MicroKey, StepKey};
use barycenter_protocol::plan::ModelCost;
use barycenter_protocol::{Generation, SampleId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// (layer, epoch, sample) → how often.
pub type Counts = BTreeMap<(u32, u32, u32), u32>;

#[derive(Clone, Debug, PartialEq)]
pub enum Blob {
    /// Activations after `layers` layers.
    Rows { key: MicroKey, samples: Vec<SampleId>, layers: u32 },
    /// Side gradients at the input of layer `layer`.
    Gradients { key: MicroKey, samples: Vec<SampleId>, layer: u32 },
    /// A shard of a gradient.
    Shard { key: StepKey, index: u32, of: u32, counts: Counts },
    /// Cache entries.
    Entries { sample: SampleId, taps: Range<u32> },
}

impl Blob {
    /// Bytes it would have on the wire.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Rows { samples, .. } => 4000 * samples.len() as u64,
            Self::Gradients { samples, .. } => 500 * samples.len() as u64,
            Self::Shard { of, .. } => 20_000 / u64::from((*of).max(1)),
            Self::Entries { taps, .. } => 1000 * u64::from(taps.end - taps.start),
        }
    }
}

/// A checkpoint or a part of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    pub layers: BTreeSet<u32>,
    pub counts: Counts,
    pub optimiser_steps: u32,
}

#[derive(Debug)]
struct Prepared {
    assignment: Box<Assignment>,
    part: Option<StagePart>,
    adapter: Adapter,
    gradient: Counts,
    backbone: bool,
    kept: BTreeMap<MicroKey, Vec<SampleId>>,
}

/// What a device's storage keeps over sessions: taps of samples.
pub type Cache = BTreeSet<(u32, u32)>;

#[derive(Debug, Default)]
pub struct Engine {
    pub blobs: BTreeMap<BlobId, Blob>,
    next_blob: u64,
    prepared: Option<Prepared>,
}

/// What a finished job gave, and the part of a checkpoint it wants to upload.
pub struct Finished {
    pub result: JobResult,
    pub upload: Option<(Generation, CheckpointRef, Adapter)>,
}

impl Engine {
    pub fn put(&mut self, blob: Blob) -> BlobId {
        let id = BlobId(self.next_blob);
        self.next_blob += 1;
        self.blobs.insert(id, blob);
        id
    }

    pub fn cancel(&mut self) {
        self.prepared = None;
    }

    /// Bytes held now: what the planner's model says of weights, adapter and samples in flight.
    pub fn memory(&self, cost: &ModelCost, sample_bytes: impl Fn(&Range<u32>) -> u64) -> u64 {
        let Some(p) = &self.prepared else { return 0 };
        let weights = |l: u32| cost.layers[l as usize].weight_bytes;
        let parameters = |l: u32| 16 * cost.layers[l as usize].adapter_parameters;
        let backbone: u64 = p.part.iter().filter(|_| p.backbone).flat_map(|part| part.layers.clone()).map(weights).sum();
        let adapter: u64 = p.adapter.layers.iter().map(|l| parameters(*l)).sum();
        let kept: u64 = p.kept.values().map(|s| s.len() as u64).sum();
        backbone + adapter + kept * p.part.as_ref().map_or(0, |part| sample_bytes(&part.layers))
    }

    /// Bytes of frozen layers held.
    pub fn has_backbone(&self) -> bool {
        self.prepared.as_ref().is_some_and(|p| p.backbone)
    }

    /// Does a job. `stored` is the checkpoint that the server hands out.
    pub fn finish(&mut self, job: Job, cache: &mut Cache, stored: Option<&(CheckpointRef, Adapter)>) -> Finished {
        let mut upload = None;
        let result = match job {
            Job::Prepare { assignment, part, train_slots } => self.prepare(assignment, part, train_slots, cache, stored),
            Job::Generate(request) => JobResult::Generated { base: request.base.then(|| request.prompts.clone()), tuned: request.tuned.then(|| request.prompts.clone()) },
            Job::SaveCheckpoint { next, optimiser_steps, .. } => {
                let p = self.prepared.as_ref().expect("a checkpoint of a prepared generation");
                assert_eq!(p.adapter.optimiser_steps, optimiser_steps);
                assert!(p.gradient.is_empty(), "a checkpoint between steps");
                upload = Some((next.generation, CheckpointRef { epoch: next.epoch, step: next.step, optimiser_steps }, p.adapter.clone()));
                JobResult::CheckpointTaken
            }
            job => self.compute(job, cache),
        };
        Finished { result, upload }
    }

    fn prepare(&mut self, assignment: Box<Assignment>, part: Option<StagePart>, train_slots: Option<Range<u32>>, cache: &Cache, stored: Option<&(CheckpointRef, Adapter)>) -> JobResult {
        if assignment.checkpoint != stored.map(|s| s.0) {
            return JobResult::Failed { reason: format!("asked for the checkpoint {:?}, the server has {:?}", assignment.checkpoint, stored.map(|s| s.0)) };
        }
        let layers: BTreeSet<u32> = match (&part, assignment.fills) {
            (Some(part), true) => part.layers.clone().collect(),
            (_, false) if train_slots.is_some() => (0..assignment.spec.layers).collect(),
            _ => BTreeSet::new(),
        };
        let mut adapter = stored.map(|s| s.1.clone()).unwrap_or_default();
        adapter.counts.retain(|(l, ..), _| layers.contains(l));
        adapter.layers = layers;
        let backbone = assignment.needs_backbone && part.is_some();
        let result = JobResult::Prepared { holdings: holdings(cache) };
        self.prepared = Some(Prepared { assignment, part, adapter, gradient: Counts::new(), backbone, kept: BTreeMap::new() });
        result
    }

    fn compute(&mut self, job: Job, cache: &mut Cache) -> JobResult {
        let mut p = self.prepared.take().expect("work comes after Prepare");
        let labels = |s: &SampleId| u64::from(p.assignment.spec.sample_sizes[s.0 as usize].labels);
        let whole: BTreeSet<u32> = (0..p.assignment.spec.layers).collect();
        let loss = |samples: &[SampleId]| LossPart { loss_sum: samples.iter().map(|s| labels(s) as f64).sum(), tokens: samples.iter().map(labels).sum() };
        let result = match job {
            Job::Forward { key, samples, inputs, outputs, cache_write, total_labels } => {
                let part = p.part.clone().expect("a stage");
                assert!(p.backbone, "forward needs the frozen layers");
                assert_eq!(inputs.is_empty(), part.is_first);
                assert_eq!(outputs.is_empty(), part.is_last);
                if !part.is_first {
                    self.check_rows(&samples, &inputs, |blob, want| assert_eq!(*blob, Blob::Rows { key, samples: want.to_vec(), layers: part.layers.start }));
                }
                if !key.forward_only {
                    assert!(total_labels > 0);
                    assert!(p.kept.insert(key, samples.clone()).is_none(), "a micro-batch twice");
                }
                if cache_write {
                    cache.extend(samples.iter().flat_map(|s| part.taps.clone().map(|t| (s.0, t))));
                }
                let loss = (part.is_last && !key.forward_only).then(|| loss(&samples));
                let outputs = outputs.into_iter().map(|rows| self.put(Blob::Rows { key, samples: rows.samples, layers: part.layers.end })).collect();
                JobResult::ForwardDone { outputs, loss, backbone_seconds: 0.01, side_seconds: 0.001 }
            }
            Job::Backward { key, samples, inputs, outputs } => {
                let part = p.part.clone().expect("a stage");
                assert_eq!(p.kept.remove(&key).as_ref(), Some(&samples), "backward after its forward");
                if !part.is_last {
                    self.check_rows(&samples, &inputs, |blob, want| assert_eq!(*blob, Blob::Gradients { key, samples: want.to_vec(), layer: part.layers.end }));
                }
                for (layer, sample) in part.layers.clone().flat_map(|l| samples.iter().map(move |s| (l, s))) {
                    *p.gradient.entry((layer, key.step.epoch, sample.0)).or_default() += 1;
                }
                let outputs = outputs.into_iter().map(|rows| self.put(Blob::Gradients { key, samples: rows.samples, layer: part.layers.start })).collect();
                JobResult::BackwardDone { outputs, side_seconds: 0.002 }
            }
            Job::CachedStep { key, samples, .. } => {
                assert_eq!(p.adapter.layers, whole);
                assert!(!p.backbone, "no frozen layers in the train phase");
                for (layer, sample) in whole.iter().flat_map(|l| samples.iter().map(move |s| (l, s))) {
                    *p.gradient.entry((*layer, key.epoch, sample.0)).or_default() += 1;
                }
                for sample in &samples {
                    assert!((0..=p.assignment.spec.layers).all(|t| cache.contains(&(sample.0, t))), "sample {sample} is not in the cache");
                }
                JobResult::CachedStepDone { loss: loss(&samples), side_seconds: 0.003 }
            }
            Job::MeasureGradient { .. } => JobResult::GradientMeasured { squared_norm: p.gradient.len() as f64 },
            Job::ReadGradient { key, shards } => {
                let of = u32::from(shards);
                let shard = |index: u32| Blob::Shard { key, index, of, counts: p.gradient.iter().filter(|((l, ..), _)| l % of == index).map(|(k, v)| (*k, *v)).collect() };
                JobResult::GradientRead { shards: (0..of).map(|i| self.put(shard(i))).collect() }
            }
            Job::SumShard { key, inputs } => {
                let mut sum = Counts::new();
                let mut which = BTreeSet::new();
                for input in &inputs {
                    let Some(Blob::Shard { key: k, index, of, counts }) = self.blobs.get(input) else { panic!("a shard") };
                    assert_eq!((*k, *of), (key, inputs.len() as u32));
                    which.insert(*index);
                    counts.iter().for_each(|(k, v)| *sum.entry(*k).or_default() += v);
                }
                assert_eq!(which.len(), 1, "inputs of one shard");
                let index = which.pop_first().expect("one");
                let squared_norm = sum.len() as f64;
                JobResult::ShardSummed { blob: self.put(Blob::Shard { key, index, of: inputs.len() as u32, counts: sum }), squared_norm }
            }
            Job::ApplyUpdate { key, shards, optimiser_step, .. } => {
                assert_eq!(p.adapter.optimiser_steps, optimiser_step, "steps in order");
                let update = if shards.is_empty() { p.gradient.clone() } else { Counts::new() };
                let mut parts = vec![update];
                for (at, shard) in shards.iter().enumerate() {
                    let Some(Blob::Shard { key: k, index, of, counts }) = self.blobs.get(shard) else { panic!("a shard") };
                    assert_eq!((*k, *index as usize, *of as usize), (key, at, shards.len()));
                    parts.push(counts.clone());
                }
                for (k, v) in parts.into_iter().flatten() {
                    let count = p.adapter.counts.entry(k).or_default();
                    *count += v;
                    assert_eq!(*count, 1, "(layer, epoch, sample) {k:?} counted more than once");
                }
                p.adapter.optimiser_steps += 1;
                p.gradient.clear();
                JobResult::Applied { side_seconds: 0.001 }
            }
            Job::EvaluateHeldOut { samples, .. } => {
                for sample in &samples {
                    assert!((0..=p.assignment.spec.layers).all(|t| cache.contains(&(sample.0, t))), "held-out sample {sample} is not in the cache");
                }
                JobResult::HeldOut(loss(&samples))
            }
            Job::ReadCache { sample, taps } => {
                assert!(taps.clone().all(|t| cache.contains(&(sample.0, t))));
                let lengths = taps.clone().map(|_| 1000).collect();
                JobResult::CacheRead { blob: self.put(Blob::Entries { sample, taps }), lengths }
            }
            Job::WriteCache { sample, first_tap, lengths, blob } => {
                let taps = first_tap..first_tap + lengths.len() as u32;
                assert_eq!(self.blobs.get(&blob), Some(&Blob::Entries { sample, taps: taps.clone() }));
                cache.extend(taps.map(|t| (sample.0, t)));
                JobResult::CacheWritten
            }
            Job::Holdings => JobResult::Holdings(holdings(cache)),
            Job::ReleaseBackbone => {
                p.backbone = false;
                JobResult::Released
            }
            Job::Prepare { .. } | Job::Generate(_) | Job::SaveCheckpoint { .. } => unreachable!("done by finish"),
        };
        self.prepared = Some(p);
        result
    }

    /// The inputs hold exactly `samples`, and each is what `check` says.
    fn check_rows(&self, samples: &[SampleId], inputs: &[RowsIn], check: impl Fn(&Blob, &[SampleId])) {
        let mut got: Vec<_> = inputs.iter().flat_map(|i| i.samples.clone()).collect();
        let mut want = samples.to_vec();
        got.sort();
        want.sort();
        assert_eq!(got, want);
        for input in inputs {
            check(self.blobs.get(&input.blob).expect("a live blob"), &input.samples);
        }
    }
}

/// Cache entries as a node reports them.
fn holdings(cache: &Cache) -> Vec<Holding> {
    let mut by_sample: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (sample, tap) in cache {
        by_sample.entry(*sample).or_default().push(*tap);
    }
    let mut result = Vec::new();
    for (sample, taps) in by_sample {
        let mut start = taps[0];
        let mut end = start;
        for tap in taps {
            if tap != end && tap != start {
                result.push(Holding { samples: std::iter::once(sample..sample + 1).collect(), taps: start..end });
                start = tap;
            }
            end = tap + 1;
        }
        result.push(Holding { samples: std::iter::once(sample..sample + 1).collect(), taps: start..end });
    }
    result
}
