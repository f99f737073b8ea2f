//! A scope under another: what its parent waits for, and how both are ended.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bodyguard::{
    Cleanup, CleanupLayer, Disconnect, DisconnectLayer, EndReport, Outcome, Shutdown, Stack,
    Supervisor, cleanup::CleanupBody, close, disconnect::OnLeave, testing::Script,
};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

const MINUTE: Duration = Duration::from_secs(60);

type Reports = Arc<Mutex<Vec<EndReport>>>;

fn hook(reports: &Reports) -> impl Fn(&EndReport) + Send + Sync + 'static + use<> {
    let reports = reports.clone();
    move |end| reports.lock().unwrap().push(end.clone())
}

/// Closers that the client should not wait for are behind the parent's end, too.
#[tokio::test(start_paused = true)]
async fn what_a_child_does_after_its_end_delays_nobody() {
    for (fails, length_known) in [(false, false), (false, true), (true, false), (true, true)] {
        let (supervisor, reports) = (Supervisor::new(), Reports::default());
        let handler = service_fn(move |request: Request<()>| {
            let cleanup = Cleanup::of(&request).unwrap();
            cleanup.defer_after_end(|_| async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok(())
            });
            cleanup.defer(move |_| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                match fails {
                    true => Err("commit failed".into()),
                    false => Ok(()),
                }
            });
            let body = Script::new().data("a").pending().data("b");
            let body = if length_known {
                body.exact_hint()
            } else {
                body
            };
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let inner = CleanupLayer::new().layer(handler);
        let inner = DisconnectLayer::new().detachable(MINUTE).layer(inner);
        let service = CleanupLayer::new()
            .supervisor(&supervisor)
            .on_end(hook(&reports))
            .layer(inner);
        let started = Instant::now();
        let response = service.oneshot(Request::new(())).await.unwrap();
        let read = response.into_body().collect().await;
        assert_eq!(read.is_err(), fails);
        // The closer that is to be waited for, and the gap before an error.
        let waited = started.elapsed();
        assert!(waited < Duration::from_millis(1100), "{waited:?}");
        assert!(waited >= Duration::from_secs(1), "{waited:?}");
        assert!(reports.lock().unwrap().is_empty());
        let drained = supervisor.drain(MINUTE).await;
        assert!(drained.is_clean(), "{drained}");
        let waited = started.elapsed();
        assert!(
            waited >= Duration::from_secs(6),
            "the drain waits: {waited:?}"
        );
        let report = reports.lock().unwrap().pop().unwrap();
        assert_eq!(report.counts.closers_run, 2);
        assert_eq!(report.errors.len(), usize::from(fails));
        assert_eq!(report.outcome().is_complete(), !fails);
    }
}

/// A commit of a child that nobody waits for is told before the parent shows its end.
#[tokio::test(start_paused = true)]
async fn a_child_that_fails_before_its_late_closers_fails_its_parent() {
    let reports = Reports::default();
    let handler = service_fn(|request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        cleanup.defer_after_end(|_| async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(())
        });
        cleanup.defer(|_| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err("commit failed".into())
        });
        std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
    });
    let inner = DisconnectLayer::new().detachable(MINUTE).layer(handler);
    let inner = inner.map_response(|response: Response<_>| response.map(Impatient::new));
    let service = Stack::new().on_end(hook(&reports)).layer(inner);
    let started = Instant::now();
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    let waited = started.elapsed();
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    tokio::time::sleep(MINUTE).await;
    let report = reports.lock().unwrap().pop().unwrap();
    assert_eq!(report.outcome(), Outcome::Failed);
    assert_eq!((report.errors.len(), report.counts.closers_run), (1, 2));
}

