//! Why a task was not spawned, and the task.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::channel::Closed;
use crate::scope::{Refusal, Refused};

/// The scope takes no more tasks, or not now. Gives back what was to be spawned.
///
/// A task that returns it because the response is ending has not failed by that. A task or closer that fails by
/// it lets go of what was refused, which may hold a view of the response. As an axum response
/// (feature `axum`) it is a 503 with its text.
pub struct SpawnError<T> {
    /// In a mutex, so that the error is `Sync` and `?` boxes it, whatever the future holds.
    refused: Arc<Mutex<Option<T>>>,
    refusal: Refusal,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Ending,
    NoRuntime,
    Full,
}

impl From<Refused> for Why {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Ending => Self::Ending,
            Refused::NoRuntime => Self::NoRuntime,
        }
    }
}

impl<T> SpawnError<T> {
    pub(super) fn new(why: Why, refused: T) -> Self
    where
        T: Send + 'static,
    {
        let refused = Arc::new(Mutex::new(Some(refused)));
        let cause: Option<&'static (dyn Error + Send + Sync)> = match why {
            Why::Ending => Some(&Closed::REFUSED),
            Why::NoRuntime | Why::Full => None,
        };
        Self {
            refusal: Refusal::new(refused.clone(), cause),
            refused,
            why,
        }
    }

    /// As many tasks run as the [`max_tasks`](crate::scope::ScopeLayer::max_tasks) of a layer, or
    /// [`TaskGroup::set_max_tasks`](super::TaskGroup::set_max_tasks), allows.
    ///
    /// Otherwise the end has started, or there is no tokio runtime.
    pub fn is_full(&self) -> bool {
        self.why == Why::Full
    }

    /// The future or code that was refused.
    ///
    /// # Panics
    ///
    /// Of an error that a response has failed by, and that was shared with it: the response has let go of the task,
    /// which may hold a view of it.
    pub fn into_inner(self) -> T {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused
            .take()
            .expect("only a response that failed by it has let go of it")
    }
}

impl<T> fmt::Debug for SpawnError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnError")
            .field("why", &self.why)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SpawnError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.why {
            Why::Ending => "task refused: the response is ending",
            Why::NoRuntime => "task refused: there is no tokio runtime here",
            Why::Full => "task refused: as many run as `max_tasks` allows; `spawn_when_free` waits",
        })
    }
}

impl<T> Error for SpawnError<T> {
    /// An ending group refuses tasks as it refuses frames: for a task that returns this error it is
    /// no failure of its own.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use crate::{
        BoxError, TaskResult,
        scope::{Scope, Sealed},
        task_group::group::{TaskGroup, closed},
    };

    /// Compiles: a boxed future is `Send` but not `Sync`, and its refusal is boxed by `?` all the same.
    #[tokio::test]
    async fn a_refusal_is_boxed_whatever_the_future_holds() {
        fn spawn(group: &TaskGroup) -> TaskResult {
            let task: Pin<Box<dyn Future<Output = TaskResult> + Send>> = Box::pin(async { Ok(()) });
            group.spawn(task)?;
            Ok(())
        }
        let group = TaskGroup::through(Scope::standalone());
        spawn(&group).unwrap();
        group.cancel();
        let refused = spawn(&group).unwrap_err();
        assert_eq!(refused.to_string(), "task refused: the response is ending");
    }

    #[test]
    fn outside_a_runtime_that_is_what_is_said_and_no_end_of_the_response() {
        let group = TaskGroup::through(Scope::standalone());
        let refused = group.spawn(async { Ok(()) }).unwrap_err();
        let text = "task refused: there is no tokio runtime here";
        assert_eq!(
            (refused.to_string().as_str(), refused.is_full()),
            (text, false)
        );
        let refused: BoxError = refused.into();
        assert!(closed(&refused).is_none(), "no failure of its own");
        let refused = group.spawn_blocking(|_| Ok(())).unwrap_err();
        assert_eq!(refused.to_string(), text);
    }
}
