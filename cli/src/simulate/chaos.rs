//! `barycenter simulate --chaos N`.

use anyhow::{Result, bail};
use barycenter_simulator::chaos::{Outcome, rerun_command, run as run_schedule, schedule};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Schedules between two lines that say how far it is.
const REPORT_EVERY: u64 = 1000;

/// Runs the schedules of seeds 0 … n − 1 on all cores.
pub fn run(schedules: u64) -> Result<ExitCode> {
    let (next, started) = (AtomicU64::new(0), Instant::now());
    let total = Mutex::new((Outcome::default(), 0u64));
    let failed = Mutex::new(None::<u64>);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= schedules || failed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                return;
            }
            match catch_unwind(|| run_schedule(&mut schedule(seed))) {
                Ok(outcome) => {
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    let sum = &mut total.0;
                    *sum = Outcome {
                        micros: sum.micros + outcome.micros,
                        plans: sum.plans + outcome.plans,
                        steps: sum.steps + outcome.steps,
                        redone: sum.redone + outcome.redone,
                        with_stores: sum.with_stores + outcome.with_stores,
                    };
                    total.1 += 1;
                    if total.1.is_multiple_of(REPORT_EVERY) {
                        println!("{:>6} schedules, {:.0} s", total.1, started.elapsed().as_secs_f64());
                    }
                }
                Err(_) => {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(seed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some(seed) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        bail!("schedule {seed} failed; rerun it: {}", rerun_command(seed));
    }
    let (sum, count) = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{count} schedules, every invariant held, every run counted the samples of a quiet one: {} plans (in {} devices kept entries for others), {} steps of which {} redone, {:.0} hours of household time in {:.0} s",
        sum.plans,
        sum.with_stores,
        sum.steps,
        sum.redone,
        sum.micros as f64 / 3.6e9,
        started.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// Runs one schedule and tells what happens.
pub fn tell(seed: u64) -> Result<ExitCode> {
    let mut world = schedule(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| run_schedule(&mut world)));
    for entry in barycenter_simulator::report(&world).timeline {
        println!("{:>9.3} s  {}", entry.seconds, entry.text);
    }
    match outcome {
        Ok(outcome) => println!("done after {:.1} s: {} plans, {} steps of which {} redone", outcome.micros as f64 / 1e6, outcome.plans, outcome.steps, outcome.redone),
        Err(_) => bail!("schedule {seed} failed at {:.3} s", world.now as f64 / 1e6),
    }
    Ok(ExitCode::SUCCESS)
}
