//! Products of a few rows, as in decoding and in a head: each block of the weight is read where it lies, once.

use super::super::blocks::BLOCK;
use super::super::shared::Part;
use super::super::simd::kernel;
use super::Weight;
use super::rounded::Rounded;
use std::ops::Range;

/// More rows than this are worth packing the weight.
pub(super) const MOST: usize = 16;
/// Integers in a word of the rows.
pub(super) const PER_WORD: usize = 4;
/// Rows that meet a block together.
const AT_ONCE: usize = 4;

/// Some columns of all rows.
pub(super) fn product(rows: &Rounded, weight: Weight<'_>, c: &mut Part<'_>, columns: Range<usize>, accumulate: bool) {
    for first in (0..rows.rows).step_by(AT_ONCE) {
        let count = AT_ONCE.min(rows.rows - first);
        #[cfg(target_arch = "x86_64")]
        if super::x86::has_vnni() {
            // SAFETY: the processor has what has_vnni asks for.
            unsafe { super::x86::few_rows(rows, first, count, weight, c, columns.clone(), accumulate) };
            continue;
        }
        plain(rows, first, count, weight, c, columns.clone(), accumulate);
    }
}

kernel! {
    fn plain(rows: &Rounded, first: usize, count: usize, weight: Weight<'_>, c: &mut Part<'_>, columns: Range<usize>, accumulate: bool) {
        let (integers, blocks): (&[i8], _) = (bytemuck::cast_slice(&rows.words), rows.blocks);
        for column in columns {
            let mut sums = [0f32; AT_ONCE];
            for block in 0..blocks {
                let (scale, right) = weight.block(column * blocks + block);
                for (row, sum) in sums[..count].iter_mut().enumerate() {
                    let at = (first + row) * blocks + block;
                    let left = &integers[at * BLOCK..][..BLOCK];
                    let products: i32 = left.iter().zip(&right).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                    *sum += products as f32 * (rows.scales[at] * scale);
                }
            }
            put(&sums[..count], first, column, c, accumulate);
        }
    }
}

/// Stores or adds a column's sums of some rows.
#[inline(always)]
pub(super) fn put(sums: &[f32], first: usize, column: usize, c: &mut Part<'_>, accumulate: bool) {
    for (row, sum) in sums.iter().enumerate() {
        let c = &mut c.row(first + row, column..column + 1)[0];
        *c = if accumulate { *c + sum } else { *sum };
    }
}
