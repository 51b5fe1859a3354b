//! `barycenter generate`.

use crate::adapter::Adapter;
use crate::backend::create_backend;
use crate::model::{ActivationFormat, Model, WeightFormat, describe_weights};
use anyhow::Result;
use barycenter_engine::backbone::Backbone;
use barycenter_engine::chains::Chains;
use barycenter_engine::generate::{GenerateOptions, generate, generate_targets};
use barycenter_engine::side::Side;
use barycenter_engine::tape::no_yield;
use barycenter_model::names::Parts;
use barycenter_model::TensorSource;
use std::path::PathBuf;
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
    /// Number format in which the weights are held.
    #[arg(long, default_value = "keep")]
    weights: WeightFormat,
    /// In which numbers activations meet frozen int8 and int4 weights in the forward pass; int8 is faster, on the CPU.
    #[arg(long, default_value = "f32")]
    activations: ActivationFormat,
}

/// Prints the base model's answer and, with an adapter, the tuned one's.
pub fn run(options: &Options) -> Result<ExitCode> {
    pollster::block_on(async {
        let device = create_backend(options.device.into()).await?;
        options.activations.set(&device)?;
        let opened = Model::open(&options.model)?;
        let (config, tokenizer) = (&opened.config, &opened.tokenizer);
        let is_seq2seq = config.encoder.is_some();
        if !is_seq2seq {
            Backbone::check_decoder(config)?;
        }
        let mut weights = opened.weights(options.weights)?;
        let model = Backbone::load(&device, config, &mut weights, &Parts::all(config))?;
        if options.weights != WeightFormat::Keep {
            eprintln!("{}", describe_weights(&device, 0, options.weights));
        }
        // An encoder reads what it was trained on: the text as it is, with the tokens that the tokenizer puts around it.
        let prompts = [if is_seq2seq { tokenizer.encode(options.prompt.trim(), true)? } else { tokenizer.encode_prompt(&options.prompt)? }];
        let limits = GenerateOptions { max_new_tokens: options.max_new_tokens, stop: config.eos.clone() };
        let base = answer(&model, None, None, &prompts, &limits).await?;
        let text = tokenizer.decode_response(&base[0])?;
        let Some(folder) = &options.adapter else {
            println!("{text}");
            return Ok(ExitCode::SUCCESS);
        };
        let (adapter, mut tensors) = Adapter::open(folder)?;
        let mut find = |name: &str| tensors.load(name).ok();
        // A side network stands beside the model; other adapters are set into a model of their own.
        let tuned_model = match &adapter {
            Adapter::Parallel(..) => model,
            _ => {
                drop(model);
                adapter.whole_model(&device, config, &mut weights, &mut find)?
            }
        };
        let (side, chains) = match is_seq2seq {
            true => (None, adapter.chains(&tuned_model, &mut find)?),
            false => (adapter.side(&device, config, &mut find)?, None),
        };
        let tuned = answer(&tuned_model, side.as_ref(), chains.as_ref(), &prompts, &limits).await?;
        println!("base   {text}\ntuned  {}", tokenizer.decode_response(&tuned[0])?);
        Ok(ExitCode::SUCCESS)
    })
}

/// Answers by a decoder, or by an encoder-decoder model.
async fn answer(model: &Backbone, side: Option<&Side>, chains: Option<&Chains>, prompts: &[Vec<u32>], limits: &GenerateOptions) -> Result<Vec<Vec<u32>>> {
    Ok(match model.config.encoder {
        Some(_) => generate_targets(model, chains, prompts, limits, &no_yield()).await?,
        None => generate(model, side, prompts, limits, &no_yield()).await?,
    })
}
