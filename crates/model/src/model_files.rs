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
        if config.tied_head && weights.has(names::HEAD) && weights.has(names::EMBEDDING) && weights.load(names::HEAD)? != weights.load(names::EMBEDDING)? {
            return Err(ModelError::UntiedHead { name: names::HEAD });
        }
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

/// Files are written through a buffer of this size.
const WRITE_BUFFER_BYTES: usize = 1 << 20;

impl GgufFile {
    /// Writes the model as a folder (`config.json`, `model.safetensors`, `tokenizer.json`), for programs that read those:
    /// integers become f16. The folder appears when it is complete; one that is there is replaced.
    #[cfg(feature = "tokenizers")]
    pub fn write_folder(&self, folder: &Path) -> Result<(), ModelError> {
        let config = self.config()?;
        let mut weights = self.tensors()?;
        names::check(&config, &names::Parts::all(&config), &weights)?;
        crate::TextTokenizer::parse(self.tokenizer_json()?.as_bytes(), &config)?;
        let io = |error: std::io::Error| ModelError::NotWritten { folder: folder.display().to_string(), reason: error.to_string() };
        let mut name = folder.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let partial = folder.with_file_name(name);
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(io)?;
        }
        std::fs::create_dir_all(&partial).map_err(io)?;
        std::fs::write(partial.join("config.json"), self.config_json()?).map_err(io)?;
        std::fs::write(partial.join("tokenizer.json"), self.tokenizer_json()?).map_err(io)?;
        let file = std::fs::File::create(partial.join("model.safetensors")).map_err(io)?;
        let mut file = std::io::BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
        write_weights(&mut weights, &mut file, &io)?;
        if folder.exists() {
            std::fs::remove_dir_all(folder).map_err(io)?;
        }
        std::fs::rename(&partial, folder).map_err(io)
    }
}

/// A safetensors file, one tensor in memory at a time.
#[cfg(feature = "tokenizers")]
fn write_weights(weights: &mut crate::gguf::GgufTensors, file: &mut impl std::io::Write, io: &dyn Fn(std::io::Error) -> ModelError) -> Result<(), ModelError> {
    use crate::TensorDtype;
    let plain = |dtype: TensorDtype| if dtype.block().0 > 1 { TensorDtype::F16 } else { dtype };
    let names: Vec<String> = weights.names().map(str::to_string).collect();
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for name in &names {
        let entry = weights.entry(name).ok_or_else(|| ModelError::MissingTensor { name: name.clone() })?;
        let dtype = plain(entry.dtype);
        let end = at + dtype.block().1 * entry.shape.iter().product::<usize>();
        header.insert(name.clone(), serde_json::json!({ "dtype": dtype.name(), "shape": entry.shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut header = serde_json::to_vec(&header).expect("a JSON value serialises");
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(io)?;
    for name in &names {
        let tensor = weights.load(name)?;
        crate::check_finite(name, tensor.dtype, &tensor.bytes)?;
        let dtype = plain(tensor.dtype);
        let bytes = if dtype == tensor.dtype { tensor.bytes } else { tensor.converted(dtype).bytes };
        file.write_all(&bytes).map_err(io)?;
    }
    file.flush().map_err(io)
}
