//! Failures behind another one, beside an end, and in foreign code.

use std::{
    error::Error,
    fmt,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::body::Body;
use bodyguard::{
    Outcome, TaskGroup, TaskGroupBody,
    scope::{FailurePolicy, Hold},
    task_group::{GroupBody, SourceError, Sources},
};
use bytes::Bytes;
use futures_util::Stream;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::oneshot;

use crate::support::{App, Live, boom, drain, messages, within};

#[tokio::test(start_paused = true)]
async fn a_policy_set_behind_a_failure_counts_for_the_next() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let (tasks, guard) = (group.clone(), seen.guard());
        group.set_failure_policy(FailurePolicy::KeepOthers);
        group.body(move |tx| async move {
            let sibling = tx.clone();
            tasks.spawn(async move {
                let _guard = (guard, sibling);
                pending().await
            })?;
            tasks.spawn(async { Err(boom("first")) })?;
            tx.send("half").await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            tasks.set_failure_policy(FailurePolicy::CancelSiblings);
            Err(boom("second"))
        })
    });
    let (text, error) = within(drain(app.get().await.into_body())).await;
    assert_eq!(text, "half");
    assert_eq!(error.unwrap().cause().to_string(), "first");
    assert_eq!(live.count(), 0);
    assert_eq!(messages(&app.report().await), ["first", "second"]);
}

/// Ends at once; in its drop, ahead of the group's stream, a task fails.
struct FailsInDrop {
    end: Ending,
    _body: GroupBody,
}

struct Ending {
    fail: Option<oneshot::Sender<()>>,
    hold: Arc<Mutex<Option<Hold>>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(fail) = self.fail.take() else { return };
        fail.send(()).unwrap();
        let start = Instant::now();
        let is_live = || self.hold.lock().unwrap().as_ref().unwrap().is_live();
        while is_live() && start.elapsed() < Duration::from_secs(5) {
            std::thread::yield_now();
        }
    }
}

impl http_body::Body for FailsInDrop {
    type Data = Bytes;
    type Error = bodyguard::BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let _armed = self.end.fail.is_some();
        Poll::Ready(None)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_while_the_ended_body_drops_ends_a_held_scope() {
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let app = App::new(move |group: TaskGroup| async move {
        *keep.lock().unwrap() = Some(group.hold());
        let (fail, failing) = oneshot::channel::<()>();
        let body = group.body(|_| pending());
        // After the body: its tasks know of the stream.
        let task = async move {
            failing.await?;
            Err(boom("disk"))
        };
        group.spawn(task).unwrap();
        Body::new(FailsInDrop {
            end: Ending {
                fail: Some(fail),
                hold: keep.clone(),
            },
            _body: body,
        })
    });
    within(drain(app.get().await.into_body())).await;
    let hold = kept.lock().unwrap().take().unwrap();
    assert!(!hold.is_live(), "a group that has failed goes on");
    drop(hold);
    assert_eq!(app.report().await.outcome(), Outcome::Failed);
}

/// Its sources are a circle, or it panics when it is asked for them.
#[derive(Debug)]
struct Odd {
    panics: bool,
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("odd")
    }
}

impl Error for Odd {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        assert!(!self.panics, "asked for its source");
        Some(self)
    }
}

#[test]
fn an_error_with_odd_sources_is_a_failure_like_any_other() {
    for (panics, blocking) in [(true, true), (true, false), (false, true), (false, false)] {
        let (done, finished) = mpsc::channel();
        // A thread of its own: what does not come to an end is left behind.
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let report = runtime.block_on(async {
                let app = App::new(move |group: TaskGroup| async move {
                    let tasks = group.clone();
                    group.body(move |tx| async move {
                        tx.send("half").await?;
                        let odd = Odd { panics };
                        match blocking {
                            true => Ok(tasks.spawn_blocking(|_| Err(odd.into()))?),
                            false => Err(odd.into()),
                        }
                    })
                });
                drain(app.get().await.into_body()).await;
                app.report().await
            });
            done.send(report).unwrap();
        });
        let report = finished.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(messages(&report), ["odd"]);
        assert_eq!(report.counts.tasks_failed, 1);
    }
}

/// Ends, or fails, and panics as it goes.
struct Bursts {
    fails: bool,
}

impl Stream for Bursts {
    type Item = Result<&'static str, &'static str>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.fails.then_some(Err("no sky")))
    }
}

impl Drop for Bursts {
    fn drop(&mut self) {
        panic!("burst");
    }
}

#[tokio::test(start_paused = true)]
async fn an_optional_source_that_panics_in_its_drop_ends_alone() {
    for fails in [false, true] {
        let app = App::new(move |group: TaskGroup| async move {
            let news = futures_util::stream::iter([Ok::<_, std::io::Error>("news")]);
            let sources = Sources::new().optional("weather", Bursts { fails });
            group.merge(sources.source("news", news))
        });
        let (text, error) = drain(app.get().await.into_body()).await;
        assert_eq!((text.as_str(), error.is_none()), ("news", true));
        let report = app.report().await;
        assert_eq!(report.outcome(), Outcome::Complete);
        let failed = report.errors[0].downcast_ref::<SourceError>().unwrap();
        let why = if fails {
            "no sky"
        } else {
            "stream panicked: burst"
        };
        assert_eq!(failed.source().unwrap().to_string(), why);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_words_of_a_body_that_never_starts_are_freed() {
    let ended = TaskGroupBody::new(|_, tx| async move { Ok(tx.send("1").await?) });
    let group = ended.group().clone();
    drain(ended).await;
    let held = Arc::new(());
    let watch = Arc::downgrade(&held);
    // The group leads back to the scope that would keep the closure.
    let theirs = group.clone();
    let mut body = group.body(|_| pending()).on_failure(move |_| {
        let _ = (&held, &theirs);
        None
    });
    body.frame().await.unwrap().unwrap_err();
    drop((body, group));
    assert!(watch.upgrade().is_none());
}
