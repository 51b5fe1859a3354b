//! Rotary embedding: bases and their stretching for long contexts.

use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Not at all up to the longest context that the model was made for (`max_position_embeddings`); what is longer would be
    /// stretched by its own length, and is refused ([`crate::ModelConfig::position_limit`]).
    Dynamic,
    /// Llama 3.1's rule: low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the model before it was stretched.
        original_max_positions: f64,
    },
    /// YaRN (Peng et al. 2023): as Llama 3's rule, with the bounds in whole pairs of a head, and sharper attention.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Pairs that turn at least so often in the original context are kept.
        beta_fast: f64,
        /// Pairs that turn at most so often in it are divided.
        beta_slow: f64,
        /// Whether the bounds are rounded outwards to whole pairs.
        truncate: bool,
        /// Context of the model before it was stretched.
        original_max_positions: f64,
        /// What multiplies rotated queries and keys.
        attention_factor: f64,
    },
}

/// Rotary embedding: base and scaling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// The angles per position, `head_dim / 2` values: pair (i, i + head_dim/2) turns by `position · inv_freq[i]`.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let freq = |i: usize| self.theta.powf(-((2 * i) as f64) / head_dim as f64);
        (0..head_dim / 2).map(|i| self.stretched(i, freq(i), head_dim) as f32).collect()
    }

    /// What multiplies rotated queries and keys: YaRN's attention factor, else 1.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    fn stretched(&self, pair: usize, freq: f64, head_dim: usize) -> f64 {
        match self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic => freq,
            RopeScaling::Linear { factor } => freq / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let wavelength = TAU / freq;
                if wavelength > original_max_positions / low_freq_factor {
                    freq / factor
                } else if wavelength < original_max_positions / high_freq_factor {
                    freq
                } else {
                    let smooth = (original_max_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * freq / factor + smooth * freq
                }
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_positions, .. } => {
                // The (broken) pair that turns `turns` times in the original context.
                let pair_of = |turns: f64| head_dim as f64 * (original_max_positions / (turns * TAU)).ln() / (2.0 * self.theta.ln());
                let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                (first, last) = (first.max(0.0), last.min(head_dim as f64 - 1.0));
                let width = if first == last { 1e-3 } else { last - first };
                let divided = ((pair as f64 - first) / width).clamp(0.0, 1.0);
                divided * freq / factor + (1.0 - divided) * freq
            }
        }
    }
}

/// YaRN's attention factor for a stretching: 0.1 · `weight` · ln(factor) + 1.
pub(crate) fn yarn_attention_factor(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}
