//! Matrix products: natively by [`super::tiles`], in browsers by [`super::gemm_wasm`]. Packed weights that those do not widen
//! themselves are widened in panels here.

use super::simd::{self, kernel};
use super::slab::Packed;
#[cfg(not(target_arch = "wasm32"))]
use super::tiles::{self, Left, Right, Sizes};
use crate::op::Layout;

/// Widened panels of a packed weight hold at most this many values (1 MiB: they stay in the second-level cache).
const PANEL_ELEMENTS: usize = 1 << 18;
/// A linear layer's product with fewer rows than this goes along the weight's rows instead of packing them.
const FEW_ROWS: usize = 4;

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
    match (b, layout) {
        (b, Layout::Nt) if m == 1 || (m < FEW_ROWS && cfg!(not(target_arch = "wasm32"))) => {
            for (a, c) in a.chunks_exact(k.max(1)).zip(c.chunks_exact_mut(n.max(1))) {
                one_row(a, b, c, shape);
            }
        }
        (Packed::F32(b), _) => {
            let b_strides = if layout == Layout::Nt { (1, k) } else { (n, 1) };
            strided(Matrix(a, a_strides), Matrix(b, b_strides), c, n, (m, n, k), accumulate, true);
        }
        #[cfg(not(target_arch = "wasm32"))]
        (b, _) if layout == Layout::Nt || b.unit() == 1 => {
            let right = if layout == Layout::Nt { Right::Columns(b, k) } else { Right::Rows(b, n) };
            tiles::product(Left { values: a, strides: a_strides }, right, c, Sizes { m, n, k, c_stride: n, accumulate, threads: true });
        }
        (packed, _) => by_panels(a, packed, c, shape),
    }
}

/// One row of activations, as in decoding: each row of the weight is widened into the first-level cache and used once.
fn one_row(a: &[f32], b: Packed<'_>, c: &mut [f32], shape: Shape) {
    let Shape { n, k, accumulate, .. } = shape;
    simd::for_working_chunks(c, 1, n * k, |first, c| {
        let mut room = vec![0f32; if matches!(b, Packed::F32(_)) { 0 } else { k }];
        for (column, c) in c.iter_mut().enumerate() {
            let start = (first + column) * k;
            let row = match b {
                Packed::F32(b) => &b[start..start + k],
                packed => {
                    packed.widen(start, &mut room);
                    &room
                }
            };
            *c = dot(a, row) + if accumulate { *c } else { 0.0 };
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
                strided(Matrix(a, (k, 1)), Matrix(panel, (1, k)), &mut c[first..], n, (m, count, k), accumulate, true);
            }
            Layout::Nn => {
                let adds = accumulate || first > 0;
                strided(Matrix(&a[first..], (k, 1)), Matrix(panel, (n, 1)), c, n, (m, n, count), adds, true);
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

/// `c (+)= a · b` with `(m, n, k)` sizes; of `b` the rows or the columns are contiguous, of `c` the rows, `c_stride` apart.
/// `threads` allows more than this thread.
pub(super) fn strided(
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    c_stride: usize,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
    threads: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = |rows: usize, cols: usize, (row, col): (usize, usize)| (rows - 1) * row + (cols - 1) * col;
    assert!(last(m, n, (c_stride, 1)) < c.len(), "the product fits its output");
    assert!(k == 0 || (last(m, k, a.1) < a.0.len() && last(k, n, b.1) < b.0.len()), "the operands hold the product");
    assert!(b.1.0 == 1 || b.1.1 == 1, "rows or columns of the right operand are contiguous");
    #[cfg(target_arch = "wasm32")]
    {
        super::gemm_wasm::product(a, b, c, c_stride, (m, n, k), accumulate, threads);
    }
    #[cfg(not(target_arch = "wasm32"))]
    {
        let right = if b.1.1 == 1 { Right::Rows(Packed::F32(b.0), b.1.0) } else { Right::Columns(Packed::F32(b.0), b.1.1) };
        tiles::product(Left { values: a.0, strides: a.1 }, right, c, Sizes { m, n, k, c_stride, accumulate, threads });
    }
}
