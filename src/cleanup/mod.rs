//! Async cleanup that runs exactly once when a response ends, however it ends.
//!
//! ```
//! use std::sync::Arc;
//! use axum::{Router, http::StatusCode, routing::get};
//! use bodyguard::{BoxError, Cleanup, Stack, TaskGroup, task_group::GroupBody};
//! use tokio::sync::Mutex;
//! # struct Transaction(u32);
//! # impl Transaction {
//! #     async fn begin() -> Result<Self, BoxError> { Ok(Self(0)) }
//! #     async fn next_row(&mut self) -> Result<Option<String>, BoxError> {
//! #         self.0 += 1;
//! #         Ok((self.0 < 3).then(|| format!("{}\n", self.0)))
//! #     }
//! #     async fn commit(self) -> Result<(), std::io::Error> { Ok(()) }
//! #     async fn rollback(self) -> Result<(), std::io::Error> { Ok(()) }
//! # }
//!
//! async fn export(group: TaskGroup, cleanup: Cleanup) -> Result<GroupBody, StatusCode> {
//!     let begun = Transaction::begin().await;
//!     let transaction = begun.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
//!     // The producer reads through it, the closer takes it. Tasks have ended before closers run.
//!     let shared = Arc::new(Mutex::new(Some(transaction)));
//!     let closing = shared.clone();
//!     cleanup.defer(move |ending| async move {
//!         match closing.lock().await.take() {
//!             Some(transaction) if ending.succeeded() => transaction.commit().await?,
//!             Some(transaction) => transaction.rollback().await?,
//!             None => {}
//!         }
//!         Ok(())
//!     });
//!     Ok(group.body(move |tx| async move {
//!         let mut shared = shared.lock().await;
//!         let transaction = shared.as_mut().ok_or("the transaction is closed")?;
//!         while let Some(row) = transaction.next_row().await? {
//!             tx.send(row).await?;
//!         }
//!         Ok(())
//!     }))
//! }
//!
//! let app: Router = Router::new().route("/export", get(export)).layer(Stack::new());
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! # use tower::ServiceExt;
//! # let request = http::Request::get("/export").body(axum::body::Body::empty()).unwrap();
//! # let body = app.oneshot(request).await.unwrap().into_body();
//! # assert_eq!(axum::body::to_bytes(body, 99).await.unwrap(), "1\n2\n");
//! # });
//! ```
//!
//! Closers run last registered first, after the inner body has been dropped and tasks have been
//! joined, and *before* the client sees the end: a failing closer makes the response fail. Each has
//! a limit (30 s); its panic is contained, and the others still run.
//!
//! # What a commit means
//! [`Ending::succeeded`] says that the handler's part is done, no more:
//!
//! - [`Complete`](crate::Outcome::Complete) is *handed to the server*, not received by the client:
//!   what the sockets' buffers take is on its way, and may be lost. That is megabytes: Linux lets them grow to 4 MB
//!   on this side (`net.ipv4.tcp_wmem`) and 6 MB on the client's, and each proxy adds its own, so a smaller
//!   response is complete also for a client that reads nothing. What must not be done twice, or not be lost,
//!   wants an acknowledgement from the client in a request of its own.
//! - A response to HEAD, which axum's `get` answers too, is complete with an empty body: the handler
//!   has run, and its producer was never polled. Where that is no success, `ending.succeeded() &&
//!   ending.method() != Method::HEAD` says so; or the handler answers GET alone, with a 405 in
//!   `get(export).head(..)`.
//! - Of a request that is tried again ([`tower::retry`](https://docs.rs/tower), a hedge, a mirror) each attempt has a
//!   scope, and an ending, of its own if a [`CleanupLayer`] is *inside* of what repeats it. If layers are only
//!   outside, the closers of all attempts belong to the one response, and hear how that ended.

mod body;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use http::Request;

pub use body::CleanupBody;

use crate::{
    Cause, Ending, TaskResult,
    scope::{Closer, Fixed, Hold, MissingLayer, Scope, ScopeLayer, Sealed, Standalone, View},
};

/// The layer that gives handlers [`Cleanup`].
///
/// `M` is its mode: see [`ScopeLayer`].
pub type CleanupLayer<M = Fixed> = ScopeLayer<Cleanup, M>;

