//! What a run is: its model, data and method, and the number formats it holds and sends things in.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Everything that defines a run's mathematics; devices do not appear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Model id on the server.
    pub model: String,
    /// Hash of its weights (part of the cache key).
    pub model_hash: String,
    /// Data set id on the server.
    pub dataset: String,
    /// Hash of its tokens (part of the cache key).
    pub dataset_hash: String,
    /// Training samples (ids 0 .. train_samples).
    pub train_samples: u32,
    /// Held-out samples (the ids after).
    pub held_out_samples: u32,
    /// Tokens and labelled tokens of every sample, for schedules and loss scaling without the data.
    pub sample_sizes: Vec<SampleSize>,
    /// Transformer layers L.
    pub layers: u32,
    /// Every so many-th layer's output is tapped, counted back from the last; the embedding's always.
    #[serde(default = "every_layer")]
    pub tap_every: u32,
    /// How cache entries hold taps.
    #[serde(default)]
    pub cache: CacheType,
    /// Reduction k.
    pub reduction: u32,
    /// Mini-batch, samples.
    pub batch: u32,
    /// Epochs in all, the fill epoch included.
    pub epochs: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Linear warm-up, steps; then linear decay to zero at the last step.
    pub warmup_steps: u32,
    /// AdamW weight decay.
    pub weight_decay: f64,
    /// Global gradient norm limit; 0 = none.
    pub clip_norm: f64,
    /// Seed of order and initialisation.
    pub seed: u64,
    /// A checkpoint is taken every so many steps, and at epoch ends.
    pub checkpoint_steps: u32,
    /// How gradients travel between nodes.
    #[serde(default)]
    pub gradients: GradientType,
    /// In which number format nodes hold the frozen matrices (since 1.1; part of the cache key).
    #[serde(default)]
    pub weights: WeightFormat,
}

/// In which number format nodes hold the frozen matrices of a model; stored and sent they are as the file has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// As the file has them.
    #[default]
    Keep,
    /// Half precision.
    F16,
    /// 8-bit integers with a scale per 32 values.
    Int8,
    /// 4-bit integers with a scale per 32 values; embedding and head as [`WeightFormat::Int8`].
    Int4,
}

fn every_layer() -> u32 {
    1
}

impl RunSpec {
    /// The taps in order: outputs 0 (the embedding's) to L (the last layer's) that the side network reads.
    pub fn tapped(&self) -> impl Iterator<Item = u32> {
        tapped(self.layers, self.tap_every)
    }

    /// Number of taps.
    pub fn tap_count(&self) -> u32 {
        self.tapped().count() as u32
    }

    /// The taps, by their place in the order, that layers `layers` (from 0) give; the first layer's node gives the embedding's.
    pub fn taps_of(&self, layers: &Range<u32>) -> Range<u32> {
        let before = |layer: u32| if layer == 0 { 0 } else { self.tapped().filter(|&tap| tap <= layer).count() as u32 };
        before(layers.start)..before(layers.end)
    }
}

/// Outputs 0 ..= `layers` of which every `every`-th is tapped, counted back from the last; the first always.
pub fn tapped(layers: u32, every: u32) -> impl Iterator<Item = u32> {
    (0..=layers).filter(move |tap| *tap == 0 || (layers - tap).is_multiple_of(every.max(1)))
}

/// How cache entries hold taps, which are scaled to unit root mean square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// Half precision.
    #[default]
    F16,
    /// 8-bit integers, a scale in half precision for each token.
    Int8,
}

impl CacheType {
    /// Bytes of one token's tap of `width` values.
    pub fn token_bytes(self, width: u32) -> u64 {
        match self {
            Self::F16 => 2 * u64::from(width),
            Self::Int8 => u64::from(width) + 2,
        }
    }
}

/// How gradients travel in an AllReduce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientType {
    /// As they were computed: k nodes give the losses of one.
    #[default]
    F32,
    /// Half the bytes: scaled half precision, with 11 bits for values within 2⁻²⁹ of their block's largest.
    F16,
}

impl GradientType {
    /// Bytes of `values` gradients on the wire.
    pub fn wire_bytes(self, values: u64) -> u64 {
        match self {
            Self::F32 => 4 * values,
            Self::F16 => 2 * values + 4 * values.div_ceil(GRADIENT_BLOCK as u64),
        }
    }
}

/// Gradients that share a scale in [`GradientType::F16`].
pub const GRADIENT_BLOCK: usize = 256;

/// Size of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleSize {
    /// Tokens.
    pub tokens: u32,
    /// Labelled tokens.
    pub labels: u32,
}
