//! What the end of a response releases: senders that wait in every way, tasks that are busy, and
//! many groups at once.

use std::{
    future::{pending, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bodyguard::{
    Outcome, TaskGroup, TaskGroupBody,
    task_group::{FrameBody, FrameSender},
};
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, future::BoxFuture};
use http::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use crate::support::{App, Live, until, within};

/// A channel of one byte, which is in it.
fn full() -> (FrameSender, FrameBody) {
    let (sender, body) = FrameBody::channel(1);
    sender.try_send("a").unwrap();
    assert!(sender.try_send("b").unwrap_err().is_full());
    (sender, body)
}

/// A wait in each of the ways there are; true once it has ended with an error, as it should.
fn waits() -> Vec<(&'static str, fn(FrameSender) -> BoxFuture<'static, bool>)> {
    vec![
        ("send", |sender| {
            async move { sender.send("b").await.is_err() }.boxed()
        }),
        ("send_trailers", |sender| {
            async move { sender.send_trailers(HeaderMap::new()).await.is_err() }.boxed()
        }),
        ("writer", |sender| {
            let write = async move { sender.into_writer().write_all(b"b").await };
            write.map(|written| written.is_err()).boxed()
        }),
        ("sink", |sender| {
            let send = async move { sender.into_sink().send(Bytes::from_static(b"b")).await };
            send.map(|sent| sent.is_err()).boxed()
        }),
        ("closed", |sender| {
            async move { sender.closed().await }.map(|()| true).boxed()
        }),
    ]
}

#[tokio::test]
async fn a_sender_that_is_pending_in_any_way_is_woken_when_the_body_goes() {
    for polled in [false, true] {
        for (way, wait) in waits() {
            let (sender, mut body) = full();
            let keep = sender.clone();
            if polled {
                body.frame().await.unwrap().unwrap();
                sender.try_send("a").unwrap();
            }
            // Trailers need no room: they wait in line only, behind this one.
            let mut ahead = pin!(keep.send("c"));
            let mut first = Context::from_waker(Waker::noop());
            assert!(ahead.as_mut().poll(&mut first).is_pending());
            let mut waiting = wait(sender);
            let (waker, woken) = counting();
            let mut cx = Context::from_waker(&waker);
            assert!(waiting.as_mut().poll(&mut cx).is_pending(), "{way}");
            assert_eq!(woken.load(SeqCst), 0, "{way}");
            drop(body);
            assert!(woken.load(SeqCst) > 0, "{way}: not woken");
            assert_eq!(waiting.as_mut().poll(&mut cx), Poll::Ready(true), "{way}");
            assert!(keep.is_closed());
        }
    }
}

/// A waker and how often it was woken.
fn counting() -> (Waker, Arc<AtomicUsize>) {
    struct Count(Arc<AtomicUsize>);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let count = Arc::new(AtomicUsize::new(0));
    (Waker::from(Arc::new(Count(count.clone()))), count)
}

#[test]
fn a_thread_that_is_blocked_in_a_send_is_released_when_the_body_goes() {
    for _ in 0..100 {
        let (sender, body) = full();
        let (tell, told) = mpsc::channel();
        let begun = Arc::new(AtomicBool::new(false));
        let begins = begun.clone();
        let blocked = thread::spawn(move || {
            begins.store(true, SeqCst);
            tell.send(sender.send_blocking("b").is_err()).unwrap();
        });
        let start = Instant::now();
        while !begun.load(SeqCst) {
            assert!(start.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
        // The channel is full: it has not come back, and cannot.
        assert!(told.try_recv().is_err());
        drop(body);
        assert!(told.recv_timeout(Duration::from_secs(30)).unwrap());
        blocked.join().unwrap();
    }
}

/// A task that is at work when it is cancelled goes on to its next await, and no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_task_is_gone_at_its_next_await() {
    for _ in 0..50 {
        let live = Live::default();
        let (busy, go_on) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let reached = Arc::new(Mutex::new(Vec::new()));
        let (seen, flags, log) = (live.clone(), (busy.clone(), go_on.clone()), reached.clone());
        let app = App::new(move |group: TaskGroup| async move {
            let tasks = group.clone();
            group.body(move |tx| async move {
                let (guard, before, behind) = (seen.guard(), seen.guard(), seen.guard());
                let idle = |guard| async move {
                    let _guard = guard;
                    pending().await
                };
                tasks.spawn(idle(before))?;
                tasks.spawn(async move {
                    let _guard = guard;
                    flags.0.store(true, SeqCst);
                    let start = Instant::now();
                    while !flags.1.load(SeqCst) && start.elapsed() < Duration::from_secs(40) {
                        thread::yield_now();
                    }
                    log.lock().unwrap().push("before the await");
                    tokio::task::yield_now().await;
                    log.lock().unwrap().push("behind the await");
                    Ok(())
                })?;
                tasks.spawn(idle(behind))?;
                tx.send("x").await?;
                pending().await
            })
        });
        let mut response = app.get().await;
        response.body_mut().frame().await.unwrap().unwrap();
        until(|| busy.load(SeqCst)).await;
        assert_eq!(live.count(), 3);
        // The drop waits for nobody; with those beside it gone, the busy one is cancelled too.
        drop(response);
        until(|| live.count() == 1).await;
        go_on.store(true, SeqCst);
        let report = app.report().await;
        assert_eq!(live.count(), 0);
        assert_eq!(*reached.lock().unwrap(), ["before the await"]);
        assert_eq!(report.outcome(), Outcome::Dropped);
        assert!(
            report.stuck.is_empty() && report.errors.is_empty(),
            "{report:?}"
        );
    }
}

#[tokio::test]
async fn ten_thousand_groups_dropped_at_once_leave_no_task() {
    const GROUPS: usize = 10_000;
    let live = Live::default();
    let mut bodies = Vec::new();
    for _ in 0..GROUPS {
        let (own, other) = (live.guard(), live.guard());
        let body = TaskGroupBody::new(|group, tx| async move {
            let held = tx.clone();
            group.spawn(async move {
                let (_guard, _held) = (other, held);
                pending().await
            })?;
            let _guard = own;
            tx.send("x").await?;
            pending().await
        });
        bodies.push(Box::pin(body));
    }
    for body in &mut bodies {
        within(poll_fn(|cx| body.as_mut().poll_frame(cx)))
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(live.count(), 2 * GROUPS);
    drop(bodies);
    until(|| live.count() == 0).await;
}
