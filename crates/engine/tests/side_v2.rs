//! Parallel adapters, version 2: the engine on both back ends against PyTorch, files that load again, dropout, refusals.

#![allow(clippy::unwrap_used)]

mod support;

use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::side_v2::{SideV2Config, SideV2Trainer};
use barycenter_engine::tape::no_yield;
use barycenter_engine::trainer::{self, SampleEntries, Trainer};
use barycenter_engine::{CpuBackend, Device, Sample};
use barycenter_model::ModelConfig;
use pollster::block_on;
use std::collections::BTreeMap;
use std::rc::Rc;
use support::golden::folder;
use support::side_v2::Run;

const RUNS: [(&str, usize); 2] = [("pair", 2), ("sentence", 1)];

fn device() -> Device {
    Rc::new(CpuBackend::default())
}

#[test]
fn losses_gradients_and_final_values_are_those_of_torch() {
    for (name, sentences) in RUNS {
        Run::open(name, sentences).trains_like_torch(&device());
    }
}

#[test]
fn on_webgpu_too() {
    let Some(gpu) = support::gpu() else { return };
    let device: Device = Rc::new(gpu);
    for (name, sentences) in RUNS {
        let mut run = Run::open(name, sentences);
        run.trains_like_torch(&device);
        run.caches_like_torch(&device);
    }
}

#[test]
fn components_and_entries_are_those_of_torch() {
    for (name, sentences) in RUNS {
        Run::open(name, sentences).caches_like_torch(&device());
    }
    Run::open("pair", 2).aligns_like_torch();
}

fn logits(trainer: &SideV2Trainer, batch: &MicroBatch, entries: Option<&[SampleEntries]>) -> Vec<Vec<f32>> {
    block_on(trainer::answers(trainer, batch, entries, &no_yield())).unwrap().1
}

#[test]
fn what_is_written_loads_again_with_equal_logits() {
    let device = device();
    for (name, sentences) in RUNS {
        let mut run = Run::open(name, sentences);
        let batch = MicroBatch::of(&run.samples);
        let training = run.trainer(&device).optimiser().training();
        let mut trainer = SideV2Trainer::fresh(&device, &run.config, &mut run.weights(), run.side.clone(), 5, training).unwrap();
        assert!(block_on(trainer.fill(&batch, &no_yield())).unwrap_err().to_string().contains("not fitted"));
        block_on(trainer.fit([batch.clone()], &no_yield())).unwrap();
        let entries = block_on(trainer.fill(&batch, &no_yield())).unwrap();
        let cached: Vec<f32> = (0..6).map(|_| block_on(trainer::step(&mut trainer, &batch, Some(&entries), &no_yield())).unwrap().loss).collect();
        assert!(cached[5] < cached[0], "{cached:?}");

        // Through the bytes of a file and the text of a config.
        let tensors = block_on(trainer.tensors()).unwrap();
        let written = tempfile::tempdir().unwrap();
        let path = written.path().join("adapter_model.safetensors");
        std::fs::write(&path, barycenter_model::write_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &BTreeMap::new())).unwrap();
        let text = serde_json::to_string(&run.side.to_json()).unwrap();
        let config = SideV2Config::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(config, run.side);
        let mut file = barycenter_model::FolderTensors::open_file(&path).unwrap();
        let find = |name: &str| barycenter_model::TensorSource::load(&mut file, name).ok();
        let again = SideV2Trainer::load(&device, &run.config, &mut run.weights(), config, find, 9, training).unwrap();
        let expected = logits(&trainer, &batch, Some(&entries));
        assert_eq!(logits(&again, &batch, Some(&entries)), expected);
        // From the sentences themselves: what a cache would have kept is computed.
        assert_eq!(logits(&again, &batch, None), expected);
        trainer.drop_backbone();
        assert_eq!(logits(&trainer, &batch, Some(&entries)), expected);
        let gone = block_on(trainer::loss(&trainer, &batch, None, None, &no_yield())).unwrap_err().to_string();
        assert!(gone.contains("dropped"), "{gone}");

        let mut without = tensors.clone();
        without.remove("cache.mean.1");
        let missing = SideV2Trainer::load(&device, &run.config, &mut run.weights(), run.side.clone(), |name| without.get(name).cloned(), 9, training);
        assert!(missing.err().unwrap().to_string().contains("`cache.mean.1` is missing"));
    }
}

