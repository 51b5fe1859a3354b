//! The platform on tokio.

use std::sync::LazyLock;
use std::time::Duration;
use tokio::time::Instant;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

pub fn spawn_local(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(task);
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
