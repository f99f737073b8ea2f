//! Every layer order, every body, dropped after every number of polls: closers run exactly once, last
//! registered first, after the inner body is gone and the tasks are joined.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{Router, body::Body, error_handling::HandleError};
use bodyguard::{
    BoxError, Cleanup, CleanupLayer, Disconnect, DisconnectLayer, EndReport, Outcome, Stack,
    Supervisor, TaskGroup, TaskGroupLayer,
    scope::{Movable, ScopeLayer},
    testing::Script,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as _, SizeHint};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

mod support;

type Boxed = BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>;

/// What one run has seen.
#[derive(Default)]
struct Seen {
    handled: AtomicUsize,
    registered: Mutex<Vec<&'static str>>,
    closed: Mutex<Vec<&'static str>>,
    reports: Mutex<Vec<EndReport>>,
    tasks: AtomicUsize,
    /// What a closer found that it must not find.
    wrong: Mutex<Vec<&'static str>>,
}

/// A task's mark: gone once the task is dropped.
struct Alive(Arc<Seen>);

impl Alive {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.tasks.fetch_add(1, SeqCst);
        Self(seen.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, SeqCst);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum View {
    Cleanup,
    TaskGroup,
    Disconnect,
    Stack,
    /// `Disconnect` in the movable mode.
    Armed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Built {
    /// Tower services around each other.
    Plain,
    /// `Router::layer`, one after the other.
    Chained,
    /// A router in a router for each layer.
    Nested,
    /// tower-http's Trace, Timeout and Compression, and axum's boxing, between the layers.
    Foreign,
}

const BUILT: [Built; 4] = [Built::Plain, Built::Chained, Built::Nested, Built::Foreign];

/// Every order of one, two and three layers, and the stack, alone and around the others.
fn orders() -> Vec<Vec<View>> {
    use View::{Armed, Cleanup, Disconnect, Stack, TaskGroup};
    let single = [Cleanup, TaskGroup, Disconnect];
    let mut orders = vec![vec![Stack], vec![Cleanup, TaskGroup, Disconnect, Stack]];
    // Movable alone, outside, and inside, where it has a scope of its own.
    orders.push(vec![Armed]);
    orders.push(vec![Armed, Cleanup, TaskGroup]);
    orders.push(vec![Cleanup, TaskGroup, Armed]);
    orders.push(vec![Stack, Armed, Cleanup]);
    for a in single {
        orders.push(vec![a]);
        for b in single.into_iter().filter(|b| *b != a) {
            orders.push(vec![a, b]);
            for c in single.into_iter().filter(|c| *c != a && *c != b) {
                orders.push(vec![a, b, c]);
            }
        }
    }
    orders
}

/// What the handler does before it gives its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Handler {
    Ready,
    PendingTwice,
    Error,
    Panics,
}

struct Run {
    seen: Arc<Seen>,
    supervisor: Supervisor,
    service: Boxed,
    path: String,
}

/// Registers whatever the layers around it allow.
fn register(request: &Request<Body>, seen: &Arc<Seen>, probe: &bodyguard::testing::Probe) {
    seen.handled.fetch_add(1, SeqCst);
    if let Ok(group) = TaskGroup::of(request) {
        let alive = Alive::new(seen);
        group
            .spawn_background(async move {
                let _alive = alive;
                std::future::pending().await
            })
            .unwrap();
        let alive = Alive::new(seen);
        group
            .spawn_graceful(|cancel| async move {
                let _alive = alive;
                // Done by itself soon, or told to.
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(Duration::from_millis(5)) => {}
                }
                Ok(())
            })
            .unwrap();
    }
    let Ok(cleanup) = Cleanup::of(request) else {
        let _token = Disconnect::of(request).map(|disconnect| disconnect.token());
        return;
    };
    for name in ["first", "second", "third"] {
        seen.registered.lock().unwrap().push(name);
        let (seen, probe) = (seen.clone(), probe.clone());
        let close = move || {
            if !probe.is_dropped() {
                seen.wrong
                    .lock()
                    .unwrap()
                    .push("the inner body is still there");
            }
            if seen.tasks.load(SeqCst) > 0 {
                seen.wrong.lock().unwrap().push("a task is still there");
            }
            seen.closed.lock().unwrap().push(name);
        };
        if name == "second" {
            cleanup.defer_sync(move |_| close());
        } else {
            cleanup.defer(move |_| async move {
                tokio::task::yield_now().await;
                close();
                Ok(())
            });
        }
    }
}

