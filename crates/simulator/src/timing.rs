//! How long jobs take and how many bytes their data has, from what the layers of the model cost.

use crate::house::Speed;
use barycenter_core::io::{Job, StagePart};
use barycenter_protocol::SampleId;
use barycenter_protocol::control::{CacheType, RunSpec, SampleSize};
use barycenter_protocol::plan::ModelCost;
use std::ops::Range;

/// Reading the data set's tokens, opening files, building the side network: seconds of a preparation besides downloads.
const PREPARE_SECONDS: f64 = 0.05;
/// Storage of a household device, bytes per second: a slow flash chip.
const STORAGE_BYTES_PER_SECOND: f64 = 2e8;
/// Arithmetic of AdamW, FLOP per parameter; reading or summing a gradient costs about a tenth.
const UPDATE_FLOPS: f64 = 20.0;
/// Answering prompts: seconds at 100 GFLOP/s, of the order of what the demo takes.
const GENERATE_SECONDS: f64 = 0.2;

/// What a model and a run's samples cost.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    pub model: ModelCost,
    sizes: Vec<SampleSize>,
    cache: CacheType,
}

/// Seconds of a job by what they go into, as nodes report them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Seconds {
    pub backbone: f64,
    pub side: f64,
    pub other: f64,
}

impl Seconds {
    pub fn total(&self) -> f64 {
        self.backbone + self.side + self.other
    }
}

impl Costs {
    pub fn new(model: &ModelCost, spec: &RunSpec) -> Self {
        Self { model: model.clone(), sizes: spec.sample_sizes.clone(), cache: spec.cache }
    }

    pub fn tokens(&self, samples: &[SampleId]) -> u64 {
        samples.iter().filter_map(|s| self.sizes.get(s.0 as usize)).map(|s| u64::from(s.tokens)).sum()
    }

    pub fn labels(&self, samples: &[SampleId]) -> u64 {
        samples.iter().filter_map(|s| self.sizes.get(s.0 as usize)).map(|s| u64::from(s.labels)).sum()
    }

    /// Bytes of activations passed on: b, and a in training, f32.
    pub fn activation_bytes(&self, samples: &[SampleId], forward_only: bool) -> u64 {
        let side = if forward_only { 0 } else { self.model.side_width };
        4 * self.tokens(samples) * u64::from(self.model.width + side)
    }

    /// Bytes of side gradients passed back, f32.
    pub fn gradient_bytes(&self, samples: &[SampleId]) -> u64 {
        4 * self.tokens(samples) * u64::from(self.model.side_width)
    }

    /// Bytes of some taps of a sample.
    pub fn entry_bytes(&self, sample: SampleId, taps: u32) -> u64 {
        self.cache.token_bytes(self.model.width) * self.tokens(&[sample]) * u64::from(taps)
    }

    /// Adapter parameters beside some layers, the ends' included.
    pub fn adapter_parameters(&self, layers: impl Iterator<Item = u32>) -> u64 {
        let last = self.model.layers.len() as u32 - 1;
        let of = |l: u32| {
            let ends = if l == 0 { self.model.embedding.adapter_parameters } else { 0 } + if l == last { self.model.head.adapter_parameters } else { 0 };
            self.model.layers[l as usize].adapter_parameters + ends
        };
        layers.map(of).sum()
    }

    /// Frozen weights that a node fetches for its part; `trains`: it needs the head for the loss.
    pub fn weight_bytes(&self, part: Option<&StagePart>, trains: bool) -> Vec<(Weights, u64)> {
        let mut weights = Vec::new();
        for layer in part.iter().flat_map(|p| p.layers.clone()) {
            weights.push((Weights::Layer(layer), self.model.layers[layer as usize].weight_bytes));
        }
        let (has_embedding, has_head) = (part.is_some_and(|p| p.is_first), trains || part.is_some_and(|p| p.is_last));
        let shared = self.model.shared_bytes;
        if (has_embedding || has_head) && shared > 0 {
            weights.push((Weights::Shared, shared));
        }
        if has_embedding {
            weights.push((Weights::Embedding, self.model.embedding.weight_bytes.saturating_sub(shared)));
        }
        if has_head {
            weights.push((Weights::Head, self.model.head.weight_bytes.saturating_sub(shared)));
        }
        weights
    }

