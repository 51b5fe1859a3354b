//! The links of one node: who is dialled, who is up, what goes where.

use crate::connection::{Connector};
use crate::link::{self, Command, LinkEnd, Outgoing, Signal};
use crate::platform;
use barycenter_protocol::NodeId;
use barycenter_protocol::auth::RoomSecret;
use barycenter_protocol::control::LinkCounters;
use barycenter_protocol::peer::PeerMessage;
use bytes::Bytes;
use futures::channel::{mpsc, oneshot};
use futures::{FutureExt, Stream, StreamExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// What a transport has to know.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// This node.
    pub node: NodeId,
    /// Both ends of a link prove that they know it.
    pub secret: RoomSecret,
    /// A link that is not up after so long is given up, milliseconds.
    pub set_up_timeout_millis: u32,
    /// A link of which nothing was heard for so long (after the connection noticed) is given up, milliseconds.
    pub silence_millis: u32,
    /// Bytes of messages that came over one link and were not read from [`TransportEvents`]; a peer that sends more
    /// than the protocol's steps can leave unread loses its link.
    pub max_unread_bytes: usize,
}

impl TransportConfig {
    /// The usual times: 15 s to set up, 1 s of silence after the connection reports it, 512 MiB unread.
    pub fn new(node: NodeId, secret: RoomSecret) -> Self {
        Self { node, secret, set_up_timeout_millis: 15_000, silence_millis: 1_000, max_unread_bytes: 512 * 1024 * 1024 }
    }
}

/// What happens to the links of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum TransportEvent {
    /// To be passed to `to` through the server (`FromNode::Signal`), in order.
    Signal {
        /// To whom.
        to: NodeId,
        /// JSON, read by the other transport only.
        payload: String,
    },
    /// A link is up: both ends proved the secret, and it was measured.
    LinkUp {
        /// The other end.
        peer: NodeId,
        /// Milliseconds.
        round_trip_millis: f64,
        /// Of the bulk channel, from here to there.
        bytes_per_second: f64,
    },
    /// A link ended or could not be made. Not said of links that were hung up here.
    LinkDown {
        /// The other end.
        peer: NodeId,
        /// A sentence for people.
        reason: String,
    },
    /// A message came. Only between `LinkUp` and `LinkDown` of its peer.
    Message {
        /// From whom.
        from: NodeId,
        /// What it is.
        message: PeerMessage,
        /// Its data, not aligned.
        data: Bytes,
    },
}

/// Why a message was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no link, or it is not up yet.
    #[error("no link to node {0} is up: wait for it, or dial")]
    NoLink(NodeId),
    /// The link ended before all of the message was sent.
    #[error("the link to node {0} ended while a message was being sent")]
    LinkDown(NodeId),
    /// Larger than any message may be.
    #[error("a message of {0} bytes is larger than the 64 MiB a link carries: cut it into smaller ones")]
    TooLarge(usize),
}

/// The links of one node. Cheap to clone; all clones are the same transport.
#[derive(Clone)]
pub struct Transport {
    shared: Rc<Shared>,
}

/// What the transport says, in order.
pub struct TransportEvents {
    receiver: mpsc::UnboundedReceiver<Envelope>,
}

struct Shared {
    config: TransportConfig,
    connector: Box<dyn Connector>,
    links: RefCell<HashMap<NodeId, Entry>>,
    counters: RefCell<BTreeMap<NodeId, Rc<RefCell<LinkCounters>>>>,
    events: mpsc::UnboundedSender<Envelope>,
    next_number: Cell<u32>,
}

/// A link as the transport sees it; dropping it ends the link's task.
struct Entry {
    number: u32,
    /// The offer's number this link belongs to; an answerer learns it from the offer.
    attempt: Option<u32>,
    is_up: Rc<Cell<bool>>,
    commands: mpsc::UnboundedSender<Command>,
}

