//! Reads GGUF files (versions 2 and 3): one file with weights, config and tokenizer, as llama.cpp and its relatives use.
//!
//! A file is turned into what a Hugging Face folder would hold: the text of a `config.json`, that of a
//! `tokenizer.json`, and tensors under the names that `transformers` uses. The rest of the program knows no difference.

mod config;
#[cfg(feature = "tokenizers")]
mod convert;
mod header;
mod kquants;
mod tensors;
mod tokenizer;

pub use header::{GgmlType, GgufHeader, GgufTensor, Value};
pub use kquants::{dequantise_q4_k, dequantise_q6_k};
pub use tensors::GgufTensors;

use crate::{ModelConfig, ModelError};
use memmap2::Mmap;
use std::path::Path;
use std::sync::Arc;

/// An opened GGUF file: its header is checked, no tensor is read.
#[derive(Clone, Debug)]
pub struct GgufFile {
    header: Arc<GgufHeader>,
    map: Arc<Mmap>,
}

impl GgufFile {
    /// Maps the file and checks its header against its length.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |error: std::io::Error| ModelError::Io { file: path.display().to_string(), reason: error.to_string() };
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the map is read-only; a file that someone shortens while it is mapped would fault, as for every
        // program that maps weights. Model files are written once.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let header = GgufHeader::parse(&name, &map)?;
        Ok(Self { header: Arc::new(header), map: Arc::new(map) })
    }

    /// What stands in front of the tensors.
    pub fn header(&self) -> &GgufHeader {
        &self.header
    }

    /// The text of the `config.json` that the same model has in a Hugging Face folder.
    pub fn config_json(&self) -> Result<String, ModelError> {
        config::config_json(&self.header, &self.map)
    }

    /// The config, parsed.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        ModelConfig::parse(&self.config_json()?)
    }

    /// The text of a `tokenizer.json` that makes the same tokens.
    pub fn tokenizer_json(&self) -> Result<String, ModelError> {
        self.header.tokenizer_json()
    }

    /// The tensors, under the names that `transformers` uses.
    pub fn tensors(&self) -> Result<GgufTensors, ModelError> {
        GgufTensors::new(Arc::clone(&self.header), Arc::clone(&self.map))
    }
}
