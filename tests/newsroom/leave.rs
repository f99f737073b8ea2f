//! Whatever way the client leaves, nothing of its stream stays.

use crate::{
    client::{Client, Protocol, read_until},
    server::{Newsroom, State},
};

/// Opens `/stream`, has `leave` end it, and waits for the account of it.
async fn is_torn_down(mut client: Client, newsroom: &Newsroom, leave: impl FnOnce(Client)) {
    let mut body = client.get("/stream").await.into_body();
    read_until(&mut body, |text| {
        text.contains("event: news\n") && text.contains("event: weather\n")
    })
    .await;
    let state = newsroom.state().await;
    assert_eq!(state.feeds(), (1, 1));
    assert_eq!(state.number("readers"), 1);
    assert_eq!(state.live("/stream").len(), 1);
    assert_eq!(state.live("/stream")[0]["tasks"], 2, "the two relays");
    assert_eq!(state.live("/stream")[0]["closers"], 1);

    // The body goes last of all: HTTP/2 says so with an RST_STREAM, unless the socket is gone.
    leave(client);
    drop(body);

    // A scope is released behind its report.
    let over = |state: &State| state.live("/stream").is_empty();
    let state = newsroom.until(over).await;
    assert_eq!(state.ended("/stream").len(), 1);
    assert_eq!(state.number("readers"), 0, "what the closer gives back");
    let report = state.ended("/stream")[0];
    let outcome = report["outcome"].as_str().unwrap();
    assert!(matches!(outcome, "Dropped" | "Disconnected"), "{outcome}");
    assert_eq!(report["tasks_cancelled"], 2, "both relays");
    assert_eq!(report["tasks_joined"], 1, "what spawned them");
    assert_eq!(report["closers_run"], 1);
    assert_eq!(report["closers_failed"], 0);
    // The feeds see their connections close a little after this end has closed them.
    newsroom.until(|state| state.feeds() == (0, 0)).await;
}

#[tokio::test]
async fn a_client_that_closes_its_connection_leaves_nothing_behind() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let newsroom = Newsroom::start().await;
        let client = newsroom.client(protocol).await;
        is_torn_down(client, &newsroom, drop).await;
    }
}

#[tokio::test]
async fn a_client_that_resets_its_connection_leaves_nothing_behind() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let newsroom = Newsroom::start().await;
        let client = Client::connect_to_reset(newsroom.addr, protocol).await;
        is_torn_down(client, &newsroom, drop).await;
    }
}

#[tokio::test]
async fn a_client_that_resets_its_stream_leaves_nothing_behind_but_its_connection() {
    let newsroom = Newsroom::start().await;
    let client = newsroom.client(Protocol::Http2).await;
    let mut kept = None;
    is_torn_down(client, &newsroom, |client| kept = Some(client)).await;
    let mut client = kept.unwrap();
    assert_eq!(client.get("/api/streams").await.status(), 200);
}
