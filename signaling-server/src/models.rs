//! The models that can be handed out: the built-in one, and the folders a person gave.

use crate::data_dir::{DataDir, write_atomically};
use crate::error::{Answer, Refusal, ServerError};
use barycenter_model::{FolderTensors, Manifest, ModelConfig, ModelError, TensorSource, TextTokenizer, names};
use barycenter_protocol::api::ModelInfo;
use barycenter_protocol::auth::to_hex;
use rust_embed::RustEmbed;
use serde::Deserialize;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Id of the built-in model.
pub const DEMO_MODEL: &str = "demo";
/// What a built-in model's folder recommends for a run.
const RECOMMENDATION_FILE: &str = "demo.json";

/// `assets/demo`: model, tokenizer and personal data set; debug builds read it from disk.
#[derive(RustEmbed)]
#[folder = "../assets/demo"]
#[allow_missing = true]
struct DemoAssets;

/// Hyper-parameters that a folder recommends in `demo.json`; absent ones get the server's defaults.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Recommendation {
    /// Reduction k.
    pub reduction: Option<u32>,
    /// Epochs, fill epoch included.
    pub epochs: Option<u32>,
    /// Mini-batch.
    pub batch: Option<u32>,
    /// Peak learning rate.
    pub learning_rate: Option<f64>,
    /// Warm-up steps.
    pub warmup_steps: Option<u32>,
    /// AdamW weight decay.
    pub weight_decay: Option<f64>,
    /// Gradient norm limit.
    pub clip_norm: Option<f64>,
    /// Seed.
    pub seed: Option<u64>,
}

/// A model folder.
pub struct Model {
    /// Facts for people.
    pub info: ModelInfo,
    /// Where it lies.
    pub folder: PathBuf,
    /// What `demo.json` recommends.
    pub recommendation: Recommendation,
    config: Option<ModelConfig>,
    manifest: OnceLock<Result<Arc<Manifest>, String>>,
    tokenizer: OnceLock<Result<Arc<TextTokenizer>, String>>,
}

impl Model {
    fn open(id: String, folder: PathBuf) -> Self {
        let name = Some(folder_name(&folder)).filter(|name| !name.is_empty()).unwrap_or_else(|| id.clone());
        let mut info = ModelInfo { id, name, family: String::new(), parameters: 0, bytes: 0, layers: 0, width: 0, max_positions: 0, problem: None };
        let inspected = inspect(&folder, &mut info).map_err(|error| error.to_string());
        let config = inspected.and_then(|config| crate::side::check_family(&config).map(|()| config)).inspect_err(|problem| info.problem = Some(problem.clone())).ok();
        let recommendation = std::fs::read(folder.join(RECOMMENDATION_FILE)).ok().and_then(|bytes| {
            serde_json::from_slice(&bytes).inspect_err(|error| log::warn!("{}: {RECOMMENDATION_FILE}: {error}", folder.display())).ok()
        });
        Self { info, folder, recommendation: recommendation.unwrap_or_default(), config, manifest: OnceLock::new(), tokenizer: OnceLock::new() }
    }

    /// Its config; a sentence if the folder cannot be used.
    pub fn config(&self) -> Answer<&ModelConfig> {
        self.config.as_ref().ok_or_else(|| Refusal::conflict(self.info.problem.clone().unwrap_or_default()))
    }

    /// Its manifest. The first call reads all weights to hash them: call it where blocking is allowed.
    pub fn manifest(&self) -> Answer<Arc<Manifest>> {
        self.config()?;
        let manifest = self.manifest.get_or_init(|| Manifest::from_folder(&self.folder).map(Arc::new).map_err(|error| error.to_string()));
        manifest.clone().map_err(Refusal::conflict)
    }

    /// Its tokenizer. The first call reads it: call it where blocking is allowed.
    pub fn tokenizer(&self) -> Answer<Arc<TextTokenizer>> {
        let config = self.config()?;
        let tokenizer = self.tokenizer.get_or_init(|| TextTokenizer::from_folder(&self.folder, config).map(Arc::new).map_err(|error| error.to_string()));
        tokenizer.clone().map_err(Refusal::conflict)
    }

    /// Path of a weight file of the manifest.
    pub fn file(&self, manifest: &Manifest, index: usize) -> Answer<PathBuf> {
        let file = manifest.files.get(index).ok_or_else(|| Refusal::missing(format!("{} has no weight file {index}: fetch its manifest again", self.info.name)))?;
        // An index file may name anything; only plain names are files of the folder.
        let name = Path::new(&file.name);
        let mut parts = name.components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(_)), None) => Ok(self.folder.join(name)),
            _ => Err(Refusal::conflict(format!("the weight file {} lies outside the model's folder: put it into the folder", file.name))),
        }
    }
}

/// Reads config and weight headers, checks that everything is there, and fills in the facts.
fn inspect(folder: &Path, info: &mut ModelInfo) -> Result<ModelConfig, ModelError> {
    let config = ModelConfig::from_folder(folder)?;
    info.family = config.family.model_type().to_owned();
    info.parameters = names::parameter_count(&config) as u64;
    info.layers = config.layers as u32;
    info.width = config.width as u32;
    info.max_positions = config.max_positions as u32;
    let mut weights = FolderTensors::open(folder)?;
    let parts = names::Parts::all(&config);
    names::check(&config, &parts, &weights)?;
    names::check_tied_head(&config, &mut weights)?;
    info.bytes = parts.parameters(&config).iter().filter_map(|p| weights.entry(&p.name)).map(|entry| entry.len_bytes()).sum();
    if !folder.join("tokenizer.json").is_file() {
        return Err(ModelError::MissingFile { folder: folder.display().to_string(), file: "tokenizer.json".into() });
    }
    Ok(config)
}

