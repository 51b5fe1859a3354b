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
    rows: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: values are reached through `part` alone, whose callers keep threads apart.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// The last row may end where its last column is; whoever takes a part asks for columns that are there.
    pub fn new(values: &'a mut [f32], rows: usize, stride: usize) -> Self {
        Self { rows, values: values.as_mut_ptr(), stride, borrowed: PhantomData }
    }

    /// Some rows and columns.
    ///
    /// # Safety
    /// While a part lives, no other thread writes the same elements.
    pub unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Part<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows && columns.end <= self.stride, "the part lies in the result");
        // SAFETY: the first row lies in the result.
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
        // SAFETY: row and columns are the part's own, which is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.stride + columns.start), columns.len()) }
    }
    /// The first of some columns of some rows, and the elements from a row to the next.
    #[inline(always)]
    pub fn rows_from(&mut self, row: usize, count: usize, columns: Range<usize>) -> (*mut f32, usize) {
        assert!(row + count <= self.rows && columns.start <= columns.end && self.columns.start <= columns.start && columns.end <= self.columns.end);
        // SAFETY: row and columns are the part's own.
        (unsafe { self.values.add(row * self.stride + columns.start) }, self.stride)
    }
}
