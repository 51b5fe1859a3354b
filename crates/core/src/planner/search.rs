//! The search for the fill pipeline: the paper's dynamic programme, made fit for unequal devices.
//!
//! Differences from Eq. 2–6 of the paper: communication stands inside the recurrence, the memory test counts the
//! micro-batches in flight, shares inside a group follow speed and memory, several device orders are tried, a device may be
//! left out, and the candidates (one per order, number of stages and micro-batches) are compared by playing the 1F1B
//! schedule through rather than by a closed formula.

use super::costs::{Costs, shares};

/// A stage of a candidate: layers and (device, slots) in rank order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StageChoice {
    pub from: usize,
    pub to: usize,
    pub members: Vec<(usize, u32)>,
}

/// A pipeline with its prediction.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    pub stages: Vec<StageChoice>,
    pub micro_batches: u32,
    pub seconds: f64,
}

/// The best pipeline over `devices` with at least `min_stages` stages; `leave_out`: whether devices may be left out.
pub(super) fn best_pipeline(costs: &Costs, devices: &[usize], min_stages: usize, leave_out: bool) -> Option<Candidate> {
    let most = devices.len().min(costs.layers());
    let alone = |d: &usize| if leave_out && min_stages <= 1 && devices.len() > 1 { best_pipeline(costs, &[*d], 1, true) } else { None };
    let mut best: Option<Candidate> = devices.iter().filter_map(alone).min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    for order in orders(costs, devices) {
        for stages in min_stages.max(1)..=most {
            for micro_batches in micro_batch_counts(stages as u32, costs.batch) {
                let Some(choice) = programme(costs, &order, stages, micro_batches, leave_out) else { continue };
                let seconds = step_seconds(costs, &choice, micro_batches);
                if best.as_ref().is_none_or(|b| seconds < b.seconds) {
                    best = Some(Candidate { stages: choice, micro_batches, seconds });
                }
            }
        }
    }
    best
}

/// All orders of up to 4 devices; of more: fastest first, most memory first, and both reversed.
fn orders(costs: &Costs, devices: &[usize]) -> Vec<Vec<usize>> {
    if devices.len() <= 4 {
        let mut all = Vec::new();
        permute(&mut devices.to_vec(), 0, &mut all);
        return all;
    }
    let by = |key: &dyn Fn(usize) -> f64| {
        let mut order = devices.to_vec();
        order.sort_by(|a, b| key(*b).total_cmp(&key(*a)).then(a.cmp(b)));
        order
    };
    let fastest = by(&|d| costs.devices[d].gflops);
    let roomiest = by(&|d| costs.devices[d].memory_budget_bytes as f64);
    let reversed = |o: &Vec<usize>| o.iter().rev().copied().collect::<Vec<_>>();
    vec![reversed(&fastest), reversed(&roomiest), fastest, roomiest]
}

fn permute(items: &mut Vec<usize>, at: usize, all: &mut Vec<Vec<usize>>) {
    if at + 1 >= items.len() {
        all.push(items.clone());
        return;
    }
    for i in at..items.len() {
        items.swap(at, i);
        permute(items, at + 1, all);
        items.swap(at, i);
    }
}

/// One stage wants few, large micro-batches (memory decides); a pipeline at least as many as stages.
fn micro_batch_counts(stages: u32, batch: u32) -> Vec<u32> {
    let mut counts: Vec<_> = [1, 2, 4, 8, 16].iter().map(|n| n * stages).chain([batch]).filter(|n| *n <= batch).collect();
    counts.sort();
    counts.dedup();
    counts
}

/// Splits a micro-batch of the mini-batch among a group that holds layers `from .. to`.
fn group(costs: &Costs, devices: &[usize], from: usize, to: usize, in_flight: u32, micro_batches: u32) -> Option<Vec<(usize, u32)>> {
    let fixed = costs.fill_fixed_bytes(from, to);
    let per_sample = costs.fill_sample_bytes(from, to).max(1) * u64::from(in_flight.min(micro_batches));
    let cap = |d: &usize| {
        let free = costs.devices[*d].memory_budget_bytes.saturating_sub(fixed);
        let by_memory = u32::try_from(free / per_sample).unwrap_or(u32::MAX).saturating_mul(micro_batches);
        by_memory.min(u32::try_from(costs.devices[*d].storage_budget_bytes / costs.cache_slot_bytes(from, to)).unwrap_or(u32::MAX))
    };
    let caps: Vec<u32> = devices.iter().map(cap).collect();
    let speeds: Vec<_> = devices.iter().map(|d| costs.devices[*d].gflops.max(1e-3)).collect();
    Some(devices.iter().copied().zip(shares(&speeds, &caps, costs.batch, costs.options.use_all_nodes)?).collect())
}

/// Slowest member's forward and backward seconds for one micro-batch.
fn stage_seconds(costs: &Costs, stage: &StageChoice, micro_batches: u32) -> (f64, f64) {
    stage.members.iter().fold((0.0, 0.0), |(f, b), &(device, slots)| {
        let (forward, backward) = costs.fill_seconds(device, stage.from, stage.to, f64::from(slots) / f64::from(micro_batches));
        (f64::max(f, forward), f64::max(b, backward))
    })
}

/// Best way to put layers `0 .. y` on the first n devices of the order in s stages: slowest stage and how it was made.
#[derive(Clone)]
struct Cell {
    slowest: f64,
    stages: Vec<StageChoice>,
}

