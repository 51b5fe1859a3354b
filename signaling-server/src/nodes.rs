//! The joined nodes: sessions, queues of messages down, counters.

use crate::error::{Answer, Refusal};
use crate::relay::{self, Inbox, Reader};
use axum::http::StatusCode;
use barycenter_protocol::auth::{equal_in_constant_time, to_hex};
use barycenter_protocol::control::{Counters, JoinReply, JoinRequest, ToNode};
use barycenter_protocol::{NodeId, PROTOCOL_VERSION};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Most nodes at a time: a household or a classroom.
pub const MAX_NODES: usize = 64;
/// Most messages waiting for a node. A node that reads so slowly has lost its place anyway: its stream ends with a
/// sentence, and it may join anew.
pub const QUEUE_MESSAGES: usize = 1024;
/// Longest name, characters.
pub const MAX_NAME_CHARACTERS: usize = 40;
/// A device that joined opens its stream within this time, or its place is given up.
const STREAM_TIMEOUT: Duration = Duration::from_secs(10);

/// The receiving end of a node's queue, held by its stream.
#[derive(Debug)]
pub struct NodeStream {
    /// Messages; it ends when the node is removed.
    pub queue: mpsc::Receiver<ToNode>,
    /// Dropped with the stream, which tells the host at once that the node is gone.
    _guard: oneshot::Sender<()>,
}

/// A joined device.
#[derive(Debug)]
pub struct Node {
    /// What it said when it joined.
    pub request: JoinRequest,
    /// Latest counters.
    pub counters: Counters,
    /// Text and fraction of a long preparation.
    pub progress: Option<(String, f32)>,
    joined: Instant,
    session: String,
    queue: mpsc::Sender<ToNode>,
    /// Until the stream is opened.
    waiting: Option<mpsc::Receiver<ToNode>>,
    /// Since it needed a relay.
    inbox: Option<relay::Owner>,
}

impl Node {
    /// Whether its stream was opened: only then it takes part.
    pub fn is_present(&self) -> bool {
        self.waiting.is_none()
    }
}

/// What became of a message for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It waits in the queue.
    Queued,
    /// There is no such node.
    Absent,
    /// The queue was full: the node was told and must be removed.
    Overflow,
}

/// Every joined node.
#[derive(Debug, Default)]
pub struct Nodes {
    nodes: BTreeMap<NodeId, Node>,
    last_id: u32,
}

impl Nodes {
    /// Ids go on after `last_id`, so that none is used twice, restarts included.
    pub fn new(last_id: u32) -> Self {
        Self { nodes: BTreeMap::new(), last_id }
    }

