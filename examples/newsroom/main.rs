//! The showcase: news and weather over a real socket, an export in a transaction, a blocking report
//! writer, a producer that breaks, and a page that shows what the server holds.
//!
//! `cargo run --example newsroom`, then open <http://127.0.0.1:3000>. `BIND` sets another address,
//! `DATABASE_URL=postgres://…` another database, `STALL_SECONDS` how long a client may read nothing
//! (30). Ctrl-C drains and prints the report.

use std::{env, process::ExitCode, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use bodyguard::{
    BoxError, Cleanup, DisconnectLayer, FrameSender, Shutdown, Stack, Supervisor, TaskGroup, net,
    task_group::event,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{task::JoinSet, time::interval};
use tokio_stream::StreamExt;

mod board;
mod db;
mod feeds;
mod report;

use board::Board;
use db::Db;
use feeds::Feeds;

/// How long a shutdown may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// What is read of uploads that no handler wants, to see a client leave behind one.
const UNREAD: u64 = 1 << 20;
/// Histograms keep every value until then.
const UPKEEP: Duration = Duration::from_secs(5);
/// A page of the export every so often, so that there is something to watch, and to leave.
const EXPORT_PACE: Duration = Duration::from_millis(120);

struct Newsroom {
    feeds: Feeds,
    db: Db,
    board: Board,
    metrics: PrometheusHandle,
}

type Shared = State<Arc<Newsroom>>;

pub(crate) fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(error.into()),
    };
    let result = runtime.block_on(run());
    // A producer that ignores its signal is named in the report; it must not keep us here.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}

fn failed(error: BoxError) -> ExitCode {
    eprintln!("newsroom: {error}");
    ExitCode::FAILURE
}

async fn run() -> Result<(), BoxError> {
    let supervisor = Supervisor::new();
    let newsroom = Arc::new(Newsroom {
        feeds: Feeds::start().await?,
        db: Db::open().await?,
        board: Board::new(&supervisor),
        metrics: PrometheusBuilder::new().install_recorder()?,
    });
    let board = newsroom.board.clone();
    board.exports_committed(newsroom.db.exports_committed().await?);
    let mut upkeep = JoinSet::new();
    upkeep.spawn(keep_up(newsroom.metrics.clone()));

    // Event streams are told when the server goes; everything else may finish.
    let goodbye = Shutdown::end_now().last_frame("text/event-stream", "event: bye\ndata: {}\n\n");
    let app = Router::new()
        .route(
            "/stream",
            get(stream).layer(DisconnectLayer::new().shutdown(goodbye)),
        )
        .route("/", get(page))
        .route("/export.csv", get(export))
        .route("/report", get(report::report))
        .route("/broken", get(broken))
        .route("/stubborn", get(stubborn))
        .route("/api/streams", get(streams))
        .route("/metrics", get(metrics))
        .with_state(newsroom)
        .layer(
            Stack::new()
                .supervisor(&supervisor)
                .on_end(move |report| board.ended(report))
                .stall_timeout(stall_timeout()?)
                .drain_request(UNREAD),
        );

    let bind = env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = net::WatchedListener::bind(&bind)
        .await
        .map_err(|error| format!("cannot listen on {bind} (BIND sets another address): {error}"))?;
    println!("newsroom: http://{}", listener.local_addr()?);
    let report = net::serve(listener, app)
        .supervisor(&supervisor)
        .deadline(DEADLINE)
        .shutdown(stop_signal())
        .await?;
    println!("drained: {report}");
    Ok(())
}

/// How long a client may read nothing before its streams are ended and their feeds let go.
fn stall_timeout() -> Result<Duration, BoxError> {
    let seconds = env::var("STALL_SECONDS").unwrap_or_else(|_| "30".to_owned());
    let seconds: u64 = seconds
        .parse()
        .map_err(|_| format!("STALL_SECONDS is not a number: {seconds}"))?;
    Ok(Duration::from_secs(seconds))
}

async fn keep_up(metrics: PrometheusHandle) {
    let mut every = interval(UPKEEP);
    loop {
        every.tick().await;
        metrics.run_upkeep();
    }
}

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

/// News and weather, merged as they come. The client's going cancels both relays.
async fn stream(State(newsroom): Shared, group: TaskGroup, cleanup: Cleanup) -> Response {
    let (reader, closer) = (newsroom.board.reader(), newsroom.board.closer());
    cleanup.defer(move |_| async move {
        closer.runs();
        drop(reader);
        Ok(())
    });
    let (news, weather) = (newsroom.feeds.news_url(), newsroom.feeds.weather_url());
    let relays = group.clone();
    let body = group.body(move |tx| async move {
        relays.spawn(relay(news, "news", tx.clone()))?;
        relays.spawn(relay(weather, "weather", tx))?;
        Ok(())
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // Or nginx holds events back until its buffer is full.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

async fn relay(url: String, name: &'static str, tx: FrameSender) -> Result<(), BoxError> {
    let mut items = feeds::subscribe(url).await?;
    while let Some(item) = items.next().await {
        tx.send(event(name, &item?)).await?;
    }
    Err(format!("the {name} feed has ended").into())
}

/// The whole table in one transaction: committed if all of it was read and handed to the server, else
/// rolled back. What the client received of it, nobody here can know.
async fn export(
    State(newsroom): Shared,
    group: TaskGroup,
    cleanup: Cleanup,
) -> Result<Response, (StatusCode, String)> {
    let begun = newsroom.db.begin_export().await;
    let export = begun
        .map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?
        .shared();
    let (transaction, closer) = (export.clone(), newsroom.board.closer());
    cleanup.defer(move |ending| async move {
        closer.runs();
        let Some(export) = transaction.lock().await.take() else {
            return Ok(());
        };
        if ending.succeeded() && export.is_finished() {
            export.commit().await?;
            newsroom.board.export_committed();
        } else {
            export.rollback().await?;
        }
        Ok(())
    });
    let body = group.body(move |tx| async move {
        while let Some(rows) = next_page(&export).await? {
            tx.send(rows).await?;
            tokio::time::sleep(EXPORT_PACE).await;
        }
        Ok(())
    });
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"airports.csv\"",
        ),
    ];
    Ok((headers, body).into_response())
}

async fn next_page(export: &db::SharedExport) -> Result<Option<String>, BoxError> {
    match export.lock().await.as_mut() {
        Some(export) => Ok(export.next_csv().await?),
        None => Ok(None),
    }
}

/// A producer that panics half way: the client sees a broken transfer, not a short whole one.
async fn broken(group: TaskGroup) -> Response {
    let body = group.body(|tx| async move {
        for line in 1..=3 {
            tx.send(format!("line {line} of 10\n")).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("the producer of /broken panics, as it should")
    });
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}

/// A producer that ignores its signal: the drain names it, and the process exits all the same.
async fn stubborn(group: TaskGroup) -> Response {
    let body = group.body({
        let group = group.clone();
        |tx| async move {
            group.spawn_blocking(move |_ignored| {
                tx.send_blocking("I do not stop for anybody.\n")?;
                let (_never, forever) = std::sync::mpsc::channel::<()>();
                let _ = forever.recv_timeout(Duration::from_secs(600));
                Ok(())
            })?;
            Ok(())
        }
    });
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}

async fn streams(State(newsroom): Shared) -> Json<board::View> {
    Json(newsroom.board.view(newsroom.feeds.open_connections()))
}

async fn metrics(State(newsroom): Shared) -> impl IntoResponse {
    let text = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], newsroom.metrics.render())
}

/// Ctrl-C, or SIGTERM from a service manager.
async fn stop_signal() {
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        () = terminated() => {}
    }
    println!("shutting down");
}

/// Never, where there is no such signal or it cannot be listened for.
async fn terminated() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            terminate.recv().await;
            return;
        }
    }
    std::future::pending().await
}
