//! Every streaming response gets an owner.

#[cfg(feature = "axum")]
mod axum;
pub mod cleanup;
pub mod disconnect;
mod error;
mod outcome;
pub mod scope;
mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
pub mod task_group;

pub use cleanup::{Cleanup, CleanupLayer};
pub use disconnect::{Disconnect, DisconnectLayer};
pub use error::{BodyError, BoxError, Cause, TaskResult};
pub use outcome::{Counts, EndReport, Ending, Outcome};
pub use scope::{Hold, MissingLayer, Shutdown, close, closing};
pub use supervisor::{DrainReport, LiveScope, Supervisor};
