//! Seconds of a fill step: the schedule of a pipeline played through.

use super::costs::{Costs, FORWARD_ONLY_AHEAD, JOB_SECONDS, StageChoice, StageSeconds, Transfer};
use barycenter_protocol::plan::FillMode;

/// Micro-batches that are played one by one; more repeat what the last of these take.
const PLAYED: usize = 96;

/// Seconds of a mini-batch through the pipeline. Hybrid: 1F1B, AllReduce in each group as soon as its stage is through,
/// exchange of norms, update. Forward-only: the pace of an endless stream.
pub(super) fn step_seconds(costs: &Costs, mode: FillMode, stages: &[StageChoice], micro_batches: u32) -> f64 {
    step_seconds_below(costs, mode, stages, micro_batches, f64::INFINITY).unwrap_or(f64::INFINITY)
}

/// The same where it is less than `below`; what cannot be is not played.
pub(super) fn step_seconds_below(costs: &Costs, mode: FillMode, stages: &[StageChoice], micro_batches: u32, below: f64) -> Option<f64> {
    let times: Vec<_> = stages.iter().map(|stage| costs.stage_seconds(mode, stage, micro_batches)).collect();
    let transfers: Vec<_> = stages.windows(2).map(|pair| costs.transfers(mode, &pair[0].members, &pair[1].members, micro_batches)).collect();
    if mode == FillMode::ForwardOnly {
        return Some(f64::from(micro_batches) * forward_only_pace(&times, &transfers)).filter(|seconds| *seconds < below);
    }
    let reduces: Vec<_> = stages.iter().map(|stage| costs.stage_reduce(stage)).collect();
    if least_seconds(&times, &transfers, &reduces, micro_batches) * (1.0 - 1e-12) >= below {
        return None;
    }
    let m = micro_batches as usize;
    let ends = if m <= PLAYED {
        one_forward_one_backward(&times, &transfers, m)
    } else {
        let (long, short) = (one_forward_one_backward(&times, &transfers, PLAYED), one_forward_one_backward(&times, &transfers, PLAYED - 16));
        long.iter().zip(&short).map(|(long, short)| long + (long - short) / 16.0 * (m - PLAYED) as f64).collect()
    };
    let reduced = reduces.iter().zip(ends).map(|(reduce, end)| end + reduce).fold(0.0, f64::max);
    Some(reduced + norms_seconds(costs, stages) + JOB_SECONDS).filter(|seconds| *seconds < below)
}

/// What a hybrid step takes at least: for every stage the way of the first rows there, its work and its AllReduce, and its
/// work with the way there and back to the first stage and the AllReduce of that (`exact.rs` bounds parts of pipelines so).
fn least_seconds(times: &[StageSeconds], transfers: &[Transfer], reduces: &[f64], micro_batches: u32) -> f64 {
    let (mut there, mut around, mut least) = (0.0, 0.0, 0.0f64);
    for (i, time) in times.iter().enumerate() {
        if let Some(transfer) = i.checked_sub(1).and_then(|before| transfers.get(before)) {
            there += transfer.latency + transfer.forward;
            around += 2.0 * transfer.latency + transfer.forward + transfer.backward;
        }
        let work = f64::from(micro_batches) * (time.forward + time.backward);
        least = least.max(there + work + reduces[i]).max(around + work + reduces[0]);
        there += time.forward;
        around += time.forward + time.backward;
    }
    least
}

/// Every node tells every other one its part of the norm.
pub(super) fn norms_seconds(costs: &Costs, stages: &[StageChoice]) -> f64 {
    let all = || stages.iter().flat_map(|stage| stage.members.iter().map(|m| m.0));
    all().flat_map(|a| all().filter(move |b| a != *b).map(move |b| costs.link(a, b).latency)).fold(0.0, f64::max)
}

