//! GFLOP/s of products through frozen weights, f32 beside 8-bit activations, in turns: `cargo run --release -p barycenter-engine
//! --example integer_products`; threads by RAYON_NUM_THREADS.

use barycenter_engine::backbone::upload;
use barycenter_engine::cpu::integer_products;
use barycenter_engine::op::{Layout, Op};
use barycenter_engine::{CpuBackend, Device, Tensor};
use barycenter_model::{RawTensor, TensorDtype};
use std::rc::Rc;
use std::time::Instant;

/// Rows, columns and depth: SmolLM2-135M's layers with 16 × 128 tokens, T5-Base's, a head's labelled rows, decoding.
const SIZES: [(usize, usize, usize); 9] = [
    (2048, 576, 576), (2048, 192, 576), (2048, 1536, 576), (2048, 576, 1536), (2048, 768, 768), (2048, 3072, 768), (2048, 768, 3072),
    (32, 49_152, 576), (1, 1536, 576),
];
const ROUNDS: usize = 9;

fn main() {
    let device: Device = Rc::new(CpuBackend::default());
    println!("{}; integers by {}", device.info().description, integer_products());
    println!("{:>22} {:>9} {:>9} {:>9} {:>9} {:>9}   (medians of {ROUNDS} in turns, GFLOP/s)", "size", "f32", "int8→f32", "int8·int8", "int4·int8", "to f32");
    for (m, n, k) in SIZES {
        let value = |i: usize| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0;
        let raw = RawTensor::from_f32(&[n, k], &(0..n * k).map(value).collect::<Vec<_>>());
        let weights = [upload(&device, &raw), upload(&device, &raw.converted(TensorDtype::Q8)), upload(&device, &raw.converted(TensorDtype::Q4))];
        let a = Tensor::from_f32(&device, &[m, k], &(0..m * k).map(value).collect::<Vec<_>>());
        let c = Tensor::empty(&device, &[m, n]);
        let (m, n, k) = (m as u32, n as u32, k as u32);
        let plain = |b: &Tensor| Op::MatMul { a: a.slice(), b: b.slice(), c: c.slice(), m, n, k, layout: Layout::Nt, b_dtype: b.dtype(), accumulate: false };
        let rounded = |b: &Tensor| Op::MatMulRounded { a: a.slice(), b: b.slice(), c: c.slice(), m, n, k, b_dtype: b.dtype() };
        let ops = [plain(&weights[0]), plain(&weights[1]), rounded(&weights[1]), rounded(&weights[2])];
        let work = 2.0 * f64::from(m) * f64::from(n) * f64::from(k);
        let repeats = (2e9 / work).ceil() as usize;
        let mut rates = ops.each_ref().map(|_| Vec::new());
        for round in 0..=ROUNDS {
            for (op, rates) in ops.iter().zip(&mut rates) {
                let start = Instant::now();
                (0..repeats).for_each(|_| device.run(op.clone()));
                if round > 0 {
                    rates.push(work * repeats as f64 / start.elapsed().as_secs_f64() / 1e9);
                }
            }
        }
        let medians = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[ROUNDS / 2]
        });
        let [f32, widened, int8, int4] = medians;
        println!("{:>22} {f32:>9.1} {widened:>9.1} {int8:>9.1} {int4:>9.1} {:>9.2}", format!("{m} × {n} × {k}"), int8 / f32);
    }
}
