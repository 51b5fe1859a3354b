//! The household's server: pages, pairing, weights, datasets, runs; hosts the coordinator.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on has failed"))]

mod address;
mod checkpoint;
mod data_dir;
mod datasets;
mod error;
mod host;
mod invite;
mod models;
mod nodes;
mod pages;
mod plain_http;
mod ranges;
mod relay;
mod routes;
mod run_request;
mod serve;
pub mod side;
mod store;
mod tls;

pub use data_dir::DataDir;
pub use error::ServerError;
pub use models::Recommendation;
pub use run_request::{DEFAULT_CACHE, DEFAULT_TAP_EVERY};
pub use serve::{RunningServer, ServerConfig, serve};
