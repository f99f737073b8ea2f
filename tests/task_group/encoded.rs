//! A body encoded inside of its scope: plain text has no place in it.

use std::{
    future::pending,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use axum::{Router, body::Body, extract::Request};
use bodyguard::{
    CompressionLayer, DisconnectLayer, Shutdown, Stack, Supervisor, TaskGroup, TaskGroupBody, net,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tower::ServiceExt;

use crate::support::{boom, until, within};

/// What can be read of a gzip stream that is not whole.
fn plain(gzip: &[u8]) -> Vec<u8> {
    let mut decoder = flate2::write::GzDecoder::new(Vec::new());
    decoder.write_all(gzip).unwrap();
    decoder.flush().unwrap();
    assert!(decoder.try_finish().is_err(), "a whole gzip member");
    decoder.get_ref().clone()
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

#[tokio::test]
async fn last_words_do_not_follow_an_encoded_body() {
    let handler = |group: TaskGroup| async move {
        let body = group.body(|tx| async move {
            tx.send("data: 1\n\n").await?;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Err(boom("no more news"))
        });
        body.on_failure(|_| Some(Bytes::from("event: error\n\n")))
    };
    let supervisor = Supervisor::new();
    let app = Router::new()
        .fallback(handler)
        .layer(Stack::new())
        .layer(DisconnectLayer::new().supervisor(&supervisor));
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = net::serve(listener, app).supervisor(&supervisor);
    let mut serving = JoinSet::new();
    serving.spawn(async move { drop(server.await) });
    let mut client = TcpStream::connect(addr).await.unwrap();
    let head = b"GET / HTTP/1.0\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n";
    client.write_all(head).await.unwrap();
    let mut raw = Vec::new();
    let read = within(client.read_to_end(&mut raw)).await;
    assert!(!holds(&raw, b"event: error"), "plain text behind gzip");
    read.expect_err("a broken end");
    let head = raw.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    assert_eq!(plain(&raw[head.unwrap() + 4..]), b"data: 1\n\n");
}

/// They go through the encoder with the rest: the body stands inside of it.
#[tokio::test(start_paused = true)]
async fn last_words_of_a_body_with_a_scope_of_its_own_are_encoded_with_it() {
    let handler = || async {
        let body = TaskGroupBody::new(|_, tx| async move {
            tx.send("data: 1\n\n").await?;
            Err(boom("no more news"))
        });
        let body = body.on_failure(|_| Some(Bytes::from("event: error\n\n")));
        ([("content-type", "text/event-stream")], body)
    };
    let app = Router::new()
        .fallback(handler)
        .layer(CompressionLayer::new())
        .layer(DisconnectLayer::new());
    let request = Request::get("/").header("accept-encoding", "gzip");
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await;
    let response = response.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    let broken = loop {
        match within(body.frame()).await {
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap()),
            end => break end,
        }
    };
    broken.unwrap().unwrap_err();
    assert_eq!(plain(&bytes), b"data: 1\n\nevent: error\n\n");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_cuts_an_encoded_body_with_an_error() {
    for coding in ["gzip", "identity"] {
        let supervisor = Supervisor::new();
        let policy = Shutdown::end_now().last_frame("text/event-stream", "event: bye\n\n");
        let handler = |group: TaskGroup| async move {
            let body = group.body(|tx| async move {
                tx.send("data: 1\n\n").await?;
                pending().await
            });
            ([("content-type", "text/event-stream")], Body::new(body))
        };
        let app = Router::new().fallback(handler).layer(Stack::new()).layer(
            DisconnectLayer::new()
                .supervisor(&supervisor)
                .shutdown(policy),
        );
        let request = Request::get("/").header("accept-encoding", coding);
        let response = app.oneshot(request.body(Body::empty()).unwrap()).await;
        let mut body = response.unwrap().into_body();
        let mut bytes = Vec::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap()),
                    Err(_) => return false,
                }
            }
            true
        };
        let draining = async {
            until(|| supervisor.snapshot()[0].frames == 1).await;
            supervisor.drain(std::time::Duration::from_secs(10)).await
        };
        let (clean, _) = tokio::join!(reading, draining);
        let (gzip, says) = (coding == "gzip", holds(&bytes, b"event: bye"));
        assert_eq!((clean, says), (!gzip, !gzip), "{coding}");
        if gzip {
            assert_eq!(plain(&bytes), b"data: 1\n\n");
        }
    }
}

/// What the scope says last is inside of its coding, and reports count the handler's bytes.
#[tokio::test(start_paused = true)]
async fn a_stack_inside_a_stack_leaves_the_encoding_to_it() {
    let handler = |group: TaskGroup| async move {
        let body = group.body(|tx| async move {
            tx.send("data: 1\n\n").await?;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Err(boom("no more news"))
        });
        let body = body.on_failure(|_| Some(Bytes::from("event: error\n\n")));
        ([("content-type", "text/event-stream")], body)
    };
    let app = Router::new().fallback(handler);
    let bye = Shutdown::end_now();
    for app in [
        app.clone().layer(Stack::new()),
        app.clone().layer(Stack::new().shutdown(bye)),
        app.clone().layer(CompressionLayer::new()),
        app.layer(Stack::new()).layer(CompressionLayer::new()),
    ] {
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        let outer = Stack::new().on_end(move |end| counted.store(end.bytes, Relaxed));
        let request = Request::builder().header("accept-encoding", "gzip");
        let request = request.body(Body::empty()).unwrap();
        let response = app.layer(outer).oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-encoding"], "gzip");
        assert_eq!(response.headers().get_all("vary").iter().count(), 1);
        let (mut gzip, mut body) = (Vec::new(), response.into_body());
        while let Some(Ok(frame)) = within(body.frame()).await {
            gzip.extend(frame.into_data().unwrap());
        }
        assert_eq!(plain(&gzip), b"data: 1\n\nevent: error\n\n");
        assert_eq!(bytes.load(Relaxed), 23);
    }
}
