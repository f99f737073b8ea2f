//! Every streaming response gets an owner.

#[cfg(feature = "axum")]
mod axum;
pub mod cleanup;
#[cfg(feature = "compression")]
pub mod compression;
pub mod disconnect;
mod error;
#[cfg(feature = "net")]
pub mod net;
mod outcome;
pub mod scope;
pub mod stack;
mod supervisor;
pub mod task_group;
#[cfg(feature = "testing")]
pub mod testing;

pub use cleanup::{Cleanup, CleanupLayer};
#[cfg(feature = "compression")]
pub use compression::CompressionLayer;
pub use disconnect::{Disconnect, DisconnectLayer};
pub use error::{BodyError, BoxError, Cause, TaskResult};
pub use outcome::{Counts, EndReport, Ending, Outcome};
pub use scope::{Hold, MissingLayer, Shutdown, close, closing};
pub use stack::Stack;
pub use supervisor::{DrainReport, LiveScope, Supervisor};
pub use task_group::{FrameSender, TaskGroup, TaskGroupBody, TaskGroupLayer};
