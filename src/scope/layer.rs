//! The layer of every view: they differ in a type parameter only.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use http::StatusCode;
use tower_layer::Layer;

use super::{
    options::{Choice, FailurePolicy, Options, Shutdown},
    service::ScopeService,
    stall::Watchdog,
    upload::DrainRequest,
};
use crate::{
    outcome::{EndReport, Outcome},
    supervisor::Supervisor,
};

/// Gives every response an owner, and its handler the view `V`.
///
/// The first scope layer that a request meets opens the scope; those further in join it, so the
/// order of layers does not matter and teardown has one order. An option set on an inner layer wins
/// over an outer one, and what a handler or middleware sets for its response (with
/// [`TaskGroup::set_join_limit`](crate::TaskGroup::set_join_limit), for instance) over any layer's; `on_end`
/// hooks add up; the outermost layer's supervisor is everyone's. An inner layer with options keeps them merged
/// with those of the first layer that it met further out, hooks included, as long as it exists: no request
/// pays for that.
///
/// Known by the names of its views: [`CleanupLayer`](crate::CleanupLayer),
/// [`TaskGroupLayer`](crate::TaskGroupLayer), [`DisconnectLayer`](crate::DisconnectLayer),
/// `BridgeLayer`.
///
/// `M` is its mode: [`Fixed`], or [`Movable`] once it is armed with
/// [`stall_timeout`](Self::stall_timeout) or [`detachable`](Self::detachable). Arming is a matter of
/// types, and so not of a condition at run time; but an axum `Router` is of one type around either:
///
/// ```
/// # use std::time::Duration;
/// # use axum::Router;
/// use bodyguard::{DisconnectLayer, scope::Movable};
///
/// fn guard(app: Router, armed: Option<DisconnectLayer<Movable>>) -> Router {
///     match armed {
///         Some(armed) => app.layer(armed),
///         None => app.layer(DisconnectLayer::new()),
///     }
/// }
/// # guard(Router::new(), Some(DisconnectLayer::new().stall_timeout(Duration::from_secs(60))));
/// ```
///
/// (`tower::util::option_layer` wants the same response body with and without: box it in the option.)
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct ScopeLayer<V, M = Fixed> {
    pub(super) options: Arc<Options>,
    marks: PhantomData<fn() -> (V, M)>,
}

/// Where the owners of a layer's responses stand. Sealed.
pub trait Mode: sealed::Mode {}

/// The mode of a layer that is not armed: owners stand in place, without a box.
#[derive(Debug)]
pub enum Fixed {}

/// The mode of an armed layer: owners can be taken from a server that does not poll them.
///
/// It costs a box for the response future, two allocations for the body, and a lock per frame. Handlers
/// and bodies must be `Send + 'static`.
#[derive(Debug)]
pub enum Movable {}

impl Mode for Fixed {}
impl Mode for Movable {}

mod sealed {
    #[allow(unnameable_types, reason = "sealed: it is not to be named outside")]
    pub trait Mode {
        const MOVABLE: bool;
    }

    impl Mode for super::Fixed {
        const MOVABLE: bool = false;
    }

    impl Mode for super::Movable {
        const MOVABLE: bool = true;
    }
}

impl<V> ScopeLayer<V> {
    /// The layer with its defaults, under the supervisor of the server, if it has one.
    pub fn new() -> Self {
        Self {
            options: Arc::default(),
            marks: PhantomData,
        }
    }
}

impl<V, M> ScopeLayer<V, M> {
    /// Enters the scopes that this layer opens with `supervisor`, for snapshots and the drain.
    ///
    /// A layer further in opens none, and its supervisor is not asked: give it to the outermost, or to
    /// all.
    pub fn supervisor(self, supervisor: &Supervisor) -> Self {
        self.with(|options| {
            options.supervisor = supervisor.clone();
            options.clock = true;
        })
    }

    /// How long one closer may take before it is aborted (30 s).
    pub fn closer_limit(self, limit: Duration) -> Self {
        self.with(|options| options.closer_limit = Some(limit))
    }

    /// How long tasks are waited for at a natural end (30 s); then they are cancelled, and the
    /// response fails. Also how long aborted tasks are waited for, and, over HTTP/2, a body that has given all
    /// of its `Content-Length` and stays open: then it is dropped, and the response is whole.
    pub fn join_limit(self, limit: Duration) -> Self {
        self.with(|options| options.join_limit = Choice::Layer(limit))
    }

    /// How long cancelled graceful tasks have before they are aborted (1 s).
    pub fn cancel_grace(self, grace: Duration) -> Self {
        self.with(|options| options.cancel_grace = Choice::Layer(grace))
    }

