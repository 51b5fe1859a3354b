//! How long the paper's runs take: 1F1B steps, cached steps, redistribution, epochs.

use super::Model;
use super::accounting::{ENCODER_TOKENS, F32};
use super::planner::{Network, Plan, Problem, Staging};
use super::profile::cached_sample_seconds;

/// Plays one mini-batch of `micro_batches` through 1F1B with as much in flight as fits; then the slowest group's AllReduce.
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

/// The end of the 1F1B schedule: stage i runs ⌊`in_flight[i]`⌋ − 1 forwards ahead, then one forward and one backward in
/// turn. Where it would wait for a backward and has room for a part of another micro-batch, it runs that part of the
/// forward meanwhile, layer by layer, and the rest when the backward has freed its activations.
///
/// `compute`: forward and backward seconds of a micro-batch per stage; `in_flight`: at least 1, whole parts not growing along
/// the pipeline; `transfer`: forward and backward over a boundary.
pub fn one_forward_one_backward(compute: &[(f64, f64)], in_flight: &[f64], transfer: (f64, f64), micro_batches: usize) -> f64 {
    let (stages, count) = (compute.len(), micro_batches);
    let (mut forward, mut backward) = (vec![Vec::new(); stages], vec![Vec::new(); stages]);
    let mut free = vec![0.0f64; stages];
    // share of the next forward that is done
    let mut begun = vec![0.0f64; stages];
    // A backward waits until it is known whether the next forward's input comes before it, or only because of it.
    let mut decided = false;
    while backward[0].len() < count {
        let mut moved = false;
        for i in 0..stages {
            loop {
                let (f, b) = (forward[i].len(), backward[i].len());
                let whole = (in_flight[i] + 1e-9).floor();
                let part = (in_flight[i] - whole).max(0.0);
                let arrived = |n: usize| if i == 0 { Some(0.0) } else { forward[i - 1].get(n).map(|end: &f64| end + transfer.0) };
                if f < count && ((f - b) as f64) < whole {
                    let Some(ready) = arrived(f) else { break };
                    free[i] = free[i].max(ready) + (1.0 - begun[i]) * compute[i].0;
                    begun[i] = 0.0;
                    forward[i].push(free[i]);
                } else if b < f {
                    let ready = if i + 1 == stages { forward[i].get(b).copied() } else { backward[i + 1].get(b).map(|end: &f64| end + transfer.1) };
                    let Some(ready) = ready else { break };
                    let can_begin = part > 1e-9 && whole < (stages - i) as f64 && f < count;
                    match arrived(f).filter(|_| can_begin) {
                        Some(input) => begun[i] = ((ready - free[i].max(input)) / compute[i].0).clamp(0.0, part),
                        None if can_begin && !decided => break,
                        None => {}
                    }
                    free[i] = free[i].max(ready) + compute[i].1;
                    backward[i].push(free[i]);
                    decided = false;
                } else {
                    break;
                }
                moved = true;
            }
        }
        assert!(moved || !decided, "in_flight grows along the pipeline");
        decided = !moved;
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
