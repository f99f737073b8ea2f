//! A transaction that is closed on every exit: committed if the response succeeded, else rolled back.
//!
//! `cargo run --example cleanup`, then try, and look at what the server prints:
//! ```text
//! curl -N http://127.0.0.1:3000/import         ten rows in five seconds     committed 10 rows
//! curl -N -m 2 http://127.0.0.1:3000/import    leaves after two seconds     rolled back 3 rows: Disconnected
//! curl http://127.0.0.1:3000/refused           answers 409                  rolled back 0 rows: Complete
//! ```
//! Ctrl-C lets imports come to their end.

use std::{sync::Arc, sync::atomic::AtomicU32, sync::atomic::Ordering::Relaxed, time::Duration};

use axum::{Router, body::Body, http::StatusCode, routing::get};
use bodyguard::{BoxError, Cleanup, CleanupLayer, Ending, TaskResult, net};
use futures_util::{StreamExt, stream};
use tokio::time::sleep;

/// Stands in for a database's: it takes an `await` to close it, so `Drop` cannot.
#[derive(Default)]
struct Transaction(AtomicU32);

impl Transaction {
    /// Begins a transaction that ends with the response, whatever becomes of either.
    fn begin(cleanup: &Cleanup) -> Arc<Self> {
        let transaction = Arc::new(Self::default());
        let closing = transaction.clone();
        cleanup.defer(move |ending| async move { closing.close(&ending).await });
        transaction
    }

    async fn insert(&self, row: u32) -> Result<String, BoxError> {
        sleep(Duration::from_millis(500)).await;
        self.0.fetch_add(1, Relaxed);
        Ok(format!("row {row}\n"))
    }

    /// Runs before the client sees the end: if the commit fails, so does the response.
    async fn close(&self, ending: &Ending) -> TaskResult {
        sleep(Duration::from_millis(10)).await;
        let rows = self.0.load(Relaxed);
        match ending.succeeded() {
            true => println!("committed {rows} rows"),
            false => println!("rolled back {rows} rows: {}", ending.outcome()),
        }
        Ok(())
    }
}

async fn import(cleanup: Cleanup) -> Body {
    let transaction = Transaction::begin(&cleanup);
    let inserted = stream::iter(1..=10).then(move |row| {
        let transaction = transaction.clone();
        async move { transaction.insert(row).await }
    });
    Body::from_stream(inserted)
}

async fn refused(cleanup: Cleanup) -> (StatusCode, &'static str) {
    let _transaction = Transaction::begin(&cleanup);
    (StatusCode::CONFLICT, "somebody else was faster\n")
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let app = Router::new()
        .route("/import", get(import))
        .route("/refused", get(refused))
        .layer(CleanupLayer::new());
    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = net::WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = net::serve(listener, app)
        .shutdown(async { tokio::signal::ctrl_c().await.expect("Ctrl-C is heard") })
        .await?;
    println!("drained: {report}");
    Ok(())
}