/// Registers closers with the response of this request. Cheap to clone.
///
/// **On drop**: nothing happens; what was registered stays registered.
#[derive(Clone)]
pub struct Cleanup {
    scope: Arc<Scope>,
}

impl Cleanup {
    /// The cleanup of this request, for services without extractors.
    ///
    /// # Errors
    /// [`MissingLayer`] without a [`CleanupLayer`] or [`Stack`](crate::Stack) around.
    pub fn of<B>(request: &Request<B>) -> Result<Self, MissingLayer> {
        Self::from_extensions(request.extensions())
    }

    /// Registers an async closer. After the end it runs at once, with the final ending.
    ///
    /// An error it returns fails the response, if the client has not seen the end yet, and is in
    /// the end report in any case.
    #[track_caller]
    pub fn defer<F, Fut>(&self, closer: F) -> Key
    where
        F: FnOnce(Ending) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        self.register(Closer::new(closer))
    }

    /// [`Cleanup::defer`] with a limit of its own instead of the layer's.
    #[track_caller]
    pub fn defer_within<F, Fut>(&self, limit: Duration, closer: F) -> Key
    where
        F: FnOnce(Ending) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        self.register(Closer::new(closer).limited(limit))
    }

    /// Registers a synchronous closer; it runs even if the runtime is gone. It should not block.
    #[track_caller]
    pub fn defer_sync(&self, closer: impl FnOnce(Ending) + Send + 'static) -> Key {
        self.register(Closer::sync(closer))
    }

    /// Registers a closer that runs behind the end: the client does not wait for it.
    ///
    /// It runs after all others, and its failure is in the end report only. The drain waits for it.
    #[track_caller]
    pub fn defer_after_end<F, Fut>(&self, closer: F) -> Key
    where
        F: FnOnce(Ending) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        let key = self.scope.defer_after_end(Closer::new(closer));
        self.key(key)
    }

    /// Registers a value that knows how to close itself.
    #[track_caller]
    pub fn defer_close<C: Close>(&self, value: C) -> Key {
        self.register(Closer::new(move |ending| value.close(ending)))
    }

    /// Keeps the scope open past its body. See [`Hold`].
    pub fn hold(&self) -> Hold {
        Hold::on(&self.scope)
    }

    fn register(&self, closer: Closer) -> Key {
        let key = self.scope.defer(closer);
        self.key(key)
    }

    fn key(&self, key: u64) -> Key {
        Key {
            scope: self.scope.clone(),
            key,
        }
    }
}

/// A value that closes itself asynchronously and may do so according to how the response ended.
pub trait Close: Send + 'static {
    /// Closes the value.
    fn close(self, ending: Ending) -> impl Future<Output = TaskResult> + Send;
}

/// A registered closer: dismiss it, or run it early. Dropping the key leaves it registered.
pub struct Key {
    scope: Arc<Scope>,
    key: u64,
}

impl Key {
    /// Takes the closer back; false if it has run or is running. It is dropped unrun.
    pub fn dismiss(self) -> bool {
        self.scope.take_closer(self.key).is_some()
    }

    /// Runs the closer now and waits for it; `Ok(false)` if it has run or is running.
    ///
    /// While the response is live the closer is given `Cancelled`, since nothing has been delivered:
    /// commit-or-rollback code rolls back. A teardown that starts meanwhile waits for it, up to the
    /// layer's closer limit.
    ///
    /// # Errors
    /// What the closer returned, or its panic or overrun limit as a
    /// [`Failure`](crate::scope::Failure). It counts in the end report too.
    ///
    /// **On drop**: the closer is aborted where it stands, and counted as unrun. That is a failure
    /// ([`GivenUp`](crate::scope::FailureKind::GivenUp)), and the response no success.
    pub async fn close_now(self) -> Result<bool, Cause> {
        match self.scope.close_now(self.key).await {
            Some(result) => result.map(|()| true),
            None => Ok(false),
        }
    }
}

impl Sealed for Cleanup {
    const BITS: u8 = 1;
    const VIEW: &'static str = "Cleanup";
    const LAYER: &'static str = "CleanupLayer";

    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn through(scope: Arc<Scope>) -> Self {
        Self { scope }
    }
}

impl Standalone for Cleanup {
    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }
}

impl fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cleanup")
            .field("scope", &self.scope)
            .finish()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("key", &self.key).finish()
    }
}
