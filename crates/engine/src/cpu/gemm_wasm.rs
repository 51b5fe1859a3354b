//! The matrix product of the browser node: 128-bit vectors, no fused multiply-add, one thread.
//!
//! Blocks of both operands are copied into the order in which the innermost loop reads them (Goto and van de Geijn,
//! "Anatomy of High-Performance Matrix Multiplication", 2008): b in panels of [`WIDTH`] columns, a in panels of at most
//! [`HEIGHT`] rows, both with the depth outermost. The tile of sums, two vectors by four rows, is as large as the fifteen
//! registers that browsers have on x86-64 allow without spilling.

use super::matmul::Matrix;
use super::simd;
use std::cell::RefCell;

/// Columns of a tile: two vectors.
const WIDTH: usize = 8;
/// Rows of a tile.
const HEIGHT: usize = 4;
/// Depth of a block: a panel of b is 8 KiB, a quarter of a first-level cache.
const DEPTH: usize = 256;
/// Rows of a block of a: 64 KiB, which stay in the second-level cache.
const ROWS: usize = 64;
/// Columns of a block of b: 512 KiB at most.
const COLS: usize = 512;
/// Below this many rows a copy of b costs more than it saves.
const FEW_ROWS: usize = 3;
/// Fewer products than this are not worth waking another thread (about 30 µs of work).
#[cfg(threads)]
const PARALLEL_PRODUCTS: usize = 1 << 18;
/// Fewer rows than this are no thread's share: each copies b for itself.
#[cfg(threads)]
const SHARE_ROWS: usize = 16;

thread_local! {
    /// Room for a block of a and one of b, kept from product to product.
    static BLOCKS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// [`gemm`], whose rows several threads share out if that pays. A row's sums do not depend on how many there are.
pub(super) fn product(
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    c_stride: usize,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
    threads: bool,
) {
    #[cfg(threads)]
    {
        let count = simd::threads();
        if threads && count > 1 && m >= 2 * SHARE_ROWS && m * n * k >= PARALLEL_PRODUCTS {
            use rayon::prelude::*;
            // Tall matrices in more pieces than threads, so that a slow processor gets fewer.
            let pieces = if m >= 4 * count * ROWS { 2 * count } else { count };
            let rows = m.div_ceil(pieces).next_multiple_of(HEIGHT).max(SHARE_ROWS);
            c.par_chunks_mut(rows * c_stride).enumerate().for_each(|(at, c)| {
                let first = at * rows;
                if first < m {
                    in_blocks(Matrix(&a.0[first * a.1.0..], a.1), b, c, c_stride, (rows.min(m - first), n, k), accumulate);
                }
            });
            return;
        }
    }
    let _ = threads;
    gemm(a, b, c, c_stride, (m, n, k), accumulate);
}

/// `c (+)= a · b` with `(m, n, k)` sizes; the rows of `c` are contiguous, `c_stride` apart.
fn gemm(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], c_stride: usize, (m, n, k): (usize, usize, usize), accumulate: bool) {
    if k == 0 {
        return overwrite(c, c_stride, (m, n), accumulate);
    }
    if m <= FEW_ROWS && (b.1.0 == 1 || b.1.1 == 1) {
        return few_rows(a, b, c, c_stride, (m, n, k), accumulate);
    }
    in_blocks(a, b, c, c_stride, (m, n, k), accumulate);
}

/// [`gemm`] of any size but without depth, by tiles.
fn in_blocks(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], c_stride: usize, (m, n, k): (usize, usize, usize), accumulate: bool) {
    BLOCKS.with_borrow_mut(|(a_block, b_block)| {
        for col in (0..n).step_by(COLS) {
            let cols = COLS.min(n - col);
            for from in (0..k).step_by(DEPTH) {
                let depth = DEPTH.min(k - from);
                // b is copied column by column, as a is row by row.
                pack::<WIDTH>(b.transposed(), (col, cols), (from, depth), b_block);
                for row in (0..m).step_by(ROWS) {
                    let rows = ROWS.min(m - row);
                    pack::<HEIGHT>(a, (row, rows), (from, depth), a_block);
                    let c = &mut c[row * c_stride + col..];
                    block(a_block, b_block, c, c_stride, (rows, cols, depth), accumulate || from > 0);
                }
            }
        }
    });
}

impl Matrix<'_> {
    fn transposed(self) -> Self {
        Self(self.0, (self.1.1, self.1.0))
    }
}

fn overwrite(c: &mut [f32], c_stride: usize, (m, n): (usize, usize), accumulate: bool) {
    if !accumulate {
        (0..m).for_each(|row| c[row * c_stride..][..n].fill(0.0));
    }
}

