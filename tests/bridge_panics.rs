//! Panics and errors of a request's sync code: how its response ends, and what its report says.

use std::{
    convert::Infallible,
    io::{self, Write},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use axum::body::Body;
use bodyguard::{
    BodyError, BoxError, EndReport, Outcome, Stack,
    bridge::{
        Bridge, BridgeError, BridgeErrorKind as Kind, CloseReport, Context, Cx, Pool, SyncBody,
        Task,
    },
};
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tower::{Layer, ServiceExt, service_fn};

#[path = "support/waits.rs"]
mod waits;
use waits::{eventually, within};

/// What the client of this handler's response sees at its end, and the report on it.
async fn ended<F, Fut>(handler: F) -> (Result<(), BodyError>, EndReport)
where
    F: Fn(Request<()>) -> Fut,
    Fut: Future<Output = Response<Body>>,
{
    let reports = Arc::new(Mutex::new(Vec::new()));
    let told = reports.clone();
    let stack = Stack::new().on_end(move |report| told.lock().unwrap().push(report.clone()));
    let handler = service_fn(|request| {
        let answer = handler(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let answer = stack.layer(handler).oneshot(Request::new(()));
    let read = within(async { answer.await.unwrap().into_body().collect().await });
    let read = read.await.map(drop);
    let report = reports.lock().unwrap().pop().unwrap();
    (read, report)
}

/// As `ended`, for a body made from the request's bridge.
async fn body(make: impl Fn(&Bridge) -> SyncBody) -> (BodyError, EndReport) {
    let (read, report) = ended(|request| {
        let body = make(&Bridge::of(&request).unwrap());
        async { Response::new(Body::new(body)) }
    })
    .await;
    (read.unwrap_err(), report)
}

fn one_two_panic() -> impl Iterator<Item = &'static str> + Send {
    (0..3).map(|at| if at == 2 { panic!("boom") } else { "x" })
}

/// The one cause, with the place where the body was made.
fn assert_panicked((error, report): (BodyError, EndReport)) {
    assert_eq!(report.outcome(), Outcome::Panicked, "{report:?}");
    assert!(!report.ending.succeeded());
    assert_eq!((report.errors.len(), error.causes().len()), (1, 1));
    let cause: &BridgeError = report.errors[0].downcast_ref().unwrap();
    assert_eq!(
        (cause.kind(), cause.panic_message()),
        (Kind::Panicked, Some("boom"))
    );
    let at = cause.called_at().unwrap();
    assert_eq!(at.file(), file!());
    assert!(error.downcast_ref::<BridgeError>().is_some());
}

#[tokio::test]
async fn a_panic_in_a_body_is_one_of_the_response_and_named_by_the_callers_line() {
    fn boom(out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"a")?;
        panic!("boom")
    }
    assert_panicked(body(|bridge| bridge.body_writer(boom)).await);
    assert_panicked(body(|bridge| bridge.body_from_iter(one_two_panic())).await);
    assert_panicked(body(|bridge| bridge.body_from_iter_with(|_| one_two_panic())).await);
    let results = || one_two_panic().map(Ok::<_, io::Error>);
    assert_panicked(body(|bridge| bridge.body_try_from_iter(results())).await);
    assert_panicked(body(|_| SyncBody::writer(boom)).await);
    assert_panicked(body(|_| SyncBody::from_iter(one_two_panic())).await);
    assert_panicked(body(|_| SyncBody::try_from_iter(results())).await);
}

#[tokio::test]
async fn an_error_of_a_body_is_in_the_report_as_it_is() {
    let fails = |out: &mut dyn Write| {
        out.write_all(b"a")?;
        Err(io::Error::other("disk"))
    };
    for (error, report) in [
        body(|bridge| bridge.body_writer(fails)).await,
        body(|_| SyncBody::writer(fails)).await,
    ] {
        assert_eq!(report.outcome(), Outcome::Failed);
        assert_eq!(report.errors.len(), 1);
        let cause: &io::Error = report.errors[0].downcast_ref().unwrap();
        assert_eq!(cause.to_string(), "disk");
        assert_eq!(error.cause().to_string(), "disk");
    }
}

/// By whatever the closure fails with, behind what it wrote by the values of its thread.
#[tokio::test]
async fn a_writer_with_the_context_fails_with_any_error() {
    let (read, report) = ended(async |request| {
        let bridge = Bridge::of(&request).unwrap();
        bridge.call(|cx| drop(cx.insert(7_u8))).await.unwrap();
        let body = bridge.body_writer_with(|cx, out| {
            let seven = cx.get::<u8>().ok_or("nothing kept")?;
            writeln!(out, "{seven}")?;
            let waited = cx.block_on(async { "no more rows" })?;
            Err::<(), BoxError>(waited.into())
        });
        Response::new(Body::new(body))
    })
    .await;
    assert_eq!(read.unwrap_err().cause().to_string(), "no more rows");
    assert_eq!((report.outcome(), report.bytes), (Outcome::Failed, 2));
}

/// Waits until the panic that drops the sender has been dealt with on its thread.
async fn settled(bridge: &Bridge, dropped: oneshot::Receiver<()>) {
    within(dropped).await.unwrap_err();
    bridge.run(|| async {}).await.unwrap();
}

fn assert_one_panicked(report: &EndReport) {
    assert_eq!(report.outcome(), Outcome::Panicked, "{report:?}");
    assert!(!report.ending.succeeded());
    assert_eq!(report.counts.tasks_panicked, 1);
    assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
    let cause: &BridgeError = report.errors[0].downcast_ref().unwrap();
    assert_eq!(cause.panic_message(), Some("boom"));
    assert_eq!(cause.called_at().unwrap().file(), file!());
}

/// Before its `Task` is dropped or behind that, in what makes the future or in the future.
#[tokio::test]
async fn a_panic_of_a_local_task_that_nobody_awaits_fails_the_response() {
    for (first, aborts, at_start) in [
        (false, false, false),
        (true, false, false),
        (true, true, false),
        (false, false, true),
        (true, false, true),
    ] {
        let (read, report) = ended(async |request| {
            let bridge = Bridge::of(&request).unwrap();
            let (held, dropped) = oneshot::channel::<()>();
            let task = bridge.spawn_local(move || {
                let held = held;
                assert!(!at_start, "boom");
                async move {
                    let _held = held;
                    panic!("boom")
                }
            });
            let mut task = Some(task);
            if !first {
                task = None;
            }
            settled(&bridge, dropped).await;
            if let (Some(task), true) = (&mut task, aborts) {
                task.abort();
            }
            drop(task);
            Response::new(Body::from("ok"))
        })
        .await;
        read.unwrap();
        assert_one_panicked(&report);
        assert_eq!(report.status().unwrap(), 500);
    }
}

/// The body is not fed by its group: it would go on.
#[tokio::test]
async fn it_ends_a_body_that_goes_on() {
    let (read, report) = ended(async |request| {
        let bridge = Bridge::of(&request).unwrap();
        let (go, gone) = oneshot::channel();
        let here = bridge.call(|cx| {
            drop(cx.spawn_local(async {
                gone.await.unwrap();
                panic!("boom")
            }));
        });
        here.await.unwrap();
        let first = async move {
            go.send(()).unwrap();
            Ok::<_, Infallible>("a")
        };
        let body = stream::once(first).chain(stream::pending());
        Response::new(Body::from_stream(body))
    })
    .await;
    let error = read.unwrap_err();
    let cause = error.downcast_ref::<BridgeError>().unwrap();
    assert_eq!(cause.kind(), Kind::Panicked);
    assert_one_panicked(&report);
}

#[tokio::test]
async fn a_panic_that_somebody_is_told_of_is_theirs() {
    let (read, report) = ended(async |request| {
        let bridge = Bridge::of(&request).unwrap();
        let task = bridge.spawn_local(|| async { panic!("boom") });
        assert_eq!(task.await.unwrap_err().kind(), Kind::Panicked);
        let run = bridge.run(|| async { panic!("boom") }).await;
        assert_eq!(run.unwrap_err().kind(), Kind::Panicked);
        Response::new(Body::from("ok"))
    })
    .await;
    read.unwrap();
    assert!(report.ending.succeeded(), "{report:?}");
    assert!(report.errors.is_empty());
}

#[tokio::test]
async fn without_a_layer_the_close_tells_of_it() {
    let pool = Pool::builder().max_threads(1).build();
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    let (held, dropped) = oneshot::channel();
    drop(bridge.spawn_local(|| async move {
        let _held: oneshot::Sender<()> = held;
        panic!("boom")
    }));
    settled(&bridge, dropped).await;
    let report = within(context.close()).await;
    let [failure] = report.failures() else {
        panic!("{report:?}");
    };
    let cause: &BridgeError = failure.downcast_ref().unwrap();
    assert_eq!(cause.panic_message(), Some("boom"));

    let body = SyncBody::in_pool(pool, |bridge| {
        bridge.body_writer(|out| {
            let waited = Cx::with_current(|cx| {
                let (held, dropped) = oneshot::channel();
                drop(cx.spawn_local(async move {
                    let _held: oneshot::Sender<()> = held;
                    panic!("boom")
                }));
                cx.block_on(dropped)
            });
            waited.unwrap().unwrap().unwrap_err();
            out.write_all(b"a")
        })
    });
    let error = within(body.collect()).await.map(drop).unwrap_err();
    assert!(error.downcast_ref::<BridgeError>().is_some());
}

/// Spawns a task that panics, and waits until it has.
fn panicking(cx: &Cx, what: &'static str) -> Task<()> {
    let (held, dropped) = oneshot::channel::<()>();
    let task = cx.spawn_local(async move {
        let _held = held;
        panic!("{what}")
    });
    cx.block_on(dropped).unwrap().unwrap_err();
    task
}

fn texts(report: &CloseReport) -> Vec<String> {
    let failures = report.failures().iter();
    failures
        .map(|failure| match failure.downcast_ref::<BridgeError>() {
            Some(error) => error.panic_message().unwrap().to_owned(),
            None => failure.to_string(),
        })
        .collect()
}

#[tokio::test]
async fn without_a_layer_the_close_tells_of_those_behind_its_start() {
    let context = Context::new(Pool::new());
    let closer = |cx: &Cx| {
        drop(panicking(cx, "of a closer"));
        // Whoever might await them is dropped as the last.
        cx.insert(panicking(cx, "of a value"));
        let task = panicking(cx, "of the loop");
        // On the loop: sync code has it as its runtime.
        drop(tokio::runtime::Handle::current().spawn(async move {
            let _task = task;
            std::future::pending::<()>().await
        }));
        Err::<(), _>(io::Error::other("its own"))
    };
    context.bridge().try_defer(closer).unwrap();
    let report = within(context.close()).await;
    let all = ["of a closer", "of a value", "of the loop", "its own"];
    assert_eq!(texts(&report), all);
}

#[tokio::test]
async fn a_close_that_overran_tells_of_those_until_then() {
    let pool = Pool::builder().close_limit(Duration::from_millis(50));
    let context = Context::new(pool.build());
    let bridge = context.bridge();
    within(bridge.call(|cx| drop(panicking(cx, "boom"))))
        .await
        .unwrap();
    let (release, released) = mpsc::channel::<()>();
    bridge
        .defer(move |_| {
            let _ = released.recv();
        })
        .unwrap();
    let report = within(context.close()).await;
    let texts = texts(&report);
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert_eq!(texts[0], "boom");
    assert!(texts[1].starts_with("not back"), "{texts:?}");
    drop(release);
}

/// A handler that gives up a call which has begun, and answers; then the code goes on.
async fn given_up(code: fn(&Cx)) -> (Result<(), BodyError>, EndReport) {
    ended(move |request| {
        let bridge = Bridge::of(&request).unwrap();
        async move {
            let (begun, has_begun) = oneshot::channel();
            let (release, released) = mpsc::channel::<()>();
            let call = bridge.call(move |cx| {
                begun.send(()).unwrap();
                released.recv().unwrap();
                code(cx);
            });
            tokio::select! {
                _ = call => panic!("it waits to be released"),
                begun = has_begun => begun.unwrap(),
            }
            release.send(()).unwrap();
            Response::new(Body::from("fine"))
        }
    })
    .await
}

#[tokio::test]
async fn a_call_that_was_given_up_and_panics_is_a_failure() {
    // The answer is a bare 500 in place of a body that was there.
    let (_, report) = given_up(|_| panic!("lost")).await;
    assert_eq!(report.counts.tasks_panicked, 1, "{report:?}");
    assert_eq!(report.outcome(), Outcome::Panicked);
    assert!(!report.ending.succeeded());
}

/// Its answer, a panic, is there, and nobody has looked at it.
#[tokio::test]
async fn a_call_that_was_given_up_behind_its_panic_is_one_as_well() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let (release, released) = mpsc::channel::<()>();
    let mut call = Box::pin(bridge.call(move |_| {
        released.recv().unwrap();
        panic!("lost")
    }));
    assert!(futures_util::poll!(&mut call).is_pending());
    release.send(()).unwrap();
    // One behind the other on the one thread.
    within(bridge.call(|_| ())).await.unwrap();
    drop(call);
    assert_eq!(texts(&within(context.close()).await), ["lost"]);
}

/// A client that leaves makes the next write fail, and a program panic that unwraps that.
#[tokio::test]
async fn a_body_that_panics_for_want_of_a_client_is_no_failure() {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let told = reports.clone();
    let handler = service_fn(|request: Request<()>| async move {
        let body = Bridge::of(&request).unwrap().body_writer(|out| {
            loop {
                out.write_all(&[b'x'; 1000]).unwrap();
            }
        });
        Ok::<_, Infallible>(Response::new(Body::new(body)))
    });
    let stack = Stack::new().on_end(move |report| told.lock().unwrap().push(report.clone()));
    let answer = stack.layer(handler).oneshot(Request::new(())).await;
    let mut body = answer.unwrap().into_body();
    within(body.frame()).await.unwrap().unwrap();
    drop(body);
    eventually(|| !reports.lock().unwrap().is_empty()).await;
    let report = reports.lock().unwrap().pop().unwrap();
    assert_eq!(report.outcome(), Outcome::Dropped, "{report:?}");
    assert_eq!(report.counts.tasks_panicked, 0, "{report:?}");
    assert!(report.errors.is_empty(), "{report:?}");
}

/// Being told that nobody waits is nothing that a response fails by.
#[tokio::test]
async fn one_that_panics_for_being_given_up_is_none() {
    let waits = |cx: &Cx| cx.block_on(std::future::pending::<()>()).unwrap();
    let (read, report) = given_up(waits).await;
    assert_eq!(report.counts.tasks_panicked, 0, "{report:?}");
    assert!(report.ending.succeeded(), "{report:?}");
    read.unwrap();
}

/// The thread cannot serve another then. That is no reason to wait for it.
#[tokio::test]
async fn code_that_leaves_tokios_context_in_disorder() {
    let forgets = |_: &Cx| {
        let handle: &'static _ = Box::leak(Box::new(tokio::runtime::Handle::current()));
        std::mem::forget(handle.enter());
    };
    let crosses = |_: &Cx| {
        let handle = tokio::runtime::Handle::current();
        let outer = handle.enter();
        let _inner = handle.enter();
        drop(outer);
    };
    for code in [forgets as fn(&Cx), crosses] {
        let pool = Pool::builder().max_threads(1).build();
        let (context, next) = (Context::new(pool.clone()), Context::new(pool.clone()));
        context.bridge().defer(|_| ()).unwrap();
        let spoilt = context.bridge().call(|_| thread::current().id());
        let spoilt = within(spoilt).await.unwrap();
        let _ = within(context.bridge().call(code)).await;
        // The next is in line for the one thread.
        let bridge = next.bridge();
        let other = bridge.call(|cx| cx.block_on(async { thread::current().id() }));
        let both = async { tokio::join!(other, context.close()) };
        let (other, report) = within(both).await;
        assert_ne!(other.unwrap().unwrap(), spoilt);
        assert_eq!(report.closers_run(), 1);
        assert!(report.failures().is_empty(), "{report:?}");
        assert_eq!(pool.threads(), 1);
    }
}
