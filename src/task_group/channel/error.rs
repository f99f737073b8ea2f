//! What a producer is told when a frame cannot go in.

use std::{error::Error as StdError, fmt};

use bytes::Bytes;

use crate::scope::StreamId;

/// The stream takes no more frames: mostly, the client has left.
///
/// This is no error of the task's making. A producer that gets it has nothing left to do and
/// should return; a task group does not count it as a failure, unless its response goes on and
/// the stream was another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    pub(super) reason: Reason,
    /// Which stream it is that has ended, if it is one.
    pub(super) stream: Option<StreamId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The receiver was dropped or closed.
    Gone,
    /// The owner of the stream refuses further frames.
    Refused,
    /// Trailers went in.
    Trailers,
    /// The sink's own owner closed it.
    Sink,
}

impl Closed {
    /// The group takes nothing more: what a refused spawn has as its source.
    pub(crate) const REFUSED: Self = Self {
        reason: Reason::Refused,
        stream: None,
    };

    /// The client has left or the group has failed, rather than the sender's own side ended.
    pub(crate) fn is_from_outside(&self) -> bool {
        matches!(self.reason, Reason::Gone | Reason::Refused)
    }

    pub(crate) fn stream(&self) -> Option<StreamId> {
        self.stream
    }
}

impl fmt::Debug for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Closed").field(&self.reason).finish()
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::Gone => "the client has left: the response body is gone",
            Reason::Refused => "the response is ending or has failed, and takes nothing more",
            Reason::Trailers => "the stream has ended: trailers were sent",
            Reason::Sink => "the sink was closed",
        })
    }
}

impl StdError for Closed {}

/// The frame did not go in at once; it is given back.
pub struct TrySendError {
    pub(super) frame: Bytes,
    /// `None`: full for now.
    pub(super) closed: Option<Closed>,
}

impl TrySendError {
    /// There is no room now, or others wait in line.
    pub fn is_full(&self) -> bool {
        self.closed.is_none()
    }

    /// No frame will ever go in again.
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// The frame, as it was.
    pub fn into_bytes(self) -> Bytes {
        self.frame
    }
}

impl fmt::Debug for TrySendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrySendError")
            .field("len", &self.frame.len())
            .field("closed", &self.closed)
            .finish()
    }
}

impl fmt::Display for TrySendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.closed {
            Some(_) => "frame refused: the stream is closed",
            None => "frame refused: the stream's buffer is full",
        })
    }
}

impl StdError for TrySendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.closed.as_ref().map(|closed| closed as _)
    }
}
