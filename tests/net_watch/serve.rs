//! `net::serve` drains what it serves, and keeps its deadline.

use std::{
    future::IntoFuture,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bodyguard::{Cleanup, CleanupLayer, DrainReport, Shutdown, Supervisor, net};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

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

/// A stream without an end, with a closer that takes a while.
fn streaming(layer: CleanupLayer, closed: &Arc<AtomicBool>) -> Router {
    let closed = Arc::clone(closed);
    let handler = move |cleanup: Cleanup| async move {
        cleanup.defer(|_| async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            closed.store(true, Ordering::SeqCst);
            Ok(())
        });
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>("data: 1\n\n")]);
        let endless = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        let event_stream = [("content-type", "text/event-stream")];
        (event_stream, Body::from_stream(endless))
    };
    Router::new().route("/", get(handler)).layer(layer)
}

/// One client reads until the server's end; the shutdown comes once it has the first event.
async fn shut_down(app: Router, serves: Option<&Supervisor>) -> (String, DrainReport) {
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = net::serve(listener, app)
        .deadline(Duration::from_secs(2))
        .shutdown(async { drop(stopped.await) });
    if let Some(supervisor) = serves {
        serving = serving.supervisor(supervisor);
    }
    let serving = tokio::spawn(serving.into_future());
    let mut client = TcpStream::connect(addr).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("data: 1") {
        within(client.read_buf(&mut text)).await.unwrap();
    }
    drop(stop);
    // Its end may be an error: whatever was sent is in `text`.
    let _ = within(client.read_to_end(&mut text)).await;
    let report = within(serving).await.unwrap().unwrap();
    (String::from_utf8_lossy(&text).into_owned(), report)
}

/// Nobody named a supervisor: the server's own is everyone's, with the layers' policies.
#[tokio::test]
async fn layers_without_a_supervisor_are_drained_by_the_server() {
    let bye = Shutdown::end_now().last_frame("text/event-stream", "event: bye\n\n");
    for (serves, layers) in [
        (None, false),
        (Some(Supervisor::new()), false),
        (Some(Supervisor::new()), true),
    ] {
        let closed = Arc::default();
        let mut layer = CleanupLayer::new().shutdown(bye.clone());
        if let Some(supervisor) = serves.as_ref().filter(|_| layers) {
            layer = layer.supervisor(supervisor);
        }
        let (text, report) = shut_down(streaming(layer, &closed), serves.as_ref()).await;
        assert!(text.ends_with("event: bye\n\n\r\n0\r\n\r\n"), "{text}");
        assert_eq!((report.ended, report.is_clean()), (1, true), "{report}");
        assert!(closed.load(Ordering::SeqCst));
    }
}

/// The layers have another supervisor than the server: what they opened is waited for all the same.
#[tokio::test]
async fn a_server_waits_for_the_closers_of_layers_with_another_supervisor() {
    let (closed, other) = (Arc::default(), Supervisor::new());
    let layer = CleanupLayer::new().supervisor(&other);
    let (text, report) = shut_down(streaming(layer, &closed), None).await;
    assert!(!text.ends_with("0\r\n\r\n"), "{text}");
    assert!(closed.load(Ordering::SeqCst), "{report}");
    assert!(report.stuck.is_empty(), "{report}");
    assert_eq!(other.active(), 0);
}

/// A descriptor of its own for the same socket.
#[cfg(target_os = "linux")]
fn duplicate(socket: impl std::os::fd::AsFd) -> std::os::fd::OwnedFd {
    socket.as_fd().try_clone_to_owned().unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_socket_that_does_not_listen_is_an_error() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = std::net::TcpListener::from(duplicate(&socket));
    let listener = net::WatchedListener::from_std(listener).unwrap();
    let app: Router = Router::new();
    let served = within(net::serve(listener, app).into_future()).await;
    assert_eq!(served.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

/// The responses under way are drained as at a shutdown.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_listener_that_is_shut_down_is_an_error_behind_a_drain() {
    let supervisor = Supervisor::new();
    let (entered, mut has_entered) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |cleanup: Cleanup| async move {
        let (told, drained) = oneshot::channel::<()>();
        cleanup.defer_sync(|_| drop(told));
        entered.send(drained).unwrap();
        Body::from_stream(tokio_stream::pending::<Result<&[u8], std::io::Error>>())
    };
    let layer = CleanupLayer::new()
        .supervisor(&supervisor)
        .shutdown(Shutdown::end_now());
    let app: Router = Router::new().route("/", get(handler)).layer(layer);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let same = std::net::TcpStream::from(duplicate(&listener));
    let listener = net::WatchedListener::from_std(listener).unwrap();
    let serving = tokio::spawn(
        net::serve(listener, app)
            .supervisor(&supervisor)
            .into_future(),
    );
    let mut client = TcpStream::connect(addr).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut drained = within(has_entered.recv()).await.unwrap();
    same.shutdown(std::net::Shutdown::Both).unwrap();
    let error = within(serving).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    let told = oneshot::error::TryRecvError::Closed;
    assert_eq!(drained.try_recv().unwrap_err(), told, "the closer has run");
}
