//! Round trip and bandwidth of a link before it is up: what is asked of the other end, and what follows from its answers.
//!
//! Both ends send [`PINGS`] pings, one after the other, and then a probe: the offerer first, the answerer when that has come, so
//! that the directions do not share the link. Times are milliseconds on the caller's clock.

use std::ops::Range;

/// Round trips measured before a link is up; the shortest counts.
const PINGS: u32 = 4;
/// Enough to leave the slow start of SCTP behind, little enough for a phone on Wi-Fi (about 20 ms).
pub(super) const PROBE_BYTES: usize = 256 * 1024;
/// Small frames, so that the time from first to last says something.
pub(super) const PROBE_FRAME_BYTES: usize = 16 * 1024;
/// A probe that took so long met one lost packet at the start of SCTP, which costs a second, or a slow link; another one
/// tells. Longer than that it is a slow link for sure.
const STALLED_PROBE_MILLIS: Range<f64> = 500.0..3_000.0;
/// At most so many.
const MAX_PROBES: u32 = 3;

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// With this number; its `Pong` has the same.
    Ping(u32),
    /// [`PROBE_BYTES`] on the bulk plane.
    Probe,
}

/// What was measured so far.
#[derive(Debug)]
pub(super) struct Measuring {
    is_offerer: bool,
    round_trips: Vec<f64>,
    ping_sent_at: f64,
    has_their_probe: bool,
    /// When our latest probe was queued.
    probe_sent_at: Option<f64>,
    probes: u32,
    /// Of the best probe so far.
    best_bytes_per_second: f64,
    bytes_per_second: Option<f64>,
}

impl Measuring {
    /// Begins with the first ping.
    pub fn begin(is_offerer: bool, now: f64) -> (Self, Ask) {
        let measuring = Self {
            is_offerer,
            round_trips: Vec::new(),
            ping_sent_at: now,
            has_their_probe: false,
            probe_sent_at: None,
            probes: 0,
            best_bytes_per_second: 0.0,
            bytes_per_second: None,
        };
        (measuring, Ask::Ping(0))
    }

    /// The first ping again, while nothing has answered: it may have been lost as the channel opened.
    pub fn repeat(&mut self, now: f64) -> Option<Ask> {
        if !self.round_trips.is_empty() {
            return None;
        }
        self.ping_sent_at = now;
        Some(Ask::Ping(0))
    }

    /// A ping was answered; one that was not asked for is not counted.
    pub fn on_pong(&mut self, number: u32, now: f64) -> Option<Ask> {
        if number as usize != self.round_trips.len() || number >= PINGS {
            return None;
        }
        self.round_trips.push(now - self.ping_sent_at);
        self.ping_sent_at = now;
        if number + 1 < PINGS { Some(Ask::Ping(number + 1)) } else { self.probe_if_it_is_our_turn(now) }
    }

    /// A whole probe of the other end came.
    pub fn on_their_probe(&mut self, now: f64) -> Option<Ask> {
        self.has_their_probe = true;
        self.probe_if_it_is_our_turn(now)
    }

    /// What the other end saw of our probe: takes the slower of that and of what we saw. A browser's Worker gets frames in bursts,
    /// which makes the first too fast.
    pub fn on_result(&mut self, bytes: u64, micros: u64, now: f64) -> Option<Ask> {
        let (sent_at, round_trip) = (self.probe_sent_at?, self.round_trip_millis()?);
        let theirs = bytes as f64 * 1e6 / micros.max(1) as f64;
        let elapsed = now - sent_at;
        let ours = PROBE_BYTES as f64 * 1e3 / (elapsed - round_trip).max(0.05);
        self.best_bytes_per_second = self.best_bytes_per_second.max(theirs.min(ours));
        if STALLED_PROBE_MILLIS.contains(&elapsed) && self.probes < MAX_PROBES {
            return Some(self.probe(now));
        }
        self.bytes_per_second = Some(self.best_bytes_per_second);
        None
    }

