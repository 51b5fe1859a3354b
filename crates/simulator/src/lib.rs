//! A household in virtual time: the coordinator and node machines of production, an engine that counts instead of
//! computing, and a network with latency, bandwidth, shared air and faults.
//!
//! ```text
//!                    server (Coordinator, checkpoint store, snapshot)
//!                   /       |        \         ordered; ends with the page
//!            device 0   device 1   device 2 …  (Node + counting engine + storage)
//!                 \_______/ \_______/ /        cables, or the air of a Wi-Fi cell; may be cut
//!                  \_________________/
//! ```
//!
//! Nothing here knows a clock, a thread or a file: the same household, run and seed give the same trace. After every event
//! the invariants of the design hold ([`World::run_until`] panics where one does not).

pub mod chaos;
mod engine;
pub mod gantt;
pub mod growth;
pub mod house;
pub mod job;
mod meter;
mod network;
pub mod plot;
pub mod report;
mod shared;
mod timing;
pub mod world;

pub use gantt::gantt;
pub use house::{CellSpec, DeviceSpec, House, LinkSpec, LinkWork, NetworkSpec, Speed};
pub use job::{Job, SimulateError};
pub use meter::{JobKind, JobSpan, Meter, Span, State};
pub use report::{Report, report};
pub use world::{Act, MILLI, World};
