//! How fast a device computes: products, single operations, and whole steps of training at the sizes of known models.

mod kernels;
mod random_weights;
mod shapes;
mod steps;
mod timer;
mod training;

pub use kernels::{KernelRate, Peaks, kernel_rates};
pub use random_weights::RandomWeights;
pub use shapes::{SHAPES, Shape};
pub use steps::{Load, Method, Outcome, StepTimes, measure};
pub use training::Training;

use crate::backend::{Backend, BackendError, BackendKind};
use crate::op::{Dtype, Layout, Op};

/// One row of the table.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct MatmulRate {
    /// Rows, columns and depth of the product, a linear layer's (`C = A · Bᵀ`).
    pub size: usize,
    /// `f32` or `f16`: how the weight B is stored; or `int8`, multiplied by rounded activations.
    pub weights: &'static str,
    /// Milliseconds of one product.
    pub millis: f64,
    /// 10⁹ floating-point operations per second (a multiplication and an addition are two).
    pub gflops: f64,
}

/// Measures products of each size with f32 and packed f16 weights, and on the CPU, where the size is whole blocks, with int8
/// weights and activations; `now_millis` is a clock (`performance.now()`, say).
///
/// # Errors
/// Those of [`Backend::read`]: the device went away.
pub async fn matmul_rates(backend: &dyn Backend, sizes: &[usize], now_millis: impl Fn() -> f64) -> Result<Vec<MatmulRate>, BackendError> {
    let mut rates = Vec::new();
    for &size in sizes {
        for (weights, dtype) in [("f32", Dtype::F32), ("f16", Dtype::F16), ("int8", Dtype::Q8)] {
            if dtype == Dtype::Q8 && (backend.info().kind != BackendKind::Cpu || !size.is_multiple_of(32)) {
                continue;
            }
            let millis = matmul_millis(backend, size, dtype, &now_millis).await?;
            let gflops = 2.0 * (size as f64).powi(3) / (millis * 1e6);
            rates.push(MatmulRate { size, weights, millis, gflops });
        }
    }
    Ok(rates)
}

async fn matmul_millis(backend: &dyn Backend, size: usize, dtype: Dtype, now: &impl Fn() -> f64) -> Result<f64, BackendError> {
    let (a, b, c) = (
        backend.allocate(size * size),
        backend.allocate(dtype.words(size * size)),
        backend.allocate(size * size),
    );
    // 0.5 as f32, and as a pair of f16. (Blocks get integers of 0 and 56 and, where the scales lie, 0.5.)
    let half = if dtype == Dtype::F32 { 0x3f00_0000 } else { 0x3800_3800 };
    backend.write(a, 0, &vec![0x3f00_0000; size * size]);
    backend.write(b, 0, &vec![half; dtype.words(size * size)]);
    let n = size as u32;
    let (to_a, to_b, to_c) = (a.into(), b.into(), c.into());
    let product = match dtype {
        Dtype::Q8 => Op::MatMulRounded { a: to_a, b: to_b, c: to_c, m: n, n, k: n, b_dtype: dtype },
        _ => Op::MatMul { a: to_a, b: to_b, c: to_c, m: n, n, k: n, layout: Layout::Nt, b_dtype: dtype, accumulate: false },
    };
    let millis = timer::millis_of(backend, &product, c, now).await?;
    for id in [a, b, c] {
        backend.free(id);
    }
    Ok(millis)
}
