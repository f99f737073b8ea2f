//! Where a compressed stream stands, and in which order it ends.

use http::HeaderMap;

use crate::{
    BodyError,
    scope::{ERROR_GAP, Limit},
};

/// Where a stream stands.
#[derive(Debug)]
pub(super) enum Phase {
    Reading,
    /// The inner body has ended like this; what it gave is still being encoded.
    Ended(End),
    Trailers(HeaderMap),
    /// The error comes a gap behind the last frame. The gap of a scope further in may have passed while
    /// its frames were here.
    Failed {
        error: BodyError,
        gap: Limit,
    },
    Done,
}

#[derive(Debug)]
pub(super) enum End {
    Well(Option<HeaderMap>),
    Failed(BodyError),
}

impl Phase {
    pub(super) fn failed(error: BodyError) -> Self {
        Self::Failed {
            error,
            gap: Limit::new(ERROR_GAP),
        }
    }

    /// All that the inner body gave is encoded.
    pub(super) fn advance(&mut self) {
        *self = match std::mem::replace(self, Self::Done) {
            Self::Ended(End::Well(Some(trailers))) => Self::Trailers(trailers),
            Self::Ended(End::Failed(error)) => Self::failed(error),
            _ => Self::Done,
        };
    }
}
