//! A model's table of contents: which bytes of which file hold which tensor, each with its hash.

use crate::names::Parts;
#[cfg(not(target_arch = "wasm32"))]
use crate::TensorSource;
use crate::{ModelConfig, ModelError, RawTensor, TensorDtype};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a device needs to know to fetch and check just its own layers.
///
/// Pure data: the server builds it from a folder, a browser reads it as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The text of `config.json`.
    pub config: String,
    /// blake3 over config and every tensor's name, format, shape and hash, in hex: the same weights in other files,
    /// or in another order, have the same hash.
    pub model_hash: String,
    /// The weight files; tensors name them by index.
    pub files: Vec<ManifestFile>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, ManifestTensor>,
}

/// A weight file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name in the folder, for people.
    pub name: String,
    /// Length.
    pub len_bytes: u64,
}

/// Where a tensor lies and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestTensor {
    /// Number format.
    pub dtype: TensorDtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Index into [`Manifest::files`].
    pub file: u32,
    /// First byte within the file.
    pub offset: u64,
    /// Length.
    pub len_bytes: u64,
    /// blake3 of the bytes, in hex: the key under which a device keeps them.
    pub hash: String,
}

/// A piece of a file that is fetched in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Index into [`Manifest::files`].
    pub file: u32,
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// The tensors in it, in file order.
    pub tensors: Vec<String>,
}

impl Manifest {
    /// The config, parsed.
    pub fn parse_config(&self) -> Result<ModelConfig, ModelError> {
        Ok(ModelConfig::parse(&self.config)?.settled_by(|name| crate::names::stored_name(name, |name| self.tensors.contains_key(name)).is_some()))
    }

    /// The entries of these parts, in the order they are computed with, shapes checked against the config.
    pub fn entries(&self, config: &ModelConfig, parts: &Parts) -> Result<Vec<(String, &ManifestTensor)>, ModelError> {
        parts
            .parameters(config)
            .into_iter()
            .map(|parameter| {
                let stored = crate::names::stored_name(&parameter.name, |name| self.tensors.contains_key(name));
                let name = stored.ok_or(ModelError::MissingTensor { name: parameter.name })?;
                let entry = &self.tensors[&name];
                entry.check(&name, &parameter.shape)?;
                Ok((name, entry))
            })
            .collect()
    }

    /// Bytes that these parts take, as stored.
    pub fn bytes_of(&self, config: &ModelConfig, parts: &Parts) -> Result<u64, ModelError> {
        Ok(self.entries(config, parts)?.iter().map(|(_, entry)| entry.len_bytes).sum())
    }

    /// The requests that fetch these tensors: neighbours in a file are fetched together, up to `max_bytes` a request
    /// (a larger tensor is one request).
    pub fn ranges<'a>(&self, names: impl IntoIterator<Item = &'a str>, max_bytes: u64) -> Result<Vec<ByteRange>, ModelError> {
        let mut wanted = Vec::new();
        for name in names {
            let entry = self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_string() })?;
            wanted.push((entry.file, entry.offset, entry.offset.saturating_add(entry.len_bytes), name));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut ranges: Vec<ByteRange> = Vec::new();
        for (file, start, end, name) in wanted {
            match ranges.last_mut() {
                Some(last) if last.file == file && last.end == start && end - last.start <= max_bytes => {
                    last.end = end;
                    last.tensors.push(name.to_string());
                }
                _ => ranges.push(ByteRange { file, start, end, tensors: vec![name.to_string()] }),
            }
        }
        Ok(ranges)
    }

    /// Takes the tensors out of the bytes of a range, checking length and every hash.
    pub fn split_range(&self, range: &ByteRange, bytes: &[u8]) -> Result<Vec<(String, RawTensor)>, ModelError> {
        let file = || self.files.get(range.file as usize).map_or("the weight file", |file| &file.name).to_string();
        if bytes.len() as u64 != range.end - range.start {
            let (expected_bytes, got_bytes) = (range.end - range.start, bytes.len() as u64);
            return Err(ModelError::WrongLength { file: file(), expected_bytes, got_bytes });
        }
        range
            .tensors
            .iter()
            .map(|name| {
                let entry = self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor { name: name.clone() })?;
                let place = entry.offset.checked_sub(range.start).and_then(|start| {
                    bytes.get(usize::try_from(start).ok()?..usize::try_from(start.checked_add(entry.len_bytes)?).ok()?)
                });
                let bytes = place.ok_or_else(|| ModelError::MissingTensor { name: name.clone() })?;
                Ok((name.clone(), entry.tensor(name, bytes.to_vec())?))
            })
            .collect()
    }
}

impl ManifestTensor {
    fn check(&self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
        crate::TensorEntry { dtype: self.dtype, shape: self.shape.clone(), start: 0, end: self.len_bytes }
            .check_weight(name, expected)?;
        let elements = self.shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
        let needed = elements.and_then(|elements| self.dtype.len_bytes(elements));
        if needed.map(|needed| needed as u64) != Some(self.len_bytes) || self.offset.checked_add(self.len_bytes).is_none() {
            return Err(ModelError::WrongContent { name: name.to_string() });
        }
        Ok(())
    }

    /// Makes the tensor of these bytes after checking their hash (a kept copy may be damaged).
    pub fn tensor(&self, name: &str, bytes: Vec<u8>) -> Result<RawTensor, ModelError> {
        if hash_bytes(&bytes) != self.hash {
            return Err(ModelError::WrongContent { name: name.to_string() });
        }
        Ok(RawTensor { dtype: self.dtype, shape: self.shape.clone(), bytes })
    }
}

/// blake3 in hex: how weights are named wherever they are kept.
pub fn hash_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[cfg(not(target_arch = "wasm32"))]
fn model_hash(config: &str, tensors: &BTreeMap<String, ManifestTensor>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut put = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    put(config);
    for (name, tensor) in tensors {
        put(name);
        put(&format!("{} {:?}", tensor.dtype.name(), tensor.shape));
        put(&tensor.hash);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(not(target_arch = "wasm32"))]
impl Manifest {
    /// Builds the manifest of a folder: reads every weight once, checks all shapes against the config and all
    /// values for what is not a number.
    pub fn from_folder(folder: &std::path::Path) -> Result<Self, ModelError> {
        let config_text = crate::folder::read_text(folder, "config.json")?;
        let mut weights = crate::FolderTensors::open(folder)?;
        let config = ModelConfig::parse(&config_text)?.settled_by(|name| weights.has(name));
        crate::names::check(&config, &Parts::all(&config), &weights)?;
        crate::names::check_tied_head(&config, &mut weights)?;
        let files = weights.files();
        let tensors: BTreeMap<_, _> = weights
            .places()
            .map(|(name, at)| {
                let entry = &files[at].header.tensors[name];
                let bytes = files[at].bytes(entry);
                crate::check_finite(name, entry.dtype, bytes)?;
                let tensor = ManifestTensor {
                    dtype: entry.dtype,
                    shape: entry.shape.clone(),
                    file: at as u32,
                    offset: entry.start,
                    len_bytes: entry.len_bytes(),
                    hash: hash_bytes(bytes),
                };
                Ok((name.to_string(), tensor))
            })
            .collect::<Result<_, ModelError>>()?;
        let files = files
            .iter()
            .map(|file| ManifestFile { name: file.name.clone(), len_bytes: file.header.file_bytes })
            .collect();
        Ok(Self { model_hash: model_hash(&config_text, &tensors), config: config_text, files, tensors })
    }
}
