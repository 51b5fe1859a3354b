//! `barycenter export`: an adapter in the form other programs read.

use crate::adapter::read_lora;
use crate::output::{check_new_file, write_file};
use anyhow::Result;
use barycenter_engine::lora::to_gguf;
use barycenter_model::TensorSource;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `barycenter export`.
#[derive(clap::Args)]
pub struct Options {
    /// The model the adapter belongs to: a folder, .gguf file, or name on the hub.
    #[arg(long)]
    model: PathBuf,
    /// LoRA adapter folder (adapter_model.safetensors, adapter_config.json).
    #[arg(long)]
    adapter: PathBuf,
    /// The GGUF file to write, which must not be there yet: llama.cpp loads it with --lora.
    #[arg(long)]
    gguf: PathBuf,
}

/// Writes the file.
pub fn run(options: &Options) -> Result<ExitCode> {
    check_new_file("--gguf", &options.gguf)?;
    let config = crate::model::config(&options.model)?;
    let (lora, mut tensors) = read_lora(&options.adapter)?;
    let bytes = to_gguf(&config, &lora, |name| tensors.load(name).ok())?;
    write_file(&options.gguf, &bytes)?;
    println!("{} written, {} bytes", options.gguf.display(), bytes.len());
    Ok(ExitCode::SUCCESS)
}
