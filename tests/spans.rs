//! The span of a request: what runs for its response runs in it, wherever the response ends.

use std::{
    convert::Infallible,
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use bodyguard::{
    BoxError, Bridge, Cleanup, Disconnect, DisconnectLayer, OnLeave, Stack, TaskGroup,
    bridge::SyncBody,
    cleanup::{CleanupBody, Key},
    testing::Script,
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use tokio::sync::mpsc;
use tower::{Layer, Service as _, ServiceBuilder, ServiceExt, service_fn};
use tower_http::trace::TraceLayer;
use tracing::{
    Event, Id, Instrument as _, Subscriber,
    field::{Field, Visit},
    info, info_span,
};
use tracing_subscriber::{Registry, layer::Context, prelude::*, registry::LookupSpan};

#[path = "support/waits.rs"]
mod waits;
use waits::{eventually, in_turns, within};

/// What was said, and in which span; and the spans that were closed, as `closed NAME`.
static SAID: Mutex<Vec<(String, Option<&'static str>)>> = Mutex::new(Vec::new());

fn said() -> MutexGuard<'static, Vec<(String, Option<&'static str>)>> {
    SAID.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one subscriber of this program, on all threads.
struct Listener;

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, path } = fields;
        let span = cx.lookup_current().map(|span| span.name());
        said().push((message + &path, span));
        let ours = event.metadata().target() == "bodyguard";
        assert!(!ours || span != Some("events"), "scripted");
    }

    fn on_enter(&self, id: &Id, cx: Context<'_, S>) {
        assert!(cx.span(id).unwrap().name() != "enters", "scripted");
    }

    fn on_exit(&self, id: &Id, cx: Context<'_, S>) {
        assert!(cx.span(id).unwrap().name() != "exits", "scripted");
    }

    fn on_close(&self, id: Id, cx: Context<'_, S>) {
        let name = cx.span(&id).unwrap().name();
        said().push((format!("closed {name}"), None));
        assert!(name != "closes", "scripted");
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    path: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "path" {
            self.path = format!(" {value}");
        }
    }
}

/// One test at a time, on a runtime whose clock is paused.
fn listening<F: Future>(test: F) -> F::Output {
    listening_by(true, test)
}

/// Threads of a bridge work in real time: a paused clock would jump over the limits of waits for them.
fn listening_in_real_time<F: Future>(test: F) -> F::Output {
    listening_by(false, test)
}

fn listening_by<F: Future>(paused: bool, test: F) -> F::Output {
    static ALONE: Mutex<()> = Mutex::new(());
    static SUBSCRIBER: Once = Once::new();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    SUBSCRIBER.call_once(|| {
        tracing::subscriber::set_global_default(Registry::default().with(Listener)).unwrap();
    });
    said().clear();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(paused)
        .build()
        .unwrap()
        .block_on(test)
}

/// The span in which that was said, once.
#[track_caller]
fn span_of(text: &str) -> Option<&'static str> {
    let said = said();
    let mut found = said.iter().filter(|(what, _)| what == text);
    let span = found
        .next()
        .unwrap_or_else(|| panic!("not said: {text}; {said:?}"))
        .1;
    assert!(found.next().is_none(), "said twice: {text}");
    span
}

fn was_said(text: &str) -> bool {
    said().iter().any(|(what, _)| what == text)
}

#[track_caller]
fn assert_all(span: &'static str, texts: &[&str]) {
    for text in texts {
        assert_eq!(span_of(text), Some(span), "{text}");
    }
}

