//! Matrix products of odd shapes against a plain loop, for tests: what only a browser runs.

use barycenter_engine::gpu::{GpuBackend, Tile, Tuning};
use barycenter_engine::op::{Dtype, Layout, Op, Slice};
use barycenter_engine::{Backend, BackendChoice, BackendError, BackendKind, CpuBackend};
use wasm_bindgen::prelude::{JsError, JsValue, wasm_bindgen};

/// Rows, columns, depth: one row, odd, quads, whole tiles, and more than one block of each kind.
const SIZES: [(usize, usize, usize); 7] =
    [(1, 5, 7), (3, 37, 72), (33, 31, 17), (36, 40, 44), (64, 64, 64), (70, 517, 20), (130, 66, 261)];

/// Of products through weights of integers, whose rows are whole blocks: few rows, odd, and more than one panel of each kind.
const ROUNDED_SIZES: [(usize, usize, usize); 5] = [(1, 5, 32), (3, 37, 96), (17, 8, 64), (33, 31, 160), (90, 70, 672)];

/// Multiplies whole numbers, whose products and sums are exact, in every layout, on the CPU or (`"gpu"`) in every form that
/// WebGPU has: the largest difference from a plain loop, which has to be 0.
///
/// # Errors
/// When there is no such back end here, or when it fails.
#[wasm_bindgen]
pub async fn product_error(backend: JsValue) -> Result<f64, JsError> {
    console_error_panic_hook::set_once();
    let choice: BackendChoice = serde_wasm_bindgen::from_value(backend)?;
    if choice != BackendChoice::Gpu {
        return Ok(error_on(&CpuBackend::default()).await?);
    }
    let gpu = GpuBackend::create(false).await?;
    let mut largest = 0f64;
    for tile in Tile::ALL {
        gpu.set_tuning(Tuning::always(tile));
        let error = error_on(&gpu).await?;
        log::info!("products as {tile:?}: {error}");
        largest = worse(largest, error);
    }
    Ok(largest)
}

async fn error_on(backend: &dyn Backend) -> Result<f64, BackendError> {
    let mut largest = 0f64;
    for sizes in SIZES {
        for layout in [Layout::Nn, Layout::Nt, Layout::Tn] {
            // Where the operands start, and whether the product is added to what is there.
            for (from, accumulate) in [(0, false), (3, true)] {
                largest = worse(largest, error_of(backend, sizes, layout, from, accumulate).await?);
            }
        }
    }
    if backend.info().kind == BackendKind::Cpu {
        for sizes in ROUNDED_SIZES {
            largest = worse(largest, rounded_error_of(backend, sizes).await?);
        }
    }
    Ok(largest)
}

/// The largest difference of one product of rounded activations, where rounding changes nothing: whole numbers with 127 as the
/// largest of each block.
async fn rounded_error_of(backend: &dyn Backend, (m, n, k): (usize, usize, usize)) -> Result<f64, BackendError> {
    let a: Vec<f32> = values(m * k, 1).iter().enumerate().map(|(at, x)| if at % 32 == 7 { 127.0 } else { 15.0 * x }).collect();
    // Integers of 8 bits; pairs of blocks of 32 with their scales behind them, 0.5 as f16 twice.
    let integers: Vec<i8> = values((n * k).next_multiple_of(64), 2).iter().map(|x| (16.0 * x).clamp(-128.0, 127.0) as i8).collect();
    let word = |bytes: &[i8]| bytes.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte as u8));
    let b: Vec<u32> = integers.chunks(64).flat_map(|pair| pair.chunks(4).map(word).chain([0x3800_3800])).collect();
    let a_words: Vec<u32> = a.iter().map(|value| value.to_bits()).collect();
    let [to_a, to_b, to_c] = [a_words.len(), b.len(), m * n].map(|len| Slice::from(backend.allocate(len)));
    backend.write(to_a.buffer, 0, &a_words);
    backend.write(to_b.buffer, 0, &b);
    let [rows, cols, depth] = [m, n, k].map(|len| len as u32);
    backend.run(Op::MatMulRounded { a: to_a, b: to_b, c: to_c, m: rows, n: cols, k: depth, b_dtype: Dtype::Q8 });
    let got = backend.read(to_c.buffer, 0, m * n).await?;
    [to_a, to_b, to_c].into_iter().for_each(|slice| backend.free(slice.buffer));
    let want = |at: usize| (0..k).map(|d| a[at / n * k + d] * f32::from(integers[at % n * k + d])).sum::<f32>() * 0.5;
    // The scale 127 / 127 is exact, and so is every sum.
    let errors = got.iter().enumerate().map(|(at, got)| f64::from((f32::from_bits(*got) - want(at)).abs()));
    Ok(errors.fold(0.0, worse))
}

/// The largest difference of one product, in the whole buffer that it is written to.
async fn error_of(
    backend: &dyn Backend,
    (m, n, k): (usize, usize, usize),
    layout: Layout,
    from: usize,
    accumulate: bool,
) -> Result<f64, BackendError> {
    let (a, b, before) = (values(from + m * k, 1), values(from + k * n, 2), values(from + m * n, 3));
    let [to_a, to_b, to_c] = [&a, &b, &before].map(|values| {
        let buffer = backend.allocate(values.len());
        backend.write(buffer, 0, &values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>());
        Slice { buffer, offset: from as u32 }
    });
    let [rows, cols, depth] = [m, n, k].map(|len| len as u32);
    let b_dtype = Dtype::F32;
    backend.run(Op::MatMul { a: to_a, b: to_b, c: to_c, m: rows, n: cols, k: depth, layout, b_dtype, accumulate });
    let got = backend.read(to_c.buffer, 0, before.len()).await?;
    [to_a, to_b, to_c].into_iter().for_each(|slice| backend.free(slice.buffer));
    let element = |at: usize| {
        let (i, j) = (at / n, at % n);
        let a_at = |d: usize| if layout == Layout::Tn { d * m + i } else { i * k + d };
        let b_at = |d: usize| if layout == Layout::Nt { j * k + d } else { d * n + j };
        let sum: f32 = (0..k).map(|d| a[from + a_at(d)] * b[from + b_at(d)]).sum();
        sum + if accumulate { before[from + at] } else { 0.0 }
    };
    let want = |at: usize| if at < from { before[at] } else { element(at - from) };
    let errors = got.iter().enumerate().map(|(at, got)| f64::from((f32::from_bits(*got) - want(at)).abs()));
    Ok(errors.fold(0.0, worse))
}

/// The larger one, or what is not a number.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Whole numbers between -8 and 8.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729 + i * i % 31) % 17) as f32 - 8.0).collect()
}
