//! What a model is: configs, parameter names and shapes, weight files, tokenizers, datasets, batches.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod batch;
pub mod blocks;
#[cfg(feature = "tokenizers")]
pub mod chat;
mod config;
#[cfg(feature = "tokenizers")]
pub mod dataset;
mod error;
pub mod families;
#[cfg(not(target_arch = "wasm32"))]
mod folder;
#[cfg(not(target_arch = "wasm32"))]
pub mod gguf;
mod manifest;
#[cfg(not(target_arch = "wasm32"))]
mod model_files;
pub mod metrics;
pub mod names;
mod overlay;
mod tensors;
#[cfg(feature = "tokenizers")]
pub mod tokenizer;
mod weight_type;

pub use batch::TokenSample;
#[cfg(feature = "tokenizers")]
pub use chat::ChatTemplate;
pub use config::{Activation, Family, HeadKind, ModelConfig, NormKind, Positions, RopeConfig, RopeScaling};
pub use error::ModelError;
pub use families::SUPPORTED_MODEL_TYPES;
#[cfg(not(target_arch = "wasm32"))]
pub use folder::FolderTensors;
#[cfg(not(target_arch = "wasm32"))]
pub use model_files::ModelFiles;
pub use manifest::{ByteRange, Manifest, ManifestFile, ManifestTensor, hash_bytes};
pub use overlay::Overlay;
pub use tensors::{
    MAX_HEADER_BYTES, MemoryTensors, RawTensor, SafetensorsHeader, TensorDtype, TensorEntry, TensorSource,
    write_safetensors,
};
#[cfg(feature = "tokenizers")]
pub use tokenizer::TextTokenizer;
pub use weight_type::{WeightType, Weights, check_finite};
