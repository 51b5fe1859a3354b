//! The household in virtual time: what a run does when devices are slow, late, gone, frozen or cut off.
//!
//! The invariants are checked after every event (`World::run_until`).

use barycenter_core::coordinator::RunProgress;
use barycenter_core::io::{Micros, SECOND};
use barycenter_core::planner::FillWish;
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::{FromNode, GenerateRequest, PhaseKind, StepReport};
use barycenter_simulator::chaos::{LIMIT, disk, laptop, phone, random_links, schedule, small_run};
use barycenter_simulator::{Act, DeviceSpec, LinkWork, MILLI, World, report};

/// A household whose devices are on from the start, and a run that starts when they are linked.
fn household(seed: u64, devices: Vec<DeviceSpec>, min_stages: u32) -> World {
    let mut start = small_run(4, 22, 5, 4, 3);
    start.plan.min_stages = min_stages;
    start.plan.use_all_nodes = min_stages > 1;
    start.wait_for_nodes = devices.len() as u32;
    let count = devices.len();
    let mut world = World::new(seed, start, random_links(seed, devices));
    for device in 0..count {
        world.at(device as Micros * 100 * MILLI, Act::On(device));
    }
    world.at(SECOND, Act::Start);
    world
}

fn finish(world: &mut World) {
    let done = world.run_until(LIMIT, World::is_done);
    assert!(done, "not done at {} s, state {:?}; last events: {:#?}", world.now / SECOND, world.state(), world.events.iter().rev().take(12).rev().collect::<Vec<_>>());
    world.check_done();
    let spec = &world.start.spec;
    let steps = spec.train_samples.div_ceil(spec.batch);
    let wanted: Vec<_> = (0..spec.epochs).flat_map(|e| (0..steps).map(move |s| (e, s))).collect();
    let recorded = world.recorded_steps();
    assert!(recorded.keys().all(|k| wanted.contains(k)));
}

fn all_recorded(world: &World) {
    let spec = &world.start.spec;
    assert_eq!(world.recorded_steps().len() as u32, spec.epochs * spec.train_samples.div_ceil(spec.batch));
    assert_eq!(world.epochs_recorded().into_iter().collect::<Vec<_>>(), (0..spec.epochs).collect::<Vec<_>>());
    assert_eq!(world.held_out_recorded().into_iter().collect::<Vec<_>>(), (0..spec.epochs).collect::<Vec<_>>());
}

#[test]
fn one_device_does_the_whole_run_alone() {
    let mut world = household(1, vec![laptop()], 1);
    finish(&mut world);
    all_recorded(&world);
    assert_eq!(world.sent_to_peers, 0);
}

#[test]
fn a_cache_may_be_filled_by_forward_passes_and_all_epochs_trained_from_it() {
    let mut world = household(2, vec![laptop(), laptop(), laptop()], 2);
    world.start.plan.fill = FillWish::ForwardOnly;
    finish(&mut world);
    all_recorded(&world);
    let began = |wanted: PhaseKind| world.progress.iter().filter(|(_, p)| matches!(p, RunProgress::Phase { phase, .. } if *phase == wanted)).count();
    assert_eq!((began(PhaseKind::Fill), began(PhaseKind::Refill), began(PhaseKind::Train)), (0, 1, 3));
}

#[test]
fn a_report_of_a_step_that_the_run_does_not_have_is_nobodys() {
    let mut world = household(1, vec![laptop()], 1);
    assert!(world.run_until(LIMIT, |w| w.phase() == Some(PhaseKind::Train) && w.steps_done() > 7));
    let generation = world.progress.iter().rev().find_map(|(_, p)| if let RunProgress::Planned { generation, .. } = p { Some(*generation) } else { None }).unwrap();
    for (epoch, step) in [(u32::MAX, u32::MAX), (u32::MAX, 0), (0, u32::MAX), (3, 0)] {
        let report = StepReport { generation, epoch, step, loss_sum: 1.0, tokens: 1, samples: Vec::new(), backbone_seconds: 0.0, side_seconds: 0.0, wait_seconds: 0.0, gradient_norm: 1.0 };
        world.forge(0, FromNode::StepDone(report));
    }
    finish(&mut world);
    all_recorded(&world);
}