    /// Takes a device in. The second value is the earlier stay of the same device, which the caller must end.
    pub fn join(&mut self, request: JoinRequest, now: Instant) -> Answer<(JoinReply, Option<NodeId>)> {
        check(&request)?;
        let earlier = self.nodes.iter().find(|(_, n)| n.request.device_token == request.device_token).map(|(id, _)| *id);
        if self.nodes.len() >= MAX_NODES && earlier.is_none() {
            return Err(Refusal::conflict(format!("{MAX_NODES} devices have joined already, which is the limit: let one leave first")));
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(Refusal::internal)?;
        let session = to_hex(&random);
        self.last_id += 1;
        let node = NodeId(self.last_id);
        // One more than the bound, kept free for the sentence that ends the stream.
        let (queue, waiting) = mpsc::channel(QUEUE_MESSAGES + 1);
        let entry = Node {
            request,
            counters: Counters::default(),
            progress: None,
            joined: now,
            session: session.clone(),
            queue,
            waiting: Some(waiting),
            inbox: None,
        };
        self.nodes.insert(node, entry);
        Ok((JoinReply { node, session, version: PROTOCOL_VERSION }, earlier))
    }

    /// Opens the stream of a node; a node has one stream in its stay.
    /// The second value completes when the stream is dropped.
    pub fn open(&mut self, node: NodeId, session: &str) -> Answer<(NodeStream, oneshot::Receiver<()>)> {
        let entry = self.authorised(node, session)?;
        let queue = entry.waiting.take().ok_or_else(|| Refusal::conflict("this device's stream is open already: join anew for another one"))?;
        let (guard, dropped) = oneshot::channel();
        Ok((NodeStream { queue, _guard: guard }, dropped))
    }

    /// Opens the node's inbox at the relay in place of the one it may have had.
    pub fn open_inbox(&mut self, node: NodeId, session: &str) -> Answer<Reader> {
        let entry = self.present_as(node, session)?;
        let (owner, reader) = relay::inbox(relay::STALL);
        entry.inbox = Some(owner);
        Ok(reader)
    }

    /// The inbox of `peer` for a parcel of `node`.
    pub fn inbox(&mut self, node: NodeId, session: &str, peer: NodeId) -> Answer<Arc<Inbox>> {
        self.present_as(node, session)?;
        let inbox = self.nodes.get(&peer).filter(|_| peer != node).and_then(|entry| entry.inbox.as_ref());
        Ok(inbox.ok_or_else(relay::gone)?.inbox())
    }

    fn present_as(&mut self, node: NodeId, session: &str) -> Answer<&mut Node> {
        let entry = self.authorised(node, session)?;
        if entry.is_present() { Ok(entry) } else { Err(Refusal::conflict("this device has not opened its stream: open it before the relay")) }
    }

    /// The node of a session; 410 when it is gone, which tells a device to join anew.
    pub fn authorised(&mut self, node: NodeId, session: &str) -> Answer<&mut Node> {
        match self.nodes.get_mut(&node) {
            Some(entry) if equal_in_constant_time(entry.session.as_bytes(), session.as_bytes()) => Ok(entry),
            _ => Err(Refusal::new(StatusCode::GONE, "this device's place is gone (it was silent too long, or the server was restarted): join again")),
        }
    }

    /// Puts a message into a node's queue.
    pub fn send(&self, node: NodeId, message: ToNode) -> Sent {
        let Some(entry) = self.nodes.get(&node) else { return Sent::Absent };
        if entry.queue.capacity() <= 1 {
            let reason = format!("this device left {QUEUE_MESSAGES} messages of the server unread: join again");
            let _ = entry.queue.try_send(ToNode::Goodbye { reason });
            return Sent::Overflow;
        }
        match entry.queue.try_send(message) {
            Ok(()) => Sent::Queued,
            Err(_) => Sent::Absent,
        }
    }

    /// Forgets a node; its stream ends after what is queued.
    pub fn remove(&mut self, node: NodeId) -> Option<Node> {
        self.nodes.remove(&node)
    }

    /// Devices that joined and never opened their stream; they were never told of.
    pub fn unopened(&self, now: Instant) -> Vec<NodeId> {
        let late = |n: &Node| !n.is_present() && now.duration_since(n.joined) > STREAM_TIMEOUT;
        self.nodes.iter().filter(|(_, n)| late(n)).map(|(id, _)| *id).collect()
    }

    /// A node.
    pub fn get(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node)
    }

    /// Those whose stream is open, by id.
    pub fn present(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().filter(|(_, n)| n.is_present()).map(|(id, n)| (*id, n))
    }

    /// The last id given.
    pub fn last_id(&self) -> u32 {
        self.last_id
    }
}

