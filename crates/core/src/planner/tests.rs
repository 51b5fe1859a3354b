mod brute_force;
mod households;

use super::shares::shares;
use super::*;
use crate::cost::{Dimensions, model_cost};
use barycenter_protocol::plan::{DeviceProfile, LinkProfile};
use proptest::prelude::*;

fn dimensions() -> Dimensions {
    Dimensions { layers: 6, width: 192, heads: 6, kv_heads: 6, head_dim: 32, ffn_width: 512, vocab: 2048, reduction: 8, weight_bytes: 4, mean_tokens: 32, tied_head: true, gated: true, tap_every: 1 }
}

fn options() -> PlanOptions {
    PlanOptions { model: "demo".into(), min_stages: 1, use_all_nodes: false, mean_tokens: 32.0, max_tokens: 64, mean_labels: 12.0, cache_bytes: 50_000_000, ..PlanOptions::default() }
}

fn device(node: u32, gflops: f64, memory: u64) -> DeviceProfile {
    DeviceProfile { node: NodeId(node), name: format!("d{node}"), gflops, memory_budget_bytes: memory, storage_budget_bytes: 1 << 40 }
}

/// A full mesh of equal links.
fn household(devices: Vec<DeviceProfile>, round_trip_millis: f64, bytes_per_second: f64) -> Measurements {
    let nodes: Vec<_> = devices.iter().map(|d| d.node).collect();
    let pairs = nodes.iter().flat_map(|a| nodes.iter().filter(move |b| a < *b).map(move |b| (*a, *b)));
    let links = pairs.map(|(a, b)| LinkProfile { a, b, round_trip_millis, bytes_per_second }).collect();
    Measurements { devices, links }
}

const GB: u64 = 1_000_000_000;

#[test]
fn a_strong_device_is_left_alone_by_weak_ones_over_a_slow_link() {
    let m = household(vec![device(1, 2000.0, 8 * GB), device(2, 5.0, GB), device(3, 5.0, GB)], 20.0, 2e6);
    let plan = plan(&model_cost(&dimensions()), &m, 16, &options()).expect("a plan");
    assert_eq!(plan.nodes(), [NodeId(1)]);
    assert_eq!(plan.fill_step_seconds, plan.single_device_fill_step_seconds);
    assert!(plan.reasons[1].reason.contains("slow the others down"), "{}", plan.reasons[1].reason);
    assert_eq!(plan.reasons.len(), 3);
}

#[test]
fn a_model_too_large_for_each_device_is_split_and_stays_within_memory() {
    let mut d = dimensions();
    (d.width, d.ffn_width, d.layers) = (1024, 4096, 8);
    let cost = model_cost(&d);
    let whole = plan(&cost, &household(vec![device(1, 50.0, 8 * GB)], 5.0, 1e7), 8, &options()).expect("fits");
    let needed = whole.reasons[0].fill_memory_bytes;
    let m = household(vec![device(1, 50.0, needed * 6 / 10), device(2, 50.0, needed * 7 / 10)], 5.0, 1e7);
    let plan = plan(&cost, &m, 8, &options()).expect("a plan");
    assert_eq!(plan.stages.len(), 2);
    for (reason, device) in plan.reasons.iter().zip(&m.devices) {
        assert!(reason.fill_memory_bytes <= device.memory_budget_bytes && reason.train_memory_bytes <= device.memory_budget_bytes);
        assert!(reason.fill_memory_bytes > 0 && reason.reason.contains("stage"));
    }
}

