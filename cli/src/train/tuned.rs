//! LoRA and bottleneck adapters: through the whole model, or its last layers from one cached boundary.

use super::cache::Cache as Kept;
use super::{Job, Method, epochs, write_result, write_json};
use crate::adapter::{Adapter, read_lora};
use crate::generate::Beside;
use anyhow::{Result, ensure};
use barycenter_core::order::SampleOrder;
use barycenter_engine::bottleneck::{BottleneckConfig, Bottlenecks};
use barycenter_engine::cache_entry::CacheDtype;
use barycenter_engine::lora::{Lora, LoraConfig, Patterns, PeftConfig, lora_modules, lora_start};
use barycenter_engine::packed::MicroBatch;
use barycenter_engine::tape::no_yield;
use barycenter_engine::trainer::{self, SampleEntries};
use barycenter_engine::tune::{BoundaryDtype, Inserts, Tuner};
use barycenter_model::{ModelConfig, names};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Instant;

/// Peak learning rate unless one is given; a model's own recommendation is for the side network.
const LEARNING_RATE: f64 = 2e-3;
/// Rank of LoRA unless one is given.
const RANK: usize = 8;
/// PEFT's word for every linear layer but the head.
const ALL_LINEAR: &str = "all-linear";

/// What is kept of the frozen prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Cache {
    /// Nothing: every epoch runs the whole model.
    None,
    /// Its output, scaled and in half precision.
    F16,
    /// Its output as it is: the same losses as without a cache.
    F32,
    /// Parallel adapters only: scaled, as 8-bit integers with a scale for each token.
    Int8,
}

impl Cache {
    pub(super) fn dtype(self) -> Option<BoundaryDtype> {
        match self {
            Self::None => None,
            Self::F16 => Some(BoundaryDtype::F16),
            Self::F32 => Some(BoundaryDtype::F32),
            Self::Int8 => None,
        }
    }

    /// The format of cached taps.
    pub(super) fn taps(self) -> Option<CacheDtype> {
        match self {
            Self::None => None,
            Self::F16 => Some(CacheDtype::F16),
            Self::F32 => Some(CacheDtype::F32),
            Self::Int8 => Some(CacheDtype::Int8),
        }
    }
}

/// Trains and reports.
pub(super) async fn run(job: &Job<'_>) -> Result<()> {
    let Job { options, device, config, data, spec, .. } = job;
    let mut weights = job.weights()?;
    let inserts = inserts(job)?;
    let order = SampleOrder::of(spec);
    device.reset_peak();
    let mut tuner = Tuner::load(device, config, &mut weights, inserts, job.training(LEARNING_RATE))?;
    let (before, example_base) = job.answers(&tuner.model, Beside::Nothing).await?;
    device.reset_peak();
    let dtype = options.cache.unwrap_or(Cache::None).dtype();
    let mut cache = None;
    let (mut fill_seconds, mut fill_peak) = (0.0, 0);
    if let Some(dtype) = dtype {
        let began = Instant::now();
        tuner.boundary_dtype = dtype;
        let kept = cache.insert(Kept::new(data.samples.len(), options.cache_dir.as_deref()).await?);
        let mut sample = 0;
        for samples in data.samples.chunks(job.micro_batch()) {
            for boundary in tuner.boundary(&MicroBatch::of(samples), dtype, &no_yield()).await? {
                kept.keep(sample, SampleEntries::new(vec![boundary])).await?;
                sample += 1;
            }
        }
        fill_seconds = began.elapsed().as_secs_f64();
        fill_peak = device.memory().peak_bytes;
        tuner.drop_prefix(&mut weights)?;
        device.reset_peak();
        println!("frozen layers run once in {fill_seconds:.2} s");
    }
    let cache = cache.as_ref();
    let (mut losses, mut rows) = (Vec::new(), Vec::new());
    println!("epoch  seconds    loss  held-out");
    for epoch in 0..spec.epochs {
        let (seconds, loss) = epochs::train(job, &mut tuner, cache, &order.epoch(epoch), &mut losses).await?;
        let (mut held_out, mut labels) = (0.0, 0);
        for (ids, batch) in epochs::held_out(job) {
            held_out += trainer::loss(&tuner, &batch, epochs::entries_of(cache, &ids)?.as_deref(), None, &no_yield()).await?;
            labels += batch.classes.len();
        }
        let held_out = held_out / labels.max(1) as f64;
        println!("{epoch:>5} {seconds:>8.2} {loss:>8.4} {held_out:>8.4}");
        rows.push(json!({ "epoch": epoch, "seconds": seconds, "loss": loss, "held_out_loss": held_out }));
    }
    let train_peak = device.memory().peak_bytes;
    match cache {
        Some(cache) => println!("peak memory: {:.1} MB while filling, {:.1} MB while training from the cache; {}", fill_peak as f64 / 1e6, train_peak as f64 / 1e6, cache.size()),
        None => println!("peak memory: {:.1} MB", train_peak as f64 / 1e6),
    }

    let tensors = tuner.tensors().await?;
    let adapter = match &tuner.inserts {
        Inserts::Lora(lora) => PeftConfig::write(&lora.config, &options.model.display().to_string(), config),
        Inserts::Bottlenecks(adapters) => job.describe(adapters.config.to_json())?,
    };
    let model = Adapter::parse(&adapter)?.whole_model(device, config, &mut weights, |name| tensors.get(name).cloned())?;
    drop(tuner);
    let (after, example) = job.answers(&model, Beside::Nothing).await?;
    job.print_exact_match(Some(before), after);
    job.print_example(&example_base, &example);
    if let Some(folder) = &options.out {
        write_result("adapter", folder, "adapter_model.safetensors", &tensors, &[("adapter_config.json", adapter.as_bytes())])?;
    }
    if let Some(path) = &options.json {
        write_json(path, &json!({
            "losses": losses, "epochs": rows, "fill_seconds": fill_seconds, "cache_bytes": cache.map_or(0, Kept::bytes), "fill_peak_memory_bytes": fill_peak,
            "train_peak_memory_bytes": train_peak, "eval": { "before": before, "after": after }
        }))?;
    }
    Ok(())
}

