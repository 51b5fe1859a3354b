//! `barycenter verify`.

use crate::backend::create_backend;
use crate::model::{ActivationFormat, WeightFormat};
use anyhow::Result;
use barycenter_engine::verify::{PARTS, verify_as};
use std::path::PathBuf;
use std::process::ExitCode;

/// What a reference of the network's outputs is held to: f32 in another order of summation.
const GOLDEN_TOLERANCE: f64 = 1e-4;
/// What a reference of a training run is held to: twelve steps let differences grow.
const RUN_TOLERANCE: f64 = 1e-3;

/// Options of `barycenter verify`.
#[derive(clap::Args)]
pub struct Options {
    /// Model folder with golden.safetensors, pac.safetensors or lora.safetensors.
    folder: PathBuf,
    /// Which back end computes.
    #[arg(long, default_value = "cpu")]
    device: crate::Device,
    /// Number format in which the frozen weights are held: with another than keep the error is shown, and held to no
    /// tolerance unless one is given.
    #[arg(long, default_value = "keep")]
    weights: WeightFormat,
    /// In which numbers activations meet frozen int8 and int4 weights in the forward pass; int8 is faster, on the CPU.
    #[arg(long, default_value = "f32")]
    activations: ActivationFormat,
    /// Largest relative error that passes (default: 1e-4 for golden, 1e-3 for the training runs).
    #[arg(long)]
    tolerance: Option<f64>,
}

/// Prints the relative error of every tensor; fails if one is above tolerance.
pub fn run(options: &Options) -> Result<ExitCode> {
    let report = pollster::block_on(async {
        let device = create_backend(options.device.into()).await?;
        println!("{} on {}", options.folder.display(), device.info().description);
        options.activations.set(&device)?;
        let report = verify_as(&device, &options.folder, options.weights.into()).await?;
        println!("weights {:?}: {:.1} MB; peak memory {:.1} MB", options.weights, report.weight_bytes as f64 / 1e6, device.memory().peak_bytes as f64 / 1e6);
        anyhow::Ok(report)
    })?;
    let mut passed = true;
    for tensor in &report.tensors {
        let tolerance = options.tolerance.unwrap_or(match tensor.part {
            _ if options.weights != WeightFormat::Keep => f64::MAX,
            "golden" => GOLDEN_TOLERANCE,
            _ => RUN_TOLERANCE,
        });
        let ok = tensor.relative_error <= tolerance;
        passed &= ok;
        println!("{:<7} {:<48} {:.2e}{}", tensor.part, tensor.name, tensor.relative_error, if ok { "" } else { "  ABOVE TOLERANCE" });
    }
    for part in PARTS {
        if let Some(worst) = report.worst(part) {
            println!("largest relative error, {part}: {:.2e} ({})", worst.relative_error, worst.name);
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
