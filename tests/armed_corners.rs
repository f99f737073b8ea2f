//! Armed layers in odd company: attempts, holds, blocked and dead runtimes, panics, limits.
#![allow(
    clippy::disallowed_methods,
    reason = "tasks of a test end with its runtime"
)]

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body as AxumBody;
use bodyguard::{
    BoxError, Cleanup, CleanupLayer, Disconnect, DisconnectLayer, EndReport, Outcome, Shutdown,
    Stack, Supervisor,
    disconnect::{DisconnectBody, OnLeave},
    testing::Script,
};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{Layer, Service, ServiceExt, service_fn};

mod support;
use support::Listening;

const TIMEOUT: Duration = Duration::from_secs(10);

type Reports = Arc<Mutex<Vec<EndReport>>>;

fn hook(reports: &Reports) -> impl Fn(&EndReport) + Send + Sync + 'static + use<> {
    let reports = reports.clone();
    move |end| reports.lock().unwrap().push(end.clone())
}

fn outcomes(reports: &Reports) -> Vec<Outcome> {
    reports
        .lock()
        .unwrap()
        .iter()
        .map(EndReport::outcome)
        .collect()
}

async fn next<B: Body + Unpin>(body: &mut B) -> Option<Result<Frame<B::Data>, B::Error>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

fn all() -> bodyguard::scope::ScopeLayer<bodyguard::stack::AllViews> {
    bodyguard::scope::ScopeLayer::new()
}

/// A detached body that is always ready reaches its limit: the limit has no share in the budget.
#[tokio::test]
async fn the_limit_of_detached_work_that_is_always_ready() {
    let reports = Reports::default();
    let handler = service_fn(|request: Request<()>| async move {
        let disconnect = Disconnect::of(&request).unwrap();
        disconnect.on_leave(OnLeave::Detach).unwrap();
        let frames = futures_util::stream::repeat_with(|| {
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"row")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    });
    let layer = all()
        .on_end(hook(&reports))
        .detachable(Duration::from_millis(100));
    let response = layer
        .layer(handler)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    drop(response);
    support::eventually(|| !outcomes(&reports).is_empty()).await;
    assert_eq!(
        outcomes(&reports),
        [Outcome::Dropped],
        "still running after twenty limits"
    );
}

/// R1b: the same of a closer (G8).
#[tokio::test]
async fn the_limit_of_a_closer_that_uses_up_its_budget() {
    let reports = Reports::default();
    let handler = service_fn(|request: Request<()>| async move {
        Cleanup::of(&request).unwrap().defer(|_| async {
            loop {
                tokio::task::consume_budget().await;
            }
        });
        Ok::<_, Infallible>(Response::new(Script::new().data("a").hang()))
    });
    let layer = all()
        .on_end(hook(&reports))
        .closer_limit(Duration::from_millis(100));
    let response = layer
        .layer(handler)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    drop(response);
    support::eventually(|| !outcomes(&reports).is_empty()).await;
    assert_eq!(
        outcomes(&reports),
        [Outcome::Dropped],
        "the closer overran its limit for ever"
    );
}

/// A mirror's body that is read slowly does not end the client's response.
#[tokio::test(start_paused = true)]
async fn the_stall_of_a_mirror_is_not_its_parents() {
    let reports = Reports::default();
    let inner = DisconnectLayer::new()
        .stall_timeout(TIMEOUT)
        .layer(service_fn(|_: Request<()>| async {
            let rows = futures_util::stream::unfold(0, |row| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let frame = Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"row")));
                (row < 60).then_some((frame, row + 1))
            });
            Ok::<_, Infallible>(Response::new(Box::pin(StreamBody::new(rows))))
        }));
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let mirror = service_fn(move |request: Request<()>| {
        let (inner, keep) = (inner.clone(), keep.clone());
        async move {
            let copy = request.clone();
            let mut mirrored = inner.clone().oneshot(copy).await?.into_body();
            // A slow reader of its own: it has taken one frame so far.
            next(&mut mirrored).await.unwrap().unwrap();
            *keep.lock().unwrap() = Some(mirrored);
            inner.oneshot(request).await
        }
    });
    let service = Stack::new().on_end(hook(&reports)).layer(mirror);
    let body = service.oneshot(Request::new(())).await.unwrap().into_body();
    let read = body.collect().await;
    assert!(read.is_ok(), "{:?}", read.err());
    // Hooks of a cloned request hear of the attempts, too; the client's response comes last.
    assert_eq!(outcomes(&reports).last(), Some(&Outcome::Complete));
    drop(kept);
}

