//! Random clients against the newsroom, and the account afterwards.
//!
//! `cargo run --release --example newsroom_soak -- --seconds 600 --clients 60`
//!
//! The newsroom runs as a process of its own. Clients over HTTP/1.1 and HTTP/2 read some and leave
//! by FIN, RST or RST_STREAM, stall, half-close, pipeline, abort uploads, read slowly, read whole.
//! Then everything must be gone: closers run = registered, no scope, no task, no descriptor, no
//! memory, no panic. It exits with 1 if anything is off.
//!
//! Debug builds of h2 assert that no stream is left when a connection is dropped, which does not hold
//! (hyperium/h2#907). This project's profile turns that off: it would count as a panic here.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

mod http1;
mod http2;
/// The showcase itself: this program is also the process under load.
#[path = "../newsroom/main.rs"]
mod newsroom;
mod server;

use server::{Server, Sizes};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// How long clients have to come to an end by themselves.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pools and lists keep the room of their fullest moment, which may not be in the warm-up: the last
/// eight of 32 compressors, a third of a megabyte each, are made when all are needed at once.
const SLACK: u64 = 4 * 1024 * 1024;

/// What the clients did, and what they saw that was not right.
#[derive(Default)]
struct Clients {
    left: Mutex<BTreeMap<&'static str, u64>>,
    wrong: Mutex<Vec<String>>,
}

impl Clients {
    fn left(&self, how: &'static str) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left.entry(how).or_default() += 1;
    }

    fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.push(what);
    }
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

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Up to two seconds; now and then nothing at all.
    fn stay(&mut self) -> Duration {
        match self.below(10) {
            0 => Duration::ZERO,
            _ => Duration::from_micros(self.below(2_000_000)),
        }
    }
}

/// Lets clients come and go for so long, a third of them over HTTP/2.
async fn load(addr: SocketAddr, number: u64, lasts: Duration, seed: u64, account: &Arc<Clients>) {
    let until = Instant::now() + lasts;
    let mut clients = JoinSet::new();
    for client in 0..number {
        let mut random = Random(seed << 32 | client);
        let account = account.clone();
        clients.spawn(async move {
            while Instant::now() < until {
                if client % 3 == 0 {
                    http2::connection(addr, &mut random, &account).await;
                } else {
                    http1::connection(addr, &mut random, &account).await;
                }
            }
        });
    }
    let ended = async { while clients.join_next().await.is_some() {} };
    if timeout_at(until + PATIENCE, ended).await.is_err() {
        account.wrong(format!("{} clients hang", clients.len()));
    }
}

fn option(name: &str, default: u64) -> Result<u64, Box<dyn Error>> {
    let mut args = env::args();
    match args.find(|arg| arg == name).and(args.next()) {
        Some(value) => Ok(value.parse()?),
        None => Ok(default),
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    if env::args().nth(1).as_deref() == Some(server::ROLE) {
        server::tell_heap_when_asked(|| {
            let stats = ALLOCATOR.stats();
            (stats.bytes_allocated - stats.bytes_deallocated) as u64
        })?;
        return Ok(newsroom::main());
    }
    tokio::runtime::Runtime::new()?.block_on(soak())
}

async fn soak() -> Result<ExitCode, Box<dyn Error>> {
    let lasts = Duration::from_secs(option("--seconds", 30)?);
    let number = option("--clients", 60)?;
    let mut server = Server::start().await?;
    let account = Arc::new(Clients::default());

    // What is allocated once for all is allocated by a first, short load: compressors, threads.
    http1::many_at_once(server.addr).await?;
    let warm_up = (lasts / 2).min(Duration::from_secs(20));
    load(server.addr, number, warm_up, 1, &account).await;
    server.quiet().await?;
    let before = server.sizes(None).await?;
    load(server.addr, number, lasts, 2, &account).await;
    let left = server.quiet().await?;
    let after = server.sizes(Some(&before)).await?;
    let totals = left.totals.clone();
    let end = server.stop().await?;

    let count = |name: &str| totals[name].as_u64().unwrap_or(u64::MAX);
    let left_by = account.left.lock().unwrap_or_else(PoisonError::into_inner);
    let wrong = account.wrong.lock().unwrap_or_else(PoisonError::into_inner);
    println!("clients              {number}, {left_by:?}");
    println!("clients wronged      {}", wrong.len());
    for what in wrong.iter().take(10) {
        println!("  {what}");
    }
    let outcomes = totals["outcomes"].as_object().into_iter().flatten();
    let responses: u64 = outcomes.filter_map(|(_, number)| number.as_u64()).sum();
    println!("responses            {responses}, {}", totals["outcomes"]);
    if let Some(error) = totals["last_error"].as_str() {
        println!("last error           {error}");
    }
    println!("closers registered   {}", count("closers_registered"));
    println!("closers run          {}", count("closers_run"));
    println!("closers unrun        {}", count("closers_unrun"));
    println!("closers failed       {}", count("closers_failed"));
    println!("live scopes          {}", left.scopes);
    println!("live tasks           {}", left.tasks);
    println!("live subscriptions   {}", left.subscriptions);
    println!("panics               {}", end.panics);
    row("descriptors", "", before.descriptors, after.descriptors);
    row("threads", "", before.threads, after.threads);
    row("heap", ", KiB", before.heap / 1024, after.heap / 1024);
    row("resident", ", KiB", before.resident, after.resident);
    println!("exit code            {:?}", end.code);
    println!("{}", end.last_line);
    let clean = wrong.is_empty()
        && count("closers_registered") == count("closers_run")
        && count("closers_registered") > 0
        && count("closers_unrun") + count("closers_failed") == 0
        && left.scopes + left.tasks + left.subscriptions == 0
        && end.panics == 0
        && end.code == Some(0)
        && end.last_line.ends_with(" 0 closers unrun, 0 stuck")
        && is_back(&before, &after);
    println!(
        "{}",
        if clean {
            "nothing was left"
        } else {
            "SOMETHING IS OFF"
        }
    );
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn row(name: &str, unit: &str, before: u64, after: u64) {
    let name = format!("{name}{unit}");
    println!("{name:<20} {before} before, {after} after");
}

/// Descriptors exactly, the heap but for what pools keep.
fn is_back(before: &Sizes, after: &Sizes) -> bool {
    after.descriptors <= before.descriptors && after.heap <= before.heap + SLACK
}
