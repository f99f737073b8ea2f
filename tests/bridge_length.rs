//! A body that blocking code writes under a promised length: the code says when it is over.

mod support;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use axum::{Router, response::IntoResponse as _, routing::get};
use bodyguard::{
    EndReport, Outcome, Stack,
    bridge::{Bridge, BridgeLayer, Cx},
};
use support::{Listening, Seen, http1, http2};

type Write = fn(&mut dyn io::Write, &AtomicBool) -> io::Result<()>;

/// What the client saw, how it ended, and whether the code set its flag.
async fn run(write: Write, stack: bool, http_2: bool) -> (Seen, EndReport, bool) {
    let flag = Arc::new(AtomicBool::new(false));
    let (reported, reports) = mpsc::channel();
    let on_end = move |report: &EndReport| reported.send(report.clone()).unwrap();
    let set = Arc::clone(&flag);
    let handler = get(move |bridge: Bridge| async move {
        let body = bridge.body_writer(move |out| write(out, &set));
        ([("content-length", "5")], body.into_response())
    });
    let app = Router::new().route("/", handler);
    // Less than `wait`: code that runs is no source that stays open.
    let limit = Duration::from_millis(5);
    let app = match stack {
        true => app.layer(Stack::new().join_limit(limit).on_end(on_end)),
        false => app.layer(BridgeLayer::new().join_limit(limit).on_end(on_end)),
    };
    let server = Listening::start(app, false).await;
    let seen = match http_2 {
        true => http2(server.addr, "GET").await,
        false => http1(server.addr, "1.1", "GET").await,
    };
    let reports = Mutex::new(reports);
    let report = tokio::task::spawn_blocking(move || {
        let reports = reports.into_inner().unwrap();
        reports.recv_timeout(Duration::from_secs(20)).unwrap()
    });
    (seen, report.await.unwrap(), flag.load(Ordering::Relaxed))
}

/// For longer than a body is left that nobody waits for.
fn wait() -> io::Result<()> {
    let wait = tokio::time::sleep(Duration::from_millis(20));
    let waited = Cx::with_current(|cx| cx.block_on(wait)).unwrap();
    waited.map_err(io::Error::other)
}

const ALL: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[tokio::test]
async fn code_that_fails_behind_the_last_byte_is_no_clean_end() {
    for (stack, http_2) in ALL {
        let (seen, report, _) = run(
            |out, _| {
                out.write_all(b"hello")?;
                Err(io::Error::other("checksum"))
            },
            stack,
            http_2,
        )
        .await;
        let which = format!("stack {stack}, http_2 {http_2}: {seen:?}");
        assert!(!seen.whole || seen.status == 500, "{which}");
        assert_eq!(report.outcome(), Outcome::Failed, "{which}");
        let cause: &dyn std::error::Error = &**report.ending.cause().unwrap();
        let mut causes = std::iter::successors(Some(cause), |cause| cause.source());
        assert!(
            causes.any(|cause| cause.to_string() == "checksum"),
            "{which}"
        );
    }
}

#[tokio::test]
async fn code_that_commits_behind_the_last_byte_is_waited_for() {
    for (stack, http_2) in ALL {
        let (seen, report, committed) = run(
            |out, committed| {
                out.write_all(b"hello")?;
                wait()?;
                committed.store(true, Ordering::Relaxed);
                Ok(())
            },
            stack,
            http_2,
        )
        .await;
        let which = format!("stack {stack}, http_2 {http_2}: {seen:?}");
        assert!(seen.whole && seen.status == 200, "{which}");
        assert_eq!(report.outcome(), Outcome::Complete, "{which}");
        assert!(committed, "{which}");
    }
}

#[tokio::test]
async fn code_that_writes_on_behind_the_length_is_not_cut_silently() {
    for (stack, http_2) in ALL {
        let (seen, report, _) = run(
            |out, _| {
                out.write_all(b"hello")?;
                wait()?;
                out.write_all(b", world")
            },
            stack,
            http_2,
        )
        .await;
        let which = format!("stack {stack}, http_2 {http_2}: {seen:?}");
        assert!(!seen.whole || seen.status == 500, "{which}");
        assert_eq!(report.outcome(), Outcome::Failed, "{which}");
        assert!(
            report
                .ending
                .cause()
                .unwrap()
                .is::<bodyguard::scope::Failure>()
        );
    }
}
