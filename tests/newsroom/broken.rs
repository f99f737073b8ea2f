//! A producer that panics is a broken transfer, never a short whole one.

use std::{net::SocketAddr, process::Stdio};

use http_body_util::BodyExt;
use tokio::process::Command;

use crate::{
    client::{PROTOCOLS, read_all, within},
    server::Newsroom,
};

#[tokio::test]
async fn the_client_gets_all_that_was_sent_and_then_an_error() {
    let newsroom = Newsroom::start().await;
    for protocol in PROTOCOLS {
        let mut client = newsroom.client(protocol).await;
        let mut body = client.get("/broken").await.into_body();
        let read = read_all(&mut body).await;
        assert_eq!(read.text, "line 1 of 10\nline 2 of 10\nline 3 of 10\n");
        assert!(read.end.is_err(), "{protocol:?}");

        // HTTP/1.1 has closed the connection.
        let mut packed = newsroom.client(protocol).await;
        let packed = packed.get_gzip("/broken").await.into_body();
        assert!(
            within(packed.collect()).await.is_err(),
            "{protocol:?}, gzip"
        );
    }
    let state = newsroom.until(|state| state.ended("/broken").len() == 4);
    for report in state.await.ended("/broken") {
        assert_eq!(report["outcome"], "Panicked");
        assert_eq!(report["tasks_panicked"], 1);
        let error = report["errors"][0].as_str().unwrap();
        assert!(error.contains("the producer of /broken panics"), "{error}");
    }
}

/// The exit codes of curl: 18, "partial file", and 92, "stream error in the HTTP/2 framing layer".
///
/// Skipped where there is no curl, or one without HTTP/2; the test above sees the same with hyper.
#[tokio::test]
async fn curl_says_so() {
    let Some(version) = curl_version().await else {
        return eprintln!("skipped: there is no curl");
    };
    let newsroom = Newsroom::start().await;
    assert_eq!(curl(newsroom.addr, &[]).await, Some(18));
    assert_eq!(curl(newsroom.addr, &["--compressed"]).await, Some(18));
    if version.contains("HTTP2") {
        let h2 = "--http2-prior-knowledge";
        assert_eq!(curl(newsroom.addr, &[h2]).await, Some(92));
        assert_eq!(curl(newsroom.addr, &[h2, "--compressed"]).await, Some(92));
    } else {
        eprintln!("HTTP/2 skipped: this curl has none");
    }
}

async fn curl_version() -> Option<String> {
    let output = Command::new("curl").arg("--version").output().await.ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn curl(addr: SocketAddr, options: &[&str]) -> Option<i32> {
    let curl = Command::new("curl")
        .args(["--silent", "--no-buffer"])
        .args(options)
        .arg(format!("http://{addr}/broken"))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status();
    within(curl).await.unwrap().code()
}
