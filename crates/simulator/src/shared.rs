//! Something that several use at once in equal parts: the airtime of a Wi-Fi cell, the cores of a computer.
//!
//! Each user wants some seconds of it; n users together get `capacity` seconds per second, none more than one. All go at the
//! same pace, so a single virtual clock serves them: it runs at min(1, capacity / n), and a user is done when it has
//! advanced by what the user wants (generalised processor sharing; Parekh and Gallager 1993).

use barycenter_core::io::{Micros, SECOND};
use std::collections::{BTreeMap, BTreeSet};

/// One use, as [`Shared::start`] numbered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use(u64);

#[derive(Debug)]
pub(crate) struct Shared {
    capacity: f64,
    clock: f64,
    read_at: Micros,
    next: u64,
    /// (bits of the clock at which it is done, use): bits of numbers ≥ 0 are ordered as they are.
    ends: BTreeSet<(u64, Use)>,
    end_of: BTreeMap<Use, u64>,
}

/// What is left below this counts as nothing, seconds: far below a microsecond, far above rounding.
const NOTHING: f64 = 1e-9;

impl Shared {
    /// `capacity`: seconds of use per second.
    pub fn new(capacity: f64) -> Self {
        Self { capacity, clock: 0.0, read_at: 0, next: 0, ends: BTreeSet::new(), end_of: BTreeMap::new() }
    }

    fn pace(&self) -> f64 {
        (self.capacity / self.ends.len().max(1) as f64).min(1.0)
    }

    fn advance(&mut self, now: Micros) {
        self.clock += now.saturating_sub(self.read_at) as f64 / SECOND as f64 * self.pace();
        self.read_at = now;
    }

    /// Somebody wants `seconds`.
    pub fn start(&mut self, now: Micros, seconds: f64) -> Use {
        self.advance(now);
        let which = Use(self.next);
        self.next += 1;
        let end = (self.clock + seconds.max(0.0)).to_bits();
        self.ends.insert((end, which));
        self.end_of.insert(which, end);
        which
    }

    /// A use ends before it is done.
    pub fn cancel(&mut self, now: Micros, which: Use) {
        self.advance(now);
        if let Some(end) = self.end_of.remove(&which) {
            self.ends.remove(&(end, which));
        }
    }

    /// The uses that are done by now, in the order in which they were.
    pub fn finished(&mut self, now: Micros) -> Vec<Use> {
        self.advance(now);
        let mut done = Vec::new();
        while let Some(&(end, which)) = self.ends.first()
            && f64::from_bits(end) <= self.clock + NOTHING
        {
            self.ends.pop_first();
            self.end_of.remove(&which);
            done.push(which);
        }
        done
    }

    /// When the next use is done if nobody comes or goes.
    pub fn next_end(&self) -> Option<Micros> {
        let &(end, _) = self.ends.first()?;
        let left = (f64::from_bits(end) - self.clock).max(0.0) / self.pace();
        Some(self.read_at + (left * SECOND as f64).ceil() as Micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets all end; when each did, in milliseconds.
    fn play(shared: &mut Shared) -> Vec<(u64, u64)> {
        let mut ends = Vec::new();
        while let Some(at) = shared.next_end() {
            ends.extend(shared.finished(at).into_iter().map(|u| (u.0, at / 1000)));
        }
        ends
    }

    #[test]
    fn two_on_one_take_twice_as_long_until_one_is_done() {
        let mut air = Shared::new(1.0);
        air.start(0, 1.0);
        air.start(0, 2.0);
        assert_eq!(play(&mut air), [(0, 2000), (1, 3000)]);
    }

    #[test]
    fn nobody_uses_more_than_one_core() {
        let mut cores = Shared::new(2.0);
        for _ in 0..3 {
            cores.start(0, 1.0);
        }
        assert_eq!(play(&mut cores), [(0, 1500), (1, 1500), (2, 1500)]);
        let alone = cores.start(2 * SECOND, 1.0);
        assert_eq!(cores.next_end(), Some(3 * SECOND));
        cores.cancel(2 * SECOND, alone);
        assert_eq!(cores.next_end(), None);
    }

    #[test]
    fn a_late_comer_shares_what_is_left() {
        let mut air = Shared::new(1.0);
        air.start(0, 1.0);
        air.start(SECOND / 2, 0.25);
        // half a second alone, half a second shared for the quarter, a quarter alone
        assert_eq!(play(&mut air), [(1, 1000), (0, 1250)]);
    }
}
