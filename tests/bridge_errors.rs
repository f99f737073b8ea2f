//! Every misuse of the bridge, and what cannot be had of it, by name: none is a hang.

use std::time::Duration;

use bodyguard::bridge::{BridgeError, BridgeErrorKind as Kind, Context, Cx, Pool};
use tokio::{runtime::Handle, sync::oneshot};

#[path = "support/waits.rs"]
mod waits;
use waits::within;

fn kind<T: std::fmt::Debug>(result: Result<T, BridgeError>) -> Kind {
    result.unwrap_err().kind()
}

/// Sync code that waits for async code that waits for sync code, `left` more times.
fn dive(cx: &Cx, left: usize) -> Result<usize, BridgeError> {
    if left == 0 {
        return Ok(1);
    }
    let bridge = cx.bridge();
    let below =
        cx.block_on(async move { bridge.call(move |cx| dive(cx, left - 1)).await })???;
    Ok(below + 1)
}

#[tokio::test]
async fn nesting_works_to_the_depth_and_errs_beyond() {
    let pool = Pool::builder().max_depth(4).build();
    let context = Context::new(pool);
    let bridge = context.bridge();
    assert_eq!(
        within(bridge.call(|cx| dive(cx, 3)))
            .await
            .unwrap()
            .unwrap(),
        4
    );
    assert_eq!(
        kind(within(bridge.call(|cx| dive(cx, 4))).await.unwrap()),
        Kind::TooDeep
    );
    // And works again after.
    assert_eq!(
        within(bridge.call(|cx| dive(cx, 3)))
            .await
            .unwrap()
            .unwrap(),
        4
    );
    // The default depth fits its threads' stack.
    let context = Context::new(Pool::new());
    assert_eq!(
        within(context.bridge().call(|cx| dive(cx, 15)))
            .await
            .unwrap()
            .unwrap(),
        16
    );
}

#[tokio::test]
async fn recursion_through_another_thread_ends_in_an_error_too() {
    let pool = Pool::builder()
        .max_depth(2)
        .wait_limit(Duration::from_millis(50))
        .build();
    let context = Context::new(pool);
    let bridge = context.bridge();
    let main = Handle::current();
    fn dive_far(cx: &Cx, main: &Handle) -> Result<(), BridgeError> {
        let (bridge, to) = (cx.bridge(), main.clone());
        let far = main.spawn(async move { bridge.call(move |cx| dive_far(cx, &to)).await });
        cx.block_on(far)?.unwrap()?
    }
    let result = within(bridge.call(move |cx| dive_far(cx, &main)))
        .await
        .unwrap();
    assert_eq!(kind(result), Kind::TooDeep);
}

#[tokio::test]
async fn block_on_inside_the_loop_is_an_error() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let inner = bridge.clone();
    let (by_cx, by_bridge) = within(bridge.call(move |cx| {
        cx.block_on(async { (cx.block_on(async {}), inner.block_on(async {})) })
            .unwrap()
    }))
    .await
    .unwrap();
    assert_eq!(kind(by_cx), Kind::InsideLoop);
    assert_eq!(kind(by_bridge), Kind::InsideLoop);
    let inner = bridge.clone();
    let in_task = within(bridge.run(move || async move { inner.block_on(async {}) }))
        .await
        .unwrap();
    assert_eq!(kind(in_task), Kind::InsideLoop);
}

#[tokio::test]
async fn block_on_from_a_foreign_thread_is_an_error() {
    let pool = Pool::new();
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    assert_eq!(kind(bridge.block_on(async {})), Kind::ForeignThread);
    let foreign = bridge.clone();
    let result = std::thread::spawn(move || foreign.block_on(async {}))
        .join()
        .unwrap();
    assert_eq!(kind(result), Kind::ForeignThread);
    // Another request's thread is foreign as well.
    let other = Context::new(pool);
    let result = within(other.bridge().call(move |_| bridge.block_on(async {})))
        .await
        .unwrap();
    assert_eq!(kind(result), Kind::ForeignThread);
    let own = context.bridge();
    let inner = own.clone();
    assert_eq!(
        within(own.call(move |_| inner.block_on(async { 5 })))
            .await
            .unwrap()
            .unwrap(),
        5
    );
}

