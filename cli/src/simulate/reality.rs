//! `barycenter simulate --measured FILE`: what the simulator says of a run that was measured, for `scripts/reality.mjs`.
//!
//! The file says what the nodes themselves measured: their speed when one of them trained alone, the processor time of the links
//! when two of them trained, the links that came up, and how many cores they share. The data set is read as the server reads it.

use super::household::model_cost;
use anyhow::{Context, Result, ensure};
use barycenter_core::coordinator::RunProgress;
use barycenter_core::io::{Micros, SECOND};
use barycenter_model::dataset::{DataFormat, TooLong, read_rows, tokenise};
use barycenter_model::{ModelConfig, TextTokenizer};
use barycenter_protocol::control::{GradientType, SampleSize};
use barycenter_protocol::plan::{LayerCost, ModelCost};
use barycenter_server::{DEFAULT_CACHE, DEFAULT_TAP_EVERY};
use barycenter_simulator::{Act, DeviceSpec, House, Job, LinkSpec, LinkWork, Speed, World, job, report};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// FLOP that the simulator puts down to AdamW, per parameter and step.
const UPDATE_FLOPS: f64 = 20.0;
/// Jobs of a step of a node alone: cached step, norm, update.
const JOBS_CACHED: f64 = 3.0;
/// Forward, backward, norm, update.
const JOBS_FILL: f64 = 4.0;
/// Within the computer, where nothing is shaped.
const UNSHAPED_BYTES_PER_SECOND: f64 = 1e9;
const LIMIT: Micros = 24 * 3600 * SECOND;

#[derive(Deserialize)]
struct Measured {
    model: PathBuf,
    train: PathBuf,
    held_out: PathBuf,
    batch: u32,
    epochs: u32,
    reduction: u32,
    seed: u64,
    /// As the plan of the run said.
    gradients: GradientType,
    min_stages: u32,
    cores: f64,
    /// What all of a node's links together may send, and receive, bytes per second; absent where nothing limits them.
    port: Option<f64>,
    alone: Alone,
    /// What the links of a pair took.
    pair: Pair,
    nodes: Vec<NodeMeasured>,
    links: Vec<LinkMeasured>,
}

/// Seconds of a run of one node without others.
#[derive(Deserialize)]
struct Alone {
    fill_seconds: f64,
    fill_side_seconds: f64,
    train_seconds: f64,
    train_side_seconds: f64,
}

/// A run of two nodes: processor seconds of the threads that carry their link, and bytes that they sent each other.
#[derive(Clone, Copy, Default, Deserialize)]
struct Pair {
    link_seconds: f64,
    link_bytes: f64,
}

#[derive(Deserialize)]
struct NodeMeasured {
    name: String,
    gflops: f64,
}

#[derive(Deserialize)]
struct LinkMeasured {
    a: usize,
    b: usize,
    round_trip_millis: f64,
    bytes_per_second: f64,
}

/// Predicts and prints JSON.
pub fn run(path: &Path) -> Result<ExitCode> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let measured: Measured = serde_json::from_str(&text).with_context(|| format!("{} is not what scripts/reality.mjs writes", path.display()))?;
    ensure!(!measured.nodes.is_empty(), "{}: nodes: at least one is needed", path.display());
    let (sizes, train_samples) = sizes(&measured)?;
    let mean_tokens = sizes.iter().map(|s| f64::from(s.tokens)).sum::<f64>() / sizes.len() as f64;
    let (cost, _) = model_cost(&measured.model, measured.reduction, DEFAULT_TAP_EVERY, mean_tokens)?;
    let speed = measured.alone.speed(&cost, &sizes[..train_samples], measured.batch);
    let held_out = (sizes.len() - train_samples) as u32;
    let job = Job {
        samples: train_samples as u32,
        held_out,
        tokens: mean_tokens as u32,
        labelled: 0.5,
        batch: measured.batch,
        epochs: measured.epochs,
        reduction: measured.reduction,
        tap_every: DEFAULT_TAP_EVERY,
        cache: DEFAULT_CACHE,
        min_stages: measured.min_stages,
        use_all_nodes: true,
        seed: measured.seed,
    };
    let mut start = job.start_with_sizes("demo", cost, sizes);
    start.spec.gradients = measured.gradients;
    start.wait_for_nodes = measured.nodes.len() as u32;
    let mut world = World::new(measured.seed, start, house(&measured, speed));
    for device in 0..measured.nodes.len() {
        world.at(0, Act::On(device));
    }
    world.at(5 * SECOND, Act::Start);
    job::run_to_end(&mut world, 0, LIMIT)?;
    let report = report(&world);
    let plans = world.progress.iter().filter(|(_, p)| matches!(p, RunProgress::Planned { .. })).count();
    let stages: Vec<_> = world.plans().first().map(|(_, plan)| plan.stages.iter().map(|s| json!({ "layers": s.layers, "members": s.members.len() })).collect()).unwrap_or_default();
    println!("{}", json!({ "epochs": report.epochs, "speed": speed, "plans": plans, "stages": stages }));
    Ok(ExitCode::SUCCESS)
}

