//! A language model's server, as far as a relay can tell: slow tokens, and every way to fail.
//!
//! `POST /v1/generate?tokens=40&every_ms=100` says the words of the prompt, over and over, as events:
//!
//! ```text
//! data: {"token":"be"}
//!
//! data: {"usage":{"tokens":40}}
//!
//! data: [DONE]
//! ```
//!
//! `fault=` makes it go wrong, once it has said `at` tokens (half of them): see [`Fault`].

use std::{
    future::pending,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
    serve::ListenerExt,
};
use futures_util::stream::try_unfold;
use serde::Deserialize;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

/// The upstream server. On drop it stops, in the middle of whatever it says.
pub(crate) struct Upstream {
    addr: SocketAddr,
    counts: Arc<Counts>,
    _server: JoinSet<io::Result<()>>,
}

#[derive(Default)]
struct Counts {
    live: AtomicUsize,
    abandoned: AtomicUsize,
    sent: AtomicU64,
}

/// How a request is to be answered.
#[derive(Deserialize)]
#[serde(default)]
struct Wish {
    tokens: u64,
    every_ms: u64,
    fault: Option<Fault>,
    at: Option<u64>,
}

/// How it goes wrong.
#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Fault {
    /// It answers 503.
    Busy,
    /// It never answers.
    Mute,
    /// It says nothing more, and does not end either.
    Hang,
    /// The same, in the middle of an event.
    Cut,
    /// Its body fails: a broken transfer.
    Fail,
    /// It panics: a broken connection.
    Panic,
    /// It ends early and cleanly, without usage and `[DONE]`.
    Close,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            tokens: 40,
            every_ms: 100,
            fault: None,
            at: None,
        }
    }
}

impl Upstream {
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let counts = Arc::new(Counts::default());
        let app = Router::new()
            .route("/v1/generate", post(generate))
            .with_state(counts.clone());
        let mut server = JoinSet::new();
        server.spawn(async {
            axum::serve(listener.tap_io(|tcp| drop(tcp.set_nodelay(true))), app).await
        });
        Ok(Self {
            addr,
            counts,
            _server: server,
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many requests it is busy with now.
    pub(crate) fn live(&self) -> usize {
        self.counts.live.load(SeqCst)
    }

    /// How many requests were taken away from it before it was done.
    pub(crate) fn abandoned(&self) -> usize {
        self.counts.abandoned.load(SeqCst)
    }

    /// How many tokens it has said, all in all.
    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(SeqCst)
    }
}

async fn generate(
    State(counts): State<Arc<Counts>>,
    Query(wish): Query<Wish>,
    prompt: String,
) -> Response {
    let mut answer = Answer::new(counts, wish, prompt);
    match answer.wish.fault {
        Some(Fault::Busy) => {
            answer.done = true;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        Some(Fault::Mute) => pending().await,
        _ => {}
    }
    let events = try_unfold(answer, |mut answer| async {
        Ok::<_, io::Error>(answer.next().await?.map(|event| (event, answer)))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream")];
    (headers, Body::from_stream(events)).into_response()
}

/// One answer, counted from its request's arrival until it is dropped.
struct Answer {
    counts: Arc<Counts>,
    wish: Wish,
    prompt: String,
    sent: u64,
    /// Nobody has to wait for more.
    done: bool,
}

impl Answer {
    fn new(counts: Arc<Counts>, wish: Wish, prompt: String) -> Self {
        counts.live.fetch_add(1, SeqCst);
        Self {
            counts,
            wish,
            prompt,
            sent: 0,
            done: false,
        }
    }

    /// The next event, after a while; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<String>> {
        if self.done {
            return Ok(None);
        }
        sleep(Duration::from_millis(self.wish.every_ms)).await;
        if self.sent == self.wish.at.unwrap_or(self.wish.tokens / 2) {
            match self.wish.fault {
                Some(Fault::Hang) => pending().await,
                Some(Fault::Cut) => {
                    self.wish.fault = Some(Fault::Hang);
                    return Ok(Some("data: {\"tok".to_owned()));
                }
                Some(Fault::Panic) => panic!("the upstream panics, as it was told to"),
                Some(Fault::Fail) => {
                    self.done = true;
                    return Err(io::Error::other("the upstream fails, as it was told to"));
                }
                Some(Fault::Close) => {
                    self.done = true;
                    return Ok(None);
                }
                _ => {}
            }
        }
        if self.sent == self.wish.tokens {
            self.done = true;
            let usage = format!("data: {{\"usage\":{{\"tokens\":{}}}}}\n\n", self.sent);
            return Ok(Some(usage + "data: [DONE]\n\n"));
        }
        let mut words = self.prompt.split_whitespace().cycle();
        let word = words.nth(self.sent as usize).unwrap_or("(silence)");
        self.sent += 1;
        self.counts.sent.fetch_add(1, SeqCst);
        let token = serde_json::to_string(word)?;
        Ok(Some(format!("data: {{\"token\":{token}}}\n\n")))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.done {
            self.counts.abandoned.fetch_add(1, SeqCst);
            let (sent, tokens) = (self.sent, self.wish.tokens);
            println!("upstream: taken away after {sent} of {tokens} tokens");
        }
        self.counts.live.fetch_sub(1, SeqCst);
    }
}
