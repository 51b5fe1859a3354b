//! The search for the plan with the lowest objective, and how low it could be at best.
//!
//! 1. Single devices, each alone; the best of them is the reference.
//! 2. For each order of the devices and number of micro-batches, what the recurrence finds (`programme.rs`); the best
//!    train sets as one group; the best of all these polished (`polish.rs`).
//!    (Less of this where step 4 compares everything anyhow.)
//! 3. Each with the train set that suits it best.
//! 4. Of few devices all pipelines, as far as they could be better (`exact.rs`).

use super::FillWish;
use super::costs::{Costs, JOB_SECONDS};
use super::exact::{self, Space};
use super::feasible;
use super::objective::{Candidate, Choice, Limits, best_choice, first_epoch_step_seconds, micro_batch_counts, realise, steps_objective};
use super::polish::polish;
use super::programme::{Programme, Spans, Wanted, programme};
use super::train::{ALL_SUBSETS, train_bound, train_choices};
use barycenter_protocol::plan::FillMode;

/// The recurrence looks at so many devices at most: what is beyond them adds too little.
const POOL: usize = 24;
/// And at so many where the model fits on no fewer.
const LARGEST_POOL: usize = 64;
/// Pipelines that are polished, and changes looked at for all of them together.
const POLISHED: (usize, usize) = (4, 2500);
/// What the recurrence counts of a pipeline is not what the played step takes: those are looked at that it counts as so
/// many times slower than the best one known.
const SLACK: f64 = 1.25;
/// Deepest pipeline, unless the model fits into none so short.
const DEEPEST: usize = 8;

/// The plan that was found.
pub(super) struct Found {
    pub choice: Choice,
    /// The best single device's plan, if one device can do the job.
    pub reference: Option<Choice>,
    /// No plan has a lower objective.
    pub lower_bound: f64,
    pub is_exact: bool,
}

/// Nothing was found: memory or storage does not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPlan;

pub(super) fn search(costs: &Costs) -> Result<Found, NoPlan> {
    let trains = train_choices(costs);
    if trains.is_empty() {
        return Err(NoPlan);
    }
    let modes = modes(costs);
    let singles = singles(costs);
    let reference = reference(costs, &singles).filter(|_| !costs.stores);
    if reference.is_none() && !feasible::is_possible(costs, modes, &trains, || orders(costs, &pool(costs, true))) {
        return Err(NoPlan);
    }
    let wanted = (costs.options.min_stages.max(1) as usize).min(costs.devices.len()).min(costs.layers());
    let has_wishes = wanted > 1 || costs.options.use_all_nodes;
    let limits = reference.as_ref().filter(|_| !has_wishes).map_or(Limits::NONE, Limits::of);
    let bound = lower_bound(costs, &singles);
    // wishes are granted as far as they can be
    let attempts = [(costs.options.use_all_nodes, wanted, false), (true, wanted, true), (wanted > 1, 1, true)];
    for (_, min_stages, leave_out) in attempts.into_iter().filter(|(applies, ..)| *applies) {
        let space = Space { trains: &trains, limits, modes, min_stages, leave_out };
        let mut best = reference.clone().filter(|_| !has_wishes);
        if let Some(choice) = best.clone().filter(|best| best.objective <= bound * (1.0 + 1e-9)) {
            let lower_bound = choice.objective;
            return Ok(Found { choice, reference, lower_bound, is_exact: true });
        }
        for fill in pipelines(costs, &space, &singles, best.as_ref()) {
            let below = best.as_ref().map_or(f64::INFINITY, |b| b.objective);
            if let Some(choice) = best_choice(costs, &fill, &trains, limits, below) {
                best = Some(choice);
            }
        }
        let is_exact = exact::search(costs, &space, &mut best) && costs.devices.len() <= ALL_SUBSETS;
        if let Some(choice) = best {
            let lower_bound = if is_exact { choice.objective } else { bound.min(choice.objective) };
            return Ok(Found { choice, reference, lower_bound, is_exact });
        }
    }
    Err(NoPlan)
}

/// Whether there is any plan, wishes aside: by memory and storage alone.
pub(super) fn is_possible(costs: &Costs) -> bool {
    feasible::is_possible(costs, modes(costs), &train_choices(costs), || orders(costs, &pool(costs, true)))
}

