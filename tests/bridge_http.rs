//! Blocking middleware and handlers on the request's bridge.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, Request},
    response::{IntoResponse as _, Response},
    routing::get,
};
use bodyguard::bridge::{
    Bridge, BridgeError, BridgeErrorKind as Kind, BridgeLayer, Context, Cx, Next, NextError, Pool,
    from_fn_sync, sync_handler,
};
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::{runtime::Handle, sync::oneshot};
use tower::ServiceExt as _;

#[path = "support/waits.rs"]
mod waits;
use waits::within;

type Seen = Arc<Mutex<Vec<(thread::ThreadId, tokio::runtime::Id)>>>;
type AxumNext = Next<Body, Body, Infallible>;
type AxumResult = Result<Response, NextError<Infallible>>;

fn here() -> (thread::ThreadId, tokio::runtime::Id) {
    (thread::current().id(), Handle::current().id())
}

fn pool(threads: usize) -> Pool {
    Pool::builder()
        .max_threads(threads)
        .wait_limit(Duration::from_millis(50))
        .build()
}

fn request(path: &str) -> Request {
    Request::builder().uri(path).body(Body::empty()).unwrap()
}

async fn get_text(app: Router, path: &str) -> (StatusCode, String) {
    let response = within(app.oneshot(request(path))).await.unwrap();
    let status = response.status();
    let bytes = within(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn middleware_handler_closer_and_body_share_thread_and_loop() {
    let seen = Seen::default();
    let (by_middleware, by_handler) = (Arc::clone(&seen), Arc::clone(&seen));
    let (closed, has_closed) = mpsc::channel();
    let middleware = move |cx: &Cx, mut request: Request, next: AxumNext| -> AxumResult {
        by_middleware.lock().unwrap().push(here());
        request.extensions_mut().insert(7_u32);
        let (by_closer, closed) = (Arc::clone(&by_middleware), closed.clone());
        cx.defer(move |cx| {
            by_closer
                .lock()
                .unwrap()
                .extend([here(), cx.block_on(async { here() }).unwrap()]);
            closed.send(()).unwrap();
        })?;
        let mut response = next.run(cx, request)?;
        by_middleware
            .lock()
            .unwrap()
            .push(cx.block_on(async { here() })?);
        response
            .headers_mut()
            .insert("x-sync", "yes".parse().unwrap());
        Ok(response)
    };
    // An async handler in the middle: its calls run on top of the middleware that waits for it.
    let handler = move |bridge: Bridge, Extension(n): Extension<u32>| async move {
        let (by_call, by_body) = (Arc::clone(&by_handler), by_handler);
        bridge
            .call(move |_| by_call.lock().unwrap().push(here()))
            .await
            .unwrap();
        bridge
            .body_writer(move |out| {
                by_body.lock().unwrap().push(here());
                write!(out, "{n}")
            })
            .into_response()
    };
    let pool = pool(1);
    let app = Router::new()
        .route("/", get(handler))
        .layer(from_fn_sync(middleware))
        .layer(BridgeLayer::new().pool(&pool));
    let (status, text) = get_text(app, "/").await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "7"));
    within(tokio::task::spawn_blocking(move || {
        has_closed.recv().unwrap()
    }))
    .await
    .unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 6);
    assert!(seen.iter().all(|at| *at == seen[0]), "{seen:?}");
    assert_ne!(seen[0], here());
}

#[tokio::test]
async fn what_the_inner_service_spawns_outlives_the_request() {
    let (spawned, task) = oneshot::channel();
    let spawned = Arc::new(Mutex::new(Some(spawned)));
    let handler = move || async move {
        let task = Handle::current().spawn(async { 5 });
        spawned
            .lock()
            .unwrap()
            .take()
            .unwrap()
            .send((task, here()))
            .unwrap();
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(from_fn_sync(
            |cx: &Cx, request: Request, next: AxumNext| -> AxumResult { next.run(cx, request) },
        ))
        .layer(BridgeLayer::new().pool(&pool(1)));
    get_text(app, "/").await;
    let (task, at) = within(task).await.unwrap();
    assert_eq!(at.1, Handle::current().id());
    assert_eq!(within(task).await.unwrap(), 5);
}

#[tokio::test]
async fn blocking_middleware_may_answer_by_itself_or_fail() {
    let middleware = |cx: &Cx, request: Request, next: AxumNext| -> AxumResult {
        match request.uri().path() {
            "/own" => Ok("own answer".into_response()),
            "/panic" => panic!("middleware"),
            "/inside" => {
                let error = cx.block_on(async { cx.block_on(async {}) })?.unwrap_err();
                Err(error.into())
            }
            _ => next.run(cx, request),
        }
    };
    let app = Router::new()
        .fallback(|| async { "inner" })
        .layer(from_fn_sync(middleware))
        .layer(BridgeLayer::new().pool(&pool(1)));
    assert_eq!(
        get_text(app.clone(), "/").await,
        (StatusCode::OK, "inner".into())
    );
    assert_eq!(
        get_text(app.clone(), "/own").await,
        (StatusCode::OK, "own answer".into())
    );
    for (path, kind) in [("/panic", Kind::Panicked), ("/inside", Kind::InsideLoop)] {
        let response = within(app.clone().oneshot(request(path))).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            response.extensions().get::<BridgeError>().unwrap().kind(),
            kind
        );
    }
}

