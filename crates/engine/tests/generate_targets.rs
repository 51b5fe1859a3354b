//! Answers of encoder-decoder models: those of `transformers`, and, with what is trained beside the model, those that one
//! pass over a whole answer gives.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use barycenter_engine::backbone::Backbone;
use barycenter_engine::chains::{Chains, ChainsConfig};
use barycenter_engine::generate::{GenerateOptions, generate_targets};
use barycenter_engine::lora::{Lora, LoraConfig, Patterns, lora_start};
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::parallel::ParallelTrainer;
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::FullTraining;
use barycenter_engine::trainer::{self, Trainer};
use barycenter_engine::tune::{Inserts, Tuner};
use barycenter_engine::{CpuBackend, Device, Sample};
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig};
use pollster::block_on;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const CASES: [&str; 3] = ["t5", "t5-v1.1", "bart"];

#[derive(Deserialize)]
struct Golden {
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    max_new_tokens: usize,
    forced_bos: Option<u32>,
    forced_eos: Option<u32>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    source: Vec<u32>,
    tokens: Vec<u32>,
    ended: bool,
}

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/generate").join(case)
}

fn open(case: &str) -> (Device, ModelConfig, FolderTensors) {
    (Rc::new(CpuBackend::default()), ModelConfig::from_folder(&folder(case)).unwrap(), FolderTensors::open(&folder(case)).unwrap())
}

fn training() -> FullTraining {
    let schedule = LinearSchedule { warmup_steps: 1, total_steps: 20, peak_lr: 2e-2 };
    FullTraining { schedule, optimiser: AdamWConfig::default(), max_norm: 1.0 }
}

#[test]
fn answers_are_those_of_transformers() {
    let (mut answers, mut early) = (0, 0);
    for case in CASES {
        let (device, mut config, mut weights) = open(case);
        let golden: Golden = serde_json::from_slice(&std::fs::read(folder(case).join("generate.json")).unwrap()).unwrap();
        for run in golden.runs {
            (config.forced_bos, config.forced_eos) = (run.forced_bos, run.forced_eos);
            let model = Backbone::load(&device, &config, &mut weights, &Parts::all(&config)).unwrap();
            let sources: Vec<Vec<u32>> = run.rows.iter().map(|row| row.source.clone()).collect();
            let options = GenerateOptions { max_new_tokens: run.max_new_tokens, stop: config.eos.clone() };
            let got = block_on(generate_targets(&model, None, &sources, &options, &no_yield())).unwrap();
            for (row, got) in run.rows.iter().zip(got) {
                assert_eq!(got, row.tokens, "{case}: {:?}", row.source);
                answers += 1;
                early += usize::from(row.ended && got.len() < run.max_new_tokens - 1);
            }
        }
    }
    assert!(answers >= 48 && early >= 12, "{answers} answers, {early} of them with an end of their own");
}

/// Samples that turn letters another way than the model learnt: the same order.
fn samples(config: &ModelConfig) -> Vec<Sample> {
    let sample = |len: u32| {
        let source: Vec<u32> = (0..len).map(|t| 4 + (t * t * 7 + len * 5) % 30).collect();
        let learnt: Vec<u32> = source.iter().copied().chain(config.eos.first().copied()).collect();
        let ids = config.decoder_start.into_iter().chain(source.iter().copied()).collect();
        let labels = learnt.iter().enumerate().map(|(t, &class)| (t as u32, class)).collect();
        Sample { source: Some(source), ..Sequence { ids, labels }.into() }
    };
    [2, 5, 3, 7].map(sample).to_vec()
}

/// Eight steps on the samples.
fn train(trainer: &mut dyn Trainer, config: &ModelConfig) {
    for _ in 0..8 {
        block_on(trainer::step(trainer, &MicroBatch::of(&samples(config)), None, &no_yield())).unwrap();
    }
}

/// Holds answers to the likeliest token behind each of their tokens, in one pass over each answer.
fn check(case: &str, trainer: &dyn Trainer, config: &ModelConfig, sources: &[Vec<u32>], answers: &[Vec<u32>]) {
    for (source, answer) in sources.iter().zip(answers) {
        let ids: Vec<u32> = config.decoder_start.into_iter().chain(answer.iter().copied()).collect();
        let labels = (0..ids.len() as u32).map(|t| (t, 0)).collect();
        let whole = Sample { source: Some(source.clone()), ..Sequence { ids, labels }.into() };
        let (_, rows) = block_on(trainer::answers(trainer, &MicroBatch::of([&whole]), None, &no_yield())).unwrap();
        let likeliest = |row: &Vec<f32>| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32;
        let all: Vec<u32> = rows.iter().map(likeliest).collect();
        assert_eq!(all[..answer.len()], *answer, "{case}: {source:?}");
        assert!(answer.len() == 9 || config.eos.contains(&all[answer.len()]), "{case}: {source:?} ended without its end token");
    }
}

#[test]
fn side_networks_and_lora_answer_as_one_pass_over_the_answer_does() {
    for case in CASES {
        let (device, config, mut weights) = open(case);
        let base = Backbone::load(&device, &config, &mut weights, &Parts::all(&config)).unwrap();
        let chains = Chains::fresh(&device, &config, &ChainsConfig::new(if case == "t5-v1.1" { 8 } else { 2 }), &mut weights, 3).unwrap();
        let sources: Vec<Vec<u32>> = samples(&config).into_iter().filter_map(|sample| sample.source).collect();
        let options = GenerateOptions { max_new_tokens: 9, stop: config.eos.clone() };
        let answer = |model: &Backbone, chains: Option<&Chains>| block_on(generate_targets(model, chains, &sources, &options, &no_yield())).unwrap();
        let of_base = answer(&base, None);
        assert_eq!(answer(&base, Some(&chains)), of_base, "{case}: fresh chains change nothing");

        let mut trainer = ParallelTrainer::load(&device, &config, &mut weights, chains, None, training()).unwrap();
        train(&mut trainer, &config);
        let tuned = answer(&trainer.model, Some(&trainer.chains));
        check(case, &trainer, &config, &sources, &tuned);
        assert_ne!(tuned, of_base, "{case}: it learnt something");

        let lora = LoraConfig { rank: 4, alpha: 8.0, rank_stabilised: false, targets: vec!["all-linear".into()], layers: None, patterns: Patterns::default() };
        let start = lora_start(&config, &lora, 5).unwrap();
        let lora = Lora::new(&device, &config, &lora, |name| start.get(name).cloned()).unwrap();
        let mut tuner = Tuner::load(&device, &config, &mut weights, Inserts::Lora(lora), training()).unwrap();
        train(&mut tuner, &config);
        let tuned = answer(&tuner.model, None);
        check(case, &tuner, &config, &sources, &tuned);
        assert_ne!(tuned, of_base, "{case}: it learnt something");
    }
}

#[test]
fn bad_sources_are_refused() {
    let (device, config, mut weights) = open("bart");
    let model = Backbone::load(&device, &config, &mut weights, &Parts::all(&config)).unwrap();
    let options = GenerateOptions { max_new_tokens: 2, stop: Vec::new() };
    for (source, expected) in [(vec![], "no tokens"), (vec![40], "vocabulary"), (vec![5; 33], "exceeds")] {
        let error = block_on(generate_targets(&model, None, &[source], &options, &no_yield())).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // An answer ends where the positions do.
    let options = GenerateOptions { max_new_tokens: 50, stop: Vec::new() };
    let answers = block_on(generate_targets(&model, None, &[vec![5, 6]], &options, &no_yield())).unwrap();
    assert_eq!(answers[0].len(), 32);
}
