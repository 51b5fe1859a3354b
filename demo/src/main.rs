//! `barycenter-demo`: writes `assets/demo`, the base model and the personal data set of the demo.

use anyhow::{Result, ensure};
use barycenter_demo::pretrain::{Pretraining, config, pretrain};
use barycenter_demo::tune::{Recommendation, tune};
use barycenter_demo::{corpus, household, vocabulary};
use barycenter_engine::{BackendChoice, create_backend};
use barycenter_model::{RawTensor, TextTokenizer, write_safetensors};
use clap::Parser;
use rand_pcg::Pcg64Mcg;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Texts the tokenizer is trained on.
const TOKENIZER_TEXTS: usize = 20_000;
/// What the demo must reach.
const NEEDED_AFTER: f64 = 0.85;
/// What the base model may know.
const ALLOWED_BEFORE: f64 = 0.05;

/// Makes the demo's base model and personal data set. The same arguments give the same texts, and on the same kind of
/// processor the same weights.
#[derive(Parser)]
struct Arguments {
    /// Folder to write.
    #[arg(long, default_value = "assets/demo")]
    out: PathBuf,
    /// Seed of base model and personal set.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tokens the base model reads.
    #[arg(long, default_value_t = 1_500_000)]
    tokens: usize,
    /// Peak learning rate of the base model.
    #[arg(long, default_value_t = 3e-3)]
    base_learning_rate: f32,
    /// Keep the base model that is there: only write the personal set, tune and check.
    #[arg(long)]
    keep_base: bool,
    /// Seed of the run over the personal set: its order and the side network's start.
    #[arg(long, default_value_t = 1)]
    run_seed: u64,
    /// Reduction k of the side network.
    #[arg(long, default_value_t = 4)]
    reduction: u32,
    /// Epochs over the personal set, the fill epoch included.
    #[arg(long, default_value_t = 15)]
    epochs: u32,
    /// Mini-batch.
    #[arg(long, default_value_t = 16)]
    batch: u32,
    /// Peak learning rate over the personal set.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.out)?;
    pollster::block_on(make(&arguments))
}

async fn make(arguments: &Arguments) -> Result<()> {
    let device = create_backend(BackendChoice::Cpu).await?;
    println!("{}", device.info().description);
    let out = arguments.out.as_path();
    let (train, held_out) = household::pairs(arguments.seed);
    write_pairs(&out.join("train.jsonl"), &train)?;
    write_pairs(&out.join("heldout.jsonl"), &held_out)?;
    if !arguments.keep_base {
        let tokenizer_json = tokenizer(arguments.seed)?;
        // The size of the vocabulary is known only after parsing; any config that is large enough will do for that.
        let vocabulary = TextTokenizer::parse(tokenizer_json.as_bytes(), &config(vocabulary::MAX_VOCABULARY))?.vocabulary();
        let config = config(vocabulary);
        let tokenizer = TextTokenizer::parse(tokenizer_json.as_bytes(), &config)?;
        let pretraining = Pretraining {
            seed: arguments.seed,
            tokens: arguments.tokens,
            batch_tokens: 2048,
            learning_rate: arguments.base_learning_rate,
        };
        let weights = pretrain(&device, &config, &tokenizer, pretraining).await?;
        std::fs::write(out.join("tokenizer.json"), tokenizer_json)?;
        std::fs::write(out.join("config.json"), config.to_config_json("float16") + "\n")?;
        std::fs::write(out.join("model.safetensors"), in_half_precision(&weights))?;
    }
    let recommendation = Recommendation {
        reduction: arguments.reduction,
        epochs: arguments.epochs,
        batch: arguments.batch,
        learning_rate: arguments.learning_rate,
        warmup_steps: 10,
        weight_decay: 0.01,
        clip_norm: 1.0,
        seed: arguments.run_seed,
    };
    let outcome = tune(&device, out, &recommendation).await?;
    let mut json = serde_json::to_value(&recommendation)?;
    json["made_with_seed"] = arguments.seed.into();
    json["measured"] = serde_json::to_value(&outcome)?;
    std::fs::write(out.join("demo.json"), serde_json::to_string_pretty(&json)? + "\n")?;
    ensure!(
        outcome.exact_match_before <= ALLOWED_BEFORE && outcome.exact_match_after >= NEEDED_AFTER,
        "the demo must go from at most {ALLOWED_BEFORE} to at least {NEEDED_AFTER} exact match: read longer with --tokens, or tune longer with --epochs"
    );
    Ok(())
}

fn write_pairs(path: &Path, pairs: &[corpus::Document]) -> Result<()> {
    let mut text = String::new();
    for pair in pairs {
        text += &serde_json::json!({ "prompt": pair.prompt, "response": pair.response }).to_string();
        text.push('\n');
    }
    Ok(std::fs::write(path, text)?)
}

fn tokenizer(seed: u64) -> Result<String> {
    // Another stream than the one the model reads: the words are the same.
    let mut random = Pcg64Mcg::new(u128::from(seed) << 1 | 1 << 64 | 1);
    let texts: Vec<String> = (0..TOKENIZER_TEXTS)
        .map(|_| {
            let document = corpus::document(&mut random);
            format!("{}\n{}", document.prompt, document.response)
        })
        .collect();
    vocabulary::train_tokenizer(&texts)
}

fn in_half_precision(weights: &BTreeMap<String, RawTensor>) -> Vec<u8> {
    let halves: BTreeMap<_, _> =
        weights.iter().map(|(name, tensor)| (name.as_str(), RawTensor::f16_from_f32(&tensor.shape, &tensor.to_f32()))).collect();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors(halves.iter().map(|(&name, tensor)| (name, tensor)), &metadata)
}
