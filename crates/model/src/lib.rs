//! What a model is: configs, parameter names and shapes, weight files, tokenizers, datasets, batches.

mod config;
mod error;
#[cfg(not(target_arch = "wasm32"))]
mod folder;
pub mod names;
mod tensors;

pub use config::{Family, ModelConfig, RopeConfig, RopeScaling, SUPPORTED_MODEL_TYPES};
pub use error::ModelError;
#[cfg(not(target_arch = "wasm32"))]
pub use folder::FolderTensors;
pub use tensors::{
    MAX_HEADER_BYTES, MemoryTensors, RawTensor, SafetensorsHeader, TensorDtype, TensorEntry, TensorSource,
    write_safetensors,
};
