//! Waits with a deadline.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses the parts it needs"
)]

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

/// Far above anything seen, far below patience.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub async fn within<F: Future>(what: F) -> F::Output {
    let waited = in_time(DEADLINE, what).await;
    waited.expect("nothing happened before the deadline")
}

/// As `tokio::time::timeout`, which polls once more when time is up, and so takes what nobody was woken for.
pub async fn in_time<F: Future>(limit: Duration, what: F) -> Option<F::Output> {
    let mut up = pin!(tokio::time::sleep(limit));
    let mut what = pin!(what);
    poll_fn(|cx| match up.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => what.as_mut().poll(cx).map(Some),
    })
    .await
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
