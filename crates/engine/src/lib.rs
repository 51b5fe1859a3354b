//! Tensors, reverse-mode differentiation, the WebGPU and CPU back ends, adapters, optimiser and cache.

mod backend;
pub mod backbone;
pub mod bench;
pub mod bottleneck;
pub mod cache_entry;
pub mod chains;
mod choose;
pub mod cpu;
mod error;
pub mod generate;
pub mod gpu;
pub mod heads;
pub mod lora;
pub mod loss;
#[allow(missing_docs, reason = "the formula of each operation names its fields")]
pub mod op;
pub mod optim;
pub mod packed;
pub mod parallel;
pub mod params;
mod sample;
pub mod side;
pub mod side_v2;
pub mod stage;
pub mod tape;
pub mod tensor;
pub mod train_full;
pub mod trainer;
pub mod tune;
#[cfg(not(target_arch = "wasm32"))]
pub mod verify;

pub use backend::{Backend, BackendError, BackendInfo, BackendKind, MemoryUse};
pub use choose::{BackendChoice, create_backend, create_tuned_backend};
pub use cpu::CpuBackend;
pub use error::EngineError;
pub use sample::Sample;
pub use tensor::{Device, Tensor};
