//! The links of one node: who is dialled, who is up, what goes where.

use crate::connection::Connector;
use crate::link::{self, Command, LinkEnd, Outgoing, Route, Signal};
use crate::platform;
use crate::relay::RelayConnector;
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
    /// Bytes of messages that came over one link and were not read from [`TransportEvents`], with some for each message; a peer
    /// that sends more than the protocol's steps can leave unread loses its link.
    pub max_unread_bytes: usize,
    /// All links go through the server, for a network that is known to allow no others.
    pub relay_only: bool,
}

impl TransportConfig {
    /// The usual times: 15 s to set up, 1 s of silence after the connection reports it, 512 MiB unread; direct links first.
    pub fn new(node: NodeId, secret: RoomSecret) -> Self {
        Self { node, secret, set_up_timeout_millis: 15_000, silence_millis: 1_000, max_unread_bytes: 512 * 1024 * 1024, relay_only: false }
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
        /// Through the server, because no direct connection came about.
        relayed: bool,
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
    relay: Option<RelayConnector>,
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
    route: Route,
    is_up: Rc<Cell<bool>>,
    commands: mpsc::UnboundedSender<Command>,
}

/// An event, and for messages what to give back when it was read.
pub(crate) struct Envelope {
    pub event: TransportEvent,
    pub unread: Option<(Rc<Cell<usize>>, usize)>,
}

impl Transport {
    /// A node without links, which makes direct ones only.
    pub fn new(config: TransportConfig, connector: impl Connector + 'static) -> (Self, TransportEvents) {
        Self::with(config, Box::new(connector), None)
    }

    /// A node without links; where no direct connection comes about, it is linked through the relay.
    pub fn with_relay(config: TransportConfig, connector: impl Connector + 'static, relay: RelayConnector) -> (Self, TransportEvents) {
        Self::with(config, Box::new(connector), Some(relay))
    }

    fn with(config: TransportConfig, connector: Box<dyn Connector>, relay: Option<RelayConnector>) -> (Self, TransportEvents) {
        let (events, receiver) = mpsc::unbounded();
        let shared = Shared { config, connector, relay, links: RefCell::default(), counters: RefCell::default(), events, next_number: Cell::new(1) };
        (Self { shared: Rc::new(shared) }, TransportEvents { receiver })
    }

