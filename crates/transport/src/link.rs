//! One link from its first signal to its end: greeting, proof, measuring, messages both ways.
//!
//! ```text
//! connecting ── both channels open, both greetings good ──► measuring ── round trip, one probe each way ──► up
//! ```
//! Any surprise ends the link with a sentence. The same code runs over every [`Connection`]. What is measured is in
//! `link/measuring.rs`, what waits to be sent in `link/queue.rs`.

mod measuring;
mod queue;
mod signal;

pub(crate) use queue::Outgoing;
pub(crate) use signal::Signal;

use crate::connection::{Connection, ConnectionEvent, ConnectionEvents, Description, DescriptionKind, Plane};
use crate::platform::{self, now_millis};
use crate::relay;
use crate::sdp;
use crate::transport::{Envelope, TransportConfig, TransportEvent};
use barycenter_protocol::auth::equal_in_constant_time;
use barycenter_protocol::control::LinkCounters;
use barycenter_protocol::frame::{self, Assembler, FrameKind, MAX_FRAME_BYTES, Message};
use barycenter_protocol::peer::{Hello, PeerMessage};
use barycenter_protocol::{NodeId, PROTOCOL_VERSION};
use bytes::Bytes;
use futures::channel::mpsc;
use futures::future::{Fuse, FusedFuture, FutureExt};
use futures::{StreamExt, select};
use measuring::{Ask, Measuring, PROBE_BYTES, PROBE_FRAME_BYTES};
use queue::Queue;
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;

/// A greeting and its header fit into one frame of this size.
const MIN_FRAME_BYTES: usize = 128;
/// A refused connection stays open for so long, so that the other end gets our greeting and can say why it ends too.
const LINGER_MILLIS: u32 = 300;
/// Until the other end shows that it has our greeting, it is repeated so often: a channel may be open at one end a moment
/// before the other end's stack takes messages for it (the `webrtc` crate drops them). The same goes for our ping.
const REPEAT_MILLIS: u32 = 200;
/// A direct connection that is not open after so many repeats (4 s) is given up where the server can relay; on a home network it takes
/// well below a second, or never comes. The coordinator waits ten seconds for links before it plans without them.
const MAX_LOOKS: u32 = 20;
const NO_DIRECT_CONNECTION: &str = "no direct connection came about: both devices must be in one network, without a firewall or the Wi-Fi's client isolation between them";
/// What a message that nobody has read takes beside its bytes, about: many small ones are as much as a few large ones.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
/// After so many events in one go the other tasks of this thread get their turn.
const EVENTS_PER_TURN: u32 = 64;

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
    queue: Queue,
}

enum Phase {
    Connecting,
    /// Work that comes early waits: the other end may be up before us.
    Measuring(Measuring, Vec<Early>),
    Up,
}

