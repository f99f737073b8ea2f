//! What the watch must do for, and not do to, HTTP.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ConnectInfo,
    http::{Request, Response},
    routing::get,
    serve::ListenerExt,
};
use bodyguard::net::{Peer, PeerAddrLayer, PeerEnd, WatchedListener};
use futures_util::{StreamExt, stream};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::watch};

use crate::support::{KINDS, Kind, Leave, Server, until, within};

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const CLOSE: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn the_client_of_a_broken_body_does_not_hang_while_peers_are_held() {
    for kind in KINDS {
        let mut server = Server::start(kind, false).await;
        let mut client = server.connect().await;
        client.send(GET).await;
        let arrived = server.arrived().await;
        // A detached handler: it holds the peer, and waits for it, long after the response.
        let mut held = arrived.peer.gone();
        tokio::select! {
            biased;
            _ = &mut held => panic!("gone"),
            () = tokio::task::yield_now() => {}
        }
        let frames = stream::iter([Ok("some"), Err(std::io::Error::other("broken"))]);
        let body = Body::from_stream(frames);
        arrived.respond.send(Response::new(body)).unwrap();
        let mut got = Vec::new();
        // TLS without close_notify is an error of its own; either way it ends.
        let _ = within(client.read_to_end(&mut got)).await;
        assert!(!got.ends_with(b"0\r\n\r\n"), "{kind:?}: a clean end");
        assert_eq!(within(held).await, PeerEnd::Closed, "{kind:?}");
    }
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_a_megabyte() {
    for kind in KINDS {
        let mut server = Server::start(kind, false).await;
        let mut client = server.connect().await;
        client.send(CLOSE).await;
        let arrived = server.arrived().await;
        let waiting = tokio::spawn(arrived.peer.gone());
        let body = Body::from(vec![b'#'; 1 << 20]);
        arrived.respond.send(Response::new(body)).unwrap();
        let mut buf = [0; 1500];
        let mut read = 0;
        loop {
            match within(client.read(&mut buf)).await {
                Ok(0) => break,
                Ok(n) => read += buf[..n].iter().filter(|byte| **byte == b'#').count(),
                Err(error) => panic!("{kind:?}: {error} after {read} bytes"),
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(read, 1 << 20, "{kind:?}");
        within(waiting).await.unwrap();
    }
}

#[tokio::test]
async fn close_and_reset_free_a_server_held_up_by_a_stalled_reader() {
    for reset in [false, true] {
        let mut server = Server::start(Kind::Axum, false).await;
        let mut client = server.connect().await;
        client.send(GET).await;
        let arrived = server.arrived().await;
        let (polls, seen) = watch::channel(0_u64);
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        let endless = stream::repeat(chunk).map(move |chunk| {
            polls.send_modify(|n| *n += 1);
            Ok::<_, Infallible>(chunk)
        });
        let body = Body::from_stream(endless);
        arrived.respond.send(Response::new(body)).unwrap();

        let mut last = 0;
        let mut quiet = 0;
        until(|| {
            let now = *seen.borrow();
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
            now > 0 && quiet > 20
        })
        .await;
        if reset {
            arrived.peer.reset();
        } else {
            arrived.peer.close();
        }
        // The body goes with the connection.
        until(|| seen.has_changed().is_err()).await;
        let mut got = Vec::new();
        let ended = within(client.read_to_end(&mut got)).await;
        assert_eq!(ended.is_err(), reset, "{ended:?}");
        assert!(!got.ends_with(b"0\r\n\r\n"));
        assert_eq!(arrived.peer.end(), Some(PeerEnd::Closed));
    }
}

#[tokio::test]
async fn all_streams_of_an_http2_connection_share_its_end() {
    for kind in [Kind::Axum, Kind::Bare] {
        let mut server = Server::start(kind, false).await;
        let tcp = within(TcpStream::connect(server.addr)).await.unwrap();
        let (sender, connection) = within(h2::client::handshake(tcp)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut responses = Vec::new();
        let mut waiting = Vec::new();
        for _ in 0..50 {
            let mut sender = within(sender.clone().ready()).await.unwrap();
            let request = Request::get("http://x/").body(()).unwrap();
            responses.push(sender.send_request(request, true).unwrap());
            waiting.push(tokio::spawn(server.arrived().await.peer.gone()));
        }
        // The socket goes with its task.
        connection.abort();
        for gone in waiting {
            assert_eq!(within(gone).await.unwrap(), PeerEnd::Fin);
        }
    }
}

async fn peer_and_addr(
    ConnectInfo(peer): ConnectInfo<Peer>,
    ConnectInfo(addr): ConnectInfo<SocketAddr>,
) -> String {
    assert_eq!(peer.addr(), addr);
    addr.to_string()
}

async fn addr_only(ConnectInfo(addr): ConnectInfo<SocketAddr>) -> String {
    addr.to_string()
}

async fn ask(addr: SocketAddr) -> (String, SocketAddr) {
    let mut client = crate::support::Client::Plain(TcpStream::connect(addr).await.unwrap());
    let own = match &client {
        crate::support::Client::Plain(tcp) => tcp.local_addr().unwrap(),
        crate::support::Client::Tls(_) => unreachable!(),
    };
    client.send(CLOSE).await;
    let mut got = String::new();
    within(client.read_to_string(&mut got)).await.unwrap();
    client.leave(Leave::Fin);
    (got, own)
}

#[tokio::test]
async fn handlers_that_ask_for_an_address_keep_working() {
    let peers = Router::new()
        .route("/", get(peer_and_addr))
        .layer(PeerAddrLayer);
    let addrs = Router::new().route("/", get(addr_only));

    let one = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let one_addr = one.local_addr().unwrap();
    let app = peers.clone().into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(one, app).await });

    // A tapped listener keeps its peers, and has axum's own address as well.
    let two = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let two_addr = two.local_addr().unwrap();
    let app = peers.into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(two.tap_io(|_| {}), app).await });

    let three = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let three_addr = three.local_addr().unwrap();
    let app = addrs.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(three.tap_io(|_| {}), app).await });

    for addr in [one_addr, two_addr, three_addr] {
        let (got, own) = within(ask(addr)).await;
        assert!(got.starts_with("HTTP/1.1 200"), "{got}");
        assert!(got.ends_with(&own.to_string()), "{got}");
    }
}

/// Not a check of a wall clock: prints what `--nocapture` is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_of_a_sighting_behind_a_pipelined_request() {
    let mut server = Server::start(Kind::Axum, false).await;
    let mut times = Vec::new();
    for round in 0..200 {
        let mut client = server.connect().await;
        client.send(&[GET, GET].concat()).await;
        let peer = server.arrived().await.peer;
        let gone = tokio::spawn(async move { (peer.gone().await, std::time::Instant::now()) });
        tokio::task::yield_now().await;
        let leave = if round % 2 == 0 {
            Leave::Fin
        } else {
            Leave::Rst
        };
        let left = std::time::Instant::now();
        client.leave(leave);
        let (end, seen) = within(gone).await.unwrap();
        assert!(matches!(end, PeerEnd::Fin | PeerEnd::Rst));
        times.push(seen.saturating_duration_since(left));
    }
    times.sort();
    let [median, p99]: [Duration; 2] = [times[100], times[198]];
    println!(
        "leave to sighting: median {median:?}, p99 {p99:?}, most {:?}",
        times[199]
    );
}
