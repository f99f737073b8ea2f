//! Every body wrapper of the crate keeps to the rules of bodies, through every exit.

use std::{convert::Infallible, time::Duration};

use bodyguard::{
    Cleanup, CleanupLayer, CompressionLayer, DisconnectLayer, Stack, TaskGroupBody,
    cleanup::CleanupBody,
    closing,
    compression::Flush,
    disconnect::DisconnectBody,
    testing::{Script, conformance, conformance_of_content},
};
use futures_util::FutureExt;
use http::{Request, Response, Version};
use http_body::Body;
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxService};

type Handler = BoxService<Request<()>, Response<Script>, Infallible>;

/// The body a layer makes of a script, with `prepare` run in the handler.
fn through<L, B>(layer: &L, script: Script, prepare: fn(&Request<()>)) -> B
where
    L: Layer<Handler>,
    L::Service: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    through_version(Version::HTTP_2, layer, script, prepare)
}

fn through_version<L, B>(
    version: Version,
    layer: &L,
    script: Script,
    prepare: fn(&Request<()>),
) -> B
where
    L: Layer<Handler>,
    L::Service: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let mut script = Some(script);
    let handler = BoxService::new(service_fn(move |request: Request<()>| {
        prepare(&request);
        let response = Response::builder().header("content-type", "text/plain");
        std::future::ready(Ok(response.body(script.take().unwrap()).unwrap()))
    }));
    let request = Request::builder()
        .version(version)
        .header("accept-encoding", "gzip");
    let response = layer
        .layer(handler)
        .oneshot(request.body(()).unwrap())
        .now_or_never();
    response.expect("nothing to wait for").unwrap().into_body()
}

fn nothing(_: &Request<()>) {}

/// Registers a closer once the head has gone, so that the body is the one to hold its end back.
fn later(request: &Request<()>) {
    let cleanup = Cleanup::of(request).unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "ends with the runtime of its test"
    )]
    tokio::spawn(async move {
        cleanup.defer(|_| async {
            tokio::task::yield_now().await;
            Ok(())
        });
    });
}

const RUNS: usize = 25;

#[tokio::test(start_paused = true)]
async fn scope_body_with_nothing_registered() {
    let layer = CleanupLayer::new();
    assert!(conformance_of_content(|script| through(&layer, script, nothing)).await > RUNS);
}

#[tokio::test(start_paused = true)]
async fn scope_body_with_a_late_closer() {
    let layer = CleanupLayer::new();
    assert!(conformance_of_content(|script| through(&layer, script, later)).await > RUNS);
}

/// The server polls no further than the promised length, so trailers behind it are lost either way.
#[tokio::test(start_paused = true)]
async fn scope_body_over_http_1() {
    let layer = CleanupLayer::new();
    let wrap = |script| through_version(Version::HTTP_11, &layer, script, later);
    assert!(conformance(wrap).await > RUNS);
}

#[tokio::test(start_paused = true)]
async fn scope_bodies_of_joined_layers() {
    let layer = (CleanupLayer::new(), DisconnectLayer::new());
    assert!(conformance_of_content(|script| through(&layer, script, later)).await > RUNS);
}

#[tokio::test(start_paused = true)]
async fn cleanup_body_with_and_without_closers() {
    assert!(conformance_of_content(CleanupBody::new).await > RUNS);
    let with_closers = |script| {
        CleanupBody::new(script)
            .defer(|_| async {
                tokio::task::yield_now().await;
                Ok(())
            })
            .defer_sync(|_| {})
    };
    assert!(conformance_of_content(with_closers).await > RUNS);
}

/// Also where armed layers are outside, inside and around each other.
#[tokio::test(start_paused = true)]
async fn movable_bodies() {
    let hour = Duration::from_secs(3_600);
    let armed = DisconnectLayer::new().stall_timeout(hour).detachable(hour);
    let of = conformance_of_content(|script| through(&armed, script, nothing));
    assert!(of.await > RUNS);
    let layer = (armed.clone(), CleanupLayer::new());
    assert!(conformance_of_content(|script| through(&layer, script, later)).await > RUNS);
    let layer = (CleanupLayer::new(), armed.clone());
    assert!(conformance_of_content(|script| through(&layer, script, later)).await > RUNS);
    let layer = (armed.clone(), armed);
    let of = conformance_of_content(|script| through(&layer, script, nothing));
    assert!(of.await > RUNS);
}

