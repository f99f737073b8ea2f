//! Bodies with a scope of their own have the same methods, whatever their view.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use bodyguard::{
    Cleanup, Disconnect, EndReport, Outcome, TaskGroup, TaskGroupBody, cleanup::CleanupBody,
    disconnect::DisconnectBody, scope::ViewBody, testing::Script,
};
use bytes::Bytes;
use http::{Method, Request};
use http_body::Body;
use http_body_util::BodyExt;

type Reports = Arc<Mutex<Vec<EndReport>>>;

fn note(reports: &Reports) -> impl Fn(&EndReport) + Send + Sync + 'static {
    let reports = reports.clone();
    move |report| reports.lock().unwrap().push(report.clone())
}

fn question() -> Request<()> {
    Request::post("/answers?to=all").body(()).unwrap()
}

async fn ends_with_a_report<B>(body: B, reports: &Reports)
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    assert_eq!(body.collect().await.unwrap().to_bytes(), "tokens");
    let report = reports.lock().unwrap().pop().unwrap();
    assert_eq!(report.outcome(), Outcome::Complete);
    assert_eq!(report.method, Method::POST);
    assert_eq!(report.uri.path(), "/answers");
    assert_eq!(report.bytes, 6);
    assert!(report.duration.is_some(), "{report:?}");
}

#[tokio::test]
async fn each_answers_a_request_and_reports() {
    let reports = Reports::default();
    let (request, script) = (question(), || Script::new().data("tokens"));

    let body = CleanupBody::answering(&request, script()).on_end(note(&reports));
    ends_with_a_report(body, &reports).await;
    let body = DisconnectBody::answering(&request, script()).on_end(note(&reports));
    ends_with_a_report(body, &reports).await;
    let producer = |_, tx: bodyguard::FrameSender| async move { Ok(tx.send("tokens").await?) };
    let body = TaskGroupBody::answering(&request, producer).on_end(note(&reports));
    ends_with_a_report(body, &reports).await;
}

#[tokio::test(start_paused = true)]
async fn each_has_a_stall_time_out_and_keeps_its_view() {
    let reports = Reports::default();
    let timeout = Duration::from_secs(5);
    let script = || Script::new().data("a").data("b");

    let (tells, told) = mpsc::channel();
    let body = CleanupBody::new(script())
        .stall_timeout(timeout)
        .on_end(note(&reports))
        .defer(async move |ending| Ok(tells.send(ending.outcome())?));
    let _: &Cleanup = body.cleanup();
    let report = stalls(body, &reports).await;
    assert_eq!(
        (report.counts.closers_run, report.counts.closers_failed),
        (1, 0)
    );
    assert_eq!(told.try_recv(), Ok(Outcome::Stalled));

    let producer = |_, tx: bodyguard::FrameSender| async move { Ok(tx.send("a").await?) };
    let body = TaskGroupBody::new(producer).stall_timeout(timeout);
    let body = body.on_end(note(&reports));
    let _: &TaskGroup = body.group();
    stalls(body, &reports).await;

    let body = DisconnectBody::new(script()).stall_timeout(timeout);
    let body = body.on_end(note(&reports));
    let _: &Disconnect = body.disconnect();
    stalls(body, &reports).await;
}

/// Its server takes a frame, and asks for no more.
async fn stalls<T, V>(mut body: ViewBody<T, V>, reports: &Reports) -> EndReport
where
    ViewBody<T, V>: Body<Data = Bytes> + Unpin,
    <ViewBody<T, V> as Body>::Error: std::fmt::Debug,
{
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "a"
    );
    let ended = async {
        loop {
            if let Some(report) = reports.lock().unwrap().pop() {
                return report;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let report = tokio::time::timeout(Duration::from_secs(60), ended).await;
    let report = report.unwrap();
    assert_eq!(report.outcome(), Outcome::Stalled);
    assert!(body.frame().await.unwrap().is_err());
    report
}
