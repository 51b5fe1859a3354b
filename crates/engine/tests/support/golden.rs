//! A golden folder on a device, every tensor held to its tolerance.

use barycenter_engine::Device;
use barycenter_engine::verify::{PARTS, verify};
use std::path::{Path, PathBuf};

/// Hidden states and logits in f32: sums in another order move them by some 1e-6; a wrong term by far more.
const GOLDEN_TOLERANCE: f64 = 1e-4;
/// Twelve optimiser steps: AdamW's division enlarges rounding where gradients are near 0.
const RUN_TOLERANCE: f64 = 1e-3;

/// A folder of `tests/golden`.
pub fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}

/// Asserts that exactly these parts are there and that every tensor of them is reproduced.
pub fn holds(device: &Device, case: &str, parts: &[&str]) {
    let report = pollster::block_on(verify(device, &folder(case))).unwrap_or_else(|error| panic!("{case}: {error}"));
    for part in PARTS {
        let worst = report.worst(part);
        assert_eq!(worst.is_some(), parts.contains(&part), "{case}: {part}");
        if let Some(worst) = worst {
            println!("{case} {part} on {}: {} {:.2e}", device.info().description, worst.name, worst.relative_error);
        }
    }
    for tensor in report.tensors {
        let tolerance = if tensor.part == "golden" { GOLDEN_TOLERANCE } else { RUN_TOLERANCE };
        assert!(tensor.relative_error <= tolerance, "{case} {}: {} is {:.2e} off", tensor.part, tensor.name, tensor.relative_error);
    }
}
