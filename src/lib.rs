//! Every streaming response gets an owner.

mod error;

pub use error::{BodyError, BoxError, Cause};
