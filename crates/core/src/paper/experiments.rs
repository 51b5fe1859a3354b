//! Table 2 and Figs. 9 to 11, computed beside what the paper prints.

use super::accounting::{Architecture, F32, GIB, Stack};
use super::calibration::{Assumptions, eco_fl_figure_9_micro_batches, eco_fl_table_2_micro_batches};
use super::planner::{Device, LayerWeight, Network, Plan, Problem, Staging};
use super::profile::{LINK_BYTES_PER_SECOND, MINI_BATCH, NANO_MEMORY_GIB, SampleSeconds, boundary_bytes, sample_seconds, workspace_gib};
use super::published::{self, DEVICE_COUNTS, EPOCH_COUNTS, TABLE_2_DEVICES, TABLE_2_ROWS};
use super::timing::{cached_step_seconds, plan_step_seconds, redistribution_seconds, step_seconds};
use super::{Model, System, Task, Technique};

/// One number of the paper and ours. `None`: out of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// The paper's.
    pub published: Option<f64>,
    /// Ours.
    pub computed: Option<f64>,
}

impl Cell {
    /// Ours over the paper's, less one. `None` where either is out of memory.
    pub fn difference(&self) -> Option<f64> {
        Some(self.computed? / self.published? - 1.0)
    }

    /// Both fit, or both do not.
    pub fn memory_agrees(&self) -> bool {
        self.published.is_some() == self.computed.is_some()
    }
}

/// `model` under `technique` on `devices` Nanos.
pub fn testbed(model: Model, technique: Technique, devices: usize, assumptions: &Assumptions) -> Problem {
    let architecture = model.architecture();
    let per_stack = architecture.layers as usize;
    let decoder = assumptions.decoder_layer_seconds;
    // T5-Large was never measured with full fine-tuning: the backbone's forward, twice that for the backward
    let whole = sample_seconds(model, technique).or_else(|| {
        let forward = sample_seconds(model, Technique::ParallelAdapters)?.forward;
        Some(SampleSeconds { forward, backward: 2.0 * forward })
    });
    let whole = whole.unwrap_or(SampleSeconds { forward: f64::INFINITY, backward: f64::INFINITY });
    let encoder = 1.0 / (per_stack as f64 * (1.0 + decoder));
    let stacks: Vec<_> = [Stack::Encoder, Stack::Decoder].into_iter().flat_map(|stack| std::iter::repeat_n(stack, per_stack)).collect();
    let part = |stack: &Stack| match stack {
        Stack::Encoder => encoder,
        Stack::Decoder => encoder * decoder,
    };
    let device = Device {
        memory_gib: NANO_MEMORY_GIB,
        forward: stacks.iter().map(|s| whole.forward * part(s)).collect(),
        backward: stacks.iter().map(|s| whole.backward * part(s)).collect(),
    };
    let (first, last) = edges(&architecture, technique);
    Problem {
        layers: stacks.iter().map(|s| layer(&architecture, technique, *s)).collect(),
        first,
        last,
        workspace_gib: workspace_gib(model, technique),
        devices: vec![device; devices],
        boundary_bytes: boundary_bytes(model, technique),
        network: network(assumptions),
        frozen_backbone: technique == Technique::ParallelAdapters,
        whole_micro_batches: assumptions.whole_micro_batches,
    }
}

fn network(assumptions: &Assumptions) -> Network {
    Network { bytes_per_second: LINK_BYTES_PER_SECOND, hidden_share: assumptions.hidden_reduce_share }
}

fn gib(parameters: u64) -> f64 {
    parameters as f64 * F32 / GIB
}

fn layer(architecture: &Architecture, technique: Technique, stack: Stack) -> LayerWeight {
    let (backbone, added) = (architecture.layer_parameters(stack), architecture.added_layer_parameters(technique, stack));
    LayerWeight {
        parameters_gib: gib(backbone + added),
        gradients_gib: gib(if technique == Technique::Full { backbone } else { added }),
        activations_gib: architecture.saved_floats(technique, stack) * F32 / GIB,
    }
}

/// The embedding with the first stage, and with the last a second copy of the table, to which the head is tied (Fig. 9b's
/// Eco-FL bars have it there). With parallel adapters, each stack's first Down, and Up.
fn edges(architecture: &Architecture, technique: Technique) -> (LayerWeight, LayerWeight) {
    let (first, last) = (architecture.embedding_parameters(), architecture.vocab * architecture.width);
    let down = architecture.down_parameters();
    let weight = |held: u64, side: u64| {
        let (held, added) = if technique == Technique::ParallelAdapters { (held + side, side) } else { (held, 0) };
        LayerWeight { parameters_gib: gib(held), gradients_gib: gib(if technique == Technique::Full { held } else { added }), activations_gib: 0.0 }
    };
    (weight(first, down), weight(last, down + architecture.up_parameters()))
}

