//! What ten thousand idle streams cost: heap, descriptors and processor time, and their end.
//!
//! `cargo run --release --example idle_cost -- --streams 10000 --seconds 5`
//!
//! The same app (one frame, then nothing) by axum alone, with the layer, with the layer on a watched
//! listener, the same with the stall watchdog, and by `net::serve`; clients are a process of their own, killed in the end. A watched
//! stream holds two descriptors of the server: it raises the limit by itself as far as it may.

use std::{
    alloc::System,
    convert::Infallible,
    future::IntoFuture,
    net::SocketAddr,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get, serve::ListenerExt};
use bodyguard::{BoxError, DisconnectLayer, Outcome, net};
use futures_util::{StreamExt, stream};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PATIENCE: Duration = Duration::from_secs(60);
/// Streams that pay for what is allocated once for all.
const FIRST: u64 = 100;
/// Descriptors for everything but the streams.
const SPARE: u64 = 150;
/// Set for the process that may open more descriptors.
const RAISED: &str = "IDLE_COST_RAISED";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Setup {
    Axum,
    Layer,
    /// The same on a `WatchedListener`.
    Watched,
    /// And with the stall watchdog, a second's.
    Stall,
    /// The same by `net::serve`.
    Serve,
}

/// What the streams of one setup have come to.
#[derive(Default)]
struct Account {
    begun: AtomicU64,
    /// Bodies dropped.
    over: AtomicU64,
    /// End reports, and those of them that say `Disconnected`.
    reported: AtomicU64,
    disconnected: AtomicU64,
}

struct Over(Arc<Account>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over.fetch_add(1, Relaxed);
    }
}

fn app(setup: Setup, account: &Arc<Account>) -> Router {
    let (begun, ended) = (account.clone(), account.clone());
    let handler = move || async move {
        begun.begun.fetch_add(1, Relaxed);
        let over = Over(begun);
        let frames = stream::iter(["first"]).chain(stream::pending());
        Body::from_stream(frames.map(move |frame| {
            let _ = &over;
            Ok::<_, Infallible>(frame)
        }))
    };
    let app = Router::new().route("/", get(handler));
    if setup == Setup::Axum {
        return app;
    }
    let layer = DisconnectLayer::new().on_end(move |report| {
        ended.reported.fetch_add(1, Relaxed);
        if report.outcome() == Outcome::Disconnected {
            ended.disconnected.fetch_add(1, Relaxed);
        }
    });
    match setup {
        // Idle streams wait for their handlers, and not for their clients: none of them stalls.
        Setup::Stall => app.layer(layer.stall_timeout(Duration::from_secs(1))),
        _ => app.layer(layer),
    }
}

/// Fails if a stream does not begin or is not noticed to end.
async fn measure(setup: Setup, streams: u64, lasts: Duration) -> Result<(), BoxError> {
    let account = Arc::<Account>::default();
    let app = app(setup, &account);
    let tcp = TcpListener::bind("127.0.0.1:0").await?;
    let addr = tcp.local_addr()?;
    let mut serving = JoinSet::new();
    match setup {
        Setup::Axum | Setup::Layer => {
            let tcp = tcp.tap_io(|tcp| drop(tcp.set_nodelay(true)));
            // Connect info as below, so that the listeners are all that differs.
            let app = app.into_make_service_with_connect_info::<SocketAddr>();
            serving.spawn(async move { drop(axum::serve(tcp, app).await) });
        }
        Setup::Watched | Setup::Stall => {
            let watched = net::WatchedListener::from(tcp);
            let app = app.into_make_service_with_connect_info::<net::Peer>();
            serving.spawn(async move { drop(axum::serve(watched, app).await) });
        }
        Setup::Serve => {
            let server = net::serve(tcp, app).into_future();
            serving.spawn(async move { drop(server.await) });
        }
    }

    let warm = Clients::start(addr, FIRST)?;
    until(|| account.begun.load(Relaxed) == FIRST).await?;
    drop(warm);
    until(|| account.over.load(Relaxed) == FIRST).await?;
    let (heap_before, open_before) = (heap(), descriptors());

    let clients = Clients::start(addr, streams)?;
    let all = FIRST + streams;
    until(|| account.begun.load(Relaxed) == all).await?;
    let each = match setup {
        Setup::Axum | Setup::Layer => 1,
        Setup::Watched | Setup::Stall | Setup::Serve => 2,
    };
    until(|| descriptors() >= open_before + each * streams).await?;
    let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / streams as f64;
    let heap = each(heap(), heap_before);
    let open = each(descriptors(), open_before);
    let before = processor_time();
    sleep(lasts).await;
    let busy = processor_time().saturating_sub(before).as_secs_f64() / lasts.as_secs_f64();

    let (left, before) = (Instant::now(), processor_time());
    drop(clients);
    until(|| account.over.load(Relaxed) == all).await?;
    let reports = if setup == Setup::Axum { 0 } else { all };
    until(|| account.reported.load(Relaxed) == reports).await?;
    let (left, spent) = (left.elapsed(), processor_time().saturating_sub(before));
    println!(
        "{:<9} {heap:>11.0} {open:>12.2} {:>11.3} {:>13.0} {:>11.1} {:>13}",
        format!("{setup:?}"),
        busy * 1e3,
        left.as_secs_f64() * 1e3,
        spent.as_secs_f64() * 1e6 / streams as f64,
        account.disconnected.load(Relaxed).saturating_sub(FIRST),
    );
    Ok(())
}

