//! An engine without arithmetic: it counts. An adapter is, for every layer, how often each (epoch, sample) went into it;
//! so "each sample counts exactly once per epoch" can be read off the final state, layer by layer.

use crate::timing::{Costs, Seconds};
use barycenter_core::io::{BlobId, Entries, Job, JobResult, LossPart, RowsIn, StagePart};
use barycenter_protocol::control::{Assignment, CheckpointRef, Holding};
use barycenter_protocol::peer::{MicroKey, StepKey};
use barycenter_protocol::{Generation, SampleId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// (layer, epoch, sample) → how often.
pub(crate) type Counts = BTreeMap<(u32, u32, u32), u32>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Blob {
    /// Activations after `layers` layers.
    Rows { key: MicroKey, samples: Vec<SampleId>, layers: u32 },
    /// Side gradients at the input of layer `layer`.
    Gradients { key: MicroKey, samples: Vec<SampleId>, layer: u32 },
    /// A shard of a gradient.
    Shard { key: StepKey, index: u32, of: u32, counts: Counts },
    /// Cache entries.
    Entries { sample: SampleId, taps: Range<u32> },
}

/// A blob and the bytes it would have on the wire.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Data {
    pub blob: Blob,
    pub bytes: u64,
}

/// A checkpoint or a part of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Adapter {
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
pub(crate) type Cache = BTreeSet<(u32, u32)>;

#[derive(Debug, Default)]
pub(crate) struct Engine {
    pub blobs: BTreeMap<BlobId, Data>,
    next_blob: u64,
    prepared: Option<Prepared>,
}

/// What a finished job gave, and the part of a checkpoint it wants to upload.
pub(crate) struct Finished {
    pub result: JobResult,
    pub upload: Option<(Generation, CheckpointRef, Adapter)>,
}

impl Engine {
    pub fn put(&mut self, data: Data) -> BlobId {
        let id = BlobId(self.next_blob);
        self.next_blob += 1;
        self.blobs.insert(id, data);
        id
    }

    fn blob(&self, id: BlobId) -> &Blob {
        &self.blobs.get(&id).expect("a live blob").blob
    }

    /// Place in the pipeline of the generation prepared, and adapter parameters held.
    pub fn part(&self, costs: &Costs) -> (Option<StagePart>, u64) {
        self.prepared.as_ref().map_or((None, 0), |p| (p.part.clone(), costs.adapter_parameters(p.adapter.layers.iter().copied())))
    }

    pub fn cancel(&mut self) {
        self.prepared = None;
    }

    /// Bytes held now: what the planner's model says of weights, adapter and samples in flight.
    pub fn memory(&self, costs: &Costs, max_tokens: u32) -> u64 {
        let Some(p) = &self.prepared else { return 0 };
        let of = |l: u32| &costs.model.layers[l as usize];
        let backbone: u64 = p.part.iter().filter(|_| p.backbone).flat_map(|part| costs.weight_bytes(Some(part), false)).map(|w| w.1).sum();
        let adapter = 16 * costs.adapter_parameters(p.adapter.layers.iter().copied());
        let kept: u64 = p.kept.values().map(|s| s.len() as u64).sum();
        let per_token: u64 = p.part.iter().flat_map(|part| part.layers.clone()).map(|l| of(l).activation_bytes).sum();
        backbone + adapter + kept * per_token * u64::from(max_tokens)
    }

    /// Whether frozen layers are held.
    pub fn has_backbone(&self) -> bool {
        self.prepared.as_ref().is_some_and(|p| p.backbone)
    }