#[test]
fn three_devices_fill_as_a_pipeline_and_train_together() {
    let mut world = household(2, vec![laptop(), laptop(), laptop()], 2);
    finish(&mut world);
    all_recorded(&world);
    let plans = world.plans();
    assert!(plans[0].1.stages.len() >= 2);
    assert_eq!(plans.last().expect("a plan").1.train.len(), 3);
    assert_eq!(plans.len(), 2, "one plan to fill, one to train");
    for kind in ["activations", "side gradients", "adapter gradients", "cache"] {
        let bytes: u64 = world.meter.bytes().iter().filter(|((_, _, k), _)| *k == kind).map(|(_, b)| b).sum();
        assert!(bytes > 0, "no {kind}: {:?}", world.meter.bytes());
    }
}

#[test]
fn losses_do_not_depend_on_the_devices() {
    let mut one = household(3, vec![laptop()], 1);
    let mut three = household(3, vec![laptop(), phone(), laptop()], 2);
    finish(&mut one);
    finish(&mut three);
    assert_eq!(one.recorded_steps(), three.recorded_steps());
}

#[test]
fn a_phone_too_small_for_the_model_holds_some_layers() {
    let mut world = household(4, vec![DeviceSpec { memory_bytes: 30_000_000, ..phone() }; 2], 1);
    finish(&mut world);
    assert_eq!(world.plans()[0].1.stages.len(), 2);
}

#[test]
fn node_lost_in_the_middle_of_a_backward_pass_is_replaced() {
    let mut world = household(5, vec![laptop(), laptop(), laptop()], 3);
    let lost = |w: &World| (0..3).find(|d| w.steps_done() > 1 && w.is_in_backward(*d));
    assert!(world.run_until(LIMIT, |w| lost(w).is_some()));
    let (device, at) = (lost(&world).expect("in a backward pass"), world.now);
    world.at(at, Act::Close(device));
    assert!(world.run_until(LIMIT, |w| w.plans().len() > 1));
    assert!(world.now - at < SECOND, "a closed page is noticed at once");
    finish(&mut world);
    all_recorded(&world);
}

#[test]
fn a_pulled_plug_is_noticed_within_five_seconds() {
    for epoch in 0..2 {
        let mut world = household(6, vec![laptop(), laptop(), laptop()], 2);
        assert!(world.run_until(LIMIT, |w| w.steps_done() as u32 > 6 * epoch + 2));
        let (at, plans) = (world.now, world.plans().len());
        world.at(at, Act::PullPlug(1));
        assert!(world.run_until(LIMIT, |w| w.plans().len() > plans));
        assert!(world.now - at <= 5 * SECOND, "noticed after {} ms", (world.now - at) / MILLI);
        finish(&mut world);
        all_recorded(&world);
    }
}

#[test]
fn a_slow_peer_slows_the_run_and_ends_nothing() {
    let mut world = household(7, vec![laptop(), laptop(), laptop()], 2);
    world.at(2 * SECOND, Act::Slow(1, 30.0));
    finish(&mut world);
    all_recorded(&world);
    assert_eq!(world.plans().len(), 2);
}

#[test]
fn a_device_that_stands_still_is_dropped_and_may_come_back() {
    let mut world = household(8, vec![laptop(), laptop(), laptop()], 2);
    assert!(world.run_until(LIMIT, |w| w.steps_done() > 3));
    let (at, plans) = (world.now, world.plans().len());
    world.at(at, Act::Freeze(0));
    world.at(at + 60 * SECOND, Act::Thaw(0));
    assert!(world.run_until(LIMIT, |w| w.plans().len() > plans));
    assert!((25 * SECOND..45 * SECOND).contains(&(world.now - at)), "dropped after {} s", (world.now - at) / SECOND);
    assert!(world.events.iter().any(|(_, _, text)| text.contains("stood still")));
    finish(&mut world);
}

#[test]
fn a_cut_between_two_devices_keeps_the_better_connected() {
    let mut world = household(9, vec![laptop(), laptop(), laptop()], 2);
    assert!(world.run_until(LIMIT, |w| w.steps_done() > 2));
    let at = world.now;
    world.at(at, Act::Cut(0, 1));
    world.at(at + 20 * SECOND, Act::Mend(0, 1));
    finish(&mut world);
    all_recorded(&world);
    assert!(world.plans()[1].1.nodes().len() == 2);
}

/// Three laptops, the third still off, in epoch 1 of a run that everybody is to take part in.
fn two_of_three_at_work(epochs: u32) -> World {
    let mut start = small_run(4, 80, 5, 4, epochs);
    start.plan.use_all_nodes = true;
    let mut world = World::new(10, start, random_links(10, vec![laptop(), laptop(), laptop()]));
    world.at(0, Act::On(0));
    world.at(0, Act::On(1));
    world.at(SECOND, Act::Start);
    assert!(world.run_until(LIMIT, |w| w.recorded_steps().contains_key(&(1, 2))));
    world
}

