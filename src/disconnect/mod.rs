//! Know that the client has gone, or that the server is shutting down.
//!
//! ```
//! use axum::{Router, routing::get};
//! use bodyguard::{Disconnect, DisconnectLayer};
//!
//! async fn search(disconnect: Disconnect) -> String {
//!     let found = tokio::task::spawn_blocking(move || {
//!         (0..1_000).take_while(|_| !disconnect.is_gone()).count()
//!     });
//!     found.await.unwrap_or_default().to_string()
//! }
//!
//! let app: Router = Router::new()
//!     .route("/search", get(search))
//!     .layer(DisconnectLayer::new().on_end(|report| println!("{}", report.outcome())));
//! ```
//!
//! # Who is told, and who just ends
//! When the client leaves, the handler's own future, its body and the plain tasks of its group are
//! dropped where they stand: a `select!` on [`Disconnect::gone`] in them never takes that branch. They
//! need not be told; what is to be undone is a closer's ([`Cleanup::defer`](crate::Cleanup::defer)).
//!
//! | where the work is | it learns of the end by |
//! |---|---|
//! | the handler, its body, [`TaskGroup::spawn`](crate::TaskGroup::spawn) | being dropped; closers run after it |
//! | [`TaskGroup::spawn_graceful`](crate::TaskGroup::spawn_graceful), `spawn_blocking` | the token it was given |
//! | a thread, `tokio::task::spawn_blocking` | [`Disconnect::is_gone`] |
//! | a task of its own, spawned elsewhere | [`Disconnect::gone`], [`Disconnect::token`] |
//! | a handler that asked for [`OnLeave::Grace`] | [`Disconnect::gone`]: it runs on meanwhile |
//! | a handler that asked for [`OnLeave::Detach`] | not at all; its closers are told `client_gone` |
//!
//! So a long poll just waits:
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use axum::{Router, extract::State, http::StatusCode, routing::get};
//! use bodyguard::Stack;
//! use tokio::{sync::{Mutex, mpsc}, time::timeout};
//!
//! #[derive(Clone)]
//! struct Jobs(Arc<Mutex<mpsc::UnboundedReceiver<String>>>);
//!
//! async fn next_job(State(Jobs(queue)): State<Jobs>) -> Result<String, StatusCode> {
//!     // Dropped while it waits, if the client leaves: it has taken nothing then.
//!     let next = timeout(Duration::from_secs(30), async { queue.lock().await.recv().await });
//!     next.await.ok().flatten().ok_or(StatusCode::NO_CONTENT)
//! }
//!
//! # fn router(jobs: Jobs) -> Router {
//! Router::new()
//!     .route("/jobs/next", get(next_job))
//!     .layer(Stack::new())
//!     .with_state(jobs)
//! # }
//! ```
//!
//! What it has taken it answers with in the same breath, and no closer can tell that the client did not
//! get it: who has to know asks for an acknowledgement ([what a commit means](crate::cleanup)). A closer
//! gives back what a handler takes *before* it waits again.
//!
//! # What detection depends on
//! - **A watched connection**, that is a [`net::Peer`](crate::net::Peer) in the request's extensions:
//!   [`net::serve`](crate::net::serve) puts it there, and so does `axum::serve` on a
//!   [`net::WatchedListener`](crate::net::WatchedListener) *with*
//!   `.into_make_service_with_connect_info::<Peer>()`. Without one nothing is watched: what hyper notices
//!   is a drop ([`Outcome::Dropped`]), and what it does not notice goes on
//!   ([a table](crate::net)).
//! - **The client's write side**: one that shuts it down and goes on reading counts as gone, as TCP does
//!   not tell that from a close. Where such clients are served, allow it with
//!   [`half_close`](crate::net::WatchedListener::half_close).
//! - **Time**: a request is watched once it has been pending for 20 ms, so a leave is seen that much late
//!   at most.
//! - **The network**: a client that is out of reach sends nothing. On a silent connection TCP asks for it after
//!   60 s, and gives it up 60 s later ([`tcp_keepalive`](crate::net::WatchedListener::tcp_keepalive)); while a
//!   stream goes on, it does so after some 15 minutes, or what
//!   [`tcp_user_timeout`](crate::net::WatchedListener::tcp_user_timeout) says.
//! - **The request body**: behind an upload larger than the socket buffers that nobody reads, a client's
//!   close does not arrive. Long polls by POST, and handlers that ignore their body, want
//!   [`drain_request`](crate::scope::ScopeLayer::drain_request).
//! - **HTTP/2**: a client that resets its stream keeps its connection, so that its leave is `Dropped`;
//!   only the end of the connection is `Disconnected`. [`Ending::client_gone`](crate::Ending::client_gone)
//!   is true in both if the body was under way.
//! - **Proxies**: the client is the proxy. nginx closes its upstream connection when the browser leaves
//!   (`proxy_ignore_client_abort off`, the default), and also when it has read nothing for
//!   `proxy_read_timeout` (60 s): that looks like a client that left. Quiet streams need keep-alives.

mod body;

use std::{error::Error, fmt, sync::Arc};

use http::Request;
use tokio_util::sync::CancellationToken;

use crate::{
    Outcome,
    scope::{Fixed, Hold, MissingLayer, Scope, ScopeLayer, Sealed, Standalone, View},
};

pub use crate::scope::OnLeave;
pub use body::DisconnectBody;

/// The layer that gives handlers [`Disconnect`].
///
/// What it takes to see a client leave is in the [module](self): without a watched connection nothing but
/// the server's drop of the response is seen, and each leave is [`Outcome::Dropped`].
///
/// `M` is its mode: [`Movable`](crate::scope::Movable) once it is armed.
pub type DisconnectLayer<M = Fixed> = ScopeLayer<Disconnect, M>;

