//! A drain out of patience: who can still be answered is, before connections are closed.
#![cfg(all(feature = "net", feature = "axum"))]

mod support;

use std::{
    future::{IntoFuture, pending},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use bodyguard::{Cleanup, EndReport, Outcome, Stack, Supervisor, net};
use futures_util::{StreamExt, stream};
use http::Method;
use support::{eventually, http1, http2, within};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{oneshot, watch},
};

/// Rows, or one piece; either way a commit is due that waits until others have been aborted.
async fn commits(cleanup: Cleanup, mut aborted: watch::Receiver<usize>, streams: bool) -> Response {
    cleanup.defer(|_| async move {
        aborted.wait_for(|aborted| *aborted == 2).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(())
    });
    match streams {
        true => Body::from_stream(stream::iter(["a\n", "b\n"].map(Ok::<_, std::io::Error>))),
        false => Body::from("a\nb\n"),
    }
    .into_response()
}

/// Has no answer yet; a rollback that takes a moment.
async fn hangs(cleanup: Cleanup, aborted: watch::Sender<usize>) -> Response {
    cleanup.defer(|_| async move {
        aborted.send_modify(|aborted| *aborted += 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(())
    });
    pending().await
}

/// More than anybody takes who does not read.
async fn floods(cleanup: Cleanup) -> Response {
    cleanup.defer(|_| async { Ok(()) });
    let row = bytes::Bytes::from(vec![b'x'; 64 << 10]);
    Body::from_stream(stream::repeat(row).map(Ok::<_, std::io::Error>)).into_response()
}

#[tokio::test]
async fn who_can_be_answered_is_before_connections_are_closed() {
    let supervisor = Supervisor::new();
    let reports = Arc::new(Mutex::new(Vec::<EndReport>::new()));
    let aborted = watch::Sender::new(0);
    let app = {
        let (rows, piece, sender) = (aborted.subscribe(), aborted.subscribe(), aborted.clone());
        let reports = reports.clone();
        Router::new()
            .route(
                "/",
                get(move |cleanup: Cleanup| commits(cleanup, rows.clone(), true))
                    .delete(move |cleanup: Cleanup| commits(cleanup, piece.clone(), false))
                    .put(move |cleanup: Cleanup| hangs(cleanup, sender.clone()))
                    .patch(floods),
            )
            .layer(
                Stack::new()
                    .supervisor(&supervisor)
                    .on_end(move |report| reports.lock().unwrap().push(report.clone())),
            )
    };
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = net::serve(listener, app)
        .supervisor(&supervisor)
        .deadline(Duration::from_secs(4))
        .shutdown(async { drop(stopped.await) })
        .into_future();
    let mut stalled = TcpStream::connect(addr).await.unwrap();
    let request = b"PATCH / HTTP/1.1\r\nhost: x\r\n\r\n";
    stalled.write_all(request).await.unwrap();
    let stops = async {
        eventually(|| supervisor.active() == 7).await;
        drop(stop);
    };
    let clients = async {
        tokio::join!(
            http1(addr, "1.1", "GET"),
            http2(addr, "GET"),
            http1(addr, "1.1", "DELETE"),
            http2(addr, "DELETE"),
            http1(addr, "1.1", "PUT"),
            http2(addr, "PUT"),
        )
    };
    let (drained, (a, b, c, d, e, f), ()) =
        within(async { tokio::join!(serving, clients, stops) }).await;
    for seen in [a, b, c, d] {
        assert!(
            seen.status == 200 && seen.whole && seen.data == "a\nb\n",
            "{seen:?}"
        );
    }
    for seen in [e, f] {
        assert!(seen.status == 503 && seen.whole, "{seen:?}");
    }
    let drained = drained.unwrap();
    assert!(drained.is_clean(), "{drained}");
    assert_eq!((drained.complete, drained.aborted), (4, 3), "{drained}");
    for report in reports.lock().unwrap().iter() {
        let (outcome, status) = match *report.ending.method() {
            Method::PUT => (Outcome::Shutdown, 503),
            Method::PATCH => (Outcome::Shutdown, 200),
            _ => (Outcome::Complete, 200),
        };
        assert_eq!(report.outcome(), outcome, "{report:?}");
        assert_eq!(
            report.status().map(|status| status.as_u16()),
            Some(status),
            "{report:?}"
        );
        assert_eq!(report.counts.closers_run, 1, "{report:?}");
    }
    drop(stalled);
}
