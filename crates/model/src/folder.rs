//! Reads the weights of a Hugging Face folder through memory maps.

use crate::tensors::row_bytes;
use crate::{ModelConfig, ModelError, RawTensor, SafetensorsHeader, TensorEntry, TensorSource};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The single-file name of the weights.
const SINGLE: &str = "model.safetensors";
/// The table of weight files of a larger model.
const INDEX: &str = "model.safetensors.index.json";
/// How answers are generated, where it is said beside `config.json`.
const GENERATION: &str = "generation_config.json";

/// The tensors of a folder: `model.safetensors`, or the files that `model.safetensors.index.json` lists.
#[derive(Debug)]
pub struct FolderTensors {
    /// The weight files, in the order of their names.
    files: Vec<WeightFile>,
    /// Tensor name to file.
    by_name: BTreeMap<String, usize>,
}

/// One opened weight file.
#[derive(Debug)]
pub(crate) struct WeightFile {
    /// Name within the folder.
    pub(crate) name: String,
    /// Its table.
    pub(crate) header: SafetensorsHeader,
    map: Mmap,
}

impl FolderTensors {
    /// Opens the weights of a folder; every header is checked, no tensor is read.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let single = folder.join(SINGLE);
        if single.is_file() {
            let file = WeightFile::open(&single, SINGLE)?;
            let by_name = file.header.tensors.keys().map(|name| (name.clone(), 0)).collect();
            return Ok(Self { files: vec![file], by_name });
        }
        let index = folder.join(INDEX);
        if !index.is_file() {
            return Err(missing(folder, SINGLE));
        }
        let mut file_names: BTreeMap<String, usize> = BTreeMap::new();
        let weight_map = read_index(&index)?;
        for file in weight_map.values() {
            file_names.insert(file.clone(), 0);
        }
        let mut files = Vec::new();
        for (place, (name, at)) in file_names.iter_mut().enumerate() {
            let path = folder.join(name);
            if !path.is_file() {
                return Err(missing(folder, name));
            }
            *at = place;
            files.push(WeightFile::open(&path, name)?);
        }
        let mut by_name = BTreeMap::new();
        for (tensor, file) in weight_map {
            let at = file_names[&file];
            if !files[at].header.tensors.contains_key(&tensor) {
                return Err(ModelError::BadIndex { reason: format!("says that `{tensor}` is in {file}, which does not hold it") });
            }
            by_name.insert(tensor, at);
        }
        let weights = Self { files, by_name };
        weights.check_that_copies_agree()?;
        Ok(weights)
    }

    /// A tensor that two files hold must be the same in both.
    fn check_that_copies_agree(&self) -> Result<(), ModelError> {
        for file in &self.files {
            for (name, entry) in &file.header.tensors {
                let Some((named, original)) = self.find(name).filter(|(named, _)| named.name != file.name) else { continue };
                if original.shape != entry.shape || original.dtype != entry.dtype || named.bytes(original) != file.bytes(entry) {
                    return Err(ModelError::BadIndex { reason: format!("says that `{name}` is in {}, and {} holds another tensor of that name", named.name, file.name) });
                }
            }
        }
        Ok(())
    }

    /// Opens one safetensors file by path.
    pub fn open_file(path: &Path) -> Result<Self, ModelError> {
        let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let file = WeightFile::open(path, &name)?;
        let by_name = file.header.tensors.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { files: vec![file], by_name })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    pub(crate) fn files(&self) -> &[WeightFile] {
        &self.files
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, usize)> {
        self.by_name.iter().map(|(name, &file)| (name.as_str(), file))
    }

    fn find(&self, name: &str) -> Option<(&WeightFile, &TensorEntry)> {
        let stored = crate::names::stored_name(name, |name| self.by_name.contains_key(name))?;
        let file = &self.files[self.by_name[&stored]];
        file.header.tensors.get(&stored).map(|entry| (file, entry))
    }
}

impl TensorSource for FolderTensors {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        let (file, entry) = self.find(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_string() })?;
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes: file.bytes(entry).to_vec() })
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        self.find(name).map(|(_, entry)| entry.clone())
    }

    fn load_rows(&mut self, name: &str, rows: Range<usize>) -> Result<RawTensor, ModelError> {
        let (file, entry) = self.find(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_string() })?;
        let range = row_bytes(name, &entry.shape, entry.dtype, &rows)?;
        let mut shape = entry.shape.clone();
        shape[0] = rows.len();
        Ok(RawTensor { dtype: entry.dtype, shape, bytes: file.bytes(entry)[range].to_vec() })
    }
}

impl WeightFile {
    fn open(path: &Path, name: &str) -> Result<Self, ModelError> {
        let io = |error: std::io::Error| ModelError::Io { file: path.display().to_string(), reason: error.to_string() };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only; a file that someone shortens while it is mapped would fault, as for every
        // program that maps weights. Model folders are written once.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let header = SafetensorsHeader::parse(&map).map_err(|error| error.in_file(name))?;
        header.check_length(name, map.len() as u64)?;
        Ok(Self { name: name.to_string(), header, map })
    }

    /// The bytes of a tensor of this file.
    pub(crate) fn bytes(&self, entry: &TensorEntry) -> &[u8] {
        // The header's places were checked against the file's length.
        &self.map[entry.start as usize..entry.end as usize]
    }
}

impl ModelConfig {
    /// Reads `config.json` of a folder, `generation_config.json` where there is one, and from the weights' headers what the
    /// family leaves to them.
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        let mut config = Self::parse(&read_text(folder, "config.json")?)?;
        if folder.join(GENERATION).is_file() {
            config = config.with_generation_config(&read_text(folder, GENERATION)?)?;
        }
        Ok(match FolderTensors::open(folder) {
            Ok(weights) => config.settled_by(|name| weights.has(name)),
            Err(_) => config,
        })
    }
}

/// Reads a text file of a model folder.
pub(crate) fn read_text(folder: &Path, name: &str) -> Result<String, ModelError> {
    let path: PathBuf = folder.join(name);
    if !path.is_file() {
        return Err(missing(folder, name));
    }
    std::fs::read_to_string(&path)
        .map_err(|error| ModelError::Io { file: path.display().to_string(), reason: error.to_string() })
}

fn missing(folder: &Path, file: &str) -> ModelError {
    if !folder.is_dir() {
        return ModelError::NoFolder { folder: folder.display().to_string() };
    }
    ModelError::MissingFile { folder: folder.display().to_string(), file: file.to_string() }
}

/// Tensor name to file name; a file name must lie in the folder itself.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| ModelError::Io { file: path.display().to_string(), reason: error.to_string() })?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|error| ModelError::BadIndex { reason: format!("has no readable `weight_map` ({error})") })?;
    for file in index.weight_map.values() {
        if file.is_empty() || file.starts_with('.') || file.contains(['/', '\\', ':', '\0']) {
            return Err(ModelError::BadIndex { reason: format!("names the file `{file}`, which is not in the folder") });
        }
    }
    Ok(index.weight_map)
}
