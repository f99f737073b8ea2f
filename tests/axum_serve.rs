//! `axum::serve` and a drain beside it: neither waits for the other, and all is within one deadline.
#![cfg(all(feature = "net", feature = "axum"))]

mod support;

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use axum::{Router, body::Body, routing::get};
use bodyguard::{Cleanup, CleanupLayer, DrainReport, Stack, Supervisor, net};
use http::{Request, Response};
use support::{eventually, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tower::{Layer, ServiceExt, service_fn};

type Ended = (Option<io::Result<()>>, DrainReport);

struct Serving {
    addr: SocketAddr,
    signal: oneshot::Sender<()>,
    server: JoinSet<Ended>,
}

async fn serve(app: Router, supervisor: &Supervisor, deadline: Duration) -> Serving {
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (signal, signalled) = oneshot::channel();
    let service = app.into_make_service_with_connect_info::<net::Peer>();
    let (supervisor, announcing) = (supervisor.clone(), supervisor.clone());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let server = axum::serve(listener, service).with_graceful_shutdown(async move {
            drop(signalled.await);
            announcing.begin_shutdown();
        });
        supervisor.supervise(server, deadline).await
    });
    Serving {
        addr,
        signal,
        server,
    }
}

async fn ask(addr: SocketAddr, path: &str) -> TcpStream {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// What the server holds of a response that is done, and an answer of a route without our layers.
#[tokio::test]
async fn last_bytes_and_answers_outside_of_the_layers_have_the_whole_deadline() {
    const LARGE: usize = 24 << 20;
    let supervisor = Supervisor::new();
    let (answer, answers) = watch::channel(());
    let (asked, mut is_asked) = watch::channel(());
    let app = Router::new()
        .route("/large", get(|| async { vec![b'x'; LARGE] }))
        .layer(CleanupLayer::new().supervisor(&supervisor))
        .route(
            "/late",
            get(move || {
                let mut answers = answers.clone();
                asked.send_replace(());
                async move {
                    drop(answers.changed().await);
                    "late"
                }
            }),
        );
    let mut serving = serve(app, &supervisor, Duration::from_secs(60)).await;
    let mut large = ask(serving.addr, "/large").await;
    let mut late = ask(serving.addr, "/late").await;
    within(is_asked.changed()).await.unwrap();
    let mut head = [0; 4];
    within(large.read_exact(&mut head)).await.unwrap();
    drop(serving.signal);
    within(supervisor.shutdown_token().cancelled()).await;
    // No scope is left, and the drain is over as soon as it has begun.
    eventually(|| supervisor.active() == 0).await;
    drop(answer);
    let (mut rest, mut text) = (Vec::new(), String::new());
    within(large.read_to_end(&mut rest)).await.unwrap();
    within(late.read_to_string(&mut text)).await.unwrap();
    assert!(rest.len() > LARGE, "{} bytes", rest.len());
    assert!(text.ends_with("late"), "{text}");
    let (served, report) = within(serving.server.join_next()).await.unwrap().unwrap();
    assert!(matches!(served, Some(Ok(()))), "{served:?}");
    assert!(report.is_clean(), "{report}");
}

/// The server has nobody left to wait for, and the drain goes on: with the time that it has had, not with all of it
/// anew.
#[tokio::test(start_paused = true)]
async fn a_server_that_has_ended_does_not_begin_the_deadline_anew() {
    let deadline = Duration::from_secs(8);
    let supervisor = Supervisor::new();
    let handler = service_fn(|request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        cleanup.defer(|_| std::future::pending());
        std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty())))
    });
    let service = CleanupLayer::new().supervisor(&supervisor).layer(handler);
    let answer = service.oneshot(Request::new(()));
    let answered = tokio::time::timeout(deadline / 8, answer).await;
    assert!(answered.is_err(), "its closer is waited for");
    let begun = Instant::now();
    let server = async {
        supervisor.begin_shutdown();
        tokio::time::sleep(deadline / 2).await;
    };
    let (served, report) = supervisor.supervise(server, deadline).await;
    assert_eq!((served, begun.elapsed()), (Some(()), deadline));
    assert_eq!(report.stuck.len(), 1, "{report}");
}

/// The drain has nothing to do, and its server has the time, but for a reserve.
#[tokio::test(start_paused = true)]
async fn a_server_has_what_the_drain_leaves_of_the_deadline() {
    for (needs, ends) in [(18, true), (19, false)] {
        let supervisor = Supervisor::new();
        let server = async {
            supervisor.begin_shutdown();
            tokio::time::sleep(Duration::from_millis(needs * 1000 + 500)).await;
        };
        let (served, report) = supervisor.supervise(server, Duration::from_secs(20)).await;
        assert_eq!(served.is_some(), ends, "{needs}.5 s");
        assert!(report.is_clean(), "{report}");
    }
}

/// A server may end without a shutdown: what it leaves is drained.
#[tokio::test(start_paused = true)]
async fn a_server_that_ends_by_itself_is_drained_behind() {
    let supervisor = Supervisor::new();
    let server = std::future::ready("broken");
    let (served, report) = supervisor.supervise(server, Duration::from_secs(20)).await;
    assert_eq!(served, Some("broken"));
    assert!(report.is_clean() && supervisor.is_draining(), "{report}");
}

/// A client that reads nothing holds its server up; the process ends in time all the same.
#[tokio::test]
async fn a_server_that_does_not_end_has_the_deadline() {
    let supervisor = Supervisor::new();
    let app = Router::new()
        .route("/", get(|| async { vec![b'x'; 64 << 20] }))
        .layer(Stack::new().supervisor(&supervisor));
    let mut serving = serve(app, &supervisor, Duration::from_secs(2)).await;
    let mut client = ask(serving.addr, "/").await;
    within(client.read_exact(&mut [0; 4])).await.unwrap();
    drop(serving.signal);
    let (served, report) = within(serving.server.join_next()).await.unwrap().unwrap();
    assert!(served.is_none() && report.is_clean(), "{served:?} {report}");
}