#[allow(clippy::needless_range_loop, reason = "indices are those of the recurrence")]
/// The recurrence (Eq. 2) for a fixed number of stages: minimises the slowest stage, its part of the AllReduce and
/// the transfers to it included.
fn programme(costs: &Costs, order: &[usize], stages: usize, micro_batches: u32, leave_out: bool) -> Option<Vec<StageChoice>> {
    let (layers, devices) = (costs.layers(), order.len());
    let samples = f64::from(costs.batch) / f64::from(micro_batches);
    // previous[n][y]: s − 1 stages; `None` = impossible
    let mut previous: Vec<Vec<Option<Cell>>> = vec![vec![None; layers + 1]; devices + 1];
    for (n, row) in previous.iter_mut().enumerate() {
        if n == 0 || leave_out {
            row[0] = Some(Cell { slowest: 0.0, stages: Vec::new() });
        }
    }
    for stage in 0..stages {
        let in_flight = (stages - stage) as u32;
        let mut current: Vec<Vec<Option<Cell>>> = vec![vec![None; layers + 1]; devices + 1];
        for n in 1..=devices {
            for y in stage + 1..=layers {
                if stage + 1 == stages && y != layers || layers - y < stages - stage - 1 {
                    continue;
                }
                let mut best: Option<Cell> = if leave_out { current[n - 1][y].clone() } else { None };
                for m in 1..=n {
                    let members = &order[n - m..n];
                    for q in stage..y {
                        if stage == 0 && q > 0 {
                            break;
                        }
                        let Some(before) = &previous[n - m][q] else { continue };
                        if best.as_ref().is_some_and(|b| before.slowest >= b.slowest) {
                            continue;
                        }
                        let Some(members) = group(costs, members, q, y, in_flight, micro_batches) else { continue };
                        let choice = StageChoice { from: q, to: y, members };
                        let (forward, backward) = stage_seconds(costs, &choice, micro_batches);
                        let transfer = before.stages.last().map_or(0.0, |b| costs.forward_transfer(&b.members, &choice.members, samples) + costs.backward_transfer(&b.members, &choice.members, samples));
                        let reduce = if m > 1 { costs.all_reduce(&order[n - m..n], costs.adapter_parameters(q, y)) / f64::from(micro_batches) } else { 0.0 };
                        let slowest = before.slowest.max(forward + backward + reduce).max(transfer);
                        if best.as_ref().is_none_or(|b| slowest < b.slowest) {
                            let mut stages = before.stages.clone();
                            stages.push(choice);
                            best = Some(Cell { slowest, stages });
                        }
                    }
                }
                current[n][y] = best;
            }
        }
        previous = current;
    }
    previous[devices][layers].take().map(|cell| cell.stages)
}

/// Plays one mini-batch through 1F1B, then AllReduce inside the groups, the exchange of norms, the update.
pub(super) fn step_seconds(costs: &Costs, stages: &[StageChoice], micro_batches: u32) -> f64 {
    let (s, m) = (stages.len(), micro_batches as usize);
    let samples = f64::from(costs.batch) / f64::from(micro_batches);
    let times: Vec<_> = stages.iter().map(|stage| stage_seconds(costs, stage, micro_batches)).collect();
    let over = |i: usize, backward: bool| {
        let (a, b) = (&stages[i].members, &stages[i + 1].members);
        if backward { costs.backward_transfer(a, b, samples) } else { costs.forward_transfer(a, b, samples) }
    };
    let forward_transfers: Vec<_> = (0..s.saturating_sub(1)).map(|i| over(i, false)).collect();
    let backward_transfers: Vec<_> = (0..s.saturating_sub(1)).map(|i| over(i, true)).collect();
    let mut forward_end = vec![vec![None; m]; s];
    let mut backward_end = vec![vec![None; m]; s];
    let mut free = vec![0.0f64; s];
    let mut done = vec![(0usize, 0usize); s];
    loop {
        let mut moved = false;
        for i in (0..s).rev() {
            loop {
                let (f, b) = done[i];
                let ready_backward = if b < f { if i + 1 == s { forward_end[i][b] } else { backward_end[i + 1][b].map(|t: f64| t + backward_transfers[i]) } } else { None };
                let may_forward = f < m && f - b < s - i;
                let ready_forward = if !may_forward { None } else if i == 0 { Some(0.0) } else { forward_end[i - 1][f].map(|t: f64| t + forward_transfers[i - 1]) };
                // 1F1B: once enough are in flight, backward comes first
                if let Some(ready) = ready_backward {
                    free[i] = free[i].max(ready) + times[i].1;
                    backward_end[i][b] = Some(free[i]);
                    done[i].1 += 1;
                } else if let Some(ready) = ready_forward {
                    free[i] = free[i].max(ready) + times[i].0;
                    forward_end[i][f] = Some(free[i]);
                    done[i].0 += 1;
                } else {
                    break;
                }
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let pipeline_end = free.iter().copied().fold(0.0, f64::max);
    let reduce = stages.iter().map(|stage| costs.all_reduce(&stage.members.iter().map(|m| m.0).collect::<Vec<_>>(), costs.adapter_parameters(stage.from, stage.to))).fold(0.0, f64::max);
    let all: Vec<_> = stages.iter().flat_map(|stage| stage.members.iter().map(|m| m.0)).collect();
    let norms = all.iter().flat_map(|a| all.iter().filter(move |b| a != *b).map(|b| costs.link(*a, *b).latency)).fold(0.0, f64::max);
    pipeline_end + reduce + norms + super::costs::JOB_SECONDS
}
