//! How each method's step is made and timed.

use super::{LAST_LAYERS, Load, Method, RANK, REDUCTION, Run, StepTimes, TAP_EVERY, samples};
use crate::backbone::Backbone;
use crate::bottleneck::{BottleneckConfig, Bottlenecks};
use crate::cache_entry::CacheDtype;
use crate::chains::{Chains, ChainsConfig};
use crate::error::EngineError;
use crate::lora::{Lora, LoraConfig, Patterns, lora_start};
use crate::loss::cross_entropy;
use crate::optim::{AdamWConfig, LinearSchedule, clip_factor};
use crate::packed::{DeviceBatch, MicroBatch};
use crate::parallel::ParallelTrainer;
use crate::side::SideConfig;
use crate::stage::{ForwardPass, StageRuntime};
use crate::tape::{Tape, no_yield};
use crate::tensor::Tensor;
use crate::train_full::{FullTrainer, FullTraining};
use crate::trainer::{self, SampleEntries, Trainer};
use crate::tune::{BoundaryDtype, Inserts, Tuner};
use barycenter_model::names::Parts;

/// Learning rate: small enough that random weights stay finite.
const LEARNING_RATE: f32 = 1e-4;
/// Gradients are clipped to this norm, as runs do it.
const MAX_NORM: f32 = 1.0;

pub(super) async fn times(run: &Run<'_>, method: Method) -> Result<StepTimes, EngineError> {
    run.device.reset_peak();
    let samples = samples(&run.config, run.load);
    let batch = MicroBatch::of(&samples);
    let tokens = batch.tokens() + batch.encoder.as_ref().map_or(0, |encoder| encoder.tokens());
    let mut times = StepTimes { seconds: Vec::new(), tokens, peak_bytes: 0, cache_bytes: 0 };
    match method {
        Method::Forward => forward(run, &batch, &mut times).await?,
        Method::Full => full(run, batch, &mut times).await?,
        Method::Lora => {
            let inserts = Inserts::Lora(lora(run, None)?);
            tuned(run, inserts, &batch, false, &mut times).await?;
        }
        Method::Adapters => {
            let adapters = BottleneckConfig { reduction: REDUCTION, layers: 0..run.config.layers };
            let inserts = Inserts::Bottlenecks(Bottlenecks::fresh(run.device, &run.config, &adapters, run.load.seed)?);
            tuned(run, inserts, &batch, false, &mut times).await?;
        }
        Method::LoraLastCached => {
            let inserts = Inserts::Lora(lora(run, Some(LAST_LAYERS))?);
            tuned(run, inserts, &batch, true, &mut times).await?;
        }
        Method::ParallelFill | Method::ParallelCached => {
            let batches: Vec<MicroBatch> = samples.chunks(run.load.micro_batch).map(MicroBatch::of).collect();
            let from_cache = method == Method::ParallelCached;
            match run.config.encoder {
                Some(_) => parallel_chains(run, &batches, from_cache, &mut times).await?,
                None => parallel(run, &batches, from_cache, &mut times).await?,
            }
        }
    }
    times.peak_bytes = run.device.memory().peak_bytes;
    Ok(times)
}

/// Takes the time of one step; that of the first, in which kernels are compiled and buffers made, does not count.
fn note(run: &Run<'_>, times: &mut StepTimes, step: usize, started: f64) {
    if step > 0 {
        times.seconds.push((run.clock)() - started);
    }
}

/// All steps: one to warm up, then those that are timed.
fn steps(load: &Load) -> std::ops::RangeInclusive<usize> {
    0..=load.steps
}

fn training() -> FullTraining {
    let schedule = LinearSchedule { warmup_steps: 0, total_steps: u32::MAX - 1, peak_lr: LEARNING_RATE };
    FullTraining { schedule, optimiser: AdamWConfig::default(), max_norm: MAX_NORM }
}

