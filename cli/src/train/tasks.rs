//! Encoders with a trained head and encoder-decoder models, by every method: one loop over epochs.

use super::cache::Cache as Kept;
use super::full::{full_config, write_model};
use super::side::SideOptions;
use super::tuned::{Cache, inserts};
use super::{Job, Method, Task, epochs, write_json, write_result};
use crate::generate::Beside;
use crate::model::{Model, WeightFormat, refuse_packed};
use anyhow::{Result, bail, ensure};
use barycenter_core::order::SampleOrder;
use barycenter_engine::backbone::Backbone;
use barycenter_engine::chains::{Chains, ChainsConfig};
use barycenter_engine::heads::{fresh_parts, trained_head};
use barycenter_engine::lora::PeftConfig;
use barycenter_engine::packed::MicroBatch;
use barycenter_engine::parallel::ParallelTrainer;
use barycenter_engine::side_v2::{SideV2Config, SideV2Trainer};
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::FullTrainer;
use barycenter_engine::trainer::{self, SampleEntries, Trainer};
use barycenter_engine::tune::{Inserts, Tuner};
use barycenter_model::dataset::Goal;
use barycenter_model::families::bert::CLASSIFIER_CLASS;
use barycenter_model::metrics::{accuracy, f1_binary, f1_macro, pearson, perplexity, spearman};
use barycenter_model::names::Parts;
use barycenter_model::{HeadKind, ModelConfig, Overlay, TensorSource, Weights, names};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Peak learning rates unless one is given.
fn learning_rate(method: Method) -> f64 {
    match method {
        Method::ParallelAdapter => 1e-3,
        Method::Lora | Method::Adapters => 5e-4,
        Method::Full => 5e-5,
    }
}

/// The model with the head that the labels call for.
pub(super) fn with_head(model: &Model, goal: &Goal) -> Result<ModelConfig> {
    let weights = model.weights(WeightFormat::Keep)?;
    let outputs = match goal {
        Goal::Classes(classes) => classes.0.len(),
        Goal::Number => 1,
    };
    Ok(model.config.clone().with_classifier(outputs, |name| weights.has(name))?)
}

/// The weights, with what the file lacks of the head.
type Source = Overlay<Weights<Box<dyn TensorSource>>>;

/// A method's trainer.
enum Training {
    Full(Box<FullTrainer>),
    Tuned(Box<Tuner>),
    Parallel(Box<ParallelTrainer>, ChainsConfig),
    Version2(Box<SideV2Trainer>),
}

impl Training {
    fn start(job: &Job<'_>, weights: &mut Source) -> Result<Self> {
        let Job { options, device, config, spec, .. } = job;
        let training = job.training(learning_rate(options.method));
        if options.method == Method::Full {
            refuse_packed(options.weights)?;
            return Ok(Self::Full(Box::new(FullTrainer::load(device, config, weights, training)?)));
        }
        if is_version_2(job) {
            ensure!(options.cache.is_none_or(|cache| cache == Cache::None), "--cache f16 and f32 are not there for parallel adapters of version 2, which keep int8: leave --cache out, or choose none");
            let sentences = job.data.samples.iter().map(|sample| sample.sentence_starts.len() + 1).max().unwrap_or(1);
            let side = SideV2Config::new(config, spec.reduction as usize, sentences)?;
            return Ok(Self::Version2(Box::new(SideV2Trainer::fresh(device, config, weights, side, spec.seed, training)?)));
        }
        let head = if names::classifier(config).is_empty() { None } else { Some(trained_head(device, config, weights, |_| true)?) };
        if options.method == Method::ParallelAdapter {
            let chains = options.side.chains(spec.reduction, config)?;
            let side = Chains::fresh(device, config, &chains, weights, spec.seed)?;
            let mut trainer = ParallelTrainer::load(device, config, weights, side, head, training)?;
            trainer.cache_dtype = SideOptions::cache_dtype(options.cache).unwrap_or_default();
            return Ok(Self::Parallel(Box::new(trainer), chains));
        }
        let mut tuner = Tuner::load_with_head(device, config, weights, inserts(job)?, head, training)?;
        if let Some(dtype) = options.cache.and_then(Cache::dtype) {
            tuner.boundary_dtype = dtype;
        }
        Ok(Self::Tuned(Box::new(tuner)))
    }

