//! The search against trying everything, on small instances from seeded draws.
//!
//! `PLANNER_DRAWS=2000 cargo test --release -p barycenter-core brute_force` tries more of them.

use super::super::costs::Costs;
use super::super::objective::{Choice, Limits, first_epoch_step_seconds, micro_batch_counts, realise, redistribution_seconds, steps_objective};
use super::super::playback::step_seconds;
use super::super::search::{is_possible, lower_bound, search, singles};
use super::super::train::{TrainChoice, train_choice};
use super::*;
use barycenter_protocol::plan::FillMode;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// Small draws in everyday tests, and as many of the largest size.
const DRAWS: (u64, u64) = (800, 20);

struct Instance {
    cost: ModelCost,
    measured: Measurements,
    batch: u32,
    options: PlanOptions,
}

/// Unequal devices, links, layers; memory and storage that often do not suffice for all.
fn draw(seed: u64, devices: usize, layers: usize, batch: u32) -> Instance {
    let random = &mut Pcg64::seed_from_u64(seed);
    let mut d = dimensions();
    d.layers = layers as u32;
    (d.width, d.ffn_width) = [(192, 512), (768, 2048)][random.random_range(0..2)];
    let mut cost = model_cost(&d);
    for layer in &mut cost.layers {
        let factor = random.random_range(0.5..2.0);
        layer.forward_flops *= factor;
        layer.weight_bytes = (layer.weight_bytes as f64 * factor) as u64;
    }
    let whole = cost.layers.iter().map(|l| l.weight_bytes + 16 * l.adapter_parameters).sum::<u64>() + cost.head.weight_bytes * 2;
    let options = PlanOptions {
        epochs: random.random_range(1..5),
        steps_per_epoch: random.random_range(3..300),
        fill: [FillWish::Hybrid, FillWish::ForwardOnly, FillWish::Fastest][random.random_range(0..3)],
        cache_bytes: random.random_range(1_000_000..200_000_000),
        ..options()
    };
    let log = |random: &mut Pcg64, low: f64, high: f64| (low.ln() + random.random::<f64>() * (high / low).ln()).exp();
    let profiles = (0..devices).map(|i| {
        let memory = (whole as f64 * log(random, 0.3, 6.0)) as u64;
        DeviceProfile { storage_budget_bytes: log(random, 1e7, 1e9) as u64, ..device(i as u32 + 1, log(random, 5.0, 200.0), memory) }
    });
    let mut measured = household(profiles.collect(), 1.0, 1.0);
    for link in &mut measured.links {
        (link.round_trip_millis, link.bytes_per_second) = (log(random, 0.3, 20.0), log(random, 1e6, 1e9));
    }
    Instance { cost, measured, batch, options }
}

/// Lowest objective over all ordered groups of devices, layers, numbers of micro-batches and train sets.
fn brute_force(costs: &Costs) -> Option<f64> {
    let n = costs.devices.len();
    let sets: Vec<Vec<usize>> = (1u32..1 << n).map(|mask| (0..n).filter(|d| mask & (1 << d) != 0).collect()).collect();
    let trains: Vec<TrainChoice> = sets.iter().filter_map(|set| train_choice(costs, set)).collect();
    let modes: &[FillMode] = match costs.options.fill {
        _ if costs.stores => &[FillMode::ForwardOnly],
        FillWish::Hybrid => &[FillMode::Hybrid],
        FillWish::ForwardOnly => &[FillMode::ForwardOnly],
        FillWish::Fastest => &[FillMode::Hybrid, FillMode::ForwardOnly],
    };
    let mut everything = Everything { costs, sets: &sets, trains: &trains, modes, limits: Limits::NONE, best: None };
    // a device that needs others to keep its entries is no reference
    for d in (0..n).filter(|_| !costs.stores) {
        let train: Vec<_> = trains.iter().filter(|t| t.members.len() == 1 && t.members[0].0 == d).cloned().collect();
        Everything { trains: &train, ..Everything { best: everything.best.take(), ..everything } }.evaluate_into(&[(0, costs.layers(), vec![d])], &mut everything);
    }
    if let Some((_, limits)) = everything.best {
        everything.limits = limits;
    }
    everything.place(&mut Vec::new(), 0);
    everything.best.map(|(objective, _)| objective)
}

