//! The engine on WebGPU against `transformers` and PyTorch: the folders of `tests/golden`.

mod support;

use barycenter_engine::Device;
use barycenter_engine::verify::verify;
use std::path::Path;
use std::rc::Rc;

/// Hidden states and logits in f32: sums in another order move them by some 1e-6; a wrong term by far more.
const GOLDEN_TOLERANCE: f64 = 1e-4;
/// Twelve optimiser steps: AdamW's division enlarges rounding where gradients are near 0.
const PAC_TOLERANCE: f64 = 1e-3;

fn holds(case: &str) {
    let Some(gpu) = support::gpu() else { return };
    let device: Device = Rc::new(gpu);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case);
    let report = pollster::block_on(verify(&device, &folder)).unwrap();
    for part in ["golden", "pac"] {
        let worst = report.worst(part).unwrap();
        println!("{case} {part} on {}: {} {:.2e}", device.info().description, worst.name, worst.relative_error);
    }
    for tensor in report.tensors {
        let tolerance = if tensor.part == "golden" { GOLDEN_TOLERANCE } else { PAC_TOLERANCE };
        assert!(tensor.relative_error <= tolerance, "{case} {}: {} is {:.2e} off", tensor.part, tensor.name, tensor.relative_error);
    }
}

#[test]
fn llama_with_grouped_queries() {
    holds("llama-gqa");
}

#[test]
fn llama3_rope_scaling_and_tied_head() {
    holds("llama3-rope-scaled");
}

#[test]
fn qwen2_biases() {
    holds("qwen2");
}

#[test]
fn qwen3_head_norms() {
    holds("qwen3");
}
