//! Django ticket 37066: close an async stream deterministically when its consumer leaves.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bodyguard::{
    BoxError, Cleanup, CleanupLayer, CompressionLayer, DisconnectLayer, Ending, Outcome, Stack,
    Supervisor, TaskGroup,
    cleanup::CleanupBody,
    close, closing,
    testing::{Script, take_frames},
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Http2, Server, within};

type Log = Arc<Mutex<Vec<String>>>;

fn note(log: &Log, what: impl Into<String>) {
    log.lock().unwrap().push(what.into());
}

fn lines(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock().unwrap())
}

/// A producer whose own cleanup is seen when it is dropped.
struct Producer(Log);

impl Drop for Producer {
    fn drop(&mut self) {
        note(&self.0, "producer dropped");
    }
}

/// Frames for ever, one a millisecond; holds the producer.
fn producing(log: &Log) -> Body {
    let frames = futures_util::stream::unfold(Producer(log.clone()), |producer| async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((Ok::<_, Infallible>("row\n"), producer))
    });
    Body::from_stream(frames)
}

/// An app that streams for ever, with one closer that notes its ending and may fail.
fn app(log: &Log, fails: bool) -> Router {
    let log = log.clone();
    let handler = get(move |cleanup: Cleanup| async move {
        let closing = log.clone();
        cleanup.defer(move |ending: Ending| async move {
            tokio::task::yield_now().await;
            note(&closing, format!("closed {}", ending.outcome()));
            if fails {
                Err("rollback failed".into())
            } else {
                Ok(())
            }
        });
        producing(&log)
    });
    Router::new().route("/", handler)
}

fn request() -> Request<Body> {
    Request::builder()
        .header("accept-encoding", "gzip")
        .body(Body::empty())
        .unwrap()
}

// "Early exit of the consumer (break, error, cancellation) closes the producer at once."
#[tokio::test(start_paused = true)]
async fn early_exit_closes_the_producer_at_once() {
    let log = Log::default();
    let body = CleanupBody::new(producing(&log)).defer_sync({
        let log = log.clone();
        move |ending| note(&log, format!("closed {}", ending.outcome()))
    });
    let mut body = Box::pin(body);
    body.frame().await.unwrap().unwrap();
    drop(body);
    // The drop itself did it; closers wait for nothing but their turn.
    assert_eq!(lines(&log), ["producer dropped"]);
    tokio::task::yield_now().await;
    assert_eq!(lines(&log), ["closed Dropped"]);
}