async fn forward(run: &Run<'_>, batch: &MicroBatch, times: &mut StepTimes) -> Result<(), EngineError> {
    let not_whole = || EngineError::BadStage("it does not hold the whole model".into());
    let model = Backbone::load(run.device, &run.config, &mut run.weights(), &Parts::all(&run.config))?;
    let head = model.head.as_ref().ok_or_else(not_whole)?;
    for step in steps(run.load) {
        let started = (run.clock)();
        let tape = Tape::computing(run.device);
        let on_device = DeviceBatch::new(run.device, batch);
        let memory = match batch.encoder.as_deref() {
            Some(encoder_batch) => Some(model.encode(&tape, &DeviceBatch::new(run.device, encoder_batch), &on_device)?),
            None => None,
        };
        let mut x = model.embed(&tape, &on_device).ok_or_else(not_whole)?;
        for index in 0..model.layers.len() {
            x = model.layer_across(&tape, index, &x, &on_device, memory.as_ref())?;
            run.device.submit();
        }
        let labelled = tape.gather_rows(&x, &Tensor::from_u32(run.device, &batch.labelled_rows));
        cross_entropy(&tape, head, &labelled, &Tensor::from_u32(run.device, &batch.classes), 0.0).sum().await?;
        note(run, times, step, started);
    }
    Ok(())
}

async fn full(run: &Run<'_>, batch: MicroBatch, times: &mut StepTimes) -> Result<(), EngineError> {
    let mut trainer = FullTrainer::load(run.device, &run.config, &mut run.weights(), training())?;
    let batch = [batch];
    for step in steps(run.load) {
        let started = (run.clock)();
        trainer.step(&batch, &no_yield()).await?;
        settle(run).await?;
        note(run, times, step, started);
    }
    Ok(())
}

/// LoRA in all layers or in the last ones, of an encoder-decoder model in those of the decoder.
fn lora(run: &Run<'_>, last: Option<usize>) -> Result<Lora, EngineError> {
    let (targets, all) = (run.shape.lora_targets.map(String::from).to_vec(), run.config.layers);
    let layers = last.map(|last| (all.saturating_sub(last)..all).collect());
    let mut config = LoraConfig { rank: RANK, alpha: 2.0 * RANK as f64, rank_stabilised: false, targets, layers, patterns: Patterns::default() };
    if let (Some(last), Some(_)) = (last, &run.config.encoder) {
        config = config.in_last_of_decoder(&run.config, last)?;
    }
    let start = lora_start(&run.config, &config, run.load.seed)?;
    Lora::new(run.device, &run.config, &config, |name| start.get(name).cloned())
}

/// Of LoRA or adapters, from token ids or from the activation that enters the first trained layer.
async fn tuned(run: &Run<'_>, inserts: Inserts, batch: &MicroBatch, from_cache: bool, times: &mut StepTimes) -> Result<(), EngineError> {
    let mut weights = run.weights();
    let mut tuner = Tuner::load(run.device, &run.config, &mut weights, inserts, training())?;
    let dtype = BoundaryDtype::F16;
    let mut entries = None;
    if from_cache {
        let boundary = tuner.boundary(batch, dtype, &no_yield()).await?;
        times.cache_bytes = boundary.iter().map(Vec::len).sum();
        entries = Some(boundary);
        tuner.drop_prefix(&mut weights)?;
        run.device.reset_peak();
    }
    for step in steps(run.load) {
        let started = (run.clock)();
        tuner.step(batch, entries.as_deref().map(|entries| (entries, dtype)), &no_yield()).await?;
        settle(run).await?;
        note(run, times, step, started);
    }
    Ok(())
}

