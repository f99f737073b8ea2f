//! The parts of a scope that are modelled, and what stands for the others.

#[path = "../../src/scope/stream_id.rs"]
mod stream_id;

#[path = "../../src/scope/driving.rs"]
mod driving;

#[cfg(test)]
mod models;

pub(crate) use self::{failure::quietly, stream_id::StreamId};

mod failure {
    /// A model's own failure is to be seen.
    pub(crate) fn quietly(code: impl FnOnce()) {
        code();
    }
}

/// Timers, which a model lets go off at once or never.
mod limit {
    use std::{
        cell::Cell,
        task::{Context, Poll},
        time::Duration,
    };

    use loom::thread;

    thread_local! {
        // Of the test: loom runs all threads of a model in one.
        static ENDS: Cell<bool> = const { Cell::new(true) };
    }

    #[cfg(test)]
    pub(super) fn set(ends: bool) {
        ENDS.set(ends);
    }

    pub(super) struct Limit;

    impl Limit {
        pub(super) fn new(_: Duration) -> Self {
            Self
        }

        /// Others have had their turn by then, or not.
        pub(super) fn poll_if_kept(&mut self, _: &mut Context<'_>) -> Poll<()> {
            if !ENDS.get() {
                return Poll::Pending;
            }
            thread::yield_now();
            Poll::Ready(())
        }
    }
}

mod teardown {
    use std::{
        future::Future,
        pin::Pin,
        task::{Context, Poll},
    };

    use super::verdict::Verdict;
    use crate::runtime::Handle;

    pub(super) type Teardown = Pin<Box<dyn Future<Output = Verdict> + Send>>;

    pub(super) fn poll(
        _: Option<&Handle>,
        teardown: &mut Teardown,
        cx: &mut Context<'_>,
    ) -> Poll<Verdict> {
        teardown.as_mut().poll(cx)
    }
}

mod verdict {
    #[derive(Debug, PartialEq, Eq)]
    pub(super) struct Verdict;
}