    /// How long an error waits behind the last frame (10 ms).
    ///
    /// hyper throws away what it has buffered when a body fails at once: without the gap the frames
    /// sent just before a failure are lost. Compression outside of the layer waits 10 ms of its own behind
    /// what it had yet to send.
    ///
    /// On HTTP/2 the gap begins when the client's window has taken all of the frame of `on_failure`, or all that
    /// compression had yet to send. Without either, what was sent before begins it as soon as the server asks on,
    /// and a client whose window opens later than the gap loses what did not fit: take a gap longer than a round
    /// trip if that matters.
    ///
    /// On a connection of HTTP/1 that is watched ([`net::serve`](crate::net::serve), `WatchedListener`) both wait on
    /// while a write is held up by a client that reads slowly, as long as it takes something every 5 s: not in a
    /// shutdown, behind a stall, or with a gap of zero. Elsewhere a client that is slower than the gap loses what
    /// hyper had buffered (up to 400 KB), and sees a broken response in any case.
    pub fn error_gap(self, gap: Duration) -> Self {
        self.with(|options| options.error_gap = Some(gap))
    }

    /// What a failing task does to its siblings (`CancelSiblings`).
    pub fn failure_policy(self, policy: FailurePolicy) -> Self {
        self.with(|options| options.failure_policy = Choice::Layer(policy))
    }

    /// How many tasks of a response may run at once (no limit).
    ///
    /// Counted are tasks spawned under this layer, not the producers of
    /// [`body`](crate::TaskGroup::body) and the sources of [`merge`](crate::TaskGroup::merge). One more is
    /// refused ([`SpawnError::is_full`](crate::task_group::SpawnError::is_full)), or waits in
    /// [`spawn_when_free`](crate::TaskGroup::spawn_when_free).
    pub fn max_tasks(self, max: usize) -> Self {
        self.with(|options| options.max_tasks = Choice::Layer(max))
    }

    /// What a draining supervisor does to these responses (`Shutdown::finish()`).
    pub fn shutdown(self, policy: Shutdown) -> Self {
        self.with(|options| options.shutdown = Some(Arc::new(policy)))
    }

    /// Another rule for [`Ending::succeeded`](crate::Ending::succeeded) than complete with a final status below 400.
    ///
    /// It decides in place of that: a `grpc-status`, which it is not shown, counts no more.
    /// A failed task or closer, or a lost handler, makes it false whatever the rule says. The rule
    /// is asked while the scope is locked: it must only look at its arguments.
    ///
    /// A panic of the rule is no success, and a failure in the report. A closer that is told so before
    /// the client sees the end breaks the body, as one that fails: the outcome is then `Panicked`. With
    /// no closer to tell, the outcome stays.
    pub fn succeeded_when(
        self,
        rule: impl Fn(Outcome, Option<StatusCode>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with(|options| options.succeeded_when = Some(Arc::new(rule)))
    }

    /// Is given the report of every response, after its teardown.
    ///
    /// It runs where the teardown ended, once per response; it should not block. Its panic is
    /// contained. Times run from the call of the outermost layer that has a hook or a supervisor; under
    /// `net::serve` of the outermost.
    pub fn on_end(self, hook: impl Fn(&EndReport) + Send + Sync + 'static) -> Self {
        self.with(|options| {
            options.clock = true;
            options.on_end.push(Arc::new(hook));
        })
    }

    /// Ends a response as [`Stalled`](Outcome::Stalled) once its server has asked for nothing this long
    /// (off unless it is set).
    ///
    /// For clients that stop reading and stay connected, which without it hold what the response holds for as
    /// long as they like: 30 to 60 s is a value for downloads. Counted from when the server stops asking: it
    /// takes some hundred KB first, and the sockets' buffers megabytes. The inner body is dropped,
    /// tasks are cancelled and closers run although the server still holds the response; its next
    /// poll fails. With a watched connection ([`net::Peer`](crate::net::Peer)) over HTTP/1 the socket is
    /// closed too. Over HTTP/2 the client hears of it when its window opens; streams that share a full
    /// connection window stall together.
    ///
    /// A slow reader is left alone as long as the server's buffers empty within the time-out: socket
    /// buffers empty in large steps, so do not set it in seconds for readers of a few KB a second. A limit for
    /// the whole of a response is a `tokio::time::timeout` in its producer.
    ///
    /// It works under an encoder, too, that has asked for more than its server takes. A stream that is idle is
    /// asked for a frame once in half a time-out, to see whether its server is there.
    ///
    /// Armed inside a layer that is not, it ends the response of both. A body that was never asked for a
    /// frame is not watched. One task per layer looks after all of
    /// them, while there are any: a stall is noticed up to a quarter of the time-out late, and never
    /// more than half a second.
    pub fn stall_timeout(self, timeout: Duration) -> ScopeLayer<V, Movable> {
        let armed = self.with(|options| options.stall = Some(Arc::new(Watchdog::new(timeout))));
        armed.into_mode()
    }

    /// Lets handlers choose to run on, for at most `limit`, when their client has left (off unless it is set).
    ///
    /// Changes nothing by itself: a handler asks for it with
    /// [`Disconnect::on_leave`](crate::Disconnect::on_leave). Whoever drops the response before
    /// its end counts as the client, an outer time-out too: put layers that should still stop the
    /// work *inside* this one. Armed inside another scope layer that is not, the work has a scope of its
    /// own: the outer layer's hooks hear that the client left, and its own hooks how the work ended.
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, http::StatusCode, routing::post};
    /// use bodyguard::DisconnectLayer;
    /// use tower_http::timeout::TimeoutLayer;
    ///
    /// # async fn generate() {}
    /// let app: Router = Router::new()
    ///     .route("/generate", post(generate))
    ///     // Inside: after a minute the work is stopped, whether the client is there or not.
    ///     .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(60)))
    ///     // Outside: what a client leaves behind runs on if it asked to, up to two minutes.
    ///     .layer(DisconnectLayer::new().detachable(Duration::from_secs(120)));
    ///     // A time-out out here would only stop the waiting for it.
    /// ```
    pub fn detachable(self, limit: Duration) -> ScopeLayer<V, Movable> {
        let armed = self.with(|options| options.detachable = Some(limit));
        armed.into_mode()
    }

