//! Matrix products: tiles of the result stay in registers while a thread goes along the inner sum.
//!
//! A small right matrix, as a side network's are, is read where it lies (or turned once). Of a larger one, a weight in
//! whatever form it is stored, each thread widens and packs the columns it works on, a panel at a time. Work space belongs
//! to the thread and is kept: a product allocates nothing.

use super::shared::{Part, Shared, share_out};
use super::simd;
use super::slab::Packed;
use std::cell::Cell;
use std::ops::Range;

/// Values of one vector: AVX2, or two of NEON.
const LANES: usize = 8;
/// Rows of a register tile, and vectors in each of its rows: 12 accumulators, 2 vectors of the right matrix and a value of the
/// left one in 16 registers. (4 × 3 needs the sixteenth too, and the compiler spills.)
const ROWS: usize = 6;
const VECTORS: usize = 2;
const COLUMNS: usize = VECTORS * LANES;
/// Steps of the inner sum between two visits of a tile where the right matrix is read in place: a tile's columns of so many
/// rows stay in the first-level cache, of whose sets rows far apart may share a quarter.
const INNER: usize = 96;
/// Steps in a packed panel of [`COLUMNS`] columns (12 KiB): whole blocks of packed weights.
const PANEL_INNER: usize = 192;
/// Rows of the left matrix that meet a panel before the next is packed: with the panel's steps, 384 KiB.
const PANEL_ROWS: usize = 512;
/// Multiplications that are worth another thread (about 10 µs).
const PARALLEL_PRODUCTS: usize = 1 << 19;
/// A right matrix of at most so many values is read in place, or turned whole.
const SMALL: usize = 1 << 14;

/// `a[i, k]` lies at `i · strides.0 + k · strides.1`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub values: &'a [f32],
    pub strides: (usize, usize),
}

impl Left<'_> {
    /// The matrix without its first rows.
    fn rows_from(self, row: usize) -> Self {
        Self { values: &self.values[row * self.strides.0..], ..self }
    }
}

/// The right matrix `[inner, columns]`, with the elements from one of its rows, or columns, to the next.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Rows as they are; no blocks, which cannot be cut along a row.
    Rows(Packed<'a>, usize),
    /// Its transpose `[columns, inner]`: a linear layer's weight.
    Columns(Packed<'a>, usize),
}

/// How large a product is.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Rows and columns of the result, and terms of each sum.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Elements from one row of the result to the next.
    pub c_stride: usize,
    /// Whether to add to the result.
    pub accumulate: bool,
    /// Whether more threads than this one may be used.
    pub threads: bool,
}

impl Sizes {
    /// How many threads a product with so many rows is worth.
    fn threads(&self, rows: usize) -> usize {
        if self.threads && rows * self.n * self.k >= PARALLEL_PRODUCTS { simd::threads() } else { 1 }
    }
}

thread_local! {
    // Taken while in use and put back: a thread that waits for others may meanwhile start another product.
    /// A small right matrix, turned, and its last few columns, padded to a whole vector.
    static SMALL_RIGHT: Cell<(Vec<f32>, Vec<f32>)> = Cell::default();
    static PANEL: Cell<Panel> = Cell::default();
}

/// `c (+)= a · b`, the rows of `c` being contiguous.
pub(super) fn product(a: Left<'_>, b: Right<'_>, c: &mut [f32], sizes: Sizes) {
    let Sizes { m, n, k, c_stride, accumulate, .. } = sizes;
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= c_stride && (m - 1) * c_stride + n <= c.len(), "the product fits its output");
    if k == 0 {
        return c.chunks_mut(c_stride).take(m).filter(|_| !accumulate).for_each(|row| row[..n].fill(0.0));
    }
    assert!((m - 1) * a.strides.0 + (k - 1) * a.strides.1 < a.values.len(), "the left operand holds the product");
    let c = Shared::new(c, m, c_stride);
    let (mut turned, mut padded) = SMALL_RIGHT.take();
    match b {
        Right::Rows(Packed::F32(rows), stride) if n * k <= SMALL || m <= 2 * COLUMNS => {
            small(a, (rows, stride), &mut padded, &c, sizes);
        }
        Right::Columns(Packed::F32(columns), stride) if n * k <= SMALL => {
            turn((columns, stride), (k, n), &mut turned);
            small(a, (&turned, n), &mut padded, &c, sizes);
        }
        b => by_panels(a, b, &c, sizes),
    }
    SMALL_RIGHT.set((turned, padded));
}

