//! Answers of encoder-decoder models: token for token those of `transformers` (tests/golden/generate), and with anything
//! trained in or beside the model those of forward passes over the whole text.

#![allow(clippy::unwrap_used)]

mod support;

use barycenter_engine::backbone::Backbone;
use barycenter_engine::bottleneck::{BottleneckConfig, Bottlenecks};
use barycenter_engine::chains::{Chains, ChainsConfig};
use barycenter_engine::generate::{GenerateOptions, generate, generate_from};
use barycenter_engine::lora::{Lora, LoraConfig, Patterns, PeftConfig, lora_start};
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::parallel::ParallelTrainer;
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::FullTraining;
use barycenter_engine::trainer::{self, Trainer};
use barycenter_engine::tune::{Inserts, Tuner};
use barycenter_engine::{CpuBackend, Device, Sample};
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig, RawTensor, TensorSource};
use pollster::block_on;
use std::rc::Rc;
use support::golden::folder;

const CASES: [&str; 6] =
    ["generate/t5", "generate/t5-v1.1", "generate/bart", "generate/t5-4-heads", "generate/t5-v1.1-3-layers", "generate/bart-forced"];

fn device() -> Device {
    Rc::new(CpuBackend::default())
}

fn training() -> FullTraining {
    FullTraining { schedule: LinearSchedule { warmup_steps: 1, total_steps: 20, peak_lr: 1e-2 }, optimiser: AdamWConfig::default(), max_norm: 1.0 }
}

fn load(device: &Device, case: &str) -> (ModelConfig, FolderTensors, Backbone) {
    let config = ModelConfig::from_folder(&folder(case)).unwrap();
    let mut weights = FolderTensors::open(&folder(case)).unwrap();
    let model = Backbone::load(device, &config, &mut weights, &Parts::all(&config)).unwrap();
    (config, weights, model)
}

/// One `runs` entry of a generate.json.
#[derive(serde::Deserialize)]
struct Run {
    max_new_tokens: usize,
    adapter: bool,
    /// First and last token, in place of what the folder says.
    forced: Option<[Option<u32>; 2]>,
    prompts: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
}

fn runs(case: &str) -> Vec<Run> {
    let text = std::fs::read_to_string(folder(case).join("generate.json")).unwrap();
    serde_json::from_value(serde_json::from_str::<serde_json::Value>(&text).unwrap()["runs"].take()).unwrap()
}

/// Asserts the answers of a golden folder; gives how many there were, and how many ended before their limit.
fn holds(device: &Device, case: &str) -> (usize, usize) {
    let (config, _, mut model) = load(device, case);
    let (mut prompts, mut ended) = (0, 0);
    for run in runs(case) {
        if let Some(forced) = run.forced {
            [model.config.forced_first, model.config.forced_last] = forced;
        }
        if run.adapter {
            let place = folder(case).join("adapter");
            let lora = PeftConfig::read(&std::fs::read_to_string(place.join("adapter_config.json")).unwrap()).unwrap();
            let mut tensors = FolderTensors::open_file(&place.join("adapter_model.safetensors")).unwrap();
            Lora::new(device, &config, &lora, |name| tensors.load(name).ok()).unwrap().attach(&mut model);
        }
        let options = GenerateOptions { max_new_tokens: run.max_new_tokens, stop: config.eos.clone() };
        let got = block_on(generate_from(&model, None, &run.prompts, &options, &no_yield())).unwrap();
        assert_eq!(got.len(), run.tokens.len());
        for ((prompt, want), got) in run.prompts.iter().zip(&run.tokens).zip(got) {
            let end = want.iter().position(|id| config.eos.contains(id));
            assert_eq!(got, want[..end.unwrap_or(want.len())], "{case}, adapter: {}, {prompt:?}", run.adapter);
            prompts += 1;
            ended += usize::from(end.is_some_and(|end| end + 1 < run.max_new_tokens));
        }
    }
    (prompts, ended)
}

#[test]
fn answers_are_those_of_transformers() {
    for case in CASES {
        let (prompts, ended) = holds(&device(), case);
        assert!(prompts >= 15 && ended >= 4, "{case}: {prompts} prompts, {ended} of them ended early");
    }
}

#[test]
fn answers_are_those_of_transformers_on_webgpu() {
    let Some(gpu) = support::gpu() else { return };
    let device: Device = Rc::new(gpu);
    for case in ["generate/t5", "generate/bart", "generate/t5-v1.1-3-layers"] {
        holds(&device, case);
    }
}