/// The tiles of one block of `c`.
fn block(a: &[f32], b: &[f32], c: &mut [f32], c_stride: usize, (rows, cols, depth): (usize, usize, usize), adds: bool) {
    for (b, col) in b.chunks_exact(WIDTH * depth).zip((0..cols).step_by(WIDTH)) {
        let width = WIDTH.min(cols - col);
        for (a, row) in a.chunks_exact(HEIGHT * depth).zip((0..rows).step_by(HEIGHT)) {
            let sums = tile(a, b);
            let height = HEIGHT.min(rows - row);
            for (r, sums) in sums.iter().take(height).enumerate() {
                let to = &mut c[(row + r) * c_stride + col..][..width];
                put(sums, to, adds);
            }
        }
    }
}

/// The products of [`HEIGHT`] rows of `a` and the first [`WIDTH`] columns of `b` summed over `depth`, where they lie: for matrices too
/// small to be copied. `count` rows go to `c`, or are added to it. `b` and `c` come with the elements from one row to the next.
///
/// A call of its own, because browsers spill registers where this is part of a long function.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "native attention has blocks of its own; tests run this one"))]
#[inline(never)]
pub(super) fn tile_in_place(a: Matrix<'_>, b: (&[f32], usize), depth: usize, c: (&mut [f32], usize), count: usize, adds: bool) {
    let Matrix(values, (row_stride, depth_stride)) = a;
    if depth > 0 {
        assert!((HEIGHT - 1) * row_stride + (depth - 1) * depth_stride < values.len(), "the rows have that depth");
        assert!((depth - 1) * b.1 + WIDTH <= b.0.len(), "the columns have that depth");
    }
    let mut lefts: [*const f32; HEIGHT] = std::array::from_fn(|r| values.as_ptr().wrapping_add(r * row_stride));
    let mut right = b.0.as_ptr();
    let mut sums = [[F32x4::ZERO; 2]; HEIGHT];
    for _ in 0..depth {
        // SAFETY: the last of these places lies in its slice, as was asserted, and the others before it.
        let (xs, line) = unsafe { (lefts.map(|left| *left), &*right.cast::<[f32; WIDTH]>()) };
        let [low, high] = halves(line);
        for r in 0..HEIGHT {
            let x = F32x4::splat(xs[r]);
            sums[r][0] = sums[r][0].plus_product(x, low);
            sums[r][1] = sums[r][1].plus_product(x, high);
        }
        lefts = lefts.map(|left| left.wrapping_add(depth_stride));
        right = right.wrapping_add(b.1);
    }
    for (r, sums) in sums.iter().take(count).enumerate() {
        put(sums, &mut c.0[r * c.1..][..WIDTH], adds);
    }
}

/// Products of a panel of a and one of b, summed over the depth.
#[inline(always)]
fn tile(a: &[f32], b: &[f32]) -> [[F32x4; 2]; HEIGHT] {
    let mut sums = [[F32x4::ZERO; 2]; HEIGHT];
    for (a, b) in a.as_chunks::<HEIGHT>().0.iter().zip(b.as_chunks::<WIDTH>().0) {
        let [left, right] = halves(b);
        for r in 0..HEIGHT {
            let x = F32x4::splat(a[r]);
            sums[r][0] = sums[r][0].plus_product(x, left);
            sums[r][1] = sums[r][1].plus_product(x, right);
        }
    }
    sums
}

#[inline(always)]
fn halves(values: &[f32; WIDTH]) -> [F32x4; 2] {
    let [left, right] = values.as_chunks::<4>().0 else { unreachable!("eight values are twice four") };
    [F32x4::load(left), F32x4::load(right)]
}

#[inline(always)]
fn put(sums: &[F32x4; 2], to: &mut [f32], adds: bool) {
    let mut values = [0f32; WIDTH];
    let (left, right) = values.split_at_mut(4);
    left.copy_from_slice(&sums[0].to_array());
    right.copy_from_slice(&sums[1].to_array());
    if adds {
        to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
    } else {
        to.copy_from_slice(&values[..to.len()]);
    }
}

