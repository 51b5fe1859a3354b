//! The engine on WebGPU against `transformers`, PyTorch and `peft`: the folders of `tests/golden`.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use barycenter_engine::Device;
use std::rc::Rc;
use support::golden::holds;

fn all_hold(cases: &[(&str, &[&str])]) {
    let Some(gpu) = support::gpu() else { return };
    let device: Device = Rc::new(gpu);
    for (case, parts) in cases {
        holds(&device, case, parts);
    }
}

#[test]
fn llama_and_its_relatives() {
    all_hold(&[
        ("llama-gqa", &["golden", "pac", "lora"]),
        ("llama3-rope-scaled", &["golden", "pac"]),
        ("qwen2", &["golden", "pac"]),
        ("qwen3", &["golden", "pac", "lora"]),
    ]);
}

#[test]
fn other_decoders() {
    all_hold(&[
        ("gemma3", &["golden"]),
        ("more/gemma3-pac", &["golden", "pac"]),
        ("more/gemma3-capped", &["golden", "pac", "lora"]),
        ("gpt2", &["golden"]),
        ("more/gpt2-pac", &["golden", "pac", "lora"]),
        // bf16, packed.
        ("more/gpt2-options", &["golden", "lora"]),
    ]);
}

#[test]
fn encoders_and_encoder_decoders() {
    all_hold(&[
        ("bert", &["golden"]),
        ("more/bert-mlm", &["golden", "pac", "lora"]),
        ("bart", &["golden"]),
        // f16, packed, with an odd number of heads.
        ("more/bart-base-names", &["golden"]),
        ("t5", &["golden"]),
        ("t5-v1.1", &["golden"]),
        ("more/t5-untied", &["golden", "lora"]),
        ("tasks/bert-classify", &["pac", "lora", "adapters", "full"]),
        ("tasks/bert-regress", &["pac", "lora", "adapters", "full"]),
        ("tasks/bart-seq2seq", &["pac", "lora", "adapters", "full"]),
        ("tasks/t5-seq2seq", &["pac", "lora", "adapters", "full"]),
    ]);
}
