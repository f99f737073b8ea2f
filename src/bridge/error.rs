//! What can go wrong between sync and async code, each with its own name.

use std::{
    any::Any, error::Error as StdError, fmt, io, panic::Location, sync::Arc, time::Duration,
};

use http::{Response, StatusCode};

use crate::scope::quietly;

/// Why a bridge call, wait or task gave no result.
///
/// Each way to fail has its own [`BridgeErrorKind`] and its own message; none of them is a hang.
#[derive(Clone, Debug)]
pub struct BridgeError {
    repr: Repr,
}

/// The ways a bridge can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BridgeErrorKind {
    /// The sync code, or the local task, panicked. Its thread lives on.
    Panicked,
    /// `block_on` was called by async code that the same loop is running.
    InsideLoop,
    /// `Bridge::block_on` was called on a thread that is not this request's.
    ForeignThread,
    /// A call was polled on its own thread by something other than the thread's loop.
    OwnThread,
    /// The request has ended, or ended while the code was waiting.
    Ended,
    /// The caller of the sync code dropped its call, or the local task was aborted.
    Cancelled,
    /// No thread of the pool came free in time.
    Exhausted,
    /// Sync code inside async code inside sync code, deeper than the pool allows.
    TooDeep,
    /// A body of the bridge was read before its response's head, and its code has to wait for who reads,
    /// on top of a blocking middleware ([`from_fn_sync`](super::from_fn_sync)) that waits for the head.
    HeadBlocked,
    /// The operating system refused the thread or its event loop.
    Start,
    /// The request carries no `Bridge`: the layer is missing.
    Missing,
}

#[derive(Clone, Debug)]
enum Repr {
    Panicked {
        message: Arc<str>,
        at: Option<&'static Location<'static>>,
        /// The code had been told that nobody waits for it.
        excused: bool,
    },
    InsideLoop,
    ForeignThread,
    OwnThread,
    Ended,
    Cancelled,
    Exhausted {
        waited: Duration,
        threads: usize,
    },
    TooDeep(usize),
    HeadBlocked,
    Start(Arc<io::Error>),
    Missing,
}

impl BridgeError {
    /// What went wrong.
    pub fn kind(&self) -> BridgeErrorKind {
        match self.repr {
            Repr::Panicked { .. } => BridgeErrorKind::Panicked,
            Repr::InsideLoop => BridgeErrorKind::InsideLoop,
            Repr::ForeignThread => BridgeErrorKind::ForeignThread,
            Repr::OwnThread => BridgeErrorKind::OwnThread,
            Repr::Ended => BridgeErrorKind::Ended,
            Repr::Cancelled => BridgeErrorKind::Cancelled,
            Repr::Exhausted { .. } => BridgeErrorKind::Exhausted,
            Repr::TooDeep(_) => BridgeErrorKind::TooDeep,
            Repr::HeadBlocked => BridgeErrorKind::HeadBlocked,
            Repr::Start(_) => BridgeErrorKind::Start,
            Repr::Missing => BridgeErrorKind::Missing,
        }
    }

    /// The message of the panic, if it was one.
    pub fn panic_message(&self) -> Option<&str> {
        match &self.repr {
            Repr::Panicked { message, .. } => Some(message),
            _ => None,
        }
    }

    /// Where the code that panicked was handed to the bridge, if it panicked.
    pub fn called_at(&self) -> Option<&'static Location<'static>> {
        match &self.repr {
            Repr::Panicked { at, .. } => *at,
            _ => None,
        }
    }

