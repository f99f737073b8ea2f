//! What the error of a request body says of the client.

use std::{error::Error, io};

use crate::scope::sources;

/// Whether a request body failed because its connection or stream did, and not for a limit or the
/// like that stands between, or for what the client wrote.
///
/// An end of file, a time-out or a broken pipe may be that of anybody's file, timer or pipe.
pub(super) fn is_of_connection(error: &(dyn Error + 'static)) -> bool {
    for error in sources(error) {
        #[cfg(feature = "net")]
        if error.is::<hyper::Error>() {
            return !error.source().is_some_and(is_malformed);
        }
        if error.downcast_ref().is_some_and(is_reset) {
            return true;
        }
    }
    false
}

/// The client has sent less than it promised, and closed its side.
#[cfg(feature = "net")]
pub(super) fn is_end_of_file(error: &(dyn Error + 'static)) -> bool {
    let of_hyper = sources(error).find(|error| error.is::<hyper::Error>());
    let io = of_hyper
        .and_then(Error::source)
        .and_then(|error| error.downcast_ref());
    io.map(io::Error::kind) == Some(io::ErrorKind::UnexpectedEof)
}

/// The client is there, and gets an answer.
#[cfg(feature = "net")]
fn is_malformed(error: &(dyn Error + 'static)) -> bool {
    let kind = error.downcast_ref().map(io::Error::kind);
    matches!(
        kind,
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
    )
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}