#[derive(Clone, Copy)]
struct Everything<'a> {
    costs: &'a Costs<'a>,
    sets: &'a [Vec<usize>],
    trains: &'a [TrainChoice],
    modes: &'a [FillMode],
    limits: Limits,
    best: Option<(f64, Limits)>,
}

impl Everything<'_> {
    fn evaluate_into(mut self, layout: &[(usize, usize, Vec<usize>)], into: &mut Everything) {
        self.evaluate(layout);
        into.best = self.best;
    }

    fn evaluate(&mut self, layout: &[(usize, usize, Vec<usize>)]) {
        for mode in self.modes {
            for micro_batches in micro_batch_counts(self.costs.batch) {
                let Some(fill) = realise(self.costs, *mode, layout, micro_batches) else { continue };
                assert_eq!(fill.seconds, step_seconds(self.costs, *mode, &fill.stages, micro_batches));
                for train in self.trains {
                    let first = first_epoch_step_seconds(*mode, fill.seconds, train.seconds);
                    let steps = steps_objective(self.costs, *mode, fill.seconds, train.seconds);
                    if first > self.limits.first_epoch_step || train.seconds > self.limits.train_step || self.best.is_some_and(|(b, _)| steps >= b) {
                        continue;
                    }
                    let Some(redistribution) = redistribution_seconds(self.costs, &fill, train) else { continue };
                    let objective = steps + redistribution / f64::from(self.costs.options.steps_per_epoch);
                    if self.best.is_none_or(|(b, _)| objective < b) {
                        self.best = Some((objective, Limits { first_epoch_step: first, train_step: train.seconds }));
                    }
                }
            }
        }
    }

    fn place(&mut self, layout: &mut Vec<(usize, usize, Vec<usize>)>, from: usize) {
        if from == self.costs.layers() {
            return self.evaluate(layout);
        }
        for set in self.sets {
            if layout.iter().any(|(_, _, devices)| devices.iter().any(|d| set.contains(d))) {
                continue;
            }
            for to in from + 1..=self.costs.layers() {
                layout.push((from, to, set.clone()));
                self.place(layout, to);
                layout.pop();
            }
        }
    }
}

fn compare(seed: u64, instance: &Instance) -> bool {
    compare_costs(seed, &Costs::new(&instance.cost, &instance.measured, instance.batch, &instance.options))
}

fn compare_costs(seed: u64, costs: &Costs) -> bool {
    match (search(costs), brute_force(costs)) {
        (Ok(found), Some(best)) => {
            assert!(found.is_exact, "seed {seed}: the search was given up");
            let bound = lower_bound(costs, &singles(costs));
            assert!(bound <= best * (1.0 + 1e-9), "seed {seed}: {bound} is no lower bound of {best}");
            let objective = found.choice.objective;
            assert!((objective - best).abs() <= 1e-9 * best, "seed {seed}: the search found {objective}, trying everything {best}: {:?}", found.choice);
            true
        }
        (Err(_), None) => false,
        (found, best) => panic!("seed {seed}: {:?} and {best:?}", found.map(|f: super::super::search::Found| -> Choice { f.choice }).map_err(|_| "nothing")),
    }
}

#[test]
fn the_search_finds_what_trying_everything_finds() {
    let draws = std::env::var("PLANNER_DRAWS").ok().and_then(|n| n.parse().ok());
    let (small, large) = draws.map_or(DRAWS, |n| (n, n / 20));
    let mut plans = 0;
    for seed in 0..small {
        let random = &mut Pcg64::seed_from_u64(seed ^ 0xbace);
        let (devices, layers, batch) = (random.random_range(1..5), random.random_range(1..7), random.random_range(1..9));
        plans += u32::from(compare(seed, &draw(seed, devices, layers, batch)));
    }
    for seed in small..small + large {
        compare(seed, &draw(seed, 5, 8, 4));
    }
    assert!(u64::from(plans) > small / 2, "most draws have a plan: {plans} of {small}");
}

