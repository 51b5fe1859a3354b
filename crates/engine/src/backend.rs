//! What the engine asks of the thing that computes.

use crate::op::{BufferId, Op};
use futures::future::LocalBoxFuture;

/// Which kind of back end computes, and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BackendInfo {
    /// `cpu` or `webgpu`.
    pub kind: BackendKind,
    /// For people: "CPU, AVX2, 2 threads", "NVIDIA GeForce … over Vulkan".
    pub description: String,
    /// One sentence: why this back end.
    pub reason: String,
}

/// The two back ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// SIMD on the processor.
    Cpu,
    /// WGSL through wgpu.
    Webgpu,
}

/// What is held in buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Held now: allocated and not freed (buffers kept for reuse count too).
    pub current_bytes: u64,
    /// The most since the start or the last [`Backend::reset_peak`].
    pub peak_bytes: u64,
    /// Buffers asked of the system since the start; those taken from the kept ones do not count.
    pub buffers_made: u64,
}

/// What can go wrong while computing.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The device went away; the node leaves the swarm.
    #[error("the {0} device was lost: reload the page or restart the node")]
    DeviceLost(String),
    /// A buffer is larger than the device allows.
    #[error("a buffer of {wanted_bytes} bytes was asked for, the device allows {limit_bytes}")]
    BufferTooLarge {
        /// Asked for.
        wanted_bytes: u64,
        /// Allowed.
        limit_bytes: u64,
    },
    /// No usable adapter.
    #[error("no WebGPU adapter: {0}")]
    NoAdapter(String),
}

/// A device that holds buffers of 32-bit words and executes [`Op`]s on them.
///
/// Obligations, checked by the contract test `tests/backend_contract.rs`:
/// 1. `run` executes operations in the order given, as if each ended before the next began.
/// 2. `allocate` may return a reused buffer: its contents are unspecified.
/// 3. `free` may come while recorded work still uses the buffer; that work still sees the old contents.
/// 4. `read` returns what all operations recorded before it produced.
/// 5. `write` is ordered with `run`: later operations see it, earlier ones do not.
/// 6. A back end never panics on a lost device: `read` returns the error.
pub trait Backend {
    /// What this is.
    fn info(&self) -> &BackendInfo;
    /// Asks for [`Op::MatMulRounded`] in the forward pass of linear layers whose weights are blocks of integers, from now on;
    /// answers whether the back end has it.
    fn round_activations(&self, _wanted: bool) -> bool {
        false
    }
    /// Whether that was asked for, and is there.
    fn rounds_activations(&self) -> bool {
        false
    }
    /// A buffer of at least `words` 32-bit words (never 0: at least 1 is given).
    fn allocate(&self, words: usize) -> BufferId;
    /// Gives a buffer back for reuse.
    fn free(&self, buffer: BufferId);
    /// Overwrites words from `first_word` on.
    fn write(&self, buffer: BufferId, first_word: usize, words: &[u32]);
    /// Reads `len` words from `first_word` on.
    fn read(&self, buffer: BufferId, first_word: usize, len: usize) -> LocalBoxFuture<'_, Result<Vec<u32>, BackendError>>;
    /// Executes (or records for execution) one operation.
    fn run(&self, op: Op);
    /// Hands recorded work to the device; called at natural boundaries (a layer, a step).
    fn submit(&self);
    /// Current and peak bytes.
    fn memory(&self) -> MemoryUse;
    /// Starts a new peak measurement at the current use, after dropping buffers that are kept only for reuse.
    fn reset_peak(&self);
}
