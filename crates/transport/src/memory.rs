//! Links inside one process, for tests: latency, bandwidth, cut cables and forged frames on demand.

use crate::connection::{Connection, ConnectionEvent, ConnectionEvents, ConnectionEventsSender, Connector, Description, DescriptionKind, Plane};
use crate::platform::{self, now_millis};
use barycenter_protocol::NodeId;
use barycenter_protocol::auth::sha256_hex;
use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// How a memory link behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryLink {
    /// One way, milliseconds.
    pub latency_millis: f64,
    /// Each way and link; `None` = as fast as memory.
    pub bytes_per_second: Option<f64>,
}

/// A network in memory; clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    link: Cell<MemoryLink>,
    next: Cell<u64>,
    ends: RefCell<HashMap<u64, End>>,
}

struct End {
    node: NodeId,
    events: ConnectionEventsSender,
    remote: Option<u64>,
    is_open: bool,
}

/// Makes the connections of one node of a [`MemoryNetwork`].
pub struct MemoryConnector {
    network: MemoryNetwork,
    node: NodeId,
}

struct MemoryConnection {
    network: MemoryNetwork,
    id: u64,
    is_offerer: bool,
    wire: mpsc::UnboundedSender<(Plane, Vec<u8>)>,
}

impl MemoryNetwork {
    /// A network whose links behave as given.
    pub fn new(link: MemoryLink) -> Self {
        let network = Self::default();
        network.inner.link.set(link);
        network
    }

    /// For the transport of `node`.
    pub fn connector(&self, node: NodeId) -> MemoryConnector {
        MemoryConnector { network: self.clone(), node }
    }

    /// The cable between two nodes is cut: after `notice_millis` both ends notice; nothing passes any more.
    pub fn cut(&self, a: NodeId, b: NodeId, notice_millis: u32) {
        let mut ends = self.inner.ends.borrow_mut();
        let nodes: HashMap<u64, NodeId> = ends.iter().map(|(id, end)| (*id, end.node)).collect();
        for end in ends.values_mut() {
            let other = end.remote.and_then(|remote| nodes.get(&remote).copied());
            if (end.node == a && other == Some(b)) || (end.node == b && other == Some(a)) {
                end.remote = None;
                let events = end.events.clone();
                platform::spawn_local(async move {
                    platform::sleep(notice_millis).await;
                    let _ = events.unbounded_send(ConnectionEvent::Disconnected);
                });
            }
        }
    }

    /// A frame reaches `to` as if `from` had sent it.
    pub fn forge(&self, from: NodeId, to: NodeId, plane: Plane, frame: Vec<u8>) {
        let ends = self.inner.ends.borrow();
        for end in ends.values().filter(|end| end.node == to) {
            if end.remote.and_then(|remote| ends.get(&remote)).is_some_and(|other| other.node == from) {
                let _ = end.events.unbounded_send(ConnectionEvent::Message(plane, Bytes::from(frame.clone())));
            }
        }
    }

    fn describe(&self, id: u64, is_offerer: bool) -> Description {
        let digest = sha256_hex(&id.to_le_bytes()).to_uppercase();
        let pairs: Vec<_> = digest.as_bytes().chunks(2).map(String::from_utf8_lossy).collect();
        let kind = if is_offerer { DescriptionKind::Offer } else { DescriptionKind::Answer };
        Description { kind, sdp: format!("a=memory:{id}\r\na=fingerprint:sha-256 {}\r\na=max-message-size:65536\r\n", pairs.join(":")) }
    }

    fn close(&self, id: u64) {
        let Some(end) = self.inner.ends.borrow_mut().remove(&id) else { return };
        let mut ends = self.inner.ends.borrow_mut();
        if let Some(other) = end.remote.and_then(|remote| ends.get_mut(&remote)) {
            other.remote = None;
            let _ = other.events.unbounded_send(ConnectionEvent::Closed("the other device closed the link".into()));
        }
    }

