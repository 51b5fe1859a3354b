use crate::paper::planner::*;
use crate::paper::timing::one_forward_one_backward;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::ops::Range;

/// A random instance: up to 4 devices of different speed and memory, up to 7 layers.
fn problem(seed: u64) -> Problem {
    let mut random = Pcg64::seed_from_u64(seed);
    let mut unit = || f64::from(random.next_u32()) / f64::from(u32::MAX);
    let (devices, layers) = (1 + (unit() * 3.99) as usize, 2 + (unit() * 5.99) as usize);
    let mut weight = |scale: f64| LayerWeight { parameters_gib: scale * unit(), gradients_gib: scale * unit(), activations_gib: 0.1 * scale * unit() };
    let (first, last) = (weight(0.3), weight(0.3));
    let weights = (0..layers).map(|_| weight(1.0)).collect();
    let mut device = || Device {
        memory_gib: 1.0 + 5.0 * unit(),
        forward: (0..layers).map(|_| 0.1 + unit()).collect(),
        backward: (0..layers).map(|_| 0.1 + unit()).collect(),
    };
    Problem {
        layers: weights,
        first,
        last,
        workspace_gib: 0.01,
        devices: (0..devices).map(|_| device()).collect(),
        boundary_bytes: (1e6, 1e5),
        network: Network { bytes_per_second: 1e8, hidden_share: 0.0 },
        frozen_backbone: false,
        whole_micro_batches: false,
    }
}

/// All ways to cut 0..end into `parts` non-empty ranges.
fn cuts(end: usize, parts: usize) -> Vec<Vec<Range<usize>>> {
    if parts == 1 {
        return vec![vec![0..end; 1]];
    }
    let tails = (parts - 1..end).flat_map(|cut| {
        cuts(cut, parts - 1).into_iter().map(move |mut head| {
            head.push(cut..end);
            head
        })
    });
    tails.collect()
}

/// Equation 3, written again.
fn seconds(problem: &Problem, stage: &Stage, micro_batch: f64) -> f64 {
    let share = micro_batch / stage.devices.len() as f64;
    let edge = |l: &LayerWeight| l.parameters_gib + l.gradients_gib + share * l.activations_gib;
    let mut memory = share * problem.workspace_gib;
    for layer in stage.layers.clone() {
        memory += edge(&problem.layers[layer]);
    }
    if stage.layers.start == 0 {
        memory += edge(&problem.first);
    } else if stage.layers.end == problem.layers.len() {
        memory += edge(&problem.last);
    }
    let mut slowest = 0.0f64;
    for device in &problem.devices[stage.devices.clone()] {
        if memory > device.memory_gib || share < 1.0 {
            return f64::INFINITY;
        }
        slowest = slowest.max(stage.layers.clone().map(|l| share * (device.forward[l] + device.backward[l])).sum());
    }
    slowest
}

/// The smallest W over every staging, without recurrence.
fn brute_force(problem: &Problem, stages: usize, micro_batch: f64) -> Option<f64> {
    if stages > problem.layers.len() || stages > problem.devices.len() {
        return None;
    }
    let groups = cuts(problem.devices.len(), stages);
    let mut best = f64::INFINITY;
    for layers in cuts(problem.layers.len(), stages) {
        for devices in &groups {
            let slowest = layers.iter().zip(devices).map(|(l, d)| seconds(problem, &Stage { layers: l.clone(), devices: d.clone() }, micro_batch)).fold(0.0, f64::max);
            best = best.min(slowest);
        }
    }
    best.is_finite().then_some(best)
}

