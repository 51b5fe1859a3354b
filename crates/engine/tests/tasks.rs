//! Encoders with a trained head and encoder-decoder models: what the caches give against the whole model, where heads
//! start, and what is refused. That each method computes what PyTorch does is held by `golden.rs`.

#![allow(clippy::unwrap_used)]

mod support;

use barycenter_engine::bottleneck::{BottleneckConfig, Bottlenecks};
use barycenter_engine::chains::{Chains, ChainsConfig};
use barycenter_engine::heads::{fresh_parts, trained_head};
use barycenter_engine::lora::{Lora, LoraConfig, Patterns, lora_start};
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::parallel::ParallelTrainer;
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::{FullTrainer, FullTraining};
use barycenter_engine::trainer::{self, SampleEntries, Trainer};
use barycenter_engine::tune::{BoundaryDtype, Inserts, Tuner};
use barycenter_engine::{CpuBackend, Device, Sample};
use barycenter_model::{FolderTensors, MemoryTensors, ModelConfig, Overlay, RawTensor, TensorSource, names};
use pollster::block_on;
use std::rc::Rc;
use support::golden::folder;

fn device() -> Device {
    Rc::new(CpuBackend::default())
}

fn training() -> FullTraining {
    let schedule = LinearSchedule { warmup_steps: 1, total_steps: 20, peak_lr: 1e-2 };
    FullTraining { schedule, optimiser: AdamWConfig::default(), max_norm: 1.0 }
}

fn open(case: &str) -> (ModelConfig, FolderTensors) {
    (ModelConfig::from_folder(&folder(case)).unwrap(), FolderTensors::open(&folder(case)).unwrap())
}

/// Three samples of the model's task, of different lengths.
fn samples(config: &ModelConfig) -> Vec<Sample> {
    let ids = |salt: u32, len: u32| (0..len).map(|t| 3 + (salt * 17 + t * t * 5 + t * salt) % 40).collect::<Vec<_>>();
    let make = |at: u32, len: u32| {
        let token_types = (0..len).map(|t| u32::from(t > len / 2)).collect();
        match (&config.encoder, config.classes()) {
            (Some(_), _) => {
                let target = ids(at + 9, len / 2 + 1);
                let labels = target.iter().enumerate().map(|(t, &id)| (t as u32, (id * 3 + at) % 48)).collect();
                Sample { source: Some(ids(at, len)), ..Sequence { ids: target, labels }.into() }
            }
            (None, 1) => Sample { token_types, value: Some(at as f32 - 0.7), ..Sequence { ids: ids(at, len), labels: vec![(0, 0)] }.into() },
            (None, classes) => Sample { token_types, ..Sequence { ids: ids(at, len), labels: vec![(0, at % classes as u32)] }.into() },
        }
    };
    vec![make(0, 9), make(1, 4), make(2, 12)]
}

fn head(device: &Device, config: &ModelConfig, weights: &mut dyn TensorSource) -> Option<barycenter_engine::params::ParameterSet> {
    (!names::classifier(config).is_empty()).then(|| trained_head(device, config, weights, |_| true).unwrap())
}

fn parallel(device: &Device, config: &ModelConfig, weights: &mut dyn TensorSource) -> ParallelTrainer {
    let chains = Chains::fresh(device, config, &ChainsConfig::new(4), weights, 3).unwrap();
    let head = head(device, config, weights);
    ParallelTrainer::load(device, config, weights, chains, head, training()).unwrap()
}

/// Losses of six steps, two batches in turn.
fn losses(trainer: &mut dyn Trainer, samples: &[Sample], entries: Option<&[SampleEntries]>) -> Vec<f32> {
    let parts = [0..2, 2..3];
    let steps = (0..6).map(|step| parts[step % 2].clone());
    let mut step = |part: std::ops::Range<usize>| {
        let batch = MicroBatch::of(&samples[part.clone()]);
        block_on(trainer::step(trainer, &batch, entries.map(|entries| &entries[part]), &no_yield())).unwrap().loss
    };
    steps.map(&mut step).collect()
}

