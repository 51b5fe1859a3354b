//! Re-planning: on drift and on join, with hysteresis, make before break, and the price of a change counted in.

use barycenter_core::coordinator::RunProgress;
use barycenter_core::io::{Micros, SECOND};
use barycenter_core::planner::FillWish;
use barycenter_protocol::control::PhaseKind;
use barycenter_simulator::chaos::{LIMIT, random_links, small_run};
use barycenter_simulator::house::House;
use barycenter_simulator::{Act, DeviceSpec, World};

/// So slow that sharing pays even over slow links: a fill step takes seconds, a train step half a second.
fn laptop() -> DeviceSpec {
    DeviceSpec::new("laptop", 5.0, 1_000_000_000, 1_000_000_000)
}

/// Three laptops, two of them on, and a run of 40 steps an epoch.
fn household(seed: u64, epochs: u32) -> World {
    let mut start = small_run(4, 640, 0, 16, epochs);
    start.wait_for_nodes = 2;
    let mut world = World::new(seed, start, random_links(seed, vec![laptop(); 3]));
    world.at(0, Act::On(0));
    world.at(0, Act::On(1));
    world.at(SECOND, Act::Start);
    world
}

fn to_epoch(world: &mut World, epoch: u32, step: u32) {
    assert!(world.run_until(LIMIT, |w| w.recorded_steps().contains_key(&(epoch, step))));
}

fn finish(world: &mut World) -> Micros {
    assert!(world.run_until(10 * LIMIT, World::is_done), "state {:?}, {:#?}", world.state(), world.events);
    world.check_done();
    world.now
}

/// Slots of a device in the newest plan's train phase.
fn share(world: &World, device: usize) -> u32 {
    let plan = world.plans().pop().expect("a plan").1;
    plan.train.iter().find(|m| world.device_of(m.node) == Some(device)).map_or(0, |m| m.slots.end - m.slots.start)
}

fn redone(world: &World) -> usize {
    world.steps_done() - world.recorded_steps().len()
}

#[test]
fn a_device_that_slows_down_for_good_gets_a_smaller_share() {
    let mut world = household(1, 4);
    to_epoch(&mut world, 1, 5);
    let (before, plans) = (share(&world, 1), world.plans().len());
    assert_eq!(before, 8);
    world.at(world.now, Act::Slow(1, 2.5));
    finish(&mut world);
    assert_eq!(world.plans().len(), plans + 1, "one change: {:#?}", world.events);
    assert!((1..=5).contains(&share(&world, 1)), "{}", share(&world, 1));
    assert!(redone(&world) <= 3, "{} steps redone", redone(&world));
}

#[test]
fn in_the_fill_epoch_too_the_layers_move_away_from_a_device_that_slows_down() {
    let mut world = household(2, 2);
    to_epoch(&mut world, 0, 3);
    world.at(world.now, Act::Slow(0, 5.0));
    to_epoch(&mut world, 0, 39);
    let plans = world.plans();
    let work = |plan: &barycenter_protocol::plan::Plan| -> u32 {
        let of = |s: &barycenter_protocol::plan::Stage| s.members.iter().find(|m| world.device_of(m.node) == Some(0)).map_or(0, |m| (m.slots.end - m.slots.start) * (s.layers.end - s.layers.start));
        plan.stages.iter().map(of).sum()
    };
    assert!(plans.len() >= 2, "{:#?}", world.events);
    assert!(work(&plans[0].1) > 2 * work(&plans[1].1), "{:?}", plans.iter().map(|p| work(&p.1)).collect::<Vec<_>>());
    finish(&mut world);
}

#[test]
fn a_passing_slowness_changes_no_plan() {
    let mut world = household(3, 3);
    to_epoch(&mut world, 1, 5);
    let plans = world.plans().len();
    for at in 0..6 {
        // three slow steps of every dozen
        let begin = world.now + at * 6 * SECOND;
        world.at(begin, Act::Slow(1, 3.0));
        world.at(begin + SECOND, Act::Slow(1, 1.0));
    }
    finish(&mut world);
    assert_eq!(world.plans().len(), plans, "{:#?}", world.events);
}

#[test]
fn the_same_slowness_everywhere_changes_no_plan() {
    let mut world = household(4, 3);
    to_epoch(&mut world, 1, 5);
    let plans = world.plans().len();
    for device in 0..3 {
        world.at(world.now, Act::Slow(device, 2.0));
    }
    finish(&mut world);
    assert_eq!(world.plans().len(), plans, "{:#?}", world.events);
}

