//! Weight files that do not fit: one sentence each, with the name of the tensor.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use barycenter_engine::backbone::Backbone;
use barycenter_engine::lora::{LoraConfig, Patterns, lora_modules};
use barycenter_engine::stage::StageRuntime;
use barycenter_engine::tape::no_yield;
use barycenter_engine::{CpuBackend, Device};
use barycenter_model::names::{self, Parts};
use barycenter_model::{FolderTensors, MemoryTensors, ModelConfig, RawTensor, TensorSource};
use std::rc::Rc;
use support::golden::folder;

fn model(case: &str) -> (ModelConfig, MemoryTensors) {
    let config = ModelConfig::from_folder(&folder(case)).unwrap();
    let mut file = FolderTensors::open(&folder(case)).unwrap();
    let names: Vec<String> = file.names().map(str::to_string).collect();
    let tensors = names.into_iter().map(|name| (name.clone(), file.load(&name).unwrap())).collect();
    (config, MemoryTensors { tensors })
}

fn message(config: &ModelConfig, mut weights: MemoryTensors) -> String {
    let device: Device = Rc::new(CpuBackend::default());
    let loaded = Backbone::load(&device, config, &mut weights, &Parts::all(config));
    loaded.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn every_missing_tensor_is_named() {
    for case in ["gemma3", "gpt2", "bert", "bart", "t5", "t5-v1.1", "more/bert-mlm"] {
        let (config, weights) = model(case);
        assert_eq!(message(&config, weights.clone()), "", "{case} loads");
        for parameter in Parts::all(&config).parameters(&config) {
            let mut wrong = weights.clone();
            let stored = names::stored_name(&parameter.name, |name| wrong.tensors.contains_key(name)).unwrap();
            wrong.tensors.remove(&stored);
            let text = message(&config, wrong.clone());
            assert!(text.contains(&format!("`{}`", parameter.name)) && text.contains("lack"), "{case} {}: {text}", parameter.name);
            wrong.tensors.insert(stored, RawTensor::from_f32(&[3], &[0.0; 3]));
            let text = message(&config, wrong);
            assert!(text.contains(&format!("`{}` has shape [3]", parameter.name)), "{case} {}: {text}", parameter.name);
        }
    }
}

#[test]
fn a_value_that_is_no_number_is_named() {
    for (case, name) in [("gemma3", "model.embed_tokens.weight"), ("t5", "decoder.block.1.layer.1.EncDecAttention.q.weight"), ("bert", "embeddings.LayerNorm.bias")] {
        for value in [f32::NAN, f32::INFINITY] {
            let (config, mut weights) = model(case);
            let tensor = weights.tensors.get_mut(name).unwrap();
            let mut values = tensor.to_f32();
            values[5] = value;
            *tensor = RawTensor::from_f32(&tensor.shape, &values);
            let text = message(&config, weights);
            assert!(text.contains(name) && text.contains("not a finite number"), "{text}");
        }
    }
}

#[test]
fn a_tied_head_with_an_untied_file_is_refused() {
    let (config, mut weights) = model("gpt2");
    let embedding = weights.tensors["transformer.wte.weight"].clone();
    weights.tensors.insert("lm_head.weight".into(), embedding.clone());
    assert_eq!(message(&config, weights.clone()), "", "a copy of the embedding is no other head");
    let mut other = embedding.to_f32();
    other[0] += 1.0;
    weights.tensors.insert("lm_head.weight".into(), RawTensor::from_f32(&embedding.shape, &other));
    let text = message(&config, weights);
    assert!(text.contains("`lm_head.weight`") && text.contains("tie_word_embeddings"), "{text}");
}

#[test]
fn training_what_is_no_decoder_is_refused() {
    let device: Device = Rc::new(CpuBackend::default());
    for case in ["bert", "bart", "t5"] {
        let (config, mut weights) = model(case);
        let mut stage = StageRuntime::new(&device, config.clone(), 0..config.layers, no_yield(), Rc::new(|| 0.0));
        let text = stage.load_backbone(&mut weights, &Parts::all(&config)).unwrap_err().to_string();
        assert!(text.contains(config.family.model_type()) && text.contains("trained on one computer only"), "{text}");
    }
}

#[test]
fn lora_on_what_is_not_there_is_refused() {
    let (config, _) = model("gpt2");
    let lora = LoraConfig { rank: 2, alpha: 4.0, rank_stabilised: false, targets: vec!["q_proj".into()], layers: None, patterns: Patterns::default() };
    let text = |lora: &LoraConfig| lora_modules(&config, lora).unwrap_err().to_string();
    assert!(text(&lora).contains("q_proj") && text(&lora).contains("c_attn"), "{}", text(&lora));
    let named = LoraConfig { targets: vec!["c_proj".into()], ..lora };
    assert_eq!(lora_modules(&config, &named).unwrap().len(), 6, "both of each of three layers");
    assert!(text(&LoraConfig { layers: Some(vec![3]), ..named.clone() }).contains("layer 3"));
    assert!(text(&LoraConfig { rank: 0, ..named }).contains("rank of 0"));
}
