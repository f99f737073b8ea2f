//! Below HTTP: the watch itself, with nobody reading the socket.

use std::{future::Future, pin::pin, task::Context, task::Poll, task::Waker, time::Duration};

use bodyguard::net::{Gone, Peer, PeerEnd, WatchedListener, WatchedStream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::support::{pair, reset_on_drop, until, within};

fn poll_once(gone: &mut Gone) -> Poll<PeerEnd> {
    pin!(gone).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn fin_and_rst_are_seen_and_told_apart_behind_unread_bytes() {
    for unread in [0, 1, 10_000] {
        let (mut client, server) = pair(false).await;
        client.write_all(&vec![b'x'; unread]).await.unwrap();
        drop(client);
        assert_eq!(within(server.peer().gone()).await, PeerEnd::Fin);

        let (mut client, server) = pair(false).await;
        client.write_all(&vec![b'x'; unread]).await.unwrap();
        reset_on_drop(&client);
        drop(client);
        assert_eq!(within(server.peer().gone()).await, PeerEnd::Rst);
    }
}

#[tokio::test]
async fn an_armed_watch_wakes_for_fin_and_rst() {
    for rst in [false, true] {
        let (mut client, server) = pair(false).await;
        let mut gone = server.peer().gone();
        assert!(poll_once(&mut gone).is_pending());
        client.write_all(b"bytes nobody reads").await.unwrap();
        if rst {
            reset_on_drop(&client);
        }
        let waiting = tokio::spawn(gone);
        drop(client);
        let expected = if rst { PeerEnd::Rst } else { PeerEnd::Fin };
        assert_eq!(within(waiting).await.unwrap(), expected);
        assert_eq!(server.peer().end(), Some(expected));
    }
}

#[tokio::test]
async fn half_closing_counts_as_gone_unless_allowed() {
    let (mut client, server) = pair(false).await;
    client.shutdown().await.unwrap();
    assert_eq!(within(server.peer().gone()).await, PeerEnd::Fin);
    assert!(!server.peer().half_close());
}

#[tokio::test]
async fn a_thousand_small_reads_raise_no_alarm() {
    for half_close in [false, true] {
        let (mut client, mut server) = pair(half_close).await;
        // In a task of its own: nothing but the watch wakes it.
        let gone = tokio::spawn(server.peer().gone());
        let mut byte = [0];
        for _ in 0..1_000 {
            within(client.write_all(b"x")).await.unwrap();
            within(server.read_exact(&mut byte)).await.unwrap();
            within(server.write_all(b"y")).await.unwrap();
            within(client.read_exact(&mut byte)).await.unwrap();
            assert!(!gone.is_finished() && !server.peer().is_gone());
        }
        // The watch is still awake after all that.
        reset_on_drop(&client);
        drop(client);
        assert_eq!(within(gone).await.unwrap(), PeerEnd::Rst);
    }
}

#[tokio::test]
async fn what_the_stream_reads_is_noted_without_a_watch() {
    let (client, mut server) = pair(false).await;
    drop(client);
    assert_eq!(within(server.read(&mut [0; 8])).await.unwrap(), 0);
    assert_eq!(server.peer().end(), Some(PeerEnd::Fin));

    let (client, mut server) = pair(false).await;
    reset_on_drop(&client);
    drop(client);
    within(server.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(server.peer().end(), Some(PeerEnd::Rst));
}

#[tokio::test]
async fn a_held_up_write_fails_once_its_client_has_gone() {
    let (mut client, mut server) = pair(false).await;
    client.write_all(b"bytes nobody reads").await.unwrap();
    client.shutdown().await.unwrap();
    // The client stays, and reads nothing.
    let error = within(async {
        loop {
            if let Err(error) = server.write_all(&[0; 64 * 1024]).await {
                break error;
            }
        }
    })
    .await;
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(server.peer().end(), Some(PeerEnd::Fin));
}

#[tokio::test]
async fn a_held_up_write_goes_on_for_a_client_that_may_half_close() {
    const LENGTH: usize = 16 << 20;
    let (mut client, mut server) = pair(true).await;
    client.shutdown().await.unwrap();
    let writing = tokio::spawn(async move {
        server.write_all(&vec![0; LENGTH]).await.unwrap();
        server.shutdown().await.unwrap();
        server
    });
    // Held up for longer than it takes until the write watches.
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(!writing.is_finished());
    let mut got = Vec::new();
    within(client.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), LENGTH);
    assert_eq!(within(writing).await.unwrap().peer().end(), None);
}

#[tokio::test]
async fn reading_into_no_room_is_no_end_of_file() {
    let (mut client, mut server) = pair(false).await;
    // tokio asks a socket that has nothing to read for nothing, and waits.
    within(client.write_all(b"x")).await.unwrap();
    assert_eq!(within(server.read(&mut [])).await.unwrap(), 0);
    assert!(!server.peer().is_gone());
}

#[tokio::test]
async fn dropping_the_stream_wakes_everyone_and_closes_tcp() {
    let (mut client, server) = pair(false).await;
    let peer = server.peer();
    let waiting: Vec<_> = (0..10).map(|_| tokio::spawn(peer.gone())).collect();
    let mut mine = peer.gone();
    assert!(poll_once(&mut mine).is_pending());
    drop(server);
    // Peers and waits are still held; the client sees the end all the same.
    assert_eq!(within(client.read(&mut [0; 8])).await.unwrap(), 0);
    for wait in waiting {
        assert_eq!(within(wait).await.unwrap(), PeerEnd::Closed);
    }
    assert_eq!(within(mine).await, PeerEnd::Closed);
    assert_eq!(within(peer.gone()).await, PeerEnd::Closed);
}

/// Whose wake panics.
struct Panics;

impl std::task::Wake for Panics {
    fn wake(self: std::sync::Arc<Self>) {
        panic!("a waker");
    }
}

#[tokio::test]
async fn a_waker_that_panics_keeps_the_end_from_nobody() {
    let (_client, server) = pair(false).await;
    let mut first = server.peer().gone();
    let panics = Waker::from(std::sync::Arc::new(Panics));
    let mut cx = Context::from_waker(&panics);
    assert!(pin!(&mut first).poll(&mut cx).is_pending());
    let second = tokio::spawn(server.peer().gone());
    tokio::task::yield_now().await;
    drop(server);
    assert_eq!(within(second).await.unwrap(), PeerEnd::Closed);
}

#[tokio::test]
async fn one_wait_of_many_can_be_dropped() {
    let (client, server) = pair(false).await;
    let peer = server.peer();
    let mut first = peer.gone();
    let mut second = peer.gone();
    assert!(poll_once(&mut first).is_pending());
    assert!(poll_once(&mut second).is_pending());
    drop(first);
    let second = tokio::spawn(second);
    drop(client);
    assert_eq!(within(second).await.unwrap(), PeerEnd::Fin);
}

#[tokio::test]
async fn a_watch_taken_down_can_be_put_up_again() {
    let (client, server) = pair(false).await;
    for _ in 0..100 {
        assert!(poll_once(&mut server.peer().gone()).is_pending());
    }
    drop(client);
    assert_eq!(within(server.peer().gone()).await, PeerEnd::Fin);
}

#[tokio::test]
async fn a_delayed_wait_sees_what_happened_before_and_after_it_armed() {
    let delay = Duration::from_millis(5);
    let (client, server) = pair(false).await;
    let gone = server.peer().gone_after(delay);
    drop(client);
    assert_eq!(within(gone).await, PeerEnd::Fin);

    let (client, server) = pair(false).await;
    let mut gone = server.peer().gone_after(delay);
    within(std::future::poll_fn(|cx| {
        // The first wake-up is the timer's; by the second poll the watch stands.
        match pin!(&mut gone).poll(cx) {
            Poll::Pending if armed(&server) => Poll::Ready(()),
            Poll::Pending => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(end) => panic!("{end:?} while the client is there"),
        }
    }))
    .await;
    drop(client);
    assert_eq!(within(gone).await, PeerEnd::Fin);
}

/// Whether the connection's descriptor has a duplicate: another one with the same socket inode.
fn armed(server: &WatchedStream) -> bool {
    use std::os::fd::AsRawFd;
    let inode = |fd: &str| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
    let own = server.with_socket(|tcp| tcp.as_raw_fd()).to_string();
    let socket = inode(&own);
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .any(|fd| fd != own && inode(&fd) == socket)
}

#[tokio::test]
async fn the_watch_is_lazy_and_ends_with_the_last_wait() {
    let (_client, server) = pair(false).await;
    let peer = server.peer();
    assert!(!armed(&server));
    let mut first = peer.gone();
    assert!(!armed(&server), "armed before it was polled");
    assert!(poll_once(&mut first).is_pending());
    assert!(armed(&server));
    let mut second = peer.gone();
    assert!(poll_once(&mut second).is_pending());
    drop(first);
    assert!(armed(&server));
    drop(second);
    assert!(!armed(&server));
}

/// Writes until the client's window and the server's queue are full.
async fn fill(server: &WatchedStream) -> usize {
    let chunk = [b'x'; 16 * 1024];
    let mut queued = 0;
    until(|| {
        while let Ok(n) = server.with_socket(|tcp| tcp.try_write(&chunk)) {
            queued += n;
        }
        queued > 0
    })
    .await;
    queued
}

#[tokio::test]
async fn bytes_queued_when_the_stream_is_dropped_are_delivered() {
    let mut listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    // A small window: most of what is written waits in the server's queue.
    socket.set_recv_buffer_size(4096).unwrap();
    let client = socket.connect(listener.local_addr().unwrap());
    let (client, server) = within(async { tokio::join!(client, listener.accept()) }).await;
    let (mut client, server) = (client.unwrap(), server.unwrap().0);
    let mut gone = server.peer().gone();
    assert!(poll_once(&mut gone).is_pending());

    let queued = fill(&server).await;
    assert!(queued > 100_000, "only {queued} bytes queued");
    drop(server);

    let mut buf = vec![0; 1024];
    let mut read = 0;
    while let n @ 1.. = within(client.read(&mut buf)).await.unwrap() {
        read += n;
        tokio::task::yield_now().await;
    }
    assert_eq!(read, queued);
}

#[tokio::test]
async fn connections_do_not_wait_for_delayed_acks() {
    let (_client, server) = pair(false).await;
    assert!(server.with_socket(|tcp| tcp.nodelay()).unwrap());
}

#[tokio::test]
async fn close_and_reset_end_both_sides() {
    for reset in [false, true] {
        let (mut client, mut server) = pair(false).await;
        let peer = server.peer();
        let waiting = tokio::spawn(peer.gone());
        let reader = tokio::spawn(async move {
            let read = server.read(&mut [0; 8]).await;
            (read.unwrap_or(0), server.write_all(b"late").await.is_err())
        });
        if reset {
            peer.reset();
        } else {
            peer.close();
        }
        assert_eq!(within(waiting).await.unwrap(), PeerEnd::Closed);
        let (read, write_failed) = within(reader).await.unwrap();
        assert_eq!(read, 0);
        assert!(write_failed);
        assert_eq!(peer.end(), Some(PeerEnd::Closed));
        if !reset {
            assert_eq!(within(client.read(&mut [0; 8])).await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn reset_shows_the_client_a_broken_connection() {
    let (client, server) = pair(false).await;
    let peer = server.peer();
    fill(&server).await;
    peer.reset();
    drop(server);
    let mut buf = vec![0; 65_536];
    let error = within(async {
        loop {
            client.readable().await.unwrap();
            match client.try_read(&mut buf) {
                Ok(0) => panic!("a clean end"),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => break error,
            }
        }
    })
    .await;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_wait_on_a_runtime_that_has_gone_does_not_panic() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let (client, server) = first.block_on(pair(false));
    let peer = server.peer();
    let mut armed = peer.gone();
    assert!(poll_once(&mut armed).is_pending());
    drop(first);
    drop(client);
    let mut late = peer.gone();
    assert!(poll_once(&mut armed).is_pending());
    assert!(poll_once(&mut late).is_pending());
    drop(armed);
    drop(late);
    // Not even arming anew.
    let mut late = peer.gone();
    assert!(poll_once(&mut late).is_pending());
    drop(server);
    assert_eq!(runtime().block_on(late), PeerEnd::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_and_drops_on_many_threads_lose_no_wake_up() {
    for round in 0..200 {
        let (client, server) = pair(false).await;
        let peer = server.peer();
        let waits: Vec<_> = (0..8)
            .map(|i| {
                let peer = peer.clone();
                tokio::spawn(async move {
                    if i % 2 == 0 {
                        let _ = poll_once(&mut peer.gone());
                    }
                    peer.gone().await
                })
            })
            .collect();
        if round % 2 == 0 {
            drop(client);
        } else {
            drop(server);
            until(|| peer.is_gone()).await;
        }
        for wait in waits {
            within(wait).await.unwrap();
        }
    }
}

#[test]
fn handles_cross_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Peer>();
    check::<Gone>();
    check::<WatchedStream>();
    fn send<T: Send + 'static>() {}
    send::<WatchedListener>();
}