#[test]
fn forced_tokens_come_from_the_generation_config() {
    let config = ModelConfig::from_folder(&folder("generate/bart")).unwrap();
    assert_eq!((config.forced_first, config.forced_last), (Some(0), Some(2)));
    let free = ModelConfig::from_folder(&folder("bart")).unwrap();
    assert_eq!((free.forced_first, free.forced_last), (None, None));
    let said = config.clone().with_generation_config("{").unwrap_err().to_string();
    assert!(said.contains("generation_config.json is not valid JSON"), "{said}");
    assert_eq!(config.with_generation_config("{}").unwrap().forced_last, None);
}

/// The likeliest tokens behind `source`, each by a forward pass over all that there is.
fn whole_passes(trainer: &dyn Trainer, start: u32, source: &[u32], options: &GenerateOptions) -> Vec<u32> {
    let mut ids = vec![start];
    while ids.len() <= options.max_new_tokens {
        let labels = vec![(ids.len() as u32 - 1, 0)];
        let sample = Sample { source: Some(source.to_vec()), ..Sequence { ids: ids.clone(), labels }.into() };
        let (_, rows) = block_on(trainer::answers(trainer, &MicroBatch::of([&sample]), None, &no_yield())).unwrap();
        let best = (0..rows[0].len()).max_by(|&a, &b| rows[0][a].total_cmp(&rows[0][b])).unwrap() as u32;
        if options.stop.contains(&best) {
            break;
        }
        ids.push(best);
    }
    ids.split_off(1)
}

fn sources() -> Vec<Vec<u32>> {
    [9u32, 1, 4, 12].map(|len| (0..len).map(|t| 3 + (len * 17 + t * t * 5 + t * len) % 37).collect()).into()
}

/// Eight steps on a mini-batch.
fn train(trainer: &mut dyn Trainer, batch: &MicroBatch) {
    for _ in 0..8 {
        block_on(trainer::step(trainer, batch, None, &no_yield())).unwrap();
    }
}

#[test]
fn two_chains_beside_the_model_answer_as_whole_passes_do() {
    let device = device();
    let options = GenerateOptions { max_new_tokens: 9, stop: vec![1] };
    for case in ["tasks/t5-seq2seq", "tasks/bart-seq2seq", "tasks/t5-shared-bias"] {
        let (config, mut weights, model) = load(&device, case);
        let mut trained = FolderTensors::open_file(&folder(case).join("pac.safetensors")).unwrap();
        // The end of twelve steps, enlarged so that the answers are others than the model's.
        let find = |name: &str| {
            let tensor = trained.load(&format!("final.{name}")).ok()?;
            let factor = if name.ends_with(".up.weight") { 30.0 } else { 1.0 };
            Some(RawTensor::from_f32(&tensor.shape, &tensor.to_f32().iter().map(|value| value * factor).collect::<Vec<_>>()))
        };
        let chains = Chains::load(&device, &config, &ChainsConfig::new(4), find).unwrap();
        let trainer = ParallelTrainer::load(&device, &config, &mut weights, chains, None, training()).unwrap();
        let base = block_on(generate_from(&model, None, &sources(), &options, &no_yield())).unwrap();
        let tuned = block_on(generate_from(&trainer.model, Some(&trainer.chains), &sources(), &options, &no_yield())).unwrap();
        assert_ne!(base, tuned, "{case}");
        for (source, got) in sources().iter().zip(tuned) {
            assert_eq!(got, whole_passes(&trainer, config.decoder_start.unwrap(), source, &options), "{case}: {source:?}");
        }
    }
}

#[test]
fn bottleneck_adapters_in_the_model_answer_as_whole_passes_do() {
    let device = device();
    let options = GenerateOptions { max_new_tokens: 9, stop: vec![1] };
    for case in ["generate/t5", "generate/t5-v1.1"] {
        let (config, mut weights, model) = load(&device, case);
        let adapters = BottleneckConfig { reduction: 4, layers: 0..2 };
        let adapters = Bottlenecks::fresh(&device, &config, &adapters, 1).unwrap();
        let mut values = block_on(adapters.parameters.read_values()).unwrap();
        values.iter_mut().enumerate().for_each(|(i, value)| *value += (i as f32).sin() * 0.2);
        adapters.parameters.write_values(&values);
        let tuner = Tuner::load(&device, &config, &mut weights, Inserts::Bottlenecks(adapters), training()).unwrap();
        let base = block_on(generate_from(&model, None, &sources(), &options, &no_yield())).unwrap();
        let tuned = block_on(generate_from(&tuner.model, None, &sources(), &options, &no_yield())).unwrap();
        assert_ne!(base, tuned, "{case}");
        for (source, got) in sources().iter().zip(tuned) {
            assert_eq!(got, whole_passes(&tuner, 0, source, &options), "{case}: {source:?}");
        }
    }
}

