//! What a layer can set. Each option is set or not, so that inner layers override outer ones singly, and
//! what is set for one response overrides them all.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;

use super::{annex::Settings, gap::ERROR_GAP, stall::Watchdog};
use crate::{
    outcome::{EndReport, Outcome},
    supervisor::Supervisor,
};

/// A hook for end reports.
pub(super) type Hook = Arc<dyn Fn(&EndReport) + Send + Sync>;
/// A rule for `Ending::succeeded`.
pub(super) type Rule = Arc<dyn Fn(Outcome, Option<StatusCode>) -> bool + Send + Sync>;

/// What happens to the other tasks of a scope when one fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailurePolicy {
    /// The others are cancelled, and the body fails.
    ///
    /// A body of the group ([`TaskGroup::body`](crate::TaskGroup::body),
    /// [`TaskGroupBody`](crate::TaskGroupBody)) fails once what was sent before is delivered; any
    /// other body of the response is dropped where it stands.
    #[default]
    CancelSiblings,
    /// The others go on; the body fails at its end.
    KeepOthers,
}

/// What happens to a handler, and its body, whose client has left.
///
/// Chosen by the handler, under a layer armed with
/// [`detachable`](super::ScopeLayer::detachable). The client leaves when the server drops the
/// response before its end, or the watched connection says that it has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLeave {
    /// It ends: tasks are cancelled, closers run.
    #[default]
    Cancel,
    /// It runs on in a task, up to the layer's limit; the frames of its body are discarded.
    Detach,
    /// The same, but its token fires first, and it has this long, or the layer's limit if shorter.
    Grace(Duration),
}

/// What a scope does when its supervisor starts to drain.
#[derive(Clone, Debug)]
#[must_use = "a policy does nothing unless a layer is given it"]
pub struct Shutdown {
    pub(super) kind: ShutdownKind,
}

#[derive(Clone, Debug)]
pub(super) enum ShutdownKind {
    Finish { within: Option<Duration> },
    EndNow { last_frames: Vec<(String, Bytes)> },
    Abort,
}

impl Shutdown {
    /// Lets streams end by themselves until the drain runs out of time (the default).
    pub fn finish() -> Self {
        Self::of(ShutdownKind::Finish { within: None })
    }

    /// Lets streams end by themselves for this long from the start of the shutdown, then aborts them; one that
    /// begins later has this long from its head. A drain that runs out of time aborts it earlier, and one whose
    /// runtime has no timers then only.
    pub fn finish_within(within: Duration) -> Self {
        Self::of(ShutdownKind::Finish {
            within: Some(within),
        })
    }

    /// Ends bodies at once: tasks are cancelled, closers run, then the stream ends.
    ///
    /// It ends cleanly, with a last frame, for the content types named by
    /// [`Shutdown::last_frame`]; any other body, and one with a promised length, ends in an error,
    /// since its client could take it for whole. A body that the server is not polling, because its
    /// client does not read, is reached only in the movable mode of an armed layer, or when the
    /// connection is closed.
    ///
    /// For the routes that stream without an end, not for all of an app: an ordinary answer that is given behind
    /// the start of the shutdown is a body under a promised length, and breaks, too (with a closer it is a 503 in
    /// its place), although its handler has run to its end.
    pub fn end_now() -> Self {
        Self::of(ShutdownKind::EndNow {
            last_frames: Vec::new(),
        })
    }

    /// Ends bodies at once with an error.
    pub fn abort() -> Self {
        Self::of(ShutdownKind::Abort)
    }

    /// With [`Shutdown::end_now`]: the last frame of bodies whose Content-Type starts so.
    ///
    /// It tells the client that the stream was ended, so the body may end cleanly. An empty frame
    /// just ends it: for formats whose streams may stop anywhere. A body whose frames may end in the
    /// middle of a line, as one passed on from elsewhere, needs an event that begins with `\n\n`. One
    /// with a Content-Encoding at the head of its scope has no last frame: it ends in an error.
    ///
    /// Policies other than [`Shutdown::end_now`] have no last frames: with them this changes nothing.
    pub fn last_frame(mut self, content_type: &str, frame: impl Into<Bytes>) -> Self {
        if let ShutdownKind::EndNow { last_frames } = &mut self.kind {
            last_frames.push((content_type.to_ascii_lowercase(), frame.into()));
        }
        self
    }

