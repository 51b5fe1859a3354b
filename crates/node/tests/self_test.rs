//! The self-test's known answers are what the CPU back end computes.

use barycenter_engine::{CpuBackend, Device};
use barycenter_node::self_test::{ANSWERS, TOLERANCE, answers, run};
use std::rc::Rc;

#[test]
fn the_cpu_gives_the_known_answers() {
    let device: Device = Rc::new(CpuBackend::default());
    let got = futures::executor::block_on(answers(&device)).expect("computes");
    eprintln!("answers: {got:?}");
    for (got, known) in got.iter().zip(&ANSWERS) {
        assert!(((got - known) / known).abs() < 1e-4, "{got:?} instead of {known}");
    }
}

#[test]
fn a_measured_speed_is_positive_and_the_error_small() {
    let device: Device = Rc::new(CpuBackend::default());
    let start = std::time::Instant::now();
    let outcome = futures::executor::block_on(run(&device, &|| start.elapsed().as_secs_f64() * 1_000.0)).expect("computes");
    assert!(outcome.gflops > 0.1, "{outcome:?}");
    assert!(outcome.largest_error < TOLERANCE / 10.0, "{outcome:?}");
}