    /// Does a job. `stored` is the checkpoint that the server hands out.
    pub fn finish(&mut self, job: Job, took: Seconds, costs: &Costs, cache: &mut Cache, stored: Option<&(CheckpointRef, Adapter)>) -> Finished {
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
            job => self.compute(job, took, costs, cache),
        };
        Finished { result, upload }
    }

    fn prepare(&mut self, assignment: Box<Assignment>, part: Option<StagePart>, train_slots: Option<Range<u32>>, cache: &Cache, stored: Option<&(CheckpointRef, Adapter)>) -> JobResult {
        // as the real node: without a checkpoint to restore, it does not ask for one
        if assignment.checkpoint.is_some() && assignment.checkpoint != stored.map(|s| s.0) {
            return JobResult::Failed { reason: format!("asked for the checkpoint {:?}, the server has {:?}", assignment.checkpoint, stored.map(|s| s.0)) };
        }
        let layers: BTreeSet<u32> = match (&part, assignment.fills) {
            (Some(part), true) => part.layers.clone().collect(),
            (_, false) if train_slots.is_some() => (0..assignment.spec.layers).collect(),
            _ => BTreeSet::new(),
        };
        let mut adapter = stored.filter(|_| assignment.checkpoint.is_some()).map(|s| s.1.clone()).unwrap_or_default();
        adapter.counts.retain(|(l, ..), _| layers.contains(l));
        adapter.layers = layers;
        let backbone = assignment.needs_backbone && part.is_some();
        let result = JobResult::Prepared { holdings: holdings(cache) };
        self.prepared = Some(Prepared { assignment, part, adapter, gradient: Counts::new(), backbone, kept: BTreeMap::new() });
        result
    }

    fn compute(&mut self, job: Job, took: Seconds, costs: &Costs, cache: &mut Cache) -> JobResult {
        let mut p = self.prepared.take().expect("work comes after Prepare");
                let whole: BTreeSet<u32> = (0..p.assignment.spec.layers).collect();
        let loss = |samples: &[SampleId]| LossPart { loss_sum: costs.labels(samples) as f64, tokens: costs.labels(samples) };
        let result = match job {
            Job::Forward { key, samples, inputs, outputs, cache_write, hand_on, total_labels } => {
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
                    cache.extend(samples.iter().filter(|s| !hand_on.contains(s)).flat_map(|s| part.taps.clone().map(|t| (s.0, t))));
                }
                let taps = part.taps.end - part.taps.start;
                let entries = hand_on.into_iter().filter(|_| taps > 0).map(|sample| {
                    let lengths = vec![costs.entry_bytes(sample, 1) as u32; taps as usize];
                    let blob = self.put(Data { bytes: costs.entry_bytes(sample, taps), blob: Blob::Entries { sample, taps: part.taps.clone() } });
                    Entries { sample, first_tap: part.taps.start, lengths, blob }
                });
                let entries = entries.collect();
                let loss = (part.is_last && !key.forward_only).then(|| loss(&samples));
                let data = |samples: Vec<SampleId>| Data { bytes: costs.activation_bytes(&samples, key.forward_only), blob: Blob::Rows { key, samples, layers: part.layers.end } };
                let outputs = outputs.into_iter().map(|rows| self.put(data(rows.samples))).collect();
                JobResult::ForwardDone { outputs, entries, loss, backbone_seconds: took.backbone, side_seconds: took.side }
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
                let data = |samples: Vec<SampleId>| Data { bytes: costs.gradient_bytes(&samples), blob: Blob::Gradients { key, samples, layer: part.layers.start } };
                let outputs = outputs.into_iter().map(|rows| self.put(data(rows.samples))).collect();
                JobResult::BackwardDone { outputs, side_seconds: took.side }
            }
            Job::CachedStep { key, samples, streamed, .. } => {
                assert_eq!(p.adapter.layers, whole);
                assert!(!p.backbone, "no frozen layers in the train phase");
                for (layer, sample) in whole.iter().flat_map(|l| samples.iter().map(move |s| (l, s))) {
                    *p.gradient.entry((*layer, key.epoch, sample.0)).or_default() += 1;
                }
                self.check_entries(&samples, &streamed, p.assignment.spec.tap_count(), cache);
                JobResult::CachedStepDone { loss: loss(&samples), side_seconds: took.side }
            }
            Job::MeasureGradient { .. } => JobResult::GradientMeasured { squared_norm: p.gradient.len() as f64 },
            Job::ReadGradient { key, shards } => {
                let of = u32::from(shards).max(1);
                let mut counts = vec![Counts::new(); of as usize];
                for (k, v) in &p.gradient {
                    counts[(k.0 % of) as usize].insert(*k, *v);
                }
                let bytes = p.assignment.spec.gradients.wire_bytes(costs.adapter_parameters(p.adapter.layers.iter().copied())) / u64::from(of);
                JobResult::GradientRead { shards: counts.into_iter().zip(0..).map(|(counts, index)| self.put(Data { blob: Blob::Shard { key, index, of, counts }, bytes })).collect() }
            }
            Job::SumShard { key, inputs } => {
                let mut sum = Counts::new();
                let mut which = BTreeSet::new();
                let mut bytes = 0;
                for input in &inputs {
                    bytes = self.blobs.get(input).map_or(0, |d| d.bytes);
                    let Blob::Shard { key: k, index, of, counts } = self.blob(*input) else { panic!("a shard") };
                    assert_eq!((*k, *of), (key, inputs.len() as u32));
                    which.insert(*index);
                    counts.iter().for_each(|(k, v)| *sum.entry(*k).or_default() += v);
                }
                assert_eq!(which.len(), 1, "inputs of one shard");
                let index = which.pop_first().expect("one");
                let squared_norm = sum.len() as f64;
                JobResult::ShardSummed { blob: self.put(Data { blob: Blob::Shard { key, index, of: inputs.len() as u32, counts: sum }, bytes }), squared_norm }
            }
            Job::ApplyUpdate { key, shards, optimiser_step, .. } => {
                assert_eq!(p.adapter.optimiser_steps, optimiser_step, "steps in order");
                let update = if shards.is_empty() { p.gradient.clone() } else { Counts::new() };
                let mut parts = vec![update];
                for (at, shard) in shards.iter().enumerate() {
                    let Blob::Shard { key: k, index, of, counts } = self.blob(*shard) else { panic!("a shard") };
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
                JobResult::Applied { side_seconds: took.side }
            }
            Job::EvaluateHeldOut { samples, streamed, .. } => {
                self.check_entries(&samples, &streamed, p.assignment.spec.tap_count(), cache);
                JobResult::HeldOut(loss(&samples))
            }
            Job::ReadCache { sample, taps } => {
                assert!(taps.clone().all(|t| cache.contains(&(sample.0, t))));
                let lengths = taps.clone().map(|_| costs.entry_bytes(sample, 1) as u32).collect();
                let bytes = costs.entry_bytes(sample, taps.end - taps.start);
                JobResult::CacheRead { blob: self.put(Data { blob: Blob::Entries { sample, taps }, bytes }), lengths }
            }
            Job::WriteCache { sample, first_tap, lengths, blob } => {
                let taps = first_tap..first_tap + lengths.len() as u32;
                assert_eq!(self.blob(blob), &Blob::Entries { sample, taps: taps.clone() });
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

    /// Every sample's entries were sent for this step, or are in the cache here.
    fn check_entries(&self, samples: &[SampleId], streamed: &[Entries], taps: u32, cache: &Cache) {
        for entries in streamed {
            assert!(samples.contains(&entries.sample), "entries of another step");
            assert_eq!(self.blob(entries.blob), &Blob::Entries { sample: entries.sample, taps: 0..taps });
        }
        for sample in samples.iter().filter(|sample| !streamed.iter().any(|e| e.sample == **sample)) {
            assert!((0..taps).all(|t| cache.contains(&(sample.0, t))), "sample {sample} is not in the cache");
        }
    }

    /// The inputs hold exactly `samples`, and each is what `check` says.
    fn check_rows(&self, samples: &[SampleId], inputs: &[RowsIn], check: impl Fn(&Blob, &[SampleId])) {
        let mut got: Vec<_> = inputs.iter().flat_map(|i| i.samples.clone()).collect();
        let mut want = samples.to_vec();
        got.sort();
        want.sort();
        assert_eq!(got, want);
        for input in inputs {
            check(self.blob(input.blob), &input.samples);
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
