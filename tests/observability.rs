//! What goes out through `tracing` and `metrics`: names, levels, labels and fields.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::{self, Debug},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bodyguard::{
    BoxError, Cleanup, CleanupLayer, CompressionLayer, Stack, TaskGroup, TaskGroupLayer,
    task_group::Sources, testing::Script,
};
use http::{Request, Response, header};
use http_body_util::BodyExt;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower::{Layer, ServiceExt, service_fn};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Registry, layer::Context, prelude::*};

/// One event: its level, and its fields as text.
type Seen = (Level, BTreeMap<String, String>);

#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Seen>>>);

impl<S: Subscriber> tracing_subscriber::Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "bodyguard" {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.0
            .lock()
            .unwrap()
            .push((*event.metadata().level(), fields.0));
    }
}

#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

/// One response: two frames, one task and one closer, which may fail.
async fn respond(fails: bool) {
    let handler = service_fn(move |request: Request<()>| {
        Cleanup::of(&request).unwrap().defer(move |_| async move {
            if fails {
                Err("commit failed".into())
            } else {
                Ok(())
            }
        });
        let task = async move { if fails { Err("no row".into()) } else { Ok(()) } };
        assert!(TaskGroup::of(&request).unwrap().spawn(task).is_ok());
        let body = Script::new().data("ab").data("c");
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let service = Stack::new().layer(handler);
    let request = Request::builder()
        .uri("/orders?token=secret")
        .body(())
        .unwrap();
    let response = service.oneshot(request).await.unwrap();
    let _ = response.into_body().collect().await;
}

/// One test at a time: what `tracing` remembers of a callsite depends on the thread that meets it first.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

#[test]
fn every_response_is_an_event_and_a_failed_one_a_warning() {
    let _alone = alone();
    let events = Events::default();
    let subscriber = Registry::default().with(events.clone());
    tracing::subscriber::with_default(subscriber, || {
        runtime().block_on(async {
            respond(false).await;
            respond(true).await;
        });
    });
    let events = events.0.lock().unwrap();
    let [(fine, fields), (failed, why)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((*fine, *failed), (Level::DEBUG, Level::WARN));
    let expected = [
        ("message", "response ended"),
        ("method", "GET"),
        // The path alone: queries hold secrets.
        ("path", "/orders"),
        ("outcome", "Complete"),
        ("status", "200"),
        ("bytes", "3"),
        ("frames", "2"),
        ("closers_run", "1"),
        ("closers_failed", "0"),
        ("closers_unrun", "0"),
        ("client_gone", "false"),
        ("tasks_joined", "1"),
        ("tasks_failed", "0"),
        ("tasks_cancelled", "0"),
        ("tasks_panicked", "0"),
        ("stuck", "0"),
        ("errors", "0"),
    ];
    for (name, value) in expected {
        assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}");
    }
    for name in ["scope", "first_frame_ms", "duration_ms", "teardown_ms"] {
        assert!(fields.contains_key(name), "{name}");
    }
    assert_eq!(why["outcome"], "Failed");
    assert_eq!((&*why["closers_failed"], &*why["tasks_failed"]), ("1", "1"));
    assert_eq!((&*why["errors"], &*why["error"]), ("2", "no row"));
    assert_eq!(why["also"], "commit failed");
    assert!(!fields.contains_key("error") && !fields.contains_key("also"));
}

/// An error that counts how often its text is asked for, and panics if it is told to.
#[derive(Debug, Default)]
struct Texts {
    asked: Arc<AtomicUsize>,
    panics: bool,
    source: Option<std::io::Error>,
}

impl fmt::Display for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics, "scripted");
        f.write_str("no news")
    }
}