/// Says so when it is dropped.
struct Says(&'static str);

impl Drop for Says {
    fn drop(&mut self) {
        info!("{}", self.0);
    }
}

async fn pending(says: Says) -> Result<(), BoxError> {
    let _says = says;
    std::future::pending().await
}

type Answer = UnsyncBoxBody<Bytes, BoxError>;

fn hangs() -> Answer {
    let body = Script::new().data("a").hang();
    body.map_err(Into::into).boxed_unsync()
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::builder().uri(path).body(Empty::new()).unwrap()
}

/// Calls the handler under a `TraceLayer` around `layer`.
macro_rules! respond {
    ($path:literal, $layer:expr, $handler:expr) => {{
        let handler = service_fn(|request| {
            let body = $handler(request);
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let traced =
            TraceLayer::new_for_http().make_span_with(|_: &Request<_>| info_span!("request"));
        let service = ServiceBuilder::new()
            .layer(traced)
            .layer($layer)
            .service(handler);
        service.oneshot(request($path)).await.unwrap()
    }};
}

fn hook() -> (
    impl Fn(&bodyguard::EndReport) + Send + Sync,
    mpsc::UnboundedReceiver<()>,
) {
    let (end, ended) = mpsc::unbounded_channel();
    let hook = move |_: &bodyguard::EndReport| {
        info!("hook");
        let _ = end.send(());
    };
    (hook, ended)
}

/// The server drops it where no span is.
#[test]
fn a_response_that_is_dropped_outside_of_its_span() {
    listening(async {
        let (hook, mut ended) = hook();
        let (runs, mut running) = mpsc::unbounded_channel();
        let response = respond!("/dropped", Stack::new().on_end(hook), |request: Request<
            _,
        >| {
            let cleanup = Cleanup::of(&request).unwrap();
            cleanup.defer_sync(|_| info!("sync closer"));
            cleanup.defer(|_| async {
                info!("closer");
                tokio::time::sleep(Duration::from_secs(1)).await;
                info!("closer, later");
                Ok(())
            });
            cleanup.defer_after_end(|_| async {
                info!("closer after the end");
                Err("scripted".into())
            });
            let group = TaskGroup::of(&request).unwrap();
            group.spawn(pending(Says("task"))).unwrap();
            group
                .spawn_background(pending(Says("background task")))
                .unwrap();
            let graceful = group.spawn_graceful(|cancel| async move {
                cancel.cancelled().await;
                info!("graceful task");
                Ok(())
            });
            assert!(graceful.is_ok());
            let runs = runs.clone();
            let blocking = group.spawn_blocking(move |cancel| {
                let _ = runs.send(());
                tokio::runtime::Handle::current().block_on(cancel.cancelled());
                info!("blocking task");
                Ok(())
            });
            assert!(blocking.is_ok());
            hangs()
        });
        within(running.recv()).await;
        assert!(tracing::Span::current().is_none());
        drop(response);
        within(ended.recv()).await;
        in_turns(|| was_said("closed request")).await;
        assert_all(
            "request",
            &[
                "closer",
                "closer, later",
                "sync closer",
                "closer after the end",
            ],
        );
        assert_all(
            "request",
            &["task", "background task", "graceful task", "blocking task"],
        );
        assert_all("request", &["hook", "response ended /dropped"]);
        assert!(tracing::Span::current().is_none());
    });
}

/// At its natural end it is asked inside of another span.
#[test]
fn a_response_that_is_read_in_another_span() {
    listening(async {
        let (hook, _ended) = hook();
        let handler = service_fn(|request: Request<_>| {
            Cleanup::of(&request).unwrap().defer(|_| async {
                info!("closer");
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(())
            });
            std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
        });
        let service = Stack::new().on_end(hook).layer(handler);
        let call = service.oneshot(request("/read"));
        let response = call.instrument(info_span!("request")).await.unwrap();
        let mut body = response.into_body();
        let other = info_span!("other");
        std::future::poll_fn(|cx| {
            let _in = other.enter();
            let mut polled = std::pin::Pin::new(&mut body).poll_frame(cx);
            while let std::task::Poll::Ready(Some(_)) = polled {
                polled = std::pin::Pin::new(&mut body).poll_frame(cx);
            }
            info!("polled");
            polled.map(drop)
        })
        .await;
        // It has been left each time.
        assert!(
            said()
                .iter()
                .all(|(what, span)| what != "polled" || *span == Some("other"))
        );
        assert_all("request", &["closer", "hook", "response ended /read"]);
    });
}

#[test]
fn tasks_run_in_the_span_that_they_were_spawned_in() {
    listening(async {
        let response = respond!("/tasks", Stack::new(), |request: Request<_>| {
            let group = TaskGroup::of(&request).unwrap();
            info_span!("inner").in_scope(|| {
                group.spawn(pending(Says("task"))).unwrap();
                // Run, or taken back before it is.
                let says = Says("blocking task");
                let blocking = group.spawn_blocking(|_| {
                    drop(says);
                    Ok(())
                });
                assert!(blocking.is_ok());
            });
            let tasks = group.clone();
            let body = info_span!("body").in_scope(|| {
                group.body(|tx| {
                    info!("producer made");
                    async move {
                        let _says = Says("producer");
                        tasks.spawn(pending(Says("task of the producer")))?;
                        tx.send("a").await?;
                        std::future::pending().await
                    }
                })
            });
            body.map_err(BoxError::from).boxed_unsync()
        });
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        in_turns(|| was_said("closed request")).await;
        assert_all("inner", &["task", "blocking task"]);
        assert_all(
            "body",
            &["producer made", "producer", "task of the producer"],
        );
        assert_all("request", &["response ended /tasks"]);
    });
}

/// Nothing is entered, so that nothing that is current is hidden.
#[test]
fn without_a_span_what_is_current_stays() {
    listening(async {
        let handler = service_fn(|request: Request<_>| {
            let cleanup = Cleanup::of(&request).unwrap();
            cleanup.defer_sync(|_| info!("closer"));
            let group = TaskGroup::of(&request).unwrap();
            let task = async {
                info!("task");
                Ok(())
            };
            group.spawn(task).unwrap();
            std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
        });
        let service = Stack::new().layer(handler);
        let response = service.oneshot(request("/none")).await.unwrap();
        in_turns(|| was_said("task")).await;
        assert_eq!(span_of("task"), None);
        let read = || response.into_body().collect().now_or_never();
        info_span!("server").in_scope(read).unwrap().unwrap();
        assert_all("server", &["closer", "response ended /none"]);
    });
}

/// Ahead of the end, and behind it.
#[test]
fn closers_that_run_outside_of_the_teardown() {
    listening(async {
        let (mut early, mut view): (Vec<Key>, _) = (Vec::new(), None);
        let response = respond!("/early", Stack::new(), |request: Request<_>| {
            let cleanup = Cleanup::of(&request).unwrap();
            for text in ["early closer", "given up"] {
                early.push(cleanup.defer(move |_| async move {
                    let _says = Says(text);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Ok(())
                }));
            }
            view = Some(cleanup);
            hangs()
        });
        let mut given_up = Box::pin(early.pop().unwrap().close_now());
        assert!(futures_util::poll!(&mut given_up).is_pending());
        drop(given_up);
        early.pop().unwrap().close_now().await.unwrap();
        assert_all("request", &["early closer", "given up"]);
        assert_all("request", &["closers did not run to their end /early"]);
        drop(response);
        // The view is kept, and the span is not.
        in_turns(|| was_said("closed request")).await;
        let late = || view.take().unwrap().defer(|_| async { Err("disk".into()) });
        info_span!("late").in_scope(late);
        let text = "closer failed behind the end report /early";
        in_turns(|| was_said(text)).await;
        assert_all("late", &[text]);
    });
}

/// Its client has left: what goes on without it, and what is taken from its server.
#[test]
fn a_detached_response() {
    listening(async {
        let layer = DisconnectLayer::new().detachable(Duration::from_secs(60));
        let layer = ServiceBuilder::new()
            .layer(layer)
            .layer(Stack::new())
            .into_inner();
        let response = respond!("/detached", layer, |request: Request<_>| {
            Disconnect::of(&request)
                .unwrap()
                .on_leave(OnLeave::Detach)
                .unwrap();
            let body = futures_util::stream::unfold((), |()| async {
                let _says = Says("body");
                info!("detached");
                tokio::time::sleep(Duration::from_secs(100)).await;
                None::<(Result<Bytes, BoxError>, ())>
            });
            axum::body::Body::from_stream(body)
        });
        drop(response);
        in_turns(|| was_said("detached")).await;
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert_all("request", &["detached", "body", "response ended /detached"]);
    });
}

#[test]
fn a_body_without_a_layer_keeps_the_span_that_it_is_made_in() {
    listening(async {
        let body = info_span!("request").in_scope(|| {
            let body = CleanupBody::new(Script::new().data("a").hang());
            body.cleanup().defer(|_| async {
                info!("closer");
                Ok(())
            });
            body
        });
        drop(body);
        in_turns(|| was_said("closed request")).await;
        assert_all("request", &["closer", "response ended /"]);
    });
}

#[test]
fn code_of_the_bridge() {
    listening_in_real_time(async {
        let (hook, mut ended) = hook();
        let mut view = None;
        let response = respond!("/bridge", Stack::new().on_end(hook), |request: Request<
            _,
        >| {
            let bridge = Bridge::of(&request).unwrap();
            bridge.defer(|_| info!("closer")).unwrap();
            info_span!("inner")
                .in_scope(|| bridge.spawn_local(|| pending(Says("inner task"))).detach());
            view = Some(bridge.clone());
            let body = bridge.body_writer(|out| {
                out.write_all(b"a")?;
                info!("writer");
                Ok(())
            });
            body.map_err(BoxError::from).boxed_unsync()
        });
        let bridge = view.unwrap();
        assert!(tracing::Span::current().is_none());
        let call = bridge.call(|cx| {
            info!("call");
            cx.spawn_local(pending(Says("task"))).detach();
            cx.block_on(async { info!("waited for") }).unwrap();
            cx.insert(Says("value"));
        });
        call.await.unwrap();
        info_span!("other")
            .in_scope(|| bridge.call(|_| info!("other call")))
            .await
            .unwrap();
        bridge.run(|| async { info!("run") }).await.unwrap();
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        assert!(body.frame().await.is_none());
        within(ended.recv()).await;
        assert_all(
            "request",
            &[
                "call",
                "waited for",
                "run",
                "task",
                "value",
                "writer",
                "closer",
                "hook",
            ],
        );
        assert_all("inner", &["inner task"]);
        assert_all("other", &["other call"]);
        assert_all("request", &["response ended /bridge"]);
        // Its `TraceLayer` keeps the span, too.
        drop(body);
        // The view is kept, and the spans are not.
        eventually(|| {
            ["closed inner", "closed other", "closed request"]
                .iter()
                .all(|text| was_said(text))
        })
        .await;
        drop(bridge);
    });
}

/// With a thread of its own, and no scope.
#[test]
fn a_sync_body_runs_in_the_span_that_it_is_made_in() {
    listening_in_real_time(async {
        let body = info_span!("made").in_scope(|| {
            SyncBody::in_pool(bodyguard::bridge::Pool::new(), |bridge| {
                bridge.defer(|_| info!("closer")).unwrap();
                bridge.body_writer(|out| {
                    info!("writer");
                    out.write_all(b"a")
                })
            })
        });
        body.collect().await.unwrap();
        assert_all("made", &["writer", "closer"]);
    });
}

#[test]
fn code_that_panics_leaves_its_span() {
    listening(async {
        let (hook, mut ended) = hook();
        let response = respond!("/panics", Stack::new().on_end(hook), |request: Request<
            _,
        >| {
            let cleanup = Cleanup::of(&request).unwrap();
            cleanup.defer_sync(|_| panic!("scripted: closer"));
            cleanup.defer(|_| async { panic!("scripted: async closer") });
            let group = TaskGroup::of(&request).unwrap();
            group.spawn(async { panic!("scripted: task") }).unwrap();
            hangs()
        });
        assert!(response.into_body().collect().await.is_err());
        within(ended.recv()).await;
        in_turns(|| was_said("closed request")).await;
        assert_all("request", &["hook", "response ended /panics"]);
        assert!(tracing::Span::current().is_none());
    });
}

/// It keeps nothing from running.
#[test]
fn a_subscriber_that_panics() {
    for span in [
        || info_span!("enters"),
        || info_span!("exits"),
        || info_span!("closes"),
    ] {
        listening(async {
            let (hook, mut ended) = hook();
            let handler = service_fn(|request: Request<_>| {
                let group = TaskGroup::of(&request).unwrap();
                group.spawn(pending(Says("task"))).unwrap();
                Cleanup::of(&request)
                    .unwrap()
                    .defer_sync(|_| info!("closer"));
                std::future::ready(Ok::<_, Infallible>(Response::new(hangs())))
            });
            let mut service = Stack::new().on_end(hook).layer(handler);
            let call = span_is_current(span(), || service.call(request("/subscriber")));
            let response = call.await.unwrap();
            drop(response);
            within(ended.recv()).await;
            for text in ["task", "closer", "response ended /subscriber"] {
                let _ = span_of(text);
            }
        });
    }
}

#[test]
fn a_subscriber_that_panics_behind_the_end() {
    listening(async {
        let mut view = None;
        let service = Stack::new().layer(service_fn(|request: Request<_>| {
            view = Cleanup::of(&request).ok();
            std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
        }));
        let response = service.oneshot(request("/late")).await.unwrap();
        response.into_body().collect().await.unwrap();
        let late = || view.unwrap().defer_sync(|_| panic!("scripted: closer"));
        info_span!("events").in_scope(late);
        assert_all("events", &["closer failed behind the end report /late"]);
    });
}

/// As far as its subscriber lets it be.
fn span_is_current<T>(span: tracing::Span, code: impl FnOnce() -> T) -> T {
    let (id, subscriber) = span
        .with_subscriber(|(id, all)| (id.clone(), all.clone()))
        .unwrap();
    let _ = catch_unwind(AssertUnwindSafe(|| subscriber.enter(&id)));
    let done = code();
    let _ = catch_unwind(AssertUnwindSafe(|| subscriber.exit(&id)));
    let _ = catch_unwind(AssertUnwindSafe(|| drop(span)));
    done
}