impl Run {
    fn new(order: &[View], built: Built, script: Script, does: Handler) -> Self {
        let seen = Arc::new(Seen::default());
        let supervisor = Supervisor::new();
        let probe = script.probe();
        let script = Arc::new(Mutex::new(Some(script)));
        let in_handler = seen.clone();
        let handler = service_fn(move |request: Request<Body>| {
            register(&request, &in_handler, &probe);
            let script = script.lock().unwrap().take().unwrap();
            let mut polls = 0;
            poll_fn(move |cx| {
                polls += 1;
                match does {
                    Handler::PendingTwice if polls < 3 => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Handler::Error => return Poll::Ready(Err("no answer".into())),
                    Handler::Panics if polls == 2 => panic!("scripted"),
                    Handler::Panics => return Poll::Pending,
                    Handler::Ready | Handler::PendingTwice => {}
                }
                Poll::Ready(Ok::<_, BoxError>(()))
            })
            .with_body(script)
        });
        let handler = BoxCloneSyncService::new(handler);
        let (service, path) = build(order, built, handler, &supervisor, &seen);
        Self {
            seen,
            supervisor,
            service,
            path,
        }
    }

    fn call(&mut self) -> Answering {
        let request = Request::builder()
            .uri(&self.path)
            .header("accept-encoding", "gzip")
            .body(Body::empty())
            .unwrap();
        self.service.call(request)
    }

    /// Everything is over: what must be true now.
    async fn check(self, name: &str) {
        let mut turns = 0;
        while self.supervisor.active() > 0 || self.seen.tasks.load(SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            turns += 1;
            assert!(turns < 5_000, "{name}: {:?}", self.supervisor.snapshot());
        }
        let mut registered = self.seen.registered.lock().unwrap().clone();
        registered.reverse();
        assert_eq!(*self.seen.closed.lock().unwrap(), registered, "{name}");
        assert_eq!(*self.seen.wrong.lock().unwrap(), [""; 0], "{name}");
        let reports = self.seen.reports.lock().unwrap();
        assert!(reports.len() <= 1, "{name}: {} scopes", reports.len());
        let ran: u64 = reports.iter().map(|report| report.counts.closers_run).sum();
        assert_eq!(ran, registered.len() as u64, "{name}");
    }

    fn outcome(&self) -> Option<Outcome> {
        let reports = self.seen.reports.lock().unwrap();
        reports.first().map(EndReport::outcome)
    }
}

/// Gives a response with this body once the future is ready: the body waits in the future.
trait WithBody: Future<Output = Result<(), BoxError>> + Sized {
    async fn with_body(self, body: Script) -> Result<Response<Body>, BoxError> {
        self.await?;
        let response = Response::builder().header("content-type", "text/plain");
        Ok(response.body(Body::new(body)).unwrap())
    }
}

impl<F: Future<Output = Result<(), BoxError>>> WithBody for F {}

/// Armed for what does not come here.
fn armed() -> ScopeLayer<Disconnect, Movable> {
    let hour = Duration::from_secs(3_600);
    DisconnectLayer::new().stall_timeout(hour).detachable(hour)
}