/// A middleware has read a body with closers of its own, and answers with what was in it.
#[tokio::test(start_paused = true)]
async fn what_a_body_does_after_an_end_that_came_before_its_head_delays_nobody() {
    for (fails, length_known) in [(false, true), (false, false), (true, true), (true, false)] {
        let (supervisor, reports) = (Supervisor::new(), Reports::default());
        let handler = service_fn(move |_: Request<()>| {
            let body = CleanupBody::new(Script::new().data("a"));
            body.cleanup().defer_after_end(|_| async {
                tokio::time::sleep(Duration::from_secs(20)).await;
                Ok(())
            });
            let body = body.defer(move |_| async move {
                match fails {
                    true => Err("commit failed".into()),
                    false => Ok(()),
                }
            });
            std::future::ready(Ok::<_, Infallible>(body.into_http()))
        });
        let buffers = handler.and_then(move |response: Response<CleanupBody<Script>>| async move {
            let (parts, mut body) = response.into_parts();
            let mut script = Script::new();
            while let Some(Ok(frame)) = body.frame().await {
                script = script.data(frame.into_data().unwrap());
            }
            drop(body);
            let script = if length_known {
                script.exact_hint()
            } else {
                script
            };
            Ok::<_, Infallible>(Response::from_parts(parts, script))
        });
        let service = CleanupLayer::new()
            .supervisor(&supervisor)
            .on_end(hook(&reports))
            .layer(buffers);
        let started = Instant::now();
        let response = service.oneshot(Request::new(())).await.unwrap();
        let read = response.into_body().collect().await;
        assert_eq!(read.unwrap().to_bytes(), "a");
        // The gap before the error that the middleware keeps to itself.
        assert!(started.elapsed() < Duration::from_secs(1));
        assert!(reports.lock().unwrap().is_empty());
        let drained = supervisor.drain(MINUTE).await;
        assert!(drained.is_clean(), "{drained}");
        assert!(started.elapsed() >= Duration::from_secs(19));
        let report = reports.lock().unwrap().pop().unwrap();
        assert_eq!(report.counts.closers_run, 2);
        assert_eq!(report.errors.len(), usize::from(fails));
        assert_eq!(report.ending.succeeded(), !fails);
    }
}

/// Takes the end for good as soon as it is waited for.
struct Impatient<B>(Option<B>);

impl<B> Impatient<B> {
    fn new(body: B) -> Self {
        Self(Some(body))
    }
}

impl<B: Body + Unpin> Body for Impatient<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if polled.is_pending() {
            self.0 = None;
            return Poll::Ready(None);
        }
        polled
    }
}

