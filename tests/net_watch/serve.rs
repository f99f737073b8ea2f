//! `net::serve` keeps its deadline.

use std::{
    future::IntoFuture,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, routing::get};
use bodyguard::{CleanupLayer, Supervisor, net};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::oneshot};

use super::support::within;

/// A handler that blocks its thread cannot be aborted: it is named, and not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_is_not_waited_for() {
    let supervisor = Supervisor::new();
    let (release, blocked) = mpsc::channel::<()>();
    let (entered, has_entered) = oneshot::channel();
    let handler = {
        let once = Arc::new(Mutex::new(Some((entered, blocked))));
        move || async move {
            let (entered, blocked) = once.lock().unwrap().take().expect("one request");
            entered.send(()).expect("the test waits");
            tokio::task::block_in_place(|| blocked.recv()).expect_err("nothing is sent");
        }
    };
    let app: Router = Router::new()
        .route("/report", get(handler))
        .layer(CleanupLayer::new().supervisor(&supervisor));
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = net::serve(listener, app)
        .supervisor(&supervisor)
        .deadline(Duration::from_millis(500))
        .shutdown(async { drop(stopped.await) });
    let serving = tokio::spawn(serving.into_future());
    let mut client = TcpStream::connect(addr).await.unwrap();
    client
        .write_all(b"GET /report HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    within(has_entered).await.unwrap();
    drop(stop);
    let report = within(serving).await.unwrap().unwrap();
    assert!(!report.is_clean());
    assert!(report.to_string().contains("GET /report"), "{report}");
    drop(release);
}
