//! The barycenter program: serve, node, train, generate, verify, plan, simulate, export, logits, bench.

mod adapter;
mod backend;
mod bench;
mod export;
mod generate;
mod hub;
mod logits;
mod model;
mod node;
mod output;
mod plan;
mod serve;
mod simulate;
mod train;
mod verify;

use barycenter_engine::BackendChoice;
use clap::{Parser, Subcommand, ValueEnum};
use std::io::IsTerminal;
use std::process::ExitCode;

/// A household fine-tunes a language model together.
#[derive(Parser)]
#[command(name = "barycenter", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The home server: pages, pairing, weights, data, runs. Prints the address and its QR code.
    Serve(serve::Options),
    /// A node without a browser: joins the server of an invitation and works until Ctrl-C (the others take over first; a second one leaves at once).
    Node(node::Options),
    /// Fine-tunes on this one computer, without a network: parallel adapters, LoRA, bottleneck adapters or all weights.
    Train(Box<train::Options>),
    /// Answers a prompt with a model, and with a tuned adapter beside it if one is given.
    Generate(generate::Options),
    /// Compares what the engine computes with the references in a golden folder; fails where one is above tolerance.
    Verify(verify::Options),
    /// Who would do what, and how long it would take, in a household that a file describes.
    Plan(plan::Options),
    /// Predicts runs without running them: a household in virtual time, growth, or the paper's testbed.
    Simulate(simulate::Options),
    /// Writes a LoRA adapter in the form that llama.cpp loads.
    Export(export::Options),
    /// Writes a model's logits for token ids, to compare them with another library's.
    Logits(logits::Options),
    /// Measures this device: kernels, and a step of each method at the sizes of known models, with random weights.
    Bench(Box<bench::Options>),
}

/// Which back end computes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Device {
    /// A GPU where there is a real one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// A GPU over WebGPU's native twin, even a software one.
    Gpu,
}

impl From<Device> for BackendChoice {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => Self::Auto,
            Device::Cpu => Self::Cpu,
            Device::Gpu => Self::Gpu,
        }
    }
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let command = Arguments::parse().command;
    // Commands compute on this thread; the server does not compute, and holds it.
    if !matches!(command, Command::Serve(_)) {
        barycenter_engine::cpu::compute_on_this_thread();
    }
    let result = match command {
        Command::Serve(options) => serve::run(options),
        Command::Node(options) => node::run(options),
        Command::Train(options) => train::run(&options),
        Command::Generate(options) => generate::run(&options),
        Command::Verify(options) => verify::run(&options),
        Command::Plan(options) => plan::run(&options),
        Command::Simulate(options) => simulate::run(&options),
        Command::Export(options) => export::run(&options),
        Command::Logits(options) => logits::run(&options),
        Command::Bench(options) => bench::run(&options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("barycenter: {error:#}");
            ExitCode::FAILURE
        }
    }
}
