//! Compares what the engine computes with what other people's libraries computed (golden folders).

use crate::EngineError;
use crate::llama::LlamaStage;
use crate::loss::{cross_entropy, logits};
use crate::optim::{AdamW, AdamWConfig};
use crate::packed::{DeviceBatch, MicroBatch, Sequence};
use crate::side::{Side, SideConfig, SideLayout, flat_from_named, named_from_flat};
use crate::tape::{Tape, Var};
use crate::tensor::{Device, Tensor};
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig, TensorSource, WeightType, Weights};
use std::path::Path;

/// How far one tensor is from its reference.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TensorError {
    /// `golden` or `pac`: which file the reference is from.
    pub part: &'static str,
    /// Name of the tensor in that file.
    pub name: String,
    /// ‖x − ref‖ / ‖ref‖ over unmasked positions.
    pub relative_error: f64,
}

/// The result of [`verify`].
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Report {
    /// One entry per tensor compared.
    pub tensors: Vec<TensorError>,
    /// Bytes that the model's weights take on the device.
    pub weight_bytes: u64,
}

impl Report {
    /// The largest relative error of a part (`golden` or `pac`); `None` if that part was not there. A result that is
    /// not a number counts as infinitely far off.
    pub fn worst(&self, part: &str) -> Option<&TensorError> {
        self.tensors.iter().filter(|t| t.part == part).max_by(|a, b| a.relative_error.total_cmp(&b.relative_error))
    }

    fn push(&mut self, part: &'static str, name: impl Into<String>, got: &[f32], reference: &[f32]) {
        let name = name.into();
        self.tensors.push(TensorError { part, name, relative_error: relative_error(got, reference) });
    }
}

/// ‖got − reference‖ / ‖reference‖, infinite where lengths differ or something is not a number.
pub fn relative_error(got: &[f32], reference: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let differences: f64 = got.iter().zip(reference).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = reference.iter().map(|x| square(f64::from(*x))).sum();
    let error = if differences == 0.0 { 0.0 } else { (differences / norm).sqrt() };
    if error.is_nan() || got.len() != reference.len() { f64::INFINITY } else { error }
}

/// Computes what `golden.safetensors` and, where present, `pac.safetensors` of a model folder hold.
pub async fn verify(device: &Device, folder: &Path) -> Result<Report, EngineError> {
    verify_as(device, folder, WeightType::Keep).await
}

/// [`verify`] with the frozen weights held in a number format: shows the error of that format.
pub async fn verify_as(device: &Device, folder: &Path, weight_type: WeightType) -> Result<Report, EngineError> {
    let config = ModelConfig::from_folder(folder)?;
    let mut weights = Weights::new(FolderTensors::open(folder)?, weight_type);
    let before = device.memory().current_bytes;
    let model = LlamaStage::load(device, &config, &mut weights, &Parts::all(&config))?;
    let mut report = Report { weight_bytes: device.memory().current_bytes - before, ..Report::default() };
    let golden = folder.join("golden.safetensors");
    if golden.is_file() {
        verify_golden(device, &model, &mut FolderTensors::open_file(&golden)?, &mut report).await?;
    }
    let pac = folder.join("pac.safetensors");
    if pac.is_file() {
        let settings = PacSettings::read(&folder.join("pac.json"), config.layers)?;
        verify_pac(device, &model, &settings, &mut FolderTensors::open_file(&pac)?, &mut report).await?;
    }
    if report.tensors.is_empty() {
        let reason = "neither golden.safetensors nor pac.safetensors is there, so there is nothing to compare with";
        return Err(EngineError::File { file: folder.display().to_string(), reason: reason.into() });
    }
    Ok(report)
}

async fn verify_golden(device: &Device, model: &LlamaStage, golden: &mut FolderTensors, report: &mut Report) -> Result<(), EngineError> {
    let inputs = Inputs::load(golden)?;
    let batch = inputs.micro_batch(&[])?;
    batch.check(model.config.vocab)?;
    let on_device = DeviceBatch::new(device, &batch);
    let tape = Tape::computing(device);
    let not_whole = || EngineError::BadStage("it does not hold the whole model".into());
    let head = model.head.as_ref().ok_or_else(not_whole)?;
    let mut x = model.embed(&tape, &on_device).ok_or_else(not_whole)?;
    for index in 0..=model.layers.len() {
        let name = format!("hidden.{index}");
        if golden.has(&name) {
            // The last hidden state of transformers has the final norm applied.
            let normed = index == model.layers.len();
            let hidden = if normed { tape.rms_norm(&x, &head.norm, head.eps) } else { x.clone() };
            report.push("golden", &name, &hidden.value.read().await?, &inputs.unmasked(&golden.load(&name)?.to_f32()));
        }
        if index < model.layers.len() {
            x = model.layer(&tape, index, &x, &on_device);
        }
    }
    let mut rows = vec![Vec::new(); batch.tokens()];
    for chunk in logits(&tape, head, &x) {
        let cols = chunk.cols();
        for (row, values) in rows.iter_mut().zip(chunk.read().await?.chunks(cols)) {
            row.extend_from_slice(values);
        }
    }
    report.push("golden", "logits", &rows.concat(), &inputs.unmasked(&golden.load("logits")?.to_f32()));
    Ok(())
}

/// What `pac.json` says.
struct PacSettings {
    side: SideConfig,
    optimiser: AdamWConfig,
    lr: f32,
    steps: u32,
}