#[test]
fn a_drift_shortly_before_the_end_is_not_worth_a_change() {
    let mut world = household(5, 2);
    to_epoch(&mut world, 1, 28);
    let plans = world.plans().len();
    world.at(world.now, Act::Slow(1, 1.5));
    finish(&mut world);
    assert_eq!(world.plans().len(), plans, "{:#?}", world.events);
}

/// A newcomer whose weights take long to arrive.
fn with_slow_newcomer(seed: u64) -> World {
    let mut start = small_run(4, 960, 0, 16, 2);
    start.wait_for_nodes = 1;
    let mut house = random_links(seed, vec![laptop(), DeviceSpec { name: "newcomer".into(), ..laptop() }]);
    house.network.default_link.bytes_per_second = 3e6; // to the server: 32 MB of weights in ten seconds
    let mut world = World::new(seed, start, house);
    world.at(0, Act::On(0));
    world.at(0, Act::Start);
    world
}

#[test]
fn a_newcomer_gets_ready_while_the_others_go_on_and_takes_part_before_the_epoch_ends() {
    let mut world = with_slow_newcomer(6);
    to_epoch(&mut world, 0, 4);
    let joined = world.now;
    world.at(joined, Act::On(1));
    assert!(world.run_until(LIMIT, |w| w.plans().len() > 1), "{:#?}", world.events);
    let changed = world.now;
    let steps = |from: Micros, to: Micros| world.progress.iter().filter(|(at, p)| (from..to).contains(at) && matches!(p, RunProgress::Step(_))).count();
    assert!(changed - joined > 8 * SECOND, "it had to fetch its weights first");
    assert!(steps(joined, changed) > 1, "the other went on meanwhile");
    assert!(world.plans()[1].1.nodes().len() == 2);
    assert!(world.run_until(LIMIT, |w| w.phase().is_some()));
    assert_eq!(world.phase(), Some(PhaseKind::Fill), "in the middle of the fill epoch");
    assert!(world.now - changed < 2 * SECOND, "nobody waits for weights after the change");
    finish(&mut world);
    assert!(redone(&world) <= 6, "{} steps redone", redone(&world));
}

#[test]
fn a_newcomer_that_leaves_before_it_is_ready_disturbs_nobody() {
    let mut world = with_slow_newcomer(7);
    to_epoch(&mut world, 0, 4);
    world.at(world.now, Act::On(1));
    world.at(world.now + 4 * SECOND, Act::Close(1));
    finish(&mut world);
    assert!(world.events.iter().any(|(_, _, text)| text.contains("gets ready while")));
    assert_eq!(world.plans().iter().filter(|(_, p)| p.nodes().len() > 1).count(), 0);
    assert_eq!(redone(&world), 0);
}

#[test]
fn a_newcomer_that_cannot_get_ready_is_left_out_with_its_reason() {
    let mut world = with_slow_newcomer(8);
    to_epoch(&mut world, 0, 4);
    for _ in 0..3 {
        world.at(world.now, Act::Fail(1));
    }
    world.at(world.now, Act::On(1));
    finish(&mut world);
    assert!(world.events.iter().any(|(_, _, text)| text.contains("graphics device was lost")));
}

#[test]
fn who_comes_in_the_last_epoch_changes_nothing() {
    let mut start = small_run(4, 640, 5, 16, 2);
    start.wait_for_nodes = 2;
    start.plan.use_all_nodes = true;
    let mut world = World::new(9, start, random_links(9, vec![laptop(); 3]));
    world.at(0, Act::On(0));
    world.at(0, Act::On(1));
    world.at(SECOND, Act::Start);
    to_epoch(&mut world, 1, 20);
    let plans = world.plans().len();
    world.at(world.now, Act::On(2));
    finish(&mut world);
    assert_eq!(world.plans().len(), plans, "{:#?}", world.events);
    assert_eq!(redone(&world), 0);
}

/// Laptops of which one is too many, all at work, in an epoch of 40 steps.
fn with_laptops(laptops: usize, change: impl FnOnce(&mut House)) -> World {
    let mut start = small_run(4, 640, 0, 16, 3);
    start.wait_for_nodes = laptops as u32;
    start.plan.use_all_nodes = true;
    start.plan.min_stages = laptops as u32 - 1;
    let mut house = random_links(11, vec![laptop(); laptops]);
    change(&mut house);
    let mut world = World::new(11, start, house);
    for device in 0..laptops {
        world.at(0, Act::On(device));
    }
    world.at(SECOND, Act::Start);
    world
}