#[tokio::test]
async fn the_inner_services_own_error_passes_through() {
    let inner = tower::service_fn(|_: http::Request<String>| async {
        Err::<http::Response<String>, _>(std::io::Error::other("inner"))
    });
    let layer = from_fn_sync(
        |cx: &Cx, request, next: Next<String, String, std::io::Error>| next.run(cx, request),
    );
    let service = tower::ServiceBuilder::new()
        .layer(BridgeLayer::new().pool(&pool(1)))
        .layer(layer)
        .service(inner);
    let request = http::Request::new(String::new());
    let error = within(service.oneshot(request)).await.unwrap_err();
    assert_eq!(error.to_string(), "inner");
}

/// Bodies of scope layers further in have an empty default, for the answer to an error.
#[tokio::test]
async fn a_scope_layer_may_stand_inside_of_it() {
    let inner = tower::service_fn(|_: http::Request<String>| async {
        Ok::<_, Infallible>(http::Response::new("inner".to_owned()))
    });
    let service = tower::ServiceBuilder::new()
        .layer(from_fn_sync(|cx: &Cx, request, next: Next<_, _, _>| {
            next.run(cx, request)
        }))
        .layer(bodyguard::CleanupLayer::new())
        .service(inner);
    let request = http::Request::new(String::new());
    let missing = within(service.clone().oneshot(request.clone()))
        .await
        .unwrap();
    assert_eq!(missing.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let empty = within(missing.into_body().collect()).await.unwrap();
    assert!(empty.to_bytes().is_empty());
    let layer = BridgeLayer::new().pool(&pool(1));
    let service = tower_layer::Layer::layer(&layer, service);
    let response = within(service.oneshot(request)).await.unwrap();
    let whole = within(response.into_body().collect()).await.unwrap();
    assert_eq!(whole.to_bytes(), "inner");
}

#[tokio::test]
async fn a_dropped_request_interrupts_its_blocking_middleware() {
    let (told, was_told) = mpsc::channel();
    let (dropped, was_dropped) = mpsc::channel::<()>();
    let dropped = Arc::new(Mutex::new(Some(dropped)));
    let layer = from_fn_sync(
        move |cx: &Cx, request: Request, next: AxumNext| -> AxumResult {
            let result = next.run(cx, request);
            told.send(result.as_ref().err().map(|error| format!("{error:?}")))
                .unwrap();
            result
        },
    );
    let (started, is_started) = oneshot::channel();
    let started = Arc::new(Mutex::new(Some(started)));
    let app = Router::new()
        .fallback(move || async move {
            let _held = dropped.lock().unwrap().take();
            started.lock().unwrap().take().unwrap().send(()).unwrap();
            std::future::pending::<()>().await
        })
        .layer(layer)
        .layer(BridgeLayer::new().pool(&pool(1)));
    let mut response = Box::pin(app.oneshot(request("/")));
    within(async {
        tokio::select! {
            _ = &mut response => panic!("answered"),
            started = is_started => started.unwrap(),
        }
    })
    .await;
    drop(response);
    let told = tokio::task::spawn_blocking(move || {
        assert!(was_dropped.recv().is_err(), "the handler is dropped");
        was_told.recv().unwrap()
    });
    let error = within(told).await.unwrap().unwrap();
    assert!(
        error.contains("Ended") || error.contains("Cancelled"),
        "{error}"
    );
}

#[tokio::test]
async fn blocking_handlers_take_extractors() {
    fn handler(cx: &Cx, (Path(n), Extension(more)): (Path<u32>, Extension<u32>)) -> String {
        format!("{}", cx.block_on(async { n + more }).unwrap())
    }
    let pool = pool(1);
    let app = Router::new()
        .route("/{n}", get(sync_handler(handler)))
        .route("/", get(sync_handler(|_: &Cx| "no extractor")))
        .layer(Extension(40_u32))
        .layer(BridgeLayer::new().pool(&pool));
    assert_eq!(
        get_text(app.clone(), "/2").await,
        (StatusCode::OK, "42".into())
    );
    assert_eq!(
        get_text(app.clone(), "/no").await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(get_text(app.clone(), "/").await.1, "no extractor");
    // Every thread taken: told to come back.
    let holder = Context::new(pool);
    within(holder.bridge().call(|_| ())).await.unwrap();
    assert_eq!(
        get_text(app, "/2").await,
        (StatusCode::SERVICE_UNAVAILABLE, String::new())
    );
}

#[tokio::test]
async fn blocking_handlers_without_extractors() {
    fn plain(cx: &Cx) -> String {
        cx.block_on(async { "plain".to_owned() }).unwrap()
    }
    let app = Router::new()
        .route("/fn", get(sync_handler(plain)))
        .route("/closure", get(sync_handler(|_: &Cx| "closure")))
        .route("/unit", get(sync_handler(|_: &Cx, ()| "unit")))
        .layer(BridgeLayer::new().pool(&pool(1)));
    for (path, text) in [("/fn", "plain"), ("/closure", "closure"), ("/unit", "unit")] {
        let answer = get_text(app.clone(), path).await;
        assert_eq!(answer, (StatusCode::OK, text.into()));
    }
    let app = Router::new().route("/", get(sync_handler(plain)));
    let (status, text) = get_text(app, "/").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.contains("`BridgeLayer`"), "{text}");
}

#[tokio::test]
async fn without_a_bridge_both_say_so() {
    let app = Router::new().route("/", get(sync_handler(|_: &Cx, ()| "never")));
    let response = within(app.clone().oneshot(request("/"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let error = response.extensions().get::<BridgeError>().unwrap().clone();
    assert_eq!(error.kind(), Kind::Missing);
    assert_eq!(get_text(app, "/").await.1, error.to_string());
    let app = Router::new()
        .fallback(|| async { "never" })
        .layer(from_fn_sync(
            |cx: &Cx, request: Request, next: AxumNext| -> AxumResult { next.run(cx, request) },
        ));
    let response = within(app.oneshot(request("/"))).await.unwrap();
    assert_eq!(
        response.extensions().get::<BridgeError>().unwrap().kind(),
        Kind::Missing
    );
}

fn passes_on(cx: &Cx, request: Request, next: AxumNext) -> AxumResult {
    next.run(cx, request)
}

/// What layers of ours read before the head has room, although nobody reads on until the middleware is done.
#[tokio::test]
async fn compression_inside_blocking_middleware() {
    let handler = |bridge: Bridge| async move {
        let body =
            bridge.body_writer(|out| (0..6_000).try_for_each(|_| out.write_all(b"0123456789")));
        let response = Response::builder().header("content-length", 60_000);
        let response = response.header("content-type", "text/plain");
        response.body(Body::new(body.buffer(16))).unwrap()
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(bodyguard::CompressionLayer::new())
        .layer(from_fn_sync(passes_on))
        .layer(BridgeLayer::new());
    for _ in 0..30 {
        let mut request = request("/");
        let gzip = "gzip".parse().unwrap();
        request.headers_mut().insert("accept-encoding", gzip);
        let response = within(app.clone().oneshot(request)).await.unwrap();
        assert_eq!(response.headers()["content-encoding"], "gzip");
        let body = within(response.into_body().collect()).await.unwrap();
        let mut text = String::new();
        let bytes = body.to_bytes();
        let mut decoder = flate2::read::GzDecoder::new(&bytes[..]);
        std::io::Read::read_to_string(&mut decoder, &mut text).unwrap();
        assert!(text == "0123456789".repeat(6_000), "{} bytes", text.len());
    }
}

/// A handler that looks at its first frame: the code behind that waits for a reader, who comes behind the
/// head, which waits for that code.
#[tokio::test]
async fn a_body_read_before_its_head_inside_blocking_middleware() {
    for (bytes, fits) in [(60_000, true), (6_000_000, false)] {
        let handler = move |bridge: Bridge| async move {
            let mut body = bridge.body_writer(move |out| {
                (0..bytes / 10).try_for_each(|_| out.write_all(b"0123456789"))
            });
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            let rest = body.map_frame(|frame| frame);
            ([("x-first", first.len().to_string())], Body::new(rest)).into_response()
        };
        let app = Router::new()
            .route("/", get(handler))
            .layer(from_fn_sync(passes_on))
            .layer(BridgeLayer::new().pool(&pool(1)));
        let response = within(app.oneshot(request("/"))).await.unwrap();
        let first: usize = response.headers()["x-first"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        let read = within(response.into_body().collect()).await;
        match read {
            Ok(rest) => assert_eq!((fits, first + rest.to_bytes().len()), (true, bytes)),
            Err(error) => {
                assert!(!fits, "{error}");
                let text = format!("{error:#}");
                assert!(text.contains("outside of the middleware"), "{text}");
            }
        }
    }
}
