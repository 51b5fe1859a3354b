//! LoRA and bottleneck adapters: gradients against differences of the loss, the cached boundary against the whole model,
//! GGUF files read back.

#![allow(clippy::unwrap_used)]

use barycenter_engine::bottleneck::{BottleneckConfig, Bottlenecks};
use barycenter_engine::lora::{Lora, LoraConfig, Patterns, lora_start, to_gguf};
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::{FullTrainer, FullTraining};
use barycenter_engine::tune::{BoundaryDtype, Inserts, Tuner};
use barycenter_engine::{CpuBackend, Device};
use barycenter_model::{MemoryTensors, ModelConfig, RawTensor};
use pollster::block_on;
use std::rc::Rc;

fn config(model_type: &str) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": model_type, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 40, "vocab_size": 67,
        "tie_word_embeddings": true, "max_position_embeddings": 64, "sliding_window": 3
    });
    ModelConfig::parse(&json.to_string()).unwrap()
}

fn training() -> FullTraining {
    let schedule = LinearSchedule { warmup_steps: 2, total_steps: 40, peak_lr: 1e-2 };
    FullTraining { schedule, optimiser: AdamWConfig::default(), max_norm: 1.0 }
}

fn device() -> Device {
    Rc::new(CpuBackend::default())
}

/// A model of random weights, large enough that every part matters.
fn weights(device: &Device, config: &ModelConfig) -> MemoryTensors {
    let fresh = FullTrainer::fresh(device, config, 5, training()).unwrap();
    let mut tensors = block_on(fresh.weights()).unwrap();
    for (at, tensor) in tensors.values_mut().enumerate() {
        let noise = |i: usize| ((i * 37 + at * 11) as f32 * 0.61).sin() * 0.15;
        let values: Vec<f32> = tensor.to_f32().iter().enumerate().map(|(i, x)| x + noise(i)).collect();
        *tensor = RawTensor::from_f32(&tensor.shape, &values);
    }
    MemoryTensors { tensors }
}

fn batches() -> Vec<MicroBatch> {
    let make = |s: u32, len: u32| {
        let ids: Vec<u32> = (0..len).map(|t| (s * 31 + t * t * 7 + s * t) % 67).collect();
        let labels = (0..len - 1).map(|t| (t, ids[t as usize + 1])).collect();
        Sequence { ids, labels }
    };
    vec![MicroBatch::pack(&[make(0, 9), make(1, 4)]), MicroBatch::pack(&[make(2, 13), make(3, 2)])]
}

fn lora_config(layers: Option<Vec<usize>>) -> LoraConfig {
    LoraConfig { rank: 3, alpha: 5.0, rank_stabilised: false, targets: vec!["all-linear".into()], layers, patterns: Patterns::default() }
}

fn lora(device: &Device, config: &ModelConfig, layers: Option<Vec<usize>>) -> Inserts {
    let config_ = lora_config(layers);
    let start = lora_start(config, &config_, 7).unwrap();
    Inserts::Lora(Lora::new(device, config, &config_, |name| start.get(name).cloned()).unwrap())
}

fn bottlenecks(device: &Device, config: &ModelConfig, layers: std::ops::Range<usize>) -> Inserts {
    Inserts::Bottlenecks(Bottlenecks::fresh(device, config, &BottleneckConfig { reduction: 4, layers }, 7).unwrap())
}

/// Along each parameter's own gradient the loss changes as the gradient says.
#[test]
fn gradients_match_differences_of_the_loss() {
    let device = device();
    for model_type in ["llama", "qwen3", "mistral"] {
        let config = config(model_type);
        for inserts in [lora(&device, &config, None), bottlenecks(&device, &config, 0..3)] {
            let tuner = Tuner::load(&device, &config, &mut weights(&device, &config), inserts, training()).unwrap();
            let parameters = tuner.inserts.parameters();
            // What starts at 0 must not stay there, or half of the gradients would be 0.
            let mut start = block_on(parameters.read_values()).unwrap();
            for info in parameters.layout() {
                let noise = |i: usize| ((i * 29 + info.offset) as f32 * 0.37).sin() * 0.2;
                start[info.offset..info.offset + info.elements()].iter_mut().enumerate().for_each(|(i, x)| *x += noise(i));
            }
            let batch = &batches()[0];
            let factor = 1.0 / batch.classes.len() as f32;
            let loss_at = |values: &[f32]| {
                parameters.write_values(values);
                parameters.zero_grads();
                block_on(tuner.loss(batch, None, Some(factor), &no_yield())).unwrap() * f64::from(factor)
            };
            loss_at(&start);
            let grads = block_on(parameters.read_grads()).unwrap();
            for info in parameters.layout() {
                let range = info.offset..info.offset + info.elements();
                let norm = grads[range.clone()].iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
                let step = 4e-3 / norm.max(0.2);
                let moved = |sign: f64| {
                    let mut values = start.clone();
                    range.clone().for_each(|i| values[i] += (sign * step * f64::from(grads[i])) as f32);
                    values
                };
                let slope = (loss_at(&moved(1.0)) - loss_at(&moved(-1.0))) / (2.0 * step);
                // The loss is known to some 1e-6, the difference to the square of the step.
                let close = (slope - norm * norm).abs() < 0.03 * norm * norm + 2e-6 / step;
                assert!(close, "{model_type} {}: the loss changes by {slope:.3e}, expected {:.3e}", info.name, norm * norm);
                assert!(norm > 1e-7, "{model_type} {}: no gradient", info.name);
            }
        }
    }
}

