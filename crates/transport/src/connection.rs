//! What the worlds have to provide: a peer connection with two negotiated channels.

use bytes::Bytes;
use futures::channel::mpsc;
use serde::{Deserialize, Serialize};

/// The channels of a link: both ordered and reliable, negotiated out of band with the numbers below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Plane {
    /// Small and urgent messages.
    Control = 0,
    /// Tensors.
    Bulk = 1,
}

impl Plane {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Control, Self::Bulk];

    /// Number of the data channel, and index into arrays kept per plane.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Label of the data channel, for people who look at `chrome://webrtc-internals`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Bulk => "bulk",
        }
    }
}

/// Which half of the negotiation a description is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DescriptionKind {
    /// From the node with the lower id.
    Offer,
    /// From the other one.
    Answer,
}

/// A session description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Offer or answer.
    pub kind: DescriptionKind,
    /// The text; its `a=fingerprint` lines are what the proof of a link is bound to.
    pub sdp: String,
}

/// What a connection says.
#[derive(Clone, Debug, PartialEq)]
pub enum ConnectionEvent {
    /// The description to pass to the other end.
    LocalDescription(Description),
    /// A candidate to pass to the other end: JSON of `RTCIceCandidateInit`.
    LocalCandidate(String),
    /// A channel can be sent on.
    Open(Plane),
    /// A frame came.
    Message(Plane, Bytes),
    /// So many bytes given to [`Connection::send`] are no longer queued on this machine.
    Sent(Plane, usize),
    /// Nothing is heard of the other end; may heal.
    Disconnected,
    /// Heard again.
    Reconnected,
    /// The connection is over, with the reason for people. Nothing follows.
    Closed(String),
}

/// Where a connection puts what it says. The link reads at once, so the queue holds what one turn of the loop brings;
/// natively the data channels add back-pressure of their own.
pub type ConnectionEventsSender = mpsc::UnboundedSender<ConnectionEvent>;
/// See [`ConnectionEventsSender`].
pub type ConnectionEvents = mpsc::UnboundedReceiver<ConnectionEvent>;

/// Makes connections: the page in a browser, the `webrtc` crate natively, a table in tests.
pub trait Connector {
    /// A new connection with both channels.
    ///
    /// 1. An offerer says its `LocalDescription` unasked; an answerer after [`Connection::set_remote`].
    /// 2. `LocalCandidate`s follow their description.
    /// 3. `Closed` is the last event, and comes unless the connection is dropped first. Failure to set up is `Closed` too.
    fn connect(&self, is_offerer: bool) -> (Box<dyn Connection>, ConnectionEvents);
}

/// A peer connection with both channels. Its methods return at once; dropping it closes it.
pub trait Connection {
    /// Takes the other end's description.
    fn set_remote(&self, description: Description);

    /// Takes a candidate of the other end (JSON of `RTCIceCandidateInit`), after its description.
    fn add_candidate(&self, candidate: String);

    /// Queues a frame on an open channel.
    ///
    /// 1. Frames of one plane arrive in order or the connection closes.
    /// 2. Each byte is answered by [`ConnectionEvent::Sent`] when it is no longer queued here (or nearly so: an
    ///    implementation may hold back the answer for as long as less than half of `window_bytes` is unanswered).
    /// 3. After `Closed` a frame is dropped.
    fn send(&self, plane: Plane, frame: Vec<u8>);

    /// How many unanswered bytes the link may have on a plane: bounds what is queued on this machine.
    fn window_bytes(&self) -> usize {
        DEFAULT_WINDOW_BYTES
    }
}

/// 2 MiB: more than a window of SCTP, far less than the 16 MiB at which browsers close a channel (js-libp2p had to go
/// down to this value before `bufferedamountlow` fired reliably).
pub(crate) const DEFAULT_WINDOW_BYTES: usize = 2 * 1024 * 1024;
