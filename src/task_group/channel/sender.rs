//! The producers' end of the channel.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::task::coop;

use super::{
    FrameSink, FrameWriter,
    error::{Closed, TrySendError},
    line::Need,
    shared::Shared,
};
use crate::sync::{Arc, block_on};

/// Sends frames into a response body; clone it for every producer.
///
/// The body holds a bounded number of bytes (16 KiB by default in a task group); a sender that
/// finds no room waits, and those who wait are served in turn. A frame larger than the bound
/// waits until nothing else is buffered, then passes alone and without a copy. Frames of one
/// sender keep their order. Small frames that are ready together leave as one. Empty frames are
/// accepted and dropped: on the wire they would mean nothing, or the end.
///
/// Once the client has left, every way in fails with [`Closed`].
///
/// # On drop
/// Nothing that was sent is lost. When the last sender goes, the stream ends behind what is
/// buffered.
pub struct FrameSender {
    shared: Arc<Shared>,
}

impl FrameSender {
    /// The first sender: `shared` counts it already.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Sends a frame, waiting in turn for room.
    ///
    /// # Errors
    /// [`Closed`] if the stream takes no more frames; the frame is dropped.
    ///
    /// # On drop
    /// Cancel-safe: a `send` dropped before it was ready was not sent, and its place in line is
    /// given up. One that is neither polled nor dropped keeps its place, and others wait behind it.
    pub fn send(&self, frame: impl Into<Bytes>) -> SendFrame<'_> {
        SendFrame {
            shared: &self.shared,
            frame: frame.into(),
            ticket: None,
        }
    }

    /// Sends a frame if there is room now and nobody waits in line.
    ///
    /// # Errors
    /// Gives the frame back if the buffer is full or the stream closed.
    pub fn try_send(&self, frame: impl Into<Bytes>) -> Result<(), TrySendError> {
        let frame = frame.into();
        self.shared.with(|state, after| {
            if let Err(closed) = state.open() {
                let closed = Some(closed);
                return Err(TrySendError { frame, closed });
            }
            if frame.is_empty() {
                return Ok(());
            }
            if !state.admits(Need::Bytes(frame.len())) {
                let closed = None;
                return Err(TrySendError { frame, closed });
            }
            state.put(frame, after);
            Ok(())
        })
    }

    /// Sends a frame from a thread that may block, parking it while there is no room.
    ///
    /// Needs no runtime. Do not call it from async code: a runtime thread parked here may be the
    /// very one that should take the frames.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_blocking(&self, frame: impl Into<Bytes>) -> Result<(), Closed> {
        let mut send = self.send(frame);
        // Without the task budget: nothing refills it here.
        block_on(std::future::poll_fn(|cx| send.poll_put(cx)))
    }

    /// Ends the stream with trailers, in turn behind the sends that wait already.
    ///
    /// Trailers are the last frame of a stream: whatever any sender sends after them is refused.
    ///
    /// # Errors
    /// [`Closed`] if the stream has ended already.
    ///
    /// # On drop
    /// Cancel-safe, as [`send`](Self::send).
    pub async fn send_trailers(&self, trailers: HeaderMap) -> Result<(), Closed> {
        let mut trailers = Some(trailers);
        let mut turn = Turn {
            shared: &self.shared,
            need: Need::Trailers,
            ticket: None,
        };
        std::future::poll_fn(|cx| {
            let Turn {
                shared,
                need,
                ticket,
            } = &mut turn;
            shared.with(|state, after| {
                ready!(state.poll_turn(ticket, *need, cx, after))?;
                if let Some(trailers) = trailers.take() {
                    state.put_trailers(trailers, after);
                }
                Poll::Ready(Ok(()))
            })
        })
        .await
    }

    /// Waits until the stream takes no more frames: mostly, until the client has left.
    ///
    /// # On drop
    /// Cancel-safe; nothing is left behind.
    pub async fn closed(&self) {
        let mut watch = Watch {
            shared: &self.shared,
            ticket: None,
        };
        std::future::poll_fn(|cx| {
            let Watch { shared, ticket } = &mut watch;
            shared.with(|state, after| state.poll_closed(ticket, cx, after))
        })
        .await;
    }

    /// Whether the stream takes no more frames.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().open().is_err()
    }

    /// This sender as an `AsyncWrite`.
    pub fn into_writer(self) -> FrameWriter {
        FrameWriter::new(self)
    }

    /// This sender as a `Sink` of frames.
    pub fn into_sink(self) -> FrameSink {
        FrameSink::new(self)
    }
}

impl Clone for FrameSender {
    fn clone(&self) -> Self {
        self.shared.add_sender();
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        self.shared.remove_sender();
    }
}

impl fmt::Debug for FrameSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSender").finish_non_exhaustive()
    }
}

/// A [`FrameSender::send`] in progress.
#[must_use = "a frame is not sent unless the future is awaited"]
pub struct SendFrame<'a> {
    shared: &'a Shared,
    /// Empty once it is in.
    frame: Bytes,
    ticket: Option<u64>,
}

impl SendFrame<'_> {
    fn poll_put(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let need = Need::Bytes(self.frame.len());
        poll_put(self.shared, &mut self.frame, need, &mut self.ticket, cx)
    }
}

/// Puts a frame in when it is its turn; leaves it empty then.
pub(super) fn poll_put(
    shared: &Shared,
    frame: &mut Bytes,
    need: Need,
    ticket: &mut Option<u64>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Closed>> {
    shared.with(|state, after| {
        if frame.is_empty() {
            return Poll::Ready(state.open());
        }
        ready!(state.poll_turn(ticket, need, cx, after))?;
        state.put(std::mem::take(frame), after);
        Poll::Ready(Ok(()))
    })
}

impl Future for SendFrame<'_> {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A producer whose client keeps up would never wait: the task budget makes it yield.
        let budget = ready!(coop::poll_proceed(cx));
        let result = ready!(self.poll_put(cx));
        budget.made_progress();
        Poll::Ready(result)
    }
}

impl Drop for SendFrame<'_> {
    fn drop(&mut self) {
        leave(self.shared, &mut self.ticket, Need::Bytes(self.frame.len()));
    }
}

impl fmt::Debug for SendFrame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendFrame")
            .field("len", &self.frame.len())
            .field("waiting", &self.ticket.is_some())
            .finish()
    }
}

/// Gives up a place in line, or what was granted.
#[inline]
pub(super) fn leave(shared: &Shared, ticket: &mut Option<u64>, need: Need) {
    if let Some(ticket) = ticket.take() {
        shared.with(|state, after| state.leave(ticket, need, after));
    }
}

/// A place in line, given up on drop.
struct Turn<'a> {
    shared: &'a Shared,
    need: Need,
    ticket: Option<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        leave(self.shared, &mut self.ticket, self.need);
    }
}

/// A place among those who wait for the end, given up on drop.
struct Watch<'a> {
    shared: &'a Shared,
    ticket: Option<u64>,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.shared
                .with(|state, after| state.unwatch(ticket, after));
        }
    }
}
