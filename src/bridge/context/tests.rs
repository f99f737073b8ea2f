//! What only the inside can ask for.

use std::sync::mpsc;

use super::{super::error::BridgeErrorKind, *};
use crate::waits::in_time;

const LIMIT: Duration = Duration::from_secs(20);

async fn within<F: Future>(what: F) -> F::Output {
    in_time(LIMIT, what).await.expect("nothing happened")
}

#[test]
fn a_close_in_the_middle_of_the_first_use_holds() {
    let context = Context::new(Pool::new());
    context.session.get_or_init(|| {
        drop(context.close());
        Session::alone(context.pool.clone())
    });
    assert!(context.bridge().is_ended());
}

#[tokio::test]
async fn a_thread_that_died_is_no_clean_close() {
    let (alive, closed) = oneshot::channel();
    let mut close = Context::new(Pool::new()).close();
    close.closed = Some(closed);
    drop(alive);
    let report = close.await;
    let failure: &Failure = report.failures()[0].downcast_ref().unwrap();
    assert!(matches!(failure.kind(), FailureKind::TaskLost { .. }));
}

/// A session that has its thread.
async fn opened(pool: Pool) -> (Arc<Session>, Bridge) {
    let session = Session::alone(pool);
    let bridge = Bridge::new(Arc::clone(&session));
    within(bridge.call(|_| ())).await.unwrap();
    (session, bridge)
}

/// Sync code that holds the thread until the sender is dropped.
async fn computing(bridge: &Bridge) -> (mpsc::Sender<()>, impl Future<Output = ()> + use<>) {
    let ((begun, has_begun), (release, released)) = (oneshot::channel(), mpsc::channel());
    let mut call = bridge.call(move |_| {
        begun.send(()).unwrap();
        let _ = released.recv();
    });
    let begun = within(async {
        tokio::select! {
            _ = &mut call => unreachable!("held"),
            begun = has_begun => begun,
        }
    });
    begun.await.unwrap();
    (release, async { within(call).await.unwrap() })
}

#[tokio::test]
async fn tasks_end_alone_and_the_thread_is_kept() {
    let (session, bridge) = opened(Pool::new()).await;
    let (held, mut released) = oneshot::channel::<()>();
    let task = bridge.spawn_local(move || async move {
        let _held = held;
        std::future::pending::<()>().await
    });
    within(bridge.run(tokio::task::yield_now)).await.unwrap();
    assert_eq!(within(end_tasks(&session)).await, Some(1));
    let closed = released.try_recv();
    assert_eq!(closed, Err(oneshot::error::TryRecvError::Closed));
    let ended = within(task).await.unwrap_err();
    assert_eq!(ended.kind(), BridgeErrorKind::Ended);
    // The thread is still the request's: an owner's closers may run on it.
    let call = bridge.call(|cx| cx.block_on(async { 3 }));
    assert_eq!(within(call).await.unwrap().unwrap(), 3);
    assert_eq!(within(bridge.run(|| async { 4 })).await.unwrap(), 4);
    let report = within(Close::of(&session, false)).await;
    assert_eq!(report.tasks_cancelled(), 0);
}

#[tokio::test]
async fn a_task_that_has_not_started_when_tasks_are_ended_never_does() {
    let (session, bridge) = opened(Pool::new()).await;
    let (release, call) = computing(&bridge).await;
    let (started, seen) = mpsc::channel();
    bridge
        .spawn_local(move || async move { started.send(()).unwrap() })
        .detach();
    let ended = end_tasks(&session);
    drop(release);
    call.await;
    assert_eq!(within(ended).await, Some(0));
    within(bridge.run(tokio::task::yield_now)).await.unwrap();
    assert!(seen.try_recv().is_err(), "it was started");
    // Tasks of later closers are.
    let later = bridge.spawn_local(|| async { 4 });
    assert_eq!(within(later).await.unwrap(), 4);
    within(Close::of(&session, false)).await;
}

#[tokio::test]
async fn the_end_of_the_tasks_is_waited_for_up_to_the_limit() {
    let pool = Pool::builder().close_limit(Duration::from_millis(20));
    let (session, bridge) = opened(pool.build()).await;
    let (release, call) = computing(&bridge).await;
    assert_eq!(within(end_tasks(&session)).await, None);
    assert!(session.is_behind());
    drop(release);
    call.await;
    within(Close::of(&session, false)).await;
}
