//! `barycenter simulate HOUSE.json --model FOLDER`: a run in a household of a file.

use crate::model::Sized;
use crate::output::{check_file, write_file};
use anyhow::{Context, Result, anyhow, ensure};
use barycenter_core::household::Household;
use barycenter_core::io::{Micros, SECOND};
use barycenter_model::names;
use barycenter_protocol::plan::ModelCost;
use barycenter_server::{DEFAULT_CACHE, DEFAULT_TAP_EVERY};
use barycenter_simulator::{Job, gantt, job, report};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Household time after which a run is given up: a month.
const LIMIT: Micros = 30 * 24 * 3600 * SECOND;

/// The model unless another is named: a folder, not a name of the hub.
const DEMO: &str = "assets/demo";

/// What to simulate.
#[derive(clap::Args)]
pub struct HouseOptions {
    /// A household file, as assets/households has them.
    pub house: Option<PathBuf>,
    /// Model folder (config.json is enough), .gguf file, or name on the hub.
    #[arg(long, default_value = DEMO)]
    pub model: PathBuf,
    /// Epochs, the fill epoch included.
    #[arg(long, default_value_t = 3)]
    pub epochs: u32,
    /// Mini-batch.
    #[arg(long, default_value_t = 16)]
    pub batch: u32,
    /// Training samples; a tenth as many are held out.
    #[arg(long, default_value_t = 400)]
    pub samples: u32,
    /// Mean tokens of a sample.
    #[arg(long, default_value_t = 64)]
    pub tokens: u32,
    /// Part of the tokens that is labelled.
    #[arg(long, default_value_t = 0.5)]
    pub labelled: f64,
    /// Reduction k.
    #[arg(long, default_value_t = 8)]
    pub reduction: u32,
    /// Every so many-th layer is read by the side network.
    #[arg(long, default_value_t = DEFAULT_TAP_EVERY)]
    tap_every: u32,
    /// Every device takes part, even where it slows the others down.
    #[arg(long)]
    pub use_all: bool,
    /// Pipeline stages at least.
    #[arg(long, default_value_t = 1)]
    pub min_stages: u32,
    /// Seed of sample sizes, sample order and network.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write a Gantt chart.
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// Write the report as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Simulates and prints.
pub fn run(options: &HouseOptions) -> Result<ExitCode> {
    let path = options.house.as_ref().context("no household file was named")?;
    let household = read(path)?;
    let job = options.job()?;
    let (cost, name) = model_cost(&options.model, options.reduction, options.tap_every, f64::from(options.tokens))?;
    options.check_places()?;
    let mut world = job::world(&household, job.start(&name, cost), options.seed);
    let last_join = household.devices.iter().map(|d| (d.joins_at_seconds * SECOND as f64) as Micros).max().unwrap_or(0);
    let outcome = job::run_to_end(&mut world, last_join, LIMIT);
    let report = report(&world);
    println!("{}", report.text());
    outcome.map_err(|error| anyhow!("{}: {error}", path.display()))?;
    if let Some(svg) = &options.svg {
        let title = format!("{}: {} epochs of {} samples on {name}", household.name, options.epochs, options.samples);
        write(svg, &gantt(&world, &title))?;
    }
    if let Some(json) = &options.json {
        write(json, &serde_json::to_string_pretty(&report)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl HouseOptions {
    /// Refuses places that the chart or the report could not be written to, before a long simulation.
    pub fn check_places(&self) -> Result<()> {
        for (option, file) in [("--svg", &self.svg), ("--json", &self.json)] {
            file.as_deref().map_or(Ok(()), |file| check_file(option, file))?;
        }
        Ok(())
    }

    /// The run they ask for.
    pub fn job(&self) -> Result<Job> {
        for (value, name) in [(self.epochs, "--epochs"), (self.batch, "--batch"), (self.samples, "--samples"), (self.tokens, "--tokens"), (self.reduction, "--reduction"), (self.tap_every, "--tap-every")] {
            ensure!((1..=1_000_000).contains(&value), "{name} is {value}: give 1 to 1000000");
        }
        ensure!((0.0..=1.0).contains(&self.labelled), "--labelled is {}: give a part between 0 and 1", self.labelled);
        Ok(Job {
            samples: self.samples,
            held_out: self.samples / 10,
            tokens: self.tokens,
            labelled: self.labelled,
            batch: self.batch,
            epochs: self.epochs,
            reduction: self.reduction,
            tap_every: self.tap_every,
            cache: DEFAULT_CACHE,
            min_stages: self.min_stages,
            use_all_nodes: self.use_all,
            seed: self.seed,
        })
    }
}

/// Reads a household file.
pub fn read(path: &Path) -> Result<Household> {
    let text = std::fs::read_to_string(path).map_err(|error| anyhow!("{} cannot be read ({error}): name a household file, as assets/households has them", path.display()))?;
    Household::parse(&text).with_context(|| path.display().to_string())
}

/// What the layers of a model cost, and its name. Weights that are not there count as f16.
pub fn model_cost(model: &Path, reduction: u32, tap_every: u32, mean_tokens: f64) -> Result<(ModelCost, String)> {
    let Sized { config, name, bytes } = if model == Path::new(DEMO) { Sized::of(model)? } else { Sized::open(model)? };
    let bytes = if bytes > 0 { bytes } else { 2 * names::parameter_count(&config) as u64 };
    let cost = barycenter_server::side::model_cost(&config, reduction, tap_every, bytes, mean_tokens).map_err(|sentence| anyhow!(sentence))?;
    Ok((cost, name))
}

/// Writes a file whole.
pub fn write(path: &Path, text: &str) -> Result<()> {
    write_file(path, text.as_bytes())?;
    println!("written to {}", path.display());
    Ok(())
}
