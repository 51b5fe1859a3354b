//! Which matrix product kernel, with which tile, in how many pieces.

use super::{Binding, Dispatch, Plan, SUBMIT_COST, at, dtype_number, grid, packed};
use crate::gpu::tile::{Tile, Tuning};
use crate::op::{Dtype, Layout, Slice};

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
pub fn plan(a: Slice, b: Slice, c: Slice, shape: Shape, tuning: Tuning) -> Plan {
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
    let tile = tuning.tile(m, n);
    let mut dispatches = Vec::new();
    let mut row = 0;
    while row < m {
        let rows = piece.min(m - row);
        let a = Slice { offset: a.offset + row * k, ..a };
        let c = Slice { offset: c.offset + row * n, ..c };
        dispatches.push(dispatch(a, b, c, Shape { m: rows, ..shape }, tile));
        row += rows;
    }
    Plan { dispatches, scratch: Vec::new() }
}

fn dispatch(a: Slice, b: Slice, c: Slice, shape: Shape, tile: Tile) -> Dispatch {
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
    let operands = [("LAYOUT", layout as u32), ("B_DTYPE", dtype_number(b_dtype)), ("A_VEC4", a_vec4 as u32), ("B_VEC4", b_vec4 as u32)];
    let (kernel, form, tile_rows, tile_cols) = match tile {
        Tile::Shared32 => shared(4),
        Tile::Shared64 => shared(8),
        Tile::Registers4 => registers(1, 8, m, n),
        Tile::Registers8 => registers(2, 8, m, n),
        Tile::Registers16 => registers(4, 2, m, n),
    };
    let constants = operands.into_iter().chain(form).collect();
    Dispatch { kernel, constants, bindings, params, groups: (n.div_ceil(tile_cols), m.div_ceil(tile_rows)), cost }
}

/// Kernel, constants, and the rows and columns that a workgroup makes.
type Form = (&'static str, Vec<(&'static str, u32)>, u32, u32);

fn shared(micro: u32) -> Form {
    ("matmul", vec![("MICRO", micro)], 8 * micro, 8 * micro)
}

/// Tiles of up to `4 quads` square, smaller where the product has fewer rows or columns, `group` by `group` a workgroup.
fn registers(quads: u32, group: u32, m: u32, n: u32) -> Form {
    let needed = |len: u32| len.div_ceil(4).next_power_of_two().min(quads);
    let (rows, cols) = (needed(m), needed(n));
    let constants = vec![("ROW_QUADS", rows), ("COL_QUADS", cols), ("GROUP_X", group), ("GROUP_Y", group)];
    ("matmul_registers", constants, 4 * rows * group, 4 * cols * group)
}
