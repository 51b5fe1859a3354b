//! What a model is: configs, parameter names and shapes, weight files, tokenizers, datasets, batches.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod batch;
#[cfg(feature = "tokenizers")]
pub mod chat;
mod config;
#[cfg(feature = "tokenizers")]
pub mod dataset;
mod error;
pub mod families;
#[cfg(not(target_arch = "wasm32"))]
mod folder;
mod manifest;
pub mod metrics;
pub mod names;
mod tensors;
#[cfg(feature = "tokenizers")]
pub mod tokenizer;

pub use batch::TokenSample;
#[cfg(feature = "tokenizers")]
pub use chat::ChatTemplate;
pub use config::{Activation, Family, HeadKind, ModelConfig, NormKind, Positions, RopeConfig, RopeScaling};
pub use error::ModelError;
pub use families::SUPPORTED_MODEL_TYPES;
#[cfg(not(target_arch = "wasm32"))]
pub use folder::FolderTensors;
pub use manifest::{ByteRange, Manifest, ManifestFile, ManifestTensor, hash_bytes};
pub use tensors::{
    MAX_HEADER_BYTES, MemoryTensors, RawTensor, SafetensorsHeader, TensorDtype, TensorEntry, TensorSource,
    write_safetensors,
};
#[cfg(feature = "tokenizers")]
pub use tokenizer::TextTokenizer;
