//! Guards that count, deadlines, and a handler under a layer.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, handler::Handler};
use bodyguard::{BodyError, BoxError, EndReport, Stack, Supervisor};
use http::Response;
use http_body_util::BodyExt;
use tower::ServiceExt;

#[path = "../support/waits.rs"]
mod waits;
use waits::in_time;

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) async fn within<F: Future>(what: F) -> F::Output {
    let waited = in_time(DEADLINE, what).await;
    waited.expect("nothing happened before the deadline")
}

/// Polls until `done`; for what no event announces.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    within(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Counts futures that exist, by guards in them.
#[derive(Clone, Default)]
pub(crate) struct Live(Arc<AtomicUsize>);

pub(crate) struct Guard(Arc<AtomicUsize>);

impl Live {
    pub(crate) fn guard(&self) -> Guard {
        self.0.fetch_add(1, Ordering::SeqCst);
        Guard(self.0.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One handler under `Stack`, and what became of its responses.
pub(crate) struct App {
    pub(crate) router: Router,
    pub(crate) supervisor: Supervisor,
    reports: Arc<Mutex<Vec<EndReport>>>,
}

impl App {
    pub(crate) fn new<H: Handler<T, ()>, T: 'static>(handler: H) -> Self {
        Self::with(Stack::new(), handler)
    }

    pub(crate) fn with<H: Handler<T, ()>, T: 'static>(stack: Stack, handler: H) -> Self {
        let (supervisor, reports) = (Supervisor::new(), Arc::<Mutex<Vec<EndReport>>>::default());
        let seen = reports.clone();
        let stack = stack
            .supervisor(&supervisor)
            .on_end(move |report| seen.lock().unwrap().push(report.clone()));
        Self {
            router: Router::new().fallback(handler).layer(stack),
            supervisor,
            reports,
        }
    }

    pub(crate) async fn get(&self) -> Response<Body> {
        self.call(Request::new(Body::empty())).await
    }

    pub(crate) async fn call(&self, request: Request) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// The one report, once the scope is released.
    pub(crate) async fn report(&self) -> EndReport {
        let mut reports = self.reports().await;
        assert_eq!(reports.len(), 1);
        reports.remove(0)
    }

    /// The reports, those of attempts before that of their response.
    pub(crate) async fn reports(&self) -> Vec<EndReport> {
        until(|| self.supervisor.active() == 0).await;
        self.reports.lock().unwrap().clone()
    }
}

/// What arrives, and what the body fails with behind it.
pub(crate) async fn drain<B>(body: B) -> (String, Option<BodyError>)
where
    B: http_body::Body<Data = bytes::Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    let mut text = String::new();
    loop {
        match body.frame().await {
            None => return (text, None),
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
            Some(Err(error)) => return (text, Some(body_error(error))),
        }
    }
}

pub(crate) fn body_error(error: impl Into<BoxError>) -> BodyError {
    let error = match error.into().downcast::<axum::Error>() {
        Ok(error) => error.into_inner(),
        Err(error) => error,
    };
    *error.downcast::<BodyError>().unwrap()
}

pub(crate) fn boom(what: &str) -> BoxError {
    what.into()
}

pub(crate) fn messages(report: &EndReport) -> Vec<String> {
    report.errors.iter().map(ToString::to_string).collect()
}
