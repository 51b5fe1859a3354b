//! One link from its first signal to its end: greeting, proof, measuring, messages both ways.
//!
//! ```text
//! connecting ── both channels open, both greetings good ──► measuring ── round trip, one probe each way ──► up
//! ```
//! Any surprise ends the link with a sentence. The same code runs over every [`Connection`].

use crate::connection::{Connection, ConnectionEvent, ConnectionEvents, Description, DescriptionKind, Plane};
use crate::platform::{self, now_millis};
use crate::relay;
use crate::sdp;
use crate::transport::{Envelope, TransportConfig, TransportEvent};
use barycenter_protocol::auth::equal_in_constant_time;
use barycenter_protocol::control::LinkCounters;
use barycenter_protocol::frame::{self, Assembler, FrameKind, HEADER_BYTES, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Message};
use barycenter_protocol::peer::{Hello, PeerMessage, TrafficKind};
use barycenter_protocol::{NodeId, PROTOCOL_VERSION};
use bytes::Bytes;
use futures::channel::{mpsc, oneshot};
use futures::future::{Fuse, FusedFuture, FutureExt};
use futures::{StreamExt, select};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;

/// Round trips measured before a link is up; the shortest counts.
const PINGS: u32 = 4;
/// Enough to leave the slow start of SCTP behind, little enough for a phone on Wi-Fi (about 20 ms).
const PROBE_BYTES: usize = 256 * 1024;
/// Small frames, so that the time from first to last says something.
const PROBE_FRAME_BYTES: usize = 16 * 1024;
/// A probe that took so long met one lost packet at the start of SCTP, which costs a second, or a slow link; another one
/// tells. Longer than that it is a slow link for sure.
const STALLED_PROBE_MILLIS: std::ops::Range<f64> = 500.0..3_000.0;
/// At most so many.
const MAX_PROBES: u32 = 3;
/// A refused connection stays open for so long, so that the other end gets our greeting and can say why it ends too.
const LINGER_MILLIS: u32 = 300;
/// Until the other end shows that it has our greeting, it is repeated so often: a channel may be open at one end a moment
/// before the other end's stack takes messages for it (the `webrtc` crate drops them). The same goes for our ping.
const REPEAT_MILLIS: u32 = 200;
/// A direct connection that is not open after so many repeats (4 s) is given up where the server can relay; on a home network it takes
/// well below a second, or never comes. The coordinator waits ten seconds for links before it plans without them.
const MAX_LOOKS: u32 = 20;
const NO_DIRECT_CONNECTION: &str = "no direct connection came about: both devices must be in one network, without a firewall or the Wi-Fi's client isolation between them";
/// After so many events in one go the other tasks of this thread get their turn.
const EVENTS_PER_TURN: u32 = 64;

/// What travels through the server, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Signal {
    /// The node with the higher id wants a link: please offer.
    Wanted {
        /// Through the server.
        #[serde(default)]
        relayed: bool,
    },
    Offer {
        /// The offerer's number of this attempt; what belongs to it carries it.
        attempt: u32,
        sdp: String,
    },
    Answer {
        attempt: u32,
        sdp: String,
    },
    Candidate {
        attempt: u32,
        candidate: String,
    },
    /// As `Offer`, for a link through the server.
    RelayOffer {
        attempt: u32,
        /// X25519, see [`crate::relay`].
        key: String,
    },
    RelayAnswer {
        attempt: u32,
        key: String,
    },
}

impl Signal {
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers have a JSON form")
    }
}

/// What the transport tells a link.
pub(crate) enum Command {
    Signal(Signal),
    Send(Outgoing),
    End(LinkEnd),
}

/// Which way a link takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// From device to device.
    Direct,
    /// Sealed, through the home server.
    Relayed,
}

/// How a link ended.
pub(crate) enum LinkEnd {
    /// By the transport.
    HungUp,
    /// No direct connection came about; a sentence. Through the server one may.
    Unreachable(String),
    /// By the other end or by what it did; a sentence.
    Failed(String),
}

