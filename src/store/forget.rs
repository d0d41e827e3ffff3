//! Forgetting marks (`store.forget`): the floor first, the marks after it.
//!
//! 1. The namespace's floor is raised above all marks that are to go, and is durable.
//! 2. It is known to all who find no mark.
//! 3. The flusher takes the marks out of the index, and looks again at each of them: only one that
//!    is below the floor, that nobody has committed since, and that was never reset goes.
//!
//! A crash anywhere between leaves a floor that is too high for nobody but those without a mark.
//! A mark that was reset stays: what its resets have undone must not come back with a record that
//! is late. That makes what is forgotten safe against every record that is: it says what was
//! admitted once, and is below the floor.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use fencegate_filters::Token;
use fencegate_filters::fault::{self, Fault};
use fencegate_filters::store::{Raise, Record, Reply, StoreError};

use super::ages::{FLOORS, FORGETS, above, floor_of, floor_raise};
use super::engine::Engine;
use super::index::IndexError;
use super::shared::{Forget, Shared};
use super::{EmbeddedStore, Key, lock_mutex};

/// Keys that may be forgotten, and where to go on looking for more.
#[derive(Debug, Default)]
pub struct IdleKeys {
    /// The keys.
    pub keys: Vec<Key>,
    /// The last key that was looked at; `None` where there is none behind it.
    pub next: Option<Key>,
}

impl EmbeddedStore {
    /// From now on keys of `namespaces` that were not used for `after` of uptime, which is counted
    /// in seconds, may be forgotten. Blocks for a few syncs.
    ///
    /// # Errors
    ///
    /// Where the store cannot be read or written.
    pub fn start_forgetting(
        &self,
        namespaces: &[String],
        after: Duration,
    ) -> Result<(), StoreError> {
        self.engine.start_forgetting(namespaces, after)
    }

    /// Makes durable for how long the store has been open, and has marks that are in memory moved
    /// into the index, where they age. Blocks for a sync.
    ///
    /// # Errors
    ///
    /// Where the store cannot be written.
    pub fn keep_uptime(&self) -> Result<(), StoreError> {
        self.engine.keep_uptime()
    }

    /// The number of the period in which a key that is used is touched once, from 1 on.
    #[must_use]
    pub fn period(&self) -> u32 {
        self.engine.shared.ages.period()
    }

    /// Which of the next `limit` keys of `namespace` behind `after` were not used for long enough.
    /// Reads the disk.
    ///
    /// # Errors
    ///
    /// Where the store cannot be read.
    pub fn idle_keys(
        &self,
        namespace: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<IdleKeys, StoreError> {
        self.engine.idle_keys(namespace, after, limit)
    }

    /// Forgets the marks of `keys`, but for those that were used meanwhile; gives the number of
    /// those that are gone. Whoever calls it has seen to it that none of the keys is in use. Blocks
    /// for a few syncs.
    ///
    /// # Errors
    ///
    /// Where the store cannot be read or written. Some may be gone all the same.
    pub fn forget(&self, keys: Vec<Key>) -> Result<u64, StoreError> {
        self.engine.forget(keys)
    }
}

impl Engine {
    pub(super) fn start_forgetting(
        &self,
        namespaces: &[String],
        after: Duration,
    ) -> Result<(), StoreError> {
        let kept = self.list(FORGETS, None, usize::MAX)?;
        if namespaces.is_empty() && kept.is_empty() {
            return Ok(());
        }
        let raises = self.shared.ages.start(namespaces, after, &kept);
        self.commit(raises)
    }

    pub(super) fn keep_uptime(&self) -> Result<(), StoreError> {
        let kept = self.commit(self.shared.ages.uptime_raise().into_iter().collect());
        lock_mutex(&self.shared.memory).wants_flush = true;
        self.shared.flusher_wait.notify_one();
        kept
    }

    /// Reads the floors. Before it has, no read may be answered.
    pub(super) fn find_floors(&self) -> Result<(), StoreError> {
        for (key, record) in self.list(FLOORS, None, usize::MAX)? {
            if let Some(namespace) = floor_of(&key) {
                self.shared.ages.raise_floor(namespace, record.mark);
            }
        }
        Ok(())
    }

