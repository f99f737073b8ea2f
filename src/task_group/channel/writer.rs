//! A sender as an `AsyncWrite`.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, task::coop};

use super::{FrameSender, error::Closed, line::Need, sender::leave};

/// A [`FrameSender`] as an `AsyncWrite`.
///
/// Writes are copied straight into the body's buffer; one that is larger than the room there is
/// cut. Flushing has nothing to do: what was written is on its way. Shutting down drops the
/// sender. A write that was given up, as by a timeout, holds up no other sender; it keeps its place
/// in line for the next.
///
/// # Errors
/// `BrokenPipe`, with [`Closed`] as its source, once the stream takes no more frames.
///
/// # On drop
/// What was written is sent; a write that was pending was not.
pub struct FrameWriter {
    /// `None` once shut down.
    sender: Option<FrameSender>,
    ticket: Option<u64>,
    /// Bytes that the ticket stands for.
    need: usize,
}

impl FrameWriter {
    pub(super) fn new(sender: FrameSender) -> Self {
        Self {
            sender: Some(sender),
            ticket: None,
            need: 0,
        }
    }

    fn poll_put(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(sender) = &self.sender else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let written = sender.shared().with(|state, after| {
            if data.is_empty() {
                return Poll::Ready(state.open().map(|()| 0));
            }
            if self.ticket.is_none() {
                // All there is room for, or else a fair share once it is our turn.
                self.need = match state.room() {
                    0 => data.len().min(state.bound().div_ceil(2)),
                    room => data.len().min(room),
                };
            }
            let need = Need::Loan(self.need);
            ready!(state.poll_turn(&mut self.ticket, need, cx, after))?;
            // The caller may come back with other, and less, data than it waited with.
            let granted = &data[..data.len().min(self.need)];
            state.put_slice(granted, after);
            Poll::Ready(Ok(granted.len()))
        });
        written.map_err(broken_pipe)
    }
}

fn broken_pipe(closed: Closed) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, closed)
}

impl AsyncWrite for FrameWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let budget = ready!(coop::poll_proceed(cx));
        let result = ready!(self.poll_put(cx, data));
        budget.made_progress();
        Poll::Ready(result)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match &self.sender {
            Some(sender) => sender.shared().lock().open().map_err(broken_pipe),
            None => Ok(()),
        })
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.leave();
        self.sender = None;
        Poll::Ready(Ok(()))
    }
}

impl FrameWriter {
    fn leave(&mut self) {
        if let Some(sender) = &self.sender {
            leave(sender.shared(), &mut self.ticket, Need::Loan(self.need));
        }
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameWriter").finish_non_exhaustive()
    }
}