#[tokio::test(start_paused = true)]
async fn disconnect_bodies() {
    assert!(conformance_of_content(DisconnectBody::new).await > RUNS);
    let hour = Duration::from_secs(3_600);
    let armed = |script| DisconnectBody::new(script).stall_timeout(hour);
    assert!(conformance_of_content(armed).await > RUNS);
}

#[tokio::test(start_paused = true)]
async fn a_guarded_response() {
    let guarded = |script| closing(Response::new(CleanupBody::new(script)));
    assert!(conformance_of_content(guarded).await > RUNS);
}

#[tokio::test(start_paused = true)]
async fn compression_body() {
    for flush in [Flush::WhenIdle, Flush::EveryFrame, Flush::Never] {
        let layer = CompressionLayer::new().flush(flush);
        assert!(conformance(|script| through(&layer, script, nothing)).await > RUNS);
    }
}

#[tokio::test(start_paused = true)]
async fn the_stack() {
    let layer = Stack::new();
    assert!(conformance(|script| through(&layer, script, nothing)).await > RUNS);
    assert!(conformance(|script| through(&layer, script, later)).await > RUNS);
}

#[tokio::test(start_paused = true)]
async fn boxed_bodies_around_and_between() {
    let boxed = |script: Script| axum::body::Body::new(CleanupBody::new(script.boxed()));
    assert!(conformance_of_content(boxed).await > RUNS);
}

/// The checks find what they are for.
#[tokio::test(start_paused = true)]
#[should_panic(expected = "does not stay there")]
async fn a_wrapper_that_polls_past_the_end_is_found() {
    conformance(PollsOn).await;
}

#[pin_project::pin_project]
struct PollsOn(#[pin] Script);

impl Body for PollsOn {
    type Data = bytes::Bytes;
    type Error = bodyguard::testing::ScriptError;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        self.project().0.poll_frame(cx)
    }
}

/// A later poll, which nobody asked for, finds what comes next.
#[tokio::test(start_paused = true)]
#[should_panic(expected = "it sleeps, and nobody wakes it")]
async fn a_wrapper_that_keeps_a_wake_to_itself_is_found() {
    conformance(|script| Deaf(CleanupBody::new(script))).await;
}

/// Hears no wake once all bytes are there.
#[pin_project::pin_project]
struct Deaf<B>(#[pin] B);

impl<B: Body> Body for Deaf<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let mut none = std::task::Context::from_waker(std::task::Waker::noop());
        let deaf = this.0.size_hint().exact() == Some(0);
        this.0.poll_frame(if deaf { &mut none } else { cx })
    }
}

/// How long the error of a body waits behind its frame.
async fn gap_of<B>(body: B) -> Duration
where
    B: Body<Error = bodyguard::BodyError>,
{
    let mut body = std::pin::pin!(body);
    body.frame().await.unwrap().unwrap();
    let start = tokio::time::Instant::now();
    assert!(body.frame().await.unwrap().is_err());
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn bodies_without_a_layer_set_the_gap_before_their_error() {
    const DEFAULT: Duration = Duration::from_millis(10);
    const GAP: Duration = Duration::from_secs(3);
    let script = || Script::new().data("a").error("disk");
    let group = || {
        TaskGroupBody::new(|_, tx| async move {
            tx.send("a").await?;
            Err("disk".into())
        })
    };
    let stall = Duration::from_secs(60);
    let gaps = [
        gap_of(CleanupBody::new(script())).await,
        gap_of(CleanupBody::new(script()).error_gap(GAP)).await,
        gap_of(DisconnectBody::new(script())).await,
        gap_of(DisconnectBody::new(script()).error_gap(GAP)).await,
        gap_of(DisconnectBody::new(script()).stall_timeout(stall)).await,
        gap_of(
            DisconnectBody::new(script())
                .stall_timeout(stall)
                .error_gap(GAP),
        )
        .await,
        gap_of(group()).await,
        gap_of(group().error_gap(GAP)).await,
    ];
    for (at, took) in gaps.into_iter().enumerate() {
        let gap = if at % 2 == 0 { DEFAULT } else { GAP };
        let late = gap + Duration::from_millis(5);
        assert!((gap..late).contains(&took), "{at}: {took:?}");
    }
}
