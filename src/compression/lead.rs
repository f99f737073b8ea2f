//! The first of a long stream, encoded where it is polled while other threads begin behind it.
//!
//! The client has its first bytes at once, and what it costs to bring other threads in is hidden behind it. Two
//! compressors work on one gzip member: this one ends at a flush, the other has been told the text before.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::{
    encoder::{Encoder, INLINE_SLICE},
    gathered::Gathered,
    options::{Core, Flush},
    source::Source,
};
use crate::BoxError;

#[derive(Debug)]
pub(super) struct Lead {
    encoder: Encoder,
    text: Bytes,
}

impl Lead {
    /// Splits off what may be encoded here, before the first byte of a member is written; what comes behind it is for
    /// the encoder that is returned.
    ///
    /// Two compressors take more of the processors than one: only where those have time. And so only where equal input
    /// need not give equal bytes, which without padding it does.
    pub(super) fn split_off(
        core: &Core,
        encoder: Encoder,
        input: &mut Gathered,
    ) -> (Option<Self>, Encoder) {
        let options = &core.options;
        let may_be = options.flush == Flush::WhenIdle && options.random_padding > 0;
        match encoder {
            Encoder::Gzip(gzip) if may_be && !gzip.has_begun() && core.workers.are_at_rest() => {
                let text = input.take_burst();
                let behind = Encoder::Gzip(gzip.behind(&text));
                let encoder = Encoder::Gzip(gzip);
                (Some(Self { encoder, text }), behind)
            }
            other => (None, other),
        }
    }

    /// All of it, in one frame. Pending only to let others have their turn.
    pub(super) fn poll(
        &mut self,
        source: &mut Source,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, BoxError>> {
        source.begin_work();
        while !self.text.is_empty() {
            let slice = self.text.split_to(self.text.len().min(INLINE_SLICE));
            if let Err(error) = self.encoder.write(&slice) {
                return Poll::Ready(Err(error));
            }
            if !self.text.is_empty() && source.is_time_up() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let flushed = self.encoder.flush();
        Poll::Ready(flushed.map(|()| self.encoder.take_output()))
    }
}
