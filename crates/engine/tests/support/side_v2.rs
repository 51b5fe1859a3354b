//! The golden runs of parallel adapters, version 2 (`tests/golden/make_golden_side_v2.py`).

use super::golden::folder;
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::side_v2::{SideV2Config, SideV2Trainer, alignment, encode};
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::FullTraining;
use barycenter_engine::trainer::{self, SampleEntries};
use barycenter_engine::{Device, Sample};
use barycenter_model::{FolderTensors, ModelConfig, RawTensor, TensorSource};
use pollster::block_on;
use std::rc::Rc;

/// The learning rate of the runs.
const RATE: f32 = 3e-3;
/// Classes of the runs.
const CLASSES: usize = 3;

/// A golden run of samples of `sentences` sentences.
pub struct Run {
    pub config: ModelConfig,
    pub side: SideV2Config,
    pub samples: Vec<Sample>,
    pub file: FolderTensors,
    /// Tokens of each sentence.
    pub lengths: Vec<usize>,
}

impl Run {
    pub fn open(name: &str, sentences: usize) -> Self {
        let place = folder("tasks/bert-side-v2");
        let mut file = FolderTensors::open_file(&place.join(format!("{name}.safetensors"))).unwrap();
        let config = ModelConfig::from_folder(&place).unwrap().with_classifier(CLASSES, |_| false).unwrap();
        let side = SideV2Config { dropout: 0.0, ..SideV2Config::new(&config, 4, sentences).unwrap() };
        let whole = |tensor: RawTensor| tensor.to_f32().into_iter().map(|value| value as u32).collect::<Vec<_>>();
        let [ids, lengths, labels] = ["ids", "lengths", "labels"].map(|name| whole(file.load(name).unwrap()));
        let lengths: Vec<usize> = lengths.into_iter().map(|len| len as usize).collect();
        let mut rest = ids.as_slice();
        let sample = |(of_sample, label): (&[usize], &u32)| {
            let (ids, after) = rest.split_at(of_sample.iter().sum());
            rest = after;
            let sentence_starts = if sentences == 2 { vec![of_sample[0] as u32] } else { Vec::new() };
            Sample { sentence_starts, ..Sequence { ids: ids.to_vec(), labels: vec![(0, *label)] }.into() }
        };
        let samples = lengths.chunks(sentences).zip(&labels).map(sample).collect();
        Self { config, side, samples, file, lengths }
    }

    pub fn floats(&mut self, name: &str) -> Vec<f32> {
        self.file.load(name).unwrap_or_else(|error| panic!("{name}: {error}")).to_f32()
    }

    pub fn weights(&self) -> FolderTensors {
        FolderTensors::open(&folder("tasks/bert-side-v2")).unwrap()
    }

    /// A trainer that starts where the run started, with the run's components.
    pub fn trainer(&mut self, device: &Device) -> SideV2Trainer {
        let schedule = LinearSchedule { warmup_steps: 0, total_steps: u32::MAX - 1, peak_lr: RATE };
        let training = FullTraining { schedule, optimiser: AdamWConfig::default(), max_norm: 0.0 };
        let mut weights = self.weights();
        let file = &mut self.file;
        let find = |name: &str| {
            let stored = match (name.strip_prefix("cache.components."), name.strip_prefix("cache.mean.")) {
                (Some(tap), _) => format!("basis.{tap}"),
                (_, Some(tap)) => format!("mean.{tap}"),
                _ => format!("init.{name}"),
            };
            file.load(&stored).ok()
        };
        SideV2Trainer::load(device, &self.config, &mut weights, self.side.clone(), find, 1, training).unwrap()
    }

    /// The entries that the run was trained from.
    pub fn entries(&mut self) -> Vec<SampleEntries> {
        let (p, d, each) = (self.side.components, self.config.width, self.side.sentences);
        let mut entries = vec![Vec::new(); self.samples.len()];
        for tap in 0..self.side.taps.len() {
            let [integers, scales, means] = ["integers", "scales", "means"].map(|name| self.floats(&format!("{name}.{tap}")));
            let z: Vec<f32> = integers.iter().enumerate().map(|(at, value)| value * scales[at / p]).collect();
            let mut first = 0;
            for (sample, list) in entries.iter_mut().enumerate() {
                let tokens: usize = self.lengths[sample * each..][..each].iter().sum();
                list.push(encode(&z[first * p..(first + tokens) * p], p, &means[sample * each * d..][..each * d]));
                first += tokens;
            }
        }
        entries.into_iter().map(Rc::new).collect()
    }

