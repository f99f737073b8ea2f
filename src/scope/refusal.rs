//! What becomes of a task that was refused, once that is an error of its response.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::failure::{quietly, sources};

/// That a task was refused, and the task, which a response that fails by it lets go: it may hold a view of that
/// response, which then would keep itself.
pub(crate) struct Refusal {
    task: Arc<dyn LetGo>,
    cause: Option<&'static (dyn Error + Send + Sync)>,
}

trait LetGo: Send + Sync {
    fn let_go(&self);
}

impl<T: Send> LetGo for Mutex<Option<T>> {
    fn let_go(&self) {
        let task = self.lock().unwrap_or_else(PoisonError::into_inner).take();
        quietly(|| drop(task));
    }
}

impl Refusal {
    pub(crate) fn new<T: Send + 'static>(
        task: Arc<Mutex<Option<T>>>,
        cause: Option<&'static (dyn Error + Send + Sync)>,
    ) -> Self {
        Self { task, cause }
    }

    /// What is refused in an error that a response keeps is dropped now.
    pub(super) fn settle(error: &(dyn Error + 'static)) {
        for error in sources(error) {
            if let Some(refusal) = error.downcast_ref::<Self>() {
                refusal.task.let_go();
            }
        }
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").finish_non_exhaustive()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused by its group")
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.map(|cause| cause as _)
    }
}
