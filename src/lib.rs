//! Every streaming response gets an owner.

#[cfg(feature = "axum")]
mod axum;
pub mod cleanup;
pub mod disconnect;
#[cfg(feature = "compression")]
pub mod compression;
mod error;
mod outcome;
pub mod scope;
mod supervisor;
pub mod task_group;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "net")]
pub mod net;

pub use cleanup::{Cleanup, CleanupLayer};
pub use disconnect::{Disconnect, DisconnectLayer};
pub use error::{BodyError, BoxError, Cause, TaskResult};
pub use outcome::{Counts, EndReport, Ending, Outcome};
pub use scope::{Hold, MissingLayer, Shutdown, close, closing};
pub use supervisor::{DrainReport, LiveScope, Supervisor};
pub use task_group::{FrameSender, TaskGroup, TaskGroupBody, TaskGroupLayer};