    /// Reads request bodies away that the handler drops unread, up to `bytes`, and notices aborted
    /// uploads (off unless it is set).
    ///
    /// A client's close stands behind the bytes it has sent: behind an upload that nobody reads,
    /// neither the server nor a watched connection comes to it. The rest is read while the response
    /// is under way, without a task. A client that breaks its request off, read or unread, has
    /// gone: the response ends as [`Disconnected`](Outcome::Disconnected), whatever the handler makes of the
    /// error, or goes on if detached. One that may half-close, and sends less than it promised, is answered.
    /// `0` reads nothing away, and notices aborts of uploads that are being read.
    ///
    /// An upload that waits to be asked for (`Expect: 100-continue`) is not, unless the handler has begun
    /// to read it. One that the handler holds without reading is left to it. Without the feature `net` only
    /// resets of the connection are told apart from other errors of a request body.
    ///
    /// Handlers get another type of request body (axum's take any), so this is the last of a
    /// layer's options:
    ///
    /// ```
    /// # use axum::{Router, routing::post};
    /// # use bodyguard::DisconnectLayer;
    /// let app: Router = Router::new()
    ///     .route("/generate", post(|| async { "does not look at what was sent" }))
    ///     .layer(DisconnectLayer::new().drain_request(1 << 20));
    /// ```
    ///
    /// A handler that is no extractor's names it, a [`RequestBody`](super::RequestBody):
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use http::{Request, Response};
    /// # use http_body_util::Empty;
    /// # use hyper::body::{Bytes, Incoming};
    /// use bodyguard::{Disconnect, DisconnectLayer, scope::RequestBody};
    /// use tower::{Layer, service_fn};
    ///
    /// # type Body = Empty<Bytes>;
    /// async fn generate(request: Request<RequestBody<Incoming>>) -> Result<Response<Body>, Infallible> {
    ///     let disconnect = Disconnect::of(&request).expect("the layer is there");
    ///     # drop(disconnect);
    ///     Ok(Response::new(Body::default()))
    /// }
    ///
    /// let service = DisconnectLayer::new().drain_request(1 << 20).layer(service_fn(generate));
    /// # fn is_service<S: tower::Service<Request<Incoming>>>(_: S) {}
    /// # is_service(service);
    /// ```
    pub fn drain_request(self, bytes: u64) -> DrainRequest<Self> {
        DrainRequest::new(self, bytes)
    }

    fn into_mode<N>(self) -> ScopeLayer<V, N> {
        ScopeLayer {
            options: self.options,
            marks: PhantomData,
        }
    }

    /// What the annex of these scopes is set up with.
    #[cfg_attr(
        not(feature = "bridge"),
        allow(dead_code, reason = "for the one view that has an annex")
    )]
    pub(crate) fn annex_settings(self, settings: impl std::any::Any + Send + Sync) -> Self {
        self.with(|options| options.annex = Some(Arc::new(settings)))
    }

    fn with(mut self, set: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::clone(&self.options);
        set(&mut options);
        self.options = Arc::new(options);
        self
    }
}

impl<V> Default for ScopeLayer<V> {
    fn default() -> Self {
        Self::new()
    }
}

// By hand: `V` and `M` are phantoms and need not be `Clone`.
impl<V, M> Clone for ScopeLayer<V, M> {
    fn clone(&self) -> Self {
        Self {
            options: self.options.clone(),
            marks: PhantomData,
        }
    }
}

impl<V, M> fmt::Debug for ScopeLayer<V, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeLayer")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<S, V, M> Layer<S> for ScopeLayer<V, M> {
    type Service = ScopeService<S, V, M>;

    fn layer(&self, inner: S) -> Self::Service {
        ScopeService::new(inner, self.clone())
    }
}