/// The body is complete and a hold keeps the scope open: the watchdog lets the held work be.
#[tokio::test(start_paused = true)]
async fn a_hold_outlives_a_complete_body_that_the_server_still_has() {
    let reports = Reports::default();
    let hold = Arc::new(Mutex::new(None));
    let kept = hold.clone();
    let handler = service_fn(move |request: Request<()>| {
        *kept.lock().unwrap() = Some(Disconnect::of(&request).unwrap().hold());
        async { Ok::<_, Infallible>(Response::new(Script::new().data("a").end_hint())) }
    });
    let layer = all().on_end(hook(&reports)).stall_timeout(TIMEOUT);
    let mut body = layer
        .layer(handler)
        .oneshot(Request::new(()))
        .await
        .unwrap()
        .into_body();
    next(&mut body).await.unwrap().unwrap();
    assert!(body.is_end_stream(), "all of it is given");
    tokio::time::sleep(TIMEOUT * 3).await;
    let live = hold.lock().unwrap().as_ref().unwrap().is_live();
    assert!(live, "ended: {:?}", outcomes(&reports));
    hold.lock()
        .unwrap()
        .take()
        .unwrap()
        .finish(Outcome::Complete);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(outcomes(&reports), [Outcome::Complete]);
}

/// Every promised byte is given (`Complete`) and HTTP/2 does not ask again: not stalled.
#[tokio::test(start_paused = true)]
async fn a_body_whose_promised_length_is_reached_is_complete() {
    for dropped in [true, false] {
        let reports = Reports::default();
        let handler = service_fn(|_: Request<()>| async {
            let body = Script::new().data("abc");
            let response = Response::builder().header("content-length", "3").body(body);
            Ok::<_, Infallible>(response.unwrap())
        });
        let layer = all().on_end(hook(&reports)).stall_timeout(TIMEOUT);
        let mut request = Request::new(());
        *request.version_mut() = Version::HTTP_2;
        let mut body = layer
            .layer(handler)
            .oneshot(request)
            .await
            .unwrap()
            .into_body();
        next(&mut body).await.unwrap().unwrap();
        if !dropped {
            tokio::time::sleep(TIMEOUT * 2).await;
        }
        drop(body);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(
            outcomes(&reports),
            [Outcome::Complete],
            "dropped: {dropped}"
        );
    }
}

/// An upload that is aborted when told.
fn upload() -> (tokio::sync::oneshot::Sender<()>, AxumBody) {
    let (abort, aborted) = tokio::sync::oneshot::channel::<()>();
    let frames = futures_util::stream::once(async move {
        let _ = aborted.await;
        Err::<Bytes, _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
    });
    (abort, AxumBody::from_stream(frames))
}

