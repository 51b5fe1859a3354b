//! `barycenter bench`: what the figures in docs/BENCHMARKS.md are measured against.

use crate::train::{self, Job};
use anyhow::Result;
use std::process::ExitCode;

/// What to measure.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Full fine-tuning of the same model on the same mini-batches: seconds per epoch, peak memory, exact match.
    Full(Box<train::Options>),
}

/// Measures and prints.
pub fn run(command: &Command) -> Result<ExitCode> {
    let Command::Full(options) = command;
    pollster::block_on(async {
        train::full::run(&Job::open(options).await?).await?;
        Ok(ExitCode::SUCCESS)
    })
}
