//! `barycenter simulate`: what runs would take, in virtual time and without computing anything.

mod chaos;
mod growth;
pub(crate) mod household;
mod paper;
mod reality;

use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `barycenter simulate`.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Options {
    #[command(flatten)]
    household: household::HouseOptions,
    #[command(flatten)]
    growth: growth::GrowthOptions,
    /// Run so many random schedules of joins, leaves, stalls, partitions and server restarts; fails at the first in which
    /// an invariant does not hold.
    #[arg(long, value_name = "SCHEDULES", conflicts_with_all = ["house", "growth", "measured"])]
    chaos: Option<u64>,
    /// Run one schedule of `--chaos` and tell what happens in it.
    #[arg(long, value_name = "SEED")]
    chaos_seed: Option<u64>,
    /// Predict the epochs of a run that was measured, as JSON (see scripts/reality.mjs).
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,
    /// The paper's testbed: its Table 2 and Figs. 9 to 11, beside the numbers that it prints.
    #[arg(long, conflicts_with_all = ["house", "growth", "chaos", "chaos_seed", "measured"])]
    paper: bool,
}

/// Runs what was asked for.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.paper {
        return paper::run();
    }
    if let Some(file) = &options.measured {
        return reality::run(file);
    }
    match (options.chaos, options.chaos_seed) {
        (_, Some(seed)) => chaos::tell(seed),
        (Some(schedules), None) => chaos::run(schedules),
        (None, None) if options.growth.growth => {
            let of = &options.household;
            of.check_places()?;
            growth::run(&options.growth, &of.model, of.tokens, of.reduction, of.svg.as_ref(), of.json.as_ref())
        }
        (None, None) if options.household.house.is_some() => household::run(&options.household),
        (None, None) => bail!("name a household file (assets/households has some), --growth, --chaos with a number of schedules, or --paper"),
    }
}