#[test]
fn too_little_memory_is_said_with_the_bytes_and_the_model() {
    let m = household(vec![device(1, 50.0, 1_000_000)], 5.0, 1e7);
    let error = plan(&model_cost(&dimensions()), &m, 8, &options()).expect_err("too small").to_string();
    assert!(error.contains("demo") && error.contains("MB") && error.contains("missing"), "{error}");
    let mut m = household(vec![device(1, 50.0, GB)], 5.0, 1e7);
    m.devices[0].storage_budget_bytes = 1000;
    let error = plan(&model_cost(&dimensions()), &m, 8, &options()).expect_err("no storage").to_string();
    assert!(error.contains("cache") && error.contains("50 MB"), "{error}");
    let mut m = household(vec![device(1, 50.0, 1_000), device(2, 50.0, GB)], 5.0, 1e7);
    m.devices[1].storage_budget_bytes = 1000;
    let error = plan(&model_cost(&dimensions()), &m, 8, &options()).expect_err("one lacks memory, the other storage").to_string();
    assert!(error.contains("cache") && error.contains("1 kB"), "{error}");
    assert_eq!(plan(&model_cost(&dimensions()), &Measurements::default(), 8, &options()), Err(PlanError::NoDevices));
}

/// What the sentence says a model needs is what one device needs, to the byte.
#[test]
fn the_memory_that_a_job_needs_is_enough_for_one_device_and_less_is_not() {
    for fill in [FillWish::Hybrid, FillWish::ForwardOnly, FillWish::Fastest] {
        let options = PlanOptions { fill, ..options() };
        let with = |memory: u64| plan(&model_cost(&dimensions()), &household(vec![device(1, 50.0, memory)], 5.0, 1e7), 8, &options);
        let Err(PlanError::Memory { needed_bytes, offered_bytes, missing_bytes, .. }) = with(1_000_000) else { panic!("a megabyte is too little") };
        assert!(with(needed_bytes).is_ok() && with(needed_bytes - 1).is_err(), "{fill:?}: {needed_bytes}");
        assert!(offered_bytes == 1_000_000 && (needed_bytes..needed_bytes * 102 / 100).contains(&(offered_bytes + missing_bytes)), "{fill:?}: {missing_bytes}");
    }
}

/// The host waits for the answer: for a large household too it takes a few looks at memory and storage, and no search.
#[test]
fn a_large_household_is_refused_after_few_looks() {
    let mut d = dimensions();
    (d.layers, d.width, d.ffn_width) = (30, 4096, 11_008);
    let m = household((1..=30).map(|i| device(i, 20.0 + f64::from(i), 100_000_000)).collect(), 3.0, 2e7);
    let options = PlanOptions { weight_bits: 32, fill: FillWish::Fastest, ..options() };
    let looked_at = std::cell::Cell::new(0);
    let error = super::missing::space_error_counting(&model_cost(&d), &m, 16, &options, &looked_at);
    assert!(matches!(&error, PlanError::Memory { remedy, .. } if remedy.contains("would do")), "{error}");
    assert!((2..=50).contains(&looked_at.get()), "{} looks", looked_at.get());
    assert_eq!(plan(&model_cost(&d), &m, 16, &options), Err(error));
}

#[test]
fn a_device_without_storage_fills_no_cache() {
    let mut m = household(vec![device(1, 50.0, GB), device(2, 50.0, GB)], 0.1, 1e9);
    m.devices[0].storage_budget_bytes = 1000;
    let options = PlanOptions { min_stages: 2, ..options() };
    let plan = plan(&model_cost(&dimensions()), &m, 8, &options).expect("the other one can do it alone");
    assert!(plan.stages.iter().flat_map(|s| &s.members).chain(&plan.train).all(|member| member.node == NodeId(2)), "{plan:?}");
    assert!(plan.reasons[0].reason.contains("store"), "{}", plan.reasons[0].reason);
}

#[test]
fn shares_follow_speed_and_stay_below_caps() {
    assert_eq!(shares(&[30.0, 10.0], &[99, 99], 16, false), Some(vec![12, 4]));
    assert_eq!(shares(&[30.0, 10.0], &[8, 99], 16, false), Some(vec![8, 8]));
    assert_eq!(shares(&[30.0, 10.0], &[4, 4], 16, false), None);
    assert_eq!(shares(&[1000.0, 1.0], &[99, 99], 4, true), Some(vec![3, 1]));
    assert_eq!(shares(&[1000.0, 1.0], &[99, 99], 4, false), None, "nobody is in a group for nothing");
}