    fn open(&self, id: u64) {
        let mut ends = self.inner.ends.borrow_mut();
        let Some(end) = ends.get_mut(&id) else { return };
        if std::mem::replace(&mut end.is_open, true) {
            return;
        }
        for plane in Plane::ALL {
            let _ = end.events.unbounded_send(ConnectionEvent::Open(plane));
        }
    }

    fn remote_events(&self, id: u64) -> Option<ConnectionEventsSender> {
        let ends = self.inner.ends.borrow();
        ends.get(&ends.get(&id)?.remote?).map(|other| other.events.clone())
    }
}

impl Connector for MemoryConnector {
    fn connect(&self, is_offerer: bool) -> (Box<dyn Connection>, ConnectionEvents) {
        let network = self.network.clone();
        let id = network.inner.next.replace(network.inner.next.get() + 1);
        let (events, receiver) = mpsc::unbounded();
        if is_offerer {
            let _ = events.unbounded_send(ConnectionEvent::LocalDescription(network.describe(id, true)));
        }
        network.inner.ends.borrow_mut().insert(id, End { node: self.node, events: events.clone(), remote: None, is_open: false });
        let (wire, frames) = mpsc::unbounded();
        platform::spawn_local(carry(network.clone(), id, events, frames));
        (Box::new(MemoryConnection { network, id, is_offerer, wire }), receiver)
    }
}

impl Connection for MemoryConnection {
    fn set_remote(&self, description: Description) {
        let remote: Option<u64> = description.sdp.lines().find_map(|line| line.strip_prefix("a=memory:")?.parse().ok());
        let network = &self.network;
        let mut ends = network.inner.ends.borrow_mut();
        let Some(remote) = remote.filter(|remote| ends.contains_key(remote)) else { return };
        let Some(end) = ends.get_mut(&self.id) else { return };
        end.remote = Some(remote);
        if !self.is_offerer {
            let _ = end.events.unbounded_send(ConnectionEvent::LocalDescription(network.describe(self.id, false)));
            return;
        }
        drop(ends);
        network.open(self.id);
        network.open(remote);
    }

    fn add_candidate(&self, _candidate: String) {}

    fn send(&self, plane: Plane, frame: Vec<u8>) {
        let _ = self.wire.unbounded_send((plane, frame));
    }
}

impl Drop for MemoryConnection {
    fn drop(&mut self) {
        self.network.close(self.id);
    }
}

/// The cable: one frame after the other at the given bandwidth, each late by the latency.
async fn carry(network: MemoryNetwork, id: u64, sender: ConnectionEventsSender, mut frames: mpsc::UnboundedReceiver<(Plane, Vec<u8>)>) {
    let (late, mut arriving) = mpsc::unbounded::<(f64, Plane, Vec<u8>)>();
    let receiver = network.clone();
    platform::spawn_local(async move {
        while let Some((at, plane, frame)) = arriving.next().await {
            wait_until(at).await;
            if let Some(events) = receiver.remote_events(id) {
                let _ = events.unbounded_send(ConnectionEvent::Message(plane, Bytes::from(frame)));
            }
        }
    });
    let mut free_at = now_millis();
    while let Some((plane, frame)) = frames.next().await {
        let link = network.inner.link.get();
        let seconds = link.bytes_per_second.map_or(0.0, |speed| frame.len() as f64 / speed);
        free_at = free_at.max(now_millis()) + seconds * 1e3;
        wait_until(free_at).await;
        let _ = sender.unbounded_send(ConnectionEvent::Sent(plane, frame.len()));
        let _ = late.unbounded_send((free_at + link.latency_millis, plane, frame));
    }
}

async fn wait_until(at_millis: f64) {
    let wait = at_millis - now_millis();
    // Timers have millisecond grain: what is shorter is made up for by the next frame.
    if wait >= 1.0 {
        platform::sleep(wait as u32).await;
    } else {
        platform::yield_now().await;
    }
}