/// How the cache may be filled.
pub(super) fn modes(costs: &Costs) -> &'static [FillMode] {
    if costs.stores {
        return &[FillMode::ForwardOnly];
    }
    match costs.options.fill {
        FillWish::Hybrid => &[FillMode::Hybrid],
        FillWish::ForwardOnly => &[FillMode::ForwardOnly],
        FillWish::Fastest => &[FillMode::Hybrid, FillMode::ForwardOnly],
    }
}

/// Every device alone that can be, in every mode that is allowed.
pub(super) fn singles(costs: &Costs) -> Vec<Candidate> {
    modes(costs).iter().flat_map(|mode| (0..costs.devices.len()).filter_map(|d| alone(costs, *mode, d))).collect()
}

/// A device with all layers, with the number of micro-batches that is best for it.
fn alone(costs: &Costs, mode: FillMode, device: usize) -> Option<Candidate> {
    let counts = micro_batch_counts(costs.batch).into_iter();
    counts.filter_map(|m| realise(costs, mode, &[(0, costs.layers(), vec![device])], m)).min_by(|a, b| a.seconds.total_cmp(&b.seconds))
}

/// The device that does the whole job best alone.
fn reference(costs: &Costs, singles: &[Candidate]) -> Option<Choice> {
    let whole = |fill: &Candidate| {
        let device = fill.stages[0].members[0].0;
        let train = super::train::train_choice(costs, &[device])?;
        best_choice(costs, fill, &[train], Limits::NONE, f64::INFINITY)
    };
    singles.iter().filter_map(whole).min_by(|a, b| a.objective.total_cmp(&b.objective))
}

/// Seconds that a fill may take at most to be allowed, and better than the best plan known.
fn most_seconds(costs: &Costs, space: &Space, mode: FillMode, best: Option<&Choice>) -> f64 {
    let train = space.trains[0].seconds;
    let allowed = space.limits.first_epoch_step - first_epoch_step_seconds(mode, 0.0, train);
    let better = best.map_or(f64::INFINITY, |best| best.objective - steps_objective(costs, mode, 0.0, train));
    allowed.min(better)
}

/// Pipelines worth a look.
fn pipelines(costs: &Costs, space: &Space, singles: &[Candidate], best: Option<&Choice>) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = if space.min_stages <= 1 && space.leave_out { singles.to_vec() } else { Vec::new() };
    let counts = micro_batch_counts(costs.batch);
    let pool = pool(costs, space.leave_out);
    let alone_or_too_many = pool.len() < 2 && space.min_stages <= 1 || pool.len() > LARGEST_POOL;
    let orders = match exact::is_small(costs) {
        _ if alone_or_too_many => Vec::new(),
        true => vec![fastest_first(costs, &pool)],
        false => orders(costs, &pool),
    };
    let programmes: Vec<_> = orders.iter().map(|order| Programme::new(costs, order)).collect();
    for &mode in space.modes {
        if space.min_stages <= 1 && space.leave_out {
            for train in space.trains.iter().filter(|t| t.members.len() > 1).take(POLISHED.0) {
                let group: Vec<_> = train.members.iter().map(|m| m.0).collect();
                found.extend(counts.iter().filter_map(|m| realise(costs, mode, &[(0, costs.layers(), group.clone())], *m)));
            }
        }
        if alone_or_too_many {
            continue;
        }
        let mut by_programme: Vec<Candidate> = Vec::new();
        let spans = Spans::new(costs, mode);
        let mut below = SLACK * most_seconds(costs, space, mode, best);
        for deepest in [DEEPEST.max(space.min_stages), pool.len()] {
            // every other count: polishing looks at their neighbours; large ones first, which leave least to look at
            for micro_batches in counts.iter().rev().copied().filter(|m| m.is_power_of_two() && *m <= 64) {
                for order in &programmes {
                    let wanted = Wanted { mode, micro_batches, min_stages: space.min_stages, max_stages: deepest, leave_out: space.leave_out, below };
                    let found = programme(order, &spans, wanted);
                    below = found.iter().map(|c| SLACK * c.seconds).fold(below, f64::min);
                    by_programme.extend(found);
                }
            }
            if !by_programme.is_empty() {
                break;
            }
        }
        by_programme.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        by_programme.dedup_by(|a, b| a.stages == b.stages);
        let (count, mut budget) = if exact::is_small(costs) { (1, POLISHED.1 / 50) } else { (POLISHED.0, POLISHED.1 / (1 + pool.len() / POOL)) };
        for candidate in by_programme.iter().take(count) {
            found.push(polish(costs, candidate.clone(), &pool, space.min_stages, space.leave_out, &mut budget));
        }
        found.extend(by_programme.into_iter().take(4 * POLISHED.0));
    }
    found
}