#[test]
fn parallel_adapters_from_cached_taps_give_the_losses_of_the_whole_model() {
    let device = device();
    for case in ["tasks/bert-classify", "tasks/bert-regress", "tasks/t5-seq2seq", "tasks/bart-seq2seq"] {
        let (config, mut weights) = open(case);
        let samples = samples(&config);
        let whole = losses(&mut parallel(&device, &config, &mut weights), &samples, None);
        assert!(whole[4] < whole[0] && whole[5] < whole[1], "{case}: {whole:?}");
        let mut trainer = parallel(&device, &config, &mut weights);
        let entries: Vec<SampleEntries> = samples.iter().flat_map(|sample| block_on(trainer.fill(&MicroBatch::of([sample]), &no_yield())).unwrap()).collect();
        let taps = names::stacks(&config).map(|(stack, _)| stack.layers + 1).sum::<usize>();
        assert_eq!(entries[0].len(), taps, "{case}: a tap for each layer of each stack");
        trainer.drop_backbone(&mut weights).unwrap();
        let gone = block_on(trainer::loss(&trainer, &MicroBatch::of(&samples), None, None, &no_yield())).unwrap_err().to_string();
        assert!(gone.contains("dropped") || gone.contains("encoder"), "{gone}");
        // 11 bits a tap, less in a loss that is a mean over many.
        for (half, full) in losses(&mut trainer, &samples, Some(&entries)).iter().zip(&whole) {
            assert!((half - full).abs() <= 1e-3 * full.abs().max(0.1), "{case}: {half} from the cache, {full} without");
        }
        let mut damaged = entries.clone();
        Rc::make_mut(&mut damaged[1])[taps - 1].pop();
        let said = block_on(trainer::loss(&trainer, &MicroBatch::of(&samples), Some(&damaged), None, &no_yield())).unwrap_err().to_string();
        assert!(said.contains(&format!("tap {}", taps - 1)), "{said}");
    }
}

#[test]
fn an_encoder_trains_its_last_layer_and_head_from_one_boundary() {
    let device = device();
    let (config, mut weights) = open("tasks/bert-classify");
    let samples = samples(&config);
    let tuner = |weights: &mut FolderTensors| {
        let lora = LoraConfig { rank: 2, alpha: 4.0, rank_stabilised: false, targets: vec!["all-linear".into()], layers: Some(vec![1]), patterns: Patterns::default() };
        let start = lora_start(&config, &lora, 5).unwrap();
        let lora = Lora::new(&device, &config, &lora, |name| start.get(name).cloned()).unwrap();
        let head = head(&device, &config, weights);
        Tuner::load_with_head(&device, &config, weights, Inserts::Lora(lora), head, training()).unwrap()
    };
    let whole = losses(&mut tuner(&mut weights), &samples, None);
    for dtype in [BoundaryDtype::F32, BoundaryDtype::F16] {
        let mut tuner = tuner(&mut weights);
        tuner.boundary_dtype = dtype;
        let fill = |sample| block_on(tuner.boundary(&MicroBatch::of([sample]), dtype, &no_yield())).unwrap();
        let entries: Vec<SampleEntries> = samples.iter().map(fill).map(Rc::new).collect();
        tuner.drop_prefix(&mut weights).unwrap();
        assert_eq!(tuner.model.range, 1..2);
        let cached = losses(&mut tuner, &samples, Some(&entries));
        let tolerance = if dtype == BoundaryDtype::F32 { 1e-6 } else { 1e-3 };
        for (cached, whole) in cached.iter().zip(&whole) {
            assert!((cached - whole).abs() <= tolerance * whole.abs().max(0.1), "{dtype:?}: {cached} {whole}");
        }
        assert!(block_on(tuner.tensors()).unwrap().contains_key("base_model.model.bert.pooler.dense.weight"));
    }
}

#[test]
fn heads_start_from_the_folder_where_it_has_them() {
    let device = device();
    let (config, weights) = open("bert");
    assert!(names::classifier(&config).is_empty());
    let classifier = config.clone().with_classifier(2, |name| weights.has(name)).unwrap();
    let fresh = fresh_parts(&classifier, &weights, 7);
    assert_eq!(fresh.keys().map(String::as_str).collect::<Vec<_>>(), ["classifier.bias", "classifier.weight"], "the pooler is the folder's");
    assert!(fresh["classifier.weight"].to_f32().iter().all(|value| value.abs() < 0.12 && *value != 0.0));
    assert_eq!(fresh_parts(&classifier, &weights, 7), fresh, "the same seed, the same start");
    let (same, weights_of_three) = open("tasks/bert-classify");
    assert!(fresh_parts(&same, &weights_of_three, 7).is_empty(), "a classifier of as many labels goes on");

    // Without a pooler the first token is read as it is.
    let bare = config.with_classifier(2, |_| false).unwrap();
    let mut source = Overlay::new(fresh_parts(&bare, &weights, 7), weights);
    let mut trainer = FullTrainer::load(&device, &bare, &mut source, training()).unwrap();
    assert!(!trainer.parameters.has("bert.pooler.dense.weight"));
    let samples: Vec<Sample> = samples(&classifier);
    let got = losses(&mut trainer, &samples, None);
    assert!(got[4] < got[0], "{got:?}");
}

