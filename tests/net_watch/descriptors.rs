//! Descriptors, counted in processes of their own: tests in one process share its table.

use std::{
    fs::File,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bodyguard::net::{PeerEnd, WatchedListener};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::support::{KINDS, Leave, Server, pair, until, within};

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const EMFILE: i32 = 24;

/// Runs one ignored test of this file in a process that may open `limit` descriptors.
async fn in_a_child(test: &str, limit: usize) {
    let this = std::env::current_exe().unwrap();
    let script = format!("ulimit -n {limit} && exec \"$0\" --exact --ignored --nocapture {test}");
    let output = tokio::task::spawn_blocking(move || {
        Command::new("sh").arg("-c").arg(script).arg(this).output()
    });
    let output = output.await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{text}");
}

fn open() -> usize {
    // The directory's own descriptor is among them, each time.
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn descriptors_come_back() {
    in_a_child("descriptors::count", 1024).await;
}

#[tokio::test]
async fn running_out_of_descriptors_is_told_and_survived() {
    in_a_child("descriptors::run_out", 64).await;
}

#[tokio::test]
#[ignore = "run in a process of its own by `descriptors_come_back`"]
async fn count() {
    for kind in KINDS {
        let mut server = Server::start(kind, false).await;
        let before = open();
        let mut peers = Vec::new();
        // 500 connections, 50 at a time, each leaving in its way, each waited for thrice.
        for _ in 0..10 {
            let mut clients = Vec::new();
            let mut waiting = Vec::new();
            for _ in 0..50 {
                let mut client = server.connect().await;
                client.send(GET).await;
                let peer = server.arrived().await.peer;
                waiting.extend((0..3).map(|_| tokio::spawn(peer.gone())));
                clients.push(client);
                peers.push(peer);
            }
            // Client, server and one duplicate a connection, however many wait.
            until(|| open() == before + 150).await;
            for (i, client) in clients.into_iter().enumerate() {
                client.leave(if i % 2 == 0 { Leave::Fin } else { Leave::Rst });
            }
            for wait in waiting {
                within(wait).await.unwrap();
            }
            until(|| open() == before).await;
        }
        println!(
            "{kind:?}: {} connections, {before} descriptors",
            peers.len()
        );
    }
}

#[tokio::test]
#[ignore = "run in a process of its own by `running_out_of_descriptors_is_told_and_survived`"]
async fn run_out() {
    let failures = Arc::new(AtomicUsize::new(0));
    let failed = Arc::clone(&failures);
    let mut listener = WatchedListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .on_accept_error(move |error| {
            assert_eq!(error.raw_os_error(), Some(EMFILE), "{error}");
            failed.fetch_add(1, Ordering::Relaxed);
        });
    let (watched_client, watched) = pair(false).await;
    let mut stalled = pair(false).await;
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let mut client = within(client).await.unwrap();

    let mut hoard = Vec::new();
    let error = loop {
        match File::open("/dev/null") {
            Ok(file) => hoard.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(EMFILE));

    // A watch cannot be armed now: it neither panics nor claims an end.
    let gone = tokio::spawn(watched.peer().gone());
    tokio::task::yield_now().await;
    assert!(!gone.is_finished());
    // A stalled connection can still be ended.
    stalled.1.peer().close();
    assert_eq!(within(stalled.0.read(&mut [0; 8])).await.unwrap(), 0);

    let accepting = tokio::spawn(async move { (listener.accept().await, listener) });
    until(|| failures.load(Ordering::Relaxed) >= 3).await;
    drop(hoard);
    let (accepted, mut listener) = within(accepting).await.unwrap();
    drop(accepted.unwrap());
    assert_eq!(within(client.read(&mut [0; 8])).await.unwrap(), 0);
    // The back-off starts anew, and the watch has armed itself.
    drop(watched_client);
    assert_eq!(within(gone).await.unwrap(), PeerEnd::Fin);
    let (client, next) = within(async {
        tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        )
    })
    .await;
    client.unwrap();
    next.unwrap();
}
