//! Planner, coordinator and node as machines without clock, thread or network.
//!
//! [`node::Node`] (in every device) and [`coordinator::Coordinator`] (in the server) take `handle(now, input)` and are
//! then drained with `poll()` until they answer `Wait`. Arithmetic is an effect: they name [`io::Job`]s and never see a
//! tensor, so that a whole household runs in one test in virtual time.

pub mod coordinator;
pub mod cost;
pub mod household;
pub mod io;
pub mod node;
pub mod order;
pub mod planner;
pub mod schedule;
