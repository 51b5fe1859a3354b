//! Rates of single operations at the sizes of a model, beside what the device can do at best.

mod attention;
mod products;
mod rows;

use super::timer::millis_of;
use crate::backend::BackendError;
use crate::error::EngineError;
use crate::op::{Dtype, Layout, Op};
use crate::tensor::{Device, Tensor};
use barycenter_model::ModelConfig;

/// Sizes of the f32 products that are tried for the peak, until one takes longer than [`PEAK_MILLIS`].
const PEAK_PRODUCTS: [usize; 4] = [512, 1024, 2048, 4096];
/// A product that takes this long is not made larger.
const PEAK_MILLIS: f64 = 100.0;
/// Values of the streaming copy: 64 MiB there and 64 MiB here, more than a processor's caches hold.
const PEAK_COPY: usize = 16 << 20;

/// What the device did at best, in this run.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Peaks {
    /// Of a large square f32 product (`C = A · Bᵀ`), 10⁹ floating-point operations per second.
    pub gflops: f64,
    /// Rows, columns and depth of that product.
    pub product_size: usize,
    /// Of a copy of 64 MiB, 10⁹ bytes read and written per second.
    pub gigabytes: f64,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct KernelRate {
    /// What is computed.
    pub kernel: String,
    /// At which sizes.
    pub shape: String,
    /// Milliseconds of one run.
    pub millis: f64,
    /// 10⁹ floating-point operations per second; 0 where moving values is all the work.
    pub gflops: f64,
    /// 10⁹ bytes per second, every operand counted once.
    pub gigabytes: f64,
    /// The larger of both rates' fractions of the peaks. Values that stay in a cache move faster than the copy.
    pub of_peak: f64,
}

/// Measures the operations that matter at the sizes of `config` for `batch` sequences of `sequence` tokens; `now_millis` is
/// a clock. A row goes to `progress` as soon as it is there.
///
/// # Errors
/// If the sizes cannot be divided by the reduction of the side network; if the device went away.
pub async fn kernel_rates(
    device: &Device,
    config: &ModelConfig,
    (batch, sequence): (usize, usize),
    now_millis: &impl Fn() -> f64,
    progress: &mut dyn FnMut(&KernelRate),
) -> Result<(Peaks, Vec<KernelRate>), EngineError> {
    let peaks = peaks(device, now_millis).await?;
    let mut meter = Meter { device, now_millis, peaks, progress, rates: Vec::new() };
    products::measure(&mut meter, config, batch * sequence).await?;
    attention::measure(&mut meter, config, batch, sequence).await?;
    rows::measure(&mut meter, config, batch * sequence).await?;
    Ok((peaks, meter.rates))
}

async fn peaks(device: &Device, now_millis: &impl Fn() -> f64) -> Result<Peaks, BackendError> {
    let mut best = Peaks { gflops: 0.0, product_size: 0, gigabytes: 0.0 };
    for size in PEAK_PRODUCTS {
        let [a, b, c] = [(); 3].map(|()| half(device, &[size, size]));
        let millis = millis_of(device.as_ref(), &product(&a, &b, &c, size, Layout::Nt), c.buffer(), now_millis).await?;
        let gflops = 2.0 * (size as f64).powi(3) / (millis * 1e6);
        if gflops > best.gflops {
            best = Peaks { gflops, product_size: size, ..best };
        }
        if millis > PEAK_MILLIS {
            break;
        }
    }
    let [src, dst] = [(); 2].map(|()| half(device, &[PEAK_COPY]));
    let copy = Op::Copy { src: src.slice(), dst: dst.slice(), len: PEAK_COPY as u32 };
    let millis = millis_of(device.as_ref(), &copy, dst.buffer(), now_millis).await?;
    best.gigabytes = 8.0 * PEAK_COPY as f64 / (millis * 1e6);
    Ok(best)
}

/// Times operations and keeps the rows.
struct Meter<'a, Clock> {
    device: &'a Device,
    now_millis: &'a Clock,
    peaks: Peaks,
    progress: &'a mut dyn FnMut(&KernelRate),
    rates: Vec<KernelRate>,
}

