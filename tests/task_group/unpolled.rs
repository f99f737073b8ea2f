//! A client that stops reading: nobody polls the body, and its tasks end all the same.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use bodyguard::{Shutdown, Stack, TaskGroup, TaskResult, task_group::FrameSender};
use http_body_util::BodyExt;
use tokio::{sync::oneshot, time::Instant};

use crate::support::{App, Live, boom, until};

const GRACE: Duration = Duration::from_secs(1);

/// How tasks are cancelled while nobody polls the body.
#[derive(Clone, Copy, Debug)]
enum Way {
    Cancel,
    EndNow,
    Abort,
    Failure,
}

const WAYS: [Way; 4] = [Way::Cancel, Way::EndNow, Way::Abort, Way::Failure];

/// A body with tasks that has given one frame, and what cancels them.
struct Unpolled {
    app: App,
    group: TaskGroup,
    fail: oneshot::Sender<()>,
    body: Body,
}

impl Unpolled {
    async fn after_one_frame(
        way: Way,
        start: impl FnOnce(&TaskGroup, FrameSender) -> TaskResult + Send + Sync + 'static,
    ) -> Self {
        let (fail, failing) = oneshot::channel();
        let kept = Arc::new(Mutex::new(None));
        let (keep, once) = (kept.clone(), Arc::new(Mutex::new(Some((start, failing)))));
        let stack = Stack::new().shutdown(match way {
            Way::Abort => Shutdown::abort(),
            _ => Shutdown::end_now(),
        });
        let app = App::with(stack, move |group: TaskGroup| {
            *keep.lock().unwrap() = Some(group.clone());
            let (start, failing) = once.lock().unwrap().take().unwrap();
            async move {
                let tasks = group.clone();
                group.body(move |tx| async move {
                    tx.send("x").await?;
                    start(&tasks, tx.clone())?;
                    failing.await?;
                    Err(boom("disk"))
                })
            }
        });
        let mut body = app.get().await.into_body();
        body.frame().await.unwrap().unwrap();
        let group = kept.lock().unwrap().take().unwrap();
        Self {
            app,
            group,
            fail,
            body,
        }
    }

    /// Gives the body, which is not to be polled, and not yet dropped.
    async fn cancel(self, way: Way) -> (Body, App) {
        match way {
            Way::Cancel => self.group.cancel(),
            Way::Failure => self.fail.send(()).unwrap(),
            Way::EndNow | Way::Abort => {
                // It would go on to abort what is left.
                let drain = self.app.supervisor.drain(GRACE * 100);
                assert!(futures_util::poll!(Box::pin(drain)).is_pending());
            }
        }
        (self.body, self.app)
    }
}

#[tokio::test(start_paused = true)]
async fn a_graceful_task_that_does_not_listen_is_aborted_after_the_grace() {
    for way in WAYS {
        let live = Live::default();
        let guard = live.guard();
        let unpolled = Unpolled::after_one_frame(way, move |tasks, _| {
            Ok(tasks.spawn_graceful(|_| async move {
                let _guard = guard;
                pending().await
            })?)
        });
        let unpolled = unpolled.await;
        tokio::time::sleep(GRACE).await;
        let start = Instant::now();
        let held = unpolled.cancel(way).await;
        until(|| live.count() == 0).await;
        let took = start.elapsed();
        let grace = GRACE..GRACE + Duration::from_millis(20);
        assert!(grace.contains(&took), "{way:?}: {took:?}");
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn a_graceful_task_that_waits_for_the_stream_is_told() {
    for (way, sends) in WAYS.into_iter().flat_map(|way| [(way, true), (way, false)]) {
        let live = Live::default();
        let guard = live.guard();
        let unpolled = Unpolled::after_one_frame(way, move |tasks, tx| {
            Ok(tasks.spawn_graceful(|_| async move {
                let _guard = guard;
                if sends {
                    loop {
                        tx.send([b'x'; 9000].as_slice()).await?;
                    }
                }
                tx.closed().await;
                Ok(())
            })?)
        });
        let unpolled = unpolled.await;
        tokio::time::sleep(GRACE).await;
        assert_eq!(live.count(), 1);
        let start = Instant::now();
        let held = unpolled.cancel(way).await;
        until(|| live.count() == 0).await;
        let took = start.elapsed();
        assert!(took < GRACE / 10, "{way:?}: {took:?}");
        drop(held);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_waits_for_the_stream_is_told() {
    for way in WAYS {
        let live = Live::default();
        let guard = live.guard();
        let unpolled = Unpolled::after_one_frame(way, move |tasks, tx| {
            Ok(tasks.spawn_blocking(move |_| {
                let _guard = guard;
                loop {
                    tx.send_blocking([b'x'; 9000].as_slice())?;
                }
            })?)
        });
        let held = unpolled.await.cancel(way).await;
        until(|| live.count() == 0).await;
        drop(held);
    }
}

/// The runtime's one blocking thread is taken: what waits for it is not to run any more.
#[test]
fn blocking_code_that_has_not_begun_is_given_up_at_once() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true);
    let runtime = runtime.max_blocking_threads(1).build().unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let thread = tokio::task::spawn_blocking(move || held.recv());
        let (live, begun) = (Live::default(), Live::default());
        let (guard, begins) = (live.guard(), begun.clone());
        let unpolled = Unpolled::after_one_frame(Way::Cancel, move |tasks, _| {
            Ok(tasks.spawn_blocking(move |_| {
                std::mem::forget((guard, begins.guard()));
                Ok(())
            })?)
        });
        let unpolled = unpolled.await;
        tokio::task::yield_now().await;
        let unpolled = unpolled.cancel(Way::Cancel).await;
        assert_eq!(live.count(), 0);
        drop(release);
        thread.await.unwrap().unwrap_err();
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert_eq!(begun.count(), 0);
        drop(unpolled);
    });
}