fn house(measured: &Measured, speed: Speed) -> House {
    let devices: Vec<_> = measured.nodes.iter().map(|n| DeviceSpec { speed, link_work: measured.pair.link_work(), ..DeviceSpec::new(&n.name, n.gflops, 4_000_000_000, 8_000_000_000) }).collect();
    let link = |round_trip_millis: f64, bytes_per_second: f64| LinkSpec { bytes_per_second, latency: (round_trip_millis * 500.0) as Micros, jitter: 0, loss_per_hour: 0.0 };
    let all = (0..devices.len()).collect();
    // weights and checkpoints come from the same computer
    let mut house = House::with_link(devices, link(0.2, 1e8));
    // A probe says less than the shaper's own figure: several at once share it, and one alone begins with a burst.
    let rate = |l: &LinkMeasured| if measured.port.is_some() { UNSHAPED_BYTES_PER_SECOND } else { l.bytes_per_second };
    house.network.links = measured.links.iter().map(|l| ((l.a.min(l.b), l.a.max(l.b)), link(l.round_trip_millis, rate(l)))).collect();
    house.network.ports = measured.port.into_iter().flat_map(|rate| (0..measured.nodes.len()).map(move |node| (node, rate))).collect();
    house.computers = vec![(measured.cores, all)];
    house
}

fn sizes(measured: &Measured) -> Result<(Vec<SampleSize>, usize)> {
    let config = ModelConfig::from_folder(&measured.model)?;
    let tokenizer = TextTokenizer::from_folder(&measured.model, &config)?;
    let mut sizes = Vec::new();
    let mut train = 0;
    for path in [&measured.train, &measured.held_out] {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("{name} cannot be read"))?;
        let rows = read_rows(&name, &bytes, DataFormat::from_name(&name)?)?;
        let tokenised = tokenise(&name, &rows, &tokenizer, config.max_positions, TooLong::LeaveOut)?;
        sizes.extend(tokenised.samples.iter().map(|s| SampleSize { tokens: s.ids.len() as u32, labels: s.labels.len() as u32 }));
        if train == 0 {
            train = sizes.len();
        }
    }
    Ok((sizes, train))
}

impl Pair {
    /// Both ends do about the same: what one encrypts and sends, the other receives, decrypts and acknowledges.
    fn link_work(self) -> LinkWork {
        let per_end = if self.link_bytes > 0.0 { 0.5 * self.link_seconds / self.link_bytes } else { 0.0 };
        LinkWork { sent_byte_seconds: per_end, received_byte_seconds: per_end }
    }
}

impl Alone {
    /// Rates from the node's own times. What its reports leave out (gathering rows, writing the cache) goes to the jobs in a
    /// cached epoch, and beyond that to the frozen layers in the fill epoch.
    fn speed(&self, cost: &ModelCost, sizes: &[SampleSize], batch: u32) -> Speed {
        let steps = (sizes.len() as f64 / f64::from(batch)).ceil();
        let (tokens, labels) = sizes.iter().fold((0.0, 0.0), |(t, l), s| (t + f64::from(s.tokens), l + f64::from(s.labels)));
        let side = |l: &LayerCost| l.side_forward_flops + l.side_backward_flops;
        let side_flops = tokens * (cost.layers.iter().map(side).sum::<f64>() + side(&cost.embedding)) + labels * (cost.head.forward_flops + side(&cost.head));
        let parameters = cost.layers.iter().map(|l| l.adapter_parameters).sum::<u64>() + cost.embedding.adapter_parameters + cost.head.adapter_parameters;
        let update_flops = steps * UPDATE_FLOPS * parameters as f64;
        let cached = (side_flops + update_flops) / self.train_side_seconds.max(1e-6);
        let job_seconds = ((self.train_seconds - self.train_side_seconds) / (JOBS_CACHED * steps)).max(1e-5);
        let side = side_flops / (self.fill_side_seconds - update_flops / cached).max(1e-6);
        let frozen_seconds = self.fill_seconds - self.fill_side_seconds - JOBS_FILL * steps * job_seconds;
        let frozen = tokens * cost.layers.iter().map(|l| l.forward_flops).sum::<f64>() / frozen_seconds.max(1e-6);
        Speed { frozen, side, cached, job_seconds }
    }
}
