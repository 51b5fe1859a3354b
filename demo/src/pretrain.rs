//! Pre-trains the base model with the project's own engine.

use crate::corpus;
use anyhow::Result;
use barycenter_engine::Device;
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::{FullTrainer, FullTraining};
use barycenter_model::dataset::{Row, TooLong, tokenise};
use barycenter_model::{Family, ModelConfig, Positions, RawTensor, RopeConfig, RopeScaling, TextTokenizer, TokenSample};
use rand_pcg::Pcg64Mcg;
use std::collections::BTreeMap;
use std::time::Instant;

/// Longest text, tokens.
const CONTEXT: usize = 128;
/// Loss is averaged over so many steps for a line of progress.
const REPORT_STEPS: u32 = 50;

/// How the base model is made.
#[derive(Clone, Copy, Debug)]
pub struct Pretraining {
    /// Seed of weights and texts.
    pub seed: u64,
    /// Tokens to read.
    pub tokens: usize,
    /// Tokens of a mini-batch.
    pub batch_tokens: usize,
    /// Peak learning rate.
    pub learning_rate: f32,
}

/// The base model's shape: about 3 million parameters with the tokenizer's vocabulary.
pub fn config(vocabulary: usize) -> ModelConfig {
    let layers = 6;
    ModelConfig {
        width: 192,
        layers,
        heads: 6,
        kv_heads: 3,
        head_dim: 32,
        ffn_width: 512,
        // A multiple of 64 keeps rows of packed pairs and kernels' tiles whole.
        vocab: vocabulary.next_multiple_of(64),
        norm_eps: 1e-5,
        positions: Positions::Rotary { rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default }, local: None },
        tied_head: true,
        windows: vec![0; layers],
        max_positions: CONTEXT,
        eos: vec![0],
        ..ModelConfig::blank(Family::Llama)
    }
}

/// A document as a sample that is learnt throughout, prompt included.
fn sample(document: &corpus::Document, tokenizer: &TextTokenizer) -> Result<TokenSample> {
    let row = Row { prompt: document.prompt.clone(), response: document.response.clone(), line: 1 };
    let tokenised = tokenise("the corpus", &[row], tokenizer, CONTEXT, TooLong::Refuse)?;
    Ok(TokenSample::plain(tokenised.samples.into_iter().next().expect("one row gives one sample").ids))
}

/// Trains and returns the weights, in f32.
pub async fn pretrain(
    device: &Device,
    config: &ModelConfig,
    tokenizer: &TextTokenizer,
    pretraining: Pretraining,
) -> Result<BTreeMap<String, RawTensor>> {
    let total_steps = (pretraining.tokens / pretraining.batch_tokens).max(1) as u32;
    let training = FullTraining {
        schedule: LinearSchedule { warmup_steps: (total_steps / 10).min(60), total_steps, peak_lr: pretraining.learning_rate },
        optimiser: AdamWConfig { beta2: 0.98, weight_decay: 0.05, ..AdamWConfig::default() },
        max_norm: 1.0,
    };
    let mut trainer = FullTrainer::fresh(device, config, pretraining.seed, training)?;
    println!("base model: {} parameters, {total_steps} steps of {} tokens", trainer.parameters.flat_len(), pretraining.batch_tokens);
    let mut random = Pcg64Mcg::new(u128::from(pretraining.seed) << 1 | 1);
    let (start, mut tokens, mut loss) = (Instant::now(), 0, 0.0);
    let hook = no_yield();
    for _ in 0..total_steps {
        let mut sequences = Vec::new();
        let mut held = 0;
        while held < pretraining.batch_tokens {
            let TokenSample { ids, labels } = sample(&corpus::document(&mut random), tokenizer)?;
            held += ids.len();
            sequences.push(Sequence { ids, labels });
        }
        let report = trainer.step(&[MicroBatch::pack(&sequences)], &hook).await?;
        tokens += report.tokens;
        loss += report.loss;
        if report.step % REPORT_STEPS == 0 {
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "step {:4} of {total_steps}: loss {:.3}, {:.0} tokens a second, {seconds:.0} s",
                report.step,
                loss / REPORT_STEPS as f32,
                tokens as f64 / seconds
            );
            loss = 0.0;
        }
    }
    Ok(trainer.weights().await?)
}
