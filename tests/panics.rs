//! Panics that carry one more: what was thrown panics when it is dropped.

use std::{
    convert::Infallible,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, panic_any},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bodyguard::{
    BoxError, Cleanup, Outcome, Stack, Supervisor, TaskGroup, TaskGroupBody, TaskResult,
    cleanup::CleanupBody, close, testing::Script,
};
use bytes::Buf;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};

mod support;
use support::in_turns;

/// Thrown, and throws.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("in the drop of what was thrown");
    }
}

fn throw() {
    panic_any(PanicsOnDrop);
}

/// A hook's panic is its own: the others get the report, and the response is released.
#[tokio::test(start_paused = true)]
async fn hooks_that_panic() {
    let (supervisor, second) = (Supervisor::new(), Arc::new(AtomicUsize::new(0)));
    let seen = second.clone();
    let stack = Stack::new()
        .supervisor(&supervisor)
        .on_end(|_| throw())
        .on_end(move |_| {
            seen.fetch_add(1, SeqCst);
        });
    let service = stack.layer(service_fn(|request: Request<()>| {
        Cleanup::of(&request).unwrap().defer_sync(|_| ());
        std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!((second.load(SeqCst), supervisor.active()), (1, 0));
    let drained = supervisor.drain(Duration::from_secs(1)).await;
    assert!(drained.is_clean(), "{drained}");
}

#[tokio::test(start_paused = true)]
async fn closers_tasks_and_rules_that_panic() {
    let supervisor = Supervisor::new();
    let ran = Arc::new(Mutex::new(Vec::new()));
    let log = ran.clone();
    let stack = Stack::new().supervisor(&supervisor).succeeded_when(|_, _| {
        throw();
        true
    });
    let service = stack.layer(service_fn(move |request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        let seen = log.clone();
        cleanup.defer_sync(move |ending| {
            seen.lock()
                .unwrap()
                .push((ending.outcome(), ending.succeeded()));
        });
        cleanup.defer_sync(|_| throw());
        cleanup.defer(|_| {
            throw();
            async { Ok(()) }
        });
        cleanup.defer(|_| async {
            throw();
            Ok(())
        });
        let group = TaskGroup::of(&request).unwrap();
        let task = group.spawn(async {
            throw();
            Ok(())
        });
        assert!(task.is_ok());
        let body = Script::new().data("a").pending().data("b");
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    assert!(response.body_mut().collect().await.is_err());
    let error = close(response).await.unwrap_err();
    // A task, three closers, and the rule, once.
    assert_eq!(error.errors().len(), 5);
    assert_eq!(*ran.lock().unwrap(), [(Outcome::Panicked, false)]);
    assert_eq!(supervisor.active(), 0);
}

/// What a rule that panics says is no success: closers are told so, and then the client has to be.
#[tokio::test(start_paused = true)]
async fn a_rule_that_panics_is_told_to_closers_client_and_report() {
    for closes in [true, false] {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let (told, log) = (reports.clone(), Arc::new(Mutex::new(Vec::new())));
        let seen = log.clone();
        let stack = Stack::new()
            .on_end(move |report| told.lock().unwrap().push(report.clone()))
            .succeeded_when(|_, _| panic!("rule"));
        let service = stack.layer(service_fn(move |request: Request<()>| {
            let cleanup = Cleanup::of(&request).unwrap();
            for _ in 0..if closes { 2 } else { 0 } {
                let seen = seen.clone();
                cleanup.defer_sync(move |ending| {
                    let told = (ending.outcome(), ending.succeeded());
                    seen.lock().unwrap().push(told);
                });
            }
            let body = Script::new().data("a").pending().data("b");
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        let body = response.into_body().collect().await;
        let report = reports.lock().unwrap().pop().unwrap();
        let errors: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["succeeded_when panicked: rule"]);
        assert!(!report.ending.succeeded());
        // With nobody who rolls back, the body is as whole as it was.
        let outcome = [Outcome::Complete, Outcome::Panicked][usize::from(closes)];
        assert_eq!(report.outcome(), outcome);
        assert_eq!(body.is_err(), closes);
        let expected = vec![(Outcome::Panicked, false); if closes { 2 } else { 0 }];
        assert_eq!(*log.lock().unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn last_words_that_panic() {
    let body = TaskGroupBody::new(|_, _| async { Err("disk".into()) }).on_failure(|_| {
        throw();
        None
    });
    let error = body.collect().await.unwrap_err();
    assert_eq!(error.cause().to_string(), "disk");
    assert_eq!(error.causes().len(), 2);
}

/// Captured by an `on_failure` that is never asked.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("in the drop of what on_failure captured");
    }
}

/// What nobody needed any more, behind the report: the end is told once, and no other response leaves the
/// list in its place.
#[tokio::test(start_paused = true)]
async fn last_words_that_panic_in_their_drop() {
    for read in [true, false] {
        let (supervisor, ended) = (Supervisor::new(), Arc::new(AtomicUsize::new(0)));
        let counted = ended.clone();
        let stack = Stack::new().supervisor(&supervisor).on_end(move |_| {
            counted.fetch_add(1, SeqCst);
        });
        let service = stack.layer(service_fn(|request: Request<()>| {
            let group = TaskGroup::of(&request).unwrap();
            let bomb = Bomb;
            let body = group
                .body(|tx| async move { Ok(tx.send("1").await?) })
                .on_failure(move |_| {
                    let _ = &bomb;
                    None
                });
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        }));
        let respond = || service.clone().oneshot(Request::new(()));
        let mut body = respond().await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        if read {
            assert!(body.frame().await.is_none());
        }
        let dropping = JoinSet::from_iter([async move { drop(body) }]);
        assert_eq!(dropping.join_all().await.len(), 1, "{read}");
        in_turns(|| ended.load(SeqCst) > 0).await;
        let mut other = respond().await.unwrap().into_body();
        other.frame().await.unwrap().unwrap();
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!((ended.load(SeqCst), supervisor.active()), (1, 1), "{read}");
    }
}

/// The words of a body that another takes the place of.
#[tokio::test]
async fn last_words_that_panic_in_their_drop_when_others_replace_them() {
    let service = Stack::new().layer(service_fn(|request: Request<()>| async move {
        let group = TaskGroup::of(&request).unwrap();
        let bomb = Bomb;
        let mut first = group
            .body(|tx| async move { Ok(tx.send("0").await?) })
            .on_failure(move |_| {
                let _ = &bomb;
                None
            });
        first.frame().await.unwrap().unwrap();
        drop(first);
        let second = group.body(|tx| async move { Ok(tx.send("1").await?) });
        Ok::<_, Infallible>(Response::new(second.on_failure(|_| None)))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "1");
}

/// Its reader lets go of it unread.
struct Unread;

impl Body for Unread {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        Poll::Pending
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in the drop of a request body");
        }
    }
}

/// What the handler left unread is dropped by the response's end, which is none of its business.
#[tokio::test(start_paused = true)]
async fn unread_uploads_that_panic_in_their_drop() {
    for read in [true, false] {
        let (supervisor, ran) = (Supervisor::new(), Arc::new(AtomicUsize::new(0)));
        let counted = ran.clone();
        let layer = Stack::new().supervisor(&supervisor).drain_request(1 << 20);
        let service = layer.layer(service_fn(move |request: Request<_>| {
            let counted = counted.clone();
            Cleanup::of(&request).unwrap().defer_sync(move |_| {
                counted.fetch_add(1, SeqCst);
            });
            drop(request);
            let body = Script::new().data("a").pending().data("b");
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        }));
        let response = service.oneshot(Request::new(Unread)).await.unwrap();
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        if read {
            body.collect().await.unwrap();
        } else {
            drop(body);
        }
        in_turns(|| supervisor.active() == 0).await;
        assert_eq!(ran.load(SeqCst), 1, "{read}");
    }
}

/// Ready, and its drop panics.
struct Answers;

impl Future for Answers {
    type Output = Result<Response<Script>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(Response::new(Script::new().data("a"))))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        panic!("in the drop of a handler");
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_that_panic_in_their_drop() {
    let endings = Arc::new(Mutex::new(Vec::new()));
    let log = endings.clone();
    let service = Stack::new().layer(service_fn(move |request: Request<()>| {
        let log = log.clone();
        let cleanup = Cleanup::of(&request).unwrap();
        cleanup.defer_sync(move |ending| log.lock().unwrap().push(ending.outcome()));
        Answers
    }));
    let mut answering = JoinSet::new();
    answering.spawn(service.oneshot(Request::new(())));
    assert!(answering.join_next().await.unwrap().unwrap_err().is_panic());
    assert_eq!(*endings.lock().unwrap(), [Outcome::Panicked]);
}

/// Never ready, as a handler or a body, and its drop panics.
struct Pending {
    panics: bool,
}

impl Future for Pending {
    type Output = Result<Response<Script>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

impl Body for Pending {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        Poll::Pending
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        assert!(!self.panics, "in the drop of what was dropped early");
    }
}

/// Dropped by their server, with nobody else to tell of it.
#[tokio::test(start_paused = true)]
async fn handlers_and_bodies_that_panic_as_their_server_drops_them() {
    // With the second, the panic is that of a bystander, who drops them.
    for (panics, bystander) in [(true, false), (false, true)] {
        for (armed, answers) in [(false, false), (false, true), (true, false), (true, true)] {
            let reports = Arc::new(Mutex::new(Vec::new()));
            let log = reports.clone();
            let stack = Stack::new().on_end(move |end| log.lock().unwrap().push(end.clone()));
            let handler = move |_: Request<()>| async move {
                if answers {
                    return Ok::<_, Infallible>(Response::new(Pending { panics }));
                }
                drop(Pending { panics }.await);
                unreachable!();
            };
            let mut dropping = JoinSet::new();
            if armed {
                let service = stack.detachable(Duration::from_secs(9));
                let service = service.layer(service_fn(handler));
                dropping.spawn(drop_early(service, bystander));
            } else {
                dropping.spawn(drop_early(stack.layer(service_fn(handler)), bystander));
            }
            assert!(dropping.join_next().await.unwrap().unwrap_err().is_panic());
            in_turns(|| !reports.lock().unwrap().is_empty()).await;
            let report = &reports.lock().unwrap()[0];
            let what = format!("armed: {armed}, answers: {answers}: {report:?}");
            assert_eq!(report.outcome(), Outcome::Dropped, "{what}");
            let errors: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
            let who = if answers { "response body" } else { "handler" };
            let due = format!("{who} panicked: see the panic's own report");
            assert_eq!(errors, panics.then_some(due).as_slice(), "{what}");
        }
    }
}

/// Calls, and drops what it has when that is pending; by a panic of its own if it is a bystander.
async fn drop_early<S, B>(service: S, bystander: bool)
where
    S: tower::Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body,
{
    let polled = async {
        let response = service.oneshot(Request::new(())).await.unwrap();
        let mut body = std::pin::pin!(response.into_body());
        std::future::poll_fn(|cx| body.as_mut().poll_frame(cx).map(drop)).await;
    };
    let mut polled = Box::pin(polled);
    assert!(futures_util::poll!(polled.as_mut()).is_pending());
    let held = polled;
    assert!(!bystander, "a panic of its own");
    drop(held);
}

/// A frame's memory, and the conversion of an error, are the application's code like the poll.
#[tokio::test(start_paused = true)]
async fn frames_and_errors_that_panic_as_they_are_taken() {
    #[derive(Debug)]
    enum Given {
        Memory,
        Error,
    }
    struct Memory;
    impl Buf for Memory {
        fn remaining(&self) -> usize {
            3
        }

        fn chunk(&self) -> &[u8] {
            panic!("no memory");
        }

        fn advance(&mut self, _: usize) {}
    }
    impl From<Given> for BoxError {
        fn from(_: Given) -> Self {
            panic!("no error");
        }
    }
    struct Gives(Option<Given>);
    impl Body for Gives {
        type Data = Memory;
        type Error = Given;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Memory>, Given>>> {
            Poll::Ready(self.0.take().map(|given| match given {
                Given::Memory => Ok(Frame::data(Memory)),
                given => Err(given),
            }))
        }
    }
    for memory in [false, true] {
        for again in [false, true] {
            let told = Arc::new(Mutex::new(None));
            let tell = told.clone();
            let given = match memory {
                true => Given::Memory,
                false => Given::Error,
            };
            let body = CleanupBody::new(Gives(Some(given)))
                .defer_sync(move |end| *tell.lock().unwrap() = Some(end.outcome()));
            let mut body = Box::pin(body);
            let mut cx = Context::from_waker(Waker::noop());
            let poll = || drop(body.as_mut().poll_frame(&mut cx));
            assert!(catch_unwind(AssertUnwindSafe(poll)).is_err());
            // Whoever caught it may ask again.
            match again {
                true => assert!(body.collect().await.is_err()),
                false => drop(body),
            }
            in_turns(|| told.lock().unwrap().is_some()).await;
            assert_eq!(told.lock().unwrap().take(), Some(Outcome::Panicked));
        }
    }
}

/// A closer's future is dropped when it is ready.
#[tokio::test(start_paused = true)]
async fn a_closer_that_panics_behind_its_success() {
    struct Ready;
    impl Future for Ready {
        type Output = TaskResult;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<TaskResult> {
            Poll::Ready(Ok(()))
        }
    }
    impl Drop for Ready {
        fn drop(&mut self) {
            throw();
        }
    }
    let service = Stack::new().layer(service_fn(|request: Request<()>| {
        Cleanup::of(&request).unwrap().defer(|_| Ready);
        std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let error = close(response).await.unwrap_err();
    assert_eq!(error.report().counts.closers_failed, 1);
    assert!(!error.report().ending.succeeded());
}

/// What a body has registered for its end may panic as it is let go: all of it, each by itself.
#[tokio::test]
async fn what_is_let_go_at_the_end_panics_apart() {
    let (of_words, of_hook) = (PanicsOnDrop, PanicsOnDrop);
    let body = TaskGroupBody::new(|_, tx| async move { Ok(tx.send("whole").await?) });
    let body = body.on_failure(move |_| {
        let _kept = &of_words;
        None
    });
    let body = body.on_end(move |_| {
        let _kept = &of_hook;
    });
    let collected = body.collect().await.unwrap();
    assert_eq!(collected.to_bytes(), "whole");
}
