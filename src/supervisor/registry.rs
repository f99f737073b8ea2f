//! The list of live scopes, in shards so that requests on different threads rarely meet.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use slab::Slab;

use super::Member;

const SHARDS: usize = 16;

/// Where a scope stands in the registry, and its number.
#[derive(Debug)]
pub(crate) enum Registration {
    Listed {
        place: Place,
        id: u64,
    },
    /// Its number is given when it is first asked for.
    Unlisted(OnceLock<u64>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    shard: usize,
    key: usize,
}

impl Registration {
    /// Whether the registry holds the scope: one that nobody can ask does not.
    pub(crate) fn is_listed(&self) -> bool {
        matches!(self, Self::Listed { .. })
    }
}

pub(super) struct Registry {
    /// None where there is nobody to ask what is live.
    shards: Box<[Mutex<Shard>]>,
    unlisted: AtomicU64,
}

#[derive(Default)]
struct Shard {
    members: Slab<Arc<dyn Member>>,
    opened: u64,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            unlisted: AtomicU64::new(0),
        }
    }

    /// A registry that gives numbers and lists nothing.
    pub(super) fn numbers() -> Self {
        Self {
            shards: Box::default(),
            unlisted: AtomicU64::new(0),
        }
    }

    pub(super) fn lists_nothing(&self) -> bool {
        self.shards.is_empty()
    }

    pub(super) fn insert<M: Member + 'static>(
        &self,
        build: impl FnOnce(Registration) -> Arc<M>,
    ) -> Arc<M> {
        if self.lists_nothing() {
            return build(Registration::Unlisted(OnceLock::new()));
        }
        let shard = shard_of_this_thread();
        let mut list = self.lock(shard);
        list.opened += 1;
        let id = list.opened * SHARDS as u64 + shard as u64;
        let entry = list.members.vacant_entry();
        let place = Place {
            shard,
            key: entry.key(),
        };
        let member = build(Registration::Listed { place, id });
        entry.insert(member.clone());
        member
    }

    pub(super) fn number(&self, registration: &Registration) -> u64 {
        let next = || self.unlisted.fetch_add(1, Ordering::Relaxed) + 1;
        match registration {
            Registration::Listed { id, .. } => *id,
            Registration::Unlisted(id) => *id.get_or_init(next),
        }
    }

    /// The member is handed back, so that it is dropped outside the lock; `account` runs inside.
    pub(super) fn remove(
        &self,
        registration: &Registration,
        account: impl FnOnce(),
    ) -> Option<Arc<dyn Member>> {
        let Registration::Listed { place, .. } = registration else {
            return None;
        };
        let Place { shard, key } = *place;
        let mut shard = self.lock(shard);
        let removed = shard.members.try_remove(key)?;
        account();
        Some(removed)
    }

    /// All shards at once: of two that overlap, one would go from a shard not yet counted behind the
    /// other's coming to one that was, and nothing seem live.
    pub(super) fn len(&self) -> usize {
        let shards: Vec<_> = (0..self.shards.len()).map(|at| self.lock(at)).collect();
        shards.iter().map(|shard| shard.members.len()).sum()
    }

    pub(super) fn members(&self) -> Vec<Arc<dyn Member>> {
        (0..self.shards.len())
            .flat_map(|shard| {
                let list = self.lock(shard);
                list.members
                    .iter()
                    .map(|(_, member)| member.clone())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("len", &self.len())
            .finish()
    }
}

/// Threads take shards in turn, each keeps its own.
fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    MINE.try_with(|mine| *mine).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn all_shards_are_counted_at_once() {
        let registry = Arc::new(Registry::new());
        let last = registry.lock(SHARDS - 1);
        let counts = registry.clone();
        let counting = thread::spawn(move || counts.len());
        let deadline = Instant::now() + Duration::from_secs(10);
        // It waits for the last one, and has all others meanwhile.
        while (0..SHARDS - 1).any(|shard| registry.shards[shard].try_lock().is_ok()) {
            assert!(
                Instant::now() < deadline,
                "a shard that was counted is free"
            );
            thread::yield_now();
        }
        drop(last);
        assert_eq!(counting.join().unwrap(), 0);
    }
}