/// An event, and for messages what to give back when it was read.
pub(crate) struct Envelope {
    pub event: TransportEvent,
    pub unread: Option<(Rc<Cell<usize>>, usize)>,
}

impl Transport {
    /// A node without links.
    pub fn new(config: TransportConfig, connector: impl Connector + 'static) -> (Self, TransportEvents) {
        let (events, receiver) = mpsc::unbounded();
        let shared = Shared { config, connector: Box::new(connector), links: RefCell::default(), counters: RefCell::default(), events, next_number: Cell::new(1) };
        (Self { shared: Rc::new(shared) }, TransportEvents { receiver })
    }

    /// Makes a link, unless there is one or one is being made. The node with the lower id offers; both may dial.
    pub fn dial(&self, peer: NodeId) {
        if peer == self.shared.config.node || self.shared.links.borrow().contains_key(&peer) {
            return;
        }
        if self.shared.is_offerer(peer) {
            self.start(peer, Some(self.shared.number()));
        } else {
            self.start(peer, None);
            self.shared.signal(peer, &Signal::Wanted);
        }
    }

    /// Ends the link, without an event.
    pub fn hang_up(&self, peer: NodeId) {
        if let Some(entry) = self.shared.links.borrow_mut().remove(&peer) {
            let _ = entry.commands.unbounded_send(Command::End(LinkEnd::HungUp));
        }
    }

    /// Ends all links, without events.
    pub fn hang_up_all(&self) {
        let peers: Vec<_> = self.shared.links.borrow().keys().copied().collect();
        peers.into_iter().for_each(|peer| self.hang_up(peer));
    }

    /// Takes what another node's transport signalled. What cannot be read is dropped.
    pub fn on_signal(&self, from: NodeId, payload: &str) {
        let Ok(signal) = serde_json::from_str::<Signal>(payload) else {
            log::warn!("node {from} signalled what cannot be read: {} bytes", payload.len());
            return;
        };
        let is_offerer = self.shared.is_offerer(from);
        match &signal {
            Signal::Wanted => {
                let is_being_made = self.shared.links.borrow().get(&from).is_some_and(|entry| !entry.is_up.get());
                if is_offerer && !is_being_made && from != self.shared.config.node {
                    self.replace(from, Some(self.shared.number()));
                }
            }
            Signal::Offer { attempt, .. } if !is_offerer => {
                let known = self.shared.links.borrow().get(&from).map(|entry| entry.attempt);
                match known {
                    Some(None) => self.shared.links.borrow_mut().get_mut(&from).into_iter().for_each(|entry| entry.attempt = Some(*attempt)),
                    Some(Some(known)) if known == *attempt => return,
                    _ => self.replace(from, Some(*attempt)),
                }
                self.shared.command(from, Command::Signal(signal));
            }
            Signal::Offer { .. } => log::warn!("node {from} offered although its id is higher"),
            Signal::Answer { attempt, .. } | Signal::Candidate { attempt, .. } => {
                if self.shared.links.borrow().get(&from).is_some_and(|entry| entry.attempt == Some(*attempt)) {
                    self.shared.command(from, Command::Signal(signal));
                }
            }
        }
    }

    /// Whether the link to `peer` is up.
    pub fn is_up(&self, peer: NodeId) -> bool {
        self.shared.links.borrow().get(&peer).is_some_and(|entry| entry.is_up.get())
    }

    /// Sends a message: it takes its place in the queue of its channel *at the call*; the future ends when all of it is
    /// with the channel, whose buffer is bounded. Awaiting it is the back-pressure; dropping it does not take the
    /// message back. Messages to different peers do not wait for each other.
    pub fn send(&self, peer: NodeId, message: PeerMessage, data: Bytes) -> impl Future<Output = Result<(), SendError>> + use<> {
        let (done, sent) = oneshot::channel();
        let queued = Outgoing::new(&message, data, done).map_err(SendError::TooLarge).and_then(|outgoing| match self.shared.links.borrow().get(&peer) {
            Some(entry) if entry.is_up.get() => entry.commands.unbounded_send(Command::Send(outgoing)).map_err(|_| SendError::LinkDown(peer)),
            _ => Err(SendError::NoLink(peer)),
        });
        async move {
            queued?;
            sent.await.map_err(|_| SendError::LinkDown(peer))
        }
    }

