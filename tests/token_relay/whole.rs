//! The client stays, and gets all of it.

use axum::{Router, routing::get};
use bodyguard::{Cleanup, CleanupLayer};
use http::Request;
use http_body_util::BodyExt;

use crate::{
    client::{PROTOCOLS, read_all, serve, within},
    harness::{Relay, generate, tokens},
    parts::{meter::Meter, usage::Ledger},
};

#[tokio::test]
async fn it_is_recorded_before_its_client_sees_the_end() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        let response = generate(&mut client, "tokens=20&every_ms=1").await;
        let name = response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        let read = read_all(&mut response.into_body()).await;
        // No waiting.
        let row = (name, 20, "Complete".to_owned(), Some(200), false);
        assert_eq!(relay.rows().await, [row], "{protocol:?}");
        read.end.expect("a clean end");
        assert_eq!(tokens(&read.text), 20);
        assert!(
            read.text
                .ends_with("\"usage\":{\"tokens\":20}}\n\ndata: [DONE]\n\n")
        );

        let usage = client.get("/usage").await.into_body();
        let usage = within(usage.collect()).await.unwrap().to_bytes();
        let usage = String::from_utf8(usage.to_vec()).unwrap();
        assert!(
            usage.contains("     20 Complete        200 there\n"),
            "{usage}"
        );
        assert_eq!(relay.only_row().await.1, 20);
        assert_eq!((relay.upstream.sent(), relay.upstream.abandoned()), (20, 0));
    }
}

#[tokio::test]
async fn many_at_once_have_a_row_each() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let one = async |of: u64| {
            let mut client = relay.client(protocol).await;
            let query = format!("tokens={of}&every_ms=1");
            let mut body = generate(&mut client, &query).await.into_body();
            read_all(&mut body).await.end.unwrap();
        };
        futures_util::future::join_all((1..=30).map(one)).await;
        let mut used: Vec<i64> = relay.rows().await.iter().map(|row| row.1).collect();
        used.sort_unstable();
        assert_eq!(used, (1..=30).collect::<Vec<_>>());
    }
}

/// The ledger's key: what is written down twice fails its response.
#[tokio::test]
async fn a_second_record_of_a_request_is_an_error() {
    let ledger = Ledger::open("sqlite::memory:").await.unwrap();
    let twice = {
        let ledger = ledger.clone();
        move |cleanup: Cleanup| async move {
            for tokens in [1, 2] {
                let ledger = ledger.clone();
                cleanup.defer(move |ending| async move {
                    Ok(ledger.record("the same", tokens, &ending).await?)
                });
            }
        }
    };
    let app = Router::new()
        .route("/", get(twice))
        .layer(CleanupLayer::new());
    let (addr, _server) = serve(app).await;
    for protocol in PROTOCOLS {
        let mut client = crate::client::Client::connect(addr, protocol).await;
        let response = client.send(Request::get("/"), "").await;
        assert_eq!(response.status(), 500);
        assert_eq!(ledger.rows().await.unwrap().len(), 1);
    }
}

#[test]
fn tokens_are_counted_in_pieces_of_any_size() {
    let said = "data: {\"token\":\"a\"}\n\n: a comment\n\ndata: {\"token\":\"\\n\"}\r\n\r\ndata: [DONE]\n\n";
    for size in 1..=said.len() {
        let mut meter = Meter::default();
        let counts: Vec<u64> = said
            .as_bytes()
            .chunks(size)
            .map(|piece| meter.read(piece))
            .collect();
        assert_eq!(counts.last(), Some(&2), "pieces of {size}");
        assert!(counts.is_sorted() && meter.is_done());
    }
    let mut meter = Meter::default();
    assert_eq!(meter.read(b"data: {\"token\":\"half\"}"), 0);
    assert!(!meter.is_done());
}