impl std::error::Error for Texts {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_ref();
        source.map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// What the event says of closers that fail with these errors, the last first.
fn said_of(errors: Vec<BoxError>) -> BTreeMap<String, String> {
    let events = Events::default();
    let subscriber = Registry::default().with(events.clone());
    tracing::subscriber::with_default(subscriber, || fail_with(errors));
    let mut events = events.0.lock().unwrap();
    assert_eq!(events.len(), 1);
    events.remove(0).1
}

fn fail_with(errors: Vec<BoxError>) {
    let errors = Mutex::new(errors);
    runtime().block_on(async {
        let handler = service_fn(|request: Request<()>| {
            for error in errors.lock().unwrap().drain(..) {
                Cleanup::of(&request)
                    .unwrap()
                    .defer(|_| async { Err(error) });
            }
            std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
        });
        let response = Stack::new()
            .layer(handler)
            .oneshot(Request::new(()))
            .await
            .unwrap();
        response.into_body().collect().await.unwrap_err();
    });
}

#[test]
fn the_event_of_a_failed_merge_names_the_source_and_what_it_failed_with() {
    let _alone = alone();
    let events = Events::default();
    let subscriber = Registry::default().with(events.clone());
    tracing::subscriber::with_default(subscriber, || {
        runtime().block_on(async {
            let handler = service_fn(|request: Request<()>| {
                let reset = std::io::Error::other("connection reset");
                let feed = futures_util::stream::iter([Ok("a"), Err(reset)]);
                let sources = Sources::new().source("feed-7", feed);
                let body = TaskGroup::of(&request).unwrap().merge(sources);
                std::future::ready(Ok::<_, Infallible>(Response::new(body)))
            });
            let service = Stack::new().layer(handler);
            let response = service.oneshot(Request::new(())).await.unwrap();
            response.into_body().collect().await.unwrap_err();
        });
    });
    let events = events.0.lock().unwrap();
    let (level, fields) = &events[0];
    assert_eq!(*level, Level::WARN);
    // Once, although an `io::Error` shows the text of what it wraps.
    assert_eq!(fields["error"], "source feed-7 failed: connection reset");
    assert!(!fields.contains_key("also"));
}

#[test]
fn the_event_has_five_errors_behind_the_first() {
    let _alone = alone();
    let errors = (0..8).rev().map(|n| BoxError::from(format!("no {n}")));
    let fields = said_of(errors.collect());
    assert_eq!((&*fields["errors"], &*fields["error"]), ("8", "no 0"));
    assert_eq!(fields["also"], "no 1; no 2; no 3; no 4; no 5");
}

#[test]
fn errors_that_panic_when_asked_for_their_text_are_contained() {
    let _alone = alone();
    let asked = Texts {
        panics: true,
        source: Some(std::io::Error::other("disk")),
        ..Texts::default()
    };
    let fields = said_of(vec!["behind it".into(), asked.into()]);
    assert_eq!(fields["error"], "(its text panicked): disk");
    assert_eq!(fields["also"], "behind it");
}

#[test]
fn without_a_subscriber_no_error_is_asked_for_its_text() {
    let _alone = alone();
    let asked = Arc::new(AtomicUsize::new(0));
    let error = || Texts {
        asked: asked.clone(),
        ..Texts::default()
    };
    fail_with(vec![error().into(), error().into()]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    said_of(vec![error().into()]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// Blocking code that gives no response: the client is not told why, so the log is.
#[test]
fn a_bridge_error_that_is_answered_is_an_error() {
    use bodyguard::bridge::{BridgeError, Cx, Next, NextError, from_fn_sync, sync_handler};
    type Body = axum::body::Body;
    type Answer = Result<Response<Body>, NextError<Infallible>>;
    let _alone = alone();
    let events = Events::default();
    let subscriber = Registry::default().with(events.clone());
    tracing::subscriber::with_default(subscriber, || {
        runtime().block_on(async {
            let handler = sync_handler(|_: &Cx, ()| "never");
            let app = axum::Router::new().route("/", axum::routing::get(handler));
            let ours = app.oneshot(Request::new(Body::empty())).await.unwrap();
            let echo =
                service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::default()));
            let pass = |cx: &Cx,
                        request: Request<Body>,
                        next: Next<Body, Body, Infallible>|
             -> Answer { next.run(cx, request) };
            let layer = from_fn_sync(pass).layer(echo);
            let theirs = layer.oneshot(Request::new(Body::empty())).await.unwrap();
            for response in [ours, theirs] {
                assert!(response.extensions().get::<BridgeError>().is_some());
            }
        });
    });
    let events = events.0.lock().unwrap();
    assert_eq!(events.len(), 2, "{events:?}");
    for (level, fields) in &*events {
        assert_eq!(*level, Level::ERROR);
        assert_eq!(fields["message"], "a bridge error is the answer");
        assert!(fields["error"].contains("add `BridgeLayer`"), "{fields:?}");
    }
}

#[test]
fn closers_that_a_dead_runtime_left_unrun_are_an_error() {
    let _alone = alone();
    let events = Events::default();
    let subscriber = Registry::default().with(events.clone());
    tracing::subscriber::with_default(subscriber, || {
        let runtime = runtime();
        let body = runtime.block_on(async {
            let body = bodyguard::cleanup::CleanupBody::new(Script::new().hang());
            body.defer(|_| async { Ok(()) })
        });
        drop(runtime);
        drop(body);
    });
    let events = events.0.lock().unwrap();
    let errors = events.iter().filter(|(level, _)| *level == Level::ERROR);
    let texts: Vec<_> = errors
        .map(|(_, fields)| fields["message"].as_str())
        .collect();
    assert_eq!(texts, ["closers did not run to their end"]);
}

#[test]
fn a_hook_that_panics_is_an_error() {
    let _alone = alone();
    let events = Events::default();
    let subscriber = Registry::default().with(events.clone());
    tracing::subscriber::with_default(subscriber, || {
        runtime().block_on(async {
            let handler = service_fn(|_: Request<()>| async {
                Ok::<_, Infallible>(Response::new(Script::new().data("a")))
            });
            let service = Stack::new().on_end(|_| panic!("scripted")).layer(handler);
            let response = service.oneshot(Request::new(())).await.unwrap();
            response.into_body().collect().await.unwrap();
        });
    });
    let events = events.0.lock().unwrap();
    let mut errors = events.iter().filter(|(level, _)| *level == Level::ERROR);
    let (_, fields) = errors.next().unwrap();
    assert_eq!(fields["message"], "on_end hook panicked");
    assert_eq!((&*fields["panic"], &*fields["path"]), ("scripted", "/"));
    assert!(errors.next().is_none());
}

/// The report has only that it was given up.
#[test]
fn a_closer_that_fails_after_it_was_given_up_is_an_error() {
    let _alone = alone();
    let events = Events::default();
    let subscriber = Registry::default().with(events.clone());
    tracing::subscriber::with_default(subscriber, || {
        runtime().block_on(async {
            let (finish, finished) = tokio::sync::oneshot::channel::<()>();
            let (mut key, mut finished) = (None, Some(finished));
            let limit = std::time::Duration::from_millis(1);
            let stack = Stack::new().closer_limit(limit);
            let service = stack.layer(service_fn(|request: Request<()>| {
                let finished = finished.take().unwrap();
                key = Some(Cleanup::of(&request).unwrap().defer(|_| async {
                    finished.await?;
                    Err("disk".into())
                }));
                std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
            }));
            let response = service.oneshot(Request::new(())).await.unwrap();
            let mut early = Box::pin(key.unwrap().close_now());
            assert!(futures_util::poll!(&mut early).is_pending());
            response.into_body().collect().await.unwrap_err();
            finish.send(()).unwrap();
            early.await.unwrap_err();
        });
    });
    let events = events.0.lock().unwrap();
    let mut errors = events.iter().filter(|(level, _)| *level == Level::ERROR);
    let (_, fields) = errors.next().unwrap();
    assert_eq!(fields["message"], "closer failed behind the end report");
    assert_eq!(fields["error"], "disk");
    assert!(errors.next().is_none());
}

/// Its failure is in no report: that has been given to the hooks.
#[test]
fn a_closer_that_fails_behind_the_end_is_an_error() {
    let _alone = alone();
    let events = Events::default();
    let subscriber = Registry::default().with(events.clone());
    tracing::subscriber::with_default(subscriber, || {
        runtime().block_on(async {
            let mut view = None;
            let service = Stack::new().layer(service_fn(|request: Request<()>| {
                view = bodyguard::Cleanup::of(&request).ok();
                std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
            }));
            let response = service.oneshot(Request::new(())).await.unwrap();
            response.into_body().collect().await.unwrap();
            let error = Texts {
                source: Some(std::io::Error::other("disk")),
                ..Texts::default()
            };
            view.unwrap().defer(|_| async { Err(error.into()) });
            tokio::task::yield_now().await;
        });
    });
    let events = events.0.lock().unwrap();
    let mut errors = events.iter().filter(|(level, _)| *level == Level::ERROR);
    let (_, fields) = errors.next().unwrap();
    assert_eq!(fields["message"], "closer failed behind the end report");
    assert_eq!(fields["error"], "no news: disk");
}

#[test]
fn metrics_have_the_names_of_the_documentation() {
    let _alone = alone();
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        runtime().block_on(async {
            respond(false).await;
            respond(false).await;
            respond(true).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
    });
    let mut counters = BTreeMap::new();
    let mut histograms = BTreeMap::new();
    for (key, _, _, value) in snapshots.snapshot().into_vec() {
        let labels: Vec<_> = key
            .key()
            .labels()
            .map(|label| label.value().to_owned())
            .collect();
        let name = format!("{} {}", key.key().name(), labels.join(","));
        match value {
            DebugValue::Counter(value) => {
                counters.insert(name.trim().to_owned(), value);
            }
            DebugValue::Histogram(values) => {
                histograms.insert(name.trim().to_owned(), values.len());
            }
            DebugValue::Gauge(_) => {}
        }
    }
    let expected = [
        ("bodyguard_closers_run_total", 3),
        ("bodyguard_closers_failed_total", 1),
        ("bodyguard_closers_unrun_total", 0),
        ("bodyguard_response_bytes_total", 9),
        ("bodyguard_responses_total Complete", 2),
        ("bodyguard_responses_total Failed", 1),
        ("bodyguard_tasks_cancelled_total", 0),
        ("bodyguard_tasks_failed_total", 1),
        ("bodyguard_tasks_joined_total", 3),
        ("bodyguard_tasks_panicked_total", 0),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(name, n)| (name.to_owned(), n)).into();
    assert_eq!(counters, expected);
    let expected = [
        ("bodyguard_first_frame_seconds", 3),
        ("bodyguard_response_duration_seconds Complete", 2),
        ("bodyguard_response_duration_seconds Failed", 1),
        ("bodyguard_teardown_seconds", 3),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(name, n)| (name.to_owned(), n)).into();
    assert_eq!(histograms, expected);
}

/// Up to the release: a task that does not stop keeps its scope live.
#[test]
fn live_scopes_are_counted_until_nothing_of_them_runs() {
    let _alone = alone();
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let total = std::cell::Cell::new(0.0);
    // A snapshot takes out what it shows.
    let live = || {
        let seen = snapshots.snapshot().into_vec().into_iter();
        let mut gauges = seen.filter(|(key, ..)| key.key().name() == "bodyguard_scopes_live");
        match gauges.next() {
            Some((_, _, _, DebugValue::Gauge(change))) => total.set(total.get() + change.0),
            _ => panic!("no gauge"),
        }
        total.get()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let (runs, mut started) = tokio::sync::mpsc::unbounded_channel();
            let (ends, mut ended) = tokio::sync::mpsc::unbounded_channel();
            let stopped = Mutex::new(Some(stopped));
            let handler = service_fn(|request: Request<()>| {
                if let Some(stopped) = stopped.lock().unwrap().take() {
                    let (group, runs) = (TaskGroup::of(&request).unwrap(), runs.clone());
                    let blocks = group.spawn_blocking(move |_| {
                        let _ = runs.send(());
                        let _ = stopped.recv();
                        Ok(())
                    });
                    assert!(blocks.is_ok());
                }
                std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().hang())))
            });
            let limits = Stack::new().join_limit(Duration::from_millis(20));
            let service = limits
                .on_end(move |_| {
                    let _ = ends.send(());
                })
                .layer(handler);
            let first = service.clone().oneshot(Request::new(())).await.unwrap();
            let second = service.oneshot(Request::new(())).await.unwrap();
            assert_eq!(live(), 2.0);
            drop(second);
            ended.recv().await.unwrap();
            assert_eq!(live(), 1.0);
            started.recv().await.unwrap();
            drop(first);
            // Its report is out, its code still runs.
            ended.recv().await.unwrap();
            assert_eq!(live(), 1.0);
            drop(stop);
        });
    });
}

