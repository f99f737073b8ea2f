//! Responses that are read where they were not made: on another runtime, or on none, when that of their call
//! has gone. No timer of ours panics there, as the process's panic hook would hear.

use std::{
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bodyguard::{Cleanup, CleanupLayer, EndReport, Outcome, TaskGroupBody, close, testing::Script};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, ServiceExt, service_fn};

#[path = "support/panics.rs"]
mod panics;
use panics::panics;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

/// Where the response is read.
#[derive(Clone, Copy, Debug)]
enum Reader {
    OtherRuntime,
    NoRuntime,
}

impl Reader {
    const ALL: [Self; 2] = [Self::OtherRuntime, Self::NoRuntime];

    fn run<T>(self, what: impl Future<Output = T>) -> T {
        match self {
            Self::OtherRuntime => {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                let limited = async { tokio::time::timeout(LIMIT, what).await };
                runtime.block_on(limited).expect("it hangs")
            }
            Self::NoRuntime => {
                let mut what = pin!(what);
                let start = Instant::now();
                loop {
                    let polled = what.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    if let Poll::Ready(done) = polled {
                        return done;
                    }
                    assert!(start.elapsed() < LIMIT, "it hangs");
                    std::thread::yield_now();
                }
            }
        }
    }
}

type Answer = Response<bodyguard::scope::ScopeBody<Script>>;

/// With a closer that is pending once, so that its limit is asked for.
fn answered(on: &Runtime, fails: bool) -> Answer {
    let service = CleanupLayer::new().layer(service_fn(move |request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        cleanup.defer(|_| async {
            yields().await;
            Ok(())
        });
        let script = Script::new().data("a").pending().data("b");
        let script = if fails { script.error("disk") } else { script };
        std::future::ready(Ok::<_, Infallible>(Response::new(script)))
    }));
    on.block_on(service.oneshot(Request::new(()))).unwrap()
}

/// Pending for some polls: no runtime is needed to wake it.
fn yields() -> impl Future<Output = ()> {
    let mut polls = 0;
    std::future::poll_fn(move |cx| {
        polls += 1;
        cx.waker().wake_by_ref();
        match polls {
            0..10 => Poll::Pending,
            _ => Poll::Ready(()),
        }
    })
}

async fn read_on(answer: &mut Answer) -> bool {
    let mut whole = true;
    let mut body = Pin::new(answer.body_mut());
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        whole &= frame.is_ok();
    }
    whole
}

async fn end_of(answer: Answer) -> EndReport {
    match close(answer).await {
        Ok(report) => (*report.expect("a scope")).clone(),
        Err(error) => error.report().clone(),
    }
}

#[test]
fn a_body_that_ends_behind_its_runtime() {
    for reader in Reader::ALL {
        for (fails, due) in [(false, Outcome::Complete), (true, Outcome::Failed)] {
            let (before, home) = (panics(), runtime());
            let mut answer = answered(&home, fails);
            home.shutdown_timeout(LIMIT);
            let (whole, report) = reader.run(async move {
                let whole = read_on(&mut answer).await;
                (whole, end_of(answer).await)
            });
            let what = format!("{reader:?}: {report:?}");
            assert_eq!(whole, due.is_complete(), "{what}");
            assert_eq!(report.outcome(), due, "{what}");
            assert_eq!(report.counts.closers_run, 1, "{what}");
            assert_eq!(panics() - before, 0, "{what}");
        }
    }
}

/// A timer is running there by then: that of the gap, or that of a closer.
#[test]
fn a_runtime_that_goes_while_the_end_is_under_way() {
    for reader in Reader::ALL {
        for polls in 1..30 {
            let (before, home) = (panics(), runtime());
            let mut answer = answered(&home, true);
            for _ in 0..polls {
                let mut body = Pin::new(answer.body_mut());
                let _ = body
                    .as_mut()
                    .poll_frame(&mut Context::from_waker(Waker::noop()));
            }
            home.shutdown_timeout(LIMIT);
            let report = reader.run(async move {
                read_on(&mut answer).await;
                end_of(answer).await
            });
            let what = format!("{reader:?} {polls}: {report:?}");
            assert_eq!(report.outcome(), Outcome::Failed, "{what}");
            assert_eq!(report.counts.closers_run, 1, "{what}");
            assert_eq!(panics() - before, 0, "{what}");
        }
    }
}

#[test]
fn a_silent_body_is_kept_alive_by_the_timers_there_are() {
    const EVERY: Duration = Duration::from_millis(5);
    for reader in Reader::ALL {
        for goes in [false, true] {
            let (before, home) = (panics(), runtime());
            let mut body = home.block_on(async {
                let body = TaskGroupBody::new(|_, tx| async move {
                    tx.send("x").await?;
                    std::future::pending().await
                });
                let mut body = Box::pin(body.keep_alive(EVERY, ":"));
                // One on its own runtime, with the timer that it makes there.
                for due in ["x", ":"] {
                    assert_eq!(next(&mut body).await.expect("alive"), due);
                }
                body
            });
            let away = match goes {
                true => {
                    home.shutdown_timeout(LIMIT);
                    None
                }
                false => Some(home),
            };
            reader.run(async {
                // Its producers go with their runtime.
                let given = next(&mut body).await;
                assert_eq!(given.as_deref(), (!goes).then_some(&b":"[..]));
            });
            drop(body);
            drop(away);
            assert_eq!(panics() - before, 0, "{reader:?} {goes}");
        }
    }
}

/// The next data; none once it has ended or failed.
async fn next(body: &mut Pin<Box<TaskGroupBody>>) -> Option<Bytes> {
    let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
    frame?.ok()?.into_data().ok()
}