/// Whoever closes a response wants it to end, with all that answers in it.
#[tokio::test(start_paused = true)]
async fn close_ends_work_that_chose_to_detach_in_a_child_scope() {
    for choice in [OnLeave::Detach, OnLeave::Grace(MINUTE)] {
        let (body, probe) = {
            let script = Script::new().data("a").hang();
            let probe = script.probe();
            (Mutex::new(Some(script)), probe)
        };
        let handler = service_fn(move |request: Request<()>| {
            let disconnect = Disconnect::of(&request).unwrap();
            disconnect.on_leave(choice).unwrap();
            Cleanup::of(&request)
                .unwrap()
                .defer(|_| async { Err("rollback failed".into()) });
            let body = body.lock().unwrap().take().unwrap();
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let inner = DisconnectLayer::new().detachable(MINUTE).layer(handler);
        let service = Stack::new().layer(inner);
        let response = service.oneshot(Request::new(())).await.unwrap();
        let started = Instant::now();
        let error = close(response).await.unwrap_err();
        assert_eq!(error.errors()[0].to_string(), "rollback failed");
        assert!(probe.is_dropped());
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}

/// A shutdown that came before the head ends a body that nobody asks.
#[tokio::test(start_paused = true)]
async fn a_body_that_comes_during_the_drain_is_taken_over_unasked() {
    for policy in [
        Shutdown::end_now(),
        Shutdown::end_now().last_frame("", "bye"),
    ] {
        let supervisor = Supervisor::new();
        let go = Arc::new(tokio::sync::Notify::new());
        let script = Script::new().data("a").hang();
        let probe = script.probe();
        let body = Arc::new(Mutex::new(Some(script)));
        let waits = go.clone();
        let handler = service_fn(move |request: Request<()>| {
            Cleanup::of(&request).unwrap().defer_sync(|_| ());
            let (waits, body) = (waits.clone(), body.clone());
            async move {
                waits.notified().await;
                let body = body.lock().unwrap().take().unwrap();
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        let layer = CleanupLayer::new()
            .supervisor(&supervisor)
            .shutdown(policy.clone())
            .stall_timeout(MINUTE);
        let mut call = pin!(layer.layer(handler).oneshot(Request::new(())));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(call.as_mut().poll(&mut cx).is_pending());
        go.notify_one();
        supervisor.begin_shutdown();
        let response = poll_fn(|cx| call.as_mut().poll(cx)).await.unwrap();
        let drained = supervisor.drain(Duration::from_secs(1)).await;
        assert!(drained.is_clean(), "{policy:?}: {drained}");
        assert!(probe.is_dropped());
        drop(response);
    }
}

/// Three scopes deep: a body with closers of its own, an armed layer, the outermost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_closers_at_every_depth() {
    for _ in 0..20 {
        let (supervisor, reports) = (Supervisor::new(), Reports::default());
        let go = Arc::new(tokio::sync::Semaphore::new(0));
        let late = go.clone();
        let handler = service_fn(move |request: Request<()>| {
            let wait = |late: Arc<tokio::sync::Semaphore>| async move {
                late.acquire().await?.forget();
                Ok(())
            };
            let cleanup = Cleanup::of(&request).unwrap();
            let (one, two) = (late.clone(), late.clone());
            cleanup.defer_after_end(move |_| wait(one));
            let body = CleanupBody::new(Script::new().data("a").pending().data("b"));
            let own = body.cleanup();
            own.defer_after_end(move |_| wait(two));
            std::future::ready(Ok::<_, Infallible>(body.into_http()))
        });
        let inner = DisconnectLayer::new().detachable(MINUTE);
        let inner = inner.layer(CleanupLayer::new().layer(handler));
        let service = CleanupLayer::new()
            .supervisor(&supervisor)
            .on_end(hook(&reports))
            .layer(inner);
        let response = service.oneshot(Request::new(())).await.unwrap();
        // Nothing lets the late closers go before the client has seen the end.
        let read = tokio::time::timeout(MINUTE, response.into_body().collect());
        assert_eq!(read.await.unwrap().unwrap().to_bytes(), "ab");
        assert_eq!(supervisor.active(), 2);
        go.add_permits(2);
        let drained = supervisor.drain(MINUTE).await;
        assert!(drained.is_clean(), "{drained}");
        let report = reports.lock().unwrap().pop().unwrap();
        assert_eq!(report.counts.closers_run, 2);
        assert_eq!(report.outcome(), Outcome::Complete);
    }
}

/// However long the child's closers take, within their own limits.
#[tokio::test(start_paused = true)]
async fn a_parents_closers_run_behind_those_of_a_slow_child() {
    let (reports, log) = (Reports::default(), Arc::new(Mutex::new(Vec::new())));
    let closer = |request: &Request<()>, name: &'static str, takes: u64| {
        let log = log.clone();
        Cleanup::of(request).unwrap().defer(move |_| async move {
            tokio::time::sleep(Duration::from_secs(takes)).await;
            log.lock().unwrap().push(name);
            Err(name.into())
        });
    };
    let handler = service_fn(|request: Request<()>| {
        closer(&request, "second", 25);
        closer(&request, "first", 25);
        let body = Script::new().hang();
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let child = DisconnectLayer::new().detachable(MINUTE).layer(handler);
    let between = child.map_request(|request| {
        closer(&request, "parent", 0);
        request
    });
    let service = CleanupLayer::new()
        .join_limit(Duration::from_secs(1))
        .on_end(hook(&reports))
        .layer(between);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let error = close(response).await.unwrap_err();
    assert_eq!(*log.lock().unwrap(), ["first", "second", "parent"]);
    let told: Vec<_> = error.errors().iter().map(ToString::to_string).collect();
    assert_eq!(told, ["first", "second", "parent"]);
    assert_eq!(reports.lock().unwrap().len(), 1);
}

/// Under one supervisor it is the child that counts what it left; its parent only reports it.
#[test]
fn closers_that_a_child_left_unrun_count_once() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (supervisor, reports) = (Supervisor::new(), Reports::default());
    let stack = Stack::new().supervisor(&supervisor).on_end(hook(&reports));
    let first = runtime();
    let body = first.block_on(async {
        let inner = CleanupLayer::new().supervisor(&supervisor);
        let inner = inner.layer(service_fn(|request: Request<()>| {
            let cleanup = Cleanup::of(&request).unwrap();
            cleanup.defer(|_| async { Ok(()) });
            let body = Script::new().data("a").hang();
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        }));
        let retry = service_fn(move |request: Request<()>| {
            let cleanup = Cleanup::of(&request).unwrap();
            cleanup.defer(|_| async { Ok(()) });
            inner.clone().oneshot(request.clone())
        });
        let response = stack.layer(retry).oneshot(Request::new(())).await;
        let mut body = response.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        body
    });
    let drained = runtime().block_on(async {
        let mut drain = pin!(supervisor.drain(MINUTE));
        let polled = poll_fn(|cx| Poll::Ready(drain.as_mut().poll(cx))).await;
        assert!(polled.is_pending(), "two are live");
        first.shutdown_background();
        drop(body);
        drain.await
    });
    let counts = reports.lock().unwrap().pop().unwrap().counts;
    assert_eq!((counts.closers_run, counts.closers_unrun), (0, 2));
    assert_eq!(drained.unrun, 2, "{drained}");
}