#[test]
fn metrics_of_compression_have_the_names_of_the_documentation() {
    let _alone = alone();
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        runtime().block_on(async {
            let handler = service_fn(|_: Request<()>| async {
                let body = Script::new().data("data: news\n\n").pending();
                let head = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
                Ok::<_, Infallible>(head.body(body).unwrap())
            });
            // None may stay with a stream that waits.
            let service = CompressionLayer::new().resident_limit(0).layer(handler);
            let request = Request::builder().header(header::ACCEPT_ENCODING, "gzip");
            let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
            response.into_body().collect().await.unwrap();
        });
    });
    let mut seen = BTreeMap::new();
    for (key, _, _, value) in snapshots.snapshot().into_vec() {
        let kind = match value {
            DebugValue::Counter(value) => {
                assert!(value > 0, "{key:?}");
                "counter"
            }
            DebugValue::Gauge(value) => {
                assert_eq!(value.into_inner(), 0.0, "{key:?}");
                "gauge"
            }
            DebugValue::Histogram(_) => "histogram",
        };
        seen.insert(key.key().name().to_owned(), kind);
    }
    let expected = [
        ("bodyguard_compression_bytes_in_total", "counter"),
        ("bodyguard_compression_bytes_out_total", "counter"),
        ("bodyguard_compression_parked", "gauge"),
        ("bodyguard_compression_resident", "gauge"),
        ("bodyguard_compression_streams", "gauge"),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(name, kind)| (name.to_owned(), kind)).into();
    assert_eq!(seen, expected);
}

