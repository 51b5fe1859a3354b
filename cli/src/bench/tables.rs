//! The tables of `barycenter bench`, for people.

use anyhow::Result;
use barycenter_engine::bench::{KernelRate, Load, Method, Outcome, Peaks, Shape};
use barycenter_model::names::parameter_count;
use barycenter_model::WeightType;

/// A cached step of parallel adapters should be so many times faster than the fill step.
const CACHED_STEP_GOAL: f64 = 4.0;

pub(super) fn print_kernel_head(shape: &Shape, batch: usize, sequence: usize) {
    println!("\nkernels at the sizes of {}, {batch} × {sequence} tokens (best of three windows; sizes of products: rows × columns × depth)", shape.name);
    println!("{:<26} {:<42} {:>9} {:>9} {:>8} {:>8}", "kernel", "size", "ms", "GFLOP/s", "GB/s", "of peak");
}

pub(super) fn print_kernel(row: &KernelRate) {
    let gflops = if row.gflops > 0.0 { format!("{:.1}", row.gflops) } else { String::new() };
    println!("{:<26} {:<42} {:>9.3} {gflops:>9} {:>8.1} {:>7.0}%", row.kernel, row.shape, row.millis, row.gigabytes, 100.0 * row.of_peak);
}

pub(super) fn print_peaks(peaks: &Peaks) {
    println!("peaks of this run: f32 product of {0} × {0} × {0} {1:.1} GFLOP/s, copy of 64 MiB {2:.1} GB/s", peaks.product_size, peaks.gflops, peaks.gigabytes);
}

pub(super) fn print_method_head(shape: &Shape, load: &Load) -> Result<()> {
    let config = shape.config()?;
    let weights = match load.weights {
        WeightType::Keep => "f32",
        WeightType::F16 => "f16",
        WeightType::Int8 => "int8",
        WeightType::Int4 => "int4",
    };
    let tokens = match config.encoder {
        Some(_) => format!("{} × {} tokens to the encoder, {} labelled ones to the decoder", load.batch, load.sequence, load.labels),
        None => format!("{} × {} tokens, {} labelled in each", load.batch, load.sequence, load.labels),
    };
    let at_once = if load.micro_batch < load.batch { format!(" (parallel adapters {} sequences at once)", load.micro_batch) } else { String::new() };
    println!("\n{}: {:.1} M parameters, {weights}, {tokens}{at_once}; median of {} steps", shape.name, parameter_count(&config) as f64 / 1e6, load.steps);
    println!("{:<32} {:>9} {:>10} {:>9} {:>9}", "method", "s/step", "tokens/s", "peak MB", "cache MB");
    Ok(())
}

pub(super) fn print_method(method: Method, outcome: &Outcome) {
    match outcome {
        Outcome::Measured(times) => {
            let seconds = times.median_seconds();
            let cache = if times.cache_bytes > 0 { format!("{:.1}", times.cache_bytes as f64 / 1e6) } else { String::new() };
            println!("{:<32} {seconds:>9.3} {:>10.0} {:>9.1} {cache:>9}", method.label(), times.tokens as f64 / seconds, times.peak_bytes as f64 / 1e6);
        }
        Outcome::LeftOut(reason) => println!("{:<32} {reason}", method.label()),
    }
}

/// How many times faster the cached step of parallel adapters is than the fill step, where both were timed.
pub(super) fn fill_to_cached(rows: &[(Method, Outcome)]) -> Option<f64> {
    let seconds = |wanted: Method| {
        rows.iter().find_map(|(method, outcome)| match outcome {
            Outcome::Measured(times) if *method == wanted => Some(times.median_seconds()),
            _ => None,
        })
    };
    Some(seconds(Method::ParallelFill)? / seconds(Method::ParallelCached)?)
}

pub(super) fn print_ratio(ratio: f64) {
    let met = if ratio >= CACHED_STEP_GOAL { "met" } else { "not met" };
    println!("parallel_adapter: the cached step is {ratio:.2} × as fast as the fill step (goal {CACHED_STEP_GOAL}: {met})");
}
