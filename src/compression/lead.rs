//! The beginning of a long stream, encoded where it is polled while other threads begin behind it.
//!
//! The client has its first bytes at once, and what it costs to bring other threads in is hidden behind it. Two
//! compressors work on one gzip member: this one ends at a flush, the other has been told the text before.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{
    encoder::{Encoder, FULL, SLICE},
    gathered::Gathered,
    options::{BURST, Core, Flush},
    workers::Engaged,
};
use crate::BoxError;

#[derive(Debug)]
pub(super) struct Lead {
    encoder: Encoder,
    /// What the client is to have at once, and the rest.
    first: Bytes,
    rest: Bytes,
    /// Its compressor is one more that is at work.
    _engaged: Engaged,
}

impl Lead {
    /// Before the first byte of a member is written.
    ///
    /// Two compressors take more of the processors than one: only where those have time. And so only where equal input
    /// need not give equal bytes, which without padding it does.
    pub(super) fn is_possible(core: &Core, encoder: &Encoder) -> bool {
        let options = &core.options;
        let may_be = options.flush == Flush::WhenIdle && options.random_padding > 0;
        match encoder {
            Encoder::Gzip(gzip) => may_be && !gzip.has_begun() && core.workers.are_at_rest(),
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            Encoder::Codec(_) => false,
        }
    }

    /// Splits off what may be encoded here; what comes behind it is for the encoder that is returned.
    pub(super) fn split_off(
        core: &Arc<Core>,
        encoder: Encoder,
        input: &mut Gathered,
    ) -> (Option<Box<Self>>, Encoder) {
        match encoder {
            Encoder::Gzip(gzip) => {
                let mut first = input.take_lead();
                let behind = Encoder::Gzip(gzip.behind(&first));
                let lead = Self {
                    encoder: Encoder::Gzip(gzip),
                    rest: first.split_off(first.len().min(BURST)),
                    first,
                    _engaged: Engaged::new(core),
                };
                (Some(Box::new(lead)), behind)
            }
            #[cfg(any(feature = "br", feature = "zstd", feature = "deflate"))]
            codec => (None, codec),
        }
    }

    /// The last frame was all that was left.
    pub(super) fn is_over(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }

    /// Its next frame. Pending only to let others have their turn.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, BoxError>> {
        let text = match self.first.is_empty() {
            false => &mut self.first,
            true => &mut self.rest,
        };
        let slice = text.split_to(text.len().min(SLICE));
        if let Err(error) = self.encoder.write(&slice) {
            return Poll::Ready(Err(error));
        }
        if !text.is_empty() {
            if self.encoder.output_len() >= FULL {
                return Poll::Ready(Ok(self.encoder.take_output()));
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let flushed = self.encoder.flush();
        Poll::Ready(flushed.map(|()| self.encoder.take_output()))
    }
}
