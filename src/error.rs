//! The one error our bodies fail with.

use std::{error::Error as StdError, fmt, sync::Arc};

/// Any error, owned: what fallible closures and inner bodies hand us.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// What closers and tasks return: `?` turns any error into the boxed one.
pub type TaskResult = Result<(), BoxError>;

/// A failure, shared between the body that yields it, the closers that see it and the report.
pub type Cause = Arc<dyn StdError + Send + Sync + 'static>;

/// What a body of this crate fails with: a kind in words, and the cause behind it.
///
/// The cause is boxed once, where it arises, and shared from then on: the body yields it, each
/// closer sees it in its [`Ending`](crate::Ending), the end report lists it. Ask for the concrete
/// type with [`BodyError::downcast_ref`].
#[derive(Clone)]
pub struct BodyError {
    cause: Cause,
}

impl BodyError {
    /// Wraps an error, once: a `BodyError` comes back as it was.
    pub fn new(error: impl Into<BoxError>) -> Self {
        match error.into().downcast::<BodyError>() {
            Ok(body_error) => *body_error,
            Err(error) => Self {
                cause: Cause::from(error),
            },
        }
    }

    /// The cause as a concrete type, if it is one.
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.cause.downcast_ref::<E>()
    }

    /// The cause, to be kept or shared.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }
}

impl From<Cause> for BodyError {
    fn from(cause: Cause) -> Self {
        Self { cause }
    }
}

impl fmt::Debug for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BodyError").field(&self.cause).finish()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "response body failed")
    }
}

impl StdError for BodyError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_boxed_once_and_downcasts() {
        let io = std::io::Error::other("disk");
        let inner = BodyError::new(io);
        let again = BodyError::new(Box::new(inner) as BoxError);
        assert_eq!(
            again.downcast_ref::<std::io::Error>().unwrap().to_string(),
            "disk"
        );
    }
}
