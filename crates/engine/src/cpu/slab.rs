//! Buffers of 32-bit words in ordinary memory, reused by size class.

use super::blocks::{self, BLOCK, Blocks};
use super::simd;
use crate::backend::MemoryUse;
use crate::op::{BufferId, Dtype, Slice};
use std::collections::BTreeMap;

/// A buffer kept for reuse may be this many times as large as what is asked for.
const REUSE_SLACK: f64 = 1.5;
/// Buffers kept for reuse hold at most this share of the bytes in use (or [`SPARE_FLOOR_WORDS`]).
const SPARE_SHARE: f64 = 0.5;
/// 8 MiB may always be kept for reuse.
const SPARE_FLOOR_WORDS: usize = 2 << 20;

/// All buffers of a CPU back end; an output is taken out of the slab while it is written.
#[derive(Default)]
pub(super) struct Slab {
    buffers: Vec<Vec<u32>>,
    free_ids: Vec<u32>,
    spare: BTreeMap<usize, Vec<Vec<u32>>>,
    live_words: usize,
    /// The most words in use at once so far.
    live_peak_words: usize,
    spare_words: usize,
    peak_words: usize,
    made: u64,
}

impl Slab {
    pub fn allocate(&mut self, words: usize) -> BufferId {
        let class = size_class(words);
        let buffer = self.take_spare(class).unwrap_or_else(|| {
            self.made += 1;
            vec![0; class]
        });
        self.live_words += buffer.len();
        self.live_peak_words = self.live_peak_words.max(self.live_words);
        // What was kept for sizes that are not asked for any more makes room.
        self.trim();
        self.peak_words = self.peak_words.max(self.live_words + self.spare_words);
        let index = self.free_ids.pop().unwrap_or_else(|| {
            self.buffers.push(Vec::new());
            (self.buffers.len() - 1) as u32
        });
        self.buffers[index as usize] = buffer;
        BufferId(index)
    }

    pub fn free(&mut self, id: BufferId) {
        let buffer = std::mem::take(&mut self.buffers[id.0 as usize]);
        self.free_ids.push(id.0);
        self.live_words -= buffer.len();
        self.spare_words += buffer.len();
        self.spare.entry(buffer.len()).or_default().push(buffer);
        self.trim();
    }

    /// Gives back kept buffers beyond what is allowed, the largest first.
    fn trim(&mut self) {
        // What was needed at once before will be needed again in the next step, an eighth more for sizes that differ: it
        // costs no memory beyond that peak.
        let needed_again = (self.live_peak_words + self.live_peak_words / 8).saturating_sub(self.live_words);
        let allowed = ((self.live_words as f64 * SPARE_SHARE) as usize).max(SPARE_FLOOR_WORDS).max(needed_again);
        while self.spare_words > allowed {
            let Some(class) = self.spare.keys().next_back().copied() else { break };
            self.remove_spare(class);
        }
    }

    pub fn memory(&self) -> MemoryUse {
        MemoryUse {
            current_bytes: 4 * (self.live_words + self.spare_words) as u64,
            peak_bytes: 4 * self.peak_words as u64,
            buffers_made: self.made,
        }
    }

    pub fn reset_peak(&mut self) {
        self.spare.clear();
        self.spare_words = 0;
        self.peak_words = self.live_words;
        self.live_peak_words = self.live_words;
    }

    fn take_spare(&mut self, class: usize) -> Option<Vec<u32>> {
        let limit = (class as f64 * REUSE_SLACK) as usize;
        let found = *self.spare.range(class..=limit).next()?.0;
        self.remove_spare(found)
    }

    fn remove_spare(&mut self, class: usize) -> Option<Vec<u32>> {
        let list = self.spare.get_mut(&class)?;
        let buffer = list.pop();
        if list.is_empty() {
            self.spare.remove(&class);
        }
        self.spare_words -= class;
        buffer
    }

    pub fn words(&self, id: BufferId) -> &[u32] {
        &self.buffers[id.0 as usize]
    }

    pub fn words_mut(&mut self, id: BufferId) -> &mut [u32] {
        &mut self.buffers[id.0 as usize]
    }

    pub fn u32(&self, id: BufferId, len: usize) -> &[u32] {
        &self.words(id)[..len]
    }

    pub fn f32(&self, slice: Slice, len: usize) -> &[f32] {
        &self.f32_to_end(slice)[..len]
    }

    pub fn f32_to_end(&self, slice: Slice) -> &[f32] {
        bytemuck::cast_slice(&self.words(slice.buffer)[slice.offset as usize..])
    }

