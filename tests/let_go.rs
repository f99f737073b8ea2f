//! What has ended keeps nothing: not its hooks, nor what was refused, though they hold its views.

use std::{convert::Infallible, sync::Arc};

use bodyguard::{
    Cleanup, Stack, TaskGroup, TaskGroupLayer, cleanup::CleanupBody, close, task_group::Sources,
};
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{Layer, ServiceExt, service_fn};

#[path = "support/waits.rs"]
mod waits;
use waits::eventually;

fn hello() -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

#[tokio::test]
async fn a_hook_that_holds_a_view_of_its_body() {
    for read in [true, false] {
        let held = Arc::new(());
        let weak = Arc::downgrade(&held);
        let body = CleanupBody::new(Full::<Bytes>::from("hello"));
        let view = body.cleanup().clone();
        let body = body.on_end(move |_| {
            let _kept = (&view, &held);
        });
        match read {
            true => drop(body.collect().await.unwrap()),
            false => drop(body),
        }
        eventually(|| weak.upgrade().is_none()).await;
    }
}

/// A task that spawns others, with `?`: the error has the future that was refused.
#[tokio::test]
async fn a_refused_task_that_holds_a_view_of_its_response() {
    let held = Arc::new(());
    let kept = held.clone();
    let service = TaskGroupLayer::new()
        .max_tasks(1)
        .layer(service_fn(|request: Request<()>| {
            let group = TaskGroup::of(&request).unwrap();
            let (theirs, held) = (group.clone(), kept.clone());
            let task = async move {
                let held = (theirs.clone(), held);
                theirs.spawn(async move {
                    let _held = held;
                    Ok(())
                })?;
                Ok(())
            };
            group.spawn(task).unwrap();
            std::future::ready(hello())
        }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    // It fails, and says why.
    let error = close(response).await.unwrap_err();
    let text = error.errors()[0].to_string();
    assert!(text.contains("max_tasks"), "{text}");
    drop(error);
    eventually(|| Arc::strong_count(&held) == 2).await;
}

#[tokio::test]
async fn a_task_refused_to_a_closer() {
    let held = Arc::new(());
    let kept = held.clone();
    let service = Stack::new().layer(service_fn(|request: Request<()>| {
        let group = TaskGroup::of(&request).unwrap();
        let held = (group.clone(), kept.clone());
        Cleanup::of(&request).unwrap().defer(|_| async move {
            group.spawn(async move {
                let _held = held;
                Ok(())
            })?;
            Ok(())
        });
        std::future::ready(hello())
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let _ = response.into_body().collect().await;
    eventually(|| Arc::strong_count(&held) == 2).await;
}

/// In the error of a body, and in that of a source that the others go on without.
#[tokio::test]
async fn a_task_refused_to_who_feeds_a_body() {
    for optional in [false, true] {
        let held = Arc::new(());
        let kept = held.clone();
        let layer = Stack::new().max_tasks(1);
        let service = layer.layer(service_fn(move |request: Request<()>| {
            let group = TaskGroup::of(&request).unwrap();
            group.spawn_background(std::future::pending()).unwrap();
            let held = (group.clone(), kept.clone());
            let refuses = {
                let group = group.clone();
                stream::once(async move {
                    let task = async move {
                        let _held = held;
                        Ok(())
                    };
                    Err::<Bytes, _>(group.spawn(task).unwrap_err())
                })
            };
            let body = match optional {
                true => {
                    let sources = Sources::new().optional("refuses", refuses);
                    let last = stream::iter([Ok::<_, Infallible>("last")]);
                    group.merge(sources.source("last", last)).boxed_unsync()
                }
                false => CleanupBody::new(StreamBody::new(refuses.map_ok(Frame::data)))
                    .defer(|_| async { Ok(()) })
                    .boxed_unsync(),
            };
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        let read = response.into_body().collect().await;
        assert_eq!(read.is_ok(), optional);
        // The error is at hand, and keeps nothing.
        eventually(|| Arc::strong_count(&held) == 1).await;
    }
}

/// It is given back to who asks.
#[tokio::test]
async fn a_refused_task_is_given_back() {
    let service =
        TaskGroupLayer::new()
            .max_tasks(1)
            .layer(service_fn(|request: Request<()>| async move {
                let group = TaskGroup::of(&request).unwrap();
                let (done, is_done) = tokio::sync::oneshot::channel::<()>();
                group
                    .spawn(async move {
                        let _ = is_done.await;
                        Ok(())
                    })
                    .unwrap();
                let refused = group.spawn(async { Ok(()) }).unwrap_err();
                assert!(refused.is_full());
                refused.into_inner().await.unwrap();
                drop(done);
                hello()
            }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    response.into_body().collect().await.unwrap();
}
