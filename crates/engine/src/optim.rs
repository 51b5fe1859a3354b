//! AdamW, its schedule, and clipping by the global norm.

use crate::backend::BackendError;
use crate::op::Op;
use crate::params::{ParameterSet, read_all};
use crate::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// The constants of torch's AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the gradient's mean.
    pub beta1: f32,
    /// Decay of the squared gradient's mean.
    pub beta2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamWConfig {
    /// torch's defaults.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// AdamW over a [`ParameterSet`], with its two moments on the same device.
pub struct AdamW {
    config: AdamWConfig,
    moments: Vec<(Tensor, Tensor)>,
}

impl AdamW {
    /// Moments of 0 for all parameters of the set.
    pub fn new(device: &Device, parameters: &ParameterSet, config: AdamWConfig) -> Self {
        let zeros = |values: &Tensor| Tensor::zeros(device, &[values.len()]);
        let moments = parameters.buffers().map(|(values, _)| (zeros(values), zeros(values))).collect();
        Self { config, moments }
    }

    /// One step, counted from 1, with the gradients the set holds times `grad_factor` (see [`clip_factor`]).
    pub fn step(&self, parameters: &ParameterSet, step: u32, lr: f32, grad_factor: f32) {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        for ((values, grads), (m, v)) in parameters.buffers().zip(&self.moments) {
            values.run(Op::AdamW {
                param: values.slice(),
                grad: grads.slice(),
                m: m.slice(),
                v: v.slice(),
                len: values.len() as u32,
                step,
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                grad_factor,
            });
        }
    }

    /// Both moments as flat vectors.
    pub async fn read_moments(&self) -> Result<(Vec<f32>, Vec<f32>), BackendError> {
        let m = read_all(self.moments.iter().map(|(m, _)| m)).await?;
        let v = read_all(self.moments.iter().map(|(_, v)| v)).await?;
        Ok((m, v))
    }

    /// Overwrites both moments from flat vectors.
    pub fn write_moments(&self, m: &[f32], v: &[f32]) {
        let mut at = 0;
        for (m_chunk, v_chunk) in &self.moments {
            let range = at..at + m_chunk.len();
            m_chunk.write(0, &m[range.clone()]);
            v_chunk.write(0, &v[range]);
            at += m_chunk.len();
        }
    }
}

/// Linear warm-up to `peak_lr`, then linear decay to 0 at `total_steps`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearSchedule {
    /// Steps until the peak.
    pub warmup_steps: u32,
    /// Steps of the whole run.
    pub total_steps: u32,
    /// Learning rate at the peak.
    pub peak_lr: f32,
}

impl LinearSchedule {
    /// The learning rate of a step, counted from 1; the last step still has a positive one.
    pub fn lr(&self, step: u32) -> f32 {
        if step <= self.warmup_steps {
            return self.peak_lr * step as f32 / self.warmup_steps.max(1) as f32;
        }
        let (left, decay) = ((self.total_steps + 1).saturating_sub(step), (self.total_steps + 1).saturating_sub(self.warmup_steps));
        self.peak_lr * left as f32 / decay.max(1) as f32
    }
}

/// What gradients of norm `norm` are multiplied by so that it is at most `max_norm` (torch's `clip_grad_norm_`).
pub fn clip_factor(norm: f32, max_norm: f32) -> f32 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_rises_to_the_peak_and_falls_to_near_zero() {
        let schedule = LinearSchedule { warmup_steps: 4, total_steps: 10, peak_lr: 1.0 };
        assert_eq!((schedule.lr(1), schedule.lr(4)), (0.25, 1.0));
        assert!(schedule.lr(10) > 0.0 && schedule.lr(10) < 0.2 && schedule.lr(11) == 0.0);
    }

    #[test]
    fn clipping_leaves_small_gradients_alone() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
    }
}
