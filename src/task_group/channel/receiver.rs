//! The body's end of the channel.

use std::{
    fmt, ptr,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::Frame;

use super::{shared::Shared, state::Next};
use crate::{scope::StreamId, sync::Arc};

/// Takes the frames. Dropping it closes the channel and frees what is buffered.
pub(crate) struct FrameReceiver {
    shared: Arc<Shared>,
    /// Seen at the last poll, so that servers may ask at every frame without the lock.
    ended: bool,
    /// Whose waker is in the state, if one was there behind the last question.
    ///
    /// Its address and not a clone, which would keep the task of a body that it owns. Nobody else has that address
    /// while the waker is there.
    waits: Option<Identity>,
}

/// What [`Waker::will_wake`] compares.
type Identity = (usize, usize);

fn identity(waker: &Waker) -> Identity {
    (waker.data().addr(), ptr::from_ref(waker.vtable()).addr())
}

/// Lets the owner of a stream refuse further frames, from anywhere.
#[derive(Clone)]
pub(crate) struct ChannelHandle {
    shared: Arc<Shared>,
}

impl FrameReceiver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            ended: false,
            waits: None,
        }
    }

    /// The next frame; `None` when every sender is gone and all is taken, after trailers, and
    /// after [`close`](Self::close).
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if self.shared.is_awaited() && self.waits == Some(identity(cx.waker())) {
            return Poll::Pending;
        }
        let (waits, ended) = (&mut self.waits, &mut self.ended);
        let next = self.shared.with(|state, after| {
            let next = state.poll_next(cx, after);
            *waits = state.awaited().map(identity);
            *ended = state.remaining() == (0, false);
            next
        });
        match next {
            Poll::Ready(Some(Next::Data(data))) => Poll::Ready(Some(Frame::data(data))),
            Poll::Ready(Some(Next::Trailers(trailers))) => {
                Poll::Ready(Some(Frame::trailers(*trailers)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    /// How many bytes are held, for what comes from now on.
    pub(crate) fn set_bound(&mut self, bound: usize) {
        self.shared.lock().set_bound(bound);
    }

    /// Whether every frame leaves as it was sent, rather than merged with its neighbours.
    pub(crate) fn set_preserve_frames(&mut self, preserve: bool) {
        self.shared.lock().set_preserve_frames(preserve);
    }

    /// Whether nothing comes any more, as far as that is known without a poll.
    pub(crate) fn is_end(&self) -> bool {
        self.ended || (!self.shared.has_senders() && self.remaining() == (0, false))
    }

    /// Bytes buffered now, and whether anything may come behind them, trailers included.
    pub(crate) fn remaining(&self) -> (usize, bool) {
        self.shared.lock().remaining()
    }

    /// Ends the channel from this side: senders get `Closed`, what is buffered is dropped.
    pub(crate) fn close(&mut self) {
        // What is discarded is dropped here, after the lock.
        drop(self.shared.with(|state, after| state.receiver_gone(after)));
        self.ended = true;
    }

    /// Senders in line.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.shared.lock().waiting()
    }

    /// Places in its queues.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.shared.lock().slots()
    }

    /// A handle that outlives neither side's interest: it keeps memory, not the stream.
    pub(crate) fn handle(&self) -> ChannelHandle {
        ChannelHandle {
            shared: self.shared.clone(),
        }
    }
}

impl Drop for FrameReceiver {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for FrameReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReceiver").finish_non_exhaustive()
    }
}

impl ChannelHandle {
    /// Further sends fail with `Closed`; what is buffered is still delivered, then `None`.
    ///
    /// Trailers that were not delivered yet are discarded: a stream that failed must not look
    /// whole. False, and nothing is done, once the receiver is gone.
    pub(crate) fn close_senders(&self) -> bool {
        let (trailers, received) = self.shared.with(|state, after| {
            let received = !state.is_abandoned();
            (state.refuse(after), received)
        });
        drop(trailers);
        received
    }

    /// Which stream it is, if the receiver went before the end, so that senders may have been told.
    pub(crate) fn cut(&self) -> Option<StreamId> {
        self.shared.lock().cut()
    }

    /// Counts as a sender from now on; an end that has come already stays.
    pub(crate) fn add_sender(&self) {
        self.shared.add_sender();
    }

    /// Counts no more.
    pub(crate) fn remove_sender(&self) {
        self.shared.remove_sender();
    }

    /// Nothing more goes in, whatever the reason.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.lock().ended()
    }
}

impl fmt::Debug for ChannelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelHandle").finish_non_exhaustive()
    }
}