impl From<String> for LinkEnd {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

pub(crate) struct LinkContext {
    pub config: TransportConfig,
    pub peer: NodeId,
    pub is_offerer: bool,
    pub attempt: Option<u32>,
    pub route: Route,
    /// Whether the server relays where no direct connection comes about.
    pub can_relay: bool,
    pub is_up: Rc<Cell<bool>>,
    pub counters: Rc<RefCell<LinkCounters>>,
    pub events: mpsc::UnboundedSender<Envelope>,
}

/// A message on its way out.
pub(crate) struct Outgoing {
    kind: FrameKind,
    plane: Plane,
    traffic: TrafficKind,
    head: Vec<u8>,
    data: Bytes,
    frame_bytes: usize,
    offset: usize,
    done: Option<oneshot::Sender<()>>,
}

impl Outgoing {
    /// A message from above; the error is its size if that is too large.
    pub fn new(message: &PeerMessage, data: Bytes, done: oneshot::Sender<()>) -> Result<Self, usize> {
        let head = message.encode(&[]);
        let len = head.len() + data.len();
        if len > MAX_MESSAGE_BYTES {
            return Err(len);
        }
        let (kind, plane) = if message.is_bulk() { (FrameKind::Tensor, Plane::Bulk) } else { (FrameKind::Control, Plane::Control) };
        Ok(Self { kind, plane, traffic: message.traffic_kind(), head, data, frame_bytes: MAX_FRAME_BYTES, offset: 0, done: Some(done) })
    }

    fn own(kind: FrameKind, plane: Plane, head: Vec<u8>) -> Self {
        Self { kind, plane, traffic: TrafficKind::Other, head, data: Bytes::new(), frame_bytes: MAX_FRAME_BYTES, offset: 0, done: None }
    }
}

/// Runs a link to its end. The second value keeps the connection for as long as it should outlive the link.
pub(crate) async fn run(
    context: LinkContext,
    connection: Box<dyn Connection>,
    incoming: ConnectionEvents,
    commands: mpsc::UnboundedReceiver<Command>,
) -> (LinkEnd, impl Future<Output = ()>) {
    let mut link = Link::new(context, connection);
    let end = link.drive(incoming, commands).await;
    link.context.is_up.set(false);
    let lingers = matches!(end, LinkEnd::Failed(_)) && link.planes.iter().any(|plane| plane.is_open);
    // Whoever still waits for a message to be sent is told now.
    link.planes = Default::default();
    let linger = async move {
        if lingers {
            platform::sleep(LINGER_MILLIS).await;
        }
        drop(link);
    };
    (end, linger)
}

struct Link {
    context: LinkContext,
    connection: Box<dyn Connection>,
    /// What the proof is taken over: fingerprints of a direct link, public keys of a relayed one.
    local_identity: Option<String>,
    remote_identity: Option<String>,
    /// Looks at a connection that did not open yet, since both ends are described.
    looks: u32,
    max_frame_bytes: usize,
    planes: [PlaneState; 2],
    phase: Phase,
    is_disconnected: bool,
    /// The other end works with us, so it has both our greetings.
    has_greeting_arrived: bool,
    /// When the first frame of a probe came, and its length.
    first_probe: Option<(f64, usize)>,
    unread: Rc<Cell<usize>>,
    next_message: u32,
}

#[derive(Default)]
struct PlaneState {
    is_open: bool,
    is_greeted: bool,
    assembler: Assembler,
    queue: VecDeque<(u32, Outgoing)>,
    unanswered_bytes: usize,
}

enum Phase {
    Connecting,
    Measuring(Measuring),
    Up,
}

/// What was measured so far.
#[derive(Default)]
struct Measuring {
    round_trips: Vec<f64>,
    ping_sent_at: f64,
    has_their_probe: bool,
    /// When our latest probe was queued.
    probe_sent_at: Option<f64>,
    probes: u32,
    /// Of the best probe so far.
    best_bytes_per_second: f64,
    bytes_per_second: Option<f64>,
    /// The other end may be up before us.
    early: Vec<(PeerMessage, Bytes, usize)>,
}

impl Measuring {
    fn round_trip_millis(&self) -> Option<f64> {
        (self.round_trips.len() as u32 >= PINGS).then(|| self.round_trips.iter().copied().fold(f64::INFINITY, f64::min))
    }
}

impl Link {
    fn new(context: LinkContext, connection: Box<dyn Connection>) -> Self {
        Self {
            context,
            connection,
            local_identity: None,
            remote_identity: None,
            looks: 0,
            max_frame_bytes: MAX_FRAME_BYTES,
            planes: Default::default(),
            phase: Phase::Connecting,
            is_disconnected: false,
            has_greeting_arrived: false,
            first_probe: None,
            unread: Rc::default(),
            next_message: 0,
        }
    }

