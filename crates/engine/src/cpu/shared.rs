//! A product's result, written by several threads at once, and how its rows or columns are shared out among them.

use super::simd;
use std::marker::PhantomData;
use std::ops::Range;

/// `f` on pieces of `0..length`, one for each thread, cut at multiples of `step`.
pub(super) fn share_out(length: usize, step: usize, threads: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let piece = length.div_ceil(threads).next_multiple_of(step);
    if piece >= length {
        return f(0..length);
    }
    let pieces = (0..length).step_by(piece).map(|start| start..length.min(start + piece));
    simd::for_jobs(pieces.collect(), usize::MAX, f);
}

/// A result that several threads write, each rows or columns of its own.
pub(super) struct Shared<'a> {
    values: *mut f32,
    len: usize,
    rows: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: elements are reached through parts alone, and whoever takes parts keeps them apart.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Rows of which each begins `stride` elements behind the one before; the last may end where its last column is.
    pub fn new(values: &'a mut [f32], rows: usize, stride: usize) -> Self {
        Self { len: values.len(), rows, values: values.as_mut_ptr(), stride, borrowed: PhantomData }
    }

    /// Some rows, at least one, and columns.
    ///
    /// # Safety
    /// While a part lives, no other part of the same elements does, on this thread or another.
    ///
    /// # Panics
    /// If the part does not lie in the result.
    pub unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Part<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows && columns.end <= self.stride, "the part lies in the result");
        assert!((rows.end - 1) * self.stride + columns.end <= self.len, "the part's last row lies in the result");
        // SAFETY: the first row begins before the last one ends, which lies in the result.
        let values = unsafe { self.values.add(rows.start * self.stride) };
        Part { values, rows: rows.len(), columns, stride: self.stride, borrowed: PhantomData }
    }
}

/// The part of a result that one thread writes.
pub(super) struct Part<'a> {
    values: *mut f32,
    pub rows: usize,
    columns: Range<usize>,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

impl Part<'_> {
    /// Some columns of a row.
    #[inline(always)]
    pub fn row(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && self.columns.start <= columns.start && columns.end <= self.columns.end);
        // SAFETY: row and columns are the part's own, lie in the result as `Shared::part` found, and the part is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.stride + columns.start), columns.len()) }
    }

    /// Where some columns of some rows, at least one, begin, and the elements from a row to the next: these may be written through
    /// the pointer while the part is not used otherwise.
    #[inline(always)]
    pub fn rows_from(&mut self, row: usize, count: usize, columns: Range<usize>) -> (*mut f32, usize) {
        assert!(count > 0 && row + count <= self.rows && columns.start <= columns.end && self.columns.start <= columns.start && columns.end <= self.columns.end);
        // SAFETY: row and columns are the part's own and lie in the result, as `Shared::part` found.
        (unsafe { self.values.add(row * self.stride + columns.start) }, self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_part_that_leaves_the_result_is_refused() {
        // Three rows of four, the last of which ends after two columns.
        let mut values = vec![0.0; 10];
        let shared = Shared::new(&mut values, 3, 4);
        let part = |rows: Range<usize>, columns: Range<usize>| {
            // SAFETY: one part at a time.
            let taken = AssertUnwindSafe(|| unsafe { shared.part(rows, columns) }.rows);
            catch_unwind(taken).ok()
        };
        assert_eq!((part(0..3, 0..2), part(0..2, 2..4), part(2..3, 1..2)), (Some(3), Some(2), Some(1)));
        for (rows, columns) in [(0..3, 0..3), (2..3, 2..4), (2..4, 0..1), (3..3, 0..1), (0..1, 0..5)] {
            assert_eq!(part(rows.clone(), columns.clone()), None, "rows {rows:?}, columns {columns:?}");
        }
    }

    #[test]
    fn rows_of_a_part_are_its_own() {
        let mut values = vec![0.0; 10];
        let shared = Shared::new(&mut values, 3, 4);
        {
            // SAFETY: their columns are disjoint.
            let (mut left, mut right) = unsafe { (shared.part(1..3, 0..1), shared.part(1..3, 1..2)) };
            for row in 0..2 {
                left.row(row, 0..1).fill(1.0);
                right.row(row, 1..2).fill(2.0);
            }
            assert!(catch_unwind(AssertUnwindSafe(|| left.row(0, 0..2).len())).is_err(), "the other part's column");
        }
        assert_eq!(values, [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 2.0]);
    }
}