#[test]
fn lora_and_chains_that_were_trained_answer_as_whole_passes_do() {
    let device = device();
    let options = GenerateOptions { max_new_tokens: 9, stop: vec![1, 2] };
    for case in ["generate/t5-4-heads", "generate/t5-v1.1-3-layers", "generate/bart-forced"] {
        let (config, mut weights, model) = load(&device, case);
        // Letters in the same order, where the model learnt to turn them round.
        let sample = |source: Vec<u32>| {
            let learnt = source.iter().chain(&config.eos).enumerate().map(|(t, &class)| (t as u32, class)).collect();
            let ids = config.decoder_start.into_iter().chain(source.iter().copied()).collect();
            Sample { source: Some(source), ..Sequence { ids, labels: learnt }.into() }
        };
        let batch = MicroBatch::of(&sources().into_iter().map(sample).collect::<Vec<_>>());
        let base = block_on(generate_from(&model, None, &sources(), &options, &no_yield())).unwrap();
        let check = |tuned: Vec<Vec<u32>>, trainer: &dyn Trainer| {
            assert_ne!(base, tuned, "{case}: it learnt something");
            for (source, got) in sources().iter().zip(tuned) {
                assert_eq!(got, whole_passes(trainer, config.decoder_start.unwrap(), source, &options), "{case}: {source:?}");
            }
        };

        let chains = Chains::fresh(&device, &config, &ChainsConfig::new(if case.contains("v1.1") { 8 } else { 2 }), &mut weights, 3).unwrap();
        let fresh = block_on(generate_from(&model, Some(&chains), &sources(), &options, &no_yield())).unwrap();
        assert_eq!(base, fresh, "{case}: fresh chains change nothing");
        let mut trainer = ParallelTrainer::load(&device, &config, &mut weights, chains, None, training()).unwrap();
        train(&mut trainer, &batch);
        check(block_on(generate_from(&trainer.model, Some(&trainer.chains), &sources(), &options, &no_yield())).unwrap(), &trainer);

        let lora = LoraConfig { rank: 4, alpha: 8.0, rank_stabilised: false, targets: vec!["all-linear".into()], layers: None, patterns: Patterns::default() };
        let start = lora_start(&config, &lora, 5).unwrap();
        let lora = Lora::new(&device, &config, &lora, |name| start.get(name).cloned()).unwrap();
        let mut tuner = Tuner::load(&device, &config, &mut weights, Inserts::Lora(lora), training()).unwrap();
        train(&mut tuner, &batch);
        check(block_on(generate_from(&tuner.model, None, &sources(), &options, &no_yield())).unwrap(), &tuner);
    }
}

#[test]
fn bad_sources_are_refused_in_one_sentence() {
    let device = device();
    let (_, _, model) = load(&device, "generate/bart");
    let options = GenerateOptions { max_new_tokens: 2, stop: Vec::new() };
    let said = |source: Vec<u32>| block_on(generate_from(&model, None, &[vec![3], source], &options, &no_yield())).unwrap_err().to_string();
    assert!(said(vec![]).contains("no tokens"));
    assert!(said(vec![40]).contains("outside the vocabulary"));
    assert!(said(vec![3; 33]).contains("exceeds the model's 32 positions"));
    assert!(block_on(generate(&model, None, &[vec![3]], &options, &no_yield())).is_err());
    let (_, _, decoder) = load(&device, "llama-gqa");
    assert!(block_on(generate_from(&decoder, None, &[vec![3]], &options, &no_yield())).unwrap_err().to_string().contains("no encoder"));
    // The context ends the answer, not the process.
    let long = GenerateOptions { max_new_tokens: 40, stop: Vec::new() };
    let answers = block_on(generate_from(&model, None, &[vec![3, 4]], &long, &no_yield())).unwrap();
    assert_eq!(answers[0].len(), 32);
}
