//! The encoders: synchronous state machines from bytes to bytes.

mod gzip;
mod history;

use std::sync::Arc;

use bytes::Bytes;

#[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
use super::codecs::Codec;
use super::{negotiation::Coding, options::Core};
use crate::BoxError;

pub(super) use gzip::Gzip;

/// Output is handed on once it has reached this many bytes.
pub(super) const FULL: usize = 32 << 10;

/// Input is taken in slices of at most this, so that output cannot outgrow its bound by much.
pub(super) const SLICE: usize = 16 << 10;

/// The first slice of the other encoders.
#[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
const FIRST_SLICE: usize = 64 << 10;

/// What gzip's compressor is given at a time.
pub(super) const CUT: usize = 4 << 10;

/// Input that is taken at most before what has come of it is handed on: of what repeats itself zlib gathers megabytes
/// before it gives anything, as Brotli does of anything.
pub(super) const MOST_HELD: usize = 256 << 10;

/// One response's encoder.
#[derive(Debug)]
pub(super) enum Encoder {
    Gzip(Box<Gzip>),
    #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
    Codec(Codec),
}

impl Encoder {
    /// An encoder for a stream, which may be parked.
    pub(super) fn for_stream(core: &Arc<Core>, coding: Coding) -> Self {
        Self::new(core, coding, core.options.history)
    }

    /// All of a body at once.
    pub(super) fn whole(core: &Arc<Core>, coding: Coding, body: &[u8]) -> Result<Bytes, BoxError> {
        let mut encoder = Self::new(core, coding, 0);
        match &mut encoder {
            Self::Gzip(gzip) => gzip.whole(body)?,
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => {
                codec.write(body)?;
                codec.finish()?;
            }
        }
        Ok(encoder.take_output())
    }

    fn new(core: &Arc<Core>, coding: Coding, history: usize) -> Self {
        match coding {
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Coding::Brotli | Coding::Zstd | Coding::Deflate => {
                Self::Codec(Codec::new(coding, Arc::clone(core)))
            }
            _ => Self::Gzip(Box::new(Gzip::new(Arc::clone(core), history))),
        }
    }

    /// Whether the first `write` makes megabytes, which are gone with the stream. Allocators keep for each thread what
    /// it had: better for the few that run tasks than for all that lend a hand.
    pub(super) fn is_to_be_made(&self) -> bool {
        match self {
            Self::Gzip(_) => false,
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => codec.is_to_be_made(),
        }
    }

    /// How much of its input it is to be given at a time. Brotli makes room for what its first write brings, and some 8 MB
    /// with the second, which a small body need not come to.
    pub(super) fn slice(&self) -> usize {
        match self {
            Self::Gzip(_) => SLICE,
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) if codec.is_new() => FIRST_SLICE,
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(_) => SLICE,
        }
    }

    /// Takes all of `input`; some of it may stay inside until a flush.
    pub(super) fn write(&mut self, input: &[u8]) -> Result<(), BoxError> {
        match self {
            Self::Gzip(gzip) => Ok(gzip.write(input)?),
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => Ok(codec.write(input)?),
        }
    }

    /// Whether what was written is to be handed on, enough of it or not. Flushes what may be flushed for that.
    pub(super) fn is_due(&mut self) -> Result<bool, BoxError> {
        match self {
            Self::Gzip(gzip) => Ok(gzip.is_due()),
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => Ok(codec.is_due()?),
        }
    }

    /// Makes all that was written decodable. Nothing new written: no output.
    pub(super) fn flush(&mut self) -> Result<(), BoxError> {
        match self {
            Self::Gzip(gzip) => Ok(gzip.flush()?),
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => Ok(codec.flush()?),
        }
    }

    /// Ends the encoded form. Only `take_output` may follow.
    pub(super) fn finish(&mut self) -> Result<(), BoxError> {
        match self {
            Self::Gzip(gzip) => Ok(gzip.finish()?),
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => Ok(codec.finish()?),
        }
    }

    /// Gives up what an idle stream need not hold. Called with the output taken.
    pub(super) fn rest(&mut self) {
        match self {
            Self::Gzip(gzip) => gzip.rest(),
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => codec.rest(),
        }
    }

    pub(super) fn coding(&self) -> Coding {
        match self {
            Self::Gzip(_) => Coding::Gzip,
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => codec.coding(),
        }
    }

    pub(super) fn output_len(&self) -> usize {
        self.output().len()
    }

    /// The output so far, as a buffer of its own size; the scratch buffer stays.
    pub(super) fn take_output(&mut self) -> Bytes {
        match self {
            Self::Gzip(gzip) => gzip.take_output(),
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => codec.take_output(),
        }
    }

    fn output(&self) -> &[u8] {
        match self {
            Self::Gzip(gzip) => gzip.output(),
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Self::Codec(codec) => codec.output(),
        }
    }
}