#[test]
fn a_late_device_is_used_from_the_next_epoch_on() {
    let mut world = two_of_three_at_work(4);
    let plans = world.plans().len();
    world.at(world.now, Act::On(2));
    finish(&mut world);
    all_recorded(&world);
    let later = &world.plans()[plans..];
    assert_eq!(later.len(), 1);
    assert!(later[0].1.train.len() == 3);
    let redone = world.progress.iter().filter(|(_, p)| matches!(p, RunProgress::Step(s) if s.epoch == 1)).count();
    assert_eq!(redone, 20, "no step is redone");
}

#[test]
fn a_late_device_whose_links_take_longer_than_an_epoch_is_still_used() {
    let mut world = two_of_three_at_work(60);
    for end in [0, 1] {
        world.at(world.now, Act::Cut(end, 2));
    }
    world.at(world.now, Act::On(2));
    assert!(world.run_until(LIMIT, |w| w.recorded_steps().contains_key(&(3, 2))));
    assert!(world.plans().iter().all(|(_, plan)| plan.train.len() == 2), "it cannot be used yet");
    for end in [0, 1] {
        world.at(world.now, Act::Mend(end, 2));
    }
    finish(&mut world);
    all_recorded(&world);
    assert!(world.plans().last().is_some_and(|(_, plan)| plan.train.len() == 3));
}

#[test]
fn a_server_restart_resumes_the_run_where_it_was() {
    for steps in [3, 8, 15] {
        let mut world = household(11, vec![laptop(), laptop(), laptop()], 2);
        assert!(world.run_until(LIMIT, |w| w.steps_done() >= steps));
        let before = world.checkpoint();
        world.at(world.now, Act::ServerDown);
        world.at(world.now + 3 * SECOND, Act::ServerUp);
        let at = world.now;
        assert!(world.run_until(LIMIT, |w| w.steps_done() > steps));
        assert!(world.now - at < 12 * SECOND, "resumed after {} s", (world.now - at) / SECOND);
        assert!(world.checkpoint().map(|c| c.optimiser_steps) >= before.map(|c| c.optimiser_steps));
        finish(&mut world);
        all_recorded(&world);
    }
}

#[test]
fn a_reloaded_page_takes_part_again() {
    let mut world = household(12, vec![laptop(), laptop()], 2);
    world.pace = 10.0;
    assert!(world.run_until(LIMIT, |w| w.steps_done() > 7));
    let at = world.now;
    world.at(at, Act::Close(0));
    world.at(at + SECOND / 2, Act::On(0));
    finish(&mut world);
    all_recorded(&world);
    let node = world.node_of(0).expect("it is back");
    assert!(world.plans().last().expect("a plan").1.nodes().contains(&node));
}

#[test]
fn cache_entries_lost_with_a_device_are_computed_again() {
    let mut world = household(13, vec![laptop(), laptop()], 2);
    assert!(world.run_until(LIMIT, |w| w.phase() == Some(PhaseKind::Train) && w.steps_done() > 8));
    world.at(world.now, Act::LoseCache(1));
    let before = world.progress.len();
    finish(&mut world);
    all_recorded(&world);
    let refills = world.progress[before..].iter().filter(|(_, p)| matches!(p, RunProgress::Phase { phase: PhaseKind::Refill, .. })).count();
    assert_eq!(refills, 1);
    assert!(!world.has_backbone(0), "the frozen layers are gone again in the train phase");
}

#[test]
fn a_refill_fits_into_memory_that_the_frozen_layers_nearly_fill() {
    let mut start = small_run(5, 10, 3, 1, 3);
    start.wait_for_nodes = 2;
    let mut world = World::new(22, start, random_links(22, vec![DeviceSpec { memory_bytes: 25_300_000, ..phone() }; 2]));
    for device in 0..2 {
        world.at(0, Act::On(device));
    }
    world.at(SECOND, Act::Start);
    assert!(world.run_until(LIMIT, |w| w.phase() == Some(PhaseKind::Train) && w.steps_done() > 12));
    assert_eq!(world.plans()[0].1.stages.len(), 2, "three layers on one phone, two on the other");
    world.at(world.now, Act::LoseCache(1));
    let before = world.progress.len();
    finish(&mut world);
    all_recorded(&world);
    assert!(world.progress[before..].iter().any(|(_, p)| matches!(p, RunProgress::Phase { phase: PhaseKind::Refill, .. })));
}

