//! Responses whose server has stopped asking: the watchdog ends them although nobody polls.
#![expect(
    clippy::disallowed_methods,
    reason = "tasks of a test end with its runtime"
)]

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body as AxumBody, routing::get};
use bodyguard::{
    BoxError, Cleanup, CleanupLayer, Disconnect, DisconnectLayer, EndReport, Outcome, Shutdown,
    Stack, Supervisor, TaskGroup,
    scope::Movable,
    testing::{Probe, Script},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};

mod support;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Default)]
struct Ledger {
    closers: Arc<Mutex<Vec<Outcome>>>,
    reports: Arc<Mutex<Vec<EndReport>>>,
}

impl Ledger {
    fn closers(&self) -> Vec<Outcome> {
        self.closers.lock().unwrap().clone()
    }

    fn reports(&self) -> Vec<Outcome> {
        let reports = self.reports.lock().unwrap();
        reports.iter().map(EndReport::outcome).collect()
    }

    fn defer(&self, request: &Request<()>) {
        let closers = self.closers.clone();
        Cleanup::of(request)
            .unwrap()
            .defer(move |ending| async move {
                closers.lock().unwrap().push(ending.outcome());
                Ok(())
            });
    }

    fn hook(&self) -> impl Fn(&EndReport) + Send + Sync + 'static {
        let reports = self.reports.clone();
        move |end| reports.lock().unwrap().push(end.clone())
    }
}

fn endless() -> StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, BoxError>>> {
    StreamBody::new(futures_util::stream::repeat_with(|| {
        Ok(Frame::data(Bytes::from_static(b"row")))
    }))
}

/// The same of what does not compress, so that the encoder gives frames.
fn noise() -> StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, BoxError>>> {
    let mut state = 1_u64;
    StreamBody::new(futures_util::stream::repeat_with(move || {
        let byte = |_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        Ok(Frame::data((0..4096).map(byte).collect()))
    }))
}

/// A handler that answers with `body` once, and a closer.
fn answering<B: Send + 'static>(
    ledger: &Ledger,
    body: B,
) -> BoxCloneService<Request<()>, Response<B>, Infallible> {
    let (ledger, body) = (ledger.clone(), Arc::new(Mutex::new(Some(body))));
    BoxCloneService::new(service_fn(move |request: Request<()>| {
        ledger.defer(&request);
        let body = body.lock().unwrap().take().unwrap();
        async { Ok::<_, Infallible>(Response::new(body)) }
    }))
}

fn armed(ledger: &Ledger) -> bodyguard::scope::ScopeLayer<bodyguard::stack::AllViews, Movable> {
    bodyguard::scope::ScopeLayer::new()
        .on_end(ledger.hook())
        .stall_timeout(TIMEOUT)
}

