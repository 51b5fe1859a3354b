//! The paper's recurrence for many devices: layers on a fixed order of devices.
//!
//! Eq. 2 of the paper, built from the last stage forwards, so that the number of stages behind a stage, and with it the
//! micro-batches it keeps in flight, is known when its memory is tested. The recurrence minimises
//!
//! ```text
//! Σ (f + b + c + c')  +  (M − 1) · max(f + b, c, c')  +  max AR
//! ```
//!
//! the time of a pipeline whose slowest stage is never held up. A cell keeps one partial pipeline, not all that might
//! turn out best, and transfers are taken from the two devices at the border of two groups: what comes out is a good
//! start, which `polish.rs` then improves by the true objective.

use super::costs::{Costs, StageChoice};
use super::objective::{Candidate, realise};
use super::shares::shares;
use barycenter_protocol::plan::FillMode;

/// Groups of more devices than this are not considered where there are more than [`FEW`] devices.
const LARGEST_GROUP: usize = 16;
/// So many devices may form groups of any size.
const FEW: usize = 24;

/// Consecutive devices of the order as a group, memory aside.
struct Range {
    /// (device, slots), by device; shares as if memory did not matter.
    members: Vec<(usize, u32)>,
    /// Of the slowest: slots / speed.
    seconds_per_flop: f64,
    /// AllReduce: seconds without and per parameter.
    reduce: (f64, f64),
    least_memory: u64,
}

/// What the inner loop asks of layers `from .. to`.
struct Span {
    flops: (f64, f64),
    fixed_bytes: u64,
    parameters: f64,
}

impl Span {
    fn of(costs: &Costs, mode: FillMode, from: usize, to: usize) -> Self {
        Self { flops: costs.sample_flops(mode, from, to), fixed_bytes: costs.fill_fixed_bytes(mode, from, to), parameters: costs.adapter_parameters(from, to) as f64 }
    }
}

#[derive(Clone, Copy)]
struct Cell {
    key: f64,
    sum: f64,
    slowest: f64,
    reduce: f64,
    /// First device of the first stage, devices in it, and its last layer (exclusive).
    start: usize,
    len: usize,
    to: usize,
}

const IMPOSSIBLE: Cell = Cell { key: f64::INFINITY, sum: f64::INFINITY, slowest: f64::INFINITY, reduce: 0.0, start: 0, len: 0, to: 0 };

