//! `barycenter export`: an adapter in the form other programs read.

use crate::adapter::read_lora;
use anyhow::{Context, Result};
use barycenter_engine::lora::to_gguf;
use barycenter_model::{ModelConfig, TensorSource};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `barycenter export`.
#[derive(clap::Args)]
pub struct Options {
    /// Folder of the model the adapter belongs to (its config.json).
    #[arg(long)]
    model: PathBuf,
    /// LoRA adapter folder (adapter_model.safetensors, adapter_config.json).
    #[arg(long)]
    adapter: PathBuf,
    /// The GGUF file to write: llama.cpp loads it with --lora.
    #[arg(long)]
    gguf: PathBuf,
}

/// Writes the file.
pub fn run(options: &Options) -> Result<ExitCode> {
    let config = ModelConfig::from_folder(&options.model)?;
    let (lora, mut tensors) = read_lora(&options.adapter)?;
    let bytes = to_gguf(&config, &lora, |name| tensors.load(name).ok())?;
    std::fs::write(&options.gguf, &bytes).with_context(|| format!("{} cannot be written", options.gguf.display()))?;
    println!("{} written, {} bytes", options.gguf.display(), bytes.len());
    Ok(ExitCode::SUCCESS)
}