    async fn drive(&mut self, mut incoming: ConnectionEvents, mut commands: mpsc::UnboundedReceiver<Command>) -> LinkEnd {
        let mut set_up = timer(self.context.config.set_up_timeout_millis);
        let mut silence = Timer::terminated();
        let mut repeat = timer(REPEAT_MILLIS);
        let mut handled = 0u32;
        loop {
            self.flush();
            let result = select! {
                event = incoming.next() => match event {
                    Some(event) => self.on_event(event),
                    None => Err("the connection to the other device ended".to_owned().into()),
                },
                command = commands.next() => match command {
                    Some(command) => self.on_command(command),
                    None => Err(LinkEnd::HungUp),
                },
                () = set_up => match self.phase {
                    Phase::Up => Ok(()),
                    _ => Err(self.set_up_failure()),
                },
                () = repeat => {
                    if !matches!(self.phase, Phase::Up) {
                        repeat = timer(REPEAT_MILLIS);
                    }
                    self.look().and_then(|()| self.repeat())
                }
                () = silence => Err("nothing was heard of the other device any more".to_owned().into()),
            };
            if let Err(end) = result {
                return end;
            }
            if self.is_disconnected == silence.is_terminated() {
                silence = if self.is_disconnected { timer(self.context.config.silence_millis) } else { Timer::terminated() };
            }
            handled = handled.wrapping_add(1);
            if handled.is_multiple_of(EVENTS_PER_TURN) {
                platform::yield_now().await;
            }
        }
    }

    fn set_up_failure(&self) -> LinkEnd {
        let seconds = f64::from(self.context.config.set_up_timeout_millis) / 1e3;
        let what = if self.remote_identity.is_none() {
            "the other device did not answer"
        } else if self.has_closed_plane() {
            return self.unreachable(format!("no link within {seconds} s: {NO_DIRECT_CONNECTION}"));
        } else if matches!(self.phase, Phase::Connecting) {
            "the other device did not greet"
        } else {
            "the other device did not answer the measurement"
        };
        LinkEnd::Failed(format!("no link within {seconds} s: {what}"))
    }

    fn has_closed_plane(&self) -> bool {
        self.planes.iter().any(|plane| !plane.is_open)
    }

    /// The end of a connection by itself. A direct one that was never up may be made up for by the server.
    fn unreachable(&self, reason: String) -> LinkEnd {
        match (self.context.route, &self.phase) {
            (Route::Direct, Phase::Connecting | Phase::Measuring(_)) => LinkEnd::Unreachable(reason),
            _ => LinkEnd::Failed(reason),
        }
    }

    /// Looks are counted, not time: a thread that was busy meanwhile has not looked.
    fn look(&mut self) -> Result<(), LinkEnd> {
        if self.context.route == Route::Relayed || !self.context.can_relay || self.remote_identity.is_none() || self.local_identity.is_none() || !self.has_closed_plane() {
            return Ok(());
        }
        self.looks += 1;
        if self.looks < MAX_LOOKS {
            return Ok(());
        }
        let seconds = f64::from(MAX_LOOKS * REPEAT_MILLIS) / 1e3;
        Err(self.unreachable(format!("not connected within {seconds} s: {NO_DIRECT_CONNECTION}")))
    }

