//! Every pipeline there is, as far as it could still be better: branch and bound.
//!
//! Stages are placed front to back. A partial pipeline is given up when even its lower bound is no better than the best
//! plan known. With t_i = f_i + b_i of a micro-batch in stage i, c the transfers, M micro-batches, a hybrid step takes at
//! least, for every stage i,
//!
//! ```text
//! Σ_{j<i} (f_j + c_j)               + M · t_i + AR_i      rows reach i, its work, its AllReduce
//! Σ_{j<i} (f_j + c_j + b_j + c'_j)  + M · t_i             … and its last side gradient goes back to the first stage
//! ```
//!
//! and what is not placed yet takes at least the time that all devices left need if they share it without rounding.

use super::costs::{Costs, JOB_SECONDS, StageChoice};
use super::objective::{Candidate, Choice, Limits, best_choice, first_epoch_step_seconds, micro_batch_counts, steps_objective};
use super::playback::{forward_only_pace, step_seconds};
use super::train::TrainChoice;
use barycenter_protocol::plan::FillMode;

/// So many devices and layers at most are always searched through.
const EXACT: (usize, usize) = (5, 8);
/// More devices than this are not even tried.
const MOST_DEVICES: usize = 8;
/// Partial pipelines looked at in an instance larger than [`EXACT`] before the search is given up.
const BUDGET: u64 = 20_000;

/// What the search may choose among.
pub(super) struct Space<'a> {
    pub trains: &'a [TrainChoice],
    pub limits: Limits,
    pub modes: &'a [FillMode],
    pub min_stages: usize,
    /// Whether devices may be left out of the pipeline.
    pub leave_out: bool,
}

/// Betters `best` where it can; whether nothing is left that could be better.
pub(super) fn search(costs: &Costs, space: &Space, best: &mut Option<Choice>) -> bool {
    let n = costs.devices.len();
    if n > MOST_DEVICES || space.trains.is_empty() {
        return false;
    }
    let sets: Vec<Vec<usize>> = (0u32..1 << n).map(|mask| (0..n).filter(|d| mask & (1 << d) != 0).collect()).collect();
    let speeds = sets.iter().map(|set| set.iter().map(|d| costs.speed(*d)).sum()).collect();
    let mut search = Search { costs, space, best, sets, speeds, budget: if is_small(costs) { u64::MAX } else { BUDGET }, mode: FillMode::Hybrid, micro_batches: 1, count: 1, stages: Vec::new() };
    for &mode in space.modes {
        for count in space.min_stages..=n.min(costs.layers()) {
            for micro_batches in micro_batch_counts(costs.batch) {
                (search.mode, search.count, search.micro_batches) = (mode, count, micro_batches);
                search.place(0, 0, Front::default());
                if search.budget == 0 {
                    return false;
                }
            }
        }
    }
    true
}

/// Whether the search is never given up.
pub(super) fn is_small(costs: &Costs) -> bool {
    costs.devices.len() <= EXACT.0 && costs.layers() <= EXACT.1
}

/// Of the stages placed so far.
#[derive(Clone, Copy, Default)]
struct Front {
    /// Σ (f + c): when rows can be at the next stage at the earliest.
    ready: f64,
    /// Σ (f + c + b + c').
    around: f64,
    /// The fill step's lower bound.
    bound: f64,
}

struct Search<'a> {
    costs: &'a Costs<'a>,
    space: &'a Space<'a>,
    best: &'a mut Option<Choice>,
    /// Devices of every mask.
    sets: Vec<Vec<usize>>,
    /// And how fast they are together, FLOP per second.
    speeds: Vec<f64>,
    budget: u64,
    mode: FillMode,
    micro_batches: u32,
    count: usize,
    stages: Vec<StageChoice>,
}

