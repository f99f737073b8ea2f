//! Where a compressed stream stands, and in which order it ends.

use bytes::Bytes;
use http::HeaderMap;

use crate::{
    BodyError,
    scope::{ERROR_GAP, Gap, all_but_a_byte, is_patient},
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
        /// The last byte before the gap, by itself.
        tail: Option<Bytes>,
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
        let tail = None;
        Self::Failed { error, gap, tail }
    }

    /// What is to be handed on now of all that there is: if a gap comes next, without its last byte.
    pub(super) fn part(&mut self, mut output: Bytes) -> Bytes {
        let Self::Failed { error, tail, .. } = self else {
            return output;
        };
        let patient = is_patient(error.outcome());
        match patient.then(|| all_but_a_byte(&mut output)).flatten() {
            Some(first) => {
                *tail = Some(output);
                first
            }
            None => output,
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
