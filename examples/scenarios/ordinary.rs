//! Requests that end as they should: none of them may be reported as anything but complete.

use std::{
    convert::Infallible,
    fmt,
    future::IntoFuture,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use bodyguard::{
    BoxError, Disconnect, DisconnectLayer, EndReport, Outcome, Supervisor,
    net::{self, Peer, WatchedListener},
};
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::styles;

/// Long enough for the watch, which arms itself after 20 ms.
const WAIT: Duration = Duration::from_millis(30);
/// A report comes a little after the client has its response.
const PATIENCE: Duration = Duration::from_secs(10);

/// How clients ask, each on connections of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    KeepAlive,
    Pipelined,
    ConnectionClose,
    Http2,
    /// They shut their write side down and read on; the server has `half_close(true)`.
    HalfClose,
}

pub(crate) const STYLES: [Style; 5] = [
    Style::KeepAlive,
    Style::Pipelined,
    Style::ConnectionClose,
    Style::Http2,
    Style::HalfClose,
];

/// One request, and what has to come back.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) upload: &'static str,
    pub(crate) status: u16,
    pub(crate) length: usize,
}

/// How the requests were reported.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) reported: AtomicU64,
    pub(crate) complete: AtomicU64,
    pub(crate) disconnected: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) otherwise: AtomicU64,
    pub(crate) client_gone: AtomicU64,
    /// Views whose `is_gone` said so.
    pub(crate) gone: AtomicU64,
    /// Those that took so long that their connection was watched.
    pub(crate) watched: AtomicU64,
    slow: Mutex<Vec<Disconnect>>,
}

impl Tally {
    fn count(&self, report: &EndReport) {
        let one = |count: &AtomicU64| {
            count.fetch_add(1, Relaxed);
        };
        one(&self.reported);
        one(match report.outcome() {
            Outcome::Complete => &self.complete,
            Outcome::Disconnected => &self.disconnected,
            Outcome::Dropped => &self.dropped,
            _ => &self.otherwise,
        });
        if report.ending.client_gone() {
            one(&self.client_gone);
        }
        if report.duration >= Some(WAIT) {
            one(&self.watched);
        }
    }

    /// Whether `requests` were all reported complete, once each, and nobody was taken for gone.
    pub(crate) fn is_clean(&self, requests: u64) -> bool {
        let all = [&self.reported, &self.complete];
        let none = [&self.disconnected, &self.dropped, &self.otherwise];
        let none = none.into_iter().chain([&self.client_gone, &self.gone]);
        all.into_iter().all(|count| count.load(Relaxed) == requests)
            && none.into_iter().all(|count| count.load(Relaxed) == 0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("reported by on_end", &self.reported),
            ("Complete", &self.complete),
            ("Disconnected", &self.disconnected),
            ("Dropped", &self.dropped),
            ("other outcomes", &self.otherwise),
            ("client_gone", &self.client_gone),
            ("Disconnect::is_gone", &self.gone),
            ("of these watched", &self.watched),
        ];
        for (name, count) in rows {
            writeln!(f, "{name:<22} {}", count.load(Relaxed))?;
        }
        Ok(())
    }
}

