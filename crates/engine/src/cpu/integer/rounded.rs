//! Rows of activations rounded to 8-bit integers in blocks of 32.

use super::super::blocks::BLOCK;
use super::super::simd::kernel;

/// Blocks whose largest magnitude is below this are 0: the reciprocal of a smaller one is no f32.
const TINY: f32 = 1e-30;
/// 1.5 · 2²³: adding it rounds to an integer, to the nearest, ties to even.
const SHIFT: f32 = 12_582_912.0;

/// Rounded rows.
#[derive(Default)]
pub(super) struct Rounded {
    /// `[rows, inner]` integers, four or two in a word, the lower index in the lower bits.
    pub words: Vec<u32>,
    /// `[rows, blocks]`.
    pub scales: Vec<f32>,
    /// `[rows, blocks]`: −128 Σ q of each block, which takes back what a kernel gains by weights that are 128 too large.
    pub offsets: Vec<i32>,
    pub rows: usize,
    pub blocks: usize,
    pub per_word: usize,
}

impl Rounded {
    /// Rounds `x: [rows, inner]` to words of `per_word` integers, 4 or 2.
    pub fn round(&mut self, x: &[f32], inner: usize, per_word: usize) {
        let blocks = x.len() / BLOCK;
        self.words.resize(x.len() / per_word, 0);
        self.scales.resize(blocks, 0.0);
        self.offsets.resize(blocks, 0);
        (self.rows, self.blocks, self.per_word) = (x.len() / inner.max(1), inner / BLOCK, per_word);
        match per_word {
            4 => bytes(x, bytemuck::cast_slice_mut(&mut self.words), &mut self.scales, &mut self.offsets),
            _ => halves(x, bytemuck::cast_slice_mut(&mut self.words), &mut self.scales),
        }
    }

    /// Words of a row.
    pub fn stride(&self) -> usize {
        self.blocks * BLOCK / self.per_word
    }
}

/// Scale of a block, and the factor that takes its values to −127 ..= 127; neither is a number if one of the values is not.
#[inline(always)]
fn scale(x: &[f32; BLOCK]) -> (f32, f32) {
    // The bits of magnitudes are ordered as they are, with what is not a number at the top.
    let mut lanes = [0i32; 8];
    for x in x.as_chunks::<8>().0 {
        for i in 0..8 {
            let magnitude = (x[i].to_bits() & 0x7fff_ffff) as i32;
            lanes[i] = if magnitude > lanes[i] { magnitude } else { lanes[i] };
        }
    }
    let peak = f32::from_bits(lanes.iter().fold(0, |most, x| most.max(*x)) as u32);
    if peak < TINY { (0.0, 0.0) } else { (peak / 127.0, 127.0 / peak) }
}

#[inline(always)]
fn round(x: f32, factor: f32) -> i32 {
    (x * factor + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}

kernel! {
    fn bytes(x: &[f32], to: &mut [i8], scales: &mut [f32], offsets: &mut [i32]) {
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<BLOCK>().0);
        for (((x, to), to_scale), offset) in blocks.zip(scales).zip(offsets) {
            let (scale, factor) = scale(x);
            let mut sum = 0;
            for i in 0..BLOCK {
                let q = round(x[i], factor);
                to[i] = q as i8;
                sum += i32::from(q as i8);
            }
            (*to_scale, *offset) = (scale, -128 * sum);
        }
    }
}

kernel! {
    fn halves(x: &[f32], to: &mut [i16], scales: &mut [f32]) {
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<BLOCK>().0);
        for ((x, to), to_scale) in blocks.zip(scales) {
            let (scale, factor) = scale(x);
            for i in 0..BLOCK {
                to[i] = i16::from(round(x[i], factor) as i8);
            }
            *to_scale = scale;
        }
    }
}
