//! `barycenter train`: a method on this one computer, with the swarm's sample order and schedule. A file for each method.

mod cache;
mod combinations;
mod data;
mod epochs;
pub(crate) mod full;
mod parallel;
mod sentences;
mod seq2seq;
mod side;
mod tasks;
mod tuned;

use crate::backend::create_backend;
use crate::generate::{Beside, answer};
use crate::model::{ActivationFormat, Model, WeightFormat, numbers};
use crate::output::{check_file, check_folder, write_file, write_folder};
use anyhow::{Context, Result, ensure};
use barycenter_engine::backbone::Backbone;
use barycenter_engine::generate::GenerateOptions;
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::train_full::FullTraining;
use barycenter_engine::Device;
use barycenter_model::metrics::exact_match;
use barycenter_model::{ModelConfig, RawTensor, TensorSource, Weights, check_finite, write_safetensors};
use barycenter_protocol::control::{CacheType, GradientType, RunSpec, SampleSize};
use barycenter_server::Recommendation;
use data::{Data, Task};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use sentences::SentenceOptions;
use side::SideOptions;
use tuned::Cache;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Method {
    /// A side network beside the frozen model, from the cache after the first epoch.
    ParallelAdapter,
    /// Products of low rank beside linear layers, in PEFT's files.
    Lora,
    /// Bottleneck adapters behind attention and feed-forward block.
    Adapters,
    /// Every weight.
    Full,
}

/// Options of `barycenter train`.
#[derive(clap::Args)]
pub struct Options {
    /// Model folder (config.json, model.safetensors, tokenizer.json; demo.json may recommend hyper-parameters), .gguf
    /// file, or name on the hub (org/name).
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Number format in which the frozen weights are held.
    #[arg(long, default_value = "keep")]
    pub(crate) weights: WeightFormat,
    /// In which numbers activations meet frozen int8 and int4 weights in the forward pass; int8 is faster, on the CPU.
    #[arg(long, default_value = "f32")]
    activations: ActivationFormat,
    /// Training rows: .jsonl, .csv, .tsv or .txt.
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// What the rows are.
    #[arg(long, default_value = "auto")]
    task: Task,
    /// What is trained.
    #[arg(long, default_value = "parallel_adapter")]
    method: Method,
    /// LoRA: rank (default: 8).
    #[arg(long)]
    rank: Option<usize>,
    /// LoRA: numerator of the scale alpha / rank (default: twice the rank).
    #[arg(long)]
    alpha: Option<f64>,
    /// LoRA: linear layers by the end of their names, with commas; all-linear for all (default).
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// LoRA: go on from an adapter folder (also one that PEFT wrote).
    #[arg(long)]
    resume_adapter: Option<PathBuf>,
    /// LoRA and adapters: train in the last so many layers only; of encoder-decoder models LoRA, in the decoder's.
    #[arg(long)]
    last_layers: Option<usize>,
    /// LoRA and adapters: run the frozen layers before the trained ones once and keep their output (default: none); of an
    /// encoder-decoder model the encoder's too.
    /// Parallel adapters keep the output of every layer they read (default: int8; version 2: int8 components of it, so no type is
    /// given); of encoders and encoder-decoder models it may be none.
    #[arg(long)]
    cache: Option<Cache>,
    /// Folder for the cache, which is a file there while the run lasts (default: in memory up to 268 MB, then a temporary
    /// folder).
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    #[command(flatten)]
    side: SideOptions,
    #[command(flatten)]
    sentences: SentenceOptions,
    /// Parallel adapters: 1 reads layers' whole outputs; 2, for sentences and pairs of sentences, reads principal
    /// components of every second one, each sentence run by itself, from a cache more than 16 times smaller (default: 2
    /// for --task classify, else 1).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2))]
    adapter_version: Option<u32>,
    /// Held-out rows (default: a tenth of the rows, chosen by the seed).
    #[arg(long)]
    held_out: Option<PathBuf>,
    /// Folder for the adapter, or of --method full for the model; what is there already is not replaced.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Which back end computes.
    #[arg(long, default_value = "auto")]
    pub(crate) device: crate::Device,
    /// Epochs, the fill epoch included (default, as of the next ones: what demo.json in the model's folder recommends; else 3).
    #[arg(long)]
    epochs: Option<u32>,
    /// Reduction k of the side network, or of bottleneck adapters (default: 8).
    #[arg(long)]
    reduction: Option<u32>,
    /// Mini-batch (default: 16).
    #[arg(long)]
    batch: Option<u32>,
    /// Samples that go through at once: a mini-batch in such pieces needs less memory and gives the same steps (default:
    /// the whole mini-batch).
    #[arg(long)]
    micro_batch: Option<u32>,
    /// Peak learning rate (default: 1e-3 for parallel adapters, 2e-3 for LoRA and adapters, 5e-4 for full; of encoders and
    /// encoder-decoder models 1e-3, 5e-4 and 5e-5).
    #[arg(long)]
    pub(crate) learning_rate: Option<f64>,
    /// Warm-up steps (default: a tenth of all).
    #[arg(long)]
    warmup_steps: Option<u32>,
    /// Seed of order and initialisation (default: 1).
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Held-out prompts answered before and after.
    #[arg(long, default_value_t = 100)]
    pub(crate) exact_match_rows: usize,
    /// Write losses, times and results as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Options {
    /// Whether the method is parallel adapters of version 2.
    fn is_version_2(&self, task: Task) -> bool {
        let usual = if task == Task::Classify { 2 } else { 1 };
        self.method == Method::ParallelAdapter && self.adapter_version.unwrap_or(usual) == 2
    }

