//! The export: committed if the whole of it was handed to the server, rolled back if not.

use http::Request;
use http_body_util::BodyExt;
use sqlx::{Connection, SqliteConnection};

use crate::{
    client::{PROTOCOLS, Protocol, within},
    server::Newsroom,
};

/// The header line and every airport.
const LINES: usize = 3_377;

async fn export_whole(newsroom: &Newsroom, protocol: Protocol) {
    let mut client = newsroom.client(protocol).await;
    let response = client.get("/export.csv").await;
    assert_eq!(response.status(), 200);
    let body = within(response.into_body().collect()).await.unwrap();
    let csv = body.to_bytes();
    assert_eq!(csv.iter().filter(|byte| **byte == b'\n').count(), LINES);
}

/// Reads one page, then is gone.
async fn export_half(newsroom: &Newsroom, protocol: Protocol) {
    let mut client = newsroom.client(protocol).await;
    let response = client.get("/export.csv").await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    within(body.frame()).await.unwrap().unwrap();
}

/// What the database itself holds.
async fn exports(newsroom: &Newsroom) -> i64 {
    let mut connection = SqliteConnection::connect(&newsroom.database_url())
        .await
        .unwrap();
    sqlx::query_scalar("SELECT count(*) FROM newsroom_exports")
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn an_export_is_committed_before_its_client_sees_the_end() {
    let newsroom = Newsroom::start().await;
    for (protocol, committed) in PROTOCOLS.into_iter().zip(1..) {
        export_whole(&newsroom, protocol).await;
        // No waiting: the end was held back until the closer had committed.
        assert_eq!(exports(&newsroom).await, committed, "{protocol:?}");
        let state = newsroom.state().await;
        assert_eq!(state.number("exports_committed"), committed as u64);
    }
}

/// More clients than the pool has connections leave half way; SQLite has one writer at a time, so
/// each export begins only when the one before it has been rolled back.
#[tokio::test]
async fn an_export_that_is_left_half_way_is_rolled_back_and_the_next_one_begins() {
    let newsroom = Newsroom::start().await;
    for protocol in PROTOCOLS {
        for _ in 0..3 {
            export_half(&newsroom, protocol).await;
        }
    }
    export_whole(&newsroom, Protocol::Http1).await;
    assert_eq!(exports(&newsroom).await, 1);
    let state = newsroom.until(|state| state.ended("/export.csv").len() == 7);
    let state = state.await;
    assert_eq!(state.number("exports_committed"), 1);
    let reports = state.ended("/export.csv");
    assert_eq!(reports[0]["outcome"], "Complete");
    for report in &reports[1..] {
        let outcome = report["outcome"].as_str().unwrap();
        assert!(matches!(outcome, "Dropped" | "Disconnected"), "{outcome}");
        assert_eq!(report["closers_run"], 1);
        assert_eq!(report["closers_failed"], 0);
    }
}

/// axum's `get` answers HEAD too: that response is complete, and no row of it was ever read.
#[tokio::test]
async fn a_head_request_commits_no_export() {
    let newsroom = Newsroom::start().await;
    for (protocol, asked) in PROTOCOLS.into_iter().zip(1..) {
        let mut client = newsroom.client(protocol).await;
        let response = client.send(Request::head("/export.csv"), "").await;
        assert_eq!(response.status(), 200);
        let over = newsroom.until(|state| state.ended("/export.csv").len() == asked);
        let state = over.await;
        let report = state.ended("/export.csv")[0];
        assert_eq!(report["outcome"], "Complete", "{protocol:?}");
        assert_eq!(report["closers_run"], 1, "{protocol:?}");
        assert_eq!(state.number("exports_committed"), 0, "{protocol:?}");
        assert_eq!(exports(&newsroom).await, 0, "{protocol:?}");
    }
}
