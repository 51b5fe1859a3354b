//! Compares what the engine computes with what other people's libraries computed (golden folders).

mod inputs;
mod runs;

use crate::EngineError;
use crate::backbone::Backbone;
use crate::loss::logits;
use crate::packed::DeviceBatch;
use crate::tape::{Tape, Var};
use crate::tensor::Device;
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig, TensorSource, WeightType, Weights};
use inputs::Inputs;
use std::path::Path;

/// The files with references, by the names of their parts.
pub const PARTS: [&str; 5] = ["golden", "pac", "lora", "adapters", "full"];

/// How far one tensor is from its reference.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TensorError {
    /// One of [`PARTS`]: which file the reference is from.
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
    /// The largest relative error of a part (one of [`PARTS`]); `None` if that part was not there. A result that is
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

/// Computes what the reference files of a model folder hold: `golden.safetensors`, and runs of training in
/// `pac.safetensors`, `lora.safetensors`, `adapters.safetensors`, `full.safetensors`.
pub async fn verify(device: &Device, folder: &Path) -> Result<Report, EngineError> {
    verify_as(device, folder, WeightType::Keep).await
}

/// [`verify`] with the frozen weights held in a number format: shows the error of that format.
pub async fn verify_as(device: &Device, folder: &Path, weight_type: WeightType) -> Result<Report, EngineError> {
    let config = ModelConfig::from_folder(folder)?;
    let mut weights = Weights::new(FolderTensors::open(folder)?, weight_type);
    let before = device.memory().current_bytes;
    let model = Backbone::load(device, &config, &mut weights, &Parts::all(&config))?;
    let mut report = Report { weight_bytes: device.memory().current_bytes - before, ..Report::default() };
    let reference = |part: &str| -> Result<Option<FolderTensors>, EngineError> {
        let path = folder.join(format!("{part}.safetensors"));
        Ok(if path.is_file() { Some(FolderTensors::open_file(&path)?) } else { None })
    };
    if let Some(mut golden) = reference("golden")? {
        verify_golden(device, &model, &mut golden, &mut report).await?;
    }
    drop(model);
    for part in PARTS.into_iter().skip(1) {
        if let Some(mut file) = reference(part)? {
            runs::verify_run(device, &config, &mut weights, part, &folder.join(format!("{part}.json")), &mut file, &mut report).await?;
        }
    }
    if report.tensors.is_empty() {
        let reason = format!("none of {} (each .safetensors) is there, so there is nothing to compare with", PARTS.join(", "));
        return Err(EngineError::File { file: folder.display().to_string(), reason });
    }
    Ok(report)
}

fn not_whole() -> EngineError {
    EngineError::BadStage("it does not hold the whole model".into())
}

async fn verify_golden(device: &Device, model: &Backbone, golden: &mut FolderTensors, report: &mut Report) -> Result<(), EngineError> {
    let inputs = Inputs::load(golden, "")?;
    let batch = inputs.micro_batch(&[], 0)?;
    let on_device = DeviceBatch::new(device, &batch);
    let Some(encoder) = &model.encoder else {
        batch.check(&model.config)?;
        let x = compare_hidden(model, &on_device, &inputs, "hidden", golden, report, None).await?;
        return compare_logits(model, &on_device, &inputs, &x, golden, report).await;
    };
    batch.check(&encoder.config)?;
    compare_hidden(encoder, &on_device, &inputs, "encoder_hidden", golden, report, None).await?;
    let decoder_inputs = Inputs::load(golden, "decoder_")?;
    let decoder_batch = decoder_inputs.micro_batch(&[], 0)?;
    decoder_batch.check(&model.config)?;
    let decoder_on_device = DeviceBatch::new(device, &decoder_batch);
    let memory = model.encode(&Tape::computing(device), &on_device, &decoder_on_device)?;
    let x = compare_hidden(model, &decoder_on_device, &decoder_inputs, "decoder_hidden", golden, report, Some(&memory)).await?;
    compare_logits(model, &decoder_on_device, &decoder_inputs, &x, golden, report).await
}

/// Walks through the layers of a stack and compares every hidden state there is a reference for; returns the last one,
/// before the final norm.
async fn compare_hidden(
    stack: &Backbone,
    batch: &DeviceBatch,
    inputs: &Inputs,
    prefix: &str,
    golden: &mut FolderTensors,
    report: &mut Report,
    memory: Option<&crate::backbone::Memory>,
) -> Result<Var, EngineError> {
    let tape = Tape::computing(stack.device());
    let head = stack.head.as_ref().ok_or_else(not_whole)?;
    let mut x = stack.embed(&tape, batch).ok_or_else(not_whole)?;
    for index in 0..=stack.layers.len() {
        let name = format!("{prefix}.{index}");
        if golden.has(&name) {
            // The last hidden state of transformers has the final norm applied.
            let hidden = if index == stack.layers.len() { head.normed(&tape, &x) } else { x.clone() };
            report.push("golden", &name, &hidden.value.read().await?, &inputs.unmasked(&golden.load(&name)?.to_f32()));
        }
        if index < stack.layers.len() {
            x = stack.layer_across(&tape, index, &x, batch, memory)?;
        }
    }
    Ok(x)
}

async fn compare_logits(
    model: &Backbone,
    batch: &DeviceBatch,
    inputs: &Inputs,
    x: &Var,
    golden: &mut FolderTensors,
    report: &mut Report,
) -> Result<(), EngineError> {
    if !golden.has("logits") {
        return Ok(());
    }
    if model.head.as_ref().is_none_or(|head| head.shards.is_empty()) {
        let reason = "it has `logits`, and the head of this model's class (`architectures` in config.json) is none that is computed here".to_string();
        return Err(EngineError::File { file: "golden.safetensors".into(), reason });
    }
    let got = all_logits(model, batch, x).await?;
    let reference = golden.load("logits")?;
    // Logits of a pooled head are one row a sequence, not one a token.
    let reference = if reference.shape.len() == 2 { reference.to_f32() } else { inputs.unmasked(&reference.to_f32()) };
    report.push("golden", "logits", &got, &reference);
    Ok(())
}

/// Logits of every row that has some, `[rows, classes]`.
async fn all_logits(model: &Backbone, batch: &DeviceBatch, x: &Var) -> Result<Vec<f32>, EngineError> {
    let tape = Tape::computing(model.device());
    let head = model.head.as_ref().ok_or_else(not_whole)?;
    let x = head.rows(&tape, x, batch);
    let mut rows = vec![Vec::new(); x.value.rows()];
    for chunk in logits(&tape, head, &x) {
        let cols = chunk.cols();
        for (row, values) in rows.iter_mut().zip(chunk.read().await?.chunks(cols)) {
            row.extend_from_slice(values);
        }
    }
    Ok(rows.concat())
}
