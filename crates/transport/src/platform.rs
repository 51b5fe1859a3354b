//! Clock, timers and tasks: tokio natively, the event loop of the page or Worker in browsers.

#[cfg(not(target_arch = "wasm32"))]
#[path = "platform/native.rs"]
mod imp;
#[cfg(target_arch = "wasm32")]
#[path = "platform/web.rs"]
mod imp;

/// Runs a task on this thread. Natively it must be called inside a `tokio::task::LocalSet`.
pub fn spawn_local(task: impl Future<Output = ()> + 'static) {
    imp::spawn_local(task);
}

/// Runs a task where the work of this thread does not hold it up: natively on a thread of its own, in browsers here.
pub fn spawn_apart<T: Future<Output = ()> + 'static>(name: &str, task: impl FnOnce() -> T + Send + 'static) {
    imp::spawn_apart(name, task);
}

/// Ends after `millis`; at once for 0, but never in the same turn of the loop.
pub async fn sleep(millis: u32) {
    imp::sleep(millis).await;
}

/// Milliseconds since an arbitrary start; never goes back.
pub fn now_millis() -> f64 {
    imp::now_millis()
}

/// Lets everything else that is ready run once: timers and messages from outside too.
pub async fn yield_now() {
    imp::yield_now().await;
}

/// The result of `task`, or `None` if it takes longer than `millis`.
pub async fn timeout<T>(millis: u32, task: impl Future<Output = T>) -> Option<T> {
    let (task, sleep) = (std::pin::pin!(task), std::pin::pin!(sleep(millis)));
    match futures::future::select(task, sleep).await {
        futures::future::Either::Left((value, _)) => Some(value),
        futures::future::Either::Right(_) => None,
    }
}
