//! Set-up, wasm build, web build, demo data and the test runner: `cargo xtask --help`.

mod make_demo;
mod root;
mod run;
mod setup;
mod start;
mod test;
mod wasm;
mod web;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Everything the project does beside compiling.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what is missing: the wasm target, the npm packages, a browser and a software Vulkan driver.
    Setup {
        /// Leave the browser and the Vulkan driver out: they are for tests and the demo.
        #[arg(long)]
        no_browser: bool,
    },
    /// Builds the browser node into web/dist/assets and checks its size.
    Wasm {
        /// Skip wasm-opt: quicker, larger.
        #[arg(long)]
        quick: bool,
        /// With what `bench/train_step.mjs` needs beside; pages run it all the same.
        #[arg(long)]
        bench: bool,
    },
    /// Builds the browser node and the pages into web/dist.
    Web {
        /// Skip wasm-opt and minifying: quicker, larger.
        #[arg(long)]
        quick: bool,
    },
    /// Sets up, builds, and runs `barycenter serve`; further arguments are handed on.
    Start {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Makes assets/demo: pre-trains the base model, writes the personal set and checks that it can be learnt.
    MakeDemo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Sets up, builds, and runs every test; ends with the line `N passed, N failed`.
    Test(test::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Setup { no_browser } => setup::all(!no_browser),
        Command::Wasm { quick, bench } => wasm::build(wasm::How { quick, bench }),
        Command::Web { quick } => {
            setup::all(false)?;
            web::build(quick)
        }
        Command::Start { rest } => start::serve(&rest),
        Command::MakeDemo { rest } => make_demo::make(&rest),
        Command::Test(options) => test::all(&options),
    }
}