/// Rows of the result are shared out; all threads read the same right matrix: `k` rows, with the elements between them.
fn small(a: Left<'_>, (rows, stride): (&[f32], usize), padded: &mut Vec<f32>, c: &Shared<'_>, sizes: Sizes) {
    let Sizes { m, n, k, accumulate, .. } = sizes;
    // What does not fill a vector is copied to columns that do.
    let whole = n / LANES * LANES;
    padded.clear();
    if whole < n {
        padded.resize(k * LANES, 0.0);
        for (step, to) in padded.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            to[..n - whole].copy_from_slice(&rows[step * stride + whole..step * stride + n]);
        }
    }
    share_out(m, ROWS, sizes.threads(m), |range| {
        let a = a.rows_from(range.start);
        // SAFETY: the ranges of rows are disjoint.
        let mut c = unsafe { c.part(range, 0..n) };
        for start in (0..k).step_by(INNER) {
            let (inner, adds) = (start..k.min(start + INNER), accumulate || start > 0);
            tiles(a, Rows { values: &rows[start * stride..], stride, columns: 0..whole }, &mut c, inner.clone(), adds);
            if whole < n {
                tiles(a, Rows { values: &padded[start * LANES..], stride: LANES, columns: whole..n }, &mut c, inner, adds);
            }
        }
    });
}

/// `[columns, inner]`, a column being `stride` elements behind the one before, becomes `[inner, columns]`.
fn turn((from, stride): (&[f32], usize), (k, n): (usize, usize), to: &mut Vec<f32>) {
    to.resize(k * n, 0.0);
    for (column, from) in from.chunks(stride).take(n).enumerate() {
        for (to, x) in to[column..].iter_mut().step_by(n).zip(&from[..k]) {
            *to = *x;
        }
    }
}

/// Columns of the result are shared out, or rows where columns are few; each thread packs what it needs.
fn by_panels(a: Left<'_>, b: Right<'_>, c: &Shared<'_>, sizes: Sizes) {
    let Sizes { m, n, k, accumulate, .. } = sizes;
    let run = |rows: Range<usize>, columns: Range<usize>| {
        let mut panel = PANEL.take();
        for start in (0..k).step_by(PANEL_INNER) {
            let inner = start..k.min(start + PANEL_INNER);
            for first in columns.clone().step_by(COLUMNS) {
                let columns = first..columns.end.min(first + COLUMNS);
                let stride = panel.pack(b, inner.clone(), columns.clone());
                // SAFETY: threads work on disjoint rows, or on disjoint columns.
                let mut c = unsafe { c.part(rows.clone(), columns.clone()) };
                let right = Rows { values: &panel.values, stride, columns };
                tiles(a.rows_from(rows.start), right, &mut c, inner.clone(), accumulate || start > 0);
            }
        }
        PANEL.set(panel);
    };
    // A block of rows stays in the second-level cache while all its panels pass.
    for first in (0..m).step_by(PANEL_ROWS) {
        let rows = first..m.min(first + PANEL_ROWS);
        let threads = sizes.threads(rows.len());
        if n >= 2 * threads * COLUMNS {
            share_out(n, COLUMNS, threads, |columns| run(rows.clone(), columns));
        } else {
            share_out(rows.len(), ROWS, threads, |part| run(first + part.start..first + part.end, 0..n));
        }
    }
}

/// Some steps of some columns of a right matrix.
#[derive(Default)]
struct Panel {
    /// `[steps, whole vectors of columns]`.
    values: Vec<f32>,
    /// The steps of one column.
    column: Vec<f32>,
}

impl Panel {
    /// Packs steps and columns of `b`, padded with zeros to whole vectors; returns how many values a step has.
    fn pack(&mut self, b: Right<'_>, inner: Range<usize>, columns: Range<usize>) -> usize {
        let stride = columns.len().next_multiple_of(LANES);
        self.values.resize(PANEL_INNER * COLUMNS, 0.0);
        if columns.len() < stride {
            self.values[..inner.len() * stride].fill(0.0);
        }
        match b {
            Right::Rows(b, between) => {
                for (row, to) in inner.zip(self.values.chunks_exact_mut(stride)) {
                    b.widen(row * between + columns.start, &mut to[..columns.len()]);
                }
            }
            Right::Columns(b, between) => {
                self.column.resize(inner.len(), 0.0);
                for (index, column) in columns.enumerate() {
                    b.widen(column * between + inner.start, &mut self.column);
                    for (to, x) in self.values[index..].iter_mut().step_by(stride).zip(&self.column) {
                        *to = *x;
                    }
                }
            }
        }
        stride
    }
}

/// Rows of a right matrix, one for each step; `columns` says which of the result's they are, the first at the start of a row.
struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
    columns: Range<usize>,
}

/// Adds the steps `inner` to all rows of `c`, in the columns of `right`, or starts their sums; `right` begins at the first
/// of these steps, `a` at the first row of `c`.
fn tiles(a: Left<'_>, right: Rows<'_>, c: &mut Part<'_>, inner: Range<usize>, adds: bool) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(a: Left<'_>, right: Rows<'_>, c: &mut Part<'_>, inner: Range<usize>, adds: bool) {
            all_tiles::<true>(a, right, c, inner, adds);
        }
        if simd::is_wide() {
            // SAFETY: the processor has AVX2 and FMA, as is_wide found.
            return unsafe { wide(a, right, c, inner, adds) };
        }
    }
    all_tiles::<{ cfg!(target_arch = "aarch64") }>(a, right, c, inner, adds);
}