// The same by cancellation: the task that consumes is aborted.
#[tokio::test(start_paused = true)]
async fn a_cancelled_consumer_closes_the_producer() {
    let log = Log::default();
    let response = app(&log, false)
        .layer(CleanupLayer::new())
        .oneshot(request())
        .await
        .unwrap();
    let mut consuming = tokio::task::JoinSet::new();
    consuming.spawn(async move {
        let mut body = response.into_body();
        while let Some(Ok(_)) = body.frame().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    consuming.shutdown().await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(lines(&log), ["producer dropped", "closed Dropped"]);
}

/// A foreign wrapper with our body inside.
fn foreign(response: Response<Body>) -> Response<Body> {
    let limited = response.map(|body| http_body_util::Limited::new(body, usize::MAX));
    limited.map(|body| Body::new(body.map_frame(|frame| frame).boxed_unsync()))
}

// "Closing goes through every wrapper", and "the consumer that exits early waits for the close".
#[tokio::test(start_paused = true)]
async fn early_exit_waits_for_the_close_through_boxed_and_foreign_bodies() {
    let log = Log::default();
    let app = app(&log, false)
        .layer(CleanupLayer::new())
        .layer(tower_http::trace::TraceLayer::new_for_http())
        .layer(tower_http::compression::CompressionLayer::new());
    let response = foreign(app.oneshot(request()).await.unwrap());
    let mut response = closing(response);
    while let Some(frame) = response.frame().await {
        if frame.unwrap().is_data() {
            break;
        }
    }
    let report = response.close().await.unwrap().unwrap();
    assert_eq!(report.outcome(), Outcome::Dropped);
    assert_eq!(report.counts.closers_run, 1);
    assert_eq!(lines(&log), ["producer dropped", "closed Dropped"]);
}

// "An error in the generator's `finally` reaches the consumer instead of the loop's handler."
#[tokio::test(start_paused = true)]
async fn an_error_of_the_cleanup_reaches_the_consumer_that_left_early() {
    let log = Log::default();
    let app = app(&log, true).layer(CleanupLayer::new());
    let response = foreign(app.oneshot(request()).await.unwrap());
    let error = close(response).await.unwrap_err();
    assert_eq!(error.errors()[0].to_string(), "rollback failed");
    assert_eq!(error.report().counts.closers_failed, 1);
    assert_eq!(lines(&log), ["producer dropped", "closed Dropped"]);
}

// The same where the closer is the body's own, or that of an armed layer inside.
#[tokio::test(start_paused = true)]
async fn an_error_of_a_cleanup_further_in_reaches_the_consumer_that_left_early() {
    let own = get(|| async {
        CleanupBody::new(Body::new(Script::new().data("a").hang()))
            .defer(|_| async { Err("rollback failed".into()) })
    });
    let own: Router = Router::new().route("/", own).layer(CleanupLayer::new());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hook = heard.clone();
    let stack = Stack::new().on_end(move |end| {
        hook.lock()
            .unwrap()
            .extend(end.errors.iter().map(ToString::to_string))
    });
    let armed = app(&Log::default(), true)
        .layer(DisconnectLayer::new().detachable(Duration::from_secs(60)))
        .layer(stack);
    for app in [own, armed] {
        let response = foreign(app.oneshot(request()).await.unwrap());
        let error = close(response).await.unwrap_err();
        let errors = error.errors().iter().map(ToString::to_string);
        assert_eq!(errors.collect::<Vec<_>>(), ["rollback failed"]);
        assert_eq!(error.report().counts.closers_failed, 1);
    }
    assert_eq!(*heard.lock().unwrap(), ["rollback failed"]);
}

// The same on the natural path: it is the body's error.
#[tokio::test(start_paused = true)]
async fn an_error_of_the_cleanup_reaches_the_consumer_at_the_end() {
    let body = CleanupBody::new(Script::new().data("a").pending().data("b"))
        .defer(|_| async { Err("commit failed".into()) });
    let error = body.collect().await.unwrap_err();
    assert_eq!(error.cause().to_string(), "commit failed");
}

// "`aclose()` is idempotent on nested closes."
#[tokio::test(start_paused = true)]
async fn nested_closes_close_once() {
    let log = Log::default();
    let inner = app(&log, false)
        .layer(CleanupLayer::new())
        .layer(Stack::new())
        .layer(CleanupLayer::new());
    let mut response = closing(inner.oneshot(request()).await.unwrap());
    response.frame().await.unwrap().unwrap();
    response.close().await.unwrap().unwrap();
    assert_eq!(lines(&log), ["producer dropped", "closed Dropped"]);
}

// A response that is over before anybody closes it still has its report.
#[tokio::test(start_paused = true)]
async fn closing_what_has_ended_gives_how_it_ended() {
    let handler = get(|cleanup: Cleanup| async move {
        cleanup.defer(|_| async { Ok(()) });
        "whole"
    });
    let app: Router = Router::new().route("/", handler).layer(CleanupLayer::new());
    let response = app.oneshot(request()).await.unwrap();
    let report = close(response).await.unwrap().unwrap();
    assert_eq!(report.outcome(), Outcome::Complete);
    assert!(report.ending.succeeded());
}

// "`maybe_aclosing` … wraps what may or may not be closable."
#[tokio::test(start_paused = true)]
async fn closing_takes_any_response() {
    assert!(close(Response::new(())).await.unwrap().is_none());
    let mut plain = closing(Response::new(Full::new(bytes::Bytes::from("a"))));
    assert_eq!(
        plain.frame().await.unwrap().unwrap().into_data().unwrap(),
        "a"
    );
    assert!(plain.close().await.unwrap().is_none());
    // With layers on and nothing to close.
    let app: Router = Router::new()
        .route("/", get(|| async { "plain" }))
        .layer(Stack::new());
    assert!(
        close(app.oneshot(request()).await.unwrap())
            .await
            .unwrap()
            .is_none()
    );
}

// "The generator's cleanup runs even if the loop is torn down first."
#[test]
fn cleanup_runs_even_if_the_runtime_is_torn_down_first() {
    let log = Log::default();
    let supervisor = Supervisor::new();
    let reports = Log::default();
    let (report, layer) = (reports.clone(), CleanupLayer::new().supervisor(&supervisor));
    let layer = layer.on_end(move |end| {
        let counts = end.counts;
        note(
            &report,
            format!("run {} unrun {}", counts.closers_run, counts.closers_unrun),
        );
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let closer = log.clone();
    let handler = service_fn(move |request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        let log = closer.clone();
        cleanup.defer_sync(move |_| note(&log, "sync closer"));
        cleanup.defer(|_| async { Ok(()) });
        async { Ok::<_, Infallible>(Response::new(Script::new().data("a").hang())) }
    });
    let service = layer.layer(handler);
    let response = runtime.block_on(service.oneshot(Request::new(()))).unwrap();
    drop(runtime);
    drop(response);
    assert_eq!(lines(&log), ["sync closer"]);
    assert_eq!(lines(&reports), ["run 1 unrun 1"]);
    assert_eq!(supervisor.active(), 0);
}

/// An export in a transaction: rows in batches of ten, committed or rolled back by its closer.
fn export(pool: &sqlx::SqlitePool, prefetch: bool) -> Router {
    type Batch = Result<String, BoxError>;
    async fn batch(
        open: &tokio::sync::Mutex<Option<sqlx::SqliteTransaction<'_>>>,
        from: i64,
    ) -> Batch {
        let mut open = open.lock().await;
        let open = open.as_mut().ok_or("the transaction is over")?;
        let query = sqlx::query_scalar("select n from rows where n > ? order by n limit 10");
        let rows: Vec<i64> = query.bind(from).fetch_all(&mut **open).await?;
        Ok(rows.iter().map(|n| format!("{n}\n")).collect())
    }
    let pool = pool.clone();
    let handler = get(move |cleanup: Cleanup, group: TaskGroup| async move {
        let mut begun = pool.begin().await.unwrap();
        let noted = sqlx::query("insert into exports values (1)");
        noted.execute(&mut *begun).await.unwrap();
        let open = Arc::new(tokio::sync::Mutex::new(Some(begun)));
        let closing = open.clone();
        cleanup.defer(move |ending| async move {
            let open = closing.lock().await.take().ok_or("closed twice")?;
            match ending.succeeded() {
                true => open.commit().await?,
                false => open.rollback().await?,
            }
            Ok(())
        });
        if prefetch {
            // The next batches are fetched while the client reads.
            return Body::new(group.body(move |tx| async move {
                for from in (0..).step_by(10) {
                    let rows = batch(&open, from).await?;
                    if rows.is_empty() {
                        break;
                    }
                    tx.send(rows).await?;
                }
                Ok(())
            }));
        }
        let rows = futures_util::stream::unfold(0, move |from| {
            let open = open.clone();
            async move {
                let rows = batch(&open, from).await;
                let over = rows.as_ref().is_ok_and(String::is_empty);
                (!over).then_some((rows, from + 10))
            }
        });
        Body::from_stream(rows)
    });
    Router::new().route("/", handler).layer(Stack::new())
}

// "Query iteration in batches (with and without prefetch) closes its cursor on early exit."
#[tokio::test]
async fn an_export_left_early_rolls_back_and_returns_its_connection_clean() {
    // One connection: whoever keeps it, or leaves it in a transaction, stops the next one.
    let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = within(options.connect("sqlite::memory:")).await.unwrap();
    for statement in [
        "create table exports (n integer)",
        "create table rows (n integer primary key)",
        "with recursive t(n) as (select 1 union all select n + 1 from t where n < 20000)
         insert into rows select n from t",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let exports = async || -> i64 {
        let count = sqlx::query_scalar("select count(*) from exports").fetch_one(&pool);
        within(count).await.unwrap()
    };
    for (prefetch, after) in [(false, 1), (true, 2)] {
        let before = exports().await;
        let plain = || Request::new(Body::empty());
        let taken = within(take_frames(export(&pool, prefetch), plain(), 2))
            .await
            .unwrap();
        assert!(taken.data().starts_with(b"1\n2\n"));
        let report = taken.report.unwrap();
        assert_eq!(
            (report.outcome(), report.errors.len()),
            (Outcome::Dropped, 0)
        );
        assert_eq!(exports().await, before, "rolled back");
        let whole = take_frames(export(&pool, prefetch), plain(), usize::MAX);
        let whole = within(whole).await.unwrap();
        assert_eq!((whole.ended, whole.error.is_none()), (true, true));
        assert!(whole.data().ends_with(b"\n20000\n"));
        assert_eq!(exports().await, after, "committed");
    }
}

// "Paginator and list comprehension call sites: consume whole, then close."
#[tokio::test(start_paused = true)]
async fn collecting_to_the_end_runs_the_closers_before_the_collector_sees_it() {
    let log = Log::default();
    let body = CleanupBody::new(Script::new().data("a").data("b")).defer({
        let log = log.clone();
        move |_| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            note(&log, "closed");
            Ok(())
        }
    });
    assert_eq!(body.collect().await.unwrap().to_bytes(), "ab");
    assert_eq!(lines(&log), ["closed"]);
}

// "The test client's wrapper closes the stream and sends 'request finished' once."
#[tokio::test(start_paused = true)]
async fn the_test_client_takes_frames_leaves_and_reads_the_end_report_once() {
    let log = Log::default();
    let ends = log.clone();
    let layer =
        CleanupLayer::new().on_end(move |end| note(&ends, format!("end {}", end.outcome())));
    let taken = take_frames(app(&log, false).layer(layer), request(), 3)
        .await
        .unwrap();
    assert_eq!(taken.data(), "row\nrow\nrow\n");
    assert!(!taken.ended);
    let report = taken.report.unwrap();
    assert_eq!((report.outcome(), report.frames), (Outcome::Dropped, 3));
    let expected = ["producer dropped", "closed Dropped", "end Dropped"];
    assert_eq!(lines(&log), expected);
}

/// Notes, when a body around it is dropped, how many streams are compressed then.
struct Unwound(&'static str, Log, CompressionLayer);

impl Drop for Unwound {
    fn drop(&mut self) {
        let Self(place, log, layer) = self;
        note(
            log,
            format!("{place} unwound, {} compressor", layer.stats().open),
        );
    }
}

// "gzip: on early exit the order is user generator's cleanup → compressor closed → outer unwind,
// trailer never delivered."
#[tokio::test(start_paused = true)]
async fn early_exit_through_gzip_closes_the_producer_first_and_sends_no_trailer() {
    let log = Log::default();
    let compression = CompressionLayer::new();
    let unwound = |place| {
        let (log, layer) = (log.clone(), compression.clone());
        tower::util::MapResponseLayer::new(move |response: Response<Body>| {
            let unwound = Unwound(place, log.clone(), layer.clone());
            response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _ = &unwound;
                    frame
                }))
            })
        })
    };
    let app = app(&log, false)
        .layer(unwound("inside"))
        .layer(Stack::new().compression(compression.clone()))
        .layer(unwound("outside"));
    let taken = take_frames(app, request(), 1).await.unwrap();
    assert_eq!(taken.headers["content-encoding"], "gzip");
    let mut text = String::new();
    let data = taken.data();
    let mut decoder = flate2_of(&data);
    let result = std::io::Read::read_to_string(&mut decoder, &mut text);
    assert!(
        result.is_err() && text.starts_with("row\n"),
        "a gzip without its end"
    );
    assert_eq!(taken.report.unwrap().outcome(), Outcome::Dropped);
    let expected = [
        "producer dropped",
        "inside unwound, 1 compressor",
        "outside unwound, 0 compressor",
        "closed Dropped",
    ];
    assert_eq!(lines(&log), expected);
}

