//! `half_close(true)`: a FIN is the client's right, and only RST ends a peer.

use axum::{body::Body, http::Response};
use bodyguard::net::PeerEnd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Kind, Leave, Server, pair, reset_on_drop, until, within};

const CLOSE: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
const PIPELINED: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_half_closed_client_gets_its_whole_response() {
    let mut server = Server::start(Kind::Bare, true).await;
    let mut client = server.connect().await;
    client.send(CLOSE).await;
    let arrived = server.arrived().await;
    let mut gone = arrived.peer.gone();
    within(client.shutdown()).await.unwrap();
    // A reset elsewhere, sent later, is seen before anything is seen here.
    let (other, marker) = pair(true).await;
    reset_on_drop(&other);
    drop(other);
    tokio::select! {
        biased;
        end = &mut gone => panic!("{end:?}: a half-closed client was taken for gone"),
        _ = within(marker.peer().gone()) => {}
    }
    let body = Body::from(vec![b'x'; 1 << 20]);
    arrived.respond.send(Response::new(body)).unwrap();
    let mut got = Vec::new();
    within(client.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.iter().filter(|byte| **byte == b'x').count(), 1 << 20);
    // Now the server has closed; nobody left.
    assert_eq!(within(gone).await, PeerEnd::Closed);
}

#[tokio::test]
async fn rst_is_seen_at_once() {
    for kind in [Kind::Bare, Kind::Tls] {
        for request in [CLOSE, PIPELINED] {
            let mut server = Server::start(kind, true).await;
            let mut client = server.connect().await;
            client.send(request).await;
            let arrived = server.arrived().await;
            let gone = tokio::spawn(arrived.peer.gone());
            client.leave(Leave::Rst);
            assert_eq!(within(gone).await.unwrap(), PeerEnd::Rst);
        }
    }
}

#[tokio::test]
async fn rst_is_seen_after_a_fin() {
    let (mut client, server) = pair(true).await;
    let mut gone = server.peer().gone();
    within(client.shutdown()).await.unwrap();
    tokio::select! {
        biased;
        end = &mut gone => panic!("{end:?} at a FIN"),
        () = tokio::task::yield_now() => {}
    }
    // Unread bytes make the client's close a reset.
    server.with_socket(|tcp| tcp.try_write(b"unread")).unwrap();
    within(client.readable()).await.unwrap();
    drop(client);
    assert_eq!(within(gone).await, PeerEnd::Rst);
}

#[tokio::test]
async fn a_closed_client_is_gone_once_a_write_is_answered_by_rst() {
    for armed in [true, false] {
        let (client, mut server) = pair(true).await;
        drop(client);
        assert_eq!(within(server.read(&mut [0; 8])).await.unwrap(), 0);
        let peer = server.peer();
        assert!(!peer.is_gone(), "a FIN is no end here");
        if armed {
            let gone = tokio::spawn(peer.gone());
            within(server.write_all(b"x")).await.unwrap();
            assert_eq!(within(gone).await.unwrap(), PeerEnd::Rst);
        } else {
            // The stream's own writes tell, too.
            within(async { while server.write_all(b"x").await.is_ok() {} }).await;
            assert_eq!(peer.end(), Some(PeerEnd::Rst));
        }
    }
}

#[tokio::test]
async fn rst_is_seen_although_its_error_was_taken() {
    for half_close in [true, false] {
        let (client, server) = pair(half_close).await;
        reset_on_drop(&client);
        drop(client);
        until(|| server.with_socket(|tcp| tcp.take_error().unwrap().is_some())).await;
        assert_eq!(within(server.peer().gone()).await, PeerEnd::Rst);
    }
}