#[test]
fn a_second_run_over_the_same_data_starts_from_the_cache() {
    let mut world = household(14, vec![laptop(), laptop()], 2);
    finish(&mut world);
    world.restart_run();
    let before = world.progress.len();
    world.at(world.now, Act::Start);
    assert!(world.run_until(LIMIT * 2, |w| w.progress.len() > before && w.is_done()));
    world.check_done();
    let fills = world.progress[before..].iter().filter(|(_, p)| matches!(p, RunProgress::Phase { phase: PhaseKind::Fill | PhaseKind::Refill, .. })).count();
    assert_eq!(fills, 0);
}

#[test]
fn pause_starts_no_further_step_and_resume_goes_on() {
    let mut world = household(15, vec![laptop(), laptop()], 2);
    assert!(world.run_until(LIMIT, |w| w.steps_done() > 2));
    world.at(world.now, Act::Pause);
    world.run_to(world.now + SECOND);
    assert_eq!(world.state(), Some(RunState::Paused));
    let steps = world.steps_done();
    world.run_to(world.now + 120 * SECOND);
    assert_eq!(world.steps_done(), steps);
    assert_eq!(world.plans().len(), 1, "nobody is dropped for standing still in a pause");
    world.at(world.now, Act::Resume);
    finish(&mut world);
    all_recorded(&world);
}

#[test]
fn with_nobody_left_the_run_waits_and_goes_on_when_someone_comes() {
    let mut world = household(16, vec![laptop(), laptop()], 2);
    assert!(world.run_until(LIMIT, |w| w.steps_done() > 8));
    for device in 0..2 {
        world.at(world.now, Act::Close(device));
    }
    world.run_to(world.now + 30 * SECOND);
    assert_eq!(world.state(), Some(RunState::Waiting));
    world.at(world.now, Act::On(1));
    finish(&mut world);
    all_recorded(&world);
}

#[test]
fn a_device_that_cannot_do_its_part_is_left_out_for_a_while_with_its_reason() {
    let mut world = household(18, vec![laptop(), laptop()], 2);
    assert!(world.run_until(LIMIT, |w| w.steps_done() > 2));
    world.at(world.now, Act::Fail(0));
    let before = world.plans().len();
    finish(&mut world);
    all_recorded(&world);
    let node = world.node_of(0).expect("it is still here");
    assert!(!world.plans()[before].1.nodes().contains(&node));
    assert!(world.events.iter().any(|(_, _, text)| text.contains("graphics device was lost")));
}

#[test]
fn a_run_that_nobody_can_do_has_failed_with_the_reason() {
    let mut world = household(19, vec![laptop()], 1);
    for _ in 0..3 {
        world.at(0, Act::Fail(0));
    }
    assert!(world.run_until(LIMIT, |w| w.state() == Some(RunState::Failed)));
    assert!(world.progress.iter().any(|(_, p)| matches!(p, RunProgress::State { note, .. } if note.contains("graphics device"))));
}

#[test]
fn stop_ends_the_run_and_a_new_one_may_start() {
    let mut world = household(20, vec![laptop(), laptop()], 2);
    assert!(world.run_until(LIMIT, |w| w.steps_done() > 4));
    world.at(world.now, Act::Stop);
    world.run_to(world.now + SECOND);
    assert_eq!(world.state(), Some(RunState::Stopped));
    let steps = world.steps_done();
    world.run_to(world.now + 20 * SECOND);
    assert_eq!(world.steps_done(), steps);
    world.restart_run();
    world.at(world.now, Act::Start);
    finish(&mut world);
}

#[test]
fn a_model_that_fits_nowhere_waits_and_starts_when_a_larger_device_comes() {
    let mut world = World::new(21, small_run(4, 22, 5, 4, 2), random_links(21, vec![DeviceSpec { memory_bytes: 12_000_000, ..phone() }, laptop()]));
    world.at(0, Act::On(0));
    world.at(SECOND, Act::Start);
    world.run_to(40 * SECOND);
    assert_eq!(world.state(), Some(RunState::Waiting));
    assert!(world.progress.iter().any(|(_, p)| matches!(p, RunProgress::State { note, .. } if note.contains("missing"))));
    world.at(world.now, Act::On(1));
    finish(&mut world);
}

