//! A subscriber that panics at every event, for tests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tracing::{
    Event, Subscriber,
    subscriber::{DefaultGuard, set_default},
};
use tracing_subscriber::{Layer, Registry, layer::Context, prelude::*};

/// How many events it was told, and it is there until this is dropped.
pub(super) struct Mute {
    told: Arc<AtomicUsize>,
    _here: DefaultGuard,
}

impl Mute {
    pub(super) fn new() -> Self {
        let told = Arc::default();
        let _here = set_default(Registry::default().with(Panics(Arc::clone(&told))));
        Self { told, _here }
    }

    pub(super) fn told(&self) -> usize {
        self.told.load(Relaxed)
    }
}

struct Panics(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Panics {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        self.0.fetch_add(1, Relaxed);
        panic!("scripted");
    }
}