/// Sends this many requests, the same number in each style, and counts what is reported.
pub(crate) async fn ordinary(requests: u64) -> Result<Arc<Tally>, BoxError> {
    let (tally, supervisor) = (Arc::<Tally>::default(), Supervisor::new());
    let mut servers = JoinSet::new();
    let by_serve = serve(&tally, &supervisor, false, &mut servers).await?;
    let half_closing = serve(&tally, &supervisor, true, &mut servers).await?;
    let listener = WatchedListener::bind("127.0.0.1:0").await?;
    let by_axum = listener.local_addr()?;
    let app = app(&tally, &supervisor).into_make_service_with_connect_info::<Peer>();
    servers.spawn(async move { drop(axum::serve(listener, app).await) });

    let mut clients = JoinSet::new();
    for (number, style) in STYLES.into_iter().enumerate() {
        let workers = match style {
            Style::Http2 => 8,
            _ => 32,
        };
        for worker in 0..workers {
            let part = STYLES.len() as u64 * workers;
            let place = number as u64 * workers + worker;
            let share = requests / part + u64::from(place < requests % part);
            let addr = match style {
                Style::HalfClose => half_closing,
                _ if worker % 2 == 0 => by_serve,
                _ => by_axum,
            };
            let asks = (0..share).map(|number| ask(number + worker)).collect();
            clients.spawn(styles::run(style, addr, asks));
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let patience = Instant::now() + PATIENCE;
    while tally.reported.load(Relaxed) < requests && Instant::now() < patience {
        sleep(Duration::from_millis(5)).await;
    }
    let slow = std::mem::take(&mut *tally.slow.lock().unwrap_or_else(PoisonError::into_inner));
    let gone = slow.iter().filter(|disconnect| disconnect.is_gone());
    tally.gone.store(gone.count() as u64, Relaxed);
    Ok(tally)
}

async fn serve(
    tally: &Arc<Tally>,
    supervisor: &Supervisor,
    half_close: bool,
    servers: &mut JoinSet<()>,
) -> Result<SocketAddr, BoxError> {
    let listener = WatchedListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let server = net::serve(listener.half_close(half_close), app(tally, supervisor)).into_future();
    servers.spawn(async move { drop(server.await) });
    Ok(addr)
}

fn app(tally: &Arc<Tally>, supervisor: &Supervisor) -> Router {
    let (ends, views) = (tally.clone(), tally.clone());
    let handler = move |disconnect: Disconnect, request: Request| async move {
        if request.uri().query().is_some() {
            let mut slow = views.slow.lock().unwrap_or_else(PoisonError::into_inner);
            slow.push(disconnect);
        }
        answer(request).await
    };
    let layer = DisconnectLayer::new()
        .supervisor(supervisor)
        .on_end(move |report| ends.count(report));
    Router::new().fallback(handler).layer(layer)
}

const LENGTH: usize = 1_000;
const FRAMES: usize = 4;
const BIG: usize = 64 * 1024;
const UPLOAD: &str = "an upload, read to its end before the response begins";

/// The requests in turn; every ninth is slow before its head or within its body.
fn ask(number: u64) -> Ask {
    let (get, head) = (Method::GET, Method::HEAD);
    let (method, path, status, length) = match number % 8 {
        0 => (get, "/length", 200, LENGTH),
        1 => (get, "/chunked", 200, LENGTH * FRAMES),
        2 => (head, "/length", 200, 0),
        3 => (head, "/chunked", 200, 0),
        4 => (get, "/empty", 204, 0),
        5 => (get, "/unchanged", 304, 0),
        6 => (get, "/big", 200, BIG),
        _ => (Method::POST, "/echo", 200, UPLOAD.len()),
    };
    let wait = match number % 9 {
        0 => "?head",
        4 => "?body",
        _ => "",
    };
    Ask {
        upload: if method == Method::POST { UPLOAD } else { "" },
        method,
        target: format!("{path}{wait}"),
        status,
        length,
    }
}

async fn answer(request: Request) -> Response {
    let wait = request.uri().query().unwrap_or_default().to_owned();
    if wait == "head" {
        sleep(WAIT).await;
    }
    let mut response = Response::default();
    *response.body_mut() = match request.uri().path() {
        "/length" => Body::from(vec![b'x'; LENGTH]),
        "/big" => Body::from(vec![b'x'; BIG]),
        "/echo" => match request.into_body().collect().await {
            Ok(body) => Body::from(body.to_bytes()),
            Err(_) => Body::empty(),
        },
        "/empty" => {
            *response.status_mut() = StatusCode::NO_CONTENT;
            return response;
        }
        "/unchanged" => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        _ => {
            let frames = stream::iter(0..FRAMES).then(move |frame| {
                let pauses = wait == "body" && frame == FRAMES / 2;
                async move {
                    if pauses {
                        sleep(WAIT).await;
                    }
                    Ok::<_, Infallible>(vec![b'x'; LENGTH])
                }
            });
            Body::from_stream(frames)
        }
    };
    response
}
