//! Panics that carry one more: what was thrown panics when it is dropped.

use std::{
    convert::Infallible,
    panic::panic_any,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bodyguard::{
    Cleanup, Outcome, Stack, Supervisor, TaskGroup, TaskGroupBody, close, testing::Script,
};
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

/// Thrown, and throws.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("in the drop of what was thrown");
    }
}

fn throw() {
    panic_any(PanicsOnDrop);
}

/// A hook's panic is its own: the others get the report, and the response is released.
#[tokio::test(start_paused = true)]
async fn hooks_that_panic() {
    let (supervisor, second) = (Supervisor::new(), Arc::new(AtomicUsize::new(0)));
    let seen = second.clone();
    let stack = Stack::new()
        .supervisor(&supervisor)
        .on_end(|_| throw())
        .on_end(move |_| {
            seen.fetch_add(1, SeqCst);
        });
    let service = stack.layer(service_fn(|request: Request<()>| {
        Cleanup::of(&request).unwrap().defer_sync(|_| ());
        std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!((second.load(SeqCst), supervisor.active()), (1, 0));
    let drained = supervisor.drain(Duration::from_secs(1)).await;
    assert!(drained.is_clean(), "{drained}");
}

#[tokio::test(start_paused = true)]
async fn closers_tasks_and_rules_that_panic() {
    let supervisor = Supervisor::new();
    let ran = Arc::new(Mutex::new(Vec::new()));
    let log = ran.clone();
    let stack = Stack::new().supervisor(&supervisor).succeeded_when(|_, _| {
        throw();
        true
    });
    let service = stack.layer(service_fn(move |request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        let seen = log.clone();
        cleanup.defer_sync(move |ending| {
            seen.lock()
                .unwrap()
                .push((ending.outcome(), ending.succeeded()));
        });
        cleanup.defer_sync(|_| throw());
        cleanup.defer(|_| {
            throw();
            async { Ok(()) }
        });
        cleanup.defer(|_| async {
            throw();
            Ok(())
        });
        let group = TaskGroup::of(&request).unwrap();
        let task = group.spawn(async {
            throw();
            Ok(())
        });
        assert!(task.is_ok());
        let body = Script::new().data("a").pending().data("b");
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    }));
    let mut response = service.oneshot(Request::new(())).await.unwrap();
    assert!(response.body_mut().collect().await.is_err());
    let error = close(response).await.unwrap_err();
    assert_eq!(error.errors().len(), 4);
    assert_eq!(*ran.lock().unwrap(), [(Outcome::Panicked, false)]);
    assert_eq!(supervisor.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn last_words_that_panic() {
    let body = TaskGroupBody::new(|_, _| async { Err("disk".into()) }).on_failure(|_| {
        throw();
        None
    });
    let error = body.collect().await.unwrap_err();
    assert_eq!(error.cause().to_string(), "disk");
}