fn flate2_of(data: &[u8]) -> impl std::io::Read + '_ {
    flate2::read::GzDecoder::new(data)
}

// "A second consumer of the same stream gets nothing, deterministically": by ownership. The
// compile-fail example stands in the documentation of `CleanupBody`.

// More behaviours to match.

#[tokio::test(start_paused = true)]
async fn disconnect_before_the_first_poll_runs_the_closers() {
    let log = Log::default();
    let app = app(&log, false).layer(CleanupLayer::new());
    let response = app.oneshot(request()).await.unwrap();
    let report = close(response).await.unwrap().unwrap();
    assert_eq!(report.frames, 0);
    assert_eq!(lines(&log), ["producer dropped", "closed Dropped"]);
}

#[tokio::test(start_paused = true)]
async fn disconnect_and_completion_in_the_same_turn_are_one_clean_outcome() {
    let log = Log::default();
    let closer = log.clone();
    let body = CleanupBody::new(Script::new().data("a")).defer(move |ending| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        note(
            &closer,
            format!("closed {} {}", ending.outcome(), ending.succeeded()),
        );
        Ok(())
    });
    let mut body = Box::pin(body);
    body.frame().await.unwrap().unwrap();
    // The end of stream has come and is held back; then the client goes.
    let end = tokio::time::timeout(Duration::from_millis(10), body.frame()).await;
    assert!(end.is_err());
    drop(body);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(lines(&log), ["closed Complete true"]);
}

