//! Fine-tunes the base model on the personal set on this one computer, to check that the demo can be learnt.

use anyhow::{Result, anyhow};
use barycenter_core::order::SampleOrder;
use barycenter_engine::Device;
use barycenter_engine::generate::{GenerateOptions, generate};
use barycenter_engine::backbone::Backbone;
use barycenter_engine::optim::{AdamWConfig, LinearSchedule, clip_factor};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::side::{Side, SideConfig, SideLayout, flat_from_named};
use barycenter_engine::stage::{ForwardPass, StageRuntime};
use barycenter_engine::tape::no_yield;
use barycenter_model::dataset::{DataFormat, Row, TooLong, exact_match, read_rows, tokenise};
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig, TextTokenizer};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// What `demo.json` recommends for a run over the personal set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// Reduction k.
    pub reduction: u32,
    /// Epochs, the fill epoch included.
    pub epochs: u32,
    /// Mini-batch, samples.
    pub batch: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Warm-up steps; then linear decay.
    pub warmup_steps: u32,
    /// AdamW weight decay.
    pub weight_decay: f64,
    /// Gradient norm limit.
    pub clip_norm: f64,
    /// Seed of order and initialisation.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Held-out exact match of the base model, 0 … 1.
    pub exact_match_before: f64,
    /// Of the tuned model.
    pub exact_match_after: f64,
    /// Parameters of the side network.
    pub side_parameters: usize,
    /// Mean training loss of each epoch.
    pub losses: Vec<f64>,
    /// Bytes of the activation cache.
    pub cache_bytes: u64,
}

/// Rows of the personal set with their samples.
struct Part {
    rows: Vec<Row>,
    sequences: Vec<Sequence>,
}

impl Part {
    fn read(folder: &Path, name: &str, tokenizer: &TextTokenizer, context: usize) -> Result<Self> {
        let rows = read_rows(name, &std::fs::read(folder.join(name))?, DataFormat::Jsonl)?;
        let samples = tokenise(name, &rows, tokenizer, context, TooLong::Refuse)?.samples;
        let sequences = samples.into_iter().map(|sample| Sequence { ids: sample.ids, labels: sample.labels }).collect();
        Ok(Self { rows, sequences })
    }
}

/// Tunes the model of the folder on its `train.jsonl` and answers `heldout.jsonl` before and after.
pub async fn tune(device: &Device, folder: &Path, recommendation: &Recommendation) -> Result<Outcome> {
    let config = ModelConfig::from_folder(folder)?;
    let tokenizer = TextTokenizer::from_folder(folder, &config)?;
    let mut weights = FolderTensors::open(folder)?;
    let train = Part::read(folder, "train.jsonl", &tokenizer, config.max_positions)?;
    let held_out = Part::read(folder, "heldout.jsonl", &tokenizer, config.max_positions)?;
    let model = Backbone::load(device, &config, &mut weights, &Parts::all(&config))?;
    let exact_match_before = answer(&model, None, &tokenizer, &held_out, false).await?;
    println!("before: {:.0} % of the held-out commands", 100.0 * exact_match_before);

    let side_config = SideConfig::new(recommendation.reduction as usize, config.layers);
    let optimiser = AdamWConfig { weight_decay: recommendation.weight_decay as f32, ..AdamWConfig::default() };
    let started = Instant::now();
    let clock = Rc::new(move || started.elapsed().as_secs_f64());
    let mut stage = StageRuntime::new(device, config.clone(), 0..config.layers, no_yield(), clock);
    stage.load_backbone(&mut weights, &Parts::all(&config))?;
    stage.start_side(&side_config, 0..config.layers, optimiser, recommendation.seed)?;
    let side_parameters = SideLayout::whole(&config, &side_config)?.flat_len();

    let order = SampleOrder::new(train.sequences.len() as u32, recommendation.batch, recommendation.seed);
    let steps_per_epoch = order.epoch(0).steps();
    let schedule = LinearSchedule {
        warmup_steps: recommendation.warmup_steps,
        total_steps: steps_per_epoch * recommendation.epochs,
        peak_lr: recommendation.learning_rate as f32,
    };
    let mut cache: Vec<Vec<Vec<u8>>> = vec![Vec::new(); train.sequences.len()];
    let (mut step, mut losses) = (0, Vec::new());
    for epoch in 0..recommendation.epochs {
        let began = Instant::now();
        let (mut loss, mut labelled) = (0.0, 0);
        for at in 0..steps_per_epoch {
            let samples: Vec<usize> = order.epoch(epoch).mini_batch(at).iter().map(|slotted| slotted.sample.0 as usize).collect();
            let batch = MicroBatch::pack(samples.iter().map(|&sample| &train.sequences[sample]));
            let factor = 1.0 / batch.classes.len() as f32;
            loss += if epoch == 0 {
                let pass = ForwardPass { batch: &batch, input: None, forward_only: false, cache: true, loss_factor: factor };
                let output = stage.forward(0, pass).await?;
                stage.backward(0, None).await?;
                for (&sample, entries) in samples.iter().zip(output.entries) {
                    cache[sample] = entries;
                }
                output.loss_sum.ok_or_else(|| anyhow!("the whole model gives a loss"))?
            } else {
                let entries: Vec<_> = samples.iter().map(|&sample| &cache[sample]).collect();
                stage.train_cached(&batch, &entries, factor, true).await?
            };
            labelled += batch.classes.len();
            step += 1;
            let norm = stage.gradient_squared_norm().await?.sqrt() as f32;
            stage.apply(step, schedule.lr(step), clip_factor(norm, recommendation.clip_norm as f32))?;
        }
        if epoch == 0 {
            stage.load_backbone(&mut weights, &Parts::head_only())?;
        }
        losses.push(loss / labelled as f64);
        println!("epoch {}: loss {:.4}, {:.2} s", epoch + 1, loss / labelled as f64, began.elapsed().as_secs_f64());
    }
    let layout = SideLayout::whole(&config, &side_config)?;
    let state = stage.checkpoint().await?;
    let side = Side::new(device, layout.clone(), &flat_from_named(&layout, |name| state.get(name).cloned())?)?;
    let exact_match_after = answer(&model, Some(&side), &tokenizer, &held_out, true).await?;
    println!("after: {:.0} % of the held-out commands", 100.0 * exact_match_after);
    let cache_bytes = cache.iter().flatten().map(|entry| entry.len() as u64).sum();
    Ok(Outcome { exact_match_before, exact_match_after, side_parameters, losses, cache_bytes })
}

/// Share of prompts answered exactly; with `show`, prints what was answered wrongly.
async fn answer(model: &Backbone, side: Option<&Side>, tokenizer: &TextTokenizer, part: &Part, show: bool) -> Result<f64> {
    let prompts = part.rows.iter().map(|row| tokenizer.encode_prompt(&row.prompt)).collect::<Result<Vec<_>, _>>()?;
    let options = GenerateOptions { max_new_tokens: 64, stop: tokenizer.eos().to_vec() };
    let answers = generate(model, side, &prompts, &options, &no_yield()).await?;
    let mut right = 0;
    for (index, (row, ids)) in part.rows.iter().zip(&answers).enumerate() {
        let text = tokenizer.decode_response(ids)?;
        let matches = exact_match(&text, &row.response);
        right += usize::from(matches);
        if (show && !matches) || index == 0 {
            println!("  {} {} → {text}", if matches { "✓" } else { "✗" }, row.prompt);
        }
    }
    Ok(right as f64 / part.rows.len() as f64)
}
