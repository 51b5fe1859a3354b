//! `barycenter bench`: how fast this device computes, and what the figures in docs/BENCHMARKS.md are measured against.

mod tables;

use crate::model::{ActivationFormat, WeightFormat};
use crate::output::check_file;
use crate::train::{self, Job, write_json};
use anyhow::{Context, Result, ensure};
use barycenter_engine::bench::{KernelRate, Load, Method, Outcome, SHAPES, Shape, kernel_rates, measure};
use barycenter_engine::stage::Clock;
use barycenter_engine::{Device, create_backend};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

/// Options of `barycenter bench`; a subcommand measures something else.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    device: DeviceOptions,
}

/// What to measure instead.
#[derive(clap::Subcommand)]
enum Command {
    /// Full fine-tuning of the same model on the same mini-batches as `train`: seconds per epoch, peak memory, exact match.
    Full(Box<train::Options>),
}

/// Which part of the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Kernels and methods.
    All,
    /// Rates of single operations.
    Kernels,
    /// A forward pass and a step of each method.
    Methods,
}

/// What is timed, as the command line says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum MethodName {
    Forward,
    Full,
    Lora,
    Adapters,
    ParallelFill,
    ParallelCached,
    LoraLastCached,
}

impl From<MethodName> for Method {
    fn from(name: MethodName) -> Self {
        match name {
            MethodName::Forward => Method::Forward,
            MethodName::Full => Method::Full,
            MethodName::Lora => Method::Lora,
            MethodName::Adapters => Method::Adapters,
            MethodName::ParallelFill => Method::ParallelFill,
            MethodName::ParallelCached => Method::ParallelCached,
            MethodName::LoraLastCached => Method::LoraLastCached,
        }
    }
}

#[derive(clap::Args)]
struct DeviceOptions {
    /// Which back end computes.
    #[arg(long, default_value = "auto")]
    device: crate::Device,
    /// Kernels, methods or both.
    #[arg(long, default_value = "all")]
    part: Part,
    /// Models by their sizes, with commas (default: all): smollm2-135m, qwen3-0.6b, t5-base, t5-large, bart-large. Kernels are
    /// measured at the sizes of the first.
    #[arg(long, value_delimiter = ',')]
    shape: Vec<String>,
    /// Methods, with commas (default: all).
    #[arg(long, value_delimiter = ',')]
    method: Vec<MethodName>,
    /// Sequences of a mini-batch.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Sequences that parallel adapters take at once (default: the mini-batch); gradients add up.
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 128)]
    sequence: usize,
    /// Labelled tokens of a sequence.
    #[arg(long, default_value_t = 2)]
    labels: usize,
    /// Steps that are timed, after one that is not; the median counts.
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Number format of the frozen weights (keep: f32).
    #[arg(long, default_value = "keep")]
    weights: WeightFormat,
    /// In which numbers activations meet the frozen weights (int8: with --weights int8 or int4).
    #[arg(long, default_value = "f32")]
    activations: ActivationFormat,
    /// Methods that need more gigabytes than this are left out.
    #[arg(long, default_value_t = 6.0)]
    memory: f64,
    /// Seed of weights and tokens.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Measures and prints.
pub fn run(options: &Options) -> Result<ExitCode> {
    pollster::block_on(async {
        match &options.command {
            Some(Command::Full(options)) => train::full::run(&Job::open(options).await?).await?,
            None => figures(&options.device).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn figures(options: &DeviceOptions) -> Result<()> {
    let shapes = options.shapes()?;
    ensure!(options.memory.is_finite() && options.memory > 0.0, "--memory must be a number of gigabytes above 0");
    options.json.as_deref().map_or(Ok(()), |file| check_file("--json", file))?;
    let device = create_backend(options.device.into()).await?;
    println!("{}: {}", device.info().description, device.info().reason);
    options.activations.set(&device)?;
    let kernels = if options.part == Part::Methods { Value::Null } else { kernels(options, &device, &shapes[0]).await? };
    let mut models = Vec::new();
    if options.part != Part::Kernels {
        for shape in &shapes {
            models.push(methods(options, &device, shape).await?);
        }
    }
    if let Some(path) = &options.json {
        write_json(path, &json!({ "device": device.info(), "batch": options.batch, "sequence": options.sequence, "labels": options.labels, "kernels": kernels, "models": models }))?;
    }
    Ok(())
}

impl DeviceOptions {
    fn shapes(&self) -> Result<Vec<Shape>> {
        if self.shape.is_empty() {
            return Ok(SHAPES.to_vec());
        }
        let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        let named = |name: &String| Shape::named(&name.to_lowercase()).with_context(|| format!("--shape {name} is not there: choose from {}", names.join(", ")));
        self.shape.iter().map(named).collect()
    }
}

async fn kernels(options: &DeviceOptions, device: &Device, shape: &Shape) -> Result<Value> {
    let start = Instant::now();
    let now_millis = || start.elapsed().as_secs_f64() * 1e3;
    let config = shape.config()?;
    tables::print_kernel_head(shape, options.batch, options.sequence);
    let mut print = |row: &KernelRate| tables::print_kernel(row);
    let (peaks, rates) = kernel_rates(device, &config, (options.batch, options.sequence), &now_millis, &mut print).await?;
    tables::print_peaks(&peaks);
    Ok(json!({ "shape": shape.name, "peaks": peaks, "rates": rates }))
}

async fn methods(options: &DeviceOptions, device: &Device, shape: &Shape) -> Result<Value> {
    let start = Instant::now();
    let clock: Clock = Rc::new(move || start.elapsed().as_secs_f64());
    let load = Load {
        batch: options.batch,
        micro_batch: options.micro_batch.unwrap_or(options.batch),
        sequence: options.sequence,
        labels: options.labels,
        weights: options.weights.into(),
        steps: options.steps,
        memory_bytes: (options.memory * 1e9) as u64,
        seed: options.seed,
    };
    let methods = match options.method.as_slice() {
        [] => Method::ALL.to_vec(),
        chosen => chosen.iter().map(|&name| name.into()).collect(),
    };
    tables::print_method_head(shape, &load)?;
    let rows = measure(device, shape, &load, &methods, &clock, &mut tables::print_method).await?;
    let ratio = tables::fill_to_cached(&rows);
    if let Some(ratio) = ratio {
        tables::print_ratio(ratio);
    }
    let row = |(method, outcome): &(Method, Outcome)| match outcome {
        Outcome::Measured(times) => json!({ "method": method, "median_seconds": times.median_seconds(), "tokens_per_second": times.tokens as f64 / times.median_seconds(), "seconds": times.seconds, "tokens": times.tokens, "peak_memory_bytes": times.peak_bytes, "cache_bytes": times.cache_bytes }),
        Outcome::LeftOut(reason) => json!({ "method": method, "left_out": reason }),
    };
    Ok(json!({ "shape": shape.name, "load": load, "rows": rows.iter().map(row).collect::<Vec<_>>(), "fill_to_cached": ratio }))
}
