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

mod body;

use std::{error::Error, fmt, sync::Arc};

use http::Request;
use tokio_util::sync::CancellationToken;

use crate::{
    Outcome,
    scope::{Hold, MissingLayer, Scope, ScopeLayer, Sealed, View},
};

pub use crate::scope::OnLeave;
pub use body::DisconnectBody;

/// The layer that gives handlers [`Disconnect`].
pub type DisconnectLayer = ScopeLayer<Disconnect>;

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
    pub async fn ended(&self) -> Outcome {
        self.scope.ended().await
    }

    /// Waits for any end but a natural one: the client left, shutdown, cancel, failure.
    ///
    /// Never ready after a natural end: select it against the work.
    pub async fn gone(&self) {
        self.scope.gone_token().cancelled().await;
    }

    /// Whether an end other than a natural one has started: for loops in synchronous code.
    pub fn is_gone(&self) -> bool {
        self.scope.is_gone()
    }

    /// A token that fires with [`Disconnect::gone`].
    ///
    /// It is a child: cancelling it cancels nobody else.
    pub fn token(&self) -> CancellationToken {
        self.scope.gone_token().child_token()
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

impl fmt::Debug for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disconnect")
            .field("scope", &self.scope)
            .finish()
    }
}
