//! Matrix products with a narrow side, as a side network's are, where a general product spends its time on packing and
//! on work space: tiles of the result stay in registers, rows of the right matrix are read where they lie.

use super::simd;
use std::cell::RefCell;

/// Values of one vector: AVX2, or two of NEON.
const LANES: usize = 8;
/// Rows of a register tile, and vectors in each of its rows: 12 accumulators of 16 registers.
const ROWS: usize = 4;
const VECTORS: usize = 3;
const COLUMNS: usize = VECTORS * LANES;
/// Steps of the inner sum between two visits of a tile, so that the rows of the right matrix stay in the first-level cache.
const INNER: usize = 512;
/// Multiplications that are worth another thread (about 10 µs).
const PARALLEL_PRODUCTS: usize = 1 << 19;
/// The right matrix may have this many columns where its rows are read in place, or values where it is turned first.
const MOST_COLUMNS: usize = 256;
const MOST_TURNED: usize = 1 << 14;

/// `a[i, k]` lies at `i · strides.0 + k · strides.1`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub values: &'a [f32],
    pub strides: (usize, usize),
}

/// The right matrix `[inner, columns]`.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Rows as they are.
    Rows(&'a [f32]),
    /// Its transpose `[columns, inner]`.
    Columns(&'a [f32]),
}

/// Whether a product of these sizes (rows, columns, inner) is one for this module.
pub(super) fn applies(right: Right<'_>, (m, n, k): (usize, usize, usize)) -> bool {
    match right {
        Right::Rows(_) => n <= MOST_COLUMNS && (m <= 64 || k <= 64) && m >= ROWS,
        Right::Columns(_) => n * k <= MOST_TURNED && m >= 4 * ROWS,
    }
}

thread_local! {
    /// A turned right matrix, and the last few columns of one, padded to whole vectors.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

/// `c (+)= a · b`, `c: [m, n]` row-major.
pub(super) fn product(a: Left<'_>, b: Right<'_>, c: &mut [f32], (m, n, k): (usize, usize, usize), accumulate: bool) {
    let last = |rows: usize, cols: usize| (rows - 1) * a.strides.0 + (cols - 1) * a.strides.1;
    let b_len = match b {
        Right::Rows(b) | Right::Columns(b) => b.len(),
    };
    assert!(m > 0 && n > 0 && k > 0, "a product of something");
    assert!(c.len() >= m * n && b_len >= n * k && last(m, k) < a.values.len(), "the operands hold the product");
    SCRATCH.with_borrow_mut(|(turned, padded)| {
        let rows = match b {
            Right::Rows(rows) => rows,
            Right::Columns(columns) => {
                turn(columns, (k, n), turned);
                &turned[..]
            }
        };
        // What does not fill a vector is copied to columns that do.
        let whole = n / LANES * LANES;
        padded.clear();
        if whole < n {
            padded.resize(k * LANES, 0.0);
            for (to, from) in padded.as_chunks_mut::<LANES>().0.iter_mut().zip(rows.chunks_exact(n)) {
                to[..n - whole].copy_from_slice(&from[whole..]);
            }
        }
        let job = Job { a, rows, padded, n, k, accumulate };
        let threads = simd::threads();
        if threads == 1 || m * n * k < PARALLEL_PRODUCTS || m < 2 * ROWS {
            return run(&job, 0, &mut c[..m * n]);
        }
        let chunk = m.div_ceil(threads).next_multiple_of(ROWS);
        let parts: Vec<_> = c[..m * n].chunks_mut(chunk * n).enumerate().collect();
        simd::for_jobs(parts, usize::MAX, |(index, c)| run(&job, index * chunk, c));
    });
}

/// `[columns, inner]` becomes `[inner, columns]`.
fn turn(from: &[f32], (k, n): (usize, usize), to: &mut Vec<f32>) {
    to.resize(k * n, 0.0);
    for (column, from) in from.chunks_exact(k).take(n).enumerate() {
        for (to, x) in to[column..].iter_mut().step_by(n).zip(from) {
            *to = *x;
        }
    }
}

struct Job<'a> {
    a: Left<'a>,
    /// `[k, n]`.
    rows: &'a [f32],
    /// The last columns `[k, LANES]`, or empty.
    padded: &'a [f32],
    n: usize,
    k: usize,
    accumulate: bool,
}

/// The rows of the result from `first` on.
fn run(job: &Job<'_>, first: usize, c: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(job: &Job<'_>, first: usize, c: &mut [f32]) {
            all_tiles::<true>(job, first, c);
        }
        if simd::is_wide() {
            // SAFETY: the processor has AVX2 and FMA, as is_wide found.
            return unsafe { wide(job, first, c) };
        }
    }
    all_tiles::<{ cfg!(target_arch = "aarch64") }>(job, first, c);
}