/// A process with this many clients; killed, and they with it, when dropped.
struct Clients(Child);

impl Clients {
    fn start(addr: SocketAddr, streams: u64) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--clients", &addr.to_string(), "--streams"]);
        command.arg(streams.to_string()).stdin(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn clients(addr: SocketAddr, streams: u64) -> Result<(), BoxError> {
    let mut all = Vec::new();
    for _ in 0..streams {
        let mut tcp = TcpStream::connect(addr).await?;
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut got = Vec::new();
        while !got.ends_with(b"first\r\n") {
            if tcp.read_buf(&mut got).await? == 0 {
                return Err("closed before the first frame".into());
            }
        }
        all.push(tcp);
    }
    std::future::pending().await
}

async fn until(mut done: impl FnMut() -> bool) -> Result<(), BoxError> {
    let patience = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > patience {
            return Err("it did not come about in a minute".into());
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn heap() -> u64 {
    let stats = ALLOCATOR.stats();
    (stats.bytes_allocated - stats.bytes_deallocated) as u64
}

fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64)
}

/// What all threads of the process have had.
fn processor_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task");
    let nanos = threads
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(" ").next()?.parse::<u64>().ok()
        });
    Duration::from_nanos(nanos.sum::<u64>())
}

/// Starts over in a process that may open enough descriptors; `None` if this is the one.
fn raised(streams: u64) -> Result<Option<ExitCode>, BoxError> {
    if std::env::var_os(RAISED).is_some() {
        return Ok(None);
    }
    let script = "ulimit -n \"$1\" 2>/dev/null || ulimit -n \"$(ulimit -Hn)\"; shift; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", &(2 * streams + SPARE).to_string()]);
    command.arg(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(RAISED, "1");
    let success = command.status()?.success();
    Ok(Some(ExitCode::from(u8::from(!success))))
}

/// How many descriptors this process may open.
fn limit() -> u64 {
    let text = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    soft.unwrap_or(u64::MAX)
}

fn option(name: &str) -> Option<String> {
    let mut args = std::env::args();
    args.find(|arg| arg == name).and(args.next())
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let number = |name, default: u64| option(name).map_or(Ok(default), |text| text.parse());
    let (streams, seconds) = (number("--streams", 10_000)?, number("--seconds", 5)?);
    if let Some(addr) = option("--clients") {
        clients(addr.parse()?, streams).await?;
    }
    if let Some(ended) = raised(streams)? {
        return Ok(ended);
    }
    let most = limit().saturating_sub(SPARE) / 2;
    if most < streams {
        println!(
            "{} descriptors do not suffice for {streams} watched streams",
            limit()
        );
    }
    let streams = streams.min(most);
    println!("{streams} idle streams over HTTP/1.1, for each:");
    println!(
        "{:<9} {:>11} {:>12} {:>11} {:>13} {:>11} {:>13}",
        "", "heap bytes", "descriptors", "CPU ms/s *", "all left, ms", "µs to end", "Disconnected"
    );
    for setup in [
        Setup::Axum,
        Setup::Layer,
        Setup::Watched,
        Setup::Stall,
        Setup::Serve,
    ] {
        measure(setup, streams, Duration::from_secs(seconds)).await?;
    }
    println!("* of all streams together");
    Ok(ExitCode::SUCCESS)
}
