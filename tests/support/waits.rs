//! Waits with a deadline.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses the parts it needs"
)]

use std::{future::Future, time::Duration};

/// Far above anything seen, far below patience.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub async fn within<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(DEADLINE, what)
        .await
        .expect("nothing happened before the deadline")
}

/// Polls until `done`; for what no event announces.
pub async fn eventually(mut done: impl FnMut() -> bool) {
    within(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Yields until `done`, for so many turns: with the clock paused, no deadline would ever pass.
pub async fn in_turns(mut done: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if done() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("nothing happened in so many turns");
}
