//! How long operations take on a back end that may work behind our back.

use crate::backend::{Backend, BackendError};
use crate::op::{BufferId, Op};

/// Wall-clock time that one window of repetitions should fill: long against a submit and short for a person.
const WINDOW_MILLIS: f64 = 100.0;
/// Windows, of which the best counts: other programs on the machine only ever slow one down.
const WINDOWS: usize = 3;
/// Repetitions in a window at most, so that a clock that stands still ends.
const MAX_REPEATS: u32 = 500;

/// Milliseconds of one operation whose output is `output`; `now_millis` is a clock.
///
/// # Errors
/// Those of [`Backend::read`]: the device went away.
pub(super) async fn millis_of(backend: &dyn Backend, op: &Op, output: BufferId, now_millis: &impl Fn() -> f64) -> Result<f64, BackendError> {
    let timed = async |repeats: u32| {
        let start = now_millis();
        for _ in 0..repeats {
            backend.run(op.clone());
        }
        backend.read(output, 0, 1).await?;
        Ok::<f64, BackendError>((now_millis() - start) / f64::from(repeats))
    };
    // The first run compiles the kernel, the second says how many fill a window.
    timed(1).await?;
    let once = timed(1).await?;
    let repeats = (WINDOW_MILLIS / once.max(0.01)).clamp(1.0, f64::from(MAX_REPEATS)) as u32;
    let mut best = f64::INFINITY;
    for _ in 0..WINDOWS {
        best = best.min(timed(repeats).await?);
    }
    Ok(best)
}