/// For every number of stages from `min_stages` to `max_stages` the pipeline that the recurrence finds.
/// `leave_out`: whether devices may be left out.
pub(super) fn programme(costs: &Costs, mode: FillMode, order: &[usize], micro_batches: u32, (min_stages, max_stages): (usize, usize), leave_out: bool) -> Vec<Candidate> {
    let (layers, n) = (costs.layers(), order.len());
    let ranges = ranges(costs, order);
    let at = |first: usize, from: usize| first * (layers + 1) + from;
    let spans: Vec<_> = (0..=layers).flat_map(|from| (0..=layers).map(move |to| (from, to))).map(|(from, to)| Span::of(costs, mode, from, to.max(from))).collect();
    let mut tables: Vec<Vec<Cell>> = vec![vec![IMPOSSIBLE; (n + 1) * (layers + 1)]];
    for (first, cell) in (0..=n).map(|first| (first, at(first, layers))) {
        if leave_out || first == n {
            tables[0][cell] = Cell { key: 0.0, sum: 0.0, slowest: 0.0, ..IMPOSSIBLE };
        }
    }
    for stages in 1..=max_stages.min(n).min(layers) {
        let behind = &tables[stages - 1];
        let mut table = vec![IMPOSSIBLE; (n + 1) * (layers + 1)];
        for first in (0..n).rev() {
            for from in 0..=layers - stages {
                let mut best = if leave_out { table[at(first + 1, from)] } else { IMPOSSIBLE };
                for (len, range) in ranges[first].iter().enumerate().map(|(i, range)| (i + 1, range)) {
                    let Some(range) = range else { continue };
                    let last_to = layers + 1 - stages;
                    for to in if stages == 1 { layers } else { from + 1 }..=last_to {
                        let rest = &behind[at(first + len, to)];
                        if rest.key >= best.key {
                            continue;
                        }
                        let span = &spans[at(from, to)];
                        if span.fixed_bytes > range.least_memory {
                            break;
                        }
                        let mut seconds = costs.seconds_of(mode, span.flops, range.seconds_per_flop / f64::from(micro_batches));
                        if key(mode, micro_batches, seconds.forward + seconds.backward, seconds.forward + seconds.backward, 0.0) >= best.key {
                            break;
                        }
                        if !fits(costs, mode, range, (from, to), stages, micro_batches) {
                            let devices: Vec<_> = range.members.iter().map(|m| m.0).collect();
                            let in_flight = costs.in_flight(mode, stages, micro_batches);
                            let Some(members) = costs.group(mode, &devices, from, to, in_flight, micro_batches) else { continue };
                            seconds = costs.stage_seconds(mode, &StageChoice { from, to, members }, micro_batches);
                        }
                        let own = seconds.forward + seconds.backward;
                        let reduce = range.reduce.0 + if mode == FillMode::Hybrid { range.reduce.1 * span.parameters } else { 0.0 };
                        let mut cell = Cell { key: 0.0, sum: rest.sum + own, slowest: rest.slowest.max(own), reduce: rest.reduce.max(reduce), start: first, len, to };
                        if stages > 1 {
                            let transfer = costs.pair_transfer(mode, order[first + len - 1], order[rest.start], micro_batches);
                            cell.sum += 2.0 * transfer.latency + transfer.forward + transfer.backward;
                            cell.slowest = cell.slowest.max(transfer.forward).max(transfer.backward);
                        }
                        cell.key = key(mode, micro_batches, cell.sum, cell.slowest, cell.reduce);
                        if cell.key < best.key {
                            best = cell;
                        }
                    }
                }
                table[at(first, from)] = best;
            }
        }
        tables.push(table);
    }
    let found = (min_stages..tables.len()).filter_map(|stages| {
        let mut layout = Vec::new();
        let (mut first, mut from) = (0, 0);
        for left in (1..=stages).rev() {
            let cell = tables[left][at(first, from)];
            if cell.key == f64::INFINITY {
                return None;
            }
            let mut devices = order[cell.start..cell.start + cell.len].to_vec();
            devices.sort();
            layout.push((from, cell.to, devices));
            (first, from) = (cell.start + cell.len, cell.to);
        }
        realise(costs, mode, &layout, micro_batches)
    });
    found.collect()
}

fn key(mode: FillMode, micro_batches: u32, sum: f64, slowest: f64, reduce: f64) -> f64 {
    if mode == FillMode::Hybrid {
        sum + f64::from(micro_batches - 1) * slowest + reduce
    } else {
        f64::from(micro_batches) * slowest + 1e-3 * sum // of equal paces the shorter way
    }
}

/// Whether the shares need no regard to memory and storage.
fn fits(costs: &Costs, mode: FillMode, range: &Range, layers: (usize, usize), behind: usize, micro_batches: u32) -> bool {
    let in_flight = costs.in_flight(mode, behind, micro_batches);
    let per_slot = costs.cache_slot_bytes(layers.0, layers.1);
    range.members.iter().all(|&(d, slots)| {
        let device = &costs.devices[d];
        costs.fill_bytes(mode, layers, slots, in_flight, micro_batches) <= device.memory_budget_bytes && u64::from(slots).saturating_mul(per_slot) <= device.storage_budget_bytes
    })
}

/// `ranges[first][len − 1]`: devices `first .. first + len` of the order.
fn ranges(costs: &Costs, order: &[usize]) -> Vec<Vec<Option<Range>>> {
    let largest = if order.len() > FEW { LARGEST_GROUP } else { order.len() }.min(costs.batch as usize);
    let range = |devices: &[usize]| {
        let mut devices = devices.to_vec();
        devices.sort();
        let speeds: Vec<_> = devices.iter().map(|d| costs.speed(*d)).collect();
        let slots = shares(&speeds, &vec![u32::MAX; devices.len()], costs.batch, costs.options.use_all_nodes)?;
        let without = costs.all_reduce(devices.iter().copied(), 0);
        let per_million = costs.all_reduce(devices.iter().copied(), 1_000_000) - without;
        Some(Range {
            seconds_per_flop: slots.iter().zip(&speeds).map(|(slots, speed)| f64::from(*slots) / speed).fold(0.0, f64::max),
            reduce: (without, per_million / 1e6),
            least_memory: devices.iter().map(|d| costs.devices[*d].memory_budget_bytes).min().unwrap_or(0),
            members: devices.into_iter().zip(slots).collect(),
        })
    };
    (0..order.len()).map(|first| (1..=largest.min(order.len() - first)).map(|len| range(&order[first..first + len])).collect()).collect()
}