async fn next<B>(body: &mut B) -> Option<Result<Frame<B::Data>, B::Error>>
where
    B: Body + Unpin,
{
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

fn script() -> (Script, Probe) {
    let script = Script::new().data("a").data("b").data("c").hang();
    let probe = script.probe();
    (script, probe)
}

#[tokio::test(start_paused = true)]
async fn a_body_nobody_asks_is_ended_with_all_it_holds() {
    let ledger = Ledger::default();
    let (body, probe) = script();
    let service = armed(&ledger).layer(answering(&ledger, body));
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    tokio::time::sleep(TIMEOUT - Duration::from_secs(1)).await;
    assert!(!probe.is_dropped());
    assert!(ledger.closers().is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The server still holds the body.
    assert!(probe.is_dropped(), "inner body");
    assert_eq!(ledger.closers(), [Outcome::Stalled]);
    assert_eq!(ledger.reports(), [Outcome::Stalled]);
    assert!(!body.is_end_stream());
    let error = next(&mut body).await.unwrap().unwrap_err();
    let cause: &bodyguard::scope::Failure = error.downcast_ref().unwrap();
    assert_eq!(cause.to_string(), "response was ended early: Stalled");
    assert!(body.is_end_stream());
    assert!(next(&mut body).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_slow_but_steady_reader_is_left_alone() {
    let ledger = Ledger::default();
    let service = armed(&ledger).layer(answering(&ledger, endless()));
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    for _ in 0..100 {
        next(&mut body).await.unwrap().unwrap();
        tokio::time::sleep(TIMEOUT - Duration::from_millis(1)).await;
    }
    assert!(ledger.closers().is_empty());
    drop(body);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(ledger.closers(), [Outcome::Dropped]);
}

#[tokio::test(start_paused = true)]
async fn a_body_with_nothing_to_say_is_idle_and_not_stalled() {
    let ledger = Ledger::default();
    let service = armed(&ledger).layer(answering(&ledger, Script::new().data("a").hang()));
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    assert!(
        tokio::time::timeout(TIMEOUT * 10, next(&mut body))
            .await
            .is_err()
    );
    assert!(ledger.closers().is_empty());
}

/// What an encoder outside does when its server takes nothing more: it has polled, and asks no more although
/// there is something again.
#[tokio::test(start_paused = true)]
async fn a_body_that_was_pending_and_is_not_asked_again() {
    for ready_again in [true, false] {
        let ledger = Ledger::default();
        let script = match ready_again {
            true => Script::new().data("a").pending().data("b").hang(),
            false => Script::new().data("a").hang(),
        };
        let probe = script.probe();
        let service = armed(&ledger).layer(answering(&ledger, script));
        let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
        next(&mut body).await.unwrap().unwrap();
        assert!(futures_util::poll!(pin!(next(&mut body))).is_pending());
        tokio::time::sleep(TIMEOUT - Duration::from_secs(1)).await;
        assert!(!probe.is_dropped() && ledger.closers().is_empty());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(probe.is_dropped(), "inner body");
        assert_eq!(ledger.closers(), [Outcome::Stalled]);
        assert_eq!(ledger.reports(), [Outcome::Stalled]);
        assert!(next(&mut body).await.unwrap().is_err());
    }
}

/// Whose server is there is woken rarely, and not ended.
#[tokio::test(start_paused = true)]
async fn an_idle_body_is_looked_after_twice_a_time_out() {
    let ledger = Ledger::default();
    let script = Script::new().data("a").hang();
    let probe = script.probe();
    let service = armed(&ledger).layer(answering(&ledger, script));
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    let before = probe.polls();
    let idle = tokio::time::timeout(TIMEOUT * 100, next(&mut body));
    assert!(idle.await.is_err());
    let asked = probe.polls() - before;
    assert!((100..=203).contains(&asked), "{asked} polls");
    assert!(ledger.closers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_never_asked_is_not_watched() {
    let ledger = Ledger::default();
    let service = armed(&ledger).layer(answering(&ledger, endless()));
    let response = service.oneshot(Request::new(())).await.unwrap();
    tokio::time::sleep(TIMEOUT * 10).await;
    assert!(ledger.closers().is_empty());
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_stalled_response_are_cancelled() {
    let live = Arc::new(AtomicUsize::new(0));
    let counted = live.clone();
    let handler = service_fn(move |request: Request<()>| {
        let counted = counted.clone();
        async move {
            let group = TaskGroup::of(&request).unwrap();
            let body = group.body(move |tx| async move {
                counted.fetch_add(1, SeqCst);
                let _guard = Counted(counted);
                loop {
                    tx.send(vec![0; 10_000]).await?;
                }
            });
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    let ledger = Ledger::default();
    let service = armed(&ledger).layer(handler);
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    assert_eq!(live.load(SeqCst), 1);
    tokio::time::sleep(TIMEOUT * 2).await;
    assert_eq!(live.load(SeqCst), 0, "the blocked producer is gone");
    assert_eq!(ledger.reports(), [Outcome::Stalled]);
    drop(body);
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn the_innermost_time_out_wins_and_a_fixed_layer_inside_shares_the_scope() {
    let ledger = Ledger::default();
    let (body, probe) = script();
    let inner = CleanupLayer::new().layer(answering(&ledger, body));
    let service = armed(&ledger).layer(
        DisconnectLayer::new()
            .stall_timeout(TIMEOUT * 5)
            .layer(inner),
    );
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    tokio::time::sleep(TIMEOUT * 4).await;
    assert!(!probe.is_dropped());
    tokio::time::sleep(TIMEOUT * 2).await;
    assert!(probe.is_dropped());
    assert_eq!(
        ledger.reports(),
        [Outcome::Stalled],
        "one scope, one report"
    );
}

/// The owner further out cannot be moved: the armed layer has a child scope of its own.
#[tokio::test(start_paused = true)]
async fn armed_inside_a_layer_that_is_not() {
    let (outer, inner) = (Ledger::default(), Ledger::default());
    let supervisor = Supervisor::new();
    let (body, probe) = script();
    let routed = DisconnectLayer::new()
        .on_end(inner.hook())
        .stall_timeout(TIMEOUT)
        .layer(answering(&inner, body));
    let stack = Stack::new().supervisor(&supervisor).on_end(outer.hook());
    let service = stack.layer(routed);
    let mut body = pin!(service.oneshot(Request::new(())).await.unwrap().into_body());
    poll_fn(|cx| body.as_mut().poll_frame(cx))
        .await
        .unwrap()
        .unwrap();
    tokio::time::sleep(TIMEOUT * 2).await;
    assert!(probe.is_dropped());
    assert_eq!(inner.closers(), [Outcome::Stalled]);
    assert_eq!(inner.reports(), [Outcome::Stalled]);
    let shown = poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
    assert!(shown.unwrap().is_err());
    assert_eq!(outer.reports(), [Outcome::Stalled], "and once");
    assert_eq!(supervisor.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_reaches_a_body_nobody_polls() {
    let ledger = Ledger::default();
    let supervisor = Supervisor::new();
    let (body, probe) = script();
    let handler = answering(&ledger, body);
    let handler = ServiceExt::<Request<()>>::map_response(handler, |mut response: Response<_>| {
        let event = http::HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert("content-type", event);
        response
    });
    let service = armed(&ledger)
        .supervisor(&supervisor)
        .shutdown(Shutdown::end_now().last_frame("text/event-stream", "data: bye\n\n"))
        .layer(handler);
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    let report = supervisor.drain(Duration::from_secs(20)).await;
    assert!(report.is_clean() && report.ended == 1, "{report}");
    assert!(probe.is_dropped());
    assert_eq!(ledger.closers(), [Outcome::Shutdown]);
    let last = next(&mut body).await.unwrap().unwrap();
    assert_eq!(last.into_data().unwrap(), "data: bye\n\n");
    assert!(next(&mut body).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_a_body_nobody_polls() {
    let ledger = Ledger::default();
    let (body, probe) = script();
    let view = Arc::new(Mutex::new(None));
    let (inner, seen) = (answering(&ledger, body), view.clone());
    let handler = service_fn(move |request: Request<()>| {
        *seen.lock().unwrap() = Disconnect::of(&request).ok();
        inner.clone().oneshot(request)
    });
    let service = armed(&ledger).layer(handler);
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    view.lock().unwrap().take().unwrap().cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(probe.is_dropped());
    assert_eq!(ledger.closers(), [Outcome::Cancelled]);
    assert!(next(&mut body).await.unwrap().is_err());
}

/// Application code that ends its scope from within a poll finds the body's lock taken.
#[tokio::test(start_paused = true)]
async fn a_body_that_cancels_itself_while_it_gives_a_frame() {
    let ledger = Ledger::default();
    let seen = ledger.clone();
    let handler = service_fn(move |request: Request<()>| {
        seen.defer(&request);
        let disconnect = Disconnect::of(&request).unwrap();
        let frames = futures_util::stream::repeat_with(move || {
            disconnect.cancel();
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"last words")))
        });
        async { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
    });
    let service = armed(&ledger).layer(handler);
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    next(&mut body).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ledger.closers(), [Outcome::Cancelled], "nobody asked again");
    drop(body);
}

/// Lets the poll go, also when the test fails.
struct Released(Arc<AtomicBool>);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// A poll that has been under way for long is not waited for, and ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_poll_blocks_nobody_who_ends_its_scope() {
    let view = Arc::new(Mutex::new(None));
    let (polling, release) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (seen, flags) = (view.clone(), (polling.clone(), release.clone()));
    let handler = service_fn(move |request: Request<()>| {
        *seen.lock().unwrap() = Disconnect::of(&request).ok();
        let flags = flags.clone();
        let frames = futures_util::stream::repeat_with(move || {
            flags.0.store(true, SeqCst);
            while !flags.1.load(SeqCst) {
                std::thread::yield_now();
            }
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"slow")))
        });
        async { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
    });
    let ledger = Ledger::default();
    let service = armed(&ledger).layer(handler);
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    let released = Released(release);
    let reader = tokio::spawn(async move {
        let first = next(&mut body).await.unwrap();
        (first.is_ok(), body)
    });
    support::eventually(|| polling.load(SeqCst)).await;
    // On a thread of its own: one that waits for the poll is seen, and the poll let go.
    let disconnect = view.lock().unwrap().take().unwrap();
    let (back, comes) = mpsc::channel();
    let canceller = std::thread::spawn(move || {
        disconnect.cancel();
        back.send(()).unwrap();
    });
    comes
        .recv_timeout(support::DEADLINE)
        .expect("a cancel that does not wait for the poll");
    canceller.join().unwrap();
    drop(released);
    let (first, body) = support::within(reader).await.unwrap();
    assert!(first);
    // The poller looks after what others could not take.
    support::eventually(|| !ledger.reports().is_empty()).await;
    drop(body);
}

#[tokio::test(start_paused = true)]
async fn compression_outside_ends_in_an_error_too() {
    let app = Router::new()
        .route("/", get(|| async { AxumBody::new(noise()) }))
        .layer(Stack::new().stall_timeout(TIMEOUT));
    let request = Request::get("/").header("accept-encoding", "gzip");
    let response = app.oneshot(request.body(AxumBody::empty()).unwrap()).await;
    let mut body = response.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    tokio::time::sleep(TIMEOUT * 2).await;
    let mut last = Ok(Frame::data(Bytes::new()));
    for _ in 0..1_000 {
        match body.frame().await {
            Some(Ok(frame)) => last = Ok(frame),
            Some(Err(error)) => {
                last = Err(error);
                break;
            }
            None => panic!("it looks whole"),
        }
    }
    last.unwrap_err();
}

/// Held out of the poll, and free of leaks: the watchdog forgets streams that end.
#[tokio::test(start_paused = true)]
async fn the_watchdog_sleeps_when_there_is_nothing_to_watch() {
    let ledger = Ledger::default();
    let layer = armed(&ledger);
    let alive = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    assert_eq!(alive(), 0);
    for _ in 0..3 {
        let service = layer.layer(answering(&ledger, Script::new().data("a")));
        let response = service.oneshot(Request::new(())).await.unwrap();
        assert_eq!(alive(), 1);
        response.into_body().collect().await.unwrap();
        tokio::time::sleep(TIMEOUT).await;
        assert_eq!(alive(), 0);
    }
    assert_eq!(
        Poll::Ready(ledger.closers()),
        Poll::Ready(vec![Outcome::Complete; 3])
    );
}
