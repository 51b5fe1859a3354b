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
//!
//! Who calls it says how many seconds are of no interest. A partial pipeline is given up when it cannot stay below: with the
//! layers in front of it shared by all devices in front of it without rounding, r seconds of a micro-batch, it takes at least
//! `(sum + r) + (M − 1) · max(slowest, r) + max AR`.

use super::costs::{Costs, StageChoice};
use super::objective::{Candidate, realise};
use super::shares::shares;
use barycenter_protocol::plan::FillMode;

/// Groups of more devices than this are not considered where there are more than [`FEW`] devices.
const LARGEST_GROUP: usize = 16;
/// So many devices may form groups of any size.
const FEW: usize = 24;
/// Of more than [`FEW_LAYERS`] layers, pipelines are not made deeper when this many depths in a row were slower than the best.
const SLOWER_DEPTHS: usize = 2;
/// Of so few layers every depth is looked at.
const FEW_LAYERS: usize = 8;

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

/// What of an order of devices and of the layers does not depend on what is looked for.
pub(super) struct Programme<'a> {
    costs: &'a Costs<'a>,
    order: &'a [usize],
    ranges: Vec<Vec<Option<Range>>>,
    /// Of the first devices of the order together, FLOP per second.
    speeds: Vec<f64>,
}

/// What the inner loop asks of the layers, `from .. to` at `from * (layers + 1) + to`.
pub(super) struct Spans(Vec<Span>);

impl Spans {
    pub fn new(costs: &Costs, mode: FillMode) -> Self {
        let layers = costs.layers();
        let all = (0..=layers).flat_map(|from| (0..=layers).map(move |to| (from, to)));
        Self(all.map(|(from, to)| Span::of(costs, mode, from, to.max(from))).collect())
    }
}

impl<'a> Programme<'a> {
    pub fn new(costs: &'a Costs<'a>, order: &'a [usize]) -> Self {
        let speeds = (0..=order.len()).map(|first| order[..first].iter().map(|d| costs.speed(*d)).sum()).collect();
        Self { costs, order, ranges: ranges(costs, order), speeds }
    }
}

/// Which pipelines are looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub mode: FillMode,
    pub micro_batches: u32,
    pub min_stages: usize,
    pub max_stages: usize,
    /// Whether devices may be left out.
    pub leave_out: bool,
    /// Steps of so many seconds, as the recurrence counts them, are of no interest.
    pub below: f64,
}

/// For every number of stages the pipeline that the recurrence finds; `spans` are those of the mode.
pub(super) fn programme(programme: &Programme, spans: &Spans, wanted: Wanted) -> Vec<Candidate> {
    let Wanted { mode, micro_batches, min_stages, max_stages, leave_out, below } = wanted;
    let (Programme { costs, order, ranges, speeds }, Spans(spans)) = (programme, spans);
    let (layers, n) = (costs.layers(), order.len());
    let at = |first: usize, from: usize| first * (layers + 1) + from;
    // seconds of a micro-batch through layers 0 .. from, shared by the first devices of the order
    let in_front = |first: usize, from: usize| {
        let (forward, backward) = spans[at(0, from)].flops;
        if from == 0 { 0.0 } else { (forward + backward) * f64::from(costs.batch) / f64::from(micro_batches) / speeds[first] }
    };
    let mut tables: Vec<Vec<Cell>> = vec![vec![IMPOSSIBLE; (n + 1) * (layers + 1)]];
    for (first, cell) in (0..=n).map(|first| (first, at(first, layers))) {
        if leave_out || first == n {
            tables[0][cell] = Cell { key: 0.0, sum: 0.0, slowest: 0.0, ..IMPOSSIBLE };
        }
    }
    let (mut fastest, mut slower) = (f64::INFINITY, 0);
    for stages in 1..=max_stages.min(n).min(layers) {
        if slower >= SLOWER_DEPTHS && layers > FEW_LAYERS && stages > min_stages {
            break;
        }
        let behind = &tables[stages - 1];
        let mut table = vec![IMPOSSIBLE; (n + 1) * (layers + 1)];
        for first in (0..n).rev() {
            for from in 0..=layers - stages {
                let mut best = if leave_out { table[at(first + 1, from)] } else { IMPOSSIBLE };
                let front = in_front(first, from);
                let at_least = |sum: f64, slowest: f64, reduce: f64| key(mode, micro_batches, sum + front, slowest.max(front), reduce);
                if at_least(0.0, 0.0, 0.0) >= below {
                    table[at(first, from)] = best;
                    continue;
                }
                for (len, range) in ranges[first].iter().enumerate().map(|(i, range)| (i + 1, range)) {
                    let Some(range) = range else { continue };
                    let last_to = layers + 1 - stages;
                    let reduce_of = |span: &Span| range.reduce.0 + if mode == FillMode::Hybrid { range.reduce.1 * span.parameters } else { 0.0 };
                    if at_least(0.0, 0.0, reduce_of(&spans[at(from, from + 1)])) >= below {
                        continue;
                    }
                    let first_to = if stages == 1 { layers } else { from + 1 };
                    let (rests, row) = (&behind[at(first + len, first_to)..=at(first + len, last_to)], &spans[at(from, first_to)..=at(from, last_to)]);
                    for (to, (rest, span)) in (first_to..).zip(rests.iter().zip(row)) {
                        if rest.key >= best.key {
                            continue;
                        }
                        if span.fixed_bytes > range.least_memory {
                            break;
                        }
                        let mut seconds = costs.seconds_of(mode, span.flops, range.seconds_per_flop / f64::from(micro_batches));
                        let alone = seconds.forward + seconds.backward;
                        if key(mode, micro_batches, alone, alone, 0.0) >= best.key || at_least(alone, alone, 0.0) >= below {
                            break;
                        }
                        let reduce = rest.reduce.max(reduce_of(span));
                        if at_least(rest.sum + alone, rest.slowest.max(alone), reduce) >= below {
                            continue;
                        }
                        if !fits(costs, mode, range, (from, to), stages, micro_batches) {
                            let devices: Vec<_> = range.members.iter().map(|m| m.0).collect();
                            let in_flight = costs.in_flight(mode, stages, micro_batches);
                            let Some(members) = costs.group(mode, &devices, from, to, in_flight, micro_batches) else { continue };
                            seconds = costs.stage_seconds(mode, &StageChoice { from, to, members }, micro_batches);
                        }
                        let own = seconds.forward + seconds.backward;
                        let mut cell = Cell { key: 0.0, sum: rest.sum + own, slowest: rest.slowest.max(own), reduce, start: first, len, to };
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
        let whole = table[at(0, 0)].key;
        slower = if whole.is_finite() && whole >= fastest { slower + 1 } else { 0 };
        fastest = fastest.min(whole);
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
