//! gzip for everything, event streams too: each event can be read before the next one exists.
//!
//! `cargo run --example compression`, then try:
//!
//! ```text
//! curl -N --compressed http://127.0.0.1:3000/events    one event a second, as they happen
//! curl -sN -H 'Accept-Encoding: gzip' http://127.0.0.1:3000/events | zcat    the same, unpacked outside
//! curl -s --compressed -D- -o/dev/null http://127.0.0.1:3000/text    Content-Encoding, Vary and length
//! curl -s --compressed -D- -o/dev/null http://127.0.0.1:3000/secret    as it is, for this handler says so
//! curl http://127.0.0.1:3000/stats    streams open, and how many of them wait without a compressor
//! ```

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension, Router,
    response::{IntoResponse, Sse, sse::Event},
    routing::get,
};
use bodyguard::{
    BoxError, CompressionLayer,
    compression::{Compress, CompressionStats},
    net,
};
use futures_util::stream::{self, Stream};

/// Between two events the stream is idle, so what it has said is flushed and its compressor parked.
async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::unfold(1, |tick| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let event = Event::default().data(format!("tick {tick}"));
        Some((Ok(event), tick + 1))
    }))
}

/// A body that is there as a whole is compressed at once, and keeps a Content-Length.
async fn text() -> String {
    (1..=1_000)
        .map(|line| format!("{line} times round the clock\n"))
        .collect()
}

/// A secret beside text that a stranger chooses should not be compressed: its size would tell of it.
async fn secret() -> impl IntoResponse {
    (Extension(Compress::Never), "token=".repeat(100))
}

fn describe(stats: CompressionStats) -> String {
    format!(
        "{} streams open, {} of them parked, {} compressors; {} bytes in, {} out\n",
        stats.open, stats.parked, stats.resident, stats.bytes_in, stats.bytes_out
    )
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let compression = CompressionLayer::new().level(6).min_size(500);
    let seen = compression.clone();
    let app = Router::new()
        .route("/events", get(events))
        .route("/text", get(text))
        .route("/secret", get(secret))
        .route("/stats", get(async move || describe(seen.stats())))
        .layer(compression);

    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = net::WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    net::serve(listener, app)
        // Its event streams have no end, and without a scope nobody to end them but this.
        .deadline(Duration::from_secs(1))
        .shutdown(async { tokio::signal::ctrl_c().await.expect("Ctrl-C is heard") })
        .await?;
    Ok(())
}