/// Seconds between two micro-batches of a stream: the slowest stage, the slowest transfer, or a sender that waits to hear
/// that its micro-batches were used.
pub(super) fn forward_only_pace(times: &[StageSeconds], transfers: &[Transfer]) -> f64 {
    let compute = times.iter().map(|t| t.forward).fold(0.0, f64::max);
    let links = transfers.iter().zip(&times[1..]).map(|(transfer, next)| {
        let heard = 2.0 * transfer.latency + transfer.forward + next.forward;
        transfer.forward.max(heard / f64::from(FORWARD_ONLY_AHEAD))
    });
    links.fold(compute, f64::max)
}

/// Plays one mini-batch through 1F1B with at most (stages − index) micro-batches in flight, as the nodes do it: a
/// backward pass whose gradient is there goes before a forward pass. Gives when each stage is through.
fn one_forward_one_backward(times: &[StageSeconds], transfers: &[Transfer], m: usize) -> Vec<f64> {
    let s = times.len();
    if s == 1 {
        return vec![m as f64 * (times[0].forward + times[0].backward)];
    }
    let mut play = Play {
        times,
        transfers,
        m,
        rows: vec![f64::INFINITY; s * m],
        gradients: vec![f64::INFINITY; s * m],
        free: vec![0.0; s],
        links: vec![(0.0, 0.0); s],
        done: vec![(0, 0); s],
    };
    play.rows[..m].fill(0.0);
    let mut next: Vec<_> = (0..s).map(|i| play.next(i)).collect();
    for _ in 0..2 * s * m {
        // nothing that is still to be made can be there before the earliest start of all
        let i = (0..s).min_by(|a, b| next[*a].0.total_cmp(&next[*b].0)).unwrap_or(0);
        play.run(i, next[i]);
        for (changed, start) in next.iter_mut().enumerate().take((i + 2).min(s)).skip(i.saturating_sub(1)) {
            *start = play.next(changed);
        }
    }
    play.free
}

struct Play<'a> {
    times: &'a [StageSeconds],
    transfers: &'a [Transfer],
    m: usize,
    /// When the rows of micro-batch j, or its gradients, are at stage i: at `i * m + j`.
    rows: Vec<f64>,
    gradients: Vec<f64>,
    /// When a stage, and the link behind it in each direction, are free again.
    free: Vec<f64>,
    links: Vec<(f64, f64)>,
    /// Forward and backward passes done.
    done: Vec<(usize, usize)>,
}

impl Play<'_> {
    /// When the next pass of a stage can start, and whether it is a backward one; infinite: nothing to do yet.
    fn next(&self, i: usize) -> (f64, bool) {
        let ((f, b), m) = (self.done[i], self.m);
        let gradient = if b < f { self.gradients[i * m + b] } else { f64::INFINITY };
        let rows = if f < m && f - b < self.times.len() - i { self.rows[i * m + f] } else { f64::INFINITY };
        let (backward, forward) = (self.free[i].max(gradient), self.free[i].max(rows));
        (backward.min(forward), backward <= forward)
    }

    fn run(&mut self, i: usize, (start, is_backward): (f64, bool)) {
        let (f, b) = self.done[i];
        if is_backward {
            let end = start + self.times[i].backward;
            self.free[i] = end;
            self.done[i].1 += 1;
            if i > 0 {
                let transfer = &self.transfers[i - 1];
                self.links[i - 1].1 = self.links[i - 1].1.max(end) + transfer.backward;
                self.gradients[(i - 1) * self.m + b] = self.links[i - 1].1 + transfer.latency;
            }
        } else {
            let end = start + self.times[i].forward;
            self.free[i] = end;
            self.done[i].0 += 1;
            match self.transfers.get(i) {
                Some(transfer) => {
                    self.links[i].0 = self.links[i].0.max(end) + transfer.forward;
                    self.rows[(i + 1) * self.m + f] = self.links[i].0 + transfer.latency;
                }
                None => self.gradients[i * self.m + f] = end,
            }
        }
    }
}