impl PacSettings {
    fn read(path: &Path, layers: usize) -> Result<Self, EngineError> {
        let bad = |reason: String| EngineError::File { file: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let number = |value: &serde_json::Value, key: &str| value.as_f64().ok_or_else(|| bad(format!("`{key}` is not a number")));
        let get = |key: &str| number(&json[key], key);
        let mut side = SideConfig::new(get("reduction")? as usize, layers);
        if let Some(taps) = json["taps"].as_array() {
            side.taps = taps.iter().map(|tap| number(tap, "taps").map(|tap| tap as usize)).collect::<Result<_, _>>()?;
        }
        side.temperature = get("gate_temperature")? as f32;
        let optimiser = AdamWConfig {
            beta1: number(&json["betas"][0], "betas")? as f32,
            beta2: number(&json["betas"][1], "betas")? as f32,
            eps: get("eps")? as f32,
            weight_decay: get("weight_decay")? as f32,
        };
        Ok(Self { side, optimiser, lr: get("lr")? as f32, steps: get("steps")? as u32 })
    }
}

async fn verify_pac(
    device: &Device,
    model: &LlamaStage,
    settings: &PacSettings,
    pac: &mut FolderTensors,
    report: &mut Report,
) -> Result<(), EngineError> {
    let inputs = Inputs::load(pac)?;
    let labels = pac.load("labels")?.to_i64();
    let batch = inputs.micro_batch(&labels)?;
    batch.check(model.config.vocab)?;
    let layout = SideLayout::whole(&model.config, &settings.side)?;
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
async fn pac_step(device: &Device, model: &LlamaStage, side: &Side, batch: &MicroBatch) -> Result<f32, EngineError> {
    let on_device = DeviceBatch::new(device, batch);
    let tape = Tape::recording(device);
    let not_whole = || EngineError::BadStage("it does not hold the whole model".into());
    let mut b = model.embed(&tape, &on_device).ok_or_else(not_whole)?;
    let (tap, mut rho) = tape.tap_scale(&b.value);
    let mut a = side.start(&tape, &tap)?;
    for index in 0..model.layers.len() {
        b = model.layer(&tape, index, &b, &on_device);
        let tap;
        (tap, rho) = tape.tap_scale(&b.value);
        if let Some(step) = side.layout.step_after_layer(index) {
            a = side.step(&tape, step, &a, &tap, &on_device);
        }
    }
    let rows = Tensor::from_u32(device, &batch.labelled_rows);
    let classes = Tensor::from_u32(device, &batch.classes);
    let gather = |x: &Var| tape.gather_rows(x, &rows);
    let (base, rho) = (gather(&b).value, gather(&Var::constant(rho.reshaped(&[rho.len(), 1]))).value);
    let out = side.finish(&tape, &gather(&a), &base, &rho.reshaped(&[rows.len()]))?;
    let factor = 1.0 / batch.classes.len().max(1) as f32;
    let losses = cross_entropy(&tape, model.head.as_ref().ok_or_else(not_whole)?, &out, &classes, factor);
    tape.backward();
    Ok((losses.sum().await? * f64::from(factor)) as f32)
}

fn compare_side(layout: &SideLayout, prefix: &str, flat: &[f32], pac: &mut FolderTensors, report: &mut Report) -> Result<(), EngineError> {
    for (name, tensor) in named_from_flat(layout, flat)? {
        let name = format!("{prefix}.{name}");
        let reference = pac.load(&name)?.to_f32();
        report.push("pac", name, &tensor.to_f32(), &reference);
    }
    Ok(())
}

/// Right-padded token ids of a reference, and which of them are real.
struct Inputs {
    ids: Vec<i64>,
    mask: Vec<bool>,
    padded_len: usize,
}

impl Inputs {
    fn load(file: &mut FolderTensors) -> Result<Self, EngineError> {
        let ids = file.load("input_ids")?;
        let mask = match file.has("attention_mask") {
            true => file.load("attention_mask")?.to_i64().into_iter().map(|real| real != 0).collect(),
            false => vec![true; ids.elements()],
        };
        Ok(Self { padded_len: ids.shape.last().copied().unwrap_or(1).max(1), ids: ids.to_i64(), mask })
    }

    /// The real tokens of each row as a sequence; `labels` as transformers has them (−100 = no loss), or none.
    fn micro_batch(&self, labels: &[i64]) -> Result<MicroBatch, EngineError> {
        let bad = |id: i64| EngineError::BadBatch(format!("token {id} is negative"));
        let sequences = self.ids.chunks(self.padded_len).enumerate().map(|(row, ids)| {
            let real: Vec<usize> = (0..ids.len()).filter(|t| self.mask[row * self.padded_len + t]).collect();
            let label = |t: usize| labels.get(row * self.padded_len + t).copied().filter(|&label| label >= 0);
            let labels = real.iter().enumerate().skip(1).filter_map(|(at, &t)| Some((at as u32 - 1, label(t)? as u32)));
            let labels = labels.collect();
            let ids = real.iter().map(|&t| u32::try_from(ids[t]).map_err(|_| bad(ids[t]))).collect::<Result<_, _>>()?;
            Ok(Sequence { ids, labels })
        });
        Ok(MicroBatch::pack(&sequences.collect::<Result<Vec<_>, EngineError>>()?))
    }

    /// The rows of `[batch, padded_len, …]` that belong to real tokens.
    fn unmasked(&self, values: &[f32]) -> Vec<f32> {
        let width = values.len() / self.mask.len().max(1);
        let rows = values.chunks(width.max(1)).zip(&self.mask);
        rows.filter(|(_, real)| **real).flat_map(|(row, _)| row.iter().copied()).collect()
    }
}
