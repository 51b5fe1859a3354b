//! Matrix products: natively by [`super::tiles`], in browsers by [`super::gemm_wasm`]; natively the `gemm` crate does what does
//! not suit the former. Packed weights that are not widened there are widened in panels here.

use super::simd::{self, kernel};
use super::slab::Packed;
#[cfg(not(target_arch = "wasm32"))]
use super::tiles::{self, Left, Right};
use crate::op::Layout;

/// Widened panels of a packed weight hold at most this many values (1 MiB: they stay in the second-level cache).
const PANEL_ELEMENTS: usize = 1 << 18;
/// Below this many multiplications a product runs on one thread.
#[cfg(not(target_arch = "wasm32"))]
const PARALLEL_PRODUCTS: usize = 1 << 17;

/// Sizes of one product.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub layout: Layout,
    pub accumulate: bool,
}

/// `c (+)= op(a) · op(b)`.
pub(super) fn matmul(a: &[f32], b: Packed<'_>, c: &mut [f32], shape: Shape) {
    let Shape { m, n, k, layout, accumulate } = shape;
    let a_strides = if layout == Layout::Tn { (1, m) } else { (k, 1) };
    #[cfg(not(target_arch = "wasm32"))]
    {
        let right = if layout == Layout::Nt { Right::Columns(b) } else { Right::Rows(b) };
        if tiles::applies(right, (m, n, k)) {
            return tiles::product(Left { values: a, strides: a_strides }, right, c, (m, n, k), accumulate);
        }
    }
    match b {
        Packed::F32(b) => {
            let b_strides = if layout == Layout::Nt { (1, k) } else { (n, 1) };
            strided(Matrix(a, a_strides), Matrix(b, b_strides), c, (n, 1), (m, n, k), accumulate, true);
        }
        packed if m == 1 && layout == Layout::Nt => one_row(a, packed, c, shape),
        packed => by_panels(a, packed, c, shape),
    }
}

/// One row of activations, as in decoding: each row of the weight is widened into the first-level cache and used once.
fn one_row(a: &[f32], b: Packed<'_>, c: &mut [f32], shape: Shape) {
    let Shape { n, k, accumulate, .. } = shape;
    simd::for_working_chunks(c, 1, n * k, |first, c| {
        let mut row = vec![0f32; k];
        for (column, c) in c.iter_mut().enumerate() {
            b.widen((first + column) * k, &mut row);
            *c = dot(a, &row) + if accumulate { *c } else { 0.0 };
        }
    });
}

kernel! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        simd::dot(a, b)
    }
}

/// The weight's rows are widened a panel at a time: for `Nt` a panel makes some columns of `c`, for `Nn` it adds to all.
fn by_panels(a: &[f32], b: Packed<'_>, c: &mut [f32], shape: Shape) {
    let Shape { m, n, k, layout, accumulate } = shape;
    let (rows, width) = if layout == Layout::Nt { (n, k) } else { (k, n) };
    let panel_rows = (PANEL_ELEMENTS / width.max(1)).clamp(1, rows.max(1));
    let mut panel = vec![0f32; panel_rows * width];
    for first in (0..rows).step_by(panel_rows) {
        let count = panel_rows.min(rows - first);
        let panel = &mut panel[..count * width];
        widen(b, first * width, panel);
        match layout {
            Layout::Nt => {
                strided(Matrix(a, (k, 1)), Matrix(panel, (1, k)), &mut c[first..], (n, 1), (m, count, k), accumulate, true);
            }
            Layout::Nn => {
                let adds = accumulate || first > 0;
                strided(Matrix(&a[first..], (k, 1)), Matrix(panel, (n, 1)), c, (n, 1), (m, n, count), adds, true);
            }
            Layout::Tn => unreachable!("a packed operand is a weight, read as Nn or Nt"),
        }
    }
}

fn widen(b: Packed<'_>, start: usize, out: &mut [f32]) {
    simd::for_row_chunks(out, b.unit(), |first, piece| b.widen(start + first * b.unit(), piece));
}

/// Values and the (row, column) strides they are read with.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a>(pub &'a [f32], pub (usize, usize));

/// `c (+)= a · b` with `(m, n, k)` sizes and any strides; `threads` allows more than this thread.
pub(super) fn strided(
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    c_strides: (usize, usize),
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
    threads: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = |rows: usize, cols: usize, (row, col): (usize, usize)| (rows - 1) * row + (cols - 1) * col;
    assert!(last(m, n, c_strides) < c.len(), "the product fits its output");
    assert!(k == 0 || (last(m, k, a.1) < a.0.len() && last(k, n, b.1) < b.0.len()), "the operands hold the product");
    #[cfg(target_arch = "wasm32")]
    {
        let _ = threads;
        assert!(c_strides.1 == 1, "the rows of a result are contiguous");
        super::gemm_wasm::gemm(a, b, c, c_strides.0, (m, n, k), accumulate);
    }
    #[cfg(not(target_arch = "wasm32"))]
    // SAFETY: the asserts above bound every element the strides reach; c is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_strides.1 as isize,
            c_strides.0 as isize,
            accumulate,
            a.0.as_ptr(),
            a.1.1 as isize,
            a.1.0 as isize,
            b.0.as_ptr(),
            b.1.1 as isize,
            b.1.0 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism(m * n * k, threads),
        );
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn parallelism(products: usize, threads: bool) -> gemm::Parallelism {
    if !threads || products < PARALLEL_PRODUCTS { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) }
}
