//! Cache entries on their way from where they were computed to who keeps them, mostly who trains on them.

use super::costs::{Costs, StageChoice};
use super::train::TrainChoice;
use barycenter_protocol::plan::FillMode;

/// Bytes from device to device, as (from, to, bytes). After a hybrid fill a slot's samples lie where its fill slot was;
/// a forward-only fill deals the samples anew, so that a device holds its proportion of any slot's.
pub(super) fn moves(costs: &Costs, mode: FillMode, stages: &[StageChoice], train: &TrainChoice) -> Vec<(usize, usize, f64)> {
    let mut moves = Vec::new();
    for stage in stages {
        let part = f64::from(costs.taps(stage.from, stage.to)) / f64::from(costs.taps(0, costs.layers()).max(1));
        let slot_bytes = costs.options.cache_bytes as f64 * part / f64::from(costs.batch);
        let mut first = 0;
        for &(holder, held) in &stage.members {
            let mut start = 0;
            for (owner, owned) in train.keepers() {
                let overlap = match mode {
                    FillMode::Hybrid => f64::from((first + held).min(start + owned).saturating_sub(first.max(start))),
                    FillMode::ForwardOnly => f64::from(held) * f64::from(owned) / f64::from(costs.batch),
                };
                start += owned;
                if owner != holder && overlap > 0.0 {
                    moves.push((holder, owner, overlap * slot_bytes));
                }
            }
            first += held;
        }
    }
    moves
}

/// Seconds until all is where it belongs: every device sends one entry after another, and receives so.
pub(super) fn seconds(costs: &Costs, moves: &[(usize, usize, f64)]) -> f64 {
    let (busiest, latency) = busiest(costs, moves);
    latency + busiest
}

/// Seconds of the busiest sender or receiver, and the longest latency.
pub(super) fn busiest(costs: &Costs, moves: &[(usize, usize, f64)]) -> (f64, f64) {
    let mut busy: Vec<(usize, bool, f64)> = Vec::new();
    let mut latency = 0.0f64;
    for &(from, to, bytes) in moves {
        let link = costs.link(from, to);
        latency = latency.max(link.latency);
        for (device, receives) in [(from, false), (to, true)] {
            match busy.iter_mut().find(|(d, r, _)| (*d, *r) == (device, receives)) {
                Some((_, _, seconds)) => *seconds += bytes / link.bytes_per_second,
                None => busy.push((device, receives, bytes / link.bytes_per_second)),
            }
        }
    }
    (busy.into_iter().map(|(_, _, seconds)| seconds).fold(0.0, f64::max), latency)
}
