//! The platform on tokio.

use std::sync::LazyLock;
use std::time::Duration;
use tokio::time::Instant;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

pub fn spawn_local(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(task);
}

/// Without a thread the task is dropped, and whoever waits for it is told by its channels.
pub fn spawn_apart<T: Future<Output = ()> + 'static>(name: &str, task: impl FnOnce() -> T + Send + 'static) {
    let run = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, async { task().await }),
        Err(error) => log::error!("a thread could not be set up: {error}"),
    };
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(run) {
        log::error!("a thread could not be started: {error}");
    }
}

pub async fn sleep(millis: u32) {
    tokio::time::sleep(Duration::from_millis(u64::from(millis))).await;
}

pub fn now_millis() -> f64 {
    START.elapsed().as_secs_f64() * 1e3
}

pub async fn yield_now() {
    tokio::task::yield_now().await;
}
