//! Runtimes built without `enable_time`: what can be done without timers is done, and the process's
//! panic hook does not hear of it at each response.
#![expect(
    clippy::disallowed_methods,
    reason = "tasks of a test end with its runtime"
)]

use std::{
    convert::Infallible,
    future::{Future, IntoFuture, pending},
    io::{Read, Write},
    net::TcpStream,
    sync::mpsc,
    thread,
    time::Duration,
};

use axum::{Router, routing::get};
use bodyguard::{
    Cleanup, CompressionLayer, Stack, TaskGroupBody,
    net::{Peer, WatchedListener},
};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use tower::{Layer, ServiceExt, service_fn};

#[path = "support/panics.rs"]
mod panics;
use panics::panics;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs `test` on a runtime of its own that has sockets, but cannot keep time; the number of panics.
fn without_timers<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) -> usize {
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let before = panics();
        tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap()
            .block_on(test());
        done.send(panics() - before).unwrap();
    });
    finished.recv_timeout(LIMIT).expect("panicked, or hangs")
}

/// Larger than what is encoded on the spot.
async fn large(
    _: Request<()>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible> + Send>, Infallible> {
    let text = Bytes::from("a row of text\n".repeat(1 << 12));
    let frames = (0..8).map(move |_| Ok::<_, Infallible>(Frame::data(text.clone())));
    Ok(Response::new(StreamBody::new(stream::iter(frames))))
}

#[test]
fn a_runtime_is_tried_once_and_not_by_each_large_body() {
    let tries = without_timers(|| async {
        for _ in 0..10 {
            let request = Request::get("/").header("accept-encoding", "gzip");
            let service = CompressionLayer::new().layer(service_fn(large));
            let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
            let body = response.into_body().collect().await.unwrap();
            assert!(body.to_bytes().starts_with(&[0x1f, 0x8b]));
        }
    });
    assert!(tries <= 1, "{tries} panics");
}

#[test]
fn a_body_that_cannot_be_kept_alive_goes_on() {
    let tries = without_timers(|| async {
        for _ in 0..5 {
            let body = TaskGroupBody::new(|_, tx| async move {
                for _ in 0..5 {
                    tx.send("x").await?;
                    let wait = || thread::sleep(Duration::from_millis(2));
                    tokio::task::spawn_blocking(wait).await?;
                }
                Ok(())
            });
            let body = body.keep_alive(Duration::from_millis(1), ":");
            assert_eq!(body.collect().await.unwrap().to_bytes(), "xxxxx");
        }
    });
    assert!(tries <= 1, "{tries} panics");
}

#[test]
fn clients_that_leave_are_seen() {
    let (addr, has_addr) = mpsc::channel();
    let (gone, has_gone) = mpsc::channel();
    thread::spawn(move || {
        let waits = move |peer: Peer, cleanup: Cleanup| {
            let (before, in_closer, in_task) = (panics(), gone.clone(), gone.clone());
            cleanup.defer(move |ending| async move {
                assert!(!ending.succeeded());
                in_closer.send(panics() - before).unwrap();
                Ok(())
            });
            tokio::spawn(async move {
                peer.gone_after(Duration::from_millis(1)).await;
                in_task.send(panics() - before).unwrap();
            });
            async { pending::<&str>().await }
        };
        let app = Router::new().route("/", get(waits)).layer(Stack::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
            addr.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, app.into_make_service_with_connect_info::<Peer>())
                .into_future()
                .await
                .unwrap();
        });
    });
    let addr = has_addr.recv_timeout(LIMIT).unwrap();
    for first in [true, false, false] {
        let mut client = TcpStream::connect(addr).unwrap();
        write!(client, "GET / HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
        let wait = Some(Duration::from_millis(20));
        client.set_read_timeout(wait).unwrap();
        assert!(client.read(&mut [0]).is_err(), "answered");
        drop(client);
        for _ in ["closer", "task"] {
            let tries = has_gone.recv_timeout(LIMIT).expect("seen");
            assert!(tries <= usize::from(first), "{tries} panics");
        }
    }
}
