//! Tensors, reverse-mode differentiation, the WebGPU and CPU back ends, adapters, optimiser and cache.

mod backend;
pub mod op;

pub use backend::{Backend, BackendError, BackendInfo, BackendKind, MemoryUse};
