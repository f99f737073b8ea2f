//! What the bridge costs, against what one would write without it; both sides in one run.

use std::{
    hint::black_box,
    io::{self, Read, Write},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use bodyguard::bridge::{Context, Pool, SyncBody};
use bytes::Bytes;
use tokio::{net::TcpListener, runtime::Handle};
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{at_least, quick, stated};

const WRITE: usize = 8 * 1024;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
pub(crate) async fn run() {
    sync_to_async().await;
    whole_requests().await;
    throughput().await;
}

/// How many rounds.
fn rounds() -> usize {
    if quick() { 5 } else { 9 }
}

/// How many writes a download is made of.
fn writes() -> usize {
    if quick() { 6 * 1024 } else { 24 * 1024 }
}

/// What async code is waited for: one that goes through the scheduler once.
async fn work() {
    tokio::task::yield_now().await;
}

/// A sync→async call when the request has made one before.
async fn sync_to_async() {
    const TIMES: u32 = 2_000;
    const THREADS: u32 = 200;
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let (mut bridged, mut fresh, mut handle, mut hop, mut hop_theirs) =
        (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..rounds() {
        let each = bridge.call(|cx| {
            cx.block_on(work()).unwrap();
            time(TIMES, || cx.block_on(work()).unwrap())
        });
        bridged.push(each.await.unwrap());
        let each = tokio::task::spawn_blocking(|| {
            time(THREADS, || {
                thread::spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    runtime.block_on(work());
                })
                .join()
                .unwrap();
            })
        });
        fresh.push(each.await.unwrap());
        let each = tokio::task::spawn_blocking(|| {
            let runtime = Handle::current();
            time(TIMES, || runtime.block_on(work()))
        });
        handle.push(each.await.unwrap());

        let start = Instant::now();
        for n in 0..TIMES {
            black_box(bridge.call(move |_| n).await.unwrap());
        }
        hop.push(start.elapsed() / TIMES);
        let start = Instant::now();
        for n in 0..TIMES {
            black_box(tokio::task::spawn_blocking(move || n).await.unwrap());
        }
        hop_theirs.push(start.elapsed() / TIMES);
    }
    let second = pairs(&fresh, &bridged);
    let (bridged, fresh, handle) = (median(bridged), median(fresh), median(handle));
    let (hop, hop_theirs) = (median(hop), median(hop_theirs));
    println!("sync to async, second in the request: {bridged:?}");
    println!("sync to async, new thread and runtime: {fresh:?}");
    println!("sync to async, Handle::block_on in spawn_blocking: {handle:?}");
    println!("async to sync, bridge.call: {hop:?}; spawn_blocking: {hop_theirs:?}");
    at_least("bridge_second_call_vs_thread_and_runtime", second, 20.0);
    stated(
        "bridge_second_call_vs_handle_block_on",
        over(handle, bridged),
    );
    stated("bridge_call_vs_spawn_blocking", over(hop_theirs, hop));
}

/// A request that makes one call, from its first use to its close.
async fn whole_requests() {
    const TIMES: u32 = 500;
    let pool = Pool::new();
    let (mut bridged, mut fresh) = (vec![], vec![]);
    for _ in 0..rounds() {
        let start = Instant::now();
        for _ in 0..TIMES {
            let context = Context::new(pool.clone());
            let call = context.bridge().call(|cx| cx.block_on(work()));
            call.await.unwrap().unwrap();
            black_box(context.close().await);
        }
        bridged.push(start.elapsed() / TIMES);
        let start = Instant::now();
        for _ in 0..TIMES {
            let (done, is_done) = tokio::sync::oneshot::channel();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(work());
                done.send(()).unwrap();
            });
            is_done.await.unwrap();
        }
        fresh.push(start.elapsed() / TIMES);
    }
    let (bridged, fresh) = (median(bridged), median(fresh));
    println!("a request with one call: {bridged:?}; with a thread and runtime: {fresh:?}");
    stated("bridge_request_vs_thread_and_runtime", over(fresh, bridged));
}

/// Blocking writes of 8 KiB, through hyper to a socket.
async fn throughput() {
    let pool = Pool::new();
    let app = Router::new()
        .route(
            "/bridge",
            get(move || {
                let pool = pool.clone();
                async move {
                    Body::new(SyncBody::in_pool(pool, |bridge| {
                        bridge.body_writer(produce)
                    }))
                }
            }),
        )
        .route(
            "/channel",
            get(|| async {
                // As many bytes in the channel as the bridge buffers.
                let (tx, rx) = tokio::sync::mpsc::channel(8);
                tokio::task::spawn_blocking(move || {
                    let _ = produce(&mut Channel(tx));
                });
                Body::from_stream(ReceiverStream::new(rx))
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Handle::current().spawn(async move { axum::serve(listener, app).await.unwrap() });
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..2 * rounds() {
        ours.push(download(address, "/bridge").await);
        theirs.push(download(address, "/channel").await);
    }
    server.abort();
    // Pair by pair: what else the machine does hits both sides of a pair.
    let ratios = pairs(&theirs, &ours);
    let (ours, theirs) = (median(ours), median(theirs));
    let rate = |time: Duration| (WRITE * writes()) as f64 / time.as_secs_f64() / 1e6;
    println!(
        "8 KiB writes to a socket: bridge {:.0} MB/s, spawn_blocking and channel {:.0} MB/s",
        rate(ours),
        rate(theirs)
    );
    at_least("bridge_writes_vs_channel", ratios, 1.0);
}

fn produce(out: &mut dyn Write) -> io::Result<()> {
    let row = [b'x'; WRITE];
    (0..writes()).try_for_each(|_| out.write_all(&row))
}

struct Channel(tokio::sync::mpsc::Sender<io::Result<Bytes>>);

impl Write for Channel {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(data)))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn download(address: SocketAddr, path: &'static str) -> Duration {
    tokio::task::spawn_blocking(move || {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let (mut buffer, mut all) = (vec![0; 256 * 1024], 0);
        let start = Instant::now();
        loop {
            match socket.read(&mut buffer).unwrap() {
                0 => break,
                read => all += read,
            }
        }
        assert!(all > WRITE * writes());
        start.elapsed()
    })
    .await
    .unwrap()
}

fn time(times: u32, mut f: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..times {
        f();
    }
    start.elapsed() / times
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn over(theirs: Duration, ours: Duration) -> f64 {
    theirs.as_secs_f64() / ours.as_secs_f64()
}

fn pairs(theirs: &[Duration], ours: &[Duration]) -> Vec<f64> {
    let both = theirs.iter().zip(ours);
    both.map(|(theirs, ours)| over(*theirs, *ours)).collect()
}
