//! Turns what a person chose into a run: defaults filled in, everything checked.

use crate::datasets::TokenisedSet;
use crate::error::{Answer, Refusal};
use crate::models::Model;
use crate::side;
use barycenter_core::planner::{FillWish, PlanOptions};
use barycenter_protocol::api::RunRequest;
use barycenter_protocol::control::{CacheType, RunSpec, SampleSize, tapped};
use barycenter_protocol::plan::ModelCost;

/// Defaults where neither the request nor the model's folder says anything.
const REDUCTION: u32 = 8;
const EPOCHS: u32 = 3;
const BATCH: u32 = 16;
const LEARNING_RATE: f64 = 1e-3;
const WEIGHT_DECAY: f64 = 0.01;
const CLIP_NORM: f64 = 1.0;
const SEED: u64 = 1;
/// Every so many-th layer is read by the side network: docs/METHOD.md has what was measured.
pub const DEFAULT_TAP_EVERY: u32 = 2;
/// How the cache holds what is read.
pub const DEFAULT_CACHE: CacheType = CacheType::Int8;
/// A step is lost in seconds, an upload of the adapter takes less.
const CHECKPOINT_STEPS: u32 = 10;
/// Held-out prompts for a small model and for others.
const EXACT_MATCH_ROWS: u32 = 100;
const EXACT_MATCH_ROWS_LARGE: u32 = 20;
/// A model of at most so many bytes answers prompts in no time.
pub const SMALL_MODEL_BYTES: u64 = 64 << 20;

/// A checked run.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedRun {
    /// Its mathematics.
    pub spec: RunSpec,
    /// Costs for the planner.
    pub cost: ModelCost,
    /// Wishes for the planner.
    pub options: PlanOptions,
    /// Held-out prompts to answer.
    pub exact_match_rows: u32,
    /// Memory that holding the whole model and adapter takes, bytes.
    pub generate_memory_bytes: u64,
    /// Bytes of the model's weights.
    pub model_bytes: u64,
}

/// Checks a request. Reads all weights the first time: call it where blocking is allowed.
pub fn prepare(request: &RunRequest, model: &Model, set: &TokenisedSet) -> Answer<PreparedRun> {
    let config = model.config()?;
    let manifest = model.manifest()?;
    let recommended = &model.recommendation;
    let or = |asked: Option<u32>, recommended: Option<u32>, default| asked.or(recommended).unwrap_or(default);
    let reduction = or(request.reduction, recommended.reduction, default_reduction(config));
    let epochs = within("number of epochs", or(request.epochs, recommended.epochs, EPOCHS), 1, 1000)?;
    if set.train_samples == 0 {
        return Err(Refusal::bad("the data set has no row to learn from: add rows"));
    }
    let batch = within("mini-batch", or(request.batch, recommended.batch, BATCH), 1, 4096)?.min(set.train_samples);
    let steps_per_epoch = set.train_samples.div_ceil(batch);
    let total = steps_per_epoch.checked_mul(epochs).ok_or_else(|| Refusal::bad(format!("{epochs} epochs of {steps_per_epoch} steps are too many: choose fewer epochs or a larger mini-batch")))?;
    let warmup_steps = or(request.warmup_steps, recommended.warmup_steps, (total / 10).max(1)).min(total);
    let learning_rate = request.learning_rate.or(recommended.learning_rate).unwrap_or(LEARNING_RATE);
    if !(learning_rate > 0.0 && learning_rate <= 1.0) {
        return Err(Refusal::bad(format!("the learning rate {learning_rate} is not above 0 and at most 1: try {LEARNING_RATE}")));
    }
    let sizes: Vec<SampleSize> = set.samples.iter().map(|s| SampleSize { tokens: s.tokens() as u32, labels: s.labels.len() as u32 }).collect();
    let tokens: u64 = sizes.iter().map(|s| u64::from(s.tokens)).sum();
    let labels: u64 = sizes.iter().map(|s| u64::from(s.labels)).sum();
    let count = sizes.len().max(1) as f64;
    let mean_tokens = tokens as f64 / count;
    let tap_every = within("distance of the layers that are read", request.tap_every.unwrap_or(DEFAULT_TAP_EVERY.min(config.layers as u32)), 1, config.layers as u32)?;
    let cache = request.cache.unwrap_or(DEFAULT_CACHE);
    let stored = side::model_cost(config, reduction, tap_every, model.info.bytes, mean_tokens).map_err(Refusal::bad)?;
    let cost = side::held_as(stored, config, &manifest, request.weights).map_err(|error| Refusal::bad(error.to_string()))?;
    let options = PlanOptions {
        model: model.info.name.clone(),
        min_stages: request.min_stages.unwrap_or(1).clamp(1, config.layers as u32),
        use_all_nodes: request.use_all_nodes,
        mean_tokens,
        max_tokens: sizes.iter().map(|s| s.tokens).max().unwrap_or(0),
        mean_labels: labels as f64 / count,
        cache_bytes: barycenter_core::cost::cache_bytes(cache, tapped(config.layers as u32, tap_every).count() as u32, config.width as u32, tokens, labels),
        // who wishes for stages wants to see the pipeline train
        fill: if request.min_stages.unwrap_or(1) > 1 || request.use_all_nodes { FillWish::Hybrid } else { FillWish::Fastest },
        epochs,
        steps_per_epoch,
        weight_bits: side::weight_bits(config, model.info.bytes, request.weights),
        without: request.without.clone(),
        gradients: request.gradients,
    };
    let default_rows = if model.info.bytes <= SMALL_MODEL_BYTES { EXACT_MATCH_ROWS } else { EXACT_MATCH_ROWS_LARGE };
    let exact_match_rows = request.exact_match_rows.unwrap_or(default_rows).min(set.held_out_samples);
    let spec = RunSpec {
        model: model.info.id.clone(),
        model_hash: manifest.model_hash.clone(),
        dataset: request.dataset.clone(),
        dataset_hash: set.hash.clone(),
        train_samples: set.train_samples,
        held_out_samples: set.held_out_samples,
        sample_sizes: sizes,
        layers: config.layers as u32,
        tap_every,
        cache,
        reduction,
        batch,
        epochs,
        learning_rate,
        warmup_steps,
        weight_decay: recommended.weight_decay.unwrap_or(WEIGHT_DECAY),
        clip_norm: recommended.clip_norm.unwrap_or(CLIP_NORM),
        seed: request.seed.or(recommended.seed).unwrap_or(SEED),
        checkpoint_steps: CHECKPOINT_STEPS,
        gradients: request.gradients.unwrap_or_default(),
        weights: request.weights,
    };
    let generate_memory_bytes = side::answering_memory_bytes(&cost, config.vocab);
    Ok(PreparedRun { spec, cost, options, exact_match_rows, generate_memory_bytes, model_bytes: model.info.bytes })
}

/// 8 where it divides, else the next smaller that does.
fn default_reduction(config: &barycenter_model::ModelConfig) -> u32 {
    (1..=REDUCTION).rev().find(|k| side::side_config(config, *k).is_ok()).unwrap_or(REDUCTION)
}

fn within(what: &str, value: u32, least: u32, most: u32) -> Answer<u32> {
    if (least..=most).contains(&value) { Ok(value) } else { Err(Refusal::bad(format!("the {what} is {value}: choose {least} to {most}"))) }
}
