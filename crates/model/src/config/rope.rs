//! Rotary embedding: bases and their stretching for long contexts.

use serde::{Deserialize, Serialize};

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
        (0..head_dim / 2)
            .map(|i| {
                let freq = self.theta.powf(-((2 * i) as f64) / head_dim as f64);
                self.scaling.stretch(freq) as f32
            })
            .collect()
    }
}

impl RopeScaling {
    fn stretch(&self, freq: f64) -> f64 {
        match *self {
            RopeScaling::Default => freq,
            RopeScaling::Linear { factor } => freq / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let wavelength = 2.0 * std::f64::consts::PI / freq;
                if wavelength > original_max_positions / low_freq_factor {
                    freq / factor
                } else if wavelength < original_max_positions / high_freq_factor {
                    freq
                } else {
                    let smooth = (original_max_positions / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * freq / factor + smooth * freq
                }
            }
        }
    }
}