fn check(request: &JoinRequest) -> Answer<()> {
    if !request.version.is_compatible_with(PROTOCOL_VERSION) {
        let (theirs, ours) = (request.version, PROTOCOL_VERSION);
        return Err(Refusal::conflict(format!(
            "this device speaks version {}.{} and the server {}.{}: reload the page, or take the program of the server's version",
            theirs.major, theirs.minor, ours.major, ours.minor
        )));
    }
    let name = request.name.trim();
    if name.is_empty() || request.name.chars().count() > MAX_NAME_CHARACTERS || request.name.chars().any(char::is_control) {
        return Err(Refusal::bad(format!("the device's name must have 1 to {MAX_NAME_CHARACTERS} characters without control characters: choose another")));
    }
    let token = &request.device_token;
    if !(8..=128).contains(&token.len()) || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Refusal::bad("the device's token must have 8 to 128 visible ASCII characters: clear the site's data and reload the page"));
    }
    let backend = &request.backend;
    if [&backend.kind, &backend.description, &backend.reason].iter().any(|text| text.len() > 1000) {
        return Err(Refusal::bad("the description of the device's back end is longer than 1000 bytes: shorten it"));
    }
    if !(request.gflops.is_finite() && request.gflops > 0.0) {
        return Err(Refusal::bad("the device's measured speed must be a positive number: let it run its self-test again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use barycenter_protocol::ProtocolVersion;
    use barycenter_protocol::control::{BackendReport, NodeKind};

    fn request(token: &str) -> JoinRequest {
        JoinRequest {
            version: PROTOCOL_VERSION,
            name: "Mia's phone".into(),
            kind: NodeKind::Browser,
            backend: BackendReport { kind: "cpu".into(), description: "".into(), reason: "".into() },
            gflops: 1.0,
            memory_budget_bytes: 1,
            storage_budget_bytes: 1,
            device_token: token.into(),
        }
    }

    #[test]
    fn a_device_that_joins_again_replaces_itself() {
        let mut nodes = Nodes::new(7);
        let now = Instant::now();
        let (first, none) = nodes.join(request("token-one"), now).unwrap();
        let (second, replaced) = nodes.join(request("token-one"), now).unwrap();
        assert_eq!((first.node, none, second.node, replaced), (NodeId(8), None, NodeId(9), Some(NodeId(8))));
    }

    #[test]
    fn a_queue_that_is_not_read_ends_with_a_sentence() {
        let mut nodes = Nodes::default();
        let now = Instant::now();
        let (reply, _) = nodes.join(request("token-one"), now).unwrap();
        let (mut stream, _) = nodes.open(reply.node, &reply.session).unwrap();
        for _ in 0..QUEUE_MESSAGES {
            assert_eq!(nodes.send(reply.node, ToNode::Ping), Sent::Queued);
        }
        assert_eq!(nodes.send(reply.node, ToNode::Ping), Sent::Overflow);
        nodes.remove(reply.node);
        let mut last = None;
        while let Ok(message) = stream.queue.try_recv() {
            last = Some(message);
        }
        assert!(matches!(last, Some(ToNode::Goodbye { .. })));
        assert!(stream.queue.is_closed(), "the stream ends after what was queued");
    }

    #[test]
    fn sessions_and_streams_are_checked() {
        let mut nodes = Nodes::default();
        let now = Instant::now();
        let (reply, _) = nodes.join(request("token-one"), now).unwrap();
        assert_eq!(nodes.open(reply.node, "x").unwrap_err().status, StatusCode::GONE);
        assert!(nodes.open(reply.node, &reply.session).is_ok());
        assert_eq!(nodes.open(reply.node, &reply.session).unwrap_err().status, StatusCode::CONFLICT);
    }

    #[test]
    fn bad_joins_get_a_sentence() {
        let mut nodes = Nodes::default();
        let now = Instant::now();
        let mut status = |change: &dyn Fn(&mut JoinRequest)| {
            let mut r = request("token-one");
            change(&mut r);
            nodes.join(r, now).unwrap_err().status.as_u16()
        };
        assert_eq!(status(&|r| r.version = ProtocolVersion { major: 9, minor: 0 }), 409);
        assert_eq!(status(&|r| r.name = "a\nb".into()), 400);
        assert_eq!(status(&|r| r.name = "x".repeat(41)), 400);
        assert_eq!(status(&|r| r.device_token = "".into()), 400);
        assert_eq!(status(&|r| r.gflops = f64::NAN), 400);
    }
}
