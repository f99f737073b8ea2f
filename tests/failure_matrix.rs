//! Every way a member of a task group can fail, at every place and time, over real sockets: the
//! client never takes a broken response for a whole one.
//!
//! How three of the cells are read:
//! - *abort*: nothing outside can abort a task of a group, and that is meant so. What can happen is
//!   that something a task waits for is aborted; its `JoinError` then is the task's error.
//! - *early return*: a member that returns `Ok` before its siblings is done, no more; the response
//!   must be whole, with a clean end.
//! - *hang*: with its sender dropped, a member overruns the join limit. One that hangs with its
//!   sender in hand keeps the stream open; the server's shutdown then has to break it.
//! - *then*: a second member fails in its own way when the first one's failure cancels it.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    future::pending,
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use bodyguard::{
    BodyError, EndReport, Outcome, Shutdown, Stack, Supervisor, TaskGroup, TaskResult, net,
    scope::{Failure, FailureKind},
    task_group::{FrameSender, GroupBody},
};
use bytes::Bytes;
use flate2::write::GzDecoder;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::{oneshot, watch},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

#[path = "support/waits.rs"]
mod waits;
use waits::in_time;

const DEADLINE: Duration = Duration::from_secs(30);
const JOIN_LIMIT: Duration = Duration::from_millis(300);
/// Long enough for the frames before it to leave, also on a machine that does much else.
const ERROR_GAP: Duration = Duration::from_millis(150);
const MEMBERS: usize = 4;
const OWN: usize = MEMBERS - 1;
const FRAMES: usize = 12;
/// Cells in flight at once.
const AT_ONCE: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Error,
    Panic,
    Abort,
    EarlyReturn,
    Hang,
    HangHolding,
    /// An error, on whose cancellation another member fails as well, or panics.
    ThenAnError,
    ThenAPanic,
}

/// Before which frame it happens; `FRAMES` is after the last.
const TIMES: [usize; 3] = [0, FRAMES / 2, FRAMES];

#[derive(Clone, Copy, Debug)]
struct Cell {
    kind: Kind,
    who: usize,
    when: usize,
    http2: bool,
    gzip: bool,
}

impl Cell {
    fn all(kinds: &[Kind]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &kind in kinds {
            for who in 0..MEMBERS {
                for when in TIMES {
                    for (http2, gzip) in
                        [(false, false), (false, true), (true, false), (true, true)]
                    {
                        cells.push(Cell {
                            kind,
                            who,
                            when,
                            http2,
                            gzip,
                        });
                    }
                }
            }
        }
        cells
    }

    fn path(self) -> String {
        let Cell {
            kind, who, when, ..
        } = self;
        format!("/{kind:?}/{who}/{when}/{}/{}", self.http2, self.gzip)
    }

    /// The others finish the stream without the one of this cell.
    fn goes_on(self) -> bool {
        matches!(
            self.kind,
            Kind::EarlyReturn | Kind::Hang | Kind::HangHolding
        )
    }

    /// The member that fails second; it is never the group's own future.
    fn second(self) -> Option<usize> {
        matches!(self.kind, Kind::ThenAnError | Kind::ThenAPanic).then(|| (self.who + 1) % OWN)
    }

    /// Whose turn a frame is. A member that fails does so at its turn, and nobody's comes after.
    fn sender_of(self, frame: usize) -> usize {
        let sender = frame % MEMBERS;
        match self.goes_on() && frame >= self.when && sender == self.who {
            true => (sender + 1) % MEMBERS,
            false => sender,
        }
    }

    /// What the client is to get before the end.
    fn text(self) -> String {
        let frames = if self.goes_on() { FRAMES } else { self.when };
        (0..frames).map(frame).collect()
    }
}

fn frame(number: usize) -> String {
    format!("frame {number}\n")
}

#[derive(Debug)]
struct Boom;

impl fmt::Display for Boom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("boom")
    }
}

impl Error for Boom {}

/// What the server's side saw, by path.
#[derive(Clone, Default)]
struct Seen {
    cells: Arc<Mutex<HashMap<String, Cell>>>,
    reports: Arc<Mutex<HashMap<String, EndReport>>>,
    errors: Arc<Mutex<HashMap<String, BodyError>>>,
    /// Futures of members that exist: counted by their own drop guards.
    live: Arc<AtomicUsize>,
}

struct Live(Arc<AtomicUsize>);

