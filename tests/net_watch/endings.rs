//! The rows of "the client leaves", each through axum, bare hyper and TLS.

use bodyguard::net::PeerEnd;

use crate::support::{Client, KINDS, Kind, Leave, Server, within};

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const LEAVES: [Leave; 3] = [Leave::Fin, Leave::Rst, Leave::ShutdownWrite];

fn post(length: usize, sent: usize) -> String {
    format!(
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{}",
        "x".repeat(sent)
    )
}

fn expected(leave: Leave) -> &'static [PeerEnd] {
    match leave {
        // hyper may have read the end first and dropped the connection: the same sighting.
        Leave::Fin | Leave::ShutdownWrite => &[PeerEnd::Fin],
        Leave::Rst => &[PeerEnd::Rst],
    }
}

/// Sends `request`, lets the handler be pending, leaves, and expects the peer to be seen to go.
async fn seen(kind: Kind, leave: Leave, request: &str, keep_body: bool) {
    let mut server = Server::start(kind, false).await;
    let mut client = server.connect().await;
    client.send(request).await;
    let mut arrived = server.arrived().await;
    if !keep_body {
        arrived.body = None;
    }
    let gone = tokio::spawn(arrived.peer.gone());
    let left = client.leave(leave);
    let end = within(gone).await.unwrap();
    assert!(
        expected(leave).contains(&end),
        "{kind:?} {leave:?} after {} bytes: {end:?}",
        request.len()
    );
    drop(left);
}

#[tokio::test]
async fn a_pending_get() {
    for kind in KINDS {
        for leave in LEAVES {
            seen(kind, leave, GET, false).await;
        }
    }
}

#[tokio::test]
async fn behind_a_pipelined_request() {
    for kind in KINDS {
        for leave in LEAVES {
            seen(kind, leave, &[GET, GET].concat(), false).await;
        }
    }
}

#[tokio::test]
async fn behind_a_stray_line_end() {
    for kind in KINDS {
        for leave in LEAVES {
            seen(kind, leave, &[GET, "\r\n"].concat(), false).await;
        }
    }
}

#[tokio::test]
async fn behind_a_request_body_held_or_dropped_unread() {
    for kind in KINDS {
        for leave in LEAVES {
            for keep_body in [true, false] {
                // Whole, and half sent; both fit into the socket's buffer.
                seen(kind, leave, &post(40_000, 40_000), keep_body).await;
                seen(kind, leave, &post(40_000, 20_000), keep_body).await;
            }
        }
    }
}

#[tokio::test]
async fn behind_an_upload_larger_than_the_buffers_only_rst_or_reading_shows() {
    for kind in [Kind::Axum, Kind::Bare] {
        // RST is seen at once.
        let (arrived, client) = unread_upload(kind).await;
        let gone = tokio::spawn(arrived.peer.gone());
        client.leave(Leave::Rst);
        assert_eq!(within(gone).await.unwrap(), PeerEnd::Rst);

        // A FIN waits behind bytes that nobody reads ...
        let (mut arrived, client) = unread_upload(kind).await;
        let mut gone = arrived.peer.gone();
        client.leave(Leave::Fin);
        // ... so long that later connections come and go:
        for _ in 0..20 {
            tokio::select! {
                biased;
                end = &mut gone => panic!("{end:?}: what TCP cannot tell was told"),
                () = seen(kind, Leave::Fin, GET, false) => {}
            }
        }
        // ... and shows once they are read.
        let body = arrived.body.take().unwrap();
        let drain = tokio::spawn(axum::body::to_bytes(body, usize::MAX));
        assert_eq!(within(gone).await, PeerEnd::Fin);
        assert!(within(drain).await.unwrap().is_err(), "the upload was cut");
    }
}

async fn unread_upload(kind: Kind) -> (crate::support::Arrived, Client) {
    let mut server = Server::start(kind, false).await;
    let mut client = server.connect().await;
    client.send(&post(1 << 30, 0)).await;
    let arrived = server.arrived().await;
    let mut sent = 0;
    // Full when nothing more goes in for a while.
    let mut quiet = 0;
    while quiet < 20 {
        match client.fill() {
            0 => quiet += 1,
            n => (sent, quiet) = (sent + n, 0),
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(sent > 1_000_000, "the buffers took only {sent} bytes");
    (arrived, client)
}

#[tokio::test]
async fn while_a_keep_alive_connection_goes_on_nobody_is_gone() {
    use axum::{body::Body, http::Response};
    use tokio::io::AsyncReadExt;

    for kind in KINDS {
        let mut server = Server::start(kind, false).await;
        let mut client = server.connect().await;
        let mut buf = vec![0; 4096];
        for _ in 0..100 {
            client.send(GET).await;
            let arrived = server.arrived().await;
            let mut gone = arrived.peer.gone();
            tokio::select! {
                biased;
                end = &mut gone => panic!("{end:?} on a live connection"),
                () = tokio::task::yield_now() => {}
            }
            arrived
                .respond
                .send(Response::new(Body::from("hello")))
                .unwrap();
            let mut got = Vec::new();
            while !got.ends_with(b"hello") {
                let n = within(client.read(&mut buf)).await.unwrap();
                assert_ne!(n, 0);
                got.extend_from_slice(&buf[..n]);
            }
            assert!(!arrived.peer.is_gone());
        }
    }
}
