//! Every fitted constant, and the cells it was fitted to.
//!
//! Only Standalone, Eco-FL and EDDL cells are used, and `tests/calibration.rs` fits them again. Standalone needs no
//! constant: its hours are the single-device profile of Fig. 8a times the samples.

use super::profile::STORAGE_BYTES_PER_SECOND;
use super::{Model, Technique};

/// Share of an AllReduce that delays nobody.
///
/// Least squares of the relative differences over the 12 EDDL cells: Table 2 with Adapters and LoRA on T5-Base (8), Fig. 9
/// with parallel adapters on T5-Base (4). A ring at 1 Gb/s that hides nothing would make Fig. 9's cells a third slower.
pub const HIDDEN_REDUCE_SHARE: f64 = 0.69;

/// Seconds of a decoder layer (one token) over those of an encoder layer (128 tokens).
///
/// Fig. 9's Eco-FL bars: weights per device are those of an equal number of layers per stage, 2L/n (BART-Large 0.773, 0.580,
/// 0.452, 0.388 GiB; T5-Large 1.634, 0.878, 0.627, 0.501 GiB), and two Nanos with BART-Large's encoder on one and its decoder
/// on the other reach 3.63 samples/s, so that both halves take the same time. By FLOPs it would be about 1/6.
pub const DECODER_LAYER_SECONDS: f64 = 1.0;

/// Micro-batches of a mini-batch in PAC's pipelines.
///
/// The paper does not say. Two is what Eco-FL's T5-Large bars of Fig. 9a fit best (3 cells), and on BART-Large with two and
/// four Nanos it is the most that whole samples allow there. The same number is used in Table 2.
pub const PIPELINE_MICRO_BATCHES: usize = 2;

/// What may be doubted; [`Default`] is what the reproduction uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumptions {
    /// [`PIPELINE_MICRO_BATCHES`].
    pub pipeline_micro_batches: usize,
    /// [`HIDDEN_REDUCE_SHARE`].
    pub hidden_reduce_share: f64,
    /// [`DECODER_LAYER_SECONDS`].
    pub decoder_layer_seconds: f64,
    /// A stage uses its memory for whole micro-batches only; else also for a part of another one.
    pub whole_micro_batches: bool,
    /// [`STORAGE_BYTES_PER_SECOND`].
    pub storage_bytes_per_second: f64,
}

impl Default for Assumptions {
    fn default() -> Self {
        Self {
            pipeline_micro_batches: PIPELINE_MICRO_BATCHES,
            hidden_reduce_share: HIDDEN_REDUCE_SHARE,
            decoder_layer_seconds: DECODER_LAYER_SECONDS,
            whole_micro_batches: false,
            storage_bytes_per_second: STORAGE_BYTES_PER_SECOND,
        }
    }
}

/// Micro-batches of a mini-batch of 16 in Eco-FL's rows of Table 2: least squares over each row's four cells of a model.
///
/// More overlap better, but the devices hold only so many: BART-Large with full fine-tuning and T5-Large run nearly stage
/// after stage because one or two micro-batches fill the memory.
pub fn eco_fl_table_2_micro_batches(model: Model, technique: Technique) -> usize {
    match (model, technique) {
        (Model::T5Base, Technique::Full) => 16,
        (Model::T5Base, Technique::Lora) => 14,
        (Model::T5Base, _) => 12,
        (Model::BartLarge, Technique::Full) => 4,
        (Model::BartLarge, _) => 16,
        (Model::T5Large, _) => 5,
    }
}

/// Most micro-batches in Eco-FL's bars of Fig. 9a, where a mini-batch has one sample per device: least squares over each
/// model's bars.
///
/// Without such a limit Eco-FL would gain from every further device; in the paper it stops growing between four and eight.
pub fn eco_fl_figure_9_micro_batches(model: Model) -> usize {
    match model {
        Model::T5Base => 6,
        Model::BartLarge => 5,
        Model::T5Large => 2,
    }
}
