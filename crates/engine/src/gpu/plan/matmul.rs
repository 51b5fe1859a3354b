//! Which matrix product kernel, with which tile, in how many pieces.

use super::{Binding, Dispatch, Plan, SUBMIT_COST, at, dtype_number, grid, packed};
use crate::op::{Dtype, Layout, Slice};

/// From this many 64 × 64 tiles on, the large tile keeps a device busy.
const LARGE_TILES: u32 = 32;
/// Up to this many rows, reading the weight is all that counts.
const FEW_ROWS: u32 = 8;

/// Sizes and form of a product.
#[derive(Clone, Copy)]
pub struct Shape {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub layout: Layout,
    pub b_dtype: Dtype,
    pub accumulate: bool,
}

/// A product in pieces that each fit a submit.
pub fn plan(a: Slice, b: Slice, c: Slice, shape: Shape) -> Plan {
    let Shape { m, n, k, layout, .. } = shape;
    if m == 0 || n == 0 {
        return Plan::default();
    }
    // Pieces are stretches of rows; a transposed `a` has none that are contiguous.
    let row_cost = 2 * u64::from(n) * u64::from(k).max(1);
    let piece = match layout {
        Layout::Tn => m,
        Layout::Nn | Layout::Nt => u32::try_from(SUBMIT_COST / row_cost).unwrap_or(u32::MAX).max(64) / 64 * 64,
    };
    let mut dispatches = Vec::new();
    let mut row = 0;
    while row < m {
        let rows = piece.min(m - row);
        let a = Slice { offset: a.offset + row * k, ..a };
        let c = Slice { offset: c.offset + row * n, ..c };
        dispatches.push(dispatch(a, b, c, Shape { m: rows, ..shape }));
        row += rows;
    }
    Plan { dispatches, scratch: Vec::new() }
}

fn dispatch(a: Slice, b: Slice, c: Slice, shape: Shape) -> Dispatch {
    let Shape { m, n, k, layout, b_dtype, accumulate } = shape;
    let (a_row, b_row) = match layout {
        Layout::Nn => (k, n),
        Layout::Nt => (k, k),
        Layout::Tn => (m, n),
    };
    let quads = |slice: Slice, row: u32| slice.offset.is_multiple_of(4) && row.is_multiple_of(4);
    let (a_vec4, b_vec4) = (quads(a, a_row), quads(b, b_row));
    let b_dtype = if layout == Layout::Tn { Dtype::F32 } else { b_dtype };
    let bindings: Vec<Binding> = vec![at(a, m * k), packed(b, b_dtype, n * k), at(c, m * n)];
    let params = vec![m, n, k, accumulate as u32];
    let cost = 2 * u64::from(m) * u64::from(n) * u64::from(k);
    if layout == Layout::Nt && m <= FEW_ROWS && a_vec4 && b_vec4 {
        let rows = if m == 1 { 1 } else { m.next_multiple_of(4) };
        let constants = vec![("B_DTYPE", dtype_number(b_dtype)), ("ROWS", rows)];
        return Dispatch { kernel: "matmul_rows", constants, bindings, params, groups: grid(n.div_ceil(8)), cost };
    }
    let micro = if m.div_ceil(64) * n.div_ceil(64) >= LARGE_TILES { 8 } else { 4 };
    let constants = vec![
        ("LAYOUT", layout as u32),
        ("B_DTYPE", dtype_number(b_dtype)),
        ("A_VEC4", a_vec4 as u32),
        ("B_VEC4", b_vec4 as u32),
        ("MICRO", micro),
    ];
    let tile = 8 * micro;
    Dispatch { kernel: "matmul", constants, bindings, params, groups: (n.div_ceil(tile), m.div_ceil(tile)), cost }
}
