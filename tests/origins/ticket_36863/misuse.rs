//! `block_on` and calls where they cannot work: each its own error, none a hang.

use bodyguard::bridge::BridgeErrorKind as Kind;

use super::*;

/// Runs what must not block on a plain thread: on the only one of the runtime, nothing would ever
/// notice that it does.
async fn promptly<T: Send + 'static>(block: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = oneshot::channel();
    thread::spawn(move || drop(tell.send(block())));
    soon(told).await.expect("no panic")
}

fn kind<T: std::fmt::Debug>(result: Result<T, BridgeError>) -> Kind {
    result.unwrap_err().kind()
}

/// Runs `block` as async code on a runtime of its own.
fn in_a_runtime<T>(block: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(async { block() })
}

#[tokio::test]
async fn block_on_from_inside_the_loop() {
    let (app, _) = app(sync_handler(|cx: &Cx, ()| {
        let inside = cx.block_on(async { cx.block_on(async {}) }).unwrap();
        format!("{:?}", kind(inside))
    }));
    assert_eq!(text(ask(&app).await).await, "InsideLoop");
}

#[tokio::test]
async fn block_on_from_a_foreign_thread() {
    let (app, _) = app(|bridge: Bridge| async move {
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (plain, pooled, of_runtime) = (bridge.clone(), bridge.clone(), bridge.clone());
            kinds.push(promptly(move || kind(plain.block_on(async {}))).await);
            let blocking = move || kind(pooled.block_on(async {}));
            kinds.push(tokio::task::spawn_blocking(blocking).await.unwrap());
            // A worker of a runtime, as handlers run on: one that can be left behind.
            kinds
                .push(promptly(|| in_a_runtime(move || kind(of_runtime.block_on(async {})))).await);
            bridge.call(|_| ()).await.unwrap();
        }
        format!("{kinds:?}")
    });
    let expected = format!("{:?}", [Kind::ForeignThread; 6]);
    assert_eq!(text(ask(&app).await).await, expected);
}

#[tokio::test]
async fn everything_after_the_end() {
    for used in [false, true] {
        let (keep, kept) = mpsc::channel();
        let (app, pool) = app(move |bridge: Bridge| {
            let keep = keep.clone();
            async move {
                if used {
                    bridge.call(|_| ()).await.unwrap();
                }
                keep.send(bridge).unwrap();
                "done"
            }
        });
        text(ask(&app).await).await;
        let bridge = kept.recv().unwrap();
        assert!(bridge.is_ended());
        let after = bridge.clone();
        let blocked = promptly(move || kind(after.block_on(async {}))).await;
        assert_eq!(blocked, Kind::Ended);
        let after = bridge.clone();
        let blocked = promptly(|| in_a_runtime(move || kind(after.block_on(async {})))).await;
        assert_eq!(blocked, Kind::Ended);
        assert_eq!(kind(soon(bridge.call(|_| ())).await), Kind::Ended);
        assert_eq!(kind(soon(bridge.run(|| async {})).await), Kind::Ended);
        assert_eq!(
            kind(soon(bridge.spawn_local(|| async {})).await),
            Kind::Ended
        );
        assert_eq!(kind(bridge.defer(|_| ())), Kind::Ended);
        assert_eq!(pool.threads(), usize::from(used));
    }
}

#[tokio::test]
async fn a_wait_that_the_end_interrupts() {
    let (told, error) = mpsc::channel();
    let (started, has_started) = oneshot::channel();
    let mut ways = Some((told, started));
    let ways = Mutex::new(ways.take());
    let ways = Arc::new(ways);
    let (app, pool) = app(move |bridge: Bridge| {
        let ways = Arc::clone(&ways);
        async move {
            let (told, started) = ways.lock().unwrap().take().unwrap();
            // Nobody awaits it: it is the end of the request that reaches it.
            let waits = Handle::current().spawn(bridge.call(move |cx| {
                started.send(()).unwrap();
                let waited = cx.block_on(std::future::pending::<()>());
                told.send(kind(waited)).unwrap();
            }));
            waits.await.unwrap().unwrap();
        }
    });
    let mut response = Box::pin(app.oneshot(request()));
    soon(async {
        tokio::select! {
            _ = &mut response => panic!("answered"),
            started = has_started => started.unwrap(),
        }
    })
    .await;
    drop(response);
    until(|| pool.idle() == 1).await;
    assert_eq!(error.try_recv().unwrap(), Kind::Ended);
}

#[tokio::test]
async fn an_exhausted_pool() {
    let pool = Pool::builder()
        .max_threads(1)
        .wait_limit(Duration::from_millis(20))
        .build();
    let handler = |bridge: Bridge| async move {
        match bridge.call(|_| ()).await {
            Ok(()) => Body::from_stream(tokio_stream::pending::<Result<Bytes, Infallible>>()),
            Err(error) => Body::from(format!("{:?}", error.kind())),
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(BridgeLayer::new().pool(&pool));
    let holder = ask(&app).await;
    assert_eq!(text(ask(&app).await).await, "Exhausted");
    drop(holder);
    until(|| pool.idle() == 1).await;
}

#[tokio::test]
async fn sync_in_async_in_sync_up_to_the_depth_and_no_deeper() {
    fn dive(bridge: Bridge, level: usize) -> Result<usize, BridgeError> {
        let inner = bridge.clone();
        let next = bridge.block_on(async move {
            let again = inner.clone();
            inner.call(move |_| dive(again, level + 1)).await
        })?;
        match next {
            Ok(deeper) => deeper,
            Err(error) if error.kind() == Kind::TooDeep => Ok(level),
            Err(error) => Err(error),
        }
    }
    let pool = Pool::builder().max_depth(6).build();
    let handler = sync_handler(|cx: &Cx, ()| dive(cx.bridge(), 1).unwrap().to_string());
    let app = Router::new()
        .route("/", get(handler))
        .layer(BridgeLayer::new().pool(&pool));
    assert_eq!(text(ask(&app).await).await, "6");
}

#[tokio::test]
async fn without_the_layer_it_is_named() {
    let app: Router = Router::new()
        .route("/", get(|_: Bridge| async {}))
        .layer(bodyguard::CleanupLayer::new());
    let response = ask(&app).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(
        text(response)
            .await
            .contains("no `BridgeLayer` around this handler")
    );
    let app: Router = Router::new().route("/", get(sync_handler(|_: &Cx, ()| "never")));
    let response = ask(&app).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let error = response.extensions().get::<BridgeError>().unwrap();
    assert_eq!(error.kind(), Kind::Missing);
}
