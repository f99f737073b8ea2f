//! No reference cycle: nothing of a request is left once it has ended, in any mode, however it ended.

use std::sync::Weak;

use bodyguard::{Shutdown, Supervisor, TaskGroup, testing::Script};
use http::Response;
use tower::{BoxError as Any, Layer, service_fn, util::BoxCloneSyncService};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Fixed,
    Movable,
    Supervised,
    /// The handler's scope is the child of one that was cloned.
    Child,
    /// A hold outlives the body, and is dropped unfinished.
    Held,
    /// The response's extensions, with the handle that `close` takes, outlive the body.
    Kept,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Complete,
    Dropped,
    Failed,
    Shutdown,
}

type Boxed = BoxCloneSyncService<http::Request<()>, Response<Body>, Any>;

/// What the request's target is kept in, for as long as anybody keeps it: the scope does.
struct Target(Arc<()>);

impl AsRef<[u8]> for Target {
    fn as_ref(&self) -> &[u8] {
        let Self(_kept) = self;
        b"/?held"
    }
}

struct Kept {
    values: Vec<Weak<()>>,
    hold: Option<bodyguard::Hold>,
}

fn value(kept: &Mutex<Kept>) -> Arc<()> {
    let value = Arc::new(());
    kept.lock().unwrap().values.push(Arc::downgrade(&value));
    value
}

/// Registers closers and a task with a value each, which also hold the views they came from.
fn handler(mode: Mode, end: End, kept: &Arc<Mutex<Kept>>) -> Boxed {
    let kept = kept.clone();
    BoxCloneSyncService::new(service_fn(move |request: http::Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        let group = TaskGroup::of(&request).unwrap();
        let (own, view) = (value(&kept), cleanup.clone());
        cleanup.defer(move |_| async move {
            drop((own, view));
            Ok(())
        });
        let (own, view) = (value(&kept), cleanup.clone());
        cleanup.defer_sync(move |_| drop((own, view)));
        let (own, view) = (value(&kept), group.clone());
        let task = async move {
            let _held = (own, view);
            std::future::pending().await
        };
        group.spawn_background(task).unwrap();
        if mode == Mode::Held {
            kept.lock().unwrap().hold = Some(cleanup.hold());
        }
        let body = Script::new().data("a");
        let body = match end {
            End::Complete => body,
            End::Dropped | End::Shutdown => body.hang(),
            End::Failed => body.error("lost"),
        };
        std::future::ready(Ok::<_, Any>(Response::new(Body::new(body))))
    }))
}

fn layered(mode: Mode, stack: Stack, handler: Boxed) -> Boxed {
    let boxed = |response: Response<_>| response.map(Body::new);
    if mode == Mode::Movable {
        let movable = stack
            .stall_timeout(Duration::from_secs(3600))
            .layer(handler);
        return BoxCloneSyncService::new(movable.map_response(|response| response.map(Body::new)));
    }
    BoxCloneSyncService::new(stack.layer(handler).map_response(boxed))
}

async fn freed(mode: Mode, end: End) {
    let case = format!("{mode:?}, {end:?}");
    let supervisor = Supervisor::new();
    let kept = Arc::new(Mutex::new(Kept {
        values: Vec::new(),
        hold: None,
    }));
    let mut stack = Stack::new().shutdown(Shutdown::end_now());
    if mode == Mode::Supervised || end == End::Shutdown {
        stack = stack.supervisor(&supervisor);
    }
    let mut service = layered(mode, stack.clone(), handler(mode, end, &kept));
    if mode == Mode::Child {
        let inner = service;
        let cloning = service_fn(move |request: http::Request<()>| {
            let copy = request.clone();
            drop(request);
            inner.clone().oneshot(copy)
        });
        service = layered(mode, stack, BoxCloneSyncService::new(cloning));
    }
    let target = Arc::new(());
    let scope = Arc::downgrade(&target);
    let mut request = http::Request::new(());
    let uri = Bytes::from_owner(Target(target));
    *request.uri_mut() = http::Uri::from_maybe_shared(uri).unwrap();
    let (mut parts, mut body) = soon(service.oneshot(request)).await.unwrap().into_parts();
    assert_eq!(kept.lock().unwrap().values.len(), 3, "{case}");
    assert!(
        kept.lock()
            .unwrap()
            .values
            .iter()
            .all(|value| value.upgrade().is_some()),
        "{case}"
    );
    assert!(
        scope.upgrade().is_some(),
        "{case}: the scope knows the target"
    );
    if mode != Mode::Kept {
        parts.extensions.clear();
    }
    soon(body.frame()).await.unwrap().unwrap();
    match end {
        End::Complete => drop(soon(body.collect()).await.unwrap()),
        End::Failed => drop(soon(body.collect()).await.unwrap_err()),
        End::Dropped => drop(body),
        End::Shutdown => {
            let drain = supervisor.drain(Duration::from_secs(20));
            let rest = async {
                let rest = body.collect().await;
                // With a hold, the drain waits for it.
                drop(kept.lock().unwrap().hold.take());
                rest
            };
            let (report, rest) = soon(async { tokio::join!(drain, rest) }).await;
            assert!(report.is_clean(), "{case}: {report}");
            assert!(rest.is_err(), "{case}");
        }
    }
    drop(kept.lock().unwrap().hold.take());
    let gone = || {
        kept.lock()
            .unwrap()
            .values
            .iter()
            .all(|value| value.upgrade().is_none())
    };
    if matches!(end, End::Complete | End::Failed) && mode != Mode::Held {
        assert!(gone(), "{case}: the client has seen the end");
    }
    until(gone).await;
    if mode == Mode::Kept {
        assert!(
            scope.upgrade().is_some(),
            "{case}: for who asks for the report"
        );
        drop(parts);
    }
    until(|| scope.upgrade().is_none()).await;
}

#[tokio::test]
async fn nothing_is_left_in_any_mode_after_any_end() {
    use {End::*, Mode::*};
    for mode in [Fixed, Movable, Supervised, Child, Held, Kept] {
        for end in [Complete, Dropped, Failed, Shutdown] {
            println!("{mode:?} {end:?}");
            freed(mode, end).await;
        }
    }
}
