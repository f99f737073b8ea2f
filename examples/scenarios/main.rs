//! Every way a client leaves, and who sees it: hyper, axum, the layer alone, the watched listener.
//!
//! `cargo run --release --example scenarios` prints one row per case, each cell a fresh server on
//! loopback: after how many milliseconds the client's going was seen, or `-` if it was not. The columns are
//! bare hyper, bare axum, the layer behind an ordinary listener, `net::serve`, and `axum::serve`
//! on a `WatchedListener`. `-- --stay 0`: clients leave at once, before the watch is armed.
//!
//! `cargo run --release --example scenarios -- --ordinary 100000` sends that many requests whose
//! clients do not leave, and counts how they were reported.
//!
//! Both exit with 1 if anything is not as expected.

mod client;
mod ordinary;
mod print;
mod rows;
mod run;
mod server;
mod stage;
mod styles;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use bodyguard::BoxError;
use run::Times;

const TIMES: Times = Times {
    stay: Duration::from_millis(40),
    seen: Duration::from_secs(2),
    unseen: Duration::from_millis(600),
    at_most: Duration::from_millis(250),
    parallel: 12,
};

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let as_expected = match option("--ordinary")? {
        Some(requests) => ordinary_requests(requests).await?,
        None => matrix().await?,
    };
    Ok(match as_expected {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn matrix() -> Result<bool, BoxError> {
    let stay = option("--stay")?.map_or(TIMES.stay, Duration::from_millis);
    let begin = Instant::now();
    let done = run::run_all(rows::rows(), Times { stay, ..TIMES }).await;
    let missed = print::table(&done, TIMES.at_most);
    let cells = done.iter().map(|done| done.cells.iter().flatten().count());
    println!(
        "\n{} rows, {} cells in {:.1} s; {missed} not as expected",
        done.len(),
        cells.sum::<usize>(),
        begin.elapsed().as_secs_f64(),
    );
    Ok(missed == 0)
}

async fn ordinary_requests(requests: u64) -> Result<bool, BoxError> {
    let begin = Instant::now();
    let tally = ordinary::ordinary(requests).await?;
    println!("{:<22} {requests}\n{tally}", "requests");
    let clean = tally.is_clean(requests);
    let took = begin.elapsed().as_secs_f64();
    let verdict = if clean {
        "no false alarm"
    } else {
        "NOT AS EXPECTED"
    };
    println!("{verdict}, {took:.1} s");
    Ok(clean)
}

fn option(name: &str) -> Result<Option<u64>, BoxError> {
    let mut args = std::env::args();
    Ok(match args.find(|arg| arg == name).and(args.next()) {
        Some(value) => Some(value.parse()?),
        None => None,
    })
}