/// What one run of an operation amounts to.
struct Work {
    flops: f64,
    bytes: f64,
}

impl Work {
    /// Work that is the moving of so many f32 values.
    fn moving(values: usize) -> Self {
        Self { flops: 0.0, bytes: 4.0 * values as f64 }
    }
}

impl<Clock: Fn() -> f64> Meter<'_, Clock> {
    async fn row(&mut self, kernel: &str, shape: String, work: Work, op: Op, output: &Tensor) -> Result<(), BackendError> {
        let millis = millis_of(self.device.as_ref(), &op, output.buffer(), self.now_millis).await?;
        let rate = |amount: f64| amount / (millis * 1e6);
        let (gflops, gigabytes) = (rate(work.flops), rate(work.bytes));
        let of_peak = (gflops / self.peaks.gflops).max(gigabytes / self.peaks.gigabytes);
        let row = KernelRate { kernel: kernel.to_string(), shape, millis, gflops, gigabytes, of_peak };
        (self.progress)(&row);
        self.rates.push(row);
        Ok(())
    }
}

/// A tensor of 0.5.
fn half(device: &Device, shape: &[usize]) -> Tensor {
    Tensor::full(device, shape, 0.5)
}

/// `c = op(a) · op(b)` with the inner size given.
fn product(a: &Tensor, b: &Tensor, c: &Tensor, inner: usize, layout: Layout) -> Op {
    let (m, n) = (c.rows() as u32, c.cols() as u32);
    Op::MatMul { a: a.slice(), b: b.slice(), c: c.slice(), m, n, k: inner as u32, layout, b_dtype: b.dtype(), accumulate: false }
}

/// How people call a number format.
fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::Q8 => "int8",
        Dtype::Q4 => "int4",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuBackend;
    use crate::bench::shapes::TINY;
    use std::rc::Rc;

    #[test]
    fn rates_are_the_work_by_the_time_it_took() {
        let device: Device = Rc::new(CpuBackend::default());
        // A second from each look at the clock to the next: every operation runs once in a window.
        let ticks = std::cell::Cell::new(0.0);
        let clock = || {
            ticks.set(ticks.get() + 1000.0);
            ticks.get()
        };
        let mut seen = 0;
        let config = TINY[0].config().expect("it is read");
        let (peaks, rates) = futures::executor::block_on(kernel_rates(&device, &config, (2, 8), &clock, &mut |_| seen += 1)).expect("it runs");
        assert_eq!(seen, rates.len());
        // The first product of the list already takes longer than one that is made larger.
        assert_eq!((peaks.product_size, peaks.gflops), (512, 2.0 * 512f64.powi(3) / 1e9));
        assert_eq!(peaks.gigabytes, 8.0 * (16 << 20) as f64 / 1e9);
        let row = |kernel: &str, shape: &str| rates.iter().find(|row| row.kernel == kernel && row.shape == shape).unwrap_or_else(|| panic!("no {kernel} {shape}"));
        let up = row("matmul Nt f32", "16 × 128 × 64");
        assert_eq!((up.millis, up.gflops), (1000.0, 2.0 * 16.0 * 128.0 * 64.0 / 1e9));
        assert_eq!(up.gigabytes, 4.0 * (16.0 * 64.0 + 16.0 * 128.0 + 128.0 * 64.0) / 1e9);
        assert_eq!(up.of_peak, (up.gflops / peaks.gflops).max(up.gigabytes / peaks.gigabytes));
        // 8-bit integers: 17 words for 64 values.
        assert_eq!(row("matmul Nt int8", "16 × 128 × 64").gigabytes, 4.0 * (16.0 * 64.0 + 16.0 * 128.0 + 128.0 * 17.0) / 1e9);
        assert_eq!(row("attention", "2 × 8 tokens, 4 heads of 16").gflops, 2.0 * 2.0 * (2 * 4 * 36 * 16) as f64 / 1e9);
        assert_eq!(row("add", "16 × 64").gigabytes, 4.0 * 3.0 * 16.0 * 64.0 / 1e9);
        assert!(rates.iter().all(|row| row.of_peak > 0.0 && row.of_peak.is_finite()));
    }
}
