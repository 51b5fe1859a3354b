//! Threads in a browser, which only the page's script can start: each is a worker with this module and its memory.

use rayon::{ThreadBuilder, ThreadPoolBuilder};
use std::sync::{Condvar, Mutex, PoisonError};

/// Places in the pool that no worker has taken yet.
static PLACES: Mutex<Vec<ThreadBuilder>> = Mutex::new(Vec::new());
static OFFERED: Condvar = Condvar::new();

/// Makes the calling thread one of `threads` that compute; the others are already waiting in [`compute_until_the_end`]:
/// without them this call would not return.
///
/// # Errors
/// When there is a pool already.
pub fn share_with(threads: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    let offer = |place: ThreadBuilder| {
        PLACES.lock().unwrap_or_else(PoisonError::into_inner).push(place);
        OFFERED.notify_one();
        Ok(())
    };
    ThreadPoolBuilder::new().num_threads(threads).use_current_thread().spawn_handler(offer).build_global()
}

/// Takes a place in the pool as soon as one is offered, and computes until the worker is ended.
pub fn compute_until_the_end() {
    let places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut places = OFFERED.wait_while(places, |places| places.is_empty()).unwrap_or_else(PoisonError::into_inner);
    let place = places.pop();
    drop(places);
    if let Some(place) = place {
        place.run();
    }
}