/// The second of them does something at a step: leaves in one way, or in the other.
fn with_leaver(laptops: usize, act: Act, at: (u32, u32)) -> World {
    let mut world = with_laptops(laptops, |_| ());
    to_epoch(&mut world, at.0, at.1);
    world.at(world.now, act);
    world
}

fn phases(world: &World, wanted: PhaseKind) -> usize {
    world.progress.iter().filter(|(_, p)| matches!(p, RunProgress::Phase { phase, .. } if *phase == wanted)).count()
}

/// When steps were done from `since` on.
fn steps_since(world: &World, since: Micros) -> Vec<Micros> {
    world.progress.iter().filter(|(at, p)| *at >= since && matches!(p, RunProgress::Step(_))).map(|(at, _)| *at).collect()
}

/// The longest time after `since` in which the run came no further: no step was done that had not been done before.
fn pause(world: &World, since: Micros) -> Micros {
    let mut reached = None;
    let mut times = vec![since];
    for (at, progress) in &world.progress {
        let RunProgress::Step(step) = progress else { continue };
        if reached < Some(step.optimiser_steps) {
            reached = Some(step.optimiser_steps);
            times.extend((*at > since).then_some(*at));
        }
    }
    times.windows(2).map(|two| two[1] - two[0]).max().expect("steps are done")
}

#[test]
fn who_says_that_it_leaves_hands_its_part_over_while_the_run_goes_on_and_no_step_is_done_twice() {
    for (laptops, at) in [2, 3].into_iter().flat_map(|n| [(0, 4), (0, 16), (1, 4), (1, 16)].map(|at| (n, at))) {
        let mut world = with_leaver(laptops, Act::Leave(1), at);
        let said = world.now;
        assert!(world.run_until(LIMIT, |w| w.node_of(1).is_none()), "{:#?}", world.events);
        let gone = world.now;
        assert!(gone - said < 20 * SECOND, "{at:?}: let go after {} ms", (gone - said) / 1000);
        assert!(!steps_since(&world, said).is_empty(), "{at:?}: steps are done meanwhile");
        finish(&mut world);
        assert_eq!(redone(&world), 0, "{at:?}: {:#?}", world.events);
        assert_eq!(phases(&world, PhaseKind::Refill), 0, "{at:?}: its entries were moved, not computed again");
        assert_eq!(world.plans().last().map(|(_, plan)| plan.nodes().len()), Some(laptops - 1));

        let mut sudden = with_leaver(laptops, Act::Close(1), at);
        finish(&mut sudden);
        let (announced, sudden) = (pause(&world, said), pause(&sudden, said));
        println!("one of {laptops} left at {at:?}: gone after {} ms, the run came no further for {} ms, without a word for {} ms", (gone - said) / 1000, announced / 1000, sudden / 1000);
        assert!(announced < sudden, "{at:?}: {announced} µs, {sudden} µs without a word");
    }
}

#[test]
fn frozen_layers_that_others_take_over_are_fetched_while_the_run_goes_on() {
    let leave = |act: Act| {
        let mut world = with_laptops(3, |house| house.network.default_link.bytes_per_second = 1e6); // to the server: 8 s a layer
        to_epoch(&mut world, 0, 4);
        let said = world.now;
        world.at(said, act);
        assert!(world.run_until(LIMIT, |w| w.node_of(1).is_none()), "{:#?}", world.events);
        let gone = world.now;
        finish(&mut world);
        (world, said, gone)
    };
    let (world, said, gone) = leave(Act::Leave(1));
    assert!(gone - said > 8 * SECOND, "it waited for them: {} ms", (gone - said) / 1000);
    assert!(steps_since(&world, said).iter().filter(|at| **at < gone).count() >= 4, "{:#?}", world.events);
    assert_eq!(redone(&world), 0);
    let (sudden, at, _) = leave(Act::Close(1));
    let (announced, sudden) = (pause(&world, said), pause(&sudden, at));
    println!("the run came no further for {} ms, without a word for {} ms", announced / 1000, sudden / 1000);
    assert!(announced + 8 * SECOND < sudden, "{announced} µs, {sudden} µs without a word");
}