/// A run on a folder of a base class brings the classifier it trains.
#[test]
fn a_run_on_a_base_model_brings_its_head() {
    let place = folder("tasks/bert-classify");
    let base = tempfile::tempdir().unwrap();
    for name in ["pac.json", "pac.safetensors", "lora.json", "lora.safetensors"] {
        std::fs::copy(place.join(name), base.path().join(name)).unwrap();
    }
    let config = std::fs::read_to_string(place.join("config.json")).unwrap();
    assert!(config.contains("BertForSequenceClassification"));
    std::fs::write(base.path().join("config.json"), config.replace("BertForSequenceClassification", "BertModel")).unwrap();
    let mut weights = FolderTensors::open(&place).unwrap();
    let model = ModelConfig::from_folder(&place).unwrap();
    let kept = names::Parts::all(&model).parameters(&model).into_iter().filter(|parameter| !parameter.name.starts_with("classifier"));
    let tensors: Vec<(String, RawTensor)> = kept.map(|parameter| (parameter.name.clone(), weights.load(&parameter.name).unwrap())).collect();
    let bytes = barycenter_model::write_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &Default::default());
    std::fs::write(base.path().join("model.safetensors"), bytes).unwrap();
    let report = block_on(barycenter_engine::verify::verify(&device(), base.path())).unwrap();
    for part in ["pac", "lora"] {
        assert!(report.worst(part).unwrap().relative_error < 1e-3, "{:?}", report.worst(part));
    }
}

#[test]
fn what_does_not_fit_is_refused_in_one_sentence() {
    let device = device();
    let (config, mut weights) = open("tasks/bert-regress");
    let trainer = parallel(&device, &config, &mut weights);
    let said = |batch: &MicroBatch| block_on(trainer::loss(&trainer, batch, None, None, &no_yield())).unwrap_err().to_string();
    let batch = MicroBatch::of(&samples(&config));
    assert!(said(&MicroBatch { values: vec![1.0], ..batch.clone() }).contains("1 values are to be predicted at 3 places"));
    assert!(said(&MicroBatch { values: Vec::new(), ..batch }).contains("a number"));

    let (config, mut weights) = open("tasks/t5-seq2seq");
    let adapters = BottleneckConfig { reduction: 4, layers: 0..2 };
    let adapters = Inserts::Bottlenecks(Bottlenecks::fresh(&device, &config, &adapters, 1).unwrap());
    let tuner = Tuner::load(&device, &config, &mut weights, adapters, training()).unwrap();
    let batch = MicroBatch::of(&samples(&config));
    let boundary = block_on(tuner.boundary(&batch, BoundaryDtype::F16, &no_yield())).unwrap_err().to_string();
    assert!(boundary.contains("something is trained in its encoder"), "{boundary}");
    let said = |batch: &MicroBatch| block_on(tuner.loss(batch, None, None, &no_yield())).unwrap_err().to_string();
    assert!(said(&MicroBatch { encoder: None, ..batch.clone() }).contains("encoder to read"));
    let one = MicroBatch::of(&samples(&config)[..1]).encoder;
    assert!(said(&MicroBatch { encoder: one, ..batch }).contains("1 sources come with 3 targets"));

    let missing = Chains::load(&device, &config, &ChainsConfig::new(4), |_| None).err().unwrap().to_string();
    assert!(missing.contains("side.encoder."), "{missing}");
    let none = MemoryTensors { tensors: [("x".to_string(), RawTensor::from_f32(&[1], &[0.0]))].into() };
    assert!(Chains::fresh(&device, &config, &ChainsConfig::new(4), &mut { none }, 1).err().unwrap().to_string().contains("relative_attention_bias"));
    assert!(Chains::fresh(&device, &config, &ChainsConfig::new(5), &mut weights, 1).err().unwrap().to_string().contains("reduction 5"));
}
