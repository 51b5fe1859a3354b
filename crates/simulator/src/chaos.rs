//! Chaos: random households under random joins, leaves, stalls, partitions and server restarts.
//!
//! Every schedule ends with everything mended and a laptop that could do the run alone; the run must then be done with the
//! same samples counted as in a quiet household, and the invariants must have held after every event.

use crate::house::{DeviceSpec, House, LinkSpec};
use crate::world::{Act, MILLI, World};
use barycenter_core::coordinator::RunStart;
use barycenter_core::io::{Micros, SECOND};
use barycenter_core::planner::PlanOptions;
use barycenter_protocol::RunId;
use barycenter_protocol::control::{RunSpec, SampleSize};
use barycenter_protocol::plan::{LayerCost, ModelCost};
use std::collections::{BTreeMap, BTreeSet};

/// Faults end here.
const MENDED: Micros = 80 * SECOND;
/// What the planner is told of the cache of a small run.
const CACHE_BYTES: u64 = 1_000_000;
/// A run that is not done by then has stopped.
pub const LIMIT: Micros = 1800 * SECOND;

/// What a schedule came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Virtual time.
    pub micros: Micros,
    /// Plans that were in force.
    pub plans: usize,
    /// Steps applied, redone ones counted again.
    pub steps: usize,
    /// Steps that were redone.
    pub redone: usize,
    /// Plans in which devices kept entries for others.
    pub with_stores: usize,
}

/// A run over a model of some equal layers (128 wide, side network 16).
pub fn small_run(layers: u32, samples: u32, held_out: u32, batch: u32, epochs: u32) -> RunStart {
    let layer = LayerCost { forward_flops: 2e7, side_forward_flops: 1e6, side_backward_flops: 2e6, weight_bytes: 8_000_000, adapter_parameters: 20_000, activation_bytes: 4000, taps: 1 };
    let spec = RunSpec {
        model: "tiny".into(),
        model_hash: "m".into(),
        dataset: "home".into(),
        dataset_hash: "d".into(),
        train_samples: samples,
        held_out_samples: held_out,
        sample_sizes: (0..samples + held_out).map(|i| SampleSize { tokens: 10 + i % 7, labels: 2 + i % 3 }).collect(),
        layers,
        tap_every: 1,
        cache: Default::default(),
        reduction: 8,
        batch,
        epochs,
        learning_rate: 1e-3,
        warmup_steps: 3,
        weight_decay: 0.0,
        clip_norm: 1.0,
        seed: 5,
        checkpoint_steps: 3,
        gradients: Default::default(),
        weights: Default::default(),
    };
    let cost = ModelCost { layers: vec![layer; layers as usize], embedding: LayerCost { taps: 1, ..LayerCost::default() }, head: LayerCost::default(), width: 128, side_width: 16, shared_bytes: 0 };
    let plan = PlanOptions { model: "tiny".into(), min_stages: 1, use_all_nodes: false, mean_tokens: 13.0, max_tokens: 16, mean_labels: 3.0, cache_bytes: CACHE_BYTES, ..PlanOptions::default() };
    RunStart { run: RunId(1), spec, cost, plan, wait_for_nodes: 1 }
}

/// The same run with every `every`-th layer tapped: the others have no part in the side network.
pub fn thin(start: &mut RunStart, every: u32) {
    start.spec.tap_every = every;
    let tapped: Vec<u32> = start.spec.tapped().collect();
    (1..).zip(&mut start.cost.layers).filter(|(layer, _)| !tapped.contains(layer)).for_each(|(_, cost)| *cost = cost.untapped());
}

/// A device that can do a small run alone.
pub fn laptop() -> DeviceSpec {
    DeviceSpec::new("laptop", 100.0, 1_000_000_000, 1_000_000_000)
}

/// One that can hold a part of the model.
pub fn phone() -> DeviceSpec {
    DeviceSpec::new("phone", 40.0, 40_000_000, 1_000_000_000)
}

/// One with a large disk that can hold no layer and not train: it keeps cache entries for others.
pub fn disk() -> DeviceSpec {
    DeviceSpec::new("NAS", 2.0, 1_500_000, 1_000_000_000)
}

/// Devices with 1–31 ms and 5 MB/s between any two.
pub fn random_links(world_seed: u64, devices: Vec<DeviceSpec>) -> House {
    let mut state = world_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let base = LinkSpec { bytes_per_second: 5e6, latency: 10 * MILLI, jitter: 2 * MILLI, loss_per_hour: 0.0 };
    let count = devices.len();
    let mut house = House::with_link(devices, base);
    for (a, b) in (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))) {
        house.network.links.insert((a, b), LinkSpec { latency: MILLI + random() % (30 * MILLI), ..base });
    }
    house
}