/// Tells how the response of this request fares. Cheap to clone.
///
/// **On drop**: nothing happens; it only watches.
#[derive(Clone)]
pub struct Disconnect {
    scope: Arc<Scope>,
}

impl Disconnect {
    /// The watch of this request, for services without extractors.
    ///
    /// # Errors
    /// [`MissingLayer`] without a [`DisconnectLayer`] or [`Stack`](crate::Stack) around.
    pub fn of<B>(request: &Request<B>) -> Result<Self, MissingLayer> {
        Self::from_extensions(request.extensions())
    }

    /// Waits until the response's end starts; tasks and closers come after it.
    ///
    /// A `Complete` may still turn into `Failed` or `Panicked` in the teardown.
    ///
    /// **On drop**: cancel-safe; nothing is left behind.
    pub async fn ended(&self) -> Outcome {
        self.scope.ended().await
    }

    /// Waits for any end but a natural one: the client left, shutdown, cancel, failure.
    ///
    /// Never ready after a natural end. For work that the end does not stop by itself: graceful tasks,
    /// tasks spawned elsewhere, and handlers under [`OnLeave::Grace`]. The handler's own future and plain
    /// tasks of its group are dropped in place of being told, so that there no `select!` comes to this
    /// branch: what they have to undo is a closer's ([`Cleanup::defer`](crate::Cleanup::defer)). See the
    /// [module](self).
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, http::StatusCode, routing::post};
    /// use bodyguard::{Disconnect, DisconnectLayer, disconnect::{NotDetachable, OnLeave}};
    ///
    /// # async fn render() -> String { String::new() }
    /// # async fn save_draft() {}
    /// async fn report(disconnect: Disconnect) -> Result<(StatusCode, String), NotDetachable> {
    ///     disconnect.on_leave(OnLeave::Grace(Duration::from_secs(2)))?;
    ///     tokio::select! {
    ///         whole = render() => Ok((StatusCode::OK, whole)),
    ///         () = disconnect.gone() => {
    ///             save_draft().await;
    ///             Ok((StatusCode::SERVICE_UNAVAILABLE, String::new())) // For nobody.
    ///         }
    ///     }
    /// }
    ///
    /// let app: Router = Router::new()
    ///     .route("/report", post(report))
    ///     .layer(DisconnectLayer::new().detachable(Duration::from_secs(10)));
    /// ```
    ///
    /// **On drop**: cancel-safe; nothing is left behind.
    pub async fn gone(&self) {
        self.scope.gone().await;
    }

    /// Whether an end other than a natural one has started: for loops in synchronous code.
    pub fn is_gone(&self) -> bool {
        self.scope.is_gone()
    }

    /// A token that fires with [`Disconnect::gone`], for the same kinds of work.
    ///
    /// It is a child: cancelling it cancels nobody else.
    pub fn token(&self) -> CancellationToken {
        self.scope.gone_token()
    }

    /// A token that fires when the supervisor begins to drain, before any end.
    ///
    /// For producers that want to say goodbye by themselves.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.scope.supervisor().shutdown_token()
    }

    /// Ends the response as `Cancelled`: tokens fire, tasks are cancelled, the body fails.
    ///
    /// Does nothing once the end has started.
    pub fn cancel(&self) {
        self.scope.interrupt(Outcome::Cancelled, None);
    }

    /// Says what is to happen to this handler, and its body, when its client leaves.
    ///
    /// The last word counts. Closers then see the outcome of the work, with
    /// [`Ending::client_gone`](crate::Ending::client_gone) set; work that overruns the layer's limit is
    /// dropped where it stands, and ends as it would have without this.
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, routing::post};
    /// use bodyguard::{Disconnect, DisconnectLayer, disconnect::{NotDetachable, OnLeave}};
    ///
    /// async fn generate(disconnect: Disconnect) -> Result<String, NotDetachable> {
    ///     disconnect.on_leave(OnLeave::Detach)?;
    ///     Ok("finished and billed, whether anyone reads it or not".into())
    /// }
    ///
    /// let app: Router = Router::new()
    ///     .route("/generate", post(generate))
    ///     .layer(DisconnectLayer::new().detachable(Duration::from_secs(120)));
    /// ```
    ///
    /// Behind the end of its response it changes nothing.
    ///
    /// # Errors
    /// [`NotDetachable`] if no layer around is armed for it.
    pub fn on_leave(&self, then: OnLeave) -> Result<(), NotDetachable> {
        let armed = self.scope.set_on_leave(then);
        if armed {
            Ok(())
        } else {
            Err(NotDetachable(()))
        }
    }

    /// Keeps the scope open past its body. See [`Hold`].
    pub fn hold(&self) -> Hold {
        Hold::on(&self.scope)
    }
}

/// A handler wanted to outlive its client, and no layer lets it.
///
/// With the `axum` feature it answers 500, and its text names what to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDetachable(());

impl fmt::Display for NotDetachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "`Disconnect::on_leave` needs an armed layer around this handler: add \
             `.detachable(limit)` to its `DisconnectLayer` or `Stack`",
        )
    }
}

impl Error for NotDetachable {}

impl Sealed for Disconnect {
    const BITS: u8 = 4;
    const VIEW: &'static str = "Disconnect";
    const LAYER: &'static str = "DisconnectLayer";

    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn through(scope: Arc<Scope>) -> Self {
        Self { scope }
    }
}

impl Standalone for Disconnect {
    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }
}

impl fmt::Debug for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disconnect")
            .field("scope", &self.scope)
            .finish()
    }
}