impl Search<'_> {
    fn place(&mut self, used: u32, from: usize, front: Front) {
        let (costs, layers) = (self.costs, self.costs.layers());
        let everybody = self.sets.len() as u32 - 1;
        let (index, left) = (self.stages.len(), everybody & !used);
        if index == self.count {
            if self.space.leave_out || used == everybody {
                self.complete();
            }
            return;
        }
        let is_last = index + 1 == self.count;
        let in_flight = costs.in_flight(self.mode, self.count - index, self.micro_batches);
        let m = f64::from(self.micro_batches);
        let jobs = if self.mode == FillMode::Hybrid { 2.0 } else { 1.0 } * m * JOB_SECONDS;
        let batch = f64::from(costs.batch);
        if !self.is_hopeful(front.bound.max(front.around + jobs + self.flops(from, layers) * batch / self.speeds[left as usize])) {
            return;
        }
        let mut mask = left;
        while mask != 0 {
            if is_last && !self.is_hopeful(front.around + jobs + self.flops(from, layers) * batch / self.speeds[mask as usize]) {
                mask = (mask - 1) & left;
                continue;
            }
            let devices = std::mem::take(&mut self.sets[mask as usize]);
            let last_to = layers + 1 - (self.count - index);
            let (own_speed, speed_left) = (self.speeds[mask as usize], self.speeds[(left & !mask) as usize]);
            for to in if is_last { layers } else { from + 1 }..=last_to {
                let unrounded = front.around + jobs + self.flops(from, to) * batch / own_speed;
                if !self.is_hopeful(unrounded) {
                    break;
                }
                let rest = if is_last { 0.0 } else { jobs + self.flops(to, layers) * batch / speed_left };
                if !self.is_hopeful(unrounded.max(front.around + rest)) {
                    continue;
                }
                self.budget = self.budget.saturating_sub(1);
                let Some(members) = costs.group(self.mode, &devices, from, to, in_flight, self.micro_batches) else { continue };
                let stage = StageChoice { from, to, members };
                let seconds = costs.stage_seconds(self.mode, &stage, self.micro_batches);
                let transfer = self.stages.last().map(|before| costs.transfers(self.mode, &before.members, &stage.members, self.micro_batches)).unwrap_or_default();
                let busy = m * (seconds.forward + seconds.backward);
                if !self.is_hopeful(front.bound.max(front.around + busy)) {
                    break; // more layers take longer
                }
                let mut next = front;
                if self.mode == FillMode::Hybrid {
                    next.ready += transfer.latency + transfer.forward;
                    next.around += 2.0 * transfer.latency + transfer.forward + transfer.backward;
                    next.bound = front.bound.max(next.ready + busy + costs.stage_reduce(&stage)).max(next.around + busy);
                    next.ready += seconds.forward;
                    next.around += seconds.forward + seconds.backward;
                    next.bound = next.bound.max(next.around + rest);
                } else {
                    let pair = [Default::default(), seconds];
                    next.bound = front.bound.max(m * forward_only_pace(&pair, if index == 0 { &[] } else { std::slice::from_ref(&transfer) })).max(rest);
                }
                if self.budget > 0 && self.is_hopeful(next.bound) {
                    self.stages.push(stage);
                    self.place(used | mask, to, next);
                    self.stages.pop();
                }
            }
            self.sets[mask as usize] = devices;
            if self.budget == 0 {
                return;
            }
            mask = (mask - 1) & left;
        }
    }

    fn flops(&self, from: usize, to: usize) -> f64 {
        let (forward, backward) = self.costs.sample_flops(self.mode, from, to);
        forward + backward
    }

    /// Whether a fill step of at least `fill` seconds may belong to a better plan. A little is allowed for rounding.
    fn is_hopeful(&self, fill: f64) -> bool {
        let fill = fill * (1.0 - 1e-12);
        let train = self.space.trains[0].seconds;
        first_epoch_step_seconds(self.mode, fill, train) <= self.space.limits.first_epoch_step
            && self.best.as_ref().is_none_or(|best| steps_objective(self.costs, self.mode, fill, train) < best.objective)
    }

    fn complete(&mut self) {
        let seconds = step_seconds(self.costs, self.mode, &self.stages, self.micro_batches);
        if !self.is_hopeful(seconds) {
            return;
        }
        let fill = Candidate { mode: self.mode, stages: self.stages.clone(), micro_batches: self.micro_batches, seconds };
        let below = self.best.as_ref().map_or(f64::INFINITY, |best| best.objective);
        if let Some(choice) = best_choice(self.costs, &fill, self.space.trains, self.space.limits, below) {
            *self.best = Some(choice);
        }
    }
}
