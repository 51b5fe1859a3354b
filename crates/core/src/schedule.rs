//! Steps per epoch, learning rate, clipping: functions of the run's specification alone.

use barycenter_protocol::control::RunSpec;

/// Optimiser steps of one epoch.
pub fn steps_per_epoch(spec: &RunSpec) -> u32 {
    spec.train_samples.div_ceil(spec.batch.max(1))
}

/// Optimiser steps of the run.
pub fn total_steps(spec: &RunSpec) -> u32 {
    steps_per_epoch(spec) * spec.epochs
}

/// Learning rate of the step before which `optimiser_step` steps were applied: rises by equal amounts to the peak at the
/// last of `warmup_steps` steps, then falls linearly, and would be zero one step after the last.
pub fn learning_rate(spec: &RunSpec, optimiser_step: u32) -> f64 {
    let total = total_steps(spec).max(1);
    let warmup = spec.warmup_steps.min(total.saturating_sub(1));
    if optimiser_step < warmup {
        return spec.learning_rate * f64::from(optimiser_step + 1) / f64::from(warmup);
    }
    let left = total.saturating_sub(optimiser_step);
    spec.learning_rate * f64::from(left) / f64::from(total - warmup)
}

/// Factor on a gradient of this norm: 1, or `clip_norm / norm` where the norm is above a limit that is not 0.
pub fn clip_factor(spec: &RunSpec, gradient_norm: f64) -> f64 {
    if spec.clip_norm > 0.0 && gradient_norm > spec.clip_norm { spec.clip_norm / gradient_norm } else { 1.0 }
}