    /// Round trip in milliseconds and bytes per second, once both are known and the other end has measured too.
    pub fn result(&self) -> Option<(f64, f64)> {
        if self.has_their_probe { self.round_trip_millis().zip(self.bytes_per_second) } else { None }
    }

    fn round_trip_millis(&self) -> Option<f64> {
        (self.round_trips.len() as u32 >= PINGS).then(|| self.round_trips.iter().copied().fold(f64::INFINITY, f64::min))
    }

    fn probe_if_it_is_our_turn(&mut self, now: f64) -> Option<Ask> {
        let is_our_turn = self.round_trip_millis().is_some() && self.probe_sent_at.is_none() && (self.is_offerer || self.has_their_probe);
        is_our_turn.then(|| self.probe(now))
    }

    fn probe(&mut self, now: f64) -> Ask {
        self.probe_sent_at = Some(now);
        self.probes += 1;
        Ask::Probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An end whose pings were answered after these times, and what it asks then.
    fn pinged(is_offerer: bool, round_trips: [f64; PINGS as usize]) -> (Measuring, Option<Ask>, f64) {
        let (mut measuring, first) = Measuring::begin(is_offerer, 0.0);
        let (mut asks, mut now) = (Some(first), 0.0);
        for (number, round_trip) in round_trips.into_iter().enumerate() {
            assert_eq!(asks, Some(Ask::Ping(number as u32)));
            now += round_trip;
            asks = measuring.on_pong(number as u32, now);
        }
        (measuring, asks, now)
    }

    #[test]
    fn the_offerer_probes_first_and_the_answerer_when_that_has_come() {
        let (mut offerer, asks, now) = pinged(true, [9.0, 3.0, 5.0, 4.0]);
        assert_eq!(asks, Some(Ask::Probe));
        // 256 KiB in 103 ms less the round trip of 3; the other end saw half of that time.
        assert_eq!(offerer.on_result(PROBE_BYTES as u64, 50_000, now + 103.0), None);
        assert_eq!(offerer.result(), None, "the other end has not measured");
        assert_eq!(offerer.on_their_probe(now + 200.0), None, "one probe is enough");
        assert_eq!(offerer.result(), Some((3.0, PROBE_BYTES as f64 * 10.0)));
        let (mut answerer, asks, now) = pinged(false, [1.0; 4]);
        assert_eq!(asks, None);
        assert_eq!(answerer.on_their_probe(now), Some(Ask::Probe));
    }

    #[test]
    fn a_stalled_probe_is_tried_again_and_the_best_counts() {
        let (mut offerer, _, mut now) = pinged(true, [1.0; 4]);
        for (took, next) in [(1_001.0, Some(Ask::Probe)), (601.0, Some(Ask::Probe)), (901.0, None)] {
            now += took;
            assert_eq!(offerer.on_result(PROBE_BYTES as u64, 1, now), next);
        }
        offerer.on_their_probe(now);
        assert_eq!(offerer.result(), Some((1.0, PROBE_BYTES as f64 * 1e3 / 600.0)));
        let (mut slow, _, now) = pinged(true, [1.0; 4]);
        assert_eq!(slow.on_result(PROBE_BYTES as u64, 1, now + 4_001.0), None, "a slow link for sure");
    }

    #[test]
    fn answers_to_what_was_not_asked_change_nothing() {
        let (mut measuring, _) = Measuring::begin(true, 0.0);
        assert_eq!(measuring.repeat(5.0), Some(Ask::Ping(0)));
        for number in [1, 7, u32::MAX] {
            assert_eq!(measuring.on_pong(number, 6.0), None);
        }
        assert_eq!(measuring.on_result(1, 1, 6.0), None);
        assert_eq!(measuring.on_pong(0, 7.0), Some(Ask::Ping(1)));
        assert_eq!(measuring.repeat(8.0), None, "something was answered");
        for number in 1..PINGS {
            measuring.on_pong(number, 8.0);
        }
        assert_eq!(measuring.on_pong(PINGS, 9.0), None);
        assert_eq!(measuring.result(), None);
    }
}