    /// `len` elements of a weight in the form it is stored in.
    pub fn packed(&self, slice: Slice, dtype: Dtype, len: usize) -> Packed<'_> {
        let (offset, words) = (slice.offset as usize, self.words(slice.buffer));
        match dtype {
            Dtype::F32 => Packed::F32(bytemuck::cast_slice(&words[offset..offset + len])),
            Dtype::F16 => Packed::F16(&bytemuck::cast_slice(words)[offset..offset + len]),
            Dtype::Bf16 => Packed::Bf16(&bytemuck::cast_slice(words)[offset..offset + len]),
            Dtype::Q8 => Packed::Q8(Blocks::new(words, dtype, offset, len)),
            Dtype::Q4 => Packed::Q4(Blocks::new(words, dtype, offset, len)),
        }
    }

    /// Calls `f` with the slab's inputs and `len` words of the buffer from its start.
    pub fn write_words<R>(&mut self, out: BufferId, len: usize, f: impl FnOnce(&mut Self, &mut [u32]) -> R) -> R {
        let mut buffer = std::mem::take(&mut self.buffers[out.0 as usize]);
        let result = f(self, &mut buffer[..len]);
        self.buffers[out.0 as usize] = buffer;
        result
    }

    pub fn write<R>(&mut self, out: Slice, len: usize, f: impl FnOnce(&mut Self, &mut [f32]) -> R) -> R {
        let offset = out.offset as usize;
        self.write_words(out.buffer, offset + len, |slab, words| f(slab, bytemuck::cast_slice_mut(&mut words[offset..])))
    }

    pub fn write_to_end<R>(&mut self, out: Slice, f: impl FnOnce(&mut Self, &mut [f32]) -> R) -> R {
        let len = self.words(out.buffer).len() - out.offset as usize;
        self.write(out, len, f)
    }

    pub fn write2<R>(&mut self, a: (Slice, usize), b: (Slice, usize), f: impl FnOnce(&mut Self, &mut [f32], &mut [f32]) -> R) -> R {
        self.write(a.0, a.1, |slab, a| slab.write(b.0, b.1, |slab, b| f(slab, a, b)))
    }

    pub fn write3<R>(
        &mut self,
        a: (Slice, usize),
        b: (Slice, usize),
        c: (Slice, usize),
        f: impl FnOnce(&mut Self, &mut [f32], &mut [f32], &mut [f32]) -> R,
    ) -> R {
        self.write(a.0, a.1, |slab, a| slab.write2(b, c, |slab, b, c| f(slab, a, b, c)))
    }

    pub fn write4<R>(
        &mut self,
        a: (Slice, usize),
        b: (Slice, usize),
        c: (Slice, usize),
        d: (Slice, usize),
        f: impl FnOnce(&mut Self, &mut [f32], &mut [f32], &mut [f32], &mut [f32]) -> R,
    ) -> R {
        self.write(a.0, a.1, |slab, a| slab.write3(b, c, d, |slab, b, c, d| f(slab, a, b, c, d)))
    }
}

/// Elements of a weight as they are stored.
#[derive(Clone, Copy)]
pub(super) enum Packed<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    Bf16(&'a [u16]),
    Q8(Blocks<'a>),
    Q4(Blocks<'a>),
}

impl Packed<'_> {
    /// Elements that must be widened together.
    pub fn unit(self) -> usize {
        match self {
            Packed::F32(_) | Packed::F16(_) | Packed::Bf16(_) => 1,
            Packed::Q8(_) | Packed::Q4(_) => BLOCK,
        }
    }

    /// The elements from `first` on as f32; for blocks, `first` and the length of `out` are whole blocks.
    pub fn widen(self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match self {
            Packed::F32(x) => out.copy_from_slice(&x[range]),
            Packed::F16(x) => simd::widen_f16(&x[range], out),
            Packed::Bf16(x) => simd::widen_bf16(&x[range], out),
            Packed::Q8(x) => blocks::widen_q8(x, first, out),
            Packed::Q4(x) => blocks::widen_q4(x, first, out),
        }
    }
}

/// Rounds up to 4, 5, 6 or 7 times a power of two, so that at most a quarter is wasted.
fn size_class(words: usize) -> usize {
    if words <= 64 {
        return 64;
    }
    let step = (words.next_power_of_two() / 8).max(16);
    words.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_kept_for_other_sizes_make_room_for_new_ones() {
        let mut slab = Slab::default();
        let words = 8 * SPARE_FLOOR_WORDS;
        let large: Vec<BufferId> = (0..8).map(|_| slab.allocate(words / 8)).collect();
        large.into_iter().for_each(|id| slab.free(id));
        assert_eq!((slab.memory().current_bytes, slab.memory().buffers_made), (4 * words as u64, 8), "the next step finds them");
        let small: Vec<BufferId> = (0..64).map(|_| slab.allocate(words / 64)).collect();
        let (peak, most) = (slab.memory().peak_bytes, (4.0 * words as f64 * (1.0 + SPARE_SHARE)) as u64);
        assert!(peak <= most, "{peak} bytes for twice {} bytes one after the other, {} buffers", 4 * words, small.len());
    }
}