    fn of(kind: ShutdownKind) -> Self {
        Self { kind }
    }

    /// The last frame for a body of this Content-Type, if one was named for it.
    pub(super) fn frame_for(&self, content_type: &str) -> Option<Bytes> {
        let ShutdownKind::EndNow { last_frames } = &self.kind else {
            return None;
        };
        let content_type = content_type.to_ascii_lowercase();
        last_frames
            .iter()
            .find(|(prefix, _)| content_type.starts_with(prefix))
            .map(|(_, frame)| frame.clone())
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::finish()
    }
}

/// An option that views can set, too, for one response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Choice<T> {
    #[default]
    Unset,
    Layer(T),
    /// No layer overrides it, wherever that stands.
    Response(T),
}

impl<T: Copy> Choice<T> {
    pub(super) fn get(self) -> Option<T> {
        match self {
            Self::Unset => None,
            Self::Layer(value) | Self::Response(value) => Some(value),
        }
    }

    pub(super) fn is_unset(self) -> bool {
        matches!(self, Self::Unset)
    }

    /// This, or that of a layer further in.
    fn or_inner(self, inner: Self) -> Self {
        match (self, inner) {
            (Self::Response(_), _) | (_, Self::Unset) => self,
            _ => inner,
        }
    }
}

/// The options of one layer, or of one scope after its layers were merged.
///
/// With the supervisor, so that a service, which is cloned for each call, holds one handle.
#[derive(Clone)]
pub(crate) struct Options {
    pub(super) supervisor: Supervisor,
    /// Somebody is told how long a response took.
    pub(super) clock: bool,
    pub(super) closer_limit: Option<Duration>,
    pub(super) join_limit: Choice<Duration>,
    pub(super) cancel_grace: Choice<Duration>,
    pub(super) error_gap: Option<Duration>,
    pub(super) failure_policy: Choice<FailurePolicy>,
    pub(super) max_tasks: Choice<usize>,
    pub(super) shutdown: Option<Arc<Shutdown>>,
    pub(super) succeeded_when: Option<Rule>,
    pub(super) on_end: Vec<Hook>,
    pub(super) annex: Option<Settings>,
    pub(super) stall: Option<Arc<Watchdog>>,
    /// How long work may go on without its client.
    pub(super) detachable: Option<Duration>,
    /// Made for one request: a merge with it is of no use for the next.
    pub(super) passing: bool,
    pub(super) memo: Memo,
}

/// Who hears of the end of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hooks {
    /// Those of the layer further in, too.
    Both,
    /// Only those: the others hear of it from the scope around.
    Inner,
}

/// The first merge that a layer was asked for, so that it is made once.
///
/// One, since nearly all requests come to a layer through the same neighbour. Of that it keeps what it set as
/// long as the layer exists; weakly itself, which may be this layer, or keep a merge with it. The address
/// is nobody else's meanwhile.
#[derive(Default)]
pub(super) struct Memo(OnceLock<Merge>);

struct Merge {
    outer: Weak<Options>,
    hooks: Hooks,
    merged: Arc<Options>,
}

impl Merge {
    fn is_of(&self, outer: &Arc<Options>, hooks: Hooks) -> bool {
        Weak::as_ptr(&self.outer) == Arc::as_ptr(outer) && self.hooks == hooks
    }
}

impl Clone for Memo {
    /// Options are copied to be changed: no merge is theirs any more.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Default for Options {
    /// Nothing set, under a private supervisor.
    fn default() -> Self {
        Self {
            supervisor: Supervisor::private(),
            clock: super::observe::ON,
            closer_limit: None,
            join_limit: Choice::Unset,
            cancel_grace: Choice::Unset,
            error_gap: None,
            failure_policy: Choice::Unset,
            max_tasks: Choice::Unset,
            shutdown: None,
            succeeded_when: None,
            on_end: Vec::new(),
            annex: None,
            stall: None,
            detachable: None,
            passing: false,
            memo: Memo::default(),
        }
    }
}

impl Options {
    pub(super) const CLOSER_LIMIT: Duration = Duration::from_secs(30);
    pub(super) const JOIN_LIMIT: Duration = Duration::from_secs(30);
    pub(super) const CANCEL_GRACE: Duration = Duration::from_secs(1);

