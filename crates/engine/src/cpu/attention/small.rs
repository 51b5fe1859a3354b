//! Products of matrices that stay in the first-level cache: four rows of sums at once, as many columns as there are registers for.
//!
//! A table is its values and the elements from one row to the next.

#[cfg(target_arch = "wasm32")]
use super::super::gemm_wasm::tile_in_place;
#[cfg(target_arch = "wasm32")]
use super::Matrix;
use super::super::simd::plus;

/// Rows of sums, which share the loads of what they are multiplied by.
pub(super) const ROWS: usize = 4;
/// Columns of a block: as many sums as stay in registers.
const COLUMNS: usize = if cfg!(target_arch = "wasm32") { 8 } else { 16 };

/// `out[r, c] = Σ_i x[r, i] · m[i, c]` of sizes `(rows, cols, inner)`, rows at most [`ROWS`].
#[inline(always)]
pub(super) fn rows_times<const FUSED: bool>(
    x: (&[f32], usize),
    m: (&[f32], usize),
    out: (&mut [f32], usize),
    (rows, cols, inner): (usize, usize, usize),
) {
    let mut at = 0;
    if rows == ROWS {
        while at + COLUMNS <= cols {
            let (m, out) = ((&m.0[at..], m.1), (&mut out.0[at..], out.1));
            #[cfg(target_arch = "wasm32")]
            tile_in_place(Matrix(x.0, (x.1, 1)), m, inner, out, ROWS, false);
            #[cfg(not(target_arch = "wasm32"))]
            put(&block_of_rows::<COLUMNS, FUSED>(x, m, inner), out, false);
            at += COLUMNS;
        }
    }
    for row in 0..rows {
        let x = &x.0[row * x.1..][..inner];
        row_times(x, &m.0[at..], m.1, &mut out.0[row * out.1 + at..][..cols - at]);
    }
}

/// `out[j, d] (+)= Σ_i m[i, j] · x[i, d]` of sizes `(inner, rows, cols)`; column `j` of `m` and those behind it are 0 above row
/// `first_of(j)`, and its rows hold whole blocks of [`ROWS`].
#[inline(always)]
pub(super) fn columns_times<const FUSED: bool>(
    m: (&[f32], usize),
    x: (&[f32], usize),
    out: (&mut [f32], usize),
    (inner, rows, cols): (usize, usize, usize),
    first_of: impl Fn(usize) -> usize,
    adds: bool,
) {
    for j in (0..rows).step_by(ROWS) {
        let (first, count) = (first_of(j), ROWS.min(rows - j));
        let m = (&m.0[first * m.1 + j..], m.1);
        let mut at = 0;
        while at + COLUMNS <= cols {
            let (x, out) = ((&x.0[first * x.1 + at..], x.1), (&mut out.0[j * out.1 + at..], out.1));
            #[cfg(target_arch = "wasm32")]
            tile_in_place(Matrix(m.0, (1, m.1)), x, inner - first, out, count, adds);
            #[cfg(not(target_arch = "wasm32"))]
            put(&block_of_columns::<COLUMNS, FUSED>(m, x, inner - first)[..count], out, adds);
            at += COLUMNS;
        }
        while at < cols {
            let (x, out) = ((&x.0[first * x.1 + at..], x.1), (&mut out.0[j * out.1 + at..], out.1));
            put(&block_of_columns::<1, FUSED>(m, x, inner - first)[..count], out, adds);
            at += 1;
        }
    }
}

/// `Σ_i x[r, i] · m[i, c]` of [`ROWS`] rows and the first `WIDE` columns.
#[cfg(not(target_arch = "wasm32"))]
#[inline(always)]
fn block_of_rows<const WIDE: usize, const FUSED: bool>(x: (&[f32], usize), m: (&[f32], usize), inner: usize) -> [[f32; WIDE]; ROWS] {
    let left: [&[f32]; ROWS] = std::array::from_fn(|row| &x.0[row * x.1..][..inner]);
    let mut sums = [[0f32; WIDE]; ROWS];
    for i in 0..inner {
        let right: &[f32; WIDE] = m.0[i * m.1..][..WIDE].try_into().expect("the slice was just cut to that length");
        for (sums, left) in sums.iter_mut().zip(&left) {
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = plus::<FUSED>(left[i], *right, *sum);
            }
        }
    }
    sums
}

/// `Σ_i m[i, r] · x[i, c]` of the first [`ROWS`] columns of `m` and the first `WIDE` of `x`.
#[inline(always)]
fn block_of_columns<const WIDE: usize, const FUSED: bool>(m: (&[f32], usize), x: (&[f32], usize), inner: usize) -> [[f32; WIDE]; ROWS] {
    let mut sums = [[0f32; WIDE]; ROWS];
    for i in 0..inner {
        let left = &m.0[i * m.1..][..ROWS];
        let right: &[f32; WIDE] = x.0[i * x.1..][..WIDE].try_into().expect("the slice was just cut to that length");
        for (sums, left) in sums.iter_mut().zip(left) {
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = plus::<FUSED>(*left, *right, *sum);
            }
        }
    }
    sums
}

/// Stores rows of sums, or adds them to what is there.
#[inline(always)]
fn put<const WIDE: usize>(sums: &[[f32; WIDE]], out: (&mut [f32], usize), adds: bool) {
    for (row, sums) in sums.iter().enumerate() {
        for (to, sum) in out.0[row * out.1..][..WIDE].iter_mut().zip(sums) {
            *to = if adds { *to + sum } else { *sum };
        }
    }
}

/// `out[c] = Σ_r x[r] · m[r, c]`, the rows of `m` being `stride` apart.
#[inline(always)]
fn row_times(x: &[f32], m: &[f32], stride: usize, out: &mut [f32]) {
    let at = tiles::<32>(x, m, stride, out, 0);
    let at = tiles::<16>(x, m, stride, out, at);
    let at = tiles::<8>(x, m, stride, out, at);
    tiles::<1>(x, m, stride, out, at);
}

/// As many whole tiles of `N` columns as there are from `at` on; returns where they end.
#[inline(always)]
fn tiles<const N: usize>(x: &[f32], m: &[f32], stride: usize, out: &mut [f32], mut at: usize) -> usize {
    while at + N <= out.len() {
        let mut sums = [0f32; N];
        for (x, row) in x.iter().zip(m.chunks(stride)) {
            let row = &row[at..at + N];
            for i in 0..N {
                sums[i] += x * row[i];
            }
        }
        out[at..at + N].copy_from_slice(&sums);
        at += N;
    }
    at
}

/// `[rows, width]` of a table with `stride` elements a row becomes `[width, pad]`, 0 behind the last row.
#[inline(always)]
pub(super) fn transpose(from: &[f32], stride: usize, (rows, width, pad): (usize, usize, usize), to: &mut Vec<f32>) {
    to.clear();
    to.resize(width * pad, 0.0);
    let row = |j: usize| &from[j * stride..][..width];
    for j in (0..rows / 4 * 4).step_by(4) {
        let [a, b, c, d] = [row(j), row(j + 1), row(j + 2), row(j + 3)];
        for (i, to) in to.chunks_exact_mut(pad).enumerate() {
            to[j..j + 4].copy_from_slice(&[a[i], b[i], c[i], d[i]]);
        }
    }
    for j in rows / 4 * 4..rows {
        for (to, x) in to.chunks_exact_mut(pad).zip(row(j)) {
            to[j] = *x;
        }
    }
}