/// Of parallel adapters: through the model, or from what one pass through it cached.
async fn parallel(run: &Run<'_>, batches: &[MicroBatch], from_cache: bool, times: &mut StepTimes) -> Result<(), EngineError> {
    let (config, mut weights) = (&run.config, run.weights());
    let mut runtime = StageRuntime::new(run.device, config.clone(), 0..config.layers, no_yield(), run.clock.clone());
    runtime.load_backbone(&mut weights, &Parts::all(config))?;
    let side = SideConfig { taps: SideConfig::thinned_taps(config.layers, TAP_EVERY), ..SideConfig::new(REDUCTION, config.layers) };
    runtime.start_side(&side, 0..config.layers, AdamWConfig::default(), run.load.seed)?;
    runtime.cache_as(CacheDtype::Int8, &side);
    let labels: usize = batches.iter().map(|batch| batch.classes.len()).sum();
    let loss_factor = 1.0 / labels as f32;
    let pass = |batch, forward_only| ForwardPass { batch, input: None, forward_only, cache: true, loss_factor };
    let bytes = |entries: &[Vec<Vec<u8>>]| entries.iter().flatten().map(Vec::len).sum::<usize>();
    // For each micro-batch those of its sequences.
    let mut cache = Vec::new();
    if from_cache {
        for batch in batches {
            let entries = runtime.forward(0, pass(batch, true)).await?.entries;
            times.cache_bytes += bytes(&entries);
            cache.push(entries);
        }
        runtime.load_backbone(&mut weights, &Parts::head_only())?;
        run.device.reset_peak();
    }
    for step in steps(run.load) {
        let started = (run.clock)();
        let mut filled = 0;
        for (index, batch) in batches.iter().enumerate() {
            if from_cache {
                runtime.train_cached(batch, &cache[index], loss_factor, true).await?;
            } else {
                filled += bytes(&runtime.forward(0, pass(batch, false)).await?.entries);
                runtime.backward(0, None).await?;
            }
        }
        let norm = runtime.gradient_squared_norm().await?.sqrt() as f32;
        runtime.apply(step as u32 + 1, LEARNING_RATE, clip_factor(norm, MAX_NORM))?;
        settle(run).await?;
        note(run, times, step, started);
        times.cache_bytes = times.cache_bytes.max(filled);
    }
    Ok(())
}

/// Of parallel adapters beside encoder and decoder.
async fn parallel_chains(run: &Run<'_>, batches: &[MicroBatch], from_cache: bool, times: &mut StepTimes) -> Result<(), EngineError> {
    let mut weights = run.weights();
    let encoder_taps = run.config.encoder.as_ref().map(|encoder| SideConfig::thinned_taps(encoder.layers, TAP_EVERY));
    let form = ChainsConfig { taps: Some(SideConfig::thinned_taps(run.config.layers, TAP_EVERY)), encoder_taps, ..ChainsConfig::new(REDUCTION) };
    let chains = Chains::fresh(run.device, &run.config, &form, &mut weights, run.load.seed)?;
    let mut trainer = ParallelTrainer::load(run.device, &run.config, &mut weights, chains, None, training())?;
    trainer.cache_dtype = CacheDtype::Int8;
    let labels: usize = batches.iter().map(|batch| batch.classes.len()).sum();
    let factor = Some(1.0 / labels as f32);
    let bytes = |entries: &[SampleEntries]| entries.iter().flat_map(|of_sample| of_sample.iter()).map(Vec::len).sum::<usize>();
    let mut cache = Vec::new();
    if from_cache {
        for batch in batches {
            let entries = trainer.fill(batch, &no_yield()).await?;
            times.cache_bytes += bytes(&entries);
            cache.push(entries);
        }
        trainer.drop_backbone(&mut weights)?;
        run.device.reset_peak();
    }
    for step in steps(run.load) {
        let started = (run.clock)();
        let mut filled = 0;
        for (index, batch) in batches.iter().enumerate() {
            // The program fills its cache before the first epoch of these models, so a fill step encodes and trains from it.
            let entries = if from_cache { None } else { Some(trainer.fill(batch, &no_yield()).await?) };
            filled += entries.as_deref().map_or(0, bytes);
            let entries = entries.as_deref().unwrap_or_else(|| &cache[index]);
            trainer::loss(&trainer, batch, Some(entries), factor, &no_yield()).await?;
        }
        trainer::clipped_update(&mut trainer, 0.0, times.tokens).await?;
        trainer.sets().iter().for_each(|set| set.zero_grads());
        settle(run).await?;
        note(run, times, step, started);
        times.cache_bytes = times.cache_bytes.max(filled);
    }
    Ok(())
}

/// Waits for a device that works behind our back: what is read comes after all that was recorded.
async fn settle(run: &Run<'_>) -> Result<(), EngineError> {
    Tensor::zeros(run.device, &[1]).read().await?;
    Ok(())
}