fn build(
    order: &[View],
    built: Built,
    handler: Boxed,
    supervisor: &Supervisor,
    seen: &Arc<Seen>,
) -> (Boxed, String) {
    let mut path = "/".to_owned();
    let mut layers = order.iter().rev().peekable();
    let report = |outermost: bool| {
        let seen = seen.clone();
        move |report: &EndReport| {
            if outermost {
                seen.reports.lock().unwrap().push(report.clone());
            }
        }
    };
    if built == Built::Plain {
        let mut service = handler;
        macro_rules! plain {
            ($inner:expr, $layer:expr) => {
                BoxCloneSyncService::new($layer.layer($inner).map_response(|r| r.map(Body::new)))
            };
        }
        while let Some(view) = layers.next() {
            let hook = report(layers.peek().is_none());
            service = match view {
                View::Cleanup => plain!(
                    service,
                    CleanupLayer::new().supervisor(supervisor).on_end(hook)
                ),
                View::TaskGroup => plain!(
                    service,
                    TaskGroupLayer::new().supervisor(supervisor).on_end(hook)
                ),
                View::Disconnect => plain!(
                    service,
                    DisconnectLayer::new().supervisor(supervisor).on_end(hook)
                ),
                View::Stack => plain!(service, Stack::new().supervisor(supervisor).on_end(hook)),
                View::Armed => plain!(service, armed().supervisor(supervisor).on_end(hook)),
            };
        }
        return (service, path);
    }
    let answered = HandleError::new(handler, |_: BoxError| async {
        StatusCode::INTERNAL_SERVER_ERROR
    });
    let mut router = Router::new().route_service("/", answered);
    macro_rules! routed {
        ($router:expr, $layer:expr) => {{
            let router = $router.layer($layer);
            match built {
                Built::Nested => {
                    path.insert_str(0, "/n");
                    Router::new().nest("/n", router)
                }
                Built::Foreign => router
                    .layer(tower_http::trace::TraceLayer::new_for_http())
                    .layer(tower_http::timeout::TimeoutLayer::with_status_code(
                        StatusCode::REQUEST_TIMEOUT,
                        Duration::from_secs(3600),
                    ))
                    .layer(tower_http::compression::CompressionLayer::new()),
                Built::Chained | Built::Plain => router,
            }
        }};
    }
    while let Some(view) = layers.next() {
        let hook = report(layers.peek().is_none());
        router = match view {
            View::Cleanup => routed!(
                router,
                CleanupLayer::new().supervisor(supervisor).on_end(hook)
            ),
            View::TaskGroup => routed!(
                router,
                TaskGroupLayer::new().supervisor(supervisor).on_end(hook)
            ),
            View::Disconnect => routed!(
                router,
                DisconnectLayer::new().supervisor(supervisor).on_end(hook)
            ),
            View::Stack => routed!(router, Stack::new().supervisor(supervisor).on_end(hook)),
            View::Armed => routed!(router, armed().supervisor(supervisor).on_end(hook)),
        };
    }
    let service = ServiceExt::<Request<Body>>::map_err(
        router,
        |never: std::convert::Infallible| match never {},
    );
    let path = if path.len() > 1 {
        path.trim_end_matches('/').to_owned()
    } else {
        path
    };
    (BoxCloneSyncService::new(service), path)
}

fn trailers() -> HeaderMap {
    [("a".parse().unwrap(), "b".parse().unwrap())]
        .into_iter()
        .collect()
}

#[rustfmt::skip]
const SCRIPTS: &[(&str, fn() -> Script)] = &[
    ("empty", || Script::new()),
    ("empty, end hint", || Script::new().end_hint()),
    ("frames", || Script::new().data("a").pending().data("b").data("c")),
    ("end hint", || Script::new().data("a").pending().data("b").end_hint()),
    ("exact hint", || Script::new().pending().data("a").data("b").exact_hint()),
    ("both hints", || Script::new().data("a").data("b").exact_hint().end_hint()),
    ("one ready frame", || Script::new().data("abc").exact_hint()),
    ("trailers", || Script::new().data("a").pending().trailers(trailers())),
    ("error", || Script::new().data("a").pending().error("disk")),
    ("panic", || Script::new().data("a").pending().panic("scripted")),
    ("short", || Script::new().data("a").pending().data("b").hint(SizeHint::with_exact(9))),
    ("long", || Script::new().data("a").data("bcd").hint(SizeHint::with_exact(2))),
    ("hang", || Script::new().data("a").hang()),
];

/// How one poll came out.
enum Polled {
    Goes,
    Whole,
    Broken,
}

