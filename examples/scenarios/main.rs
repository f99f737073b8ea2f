//! Every way a client leaves, and who sees it: hyper, axum, the layer alone, the watched listener.
//!
//! `cargo run --release --example scenarios` prints one row per case, each cell a fresh server on
//! loopback: after how many milliseconds the client's going was seen, or `-`. It exits with 1 if
//! a cell is not as expected.

mod client;
mod print;
mod rows;
mod run;
mod server;

use std::{process::ExitCode, time::Duration};

use run::Times;

const TIMES: Times = Times {
    stay: Duration::from_millis(40),
    seen: Duration::from_secs(2),
    unseen: Duration::from_millis(600),
    at_most: Duration::from_millis(250),
    parallel: 12,
};

#[tokio::main]
async fn main() -> ExitCode {
    let begin = std::time::Instant::now();
    let done = run::run_all(rows::rows(), TIMES).await;
    let missed = print::table(&done, TIMES.at_most);
    println!(
        "\n{} rows, {} cells in {:.1} s; {missed} not as expected",
        done.len(),
        done.iter()
            .map(|done| done.cells.iter().flatten().count())
            .sum::<usize>(),
        begin.elapsed().as_secs_f64(),
    );
    match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
