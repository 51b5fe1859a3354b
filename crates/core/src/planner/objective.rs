//! What a plan is chosen by.
//!
//! The objective is seconds per step of the whole job. With E epochs (at least 2 are counted, since the held-out loss
//! is measured from the cache even after one) of S steps,
//!
//! ```text
//! hybrid         J = F + (E − 1) · T + R / S
//! forward-only   J = C +    E    · T + R / S
//! ```
//!
//! F: a fill step, 1F1B played through (`playback.rs`). C: a mini-batch through the forward-only stream at its steady
//! pace. T: a train step, slowest share and AllReduce. R: seconds in which the cache entries travel to their owners once.
//!
//! A plan is allowed if every device has the memory and storage for its part, and, unless wishes ask for stages or for
//! everybody, if neither phase is slower than on the *reference*: the single device whose plan has the lowest J.
//! The reference is always allowed, so a plan is never predicted to be slower than the best single device, neither as a
//! whole nor in a phase. Where devices keep entries for others (`storage.rs`) no single device can do the job, and there is no
//! reference.

use super::costs::{Costs, StageChoice};
use super::playback::step_seconds_below;
use super::redistribute;
use super::storage;
use super::train::TrainChoice;
use barycenter_protocol::plan::FillMode;

/// A pipeline with its prediction.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    pub mode: FillMode,
    pub stages: Vec<StageChoice>,
    pub micro_batches: u32,
    /// F, or C.
    pub seconds: f64,
}

/// A pipeline and a train set.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    pub fill: Candidate,
    pub train: TrainChoice,
    pub redistribution_seconds: f64,
    pub objective: f64,
}

impl Choice {
    /// Seconds of one step of the first epoch.
    pub fn first_epoch_step_seconds(&self) -> f64 {
        first_epoch_step_seconds(self.fill.mode, self.fill.seconds, self.train.seconds)
    }
}

/// What neither phase may exceed: seconds of a step of the first epoch, and of a train step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub first_epoch_step: f64,
    pub train_step: f64,
}

impl Limits {
    pub const NONE: Self = Self { first_epoch_step: f64::INFINITY, train_step: f64::INFINITY };

    pub fn of(choice: &Choice) -> Self {
        Self { first_epoch_step: choice.first_epoch_step_seconds(), train_step: choice.train.seconds }
    }
}

pub(super) fn first_epoch_step_seconds(mode: FillMode, fill: f64, train: f64) -> f64 {
    if mode == FillMode::Hybrid { fill } else { fill + train }
}

/// J without the redistribution.
pub(super) fn steps_objective(costs: &Costs, mode: FillMode, fill: f64, train: f64) -> f64 {
    let later_epochs = f64::from(costs.options.epochs.max(2) - 1);
    first_epoch_step_seconds(mode, fill, train) + later_epochs * train
}

/// Gives stages their shares and plays them through; `None`: somebody's memory or storage does not suffice, or somebody
/// would get nothing.
pub(super) fn realise(costs: &Costs, mode: FillMode, layout: &[(usize, usize, Vec<usize>)], micro_batches: u32) -> Option<Candidate> {
    realise_below(costs, mode, layout, micro_batches, f64::INFINITY)
}

/// The same if it takes less than `below` seconds.
pub(super) fn realise_below(costs: &Costs, mode: FillMode, layout: &[(usize, usize, Vec<usize>)], micro_batches: u32, below: f64) -> Option<Candidate> {
    let behind = |i: usize| costs.in_flight(mode, layout.len() - i, micro_batches);
    let stage = |(i, (from, to, devices)): (usize, &(usize, usize, Vec<usize>))| {
        Some(StageChoice { from: *from, to: *to, members: costs.group(mode, devices, *from, *to, behind(i), micro_batches)? })
    };
    let stages = layout.iter().enumerate().map(stage).collect::<Option<Vec<_>>>()?;
    let seconds = step_seconds_below(costs, mode, &stages, micro_batches, below)?;
    Some(Candidate { mode, stages, micro_batches, seconds })
}

/// The best train set for a pipeline; `None`: none is within the limits, or none has a lower J than `below`.
/// `trains` are sorted, the fastest first.
pub(super) fn best_choice(costs: &Costs, fill: &Candidate, trains: &[TrainChoice], limits: Limits, below: f64) -> Option<Choice> {
    let mut best: Option<Choice> = None;
    for train in trains {
        let steps = steps_objective(costs, fill.mode, fill.seconds, train.seconds);
        if steps >= best.as_ref().map_or(below, |b| b.objective) || train.seconds > limits.train_step {
            break;
        }
        if first_epoch_step_seconds(fill.mode, fill.seconds, train.seconds) > limits.first_epoch_step {
            break;
        }
        let Some(redistribution_seconds) = redistribution_seconds(costs, fill, train) else { continue };
        let objective = steps + redistribution_seconds / f64::from(costs.options.steps_per_epoch.max(1));
        if objective < best.as_ref().map_or(below, |b| b.objective) {
            best = Some(Choice { fill: fill.clone(), train: train.clone(), redistribution_seconds, objective });
        }
    }
    best
}

/// R: what is left of it after filling, where entries go to who keeps them as they are computed. `None`: who is to keep them
/// lacks the memory to take them in.
pub(super) fn redistribution_seconds(costs: &Costs, fill: &Candidate, train: &TrainChoice) -> Option<f64> {
    if costs.stores {
        return storage::seconds_beyond_filling(costs, fill, train);
    }
    Some(redistribute::seconds(costs, &redistribute::moves(costs, fill.mode, &fill.stages, train)))
}

/// Numbers of micro-batches that are compared: 1, 2, 3, 4, 6, 8, 12, 16, … up to the mini-batch, and the mini-batch.
pub(super) fn micro_batch_counts(batch: u32) -> Vec<u32> {
    let powers = (0..31).map(|i| 1u32 << i).take_while(|p| *p <= batch);
    let mut counts: Vec<_> = powers.flat_map(|p| [p, p.saturating_mul(3) / 2]).filter(|n| *n <= batch).chain([batch]).collect();
    counts.sort();
    counts.dedup();
    counts
}