#[test]
fn dropout_depends_on_seed_step_and_sample_only_and_ends_with_training() {
    let device = device();
    let mut run = Run::open("pair", 2);
    run.side.dropout = 0.3;
    let entries = run.entries();
    let mut trainer = run.trainer(&device);
    let gradient = |trainer: &SideV2Trainer, order: &[usize]| -> Vec<f32> {
        let batch = MicroBatch::of(order.iter().map(|at| &run.samples[*at]));
        let entries: Vec<SampleEntries> = order.iter().map(|at| entries[*at].clone()).collect();
        block_on(trainer::gradients(trainer, &batch, Some(&entries), &no_yield())).unwrap();
        block_on(trainer.side.parameters.read_grads()).unwrap()
    };
    let near = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-5);
    let first = gradient(&trainer, &[0, 1, 2]);
    assert_eq!(gradient(&trainer, &[0, 1, 2]), first, "the same step again");
    assert!(near(&gradient(&trainer, &[2, 0, 1]), &first), "the same samples elsewhere in the batch");
    trainer::update(&mut trainer, 0.0, 0.0);
    assert!(!near(&gradient(&trainer, &[0, 1, 2]), &first), "another step");

    let batch = MicroBatch::of(&run.samples);
    run.side.dropout = 0.0;
    let without = logits(&run.trainer(&device), &batch, Some(&entries));
    run.side.dropout = 0.3;
    assert_eq!(logits(&run.trainer(&device), &batch, Some(&entries)), without);
}

#[test]
fn what_does_not_fit_is_refused_in_one_sentence() {
    let device = device();
    let mut run = Run::open("pair", 2);
    let trainer = run.trainer(&device);
    let said = |samples: &[Sample]| block_on(trainer::loss(&trainer, &MicroBatch::of(samples), None, None, &no_yield())).unwrap_err().to_string();
    let sequence = Sequence { ids: vec![1, 5, 2, 1, 6, 2, 1, 7, 2], labels: vec![(0, 0)] };
    let three = Sample { sentence_starts: vec![3, 6], ..sequence.clone().into() };
    assert!(said(&[three]).contains("a sample has 3 sentences, and this side network reads two"));
    assert!(said(&[sequence.into()]).contains("a sample has 1 sentences"));
    let mut entries = run.entries();
    Rc::make_mut(&mut entries[1])[2].pop();
    let damaged = block_on(trainer::loss(&trainer, &MicroBatch::of(&run.samples), Some(&entries), None, &no_yield())).unwrap_err().to_string();
    assert!(damaged.contains("cached tap 2 of a sample is missing or damaged"), "{damaged}");

    let refused = |config: &ModelConfig, reduction, sentences| SideV2Config::new(config, reduction, sentences).unwrap_err().to_string();
    assert!(refused(&run.config, 4, 3).contains("3 sentences"));
    assert!(refused(&run.config, 5, 1).contains("reduction 5"));
    let decoder = ModelConfig::from_folder(&folder("llama-gqa")).unwrap();
    assert!(refused(&decoder, 4, 1).contains("stands beside encoders"));
    let t5 = ModelConfig::from_folder(&folder("t5")).unwrap();
    assert!(refused(&t5, 4, 1).contains("stands beside encoders"));
    let too_many = SideV2Config { components: 200, ..run.side.clone() };
    assert!(too_many.check(&run.config).unwrap_err().to_string().contains("200 components"));
    let json = serde_json::json!({ "version": 1 });
    assert!(SideV2Config::from_json(&json).unwrap_err().to_string().contains("`version`"));
    let few = MicroBatch::of(&run.samples[..1]);
    let mut trainer = run.trainer(&device);
    let few = block_on(trainer.fit([few], &no_yield())).unwrap_err().to_string();
    assert!(few.contains("give no 16 principal components"), "{few}");
}
