//! One thread and one event loop per request, for sync code.

mod bound;
mod call;
mod closer;
mod context;
mod cx;
mod error;
mod handle;
mod local;
mod pool;
mod session;
mod stuck;
mod task;

pub use call::Call;
pub use context::{Close, CloseReport, Context, EndTasks};
pub use cx::Cx;
pub use error::{BridgeError, BridgeErrorKind};
pub use handle::Bridge;
pub use pool::{Pool, PoolBuilder};
pub use stuck::Stuck;
pub use task::{Run, Task};