/// Copies rows `first .. first + count` from depth `from` on into panels `[depth][N]`, the last one filled up with zeros.
fn pack<const N: usize>(x: Matrix<'_>, (first, count): (usize, usize), (from, depth): (usize, usize), out: &mut Vec<f32>) {
    let Matrix(values, (row_stride, depth_stride)) = x;
    out.resize(count.next_multiple_of(N) * depth, 0.0);
    for (panel, row) in out.chunks_exact_mut(N * depth).zip((0..count).step_by(N)) {
        let height = N.min(count - row);
        let start = (first + row) * row_stride + from * depth_stride;
        let lines = panel.as_chunks_mut::<N>().0;
        if height < N {
            for (d, line) in lines.iter_mut().enumerate() {
                *line = [0.0; N];
                (0..height).for_each(|r| line[r] = values[start + r * row_stride + d * depth_stride]);
            }
        } else if row_stride == 1 {
            for (d, line) in lines.iter_mut().enumerate() {
                line.copy_from_slice(&values[start + d * depth_stride..][..N]);
            }
        } else if depth_stride == 1 {
            turn(lines, |r| &values[start + r * row_stride..][..depth]);
        } else {
            for (d, line) in lines.iter_mut().enumerate() {
                (0..N).for_each(|r| line[r] = values[start + r * row_stride + d * depth_stride]);
            }
        }
    }
}

/// `lines[d][r] = row(r)[d]`, in blocks of 4 × 4.
#[inline(always)]
fn turn<'a, const N: usize>(lines: &mut [[f32; N]], row: impl Fn(usize) -> &'a [f32]) {
    for r in (0..N).step_by(4) {
        let rows = [row(r), row(r + 1), row(r + 2), row(r + 3)];
        let quads = rows.map(|row| row.as_chunks::<4>().0);
        let (blocks, _) = lines.as_chunks_mut::<4>();
        for ((((lines, a), b), c), d) in blocks.iter_mut().zip(quads[0]).zip(quads[1]).zip(quads[2]).zip(quads[3]) {
            let turned = F32x4::transpose([a, b, c, d].map(F32x4::load));
            for (line, quad) in lines.iter_mut().zip(turned) {
                line[r..r + 4].copy_from_slice(&quad.to_array());
            }
        }
        for d in lines.len() / 4 * 4..lines.len() {
            (0..4).for_each(|i| lines[d][r + i] = rows[i][d]);
        }
    }
}

/// One to [`FEW_ROWS`] rows, as in decoding: b is read where it is, once for each.
fn few_rows(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], c_stride: usize, (m, n, k): (usize, usize, usize), accumulate: bool) {
    overwrite(c, c_stride, (m, n), accumulate);
    let Matrix(values, (row_stride, col_stride)) = b;
    for i in 0..m {
        let line: Vec<f32> = (0..k).map(|d| a.0[i * a.1.0 + d * a.1.1]).collect();
        let c = &mut c[i * c_stride..][..n];
        if row_stride == 1 {
            for (j, c) in c.iter_mut().enumerate() {
                *c += simd::dot(&line, &values[j * col_stride..][..k]);
            }
        } else {
            let (quads, rest) = line.as_chunks::<4>();
            let row = |d: usize| &values[d * row_stride..][..n];
            for (at, x) in quads.iter().enumerate() {
                let rows = [row(4 * at), row(4 * at + 1), row(4 * at + 2), row(4 * at + 3)];
                for (j, c) in c.iter_mut().enumerate() {
                    *c += (x[0] * rows[0][j] + x[1] * rows[1][j]) + (x[2] * rows[2][j] + x[3] * rows[3][j]);
                }
            }
            for (x, d) in rest.iter().zip(4 * quads.len()..) {
                c.iter_mut().zip(row(d)).for_each(|(c, y)| *c += x * y);
            }
        }
    }
}