impl Live {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Live(count.clone())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Turns {
    /// The frame whose turn it is.
    now: watch::Sender<usize>,
    /// The one that fails second has begun: before, there is nobody to cancel.
    second: watch::Sender<bool>,
}

async fn member(
    cell: Cell,
    me: usize,
    turn: Arc<Turns>,
    tx: FrameSender,
    _live: Live,
) -> TaskResult {
    let mut turns = turn.now.subscribe();
    for number in 0..=FRAMES {
        if me == cell.who && number == cell.when {
            turns.wait_for(|now| *now >= number).await?;
            if cell.second().is_some() {
                turn.second.subscribe().wait_for(|begun| *begun).await?;
            }
            return fail(cell.kind, tx).await;
        }
        if number < FRAMES && cell.sender_of(number) == me {
            // The turn that a failing member had is never over.
            turns
                .wait_for(|now| *now == number && (cell.goes_on() || number != cell.when))
                .await?;
            tx.send(frame(number)).await?;
            turn.now.send_replace(number + 1);
        }
    }
    Ok(())
}

async fn fail(kind: Kind, tx: FrameSender) -> TaskResult {
    match kind {
        Kind::Error | Kind::ThenAnError | Kind::ThenAPanic => Err(Boom.into()),
        Kind::Panic => panic!("boom"),
        Kind::Abort => {
            let mut tasks = JoinSet::new();
            tasks.spawn(pending::<()>()).abort();
            while let Some(result) = tasks.join_next().await {
                result?;
            }
            unreachable!("an aborted task is an error")
        }
        Kind::EarlyReturn => Ok(()),
        Kind::Hang => {
            drop(tx);
            pending().await
        }
        Kind::HangHolding => pending().await,
    }
}

/// A member until it is cancelled, and then a failure of its own.
async fn second(
    kind: Kind,
    turn: Arc<Turns>,
    cancel: CancellationToken,
    first: impl Future<Output = TaskResult>,
) -> TaskResult {
    turn.second.send_replace(true);
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        // One that has sent all its frames waits for the cancellation all the same.
        Err(error) = first => return Err(error),
    }
    match kind {
        Kind::ThenAPanic => panic!("boom"),
        _ => Err("while ending".into()),
    }
}

async fn handler(State(seen): State<Seen>, group: TaskGroup, request: Request) -> GroupBody {
    let cell = seen.cells.lock().unwrap()[request.uri().path()];
    let tasks = group.clone();
    group.body(move |tx| async move {
        let turn = Arc::new(Turns::default());
        for me in 0..OWN {
            let live = Live::new(&seen.live);
            let member = member(cell, me, turn.clone(), tx.clone(), live);
            if cell.second() == Some(me) {
                let turn = turn.clone();
                tasks.spawn_graceful(move |cancel| second(cell.kind, turn, cancel, member))?;
            } else {
                tasks.spawn(member)?;
            }
        }
        let live = Live::new(&seen.live);
        member(cell, OWN, turn, tx, live).await
    })
}

/// Outside of everything: writes down what the body fails with.
async fn record(State(seen): State<Seen>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    next.run(request).await.map(|body| {
        Body::new(body.map_err(move |error| {
            let error = error.into_inner();
            let failed = error.downcast_ref::<BodyError>().unwrap().clone();
            seen.errors.lock().unwrap().insert(path.clone(), failed);
            error
        }))
    })
}

struct Server {
    addr: std::net::SocketAddr,
    seen: Seen,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinSet<std::io::Result<bodyguard::DrainReport>>,
}

impl Server {
    async fn start(policy: Shutdown) -> Self {
        let seen = Seen::default();
        let supervisor = Supervisor::new();
        let reports = seen.reports.clone();
        let compression = bodyguard::compression::CompressionLayer::new();
        let stack = Stack::new()
            .compression(compression)
            .supervisor(&supervisor)
            .join_limit(JOIN_LIMIT)
            .error_gap(ERROR_GAP)
            .shutdown(policy)
            .on_end(move |report| {
                let path = report.uri.path().to_owned();
                let twice = reports.lock().unwrap().insert(path, report.clone());
                assert!(twice.is_none());
            });
        let app = Router::new()
            .fallback(handler)
            .with_state(seen.clone())
            .layer(stack)
            .layer(from_fn_with_state(seen.clone(), record));
        let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut serving = JoinSet::new();
        let server = net::serve(listener, app)
            .supervisor(&supervisor)
            .deadline(DEADLINE)
            .shutdown(async { drop(stopped.await) });
        serving.spawn(server.into_future());
        Self {
            addr,
            seen,
            stop: Some(stop),
            serving,
        }
    }

