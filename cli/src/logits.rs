//! `barycenter logits`: what a model gives for token ids, to be compared with other libraries (scripts/check_peft.py).

use crate::adapter::Adapter;
use crate::backend::create_backend;
use crate::hub;
use crate::output::{check_file, write_file};
use anyhow::{Context, Result, ensure};
use barycenter_engine::loss::logits;
use barycenter_engine::packed::{DeviceBatch, MicroBatch, Sequence};
use barycenter_engine::tape::Tape;
use barycenter_engine::backbone::Backbone;
use barycenter_model::names::Parts;
use barycenter_model::{ModelFiles, RawTensor, TensorSource, write_safetensors};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `barycenter logits`.
#[derive(clap::Args)]
pub struct Options {
    /// Model folder, .gguf file, or name on the hub.
    #[arg(long)]
    model: PathBuf,
    /// Adapter folder (LoRA or bottleneck adapters).
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// JSON file: a list of sequences, each a list of token ids.
    #[arg(long)]
    ids: PathBuf,
    /// Safetensors file to write: `logits.{i}` of sequence i, `[tokens, vocab]`.
    #[arg(long)]
    out: PathBuf,
    /// Which back end computes.
    #[arg(long, default_value = "auto")]
    device: crate::Device,
}

/// Computes and writes.
pub fn run(options: &Options) -> Result<ExitCode> {
    check_file("--out", &options.out)?;
    pollster::block_on(async {
        let device = create_backend(options.device.into()).await?;
        let files = ModelFiles::open(&hub::locate(&options.model)?)?;
        let config = files.config()?;
        let mut weights = files.weights(&config)?;
        let model = match &options.adapter {
            Some(folder) => {
                let (adapter, mut tensors) = Adapter::open(folder)?;
                ensure!(!matches!(adapter, Adapter::Parallel(_) | Adapter::Chains(_)), "{} holds a side network: logits are written for LoRA and bottleneck adapters", folder.display());
                adapter.whole_model(&device, &config, &mut weights, |name| tensors.load(name).ok())?
            }
            None => Backbone::load(&device, &config, &mut weights, &Parts::all(&config))?,
        };
        let text = std::fs::read_to_string(&options.ids).with_context(|| format!("{} cannot be read", options.ids.display()))?;
        let sequences: Vec<Vec<u32>> = serde_json::from_str(&text).with_context(|| format!("{} is not a list of lists of token ids", options.ids.display()))?;
        let mut results = BTreeMap::new();
        for (index, ids) in sequences.into_iter().enumerate() {
            let batch = MicroBatch::pack([&Sequence { ids, labels: Vec::new() }]);
            batch.check(&config)?;
            let on_device = DeviceBatch::new(&device, &batch);
            let tape = Tape::computing(&device);
            let mut x = model.embed(&tape, &on_device).context("the model holds no embedding")?;
            for layer in 0..model.layers.len() {
                x = model.layer(&tape, layer, &x, &on_device)?;
            }
            let mut rows = vec![Vec::new(); batch.tokens()];
            for chunk in logits(&tape, model.head.as_ref().context("the model holds no head")?, &x) {
                let cols = chunk.cols();
                for (row, values) in rows.iter_mut().zip(chunk.read().await?.chunks(cols)) {
                    row.extend_from_slice(values);
                }
            }
            let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
            results.insert(format!("logits.{index}"), RawTensor::from_f32(&shape, &rows.concat()));
        }
        let bytes = write_safetensors(results.iter().map(|(name, tensor)| (name.as_str(), tensor)), &BTreeMap::new());
        write_file(&options.out, &bytes)?;
        Ok(ExitCode::SUCCESS)
    })
}
