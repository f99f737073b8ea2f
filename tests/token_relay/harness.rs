//! A relay and its upstream, each on a port of its own.

use std::{future::IntoFuture, io, net::SocketAddr, time::Duration};

use bodyguard::{DrainReport, Supervisor, net};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    client::{Client, Protocol, read_until, within},
    parts::{
        relay,
        upstream::Upstream,
        usage::{Ledger, Row},
    },
};

pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    pub(crate) upstream: Upstream,
    pub(crate) ledger: Ledger,
    pub(crate) supervisor: Supervisor,
    stop: oneshot::Sender<()>,
    serving: JoinSet<io::Result<DrainReport>>,
}

/// A row without its request's name.
pub(crate) type Used = (i64, String, Option<u16>, bool);

pub(crate) fn used(tokens: i64, outcome: &str, status: impl Into<Option<u16>>, gone: bool) -> Used {
    (tokens, outcome.to_owned(), status.into(), gone)
}

impl Relay {
    pub(crate) async fn start() -> Self {
        let upstream = Upstream::start().await.unwrap();
        let ledger = Ledger::open("sqlite::memory:").await.unwrap();
        let supervisor = Supervisor::new();
        let app = relay::app(upstream.addr(), ledger.clone(), &supervisor);
        let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = net::serve(listener, app)
            .supervisor(&supervisor)
            .shutdown(async { stopped.await.unwrap_or_default() });
        let mut serving = JoinSet::new();
        serving.spawn(server.into_future());
        Self {
            addr,
            upstream,
            ledger,
            supervisor,
            stop,
            serving,
        }
    }

    pub(crate) async fn client(&self, protocol: Protocol) -> Client {
        Client::connect(self.addr, protocol).await
    }

    /// Waits until the condition holds.
    pub(crate) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        within(async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// The one row there is once nothing is live here or upstream.
    pub(crate) async fn only_row(&self) -> Row {
        self.until(|relay| relay.supervisor.active() == 0 && relay.upstream.live() == 0)
            .await;
        let mut rows = self.rows().await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.remove(0)
    }

    /// The same, without the name.
    pub(crate) async fn only_use(&self) -> Used {
        let (_, tokens, outcome, status, gone) = self.only_row().await;
        (tokens, outcome, status, gone)
    }

    pub(crate) async fn rows(&self) -> Vec<Row> {
        self.ledger.rows().await.unwrap()
    }

    /// Shuts down as Ctrl-C does.
    pub(crate) async fn stop(&mut self) -> DrainReport {
        let (stop, _) = oneshot::channel();
        std::mem::replace(&mut self.stop, stop).send(()).unwrap();
        within(self.serving.join_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }
}

/// Asks for tokens; `query` says how many, and what goes wrong.
pub(crate) async fn generate(client: &mut Client, query: &str) -> Response<Incoming> {
    let request = Request::post(format!("/v1/generate?{query}"));
    client.send(request, "to be or not to be").await
}

pub(crate) fn tokens(text: &str) -> usize {
    text.matches("data: {\"token\":").count()
}

pub(crate) async fn read_tokens(body: &mut Incoming, wanted: usize) {
    read_until(body, |text| {
        tokens(text) >= wanted && text.ends_with("\n\n")
    })
    .await;
}
