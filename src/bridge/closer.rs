//! Cleanup that runs on the request's own thread.

use std::panic::Location;

use super::cx::Cx;
use crate::{BoxError, scope::Span};

/// A closer in the order of registration; a thread-bound one is kept on the thread itself.
pub(super) struct Closer {
    pub(super) run: Run,
    pub(super) called_at: &'static Location<'static>,
    /// That of its registration. Closers of a scope run in the scope's.
    pub(super) span: Span,
}

pub(super) enum Run {
    Send(SendCloser),
    /// An index into the thread's own list.
    Bound(usize),
}

type SendCloser = Box<dyn FnOnce(&Cx) -> Result<(), BoxError> + Send>;

/// A closer that may hold what cannot leave its thread.
pub(super) type BoundCloser = Box<dyn FnOnce(&Cx) -> Result<(), BoxError>>;