/// Message, data, and what both take unread.
type Early = (PeerMessage, Bytes, usize);

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
            (Route::Direct, Phase::Connecting | Phase::Measuring(..)) => LinkEnd::Unreachable(reason),
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
            Command::Send(outgoing) => self.enqueue(outgoing),
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
        if self.max_frame_bytes < MIN_FRAME_BYTES {
            return Err(format!("the other device takes messages of {} bytes only, at least {MIN_FRAME_BYTES} were expected", self.max_frame_bytes).into());
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
            ConnectionEvent::Sent(plane, bytes) => self.planes[plane.index()].queue.answered(bytes),
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
        self.measure_if_greeted()
    }

    fn greet(&mut self, plane: Plane) -> Result<(), LinkEnd> {
        let proof = self.proof(self.context.is_offerer)?;
        let hello = Hello { version: PROTOCOL_VERSION, node: self.context.config.node, proof };
        self.enqueue(Outgoing::own(FrameKind::Hello, plane, hello.encode()))
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
        self.measure(|measuring, now| measuring.repeat(now))
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
        let kind = frame::kind_of(frame);
        if plane == Plane::Bulk && kind == Some(FrameKind::Probe) {
            self.first_probe.get_or_insert((now_millis(), frame.len()));
        }
        let state = &mut self.planes[plane.index()];
        // Nothing is put together for an end that has not shown that it knows the secret; a greeting is one frame.
        if let Some(kind) = kind.filter(|_| !state.is_greeted && frame::is_part(frame)) {
            return Err(format!("the other device began with a part of a {kind:?} message, its greeting was expected: reload the page on both").into());
        }
        let message = state.assembler.push(frame).map_err(|error| format!("the other device sent a broken frame: {error}"))?;
        let Some(message) = message else { return Ok(()) };
        let is_greeted = state.is_greeted;
        match message.kind {
            FrameKind::Hello if matches!(self.phase, Phase::Up) => Err("the other device greeted again in the middle of the work".to_owned().into()),
            FrameKind::Hello => {
                self.check_hello(&message.body)?;
                self.planes[plane.index()].is_greeted = true;
                self.measure_if_greeted()
            }
            // It has our greetings and is ahead of us; its own will be repeated, and its ping too.
            FrameKind::Control if plane == Plane::Control && matches!(PeerMessage::decode(&message.body), Ok((PeerMessage::Ping(_), _))) && !is_greeted => Ok(()),
            kind if !is_greeted => Err(format!("the other device began with a {kind:?} frame, its greeting was expected: reload the page on both").into()),
            FrameKind::Probe => self.on_probe(),
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

    fn measure_if_greeted(&mut self) -> Result<(), LinkEnd> {
        if !matches!(self.phase, Phase::Connecting) || !self.planes.iter().all(|plane| plane.is_open && plane.is_greeted) {
            return Ok(());
        }
        let (measuring, ask) = Measuring::begin(self.context.is_offerer, now_millis());
        self.phase = Phase::Measuring(measuring, Vec::new());
        self.ask(ask)
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
            PeerMessage::Ping(number) => self.send_own(&PeerMessage::Pong(number))?,
            PeerMessage::Pong(number) => self.measure(|measuring, now| measuring.on_pong(number, now))?,
            PeerMessage::ProbeResult { bytes, micros } => self.measure(|measuring, now| measuring.on_result(bytes, micros, now))?,
            message => {
                let bytes = body.len() + MESSAGE_OVERHEAD_BYTES;
                if self.unread.get() + bytes > self.context.config.max_unread_bytes {
                    return Err(format!("the other device sent more than {} bytes that were not asked for", self.context.config.max_unread_bytes).into());
                }
                self.unread.set(self.unread.get() + bytes);
                let data = body.slice(data_at..);
                match &mut self.phase {
                    Phase::Up => self.deliver(message, data, bytes),
                    Phase::Measuring(_, early) => early.push((message, data, bytes)),
                    Phase::Connecting => return Err("the other device sent work before both greetings".to_owned().into()),
                }
            }
        }
        self.finish_measuring();
        Ok(())
    }

    /// A step of the measurement, while it lasts.
    fn measure(&mut self, step: impl FnOnce(&mut Measuring, f64) -> Option<Ask>) -> Result<(), LinkEnd> {
        let Phase::Measuring(measuring, _) = &mut self.phase else { return Ok(()) };
        step(measuring, now_millis()).map_or(Ok(()), |ask| self.ask(ask))
    }

    fn ask(&mut self, ask: Ask) -> Result<(), LinkEnd> {
        match ask {
            Ask::Ping(number) => self.send_own(&PeerMessage::Ping(number)),
            Ask::Probe => self.enqueue(Outgoing::own(FrameKind::Probe, Plane::Bulk, vec![0; PROBE_BYTES]).in_frames_of(PROBE_FRAME_BYTES)),
        }
    }

    /// A whole probe came; also when we are up already and the other end tries once more.
    fn on_probe(&mut self) -> Result<(), LinkEnd> {
        let Some((first_at, first_len)) = self.first_probe.take() else { return Ok(()) };
        let micros = ((now_millis() - first_at) * 1e3).max(1.0) as u64;
        self.send_own(&PeerMessage::ProbeResult { bytes: PROBE_BYTES.saturating_sub(first_len) as u64, micros })?;
        self.measure(|measuring, now| measuring.on_their_probe(now))?;
        self.finish_measuring();
        Ok(())
    }

    fn finish_measuring(&mut self) {
        let Phase::Measuring(measuring, early) = &mut self.phase else { return };
        let Some((round_trip_millis, bytes_per_second)) = measuring.result() else { return };
        let early = std::mem::take(early);
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

    fn send_own(&mut self, message: &PeerMessage) -> Result<(), LinkEnd> {
        self.enqueue(Outgoing::own(FrameKind::Control, Plane::Control, message.encode(&[])))
    }

    fn enqueue(&mut self, outgoing: Outgoing) -> Result<(), LinkEnd> {
        let number = self.next_message;
        self.next_message = number.wrapping_add(1);
        if self.planes[outgoing.plane().index()].queue.push(number, outgoing) {
            return Ok(());
        }
        Err("the other device asks without reading the answers".to_owned().into())
    }

    /// Gives the channels as much as their windows take.
    fn flush(&mut self) {
        let window = self.connection.window_bytes();
        let mut counters = self.context.counters.borrow_mut();
        for plane in Plane::ALL {
            let state = &mut self.planes[plane.index()];
            while state.is_open && let Some(frame) = state.queue.next_frame(self.max_frame_bytes, window, &mut counters) {
                self.connection.send(plane, frame);
            }
        }
    }
}

type Timer = Fuse<Pin<Box<dyn Future<Output = ()>>>>;

fn timer(millis: u32) -> Timer {
    let sleep: Pin<Box<dyn Future<Output = ()>>> = Box::pin(platform::sleep(millis));
    sleep.fuse()
}
