//! A hold keeps all scopes open whose response is that of the scope it was taken on.

mod support;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    routing::any,
};
use bodyguard::{
    Cleanup, DisconnectLayer, EndReport, Outcome, Stack, Supervisor, scope::View as _,
};
use support::{Listening, eventually, in_time, read_until, within};
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, mpsc},
};

#[derive(Clone, Copy, PartialEq)]
enum Under {
    /// All layers share one scope.
    One,
    /// An armed layer inside one that is not.
    Armed,
    /// A layer behind middleware that cloned the request.
    Cloned,
    /// Two of them.
    Both,
}

/// A handler that holds its scope and has a closer that fails, under middleware with a closer of its own.
#[expect(
    clippy::disallowed_methods,
    reason = "held work is nobody's task: that is what the hold is for"
)]
async fn held(under: Under, status: u16, word: Outcome) {
    let supervisor = Supervisor::new();
    let (report, mut reports) = mpsc::unbounded_channel::<EndReport>();
    let (close, mut closed) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let (going, closing) = (go.clone(), close.clone());
    let handler = move |request: Request| {
        let (go, close) = (going.clone(), closing.clone());
        async move {
            let cleanup = Cleanup::from_extensions(request.extensions()).unwrap();
            cleanup.defer(move |end| async move {
                let _ = close.send(("handler", end.outcome()));
                Err("the commit fails".into())
            });
            let hold = cleanup.hold();
            tokio::spawn(async move {
                go.notified().await;
                hold.finish(word);
            });
            let mut response = http::Response::builder().status(status);
            if status == 101 {
                response = response
                    .header("upgrade", "x")
                    .header("connection", "upgrade");
            }
            response.body(Body::empty()).unwrap()
        }
    };
    let middleware = move |request: Request, next: Next| {
        let close = close.clone();
        async move {
            let cleanup = Cleanup::from_extensions(request.extensions()).unwrap();
            cleanup.defer(move |end| async move {
                assert!(!end.succeeded());
                let _ = close.send(("middleware", end.outcome()));
                Ok(())
            });
            let kept = match under {
                Under::Cloned | Under::Both => Some(request.extensions().clone()),
                Under::One | Under::Armed => None,
            };
            let response = next.run(request).await;
            drop(kept);
            response
        }
    };
    let app = Router::new().route("/", any(handler));
    let layer = DisconnectLayer::new();
    let app = match under {
        Under::Armed | Under::Both => app.layer(layer.stall_timeout(Duration::from_secs(60))),
        Under::One | Under::Cloned => app.layer(layer),
    };
    let app = app.layer(DisconnectLayer::new()).layer(from_fn(middleware));
    let stack = Stack::new().supervisor(&supervisor);
    let app = app.layer(stack.on_end(move |end| drop(report.send(end.clone()))));
    let listening = Listening::start(app, false).await;
    let mut tcp = listening.connect().await;
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    tcp.write_all(request).await.unwrap();
    read_until(&mut tcp, "\r\n\r\n").await;
    // The head is here: what was to run before it has run. A report may come a moment later.
    let early = in_time(Duration::from_millis(50), reports.recv()).await;
    assert!(early.is_none(), "the scope is held: {early:?}");
    assert!(closed.try_recv().is_err(), "a closer ran under the hold");
    go.notify_one();
    eventually(|| supervisor.active() == 0).await;
    // Each attempt of a cloned request has its own report, before that of the whole.
    if let Under::Cloned | Under::Both = under {
        let attempt = reports.recv().await.unwrap();
        assert_eq!(
            (attempt.outcome(), attempt.counts.closers_failed),
            (Outcome::Failed, 1)
        );
    }
    let report = reports.recv().await.unwrap();
    assert_eq!(report.counts.closers_run, 2);
    assert_eq!(report.counts.closers_failed, 1);
    assert_eq!(report.outcome(), Outcome::Failed);
    assert_eq!(closed.try_recv(), Ok(("handler", word)));
    assert_eq!(closed.try_recv(), Ok(("middleware", Outcome::Failed)));
    assert!(reports.try_recv().is_err());
}

#[tokio::test]
async fn a_hold_keeps_the_scopes_further_out_open() {
    for under in [Under::One, Under::Armed, Under::Cloned, Under::Both] {
        for status in [101, 200] {
            within(held(under, status, Outcome::Failed)).await;
        }
    }
}

/// What fails behind a hold that went well fails the scopes further out, too.
#[tokio::test]
async fn what_fails_behind_a_hold_is_heard_further_out() {
    for under in [Under::One, Under::Armed, Under::Cloned, Under::Both] {
        for status in [101, 200] {
            within(held(under, status, Outcome::Complete)).await;
        }
    }
}