/// The outer scope of an armed inner layer does not take a client that left for a complete response.
#[tokio::test(start_paused = true)]
async fn the_outer_scope_hears_that_the_client_left() {
    let mut all_seen = Vec::new();
    for (armed, streaming) in [(false, false), (true, false), (false, true), (true, true)] {
        let reports = Reports::default();
        let (abort, body) = upload();
        let handler = service_fn(
            move |request: Request<bodyguard::scope::RequestBody<AxumBody>>| async move {
                if armed {
                    let view = Disconnect::of(&request).unwrap();
                    view.on_leave(OnLeave::Detach).unwrap();
                }
                drop(request);
                if !streaming {
                    pending::<()>().await;
                }
                Ok::<_, Infallible>(Response::new(Script::new().hang()))
            },
        );
        let inner = DisconnectLayer::new().detachable(TIMEOUT).layer(handler);
        let layer = Stack::new().on_end(hook(&reports)).drain_request(1 << 20);
        let service = layer.layer(inner);
        let request = Request::post("/").body(body).unwrap();
        let task = tokio::spawn(async move {
            let body = service.oneshot(request).await.unwrap().into_body();
            let _ = body.collect().await;
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        abort.send(()).unwrap();
        task.await.unwrap();
        let seen = reports.lock().unwrap()[0].clone();
        all_seen.push((armed, streaming, seen.outcome()));
    }
    let right = |seen: &(bool, bool, Outcome)| seen.2 == Outcome::Disconnected;
    assert!(
        all_seen.iter().all(right),
        "(detached, streaming, outcome): {all_seen:?}"
    );
}

/// A failure passes through the scope of an armed inner layer and the one around it: it is one error.
#[tokio::test(start_paused = true)]
async fn a_failure_that_passes_two_owners_is_reported_once() {
    for case in [
        "service fails",
        "handler panics",
        "body fails",
        "body panics",
    ] {
        let reports = Reports::default();
        let handler = service_fn(move |_: Request<()>| async move {
            match case {
                "service fails" => Err(BoxError::from("refused")),
                "handler panics" => panic!("scripted"),
                "body fails" => Ok(Response::new(Script::new().data("a").error("late"))),
                _ => Ok(Response::new(Script::new().data("a").panic("scripted"))),
            }
        });
        let inner = DisconnectLayer::new().detachable(TIMEOUT).layer(handler);
        let inner = inner.map_response(|response| response.map(AxumBody::new));
        let service = Stack::new().on_end(hook(&reports)).layer(inner);
        let consuming = async move {
            let response = service.oneshot(Request::new(())).await;
            if let Ok(response) = response {
                let _ = response.into_body().collect().await;
            }
        };
        let _ = std::panic::AssertUnwindSafe(consuming).catch_unwind().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let report = reports.lock().unwrap().pop().unwrap();
        assert_eq!(report.errors.len(), 1, "{case}: {report:?}");
    }
}

/// A drain that ends a scope ends those under it, too: none of them has ended by itself.
#[tokio::test(start_paused = true)]
async fn a_drain_counts_what_it_ends_at_every_depth() {
    for (policy, counts) in [
        (Shutdown::abort(), (0, 0, 2)),
        (Shutdown::finish(), (0, 0, 2)),
        (Shutdown::end_now(), (0, 2, 0)),
        (Shutdown::end_now().last_frame("", "bye"), (0, 2, 0)),
    ] {
        let supervisor = Supervisor::new();
        let handler = service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Script::new().data("a").hang()))
        });
        let inner = DisconnectLayer::new().detachable(TIMEOUT).layer(handler);
        let stack = Stack::new().supervisor(&supervisor);
        let service = stack.shutdown(policy.clone()).layer(inner);
        let response = service.oneshot(Request::new(())).await.unwrap();
        let reading = response.into_body().collect();
        let (report, _) = tokio::join!(supervisor.drain(Duration::from_secs(60)), reading);
        let counted = (report.complete, report.ended, report.aborted);
        assert_eq!(counted, counts, "{policy:?}: {report}");
    }
}

/// Reading an upload away does not ask a client for it that waits to be asked.
#[tokio::test]
async fn an_upload_that_waits_for_100_continue_is_not_asked_for() {
    for drained in [false, true] {
        let handler = || async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            http::StatusCode::UNAUTHORIZED
        };
        let app = axum::Router::new().route("/", axum::routing::post(handler));
        let app = if drained {
            app.layer(DisconnectLayer::new().drain_request(1 << 20))
        } else {
            app.layer(DisconnectLayer::new())
        };
        let listening = Listening::start(app, false).await;
        let mut client = listening.connect().await;
        let head =
            "POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        let mut buffer = [0; 1024];
        let n = support::within(client.read(&mut buffer)).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        assert!(
            text.starts_with("HTTP/1.1 401"),
            "drained: {drained}: {text}"
        );
    }
}

/// A detached body with a scope of its own is within the drain's reach.
#[tokio::test(start_paused = true)]
async fn the_drain_ends_a_detached_body_without_a_layer() {
    let reports = Reports::default();
    let supervisor = Supervisor::new();
    let seen = reports.clone();
    let handler = service_fn(move |_: Request<()>| {
        let body = DisconnectBody::new(Script::new().hang())
            .on_end(hook(&seen))
            .detachable(Duration::from_secs(600));
        body.disconnect().on_leave(OnLeave::Detach).unwrap();
        async { Ok::<_, Infallible>(body.into_http()) }
    });
    let service = Stack::new().supervisor(&supervisor).layer(handler);
    let response = service.oneshot(Request::new(())).await.unwrap();
    drop(response);
    let report = supervisor.drain(Duration::from_secs(20)).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(outcomes(&reports), [Outcome::Shutdown]);
}

