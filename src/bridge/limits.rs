//! How long code on a bridge thread may wait on its loop.

use std::{future::Future, pin::Pin, task::Context};

use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::session::Session;

/// Timers of one wait, made only when it lasts.
#[derive(Default)]
pub(super) struct Limits {
    closer: Option<Pin<Box<Sleep>>>,
    depth: Option<Pin<Box<Sleep>>>,
}

impl Limits {
    pub(super) fn closer_is_late(
        &mut self,
        task: &mut Context<'_>,
        deadline: Option<Instant>,
    ) -> bool {
        let Some(deadline) = deadline else {
            return false;
        };
        let sleep = self
            .closer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        sleep.as_mut().poll(task).is_ready()
    }

    /// Calls from other threads are let in once the stack is less deep, but not waited for forever:
    /// they may be what the code on the stack waits for.
    pub(super) fn waited_too_deep(&mut self, task: &mut Context<'_>, session: &Session) -> bool {
        if !session.has_jobs() {
            self.depth = None;
            return false;
        }
        let limit = session.pool.config().wait_limit;
        let wait = self.depth.get_or_insert_with(|| Box::pin(sleep(limit)));
        let over = wait.as_mut().poll(task).is_ready();
        if over {
            self.depth = None;
        }
        over
    }
}