    fn on_command(&mut self, command: Command) -> Result<(), LinkEnd> {
        match command {
            Command::Signal(signal) => self.on_signal(signal),
            Command::Send(outgoing) => {
                self.enqueue(outgoing);
                Ok(())
            }
            Command::End(end) => Err(end),
        }
    }

    fn on_signal(&mut self, signal: Signal) -> Result<(), LinkEnd> {
        let (route, kind, attempt, sdp) = match signal {
            Signal::Offer { attempt, sdp } => (Route::Direct, DescriptionKind::Offer, attempt, sdp),
            Signal::Answer { attempt, sdp } => (Route::Direct, DescriptionKind::Answer, attempt, sdp),
            Signal::RelayOffer { attempt, key } => (Route::Relayed, DescriptionKind::Offer, attempt, key),
            Signal::RelayAnswer { attempt, key } => (Route::Relayed, DescriptionKind::Answer, attempt, key),
            Signal::Candidate { candidate, .. } => {
                self.connection.add_candidate(candidate);
                return Ok(());
            }
            Signal::Wanted { .. } => return Ok(()),
        };
        if self.remote_identity.is_some() || route != self.context.route || (kind == DescriptionKind::Offer) == self.context.is_offerer {
            log::warn!("node {} described its end twice, in the wrong role or for another route", self.context.peer);
            return Ok(());
        }
        self.context.attempt = Some(attempt);
        self.remote_identity = Some(self.identity(&sdp)?);
        if route == Route::Direct {
            self.max_frame_bytes = sdp::max_message_bytes(&sdp).min(MAX_FRAME_BYTES);
        }
        if self.max_frame_bytes <= 2 * HEADER_BYTES {
            return Err(format!("the other device takes messages of {} bytes only, at least 64 were expected", self.max_frame_bytes).into());
        }
        self.connection.set_remote(Description { kind, sdp });
        Ok(())
    }

    /// What the proof is taken over, from a description.
    fn identity(&self, description: &str) -> Result<String, String> {
        match self.context.route {
            Route::Direct => sdp::fingerprint(description),
            Route::Relayed => relay::key(description),
        }
    }

    fn on_event(&mut self, event: ConnectionEvent) -> Result<(), LinkEnd> {
        match event {
            ConnectionEvent::LocalDescription(Description { kind, sdp }) => {
                self.local_identity = Some(self.identity(&sdp)?);
                let attempt = self.context.attempt.unwrap_or_default();
                self.signal(&match (self.context.route, kind) {
                    (Route::Direct, DescriptionKind::Offer) => Signal::Offer { attempt, sdp },
                    (Route::Direct, DescriptionKind::Answer) => Signal::Answer { attempt, sdp },
                    (Route::Relayed, DescriptionKind::Offer) => Signal::RelayOffer { attempt, key: sdp },
                    (Route::Relayed, DescriptionKind::Answer) => Signal::RelayAnswer { attempt, key: sdp },
                });
            }
            ConnectionEvent::LocalCandidate(candidate) => self.signal(&Signal::Candidate { attempt: self.context.attempt.unwrap_or_default(), candidate }),
            ConnectionEvent::Open(plane) => self.on_open(plane)?,
            ConnectionEvent::Message(plane, bytes) => self.on_frame(plane, &bytes)?,
            ConnectionEvent::Sent(plane, bytes) => {
                let state = &mut self.planes[plane.index()];
                state.unanswered_bytes = state.unanswered_bytes.saturating_sub(bytes);
            }
            ConnectionEvent::Disconnected => self.is_disconnected = true,
            ConnectionEvent::Reconnected => self.is_disconnected = false,
            ConnectionEvent::Closed(reason) => return Err(self.unreachable(reason)),
        }
        Ok(())
    }

    fn on_open(&mut self, plane: Plane) -> Result<(), LinkEnd> {
        if std::mem::replace(&mut self.planes[plane.index()].is_open, true) {
            return Ok(());
        }
        self.greet(plane)?;
        self.measure_if_greeted();
        Ok(())
    }