    /// Makes a link, unless there is one or one is being made. The node with the lower id offers; both may dial.
    pub fn dial(&self, peer: NodeId) {
        if peer != self.shared.config.node && !self.shared.links.borrow().contains_key(&peer) {
            Shared::begin(&self.shared, peer, self.shared.first_route());
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
        let shared = &self.shared;
        let is_offerer = shared.is_offerer(from);
        let known = shared.links.borrow().get(&from).map(|entry| (entry.attempt, entry.route, entry.is_up.get()));
        match &signal {
            Signal::Wanted { relayed } => {
                let route = if *relayed && shared.relay.is_some() { Route::Relayed } else { shared.first_route() };
                // A direct link that is being made gives way to a relayed one, never the other way about.
                let is_being_made = known.is_some_and(|(_, known, is_up)| !is_up && (known == Route::Relayed || route == Route::Direct));
                if is_offerer && !is_being_made && from != shared.config.node {
                    self.replace(from, Some(shared.number()), route);
                }
            }
            Signal::Offer { .. } | Signal::RelayOffer { .. } if is_offerer => log::warn!("node {from} offered although its id is higher"),
            Signal::Offer { .. } if shared.first_route() == Route::Relayed => {
                if known.is_none_or(|(_, route, is_up)| is_up || route == Route::Direct) {
                    self.drop_link(from);
                    Shared::begin(shared, from, Route::Relayed);
                }
            }
            Signal::RelayOffer { .. } if shared.relay.is_none() => log::warn!("node {from} wants a link through the server, which this one does not make"),
            Signal::Offer { attempt, .. } => self.on_offer(from, *attempt, Route::Direct, signal),
            Signal::RelayOffer { attempt, .. } => self.on_offer(from, *attempt, Route::Relayed, signal),
            Signal::Answer { attempt, .. } | Signal::RelayAnswer { attempt, .. } | Signal::Candidate { attempt, .. } => {
                if known.is_some_and(|(known, ..)| known == Some(*attempt)) {
                    shared.command(from, Command::Signal(signal));
                }
            }
        }
    }

    fn on_offer(&self, from: NodeId, attempt: u32, route: Route, signal: Signal) {
        let known = self.shared.links.borrow().get(&from).map(|entry| (entry.attempt, entry.route));
        match known {
            Some((None, known)) if known == route => self.shared.links.borrow_mut().get_mut(&from).into_iter().for_each(|entry| entry.attempt = Some(attempt)),
            Some((Some(known), _)) if known == attempt => return,
            _ => self.replace(from, Some(attempt), route),
        }
        self.shared.command(from, Command::Signal(signal));
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

    fn replace(&self, peer: NodeId, attempt: Option<u32>, route: Route) {
        self.drop_link(peer);
        Shared::start(&self.shared, peer, attempt, route);
    }

    /// Lets go of a link that the other end makes anew.
    fn drop_link(&self, peer: NodeId) {
        if let Some(entry) = self.shared.links.borrow_mut().remove(&peer) {
            let _ = entry.commands.unbounded_send(Command::End(LinkEnd::HungUp));
            if entry.is_up.replace(false) {
                self.shared.say(TransportEvent::LinkDown { peer, reason: "the other device started the link anew".into() });
            }
        }
    }
}

impl Shared {
    /// Offers a link, or asks for an offer.
    fn begin(shared: &Rc<Self>, peer: NodeId, route: Route) {
        if shared.is_offerer(peer) {
            Self::start(shared, peer, Some(shared.number()), route);
        } else {
            Self::start(shared, peer, None, route);
            shared.signal(peer, &Signal::Wanted { relayed: route == Route::Relayed });
        }
    }

    fn start(shared: &Rc<Self>, peer: NodeId, attempt: Option<u32>, route: Route) {
        let (commands, receiver) = mpsc::unbounded();
        let is_up = Rc::new(Cell::new(false));
        let number = shared.number();
        let counters = Rc::clone(shared.counters.borrow_mut().entry(peer).or_insert_with(|| Rc::new(RefCell::new(LinkCounters { peer, ..LinkCounters::default() }))));
        shared.links.borrow_mut().insert(peer, Entry { number, attempt, route, is_up: Rc::clone(&is_up), commands });
        let is_offerer = shared.is_offerer(peer);
        let (connection, incoming) = match (&shared.relay, route) {
            (Some(relay), Route::Relayed) => relay.connect(peer, is_offerer),
            _ => shared.connector.connect(is_offerer),
        };
        let can_relay = shared.relay.is_some();
        let context = link::LinkContext { config: shared.config.clone(), peer, is_offerer, attempt, route, can_relay, is_up, counters, events: shared.events.clone() };
        let shared = Rc::downgrade(shared);
        platform::spawn_local(async move {
            let (end, linger) = link::run(context, connection, incoming, receiver).await;
            if let Some(shared) = shared.upgrade() {
                Self::on_end(&shared, peer, number, end);
            }
            linger.await;
        });
    }

    /// The link with this number ended.
    fn on_end(shared: &Rc<Self>, peer: NodeId, number: u32, end: LinkEnd) {
        let is_current = shared.links.borrow().get(&peer).is_some_and(|entry| entry.number == number);
        match end {
            LinkEnd::Unreachable(reason) if is_current && shared.relay.is_some() => {
                log::info!("node {peer} is linked through the server: {reason}");
                shared.links.borrow_mut().remove(&peer);
                Self::begin(shared, peer, Route::Relayed);
            }
            LinkEnd::Failed(reason) | LinkEnd::Unreachable(reason) if is_current => {
                shared.links.borrow_mut().remove(&peer);
                shared.say(TransportEvent::LinkDown { peer, reason });
            }
            _ => {}
        }
    }

    fn first_route(&self) -> Route {
        if self.config.relay_only && self.relay.is_some() { Route::Relayed } else { Route::Direct }
    }

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
