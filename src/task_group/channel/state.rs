//! Admission, order and ends of the channel, as one synchronous state.

use std::{
    collections::VecDeque,
    mem,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;

use super::{
    after::{After, refresh},
    buffer::{Buffer, rest},
    error::{Closed, Reason},
};

/// Looks that find nothing before loans are taken back, at first.
const LOOKS: u32 = 2;

/// The same for a channel whose writers were slow to come: some hundred microseconds.
const MOST_LOOKS: u32 = 256;

/// All that the lock guards. Every method leaves what must happen outside the lock in an `After`.
pub(super) struct State {
    buffer: Buffer,
    bound: usize,
    /// Bytes granted to woken senders and not yet put in.
    reserved: usize,
    /// What of it can be taken back, by the tickets of those who have it.
    lent: VecDeque<(u64, usize)>,
    /// How often the receiver has found nothing since the last of them was made.
    looks: u32,
    /// How often it has to before they are taken back.
    patience: u32,
    /// Who waits for room, in the order of their tickets.
    line: VecDeque<Waiter>,
    next_ticket: u64,
    /// The sender of the trailers has been granted: nobody else gets in.
    trailers_granted: bool,
    trailers: Option<Box<HeaderMap>>,
    preserve_frames: bool,
    end: Option<End>,
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

struct Waiter {
    ticket: u64,
    need: Need,
    waker: Waker,
}

/// What somebody waits in line for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    Bytes(usize),
    /// The same for one who may wait without a future, whose going nobody would see: what it is
    /// granted can be taken back, and then it is the first in line again.
    Loan(usize),
    /// No room, but the end: what was granted before has to be in.
    Trailers,
}

/// What the receiver finds.
pub(super) enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl State {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            buffer: Buffer::default(),
            bound: bound.max(1),
            reserved: 0,
            lent: VecDeque::new(),
            looks: 0,
            patience: LOOKS,
            line: VecDeque::new(),
            next_ticket: 0,
            trailers_granted: false,
            trailers: None,
            preserve_frames: false,
            end: None,
            gone: false,
            cut: false,
            receiver: None,
            watchers: Vec::new(),
        }
    }

    pub(super) fn bound(&self) -> usize {
        self.bound
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
            Some(End::Closed(reason)) => Err(Closed { reason }),
            // Nobody is left to ask.
            Some(End::Finished) | None => Ok(()),
        }
    }

    /// The receiver has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.gone
    }

    /// The receiver went, and senders were told.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Nothing more goes in.
    #[cfg(test)]
    pub(super) fn ended(&self) -> bool {
        self.end.is_some()
    }

    // ---- senders ----

    /// Bytes that a newcomer may put in now.
    pub(super) fn room(&self) -> usize {
        if self.line.is_empty() && !self.trailers_granted {
            self.bound.saturating_sub(self.taken())
        } else {
            0
        }
    }

    /// Whether a newcomer is let in now. If so, it has to put its frame in under the same lock.
    pub(super) fn admits(&self, need: Need) -> bool {
        self.line.is_empty() && !self.trailers_granted && self.fits(need)
    }

    /// Waits in line. Ready: the caller has to put its frame in under the same lock.
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
        match *ticket {
            None if self.admits(need) => Poll::Ready(Ok(())),
            None => {
                let drawn = self.draw();
                *ticket = Some(drawn);
                self.line.push_back(Waiter {
                    ticket: drawn,
                    need,
                    waker: cx.waker().clone(),
                });
                Poll::Pending
            }
            Some(drawn) => match self.place(drawn) {
                Ok(place) => {
                    refresh(&mut self.line[place].waker, cx, after);
                    Poll::Pending
                }
                Err(place) if !self.keeps_grant(drawn, need) => {
                    // It was only slow to come, a thread of its own perhaps.
                    self.patience = (self.patience * 2).min(MOST_LOOKS);
                    self.line.insert(
                        place,
                        Waiter {
                            ticket: drawn,
                            need,
                            waker: cx.waker().clone(),
                        },
                    );
                    Poll::Pending
                }
                Err(_) => {
                    *ticket = None;
                    Poll::Ready(Ok(()))
                }
            },
        }
    }

    /// Gives back what was granted, to be used now. False if it was taken back, and is gone.
    fn keeps_grant(&mut self, ticket: u64, need: Need) -> bool {
        self.give_back(ticket, need) || (!self.trailers_granted && self.fits(need))
    }

    /// Leaves the line, or gives back what was granted.
    pub(super) fn leave(&mut self, ticket: u64, need: Need, after: &mut After) {
        if self.end.is_some() {
            return;
        }
        match self.place(ticket) {
            Ok(place) => after.stale = self.line.remove(place).map(|waiter| waiter.waker),
            Err(_) => {
                self.give_back(ticket, need);
            }
        }
        self.serve(after);
    }

    /// Puts in a frame that was let in.
    pub(super) fn put(&mut self, frame: Bytes, after: &mut After) {
        after.spent = self.buffer.push(frame, !self.preserve_frames, self.bound);
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
            return Poll::Ready(Some(Next::Trailers(*trailers)));
        }
        if self.end.is_some() {
            return Poll::Ready(None);
        }
        if !self.lent.is_empty() {
            self.call_in(cx, after);
        }
        self.buffer.rest();
        rest(&mut self.line);
        rest(&mut self.lent);
        match &mut self.receiver {
            Some(waker) => refresh(waker, cx, after),
            none => *none = Some(cx.waker().clone()),
        }
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
        self.line.len()
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.buffer.slots() + self.line.capacity()
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
                let drawn = self.draw();
                *ticket = Some(drawn);
                self.watchers.push((drawn, cx.waker().clone()));
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

    fn draw(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        ticket
    }

    fn place(&self, ticket: u64) -> Result<usize, usize> {
        self.line
            .binary_search_by_key(&ticket, |waiter| waiter.ticket)
    }

    /// Bytes of the bound that are spoken for.
    fn taken(&self) -> usize {
        self.buffer.len().saturating_add(self.reserved)
    }

    fn fits(&self, need: Need) -> bool {
        match need {
            Need::Bytes(len) | Need::Loan(len) => {
                let taken = self.taken();
                taken == 0 || taken.saturating_add(len) <= self.bound
            }
            Need::Trailers => self.reserved == 0,
        }
    }

    /// Serves the line at half empty: senders are woken for a batch and not for every frame.
    fn serve_if_due(&mut self, after: &mut After) {
        let Some(front) = self.line.front() else {
            return;
        };
        let due = match front.need {
            Need::Bytes(_) | Need::Loan(_) => {
                self.taken() <= self.bound / 2 || self.buffer.is_empty()
            }
            Need::Trailers => true,
        };
        if due {
            self.serve(after);
        }
    }

    /// Grants from the front of the line what fits.
    fn serve(&mut self, after: &mut After) {
        while !self.trailers_granted {
            match self.line.front() {
                Some(front) if self.fits(front.need) => {}
                _ => break,
            }
            let Some(front) = self.line.pop_front() else {
                break;
            };
            match front.need {
                Need::Bytes(len) => self.reserved = self.reserved.saturating_add(len),
                Need::Loan(len) => {
                    self.reserved = self.reserved.saturating_add(len);
                    self.lent.push_back((front.ticket, len));
                    self.looks = 0;
                    // It does not sleep while loans are out.
                    if let Some(receiver) = self.receiver.take() {
                        after.receiver = Some(receiver);
                    }
                }
                Need::Trailers => self.trailers_granted = true,
            }
            after.wake(front.waker);
        }
    }

    /// False if there is nothing to give back.
    fn give_back(&mut self, ticket: u64, need: Need) -> bool {
        match need {
            Need::Bytes(len) => self.reserved -= len,
            Need::Loan(_) => {
                let mut lent = self.lent.iter();
                let place = lent.position(|loan| loan.0 == ticket);
                let Some((_, len)) = place.and_then(|place| self.lent.remove(place)) else {
                    return false;
                };
                self.reserved -= len;
            }
            Need::Trailers => self.trailers_granted = false,
        }
        true
    }

    /// There is nothing to receive, and loans are out: whoever has one may have been given up, so it
    /// is taken back after some looks. Between them those who were woken come in.
    fn call_in(&mut self, cx: &Context<'_>, after: &mut After) {
        self.looks += 1;
        if self.looks >= self.patience {
            for (_, len) in self.lent.drain(..) {
                self.reserved -= len;
            }
            self.serve(after);
        }
        if !self.lent.is_empty() {
            after.stale = after.receiver.replace(cx.waker().clone());
        }
    }

    /// Nothing goes in any more: everybody who waits is told.
    fn finish(&mut self, end: End, after: &mut After) {
        self.end = Some(end);
        self.reserved = 0;
        self.lent.clear();
        let line = mem::take(&mut self.line);
        let watchers = mem::take(&mut self.watchers);
        let waiting = line.into_iter().map(|waiter| waiter.waker);
        let watching = watchers.into_iter().map(|watcher| watcher.1);
        for waker in waiting.chain(watching) {
            after.wake(waker);
        }
        after.receiver = self.receiver.take();
    }
}
