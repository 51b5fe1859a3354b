//! `barycenter node`.

use anyhow::{Result, anyhow};
use barycenter_node::events::NodeEvent;
use barycenter_node_native::{NativeNode, default_memory_budget_bytes, interrupts};
use barycenter_protocol::auth::Invitation;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `barycenter node`.
#[derive(clap::Args)]
pub struct Options {
    /// The invitation, as the server prints it: https://…/join#k=…
    #[arg(long)]
    join: String,
    /// Name that others see (default: this computer's).
    #[arg(long)]
    name: Option<String>,
    /// Which back end computes.
    #[arg(long, default_value = "auto")]
    device: crate::Device,
    /// Folder for weights and cache.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Memory offered, MB (default: half of what is free).
    #[arg(long)]
    memory_mb: Option<u64>,
    /// Cache storage offered, MB.
    #[arg(long, default_value_t = 8_192)]
    storage_mb: u64,
    /// Links to other devices through the server only, for a network that lets devices not reach each other.
    #[arg(long)]
    relay: bool,
}

/// Works until Ctrl-C (or SIGTERM), or until the server says goodbye. After the first Ctrl-C the others take over, at a second it leaves at once.
pub fn run(options: Options) -> Result<ExitCode> {
    let invitation = Invitation::parse(&options.join).map_err(|sentence| anyhow!(sentence))?;
    let name = options.name.unwrap_or_else(host_name);
    let data_dir = options.data.unwrap_or_else(|| barycenter_server::DataDir::default_path().join("node"));
    let node = NativeNode {
        invitation,
        name,
        backend: options.device.into(),
        data_dir,
        memory_budget_bytes: options.memory_mb.map_or_else(default_memory_budget_bytes, |mb| mb << 20),
        storage_budget_bytes: options.storage_mb << 20,
        relay_only: options.relay,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(node.run(print, interrupts()))?;
    Ok(ExitCode::SUCCESS)
}

fn print(event: NodeEvent) {
    match event {
        NodeEvent::SelfTest { backend, gflops, largest_error, .. } => {
            println!("{} ({}): {gflops:.1} GFLOP/s, largest error {largest_error:.1e}; {}", backend.kind, backend.description, backend.reason);
        }
        NodeEvent::Joined { node } => println!("joined as node {node}"),
        NodeEvent::Activity(activity) if activity.step.is_none() => println!("{}", activity.text),
        NodeEvent::Link { peer, up: true, round_trip_millis, bytes_per_second, relayed, .. } => {
            let route = if relayed == Some(true) { "relayed" } else { "direct" };
            println!("{route} link to node {peer}: {:.1} ms, {:.1} MB/s", round_trip_millis.unwrap_or(0.0), bytes_per_second.unwrap_or(0.0) / 1e6);
        }
        NodeEvent::Link { peer, up: false, reason, .. } => println!("link to node {peer} ended: {}", reason.unwrap_or_default()),
        NodeEvent::Reconnecting { reason, attempt } => println!("server lost ({reason}), attempt {attempt}"),
        NodeEvent::Leaving => println!("leaving: the others take over first; Ctrl-C again leaves at once"),
        NodeEvent::Left { reason } => println!("{reason}"),
        NodeEvent::Error { message, .. } => eprintln!("{message}"),
        NodeEvent::Check { ok: false, text, .. } => eprintln!("{text}"),
        NodeEvent::Activity(_) | NodeEvent::Check { .. } | NodeEvent::Progress { .. } | NodeEvent::Counters { .. } => {}
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/etc/hostname").map(|name| name.trim().to_owned()).ok().or_else(|| std::env::var("COMPUTERNAME").ok()).filter(|name| !name.is_empty()).unwrap_or_else(|| "This computer".into())
}
