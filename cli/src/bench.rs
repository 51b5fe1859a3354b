//! `barycenter bench`: what the figures in docs/BENCHMARKS.md are measured against.

use crate::model::{Model, refuse_packed};
use crate::train::{self, Data};
use anyhow::Result;
use barycenter_core::order::SampleOrder;
use barycenter_engine::create_backend;
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::MicroBatch;
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::{FullTrainer, FullTraining};
use std::process::ExitCode;
use std::time::Instant;

/// Peak learning rate of full fine-tuning unless one is given; a model's own recommendation is for the side network.
const FULL_LEARNING_RATE: f64 = 5e-4;

/// What to measure.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Full fine-tuning of the same model on the same mini-batches: seconds per epoch, peak memory, exact match.
    Full(train::Options),
}

/// Measures and prints.
pub fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Full(options) => pollster::block_on(full(options)),
    }
}

async fn full(options: &train::Options) -> Result<ExitCode> {
    let device = create_backend(options.device.into()).await?;
    println!("{}: {}", device.info().description, device.info().reason);
    refuse_packed(options.weights)?;
    let model = Model::open(&options.model)?;
    let (config, tokenizer) = (&model.config, &model.tokenizer);
    let data: Data = train::read(options, tokenizer, config.max_positions)?;
    let spec = train::spec(options, config, &data)?;
    let order = SampleOrder::of(&spec);
    let training = FullTraining {
        schedule: LinearSchedule { warmup_steps: spec.warmup_steps, total_steps: spec.train_samples.div_ceil(spec.batch) * spec.epochs, peak_lr: options.learning_rate.unwrap_or(FULL_LEARNING_RATE) as f32 },
        optimiser: AdamWConfig { weight_decay: spec.weight_decay as f32, ..AdamWConfig::default() },
        max_norm: spec.clip_norm as f32,
    };
    device.reset_peak();
    let mut trainer = FullTrainer::load(&device, config, &mut model.weights(options.weights)?, training)?;
    println!("epoch  method  seconds    loss");
    for epoch in 0..spec.epochs {
        let began = Instant::now();
        let steps = order.epoch(epoch);
        let (mut loss, mut labels) = (0.0, 0);
        for step in 0..steps.steps() {
            let batch = MicroBatch::pack(steps.mini_batch(step).iter().map(|slotted| &data.samples[slotted.sample.0 as usize]));
            let count = batch.classes.len();
            loss += f64::from(trainer.step(&[batch], &no_yield()).await?.loss) * count as f64;
            labels += count;
        }
        println!("{epoch:>5}  full   {:>8.2} {:>8.4}", began.elapsed().as_secs_f64(), loss / labels as f64);
    }
    println!("peak memory: {:.1} MB", device.memory().peak_bytes as f64 / 1e6);
    let (right, _) = train::answers(&trainer.model, None, &data, tokenizer, config, options.exact_match_rows).await?;
    println!("held-out exact match: after {:.1} %", 100.0 * right);
    Ok(ExitCode::SUCCESS)
}
