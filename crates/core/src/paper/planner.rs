//! The paper's planner to the letter: equations 2 to 6, devices in fixed order, equal shares.
//!
//! Two things are said at their place because the paper is silent: among stagings whose slowest stages are equally slow,
//! the one with the lower peak memory is taken, and no device gets less than one sample of a micro-batch. As in the paper,
//! the memory test sees one micro-batch; what a stage can then hold in flight is [`Problem::in_flight`], which only the
//! played schedule looks at. What a household gets is planned by [`crate::planner`] instead.

use std::ops::{Range, RangeInclusive};

/// Stagings count as equally slow within this relative difference: sums of equal layer times differ by rounding.
const TIE: f64 = 1e-9;

/// What one layer weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerWeight {
    /// Parameters, GiB.
    pub parameters_gib: f64,
    /// Gradients of what is trained, GiB.
    pub gradients_gib: f64,
    /// Activations kept for the backward pass, GiB per sample.
    pub activations_gib: f64,
}

/// One device, as profiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Memory budget u_d, GiB.
    pub memory_gib: f64,
    /// t_f of each layer, seconds per sample; times are taken as proportional to the share.
    pub forward: Vec<f64>,
    /// t_b of each layer, seconds per sample.
    pub backward: Vec<f64>,
}

/// The LAN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// Bytes per second of a link, each way.
    pub bytes_per_second: f64,
    /// Share of an AllReduce that runs beside other work, as long as there is such work.
    pub hidden_share: f64,
}

impl Network {
    /// Ring AllReduce of `bytes` among `devices`, less what hides behind `hideable` seconds of other work.
    pub fn all_reduce_seconds(&self, bytes: f64, devices: usize, hideable: f64) -> f64 {
        let n = devices as f64;
        let wire = 2.0 * (n - 1.0) / n * bytes / self.bytes_per_second;
        wire - (self.hidden_share * wire).min(hideable)
    }
}

/// A model on devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Layers in order.
    pub layers: Vec<LayerWeight>,
    /// What the first stage holds beside its layers.
    pub first: LayerWeight,
    /// What the last stage holds beside its layers, when it is not the first too.
    pub last: LayerWeight,
    /// Buffers of a running layer, GiB per sample.
    pub workspace_gib: f64,
    /// D, in fixed order.
    pub devices: Vec<Device>,
    /// Bytes per sample over a stage boundary, forward and backward.
    pub boundary_bytes: (f64, f64),
    /// The LAN.
    pub network: Network,
    /// An AllReduce may run beside the next forward too: a frozen backbone does not wait for adapters.
    pub frozen_backbone: bool,
    /// Memory for a part of another micro-batch is left unused.
    pub whole_micro_batches: bool,
}

/// Contiguous layers held by a group of contiguous devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Layers x..y.
    pub layers: Range<usize>,
    /// Devices.
    pub devices: Range<usize>,
}

/// W(0→L, D, s) with its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Staging {
    /// Stages in order.
    pub stages: Vec<Stage>,
    /// Seconds of the slowest stage for one micro-batch.
    pub slowest: f64,
}

impl Staging {
    /// Devices of each stage, as Fig. 10 prints it.
    pub fn grouping(&self) -> Vec<usize> {
        self.stages.iter().map(|s| s.devices.len()).collect()
    }
}

/// The phases of a mini-batch, seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phases {
    /// L_b.
    pub beginning: f64,
    /// L_e.
    pub execution: f64,
    /// L_n.
    pub ending: f64,
}

impl Phases {
    /// What equation 6 minimises.
    pub fn total(&self) -> f64 {
        self.beginning + self.execution + self.ending
    }
}

/// A chosen staging.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Stages.
    pub staging: Staging,
    /// Samples B of a micro-batch.
    pub micro_batch: f64,
    /// Micro-batches M of a mini-batch.
    pub micro_batches: usize,
    /// Prediction by equations 4 and 5.
    pub phases: Phases,
}

impl Problem {
    /// Forward and backward seconds of one micro-batch on a stage: the slowest device of its group (equation 3).
    pub fn stage_seconds(&self, stage: &Stage, micro_batch: f64) -> (f64, f64) {
        let share = micro_batch / stage.devices.len() as f64;
        let slowest = |times: fn(&Device) -> &[f64]| self.devices[stage.devices.clone()].iter().map(|d| times(d)[stage.layers.clone()].iter().sum::<f64>()).fold(0.0, f64::max);
        (share * slowest(|d| &d.forward), share * slowest(|d| &d.backward))
    }

    /// Sum over a stage of something of its layers, embedding and head included.
    fn over_stage(&self, layers: &Range<usize>, of: impl Fn(&LayerWeight) -> f64) -> f64 {
        let last = layers.end == self.layers.len() && layers.start > 0;
        self.layers[layers.clone()].iter().map(&of).sum::<f64>() + if layers.start == 0 { of(&self.first) } else { 0.0 } + if last { of(&self.last) } else { 0.0 }
    }