#[tokio::test]
async fn an_infinite_stream_stops_when_the_client_leaves() {
    let log = Log::default();
    let produced = log.clone();
    let mut server = Server::start(false, move |_| {
        let body = producing(&produced);
        async { Response::new(body) }
    })
    .await;
    let mut client = Http2::connect(server.listening.addr).await;
    let (response, mut stream) = client.request("GET");
    let mut body = within(response).await.unwrap().into_body();
    within(body.data()).await.unwrap().unwrap();
    stream.send_reset(h2::Reason::CANCEL);
    assert_eq!(server.ended().await.outcome(), Outcome::Dropped);
    assert_eq!(lines(&log), ["producer dropped"]);
}

#[tokio::test(start_paused = true)]
async fn cleanup_after_a_cancel_may_await() {
    let log = Log::default();
    let closer = log.clone();
    let body = CleanupBody::new(Script::new().hang()).defer(move |_| async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        note(&closer, "closed");
        Ok(())
    });
    drop(body);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(lines(&log), ["closed"]);
}

#[tokio::test(start_paused = true)]
async fn work_behind_the_end_does_not_delay_the_last_byte() {
    let log = Log::default();
    let (supervisor, behind) = (Supervisor::new(), log.clone());
    let handler = get(move |cleanup: Cleanup| async move {
        cleanup.defer_after_end(move |ending| async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            note(&behind, format!("behind {}", ending.outcome()));
            Ok(())
        });
        Body::new(Script::new().data("a").data("b"))
    });
    let layer = CleanupLayer::new().supervisor(&supervisor);
    let app: Router = Router::new().route("/", handler).layer(layer);
    let start = tokio::time::Instant::now();
    let response = app.oneshot(request()).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "ab"
    );
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(supervisor.drain(Duration::from_secs(300)).await.is_clean());
    assert_eq!(lines(&log), ["behind Complete"]);
}

