//! One thread and one event loop per request, for sync code.

mod bound;
mod call;
mod closer;
mod context;
mod cx;
mod error;
mod from_fn;
mod handle;
#[cfg(feature = "axum")]
mod handler;
mod local;
mod pipe;
mod pool;
mod session;
mod stuck;
mod sync_body;
mod task;

pub use call::Call;
pub use context::{Close, CloseReport, Context, EndTasks};
pub use cx::Cx;
pub use error::{BridgeError, BridgeErrorKind};
pub use from_fn::{FromFnSync, FromFnSyncLayer, Next, NextError, ResponseFuture, from_fn_sync};
pub use handle::Bridge;
#[cfg(feature = "axum")]
pub use handler::{SyncHandler, sync_handler};
pub use pool::{Pool, PoolBuilder};
pub use stuck::Stuck;
pub use sync_body::SyncBody;
pub use task::{Run, Task};
