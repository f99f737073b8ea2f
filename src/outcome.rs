//! How a body ended, as values.

use std::{fmt, sync::Arc, time::Duration};

use http::{Method, StatusCode, Uri};

use crate::error::Cause;

/// How a response ended: the first cause wins.
///
/// A body with a scope of its own ([`TaskGroupBody`](crate::TaskGroupBody) and others) that fails decides for
/// the response it is the body of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The whole body was handed to the server, or none was due. Not "received by the client", and
    /// not "the request succeeded": see [`Ending::succeeded`].
    Complete,
    /// The body ended with fewer bytes than its length promised.
    Truncated,
    /// The service, the body, a task or a closer returned an error, or the body gave more than it
    /// promised.
    Failed,
    /// The handler, the body, a task or a closer panicked.
    Panicked,
    /// The server stopped asking for frames for longer than the stall time-out.
    Stalled,
    /// The server was shutting down and ended the body.
    Shutdown,
    /// The application cancelled the scope, or dropped its hold.
    Cancelled,
    /// The client is known to have gone before the end: its connection ended, or its upload broke off.
    ///
    /// Known with a [`net::Peer`](crate::net::Peer) in the request's extensions, or under
    /// [`drain_request`](crate::scope::ScopeLayer::drain_request); without them a leave is `Dropped`.
    /// See [what detection depends on](crate::disconnect#what-detection-depends-on).
    Disconnected,
    /// Dropped before its end for a reason unknown to us: mostly the client left (always so where the
    /// connection is not watched, and where only an HTTP/2 stream was reset), or an outer layer (a
    /// time-out, a hedge) gave up.
    Dropped,
}

impl Outcome {
    /// The only natural end: everything else stops tasks and fires the tokens.
    pub fn is_complete(self) -> bool {
        self == Outcome::Complete
    }

    /// The name as written in the variant, for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Complete => "Complete",
            Outcome::Truncated => "Truncated",
            Outcome::Failed => "Failed",
            Outcome::Panicked => "Panicked",
            Outcome::Stalled => "Stalled",
            Outcome::Shutdown => "Shutdown",
            Outcome::Cancelled => "Cancelled",
            Outcome::Disconnected => "Disconnected",
            Outcome::Dropped => "Dropped",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a closer is told: how the response ended. Cheap to clone.
#[derive(Clone)]
pub struct Ending {
    inner: Arc<EndingParts>,
}

/// The parts an [`Ending`] is made of; the scope fills them in.
#[derive(Clone)]
pub(crate) struct EndingParts {
    pub(crate) outcome: Outcome,
    pub(crate) method: Method,
    pub(crate) status: Option<StatusCode>,
    pub(crate) client_gone: bool,
    pub(crate) cause: Option<Cause>,
    pub(crate) succeeded: bool,
}

/// The default rule for [`Ending::succeeded`].
pub(crate) fn succeeded(outcome: Outcome, status: Option<StatusCode>) -> bool {
    // No final status (RFC 9110, 15.2): over HTTP/1 hyper answers 500 in its place.
    let interim =
        |status: StatusCode| status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS;
    let fine = |status: StatusCode| status.as_u16() < 400 && !interim(status);
    outcome.is_complete() && status.is_none_or(fine)
}

impl Ending {
    pub(crate) fn new(parts: EndingParts) -> Self {
        Self {
            inner: Arc::new(parts),
        }
    }

    /// How the body ended.
    pub fn outcome(&self) -> Outcome {
        self.inner.outcome
    }

    /// The request's method.
    pub fn method(&self) -> &Method {
        &self.inner.method
    }

    /// The response's status: the handler's, or that of the answer in its place (500, or 503 at a shutdown).
    ///
    /// `None` if the handler gave no response and nobody is answered: the client has gone, or the server has
    /// dropped the request.
    pub fn status(&self) -> Option<StatusCode> {
        self.inner.status
    }

    /// Whether the client had gone when the end started or while the end was held back.
    ///
    /// What is known of it: on a [watched connection](crate::disconnect#what-detection-depends-on) and under
    /// [`drain_request`](crate::scope::ScopeLayer::drain_request). Always so if the outcome is
    /// [`Disconnected`](Outcome::Disconnected), and for work that went on
    /// [detached](crate::disconnect::OnLeave).
    ///
    /// A leave may pass unseen without a watched connection, on HTTP/2, whose connections stay, with
    /// [`half_close`](crate::net::Peer::half_close), and with a `Peer` that was taken from its stream by hand,
    /// where TLS may stand between. There, a body dropped before its end, other than by a
    /// drain, was left by its client; or an outer layer gave it up. A handler dropped before it answered
    /// says nothing.
    pub fn client_gone(&self) -> bool {
        self.inner.client_gone
    }

