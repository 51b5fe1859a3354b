//! Reference training runs of every method, step by step.

use super::Report;
use super::inputs::Inputs;
use crate::EngineError;
use crate::bottleneck::{BottleneckConfig, Bottlenecks};
use crate::chains::{Chains, ChainsConfig};
use crate::heads::trained_head;
use crate::lora::{Lora, PEFT_PREFIX, PeftConfig, peft_saved_name};
use crate::optim::{AdamWConfig, LinearSchedule};
use crate::packed::MicroBatch;
use crate::parallel::ParallelTrainer;
use crate::side::Fusion;
use crate::tape::no_yield;
use crate::tensor::Device;
use crate::train_full::{FullTrainer, FullTraining};
use crate::trainer::{self, Trainer};
use crate::tune::{Inserts, Tuner};
use barycenter_model::families::{AttentionNames, ProjectionNames};
use barycenter_model::{FolderTensors, HeadKind, ModelConfig, Overlay, RawTensor, TensorSource, names};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What the JSON file beside a run says of it.
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

    /// A whole number that the settings must have.
    fn number(&self, path: &Path, key: &str) -> Result<f64, EngineError> {
        self.json[key].as_f64().ok_or_else(|| EngineError::File { file: path.display().to_string(), reason: format!("`{key}` is not a number") })
    }

    fn chains(&self, path: &Path) -> Result<ChainsConfig, EngineError> {
        if self.json.get("version").is_some_and(|version| *version != 1) {
            let reason = format!("it is of version {} of parallel adapters, and runs of version 1 are repeated here", self.json["version"]);
            return Err(EngineError::File { file: path.display().to_string(), reason });
        }
        if let Some(fusion) = self.json["fusion"].as_str().filter(|&fusion| !["gate", "sum"].contains(&fusion)) {
            let reason = format!("`fusion` is `{fusion}`, and `gate` and `sum` are computed");
            return Err(EngineError::File { file: path.display().to_string(), reason });
        }
        let taps = |key: &str| -> Result<Option<Vec<usize>>, EngineError> {
            let bad = || EngineError::File { file: path.display().to_string(), reason: format!("`{key}` holds something that is not a number") };
            let Some(list) = self.json[key].as_array() else { return Ok(None) };
            list.iter().map(|tap| tap.as_u64().map(|tap| tap as usize).ok_or_else(bad)).collect::<Result<_, _>>().map(Some)
        };
        Ok(ChainsConfig {
            reduction: self.number(path, "reduction")? as usize,
            fusion: Fusion::of_config(&self.json),
            taps: taps("taps")?,
            encoder_taps: taps("encoder_taps")?,
        })
    }

    /// The trainers' own schedule is not used here: a reference has one learning rate.
    fn training(&self) -> FullTraining {
        let schedule = LinearSchedule { warmup_steps: 0, total_steps: self.steps, peak_lr: self.lr };
        FullTraining { schedule, optimiser: self.optimiser, max_norm: 0.0 }
    }
}

/// The batch of a run, and the inputs that its logits belong to: the decoder's, where there are two stacks.
fn batch_of(config: &ModelConfig, file: &mut FolderTensors) -> Result<(MicroBatch, Inputs), EngineError> {
    let labels = file.load("labels")?;
    let first = Inputs::load(file, "")?;
    let (batch, inputs) = match (&config.encoder, config.head) {
        (Some(_), _) => {
            // The decoder's inputs are the labels moved by one already.
            let inputs = Inputs::load(file, "decoder_")?;
            let encoder = Some(Box::new(first.micro_batch(&[], 0)?));
            (MicroBatch { encoder, ..inputs.micro_batch(&labels.to_i64(), 0)? }, inputs)
        }
        (None, HeadKind::Classifier { labels: outputs, .. }) => (first.labelled_rows(&labels, outputs)?, first),
        // A causal model predicts the next token, BERT's masked head the one it stands on.
        (None, _) => (first.micro_batch(&labels.to_i64(), usize::from(config.causal))?, first),
    };
    batch.check(config)?;
    Ok((batch, inputs))
}

/// The model with the classifier that a run trains on it, where the folder itself has no head.
fn with_head_of(config: &ModelConfig, weights: &dyn TensorSource, file: &FolderTensors) -> Result<ModelConfig, EngineError> {
    let Some([_, matrix]) = config.family.table().head.classifier.filter(|_| config.head == HeadKind::None) else { return Ok(config.clone()) };
    let start = |name: &str| [format!("init.{name}"), format!("init.{}", peft_saved_name(name))].into_iter().find(|name| file.has(name));
    match start(&format!("{matrix}.weight")).and_then(|name| file.shape(&name)?.first().copied()) {
        Some(labels) => Ok(config.clone().with_classifier(labels, |name| weights.has(name) || start(name).is_some())?),
        None => Ok(config.clone()),
    }
}