/// The household, the run and the script of a seed.
pub fn schedule(seed: u64) -> World {
    let mut dice = World::new(seed, small_run(1, 1, 0, 1, 1), House::with_link(Vec::new(), LinkSpec { bytes_per_second: 1.0, latency: 0, jitter: 0, loss_per_hour: 0.0 }));
    let mut below = |n: u64| dice.below(n);
    let count = 2 + below(3) as usize;
    let mut devices: Vec<_> = (0..count)
        .map(|_| match below(4) {
            0 => phone(),
            1 => DeviceSpec { memory_bytes: 25_000_000 + below(40_000_000), ..phone() },
            _ => DeviceSpec::new("computer", 20.0 + below(200) as f64, 1_000_000_000, 1_000_000_000),
        })
        .collect();
    // in every fourth household only one device has storage worth the name, and cannot train
    if seed % 4 == 3 {
        devices.iter_mut().for_each(|d| d.storage_bytes = CACHE_BYTES * (seed / 4 % 5) / 10);
        devices[0] = disk();
    }
    let rescue = devices.len();
    devices.push(laptop());
    let mut start = small_run(2 + below(4) as u32, 10 + below(40) as u32, below(8) as u32, 1 + below(6) as u32, 1 + below(4) as u32);
    start.plan.min_stages = 1 + below(3) as u32;
    start.plan.use_all_nodes = below(2) == 0;
    start.spec.checkpoint_steps = below(6) as u32;
    thin(&mut start, 1 + (seed % 3) as u32);
    let mut house = random_links(seed, devices);
    if below(4) == 0 {
        house.network.links.values_mut().for_each(|link| link.loss_per_hour = 60.0);
    }
    let mut world = World::new(seed, start, house);
    // steps between milliseconds and seconds, so that faults meet every moment of a run
    world.pace = 1.0 + below(40) as f64;
    for device in 0..count {
        world.at(below(2000) * MILLI, Act::On(device));
    }
    world.at(500 * MILLI, Act::Start);
    for _ in 0..1 + below(12) {
        let at = SECOND + below(40_000) * MILLI;
        let back = at + 100 * MILLI + below(15_000) * MILLI;
        let a = below(count as u64) as usize;
        let b = (a + 1 + below(count as u64 - 1) as usize) % count;
        let fault = match below(15) {
            0 => (Act::Close(a), Act::On(a)),
            12..=14 => (Act::Leave(a), Act::On(a)),
            1 => (Act::PullPlug(a), Act::On(a)),
            2 => (Act::Freeze(a), Act::Thaw(a)),
            3 => (Act::Slow(a, 2.0 + below(30) as f64), Act::Slow(a, 1.0)),
            4 | 5 => (Act::Cut(a, b), Act::Mend(a, b)),
            6 => (Act::ServerDown, Act::ServerUp),
            7 => (Act::Pause, Act::Resume),
            8 => (Act::LoseCache(a), Act::On(a)),
            9 => (Act::Fail(a), Act::LoseCache(a)),
            10 => (Act::Partition(BTreeSet::from([a, b])), Act::Heal),
            // a device drifts: slower, and for the rest of the run
            _ => (Act::Slow(a, 1.2 + below(8) as f64), Act::Slow(a, 1.2 + below(3) as f64)),
        };
        let mended = if matches!(fault.0, Act::Freeze(_)) { back + 20 * SECOND } else { back };
        world.at(at, fault.0);
        world.at(mended, fault.1);
    }
    // connections that break once a minute would, in the end, be mended by a person too: the laptop needs none
    for act in [Act::ServerUp, Act::Heal, Act::Resume, Act::On(rescue)] {
        world.at(MENDED, act);
    }
    world
}

/// Runs a schedule to its end.
///
/// # Panics
/// Where an invariant does not hold, the run does not end, or other samples counted than in a quiet household.
pub fn run(world: &mut World) -> Outcome {
    let done = world.run_until(LIMIT, World::is_done);
    let last = || world.events.iter().rev().take(12).rev().collect::<Vec<_>>();
    assert!(done, "not done at {} s, state {:?}; last events: {:#?}", world.now / SECOND, world.state(), last());
    world.check_done();
    let (counted, quiet) = (world.samples_counted(), quiet_twin(world));
    assert!(counted == quiet, "other samples counted than in a quiet household");
    let steps = world.steps_done();
    let plans = world.plans();
    let with_stores = plans.iter().filter(|(_, plan)| !plan.stores.is_empty()).count();
    Outcome { micros: world.now, plans: plans.len(), steps, redone: steps - world.recorded_steps().len(), with_stores }
}

/// The command that runs one schedule again and tells what happens in it.
pub fn rerun_command(seed: u64) -> String {
    format!("cargo run --release -p barycenter -- simulate --chaos-seed {seed}")
}

/// What the same run counts on one laptop that nothing happens to.
fn quiet_twin(world: &World) -> BTreeMap<(u32, u32, u32), u32> {
    let mut quiet = World::new(0, world.start.clone(), random_links(0, vec![laptop()]));
    quiet.at(0, Act::On(0));
    quiet.at(0, Act::Start);
    assert!(quiet.run_until(LIMIT, World::is_done), "a quiet household does the run");
    quiet.samples_counted()
}