#[test]
fn recurrence_equals_brute_force() {
    let (mut fitting, mut refused) = (0, 0);
    for seed in 0..400 {
        let problem = problem(seed);
        for stages in 1..=4 {
            let found = problem.staging(stages, 4.0);
            let expected = brute_force(&problem, stages, 4.0);
            match (&found, expected) {
                (Some(staging), Some(slowest)) => {
                    fitting += 1;
                    assert!((staging.slowest - slowest).abs() < 1e-9 * slowest, "seed {seed}, {stages} stages: {} instead of {slowest}", staging.slowest);
                    // the stages it names have that time, are contiguous and use every device
                    let again = staging.stages.iter().map(|s| seconds(&problem, s, 4.0)).fold(0.0, f64::max);
                    assert!(again <= slowest * (1.0 + 1e-8), "seed {seed}");
                    assert_eq!(staging.grouping().iter().sum::<usize>(), problem.devices.len(), "seed {seed}");
                    assert_eq!(staging.stages.iter().map(|s| s.layers.len()).sum::<usize>(), problem.layers.len(), "seed {seed}");
                }
                (None, None) => refused += 1,
                _ => panic!("seed {seed}, {stages} stages: {found:?} instead of {expected:?}"),
            }
        }
    }
    // both kinds occur often
    assert!(fitting > 300 && refused > 300, "{fitting} fit, {refused} do not");
}

#[test]
fn equal_devices_and_layers_are_split_evenly() {
    let layer = LayerWeight { parameters_gib: 0.1, gradients_gib: 0.0, activations_gib: 0.0 };
    let device = Device { memory_gib: 0.9, forward: vec![1.0; 12], backward: vec![1.0; 12] };
    let problem = Problem {
        layers: vec![layer; 12],
        first: LayerWeight::default(),
        last: LayerWeight::default(),
        workspace_gib: 0.0,
        devices: vec![device; 4],
        boundary_bytes: (0.0, 0.0),
        network: Network { bytes_per_second: 1e8, hidden_share: 0.0 },
        frozen_backbone: false,
        whole_micro_batches: false,
    };
    // twelve layers do not fit on one device; of the stagings in two stages, all equally fast, the lowest peak is even
    let plan = problem.plan(4.0, 1..=4, |stages| if stages == 1 { 1 } else { 2 }).expect("two stages fit");
    assert_eq!(plan.staging.grouping(), [2, 2]);
    assert_eq!(plan.staging.stages[0].layers, 0..6);
    // L_b = 6, L_e = 2 · 12, L_n = 6
    assert_eq!(plan.phases, Phases { beginning: 6.0, execution: 24.0, ending: 6.0 });
}

#[test]
fn balanced_1f1b_has_the_textbook_length() {
    for (stages, micro_batches) in [(1, 4), (2, 2), (3, 8), (4, 4), (4, 1)] {
        let in_flight: Vec<_> = (0..stages).map(|i| (stages - i) as f64).collect();
        let length = one_forward_one_backward(&vec![(1.0, 2.0); stages], &in_flight, (0.0, 0.0), micro_batches);
        assert_eq!(length, 3.0 * (micro_batches + stages - 1) as f64, "{stages} stages, {micro_batches} micro-batches");
    }
}

#[test]
fn one_micro_batch_in_flight_runs_stage_after_stage() {
    let length = one_forward_one_backward(&[(1.0, 2.0); 3], &[1.0, 1.0, 1.0], (0.5, 0.25), 4);
    assert_eq!(length, 4.0 * (9.0 + 2.0 * 0.75));
}

#[test]
fn room_for_a_part_of_a_micro_batch_is_used_while_a_stage_waits() {
    let play = |first: f64| one_forward_one_backward(&[(4.0, 1.0), (2.0, 1.0)], &[first, 1.0], (0.0, 0.0), 2);
    // one after the other, 2 · (4 + 2 + 1 + 1); half of the second forward takes 2 of the 3 s in which the first stage waits;
    // more than those 3 cannot be done meanwhile; with room for both, the second forward delays the first backward by 1 s
    assert_eq!([1.0, 1.5, 1.9, 2.0].map(play), [16.0, 14.0, 13.0, 12.0]);
}