/// Four values that are computed on together.
#[derive(Clone, Copy)]
struct F32x4(#[cfg(target_arch = "wasm32")] std::arch::wasm32::v128, #[cfg(not(target_arch = "wasm32"))] [f32; 4]);

#[cfg(target_arch = "wasm32")]
impl F32x4 {
    const ZERO: Self = Self(std::arch::wasm32::f32x4(0.0, 0.0, 0.0, 0.0));

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(std::arch::wasm32::f32x4_splat(value))
    }

    #[inline(always)]
    fn load(values: &[f32; 4]) -> Self {
        // SAFETY: sixteen bytes that are borrowed; the instruction asks for no alignment.
        Self(unsafe { std::arch::wasm32::v128_load(values.as_ptr().cast()) })
    }

    #[inline(always)]
    fn to_array(self) -> [f32; 4] {
        // SAFETY: a vector is its sixteen bytes, of which any are four floats.
        unsafe { std::mem::transmute(self.0) }
    }

    #[inline(always)]
    fn plus_product(self, x: Self, y: Self) -> Self {
        use std::arch::wasm32::{f32x4_add, f32x4_mul};
        Self(f32x4_add(self.0, f32x4_mul(x.0, y.0)))
    }

    #[inline(always)]
    fn transpose([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        use std::arch::wasm32::i32x4_shuffle as shuffle;
        let (ab, cd) = (shuffle::<0, 4, 1, 5>(a.0, b.0), shuffle::<0, 4, 1, 5>(c.0, d.0));
        let (ab_high, cd_high) = (shuffle::<2, 6, 3, 7>(a.0, b.0), shuffle::<2, 6, 3, 7>(c.0, d.0));
        [
            Self(shuffle::<0, 1, 4, 5>(ab, cd)),
            Self(shuffle::<2, 3, 6, 7>(ab, cd)),
            Self(shuffle::<0, 1, 4, 5>(ab_high, cd_high)),
            Self(shuffle::<2, 3, 6, 7>(ab_high, cd_high)),
        ]
    }
}

/// The twin that native tests run.
#[cfg(not(target_arch = "wasm32"))]
impl F32x4 {
    const ZERO: Self = Self([0.0; 4]);

    fn splat(value: f32) -> Self {
        Self([value; 4])
    }

    fn load(values: &[f32; 4]) -> Self {
        Self(*values)
    }

    fn to_array(self) -> [f32; 4] {
        self.0
    }

    fn plus_product(self, x: Self, y: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + x.0[i] * y.0[i]))
    }

    fn transpose(rows: [Self; 4]) -> [Self; 4] {
        std::array::from_fn(|i| Self(std::array::from_fn(|j| rows[j].0[i])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole numbers between -8 and 8: their products and sums are exact in any order.
    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729 + i * i % 31) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn products_of_odd_shapes_are_exact() {
        let sizes = [
            (1, 1, 1),
            (1, 9, 6),
            (2, 17, 5),
            (3, 8, 259),
            (4, 7, 3),
            (5, 8, 4),
            (7, 23, 13),
            (64, 64, 64),
            (65, 15, 257),
            (130, 33, 70),
            (9, 515, 11),
        ];
        for (m, n, k) in sizes {
            let strides_of_a = [(k, 1), (1, m), (k + 3, 1), (2 * k, 2)];
            let strides_of_b = [(n, 1), (1, k), (1, k + 5), (3 * n, 3)];
            for (a_strides, b_strides) in strides_of_a.into_iter().flat_map(|a| strides_of_b.map(|b| (a, b))) {
                for (c_stride, accumulate) in [(n, false), (n + 2, true)] {
                    let len = |rows: usize, cols: usize, (row, col): (usize, usize)| (rows - 1) * row + (cols - 1) * col + 1;
                    let (a, b) = (values(len(m, k, a_strides), 1), values(len(k, n, b_strides), 2));
                    let before = values(m * c_stride, 3);
                    let mut c = before.clone();
                    product(Matrix(&a, a_strides), Matrix(&b, b_strides), &mut c, c_stride, (m, n, k), accumulate, true);
                    let element = |i: usize, j: usize| {
                        let sum: f32 = (0..k).map(|d| a[i * a_strides.0 + d * a_strides.1] * b[d * b_strides.0 + j * b_strides.1]).sum();
                        sum + if accumulate { before[i * c_stride + j] } else { 0.0 }
                    };
                    for (at, got) in c.iter().enumerate() {
                        let (i, j) = (at / c_stride, at % c_stride);
                        let want = if j < n { element(i, j) } else { before[at] };
                        assert_eq!(*got, want, "{m}×{n}×{k}, strides {a_strides:?} {b_strides:?} {c_stride}: row {i}, column {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_tile_in_place_is_exact() {
        for depth in [0, 1, 5, 33] {
            for (row_stride, depth_stride) in [(depth + 3, 1), (1, 9)] {
                let (a, b) = (values(3 * row_stride + depth * depth_stride + 1, 1), values(depth * 11 + 8, 2));
                for (count, adds) in [(4, false), (3, true)] {
                    let before = values(4 * 10, 3);
                    let mut c = before.clone();
                    tile_in_place(Matrix(&a, (row_stride, depth_stride)), (&b, 11), depth, (&mut c, 10), count, adds);
                    for (at, got) in c.iter().enumerate() {
                        let (i, j) = (at / 10, at % 10);
                        let sum: f32 = (0..depth).map(|d| a[i * row_stride + d * depth_stride] * b[d * 11 + j]).sum();
                        let want = if i >= count || j >= 8 { before[at] } else { sum + if adds { before[at] } else { 0.0 } };
                        assert_eq!(*got, want, "depth {depth}, strides {row_stride} {depth_stride}: row {i}, column {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_product_without_depth_is_zero_or_nothing() {
        let mut c = vec![5.0; 6];
        gemm(Matrix(&[], (0, 1)), Matrix(&[], (3, 1)), &mut c, 3, (2, 3, 0), true);
        assert_eq!(c, [5.0; 6]);
        gemm(Matrix(&[], (0, 1)), Matrix(&[], (3, 1)), &mut c, 3, (2, 3, 0), false);
        assert_eq!(c, [0.0; 6]);
    }
}
