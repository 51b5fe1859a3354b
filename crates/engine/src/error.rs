//! What can go wrong in the engine.

use crate::backend::BackendError;
use barycenter_model::ModelError;

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The weights are not those of the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's sizes cannot be divided for the side network.
    #[error("the model's {what} of {size} cannot be divided by the reduction {reduction}: choose a reduction that divides it")]
    BadReduction {
        /// Which size.
        what: &'static str,
        /// The size.
        size: usize,
        /// The reduction asked for.
        reduction: usize,
    },
    /// Attention heads wider than the WebGPU kernels hold.
    #[error("the model's attention heads have {head_dim} columns, and on a graphics card they may have {limit}: use the CPU")]
    HeadTooWide {
        /// Columns of a head.
        head_dim: usize,
        /// At most.
        limit: usize,
    },
    /// A vector has another length than the parameters call for.
    #[error("{what} has {got} values, expected {expected}: it belongs to another model or adapter configuration")]
    WrongLength {
        /// Which vector.
        what: &'static str,
        /// Values needed.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// A named adapter parameter is absent or has another shape.
    #[error("the adapter's `{name}` is missing or not of shape {expected:?}: the file belongs to another configuration")]
    BadAdapter {
        /// The parameter.
        name: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A side network of version 2 that cannot be made.
    #[error("the side network cannot be set up: {0}")]
    BadSideNetwork(String),
    /// LoRA on what the model does not have.
    #[error("LoRA cannot be set up: {0}")]
    BadLora(String),
    /// Bottleneck adapters that the model has no place for.
    #[error("bottleneck adapters cannot be set up: {0}")]
    BadBottleneck(String),
    /// An adapter that no GGUF file can hold.
    #[error("the adapter cannot be written as GGUF: {0}")]
    NotForGguf(String),
    /// A stage of the swarm, or decoding from a prompt, with a family for which it is not there.
    #[error("models of the family `{model_type}` are trained on one computer only and continue no prompts: choose a decoder such as Llama, Qwen, Gemma 3 or GPT-2")]
    NotADecoder {
        /// What `model_type` says.
        model_type: &'static str,
    },
    /// A token id outside the vocabulary, a sequence without tokens, a label outside its sequence.
    #[error("a micro-batch is not usable: {0}")]
    BadBatch(String),
    /// Something was asked of a stage that it does not hold or did not compute.
    #[error("the stage cannot do this: {0}")]
    BadStage(String),
    /// A file could not be used.
    #[error("{file}: {reason}")]
    File {
        /// Its path.
        file: String,
        /// What is wrong.
        reason: String,
    },
}
