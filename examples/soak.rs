//! Thousands of streams whose clients leave at random, and the account afterwards.
//!
//! `cargo run --release --example soak -- --seconds 30 --streams 2000`
//!
//! Clients on loopback leave by FIN, RST or RST_STREAM at random moments, before the head, in the
//! middle, or with their whole connection; then everything must be gone: closers run = closers
//! registered, no scope, no task, no memory. It exits with 1 if anything is left.

use std::{
    alloc::System,
    collections::BTreeMap,
    error::Error,
    future::IntoFuture,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use bodyguard::{Cleanup, Stack, Supervisor, TaskGroup, net};
use bytes::Bytes;
use h2::client::SendRequest;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Streams of one HTTP/2 connection.
const STREAMS_OF_A_CONNECTION: usize = 20;

#[derive(Default)]
struct Account {
    requests: AtomicU64,
    registered: AtomicU64,
    ran: AtomicU64,
    tasks: AtomicU64,
    peak_scopes: AtomicU64,
    peak_heap: AtomicU64,
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
    left: Mutex<BTreeMap<&'static str, u64>>,
}

/// One task alive.
struct Alive(Arc<Account>);

impl Alive {
    fn new(account: &Arc<Account>) -> Self {
        account.tasks.fetch_add(1, Relaxed);
        Self(account.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Relaxed);
    }
}

fn app(account: &Arc<Account>, supervisor: &Supervisor) -> Router {
    let (account, ends) = (account.clone(), account.clone());
    let handler = move |cleanup: Cleanup, group: TaskGroup| async move {
        account.requests.fetch_add(1, Relaxed);
        for wait in [0, 3] {
            account.registered.fetch_add(1, Relaxed);
            let account = account.clone();
            cleanup.defer(move |_| async move {
                sleep(Duration::from_millis(wait)).await;
                account.ran.fetch_add(1, Relaxed);
                Ok(())
            });
        }
        account.registered.fetch_add(1, Relaxed);
        let sync = account.clone();
        cleanup.defer_sync(move |_| {
            sync.ran.fetch_add(1, Relaxed);
        });
        let alive = Alive::new(&account);
        let graceful = group.spawn_graceful(|cancel| async move {
            let _alive = alive;
            cancel.cancelled().await;
            Ok(())
        });
        // Refused if the client has left by now: then there is no stream either.
        drop(graceful);
        group.body(move |tx| async move {
            let _alive = Alive::new(&account);
            loop {
                tx.send("one line of a stream that goes on until its client leaves\n")
                    .await?;
                sleep(Duration::from_millis(40)).await;
            }
        })
    };
    let stack = Stack::new().supervisor(supervisor).on_end(move |report| {
        let mut outcomes = ends.outcomes.lock().unwrap();
        *outcomes.entry(report.outcome().as_str()).or_insert(0) += 1;
    });
    Router::new().route("/", get(handler)).layer(stack)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// Anything up to two seconds; now and then nothing at all.
    fn stay(&mut self) -> Duration {
        match self.below(10) {
            0 => Duration::ZERO,
            _ => Duration::from_micros(self.below(2_000_000)),
        }
    }
}

/// One stream over HTTP/1.1 after the other.
async fn http_1(addr: SocketAddr, until: Instant, mut random: Random, account: Arc<Account>) {
    while Instant::now() < until {
        let Ok(mut tcp) = TcpStream::connect(addr).await else {
            continue;
        };
        if tcp
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .is_err()
        {
            continue;
        }
        let mut buffer = [0; 4096];
        let reading = async { while tcp.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
        let _ = timeout(random.stay(), reading).await;
        let how = if random.below(2) == 0 {
            let _ = tcp.set_zero_linger();
            "RST"
        } else {
            "FIN"
        };
        drop(tcp);
        *account.left.lock().unwrap().entry(how).or_insert(0) += 1;
    }
}

/// Connections with many streams each, one after the other.
async fn http_2(addr: SocketAddr, until: Instant, mut random: Random, account: Arc<Account>) {
    while Instant::now() < until {
        let Ok(tcp) = TcpStream::connect(addr).await else {
            continue;
        };
        let resets = random.below(2) == 0;
        if resets {
            let _ = tcp.set_zero_linger();
        }
        let Ok((send, connection)) = h2::client::handshake(tcp).await else {
            continue;
        };
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS_OF_A_CONNECTION {
            let random = Random(random.below(u64::MAX));
            streams.spawn(streams_of(send.clone(), until, random, account.clone()));
        }
        // Gone with all its streams after a while.
        let _ = timeout(random.stay() * 5, connection).await;
        let how = if resets {
            "connection RST"
        } else {
            "connection FIN"
        };
        *account.left.lock().unwrap().entry(how).or_insert(0) += 1;
        streams.shutdown().await;
    }
}

async fn streams_of(
    send: SendRequest<Bytes>,
    until: Instant,
    mut random: Random,
    account: Arc<Account>,
) -> Result<(), h2::Error> {
    while Instant::now() < until {
        let mut send = send.clone().ready().await?;
        let request = http::Request::builder().uri("http://x/").body(());
        let (response, mut stream) = send.send_request(request.expect("a request"), true)?;
        let reading = async {
            let mut body = response.await?.into_body();
            while let Some(data) = body.data().await {
                let len = data?.len();
                body.flow_control().release_capacity(len)?;
            }
            Ok::<(), h2::Error>(())
        };
        let _ = timeout(random.stay(), reading).await;
        stream.send_reset(h2::Reason::CANCEL);
        *account
            .left
            .lock()
            .unwrap()
            .entry("RST_STREAM")
            .or_insert(0) += 1;
    }
    Ok(())
}

fn heap() -> u64 {
    let stats = ALLOCATOR.stats();
    (stats.bytes_allocated - stats.bytes_deallocated) as u64
}

/// What the process holds in memory, in KiB, where `/proc` tells.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Lets clients come and go for a while, then waits until nothing is left.
async fn load(
    addr: SocketAddr,
    streams: usize,
    lasts: Duration,
    account: &Arc<Account>,
    supervisor: &Supervisor,
) {
    let until = Instant::now() + lasts;
    let over_http_2 = streams / 3 / STREAMS_OF_A_CONNECTION;
    let mut clients = JoinSet::new();
    for number in 0..over_http_2 {
        let random = Random(number as u64);
        clients.spawn(http_2(addr, until, random, account.clone()));
    }
    for number in 0..streams - over_http_2 * STREAMS_OF_A_CONNECTION {
        let random = Random(1 << 32 | number as u64);
        clients.spawn(http_1(addr, until, random, account.clone()));
    }
    while !matches!(
        timeout(Duration::from_millis(100), clients.join_next()).await,
        Ok(None)
    ) {
        account
            .peak_scopes
            .fetch_max(supervisor.active() as u64, Relaxed);
        account.peak_heap.fetch_max(heap(), Relaxed);
        if Instant::now() > until + Duration::from_secs(15) {
            clients.shutdown().await;
        }
    }
    let patience = Instant::now() + Duration::from_secs(10);
    let left = |account: &Account| account.tasks.load(Relaxed) + supervisor.active() as u64;
    while left(account) > 0 && Instant::now() < patience {
        sleep(Duration::from_millis(10)).await;
    }
    // Connections without a stream are noticed and dropped.
    sleep(Duration::from_millis(300)).await;
}

fn option(name: &str, default: u64) -> Result<u64, Box<dyn Error>> {
    let mut args = std::env::args();
    match args.find(|arg| arg == name).and(args.next()) {
        Some(value) => Ok(value.parse()?),
        None => Ok(default),
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let lasts = Duration::from_secs(option("--seconds", 30)?);
    let streams = option("--streams", 2_000)? as usize;
    let (account, supervisor) = (Arc::<Account>::default(), Supervisor::new());
    let listener = net::WatchedListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = net::serve(listener, app(&account, &supervisor))
        .supervisor(&supervisor)
        .shutdown(async { drop(stopped.await) });
    let mut serving = JoinSet::new();
    serving.spawn(server.into_future());

    // What is allocated once for all is allocated by a first, short load.
    load(
        addr,
        streams,
        lasts.min(Duration::from_secs(3)),
        &account,
        &supervisor,
    )
    .await;
    let (before, resident_before) = (heap(), resident());
    load(addr, streams, lasts, &account, &supervisor).await;
    let (after, resident_after) = (heap(), resident());

    let live = supervisor.active();
    let tasks = account.tasks.load(Relaxed);
    let (registered, ran) = (account.registered.load(Relaxed), account.ran.load(Relaxed));
    let change = (after as f64 / before as f64 - 1.0) * 100.0;
    println!("requests             {}", account.requests.load(Relaxed));
    println!("most at once         {}", account.peak_scopes.load(Relaxed));
    println!("clients left by      {:?}", account.left.lock().unwrap());
    println!(
        "outcomes             {:?}",
        account.outcomes.lock().unwrap()
    );
    println!("closers registered   {registered}");
    println!("closers run          {ran}");
    println!("live scopes          {live}");
    println!("tasks                {tasks}");
    println!("heap before, KiB     {}", before / 1024);
    println!(
        "heap at most, KiB    {}",
        account.peak_heap.load(Relaxed) / 1024
    );
    println!("heap after, KiB      {} ({change:+.1} %)", after / 1024);
    println!("resident, KiB        {resident_before:?} before, {resident_after:?} after");
    drop(stop);
    while let Some(report) = serving.join_next().await {
        println!("drain                {}", report??);
    }
    // Lists keep the capacity of their fullest moment: some bytes for each stream are no leak.
    let slack = 32 * streams as u64;
    let back = change.abs() <= 10.0 || after.abs_diff(before) <= slack;
    let clean = registered == ran && live == 0 && tasks == 0 && back;
    println!(
        "{}",
        if clean {
            "nothing was left"
        } else {
            "SOMETHING WAS LEFT"
        }
    );
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