    fn greet(&mut self, plane: Plane) -> Result<(), LinkEnd> {
        let proof = self.proof(self.context.is_offerer)?;
        let hello = Hello { version: PROTOCOL_VERSION, node: self.context.config.node, proof };
        self.enqueue(Outgoing::own(FrameKind::Hello, plane, hello.encode()));
        Ok(())
    }

    /// What may have been lost while the channels opened is sent again.
    fn repeat(&mut self) -> Result<(), LinkEnd> {
        if !self.has_greeting_arrived {
            for plane in Plane::ALL {
                if self.planes[plane.index()].is_open {
                    self.greet(plane)?;
                }
            }
        }
        if let Phase::Measuring(measuring) = &mut self.phase
            && measuring.round_trips.is_empty()
        {
            measuring.ping_sent_at = now_millis();
            self.send_own(&PeerMessage::Ping(0));
        }
        Ok(())
    }

    /// What the end with the given role has to send.
    fn proof(&self, is_offerer: bool) -> Result<[u8; 32], LinkEnd> {
        let (Some(local), Some(remote)) = (&self.local_identity, &self.remote_identity) else {
            return Err("a channel opened before both ends were described".to_owned().into());
        };
        let (offerer, answerer) = if self.context.is_offerer { (local, remote) } else { (remote, local) };
        let secret = &self.context.config.secret;
        Ok(match self.context.route {
            Route::Direct => secret.link_proof(is_offerer, offerer, answerer),
            Route::Relayed => secret.relay_proof(is_offerer, offerer, answerer),
        })
    }

    fn on_frame(&mut self, plane: Plane, frame: &[u8]) -> Result<(), LinkEnd> {
        if plane == Plane::Bulk && frame.get(3) == Some(&(FrameKind::Probe as u8)) {
            self.first_probe.get_or_insert((now_millis(), frame.len()));
        }
        let state = &mut self.planes[plane.index()];
        let message = state.assembler.push(frame).map_err(|error| format!("the other device sent a broken frame: {error}"))?;
        let Some(message) = message else { return Ok(()) };
        let is_greeted = state.is_greeted;
        match message.kind {
            FrameKind::Hello if matches!(self.phase, Phase::Up) => Err("the other device greeted again in the middle of the work".to_owned().into()),
            FrameKind::Hello => {
                self.check_hello(&message.body)?;
                self.planes[plane.index()].is_greeted = true;
                self.measure_if_greeted();
                Ok(())
            }
            // It has our greetings and is ahead of us; its own will be repeated, and its ping too.
            FrameKind::Control if plane == Plane::Control && matches!(PeerMessage::decode(&message.body), Ok((PeerMessage::Ping(_), _))) && !is_greeted => Ok(()),
            kind if !is_greeted => Err(format!("the other device began with a {kind:?} frame, its greeting was expected: reload the page on both").into()),
            FrameKind::Probe => {
                self.on_probe();
                Ok(())
            }
            FrameKind::Control | FrameKind::Tensor => self.on_message(plane, message),
        }
    }

    fn check_hello(&self, body: &[u8]) -> Result<(), LinkEnd> {
        let hello = Hello::decode(body).map_err(|error| format!("the other device greeted with {error}"))?;
        if !hello.version.is_compatible_with(PROTOCOL_VERSION) {
            let (theirs, ours) = (hello.version.major, PROTOCOL_VERSION.major);
            return Err(format!("the other device speaks protocol version {theirs}, this one {ours}: reload the page on both").into());
        }
        if !equal_in_constant_time(&hello.proof, &self.proof(!self.context.is_offerer)?) {
            return Err("the other device does not know this room's secret: scan the code of this household again".to_owned().into());
        }
        if hello.node != self.context.peer {
            return Err(format!("the other device says it is node {}, node {} was expected", hello.node, self.context.peer).into());
        }
        Ok(())
    }

    fn measure_if_greeted(&mut self) {
        if matches!(self.phase, Phase::Connecting) && self.planes.iter().all(|plane| plane.is_open && plane.is_greeted) {
            self.phase = Phase::Measuring(Measuring { ping_sent_at: now_millis(), ..Measuring::default() });
            self.send_own(&PeerMessage::Ping(0));
        }
    }

