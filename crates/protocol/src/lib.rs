//! Ids, messages, frames and chunking: what travels between Barycenter's parts.
//!
//! Pure: no clock, no thread, no I/O. Three planes:
//! - HTTP between a page (or program) and the server: [`api`].
//! - Signalling between the server and a node, JSON lines: [`control`].
//! - Frames between nodes over a link: [`frame`] (the wire unit) and [`peer`] (what is inside); where the server has to carry
//!   them, sealed and in parcels: [`relay`].

pub mod api;
pub mod auth;
pub mod control;
pub mod frame;
pub mod ids;
pub mod peer;
pub mod plan;
pub mod relay;

pub use ids::{Generation, LinkId, NodeId, RunId, SampleId};

/// Version of everything on the wire. A different major version ends a link or a join with a sentence.
pub const PROTOCOL_VERSION: ProtocolVersion = ProtocolVersion { major: 1, minor: 2 };

/// A version of the protocol: majors must be equal, minors may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ProtocolVersion {
    /// Changes that an older peer cannot follow.
    pub major: u8,
    /// Additions that an older peer ignores.
    pub minor: u8,
}

impl ProtocolVersion {
    /// The first in which a node that leaves hands its part over.
    pub const HANDS_OVER: Self = Self { major: 1, minor: 2 };

    /// Whether two ends can talk.
    pub fn is_compatible_with(self, other: Self) -> bool {
        self.major == other.major
    }
}
