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
use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::Token;
use fencegate_filters::fault::{self, Fault};
use fencegate_filters::store::{Raise, Record, Reply, StoreError};

use super::ages::{FLOORS, FORGETS, above, floor_of, floor_raise};
use super::engine::Engine;
use super::index::IndexError;
use super::shared::{Chore, Shared};
use super::{EmbeddedStore, Key, lock_mutex};

/// Marks that may be forgotten, and where to go on looking for more.
#[derive(Debug, Default)]
pub struct IdleKeys {
    /// The keys, each with its mark.
    pub keys: Vec<(Key, Token)>,
    /// The last key that was looked at; `None` where there is none behind it.
    pub next: Option<Key>,
}

impl EmbeddedStore {
    /// From now on keys of `namespaces` that were not used for `after` of uptime may be forgotten.
    /// Reads the disk; answered once that is durable.
    pub fn start_forgetting(&self, namespaces: &[String], after: Duration, reply: Reply<()>) {
        self.engine.start_forgetting(namespaces, after, reply);
    }

    /// Makes durable for how long the store has been open, and has marks that are in memory moved
    /// into the index, where they age.
    pub fn keep_uptime(&self, reply: Reply<()>) {
        self.engine.keep_uptime(reply);
    }

    /// The number of the period in which a key that is used is touched once, from 1 on.
    #[must_use]
    pub fn period(&self) -> u32 {
        self.engine.shared.ages.period()
    }

    /// Which of the next `limit` keys of `namespace` behind `after` were not used for long enough.
    pub fn idle_keys(
        &self,
        namespace: &str,
        after: Option<&Key>,
        limit: usize,
        reply: Reply<IdleKeys>,
    ) {
        self.engine.chore(Chore::FindIdle {
            namespace: namespace.into(),
            after: after.cloned(),
            limit,
            reply,
        });
    }

    /// Forgets the marks of `keys`, but for those that were used meanwhile; answers with the number
    /// of those that are gone. Whoever calls it has seen to it that none of the keys is in use, and
    /// that none comes into use before the answer. Where that is an error, some may be gone all the
    /// same.
    pub fn forget(&self, keys: Vec<(Key, Token)>, reply: Reply<u64>) {
        self.engine.forget(keys, reply);
    }
}

impl Engine {
    pub(super) fn start_forgetting(
        &self,
        namespaces: &[String],
        after: Duration,
        reply: Reply<()>,
    ) {
        match self.list(FORGETS, None, usize::MAX) {
            Err(error) => reply.send(Err(error)),
            Ok(kept) if namespaces.is_empty() && kept.is_empty() => reply.send(Ok(())),
            Ok(kept) => {
                let raises = self.shared.ages.start(namespaces, after, &kept);
                self.shared.commit(raises, reply);
            }
        }
    }

    pub(super) fn keep_uptime(&self, reply: Reply<()>) {
        let raises = self.shared.ages.uptime_raise().into_iter().collect();
        self.shared.commit(raises, reply);
        lock_mutex(&self.shared.memory).wants_flush = true;
        self.shared.flusher_wait.notify_one();
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

    pub(super) fn chore(&self, chore: Chore) {
        self.shared.chore(chore);
    }

    pub(super) fn forget(&self, keys: Vec<(Key, Token)>, reply: Reply<u64>) {
        let mut floors = BTreeMap::<String, Token>::new();
        let mut gone = Vec::with_capacity(keys.len());
        for (key, mark) in keys {
            // What nothing is above is kept for ever.
            let Some(floor) = above(mark) else { continue };
            let highest = floors.entry(key.namespace().to_owned()).or_insert(floor);
            *highest = floor.max(*highest);
            gone.push(key);
        }
        // Also where the floors are that high already: a read that came late may have touched a key
        // with the mark that it had before the newest commit. What is in the queue before the floors
        // has reached memory by the time that they are durable, and is seen there.
        let shared = Arc::clone(&self.shared);
        if fault::planted(Fault::FloorSkipped) {
            let is_known = |name: &str, floor| shared.ages.floor(name) >= Some(floor);
            floors.retain(|name, floor| !is_known(name, *floor));
        }
        if fault::planted(Fault::FloorLate) {
            shared.raise_floors(&floors);
            let raises = floor_raises(&floors);
            let late = Reply::new(move |forgotten| {
                let reply = Reply::new(move |_| reply.send(forgotten));
                shared.commit(raises, reply);
            });
            self.chore(Chore::Forget {
                keys: gone,
                reply: late,
            });
            return;
        }
        let raises = floor_raises(&floors);
        let durable = Reply::new(move |durable: Result<(), StoreError>| match durable {
            Ok(()) => {
                shared.raise_floors(&floors);
                shared.chore(Chore::Forget { keys: gone, reply });
            }
            Err(error) => reply.send(Err(error)),
        });
        self.shared.commit(raises, durable);
    }
}

fn floor_raises(floors: &BTreeMap<String, Token>) -> Vec<Raise> {
    floors
        .iter()
        .map(|(namespace, floor)| floor_raise(namespace, *floor))
        .collect()
}

impl Shared {
    /// Has the flusher do this, unless the store is closed or has failed.
    fn chore(&self, chore: Chore) {
        let refused = {
            let mut memory = lock_mutex(&self.memory);
            match self.failed() {
                Some(error) => Some((chore, error)),
                None if memory.stop => {
                    let closed = StoreError::Unavailable("the store is closed".into());
                    Some((chore, closed))
                }
                None => {
                    memory.chores.push_back(chore);
                    None
                }
            }
        };
        match refused {
            Some((chore, error)) => chore.refuse(error),
            None => self.flusher_wait.notify_one(),
        }
    }