/// Households of which nobody has the storage for its share: some have a plan in which others keep entries for those who train.
#[test]
fn the_search_finds_the_best_plan_in_which_devices_keep_entries_for_others() {
    let (mut refused, mut plans, mut slower) = (0, 0, 0);
    for seed in 0..500 {
        let random = &mut Pcg64::seed_from_u64(seed ^ 0x5702);
        let (devices, layers, batch) = (random.random_range(2..5), random.random_range(1..5), random.random_range(2..9));
        let mut instance = draw(seed, devices, layers, batch);
        let cache = instance.options.cache_bytes as f64;
        let entries = Costs::new(&instance.cost, &instance.measured, batch, &instance.options).entries_bytes(0, layers);
        for (i, device) in instance.measured.devices.iter_mut().enumerate() {
            if i == 0 || random.random_range(0..3) == 0 {
                // a disk, with hardly the memory to pass entries on
                device.storage_budget_bytes = (cache * random.random_range(0.4..1.4)) as u64;
                device.memory_budget_bytes = entries * random.random_range(4..60);
            } else {
                device.storage_budget_bytes = (cache * random.random_range(0.0..0.5)) as u64;
                device.memory_budget_bytes *= random.random_range(2..8);
            }
        }
        let costs = Costs::new(&instance.cost, &instance.measured, instance.batch, &instance.options);
        if search(&costs).is_ok() {
            continue;
        }
        refused += 1;
        let allowed = plan(&instance.cost, &instance.measured, instance.batch, &instance.options);
        if !compare_costs(seed, &costs.with_stores()) {
            assert!(allowed.is_err(), "seed {seed}: {allowed:?}");
            continue;
        }
        // where memory lacks too, there is none: what one device needs of it does not depend on who keeps the entries
        let Ok(plan) = allowed else { continue };
        plans += 1;
        check_stores(seed, &instance, &plan);
        let choice = search(&costs.with_stores()).expect("just found").choice;
        let compute = choice.train.members.iter().map(|(d, slots)| costs.train_seconds(*d, f64::from(*slots))).fold(0.0, f64::max);
        slower += u32::from(choice.train.seconds > compute + choice.train.reduce_seconds);
    }
    assert!(refused > 100 && plans > 50 && slower > 10 && plans - slower > 10, "of all sorts: {plans} plans of {refused} that were refused, {slower} slower for their streams");
}

/// What such a plan asks of every device is there, and no device stores more than it offers.
fn check_stores(seed: u64, instance: &Instance, plan: &Plan) {
    assert_eq!((plan.fill, plan.single_device_fill_step_seconds), (FillMode::ForwardOnly, 0.0), "seed {seed}");
    let mut next = 0;
    for kept in &plan.stores {
        assert!(kept.slots.start == next && kept.slots.end > next, "seed {seed}: {:?}", plan.stores);
        next = kept.slots.end;
    }
    assert_eq!(next, instance.batch);
    for (device, reason) in instance.measured.devices.iter().zip(&plan.reasons) {
        let slots: u32 = plan.stores.iter().filter(|m| m.node == device.node).map(|m| m.slots.end - m.slots.start).sum();
        let bytes = instance.options.cache_bytes as f64 / f64::from(instance.batch) * f64::from(slots);
        assert!(bytes <= device.storage_budget_bytes as f64, "seed {seed}: {bytes} on {device:?}");
        assert!(reason.fill_memory_bytes.max(reason.train_memory_bytes) <= device.memory_budget_bytes, "seed {seed}: {reason:?}");
    }
    let streamed: u64 = plan.links.iter().map(|l| l.epoch_stream_bytes).sum();
    assert_eq!(streamed > 0, plan.stores != plan.train, "seed {seed}: {plan:?}");
}

/// The search leaves nothing out on these: what it finds a plan for is possible, and nothing else.
#[test]
fn what_is_possible_has_a_plan_and_what_is_not_has_none() {
    let mut seen = [0, 0];
    for seed in 0..300 {
        let mut instance = draw(seed, 1 + seed as usize % 4, 1 + seed as usize % 6, 1 + seed as u32 % 5);
        for (device, i) in instance.measured.devices.iter_mut().zip(0..) {
            device.memory_budget_bytes = device.memory_budget_bytes / 100 * (10 + (seed * 7 + i * 31) % 90);
        }
        let costs = Costs::new(&instance.cost, &instance.measured, instance.batch, &instance.options);
        let possible = is_possible(&costs);
        assert_eq!(possible, search(&costs).is_ok(), "seed {seed}");
        seen[usize::from(possible)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 30), "of both kinds: {seen:?}");
}
