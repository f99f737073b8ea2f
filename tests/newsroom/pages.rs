//! The page, the report, and what `/api/streams` says of all of them.

use crate::{
    client::{PROTOCOLS, Protocol, read_all, read_until},
    server::Newsroom,
};

const WEATHER: &str = include_str!("../../examples/newsroom/data/weather.csv");

#[tokio::test]
async fn the_page_is_there_and_all_that_it_asks_for() {
    let newsroom = Newsroom::start().await;
    for protocol in PROTOCOLS {
        let mut client = newsroom.client(protocol).await;
        let response = client.get("/").await;
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/html"), "{kind}");
        let page = read_all(&mut response.into_body()).await;
        assert!(page.end.is_ok() && page.text.contains("</html>"));
        for path in [
            "/stream",
            "/export.csv",
            "/report",
            "/metrics",
            "/api/streams",
        ] {
            assert!(page.text.contains(&format!("{path}\"")), "{path}");
            let response = client.get(path).await;
            assert_eq!(response.status(), 200, "{path}");
            // A connection of HTTP/1.1 is not used again while a body goes on.
            client = newsroom.client(protocol).await;
        }
    }
}

#[tokio::test]
async fn the_report_is_whole_and_its_thread_is_free_again() {
    let newsroom = Newsroom::start().await;
    // More than the 128 threads of the pool: the last get one that another has had.
    for round in 0..140 {
        let mut client = newsroom.client(PROTOCOLS[round % PROTOCOLS.len()]).await;
        let response = client.get("/report").await;
        let read = read_all(&mut response.into_body()).await;
        assert!(read.end.is_ok());
        assert_eq!(read.text.lines().count(), WEATHER.lines().count());
    }
    let state = newsroom.until(|state| state.live("/report").is_empty());
    let state = state.await;
    assert_eq!(state.ended("/report").len(), 100, "the last of them");
    for report in state.ended("/report") {
        assert_eq!(report["outcome"], "Complete");
    }
}

#[tokio::test]
async fn a_live_stream_shows_how_old_it_is_and_what_it_has_sent() {
    let newsroom = Newsroom::start().await;
    let mut client = newsroom.client(Protocol::Http1).await;
    let mut body = client.get("/stream").await.into_body();
    read_until(&mut body, |text| text.contains("event: news\n")).await;
    let state = newsroom.state().await;
    let [stream] = state.live("/stream")[..] else {
        panic!("one stream");
    };
    let sent = stream["bytes"].as_u64().unwrap();
    assert!(sent >= "event: news\n".len() as u64, "{sent}");
    let age = stream["age_ms"].as_u64().unwrap();
    let older = newsroom.until(|state| state.live("/stream")[0]["age_ms"].as_u64() > Some(age));
    assert!(older.await.live("/stream")[0]["bytes"].as_u64() >= Some(sent));
}

#[tokio::test]
async fn the_last_hundred_reports_are_kept_newest_first() {
    let newsroom = Newsroom::start().await;
    let mut client = newsroom.client(Protocol::Http1).await;
    for _ in 0..105 {
        let response = client.get("/metrics").await;
        read_all(&mut response.into_body()).await;
    }
    client.get("/broken").await;
    drop(client);
    let broken = newsroom.until(|state| !state.ended("/broken").is_empty());
    let state = broken.await;
    assert_eq!(state.ended("/metrics").len(), 99);
    assert_eq!(state.ended("/broken").len(), 1);
    assert_eq!(state.newest()["path"], "/broken");
}
