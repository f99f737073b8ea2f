//! A handler whose layer is missing is told which one to add.

use std::convert::Infallible;

use axum::{Router, body::Body, extract::FromRequestParts, routing::get};
use bodyguard::{
    Cleanup, CleanupLayer, Disconnect, DisconnectLayer, MissingLayer, Stack, TaskGroup,
    TaskGroupLayer,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt, service_fn};

type Answer = (StatusCode, String);

/// A handler that extracts `V`.
fn extracts<V>() -> Router
where
    V: FromRequestParts<(), Rejection = MissingLayer> + Send + 'static,
{
    Router::new().route("/", get(async |_: V| "here"))
}

async fn ask<B>(
    app: impl Service<Request<Body>, Response = Response<B>, Error = Infallible>,
) -> Answer
where
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn says(view: &str, layer: &str) -> Answer {
    let text = format!(
        "no `{layer}` around this handler, which uses `{view}`: add \
         `.layer(bodyguard::{layer}::new())` or `.layer(bodyguard::Stack::new())`"
    );
    (StatusCode::INTERNAL_SERVER_ERROR, text)
}

fn here() -> Answer {
    (StatusCode::OK, "here".to_owned())
}

#[tokio::test]
async fn an_extractor_without_any_layer_answers_500_and_names_its_own() {
    let cleanup = ask(extracts::<Cleanup>()).await;
    assert_eq!(cleanup, says("Cleanup", "CleanupLayer"));
    let group = ask(extracts::<TaskGroup>()).await;
    assert_eq!(group, says("TaskGroup", "TaskGroupLayer"));
    let disconnect = ask(extracts::<Disconnect>()).await;
    assert_eq!(disconnect, says("Disconnect", "DisconnectLayer"));
}

#[tokio::test]
async fn the_layer_of_another_view_is_not_enough() {
    let cleanup = extracts::<Cleanup>().layer(TaskGroupLayer::new());
    assert_eq!(ask(cleanup).await, says("Cleanup", "CleanupLayer"));
    let group = extracts::<TaskGroup>().layer(DisconnectLayer::new());
    assert_eq!(ask(group).await, says("TaskGroup", "TaskGroupLayer"));
    let disconnect = extracts::<Disconnect>().layer(CleanupLayer::new());
    assert_eq!(ask(disconnect).await, says("Disconnect", "DisconnectLayer"));
}

#[tokio::test]
async fn the_layer_it_names_or_the_stack_is_enough() {
    assert_eq!(
        ask(extracts::<Cleanup>().layer(CleanupLayer::new())).await,
        here()
    );
    assert_eq!(
        ask(extracts::<TaskGroup>().layer(TaskGroupLayer::new())).await,
        here()
    );
    assert_eq!(
        ask(extracts::<Disconnect>().layer(DisconnectLayer::new())).await,
        here()
    );
    assert_eq!(ask(extracts::<Cleanup>().layer(Stack::new())).await, here());
    assert_eq!(
        ask(extracts::<TaskGroup>().layer(Stack::new())).await,
        here()
    );
    assert_eq!(
        ask(extracts::<Disconnect>().layer(Stack::new())).await,
        here()
    );
}

#[cfg(feature = "net")]
#[tokio::test]
async fn a_peer_of_an_unwatched_connection_says_how_to_serve() {
    use bodyguard::net::Peer;

    let app = Router::new().route("/", get(async |_: Peer| "here"));
    let (status, text) = ask(app).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    for remedy in [
        "`bodyguard::net::serve`",
        "`bodyguard::net::WatchedListener`",
        "`.into_make_service_with_connect_info::<bodyguard::net::Peer>()`",
    ] {
        assert!(text.contains(remedy), "{text}");
    }
    let app = Router::new().route(
        "/",
        get(async |peer: Option<Peer>| peer.is_some().to_string()),
    );
    assert_eq!(ask(app).await, (StatusCode::OK, "false".to_owned()));
}

#[tokio::test]
async fn an_optional_extractor_does_without() {
    let app = Router::new().route(
        "/",
        get(async |cleanup: Option<Cleanup>, group: Option<TaskGroup>| {
            format!("{} {}", cleanup.is_some(), group.is_some())
        }),
    );
    let (_, without) = ask(app.clone()).await;
    assert_eq!(without, "false false");
    let (_, with) = ask(app.layer(CleanupLayer::new())).await;
    assert_eq!(with, "true false");
}

/// A plain tower service that asks by `of`, and answers with what it is told.
async fn plain(request: Request<Body>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let views = || -> Result<(), MissingLayer> {
        Disconnect::of(&request)?;
        TaskGroup::of(&request)?;
        Cleanup::of(&request)?;
        Ok(())
    };
    let (status, text) = match views() {
        Ok(()) => here(),
        Err(missing) => (StatusCode::INTERNAL_SERVER_ERROR, missing.to_string()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    Ok(response)
}

#[tokio::test]
async fn plain_tower_services_are_told_the_same() {
    let service = || service_fn(plain);
    assert_eq!(ask(service()).await, says("Disconnect", "DisconnectLayer"));
    let service = || DisconnectLayer::new().layer(service_fn(plain));
    assert_eq!(ask(service()).await, says("TaskGroup", "TaskGroupLayer"));
    let service = || TaskGroupLayer::new().layer(DisconnectLayer::new().layer(service_fn(plain)));
    assert_eq!(ask(service()).await, says("Cleanup", "CleanupLayer"));
    assert_eq!(ask(CleanupLayer::new().layer(service())).await, here());
    assert_eq!(ask(Stack::new().layer(service_fn(plain))).await, here());
}

/// Nobody has to map it: `?` does.
#[tokio::test]
async fn a_task_that_is_refused_is_a_503_that_says_why() {
    use bodyguard::task_group::SpawnError;
    type Task = std::future::Ready<bodyguard::TaskResult>;
    async fn handler(group: TaskGroup) -> Result<&'static str, SpawnError<Task>> {
        group.spawn(std::future::ready(Ok(())))?;
        Ok("spawned")
    }
    let app = |max| {
        let router = Router::new().route("/", get(handler));
        router.layer(TaskGroupLayer::new().max_tasks(max))
    };
    assert_eq!(ask(app(1)).await, (StatusCode::OK, "spawned".to_owned()));
    let text = "task refused: as many run as `max_tasks` allows; `spawn_when_free` waits";
    let refused = (StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
    assert_eq!(ask(app(0)).await, refused);
}
