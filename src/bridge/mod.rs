//! One thread and one event loop per request, for sync code.

mod bound;
mod call;
mod closer;
mod context;
mod cx;
mod error;
mod handle;
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
pub use handle::Bridge;
pub use pool::{Pool, PoolBuilder};
pub use stuck::Stuck;
pub use sync_body::SyncBody;
pub use task::{Run, Task};