    fn trainer(&self) -> &dyn Trainer {
        match self {
            Self::Full(trainer) => &**trainer,
            Self::Tuned(trainer) => &**trainer,
            Self::Parallel(trainer, _) => &**trainer,
            Self::Version2(trainer) => &**trainer,
        }
    }

    fn trainer_mut(&mut self) -> &mut dyn Trainer {
        match self {
            Self::Full(trainer) => &mut **trainer,
            Self::Tuned(trainer) => &mut **trainer,
            Self::Parallel(trainer, _) => &mut **trainer,
            Self::Version2(trainer) => &mut **trainer,
        }
    }

    /// Whether what frozen layers give is kept.
    fn is_cached(&self, cache: Option<Cache>) -> bool {
        match self {
            Self::Full(_) => false,
            Self::Tuned(_) => cache.unwrap_or(Cache::None) != Cache::None,
            Self::Parallel(..) | Self::Version2(_) => cache != Some(Cache::None),
        }
    }

    /// What must be known of the training samples before anything else: principal components.
    async fn prepare(&mut self, job: &Job<'_>) -> Result<()> {
        if let Self::Version2(trainer) = self {
            let first = &job.data.samples[..job.data.train.min(SideV2Trainer::FIT_SAMPLES)];
            trainer.fit(first.chunks(job.micro_batch()).map(MicroBatch::of), &no_yield()).await?;
        }
        Ok(())
    }

    /// What is kept of each sample.
    async fn fill(&self, batch: &MicroBatch) -> Result<Vec<SampleEntries>> {
        match self {
            Self::Full(_) => bail!("full fine-tuning keeps nothing"),
            Self::Tuned(tuner) => Ok(tuner.boundary(batch, tuner.boundary_dtype, &no_yield()).await?.into_iter().map(|entry| SampleEntries::new(vec![entry])).collect()),
            Self::Parallel(trainer, _) => Ok(trainer.fill(batch, &no_yield()).await?),
            Self::Version2(trainer) => Ok(trainer.fill(batch, &no_yield()).await?),
        }
    }

    /// Share of held-out questions answered exactly, and the first answer; a model that was dropped for its cache is loaded
    /// again for them.
    async fn answers(&self, job: &Job<'_>, weights: &mut Source) -> Result<(f64, String)> {
        let (model, beside) = match self {
            Self::Full(trainer) => (&trainer.model, Beside::Nothing),
            Self::Tuned(tuner) => (&tuner.model, Beside::Nothing),
            Self::Parallel(trainer, _) => (&trainer.model, Beside::Chains(&trainer.chains)),
            Self::Version2(_) => bail!("parallel adapters of version 2 give classes or numbers, and answer no prompts"),
        };
        if model.embeddings.is_some() {
            return job.answers(model, beside).await;
        }
        let mut whole = Backbone::load(&job.device, &job.config, weights, &Parts::all(&job.config))?;
        if let Self::Tuned(tuner) = self {
            tuner.inserts.attach(&mut whole);
        }
        job.answers(&whole, beside).await
    }

    /// Frees the frozen layers that the cache stands for.
    fn drop_frozen(&mut self, weights: &mut Source) -> Result<()> {
        match self {
            Self::Full(_) => {}
            Self::Tuned(tuner) => tuner.drop_prefix(weights)?,
            Self::Parallel(trainer, _) => trainer.drop_backbone(weights)?,
            Self::Version2(trainer) => trainer.drop_backbone(),
        }
        Ok(())
    }
}

/// Whether the job is one of parallel adapters of version 2.
fn is_version_2(job: &Job<'_>) -> bool {
    let task = match &job.data.goal {
        Some(Goal::Classes(_)) => Task::Classify,
        Some(Goal::Number) => Task::Regress,
        None => Task::Seq2seq,
    };
    job.options.is_version_2(task)
}