#[test]
fn prompts_are_answered_by_another_device_if_one_leaves() {
    let mut world = household(17, vec![laptop(), DeviceSpec { gflops: 200.0, ..laptop() }, phone()], 2);
    world.run_to(SECOND / 2);
    let request = GenerateRequest { request: 7, spec: world.start.spec.clone(), run: None, prompts: vec![vec![1, 2]], max_new_tokens: 3, base: true, tuned: false };
    world.ask(request.clone(), 500_000_000);
    world.at(world.now + 20 * MILLI, Act::Close(1));
    let answered = |w: &World| w.events.iter().find(|(_, _, t)| t.starts_with("answer 7")).map(|e| e.2.clone());
    assert!(world.run_until(LIMIT, |w| answered(w).is_some()));
    let node = world.node_of(0).expect("it is there");
    assert!(answered(&world).expect("an answer").contains(&format!("{node:?}")));
    world.ask(GenerateRequest { request: 8, ..request }, 5_000_000_000);
    assert!(world.events.iter().any(|(_, _, t)| t.starts_with("answer 8: Err") && t.contains("memory")));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut world = schedule(seed).with_trace();
        finish(&mut world);
        world.trace()
    };
    assert_eq!(trace(42), trace(42));
    assert_ne!(trace(42), trace(43));
}

/// Its page is loaded anew, and later the server restarts: its id is another one each time.
#[test]
fn a_device_that_the_run_was_started_without_stays_out_when_it_comes_again() {
    let mut world = household(31, vec![laptop(), laptop(), laptop()], 1);
    world.start.plan.fill = FillWish::Hybrid;
    world.run_to(900 * MILLI);
    let left_out = world.node_of(2).expect("it is on");
    world.start.plan.without = vec![left_out];
    world.run_until(LIMIT, |w| w.steps_done() > 1);
    world.at(world.now, Act::LoseCache(2));
    world.run_until(LIMIT, |w| w.node_of(2).is_some_and(|node| node != left_out));
    let (now, again) = (world.now, world.node_of(2));
    world.at(now + SECOND, Act::ServerDown);
    world.at(now + 3 * SECOND, Act::ServerUp);
    // somebody who takes part leaves: without it the plan is made anew
    world.at(now + 8 * SECOND, Act::Close(1));
    world.run_until(LIMIT, |w| w.now > now + 7 * SECOND && w.node_of(2).is_some_and(|node| Some(node) != again));
    finish(&mut world);
    assert!(world.plans().len() >= 2, "a plan was made after it came again");
    for (at, plan) in world.plans() {
        assert!(plan.nodes().iter().all(|node| world.device_of(*node) != Some(2)), "at {at}: {plan:?}");
    }
}

#[test]
fn a_start_does_not_wait_for_links_of_a_device_that_is_left_out() {
    let first_plan = |without: bool| {
        let mut world = household(34, vec![laptop(), laptop(), laptop()], 1);
        for other in [0, 1] {
            world.at(0, Act::Cut(2, other));
        }
        world.run_to(900 * MILLI);
        world.start.plan.without = world.node_of(2).filter(|_| without).into_iter().collect();
        world.run_until(LIMIT, |w| !w.plans().is_empty());
        world.plans()[0].0
    };
    let (without, with) = (first_plan(true), first_plan(false));
    assert!(without < 2 * SECOND, "{without} µs");
    // a device that may take part is waited for, as its links could come up yet
    assert!(with > without + 5 * SECOND, "{with} µs and {without} µs");
}

/// Two nodes on one core: what encrypts and acknowledges their bytes keeps them from computing.
#[test]
fn links_take_processor_time_of_the_computer_that_nodes_share() {
    let done_at = |per_byte: f64| {
        let mut house = random_links(32, vec![laptop(), laptop()]);
        house.network.default_link.bytes_per_second = 1e9;
        house.network.links.clear();
        house.computers = vec![(1.0, vec![0, 1])];
        for device in &mut house.devices {
            device.link_work = LinkWork { sent_byte_seconds: per_byte, received_byte_seconds: per_byte };
        }
        let mut start = small_run(4, 22, 5, 4, 3);
        (start.plan.min_stages, start.plan.use_all_nodes, start.wait_for_nodes) = (2, true, 2);
        let mut world = World::new(32, start, house);
        (0..2).for_each(|device| world.at(0, Act::On(device)));
        world.at(SECOND, Act::Start);
        finish(&mut world);
        let bytes: u64 = report(&world).links.iter().map(|l| l.activations_bytes + l.side_gradients_bytes + l.adapter_gradients_bytes + l.cache_bytes).sum();
        (world.now, bytes as f64 * 2.0 * per_byte * SECOND as f64)
    };
    let ((free, _), (taken, work)) = (done_at(0.0), done_at(1e-7));
    let longer = taken.saturating_sub(free) as f64;
    assert!(longer > 0.5 * work, "{longer} µs longer, for {work} µs of work");
}

