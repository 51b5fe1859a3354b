//! Prints GFLOP/s of matrix products on the CPU and WebGPU back ends: `cargo run -p barycenter-engine --example matmul_bench [sizes]`.

use barycenter_engine::bench::matmul_rates;
use barycenter_engine::gpu::GpuBackend;
use barycenter_engine::{Backend, CpuBackend};
use std::time::Instant;

fn main() {
    let mut sizes: Vec<usize> = std::env::args().skip(1).filter_map(|size| size.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![512, 1024];
    }
    print_rates(&CpuBackend::default(), &sizes);
    match pollster::block_on(GpuBackend::create(false)) {
        Ok(gpu) => print_rates(&gpu, &sizes),
        Err(error) => println!("{error}"),
    }
}

fn print_rates(backend: &dyn Backend, sizes: &[usize]) {
    let start = Instant::now();
    println!("{}", backend.info().description);
    println!("  size  weights        ms   GFLOP/s");
    match pollster::block_on(matmul_rates(backend, sizes, || start.elapsed().as_secs_f64() * 1e3)) {
        Ok(rates) => {
            for rate in rates {
                println!("  {:<5} {:<7} {:>9.2} {:>9.1}", rate.size, rate.weights, rate.millis, rate.gflops);
            }
        }
        Err(error) => println!("  {error}"),
    }
}
