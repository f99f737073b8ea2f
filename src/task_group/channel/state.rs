//! The channel's buffer, its line and its ends, as one synchronous state.

use std::{
    mem,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;

use super::{
    after::{After, refresh},
    buffer::Buffer,
    error::{Closed, Reason},
    line::{Fill, Line, Need},
};
use crate::scope::StreamId;

/// All that the lock guards. Every method leaves what must happen outside the lock in an `After`.
pub(super) struct State {
    buffer: Buffer,
    bound: usize,
    line: Line,
    trailers: Option<Box<HeaderMap>>,
    preserve_frames: bool,
    end: Option<End>,
    /// Drawn at the end: whoever is told of that is told of which.
    id: Option<StreamId>,
    /// The receiver has gone.
    gone: bool,
    /// It went before the senders did.
    cut: bool,
    receiver: Option<Waker>,
    /// Who waits for the end: their tickets are drawn from the same numbers.
    watchers: Vec<(u64, Waker)>,
}

/// Why nothing more goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Every sender is gone.
    Finished,
    Closed(Reason),
}

/// What the receiver finds.
pub(super) enum Next {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

impl State {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            buffer: Buffer::default(),
            bound: bound.max(1),
            line: Line::new(),
            trailers: None,
            preserve_frames: false,
            end: None,
            id: None,
            gone: false,
            cut: false,
            receiver: None,
            watchers: Vec::new(),
        }
    }

    pub(super) fn bound(&self) -> usize {
        self.bound
    }

    /// For what comes from now on.
    pub(super) fn set_bound(&mut self, bound: usize) {
        self.bound = bound.max(1);
    }

    pub(super) fn set_preserve_frames(&mut self, preserve: bool) {
        self.preserve_frames = preserve;
    }

    /// Bytes buffered, and whether more may come.
    pub(super) fn remaining(&self) -> (usize, bool) {
        let more = self.end.is_none() || self.trailers.is_some();
        (self.buffer.len(), more)
    }

    /// Err once nothing more goes in.
    pub(super) fn open(&self) -> Result<(), Closed> {
        match self.end {
            Some(End::Closed(reason)) => Err(Closed {
                reason,
                stream: self.id,
            }),
            // Nobody is left to ask.
            Some(End::Finished) | None => Ok(()),
        }
    }

    /// The receiver has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.gone
    }

    /// Which one it is, if the receiver went and senders were told.
    pub(super) fn cut(&self) -> Option<StreamId> {
        self.id.filter(|_| self.cut)
    }

    /// Nothing more goes in.
    #[cfg(test)]
    pub(super) fn ended(&self) -> bool {
        self.end.is_some()
    }

    // ---- senders ----

    /// Bytes that a newcomer may put in now.
    pub(super) fn room(&self) -> usize {
        self.line.room(self.fill())
    }

    /// Whether a newcomer is let in now. If so, it has to put its frame in under the same lock.
    pub(super) fn admits(&self, need: Need) -> bool {
        self.line.admits(need, self.fill())
    }

    /// Waits in line. Ready: the caller has to put its frame in under the same lock.
    #[inline]
    pub(super) fn poll_turn(
        &mut self,
        ticket: &mut Option<u64>,
        need: Need,
        cx: &mut Context<'_>,
        after: &mut After,
    ) -> Poll<Result<(), Closed>> {
        if let Err(closed) = self.open() {
            *ticket = None;
            return Poll::Ready(Err(closed));
        }
        let fill = self.fill();
        self.line.poll_turn(ticket, need, fill, cx, after).map(Ok)
    }

    /// Leaves the line, or gives back what was granted.
    pub(super) fn leave(&mut self, ticket: u64, need: Need, after: &mut After) {
        if self.end.is_some() {
            return;
        }
        self.line.leave(ticket, need, after);
        self.serve(after);
    }

    /// Puts in a frame that was let in.
    #[inline]
    pub(super) fn put(&mut self, frame: Bytes, after: &mut After) {
        self.buffer
            .push(frame, !self.preserve_frames, self.bound, &mut after.spent);
        after.receiver = self.receiver.take();
        self.serve_if_due(after);
    }

    /// Puts in a copy of bytes that were let in.
    pub(super) fn put_slice(&mut self, data: &[u8], after: &mut After) {
        let merge = !self.preserve_frames;
        after.spent.0 = self.buffer.push_slice(data, merge, self.bound);
        after.receiver = self.receiver.take();
        self.serve_if_due(after);
    }

    /// Puts in the trailers that were let in: the end.
    pub(super) fn put_trailers(&mut self, trailers: HeaderMap, after: &mut After) {
        self.trailers = Some(Box::new(trailers));
        self.finish(End::Closed(Reason::Trailers), after);
    }

    /// The last sender has gone.
    pub(super) fn senders_gone(&mut self, after: &mut After) {
        if self.end.is_none() {
            self.finish(End::Finished, after);
        }
    }

    // ---- receiver ----

    /// The receiver's waker, if it waits.
    #[inline]
    pub(super) fn awaited(&self) -> Option<&Waker> {
        self.receiver.as_ref()
    }

    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        after: &mut After,
    ) -> Poll<Option<Next>> {
        if let Some(frame) = self.buffer.pop() {
            self.serve_if_due(after);
            return Poll::Ready(Some(Next::Data(frame)));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Next::Trailers(trailers)));
        }
        if self.end.is_some() {
            return Poll::Ready(None);
        }
        // First: whoever is called in was granted room, and a clone that panics would keep it from them.
        match &mut self.receiver {
            Some(waker) => refresh(waker, cx, after),
            none => *none = Some(cx.waker().clone()),
        }
        if self.line.has_loans() {
            self.call_in(after);
        }
        self.buffer.rest();
        self.line.rest();
        Poll::Pending
    }

    /// Refuses further frames; what is buffered is still delivered, trailers are not.
    ///
    /// A stream that failed must not look whole. Gives what is discarded, to be dropped unlocked.
    #[must_use]
    pub(super) fn refuse(&mut self, after: &mut After) -> Option<Box<HeaderMap>> {
        let open = matches!(self.end, None | Some(End::Closed(Reason::Trailers)));
        if open && !self.gone {
            self.finish(End::Closed(Reason::Refused), after);
        }
        self.trailers.take()
    }

    /// The receiver has gone: nothing is delivered any more.
    ///
    /// Gives what is discarded, to be dropped unlocked.
    #[must_use]
    pub(super) fn receiver_gone(&mut self, after: &mut After) -> (Buffer, Option<Box<HeaderMap>>) {
        let whole = match self.end {
            Some(End::Finished) => true,
            // Taken with all before them. What is sent behind them is lost by its sender's own fault, and
            // not because the receiver has gone.
            Some(End::Closed(Reason::Trailers)) => {
                self.buffer.is_empty() && self.trailers.is_none()
            }
            Some(End::Closed(_)) | None => false,
        };
        if !mem::replace(&mut self.gone, true) && !whole {
            self.cut = true;
            self.finish(End::Closed(Reason::Gone), after);
        }
        (mem::take(&mut self.buffer), self.trailers.take())
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.line.waiting()
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.buffer.slots() + self.line.slots()
    }

    // ---- watchers ----

    /// Ready once nothing more goes in.
    pub(super) fn poll_closed(
        &mut self,
        ticket: &mut Option<u64>,
        cx: &mut Context<'_>,
        after: &mut After,
    ) -> Poll<()> {
        if self.open().is_err() {
            *ticket = None;
            return Poll::Ready(());
        }
        match ticket.and_then(|id| self.watchers.iter_mut().find(|watcher| watcher.0 == id)) {
            Some((_, waker)) => refresh(waker, cx, after),
            None => {
                let waker = cx.waker().clone();
                let drawn = self.line.draw();
                *ticket = Some(drawn);
                self.watchers.push((drawn, waker));
            }
        }
        Poll::Pending
    }

    pub(super) fn unwatch(&mut self, ticket: u64, after: &mut After) {
        if let Some(place) = self.watchers.iter().position(|watcher| watcher.0 == ticket) {
            after.stale = Some(self.watchers.swap_remove(place).1);
        }
    }

    // ---- the line ----

    fn fill(&self) -> Fill {
        Fill {
            buffered: self.buffer.len(),
            bound: self.bound,
        }
    }

    fn serve(&mut self, after: &mut After) {
        self.line.serve(self.fill(), &mut self.receiver, after);
    }

    fn serve_if_due(&mut self, after: &mut After) {
        if self.line.is_due(self.fill()) {
            self.serve(after);
        }
    }

    /// There is nothing to receive, and loans are out: the receiver that waits is to look again.
    fn call_in(&mut self, after: &mut After) {
        if self.line.call_in() {
            self.serve(after);
        }
        // For a new loan it has been taken out.
        if self.line.has_loans() && self.receiver.is_some() {
            after.receiver = self.receiver.take();
        }
    }

    /// Nothing goes in any more: everybody who waits is told.
    fn finish(&mut self, end: End, after: &mut After) {
        self.end = Some(end);
        if matches!(end, End::Closed(_)) {
            self.id.get_or_insert_with(StreamId::next);
        }
        let waiting = self.line.dissolve();
        let watchers = mem::take(&mut self.watchers);
        for waker in waiting.chain(watchers.into_iter().map(|watcher| watcher.1)) {
            after.wake(waker);
        }
        after.receiver = self.receiver.take();
    }
}
