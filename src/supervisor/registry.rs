//! The list of live scopes, in shards so that requests on different threads rarely meet.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use slab::Slab;

use super::Member;

const SHARDS: usize = 16;

/// Where a scope stands in the registry, and its number.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) id: u64,
    shard: usize,
    key: usize,
}

pub(super) struct Registry {
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Default)]
struct Shard {
    members: Slab<Arc<dyn Member>>,
    opened: u64,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self::with_shards(SHARDS)
    }

    pub(super) fn with_shards(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
        }
    }

    pub(super) fn insert<M: Member + 'static>(
        &self,
        build: impl FnOnce(Registration) -> Arc<M>,
    ) -> Arc<M> {
        let shard = shard_of_this_thread() % self.shards.len();
        let mut list = self.lock(shard);
        list.opened += 1;
        let id = list.opened * SHARDS as u64 + shard as u64;
        let entry = list.members.vacant_entry();
        let member = build(Registration {
            id,
            shard,
            key: entry.key(),
        });
        entry.insert(member.clone());
        member
    }

    /// The member is handed back, so that it is dropped outside the lock; `account` runs inside.
    pub(super) fn remove(
        &self,
        registration: &Registration,
        account: impl FnOnce(),
    ) -> Option<Arc<dyn Member>> {
        let mut shard = self.lock(registration.shard);
        let removed = shard.members.try_remove(registration.key)?;
        account();
        Some(removed)
    }

    pub(super) fn len(&self) -> usize {
        (0..self.shards.len())
            .map(|shard| self.lock(shard).members.len())
            .sum()
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