    /// Parameters of a stage, GiB.
    pub fn parameters_gib(&self, layers: &Range<usize>) -> f64 {
        self.over_stage(layers, |l| l.parameters_gib)
    }

    /// m_d of a stage's devices with `in_flight` micro-batches, GiB: parameters, gradients, activations.
    pub fn memory_gib(&self, stage: &Stage, micro_batch: f64, in_flight: usize) -> f64 {
        let share = micro_batch / stage.devices.len() as f64;
        let held = self.over_stage(&stage.layers, |l| l.parameters_gib + l.gradients_gib);
        held + share * (in_flight as f64 * self.over_stage(&stage.layers, |l| l.activations_gib) + self.workspace_gib)
    }

    /// AR(i): the stage's gradients among its group, where they delay the step.
    pub fn reduce_seconds(&self, stage: &Stage, micro_batch: f64, micro_batches: usize) -> f64 {
        let bytes = self.over_stage(&stage.layers, |l| l.gradients_gib) * super::accounting::GIB;
        let (forward, backward) = self.stage_seconds(stage, micro_batch);
        let hideable = micro_batches as f64 * (backward + if self.frozen_backbone { forward } else { 0.0 });
        self.network.all_reduce_seconds(bytes, stage.devices.len(), hideable)
    }

    /// Equation 3: T of a stage, infinite where a device's memory does not suffice or a share is less than one sample.
    fn stage_time(&self, stage: &Stage, micro_batch: f64) -> f64 {
        let memory = self.memory_gib(stage, micro_batch, 1);
        let group = &self.devices[stage.devices.clone()];
        if group.iter().any(|d| memory > d.memory_gib) || micro_batch / (group.len() as f64) < 1.0 - TIE {
            return f64::INFINITY;
        }
        let layers = || stage.layers.clone();
        let seconds = |d: &Device| d.forward[layers()].iter().sum::<f64>() + d.backward[layers()].iter().sum::<f64>();
        group.iter().map(seconds).fold(0.0, f64::max) * micro_batch / group.len() as f64
    }

    /// Equation 2: the staging in `stages` stages whose slowest stage is fastest; of equals, the one with the lowest peak
    /// memory. `None`: none fits.
    pub fn staging(&self, stages: usize, micro_batch: f64) -> Option<Staging> {
        let (layers, devices) = (self.layers.len(), self.devices.len());
        let mut times = StageTable::new(layers, devices);
        let mut peaks = StageTable::new(layers, devices);
        for devices in times.groups(stages) {
            for layers in times.ranges() {
                let stage = Stage { layers, devices: devices.clone() };
                times.set(&stage, self.stage_time(&stage, micro_batch));
                peaks.set(&stage, self.memory_gib(&stage, micro_batch, 1));
            }
        }
        let (slowest, _) = smallest_maximum(layers, devices, stages, |stage| times.get(stage))?;
        let limit = slowest * (1.0 + TIE);
        let (_, stages) = smallest_maximum(layers, devices, stages, |stage| if times.get(stage) <= limit { peaks.get(stage) } else { f64::INFINITY })?;
        Some(Staging { stages, slowest })
    }

    /// Equations 4 and 5.
    pub fn phases(&self, staging: &Staging, micro_batch: f64, micro_batches: usize) -> Phases {
        let stages = &staging.stages;
        let compute: Vec<_> = stages.iter().map(|s| self.stage_seconds(s, micro_batch)).collect();
        let (forward_transfer, backward_transfer) = self.transfer_seconds(micro_batch);
        let (last, before) = compute.split_last().expect("a staging has a stage");
        let ending = (0..stages.len()).map(|i| {
            let drain: f64 = before.iter().skip(i).map(|(_, backward)| backward + backward_transfer).sum();
            self.reduce_seconds(&stages[i], micro_batch, micro_batches) + drain
        });
        Phases {
            beginning: before.iter().map(|(forward, _)| forward + forward_transfer).sum(),
            execution: micro_batches as f64 * (last.0 + last.1),
            ending: ending.fold(0.0, f64::max),
        }
    }

    /// c_f and c_b of a micro-batch.
    pub fn transfer_seconds(&self, micro_batch: f64) -> (f64, f64) {
        let seconds = |bytes: f64| bytes * micro_batch / self.network.bytes_per_second;
        (seconds(self.boundary_bytes.0), seconds(self.boundary_bytes.1))
    }

