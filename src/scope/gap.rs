//! The wait of an error behind the last frame.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;

use super::{connection::Connection, limit::Limit};
use crate::outcome::Outcome;

/// What hyper needs to hand over the last frame before an error: it throws away what it has buffered
/// when a body fails at once.
pub(crate) const ERROR_GAP: Duration = Duration::from_millis(10);

/// Between two looks at a connection whose client reads slowly.
const LOOK: Duration = Duration::from_millis(10);

/// Looks that find nothing written since the one before: 5 s.
const PATIENCE: u32 = 500;

/// A client who is to have what was sent before the error may take its time for that; not one that was given up, and
/// not in a shutdown.
pub(crate) fn is_patient(outcome: Outcome) -> bool {
    use Outcome::{Disconnected, Dropped, Shutdown, Stalled};
    !matches!(outcome, Disconnected | Dropped | Shutdown | Stalled)
}

/// Splits off all but the last byte of what goes before a gap; `None` if that is all of it.
///
/// hyper gives as much to h2 as there is, and asks on, however little the client's window takes; what waits there
/// is lost in a reset. For a frame more it waits until there is room again.
pub(crate) fn all_but_a_byte(frame: &mut Bytes) -> Option<Bytes> {
    (frame.len() > 1).then(|| frame.split_to(frame.len() - 1))
}

/// Over once its time is, and the server has written what it was given before: as long as a client takes some of
/// it now and then.
#[derive(Debug)]
pub(crate) struct Gap {
    limit: Limit,
    /// Where that shows, if it does.
    connection: Option<Connection>,
    /// The write that was held up at the last look, and how many looks have found the same.
    held_up: Option<u32>,
    looks: u32,
}

impl Gap {
    /// One of no time at all waits for nothing.
    pub(crate) fn new(duration: Duration, connection: Option<Connection>) -> Self {
        Self {
            limit: Limit::new(duration),
            connection: connection.filter(|_| !duration.is_zero()),
            held_up: None,
            looks: 0,
        }
    }

    pub(crate) fn connection(&self) -> Option<&Connection> {
        self.connection.as_ref()
    }

    /// Ready at once where no timer can be had.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.limit.poll_if_kept(cx));
            if self.limit.is_broken() || !self.goes_on() {
                return Poll::Ready(());
            }
            self.limit.restart(LOOK);
        }
    }

    fn goes_on(&mut self) -> bool {
        let held_up = self.connection.as_ref().and_then(Connection::held_up);
        self.looks = match held_up == self.held_up {
            true => self.looks + 1,
            false => 0,
        };
        self.held_up = held_up;
        held_up.is_some() && self.looks < PATIENCE
    }
}