#[inline(always)]
fn all_tiles<const FUSED: bool>(a: Left<'_>, right: Rows<'_>, c: &mut Part<'_>, inner: Range<usize>, adds: bool) {
    for first in right.columns.clone().step_by(COLUMNS) {
        let columns = first..right.columns.end.min(first + COLUMNS);
        let b = &right.values[first - right.columns.start..];
        for row in (0..c.rows).step_by(ROWS) {
            let at = TileAt { row, columns: columns.clone(), inner: inner.clone(), adds };
            match columns.len().div_ceil(LANES) {
                1 => tile_rows::<1, FUSED>(a, (b, right.stride), c, at),
                _ => tile_rows::<VECTORS, FUSED>(a, (b, right.stride), c, at),
            }
        }
    }
}

/// The place of a tile in the part of the result that a thread writes.
struct TileAt {
    row: usize,
    columns: Range<usize>,
    inner: Range<usize>,
    adds: bool,
}

#[inline(always)]
fn tile_rows<const WIDE: usize, const FUSED: bool>(a: Left<'_>, b: (&[f32], usize), c: &mut Part<'_>, at: TileAt) {
    match c.rows - at.row {
        1 => tile::<1, WIDE, FUSED>(a, b, c, at),
        2 => tile::<2, WIDE, FUSED>(a, b, c, at),
        3 => tile::<3, WIDE, FUSED>(a, b, c, at),
        4 => tile::<4, WIDE, FUSED>(a, b, c, at),
        5 => tile::<5, WIDE, FUSED>(a, b, c, at),
        _ => tile::<ROWS, WIDE, FUSED>(a, b, c, at),
    }
}

#[inline(always)]
fn tile<const TALL: usize, const WIDE: usize, const FUSED: bool>(a: Left<'_>, (b, b_stride): (&[f32], usize), c: &mut Part<'_>, at: TileAt) {
    let (row_stride, inner_stride) = a.strides;
    let a = &a.values[at.row * row_stride + at.inner.start * inner_stride..];
    let steps = at.inner.len();
    assert!((TALL - 1) * row_stride + (steps - 1) * inner_stride < a.len() && (steps - 1) * b_stride + WIDE * LANES <= b.len());
    let mut sums = [[[0f32; LANES]; WIDE]; TALL];
    for step in 0..steps {
        let mut right = [[0f32; LANES]; WIDE];
        for (vector, right) in right.iter_mut().enumerate() {
            // SAFETY: the assertion above bounds every step's row of b by its last.
            *right = unsafe { b.as_ptr().add(step * b_stride + vector * LANES).cast::<[f32; LANES]>().read_unaligned() };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: likewise for a.
            let left = unsafe { *a.get_unchecked(row * row_stride + step * inner_stride) };
            for (sums, right) in sums.iter_mut().zip(&right) {
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = if FUSED { left.mul_add(*right, *sum) } else { *sum + left * right };
                }
            }
        }
    }
    // A copy, so that the sums above are never indexed but by constants and stay in registers.
    let done = sums;
    for (row, sums) in done.iter().enumerate() {
        let c = c.row(at.row + row, at.columns.clone());
        if c.len() == WIDE * LANES {
            for (c, sums) in c.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                for lane in 0..LANES {
                    c[lane] = if at.adds { c[lane] + sums[lane] } else { sums[lane] };
                }
            }
        } else {
            for (c, sum) in c.iter_mut().zip(sums.as_flattened()) {
                *c = if at.adds { *c + sum } else { *sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_odd_sizes_are_right() {
        let value = |i: usize| ((i * 2_654_435_761) % 1_000) as f32 / 500.0 - 1.0;
        for (m, n, k) in [(1, 1, 1), (2, 9, 5), (4, 1, 1), (5, 7, 3), (16, 8, 24), (19, 24, 17), (401, 24, 64), (402, 64, 24), (24, 192, 1_030), (403, 12, 33), (23, 53, 700), (30, 101, 400), (53, 200, 97), (1_030, 130, 200)] {
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..n * k).map(|i| value(i + 7)).collect();
            for accumulate in [false, true] {
                for (a_strides, columns) in [((k, 1), false), ((k, 1), true), ((1, m), false)] {
                    let mut c = vec![0.5; m * n];
                    let right = if columns { Right::Columns(Packed::F32(&b), k) } else { Right::Rows(Packed::F32(&b), n) };
                    let sizes = Sizes { m, n, k, c_stride: n, accumulate, threads: true };
                    product(Left { values: &a, strides: a_strides }, right, &mut c, sizes);
                    for (at, got) in c.iter().enumerate() {
                        let (i, j) = (at / n, at % n);
                        let term = |l: usize| f64::from(a[i * a_strides.0 + l * a_strides.1]) * f64::from(if columns { b[j * k + l] } else { b[l * n + j] });
                        let want = (0..k).map(term).sum::<f64>() + if accumulate { 0.5 } else { 0.0 };
                        let size = 1.0 + (0..k).map(|l| term(l).abs()).sum::<f64>();
                        assert!((f64::from(*got) - want).abs() < 1e-6 * size, "{m} {n} {k} {columns} {accumulate}: {got} {want}");
                    }
                }
            }
        }
    }
}
