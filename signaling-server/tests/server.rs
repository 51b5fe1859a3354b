//! The server from outside, over real TLS on a free port.
//!
//! ```text
//! test ── reqwest (HTTPS) ──► server (port 0, data folder in a temporary one, one tiny model)
//!   └─ a device made of calls: join, stream of JSON lines down, messages up, no arithmetic
//! ```
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "server/access.rs"]
mod access;
#[path = "server/data.rs"]
mod data;
#[path = "server/nodes.rs"]
mod nodes;
#[path = "server/relay.rs"]
mod relay;
#[path = "server/runs.rs"]
mod runs;
#[path = "server/support.rs"]
mod support;