/// Two phones train on entries that a NAS keeps; a laptop, still off, could do the run alone.
fn kept_by_a_disk(seed: u64) -> World {
    let small = DeviceSpec { storage_bytes: 300_000, ..phone() };
    let mut start = small_run(4, 60, 5, 8, 4);
    (start.plan.fill, start.plan.cache_bytes, start.wait_for_nodes) = (FillWish::Fastest, 1_100_000, 3);
    let mut world = World::new(seed, start, random_links(seed, vec![small.clone(), small, disk(), laptop()]));
    world.pace = 10.0;
    (0..3).for_each(|device| world.at(0, Act::On(device)));
    world.at(SECOND, Act::Start);
    world
}

#[test]
fn a_household_whose_trainers_lack_storage_runs_with_one_that_only_stores() {
    let mut world = kept_by_a_disk(40);
    world.pace = 1.0;
    finish(&mut world);
    all_recorded(&world);
    let nas = world.node_of(2).expect("it is on");
    for (_, plan) in world.plans() {
        assert!(plan.stores.iter().any(|m| m.node == nas) && plan.train.iter().all(|m| m.node != nas) && plan.stages.iter().flat_map(|s| &s.members).all(|m| m.node != nas), "{plan:?}");
        let sentence = plan.reasons.iter().find(|r| r.node == nas).map(|r| r.reason.clone()).unwrap_or_default();
        assert!(sentence.contains("keeps the cache entries of") && sentence.contains("computes nothing"), "{sentence}");
    }
    assert_eq!(world.plans().len(), 2, "one to fill, one to train");
    for device in 0..3 {
        assert!(world.stored_bytes(device) <= world.spec(device).storage_bytes);
    }
    let mut alone = World::new(40, world.start.clone(), random_links(40, vec![laptop()]));
    alone.start.wait_for_nodes = 1;
    alone.at(0, Act::On(0));
    alone.at(SECOND, Act::Start);
    finish(&mut alone);
    assert_eq!(world.recorded_steps(), alone.recorded_steps(), "the same losses as on a laptop alone");
}

/// Its page is closed, its plug pulled, or its engine stands still: without it there is no plan until a laptop comes.
#[test]
fn who_keeps_entries_is_missed_while_others_train() {
    for (act, seconds) in [(Act::Close(2), 1), (Act::PullPlug(2), 6), (Act::Freeze(2), 50)] {
        let mut world = kept_by_a_disk(41);
        assert!(world.run_until(LIMIT, |w| w.phase() == Some(PhaseKind::Train) && w.steps_done() > 9));
        let at = world.now;
        world.at(at, act.clone());
        assert!(world.run_until(LIMIT, |w| w.state() == Some(RunState::Waiting)), "{act:?}");
        assert!(world.now - at <= seconds * SECOND, "{act:?} noticed after {} ms", (world.now - at) / MILLI);
        world.at(world.now, Act::On(3));
        finish(&mut world);
        all_recorded(&world);
    }
}

#[test]
fn who_keeps_entries_comes_back_with_them() {
    let mut world = kept_by_a_disk(42);
    assert!(world.run_until(LIMIT, |w| w.phase() == Some(PhaseKind::Train) && w.steps_done() > 9));
    let (at, before) = (world.now, world.progress.len());
    world.at(at, Act::Close(2));
    world.at(at + 3 * SECOND, Act::On(2));
    finish(&mut world);
    all_recorded(&world);
    let refills = world.progress[before..].iter().filter(|(_, p)| matches!(p, RunProgress::Phase { phase: PhaseKind::Refill, .. })).count();
    assert_eq!(refills, 0, "nothing is computed again");
    // and if its disk is lost, everything it kept is
    let mut world = kept_by_a_disk(43);
    assert!(world.run_until(LIMIT, |w| w.phase() == Some(PhaseKind::Train) && w.steps_done() > 9));
    let before = world.progress.len();
    world.at(world.now, Act::LoseCache(2));
    finish(&mut world);
    all_recorded(&world);
    let refills = world.progress[before..].iter().filter(|(_, p)| matches!(p, RunProgress::Phase { phase: PhaseKind::Refill, .. })).count();
    assert_eq!(refills, 1);
}
