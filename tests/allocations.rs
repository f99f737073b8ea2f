//! What the layers allocate for a request that uses none of them: counted, and held to.

use std::{
    alloc::System,
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    sync::Mutex,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bodyguard::{CleanupLayer, Stack, Supervisor};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test at a time: they share the counter.
static ALONE: Mutex<()> = Mutex::new(());

const FRAMES: usize = 1_000;

/// Frames without an allocation of their own.
struct Frames {
    left: usize,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Poll::Ready(None);
        };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"frame")))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// A request as a server makes it: with extensions in use, and a target that is shared.
fn request() -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(0_u8);
    request
}

/// Allocations of the call, and of the frames.
fn counted<S, B>(service: &mut S) -> (usize, usize)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body,
{
    let request = request();
    let mut cx = Context::from_waker(Waker::noop());
    let region = Region::new(ALLOCATOR);
    let mut answering = pin!(service.call(request));
    let Poll::Ready(response) = answering.as_mut().poll(&mut cx) else {
        panic!("a ready handler");
    };
    let Ok(response) = response;
    let call = region.change().allocations;
    let mut body = pin!(response.into_body());
    let region = Region::new(ALLOCATOR);
    let mut frames = 0;
    while let Poll::Ready(Some(Ok(_))) = body.as_mut().poll_frame(&mut cx) {
        frames += 1;
    }
    assert_eq!(frames, FRAMES);
    (call, region.change().allocations)
}

#[tokio::test]
async fn layers_that_are_on_and_unused() {
    let _alone = ALONE.lock().unwrap();
    let handler = || {
        service_fn(|_: Request<()>| async {
            let mut response = Response::new(Frames { left: FRAMES });
            let text = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(CONTENT_TYPE, text);
            Ok::<_, Infallible>(response)
        })
    };
    let mut bare = handler();
    let mut private = CleanupLayer::new().layer(handler());
    let supervisor = Supervisor::new();
    let mut shared = CleanupLayer::new().supervisor(&supervisor).layer(handler());
    let mut hooked = CleanupLayer::new().on_end(|_| {}).layer(handler());
    let mut stack = Stack::new().layer(handler());
    let mut bridge = bodyguard::BridgeLayer::new().layer(handler());
    let mut both = CleanupLayer::new().layer(bodyguard::BridgeLayer::new().layer(handler()));
    let mut three = CleanupLayer::new().layer(
        bodyguard::TaskGroupLayer::new().layer(bodyguard::DisconnectLayer::new().layer(handler())),
    );
    let inner = bodyguard::TaskGroupLayer::new().max_tasks(2);
    let mut options = CleanupLayer::new().layer(
        bodyguard::DisconnectLayer::new()
            .closer_limit(Duration::from_secs(9))
            .layer(inner.layer(handler())),
    );
    let mut lines = [("", (usize::MAX, usize::MAX)); 9];
    // The fewest of some rounds: what is made once for all requests is made in the first, and the
    // test harness allocates on its own thread now and then.
    for _ in 0..10 {
        let round = [
            ("bare service", counted(&mut bare)),
            ("CleanupLayer", counted(&mut private)),
            ("with a supervisor", counted(&mut shared)),
            ("with a hook", counted(&mut hooked)),
            ("BridgeLayer", counted(&mut bridge)),
            ("BridgeLayer inside", counted(&mut both)),
            ("three layers", counted(&mut three)),
            ("options inside", counted(&mut options)),
            ("Stack", counted(&mut stack)),
        ];
        for (line, (name, (call, body))) in lines.iter_mut().zip(round) {
            *line = (name, (line.1.0.min(call), line.1.1.min(body)));
        }
    }
    for (name, (call, body)) in &lines {
        println!("{name}: {call} to the head, {body} for {FRAMES} frames and the end");
    }
    let (bare_call, bare_body) = lines[0].1;
    for (name, (call, body)) in &lines[1..] {
        let more = call + body - bare_call - bare_body;
        assert!(more <= 4, "{name}: {more} more than the bare service");
    }
    // The bridge is paid for where it is used: here it is a layer like any other.
    let of = |name| lines.iter().find(|line| line.0 == name).unwrap().1;
    assert_eq!(of("BridgeLayer"), of("CleanupLayer"));
    assert_eq!(of("BridgeLayer inside"), of("CleanupLayer"));
    // What layers set is put together once.
    assert_eq!(of("options inside"), of("CleanupLayer"));
}

/// A response with nothing to close goes through `close` and `closing` at no cost.
#[tokio::test]
async fn closing_what_has_nothing_to_close() {
    let _alone = ALONE.lock().unwrap();
    let response = || Response::new(Frames { left: FRAMES });
    let mut fewest = [usize::MAX; 3];
    for _ in 0..10 {
        let mut cx = Context::from_waker(Waker::noop());
        let region = Region::new(ALLOCATOR);
        {
            let closed = pin!(bodyguard::close(response()));
            assert!(matches!(closed.poll(&mut cx), Poll::Ready(Ok(None))));
        }
        fewest[0] = fewest[0].min(region.change().allocations);

        let region = Region::new(ALLOCATOR);
        drop(bodyguard::closing(response()));
        fewest[1] = fewest[1].min(region.change().allocations);

        let region = Region::new(ALLOCATOR);
        {
            let mut guard = bodyguard::closing(response());
            assert!(matches!(
                Pin::new(&mut guard).poll_frame(&mut cx),
                Poll::Ready(Some(Ok(_)))
            ));
            let closed = pin!(guard.close());
            assert!(matches!(closed.poll(&mut cx), Poll::Ready(Ok(None))));
        }
        fewest[2] = fewest[2].min(region.change().allocations);
    }
    assert_eq!(
        fewest, [0; 3],
        "close, a guard dropped, a guard read and closed"
    );
}
