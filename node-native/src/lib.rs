//! The native node, for computers that need no browser.
//!
//! The same node as in a browser page; this crate provides what differs: files, real sockets, a back end over Vulkan or
//! the processor, and a terminal to speak to.

pub mod files;

use crate::files::FolderStorage;
use anyhow::Result;
use barycenter_engine::BackendChoice;
use barycenter_node::device::open_device;
use barycenter_node::events::NodeEvent;
use barycenter_node::meter::Meter;
use barycenter_node::storage::Storage;
use barycenter_node::{NodeConfig, NodeShell, run_node};
use barycenter_protocol::auth::Invitation;
use barycenter_protocol::control::NodeKind;
use barycenter_transport::Http;
use barycenter_transport::native::{NativeConnector, NativeOptions};
use futures::StreamExt;
use std::path::PathBuf;
use std::rc::Rc;

/// What a native node needs to know.
#[derive(Clone, Debug)]
pub struct NativeNode {
    /// Where to join.
    pub invitation: Invitation,
    /// Name for people.
    pub name: String,
    /// Back end.
    pub backend: BackendChoice,
    /// Folder for weights and cache.
    pub data_dir: PathBuf,
    /// Memory offered, bytes.
    pub memory_budget_bytes: u64,
    /// Cache storage offered, bytes.
    pub storage_budget_bytes: u64,
    /// All links go through the server, for a network that is known to allow no others.
    pub relay_only: bool,
}

impl NativeNode {
    /// Runs until the server lets it go after the first item of `leave`, until the second item, until the server says goodbye, or
    /// until the node is refused. Must be called inside a tokio runtime with more than one thread; the node itself stays on the
    /// calling one.
    pub async fn run(self, on_event: impl Fn(NodeEvent) + 'static, leave: impl futures::Stream<Item = ()> + 'static) -> Result<()> {
        tokio::task::LocalSet::new().run_until(self.run_here(on_event, leave)).await
    }

    async fn run_here(self, on_event: impl Fn(NodeEvent) + 'static, leave: impl futures::Stream<Item = ()>) -> Result<()> {
        let storage = FolderStorage::new(&self.data_dir).map_err(|error| anyhow::anyhow!("the folder {} cannot be used ({error}): give another with --data", self.data_dir.display()))?;
        let device_token = device_token(&storage).await?;
        let device = open_device(self.backend, &storage).await?;
        let shell = NodeShell {
            storage: Rc::new(storage),
            connector: Rc::new(NativeConnector::new(NativeOptions::default())),
            http: Http::new(&self.invitation)?,
            meter: Rc::new(Meter::default()),
            on_event: Box::new(on_event),
            cancelled: Rc::default(),
        };
        let config = NodeConfig {
            name: self.name,
            kind: NodeKind::Native,
            secret: self.invitation.secret.clone(),
            device_token,
            memory_budget_bytes: self.memory_budget_bytes,
            storage_budget_bytes: self.storage_budget_bytes,
            relay_only: self.relay_only,
        };
        run_node(config, shell, device, leave).await?;
        Ok(())
    }
}

/// Every Ctrl-C, and where there is one every SIGTERM.
pub fn interrupts() -> impl futures::Stream<Item = ()> {
    let ctrl_c = futures::stream::unfold((), |()| async { tokio::signal::ctrl_c().await.ok().map(|()| ((), ())) });
    futures::stream::select(ctrl_c, terminations())
}

#[cfg(unix)]
fn terminations() -> impl futures::Stream<Item = ()> {
    futures::stream::once(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) })
        .filter_map(|signal| std::future::ready(signal.ok()))
        .flat_map(|signal| futures::stream::unfold(signal, |mut signal| async { signal.recv().await.map(|()| ((), signal)) }))
}

#[cfg(not(unix))]
fn terminations() -> impl futures::Stream<Item = ()> {
    futures::stream::empty()
}

/// The device's token, made at the first visit.
async fn device_token(storage: &FolderStorage) -> Result<String> {
    let file = storage.open("device-token").await?;
    let mut bytes = [0; 16];
    if file.len()? == 16 {
        file.read_at(0, &mut bytes)?;
    } else {
        getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers on this computer: {error}"))?;
        file.write_at(0, &bytes)?;
        file.flush()?;
    }
    Ok(barycenter_protocol::auth::to_hex(&bytes))
}

/// Memory a node offers by default: half of what is free on the computer now, or 2 GiB where that cannot be read, bytes.
pub fn default_memory_budget_bytes() -> u64 {
    let kilobytes = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    kilobytes.map_or(2 << 30, |kilobytes| kilobytes * 1024 / 2)
}