/// Losses of two epochs, all from token ids.
fn uncached(device: &Device, config: &ModelConfig, inserts: Inserts) -> Vec<f32> {
    let mut tuner = Tuner::load(device, config, &mut weights(device, config), inserts, training()).unwrap();
    let epochs = (0..4).flat_map(|_| batches());
    epochs.map(|batch| block_on(tuner.step(&batch, None, &no_yield())).unwrap().loss).collect()
}

/// The same, the boundary computed before the first step and the prefix dropped.
fn cached(device: &Device, config: &ModelConfig, inserts: Inserts, dtype: BoundaryDtype) -> Vec<f32> {
    let mut weights = weights(device, config);
    let mut tuner = Tuner::load(device, config, &mut weights, inserts, training()).unwrap();
    let batches = batches();
    let entries: Vec<Vec<Vec<u8>>> = batches.iter().map(|batch| block_on(tuner.boundary(batch, dtype, &no_yield())).unwrap()).collect();
    tuner.drop_prefix(&mut weights).unwrap();
    assert_eq!(tuner.model.layers.len(), config.layers - tuner.model.range.start);
    assert!(block_on(tuner.loss(&batches[0], None, None, &no_yield())).unwrap_err().to_string().contains("prefix was dropped"));
    let damaged = block_on(tuner.loss(&batches[0], Some((&entries[0][1..], dtype)), None, &no_yield())).unwrap_err().to_string();
    assert!(damaged.contains("missing or damaged"), "{damaged}");
    let epochs = (0..4).flat_map(|_| batches.iter().zip(&entries));
    epochs.map(|(batch, entries)| block_on(tuner.step(batch, Some((entries, dtype)), &no_yield())).unwrap().loss).collect()
}

#[test]
fn training_from_the_cached_boundary_gives_the_losses_of_the_whole_model() {
    let device = device();
    let config = config("llama");
    for last in [1, 2, 3] {
        let first = config.layers - last;
        let layers = || Some((first..config.layers).collect());
        let expected = uncached(&device, &config, lora(&device, &config, layers()));
        assert_eq!(cached(&device, &config, lora(&device, &config, layers()), BoundaryDtype::F32), expected, "f32, last {last}");
        // The f16 boundary has 11 bits: 5e-4 relative, less in a loss over many values.
        let halves = cached(&device, &config, lora(&device, &config, layers()), BoundaryDtype::F16);
        for (half, full) in halves.iter().zip(&expected) {
            assert!((half - full).abs() < 1e-3 * full, "f16, last {last}: {half} {full}");
        }
        assert!(expected[7] < expected[1], "{expected:?}");
    }
    let expected = uncached(&device, &config, bottlenecks(&device, &config, 1..3));
    assert_eq!(cached(&device, &config, bottlenecks(&device, &config, 1..3), BoundaryDtype::F32), expected);
}

#[test]
fn inserts_start_at_the_base_model_and_load_back() {
    let device = device();
    let config = config("qwen2");
    let mut weights = weights(&device, &config);
    let batch = &batches()[0];
    let mut losses = Vec::new();
    for inserts in [lora(&device, &config, Some(vec![2])), lora(&device, &config, None), bottlenecks(&device, &config, 0..3)] {
        let tuner = Tuner::load(&device, &config, &mut weights, inserts, training()).unwrap();
        losses.push(block_on(tuner.loss(batch, None, None, &no_yield())).unwrap());
    }
    assert_eq!(losses, [losses[0]; 3]);
    let mut tuner = Tuner::load(&device, &config, &mut weights, bottlenecks(&device, &config, 0..3), training()).unwrap();
    block_on(tuner.step(batch, None, &no_yield())).unwrap();
    let after = block_on(tuner.loss(batch, None, None, &no_yield())).unwrap();
    assert_ne!(after, losses[0]);
    let tensors = block_on(tuner.tensors()).unwrap();
    let again = Bottlenecks::load(&device, &config, &BottleneckConfig { reduction: 4, layers: 0..3 }, |name| tensors.get(name).cloned()).unwrap();
    let again = Tuner::load(&device, &config, &mut weights, Inserts::Bottlenecks(again), training()).unwrap();
    assert_eq!(block_on(again.loss(batch, None, None, &no_yield())).unwrap(), after);
}