    pub(super) fn idle_keys(
        &self,
        namespace: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<IdleKeys, StoreError> {
        let shared = &self.shared;
        if let Some(error) = shared.failed() {
            return Err(error);
        }
        if lock_mutex(&shared.memory).stop {
            return Err(StoreError::Unavailable("the store is closed".into()));
        }
        let prefix = format!("{namespace}/");
        let found = shared.index.range(&prefix, after.map(Key::as_str), limit);
        let found = found.map_err(|error| shared.fail(&error.to_string()))?;
        let last = found.last().filter(|_| found.len() == limit);
        let next = last.map(|(key, _)| Key::from_text(key));
        let idle = found
            .into_iter()
            .filter(|(_, kept)| kept.record.resets == 0)
            .filter(|(_, kept)| shared.ages.is_idle(namespace, kept.stamp));
        let keys = idle.map(|(key, _)| Key::from_text(&key)).collect();
        Ok(IdleKeys { keys, next })
    }

    pub(super) fn forget(&self, keys: Vec<Key>) -> Result<u64, StoreError> {
        let shared = &self.shared;
        let mut floors = BTreeMap::<String, Token>::new();
        for key in &keys {
            let idle = shared.idle_record(key);
            let idle = idle.map_err(|error| shared.fail(&error.to_string()))?;
            // What nothing is above is kept for ever.
            let Some(floor) = idle.and_then(|record| above(record.mark)) else {
                continue;
            };
            let highest = floors.entry(key.namespace().to_owned()).or_insert(floor);
            *highest = floor.max(*highest);
        }
        floors.retain(|namespace, floor| {
            let known = shared.ages.floor(namespace);
            known.is_none_or(|known| known < *floor)
        });
        let raises = floors
            .iter()
            .map(|(namespace, floor)| floor_raise(namespace, *floor))
            .collect();
        let raise = || {
            for (namespace, floor) in &floors {
                shared.ages.raise_floor(namespace, *floor);
            }
        };
        if fault::planted(Fault::FloorLate) {
            raise();
            let forgotten = self.take_out(keys);
            self.commit(raises)?;
            return forgotten;
        }
        self.commit(raises)?;
        raise();
        self.take_out(keys)
    }

    /// Has the flusher take marks out of the index.
    fn take_out(&self, keys: Vec<Key>) -> Result<u64, StoreError> {
        let (reply, answer) = asked();
        let shared = &self.shared;
        {
            let mut memory = lock_mutex(&shared.memory);
            if memory.stop || shared.failed().is_some() {
                // Nobody is there to answer any more.
                drop(reply);
            } else {
                memory.forget.push_back(Forget { keys, reply });
            }
        }
        shared.flusher_wait.notify_one();
        answered(&answer)
    }

    fn commit(&self, raises: Vec<Raise>) -> Result<(), StoreError> {
        let (reply, answer) = asked();
        self.shared.commit(raises, reply);
        answered(&answer)
    }
}

type Answer<T> = mpsc::Receiver<Result<T, StoreError>>;

fn asked<T: Send + 'static>() -> (Reply<T>, Answer<T>) {
    let (sender, receiver) = mpsc::channel();
    // Whoever asked waits for it.
    let reply = Reply::new(move |result| drop(sender.send(result)));
    (reply, receiver)
}

fn answered<T>(answer: &Answer<T>) -> Result<T, StoreError> {
    let closed = StoreError::Unavailable("the store is closed".into());
    answer.recv().unwrap_or(Err(closed))
}

impl Shared {
    /// The record of a key that may be forgotten: the index alone has it, it was not committed for
    /// long enough, and it was never reset.
    pub(super) fn idle_record(&self, key: &Key) -> Result<Option<Record>, IndexError> {
        if key.is_internal() || lock_mutex(&self.memory).tables.has(key) {
            return Ok(None);
        }
        let kept = self.index.get(key.as_str())?;
        let idle = kept.filter(|kept| {
            kept.record.resets == 0 && self.ages.is_idle(key.namespace(), kept.stamp)
        });
        Ok(idle.map(|kept| kept.record))
    }

    /// `key` was read and found to have `record`, committed last at `stamp`: it is used, and once
    /// in each period that is noted.
    ///
    /// To be called with the lock of memory in which the answer was found to be up to date: whatever
    /// is committed after the key was forgotten is then behind it in the queue.
    pub(super) fn touch(&self, key: &Key, record: Option<&Record>, stamp: Option<u32>) {
        let (Some(record), Some(stamp)) = (record, stamp) else {
            return;
        };
        if !key.is_internal() && self.ages.is_due(key.namespace(), stamp) {
            let raise = Raise {
                key: key.clone(),
                record: record.clone(),
            };
            // What can't be noted now is noted in a later period.
            self.commit(vec![raise], Reply::new(|_| {}));
        }
    }
}
