//! How long the paper's runs take: 1F1B steps, cached steps, redistribution, epochs.

use super::Model;
use super::accounting::{ENCODER_TOKENS, F32};
use super::planner::{Network, Plan, Problem, Staging};
use super::profile::cached_sample_seconds;
use std::iter::repeat_n;

/// Plays one mini-batch of `micro_batches` through 1F1B with as many in flight as fit; then the slowest group's AllReduce.
///
/// `None`: a stage cannot hold a single micro-batch.
pub fn step_seconds(problem: &Problem, staging: &Staging, micro_batch: f64, micro_batches: usize) -> Option<f64> {
    let in_flight = problem.in_flight(staging, micro_batch)?;
    let compute: Vec<_> = staging.stages.iter().map(|s| problem.stage_seconds(s, micro_batch)).collect();
    let reduce = staging.stages.iter().map(|s| problem.reduce_seconds(s, micro_batch, micro_batches)).fold(0.0, f64::max);
    Some(one_forward_one_backward(&compute, &in_flight, problem.transfer_seconds(micro_batch), micro_batches) + reduce)
}

/// Seconds of a step of the plan.
pub fn plan_step_seconds(problem: &Problem, plan: &Plan) -> Option<f64> {
    step_seconds(problem, &plan.staging, plan.micro_batch, plan.micro_batches)
}

/// The end of the 1F1B schedule: stage i runs `in_flight[i]` − 1 forwards ahead, then one forward and one backward in turn.
///
/// `compute`: forward and backward seconds of a micro-batch per stage; `in_flight`: at least 1, not growing along the
/// pipeline; `transfer`: forward and backward over a boundary.
pub fn one_forward_one_backward(compute: &[(f64, f64)], in_flight: &[usize], transfer: (f64, f64), micro_batches: usize) -> f64 {
    let (stages, count) = (compute.len(), micro_batches);
    // true: forward
    let orders: Vec<Vec<bool>> = (0..stages)
        .map(|i| {
            let ahead = (in_flight[i] - 1).min(count);
            repeat_n(true, ahead).chain((ahead..count).flat_map(|_| [true, false])).chain(repeat_n(false, ahead)).collect()
        })
        .collect();
    let (mut forward, mut backward) = (vec![Vec::new(); stages], vec![Vec::new(); stages]);
    let mut free = vec![0.0f64; stages];
    while backward[0].len() < count {
        for i in 0..stages {
            while let Some(is_forward) = orders[i].get(forward[i].len() + backward[i].len()) {
                let (f, b) = (forward[i].len(), backward[i].len());
                let ready: Option<f64> = match (*is_forward, i) {
                    (true, 0) => Some(0.0),
                    (true, _) => forward[i - 1].get(f).map(|end| end + transfer.0),
                    (false, _) if i + 1 == stages => forward[i].get(b).copied(),
                    (false, _) => backward[i + 1].get(b).map(|end| end + transfer.1),
                };
                let Some(ready) = ready else { break };
                free[i] = free[i].max(ready) + if *is_forward { compute[i].0 } else { compute[i].1 };
                if *is_forward { forward[i].push(free[i]) } else { backward[i].push(free[i]) }
            }
        }
    }
    free.into_iter().fold(0.0, f64::max)
}

/// A step of the cached epochs: each of `devices` reads its samples' entries, runs the side network, and takes part in
/// the AllReduce of all side parameters, which hides behind the backward pass only.
pub fn cached_step_seconds(model: Model, mini_batch: f64, devices: usize, network: &Network, storage_bytes_per_second: f64) -> f64 {
    let (architecture, seconds) = (model.architecture(), cached_sample_seconds(model));
    let share = mini_batch / devices as f64;
    let read = share * architecture.cached_sample_bytes() / storage_bytes_per_second;
    let bytes = architecture.side_parameters() as f64 * F32;
    read + share * seconds.total() + network.all_reduce_seconds(bytes, devices, share * seconds.backward)
}

/// After the first epoch: every device gets the entries of its n-th of the samples that it does not hold yet (§5.2).
///
/// A group's member holds its stage's entries of the group's share; links are full duplex.
pub fn redistribution_seconds(model: Model, staging: &Staging, samples: f64, network: &Network) -> f64 {
    let architecture = model.architecture();
    let per_stack = architecture.layers as usize;
    let entries = |tokens: u64| tokens as f64 * architecture.width as f64 * F32;
    // the tap of an encoder layer has 128 tokens, of a decoder layer one; b_0 stays with the first layer of its stack
    let tap = |layer: usize| entries(if layer < per_stack { ENCODER_TOKENS } else { 1 }) * if layer.is_multiple_of(per_stack) { 2.0 } else { 1.0 };
    let cache = samples * (0..2 * per_stack).map(tap).sum::<f64>();
    let devices: usize = staging.stages.iter().map(|s| s.devices.len()).sum();
    let own = 1.0 / devices as f64;
    let busiest = staging.stages.iter().map(|stage| {
        let held = samples * stage.layers.clone().map(tap).sum::<f64>();
        let sends = held * (1.0 / stage.devices.len() as f64 - own);
        let receives = (cache - held) * own;
        sends.max(receives)
    });
    busiest.fold(0.0, f64::max) / network.bytes_per_second
}
