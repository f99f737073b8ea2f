//! How many threads, and how long anybody waits.

use std::time::Duration;

use super::pool::Pool;

/// How a [`Pool`] is made.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct PoolBuilder {
    pub(super) config: Config,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) max_threads: usize,
    pub(super) wait_limit: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) max_depth: usize,
    pub(super) close_limit: Duration,
    pub(super) closer_limit: Duration,
    pub(super) stack_size: Option<usize>,
    pub(super) thread_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_threads: 128,
            wait_limit: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
            max_depth: 16,
            close_limit: Duration::from_secs(30),
            closer_limit: Duration::from_secs(30),
            stack_size: None,
            thread_name: "bridge".into(),
        }
    }
}

impl PoolBuilder {
    /// The most threads there may be at a time (default 128, at least 1).
    ///
    /// A request keeps its thread from its first bridge call to the end of its response body.
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.config.max_threads = threads.max(1);
        self
    }

    /// How long a request waits for a thread (default 5 s), and code that can only go on when other code
    /// of its request does, before its `TooDeep` or `HeadBlocked`.
    pub fn wait_limit(mut self, limit: Duration) -> Self {
        self.config.wait_limit = limit;
        self
    }

    /// How long an idle thread is kept (default 10 s).
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.config.idle_timeout = timeout;
        self
    }

    /// How many sync calls may be nested on one thread (default 16, at least 1).
    pub fn max_depth(mut self, depth: usize) -> Self {
        self.config.max_depth = depth.max(1);
        self
    }

    /// How long the end waits for sync code that does not come back (default 30 s).
    ///
    /// It bounds [`Context::close`](super::Context::close) and the end of a
    /// [`SyncBody::in_pool`](super::SyncBody::in_pool); under a layer the two waits of the response's teardown
    /// for this thread, that for the local tasks and that behind the closers.
    pub fn close_limit(mut self, limit: Duration) -> Self {
        self.config.close_limit = limit;
        self
    }

    /// How long one closer without a layer may wait in `block_on` (default 30 s).
    ///
    /// Under a layer its [`closer_limit`](crate::scope::ScopeLayer::closer_limit) counts instead.
    pub fn closer_limit(mut self, limit: Duration) -> Self {
        self.config.closer_limit = limit;
        self
    }

    /// The stack of each thread in bytes (default: that of the standard library, 2 MiB).
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.config.stack_size = Some(bytes);
        self
    }

    /// What thread names begin with (default `bridge`).
    pub fn thread_name(mut self, prefix: impl Into<String>) -> Self {
        self.config.thread_name = prefix.into();
        self
    }

    /// Makes the pool; no thread is started yet.
    #[must_use]
    pub fn build(self) -> Pool {
        Pool::with(self.config)
    }
}