    /// Twelve steps from the run's entries: alignments, losses, gradients and final values are PyTorch's.
    pub fn trains_like_torch(&mut self, device: &Device) {
        let (entries, batch) = (self.entries(), MicroBatch::of(&self.samples));
        let mut trainer = self.trainer(device);
        let mut worst = (0.0f32, String::new());
        let mut hold = |name: String, got: &[f32], expected: &[f32]| {
            // Softmax does not see a bias of the keys: its gradient is 0 but for rounding, which AdamW turns into whole steps.
            let is_free = |at: &usize| name.ends_with("qkv.bias") && (expected.len() / 3..expected.len() / 3 * 2).contains(at);
            let kept = |values: &[f32]| values.iter().enumerate().filter(|(at, _)| !is_free(at)).map(|(_, value)| *value).collect::<Vec<_>>();
            let (got, expected) = (&kept(got), &kept(expected));
            assert_eq!(got.len(), expected.len(), "{name}");
            let size = expected.iter().fold(1e-30f32, |size, value| size.max(value.abs()));
            let off = got.iter().zip(expected).fold(0f32, |most, (got, expected)| most.max((got - expected).abs())) / size;
            assert!(off <= 1e-3, "{name} is {off:.2e} off on {}", device.info().description);
            if off > worst.0 {
                worst = (off, name);
            }
        };
        let expected = self.floats("losses");
        let mut losses = Vec::new();
        for step in 0..expected.len() {
            losses.push(block_on(trainer::gradients(&trainer, &batch, Some(&entries), &no_yield())).unwrap());
            if step == 1 {
                for (name, gradient) in block_on(trainer::gradient_tensors(&trainer)).unwrap() {
                    hold(format!("gradient of {name}"), &gradient.to_f32(), &self.floats(&format!("grad1.{name}")));
                }
            }
            trainer::update(&mut trainer, RATE, 1.0);
        }
        hold("losses".into(), &losses, &expected);
        let (_, logits) = block_on(trainer::answers(&trainer, &batch, Some(&entries), &no_yield())).unwrap();
        hold("logits".into(), &logits.concat(), &self.floats("final_logits"));
        for (name, value) in block_on(trainer::tensors(&trainer)).unwrap() {
            hold(name.clone(), &value.to_f32(), &self.floats(&format!("final.{name}")));
        }
        println!("version 2, {} sentences, on {}: {} {:.2e}", self.side.sentences, device.info().description, worst.1, worst.0);
    }

    /// The components that the engine finds, and the entries it fills, are PyTorch's.
    pub fn caches_like_torch(&mut self, device: &Device) {
        let batch = MicroBatch::of(&self.samples);
        let (p, d, each) = (self.side.components, self.config.width, self.side.sentences);
        let mut trainer = self.trainer(device);
        // From the run's own components: rounding may differ by one where a value lies between two integers.
        let filled = block_on(trainer.fill(&batch, &no_yield())).unwrap();
        let mut moved = 0;
        for (got, expected) in filled.iter().zip(self.entries()) {
            for (got, expected) in got.iter().zip(expected.iter()) {
                assert_eq!(got.len(), expected.len());
                let integers = (got.len() - 2 * each * d) / (p + 2) * p;
                for (got, expected) in got[..integers].iter().zip(expected.iter()) {
                    let step = (*got as i8).abs_diff(*expected as i8);
                    assert!(step <= 1, "{} where PyTorch has {}", *got as i8, *expected as i8);
                    moved += usize::from(step);
                }
                let halves = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|half| half::f16::from_le_bytes(*half).to_f32()).collect::<Vec<_>>();
                for (got, expected) in halves(&got[integers..]).into_iter().zip(halves(&expected[integers..])) {
                    assert!((got - expected).abs() <= 2e-3 * expected.abs().max(0.05), "{got} where PyTorch has {expected}");
                }
            }
        }
        let all: usize = self.lengths.iter().sum::<usize>() * p * self.side.taps.len();
        assert!(moved * 200 < all, "{moved} of {all} integers differ by one");
        // Its own, of the same batch: up to sign.
        block_on(trainer.fit([batch], &no_yield())).unwrap();
        for (tap, found) in trainer.components().to_vec().iter().enumerate() {
            let [basis, mean] = ["basis", "mean"].map(|name| self.floats(&format!("{name}.{tap}")));
            for (got, expected) in found.mean.iter().zip(&mean) {
                assert!((got - expected).abs() < 1e-4, "tap {tap}: mean {got} where PyTorch has {expected}");
            }
            for component in 0..p {
                let column = |basis: &[f32]| basis.iter().skip(component).step_by(p).copied().collect::<Vec<_>>();
                let (got, expected) = (column(&found.basis), column(&basis));
                let dot: f32 = got.iter().zip(&expected).map(|(got, expected)| got * expected).sum();
                let size: f32 = expected.iter().map(|value| value * value).sum();
                let off = got.iter().zip(&expected).fold(0f32, |most, (got, expected)| most.max((got - expected * dot.signum()).abs())) / size.sqrt();
                assert!(off < 1e-3, "tap {tap}, component {component} is {off:.2e} off");
            }
        }
    }

    /// g of each token and tap, of pairs.
    pub fn aligns_like_torch(&mut self) {
        let (p, taps) = (self.side.components, self.side.taps.len());
        let expected = self.floats("alignment");
        for tap in 0..taps {
            let [integers, scales] = ["integers", "scales"].map(|name| self.floats(&format!("{name}.{tap}")));
            let z: Vec<f32> = integers.iter().enumerate().map(|(at, value)| value * scales[at / p]).collect();
            let mut row = 0;
            for pair in self.lengths.chunks(2) {
                let middle = row + pair[0];
                let end = middle + pair[1];
                let mut g = vec![0f32; end - row];
                alignment(&z[row * p..middle * p], &z[middle * p..end * p], p, &mut g);
                for (g, row) in g.iter().zip(row..) {
                    assert!((g - expected[row * taps + tap]).abs() < 1e-5, "row {row}, tap {tap}: {g}");
                }
                row = end;
            }
        }
    }
}
