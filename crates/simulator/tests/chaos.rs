//! A sample of the chaos schedules; `barycenter simulate --chaos 10000` runs all of them.

use barycenter_simulator::chaos;

/// Schedules per test: a few hundred take seconds.
const SCHEDULES: u64 = 300;

#[test]
fn every_schedule_ends_with_the_samples_of_a_quiet_household() {
    let mut with_stores = 0;
    for seed in 0..SCHEDULES {
        match std::panic::catch_unwind(|| chaos::run(&mut chaos::schedule(seed))) {
            Ok(outcome) => with_stores += usize::from(outcome.with_stores > 0),
            Err(panic) => {
                eprintln!("schedule {seed} failed; rerun it: {}", chaos::rerun_command(seed));
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(with_stores > 20, "in {with_stores} schedules devices kept entries for others");
}
