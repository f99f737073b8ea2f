//! Why a compressed body fails on its own account.

use std::{error::Error, fmt};

/// The inner body gave more or fewer bytes than it had promised.
///
/// The promise is the response's `Content-Length`, else the exact size hint of its body. Both are
/// gone from a compressed response, so only this error keeps the client from taking it as whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthMismatch {
    promised: u64,
    given: u64,
}

impl LengthMismatch {
    pub(super) fn new(promised: u64, given: u64) -> Self {
        Self { promised, given }
    }

    /// Bytes promised at the head.
    pub fn promised(&self) -> u64 {
        self.promised
    }

    /// Bytes given when the mismatch was certain.
    pub fn given(&self) -> u64 {
        self.given
    }
}

impl fmt::Display for LengthMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "inner body gave {} bytes where {} were promised",
            self.given, self.promised
        )
    }
}

impl Error for LengthMismatch {}

/// The inner body panicked in an earlier poll, or the encoder did.
#[derive(Debug)]
pub(super) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("compressed body polled again after a panic")
    }
}

impl Error for Broken {}