/// Devices for the recurrence: those that can hold a layer, the fastest first, as many as the model needs and at least
/// [`POOL`] where there are as many.
fn pool(costs: &Costs, leave_out: bool) -> Vec<usize> {
    let able: Vec<_> = (0..costs.devices.len()).filter(|d| !leave_out || costs.holds_a_layer(*d)).collect();
    let mut able = fastest_first(costs, &able);
    if !leave_out {
        return able;
    }
    let needed = costs.fill_fixed_bytes(FillMode::Hybrid, 0, costs.layers());
    let mut memory = 0u64;
    let enough = able.iter().take_while(|d| {
        let goes_on = memory < needed.saturating_mul(2);
        memory = memory.saturating_add(costs.devices[**d].memory_budget_bytes);
        goes_on
    });
    let enough = enough.count();
    if enough > LARGEST_POOL {
        able.sort_by_key(|d| std::cmp::Reverse(costs.devices[*d].memory_budget_bytes));
    }
    able.truncate(enough.clamp(POOL, LARGEST_POOL));
    able
}

fn fastest_first(costs: &Costs, devices: &[usize]) -> Vec<usize> {
    let mut order = devices.to_vec();
    order.sort_by(|a, b| costs.speed(*b).total_cmp(&costs.speed(*a)).then(a.cmp(b)));
    order
}

/// Fastest first, most memory first, the two reversed, and each device followed by the one it has the best link to.
fn orders(costs: &Costs, pool: &[usize]) -> Vec<Vec<usize>> {
    if pool.is_empty() {
        return Vec::new();
    }
    let fastest = fastest_first(costs, pool);
    let mut roomiest = fastest.clone();
    roomiest.sort_by_key(|d| std::cmp::Reverse(costs.devices[*d].memory_budget_bytes));
    let mut left = fastest.clone();
    let mut linked = vec![left.remove(0)];
    while let Some(next) = (0..left.len()).max_by(|a, b| {
        let bandwidth = |i: usize| costs.link(linked[linked.len() - 1], left[i]).bytes_per_second;
        bandwidth(*a).total_cmp(&bandwidth(*b)).then(b.cmp(a))
    }) {
        linked.push(left.remove(next));
    }
    let reversed = |o: &[usize]| o.iter().rev().copied().collect::<Vec<_>>();
    let mut all = vec![reversed(&fastest), reversed(&roomiest), fastest, roomiest, linked];
    all.sort();
    all.dedup();
    all
}

/// No plan has a lower objective: all devices that can hold a layer share the pipeline's work without rounding, or one
/// does it alone without exchanging anything; the train phase by its own bound; nothing has to be redistributed.
pub(super) fn lower_bound(costs: &Costs, singles: &[Candidate]) -> f64 {
    let train = train_bound(costs);
    let n = costs.devices.len();
    let able: Vec<_> = (0..n).filter(|d| costs.holds_a_layer(*d)).collect();
    let total: f64 = able.iter().map(|d| costs.speed(*d)).sum();
    let latency = able.iter().flat_map(|a| able.iter().filter(move |b| a != *b).map(|b| costs.link(*a, *b).latency)).fold(f64::INFINITY, f64::min);
    let bound = |mode: &FillMode| {
        let (forward, backward) = costs.sample_flops(*mode, 0, costs.layers());
        let work = (forward + backward) * f64::from(costs.batch);
        let shared = match mode {
            FillMode::Hybrid => work / total + latency + 3.0 * JOB_SECONDS,
            FillMode::ForwardOnly => work / total + JOB_SECONDS,
        };
        let alone = singles.iter().filter(|s| s.mode == *mode).map(|s| s.seconds);
        steps_objective(costs, *mode, alone.fold(shared, f64::min), train)
    };
    modes(costs).iter().map(bound).fold(f64::INFINITY, f64::min)
}

impl Costs<'_> {
    /// Whether a device has the memory for at least one layer.
    pub fn holds_a_layer(&self, d: usize) -> bool {
        let bytes = |mode, layer| self.fill_bytes(mode, (layer, layer + 1), 1, 1, 1);
        modes(self).iter().any(|mode| (0..self.layers()).any(|layer| bytes(*mode, layer) <= self.devices[d].memory_budget_bytes))
    }
}
