//! What decides an end, and what is told of it, when several things end one response.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bodyguard::{
    BoxError, Cleanup, Disconnect, EndReport, Hold, Outcome, Stack, Supervisor, TaskGroup,
    disconnect::OnLeave, testing::Script,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tower::{Layer, ServiceExt, service_fn};

type Reports = Arc<Mutex<Vec<EndReport>>>;

fn hook(reports: &Reports) -> impl Fn(&EndReport) + Send + Sync + 'static + use<> {
    let reports = reports.clone();
    move |end| reports.lock().unwrap().push(end.clone())
}

fn texts(report: &EndReport) -> Vec<String> {
    report.errors.iter().map(ToString::to_string).collect()
}

/// The report of a response that has ended.
async fn report(reports: &Reports) -> EndReport {
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut reports = reports.lock().unwrap();
    assert_eq!(reports.len(), 1);
    reports.remove(0)
}

/// A response with this body, and what its handler took.
async fn respond<T, B>(
    stack: Stack,
    body: B,
    take: impl Fn(&Request<()>) -> T,
) -> (Response<UnsyncBoxBody<Bytes, BoxError>>, T)
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let taken = Mutex::new(None);
    let body = Mutex::new(Some(body));
    let service = service_fn(|request: Request<()>| {
        *taken.lock().unwrap() = Some(take(&request));
        let body = body.lock().unwrap().take().unwrap();
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let response = stack.layer(service).oneshot(Request::new(())).await;
    let response = response.unwrap();
    let response = response.map(|body| body.map_err(BoxError::from).boxed_unsync());
    (response, taken.into_inner().unwrap().unwrap())
}

fn hold(request: &Request<()>) -> Hold {
    Disconnect::of(request).unwrap().hold()
}

/// The word of the last hold is a decision: there is no work left that could go on without its client.
#[tokio::test(start_paused = true)]
async fn the_word_of_a_hold_ends_work_that_chose_to_detach() {
    for (choice, word, streaming) in [
        (OnLeave::Detach, Outcome::Disconnected, false),
        (OnLeave::Detach, Outcome::Dropped, false),
        (OnLeave::Grace(Duration::MAX), Outcome::Dropped, false),
        (OnLeave::Detach, Outcome::Disconnected, true),
    ] {
        let (supervisor, reports) = (Supervisor::new(), Reports::default());
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let service = service_fn(move |request: Request<()>| {
            let disconnect = Disconnect::of(&request).unwrap();
            disconnect.on_leave(choice).unwrap();
            Cleanup::of(&request).unwrap().defer_sync(|_| ());
            *keep.lock().unwrap() = Some(disconnect.hold());
            let body = Script::new().data("a");
            let body = if streaming { body.hang() } else { body };
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let layer = bodyguard::scope::ScopeLayer::<bodyguard::stack::AllViews>::new()
            .supervisor(&supervisor)
            .on_end(hook(&reports))
            .detachable(Duration::from_secs(600));
        let service = layer.layer(service);
        let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        if !streaming {
            assert!(body.frame().await.is_none());
        }
        let hold = kept.lock().unwrap().take().unwrap();
        hold.finish(word);
        let report = report(&reports).await;
        assert_eq!((report.outcome(), report.counts.closers_run), (word, 1));
        assert_eq!(supervisor.active(), 0);
        drop(body);
    }
}

/// The same when the scope around it ends so: a body that is over cannot go on.
#[tokio::test(start_paused = true)]
async fn a_child_whose_body_is_over_ends_with_its_parent() {
    let (supervisor, reports) = (Supervisor::new(), Reports::default());
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let handler = service_fn(move |request: Request<()>| {
        let disconnect = Disconnect::of(&request).unwrap();
        disconnect.on_leave(OnLeave::Detach).unwrap();
        *keep.lock().unwrap() = Some(disconnect.hold());
        std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
    });
    let inner = bodyguard::DisconnectLayer::new()
        .on_end(hook(&reports))
        .detachable(Duration::from_secs(600))
        .layer(handler);
    // What follows the inner body never comes, and nothing tells that it is the answer: its hold is not its parent's.
    let inner = inner.map_response(|mut response: Response<_>| {
        response.extensions_mut().clear();
        response.map(Tailed)
    });
    let service = Stack::new().supervisor(&supervisor).layer(inner);
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    assert!(futures_util::poll!(body.frame()).is_pending());
    drop(body);
    let report = report(&reports).await;
    assert_eq!(report.outcome(), Outcome::Dropped);
    assert_eq!(supervisor.active(), 0);
    drop(kept);
}

/// A body behind which something hangs.
struct Tailed<B>(B);

impl<B: Body + Unpin> Body for Tailed<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match Pin::new(&mut self.0).poll_frame(cx) {
            Poll::Ready(None) => Poll::Pending,
            polled => polled,
        }
    }
}

/// The first cause wins, also if the scope outlives it.
#[tokio::test(start_paused = true)]
async fn a_body_that_ended_badly_under_a_hold_keeps_outcome_and_error() {
    for newcomer in ["drain", "cancel", "task", "hold"] {
        let (supervisor, reports) = (Supervisor::new(), Reports::default());
        let stack = Stack::new().supervisor(&supervisor).on_end(hook(&reports));
        let body = Script::new().data("a").error("disk");
        let (response, (hold, disconnect, group)) = respond(stack, body, |request| {
            let disconnect = Disconnect::of(request).unwrap();
            (hold(request), disconnect, TaskGroup::of(request).unwrap())
        })
        .await;
        assert!(response.into_body().collect().await.is_err());
        let mut errors = vec!["disk"];
        match newcomer {
            "drain" => drop(supervisor.drain(Duration::from_secs(4)).await),
            "cancel" => disconnect.cancel(),
            "task" => {
                assert!(group.spawn(async { Err("late".into()) }).is_ok());
                errors.push("late");
            }
            _ => hold.finish(Outcome::Cancelled),
        }
        let report = report(&reports).await;
        assert_eq!(report.outcome(), Outcome::Failed, "{newcomer}");
        assert_eq!(report.ending.cause().unwrap().to_string(), "disk");
        assert_eq!(texts(&report), errors, "{newcomer}");
    }
}

/// A task that failed before its client left has decided, as it does without a hold.
#[tokio::test(start_paused = true)]
async fn a_task_that_failed_under_a_hold_decides_whatever_ends_the_body() {
    for (fed, held, ends) in [
        (false, true, "leaves"),
        (false, true, "fails"),
        (false, false, "leaves"),
        (false, false, "fails"),
        (true, true, "leaves"),
        (true, false, "leaves"),
    ] {
        let case = format!("fed {fed}, held {held}, {ends}");
        let reports = Reports::default();
        let mut stack = Stack::new().on_end(hook(&reports));
        if !fed {
            stack = stack.failure_policy(bodyguard::scope::FailurePolicy::KeepOthers);
        }
        let script = Script::new().data("a");
        let script = match ends {
            "fails" => script.error("disk"),
            _ => script.hang(),
        };
        let script = Mutex::new(Some(script));
        let (hold, response) = {
            let kept = Mutex::new(None);
            let service = service_fn(|request: Request<()>| {
                *kept.lock().unwrap() = held.then(|| hold(&request));
                let group = TaskGroup::of(&request).unwrap();
                let body = if fed {
                    let body = group.body(|frames| async move {
                        frames.send("a").await?;
                        Err("boom".into())
                    });
                    body.map_err(BoxError::from).boxed_unsync()
                } else {
                    assert!(group.spawn(async { Err("boom".into()) }).is_ok());
                    let script = script.lock().unwrap().take().unwrap();
                    script.map_err(BoxError::from).boxed_unsync()
                };
                std::future::ready(Ok::<_, Infallible>(Response::new(body)))
            });
            let response = stack.layer(service).oneshot(Request::new(())).await;
            (kept.into_inner().unwrap(), response.unwrap())
        };
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        if ends == "fails" {
            let error = body.frame().await.unwrap().unwrap_err();
            assert_eq!(
                std::error::Error::source(&error).unwrap().to_string(),
                "boom",
                "{case}"
            );
        }
        drop(body);
        if let Some(hold) = hold {
            tokio::time::sleep(Duration::from_secs(1)).await;
            hold.finish(Outcome::Complete);
        }
        let report = report(&reports).await;
        assert_eq!(report.outcome(), Outcome::Failed, "{case}");
        assert_eq!(report.ending.cause().unwrap().to_string(), "boom", "{case}");
        let errors = if ends == "fails" {
            &["boom", "disk"][..]
        } else {
            &["boom"]
        };
        assert_eq!(texts(&report), errors, "{case}");
    }
}

/// A task that fails because the client has left does not make a failure of that.
#[tokio::test(start_paused = true)]
async fn a_client_that_left_under_a_hold_is_no_failure_of_the_task_that_hears_it() {
    for keeps in [false, true] {
        let reports = Reports::default();
        let mut stack = Stack::new().on_end(hook(&reports));
        if keeps {
            stack = stack.failure_policy(bodyguard::scope::FailurePolicy::KeepOthers);
        }
        let body = Script::new().data("a").hang();
        let (response, held) = respond(stack, body, |request| {
            let disconnect = Disconnect::of(request).unwrap();
            let group = TaskGroup::of(request).unwrap();
            let hears = group.spawn(async move {
                disconnect.gone().await;
                Err("nobody reads".into())
            });
            assert!(hears.is_ok());
            hold(request)
        })
        .await;
        drop(response);
        tokio::time::sleep(Duration::from_secs(1)).await;
        held.finish(Outcome::Complete);
        let report = report(&reports).await;
        assert_eq!(report.outcome(), Outcome::Dropped, "{keeps}");
        assert_eq!(texts(&report), ["nobody reads"]);
    }
}

/// A body whose poll ends its own scope, and then fails.
struct Cancels {
    disconnect: Arc<Mutex<Option<Disconnect>>>,
    panics: bool,
}

impl Body for Cancels {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(disconnect) = self.disconnect.lock().unwrap().take() {
            disconnect.cancel();
        }
        assert!(!self.panics, "scripted");
        Poll::Ready(Some(Err("disk".into())))
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_body_fails_with_behind_an_interruption_is_in_the_report() {
    for panics in [false, true] {
        let reports = Reports::default();
        let disconnect = Arc::new(Mutex::new(None));
        let body = Cancels {
            disconnect: disconnect.clone(),
            panics,
        };
        let stack = Stack::new().on_end(hook(&reports));
        let (response, ()) = respond(stack, body, |request| {
            *disconnect.lock().unwrap() = Disconnect::of(request).ok();
        })
        .await;
        let body = response.into_body();
        #[allow(clippy::disallowed_methods, reason = "joined at once")]
        let read = tokio::spawn(async { body.collect().await.is_err() });
        assert_eq!(read.await.is_err(), panics);
        let report = report(&reports).await;
        assert_eq!(report.outcome(), Outcome::Cancelled);
        let expected = match panics {
            true => "response body panicked: see the panic's own report",
            false => "disk",
        };
        assert_eq!(texts(&report), [expected]);
    }
}

/// There is no response, and the hold keeps the scope all the same.
#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_under_a_hold_waits_for_it() {
    let (reports, kept) = (Reports::default(), Arc::new(Mutex::new(None)));
    let keep = kept.clone();
    let service = service_fn(move |request: Request<()>| {
        *keep.lock().unwrap() = Some(hold(&request));
        std::future::ready(Err::<Response<Script>, _>(std::io::Error::other(
            "no answer",
        )))
    });
    let stack = Stack::new().on_end(hook(&reports));
    let answer = stack.layer(service).oneshot(Request::new(())).await;
    assert_eq!(answer.unwrap_err().to_string(), "no answer");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(reports.lock().unwrap().is_empty(), "the hold is out");
    let hold = kept.lock().unwrap().take().unwrap();
    hold.finish(Outcome::Complete);
    let report = report(&reports).await;
    assert_eq!(report.outcome(), Outcome::Failed);
}