/// PAC's plan for a mini-batch.
pub fn pac_plan(problem: &Problem, mini_batch: f64, assumptions: &Assumptions) -> Option<Plan> {
    // one stage has nobody to overlap with
    problem.plan(mini_batch, 1..=problem.devices.len(), |stages| if stages == 1 { 1 } else { assumptions.pipeline_micro_batches })
}

/// Pure pipeline: as many stages as devices; it fits if single samples do.
fn eco_fl_staging(problem: &Problem) -> Option<Staging> {
    problem.staging(problem.devices.len(), 1.0)
}

/// One stage for all (also Standalone); it fits if a sample per device does, by accumulating gradients.
fn data_parallel_staging(problem: &Problem) -> Option<Staging> {
    problem.staging(1, problem.devices.len() as f64)
}

/// Times of one system on the devices of Table 2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Seconds of a step without cache; with it, of the first epoch.
    pub fill_step: f64,
    /// Seconds of a step of the cached epochs.
    pub cached_step: f64,
    /// Seconds of redistribution per training sample.
    pub redistribution_per_sample: f64,
}

impl Run {
    /// Plans and times mini-batches of 16. `None`: out of memory.
    pub fn of(model: Model, technique: Technique, system: System, assumptions: &Assumptions) -> Option<Self> {
        if system == System::EcoFl {
            return Self::eco_fl(model, technique, eco_fl_table_2_micro_batches(model, technique), assumptions);
        }
        let devices = if system == System::Standalone { 1 } else { TABLE_2_DEVICES };
        let problem = testbed(model, technique, devices, assumptions);
        let (staging, micro_batches) = match system {
            System::Pac => {
                let plan = pac_plan(&problem, MINI_BATCH, assumptions)?;
                (plan.staging, plan.micro_batches)
            }
            _ => (data_parallel_staging(&problem)?, 1),
        };
        Self::timed(model, &problem, &staging, micro_batches, assumptions)
    }

    /// Eco-FL with so many micro-batches.
    pub fn eco_fl(model: Model, technique: Technique, micro_batches: usize, assumptions: &Assumptions) -> Option<Self> {
        let problem = testbed(model, technique, TABLE_2_DEVICES, assumptions);
        Self::timed(model, &problem, &eco_fl_staging(&problem)?, micro_batches, assumptions)
    }

    fn timed(model: Model, problem: &Problem, staging: &Staging, micro_batches: usize, assumptions: &Assumptions) -> Option<Self> {
        let devices = problem.devices.len();
        // one stage overlaps nothing: it accumulates gradients, a sample at a time if need be, in the same time
        let micro_batches = if staging.stages.len() == 1 { MINI_BATCH as usize / devices } else { micro_batches };
        Some(Self {
            fill_step: step_seconds(problem, staging, MINI_BATCH / micro_batches as f64, micro_batches)?,
            cached_step: cached_step_seconds(model, MINI_BATCH, devices, &problem.network, assumptions.storage_bytes_per_second),
            redistribution_per_sample: redistribution_seconds(model, staging, 1.0, &problem.network),
        })
    }

    /// Hours of `epochs` over `samples`, with or without the cache.
    pub fn hours(&self, samples: f64, epochs: u32, cache: bool) -> f64 {
        let steps = samples / MINI_BATCH;
        let seconds = if cache && epochs > 1 {
            steps * self.fill_step + samples * self.redistribution_per_sample + f64::from(epochs - 1) * steps * self.cached_step
        } else {
            f64::from(epochs) * steps * self.fill_step
        };
        seconds / 3600.0
    }

    /// Hours of a task of Table 2.
    pub fn task_hours(&self, task: Task, cache: bool) -> f64 {
        self.hours(task.samples(), task.epochs(), cache)
    }
}

/// A row of Table 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Table2Row {
    /// Technique.
    pub technique: Technique,
    /// System.
    pub system: System,
    /// Hours, by [`Model::ALL`] and [`Task::ALL`].
    pub hours: [[Cell; 4]; 3],
}

