//! Writes the model of a GGUF file as a Hugging Face folder.

use super::{GgufFile, GgufTensors};
use crate::{ModelError, TensorDtype, TensorSource, TextTokenizer, check_finite, names};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Files are written through a buffer of this size.
const WRITE_BUFFER_BYTES: usize = 1 << 20;

impl GgufFile {
    /// Writes the model as a folder (`config.json`, `model.safetensors`, `tokenizer.json`), for programs that read those:
    /// integers become f16. The folder appears when it is complete; one that is there is replaced.
    pub fn write_folder(&self, folder: &Path) -> Result<(), ModelError> {
        let config = self.config()?;
        let mut weights = self.tensors()?;
        names::check(&config, &names::Parts::all(&config), &weights)?;
        TextTokenizer::parse(self.tokenizer_json()?.as_bytes(), &config)?;
        let failed = |error: io::Error| ModelError::NotWritten { folder: folder.display().to_string(), reason: error.to_string() };
        let mut name = folder.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let partial = folder.with_file_name(name);
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(failed)?;
        }
        fs::create_dir_all(&partial).map_err(failed)?;
        fs::write(partial.join("config.json"), self.config_json()?).map_err(failed)?;
        fs::write(partial.join("tokenizer.json"), self.tokenizer_json()?).map_err(failed)?;
        let file = fs::File::create(partial.join("model.safetensors")).map_err(failed)?;
        let mut file = io::BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
        write_weights(&mut weights, &mut file, &failed)?;
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(failed)?;
        }
        fs::rename(&partial, folder).map_err(failed)
    }
}

/// A safetensors file, one tensor in memory at a time.
fn write_weights(weights: &mut GgufTensors, file: &mut impl Write, failed: &dyn Fn(io::Error) -> ModelError) -> Result<(), ModelError> {
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
    file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(failed)?;
    for name in &names {
        let tensor = weights.load(name)?;
        check_finite(name, tensor.dtype, &tensor.bytes)?;
        let dtype = plain(tensor.dtype);
        let bytes = if dtype == tensor.dtype { tensor.bytes } else { tensor.converted(dtype).bytes };
        file.write_all(&bytes).map_err(failed)?;
    }
    file.flush().map_err(failed)
}
