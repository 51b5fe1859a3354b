//! A sample of the chaos schedules; `barycenter simulate --chaos 10000` runs all of them.

use barycenter_simulator::chaos;

/// Schedules per test: a few hundred take seconds.
const SCHEDULES: u64 = 300;

#[test]
fn every_schedule_ends_with_the_samples_of_a_quiet_household() {
    for seed in 0..SCHEDULES {
        if let Err(panic) = std::panic::catch_unwind(|| chaos::run(&mut chaos::schedule(seed))) {
            eprintln!("schedule {seed} failed; rerun it: {}", chaos::rerun_command(seed));
            std::panic::resume_unwind(panic);
        }
    }
}