/// All models, looked up by id; ids are made here and never become paths.
pub struct Models {
    roots: Vec<PathBuf>,
    demo: Option<PathBuf>,
    known: Mutex<Vec<Arc<Model>>>,
}

impl Models {
    /// Lays out the built-in model in the data folder and finds the folders.
    pub fn open(data: &DataDir, roots: Vec<PathBuf>) -> Result<Self, ServerError> {
        for root in &roots {
            if !root.is_dir() {
                return Err(ServerError::NoModelsFolder { path: root.display().to_string() });
            }
        }
        let folder = data.builtin(DEMO_MODEL);
        let demo = lay_out_demo(&folder).map_err(|error| ServerError::DataDir { path: folder.display().to_string(), reason: error.to_string() })?;
        let models = Self { roots, demo: demo.then_some(folder), known: Mutex::default() };
        models.list();
        Ok(models)
    }

    /// Folder of the built-in assets, if the program has them.
    pub fn demo_folder(&self) -> Option<&Path> {
        self.demo.as_deref()
    }

    /// All models; folders added since the last call are found. Reads headers: call it where blocking is allowed.
    pub fn list(&self) -> Vec<Arc<Model>> {
        let mut found: Vec<PathBuf> = Vec::new();
        for root in &self.roots {
            if is_meant_as_model(root) {
                found.push(root.clone());
            }
            let mut folders: Vec<_> = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            folders.retain(|path| is_meant_as_model(path));
            folders.sort();
            found.extend(folders);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = &self.demo
            && known.is_empty()
        {
            let mut demo = Model::open(DEMO_MODEL.into(), folder.clone());
            demo.info.name = "Demo: a small model of homes".into();
            known.push(Arc::new(demo));
        }
        // A folder whose problem may have been repaired is looked at again.
        known.retain(|model| Some(&model.folder) == self.demo.as_ref() || (model.info.problem.is_none() && found.contains(&model.folder)));
        for folder in found {
            if known.iter().all(|model| model.folder != folder) {
                let id = free_id(&folder_name(&folder), |id| known.iter().any(|model| model.info.id == id));
                known.push(Arc::new(Model::open(id, folder)));
            }
        }
        known.clone()
    }

    /// By id.
    pub fn get(&self, id: &str) -> Answer<Arc<Model>> {
        let find = |models: &[Arc<Model>]| models.iter().find(|model| model.info.id == id).cloned();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        find(&known)
            .or_else(|| find(&self.list()))
            .ok_or_else(|| Refusal::missing(format!("there is no model `{}`: choose one of the list", clip(id))))
    }
}

/// Whether a folder holds part of a model: what it lacks is said where models are listed.
fn is_meant_as_model(folder: &Path) -> bool {
    ["config.json", "model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).is_file())
}

/// The name of a model in a folder: the folder's own, or the hub's where it lies in the hub's cache
/// (`models--org--name/snapshots/<commit>`).
fn folder_name(folder: &Path) -> String {
    let name = |path: Option<&Path>| path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = folder.parent();
    match name(parent.and_then(Path::parent)).strip_prefix("models--") {
        Some(of_hub) if name(parent) == "snapshots" => of_hub.replacen("--", "/", 1),
        _ => name(Some(folder)),
    }
}

/// An id of lower-case letters, digits and `-`, like the name, and taken by nobody.
pub fn free_id(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut slug = String::new();
    for character in name.chars().flat_map(char::to_lowercase) {
        if character.is_ascii_alphanumeric() {
            slug.push(character);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() >= 40 {
            break;
        }
    }
    let slug = slug.trim_end_matches('-');
    let slug = if slug.is_empty() { "x" } else { slug };
    if !taken(slug) {
        return slug.to_owned();
    }
    let numbered = (2u64..).map(|number| format!("{slug}-{number}"));
    numbered.into_iter().find(|id| !taken(id)).expect("there are more numbers than ids")
}

/// What came from outside, short enough for a sentence.
pub fn clip(text: &str) -> String {
    clip_to(text, 60)
}

/// At most so many characters, none of them a control character.
pub fn clip_to(text: &str, characters: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(characters).collect()
}

/// Writes the embedded files that are absent or differ; false if there are none.
fn lay_out_demo(folder: &Path) -> std::io::Result<bool> {
    let files: Vec<_> = DemoAssets::iter().filter(|name| !name.contains('/')).collect();
    if !files.iter().any(|name| name == "config.json") {
        return Ok(false);
    }
    std::fs::create_dir_all(folder)?;
    for name in files {
        let Some(file) = DemoAssets::get(&name) else { continue };
        let (path, stamp) = (folder.join(name.as_ref()), folder.join(format!(".{name}.sha256")));
        let hash = to_hex(&file.metadata.sha256_hash());
        let same_length = std::fs::metadata(&path).is_ok_and(|m| m.len() == file.data.len() as u64);
        if !(same_length && std::fs::read_to_string(&stamp).is_ok_and(|kept| kept == hash)) {
            write_atomically(&path, &file.data)?;
            std::fs::write(&stamp, &hash)?;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_slugs_and_unique() {
        assert_eq!(free_id("../../etc/passwd", |_| false), "etc-passwd");
        assert_eq!(free_id("Qwen2.5 0.5B", |id| id == "qwen2-5-0-5b"), "qwen2-5-0-5b-2");
        assert_eq!(free_id("…", |_| false), "x");
    }

    #[test]
    fn a_model_of_the_hub_has_its_name_there() {
        assert_eq!(folder_name(Path::new("/a/hub/models--org--name-1/snapshots/0f3a")), "org/name-1");
        assert_eq!(folder_name(Path::new("/a/snapshots/tiny")), "tiny");
        assert_eq!(folder_name(Path::new("tiny")), "tiny");
    }
}