fn poll_body(body: &mut Body) -> Polled {
    if body.is_end_stream() {
        return Polled::Whole;
    }
    let mut cx = Context::from_waker(Waker::noop());
    let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(&mut cx)));
    match polled {
        Err(_) | Ok(Poll::Ready(Some(Err(_)))) => Polled::Broken,
        Ok(Poll::Ready(None)) => Polled::Whole,
        Ok(Poll::Ready(Some(Ok(frame)))) if frame.is_trailers() => Polled::Whole,
        Ok(_) => Polled::Goes,
    }
}

/// Gives tasks and timers their turn.
async fn turn() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// Without backtraces and messages: thousands of panics are part of the script.
fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        if !text.contains("scripted") {
            eprintln!("{text}");
        }
    }));
}

#[tokio::test(start_paused = true)]
async fn bodies() {
    quiet();
    let (mut runs, mut combinations) = (0, 0);
    for order in orders() {
        for built in BUILT {
            for (script_name, script) in SCRIPTS {
                combinations += 1;
                for polls in 0..20 {
                    runs += 1;
                    let name = format!("{order:?} {built:?} {script_name}, {polls} polls");
                    let mut run = Run::new(&order, built, script(), Handler::Ready);
                    let answering = catch_unwind(AssertUnwindSafe(|| run.call())).unwrap();
                    let answer = finish(answering).await;
                    assert_eq!(run.seen.handled.load(SeqCst), 1, "{name}");
                    let Some(response) = answer else {
                        run.check(&name).await;
                        break;
                    };
                    let mut body = response.into_body();
                    let mut end = None;
                    for _ in 0..polls {
                        match poll_body(&mut body) {
                            Polled::Goes => turn().await,
                            ended => {
                                end = Some(ended);
                                break;
                            }
                        }
                    }
                    drop(body);
                    let over = end.is_some();
                    if let Some(Polled::Whole) = end {
                        assert!(
                            matches!(run.outcome(), Some(Outcome::Complete | Outcome::Failed)),
                            "{name}: {:?}",
                            run.outcome()
                        );
                    }
                    run.check(&name).await;
                    if over {
                        break;
                    }
                }
            }
        }
    }
    println!("bodies: {combinations} combinations of layers, building and body; {runs} runs");
    assert!(runs > 3_000);
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

/// Drives the future to its end; `None` if it panics.
async fn finish(answering: Answering) -> Option<Response<Body>> {
    use futures_util::FutureExt;
    AssertUnwindSafe(answering).catch_unwind().await.ok()?.ok()
}

#[tokio::test(start_paused = true)]
async fn handlers() {
    quiet();
    let mut runs = 0;
    for order in orders() {
        for built in BUILT {
            for does in [
                Handler::Ready,
                Handler::PendingTwice,
                Handler::Error,
                Handler::Panics,
            ] {
                for polls in 0..8 {
                    runs += 1;
                    let name = format!("{order:?} {built:?} {does:?}, {polls} polls");
                    let script = Script::new().data("a").pending().data("b");
                    let mut run = Run::new(&order, built, script, does);
                    let mut answering = run.call();
                    let mut over = false;
                    for _ in 0..polls {
                        let mut cx = Context::from_waker(Waker::noop());
                        let polled =
                            catch_unwind(AssertUnwindSafe(|| answering.as_mut().poll(&mut cx)));
                        if !matches!(polled, Ok(Poll::Pending)) {
                            over = true;
                            break;
                        }
                        turn().await;
                    }
                    // An answer is dropped with its body unread.
                    drop(answering);
                    if over && does == Handler::Panics {
                        eventually_reported(&run, Outcome::Panicked, &name).await;
                    }
                    run.check(&name).await;
                    if over {
                        break;
                    }
                }
            }
        }
    }
    println!("handlers: {runs} runs");
    assert!(runs > 500);
}

async fn eventually_reported(run: &Run, outcome: Outcome, name: &str) {
    support::eventually(|| run.outcome().is_some()).await;
    assert_eq!(run.outcome(), Some(outcome), "{name}");
}
