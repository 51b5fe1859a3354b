//! Parallel adapters: a fill epoch through the backbone, later epochs from the cache of its layers' outputs.

use super::cache::Cache;
use super::data::Data;
use super::side::SideOptions;
use super::{Job, check_loss, write_json, write_result};
use crate::model::describe_weights;
use crate::generate::Beside;
use anyhow::{Context, Result};
use barycenter_core::order::SampleOrder;
use barycenter_core::schedule;
use barycenter_engine::backbone::Backbone;
use barycenter_engine::optim::AdamWConfig;
use barycenter_engine::packed::MicroBatch;
use barycenter_engine::side::{Side, SideLayout, flat_from_named};
use barycenter_engine::stage::{ForwardPass, StageRuntime};
use barycenter_engine::tape::no_yield;
use barycenter_engine::trainer::SampleEntries;
use barycenter_model::names::Parts;
use barycenter_model::RawTensor;
use barycenter_protocol::SampleId;
use serde_json::json;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// Trains and reports.
pub(super) async fn run(job: &Job<'_>) -> Result<()> {
    let Job { options, device, config, data, spec, .. } = job;
    let mut weights = job.weights()?;
    let start = Instant::now();
    let mut runtime = StageRuntime::new(device, config.clone(), 0..config.layers, no_yield(), Rc::new(move || start.elapsed().as_secs_f64()));
    device.reset_peak();
    let before_weights = device.memory().current_bytes;
    runtime.load_backbone(&mut weights, &Parts::all(config))?;
    println!("{}", describe_weights(device, before_weights, options.weights));
    let side_config = options.side.side(spec.reduction, config.layers)?;
    let dtype = SideOptions::cache_dtype(options.cache).context("--cache none is for encoders and encoder-decoder models: a decoder's side network trains from the cache of taps")?;
    runtime.cache_as(dtype, &side_config);
    let optimiser = AdamWConfig { weight_decay: spec.weight_decay as f32, ..AdamWConfig::default() };
    runtime.start_side(&side_config, 0..config.layers, optimiser, spec.seed)?;

    let order = SampleOrder::of(spec);
    let total = data.samples.len();
    let mut cache = Cache::new(total, options.cache_dir.as_deref()).await?;
    let (mut losses, mut epochs, mut held_out) = (Vec::new(), Vec::new(), Vec::new());
    let mut optimiser_step = 0;
    let mut fill_peak = 0;
    println!("epoch  phase   seconds    loss  held-out");
    for epoch in 0..spec.epochs {
        let began = Instant::now();
        let epoch_order = order.epoch(epoch);
        let (mut epoch_loss, mut epoch_labels, mut backbone_seconds) = (0.0, 0u64, 0.0);
        for step in 0..epoch_order.steps() {
            let ids: Vec<SampleId> = epoch_order.mini_batch(step).iter().map(|slotted| slotted.sample).collect();
            let ids: Vec<usize> = ids.iter().map(|id| id.0 as usize).collect();
            let labels: usize = ids.iter().map(|&id| data.samples[id].sequence.labels.len()).sum();
            let factor = 1.0 / labels as f32;
            let mut loss_sum = 0.0;
            for ids in ids.chunks(job.micro_batch()) {
                let batch = MicroBatch::of(ids.iter().map(|&id| &data.samples[id]));
                loss_sum += if epoch == 0 {
                    let output = runtime.forward(0, ForwardPass { batch: &batch, input: None, forward_only: false, cache: true, loss_factor: factor }).await?;
                    runtime.backward(0, None).await?;
                    backbone_seconds += output.backbone_seconds;
                    for (&id, entries) in ids.iter().zip(output.entries) {
                        cache.keep(id, SampleEntries::new(entries)).await?;
                    }
                    output.loss_sum.context("one computer holds the last stage")?
                } else {
                    let entries = ids.iter().map(|&id| cache.entries(id)).collect::<Result<Vec<_>>>()?;
                    let entries: Vec<&Vec<Vec<u8>>> = entries.iter().map(|entries| &**entries).collect();
                    runtime.train_cached(&batch, &entries, factor, true).await?
                };
            }
            let norm = runtime.gradient_squared_norm().await?.sqrt();
            runtime.apply(optimiser_step + 1, schedule::learning_rate(spec, optimiser_step) as f32, schedule::clip_factor(spec, norm) as f32)?;
            optimiser_step += 1;
            check_loss(loss_sum / labels as f64, losses.len(), spec)?;
            losses.push(loss_sum / labels as f64);
            epoch_loss += loss_sum;
            epoch_labels += labels as u64;
        }
        let seconds = began.elapsed().as_secs_f64();
        if epoch == 0 {
            for id in data.train..total {
                let batch = MicroBatch::of([&data.samples[id]]);
                let output = runtime.forward(0, ForwardPass { batch: &batch, input: None, forward_only: true, cache: true, loss_factor: 0.0 }).await?;
                cache.keep(id, SampleEntries::new(output.entries.into_iter().next().unwrap_or_default())).await?;
            }
            fill_peak = device.memory().peak_bytes;
            runtime.load_backbone(&mut weights, &Parts::head_only())?;
            device.reset_peak();
        }
        let held_out_loss = evaluate(&mut runtime, data, &cache, job.micro_batch()).await?;
        held_out.push(held_out_loss);
        let loss = epoch_loss / epoch_labels as f64;
        let phase = if epoch == 0 { "fill" } else { "train" };
        println!("{epoch:>5}  {phase:<6} {seconds:>8.2} {loss:>8.4} {held_out_loss:>8.4}");
        epochs.push(json!({ "epoch": epoch, "phase": phase, "seconds": seconds, "loss": loss, "held_out_loss": held_out_loss, "backbone_seconds": backbone_seconds }));
    }
    let train_peak = device.memory().peak_bytes;
    println!("peak memory: {:.1} MB while filling, {:.1} MB while training from the cache; {}", fill_peak as f64 / 1e6, train_peak as f64 / 1e6, cache.size());

    let tensors: BTreeMap<String, RawTensor> = runtime.checkpoint().await?.into_iter().filter(|(name, _)| name.starts_with("side.")).collect();
    let layout = SideLayout::whole(config, &side_config)?;
    let side = Side::new(device, layout.clone(), &flat_from_named(&layout, |name| tensors.get(name).cloned())?)?;
    drop(runtime);
    let model = Backbone::load(device, config, &mut weights, &Parts::all(config))?;
    let (before, example_base) = job.answers(&model, Beside::Nothing).await?;
    let (after, example_tuned) = job.answers(&model, Beside::Side(&side)).await?;
    job.print_exact_match(Some(before), after);
    job.print_example(&example_base, &example_tuned);
    if let Some(folder) = &options.out {
        let mut adapter = json!({ "method": "parallel_adapter", "version": 1, "reduction": side_config.reduction, "taps": side_config.taps });
        side_config.fusion.describe(&mut adapter);
        write_result("adapter", folder, "adapter_model.safetensors", &tensors, &[("adapter_config.json", job.describe(adapter)?.as_bytes())])?;
    }
    if let Some(path) = &options.json {
        let report = json!({ "losses": losses, "held_out": held_out, "epochs": epochs, "cache_bytes": cache.bytes(), "fill_peak_memory_bytes": fill_peak, "train_peak_memory_bytes": train_peak,
            "eval": { "before": before, "after": after }, "spec": { "batch": spec.batch, "epochs": spec.epochs, "reduction": spec.reduction, "learning_rate": spec.learning_rate, "seed": spec.seed } });
        write_json(path, &report)?;
    }
    Ok(())
}

/// Mean held-out loss per labelled token, from the cache.
async fn evaluate(runtime: &mut StageRuntime, data: &Data, cache: &Cache, batch: usize) -> Result<f64> {
    let (mut sum, mut labels) = (0.0, 0);
    let ids: Vec<usize> = (data.train..data.samples.len()).collect();
    for chunk in ids.chunks(batch) {
        let packed = MicroBatch::of(chunk.iter().map(|&id| &data.samples[id]));
        let entries = chunk.iter().map(|&id| cache.entries(id)).collect::<Result<Vec<_>>>()?;
        let entries: Vec<&Vec<Vec<u8>>> = entries.iter().map(|entries| &**entries).collect();
        sum += runtime.train_cached(&packed, &entries, 0.0, false).await?;
        labels += packed.classes.len();
    }
    Ok(sum / labels.max(1) as f64)
}
