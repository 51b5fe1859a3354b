//! Weights in blocks of 32 integers with an f16 scale ([`Dtype::Q8`], [`Dtype::Q4`]), widened to f32.

use super::simd::{f16_to_f32, kernel};
use crate::op::Dtype;

/// Elements of a block.
pub(super) const BLOCK: usize = 32;

/// Blocks in the words of a buffer.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    words: &'a [u32],
    /// The first block, counted from the start of the buffer.
    first: usize,
}

impl<'a> Blocks<'a> {
    /// `len` elements from `offset` on, both whole blocks.
    pub fn new(words: &'a [u32], dtype: Dtype, offset: usize, len: usize) -> Self {
        assert!(offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK), "a quantised weight has whole blocks");
        Self { words: &words[..dtype.words(offset + len)], first: offset / BLOCK }
    }

    /// Scale and bytes of a block of `BYTES` bytes.
    #[inline(always)]
    pub fn block<const BYTES: usize>(&self, index: usize) -> (f32, &'a [u8; BYTES]) {
        let (pair, odd) = ((self.first + index) / 2, (self.first + index) % 2);
        let words = &self.words[pair * (BYTES / 2 + 1)..][..BYTES / 2 + 1];
        let scale = f16_to_f32((words[BYTES / 2] >> (16 * odd)) as u16);
        let bytes: &[u8] = bytemuck::cast_slice(words);
        (scale, bytes[odd * BYTES..][..BYTES].try_into().expect("the slice was just cut to that length"))
    }
}

kernel! {
    /// int8 blocks from element `first` on to f32.
    pub(super) fn widen_q8(x: Blocks<'_>, first: usize, out: &mut [f32]) {
        for (index, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let (scale, bytes) = x.block::<32>(first / BLOCK + index);
            for i in 0..BLOCK {
                out[i] = scale * f32::from(bytes[i] as i8);
            }
        }
    }
}

kernel! {
    /// int4 blocks from element `first` on to f32.
    pub(super) fn widen_q4(x: Blocks<'_>, first: usize, out: &mut [f32]) {
        for (index, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let (scale, bytes) = x.block::<16>(first / BLOCK + index);
            for i in 0..BLOCK / 2 {
                out[i] = scale * (f32::from(bytes[i] & 15) - 8.0);
                out[i + BLOCK / 2] = scale * (f32::from(bytes[i] >> 4) - 8.0);
            }
        }
    }
}