    async fn stop(&mut self) -> bodyguard::DrainReport {
        drop(self.stop.take());
        within(self.serving.join_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }
}

async fn within<F: Future>(what: F) -> F::Output {
    let waited = in_time(DEADLINE, what).await;
    waited.expect("nothing happened before the deadline")
}

/// What a client makes of a response.
struct Received {
    text: String,
    clean: bool,
}

/// Decodes as far as the bytes go. `finish` fails unless the gzip member is whole.
enum Decoder {
    Plain(Vec<u8>),
    Gzip(GzDecoder<Vec<u8>>),
}

impl Decoder {
    fn push(&mut self, data: &[u8]) {
        match self {
            Decoder::Plain(text) => text.extend_from_slice(data),
            Decoder::Gzip(decoder) => {
                decoder.write_all(data).unwrap();
                decoder.flush().unwrap();
            }
        }
    }

    fn text(&self) -> String {
        let bytes = match self {
            Decoder::Plain(text) => text,
            Decoder::Gzip(decoder) => decoder.get_ref(),
        };
        String::from_utf8(bytes.clone()).unwrap()
    }

    fn is_whole(&mut self) -> bool {
        match self {
            Decoder::Plain(_) => true,
            Decoder::Gzip(decoder) => decoder.try_finish().is_ok(),
        }
    }
}

/// Fetches a cell; `reached` is told once the whole text has come.
async fn fetch(server: &Server, cell: Cell, mut reached: Option<oneshot::Sender<()>>) -> Received {
    server.seen.cells.lock().unwrap().insert(cell.path(), cell);
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let mut request =
        http::Request::get(format!("http://{}{}", server.addr, cell.path())).header("host", "x");
    if cell.gzip {
        request = request.header("accept-encoding", "gzip");
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let mut driver = JoinSet::new();
    let io = TokioIo::new(tcp);
    let response = if cell.http2 {
        let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .unwrap();
        driver.spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
        driver.spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("content-length"));
    assert_eq!(
        response.headers().contains_key("content-encoding"),
        cell.gzip
    );
    let mut decoder = match cell.gzip {
        true => Decoder::Gzip(GzDecoder::new(Vec::new())),
        false => Decoder::Plain(Vec::new()),
    };
    let mut body = response.into_body();
    let clean = loop {
        match body.frame().await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => decoder.push(frame.data_ref().unwrap_or(&Bytes::new())),
        }
        if decoder.text() == cell.text() {
            drop(reached.take());
        }
    };
    let text = decoder.text();
    // A cut gzip member must not look whole, whatever HTTP says about the end.
    assert!(!cell.gzip || decoder.is_whole() == clean, "{cell:?}");
    Received { text, clean }
}

/// The causes are the same ones for the body's error and the report, and the first is of this kind.
fn check_cause(seen: &Seen, cell: Cell) {
    let reports = seen.reports.lock().unwrap();
    let report = &reports[&cell.path()];
    let cause = report.ending.cause().expect("the report has the cause");
    let errors = seen.errors.lock().unwrap();
    let error = errors.get(&cell.path()).expect("the body has failed");
    assert!(Arc::ptr_eq(cause, error.cause()), "{report:?}");
    if cell.kind == Kind::HangHolding {
        // Ended by the shutdown: the cause of the end, and nobody's error.
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(error.causes().len(), 1, "{error:?}");
    } else {
        let causes = error.causes();
        assert_eq!(causes.len(), report.errors.len(), "{report:?} {error:?}");
        let mut both = causes.iter().zip(&report.errors);
        assert!(both.all(|(one, other)| Arc::ptr_eq(one, other)));
        assert!(Arc::ptr_eq(cause, &report.errors[0]), "{report:?}");
        check_rest(cell, report);
    }
    assert!(!report.ending.succeeded());
    let failure = cause.downcast_ref::<Failure>().map(Failure::kind);
    match cell.kind {
        Kind::Error | Kind::ThenAnError | Kind::ThenAPanic => assert!(cause.is::<Boom>()),
        Kind::Abort => assert!(cause.downcast_ref::<JoinError>().unwrap().is_cancelled()),
        Kind::Panic => match failure {
            Some(FailureKind::Panicked { what, message }) => {
                assert_eq!(message, "boom");
                assert!(
                    what.starts_with("task at tests/failure_matrix.rs:"),
                    "{what}"
                );
            }
            other => panic!("{other:?}"),
        },
        Kind::Hang => match failure {
            Some(FailureKind::OverranLimit { what, limit }) => {
                assert_eq!(*limit, JOIN_LIMIT);
                assert!(
                    what.starts_with("task at tests/failure_matrix.rs:"),
                    "{what}"
                );
            }
            other => panic!("{other:?}"),
        },
        Kind::HangHolding => match failure {
            Some(FailureKind::Ended { outcome }) => assert_eq!(*outcome, Outcome::Shutdown),
            other => panic!("{other:?}"),
        },
        Kind::EarlyReturn => unreachable!("no failure"),
    }
    let expected = match cell.kind {
        Kind::Panic => Outcome::Panicked,
        Kind::HangHolding => Outcome::Shutdown,
        _ => Outcome::Failed,
    };
    assert_eq!(report.outcome(), expected);
}

/// Every failure is in the report, and counted; the first is the cause.
fn check_rest(cell: Cell, report: &EndReport) {
    let rest: Vec<_> = report.errors[1..].iter().collect();
    let panics = [cell.kind == Kind::Panic, cell.kind == Kind::ThenAPanic];
    let panics = panics.into_iter().filter(|panic| *panic).count();
    let counts = (report.counts.tasks_failed, report.counts.tasks_panicked);
    match (cell.kind, &rest[..]) {
        (Kind::ThenAnError, [second]) => assert_eq!(second.to_string(), "while ending"),
        (Kind::ThenAPanic, [second]) => {
            let kind = second.downcast_ref::<Failure>().map(Failure::kind);
            let told =
                matches!(kind, Some(FailureKind::Panicked { message, .. }) if message == "boom");
            assert!(told, "{report:?}");
        }
        (Kind::ThenAnError | Kind::ThenAPanic, _) => panic!("{cell:?}: {report:?}"),
        (_, rest) => assert!(rest.is_empty(), "{report:?}"),
    }
    if !matches!(cell.kind, Kind::Hang) {
        assert_eq!(counts.1, panics as u64, "{report:?}");
        assert_eq!(counts.0 + counts.1, 1 + rest.len() as u64, "{report:?}");
    }
}

async fn run(server: &Server, cell: Cell) {
    let received = within(fetch(server, cell, None)).await;
    assert_eq!(received.text, cell.text(), "{cell:?}");
    if cell.kind == Kind::EarlyReturn {
        assert!(received.clean, "{cell:?}: broken");
        let reports = server.seen.reports.lock().unwrap();
        let report = &reports[&cell.path()];
        assert!(report.ending.succeeded() && report.errors.is_empty());
        assert_eq!(report.counts.tasks_joined, MEMBERS as u64);
        assert!(
            !server
                .seen
                .errors
                .lock()
                .unwrap()
                .contains_key(&cell.path())
        );
    } else {
        assert!(!received.clean, "{cell:?}: a clean end");
        check_cause(&server.seen, cell);
    }
}

/// Expected panics are not to fill the output.
fn quiet() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"boom") {
            before(info);
        }
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_takes_a_failure_for_a_whole_response() {
    quiet();
    let mut server = Server::start(Shutdown::finish()).await;
    let kinds = [
        Kind::Error,
        Kind::Panic,
        Kind::Abort,
        Kind::EarlyReturn,
        Kind::Hang,
        Kind::ThenAnError,
        Kind::ThenAPanic,
    ];
    let cells = Cell::all(&kinds);
    let ran = stream::iter(cells.iter().map(|cell| run(&server, *cell)))
        .buffer_unordered(AT_ONCE)
        .count()
        .await;
    println!("failure matrix: {ran} cells ran");
    assert_eq!(ran, 7 * 4 * 3 * 2 * 2);
    let drained = server.stop().await;
    assert!(drained.stuck.is_empty());
    assert_eq!(server.seen.live.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_with_its_sender_is_broken_by_the_shutdown() {
    let cells = Cell::all(&[Kind::HangHolding]);
    let run = |cell: Cell| async move {
        let mut server = Server::start(Shutdown::abort()).await;
        let (reached, whole) = oneshot::channel();
        let stop = server.stop.take();
        let (received, ()) = tokio::join!(within(fetch(&server, cell, Some(reached))), async {
            // All that the others had to say has come; the stream stays open until the shutdown.
            let _ = whole.await;
            drop(stop);
        });
        assert_eq!(received.text, cell.text(), "{cell:?}");
        assert!(!received.clean, "{cell:?}: a clean end");
        let drained = server.stop().await;
        assert_eq!((drained.aborted, drained.stuck.len()), (1, 0), "{drained}");
        check_cause(&server.seen, cell);
        assert_eq!(server.seen.live.load(Ordering::SeqCst), 0);
    };
    let ran = stream::iter(cells.iter().map(|cell| run(*cell)))
        .buffer_unordered(AT_ONCE)
        .count()
        .await;
    println!("failure matrix: {ran} cells more ran, hanging with the sender in hand");
    assert_eq!(ran, 4 * 3 * 2 * 2);
}