/// The names and kinds that the documentation has, out of its table.
fn documented() -> BTreeMap<String, String> {
    let rows = include_str!("../src/lib.rs").lines();
    let rows = rows.filter_map(|line| line.strip_prefix("//! | `bodyguard_"));
    let rows = rows.map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let name = cells.next().unwrap().trim_end_matches('`');
        (
            format!("bodyguard_{name}"),
            cells.next().unwrap().to_owned(),
        )
    });
    rows.collect()
}

#[test]
fn what_is_cancelled_and_unrun_is_counted_and_every_name_is_documented() {
    let _alone = alone();
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        runtime().block_on(async {
            let handler = service_fn(|request: Request<()>| {
                let group = TaskGroup::of(&request).unwrap();
                for _ in 0..2 {
                    group.spawn_background(std::future::pending()).unwrap();
                }
                let body = Script::new().data("data: news\n\n").pending();
                let head = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
                std::future::ready(Ok::<_, Infallible>(head.body(body).unwrap()))
            });
            let service = CompressionLayer::new()
                .resident_limit(0)
                .layer(TaskGroupLayer::new().layer(handler));
            let request = Request::builder().header(header::ACCEPT_ENCODING, "gzip");
            let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
            response.into_body().collect().await.unwrap();
        });
        let runtime = runtime();
        let response = runtime.block_on(async {
            let handler = service_fn(|request: Request<()>| {
                for _ in 0..3 {
                    Cleanup::of(&request).unwrap().defer(|_| async { Ok(()) });
                }
                std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().hang())))
            });
            let service = CleanupLayer::new().layer(handler);
            service.oneshot(Request::new(())).await.unwrap()
        });
        drop(runtime);
        drop(response);
    });
    let mut counters = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (key, _, _, value) in snapshots.snapshot().into_vec() {
        let name = key.key().name().to_owned();
        let kind = match value {
            DebugValue::Counter(value) => {
                *counters.entry(name.clone()).or_insert(0) += value;
                "counter"
            }
            DebugValue::Gauge(_) => "gauge",
            DebugValue::Histogram(_) => "histogram",
        };
        names.insert(name, kind.to_owned());
    }
    assert_eq!(counters["bodyguard_tasks_cancelled_total"], 2);
    assert_eq!(counters["bodyguard_closers_unrun_total"], 3);
    assert_eq!(names, documented());
}