/// What is trained, from the options.
pub(super) fn inserts(job: &Job<'_>) -> Result<Inserts> {
    let Job { options, device, config, spec, .. } = job;
    let two_stacks = config.encoder.is_some();
    ensure!(options.cache != Some(Cache::Int8), "--cache int8 is for parallel adapters: a cached boundary is kept as f16 or f32");
    let is_cached = options.cache.is_some_and(|cache| cache != Cache::None);
    let last = options.last_layers.unwrap_or(config.layers);
    ensure!((1..=config.layers).contains(&last), "--last-layers {last} must be 1 to {}, the layers of the model", config.layers);
    if two_stacks {
        let family = config.family.model_type();
        ensure!(options.method == Method::Lora || (options.last_layers.is_none() && !is_cached), "--last-layers and --cache are for LoRA on models of an encoder and a decoder such as this {family}, whose adapters stand in both: choose --method lora, or leave them out");
        ensure!(!is_cached || options.last_layers.is_some() || options.resume_adapter.is_some(), "--cache needs --last-layers: LoRA in both stacks of this {family} leaves no frozen prefix");
    } else {
        ensure!(!is_cached || last < config.layers || options.resume_adapter.is_some(), "--cache needs --last-layers below {}: with all layers trained there is no frozen prefix", config.layers);
    }
    let layers = match &config.encoder {
        Some(encoder) => 0..config.layers.max(encoder.layers),
        None => config.layers - last..config.layers,
    };
    if options.method == Method::Adapters {
        ensure!(options.resume_adapter.is_none(), "--resume-adapter goes on from a LoRA adapter: use it with --method lora");
        let adapters = BottleneckConfig { reduction: options.reduction.map_or(8, |reduction| reduction as usize), layers };
        return Ok(Inserts::Bottlenecks(Bottlenecks::fresh(device, config, &adapters, spec.seed)?));
    }
    if let Some(folder) = &options.resume_adapter {
        let (lora, mut tensors) = read_lora(folder)?;
        return Ok(Inserts::Lora(Lora::new(device, config, &lora, |name| barycenter_model::TensorSource::load(&mut tensors, name).ok())?));
    }
    ensure!(options.alpha.is_none_or(f64::is_finite), "--alpha must be a number");
    let rank = options.rank.unwrap_or(RANK);
    ensure!((1..=config.width).contains(&rank), "--rank {rank} must be 1 to {}, the width of the model", config.width);
    let mut lora = LoraConfig {
        rank,
        alpha: options.alpha.unwrap_or(2.0 * rank as f64),
        rank_stabilised: false,
        targets: if options.targets.is_empty() { vec![ALL_LINEAR.into()] } else { options.targets.clone() },
        layers: options.last_layers.filter(|_| !two_stacks).map(|_| layers.collect()),
        patterns: Patterns::default(),
    };
    if let (Some(last), true) = (options.last_layers, two_stacks) {
        lora = lora.in_last_of_decoder(config, last)?;
    } else if lora.targets.iter().any(|target| target == ALL_LINEAR) {
        // PEFT does not know the word beside chosen layers: its file gets the names.
        let names: BTreeSet<String> = lora_modules(config, &lora)?.iter().map(|module| target_name(config, &module.name)).collect();
        lora.targets = names.into_iter().collect();
    }
    let start = lora_start(config, &lora, spec.seed)?;
    Ok(Inserts::Lora(Lora::new(device, config, &lora, |name| start.get(name).cloned())?))
}

/// The end of a linear layer's name that PEFT knows it by, and no part of the head (BERT's pooler has a `dense` too).
fn target_name(config: &ModelConfig, module: &str) -> String {
    let last = module.rsplit('.').next().unwrap_or(module);
    let head: Vec<String> = names::classifier(config).into_iter().filter_map(|parameter| Some(parameter.name.strip_suffix(".weight")?.to_string())).collect();
    let is_head = head.iter().any(|name| name.rsplit('.').next() == Some(last));
    if is_head { module.to_string() } else { last.to_string() }
}
