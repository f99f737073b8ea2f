//! Who waits for room, in turn, and what is granted to them.
//!
//! 1. Waiters stand in the order of their tickets. They are served from the front only; whoever comes for a
//!    grant that was taken back stands where its ticket says, before all younger ones.
//! 2. `reserved` is the sum of the grants that are out, loans included, so that nobody else is let into
//!    their room.
//! 3. While the trailers are granted nothing else is: they are the last to go in.

use std::{
    collections::VecDeque,
    mem,
    task::{Context, Poll, Waker},
};

use super::{
    after::{After, refresh},
    buffer::rest,
};

/// Looks that find nothing before loans are taken back, at first.
const LOOKS: u32 = 2;

/// The same for a channel whose writers were slow to come: some hundred microseconds.
const MOST_LOOKS: u32 = 256;

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

/// How full the buffer is.
#[derive(Clone, Copy)]
pub(super) struct Fill {
    pub(super) buffered: usize,
    pub(super) bound: usize,
}

struct Waiter {
    ticket: u64,
    need: Need,
    waker: Waker,
}

pub(super) struct Line {
    waiters: VecDeque<Waiter>,
    next_ticket: u64,
    /// Bytes granted to woken senders and not yet put in.
    reserved: usize,
    /// What of it can be taken back, by the tickets of those who have it.
    lent: VecDeque<(u64, usize)>,
    /// How often the receiver has found nothing since the last of them was made.
    looks: u32,
    /// How often it has to before they are taken back.
    patience: u32,
    /// The sender of the trailers has been granted: nobody else gets in.
    trailers_granted: bool,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            waiters: VecDeque::new(),
            next_ticket: 0,
            reserved: 0,
            lent: VecDeque::new(),
            looks: 0,
            patience: LOOKS,
            trailers_granted: false,
        }
    }

    /// Tickets are numbers that nobody else has.
    pub(super) fn draw(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        ticket
    }

    /// Bytes that a newcomer may put in now.
    #[inline]
    pub(super) fn room(&self, fill: Fill) -> usize {
        if self.waiters.is_empty() && !self.trailers_granted {
            fill.bound.saturating_sub(self.taken(fill))
        } else {
            0
        }
    }

    /// Whether a newcomer is let in now.
    #[inline]
    pub(super) fn admits(&self, need: Need, fill: Fill) -> bool {
        self.waiters.is_empty() && !self.trailers_granted && self.fits(need, fill)
    }

    /// Waits in line. Ready: the caller has to put its frame in under the same lock.
    #[inline]
    pub(super) fn poll_turn(
        &mut self,
        ticket: &mut Option<u64>,
        need: Need,
        fill: Fill,
        cx: &mut Context<'_>,
        after: &mut After,
    ) -> Poll<()> {
        match *ticket {
            None if self.admits(need, fill) => Poll::Ready(()),
            None => {
                // First: who holds a ticket and does not wait counts as granted.
                let waker = cx.waker().clone();
                let drawn = self.draw();
                *ticket = Some(drawn);
                self.waiters.push_back(Waiter {
                    ticket: drawn,
                    need,
                    waker,
                });
                Poll::Pending
            }
            Some(drawn) => match self.place(drawn) {
                Ok(place) => {
                    refresh(&mut self.waiters[place].waker, cx, after);
                    Poll::Pending
                }
                Err(place) if !self.keeps_grant(drawn, need, fill) => {
                    // It was only slow to come, a thread of its own perhaps.
                    self.patience = (self.patience * 2).min(MOST_LOOKS);
                    self.waiters.insert(
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
                    Poll::Ready(())
                }
            },
        }
    }

    /// Leaves the line, or gives back what was granted. Others may have to be served.
    pub(super) fn leave(&mut self, ticket: u64, need: Need, after: &mut After) {
        match self.place(ticket) {
            Ok(place) => after.stale = self.waiters.remove(place).map(|waiter| waiter.waker),
            Err(_) => {
                self.give_back(ticket, need);
            }
        }
    }

    /// Whether the line is to be served: at half empty, so that senders are woken for a batch and not for
    /// every frame.
    #[inline]
    pub(super) fn is_due(&self, fill: Fill) -> bool {
        let Some(front) = self.waiters.front() else {
            return false;
        };
        match front.need {
            Need::Bytes(_) | Need::Loan(_) => {
                self.taken(fill) <= fill.bound / 2 || fill.buffered == 0
            }
            Need::Trailers => true,
        }
    }

    /// Grants from the front of the line what fits. A receiver that waits is woken for a loan: it does not
    /// sleep while loans are out.
    pub(super) fn serve(&mut self, fill: Fill, receiver: &mut Option<Waker>, after: &mut After) {
        while !self.trailers_granted {
            match self.waiters.front() {
                Some(front) if self.fits(front.need, fill) => {}
                _ => break,
            }
            let Some(front) = self.waiters.pop_front() else {
                break;
            };
            match front.need {
                Need::Bytes(len) => self.reserved = self.reserved.saturating_add(len),
                Need::Loan(len) => {
                    self.reserved = self.reserved.saturating_add(len);
                    self.lent.push_back((front.ticket, len));
                    self.looks = 0;
                    if let Some(receiver) = receiver.take() {
                        after.receiver = Some(receiver);
                    }
                }
                Need::Trailers => self.trailers_granted = true,
            }
            after.wake(front.waker);
        }
    }

    pub(super) fn has_loans(&self) -> bool {
        !self.lent.is_empty()
    }

    /// There is nothing to receive, and loans are out: whoever has one may have been given up, so it
    /// is taken back after some looks. Between them those who were woken come in.
    ///
    /// True if they were taken back, and the line is to be served.
    pub(super) fn call_in(&mut self) -> bool {
        self.looks += 1;
        let due = self.looks >= self.patience;
        if due {
            for (_, len) in self.lent.drain(..) {
                self.reserved -= len;
            }
        }
        due
    }

    /// Nothing goes in any more: everybody who waits is to be told.
    pub(super) fn dissolve(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.reserved = 0;
        self.lent.clear();
        let waiters = mem::take(&mut self.waiters);
        waiters.into_iter().map(|waiter| waiter.waker)
    }

    /// Gives back what a burst has grown, once nobody waits.
    pub(super) fn rest(&mut self) {
        rest(&mut self.waiters);
        rest(&mut self.lent);
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.waiters.capacity()
    }

    #[inline]
    fn place(&self, ticket: u64) -> Result<usize, usize> {
        match self.waiters.front() {
            Some(front) if front.ticket <= ticket => self
                .waiters
                .binary_search_by_key(&ticket, |waiter| waiter.ticket),
            // It was granted: nearly always.
            _ => Err(0),
        }
    }

    /// Bytes of the bound that are spoken for.
    fn taken(&self, fill: Fill) -> usize {
        fill.buffered.saturating_add(self.reserved)
    }

    fn fits(&self, need: Need, fill: Fill) -> bool {
        match need {
            Need::Bytes(len) | Need::Loan(len) => {
                let taken = self.taken(fill);
                taken == 0 || taken.saturating_add(len) <= fill.bound
            }
            Need::Trailers => self.reserved == 0,
        }
    }

    /// Gives back what was granted, to be used now. False if it was taken back, and is gone.
    fn keeps_grant(&mut self, ticket: u64, need: Need, fill: Fill) -> bool {
        self.give_back(ticket, need) || (!self.trailers_granted && self.fits(need, fill))
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
}