    /// Bytes sent since the start, by kind, for every peer there ever was a link to (ascending).
    pub fn counters(&self) -> Vec<LinkCounters> {
        self.shared.counters.borrow().values().map(|counters| counters.borrow().clone()).collect()
    }

    fn replace(&self, peer: NodeId, attempt: Option<u32>) {
        if let Some(entry) = self.shared.links.borrow_mut().remove(&peer) {
            let _ = entry.commands.unbounded_send(Command::End(LinkEnd::HungUp));
            if entry.is_up.replace(false) {
                self.shared.say(TransportEvent::LinkDown { peer, reason: "the other device started the link anew".into() });
            }
        }
        self.start(peer, attempt);
    }

    fn start(&self, peer: NodeId, attempt: Option<u32>) {
        let shared = &self.shared;
        let (commands, receiver) = mpsc::unbounded();
        let is_up = Rc::new(Cell::new(false));
        let number = shared.number();
        let counters = Rc::clone(shared.counters.borrow_mut().entry(peer).or_insert_with(|| Rc::new(RefCell::new(LinkCounters { peer, ..LinkCounters::default() }))));
        shared.links.borrow_mut().insert(peer, Entry { number, attempt, is_up: Rc::clone(&is_up), commands });
        let is_offerer = shared.is_offerer(peer);
        let (connection, incoming) = shared.connector.connect(is_offerer);
        let context = link::LinkContext { config: shared.config.clone(), peer, is_offerer, attempt, is_up, counters, events: shared.events.clone() };
        let shared = Rc::downgrade(shared);
        platform::spawn_local(async move {
            let (end, linger) = link::run(context, connection, incoming, receiver).await;
            if let (LinkEnd::Failed(reason), Some(shared)) = (end, shared.upgrade()) {
                let is_current = shared.links.borrow().get(&peer).is_some_and(|entry| entry.number == number);
                if is_current {
                    shared.links.borrow_mut().remove(&peer);
                    shared.say(TransportEvent::LinkDown { peer, reason });
                }
            }
            linger.await;
        });
    }
}

impl Shared {
    fn is_offerer(&self, peer: NodeId) -> bool {
        self.config.node < peer
    }

    fn number(&self) -> u32 {
        self.next_number.replace(self.next_number.get().wrapping_add(1))
    }

    fn say(&self, event: TransportEvent) {
        let _ = self.events.unbounded_send(Envelope { event, unread: None });
    }

    fn signal(&self, to: NodeId, signal: &Signal) {
        self.say(TransportEvent::Signal { to, payload: signal.to_json() });
    }

    fn command(&self, peer: NodeId, command: Command) {
        if let Some(entry) = self.links.borrow().get(&peer) {
            let _ = entry.commands.unbounded_send(command);
        }
    }
}

impl Stream for TransportEvents {
    type Item = TransportEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TransportEvent>> {
        self.receiver.poll_next_unpin(cx).map(|envelope| envelope.map(Envelope::open))
    }
}

impl TransportEvents {
    /// The next event; waits for it. `None` when the transport is gone.
    pub async fn recv(&mut self) -> Option<TransportEvent> {
        self.receiver.next().await.map(Envelope::open)
    }

    /// The next event, if there is one already.
    pub fn try_recv(&mut self) -> Option<TransportEvent> {
        self.receiver.next().now_or_never().flatten().map(Envelope::open)
    }
}

impl Envelope {
    fn open(self) -> TransportEvent {
        if let Some((unread, bytes)) = self.unread {
            unread.set(unread.get().saturating_sub(bytes));
        }
        self.event
    }
}