/// Trains and reports.
pub(super) async fn run(job: &Job<'_>) -> Result<()> {
    let Job { options, device, config, data, spec, .. } = job;
    ensure!(options.method != Method::Full || options.out.is_none() || job.model.path.is_dir(), "--out writes a folder like the model's: give the model as a folder");
    if matches!(config.head, HeadKind::Classifier { pooled: false, .. }) && !is_version_2(job) {
        let refused = options.method == Method::Full && options.out.is_some();
        ensure!(!refused, "{} has no pooler, so `transformers` could not load what --out writes: choose another method, or leave out --out", options.model.display());
        println!("the folder has no pooler: the head reads the first token as it is, which the class of `transformers` does not");
    }
    let below = job.weights()?;
    let mut weights = Overlay::new(fresh_parts(config, &below, spec.seed), below);
    device.reset_peak();
    let mut training = Training::start(job, &mut weights)?;
    let asks = !data.questions.is_empty();
    let before = if asks { Some(training.answers(job, &mut weights).await?) } else { None };
    if asks {
        device.reset_peak();
    }
    let mut cache = None;
    let (mut fill_seconds, mut fill_peak) = (0.0, 0);
    let began = Instant::now();
    training.prepare(job).await?;
    if training.is_cached(options.cache) {
        let kept = cache.insert(Kept::new(data.samples.len(), options.cache_dir.as_deref()).await?);
        let mut sample = 0;
        for samples in data.samples.chunks(job.micro_batch()) {
            for entries in training.fill(&MicroBatch::of(samples)).await? {
                kept.keep(sample, entries).await?;
                sample += 1;
            }
        }
        (fill_seconds, fill_peak) = (began.elapsed().as_secs_f64(), device.memory().peak_bytes);
        training.drop_frozen(&mut weights)?;
        device.reset_peak();
        println!("frozen layers run once in {fill_seconds:.2} s");
    }
    let cache = cache.as_ref();
    let order = SampleOrder::of(spec);
    let (mut losses, mut rows) = (Vec::new(), Vec::new());
    println!("epoch  seconds    loss  held-out");
    for epoch in 0..spec.epochs {
        let (seconds, loss) = epochs::train(job, training.trainer_mut(), cache, &order.epoch(epoch), &mut losses).await?;
        let (held_out, metrics) = evaluate(job, training.trainer(), cache).await?;
        let shown: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        println!("{epoch:>5} {seconds:>8.2} {loss:>8.4} {held_out:>8.4}   {}", shown.join("  "));
        let mut report = json!({ "epoch": epoch, "seconds": seconds, "loss": loss, "held_out_loss": held_out });
        metrics.into_iter().for_each(|(name, value)| report[name] = value.into());
        rows.push(report);
    }
    let peak = device.memory().peak_bytes;
    match cache {
        Some(cache) => println!("peak memory: {:.1} MB while filling, {:.1} MB while training from the cache; {}", fill_peak as f64 / 1e6, peak as f64 / 1e6, cache.size()),
        None => println!("peak memory: {:.1} MB", peak as f64 / 1e6),
    }
    let eval = match before {
        Some((before, example_base)) => {
            let (after, example) = training.answers(job, &mut weights).await?;
            job.print_exact_match(Some(before), after);
            job.print_example(&example_base, &example);
            json!({ "before": before, "after": after })
        }
        None => Value::Null,
    };
    if let Some(folder) = &options.out {
        write(job, &training, &mut weights, folder).await?;
    }
    if let Some(path) = &options.json {
        write_json(path, &json!({
            "losses": losses, "epochs": rows, "fill_seconds": fill_seconds, "cache_bytes": cache.map_or(0, Kept::bytes),
            "fill_peak_memory_bytes": fill_peak, "train_peak_memory_bytes": peak, "eval": eval
        }))?;
    }
    Ok(())
}

