//! LoRA in the last layers of an encoder-decoder model's decoder: from one cached activation and the encoder's end the losses and
//! the weights of the whole model.

#![allow(clippy::unwrap_used)]

mod support;

use barycenter_engine::lora::{Lora, LoraConfig, Patterns, PeftConfig, lora_modules, lora_start};
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::FullTraining;
use barycenter_engine::tune::{BoundaryDtype, Inserts, Tuner};
use barycenter_engine::{CpuBackend, Device, Sample};
use barycenter_model::{FolderTensors, ModelConfig, RawTensor};
use pollster::block_on;
use std::collections::BTreeMap;
use std::rc::Rc;
use support::golden::folder;

const CASES: [&str; 3] = ["generate/t5", "generate/t5-v1.1-3-layers", "generate/bart"];

fn open(case: &str) -> (ModelConfig, FolderTensors) {
    (ModelConfig::from_folder(&folder(case)).unwrap(), FolderTensors::open(&folder(case)).unwrap())
}

fn all_linear() -> LoraConfig {
    LoraConfig { rank: 3, alpha: 5.0, rank_stabilised: false, targets: vec!["all-linear".into()], layers: None, patterns: Patterns::default() }
}

fn tuner(device: &Device, case: &str, lora: &LoraConfig) -> Tuner {
    let (config, mut weights) = open(case);
    let start = lora_start(&config, lora, 7).unwrap();
    let lora = Lora::new(device, &config, lora, |name| start.get(name).cloned()).unwrap();
    let schedule = LinearSchedule { warmup_steps: 2, total_steps: 40, peak_lr: 1e-2 };
    let training = FullTraining { schedule, optimiser: AdamWConfig::default(), max_norm: 1.0 };
    Tuner::load(device, &config, &mut weights, Inserts::Lora(lora), training).unwrap()
}

/// Sources and targets of different lengths, odd ones among them.
fn batches() -> Vec<MicroBatch> {
    let ids = |salt: u32, len: u32| (0..len).map(|t| 3 + (salt * 31 + t * t * 7 + salt * t) % 37).collect::<Vec<_>>();
    let sample = |salt: u32, source: u32, target: u32| {
        let labels = ids(salt + 9, target).into_iter().enumerate().map(|(t, id)| (t as u32, id)).collect();
        Sample { source: Some(ids(salt, source)), ..Sequence { ids: ids(salt + 5, target), labels }.into() }
    };
    vec![MicroBatch::of(&[sample(0, 9, 4), sample(1, 3, 7)]), MicroBatch::of(&[sample(2, 1, 5), sample(3, 12, 1), sample(4, 5, 3)])]
}

type Run = (Vec<f32>, BTreeMap<String, RawTensor>);

/// Losses of four epochs from token ids, and the values at the end.
fn uncached(device: &Device, case: &str, lora: &LoraConfig) -> Run {
    let mut tuner = tuner(device, case, lora);
    let epochs = (0..4).flat_map(|_| batches());
    let losses = epochs.map(|batch| block_on(tuner.step(&batch, None, &no_yield())).unwrap().loss).collect();
    (losses, block_on(tuner.tensors()).unwrap())
}

/// The same, the boundary computed before the first step, encoder and frozen layers dropped.
fn cached(device: &Device, case: &str, lora: &LoraConfig, dtype: BoundaryDtype) -> Run {
    let mut tuner = tuner(device, case, lora);
    let batches = batches();
    let entries: Vec<Vec<Vec<u8>>> = batches.iter().map(|batch| block_on(tuner.boundary(batch, dtype, &no_yield())).unwrap()).collect();
    let held = || {
        device.reset_peak();
        device.memory().current_bytes
    };
    let whole = held();
    tuner.drop_prefix(&mut open(case).1).unwrap();
    assert!(tuner.model.encoder.is_none() && tuner.model.embeddings.is_none() && held() < whole);
    let damaged = |entries: &[Vec<u8>]| block_on(tuner.loss(&batches[0], Some((entries, dtype)), None, &no_yield())).unwrap_err().to_string();
    let short = |entry: &[u8], len| entry[..len].to_vec();
    for bad in [vec![entries[0][0].clone()], vec![short(&entries[0][0], 7), entries[0][1].clone()], vec![entries[0][0].clone(), short(&entries[0][1], entries[0][1].len() - 1)]] {
        assert!(damaged(&bad).contains("missing or damaged"), "{case}");
    }
    assert!(block_on(tuner.loss(&batches[0], None, None, &no_yield())).unwrap_err().to_string().contains("prefix was dropped"));
    let epochs = (0..4).flat_map(|_| batches.iter().zip(&entries));
    let losses = epochs.map(|(batch, entries)| block_on(tuner.step(batch, Some((entries, dtype)), &no_yield())).unwrap().loss).collect();
    (losses, block_on(tuner.tensors()).unwrap())
}