/// An attempt that has ended does not close the upload of the whole request.
#[tokio::test(start_paused = true)]
async fn an_attempt_does_not_close_the_requests_upload() {
    let reports = Reports::default();
    let (abort, body) = upload();
    let tries = Arc::new(AtomicUsize::new(0));
    let attempt = CleanupLayer::new().layer(service_fn(move |_: Request<()>| {
        let tries = tries.clone();
        async move {
            if tries.fetch_add(1, SeqCst) > 0 {
                pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    }));
    let retry = service_fn(
        move |request: Request<bodyguard::scope::RequestBody<AxumBody>>| {
            let attempt = attempt.clone();
            async move {
                let (parts, upload) = request.into_parts();
                let head = Request::from_parts(parts, ());
                drop(attempt.clone().oneshot(head.clone()).await?);
                // Nobody reads it.
                drop(upload);
                attempt.oneshot(head).await
            }
        },
    );
    let layer = DisconnectLayer::new()
        .on_end(hook(&reports))
        .drain_request(1 << 20);
    let service = layer.layer(retry);
    let request = Request::post("/").body(body).unwrap();
    let mut response = pin!(service.oneshot(request));
    let waited = tokio::time::timeout(Duration::from_millis(10), response.as_mut()).await;
    assert!(waited.is_err());
    abort
        .send(())
        .expect("the unread upload is still looked at");
    let ended = tokio::time::timeout(Duration::from_secs(5), response).await;
    assert!(
        ended.is_ok(),
        "the abort goes unnoticed: {:?}",
        outcomes(&reports)
    );
}

/// On HTTP/1 and elsewhere: `on_leave` under an armed layer, on a request that was cloned.
#[tokio::test(start_paused = true)]
async fn a_cloned_request_under_an_armed_layer_can_detach() {
    let handler = CleanupLayer::new().layer(service_fn(|request: Request<()>| async move {
        let armed = Disconnect::of(&request).unwrap().on_leave(OnLeave::Detach);
        assert!(armed.is_ok(), "{}", armed.unwrap_err());
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    let retry = service_fn(move |request: Request<()>| {
        let mut handler = handler.clone();
        let _spare = request.clone();
        handler.call(request)
    });
    let service = Stack::new().detachable(TIMEOUT).layer(retry);
    service.oneshot(Request::new(())).await.unwrap();
}

/// `close` does not wait for work that chose to detach: it ends it.
#[tokio::test(start_paused = true)]
async fn close_ends_a_response_as_dropped() {
    let handler = service_fn(|request: Request<()>| async move {
        Disconnect::of(&request)
            .unwrap()
            .on_leave(OnLeave::Detach)
            .unwrap();
        Cleanup::of(&request).unwrap().defer_sync(|_| ());
        Ok::<_, Infallible>(Response::new(Script::new().data("a").hang()))
    });
    let layer = all().on_end(|_| ()).detachable(Duration::from_secs(600));
    let response = layer
        .layer(handler)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(60), bodyguard::close(response)).await;
    assert!(closed.is_ok(), "close hangs for the limit of detached work");
}

/// A runtime that was blocked for longer than the time-out ends none of its steady readers.
#[tokio::test]
async fn a_blocked_runtime_is_no_stalled_client() {
    let reports = Reports::default();
    let handler = service_fn(|_: Request<()>| async {
        let frames = futures_util::stream::repeat_with(|| {
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"row")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    });
    let layer = all()
        .on_end(hook(&reports))
        .stall_timeout(Duration::from_millis(400));
    let mut body = layer
        .layer(handler)
        .oneshot(Request::new(()))
        .await
        .unwrap()
        .into_body();
    let reader = tokio::spawn(async move {
        loop {
            next(&mut body).await.unwrap()?;
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
        #[expect(unreachable_code, reason = "names the type of its errors")]
        Ok::<_, bodyguard::BodyError>(())
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::thread::sleep(Duration::from_millis(900));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!reader.is_finished(), "{:?}", outcomes(&reports));
}

/// The panic of a request body that the owner reads away is contained.
#[tokio::test]
async fn a_panic_of_the_upload_is_not_a_drop() {
    let reports = Reports::default();
    let frames = futures_util::stream::repeat_with(|| -> Result<Bytes, Infallible> {
        panic!("as it should be")
    });
    let body = AxumBody::from_stream(frames);
    let handler = service_fn(
        |request: Request<bodyguard::scope::RequestBody<AxumBody>>| async move {
            drop(request);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, Infallible>(Response::new(Script::new().data("answer").end_hint()))
        },
    );
    let service = DisconnectLayer::new()
        .on_end(hook(&reports))
        .drain_request(100)
        .layer(handler);
    let request = Request::post("/").body(body).unwrap();
    let answered = tokio::spawn(service.oneshot(request)).await;
    assert!(
        answered.is_ok(),
        "the handler never looked at it: {:?}",
        outcomes(&reports)
    );
}

/// A dead runtime: detached work, and an end from outside. Closers are accounted for.
#[test]
fn dead_runtimes() {
    for cancelled in [false, true] {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let reports = Reports::default();
        let views = Arc::new(Mutex::new(None));
        let ran = Arc::new(AtomicUsize::new(0));
        let (seen, run) = (views.clone(), ran.clone());
        let handler = service_fn(move |request: Request<()>| {
            let (seen, run) = (seen.clone(), run.clone());
            async move {
                let view = Disconnect::of(&request).unwrap();
                view.on_leave(OnLeave::Detach).unwrap();
                *seen.lock().unwrap() = Some(view);
                let cleanup = Cleanup::of(&request).unwrap();
                cleanup.defer(|_| async { Ok(()) });
                cleanup.defer_sync(move |_| {
                    run.fetch_add(1, SeqCst);
                });
                Ok::<_, Infallible>(Response::new(Script::new().data("a").data("b").hang()))
            }
        });
        let layer = all()
            .on_end(hook(&reports))
            .stall_timeout(TIMEOUT)
            .detachable(TIMEOUT);
        let mut body = runtime.block_on(async {
            let response = layer
                .layer(handler)
                .oneshot(Request::new(()))
                .await
                .unwrap();
            let mut body = response.into_body();
            next(&mut body).await.unwrap().unwrap();
            body
        });
        drop(runtime);
        if cancelled {
            views.lock().unwrap().take().unwrap().cancel();
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let polled = Pin::new(&mut body).poll_frame(&mut cx);
            assert!(matches!(polled, Poll::Ready(Some(Err(_)))), "{polled:?}");
        }
        drop(body);
        let reports = reports.lock().unwrap();
        assert_eq!(reports.len(), 1);
        assert_eq!(ran.load(SeqCst), 1);
        assert_eq!(reports[0].counts.closers_unrun, 1);
    }
}

/// A standalone body in a Stack: the client's going is not told as a failure.
#[tokio::test(start_paused = true)]
async fn a_disconnect_body_tells_its_parent_that_the_client_left() {
    let reports = Reports::default();
    let (abort, body) = upload();
    let handler = service_fn(
        |request: Request<bodyguard::scope::RequestBody<AxumBody>>| async move {
            let body = DisconnectBody::answering(&request, Script::new().hang());
            drop(request);
            Ok::<_, Infallible>(body.into_http())
        },
    );
    let service = Stack::new()
        .on_end(hook(&reports))
        .drain_request(1 << 20)
        .layer(handler);
    let request = Request::post("/").body(body).unwrap();
    let (tell, waits) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let mut body = service.oneshot(request).await.unwrap().into_body();
        // Asked for its first frame, for which it waits.
        assert!(futures_util::poll!(body.frame()).is_pending());
        tell.send(()).unwrap();
        let _ = body.collect().await;
    });
    waits.await.unwrap();
    abort.send(()).unwrap();
    task.await.unwrap();
    assert_eq!(outcomes(&reports), [Outcome::Disconnected]);
}

/// An inner body whose drop panics when the watchdog takes it: closers run, once.
#[tokio::test(start_paused = true)]
async fn a_drop_that_panics_under_the_watchdog() {
    struct Bomb(bool);
    impl Body for Bomb {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(self.0 && std::thread::panicking(), "as it should be");
        }
    }
    let reports = Reports::default();
    let ran = Arc::new(AtomicUsize::new(0));
    let run = ran.clone();
    let handler = service_fn(move |request: Request<()>| {
        let run = run.clone();
        async move {
            Cleanup::of(&request).unwrap().defer(move |_| async move {
                run.fetch_add(1, SeqCst);
                Ok(())
            });
            Ok::<_, Infallible>(Response::new(Bomb(true)))
        }
    });
    let layer = all().on_end(hook(&reports)).stall_timeout(TIMEOUT);
    let mut body = layer
        .layer(handler)
        .oneshot(Request::new(()))
        .await
        .unwrap()
        .into_body();
    next(&mut body).await.unwrap().unwrap();
    tokio::time::sleep(TIMEOUT * 2).await;
    assert_eq!(outcomes(&reports), [Outcome::Stalled]);
    assert_eq!(ran.load(SeqCst), 1);
    assert!(next(&mut body).await.unwrap().is_err());
    drop(body);
}

/// An interruption from another thread that meets a poll is not lost, although no other poll follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interruption_that_meets_a_poll() {
    let mut met = 0;
    for round in 0..250 {
        let reports = Reports::default();
        let scope = Arc::new(Mutex::new(None));
        let out = scope.clone();
        let handler = service_fn(move |request: Request<()>| {
            *out.lock().unwrap() = Some(Disconnect::of(&request).unwrap());
            let frames = futures_util::stream::repeat_with(|| {
                Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"row")))
            });
            async { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
        });
        let layer = all().on_end(hook(&reports)).stall_timeout(TIMEOUT);
        let answer = layer.layer(handler).oneshot(Request::new(()));
        let mut body = answer.await.unwrap().into_body();
        let scope = scope.lock().unwrap().take().unwrap();
        let begun = Arc::new(AtomicUsize::new(0));
        let seen = begun.clone();
        let canceller = std::thread::spawn(move || {
            while seen.load(SeqCst) < round % 50 {
                std::thread::yield_now();
            }
            scope.cancel();
        });
        // So many polls, and then none: whoever had the body has to see to its end.
        for _ in 0..=round % 50 + round / 50 * 40 {
            begun.fetch_add(1, SeqCst);
            if !matches!(next(&mut body).await, Some(Ok(_))) {
                break;
            }
        }
        met += usize::from(reports.lock().unwrap().is_empty());
        support::eventually(|| !outcomes(&reports).is_empty()).await;
        assert_eq!(outcomes(&reports), [Outcome::Cancelled]);
        canceller.join().unwrap();
        drop(body);
    }
    assert!(met > 0);
}

/// A server that is asking when the watchdog looks has not stalled, however long its poll takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_being_polled_has_not_stalled() {
    let (stalled, ended) = std::sync::mpsc::channel();
    let (stalled, ended) = (Mutex::new(stalled), Arc::new(Mutex::new(ended)));
    let reports = Reports::default();
    let hook = hook(&reports);
    let layer = all()
        .on_end(move |end| {
            hook(end);
            if end.outcome() == Outcome::Stalled {
                let _ = stalled.lock().unwrap().send(());
            }
        })
        .stall_timeout(Duration::from_millis(400));
    let service = layer.layer(service_fn(move |request: Request<()>| {
        let waits = request.uri().path() == "/waits";
        let (ended, mut frames) = (ended.clone(), 0);
        let frames = std::iter::from_fn(move || {
            frames += 1;
            if waits && frames == 2 {
                // Until the other one, which was given its frame later, has stalled.
                let other = ended.lock().unwrap().recv_timeout(TIMEOUT);
                other.expect("the other stream stalls");
            }
            (frames < 4).then(|| Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"row"))))
        });
        let body = StreamBody::new(futures_util::stream::iter(frames));
        async { Ok::<_, Infallible>(Response::new(body)) }
    }));
    let get = |path: &str| Request::get(path).body(()).unwrap();
    let waits = service.clone().oneshot(get("/waits")).await.unwrap();
    let left = service.oneshot(get("/left")).await.unwrap();
    let (mut waits, mut left) = (waits.into_body(), left.into_body());
    assert!(matches!(next(&mut waits).await, Some(Ok(_))));
    assert!(matches!(next(&mut left).await, Some(Ok(_))));
    for _ in 0..2 {
        assert!(matches!(next(&mut waits).await, Some(Ok(_))));
    }
    assert!(next(&mut waits).await.is_none());
    assert_eq!(outcomes(&reports), [Outcome::Stalled, Outcome::Complete]);
}
