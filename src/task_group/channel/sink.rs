//! A sender as a `Sink`.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_sink::Sink;
use tokio::task::coop;

use super::{
    FrameSender,
    error::{Closed, Reason},
    line::Need,
    sender::{leave, poll_put},
};

/// A [`FrameSender`] as a `Sink<Bytes>`.
///
/// It holds one frame at most, while there is no room in the body's buffer. Flushed means accepted
/// by the buffer, not received by the client. A flush that was given up, as by a timeout, holds up no
/// other sender; the frame goes in with the next.
///
/// # On drop
/// A frame that was started and not flushed is not sent.
pub struct FrameSink {
    /// `None` once closed.
    sender: Option<FrameSender>,
    /// Started, and not in yet; else empty.
    frame: Bytes,
    ticket: Option<u64>,
}

impl FrameSink {
    pub(super) fn new(sender: FrameSender) -> Self {
        Self {
            sender: Some(sender),
            frame: Bytes::new(),
            ticket: None,
        }
    }

    fn leave(&mut self) {
        if let Some(sender) = &self.sender {
            let need = Need::Loan(self.frame.len());
            leave(sender.shared(), &mut self.ticket, need);
        }
    }
}

impl Sink<Bytes> for FrameSink {
    type Error = Closed;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let budget = ready!(coop::poll_proceed(cx));
        let result = ready!(self.poll_flush(cx));
        budget.made_progress();
        Poll::Ready(result)
    }

    fn start_send(mut self: Pin<&mut Self>, frame: Bytes) -> Result<(), Closed> {
        let Some(sender) = &self.sender else {
            return Err(SINK_CLOSED);
        };
        match sender.try_send(frame) {
            Ok(()) => Ok(()),
            Err(refused) => match refused.closed {
                Some(closed) => Err(closed),
                None => {
                    debug_assert!(self.frame.is_empty(), "start_send without poll_ready");
                    self.frame = refused.into_bytes();
                    Ok(())
                }
            },
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let this = &mut *self;
        match &this.sender {
            Some(sender) => {
                let need = Need::Loan(this.frame.len());
                poll_put(sender.shared(), &mut this.frame, need, &mut this.ticket, cx)
            }
            None => Poll::Ready(Err(SINK_CLOSED)),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        if self.sender.is_none() {
            return Poll::Ready(Ok(()));
        }
        if !self.frame.is_empty() {
            ready!(self.as_mut().poll_flush(cx))?;
        }
        self.sender = None;
        Poll::Ready(Ok(()))
    }
}

const SINK_CLOSED: Closed = Closed {
    reason: Reason::Sink,
    stream: None,
};

impl Drop for FrameSink {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for FrameSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSink")
            .field("pending", &self.frame.len())
            .finish_non_exhaustive()
    }
}
