//! Buffers by id, reused by size, their bytes counted.

use crate::backend::MemoryUse;
use crate::op::BufferId;
use std::collections::BTreeMap;

/// A buffer kept for reuse may be this many times as large as what is asked for.
const REUSE_SLACK: f64 = 1.5;
/// Buffers are a multiple of this: whole vec4, and WebGPU's alignment of copies.
const GRAIN_WORDS: usize = 64;

/// The buffers of a device, of any type `B` so that the rules are tested without one.
pub struct Pool<B> {
    slots: Vec<Option<Slot<B>>>,
    vacant: Vec<u32>,
    spare: BTreeMap<usize, Vec<u32>>,
    words: u64,
    peak_words: u64,
    made: u64,
}

struct Slot<B> {
    buffer: B,
    words: usize,
    live: bool,
    /// Number of the last recording that uses the buffer.
    used_in: u64,
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self { slots: Vec::new(), vacant: Vec::new(), spare: BTreeMap::new(), words: 0, peak_words: 0, made: 0 }
    }
}

impl<B> Pool<B> {
    /// A buffer of at least `words`, taken from the spare ones or made by `create` with the size given to it.
    pub fn allocate(&mut self, words: usize, max_words: usize, create: impl FnOnce(usize) -> B) -> BufferId {
        let class = size_class(words).min(max_words.max(words));
        let limit = (class as f64 * REUSE_SLACK) as usize;
        if let Some((&size, _)) = self.spare.range(class..=limit).next() {
            let list = self.spare.get_mut(&size).expect("the size was just found");
            let id = list.pop().expect("empty lists are removed");
            if list.is_empty() {
                self.spare.remove(&size);
            }
            self.slot_mut(BufferId(id)).live = true;
            return BufferId(id);
        }
        let slot = Slot { buffer: create(class), words: class, live: true, used_in: 0 };
        self.made += 1;
        self.words += class as u64;
        self.peak_words = self.peak_words.max(self.words);
        match self.vacant.pop() {
            Some(id) => {
                self.slots[id as usize] = Some(slot);
                BufferId(id)
            }
            None => {
                self.slots.push(Some(slot));
                BufferId((self.slots.len() - 1) as u32)
            }
        }
    }

    /// Keeps the buffer for reuse; freeing twice does nothing.
    pub fn free(&mut self, id: BufferId) {
        let slot = self.slot_mut(id);
        if slot.live {
            slot.live = false;
            let words = slot.words;
            self.spare.entry(words).or_default().push(id.0);
        }
    }

    /// The buffer.
    pub fn buffer(&self, id: BufferId) -> &B {
        &self.slot(id).buffer
    }

    /// Its size.
    pub fn words(&self, id: BufferId) -> usize {
        self.slot(id).words
    }

    /// Notes that a recording uses the buffer.
    pub fn mark_used(&mut self, id: BufferId, recording: u64) {
        self.slot_mut(id).used_in = recording;
    }

    /// Whether that recording uses the buffer.
    pub fn is_used_in(&self, id: BufferId, recording: u64) -> bool {
        self.slot(id).used_in == recording
    }

    /// Bytes of all buffers, spare ones included.
    pub fn memory(&self) -> MemoryUse {
        MemoryUse { current_bytes: 4 * self.words, peak_bytes: 4 * self.peak_words, buffers_made: self.made }
    }

    /// Forgets the spare buffers and starts a new peak; the device drops them when their work is done.
    pub fn reset_peak(&mut self) {
        for id in std::mem::take(&mut self.spare).into_values().flatten() {
            self.words -= self.slot(BufferId(id)).words as u64;
            self.slots[id as usize] = None;
            self.vacant.push(id);
        }
        self.peak_words = self.words;
    }

    fn slot(&self, id: BufferId) -> &Slot<B> {
        self.slots[id.0 as usize].as_ref().expect("a buffer is used between allocate and free")
    }

    fn slot_mut(&mut self, id: BufferId) -> &mut Slot<B> {
        self.slots[id.0 as usize].as_mut().expect("a buffer is used between allocate and free")
    }
}

/// `words` rounded up to one of eight sizes per power of two: at most an eighth is wasted.
fn size_class(words: usize) -> usize {
    let words = words.max(1).next_multiple_of(GRAIN_WORDS);
    let step = (words.next_power_of_two() / 16).max(GRAIN_WORDS);
    words.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_at_most_an_eighth_of_large_buffers() {
        for words in (1024..100_000).step_by(377) {
            let class = size_class(words);
            assert!(class >= words && class as f64 <= words as f64 * 1.13, "{words} became {class}");
        }
        assert_eq!(size_class(0), GRAIN_WORDS);
    }

    #[test]
    fn a_freed_buffer_is_reused_and_dropped_by_reset_peak() {
        let mut pool = Pool::default();
        let first = pool.allocate(1000, 1 << 20, |words| words);
        pool.free(first);
        assert_eq!(pool.allocate(990, 1 << 20, |words| words), first);
        let bytes = pool.memory().current_bytes;
        let second = pool.allocate(1000, 1 << 20, |words| words);
        assert_eq!(pool.memory().current_bytes, 2 * bytes);
        pool.free(second);
        pool.reset_peak();
        assert_eq!(pool.memory(), MemoryUse { current_bytes: bytes, peak_bytes: bytes, buffers_made: 2 });
    }
}
