//! The table of the example `scenarios`, with every cell as expected, and its ordinary requests.

#[path = "../../examples/scenarios/client.rs"]
mod client;
#[path = "../../examples/scenarios/ordinary.rs"]
mod ordinary;
#[path = "../../examples/scenarios/rows.rs"]
mod rows;
#[path = "../../examples/scenarios/run.rs"]
mod run;
#[path = "../../examples/scenarios/server.rs"]
mod server;
#[path = "../../examples/scenarios/stage.rs"]
mod stage;
#[path = "../../examples/scenarios/styles.rs"]
mod styles;

use std::time::Duration;

use rows::SETUPS;
use run::Times;

/// What must be seen has a deadline far above anything seen; what must not be is given a while.
const TIMES: Times = Times {
    stay: Duration::ZERO,
    seen: Duration::from_secs(20),
    unseen: Duration::from_millis(200),
    at_most: Duration::MAX,
    parallel: 32,
};

async fn all_cells_are_as_expected(times: Times) {
    let done = run::run_all(rows::rows(), times).await;
    let mut missed = Vec::new();
    for done in &done {
        for (column, cell) in done.cells.iter().enumerate() {
            if !done.is_met(column, times.at_most) {
                let (setup, row) = (SETUPS[column], &done.row);
                missed.push(format!("{setup:?} of {row:?} ({}): {cell:?}", row.why));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_at_once() {
    all_cells_are_as_expected(TIMES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_once_they_are_watched() {
    let stay = Duration::from_millis(40);
    all_cells_are_as_expected(Times { stay, ..TIMES }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordinary_requests_are_complete() {
    let tally = ordinary::ordinary(4_000).await.unwrap();
    assert!(tally.is_clean(4_000), "{tally}");
    // Else the run proves little.
    let watched = tally.watched.load(std::sync::atomic::Ordering::Relaxed);
    assert!(watched > 200, "{tally}");
}