/// Repeats a run of training: losses, gradients of the second step, final values and logits.
pub(super) async fn verify_run(
    device: &Device,
    config: &ModelConfig,
    weights: &mut dyn TensorSource,
    part: &'static str,
    settings_path: &Path,
    file: &mut FolderTensors,
    report: &mut Report,
) -> Result<(), EngineError> {
    let settings = RunSettings::read(settings_path)?;
    let training = settings.training();
    let config = &with_head_of(config, weights, file)?;
    let (batch, inputs) = batch_of(config, file)?;
    // What is trained of a classifier is what the file starts from.
    let stored = |name: &str, file: &FolderTensors| if part == "lora" { stored_peft(name, file) } else { Some(format!("init.{name}")).filter(|name| file.has(name)) };
    let mut start = BTreeMap::new();
    for parameter in names::classifier(config) {
        if let Some(name) = stored(&parameter.name, file) {
            start.insert(parameter.name, file.load(&name)?);
        }
    }
    let trained: BTreeSet<String> = start.keys().cloned().collect();
    let mut weights = Overlay::new(start, weights);
    let mut head = || match trained.is_empty() {
        true => Ok(None),
        false => trained_head(device, config, &mut weights, |name| trained.contains(name)).map(Some),
    };
    let mut trainer: Box<dyn Trainer> = match part {
        "pac" => {
            let head = head()?;
            let chains = Chains::load(device, config, &settings.chains(settings_path)?, |name| file.load(&format!("init.{name}")).ok())?;
            Box::new(ParallelTrainer::load(device, config, &mut weights, chains, head, training)?)
        }
        "lora" => {
            let head = head()?;
            let lora = Lora::new(device, config, &PeftConfig::read(&settings.text)?, |name| file.load(&format!("init.{name}")).ok())?;
            Box::new(Tuner::load_with_head(device, config, &mut weights, Inserts::Lora(lora), head, training)?)
        }
        "adapters" => {
            let head = head()?;
            let layers = 0..names::stacks(config).map(|(stack, _)| stack.layers).max().unwrap_or(0);
            let adapters = BottleneckConfig { reduction: settings.number(settings_path, "reduction")? as usize, layers };
            let adapters = Bottlenecks::load(device, config, &adapters, |name| file.load(&format!("init.{name}")).ok())?;
            Box::new(Tuner::load_with_head(device, config, &mut weights, Inserts::Bottlenecks(adapters), head, training)?)
        }
        _ => Box::new(FullTrainer::load(device, config, &mut weights, training)?),
    };
    let mut losses = Vec::new();
    for step in 1..=settings.steps {
        losses.push(trainer::gradients(&*trainer, &batch, None, &no_yield()).await?);
        if step == 2 {
            compare(config, part, "grad1", trainer::gradient_tensors(&*trainer).await?, file, report)?;
        }
        trainer::update(&mut *trainer, settings.lr, 1.0);
    }
    report.push(part, "losses", &losses, &file.load("losses")?.to_f32());
    let compared = compare(config, part, "final", trainer::tensors(&*trainer).await?, file, report)?;
    // What the reference trained and this run did not is infinitely far off.
    let missed: Vec<_> = file.names().filter(|name| name.starts_with("final.") && !compared.contains(*name)).map(str::to_string).collect();
    for name in missed {
        report.push(part, format!("{name} (not trained here)"), &[], &file.load(&name)?.to_f32());
    }
    if file.has("final_logits") {
        let reference = file.load("final_logits")?;
        let is_classifier = matches!(config.head, HeadKind::Classifier { .. });
        let (batch, reference) = match is_classifier {
            true => (batch, reference.to_f32()),
            false => (MicroBatch { encoder: batch.encoder, ..inputs.every_token()? }, inputs.unmasked(&reference.to_f32())),
        };
        let (_, rows) = trainer::answers(&*trainer, &batch, None, &no_yield()).await?;
        report.push(part, "final_logits", &rows.concat(), &reference);
    }
    Ok(())
}

/// The name under which a run of `peft` starts a parameter that is saved whole.
fn stored_peft(parameter: &str, file: &FolderTensors) -> Option<String> {
    stored_in(file, "init", &peft_saved_name(parameter))
}

/// The name behind `prefix` under which a file holds a tensor, which may be one of PEFT's.
fn stored_in(file: &FolderTensors, prefix: &str, name: &str) -> Option<String> {
    let (of_peft, name) = name.strip_prefix(PEFT_PREFIX).map_or(("", name), |name| (PEFT_PREFIX, name));
    let full = |name: &str| format!("{prefix}.{of_peft}{name}");
    names::stored_name(name, |name| file.has(&full(name))).map(|name| full(&name))
}

/// Compares tensors with those of a file behind `prefix`, of gradients those that the file has; returns the file's names.
fn compare(
    config: &ModelConfig,
    part: &'static str,
    prefix: &str,
    tensors: BTreeMap<String, RawTensor>,
    file: &mut FolderTensors,
    report: &mut Report,
) -> Result<BTreeSet<String>, EngineError> {
    let mut compared = BTreeSet::new();
    for (name, tensor) in tensors {
        let stored = stored_in(file, prefix, &name);
        if prefix == "grad1" && (stored.is_none() || has_no_gradient(config, &name)) {
            continue;
        }
        // What is missing is infinitely far off.
        let reference = match &stored {
            Some(stored) => file.load(stored)?.to_f32(),
            None => Vec::new(),
        };
        report.push(part, format!("{prefix}.{name}"), &tensor.to_f32(), &reference);
        compared.extend(stored);
    }
    Ok(compared)
}

/// Whether a parameter's gradient is 0 but for rounding, so that there is nothing to compare: the bias of a key adds
/// the same to all scores of a query, which the softmax takes away again, unless keys are rotated or normed.
fn has_no_gradient(config: &ModelConfig, name: &str) -> bool {
    let is_key_bias = |names: &AttentionNames| match names.projections {
        ProjectionNames::Split { k, .. } => name.ends_with(&format!("{k}.bias")),
        ProjectionNames::Fused(_) => false,
    };
    let mut attentions = names::stacks(config).flat_map(|(_, names)| [Some(&names.attention), names.cross.as_ref()]).flatten();
    config.rope(0).is_none() && !config.qk_norm && attentions.any(is_key_bias)
}
