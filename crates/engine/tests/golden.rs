//! The engine against `transformers`, PyTorch and `peft`: the folders of `tests/golden`.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use barycenter_engine::{CpuBackend, Device};
use std::rc::Rc;
use support::golden::holds;

fn cpu() -> Device {
    Rc::new(CpuBackend::default())
}

#[test]
fn llama_and_its_relatives() {
    holds(&cpu(), "llama-gqa", &["golden", "pac", "lora"]);
    holds(&cpu(), "llama3-rope-scaled", &["golden", "pac"]);
    holds(&cpu(), "qwen2", &["golden", "pac"]);
    holds(&cpu(), "qwen3", &["golden", "pac", "lora"]);
    holds(&cpu(), "more/llama-gelu-bias", &["golden", "lora"]);
    holds(&cpu(), "more/qwen2-lora", &["golden", "lora"]);
    holds(&cpu(), "more/mistral-window", &["golden", "lora"]);
    holds(&cpu(), "more/qwen2-yarn", &["golden", "pac", "lora"]);
    holds(&cpu(), "more/qwen2-sum-second", &["golden", "pac"]);
    holds(&cpu(), "more/llama-yarn", &["golden", "lora"]);
    holds(&cpu(), "more/llama-base-dynamic", &["golden"]);
    holds(&cpu(), "more/mistral-outer-length", &["golden"]);
}

#[test]
fn gemma3() {
    holds(&cpu(), "gemma3", &["golden"]);
    holds(&cpu(), "more/gemma3-old-style", &["golden"]);
    holds(&cpu(), "more/gemma3-pac", &["golden", "pac"]);
    holds(&cpu(), "more/gemma3-lora", &["golden", "lora"]);
    holds(&cpu(), "more/gemma3-capped", &["golden", "pac", "lora"]);
}

#[test]
fn gpt2() {
    holds(&cpu(), "gpt2", &["golden"]);
    holds(&cpu(), "more/gpt2-pac", &["golden", "pac", "lora"]);
    holds(&cpu(), "more/gpt2-options", &["golden", "lora"]);
    holds(&cpu(), "more/gpt2-base-names", &["golden"]);
}

#[test]
fn bert() {
    holds(&cpu(), "bert", &["golden"]);
    holds(&cpu(), "more/bert-mlm", &["golden", "pac", "lora"]);
    holds(&cpu(), "more/bert-mlm-untied", &["golden"]);
    holds(&cpu(), "more/bert-classifier", &["golden"]);
    holds(&cpu(), "tasks/bert-classify", &["pac", "lora", "adapters", "full"]);
    holds(&cpu(), "tasks/bert-regress", &["pac", "lora", "adapters", "full"]);
}

#[test]
fn bart() {
    holds(&cpu(), "bart", &["golden"]);
    holds(&cpu(), "more/bart-options", &["golden", "lora"]);
    holds(&cpu(), "more/bart-base-names", &["golden"]);
    holds(&cpu(), "tasks/bart-seq2seq", &["pac", "lora", "adapters", "full"]);
}

#[test]
fn t5() {
    holds(&cpu(), "t5", &["golden"]);
    holds(&cpu(), "t5-v1.1", &["golden"]);
    holds(&cpu(), "more/t5-untied", &["golden", "lora"]);
    holds(&cpu(), "more/t5-silu-half", &["golden"]);
    holds(&cpu(), "more/t5-gelu", &["golden"]);
    holds(&cpu(), "more/t5-other-names", &["golden"]);
    holds(&cpu(), "tasks/t5-shared-bias", &["pac"]);
    holds(&cpu(), "tasks/t5-seq2seq", &["pac", "lora", "adapters", "full"]);
}
