//! The head of a response: what its scope notes of it, and how it stands by then.

use std::sync::{Arc, atomic::Ordering};

use http::Response;

use super::{close::ResponseScope, machine::Scope, options::ShutdownKind};
use crate::{content_encoding, supervisor::Member};

/// How a scope stands when its head comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtHead {
    /// Something is registered.
    Used,
    /// Nothing yet.
    Unused,
    /// Nothing, nobody is left who could, and nobody hears of the end: neither its start nor how.
    Unreached,
}

/// Owner and finisher each hold the scope, and so do a registry and a parent; more holders are views.
const OWN_HANDLES: usize = 2;

impl Scope {
    /// The head has come: notes the status, and what a shutdown would end the body with.
    ///
    /// Leaves a handle for `close` if something is registered, or may be.
    pub(super) fn at_head<B>(self: &Arc<Self>, response: &mut Response<B>) -> AtHead {
        // A body with a scope of its own, made in the handler: it becomes our child.
        let child = ResponseScope::take(response.extensions_mut());
        let has_child = child.is_some();
        // One that is our child already counts only for what is registered with it.
        let adopted = child.is_some_and(|child| {
            child.answers.store(true, Ordering::Release);
            if self.cloned.load(Ordering::Acquire) {
                self.hear_of_answer(&child);
            }
            let used = self.adopt(child.clone()) || child.lock().used;
            self.hold_with(&child);
            used
        });
        // A movable child tells its parent that this is the answer.
        let has_parent = self.parent.get().is_some();
        let own =
            OWN_HANDLES + usize::from(self.registration.is_listed()) + usize::from(has_parent);
        // Counted before the lock is taken: whoever went before has left its word in there.
        let views = Arc::strong_count(self) > own || Arc::weak_count(self) > 0;
        let (used, untouched, has_policy) = {
            let mut state = self.lock();
            state.used |= adopted;
            state.status = Some(response.status());
            let is_encoded = || content_encoding::is_encoded(response.headers());
            state.encoded = (state.used || views) && is_encoded();
            let policy = state.options(self).shutdown.clone();
            let has_policy = match policy.as_deref().map(|policy| (policy, &policy.kind)) {
                Some((policy, ShutdownKind::EndNow { .. })) => {
                    let content_type = response.headers().get(http::header::CONTENT_TYPE);
                    let content_type = content_type.and_then(|value| value.to_str().ok());
                    let frame = policy.frame_for(content_type.unwrap_or_default());
                    state.work().last_frame = frame.filter(|_| !is_encoded());
                    true
                }
                Some((_, ShutdownKind::Abort | ShutdownKind::Finish { within: Some(_) })) => true,
                Some((_, ShutdownKind::Finish { within: None })) | None => false,
            };
            (state.used, state.is_untouched(self), has_policy)
        };
        let told = has_child || (has_parent && self.movable);
        if used || told || views {
            let extensions = response.extensions_mut();
            extensions.insert(ResponseScope::new(self.clone()));
        }
        if has_policy && self.supervisor().is_draining() {
            self.clone().shut_down();
        }
        let alone = own == OWN_HANDLES && !self.movable && self.connection.upload().is_none();
        match (used, views) {
            (true, _) => AtHead::Used,
            (false, false) if alone && untouched && !told => AtHead::Unreached,
            (false, _) => AtHead::Unused,
        }
    }

    /// An answer in place of a response that has not come: leaves the handle for `close` there.
    pub(super) fn lead_here(self: &Arc<Self>, extensions: &mut http::Extensions) {
        let has_parent = self.parent.get().is_some();
        if self.lock().used || (has_parent && self.movable) {
            extensions.insert(ResponseScope::new(self.clone()));
        }
    }

    /// Makes a standalone body's scope known to the layers its response passes, and to `close`.
    pub(crate) fn announce_in(scope: Arc<Self>, extensions: &mut http::Extensions) {
        extensions.insert(ResponseScope::new(scope));
    }
}
