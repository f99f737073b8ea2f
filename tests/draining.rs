//! A drain out of patience: who can still be answered is, before connections are closed.
#![cfg(all(feature = "net", feature = "axum"))]

mod support;

use std::{
    convert::Infallible,
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
use http::{Method, Request};
use http_body_util::BodyExt;
use support::{eventually, http1, http2, within};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{oneshot, watch},
};
use tower::{Layer, ServiceExt, service_fn};

/// Rows, or one piece; either way a commit is due that waits until others have been aborted.
async fn commits(cleanup: Cleanup, mut aborted: watch::Receiver<usize>, streams: bool) -> Response {
    cleanup.defer(|_| async move {
        aborted.wait_for(|aborted| *aborted == 2).await?;
        tokio::time::sleep(Duration::from_millis(150)).await;
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
        tokio::time::sleep(Duration::from_millis(150)).await;
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
    answers(true).await;
}

/// It waits for those as well, and does not count them.
#[tokio::test]
async fn so_is_who_answers_under_layers_of_another_supervisor() {
    answers(false).await;
}

async fn answers(shared: bool) {
    let supervisor = Supervisor::new();
    let drained_by = if shared {
        supervisor.clone()
    } else {
        Supervisor::new()
    };
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
        .supervisor(&drained_by)
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
    let counted = if shared { (4, 3) } else { (0, 0) };
    assert_eq!((drained.complete, drained.aborted), counted, "{drained}");
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

/// Who has been answered, or has nobody to answer, keeps nobody waiting whose connection has to be closed.
#[tokio::test(start_paused = true)]
async fn who_has_been_answered_does_not_keep_connections_open() {
    for left in [false, true] {
        let supervisor = Supervisor::new();
        let minute = Duration::from_secs(60);
        let stack = Stack::new().supervisor(&supervisor).closer_limit(minute);
        let service = stack.layer(service_fn(move |request: Request<()>| {
            let cleanup = Cleanup::of(&request).unwrap();
            let slow = |seconds| async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(())
            };
            let _key = match request.uri().path() {
                "/done" if left => cleanup.defer(move |_| slow(18)),
                "/done" => cleanup.defer_after_end(move |_| slow(18)),
                _ => cleanup.defer(move |_| slow(4)),
            };
            let rows = stream::iter(["a", "b"].map(Ok::<_, std::io::Error>));
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::from_stream(rows))))
        }));
        let respond = |path| {
            let request = Request::builder().uri(path).body(()).unwrap();
            service.clone().oneshot(request)
        };
        let mut unread = respond("/").await.unwrap().into_body();
        unread.frame().await.unwrap().unwrap();
        let mut done = respond("/done").await.unwrap().into_body();
        done.frame().await.unwrap().unwrap();
        if left {
            drop(done);
        } else {
            done.collect().await.unwrap();
        }
        let begin = tokio::time::Instant::now();
        let closes = async {
            supervisor.aborting().await;
            drop(unread);
            begin.elapsed()
        };
        let deadline = Duration::from_secs(20);
        let (drained, closed) = tokio::join!(supervisor.drain(deadline), closes);
        assert!(drained.is_clean(), "{left}: {drained}");
        assert!(closed < Duration::from_secs(16), "{left}: {closed:?}");
    }
}