#[test]
fn the_demo_may_ask_for_stages_and_for_everybody() {
    let m = household(vec![device(1, 2000.0, 8 * GB), device(2, 20.0, GB), device(3, 20.0, GB)], 1.0, 1e8);
    let wishes = PlanOptions { min_stages: 2, use_all_nodes: true, ..options() };
    let plan = plan(&model_cost(&dimensions()), &m, 16, &wishes).expect("a plan");
    assert!(plan.stages.len() >= 2);
    assert_eq!(plan.train.len(), 3);
    assert_eq!(plan.stages.iter().map(|s| s.members.len()).sum::<usize>(), 3);
}

#[test]
fn equal_devices_on_a_fast_network_share_the_work() {
    let mut d = dimensions();
    (d.width, d.ffn_width) = (768, 3072);
    let m = household((1..=4).map(|i| device(i, 50.0, 8 * GB)).collect(), 0.5, 1e9);
    let plan = plan(&model_cost(&d), &m, 16, &options()).expect("a plan");
    assert!(plan.fill_step_seconds < 0.5 * plan.single_device_fill_step_seconds, "{} of {}", plan.fill_step_seconds, plan.single_device_fill_step_seconds);
    assert_eq!(plan.train.len(), 4);
}

#[test]
fn unlinked_devices_are_not_planned_with() {
    let mut m = household((1..=3).map(|i| device(i, 50.0, 8 * GB)).collect(), 0.5, 1e9);
    m.links.retain(|l| (l.a, l.b) != (NodeId(1), NodeId(3)));
    let subset = linked_subset(&m);
    assert_eq!(subset.devices.len(), 2);
    assert!(subset.devices.iter().any(|d| d.node == NodeId(2)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn shares_of_a_plan_are_whole(speeds in proptest::collection::vec(1.0f64..500.0, 1..5), rtt in 0.2f64..50.0, bps in 1e5f64..1e8, batch in 1u32..20) {
        let m = household(speeds.iter().enumerate().map(|(i, s)| device(i as u32 + 1, *s, GB)).collect(), rtt, bps);
        let plan = plan(&model_cost(&dimensions()), &m, batch, &options()).expect("all have the memory");
        prop_assert!(plan.fill_step_seconds <= plan.single_device_fill_step_seconds * 1.000001);
        for members in plan.stages.iter().map(|s| &s.members).chain([&plan.train]) {
            prop_assert_eq!(members[0].slots.start, 0);
            prop_assert_eq!(members.last().map(|m| m.slots.end), Some(batch));
            prop_assert!(members.windows(2).all(|w| w[0].slots.end == w[1].slots.start));
        }
        prop_assert_eq!(plan.stages.last().map(|s| s.layers.end), Some(6));
    }
}

#[test]
fn a_deep_model_on_four_devices_is_planned_whole() {
    let mut d = dimensions();
    (d.layers, d.width, d.ffn_width) = (32, 2048, 8192);
    let m = household((1..=4).map(|i| device(i, 40.0 * f64::from(i), 3 * GB + u64::from(i) * GB)).collect(), 3.0, 2e7);
    let plan = plan(&model_cost(&d), &m, 16, &options()).expect("a plan");
    let held: u32 = plan.stages.iter().map(|stage| stage.layers.end - stage.layers.start).sum();
    assert_eq!(held, 32, "every layer has an owner");
    assert_eq!(plan.single_device_fill_step_seconds, 0.0, "it fits on none of them alone");
    for reason in &plan.reasons {
        let budget = m.devices.iter().find(|d| d.node == reason.node).map(|d| d.memory_budget_bytes);
        assert!(Some(reason.fill_memory_bytes) <= budget, "{}", reason.reason);
    }
}
