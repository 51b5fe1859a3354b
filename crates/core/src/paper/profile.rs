//! What the paper's profiler measured on one Jetson Nano: the planner's input.
//!
//! Digitised from Fig. 8 (batch 16, sequence 128). The single-device profile is an input, not a result.

use super::accounting::{ENCODER_TOKENS, F32, GIB, Stack};
use super::{Model, Technique};

/// Memory that a 4 GB Nano has for training, GiB: the OOM line of Figs. 8b and 9b.
pub const NANO_MEMORY_GIB: f64 = 1.513;
/// Bytes per second of the LAN, 1000 Mb/s (§6.1).
pub const LINK_BYTES_PER_SECOND: f64 = 125e6;
/// Bytes per second that a Nano's SD card reads.
///
/// Assumption: the usual rate of a UHS-I card. The paper gives no figure but "no more than tens of milliseconds".
pub const STORAGE_BYTES_PER_SECOND: f64 = 100e6;
/// Samples of a mini-batch in Table 2 (§6.1).
pub const MINI_BATCH: f64 = 16.0;

/// Seconds per sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSeconds {
    /// Forward.
    pub forward: f64,
    /// Backward.
    pub backward: f64,
}

impl SampleSeconds {
    /// Both.
    pub fn total(self) -> f64 {
        self.forward + self.backward
    }
}

/// Fig. 8a, without cache. `None`: it did not fit and was not measured.
pub fn sample_seconds(model: Model, technique: Technique) -> Option<SampleSeconds> {
    let (forward, backward) = match (model, technique) {
        (Model::T5Base, Technique::Full) => (0.225, 0.334),
        (Model::T5Base, Technique::Adapters) => (0.213, 0.176),
        (Model::T5Base, Technique::Lora) => (0.232, 0.185),
        (Model::T5Base, Technique::ParallelAdapters) => (0.230, 0.034),
        (Model::BartLarge, Technique::Full) => (0.337, 0.550),
        (Model::BartLarge, Technique::Adapters | Technique::Lora) => (0.351, 0.277),
        (Model::BartLarge, Technique::ParallelAdapters) => (0.360, 0.029),
        (Model::T5Large, Technique::Full) => return None,
        (Model::T5Large, Technique::Adapters) => (0.617, 0.632),
        (Model::T5Large, Technique::Lora) => (0.599, 0.637),
        (Model::T5Large, Technique::ParallelAdapters) => (0.626, 0.054),
    };
    Some(SampleSeconds { forward, backward })
}

/// Fig. 8a, parallel adapters from the cache.
pub fn cached_sample_seconds(model: Model) -> SampleSeconds {
    let (forward, backward) = match model {
        Model::T5Base => (0.008, 0.014),
        Model::BartLarge => (0.014, 0.018),
        Model::T5Large => (0.021, 0.034),
    };
    SampleSeconds { forward, backward }
}

/// Fig. 8b, activations of 16 samples in GiB on the first of eight stages: a quarter of the encoder's layers.
pub fn profiled_activations_gib(model: Model, technique: Technique) -> f64 {
    match (model, technique) {
        (Model::T5Base, Technique::Full) => 0.538,
        (Model::T5Base, Technique::Adapters) => 0.345,
        (Model::T5Base, Technique::Lora) => 0.386,
        (Model::T5Base, Technique::ParallelAdapters) => 0.221,
        (Model::BartLarge, Technique::Full) => 0.581,
        (Model::BartLarge, Technique::Adapters) => 0.450,
        (Model::BartLarge, Technique::Lora) => 0.507,
        (Model::BartLarge, Technique::ParallelAdapters) => 0.248,
        (Model::T5Large, Technique::Full) => 1.309,
        (Model::T5Large, Technique::Adapters) => 0.935,
        (Model::T5Large, Technique::Lora) => 0.998,
        (Model::T5Large, Technique::ParallelAdapters) => 0.480,
    }
}

/// What of the profiled activations the count of [`super::accounting`] does not explain, GiB per sample: buffers that live
/// while a layer runs. They are held once, however many micro-batches are in flight.
pub fn workspace_gib(model: Model, technique: Technique) -> f64 {
    let architecture = model.architecture();
    let saved = architecture.layers as f64 / 4.0 * architecture.saved_floats(technique, Stack::Encoder) * F32 / GIB;
    (profiled_activations_gib(model, technique) / MINI_BATCH - saved).max(0.0)
}

/// Bytes of one sample that cross a stage boundary, forward and backward.
///
/// Encoder: the hidden states; decoder: the encoder's output travels on, which is the same size beside one token. Parallel
/// adapters send the side states too, and only side gradients come back.
pub fn boundary_bytes(model: Model, technique: Technique) -> (f64, f64) {
    let architecture = model.architecture();
    let (hidden, side) = (architecture.width as f64, architecture.side_width() as f64);
    let row = ENCODER_TOKENS as f64 * F32;
    match technique {
        Technique::ParallelAdapters => (row * (hidden + side), row * side),
        Technique::Full | Technique::Adapters | Technique::Lora => (row * hidden, row * hidden),
    }
}
