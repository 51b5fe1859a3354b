//! A model on disk, whatever it is made of: a Hugging Face folder or a GGUF file.

use crate::gguf::GgufFile;
use crate::{FolderTensors, ModelConfig, ModelError, TensorSource, names};
use std::path::{Path, PathBuf};

/// What a path to a model leads to.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// A folder with `config.json`, weights in safetensors files and `tokenizer.json`.
    Folder(PathBuf),
    /// One file with all of that.
    Gguf(GgufFile),
}

impl ModelFiles {
    /// A file is taken for GGUF, anything else for a folder.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_file() { GgufFile::open(path).map(Self::Gguf) } else { Ok(Self::Folder(path.to_path_buf())) }
    }

    /// The config.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        match self {
            Self::Folder(folder) => ModelConfig::from_folder(folder),
            Self::Gguf(file) => file.config(),
        }
    }

    /// The weights; a head that the config says is tied must not be there as something else.
    pub fn weights(&self, config: &ModelConfig) -> Result<Box<dyn TensorSource>, ModelError> {
        let mut weights: Box<dyn TensorSource> = match self {
            Self::Folder(folder) => Box::new(FolderTensors::open(folder)?),
            Self::Gguf(file) => Box::new(file.tensors()?),
        };
        names::check_tied_head(config, &mut weights)?;
        Ok(weights)
    }

    /// The tokenizer.
    #[cfg(feature = "tokenizers")]
    pub fn tokenizer(&self, config: &ModelConfig) -> Result<crate::TextTokenizer, ModelError> {
        match self {
            Self::Folder(folder) => crate::TextTokenizer::from_folder(folder, config),
            Self::Gguf(file) => crate::TextTokenizer::parse(file.tokenizer_json()?.as_bytes(), config),
        }
    }
}
