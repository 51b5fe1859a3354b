//! Counters of a node since it joined.

use barycenter_protocol::control::Counters;
use std::cell::RefCell;

/// Which peak a measurement belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPhase {
    /// The backbone is held.
    Fill,
    /// Only adapter and head.
    Train,
}

/// Gathers counters; shared by worker and session.
#[derive(Default)]
pub struct Meter {
    counters: RefCell<Counters>,
}

impl Meter {
    /// A copy.
    pub fn counters(&self) -> Counters {
        self.counters.borrow().clone()
    }

    /// Changes the counters.
    pub fn update(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters.borrow_mut());
    }

    /// Takes a reading of the engine's buffers: held now, most since the last reset of the peak.
    pub fn memory(&self, current_bytes: u64, peak_bytes: u64, phase: Option<MemoryPhase>) {
        self.update(|c| {
            c.memory_bytes = current_bytes;
            c.peak_memory_bytes = c.peak_memory_bytes.max(peak_bytes);
            match phase {
                Some(MemoryPhase::Fill) => c.fill_peak_memory_bytes = c.fill_peak_memory_bytes.max(peak_bytes),
                Some(MemoryPhase::Train) => c.train_peak_memory_bytes = c.train_peak_memory_bytes.max(peak_bytes),
                None => {}
            }
        });
    }
}
