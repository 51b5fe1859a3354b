//! Whether a model fits at all: memory and storage alone, nothing is timed.
//!
//! Built from the last stage forwards, as the recurrence is. What is kept of the stages behind is only how many layers they
//! hold at most, because more layers there leave fewer to hold: the fewer layers a stage has, the less it takes.
//!
//! ```text
//! from(0, –)        = L
//! from(s, devices)  = min over groups g of the devices:  the first layer of a stage of g that ends at from(s − 1, the others)
//! ```

use super::costs::Costs;
use super::train::{ALL_SUBSETS, TrainChoice};
use barycenter_protocol::plan::FillMode;

/// Groups of more devices than this are not considered of more than [`ALL_SUBSETS`] devices: the recurrence has none larger.
const LARGEST_GROUP: usize = 24;

/// Whether there is any plan, wishes aside; `trains` are the sets that can train. Of up to [`ALL_SUBSETS`] devices every pipeline
/// is considered, of more those that lie in one of `orders`, and these sets as one group.
pub(super) fn is_possible(costs: &Costs, modes: &[FillMode], trains: &[TrainChoice], orders: impl FnOnce() -> Vec<Vec<usize>>) -> bool {
    if trains.is_empty() {
        return false;
    }
    if costs.devices.len() <= ALL_SUBSETS {
        return modes.iter().any(|mode| any_set(costs, *mode));
    }
    let groups: Vec<Vec<usize>> = trains.iter().map(|train| train.members.iter().map(|m| m.0).collect()).collect();
    if modes.iter().any(|mode| groups.iter().any(|group| longest(costs, *mode, group, costs.layers(), 1) == 0)) {
        return true;
    }
    let orders = orders();
    modes.iter().any(|mode| orders.iter().any(|order| in_order(costs, *mode, order)))
}

/// The first layer of the longest stage of a group that ends before layer `to`, with so many stages from it to the end; `to`
/// if it cannot hold a layer.
fn longest(costs: &Costs, mode: FillMode, group: &[usize], to: usize, behind: usize) -> usize {
    // many micro-batches take least memory
    let micro_batches = costs.batch;
    let in_flight = costs.in_flight(mode, behind, micro_batches);
    let memory = group.iter().map(|d| costs.devices[*d].memory_budget_bytes).min().unwrap_or(0);
    let (mut held, mut from) = (to, 0);
    while from < held {
        let middle = from + (held - from) / 2;
        if costs.fill_fixed_bytes(mode, middle, to) <= memory { held = middle } else { from = middle + 1 }
    }
    // not all that memory allows besides: samples take some too, and a slow device may only be needed by a longer stage
    (from..to).find(|from| costs.group(mode, group, *from, to, in_flight, micro_batches).is_some()).unwrap_or(to)
}

/// Pipelines of any groups in any order.
fn any_set(costs: &Costs, mode: FillMode) -> bool {
    let n = costs.devices.len();
    let devices: Vec<Vec<usize>> = (0usize..1 << n).map(|mask| (0..n).filter(|d| mask & (1 << d) != 0).collect()).collect();
    let mut behind: Vec<Option<usize>> = vec![None; 1 << n];
    behind[0] = Some(costs.layers());
    for stages in 1..=n.min(costs.layers()) {
        let mut next: Vec<Option<usize>> = vec![None; 1 << n];
        for (mask, to) in behind.iter().enumerate().filter_map(|(mask, to)| Some((mask, (*to)?))) {
            let left = ((1usize << n) - 1) & !mask;
            let mut group = left;
            while group != 0 {
                let from = longest(costs, mode, &devices[group], to, stages);
                if from == 0 {
                    return true;
                }
                if from < to {
                    let least = &mut next[mask | group];
                    *least = Some(least.map_or(from, |l| l.min(from)));
                }
                group = (group - 1) & left;
            }
        }
        behind = next;
    }
    false
}

/// Pipelines of groups of neighbours in an order, devices left out among them.
fn in_order(costs: &Costs, mode: FillMode, order: &[usize]) -> bool {
    let n = order.len();
    // what stages of the devices from `first` on leave to hold
    let mut behind: Vec<Option<usize>> = vec![Some(costs.layers()); n + 1];
    for stages in 1..=n.min(costs.layers()) {
        let mut next: Vec<Option<usize>> = vec![None; n + 1];
        for first in (0..n).rev() {
            let mut least = next[first + 1];
            for len in 1..=LARGEST_GROUP.min(n - first) {
                let Some(to) = behind[first + len] else { continue };
                let mut group = order[first..first + len].to_vec();
                group.sort();
                let from = longest(costs, mode, &group, to, stages);
                if from < to {
                    least = Some(least.map_or(from, |l| l.min(from)));
                }
            }
            if least == Some(0) {
                return true;
            }
            next[first] = least;
        }
        behind = next;
    }
    false
}
