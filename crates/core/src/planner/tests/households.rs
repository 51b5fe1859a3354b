//! Ten thousand random households: no plan is predicted to be slower than the best single device.

use super::super::costs::Costs;
use super::super::objective::{Limits, best_choice, micro_batch_counts, realise};
use super::super::train::train_choice;
use super::*;
use crate::household::{Device, DeviceKind, Household, LinkQuality, WifiCell};
use barycenter_protocol::plan::FillMode;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// Half of them in each of two tests, which run side by side.
const HOUSEHOLDS: u64 = 10_000;

/// Phones, tablets, laptops and desktops with and without GPU, each on the Wi-Fi or on a wire.
fn random_household(random: &mut Pcg64) -> Household {
    let count = [1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7][random.random_range(0..15)];
    let device = |i: usize, random: &mut Pcg64| {
        let (kind, gpu, gflops, memory_mb) = match random.random_range(0..10) {
            0..4 => (DeviceKind::Phone, false, 4.0..25.0, 300.0..3000.0),
            4..6 => (DeviceKind::Tablet, false, 8.0..40.0, 500.0..4000.0),
            6..8 => (DeviceKind::Laptop, false, 25.0..150.0, 1000.0..12_000.0),
            8 => (DeviceKind::Desktop, false, 60.0..400.0, 2000.0..24_000.0),
            _ => (DeviceKind::Desktop, true, 800.0..20_000.0, 4000.0..24_000.0),
        };
        Device {
            name: format!("device {i}"),
            kind,
            gflops: random.random_range(gflops),
            memory_mb: random.random_range(memory_mb),
            storage_mb: random.random_range(100.0..20_000.0),
            gpu,
            watts: 10.0,
            idle_watts: 1.0,
            joins_at_seconds: 0.0,
            leaves_at_seconds: None,
        }
    };
    let devices: Vec<_> = (0..count).map(|i| device(i, random)).collect();
    let on_air: Vec<_> = (0..count).filter(|d| matches!(devices[*d].kind, DeviceKind::Phone | DeviceKind::Tablet) || random.random()).collect();
    let wifi_cells = vec![WifiCell { name: "home".into(), mbit_per_s: random.random_range(20.0..800.0), devices: on_air }];
    let default_link = LinkQuality { mbit_per_s: random.random_range(50.0..1000.0), latency_ms: random.random_range(0.2..15.0), jitter_ms: 0.0, loss_per_hour: 0.0 };
    Household { name: "random".into(), devices, links: Vec::new(), default_link, wifi_cells }
}

fn random_job(random: &mut Pcg64) -> (ModelCost, u32, PlanOptions) {
    let mut d = dimensions();
    (d.layers, d.width, d.ffn_width) = [(2, 192, 512), (4, 384, 1024), (6, 576, 1536), (8, 1024, 4096), (8, 2048, 5632)][random.random_range(0..5)];
    let tokens = random.random_range(16..300);
    d.mean_tokens = tokens;
    let options = PlanOptions {
        mean_tokens: f64::from(tokens),
        max_tokens: 2 * tokens,
        mean_labels: f64::from(tokens) / 3.0,
        cache_bytes: random.random_range(1_000_000..3_000_000_000),
        fill: FillWish::Fastest,
        epochs: random.random_range(1..12),
        steps_per_epoch: random.random_range(20..500),
        ..options()
    };
    (model_cost(&d), random.random_range(1..33), options)
}

/// The lowest objective of a device that does the whole job alone, found without the planner's search.
fn best_alone(costs: &Costs) -> Option<(f64, Limits)> {
    let mut best: Option<(f64, Limits)> = None;
    for d in 0..costs.devices.len() {
        let Some(train) = train_choice(costs, &[d]) else { continue };
        for mode in [FillMode::Hybrid, FillMode::ForwardOnly] {
            for micro_batches in micro_batch_counts(costs.batch) {
                let fill = realise(costs, mode, &[(0, costs.layers(), vec![d])], micro_batches);
                let choice = fill.and_then(|fill| best_choice(costs, &fill, std::slice::from_ref(&train), Limits::NONE, f64::INFINITY));
                if let Some(choice) = choice.filter(|c| best.is_none_or(|(b, _)| c.objective < b)) {
                    best = Some((choice.objective, Limits::of(&choice)));
                }
            }
        }
    }
    best
}

#[test]
fn no_plan_is_slower_than_the_best_single_device() {
    no_plan_is_slower(0..HOUSEHOLDS / 2);
}

#[test]
fn no_plan_is_slower_than_the_best_single_device_either() {
    no_plan_is_slower(HOUSEHOLDS / 2..HOUSEHOLDS);
}

fn no_plan_is_slower(seeds: std::ops::Range<u64>) {
    let count = seeds.end - seeds.start;
    let (mut planned, mut shared, mut alone) = (0u64, 0u64, 0u64);
    for seed in seeds {
        let random = &mut Pcg64::seed_from_u64(seed);
        let measured = random_household(random).measurements();
        let (cost, batch, options) = random_job(random);
        let costs = Costs::new(&cost, &measured, batch, &options);
        let single = best_alone(&costs);
        let Ok(plan) = plan(&cost, &measured, batch, &options) else {
            assert!(single.is_none(), "seed {seed}: one device could do it, and there is no plan");
            continue;
        };
        planned += 1;
        shared += u64::from(plan.nodes().len() > 1);
        assert!(plan.bound.lower_bound_seconds <= plan.bound.objective_seconds, "seed {seed}: {:?}", plan.bound);
        for reason in &plan.reasons {
            let budget = measured.devices.iter().find(|d| d.node == reason.node).map(|d| d.memory_budget_bytes);
            assert!(Some(reason.fill_memory_bytes.max(reason.train_memory_bytes)) <= budget, "seed {seed}: {}", reason.reason);
        }
        let Some((objective, limits)) = single else { continue };
        alone += 1;
        assert!(plan.bound.objective_seconds <= objective * (1.0 + 1e-9), "seed {seed}: {} s a step, alone {objective} s", plan.bound.objective_seconds);
        assert!(plan.fill_step_seconds <= limits.first_epoch_step * (1.0 + 1e-9), "seed {seed}: {plan:?}");
        assert!(plan.train_step_seconds <= limits.train_step * (1.0 + 1e-9), "seed {seed}: {plan:?}");
    }
    println!("{planned} of {count} households have a plan, {shared} of them with several devices; in {alone} one device could do it alone");
    assert!(planned > count / 2 && shared > count / 10 && alone > count / 2, "the draws are of all sorts");
}
