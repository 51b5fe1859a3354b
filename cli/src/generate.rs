//! `barycenter generate`.

use anyhow::{Context, Result};
use barycenter_engine::generate::{GenerateOptions, generate};
use barycenter_engine::backbone::Backbone;
use barycenter_engine::side::{Side, SideConfig, SideLayout, flat_from_named};
use barycenter_engine::tape::no_yield;
use barycenter_engine::{Device, create_backend};
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig, TensorSource, TextTokenizer};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `barycenter generate`.
#[derive(clap::Args)]
pub struct Options {
    /// Model folder (config.json, model.safetensors, tokenizer.json).
    #[arg(long)]
    model: PathBuf,
    /// Adapter folder (adapter_model.safetensors, adapter_config.json).
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What is asked.
    prompt: String,
    /// At most so many tokens.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Which back end computes.
    #[arg(long, default_value = "auto")]
    device: crate::Device,
}

/// Prints the base model's answer and, with an adapter, the tuned one's.
pub fn run(options: &Options) -> Result<ExitCode> {
    pollster::block_on(async {
        let device = create_backend(options.device.into()).await?;
        let config = ModelConfig::from_folder(&options.model)?;
        let tokenizer = TextTokenizer::from_folder(&options.model, &config)?;
        let model = Backbone::load(&device, &config, &mut FolderTensors::open(&options.model)?, &Parts::all(&config))?;
        let prompts = [tokenizer.encode_prompt(&options.prompt)?];
        let limits = GenerateOptions { max_new_tokens: options.max_new_tokens, stop: config.eos.clone() };
        let base = generate(&model, None, &prompts, &limits, &no_yield()).await?;
        let text = tokenizer.decode_response(&base[0])?;
        let Some(folder) = &options.adapter else {
            println!("{text}");
            return Ok(ExitCode::SUCCESS);
        };
        let side = load_adapter(&device, &config, folder)?;
        let tuned = generate(&model, Some(&side), &prompts, &limits, &no_yield()).await?;
        println!("base   {text}\ntuned  {}", tokenizer.decode_response(&tuned[0])?);
        Ok(ExitCode::SUCCESS)
    })
}

/// A side network from an adapter folder.
pub fn load_adapter(device: &Device, config: &ModelConfig, folder: &Path) -> Result<Side> {
    let path = folder.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let json: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let method = json["method"].as_str().unwrap_or_default();
    anyhow::ensure!(method == "parallel_adapter" && json["version"] == 1, "{} is of method {method:?}, expected parallel_adapter version 1", path.display());
    let reduction = json["reduction"].as_u64().with_context(|| format!("{} has no reduction", path.display()))?;
    let mut side = SideConfig::new(reduction as usize, config.layers);
    if let Some(taps) = json["taps"].as_array() {
        side.taps = taps.iter().filter_map(|tap| Some(tap.as_u64()? as usize)).collect();
    }
    let mut tensors = FolderTensors::open_file(&folder.join("adapter_model.safetensors"))?;
    let layout = SideLayout::whole(config, &side)?;
    let flat = flat_from_named(&layout, |name| tensors.load(name).ok())?;
    Ok(Side::new(device, layout, &flat)?)
}