#[test]
fn what_cannot_be_set_up_is_said_in_one_sentence() {
    let (device, config) = (device(), config("llama"));
    let refused = |reduction, layers| Bottlenecks::fresh(&device, &config, &BottleneckConfig { reduction, layers }, 1).err().unwrap().to_string();
    assert!(refused(0, 0..3).contains("choose 1 to 24"));
    assert!(refused(4, 2..4).contains("the model has 3"));
    let missing = Bottlenecks::load(&device, &config, &BottleneckConfig { reduction: 4, layers: 0..3 }, |_| None).err().unwrap().to_string();
    assert!(missing.contains("layers.0.attention.down.weight"), "{missing}");
    let gpt2 = serde_json::json!({"model_type": "gpt2", "n_embd": 24, "n_layer": 1, "n_head": 4, "vocab_size": 67, "n_positions": 16});
    let gpt2 = ModelConfig::parse(&gpt2.to_string()).unwrap();
    let start = lora_start(&gpt2, &lora_config(None), 1).unwrap();
    assert!(to_gguf(&gpt2, &lora_config(None), |name| start.get(name).cloned()).unwrap_err().to_string().contains("gpt2"));
}

/// A GGUF file as the format's description has it, read independently of how it is written.
struct Gguf<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Gguf<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at += N;
        self.bytes[self.at - N..self.at].try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take()) as usize
    }

    fn string(&mut self) -> String {
        let len = self.u64();
        self.at += len;
        String::from_utf8(self.bytes[self.at - len..self.at].to_vec()).unwrap()
    }
}

#[test]
fn a_gguf_adapter_reads_back() {
    for model_type in ["llama", "qwen3"] {
        let config = config(model_type);
        let lora = LoraConfig { rank_stabilised: true, ..lora_config(Some(vec![2])) };
        let tensors: std::collections::BTreeMap<String, RawTensor> = lora_start(&config, &lora, 3).unwrap().into_iter().map(|(name, tensor)| {
            let values: Vec<f32> = (0..tensor.elements()).map(|i| i as f32 + name.len() as f32 * 1000.0).collect();
            (name, RawTensor::from_f32(&tensor.shape, &values))
        }).collect();
        let bytes = to_gguf(&config, &lora, |name| tensors.get(name).cloned()).unwrap();
        let mut file = Gguf { bytes: &bytes, at: 0 };
        assert_eq!((&file.take::<4>(), file.u32()), (b"GGUF", 3));
        let (tensor_count, key_count) = (file.u64(), file.u64());
        let mut keys = Vec::new();
        for _ in 0..key_count {
            let key = file.string();
            let value = match file.u32() {
                8 => file.string(),
                6 => f32::from_le_bytes(file.take()).to_string(),
                other => panic!("a value of type {other}"),
            };
            keys.push((key, value));
        }
        // alpha / rank is alpha / √rank here: 5 √3.
        let expected = [("general.architecture", model_type.to_string()), ("general.type", "adapter".into()), ("adapter.type", "lora".into()), ("adapter.lora.alpha", ((5.0 / 3f64.sqrt()) * 3.0).to_string())];
        for ((key, value), (expected_key, expected)) in keys.iter().zip(&expected) {
            assert_eq!(key, expected_key);
            let close = |a: &str, b: &str| a == b || (a.parse::<f32>().unwrap() - b.parse::<f32>().unwrap()).abs() < 1e-5;
            assert!(close(value, expected), "{key} {value} {expected}");
        }
        assert_eq!((keys.len(), tensor_count), (4, 14));
        let mut infos = Vec::new();
        for _ in 0..tensor_count {
            let name = file.string();
            assert_eq!(file.u32(), 2);
            let (cols, rows) = (file.u64(), file.u64());
            assert_eq!(file.u32(), 0, "f32");
            infos.push((name, rows, cols, file.u64()));
        }
        let data = file.at.next_multiple_of(32);
        let mut end = 0;
        for (name, rows, cols, offset) in &infos {
            assert_eq!((offset % 32, *offset), (0, end), "{name} follows the one before, aligned");
            end = (offset + 4 * rows * cols).next_multiple_of(32);
        }
        assert_eq!(bytes.len(), data + end);
        let read = |name: &str| {
            let (_, rows, cols, offset) = infos.iter().find(|(known, ..)| known == name).unwrap_or_else(|| panic!("no {name}"));
            let values = bytes[data + offset..][..4 * rows * cols].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (*rows, *cols, values.collect::<Vec<_>>())
        };
        let stored = |module: &str| tensors[&format!("base_model.model.model.layers.2.{module}.weight")].to_f32();
        assert_eq!(read("blk.2.ffn_down.weight.lora_a"), (3, 40, stored("mlp.down_proj.lora_A")));
        assert_eq!(read("blk.2.attn_output.weight.lora_b"), (24, 3, stored("self_attn.o_proj.lora_B")));
        assert_eq!(read("blk.2.attn_q.weight.lora_a"), (3, 24, stored("self_attn.q_proj.lora_A")));
        // A Llama's query rows are turned pairwise: rows 0, 3, 1, 4, 2, 5 of a head of 6.
        let (rows, _, q) = read("blk.2.attn_k.weight.lora_b");
        let k = stored("self_attn.k_proj.lora_B");
        let order: Vec<usize> = if model_type == "llama" { [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11].into() } else { (0..12).collect() };
        assert_eq!(rows, 12);
        assert_eq!(q, order.iter().flat_map(|&row| k[row * 3..row * 3 + 3].to_vec()).collect::<Vec<_>>());
    }
}