    /// The first failure, if the outcome has one. The body's error has
    /// [all of them](crate::BodyError::causes), and so has the report.
    pub fn cause(&self) -> Option<&Cause> {
        self.inner.cause.as_ref()
    }

    /// What commit-or-rollback code branches on: complete, a status below 400, no failed gRPC call. An
    /// interim status but 101 is none to answer with: hyper makes a 500 of it (HTTP/1).
    ///
    /// A response to HEAD is complete although its body was never polled: code that commits what a
    /// body has done asks that too (axum's `get` answers HEAD).
    ///
    /// A gRPC call fails with status 200: a `grpc-status` other than 0, in trailers or in the head, is no
    /// success either. (gRPC-Web has its trailers in the body, where they are not seen.)
    ///
    /// False once any task or closer has failed, and when the handler under the owner was dropped
    /// or panicked although someone else answered for it. A layer can set another rule for outcome,
    /// status and `grpc-status` with
    /// [`ScopeLayer::succeeded_when`](crate::scope::ScopeLayer::succeeded_when).
    pub fn succeeded(&self) -> bool {
        self.inner.succeeded
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ending")
            .field("outcome", &self.inner.outcome)
            .field("method", &self.inner.method)
            .field("status", &self.inner.status)
            .field("client_gone", &self.inner.client_gone)
            .field("cause", &self.inner.cause)
            .field("succeeded", &self.inner.succeeded)
            .finish()
    }
}

/// The account of one response: what hooks, `tracing`, `metrics` and `close` are given.
///
/// Durations are `None` where nobody asked for a clock: a layer reads it only with an `on_end`
/// hook, a supervisor of its own or that of `net::serve`, or the `tracing` or `metrics` feature.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndReport {
    /// The scope's number under its supervisor.
    pub id: u64,
    /// The request's method.
    pub method: Method,
    /// The request's target.
    pub uri: Uri,
    /// How it ended; `client_gone`, status and cause are in here.
    pub ending: Ending,
    /// Body bytes handed to the server (before any compression further out), and those that a body gave which
    /// went on without its client. The last ones count once the teardown has settled that they are shown.
    pub bytes: u64,
    /// Data frames handed to the server.
    pub frames: u64,
    /// From the call to the first data frame.
    pub first_frame: Option<Duration>,
    /// From the call to the start of the end.
    pub duration: Option<Duration>,
    /// From the start of the end to this report.
    pub teardown: Option<Duration>,
    /// Closers and tasks of this scope and its children, counted.
    pub counts: Counts,
    /// Every failure of the service, the body, tasks and closers, in the order they were seen.
    ///
    /// Children's included, but for those of a cloned request's lost attempts, which have reports of
    /// their own.
    pub errors: Vec<Cause>,
    /// What overran its limit and could not be stopped, by name and place.
    pub stuck: Vec<String>,
}

impl EndReport {
    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        self.ending.outcome()
    }

    /// The response's status, if there was one; see [`Ending::status`].
    pub fn status(&self) -> Option<StatusCode> {
        self.ending.status()
    }
}

/// What ran in a scope, by how it came out. Sums over children too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Closers that ran to their end, failed ones included.
    pub closers_run: u64,
    /// Closers that returned an error, panicked, overran their limit or got no bridge thread.
    pub closers_failed: u64,
    /// Closers that did not run, or not to their end: the runtime was gone, a
    /// [`close_now`](crate::cleanup::Key::close_now) was dropped, or there was no bridge thread.
    pub closers_unrun: u64,
    /// Tasks that finished by themselves, failed ones included.
    pub tasks_joined: u64,
    /// Tasks that returned an error.
    pub tasks_failed: u64,
    /// Tasks that were cancelled by their scope.
    pub tasks_cancelled: u64,
    /// Tasks that panicked; of the bridge's local ones those that nobody awaited.
    pub tasks_panicked: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.closers_run += other.closers_run;
        self.closers_failed += other.closers_failed;
        self.closers_unrun += other.closers_unrun;
        self.tasks_joined += other.tasks_joined;
        self.tasks_failed += other.tasks_failed;
        self.tasks_cancelled += other.tasks_cancelled;
        self.tasks_panicked += other.tasks_panicked;
    }
}
