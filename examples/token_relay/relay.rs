//! The relay: tokens pass through, and what they cost is written down exactly once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::{Query, RawQuery, State},
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bodyguard::{BoxError, Cleanup, Disconnect, Shutdown, Stack, Supervisor, disconnect::OnLeave};
use futures_util::stream::try_unfold;
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;

use super::{meter::Meter, usage::Ledger};

/// How long a generation may run on when its client has left.
const FINISH_LIMIT: Duration = Duration::from_secs(120);
/// What clients are told at a shutdown, so that they know the answer for cut off. The blank line ends
/// the event that the upstream may be in the middle of.
const GOODBYE: &str = "\n\nevent: error\ndata: {\"error\":\"the relay is shutting down\"}\n\n";

#[derive(Clone)]
struct Relay {
    upstream: SocketAddr,
    client: Client<HttpConnector, String>,
    ledger: Ledger,
    ids: Arc<Ids>,
}

#[derive(Deserialize)]
struct Policy {
    #[serde(default)]
    on_leave: Leave,
}

/// What becomes of a generation whose client leaves.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Leave {
    #[default]
    Cancel,
    Finish,
}

pub(crate) fn app(upstream: SocketAddr, ledger: Ledger, supervisor: &Supervisor) -> Router {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let relay = Relay {
        upstream,
        client: Client::builder(TokioExecutor::new()).build(connector),
        ledger,
        ids: Arc::new(Ids::new()),
    };
    let goodbye = Shutdown::end_now().last_frame("text/event-stream", GOODBYE);
    Router::new()
        .route("/v1/generate", post(generate))
        .route("/usage", get(usage))
        .with_state(relay)
        .layer(
            Stack::new()
                .supervisor(supervisor)
                .shutdown(goodbye)
                .on_end(|report| println!("relay: {} {}", report.uri, report.outcome()))
                .detachable(FINISH_LIMIT),
        )
}

async fn generate(
    State(relay): State<Relay>,
    Query(policy): Query<Policy>,
    RawQuery(query): RawQuery,
    cleanup: Cleanup,
    disconnect: Disconnect,
    prompt: String,
) -> Result<Response, Refusal> {
    let request = relay.ids.next();
    let tokens = Arc::new(AtomicU64::new(0));

    // From here on this request is written down: when all of it was handed to the server, before the
    // client sees the end; else when the upstream request has been dropped, so that the count is the
    // last word.
    let (ledger, name, used) = (relay.ledger, request.clone(), tokens.clone());
    cleanup.defer(move |ending| async move {
        let used = used.load(Relaxed);
        Ok(ledger.record(&name, used, &ending).await?)
    });
    if let Leave::Finish = policy.on_leave {
        disconnect.on_leave(OnLeave::Detach)?;
    }

    // Whatever ends this response drops the upstream request with it: nobody has to cancel it.
    let uri = format!(
        "http://{}/v1/generate?{}",
        relay.upstream,
        query.unwrap_or_default()
    );
    let answer = relay
        .client
        .request(Request::post(uri).body(prompt)?)
        .await?;
    if answer.status() != StatusCode::OK {
        return Err(format!("the upstream says {}", answer.status()).into());
    }
    let state = (answer.into_body(), Meter::default(), tokens);
    let events = try_unfold(state, |(mut body, mut meter, tokens)| async {
        let Some(frame) = body.frame().await.transpose()? else {
            // A stream of tokens that just stops is not a whole one.
            let cut = "the upstream has ended early".into();
            return if meter.is_done() { Ok(None) } else { Err(cut) };
        };
        let events = frame.into_data().unwrap_or_default();
        tokens.store(meter.read(&events), Relaxed);
        Ok::<_, BoxError>(Some((events, (body, meter, tokens))))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // Or nginx holds tokens back until its buffer is full.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
        (header::HeaderName::from_static("x-request-id"), &request),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// The table, a line for each request.
async fn usage(State(relay): State<Relay>) -> Result<String, Refusal> {
    let mut table = "request          tokens outcome      status client\n".to_owned();
    for (request, tokens, outcome, status, gone) in relay.ledger.rows().await? {
        let status = status.map_or("-".to_owned(), |status| status.to_string());
        let client = if gone { "gone" } else { "there" };
        table += &format!("{request:<16} {tokens:>6} {outcome:<12} {status:>6} {client}\n");
    }
    Ok(table)
}

/// Names for requests, different in every run.
struct Ids {
    run: u128,
    next: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            run: now.unwrap_or_default().as_millis(),
            next: AtomicU64::new(1),
        }
    }

    fn next(&self) -> String {
        format!("{:x}-{}", self.run, self.next.fetch_add(1, Relaxed))
    }
}

/// No answer came to be: 502.
struct Refusal(BoxError);

impl<E: Into<BoxError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::BAD_GATEWAY, format!("{}\n", self.0)).into_response()
    }
}