    fn on_message(&mut self, plane: Plane, Message { kind, body }: Message) -> Result<(), LinkEnd> {
        let body = Bytes::from(body);
        let (message, data_at) = PeerMessage::decode(&body).map_err(|error| format!("the other device sent {error}"))?;
        let is_bulk = plane == Plane::Bulk;
        if message.is_bulk() != is_bulk || (kind == FrameKind::Tensor) != is_bulk {
            return Err(format!("the other device sent a {kind:?} message on the {} channel", plane.label()).into());
        }
        self.has_greeting_arrived = true;
        match message {
            // An answer says that both its greetings came. One of them may be lost still: it is repeated, and so is the ping.
            PeerMessage::Ping(_) if matches!(self.phase, Phase::Connecting) => {}
            PeerMessage::Ping(number) => self.send_own(&PeerMessage::Pong(number)),
            PeerMessage::Pong(number) => self.on_pong(number),
            PeerMessage::ProbeResult { bytes, micros } => self.on_probe_result(bytes, micros),
            message => {
                let bytes = body.len();
                if self.unread.get() + bytes > self.context.config.max_unread_bytes {
                    return Err(format!("the other device sent more than {} bytes that were not asked for", self.context.config.max_unread_bytes).into());
                }
                self.unread.set(self.unread.get() + bytes);
                let data = body.slice(data_at..);
                match &mut self.phase {
                    Phase::Up => self.deliver(message, data, bytes),
                    Phase::Measuring(measuring) => measuring.early.push((message, data, bytes)),
                    Phase::Connecting => return Err("the other device sent work before both greetings".to_owned().into()),
                }
            }
        }
        self.finish_measuring();
        Ok(())
    }

    fn on_pong(&mut self, number: u32) {
        let Phase::Measuring(measuring) = &mut self.phase else { return };
        if number as usize != measuring.round_trips.len() || number >= PINGS {
            return;
        }
        let now = now_millis();
        measuring.round_trips.push(now - measuring.ping_sent_at);
        measuring.ping_sent_at = now;
        if number + 1 < PINGS {
            self.send_own(&PeerMessage::Ping(number + 1));
        } else {
            self.send_probe_if_it_is_our_turn();
        }
    }

    /// One at a time, so that the directions do not share the link: the offerer's goes first.
    fn send_probe_if_it_is_our_turn(&mut self) {
        let is_offerer = self.context.is_offerer;
        let Phase::Measuring(measuring) = &mut self.phase else { return };
        if measuring.round_trip_millis().is_none() || measuring.probe_sent_at.is_some() || !(is_offerer || measuring.has_their_probe) {
            return;
        }
        self.send_probe();
    }

    fn send_probe(&mut self) {
        let Phase::Measuring(measuring) = &mut self.phase else { return };
        measuring.probe_sent_at = Some(now_millis());
        measuring.probes += 1;
        let probe = Outgoing { frame_bytes: PROBE_FRAME_BYTES, ..Outgoing::own(FrameKind::Probe, Plane::Bulk, vec![0; PROBE_BYTES]) };
        self.enqueue(probe);
    }

    /// A whole probe came; also when we are up already and the other end tries once more.
    fn on_probe(&mut self) {
        let Some((first_at, first_len)) = self.first_probe.take() else { return };
        let micros = ((now_millis() - first_at) * 1e3).max(1.0) as u64;
        self.send_own(&PeerMessage::ProbeResult { bytes: PROBE_BYTES.saturating_sub(first_len) as u64, micros });
        if let Phase::Measuring(measuring) = &mut self.phase {
            measuring.has_their_probe = true;
            self.send_probe_if_it_is_our_turn();
            self.finish_measuring();
        }
    }

