//! The async driver that joins core, engine and transport in one node.
//!
//! [`run_node`] is the whole life of a node: self-test, join, work, reconnect, leave. What differs between a browser and a
//! computer (storage, connections) comes in through [`NodeShell`].

pub mod blobs;
pub mod cache;
pub mod device;
pub mod events;
mod gradients;
pub mod meter;
pub mod self_test;
mod session;
pub mod storage;
pub mod weights;
mod worker;

use crate::events::NodeEvent;
use crate::meter::Meter;
use crate::storage::Storage;
use barycenter_engine::{BackendKind, BackendInfo, Device};
use barycenter_protocol::auth::RoomSecret;
use barycenter_protocol::control::{BackendReport, JoinRequest, NodeKind};
use barycenter_protocol::PROTOCOL_VERSION;
use barycenter_transport::{Connector, Http, platform};
use std::cell::Cell;
use std::rc::Rc;

pub use worker::CACHE_FORMAT;

/// What a node is called, and what it offers.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Name for people.
    pub name: String,
    /// Browser or native.
    pub kind: NodeKind,
    /// Room secret.
    pub secret: RoomSecret,
    /// Kept by the device between visits.
    pub device_token: String,
    /// Memory offered, bytes.
    pub memory_budget_bytes: u64,
    /// Cache storage offered, bytes.
    pub storage_budget_bytes: u64,
    /// All links go through the server, for a network that is known to allow no others.
    pub relay_only: bool,
}

/// What the platform provides to a node.
pub struct NodeShell {
    /// Where bytes are kept.
    pub storage: Rc<dyn Storage>,
    /// Makes connections to peers.
    pub connector: Rc<dyn Connector>,
    /// The server.
    pub http: Http,
    /// Counters.
    pub meter: Rc<Meter>,
    /// Hears what happens.
    pub on_event: Box<dyn Fn(NodeEvent)>,
    /// Grows whenever a generation is abandoned; long jobs look at it.
    pub cancelled: Rc<Cell<u64>>,
}

impl NodeShell {
    fn say(&self, event: NodeEvent) {
        (self.on_event)(event);
    }
}

/// Why a node cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The back end computes garbage.
    #[error("the self-test failed: this device's {backend} computes with an error of {error:.1e} (at most 1e-3 is accepted); try another browser, or update the graphics driver")]
    SelfTest {
        /// Which.
        backend: String,
        /// Largest relative error.
        error: f64,
    },
    /// The server refused.
    #[error("{0}")]
    Refused(String),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] barycenter_engine::EngineError),
}

/// Runs a node until it leaves: at the first item of `leave` it lets the others take over its part, for about a minute at most, at
/// the second it leaves at once. Ends with [`NodeEvent::Left`] or the error, which the caller reports.
pub async fn run_node(config: NodeConfig, shell: NodeShell, device: Device, leave: impl futures::Stream<Item = ()>) -> Result<(), NodeError> {
    let started = platform::now_millis();
    let outcome = self_test::run(&device, &platform::now_millis).await?;
    let backend = report(device.info());
    let ok = outcome.largest_error <= self_test::TOLERANCE;
    shell.say(NodeEvent::SelfTest { ok, backend: backend.clone(), gflops: outcome.gflops, largest_error: outcome.largest_error, seconds: (platform::now_millis() - started) / 1_000.0 });
    if !ok {
        return Err(NodeError::SelfTest { backend: backend.description, error: outcome.largest_error });
    }
    let request = JoinRequest {
        version: PROTOCOL_VERSION,
        name: config.name.clone(),
        kind: config.kind,
        backend,
        gflops: outcome.gflops,
        memory_budget_bytes: config.memory_budget_bytes,
        storage_budget_bytes: config.storage_budget_bytes,
        device_token: config.device_token.clone(),
    };
    session::run(&config, &shell, device, request, leave).await
}

/// A back end, as the server and the pages are told of it.
pub fn report(info: &BackendInfo) -> BackendReport {
    let kind = match info.kind {
        BackendKind::Cpu => "cpu",
        BackendKind::Webgpu => "webgpu",
    };
    BackendReport { kind: kind.into(), description: info.description.clone(), reason: info.reason.clone() }
}