    /// Refuses places for results that nothing can be written to, before hours of work are done for them.
    fn check_places(&self) -> Result<()> {
        if let Some(folder) = &self.out {
            check_folder("--out", folder, &["adapter_model.safetensors", "adapter_config.json", "model.safetensors", "config.json"])?;
        }
        // The report may lie beside the adapter, in a folder that is not there yet.
        let beside = |file: &Path| self.out.as_deref().is_some_and(|folder| file.parent() == Some(folder));
        self.json.as_deref().filter(|file| !beside(file)).map_or(Ok(()), |file| check_file("--json", file))
    }

    /// Refuses a version of parallel adapters that is not there for the method or the task.
    fn check_adapter_version(&self, task: Task) -> Result<()> {
        let Some(version) = self.adapter_version else { return Ok(()) };
        ensure!(self.method == Method::ParallelAdapter, "--adapter-version {version} is of parallel adapters: use it with --method parallel_adapter");
        ensure!(version == 1 || matches!(task, Task::Classify | Task::Regress), "--adapter-version 2 is for encoders that classify or regress: choose --adapter-version 1, or leave it out");
        Ok(())
    }
}

/// Everything a method needs.
pub(crate) struct Job<'a> {
    pub(crate) options: &'a Options,
    pub(crate) device: Device,
    pub(crate) config: ModelConfig,
    pub(crate) data: Data,
    pub(crate) spec: RunSpec,
    model: Model,
}

impl<'a> Job<'a> {
    /// Opens the device, the model's description and the data.
    pub(crate) async fn open(options: &'a Options) -> Result<Self> {
        options.check_places()?;
        let device = create_backend(options.device.into()).await?;
        println!("{}: {}", device.info().description, device.info().reason);
        options.activations.set(&device)?;
        let model = Model::open(&options.model)?;
        let data = Data::read(options, &model, model.config.max_positions)?;
        let config = match &data.goal {
            Some(goal) => tasks::with_head(&model, goal)?,
            None => model.config.clone(),
        };
        let spec = spec(options, &model, &data)?;
        Ok(Self { options, device, config, data, spec, model })
    }

    /// The weights, as asked for.
    fn weights(&self) -> Result<Weights<Box<dyn TensorSource>>> {
        self.model.weights(self.options.weights)
    }

    /// The `adapter_config.json` of an adapter that PEFT does not know: what it is, the model beside which it was trained, and the
    /// numbers that was held in.
    fn describe(&self, mut adapter: serde_json::Value) -> Result<String> {
        adapter["base_model"] = self.options.model.display().to_string().into();
        for (key, held) in numbers(self.options.weights, self.options.activations) {
            adapter[key] = held.into();
        }
        Ok(serde_json::to_string_pretty(&adapter)?)
    }

    /// Schedule and optimiser; a model's recommended learning rate is for the side network, so others have their own.
    fn training(&self, learning_rate: f64) -> FullTraining {
        let spec = &self.spec;
        FullTraining {
            schedule: LinearSchedule {
                warmup_steps: spec.warmup_steps,
                total_steps: spec.train_samples.div_ceil(spec.batch) * spec.epochs,
                peak_lr: self.options.learning_rate.unwrap_or(learning_rate) as f32,
            },
            optimiser: AdamWConfig { weight_decay: spec.weight_decay as f32, ..AdamWConfig::default() },
            max_norm: spec.clip_norm as f32,
        }
    }

    /// Samples that go through at once.
    fn micro_batch(&self) -> usize {
        self.options.micro_batch.unwrap_or(self.spec.batch).min(self.spec.batch) as usize
    }

    /// Share of held-out questions answered exactly, and the first answer.
    async fn answers(&self, model: &Backbone, beside: Beside<'_>) -> Result<(f64, String)> {
        let questions = &self.data.questions;
        let prompts: Vec<Vec<u32>> = questions.iter().map(|question| question.prompt.clone()).collect();
        let limits = GenerateOptions { max_new_tokens: 96, stop: self.config.eos.clone() };
        let given = answer(model, beside, &prompts, &limits).await?;
        let texts = given.iter().map(|ids| self.model.tokenizer.decode_response(ids)).collect::<Result<Vec<_>, _>>()?;
        let right = texts.iter().zip(questions).filter(|(text, question)| exact_match(text, &question.answer)).count();
        Ok((right as f64 / questions.len().max(1) as f64, texts.into_iter().next().unwrap_or_default()))
    }