    /// Takes the slower of what the receiver saw and what we saw: a browser's Worker gets frames in bursts, which makes the
    /// first too fast.
    fn on_probe_result(&mut self, bytes: u64, micros: u64) {
        let Phase::Measuring(measuring) = &mut self.phase else { return };
        let (Some(sent_at), Some(round_trip)) = (measuring.probe_sent_at, measuring.round_trip_millis()) else { return };
        let theirs = bytes as f64 * 1e6 / micros.max(1) as f64;
        let elapsed = now_millis() - sent_at;
        let ours = PROBE_BYTES as f64 * 1e3 / (elapsed - round_trip).max(0.05);
        measuring.best_bytes_per_second = measuring.best_bytes_per_second.max(theirs.min(ours));
        if STALLED_PROBE_MILLIS.contains(&elapsed) && measuring.probes < MAX_PROBES {
            self.send_probe();
        } else {
            measuring.bytes_per_second = Some(measuring.best_bytes_per_second);
        }
    }

    fn finish_measuring(&mut self) {
        let Phase::Measuring(measuring) = &mut self.phase else { return };
        let (Some(round_trip_millis), Some(bytes_per_second), true) = (measuring.round_trip_millis(), measuring.bytes_per_second, measuring.has_their_probe) else { return };
        let early = std::mem::take(&mut measuring.early);
        self.phase = Phase::Up;
        self.context.is_up.set(true);
        self.say(TransportEvent::LinkUp { peer: self.context.peer, round_trip_millis, bytes_per_second, relayed: self.context.route == Route::Relayed });
        for (message, data, bytes) in early {
            self.deliver(message, data, bytes);
        }
    }

    fn deliver(&self, message: PeerMessage, data: Bytes, bytes: usize) {
        let event = TransportEvent::Message { from: self.context.peer, message, data };
        let _ = self.context.events.unbounded_send(Envelope { event, unread: Some((Rc::clone(&self.unread), bytes)) });
    }

    fn say(&self, event: TransportEvent) {
        let _ = self.context.events.unbounded_send(Envelope { event, unread: None });
    }

    fn signal(&self, signal: &Signal) {
        self.say(TransportEvent::Signal { to: self.context.peer, payload: signal.to_json() });
    }

    fn send_own(&mut self, message: &PeerMessage) {
        self.enqueue(Outgoing::own(FrameKind::Control, Plane::Control, message.encode(&[])));
    }

    fn enqueue(&mut self, outgoing: Outgoing) {
        let number = self.next_message;
        self.next_message = number.wrapping_add(1);
        self.planes[outgoing.plane.index()].queue.push_back((number, outgoing));
    }

    /// Gives the channels as much as their windows take.
    fn flush(&mut self) {
        let window = self.connection.window_bytes();
        for plane in Plane::ALL {
            let state = &mut self.planes[plane.index()];
            if !state.is_open {
                continue;
            }
            while let Some((number, message)) = state.queue.front_mut() {
                let frame_bytes = message.frame_bytes.min(self.max_frame_bytes);
                if state.unanswered_bytes > 0 && state.unanswered_bytes + frame_bytes > window {
                    break;
                }
                let total = message.head.len() + message.data.len();
                let frame = frame::cut(message.kind, *number, [&message.head, &message.data], message.offset, frame_bytes);
                message.offset += frame.len() - HEADER_BYTES;
                state.unanswered_bytes += frame.len();
                count(&mut self.context.counters.borrow_mut(), message.traffic, frame.len() as u64);
                self.connection.send(plane, frame);
                if message.offset >= total {
                    let done = state.queue.pop_front().and_then(|(_, message)| message.done);
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                }
            }
        }
    }
}

type Timer = Fuse<Pin<Box<dyn Future<Output = ()>>>>;

fn timer(millis: u32) -> Timer {
    let sleep: Pin<Box<dyn Future<Output = ()>>> = Box::pin(platform::sleep(millis));
    sleep.fuse()
}

fn count(counters: &mut LinkCounters, traffic: TrafficKind, bytes: u64) {
    let counter = match traffic {
        TrafficKind::Activations => &mut counters.activations_bytes,
        TrafficKind::SideGradients => &mut counters.side_gradients_bytes,
        TrafficKind::AdapterGradients => &mut counters.adapter_gradients_bytes,
        TrafficKind::Cache => &mut counters.cache_bytes,
        TrafficKind::Other => &mut counters.other_bytes,
    };
    *counter += bytes;
}