#[test]
fn what_a_leaver_computed_in_a_refill_is_not_computed_again() {
    // what is left to compute after somebody has left in the middle
    let left = |act: Act| {
        let mut world = with_laptops(3, |_| ());
        world.start.plan.fill = FillWish::ForwardOnly;
        assert!(world.run_until(LIMIT, |w| w.phase() == Some(PhaseKind::Refill)));
        world.run_to(world.now + 20 * SECOND);
        assert_eq!(world.phase(), Some(PhaseKind::Refill));
        world.at(world.now, act);
        finish(&mut world);
        let counts = world.events.iter().filter_map(|(_, _, text)| text.strip_prefix("Computing the cache entries of ")?.split(' ').next()?.parse::<u32>().ok());
        counts.collect::<Vec<_>>()
    };
    let (announced, sudden) = (left(Act::Leave(1)), left(Act::Close(1)));
    println!("samples to compute: {announced:?}, without a word {sudden:?}");
    assert_eq!((announced.len(), announced[0], sudden[0]), (2, 640, 640));
    assert!(announced[1] + 100 < sudden[1], "{announced:?}, without a word {sudden:?}");
}

#[test]
fn a_leaver_whose_plug_is_pulled_meanwhile_is_lost_like_any_other() {
    let mut world = with_leaver(3, Act::Leave(1), (0, 16));
    world.at(world.now + 100_000, Act::PullPlug(1));
    assert!(world.run_until(LIMIT, |w| w.events.iter().any(|(_, _, text)| text.contains("is gone: the others"))), "{:#?}", world.events);
    finish(&mut world);
}

#[test]
fn a_leaver_that_stands_still_is_waited_for_a_minute_at_most() {
    let mut world = with_leaver(3, Act::Freeze(1), (0, 16));
    let said = world.now;
    world.at(said, Act::Leave(1));
    assert!(world.run_until(LIMIT, |w| w.node_of(1).is_none()), "{:#?}", world.events);
    assert!(world.now - said <= 61 * SECOND, "{} ms", (world.now - said) / 1000);
    finish(&mut world);
}

#[test]
fn two_that_leave_one_after_the_other_hand_over_to_the_third() {
    let mut world = with_laptops(3, |_| ());
    world.start.plan.min_stages = 1;
    to_epoch(&mut world, 1, 4);
    world.at(world.now, Act::Leave(1));
    world.at(world.now + SECOND / 5, Act::Leave(2));
    assert!(world.run_until(LIMIT, |w| w.node_of(1).is_none() && w.node_of(2).is_none()), "{:#?}", world.events);
    finish(&mut world);
    assert_eq!((redone(&world), phases(&world, PhaseKind::Refill)), (0, 0), "{:#?}", world.events);
}

#[test]
fn among_devices_of_an_older_version_who_leaves_goes_at_once() {
    let mut world = with_laptops(2, |_| ());
    world.version.minor = 1;
    to_epoch(&mut world, 1, 4);
    let said = world.now;
    world.at(said, Act::Leave(1));
    assert!(world.run_until(LIMIT, |w| w.node_of(1).is_none()), "{:#?}", world.events);
    assert!(world.now - said < SECOND / 10, "{} ms", (world.now - said) / 1000);
    finish(&mut world);
}

#[test]
fn a_page_closed_without_a_word_costs_steps_and_cache_entries() {
    for at in [(0, 16), (1, 16)] {
        let mut world = with_leaver(2, Act::Close(1), at);
        finish(&mut world);
        assert!(redone(&world) > 0, "{at:?}");
        assert!(phases(&world, PhaseKind::Refill) > 0, "{at:?}");
    }
}

#[test]
fn who_has_no_part_may_go_at_once() {
    let mut world = with_slow_newcomer(12);
    to_epoch(&mut world, 0, 4);
    world.at(world.now, Act::On(1));
    world.run_to(world.now + SECOND);
    let (said, plans) = (world.now, world.plans().len());
    world.at(said, Act::Leave(1));
    assert!(world.run_until(LIMIT, |w| w.node_of(1).is_none()));
    assert!(world.now - said < SECOND / 10, "{} ms", (world.now - said) / 1000);
    finish(&mut world);
    assert_eq!((world.plans().len() - plans, redone(&world)), (1, 0), "the train plan, and none for the leaver");
}

#[test]
fn the_last_device_may_go_at_once_and_the_run_waits() {
    let mut world = with_leaver(2, Act::Leave(1), (1, 4));
    assert!(world.run_until(LIMIT, |w| w.node_of(1).is_none()));
    to_epoch(&mut world, 1, 20);
    let said = world.now;
    world.at(said, Act::Leave(0));
    assert!(world.run_until(LIMIT, |w| w.node_of(0).is_none()));
    assert!(world.now - said < SECOND / 10);
    world.at(world.now + 20 * SECOND, Act::On(0));
    finish(&mut world);
}
