//! `barycenter generate`.

use crate::adapter::{Adapter, other_numbers};
use crate::backend::create_backend;
use crate::model::{ActivationFormat, Model, WeightFormat, describe_weights};
use anyhow::{Result, ensure};
use barycenter_engine::backbone::Backbone;
use barycenter_engine::chains::Chains;
use barycenter_engine::generate::{GenerateOptions, generate, generate_from};
use barycenter_engine::side::Side;
use barycenter_engine::tape::no_yield;
use barycenter_model::names::Parts;
use barycenter_model::{ModelConfig, TensorSource, TextTokenizer};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `barycenter generate`.
#[derive(clap::Args)]
pub struct Options {
    /// Model folder (config.json, model.safetensors, tokenizer.json), .gguf file, or name on the hub (org/name).
    #[arg(long)]
    model: PathBuf,
    /// Adapter folder (adapter_model.safetensors, adapter_config.json), as `train --out` writes it and the dashboard saves it.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What is asked; of an encoder-decoder model (T5, BART), what its encoder reads.
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
        if config.encoder.is_none() {
            Backbone::check_decoder(config)?;
        }
        let adapter = options.adapter.as_deref().map(Adapter::open).transpose()?;
        adapter.iter().try_for_each(|(adapter, _)| adapter.check_stacks(config))?;
        if let Some(folder) = &options.adapter
            && let Some(note) = other_numbers(folder, options.weights, options.activations)?
        {
            eprintln!("{note}");
        }
        let mut weights = opened.weights(options.weights)?;
        let model = Backbone::load(&device, config, &mut weights, &Parts::all(config))?;
        if options.weights != WeightFormat::Keep {
            eprintln!("{}", describe_weights(&device, 0, options.weights));
        }
        let prompts = [encode(config, tokenizer, &options.prompt)?];
        let (tokens, most) = (prompts[0].len(), config.encoder.as_deref().map_or(Some(config.max_positions), ModelConfig::position_limit));
        ensure!(tokens > 0, "the prompt is empty: write what is to be answered");
        ensure!(most.is_none_or(|most| tokens <= most), "the prompt has {tokens} tokens, more than the {} that the model reads: shorten it", most.unwrap_or_default());
        let limits = GenerateOptions { max_new_tokens: options.max_new_tokens, stop: config.eos.clone() };
        let base = answer(&model, Beside::Nothing, &prompts, &limits).await?;
        let text = tokenizer.decode_response(&base[0])?;
        let Some((adapter, mut tensors)) = adapter else {
            println!("{text}");
            return Ok(ExitCode::SUCCESS);
        };
        let mut find = |name: &str| tensors.load(name).ok();
        let side = adapter.side(&device, config, &mut find)?;
        let chains = adapter.chains(&device, &model, &mut find)?;
        // A side network stands beside the model; other adapters are set into a model of their own.
        let tuned_model = match &adapter {
            Adapter::Parallel(_) | Adapter::Chains(_) => model,
            _ => {
                drop(model);
                adapter.whole_model(&device, config, &mut weights, &mut find)?
            }
        };
        let beside = match (&side, &chains) {
            (Some(side), _) => Beside::Side(side),
            (None, Some(chains)) => Beside::Chains(chains),
            (None, None) => Beside::Nothing,
        };
        let tuned = answer(&tuned_model, beside, &prompts, &limits).await?;
        println!("base   {text}\ntuned  {}", tokenizer.decode_response(&tuned[0])?);
        Ok(ExitCode::SUCCESS)
    })
}

/// What stands beside a model when it answers.
#[derive(Clone, Copy)]
pub enum Beside<'a> {
    /// Nothing.
    Nothing,
    /// The side network of a model of one stack.
    Side(&'a Side),
    /// Those of an encoder-decoder model.
    Chains(&'a Chains),
}

/// The answers to prompts in tokens, by a decoder or, from its sources, by an encoder-decoder model.
pub async fn answer(model: &Backbone, beside: Beside<'_>, prompts: &[Vec<u32>], limits: &GenerateOptions) -> Result<Vec<Vec<u32>>> {
    let (side, chains) = match beside {
        Beside::Nothing => (None, None),
        Beside::Side(side) => (Some(side), None),
        Beside::Chains(chains) => (None, Some(chains)),
    };
    Ok(match model.config.encoder {
        None => generate(model, side, prompts, limits, &no_yield()).await?,
        Some(_) => generate_from(model, chains, prompts, limits, &no_yield()).await?,
    })
}

/// A prompt as the model's training saw it: with the line break behind it, or, for an encoder, the text with the tokens that the
/// tokenizer puts around it.
fn encode(config: &ModelConfig, tokenizer: &TextTokenizer, prompt: &str) -> Result<Vec<u32>> {
    Ok(match config.encoder {
        None => tokenizer.encode_prompt(prompt)?,
        Some(_) => tokenizer.encode(prompt.trim(), true)?,
    })
}