#[inline(always)]
fn all_tiles<const FUSED: bool>(job: &Job<'_>, first: usize, c: &mut [f32]) {
    let Job { n, k, .. } = *job;
    let m = c.len() / n;
    let whole = n / LANES * LANES;
    for start in (0..k).step_by(INNER) {
        let inner = start..k.min(start + INNER);
        let adds = job.accumulate || start > 0;
        let mut column = 0;
        while column < whole {
            let b = (&job.rows[inner.start * n + column..], n);
            let wide = (whole - column).min(COLUMNS);
            for row in (0..m).step_by(ROWS) {
                let at = TileAt { first, row, column, wide, inner: inner.clone(), adds };
                match wide / LANES {
                    3 => tile_rows::<3, FUSED>(job, b, c, m, at),
                    2 => tile_rows::<2, FUSED>(job, b, c, m, at),
                    _ => tile_rows::<1, FUSED>(job, b, c, m, at),
                }
            }
            column += wide;
        }
        if whole < n {
            let b = (&job.padded[inner.start * LANES..], LANES);
            for row in (0..m).step_by(ROWS) {
                tile_rows::<1, FUSED>(job, b, c, m, TileAt { first, row, column: whole, wide: n - whole, inner: inner.clone(), adds });
            }
        }
    }
}

/// A tile's place: its rows are `row ..` of the part of the result that begins at row `first`, `wide` columns of it count.
struct TileAt {
    first: usize,
    row: usize,
    column: usize,
    wide: usize,
    inner: std::ops::Range<usize>,
    adds: bool,
}

#[inline(always)]
fn tile_rows<const WIDE: usize, const FUSED: bool>(job: &Job<'_>, b: (&[f32], usize), c: &mut [f32], m: usize, at: TileAt) {
    match m - at.row {
        1 => tile::<1, WIDE, FUSED>(job, b, c, at),
        2 => tile::<2, WIDE, FUSED>(job, b, c, at),
        3 => tile::<3, WIDE, FUSED>(job, b, c, at),
        _ => tile::<ROWS, WIDE, FUSED>(job, b, c, at),
    }
}

#[inline(always)]
fn tile<const TALL: usize, const WIDE: usize, const FUSED: bool>(job: &Job<'_>, (b, b_stride): (&[f32], usize), c: &mut [f32], at: TileAt) {
    let (row_stride, inner_stride) = job.a.strides;
    let a = &job.a.values[(at.first + at.row) * row_stride + at.inner.start * inner_stride..];
    let steps = at.inner.len();
    assert!((TALL - 1) * row_stride + (steps - 1) * inner_stride < a.len() && (steps - 1) * b_stride + WIDE * LANES <= b.len());
    let mut sums = [[[0f32; LANES]; WIDE]; TALL];
    for step in 0..steps {
        for vector in 0..WIDE {
            // SAFETY: the assertion above bounds every step's row of b by its last.
            let right = unsafe { b.as_ptr().add(step * b_stride + vector * LANES).cast::<[f32; LANES]>().read_unaligned() };
            for row in 0..TALL {
                // SAFETY: likewise for a.
                let left = unsafe { *a.get_unchecked(row * row_stride + step * inner_stride) };
                for lane in 0..LANES {
                    let sum = &mut sums[row][vector][lane];
                    *sum = if FUSED { left.mul_add(right[lane], *sum) } else { *sum + left * right[lane] };
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let c = &mut c[(at.row + row) * job.n + at.column..][..at.wide];
        let sums = sums.as_flattened();
        if at.adds {
            c.iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
        } else {
            c.copy_from_slice(&sums[..at.wide]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_odd_sizes_are_right() {
        let value = |i: usize| ((i * 2_654_435_761) % 1_000) as f32 / 500.0 - 1.0;
        for (m, n, k) in [(4, 1, 1), (5, 7, 3), (16, 8, 24), (19, 24, 17), (401, 24, 64), (402, 64, 24), (24, 192, 1_030), (403, 12, 33), (23, 53, 700)] {
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..n * k).map(|i| value(i + 7)).collect();
            for accumulate in [false, true] {
                for (a_strides, columns) in [((k, 1), false), ((k, 1), true), ((1, m), false)] {
                    let mut c = vec![0.5; m * n];
                    let right = if columns { Right::Columns(&b) } else { Right::Rows(&b) };
                    product(Left { values: &a, strides: a_strides }, right, &mut c, (m, n, k), accumulate);
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