    pub(super) fn closer_limit(&self) -> Duration {
        self.closer_limit.unwrap_or(Self::CLOSER_LIMIT)
    }

    pub(super) fn join_limit(&self) -> Duration {
        self.join_limit.get().unwrap_or(Self::JOIN_LIMIT)
    }

    pub(super) fn cancel_grace(&self) -> Duration {
        self.cancel_grace.get().unwrap_or(Self::CANCEL_GRACE)
    }

    pub(super) fn error_gap(&self) -> Duration {
        self.error_gap.unwrap_or(ERROR_GAP)
    }

    pub(super) fn failure_policy(&self) -> FailurePolicy {
        self.failure_policy.get().unwrap_or_default()
    }

    /// Whether nothing is set, so that a joining layer has nothing to merge.
    pub(super) fn is_empty(&self) -> bool {
        // All by name: one that was forgotten here would have no effect on an inner layer.
        let Self {
            supervisor: _,
            clock: _,
            closer_limit,
            join_limit,
            cancel_grace,
            error_gap,
            failure_policy,
            max_tasks,
            shutdown,
            succeeded_when,
            on_end,
            annex,
            stall,
            detachable,
            passing: _,
            memo: _,
        } = self;
        closer_limit.is_none()
            && join_limit.is_unset()
            && cancel_grace.is_unset()
            && error_gap.is_none()
            && failure_policy.is_unset()
            && max_tasks.is_unset()
            && shutdown.is_none()
            && succeeded_when.is_none()
            && on_end.is_empty()
            && annex.is_none()
            && stall.is_none()
            && detachable.is_none()
    }

    /// Those of a layer further out, or of a scope, with these of a layer.
    pub(super) fn inside(&self, outer: &Arc<Options>, hooks: Hooks) -> Arc<Options> {
        let merge = |passing| Arc::new(outer.merged(self, hooks, passing));
        if outer.passing {
            return merge(true);
        }
        let first = self.memo.0.get_or_init(|| Merge {
            outer: Arc::downgrade(outer),
            hooks,
            merged: merge(false),
        });
        if first.is_of(outer, hooks) {
            return first.merged.clone();
        }
        merge(true)
    }

    /// The innermost wins, unless this is set for the response; hooks add up. The supervisor stays.
    fn merged(&self, inner: &Options, hooks: Hooks, passing: bool) -> Options {
        let outers = match hooks {
            Hooks::Both => &*self.on_end,
            Hooks::Inner => &[],
        };
        Options {
            supervisor: self.supervisor.clone(),
            clock: self.clock || inner.clock,
            closer_limit: inner.closer_limit.or(self.closer_limit),
            join_limit: self.join_limit.or_inner(inner.join_limit),
            cancel_grace: self.cancel_grace.or_inner(inner.cancel_grace),
            error_gap: inner.error_gap.or(self.error_gap),
            failure_policy: self.failure_policy.or_inner(inner.failure_policy),
            max_tasks: self.max_tasks.or_inner(inner.max_tasks),
            shutdown: inner.shutdown.clone().or_else(|| self.shutdown.clone()),
            succeeded_when: inner
                .succeeded_when
                .clone()
                .or_else(|| self.succeeded_when.clone()),
            on_end: outers.iter().chain(&inner.on_end).cloned().collect(),
            annex: inner.annex.clone().or_else(|| self.annex.clone()),
            stall: inner.stall.clone().or_else(|| self.stall.clone()),
            detachable: inner.detachable.or(self.detachable),
            passing,
            memo: Memo::default(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("supervisor", &self.supervisor)
            .field("closer_limit", &self.closer_limit())
            .field("join_limit", &self.join_limit())
            .field("cancel_grace", &self.cancel_grace())
            .field("error_gap", &self.error_gap())
            .field("failure_policy", &self.failure_policy())
            .field("max_tasks", &self.max_tasks.get())
            .field("shutdown", &self.shutdown)
            .field("succeeded_when", &self.succeeded_when.is_some())
            .field("on_end", &self.on_end.len())
            .field("stall", &self.stall)
            .field("detachable", &self.detachable)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
