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

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RunSpec {
        RunSpec {
            model: String::new(),
            model_hash: String::new(),
            dataset: String::new(),
            dataset_hash: String::new(),
            train_samples: 10,
            held_out_samples: 0,
            sample_sizes: Vec::new(),
            layers: 1,
            tap_every: 1,
            cache: Default::default(),
            reduction: 8,
            batch: 4,
            epochs: 4,
            learning_rate: 2.0,
            warmup_steps: 4,
            weight_decay: 0.0,
            clip_norm: 1.0,
            seed: 0,
            checkpoint_steps: 0,
            gradients: Default::default(),
            weights: Default::default(),
        }
    }

    #[test]
    fn the_rate_rises_to_the_peak_and_falls_to_the_end() {
        let spec = spec();
        assert_eq!((steps_per_epoch(&spec), total_steps(&spec)), (3, 12));
        let rates: Vec<_> = (0..12).map(|t| learning_rate(&spec, t)).collect();
        assert_eq!(rates[..5], [0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!(rates[4..].windows(2).all(|w| w[1] < w[0]));
        assert!((rates[11] - 0.25).abs() < 1e-12);
        assert_eq!(learning_rate(&spec, 12), 0.0);
    }

    #[test]
    fn gradients_above_the_limit_are_cut_to_it() {
        let spec = spec();
        assert_eq!(clip_factor(&spec, 0.5), 1.0);
        assert_eq!(clip_factor(&spec, 4.0), 0.25);
        assert_eq!(clip_factor(&RunSpec { clip_norm: 0.0, ..spec }, 4.0), 1.0);
    }
}
