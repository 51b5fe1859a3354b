//! `barycenter simulate`: what runs would take, from models of devices and links instead of devices and links.

mod paper;

use anyhow::Result;
use std::process::ExitCode;

/// What to simulate.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Options {
    /// The paper's testbed: its Table 2 and Figs. 9 to 11, beside the numbers that it prints.
    #[arg(long)]
    paper: bool,
}

/// Simulates and prints.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.paper {
        return paper::run();
    }
    anyhow::bail!("nothing to simulate was named: give --paper")
}