#[tokio::test]
async fn another_executor_on_the_own_thread_is_an_error() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let inner = bridge.clone();
    let (call, run, task) = within(bridge.call(move |_| {
        use futures_util::FutureExt as _;
        // Any executor that is not the loop polls like this, then blocks for ever.
        let mut task = inner.spawn_local(|| async {});
        (
            inner.call(|_| ()).now_or_never(),
            inner.run(|| async {}).now_or_never(),
            (&mut task).now_or_never(),
        )
    }))
    .await
    .unwrap();
    for result in [call, run, task] {
        assert_eq!(kind(result.unwrap()), Kind::OwnThread);
    }
}

#[tokio::test]
async fn a_look_at_a_task_leaves_it_running() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let seven = within(bridge.call(|cx| {
        use futures_util::FutureExt as _;
        let mut task = cx.spawn_local(async { 7 });
        let early = (&mut task).now_or_never().unwrap();
        assert_eq!(kind(early), Kind::OwnThread);
        cx.block_on(task).unwrap()
    }))
    .await
    .unwrap();
    assert_eq!(seven.unwrap(), 7);
}

#[tokio::test]
async fn after_the_end_everything_is_refused() {
    let pool = Pool::new();
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    within(bridge.call(|_| ())).await.unwrap();
    within(context.close()).await;
    assert_eq!(kind(within(bridge.call(|_| ())).await), Kind::Ended);
    assert_eq!(kind(within(bridge.run(|| async {})).await), Kind::Ended);
    assert_eq!(
        kind(within(bridge.spawn_local(|| async {})).await),
        Kind::Ended
    );
    assert_eq!(kind(bridge.block_on(async {})), Kind::Ended);
    assert_eq!(kind(bridge.defer(|_| ())), Kind::Ended);
    assert_eq!(within(context.close()).await.closers_run(), 0);

    // A context that was closed before anybody used it stays closed.
    let context = Context::new(pool);
    within(context.close()).await;
    assert_eq!(
        kind(within(context.bridge().call(|_| ())).await),
        Kind::Ended
    );
}

#[tokio::test]
async fn the_end_interrupts_code_that_waits() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let (waiting, is_waiting) = oneshot::channel();
    let call = bridge.call(|cx| {
        cx.block_on(async {
            waiting.send(()).unwrap();
            std::future::pending::<()>().await
        })
    });
    let call = Handle::current().spawn(call);
    within(is_waiting).await.unwrap();
    let report = within(context.close()).await;
    assert!(report.stuck().is_none());
    assert_eq!(kind(within(call).await.unwrap().unwrap()), Kind::Ended);
}

#[tokio::test]
async fn an_exhausted_pool_is_an_error_and_the_line_is_kept() {
    let pool = Pool::builder()
        .max_threads(1)
        .wait_limit(Duration::from_millis(50))
        .build();
    let holder = Context::new(pool.clone());
    within(holder.bridge().call(|_| ())).await.unwrap();

    let waiter = Context::new(pool.clone());
    let bridge = waiter.bridge();
    assert_eq!(kind(within(bridge.call(|_| ())).await), Kind::Exhausted);
    assert_eq!(kind(within(bridge.run(|| async {})).await), Kind::Exhausted);
    assert_eq!(
        kind(within(bridge.spawn_local(|| async {})).await),
        Kind::Exhausted
    );
    assert_eq!(pool.waiting(), 0, "those who gave up left the line");
    // Dropped while in line: gone from it, too.
    let mut call = Box::pin(bridge.call(|_| ()));
    assert!(futures_util::poll!(&mut call).is_pending());
    assert_eq!(pool.waiting(), 1);
    drop(call);
    assert_eq!(pool.waiting(), 0);

    // The same bridge works once there is a thread.
    within(holder.close()).await;
    assert_eq!(within(bridge.call(|_| 9)).await.unwrap(), 9);
    assert_eq!(pool.threads(), 1);
}