/// Table 2: ten rows of twelve cells.
pub fn table_2(assumptions: &Assumptions) -> Vec<Table2Row> {
    let row = |(technique, system)| {
        let hours = Model::ALL.map(|model| {
            let run = Run::of(model, technique, system, assumptions);
            Task::ALL.map(|task| Cell {
                published: published::table_2(technique, system, model, task),
                computed: run.map(|run| run.task_hours(task, system == System::Pac)),
            })
        });
        Table2Row { technique, system, hours }
    };
    TABLE_2_ROWS.into_iter().map(row).collect()
}

/// A group of bars of Figs. 9 and 10.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalingCell {
    /// Model.
    pub model: Model,
    /// Nanos; the mini-batch has as many samples.
    pub devices: usize,
    /// System; all with parallel adapters, without cache.
    pub system: System,
    /// Samples per second.
    pub throughput: Cell,
    /// Peak weights per device, GiB. Ours: `None` where nothing fits.
    pub weights_gib: Cell,
    /// Devices per stage, ours.
    pub grouping: Option<Vec<usize>>,
}

/// Figs. 9 and 10.
pub fn scaling(assumptions: &Assumptions) -> Vec<ScalingCell> {
    let systems = [System::Eddl, System::EcoFl, System::Pac];
    let bars = |model| (0..DEVICE_COUNTS.len()).flat_map(move |index| systems.map(|system| scaling_cell(model, index, system, assumptions)));
    Model::ALL.into_iter().flat_map(bars).collect()
}

/// One bar of Fig. 9; `index` into [`DEVICE_COUNTS`].
pub fn scaling_cell(model: Model, index: usize, system: System, assumptions: &Assumptions) -> ScalingCell {
    let devices = DEVICE_COUNTS[index];
    let printed = published::figure_9(model, system, index);
    let problem = testbed(model, Technique::ParallelAdapters, devices, assumptions);
    let run = scaling_run(&problem, model, system, assumptions);
    let weights = |s: &Staging| s.stages.iter().map(|stage| problem.parameters_gib(&stage.layers)).fold(0.0, f64::max);
    ScalingCell {
        model,
        devices,
        system,
        throughput: Cell { published: printed.throughput, computed: run.as_ref().map(|(_, step)| devices as f64 / step) },
        weights_gib: Cell { published: Some(printed.weights_gib), computed: run.as_ref().map(|(staging, _)| weights(staging)) },
        grouping: run.map(|(staging, _)| staging.grouping()),
    }
}

/// Staging and seconds of a step with a mini-batch of one sample per device.
fn scaling_run(problem: &Problem, model: Model, system: System, assumptions: &Assumptions) -> Option<(Staging, f64)> {
    let mini_batch = problem.devices.len() as f64;
    match system {
        System::Pac => {
            let plan = pac_plan(problem, mini_batch, assumptions)?;
            let step = plan_step_seconds(problem, &plan)?;
            Some((plan.staging, step))
        }
        System::EcoFl => {
            let micro_batches = eco_fl_figure_9_micro_batches(model);
            Some((eco_fl_staging(problem)?, eco_fl_figure_9_step(problem, micro_batches)?))
        }
        System::Eddl | System::Standalone => {
            let staging = data_parallel_staging(problem)?;
            let step = step_seconds(problem, &staging, mini_batch, 1)?;
            Some((staging, step))
        }
    }
}

/// Seconds of an Eco-FL step with one sample per device in at most so many micro-batches.
pub fn eco_fl_figure_9_step(problem: &Problem, most_micro_batches: usize) -> Option<f64> {
    let devices = problem.devices.len();
    let micro_batches = most_micro_batches.min(devices);
    step_seconds(problem, &eco_fl_staging(problem)?, devices as f64 / micro_batches as f64, micro_batches)
}

/// A pair of bars of Fig. 11: MRPC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochCell {
    /// Model.
    pub model: Model,
    /// Epochs.
    pub epochs: u32,
    /// Hours without cache.
    pub without_cache: Cell,
    /// Hours with cache.
    pub with_cache: Cell,
}

/// Fig. 11.
pub fn figure_11(assumptions: &Assumptions) -> Vec<EpochCell> {
    let mut cells = Vec::new();
    for model in Model::ALL {
        let pac = Run::of(model, Technique::ParallelAdapters, System::Pac, assumptions);
        for (index, epochs) in EPOCH_COUNTS.into_iter().enumerate() {
            let (without, with) = published::figure_11(model, index);
            let cell = |published, cache| Cell { published: Some(published), computed: pac.map(|p| p.hours(Task::Mrpc.samples(), epochs, cache)) };
            cells.push(EpochCell { model, epochs, without_cache: cell(without, false), with_cache: cell(with, true) });
        }
    }
    cells
}
