//! Gradients of all weights against differences of the loss, and that training learns.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::{FullTrainer, FullTraining, train_full};
use barycenter_engine::verify::relative_error;
use barycenter_engine::{CpuBackend, Device};
use barycenter_model::{MemoryTensors, ModelConfig};
use pollster::block_on;
use std::rc::Rc;

fn config(model_type: &str, tied: bool) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": model_type, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 40, "vocab_size": 67,
        "tie_word_embeddings": tied, "attention_bias": model_type == "llama", "mlp_bias": true,
        "max_position_embeddings": 64, "sliding_window": 3, "sliding_window_pattern": 2,
        "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64
    });
    ModelConfig::parse(&json.to_string()).unwrap()
}

fn training(peak_lr: f32) -> FullTraining {
    let schedule = LinearSchedule { warmup_steps: 3, total_steps: 60, peak_lr };
    FullTraining { schedule, optimiser: AdamWConfig::default(), max_norm: 1.0 }
}

fn sequences() -> Vec<Sequence> {
    let make = |s: u32, len: u32| {
        let ids: Vec<u32> = (0..len).map(|t| (s * 31 + t * t * 7 + s * t) % 67).collect();
        let labels = (0..len - 1).step_by(1 + s as usize).map(|t| (t, ids[t as usize + 1])).collect();
        Sequence { ids, labels }
    };
    vec![make(0, 9), make(1, 4), make(2, 13), make(0, 2)]
}

/// Along each parameter's own gradient the loss changes as the gradient says.
#[test]
fn gradients_match_differences_of_the_loss() {
    let device: Device = Rc::new(CpuBackend::default());
    for (model_type, tied) in [("llama", false), ("llama", true), ("qwen2", true), ("qwen3", false), ("mistral", false), ("gemma3_text", true), ("gpt2", true), ("gpt2", false)] {
        let config = config(model_type, tied);
        let fresh = FullTrainer::fresh(&device, &config, 5, training(0.0)).unwrap();
        let batches = vec![MicroBatch::pack(&sequences())];
        // Weights large enough that every part of the model matters.
        let mut start = block_on(fresh.parameters.read_values()).unwrap();
        for info in fresh.parameters.layout() {
            let noise = |i: usize| ((i * 37 + info.offset) as f32 * 0.61).sin() * 0.15;
            start[info.offset..info.offset + info.elements()].iter_mut().enumerate().for_each(|(i, x)| *x += noise(i));
        }
        let loss_at = |values: &[f32]| {
            fresh.parameters.write_values(values);
            f64::from(block_on(fresh.gradients(&batches, &no_yield())).unwrap())
        };
        loss_at(&start);
        let grads = block_on(fresh.parameters.read_grads()).unwrap();
        for info in fresh.parameters.layout() {
            let range = info.offset..info.offset + info.elements();
            let norm = grads[range.clone()].iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
            let step = 1e-2 / norm.max(0.2);
            let moved = |sign: f64| {
                let mut values = start.clone();
                range.clone().for_each(|i| values[i] += (sign * step * f64::from(grads[i])) as f32);
                values
            };
            let slope = (loss_at(&moved(1.0)) - loss_at(&moved(-1.0))) / (2.0 * step);
            // The loss is known to some 1e-6, the difference to the square of the step.
            let close = (slope - norm * norm).abs() < 0.03 * norm * norm + 2e-6 / step;
            assert!(close, "{model_type} {}: the loss changes by {slope:.3e}, expected {:.3e}", info.name, norm * norm);
            assert!(norm > 1e-7 || info.name.ends_with("k_proj.bias"), "{model_type} {}: no gradient", info.name);
        }
    }
}

#[test]
fn micro_batches_add_up() {
    let device: Device = Rc::new(CpuBackend::default());
    let trainer = FullTrainer::fresh(&device, &config("llama", true), 9, training(0.0)).unwrap();
    let sequences = sequences();
    let grads = |batches: &[MicroBatch]| {
        let loss = block_on(trainer.gradients(batches, &no_yield())).unwrap();
        (loss, block_on(trainer.parameters.read_grads()).unwrap())
    };
    let whole = grads(&[MicroBatch::pack(&sequences)]);
    let parts = grads(&[MicroBatch::pack(&sequences[..1]), MicroBatch::pack(&sequences[1..])]);
    assert!((whole.0 - parts.0).abs() < 1e-5 && relative_error(&parts.1, &whole.1) < 1e-5);
}

#[test]
fn training_learns_and_weights_load_back() {
    let device: Device = Rc::new(CpuBackend::default());
    let config = config("llama", true);
    let trainer = FullTrainer::fresh(&device, &config, 2, training(1e-2)).unwrap();
    let mut losses = Vec::new();
    let batch = MicroBatch::pack(&sequences());
    let batches = std::iter::repeat_n(vec![batch.clone()], 60);
    let trainer = block_on(train_full(trainer, batches, &no_yield(), |report| losses.push(report.loss))).unwrap();
    assert!((losses[0] - 67f32.ln()).abs() < 0.2, "a fresh model guesses: {}", losses[0]);
    assert!(losses[59] < 0.5, "{losses:?}");
    let mut weights = MemoryTensors { tensors: block_on(trainer.weights()).unwrap() };
    let again = FullTrainer::load(&device, &config, &mut weights, training(0.0)).unwrap();
    let [before, after] = [&trainer, &again].map(|trainer| block_on(trainer.gradients(std::slice::from_ref(&batch), &no_yield())).unwrap());
    assert_eq!(before, after);
}

/// The same seed gives the same weights and losses; another seed other ones.
#[test]
fn runs_repeat() {
    let run = |seed| {
        let device: Device = Rc::new(CpuBackend::default());
        let mut trainer = FullTrainer::fresh(&device, &config("llama", false), seed, training(1e-3)).unwrap();
        let batch = [MicroBatch::pack(&sequences())];
        (0..3).map(|_| block_on(trainer.step(&batch, &no_yield())).unwrap().loss).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