    pub(super) fn panicked(
        payload: Box<dyn Any + Send>,
        at: Option<&'static Location<'static>>,
    ) -> Self {
        let message = if let Some(text) = payload.downcast_ref::<&'static str>() {
            Arc::from(*text)
        } else if let Some(text) = payload.downcast_ref::<String>() {
            Arc::from(text.as_str())
        } else {
            Arc::from("a panic without a message")
        };
        quietly(|| drop(payload));
        Self {
            repr: Repr::Panicked {
                message,
                at,
                excused: false,
            },
        }
    }

    /// The same; excused, it is not a failure that somebody has to hear of.
    pub(super) fn excused(mut self, yes: bool) -> Self {
        if let Repr::Panicked { excused, .. } = &mut self.repr {
            *excused = yes;
        }
        self
    }

    pub(super) fn is_excused(&self) -> bool {
        matches!(self.repr, Repr::Panicked { excused: true, .. })
    }

    pub(super) fn start(error: io::Error) -> Self {
        Self {
            repr: Repr::Start(Arc::new(error)),
        }
    }

    pub(super) fn exhausted(waited: Duration, threads: usize) -> Self {
        Self {
            repr: Repr::Exhausted { waited, threads },
        }
    }

    pub(super) fn too_deep(limit: usize) -> Self {
        Self {
            repr: Repr::TooDeep(limit),
        }
    }

    pub(super) const INSIDE_LOOP: Self = Self::plain(Repr::InsideLoop);
    pub(super) const FOREIGN_THREAD: Self = Self::plain(Repr::ForeignThread);
    pub(super) const OWN_THREAD: Self = Self::plain(Repr::OwnThread);
    pub(super) const ENDED: Self = Self::plain(Repr::Ended);
    pub(super) const CANCELLED: Self = Self::plain(Repr::Cancelled);
    pub(super) const HEAD_BLOCKED: Self = Self::plain(Repr::HeadBlocked);

    pub(super) const MISSING: Self = Self::plain(Repr::Missing);

    /// Makes an empty response of it: to try again if there was no thread, else only that it failed.
    ///
    /// The client is not told more, so the log is.
    pub(super) fn answer<B: Default>(self) -> Response<B> {
        #[cfg(feature = "tracing")]
        quietly(|| {
            tracing::error!(
                target: "bodyguard",
                kind = ?self.kind(),
                error = %crate::scope::told_whole(&self),
                "a bridge error is the answer"
            );
        });
        let mut response = Response::new(B::default());
        *response.status_mut() = match self.repr {
            Repr::Exhausted { .. } | Repr::Start(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        response.extensions_mut().insert(self);
        response
    }

    const fn plain(repr: Repr) -> Self {
        Self { repr }
    }
}

impl fmt::Display for BridgeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.repr {
            Repr::Panicked {
                message, at: None, ..
            } => write!(f, "bridge code panicked: {message}"),
            Repr::Panicked {
                message,
                at: Some(at),
                ..
            } => {
                write!(f, "bridge code panicked: {message} (called at {at})")
            }
            Repr::InsideLoop => f.write_str(
                "block_on called by async code of the same loop, where the future is to be awaited",
            ),
            Repr::ForeignThread => {
                f.write_str("block_on called off the request's thread: `Bridge::call` leads there")
            }
            Repr::OwnThread => f.write_str(
                "bridge call polled on its own thread, outside the loop: wait with `Cx::block_on`",
            ),
            Repr::Ended => f.write_str("the request of this bridge has ended"),
            Repr::Cancelled => f.write_str("the caller of this bridge code has given up"),
            Repr::Exhausted { waited, threads } => write!(
                f,
                "no bridge thread came free within {waited:?}: the pool has {threads} at most, and a \
                 request keeps its own to the end of its body; raise `PoolBuilder::max_threads` to \
                 as many such bodies as there are at a time"
            ),
            Repr::TooDeep(limit) => write!(
                f,
                "bridge calls nested deeper than {limit} (`PoolBuilder::max_depth`)"
            ),
            Repr::HeadBlocked => f.write_str(
                "a body of the bridge was read before its head inside `from_fn_sync`, whose thread it \
                 then waits on: put what reads it (compression, `Stack`) outside of the middleware",
            ),
            Repr::Start(_) => f.write_str("bridge thread could not be started"),
            Repr::Missing => {
                f.write_str("no bridge in the request: add `BridgeLayer` or `Stack` around it")
            }
        }
    }
}

impl StdError for BridgeError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.repr {
            Repr::Start(error) => Some(&**error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_message() {
        let all = [
            BridgeError::panicked(Box::new("boom"), None),
            BridgeError::INSIDE_LOOP,
            BridgeError::FOREIGN_THREAD,
            BridgeError::OWN_THREAD,
            BridgeError::ENDED,
            BridgeError::CANCELLED,
            BridgeError::exhausted(Duration::from_secs(5), 64),
            BridgeError::too_deep(16),
            BridgeError::start(io::Error::other("no fd")),
            BridgeError::MISSING,
            BridgeError::HEAD_BLOCKED,
        ];
        let messages: std::collections::HashSet<_> = all.iter().map(|e| e.to_string()).collect();
        let kinds: std::collections::HashSet<_> = all.iter().map(BridgeError::kind).collect();
        assert_eq!(messages.len(), all.len());
        assert_eq!(kinds.len(), all.len());
        assert_eq!(all[8].source().unwrap().to_string(), "no fd");
    }

    #[test]
    fn a_formatted_panic_keeps_its_message() {
        let payload = std::panic::catch_unwind(|| panic!("row {}", 7)).unwrap_err();
        let error = BridgeError::panicked(payload, None);
        assert_eq!(error.panic_message(), Some("row 7"));
    }
}