    /// Micro-batches whose activations each stage's devices can hold at once, at most what 1F1B wants there, s − i: a
    /// stage with room for 1.4 can begin its second forward, by 0.4 of its layers, before the first backward frees anything.
    ///
    /// `None`: not even one. A stage never runs whole micro-batches further ahead than the one before it feeds it.
    pub fn in_flight(&self, staging: &Staging, micro_batch: f64) -> Option<Vec<f64>> {
        let count = staging.stages.len();
        let mut limit = count;
        let held = staging.stages.iter().enumerate().map(|(i, stage)| {
            let budget = self.devices[stage.devices.clone()].iter().map(|d| d.memory_gib).fold(f64::INFINITY, f64::min);
            let (none, one) = (self.memory_gib(stage, micro_batch, 0), self.memory_gib(stage, micro_batch, 1));
            let room = if one > none { (budget - none) / (one - none) } else { f64::INFINITY };
            let room = room.min((count - i) as f64);
            limit = limit.min((room + TIE) as usize);
            (limit > 0).then_some(if self.whole_micro_batches || room >= (limit + 1) as f64 { limit as f64 } else { room })
        });
        held.collect()
    }

    /// Equation 6 over the given numbers of stages. `micro_batches` gives M for a number of stages.
    pub fn plan(&self, mini_batch: f64, stage_counts: RangeInclusive<usize>, micro_batches: impl Fn(usize) -> usize) -> Option<Plan> {
        let candidates = stage_counts.filter_map(|stages| {
            let micro_batches = micro_batches(stages);
            let micro_batch = mini_batch / micro_batches as f64;
            let staging = self.staging(stages, micro_batch)?;
            let phases = self.phases(&staging, micro_batch, micro_batches);
            Some(Plan { staging, micro_batch, micro_batches, phases })
        });
        candidates.min_by(|a, b| a.phases.total().total_cmp(&b.phases.total()))
    }
}

/// Values of every (layers, devices), computed once.
struct StageTable {
    layers: usize,
    devices: usize,
    values: Vec<f64>,
}

impl StageTable {
    fn new(layers: usize, devices: usize) -> Self {
        Self { layers, devices, values: vec![f64::INFINITY; (layers + 1).pow(2) * (devices + 1).pow(2)] }
    }

    /// Groups that can occur beside `stages − 1` others.
    fn groups(&self, stages: usize) -> Vec<Range<usize>> {
        let longest = (self.devices + 1).saturating_sub(stages);
        (0..self.devices).flat_map(|start| (start + 1..=(start + longest).min(self.devices)).map(move |end| start..end)).collect()
    }

    fn ranges(&self) -> Vec<Range<usize>> {
        (0..self.layers).flat_map(|start| (start + 1..=self.layers).map(move |end| start..end)).collect()
    }

    fn at(&self, stage: &Stage) -> usize {
        let (l, d) = (self.layers + 1, self.devices + 1);
        ((stage.layers.start * l + stage.layers.end) * d + stage.devices.start) * d + stage.devices.end
    }

    fn get(&self, stage: &Stage) -> f64 {
        self.values[self.at(stage)]
    }

    fn set(&mut self, stage: &Stage, value: f64) {
        let at = self.at(stage);
        self.values[at] = value;
    }
}

/// The recurrence of equation 2 for any value of a stage: the split into `stages` whose largest value is smallest.
fn smallest_maximum(layers: usize, devices: usize, stages: usize, value: impl Fn(&Stage) -> f64) -> Option<(f64, Vec<Stage>)> {
    // best[s][n][y]: W(0→y, D_n, s + 1) with the q and m of its last stage
    let mut best = vec![vec![vec![(f64::INFINITY, 0, 0); layers + 1]; devices + 1]; stages];
    for s in 0..stages {
        for n in s + 1..=devices {
            for y in s + 1..=layers {
                let mut cell = (f64::INFINITY, 0, 0);
                if s == 0 {
                    cell = (value(&Stage { layers: 0..y, devices: 0..n }), 0, n);
                } else {
                    for m in 1..=n - s {
                        for (q, before) in best[s - 1][n - m].iter().enumerate().take(y).skip(s) {
                            if before.0 < cell.0 {
                                let worst = before.0.max(value(&Stage { layers: q..y, devices: n - m..n }));
                                if worst < cell.0 {
                                    cell = (worst, q, m);
                                }
                            }
                        }
                    }
                }
                best[s][n][y] = cell;
            }
        }
    }
    let smallest = best.last()?.last()?.last()?.0;
    if smallest.is_infinite() {
        return None;
    }
    let (mut chosen, mut n, mut y) = (Vec::new(), devices, layers);
    for level in best.iter().rev() {
        let (_, q, m) = level[n][y];
        chosen.push(Stage { layers: q..y, devices: n - m..n });
        (n, y) = (n - m, q);
    }
    chosen.reverse();
    Some((smallest, chosen))
}