    /// These floors are durable.
    fn raise_floors(&self, floors: &BTreeMap<String, Token>) {
        for (namespace, floor) in floors {
            self.ages.raise_floor(namespace, *floor);
        }
    }

    /// Which of the next `limit` keys of `namespace` behind `after` may be forgotten, as far as the
    /// index knows.
    pub(super) fn idle_keys(
        &self,
        namespace: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<IdleKeys, IndexError> {
        let prefix = format!("{namespace}/");
        let found = self.index.range(&prefix, after.map(Key::as_str), limit)?;
        let last = found.last().filter(|_| found.len() == limit);
        let next = last.map(|(key, _)| Key::from_text(key));
        let idle = found
            .into_iter()
            .filter(|(_, kept)| kept.record.resets == 0)
            .filter(|(_, kept)| self.ages.is_idle(namespace, kept.stamp));
        let keys = idle.map(|(key, kept)| (Key::from_text(&key), kept.record.mark));
        Ok(IdleKeys {
            keys: keys.collect(),
            next,
        })
    }

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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use fencegate_filters::store::{Binding, Store};

    use super::super::Options;
    use super::*;

    /// Keys of one round, and rounds: what is written in all is so many times what is kept.
    const KEYS: u64 = 1500;
    const ROUNDS: u64 = 12;
    /// From here on the disk must hold what it does.
    const LEVEL: u64 = 6;

    fn open(path: &Path) -> EmbeddedStore {
        EmbeddedStore::open(&Options {
            segment_bytes: 64 << 10,
            flush_segments: 1,
            memory_keys: 500,
            cache_bytes: 1 << 20,
            ..Options::new(path)
        })
        .unwrap()
    }

    fn asked<T: Send + 'static>(call: impl FnOnce(Reply<T>)) -> Result<T, StoreError> {
        let (sender, receiver) = mpsc::channel();
        call(Reply::new(move |result| drop(sender.send(result))));
        receiver.recv().unwrap()
    }

    /// A key of `round`, and the token of whoever uses it.
    fn key(round: u64, number: u64) -> (Key, Token) {
        let key = format!("n/{number:05}/{round:03}/a-job-that-comes-once-and-never-again");
        let token = Token::new(0, round * KEYS + number + 1).unwrap();
        (Key::from_text(&key), token)
    }

    /// Fresh keys, each with the newest token of all.
    fn write(store: &EmbeddedStore, round: u64) {
        for first in (0..KEYS).step_by(250) {
            let raises = (first..first + 250).map(|number| {
                let (key, mark) = key(round, number);
                let record = Record {
                    mark,
                    holder: Binding::Unbound,
                    draining: false,
                    resets: 0,
                };
                Raise { key, record }
            });
            asked(|reply| store.commit(raises.collect(), reply)).unwrap();
        }
    }

    /// Time goes by, and what nobody has used meanwhile is forgotten.
    fn forget(store: &EmbeddedStore) -> u64 {
        store.engine.shared.ages.age("n", 3600);
        asked(|reply| store.keep_uptime(reply)).unwrap();
        let (mut gone, mut after) = (0, None::<Key>);
        loop {
            let find = |reply| store.idle_keys("n", after.as_ref(), 1000, reply);
            let idle = asked(find).unwrap();
            gone += asked(|reply| store.forget(idle.keys, reply)).unwrap();
            after = idle.next;
            if after.is_none() {
                return gone;
            }
        }
    }

    fn bytes(path: &Path) -> u64 {
        let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
        entries
            .map(|entry| match entry.file_type() {
                Ok(kind) if kind.is_dir() => bytes(&entry.path()),
                // The engine may remove a table that is merged in between.
                _ => entry.metadata().map_or(0, |found| found.len()),
            })
            .sum()
    }

    /// What each round leaves on the disk, in bytes.
    fn rounds(path: &Path, forgets: bool) -> Vec<u64> {
        let round = |round| {
            let store = open(path);
            write(&store, round);
            if forgets {
                assert_eq!(forget(&store), KEYS);
                assert_eq!(store.len(), 0);
            }
            // As after a kill: without a word to the store.
            drop(store);
            bytes(path)
        };
        (0..ROUNDS).map(round).collect()
    }

    #[test]
    fn forgetting_bounds_the_disk_and_nothing_forgotten_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let [forgets, keeps] = ["forgets", "keeps"].map(|name| directory.path().join(name));
        let with = rounds(&forgets, true);
        let without = rounds(&keeps, false);
        let most = |rounds: &[u64]| rounds.iter().copied().max().unwrap();
        let (early, late) = with.split_at(usize::try_from(LEVEL).unwrap());
        assert!(most(late) <= most(early) * 5 / 4, "it grows: {with:?}");
        let last = without.last().unwrap();
        assert!(*last > 2 * most(late), "{last} without, {with:?} with");

        let (store, floor) = (open(&forgets), Token::new(0, ROUNDS * KEYS + 1));
        assert_eq!((store.len(), store.floor("n")), (0, floor));
        for round in 0..ROUNDS {
            for number in [0, 7, KEYS - 1] {
                let (key, token) = key(round, number);
                assert_eq!(asked(|reply| store.read(&key, reply)), Ok(None));
                assert!(store.floor("n") > Some(token));
            }
        }
        assert_eq!(open(&keeps).len(), ROUNDS * KEYS);
    }
}