    /// How many held-out questions were answered exactly, if there were any.
    fn print_exact_match(&self, before: Option<f64>, after: f64) {
        let before = before.map_or(String::new(), |before| format!("before {:.1} %, ", 100.0 * before));
        match self.data.questions.is_empty() {
            false => println!("held-out exact match: {before}after {:.1} %", 100.0 * after),
            true => println!("held-out exact match: nothing was asked, for no prompt is held out"),
        }
    }

    /// The first held-out question with its answers.
    fn print_example(&self, base: &str, tuned: &str) {
        if let Some(question) = self.data.questions.first() {
            println!("  asked   {}\n  wanted  {}\n  base    {base}\n  tuned   {tuned}", question.text, question.answer);
        }
    }
}

/// Trains and reports.
pub fn run(options: &Options) -> Result<ExitCode> {
    pollster::block_on(async {
        let job = Job::open(options).await?;
        if !job.config.is_decoder_only() {
            tasks::run(&job).await?;
            return Ok(ExitCode::SUCCESS);
        }
        match options.method {
            Method::ParallelAdapter => parallel::run(&job).await?,
            Method::Lora | Method::Adapters => tuned::run(&job).await?,
            Method::Full => full::run(&job).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn spec(options: &Options, model: &Model, data: &Data) -> Result<RunSpec> {
    let path = model.path.join("demo.json");
    let recommended: Recommendation = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", path.display()))?,
        Err(_) => Recommendation::default(),
    };
    for (value, name) in [(options.batch, "--batch"), (options.micro_batch, "--micro-batch"), (options.epochs, "--epochs"), (options.reduction, "--reduction")] {
        ensure!(value != Some(0), "{name} is 0: give 1 or more, or leave it out");
    }
    ensure!(options.learning_rate.is_none_or(|rate| rate.is_finite() && rate > 0.0), "--learning-rate must be a number above 0");
    let batch = options.batch.or(recommended.batch).unwrap_or(16).clamp(1, data.train as u32);
    let epochs = options.epochs.or(recommended.epochs).unwrap_or(3).max(1);
    let per_epoch = (data.train as u32).div_ceil(batch);
    let steps = per_epoch.checked_mul(epochs).with_context(|| format!("{epochs} epochs of {per_epoch} steps are too many: give fewer --epochs"))?;
    Ok(RunSpec {
        model: "local".into(),
        model_hash: String::new(),
        dataset: "local".into(),
        dataset_hash: String::new(),
        train_samples: data.train as u32,
        held_out_samples: (data.samples.len() - data.train) as u32,
        sample_sizes: data.samples.iter().map(|s| SampleSize { tokens: s.sequence.ids.len() as u32, labels: s.sequence.labels.len() as u32 }).collect(),
        layers: model.config.layers as u32,
        tap_every: options.side.tap_every(),
        cache: CacheType::default(),
        reduction: options.reduction.or(recommended.reduction).unwrap_or(8),
        batch,
        epochs,
        learning_rate: options.learning_rate.or(recommended.learning_rate).unwrap_or(1e-3),
        warmup_steps: options.warmup_steps.or(recommended.warmup_steps).unwrap_or(steps.div_ceil(10)),
        weight_decay: recommended.weight_decay.unwrap_or(0.01),
        clip_norm: recommended.clip_norm.unwrap_or(1.0),
        seed: options.seed.or(recommended.seed).unwrap_or(1),
        checkpoint_steps: 0,
        gradients: GradientType::F32,
        weights: Default::default(),
    })
}

/// Refuses to go on once a loss is no number; `step` counts from 0 over all epochs.
fn check_loss(loss: f64, step: usize, spec: &RunSpec) -> Result<()> {
    let per_epoch = spec.train_samples.div_ceil(spec.batch).max(1) as usize;
    ensure!(loss.is_finite(), "the loss of step {} in epoch {} is {loss}, so nothing more can be learnt: choose a smaller --learning-rate", step % per_epoch + 1, step / per_epoch);
    Ok(())
}

/// Writes tensors, and beside them what describes them (an adapter, or a model), into a folder, which is made if it is not there.
fn write_result(what: &str, folder: &Path, tensors_name: &str, tensors: &BTreeMap<String, RawTensor>, beside: &[(&str, &[u8])]) -> Result<()> {
    for (name, tensor) in tensors {
        let is_finite = check_finite(name, tensor.dtype, &tensor.bytes).is_ok();
        ensure!(is_finite, "the training has diverged: `{name}` holds values that are no numbers, so no {what} is written; choose a smaller --learning-rate");
    }
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = write_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &metadata);
    write_folder(folder, &[&[(tensors_name, bytes.as_slice())], beside].concat())?;
    println!("{what} written to {}", folder.display());
    Ok(())
}

pub(crate) fn write_json(path: &Path, report: &serde_json::Value) -> Result<()> {
    write_file(path, serde_json::to_string_pretty(report)?.as_bytes())
}