/// Mean held-out loss, and how good the answers are.
async fn evaluate(job: &Job<'_>, trainer: &dyn Trainer, cache: Option<&Kept>) -> Result<(f64, Vec<(&'static str, f64)>)> {
    let data = &job.data;
    let (mut sum, mut labels, mut rows) = (0.0, 0, Vec::new());
    for (ids, batch) in epochs::held_out(job) {
        let cached = epochs::entries_of(cache, &ids)?;
        if data.goal.is_some() {
            let (loss, outputs) = trainer::answers(trainer, &batch, cached.as_deref(), &no_yield()).await?;
            sum += loss;
            rows.extend(outputs);
        } else {
            sum += trainer::loss(trainer, &batch, cached.as_deref(), None, &no_yield()).await?;
        }
        labels += batch.classes.len();
    }
    let loss = sum / labels.max(1) as f64;
    let held_out = &data.samples[data.train..];
    let metrics = match &data.goal {
        None => vec![("perplexity", perplexity(loss))],
        Some(Goal::Classes(classes)) => {
            let truth: Vec<u32> = held_out.iter().filter_map(|sample| Some(sample.sequence.labels.first()?.1)).collect();
            let answers: Vec<u32> = rows.iter().map(|row| likeliest(row)).collect();
            let f1 = if classes.0.len() == 2 { f1_binary(&answers, &truth) } else { f1_macro(&answers, &truth) };
            vec![("accuracy", accuracy(&answers, &truth)), ("f1", f1)]
        }
        Some(Goal::Number) => {
            let truth: Vec<f64> = held_out.iter().filter_map(|sample| sample.value.map(f64::from)).collect();
            let answers: Vec<f64> = rows.iter().flatten().map(|&value| f64::from(value)).collect();
            // None where all answers are the same: nothing is told apart.
            vec![("pearson", pearson(&answers, &truth).unwrap_or(0.0)), ("spearman", spearman(&answers, &truth).unwrap_or(0.0))]
        }
    };
    Ok((loss, metrics))
}

/// The class with the largest output; ties go to the lower one.
fn likeliest(outputs: &[f32]) -> u32 {
    let mut best = 0;
    for (class, value) in outputs.iter().enumerate() {
        if *value > outputs[best] {
            best = class;
        }
    }
    best as u32
}

/// Writes what was trained: a model folder, or an adapter with its head and the names of its labels.
async fn write(job: &Job<'_>, training: &Training, weights: &mut Source, folder: &Path) -> Result<()> {
    let Job { options, config, data, .. } = job;
    let mut tensors = match training {
        Training::Version2(trainer) => trainer.tensors().await?,
        _ => trainer::tensors(training.trainer()).await?,
    };
    let labels = match &data.goal {
        Some(Goal::Classes(classes)) => Some(classes.0.clone()),
        Some(Goal::Number) => Some(Vec::new()),
        None => None,
    };
    let adapter = match training {
        Training::Full(_) => {
            for name in names::constants(config) {
                tensors.insert(name.clone(), weights.load(&name)?);
            }
            let model = with_labels(full_config(&job.model.path)?, labels.as_deref());
            return write_model(&job.model.path, folder, &tensors, &model);
        }
        Training::Tuned(tuner) => match &tuner.inserts {
            Inserts::Lora(lora) => PeftConfig::write(&lora.config, &options.model.display().to_string(), config),
            Inserts::Bottlenecks(adapters) => job.describe(adapters.config.to_json())?,
        },
        Training::Version2(trainer) => job.describe(trainer.side.config.to_json())?,
        Training::Parallel(trainer, chains) => {
            let taps: Vec<&[usize]> = trainer.chains.layouts().map(|layout| layout.config().taps.as_slice()).collect();
            let mut adapter = json!({ "method": "parallel_adapter", "version": 1, "reduction": chains.reduction, "taps": taps.last() });
            chains.fusion.describe(&mut adapter);
            if let [encoder, _] = taps.as_slice() {
                adapter["encoder_taps"] = json!(encoder);
            }
            job.describe(adapter)?
        }
    };
    let labels = labels.map(|labels| serde_json::to_string_pretty(&json!({ "task": if labels.is_empty() { "regress" } else { "classify" }, "labels": labels }))).transpose()?;
    let beside: Vec<(&str, &[u8])> = [Some(("adapter_config.json", adapter.as_bytes())), labels.as_ref().map(|labels| ("labels.json", labels.as_bytes()))].into_iter().flatten().collect();
    write_result("adapter", folder, "adapter_model.safetensors", &tensors, &beside)
}

/// The config of a model whose head was trained: what `transformers` calls its class, and its labels (none: a regression).
fn with_labels(mut config: Value, labels: Option<&[String]>) -> Value {
    let Some(labels) = labels else { return config };
    config["architectures"] = json!([CLASSIFIER_CLASS]);
    config["problem_type"] = json!(if labels.is_empty() { "regression" } else { "single_label_classification" });
    let names = if labels.is_empty() { vec!["LABEL_0".to_string()] } else { labels.to_vec() };
    config["id2label"] = names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
    config["label2id"] = names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    config
}
