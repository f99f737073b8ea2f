//! The span of `tracing` that code runs in, wherever it runs. Without that feature there is none of it.
//!
//! A scope keeps the one that was current at its opening until it is done; a task, a producer and code of the
//! bridge that of the place they were handed over at.
//!
//! Subscribers are the application's: what they do as a span is cloned, entered, left or closed may panic. Behind
//! the first a span is shared, so that it can be cloned, and taken, under a lock.

use std::{future::Future, marker::PhantomData};

#[cfg(feature = "tracing")]
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

#[cfg(feature = "tracing")]
use pin_project::{pin_project, pinned_drop};

#[cfg(feature = "tracing")]
use super::failure::{contained, quietly};
use super::machine::Scope;

/// A span, if one was current.
#[derive(Clone, Default)]
pub(crate) struct Span {
    #[cfg(feature = "tracing")]
    span: Option<Arc<tracing::Span>>,
}

#[cfg(not(feature = "tracing"))]
const _: () = assert!(size_of::<Span>() + size_of::<Entered<'_>>() == 0);

impl Span {
    /// That of the code that asks.
    pub(crate) fn current() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: contained(tracing::Span::current)
                .ok()
                .filter(|span| !span.is_disabled())
                .map(Arc::new),
        }
    }

    /// Another where this is none.
    pub(crate) fn or(self, other: impl FnOnce() -> Self) -> Self {
        #[cfg(feature = "tracing")]
        return if self.span.is_some() { self } else { other() };
        #[cfg(not(feature = "tracing"))]
        {
            let _ = other;
            self
        }
    }

    /// What follows runs in it, up to the drop of the guard. None leaves what is current.
    pub(crate) fn enter(&self) -> Entered<'_> {
        Entered {
            #[cfg(feature = "tracing")]
            entered: (self.span.as_deref()).and_then(|span| contained(|| span.enter()).ok()),
            marks: PhantomData,
        }
    }

    /// A future that is polled, and dropped, in it.
    pub(crate) fn around<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        #[cfg(feature = "tracing")]
        return Within {
            future: Some(future),
            span: self,
        };
        #[cfg(not(feature = "tracing"))]
        future
    }
}

#[cfg(feature = "tracing")]
impl Drop for Span {
    fn drop(&mut self) {
        if let Some(span) = self.span.take() {
            quietly(|| drop(span));
        }
    }
}

/// Leaves its span when dropped, also by a panic. It stays on its thread.
#[must_use = "the span is left at once"]
pub(crate) struct Entered<'a> {
    #[cfg(feature = "tracing")]
    entered: Option<tracing::span::Entered<'a>>,
    marks: PhantomData<(&'a Span, *const ())>,
}

#[cfg(feature = "tracing")]
impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(entered) = self.entered.take() {
            quietly(|| drop(entered));
        }
    }
}

#[cfg(feature = "tracing")]
#[pin_project(PinnedDrop)]
struct Within<F> {
    #[pin]
    future: Option<F>,
    span: Span,
}

#[cfg(feature = "tracing")]
impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.span.enter();
        match this.future.as_pin_mut() {
            Some(future) => future.poll(cx),
            // It is there until the drop.
            None => Poll::Pending,
        }
    }
}

#[cfg(feature = "tracing")]
#[pinned_drop]
impl<F> PinnedDrop for Within<F> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        let _entered = this.span.enter();
        this.future.set(None);
    }
}

impl Scope {
    /// The span that it was opened in; none once it is done.
    pub(crate) fn span(&self) -> Span {
        #[cfg(feature = "tracing")]
        return self.lock().span.clone();
        #[cfg(not(feature = "tracing"))]
        Span::default()
    }

    /// The span of the code that asks, or else its own.
    pub(crate) fn span_here(&self) -> Span {
        Span::current().or(|| self.span())
    }
}
