//! The households of `assets/households`: each runs, and its chart and report hold together.

use barycenter_core::cost::{Dimensions, model_cost};
use barycenter_core::household::Household;
use barycenter_core::io::{Micros, SECOND};
use barycenter_simulator::{Job, World, gantt, job, report};
use std::path::Path;

/// A model like SmolLM-135M, in f16, with so many layers.
fn dimensions(layers: u32) -> Dimensions {
    Dimensions { layers, width: 576, heads: 9, kv_heads: 3, head_dim: 64, ffn_width: 1536, vocab: 49152, reduction: 8, weight_bytes: 2, mean_tokens: 64, tied_head: true, gated: true, tap_every: 1 }
}

fn run(file: &str, layers: u32) -> World {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/households").join(file);
    let household = Household::parse(&std::fs::read_to_string(path).expect("the file is there")).expect("a household");
    let job = Job { samples: 32, held_out: 4, tokens: 64, labelled: 0.5, batch: 16, epochs: 2, reduction: 8, tap_every: 1, cache: Default::default(), min_stages: 1, use_all_nodes: false, seed: 1 };
    let mut world = job::world(&household, job.start("SmolLM-135M", model_cost(&dimensions(layers))), 1);
    let last_join = household.devices.iter().map(|d| (d.joins_at_seconds * SECOND as f64) as Micros).max().unwrap_or(0);
    job::run_to_end(&mut world, last_join, 24 * 3600 * SECOND).expect("the run ends");
    let report = report(&world);
    assert_eq!((report.state.as_str(), report.epochs.len()), ("done", 2));
    for device in &report.devices {
        let all = device.compute_seconds + device.prepare_seconds + device.send_seconds + device.wait_seconds + device.rest_seconds + device.away_seconds;
        assert!((all - report.seconds).abs() < 1e-3, "{}: {all} of {} s", device.name, report.seconds);
    }
    let svg = gantt(&world, &household.name);
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert!(report.text().contains("AllReduce"));
    world
}

#[test]
fn a_couple_with_two_phones_and_a_laptop() {
    run("couple.json", 30);
}

#[test]
fn a_family_of_seven_devices() {
    run("family.json", 30);
}

#[test]
fn a_classroom_of_thirty_chromebooks() {
    let world = run("classroom.json", 30);
    assert_eq!(world.plans()[0].1.reasons.len(), 30);
}

#[test]
fn a_desktop_with_a_gpu_is_left_alone_by_weak_phones() {
    let world = run("gaming.json", 30);
    assert!(world.plans().iter().all(|(_, plan)| plan.nodes().len() == 1 && world.device_of(plan.nodes()[0]) == Some(0)));
    assert_eq!(world.sent_to_peers, 0);
}

/// Refused before devices kept entries for others: the phones have storage for 14 of 16 samples, and the NAS cannot train.
#[test]
fn two_phones_with_little_storage_train_with_entries_that_a_nas_keeps() {
    let world = run("nas.json", 30);
    let (_, plan) = &world.plans()[0];
    let nas = world.node_of(2).expect("it is on");
    assert!(plan.train.iter().all(|m| m.node != nas) && plan.stores.iter().any(|m| m.node == nas), "{plan:?}");
    for device in 0..world.devices() {
        assert!(world.stored_bytes(device) <= world.spec(device).storage_bytes, "{} stores {} bytes", world.spec(device).name, world.stored_bytes(device));
    }
    let spec = &world.start.spec;
    let counted = world.samples_counted();
    assert_eq!(counted.len() as u32, spec.layers * spec.epochs * spec.train_samples);
    assert!(counted.values().all(|times| *times == 1), "every sample counts once in every layer and epoch");
    let streamed: u64 = world.meter.bytes().iter().filter(|((from, _, kind), _)| *from == 2 && *kind == "cache").map(|(_, bytes)| bytes).sum();
    let predicted: u64 = plan.links.iter().map(|l| l.epoch_stream_bytes).sum();
    let ratio = streamed as f64 / (predicted * u64::from(spec.epochs)) as f64;
    assert!((0.8..1.25).contains(&ratio), "{streamed} bytes in {} epochs, {predicted} predicted for each", spec.epochs);
}

/// One phone and a NAS on a cable, whose bandwidth the planner knows: on a good one the phone's work decides, on a poor one the stream.
#[test]
fn an_epoch_with_streamed_entries_takes_as_long_as_the_plan_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/households/nas.json");
    let mut household = Household::parse(&std::fs::read_to_string(path).expect("the file is there")).expect("a household");
    household.wifi_cells.clear();
    household.devices.remove(1);
    let mut waited = Vec::new();
    for mbit_per_s in [600.0, 40.0] {
        household.default_link.mbit_per_s = mbit_per_s;
        let job = Job { samples: 120, held_out: 0, tokens: 64, labelled: 0.5, batch: 12, epochs: 3, reduction: 8, tap_every: 1, cache: Default::default(), min_stages: 1, use_all_nodes: false, seed: 1 };
        let mut world = job::world(&household, job.start("SmolLM-135M", model_cost(&dimensions(30))), 1);
        job::run_to_end(&mut world, 0, 24 * 3600 * SECOND).expect("the run ends");
        let (_, plan) = world.plans().pop().expect("a plan");
        assert!(!plan.stores.is_empty() && plan.train.len() == 1, "{plan:?}");
        for epoch in &report(&world).epochs {
            let ratio = epoch.seconds / (10.0 * plan.train_step_seconds);
            assert!((0.85..1.15).contains(&ratio), "{mbit_per_s} Mbit/s: epoch {} took {} s, predicted {}", epoch.epoch, epoch.seconds, 10.0 * plan.train_step_seconds);
        }
        waited.push(plan.train_step_seconds);
    }
    assert!(waited[1] > 1.5 * waited[0], "the poor link decides how long a step takes: {waited:?}");
}

#[test]
fn the_papers_rack_of_jetson_nanos() {
    run("jetson-rack.json", 30);
}
