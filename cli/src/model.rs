//! What `--model` names, and in which number format its weights are held.

use crate::hub;
use anyhow::{Context, Result, bail, ensure};
use barycenter_engine::Device;
use barycenter_engine::cpu::integer_products;
use barycenter_model::names::parameter_count;
use barycenter_model::{ModelConfig, ModelFiles, TensorSource, TextTokenizer, WeightType, Weights};
use std::path::{Path, PathBuf};

/// Number format of the frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightFormat {
    /// As the file has them.
    #[default]
    Keep,
    /// Half precision.
    F16,
    /// 8-bit integers in blocks of 32.
    Int8,
    /// 4-bit integers in blocks of 32; embedding and head as int8.
    Int4,
}

impl From<WeightFormat> for WeightType {
    fn from(format: WeightFormat) -> Self {
        match format {
            WeightFormat::Keep => Self::Keep,
            WeightFormat::F16 => Self::F16,
            WeightFormat::Int8 => Self::Int8,
            WeightFormat::Int4 => Self::Int4,
        }
    }
}

/// In which numbers activations meet frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ActivationFormat {
    /// As they are.
    #[default]
    F32,
    /// Rounded to 8-bit integers in blocks of 32 where the weight is int8 or int4: faster, on the CPU only.
    Int8,
}

impl ActivationFormat {
    /// Has the device compute so, and says so on one line where it is not the usual way.
    pub fn set(self, device: &Device) -> Result<()> {
        if self == Self::Int8 {
            ensure!(device.round_activations(true), "--activations int8 is there on the CPU only: add --device cpu, or leave it out");
            println!("activations meet int8 and int4 weights as 8-bit integers, multiplied by {}", integer_products());
        }
        Ok(())
    }
}

/// In which numbers a model is held and computes, as `adapter_config.json` says it.
pub fn numbers(weights: WeightFormat, activations: ActivationFormat) -> [(&'static str, String); 2] {
    fn word(value: &impl clap::ValueEnum) -> String {
        value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
    [("weights", word(&weights)), ("activations", word(&activations))]
}

/// A model that was found, its config and its tokenizer.
pub struct Model {
    /// Sizes.
    pub config: ModelConfig,
    /// Text to tokens.
    pub tokenizer: TextTokenizer,
    /// The folder or GGUF file.
    pub path: PathBuf,
    files: ModelFiles,
}

impl Model {
    /// Opens what `--model` names: a path, or a name of the hub, which is fetched.
    pub fn open(named: &Path) -> Result<Self> {
        let path = hub::locate(named)?;
        let files = ModelFiles::open(&path)?;
        let config = files.config()?;
        let tokenizer = files.tokenizer(&config)?;
        Ok(Self { config, tokenizer, path, files })
    }

    /// The weights in the format asked for; each is checked for what is not a number.
    pub fn weights(&self, format: WeightFormat) -> Result<Weights<Box<dyn TensorSource>>> {
        Ok(Weights::new(self.files.weights(&self.config)?, format.into()))
    }
}

/// The config alone of what `--model` names.
pub fn config(named: &Path) -> Result<ModelConfig> {
    Ok(ModelFiles::open(&hub::locate(named)?)?.config()?)
}

/// Sizes of a model for plans and simulations, without its tokenizer and perhaps without its weights.
pub struct Sized {
    /// Sizes.
    pub config: ModelConfig,
    /// What people call it: the end of its path.
    pub name: String,
    /// Bytes of the weights as devices would hold them: those of the files, of a GGUF file those that `serve` makes of it; 0
    /// where a folder has none.
    pub bytes: u64,
}

impl Sized {
    /// Opens what `--model` names; a folder may hold nothing but its config.
    pub fn open(named: &Path) -> Result<Self> {
        let name = named.file_name().map(|name| name.to_string_lossy().into_owned());
        let sized = Self::of(&hub::locate(named)?)?;
        Ok(Self { name: name.unwrap_or_else(|| "the model".into()), ..sized })
    }

    /// The same of a folder or file on this computer.
    pub fn of(path: &Path) -> Result<Self> {
        let files = ModelFiles::open(path)?;
        let config = files.config()?;
        let name = path.file_name().map_or_else(|| "the model".into(), |name| name.to_string_lossy().into_owned());
        let bytes = match &files {
            // Integers become f16.
            ModelFiles::Gguf(_) => std::fs::metadata(path)?.len().max(2 * parameter_count(&config) as u64),
            ModelFiles::Folder(folder) => stored_bytes(folder)?,
        };
        Ok(Self { config, name, bytes })
    }
}

/// Bytes of the weight files of a folder.
fn stored_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|ending| ending == "safetensors") {
            // Files of the hub's cache are links.
            bytes += std::fs::metadata(entry.path())?.len();
        }
    }
    Ok(bytes)
}

/// Says on one line what the weights take that were loaded since the device held `before` bytes.
pub fn describe_weights(device: &Device, before: u64, format: WeightFormat) -> String {
    let held = device.memory().current_bytes.saturating_sub(before);
    let format = match format {
        WeightFormat::Keep => "as stored",
        WeightFormat::F16 => "as f16",
        WeightFormat::Int8 => "as int8",
        WeightFormat::Int4 => "as int4",
    };
    format!("weights {format}: {:.1} MB", held as f64 / 1e6)
}

/// Full fine-tuning computes every weight in f32.
pub fn refuse_packed(format: WeightFormat) -> Result<()> {
    if format != WeightFormat::Keep {
        bail!("full fine-tuning changes every weight and holds it as f32: leave out --weights");
    }
    Ok(())
}
