//! A whole household from its file, with a run of a given size: what `barycenter simulate` runs.

use crate::house::House;
use crate::world::{Act, World};
use barycenter_core::coordinator::{RunProgress, RunStart};
use barycenter_core::cost::cache_bytes;
use barycenter_core::household::Household;
use barycenter_core::io::{Micros, SECOND};
use barycenter_core::planner::{FillWish, PlanOptions, plan};
use barycenter_protocol::RunId;
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::{CacheType, RunSpec, SampleSize, tapped};
use barycenter_protocol::plan::ModelCost;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// A run that waits for so long with everybody there will wait for ever.
const STUCK: Micros = 600 * SECOND;
/// Steps between checkpoints, as the server has them.
const CHECKPOINT_STEPS: u32 = 10;

/// Size of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Job {
    /// Training samples.
    pub samples: u32,
    /// Held-out samples.
    pub held_out: u32,
    /// Mean tokens of a sample; sizes are spread evenly from half to one and a half times as many.
    pub tokens: u32,
    /// Part of the tokens that is labelled, 0 … 1.
    pub labelled: f64,
    /// Mini-batch.
    pub batch: u32,
    /// Epochs, the fill epoch included.
    pub epochs: u32,
    /// Reduction k.
    pub reduction: u32,
    /// Every so many-th layer is tapped; the model's costs must say the same.
    pub tap_every: u32,
    /// How cache entries hold taps.
    pub cache: CacheType,
    /// Stages at least.
    pub min_stages: u32,
    /// Every device takes part, even where it slows the others down.
    pub use_all_nodes: bool,
    /// Seed of sizes, order and network.
    pub seed: u64,
}

impl Job {
    /// The run's specification.
    pub fn start(&self, model: &str, cost: ModelCost) -> RunStart {
        let mut random = Pcg64::seed_from_u64(self.seed);
        let half = u64::from(self.tokens / 2);
        let sizes: Vec<_> = (0..self.samples + self.held_out)
            .map(|_| {
                let tokens = (u64::from(self.tokens) - half + random.next_u64() % (2 * half + 1)).max(1) as u32;
                SampleSize { tokens, labels: ((f64::from(tokens) * self.labelled).round() as u32).clamp(1, tokens) }
            })
            .collect();
        let layers = cost.layers.len() as u32;
        start_of_sizes(self, model, cost, layers, sizes)
    }

    /// The same with sizes of known samples, training samples first.
    pub fn start_with_sizes(&self, model: &str, cost: ModelCost, sizes: Vec<SampleSize>) -> RunStart {
        let layers = cost.layers.len() as u32;
        start_of_sizes(self, model, cost, layers, sizes)
    }
}

fn start_of_sizes(job: &Job, model: &str, cost: ModelCost, layers: u32, sizes: Vec<SampleSize>) -> RunStart {
    let tokens: u64 = sizes.iter().map(|s| u64::from(s.tokens)).sum();
    let labels: u64 = sizes.iter().map(|s| u64::from(s.labels)).sum();
    let count = sizes.len().max(1) as f64;
    let plan = PlanOptions {
        model: model.into(),
        min_stages: job.min_stages,
        use_all_nodes: job.use_all_nodes,
        mean_tokens: tokens as f64 / count,
        max_tokens: sizes.iter().map(|s| s.tokens).max().unwrap_or(1),
        mean_labels: labels as f64 / count,
        cache_bytes: cache_bytes(job.cache, tapped(layers, job.tap_every).count() as u32, cost.width, tokens, labels),
        // As the server does: who wishes for stages wants to see the pipeline train.
        fill: if job.min_stages > 1 || job.use_all_nodes { FillWish::Hybrid } else { FillWish::Fastest },
        epochs: job.epochs,
        steps_per_epoch: job.samples.div_ceil(job.batch.clamp(1, job.samples.max(1))),
        ..PlanOptions::default()
    };
    let spec = RunSpec {
        model: model.into(),
        model_hash: String::new(),
        dataset: String::new(),
        dataset_hash: String::new(),
        train_samples: job.samples,
        held_out_samples: job.held_out,
        sample_sizes: sizes,
        layers,
        tap_every: job.tap_every,
        cache: job.cache,
        reduction: job.reduction,
        batch: job.batch.min(job.samples),
        epochs: job.epochs,
        learning_rate: 1e-3,
        warmup_steps: 0,
        weight_decay: 0.0,
        clip_norm: 1.0,
        seed: job.seed,
        checkpoint_steps: CHECKPOINT_STEPS,
        gradients: Default::default(),
        weights: Default::default(),
    };
    RunStart { run: RunId(1), spec, cost, plan, wait_for_nodes: 1 }
}

/// Why a run did not end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimulateError {
    /// The coordinator says why.
    #[error("{0}")]
    Waits(String),
    /// Not within the time.
    #[error("the run is not done after {hours} hours of the household's time: choose fewer epochs or samples")]
    TooLong {
        /// The limit.
        hours: u64,
    },
}

/// The household with its devices coming and going as its file says, and the run started when those of the start are there.
pub fn world(household: &Household, mut start: RunStart, seed: u64) -> World {
    let at = |seconds: f64| (seconds * SECOND as f64) as Micros;
    // As the server does: the plan for the devices of the start says how gradients travel in this run.
    let here = household.measurements_of(|index| household.devices[index].joins_at_seconds == 0.0);
    let open = PlanOptions { gradients: None, ..start.plan.clone() };
    if let Ok(plan) = plan(&start.cost, &here, start.spec.batch, &open) {
        start.spec.gradients = plan.gradients;
    }
    start.wait_for_nodes = household.devices.iter().filter(|d| d.joins_at_seconds == 0.0).count().max(1) as u32;
    let mut world = World::new(seed, start, House::from(household));
    for (index, device) in household.devices.iter().enumerate() {
        world.at(at(device.joins_at_seconds), Act::On(index));
        if let Some(leaves) = device.leaves_at_seconds {
            world.at(at(leaves), Act::Leave(index));
        }
    }
    world.at(SECOND, Act::Start);
    world
}

/// Runs it to its end.
///
/// # Panics
/// Where an invariant does not hold.
pub fn run_to_end(world: &mut World, last_join: Micros, limit: Micros) -> Result<(), SimulateError> {
    let waits = |w: &World| match w.progress.iter().rev().find_map(|(at, p)| if let RunProgress::State { state, note } = p { Some((at, state, note)) } else { None }) {
        Some((at, RunState::Waiting | RunState::Failed, note)) if w.now >= at.max(&last_join) + STUCK => Some(note.clone()),
        _ => None,
    };
    let is_over = |w: &World| w.is_done() || w.state().is_some_and(|s| matches!(s, RunState::Waiting | RunState::Failed)) && waits(w).is_some();
    if !world.run_until(limit, is_over) {
        return Err(SimulateError::TooLong { hours: limit / (3600 * SECOND) });
    }
    if world.is_done() {
        world.check_done();
        return Ok(());
    }
    Err(SimulateError::Waits(waits(world).unwrap_or_default()))
}
