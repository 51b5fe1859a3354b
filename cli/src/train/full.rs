//! Full fine-tuning: every weight, in f32, through the whole model in every epoch.

use super::{Job, epochs, write_result, write_json};
use crate::generate::Beside;
use crate::model::refuse_packed;
use anyhow::{Context, Result, ensure};
use barycenter_core::order::SampleOrder;
use barycenter_engine::train_full::FullTrainer;
use barycenter_model::RawTensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Peak learning rate unless one is given; a model's own recommendation is for the side network.
const LEARNING_RATE: f64 = 5e-4;

/// Trains and reports.
pub(crate) async fn run(job: &Job<'_>) -> Result<()> {
    let Job { options, device, config, spec, .. } = job;
    refuse_packed(options.weights)?;
    let path = &job.model.path;
    ensure!(options.out.is_none() || path.is_dir(), "{} is a GGUF file, and what --out writes is a folder like the model's: give the model as a folder, or leave out --out", path.display());
    let order = SampleOrder::of(spec);
    let training = job.training(LEARNING_RATE);
    device.reset_peak();
    let mut trainer = FullTrainer::load(device, config, &mut job.weights()?, training)?;
    let mut rows = Vec::new();
    println!("epoch  method  seconds    loss");
    for epoch in 0..spec.epochs {
        let (seconds, loss) = epochs::train(job, &mut trainer, None, &order.epoch(epoch), &mut Vec::new()).await?;
        println!("{epoch:>5}  full   {seconds:>8.2} {loss:>8.4}");
        rows.push(json!({ "epoch": epoch, "seconds": seconds, "loss": loss }));
    }
    let peak = device.memory().peak_bytes;
    println!("peak memory: {:.1} MB", peak as f64 / 1e6);
    let (right, example) = job.answers(&trainer.model, Beside::Nothing).await?;
    job.print_exact_match(None, right);
    job.print_example("", &example);
    if let Some(folder) = &options.out {
        write_model(path, folder, &trainer.weights().await?, &full_config(path)?)?;
    }
    if let Some(path) = &options.json {
        write_json(path, &json!({ "method": "full", "epochs": rows, "peak_memory_bytes": peak, "eval": { "after": right } }))?;
    }
    Ok(())
}

/// Writes a model folder: weights, config, and beside them what the base model's folder has for texts.
pub(super) fn write_model(base: &Path, folder: &Path, weights: &BTreeMap<String, RawTensor>, config: &Value) -> Result<()> {
    let config = serde_json::to_string_pretty(config)?;
    let mut copies = Vec::new();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json"] {
        let from = base.join(name);
        if from.is_file() {
            copies.push((name, std::fs::read(&from).with_context(|| format!("{} cannot be read", from.display()))?));
        }
    }
    let beside: Vec<(&str, &[u8])> = copies.iter().map(|(name, bytes)| (*name, bytes.as_slice())).chain([("config.json", config.as_bytes())]).collect();
    write_result("model", folder, "model.safetensors", weights, &beside)
}

/// The model's `config.json`, saying that weights are f32 now.
pub(super) fn full_config(model: &Path) -> Result<Value> {
    let path = model.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut config: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some() {
            config[key] = "float32".into();
        }
    }
    Ok(config)
}
