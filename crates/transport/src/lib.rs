//! Links between nodes: WebRTC natively, WebRTC through the page in browsers, memory in tests.
//!
//! One API for all three worlds, made for one thread (a tokio `LocalSet` natively, a Worker's event loop in browsers):
//!
//! - [`Transport`] keeps the links of one node: dial, hang up, send with back-pressure; [`TransportEvents`] is what it says.
//! - [`Connector`] and [`Connection`] are what differs between worlds: `native`, `web`, [`memory`].
//!   Everything that is decided (greeting, proof, measuring, cutting and assembling, back-pressure) is in `link`.
//! - [`RelayConnector`] makes connections through the server where devices do not reach each other.
//! - [`Signalling`] joins the server and keeps the stream to it; [`Http`] asks it for files.
//! - [`platform`] has the clock, timers and tasks of both worlds.
//!
//! Nothing a remote device sends can do more than end its own link.

mod connection;
pub mod http;
mod link;
pub mod memory;
#[cfg(not(target_arch = "wasm32"))]
pub mod native;
pub mod platform;
pub mod relay;
mod sdp;
pub mod signalling;
mod transport;
#[cfg(target_arch = "wasm32")]
pub mod web;

pub use connection::{Connection, ConnectionEvent, ConnectionEvents, ConnectionEventsSender, Connector, Description, DescriptionKind, Plane};
pub use http::{Http, HttpError};
pub use relay::RelayConnector;
pub use signalling::{Signalling, SignallingEvent, SignallingEvents};
pub use transport::{SendError, Transport, TransportConfig, TransportEvent, TransportEvents};
