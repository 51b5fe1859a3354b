//! Reference training runs: parallel adapters and LoRA, step by step.

use super::inputs::Inputs;
use super::{Report, all_logits, not_whole};
use crate::EngineError;
use crate::backbone::Backbone;
use crate::lora::{Lora, PeftConfig, find_stored};
use crate::loss::cross_entropy;
use crate::optim::{AdamW, AdamWConfig};
use crate::packed::{DeviceBatch, MicroBatch};
use crate::side::{Side, SideConfig, SideLayout, flat_from_named, named_from_flat};
use crate::tape::{Tape, Var};
use crate::tensor::{Device, Tensor};
use barycenter_model::families::ProjectionNames;
use barycenter_model::{FolderTensors, ModelConfig, TensorSource};
use serde_json::Value;
use std::path::Path;

/// What `pac.json` or `lora.json` says of the run.
struct RunSettings {
    text: String,
    json: Value,
    optimiser: AdamWConfig,
    lr: f32,
    steps: u32,
}

impl RunSettings {
    fn read(path: &Path) -> Result<Self, EngineError> {
        let bad = |reason: String| EngineError::File { file: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let json: Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let number = |value: &Value, key: &str| value.as_f64().ok_or_else(|| bad(format!("`{key}` is not a number")));
        let get = |key: &str| number(&json[key], key);
        let optimiser = AdamWConfig {
            beta1: number(&json["betas"][0], "betas")? as f32,
            beta2: number(&json["betas"][1], "betas")? as f32,
            eps: get("eps")? as f32,
            weight_decay: get("weight_decay")? as f32,
        };
        let (lr, steps) = (get("lr")? as f32, get("steps")? as u32);
        Ok(Self { text, json, optimiser, lr, steps })
    }

    fn side(&self, path: &Path, layers: usize) -> Result<SideConfig, EngineError> {
        let bad = |key: &str| EngineError::File { file: path.display().to_string(), reason: format!("`{key}` is not a number") };
        let reduction = self.json["reduction"].as_u64().ok_or_else(|| bad("reduction"))?;
        let mut side = SideConfig::new(reduction as usize, layers);
        if let Some(taps) = self.json["taps"].as_array() {
            side.taps = taps.iter().map(|tap| tap.as_u64().map(|tap| tap as usize).ok_or_else(|| bad("taps"))).collect::<Result<_, _>>()?;
        }
        side.temperature = self.json["gate_temperature"].as_f64().ok_or_else(|| bad("gate_temperature"))? as f32;
        Ok(side)
    }
}

/// How far ahead the label of a token lies: a causal model predicts the next token, BERT the one it stands on.
fn label_shift(model: &Backbone) -> usize {
    usize::from(model.config.causal)
}

pub(super) async fn verify_pac(
    device: &Device,
    model: &Backbone,
    settings_path: &Path,
    pac: &mut FolderTensors,
    report: &mut Report,
) -> Result<(), EngineError> {
    let settings = RunSettings::read(settings_path)?;
    if model.encoder.is_some() {
        let reason = "it is a run with one chain, the model has an encoder and a decoder";
        return Err(EngineError::File { file: settings_path.display().to_string(), reason: reason.into() });
    }
    let labels = pac.load("labels")?.to_i64();
    let batch = Inputs::load(pac, "")?.micro_batch(&labels, label_shift(model))?;
    batch.check(&model.config)?;
    let layout = SideLayout::whole(&model.config, &settings.side(settings_path, model.config.layers)?)?;
    let start = flat_from_named(&layout, |name| pac.load(&format!("init.{name}")).ok())?;
    let side = Side::new(device, layout.clone(), &start)?;
    let optimiser = AdamW::new(device, &side.parameters, settings.optimiser);
    let mut losses = Vec::new();
    for step in 1..=settings.steps {
        side.parameters.zero_grads();
        losses.push(pac_step(device, model, &side, &batch).await?);
        if step == 2 {
            compare_side(&layout, "grad1", &side.parameters.read_grads().await?, pac, report)?;
        }
        optimiser.step(&side.parameters, step, settings.lr, 1.0);
    }
    let reference = pac.load("losses")?.to_f32();
    report.push("pac", "losses", &losses, &reference);
    compare_side(&layout, "final", &side.parameters.read_values().await?, pac, report)
}

/// Forward and backward over the whole batch; returns the mean loss.
async fn pac_step(device: &Device, model: &Backbone, side: &Side, batch: &MicroBatch) -> Result<f32, EngineError> {
    let on_device = DeviceBatch::new(device, batch);
    let tape = Tape::recording(device);
    let mut b = model.embed(&tape, &on_device).ok_or_else(not_whole)?;
    let (tap, mut rho) = tape.tap_scale(&b.value);
    let mut a = side.start(&tape, &tap)?;
    for index in 0..model.layers.len() {
        b = model.layer(&tape, index, &b, &on_device)?;
        let tap;
        (tap, rho) = tape.tap_scale(&b.value);
        if let Some(step) = side.layout.step_after_layer(index) {
            a = side.step(&tape, step, &a, &tap, &on_device)?;
        }
    }
    let rows = Tensor::from_u32(device, &batch.labelled_rows);
    let classes = Tensor::from_u32(device, &batch.classes);
    let gather = |x: &Var| tape.gather_rows(x, &rows);
    let (base, rho) = (gather(&b).value, gather(&Var::constant(rho.reshaped(&[rho.len(), 1]))).value);
    let out = side.finish(&tape, &gather(&a), &base, &rho.reshaped(&[rows.len()]))?;
    finish(tape, model, &out, &classes).await
}

/// Mean loss, and the backward pass.
async fn finish(tape: Tape, model: &Backbone, out: &Var, classes: &Tensor) -> Result<f32, EngineError> {
    let factor = 1.0 / classes.len().max(1) as f32;
    let head = model.head.as_ref().filter(|head| !head.shards.is_empty()).ok_or_else(not_whole)?;
    let losses = cross_entropy(&tape, head, out, classes, factor);
    tape.backward();
    Ok((losses.sum().await? * f64::from(factor)) as f32)
}

fn compare_side(layout: &SideLayout, prefix: &str, flat: &[f32], pac: &mut FolderTensors, report: &mut Report) -> Result<(), EngineError> {
    for (name, tensor) in named_from_flat(layout, flat)? {
        if prefix == "grad1" && has_no_gradient(layout.side_model(), &name) {
            continue;
        }
        let name = format!("{prefix}.{name}");
        let reference = pac.load(&name)?.to_f32();
        report.push("pac", name, &tensor.to_f32(), &reference);
    }
    Ok(())
}

/// Whether a parameter's gradient is 0 but for rounding, so that there is nothing to compare: the bias of a key adds
/// the same to all scores of a query, which the softmax takes away again, unless keys are rotated or normed.
fn has_no_gradient(side: &ModelConfig, name: &str) -> bool {
    let ProjectionNames::Split { k, .. } = side.names().attention.projections else { return false };
    side.rope(0).is_none() && !side.qk_norm && name.ends_with(&format!("{k}.bias"))
}

/// The inputs of a run on a model of either kind.
struct Batches {
    /// Of the encoder, where there is one.
    encoder: Option<DeviceBatch>,
    /// Of the decoder, or of the only stack.
    batch: DeviceBatch,
}

impl Batches {
    /// Hidden states behind the last layer.
    fn hidden(&self, tape: &Tape, model: &Backbone) -> Result<Var, EngineError> {
        let memory = self.encoder.as_ref().map(|encoder| model.encode(tape, encoder, &self.batch)).transpose()?;
        let mut x = model.embed(tape, &self.batch).ok_or_else(not_whole)?;
        for index in 0..model.layers.len() {
            x = model.layer_across(tape, index, &x, &self.batch, memory.as_ref())?;
        }
        Ok(x)
    }
}

pub(super) async fn verify_lora(
    device: &Device,
    model: &mut Backbone,
    settings_path: &Path,
    file: &mut FolderTensors,
    report: &mut Report,
) -> Result<(), EngineError> {
    let settings = RunSettings::read(settings_path)?;
    let config = PeftConfig::read(&settings.text)?;
    let lora = Lora::new(device, &model.config, &config, |name| file.load(&format!("init.{name}")).ok())?;
    lora.attach(model);
    let labels = file.load("labels")?.to_i64();
    let first = Inputs::load(file, "")?;
    let (encoder, inputs, shift) = match model.encoder.is_some() {
        // The decoder's inputs are the labels moved by one already.
        true => (Some(first.micro_batch(&[], 0)?), Inputs::load(file, "decoder_")?, 0),
        false => (None, first, label_shift(model)),
    };
    let batch = inputs.micro_batch(&labels, shift)?;
    batch.check(&model.config)?;
    let batches = Batches { encoder: encoder.map(|batch| DeviceBatch::new(device, &batch)), batch: DeviceBatch::new(device, &batch) };
    let (rows, classes) = (Tensor::from_u32(device, &batch.labelled_rows), Tensor::from_u32(device, &batch.classes));
    let optimiser = AdamW::new(device, &lora.parameters, settings.optimiser);
    let mut losses = Vec::new();
    for step in 1..=settings.steps {
        lora.parameters.zero_grads();
        let tape = Tape::recording(device);
        let hidden = batches.hidden(&tape, model)?;
        let labelled = tape.gather_rows(&hidden, &rows);
        losses.push(finish(tape, model, &labelled, &classes).await?);
        optimiser.step(&lora.parameters, step, settings.lr, 1.0);
    }
    report.push("lora", "losses", &losses, &file.load("losses")?.to_f32());
    for (name, tensor) in lora.tensors().await? {
        let reference = find_stored(&name, &mut |name| file.load(&format!("final.{name}")).ok());
        let reference = reference.map(|reference| reference.to_f32()).unwrap_or_default();
        report.push("lora", format!("final.{name}"), &tensor.to_f32(), &reference);
    }
    if file.has("final_logits") {
        let x = batches.hidden(&Tape::computing(device), model)?;
        let got = all_logits(model, &batches.batch, &x).await?;
        report.push("lora", "final_logits", &got, &inputs.unmasked(&file.load("final_logits")?.to_f32()));
    }
    Ok(())
}