    fn over(&self, layers: &Range<u32>, of: impl Fn(&barycenter_protocol::plan::LayerCost) -> f64) -> f64 {
        self.model.layers[layers.start as usize..layers.end as usize].iter().map(of).sum()
    }

    /// How long a job takes on a device of this speed; `part` and `parameters` are those of its generation.
    pub fn seconds(&self, job: &Job, speed: &Speed, part: Option<&StagePart>, parameters: u64) -> Seconds {
        let update = |flops: f64| Seconds { side: speed.job_seconds + parameters as f64 * flops / speed.cached, ..Seconds::default() };
        let storage = |bytes: u64| Seconds { other: 0.1 * speed.job_seconds + bytes as f64 / STORAGE_BYTES_PER_SECOND, ..Seconds::default() };
        match job {
            Job::Forward { key, samples, .. } => {
                let Some(part) = part else { return Seconds::default() };
                let (tokens, labels) = (self.tokens(samples) as f64, self.labels(samples) as f64);
                let mut backbone = tokens * self.over(&part.layers, |l| l.forward_flops);
                let mut side = 0.0;
                if part.is_first {
                    backbone += tokens * self.model.embedding.forward_flops;
                }
                if !key.forward_only {
                    side = tokens * self.over(&part.layers, |l| l.side_forward_flops);
                    if part.is_first {
                        side += tokens * self.model.embedding.side_forward_flops;
                    }
                    if part.is_last {
                        // the loss is computed here, with its gradient down to `out`: the head belongs to the side's time
                        side += labels * (self.model.head.forward_flops + self.model.head.side_forward_flops);
                    }
                }
                Seconds { backbone: speed.job_seconds + backbone / speed.frozen, side: side / speed.side, other: 0.0 }
            }
            Job::Backward { samples, .. } => {
                let Some(part) = part else { return Seconds::default() };
                let (tokens, labels) = (self.tokens(samples) as f64, self.labels(samples) as f64);
                let mut side = tokens * self.over(&part.layers, |l| l.side_backward_flops);
                if part.is_first {
                    side += tokens * self.model.embedding.side_backward_flops;
                }
                if part.is_last {
                    side += labels * self.model.head.side_backward_flops;
                }
                Seconds { side: speed.job_seconds + side / speed.side, ..Seconds::default() }
            }
            Job::CachedStep { samples, .. } => {
                let (e, h) = (&self.model.embedding, &self.model.head);
                let all = 0..self.model.layers.len() as u32;
                let per_token = self.over(&all, |l| l.side_forward_flops + l.side_backward_flops) + e.side_forward_flops + e.side_backward_flops;
                let per_label = h.forward_flops + h.side_forward_flops + h.side_backward_flops;
                let flops = self.tokens(samples) as f64 * per_token + self.labels(samples) as f64 * per_label;
                Seconds { side: speed.job_seconds + flops / speed.cached, ..Seconds::default() }
            }
            Job::EvaluateHeldOut { samples, .. } => {
                let all = 0..self.model.layers.len() as u32;
                let per_token = self.over(&all, |l| l.side_forward_flops) + self.model.embedding.side_forward_flops;
                let per_label = self.model.head.forward_flops + self.model.head.side_forward_flops;
                let flops = self.tokens(samples) as f64 * per_token + self.labels(samples) as f64 * per_label;
                Seconds { other: speed.job_seconds + flops / speed.cached, ..Seconds::default() }
            }
            Job::ApplyUpdate { .. } => update(UPDATE_FLOPS),
            Job::MeasureGradient { .. } | Job::ReadGradient { .. } | Job::SumShard { .. } | Job::SaveCheckpoint { .. } => update(0.1 * UPDATE_FLOPS),
            Job::ReadCache { sample, taps } => storage(self.entry_bytes(*sample, taps.end - taps.start)),
            Job::WriteCache { sample, lengths, .. } => storage(self.entry_bytes(*sample, lengths.len() as u32)),
            Job::Prepare { .. } => Seconds { other: PREPARE_SECONDS, ..Seconds::default() },
            Job::Generate(_) => Seconds { other: GENERATE_SECONDS * 1e11 / speed.frozen, ..Seconds::default() },
            Job::Holdings | Job::ReleaseBackbone => Seconds { other: speed.job_seconds, ..Seconds::default() },
        }
    }
}

/// A piece of the frozen weights that is fetched as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weights {
    /// The matrix of a tied head, which is the embedding's.
    Shared,
    Embedding,
    Layer(u32),
    Head,
}
