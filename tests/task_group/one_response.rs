//! What a view sets for its response wins over what any layer says, wherever that stands.

use std::{future::pending, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
};
use bodyguard::{
    CancellationToken, DisconnectLayer, EndReport, Stack, TaskGroup, TaskGroupLayer,
    scope::FailurePolicy,
};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::support::{App, boom, drain, within};

/// Where the layer stands that says otherwise: it joins behind the middleware that sets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Inner {
    Joins,
    /// Behind another that joins, and says the same.
    JoinsAgain,
    /// With a scope of its own, since the outer layer's owner cannot be moved.
    Armed,
    /// With a scope of its own, since the request was cloned.
    Attempt,
}

const INNER: [Inner; 4] = [
    Inner::Joins,
    Inner::JoinsAgain,
    Inner::Armed,
    Inner::Attempt,
];

/// An outer layer, a middleware that sets, and behind it layers and a handler.
fn app<H, T>(inner: Inner, layer: TaskGroupLayer, sets: fn(&TaskGroup), handler: H) -> App
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    let routes: Router = Router::new().fallback(handler);
    let routes = match inner {
        Inner::Joins => routes.layer(layer),
        Inner::JoinsAgain => routes.layer(layer.clone()).layer(layer),
        Inner::Armed => {
            let armed = DisconnectLayer::new().stall_timeout(Duration::from_secs(600));
            routes.layer(layer).layer(armed)
        }
        Inner::Attempt => {
            let repeats = from_fn(|request: Request, next: Next| async move {
                let (parts, _) = request.into_parts();
                let again = Request::from_parts(parts.clone(), Body::empty());
                next.run(again).await
            });
            routes.layer(layer).layer(repeats)
        }
    };
    let middleware = from_fn(move |request: Request, next: Next| async move {
        sets(&TaskGroup::of(&request).unwrap());
        next.run(request).await
    });
    let routes = routes.layer(middleware);
    let outer = Stack::new()
        .join_limit(Duration::from_secs(60))
        .cancel_grace(Duration::from_secs(60))
        .max_tasks(60);
    App::with(outer, move |request: Request| {
        routes.clone().oneshot(request)
    })
}

/// How long a response takes, and what is reported of it, attempts included.
async fn ended(app: &App) -> (Duration, EndReport) {
    let start = Instant::now();
    within(async { drain(app.get().await.into_body()).await }).await;
    let report = app.reports().await.pop();
    (start.elapsed(), report.unwrap())
}

fn about(seconds: u64, took: Duration) -> bool {
    let least = Duration::from_secs(seconds);
    (least..least + Duration::from_millis(500)).contains(&took)
}

#[tokio::test(start_paused = true)]
async fn the_join_limit() {
    for inner in INNER {
        let layer = TaskGroupLayer::new().join_limit(Duration::from_secs(1));
        let sets = |group: &TaskGroup| group.set_join_limit(Duration::from_secs(5));
        let app = app(inner, layer, sets, |group: TaskGroup| async move {
            group.spawn(pending()).unwrap();
        });
        let (took, _) = ended(&app).await;
        assert!(about(5, took), "{inner:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_cancel_grace() {
    for inner in INNER {
        let layer = TaskGroupLayer::new().cancel_grace(Duration::from_secs(1));
        let sets = |group: &TaskGroup| group.set_cancel_grace(Duration::from_secs(5));
        let app = app(inner, layer, sets, |group: TaskGroup| async move {
            let deaf = |_: CancellationToken| pending();
            group.spawn_graceful(deaf).unwrap();
            group.cancel();
        });
        let (took, _) = ended(&app).await;
        assert!(about(5, took), "{inner:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_failure_policy() {
    for inner in INNER {
        let layer = TaskGroupLayer::new().failure_policy(FailurePolicy::CancelSiblings);
        let sets = |group: &TaskGroup| group.set_failure_policy(FailurePolicy::KeepOthers);
        let app = app(inner, layer, sets, |group: TaskGroup| async move {
            let sleeps = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(())
            };
            group.spawn(async { Err(boom("disk")) }).unwrap();
            group.spawn(sleeps).unwrap();
        });
        let (_, report) = ended(&app).await;
        let counts = (report.counts.tasks_failed, report.counts.tasks_cancelled);
        assert_eq!(counts, (1, 0), "{inner:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_most_tasks() {
    for inner in INNER {
        let layer = TaskGroupLayer::new().max_tasks(1);
        let sets = |group: &TaskGroup| group.set_max_tasks(3);
        let app = app(inner, layer, sets, |group: TaskGroup| async move {
            for _ in 0..3 {
                group.spawn_background(pending()).unwrap();
            }
            let refused = group.spawn_background(pending());
            assert!(refused.unwrap_err().is_full());
        });
        let (_, report) = ended(&app).await;
        assert_eq!(report.counts.tasks_cancelled, 3, "{inner:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_to_set_wins() {
    for inner in INNER {
        let layer = TaskGroupLayer::new().join_limit(Duration::from_secs(1));
        let sets = |group: &TaskGroup| {
            group.set_join_limit(Duration::from_secs(5));
            group.set_max_tasks(5);
        };
        let app = app(inner, layer, sets, |group: TaskGroup| async move {
            group.set_join_limit(Duration::from_secs(9));
            group.set_join_limit(Duration::from_secs(3));
            group.set_max_tasks(1);
            group.spawn(pending()).unwrap();
            assert!(group.spawn(pending()).unwrap_err().is_full());
        });
        let (took, _) = ended(&app).await;
        assert!(about(3, took), "{inner:?}: {took:?}");
    }
}

/// What is set for one response is nobody else's.
#[tokio::test(start_paused = true)]
async fn the_next_response_is_as_the_layers_say() {
    let layer = TaskGroupLayer::new().join_limit(Duration::from_secs(1));
    let first = from_fn(|request: Request, next: Next| async move {
        if request.uri().path() == "/first" {
            let group = TaskGroup::of(&request).unwrap();
            group.set_join_limit(Duration::from_secs(5));
        }
        next.run(request).await
    });
    let handler = |group: TaskGroup| async move { group.spawn(pending()).unwrap() };
    let routes = Router::new().fallback(handler).layer(layer).layer(first);
    let service = routes.layer(Stack::new().join_limit(Duration::from_secs(60)));
    for (path, seconds) in [("/first", 5), ("/next", 1), ("/first", 5), ("/next", 1)] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let start = Instant::now();
        let response = service.clone().oneshot(request).await.unwrap();
        within(drain(response.into_body())).await;
        let took = start.elapsed();
        assert!(about(seconds, took), "{path}: {took:?}");
    }
}
