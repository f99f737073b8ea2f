//! What crosses threads with a response: views, keys, reports, bodies.

use bodyguard::{
    BodyError, Cause, Cleanup, CleanupLayer, CloseError, Closing, Counts, Disconnect,
    DisconnectLayer, DrainReport, EndReport, Ending, Failure, Hold, LiveScope, MissingLayer,
    Outcome, Phase, Shutdown, Stack, Supervisor, TaskGroup, TaskGroupBody, TaskGroupLayer,
    cleanup::{CleanupBody, Key},
    disconnect::{DisconnectBody, NotDetachable},
    scope::{
        Movable, MovableBody, MovableFuture, RequestBody, ScopeBody, ScopeFuture, ScopeService,
    },
    task_group::{GroupBody, Sources, SpawnError},
};
use bytes::Bytes;
use http_body_util::Full;

fn both<T: Send + Sync + Unpin + 'static>() {}

fn send<T: Send + 'static>() {}

#[test]
fn views_and_what_they_give_are_send_and_sync() {
    both::<Cleanup>();
    both::<Key>();
    both::<TaskGroup>();
    both::<SpawnError<()>>();
    both::<Disconnect>();
    both::<NotDetachable>();
    both::<MissingLayer>();
    both::<Hold>();
}

#[test]
fn layers_and_the_supervisor_are_send_and_sync() {
    both::<CleanupLayer>();
    both::<TaskGroupLayer>();
    both::<DisconnectLayer<Movable>>();
    both::<Stack>();
    both::<Shutdown>();
    both::<ScopeService<(), Cleanup>>();
    both::<Supervisor>();
    both::<LiveScope>();
    both::<Phase>();
    both::<DrainReport>();
}

#[test]
fn endings_reports_and_errors_are_send_and_sync() {
    both::<Outcome>();
    both::<Ending>();
    both::<EndReport>();
    both::<Counts>();
    both::<BodyError>();
    both::<Cause>();
    both::<Failure>();
    both::<CloseError>();
}

/// Send is what servers ask of them; not Sync, as the futures in them need not be.
#[test]
fn bodies_and_futures_are_send() {
    type Inner = Full<Bytes>;
    send::<ScopeBody<Inner>>();
    send::<MovableBody>();
    send::<GroupBody>();
    send::<TaskGroupBody>();
    send::<CleanupBody<Inner>>();
    send::<DisconnectBody<ScopeBody<Inner>>>();
    send::<DisconnectBody<MovableBody>>();
    send::<RequestBody<Inner>>();
    send::<Closing<Inner>>();
    send::<ScopeFuture<std::future::Ready<()>, ()>>();
    send::<MovableFuture<Inner, ()>>();
    send::<Sources>();
}
