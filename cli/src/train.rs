//! `barycenter train`: fill epoch and cached epochs on this one computer, with the swarm's sample order and schedule.

use anyhow::{Context, Result, ensure};
use barycenter_core::order::SampleOrder;
use barycenter_core::schedule;
use barycenter_engine::generate::{GenerateOptions, generate};
use barycenter_engine::backbone::Backbone;
use barycenter_engine::optim::AdamWConfig;
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::side::{Side, SideConfig, SideLayout, flat_from_named};
use barycenter_engine::stage::{ForwardPass, StageRuntime};
use barycenter_engine::tape::no_yield;
use barycenter_engine::create_backend;
use barycenter_model::dataset::{DataFormat, Row, TooLong, exact_match, read_rows, split_held_out, tokenise};
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig, RawTensor, TextTokenizer, write_safetensors};
use barycenter_protocol::SampleId;
use barycenter_protocol::control::{RunSpec, SampleSize};
use barycenter_server::Recommendation;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

/// Cache entries of a sample: one per tap.
type Entries = Vec<Vec<u8>>;

/// Options of `barycenter train`.
#[derive(clap::Args)]
pub struct Options {
    /// Model folder (config.json, model.safetensors, tokenizer.json; demo.json may recommend hyper-parameters).
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Training rows: .jsonl, .csv, .tsv or .txt.
    #[arg(long)]
    data: PathBuf,
    /// Held-out rows (default: every tenth row, by seed).
    #[arg(long)]
    held_out: Option<PathBuf>,
    /// Folder for the adapter.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Which back end computes.
    #[arg(long, default_value = "auto")]
    pub(crate) device: crate::Device,
    /// Epochs, the fill epoch included.
    #[arg(long)]
    epochs: Option<u32>,
    /// Reduction k.
    #[arg(long)]
    reduction: Option<u32>,
    /// Mini-batch.
    #[arg(long)]
    batch: Option<u32>,
    /// Peak learning rate.
    #[arg(long)]
    pub(crate) learning_rate: Option<f64>,
    /// Warm-up steps.
    #[arg(long)]
    warmup_steps: Option<u32>,
    /// Seed of order and initialisation.
    #[arg(long)]
    seed: Option<u64>,
    /// Held-out prompts answered before and after.
    #[arg(long, default_value_t = 100)]
    pub(crate) exact_match_rows: usize,
    /// Write losses, times and results as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Rows and their tokens: training first.
pub(crate) struct Data {
    rows: Vec<Row>,
    pub(crate) samples: Vec<Sequence>,
    train: usize,
}

/// Trains and reports.
pub fn run(options: &Options) -> Result<ExitCode> {
    pollster::block_on(async {
        let device = create_backend(options.device.into()).await?;
        println!("{}: {}", device.info().description, device.info().reason);
        let config = ModelConfig::from_folder(&options.model)?;
        let tokenizer = TextTokenizer::from_folder(&options.model, &config)?;
        let data = read(options, &tokenizer, config.max_positions)?;
        let spec = spec(options, &config, &data)?;
        let mut weights = FolderTensors::open(&options.model)?;
        let start = Instant::now();
        let mut runtime = StageRuntime::new(&device, config.clone(), 0..config.layers, no_yield(), Rc::new(move || start.elapsed().as_secs_f64()));
        device.reset_peak();
        runtime.load_backbone(&mut weights, &Parts::all(&config))?;
        let side_config = SideConfig::new(spec.reduction as usize, config.layers);
        let optimiser = AdamWConfig { weight_decay: spec.weight_decay as f32, ..AdamWConfig::default() };
        runtime.start_side(&side_config, 0..config.layers, optimiser, spec.seed)?;

        let order = SampleOrder::of(&spec);
        let total = data.samples.len();
        let mut cache: Vec<Entries> = vec![Vec::new(); total];
        let (mut losses, mut epochs, mut held_out) = (Vec::new(), Vec::new(), Vec::new());
        let mut optimiser_step = 0;
        let mut fill_peak = 0;
        println!("epoch  phase   seconds    loss  held-out");
        for epoch in 0..spec.epochs {
            let began = Instant::now();
            let epoch_order = order.epoch(epoch);
            let (mut epoch_loss, mut epoch_labels, mut backbone_seconds) = (0.0, 0u64, 0.0);
            for step in 0..epoch_order.steps() {
                let ids: Vec<SampleId> = epoch_order.mini_batch(step).iter().map(|slotted| slotted.sample).collect();
                let batch = MicroBatch::pack(ids.iter().map(|id| &data.samples[id.0 as usize]));
                let labels = batch.classes.len();
                let factor = 1.0 / labels as f32;
                let loss_sum = if epoch == 0 {
                    let output = runtime.forward(0, ForwardPass { batch: &batch, input: None, forward_only: false, cache: true, loss_factor: factor }).await?;
                    runtime.backward(0, None).await?;
                    backbone_seconds += output.backbone_seconds;
                    for (id, entries) in ids.iter().zip(output.entries) {
                        cache[id.0 as usize] = entries;
                    }
                    output.loss_sum.context("one computer holds the last stage")?
                } else {
                    let entries: Vec<Entries> = ids.iter().map(|id| cache[id.0 as usize].clone()).collect();
                    runtime.train_cached(&batch, &entries, factor, true).await?
                };
                let norm = runtime.gradient_squared_norm().await?.sqrt();
                runtime.apply(optimiser_step + 1, schedule::learning_rate(&spec, optimiser_step) as f32, schedule::clip_factor(&spec, norm) as f32)?;
                optimiser_step += 1;
                losses.push(loss_sum / labels as f64);
                epoch_loss += loss_sum;
                epoch_labels += labels as u64;
            }
            let seconds = began.elapsed().as_secs_f64();
            if epoch == 0 {
                for id in data.train..total {
                    let batch = MicroBatch::pack([&data.samples[id]]);
                    let output = runtime.forward(0, ForwardPass { batch: &batch, input: None, forward_only: true, cache: true, loss_factor: 0.0 }).await?;
                    cache[id] = output.entries.into_iter().next().unwrap_or_default();
                }
                fill_peak = device.memory().peak_bytes;
                runtime.load_backbone(&mut weights, &Parts::head_only())?;
                device.reset_peak();
            }
            let held_out_loss = evaluate(&mut runtime, &data, &cache, spec.batch as usize).await?;
            held_out.push(held_out_loss);
            let loss = epoch_loss / epoch_labels as f64;
            let phase = if epoch == 0 { "fill" } else { "train" };
            println!("{epoch:>5}  {phase:<6} {seconds:>8.2} {loss:>8.4} {held_out_loss:>8.4}");
            epochs.push(json!({ "epoch": epoch, "phase": phase, "seconds": seconds, "loss": loss, "held_out_loss": held_out_loss, "backbone_seconds": backbone_seconds }));
        }
        let train_peak = device.memory().peak_bytes;
        let cache_bytes: usize = cache.iter().flatten().map(Vec::len).sum();
        println!("peak memory: {:.1} MB while filling, {:.1} MB while training from the cache; cache {:.1} MB", fill_peak as f64 / 1e6, train_peak as f64 / 1e6, cache_bytes as f64 / 1e6);

        let tensors: BTreeMap<String, RawTensor> = runtime.checkpoint().await?.into_iter().filter(|(name, _)| name.starts_with("side.")).collect();
        let layout = SideLayout::whole(&config, &side_config)?;
        let side = Side::new(&device, layout.clone(), &flat_from_named(&layout, |name| tensors.get(name).cloned())?)?;
        drop(runtime);
        let model = Backbone::load(&device, &config, &mut weights, &Parts::all(&config))?;
        let (before, example_base) = answers(&model, None, &data, &tokenizer, &config, options.exact_match_rows).await?;
        let (after, example_tuned) = answers(&model, Some(&side), &data, &tokenizer, &config, options.exact_match_rows).await?;
        println!("held-out exact match: before {:.1} %, after {:.1} %", 100.0 * before, 100.0 * after);
        if let Some(row) = data.rows.get(data.train) {
            println!("  asked   {}\n  wanted  {}\n  base    {example_base}\n  tuned   {example_tuned}", row.prompt, row.response);
        }
        if let Some(folder) = &options.out {
            save(folder, &tensors, &side_config, options)?;
            println!("adapter written to {}", folder.display());
        }
        if let Some(path) = &options.json {
            let report = json!({ "losses": losses, "held_out": held_out, "epochs": epochs, "cache_bytes": cache_bytes, "fill_peak_memory_bytes": fill_peak, "train_peak_memory_bytes": train_peak,
                "eval": { "before": before, "after": after }, "spec": { "batch": spec.batch, "epochs": spec.epochs, "reduction": spec.reduction, "learning_rate": spec.learning_rate, "seed": spec.seed } });
            std::fs::write(path, serde_json::to_string_pretty(&report)?).with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(crate) fn read(options: &Options, tokenizer: &TextTokenizer, context: usize) -> Result<Data> {
    let load = |path: &Path| -> Result<Vec<Row>> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read: give a .jsonl, .csv, .tsv or .txt file that exists", path.display()))?;
        let format = DataFormat::from_name(&name)?;
        Ok(read_rows(&name, &bytes, format)?)
    };
    let all = load(&options.data)?;
    let (train, held_out) = match &options.held_out {
        Some(path) => (all, load(path)?),
        None => {
            let (train, held_out) = split_held_out(&all, 0.1, options.seed.unwrap_or(1));
            let pick = |indices: &[usize]| indices.iter().map(|&i| all[i].clone()).collect::<Vec<_>>();
            (pick(&train), pick(&held_out))
        }
    };
    let mut data = Data { rows: Vec::new(), samples: Vec::new(), train: 0 };
    for (part, rows) in [train, held_out].into_iter().enumerate() {
        if rows.is_empty() {
            continue;
        }
        let tokenised = tokenise(&options.data.display().to_string(), &rows, tokenizer, context, TooLong::LeaveOut)?;
        data.samples.extend(tokenised.samples.into_iter().map(|s| Sequence { ids: s.ids, labels: s.labels }));
        data.rows.extend(tokenised.rows.iter().map(|&index| rows[index].clone()));
        if part == 0 {
            data.train = data.samples.len();
        }
    }
    ensure!(data.train > 0, "{} has no training rows", options.data.display());
    Ok(data)
}

pub(crate) fn spec(options: &Options, config: &ModelConfig, data: &Data) -> Result<RunSpec> {
    let path = options.model.join("demo.json");
    let recommended: Recommendation = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", path.display()))?,
        Err(_) => Recommendation::default(),
    };
    for (value, name) in [(options.batch, "--batch"), (options.epochs, "--epochs"), (options.reduction, "--reduction")] {
        ensure!(value != Some(0), "{name} is 0: give 1 or more, or leave it out");
    }
    ensure!(options.learning_rate.is_none_or(|rate| rate.is_finite() && rate > 0.0), "--learning-rate must be a number above 0");
    let batch = options.batch.or(recommended.batch).unwrap_or(16).clamp(1, data.train as u32);
    let epochs = options.epochs.or(recommended.epochs).unwrap_or(3).max(1);
    let steps = (data.train as u32).div_ceil(batch) * epochs;
    Ok(RunSpec {
        model: "local".into(),
        model_hash: String::new(),
        dataset: "local".into(),
        dataset_hash: String::new(),
        train_samples: data.train as u32,
        held_out_samples: (data.samples.len() - data.train) as u32,
        sample_sizes: data.samples.iter().map(|s| SampleSize { tokens: s.ids.len() as u32, labels: s.labels.len() as u32 }).collect(),
        layers: config.layers as u32,
        reduction: options.reduction.or(recommended.reduction).unwrap_or(8),
        batch,
        epochs,
        learning_rate: options.learning_rate.or(recommended.learning_rate).unwrap_or(1e-3),
        warmup_steps: options.warmup_steps.or(recommended.warmup_steps).unwrap_or(steps.div_ceil(10)),
        weight_decay: recommended.weight_decay.unwrap_or(0.01),
        clip_norm: recommended.clip_norm.unwrap_or(1.0),
        seed: options.seed.or(recommended.seed).unwrap_or(1),
        checkpoint_steps: 0,
    })
}

/// Mean held-out loss per labelled token, from the cache.
async fn evaluate(runtime: &mut StageRuntime, data: &Data, cache: &[Entries], batch: usize) -> Result<f64> {
    let (mut sum, mut labels) = (0.0, 0);
    let ids: Vec<usize> = (data.train..data.samples.len()).collect();
    for chunk in ids.chunks(batch) {
        let packed = MicroBatch::pack(chunk.iter().map(|&id| &data.samples[id]));
        let entries: Vec<Entries> = chunk.iter().map(|&id| cache[id].clone()).collect();
        sum += runtime.train_cached(&packed, &entries, 0.0, false).await?;
        labels += packed.classes.len();
    }
    Ok(sum / labels.max(1) as f64)
}

/// Share of held-out rows answered exactly, and the first answer.
pub(crate) async fn answers(model: &Backbone, side: Option<&Side>, data: &Data, tokenizer: &TextTokenizer, config: &ModelConfig, rows: usize) -> Result<(f64, String)> {
    let rows: Vec<&Row> = data.rows[data.train..].iter().take(rows).collect();
    let prompts = rows.iter().map(|row| tokenizer.encode_prompt(&row.prompt)).collect::<Result<Vec<_>, _>>()?;
    let limits = GenerateOptions { max_new_tokens: 96, stop: config.eos.clone() };
    let given = generate(model, side, &prompts, &limits, &no_yield()).await?;
    let texts = given.iter().map(|ids| tokenizer.decode_response(ids)).collect::<Result<Vec<_>, _>>()?;
    let right = texts.iter().zip(&rows).filter(|(text, row)| exact_match(text, &row.response)).count();
    Ok((right as f64 / rows.len().max(1) as f64, texts.into_iter().next().unwrap_or_default()))
}

fn save(folder: &Path, tensors: &BTreeMap<String, RawTensor>, side: &SideConfig, options: &Options) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let bytes = write_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &BTreeMap::new());
    std::fs::write(folder.join("adapter_model.safetensors"), bytes)?;
    let config = json!({ "method": "parallel_adapter", "version": 1, "reduction": side.reduction, "taps": side.taps, "gate_temperature": side.temperature, "base_model": options.model.display().to_string() });
    std::fs::write(folder.join("adapter_config.json"), serde_json::to_string_pretty(&config)?)?;
    Ok(())
}