#[tokio::test(start_paused = true)]
async fn two_requests_never_see_each_others_cancellation() {
    let log = Log::default();
    let app = app(&log, false).layer(CleanupLayer::new());
    let one = app.clone().oneshot(request()).await.unwrap();
    let mut two = closing(app.oneshot(request()).await.unwrap());
    close(one).await.unwrap();
    assert_eq!(lines(&log), ["producer dropped", "closed Dropped"]);
    two.frame().await.unwrap().unwrap();
    assert_eq!(lines(&log), [""; 0]);
}

// "No reference cycle: the response is freed at once."
#[tokio::test(start_paused = true)]
async fn nothing_of_a_scope_is_kept_after_its_end() {
    let kept = Arc::new(());
    let weak = Arc::downgrade(&kept);
    let in_closer = kept.clone();
    let body = CleanupBody::new(Script::new().data("a")).defer(move |_| async move {
        drop(in_closer);
        Ok(())
    });
    let view = body.cleanup().clone();
    // A view captured by a closer of its own scope is no cycle once that has run.
    let mine = view.clone();
    view.defer_sync(move |_| {
        let _ = (mine, kept);
    });
    drop(view);
    body.collect().await.unwrap();
    assert!(weak.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_middleware_may_replace_the_body_and_the_old_one_is_closed() {
    let log = Log::default();
    let app = app(&log, false)
        .layer(CleanupLayer::new())
        .layer(axum::middleware::map_response(|_: Response<Body>| async {
            "replaced"
        }));
    let response = app.oneshot(request()).await.unwrap();
    let all: Result<_, BoxError> = response.into_body().collect().await.map_err(Into::into);
    assert_eq!(all.unwrap().to_bytes(), "replaced");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(lines(&log), ["producer dropped", "closed Dropped"]);
}
