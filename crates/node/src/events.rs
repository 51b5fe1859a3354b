//! What a node tells the page (or terminal) it runs in. Mirrors `web/src/node-events.ts`.

use barycenter_protocol::control::{BackendReport, Counters, PhaseKind};
use serde::Serialize;

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NodeEvent {
    /// One thing was looked at before joining; `ok: false` is a warning, not the end.
    Check {
        /// "storage", "backend", …
        name: &'static str,
        /// Whether all is well.
        ok: bool,
        /// For people.
        text: String,
    },
    /// A forward and backward pass against known answers, and the measured speed. `ok: false` ends the stay.
    SelfTest {
        /// Whether the answers were right.
        ok: bool,
        /// Back end and why.
        backend: BackendReport,
        /// Speed of the matrix product.
        gflops: f64,
        /// Largest relative error.
        largest_error: f64,
        /// Seconds it took.
        seconds: f64,
    },
    /// The server took the node in; again after each reconnect.
    Joined {
        /// Id of this stay.
        node: u32,
    },
    /// What the node does now.
    Activity(Activity),
    /// A long step; `fraction` 1 ends it.
    Progress {
        /// For people.
        text: String,
        /// 0 … 1.
        fraction: f32,
    },
    /// About once a second.
    Counters {
        /// Since joining.
        counters: Counters,
    },
    /// A link came up or went down.
    Link {
        /// The other end.
        peer: u32,
        /// Which.
        up: bool,
        /// Milliseconds.
        round_trip_millis: Option<f64>,
        /// Bytes per second.
        bytes_per_second: Option<f64>,
        /// Whether it goes through the server, because no direct connection came about.
        relayed: Option<bool>,
        /// Why it went down.
        reason: Option<String>,
    },
    /// The server cannot be reached; the node tries again by itself.
    Reconnecting {
        /// For people.
        reason: String,
        /// Counted from 1.
        attempt: u32,
    },
    /// The node was asked to leave: the others take over first.
    Leaving,
    /// The stay is over. Last event.
    Left {
        /// For people.
        reason: String,
    },
    /// Something went wrong; `fatal` is the last event.
    Error {
        /// For people.
        message: String,
        /// Whether the node ended.
        fatal: bool,
    },
}

/// What a node does, and its place in the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Activity {
    /// In words.
    pub text: String,
    /// Phase.
    pub phase: Option<PhaseKind>,
    /// Layers held, `[first, end)`.
    pub layers: Option<(u32, u32)>,
    /// Slots of the mini-batch in the train phase, `[first, end)`.
    pub slots: Option<(u32, u32)>,
    /// Epoch.
    pub epoch: Option<u32>,
    /// Epochs of the run.
    pub epochs: Option<u32>,
    /// Step in the epoch.
    pub step: Option<u32>,
    /// Steps of an epoch.
    pub steps_per_epoch: Option<u32>,
}