/// The largest differences: of a loss relative to it, of a value relative to the root mean square of its tensor.
fn differences(run: &Run, expected: &Run) -> (f32, f32) {
    assert_eq!(run.1.keys().collect::<Vec<_>>(), expected.1.keys().collect::<Vec<_>>());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let losses = largest(&mut run.0.iter().zip(&expected.0).map(|(got, want)| (got - want).abs() / want));
    let of_tensor = |(got, want): (&RawTensor, &RawTensor)| {
        let (got, want) = (got.to_f32(), want.to_f32());
        let size = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
        assert!(size > 0.0, "nothing moved it");
        largest(&mut got.iter().zip(&want).map(|(got, want)| (got - want).abs() / size))
    };
    (losses, largest(&mut run.1.values().zip(expected.1.values()).map(of_tensor)))
}

#[test]
fn training_from_the_boundary_gives_losses_and_weights_of_the_whole_model() {
    let device: Device = Rc::new(CpuBackend::default());
    for case in CASES {
        let config = open(case).0;
        for last in 1..=config.layers {
            let lora = all_linear().in_last_of_decoder(&config, last).unwrap();
            let expected = uncached(&device, case, &lora);
            assert!(expected.0[7] < expected.0[1], "{case}: {:?}", expected.0);
            assert_eq!(cached(&device, case, &lora, BoundaryDtype::F32), expected, "{case}, f32, last {last}");
            // 11 bits of each value: 5e-4 relative, less in a loss over many values.
            let (losses, _) = differences(&cached(&device, case, &lora, BoundaryDtype::F16), &expected);
            assert!(losses > 0.0 && losses < 1e-3, "{case}, f16, last {last}: {losses}");
        }
    }
}

#[test]
fn training_from_the_boundary_gives_losses_and_weights_of_the_whole_model_on_webgpu() {
    let Some(gpu) = support::gpu() else { return };
    let (device, cpu): (Device, Device) = (Rc::new(gpu), Rc::new(CpuBackend::default()));
    for case in ["generate/t5", "generate/bart"] {
        let lora = all_linear().in_last_of_decoder(&open(case).0, 1).unwrap();
        let run = cached(&device, case, &lora, BoundaryDtype::F32);
        // The same kernels on the same numbers; another back end sums in another order.
        for (what, expected, tolerance) in [("uncached", uncached(&device, case, &lora), 1e-6), ("on the CPU", uncached(&cpu, case, &lora), 1e-4)] {
            let (losses, values) = differences(&run, &expected);
            println!("{case}, {what}: losses {losses:.1e}, values {values:.1e}");
            assert!(losses <= tolerance && values <= 100.0 * tolerance, "{case}, {what}: losses {losses}, values {values}");
        }
        let (losses, _) = differences(&cached(&device, case, &lora, BoundaryDtype::F16), &run);
        assert!(losses < 1e-3, "{case}, f16: {losses}");
    }
}

#[test]
fn the_pattern_takes_what_layers_take_in_the_decoder_and_reads_back() {
    for case in CASES {
        let config = open(case).0;
        for (targets, last) in [(vec!["all-linear".to_string()], 1), (if case.ends_with("bart") { vec!["q_proj".into(), "fc1".into()] } else { vec!["q".into(), "wo".into()] }, 2)] {
            let first = config.layers - last;
            let by_layers = LoraConfig { targets, layers: Some((first..config.layers).collect()), ..all_linear() };
            let mut expected = lora_modules(&config, &by_layers).unwrap();
            let both = expected.len();
            expected.retain(|module| !module.in_encoder);
            let pattern = LoraConfig { layers: None, ..by_layers }.in_last_of_decoder(&config, last).unwrap();
            assert_eq!(lora_modules(&config, &pattern).unwrap(), expected);
            assert!(!expected.is_empty() && (expected.len() < both || first >= config.encoder.as_ref().unwrap().layers), "{case}");
            assert_eq!(PeftConfig::read(&PeftConfig::write(&pattern, "a/model", &config)).unwrap(), pattern);
        }
    }
}

#[test]
fn something_trained_in_the_encoder_has_no_boundary() {
    let device: Device = Rc::new(CpuBackend::default());
    let mut tuner = tuner(&device, "generate/t5", &LoraConfig { layers: Some(vec![1]), ..all_linear() });
    let said = block_on(tuner.boundary(&batches()[0], BoundaryDtype::F32, &no_yield())).unwrap_err().to_string();
    assert!(said.contains("something is trained in its encoder"), "{said}");
    assert!(tuner.drop_prefix(&mut open("generate/t5").1).is_err());
    let none = LoraConfig { targets: vec!["nothing".into()], ..all_linear() }.in_last_of_decoder(&open("generate/bart").0, 1).unwrap_err().to_string();
    assert!(none.contains("no linear layer is named nothing"), "{none}");
}
