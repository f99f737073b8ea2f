//! Where a compressed stream stands, and in which order it ends.

use http::HeaderMap;

use crate::{
    BodyError,
    scope::{ERROR_GAP, Gap},
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
        gap: Gap,
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
        let gap = Gap::new(ERROR_GAP, error.connection().cloned());
        Self::Failed { error, gap }
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
