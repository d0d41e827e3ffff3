//! The lanes of all keys in use, and what stands behind them: the cache of idle marks, and the
//! store.
//!
//! Lanes live in shards, each under a lock that is held for a few hundred nanoseconds and never
//! across I/O, a wake-up or a call into a handle. A request with several keys locks all their
//! shards, in one order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::Waker;
use std::time::Instant;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use moka::sync::Cache;
use smallvec::SmallVec;

use super::forgetting::Uses;
use super::in_flight::Handle;
use super::lane::{self, Held};
use super::step;
use crate::fault::{self, Fault};
use crate::store::{Raise, Record, Reply, Store, StoreError};
use crate::sync::{AtomicBool, Mutex, MutexGuard};
use crate::{Key, Token};

pub(super) type Lane = lane::Lane<Waker, Handle>;
pub(super) type Effects = step::Effects<Waker, Handle>;
type Lanes<'a> = SmallVec<[&'a mut Lane; 1]>;

/// A checker of thread orders needs but enough for keys to share a shard, and not to.
const SHARDS: usize = if cfg!(feature = "shuttle") { 2 } else { 64 };

/// What a cached mark weighs beside its key's text, in bytes: the record, the hash entry, the
/// cache's own bookkeeping.
const CACHED_OVERHEAD: u32 = 200;

pub(super) struct Table {
    shards: Box<[Mutex<HashTable<Slot>>]>,
    /// The marks of keys that have no lane. Read only when a lane is made and written only when one
    /// is freed, both under the shard's lock, so that it never competes with a lane.
    cache: Cache<Key, Cached, RandomState>,
    store: Arc<dyn Store>,
    pub(super) uses: Uses,
    /// Numbers the reads of marks.
    reads: AtomicU64,
    /// How many keys have a mark, those raised but not yet durable included.
    keys: AtomicU64,
    /// How many may have one.
    most_keys: AtomicU64,
    /// Namespaces under the hold after a crash, and until when.
    holds: Mutex<HashMap<Box<str>, Instant>>,
    holding: AtomicBool,
    stopping: AtomicBool,
    /// The store has failed for good: why it stops.
    failed: AtomicBool,
}

/// The mark of a key that has no lane.
#[derive(Clone)]
struct Cached {
    record: Record,
    /// The period in which it was touched last.
    touched: u32,
}

struct Slot {
    key: Key,
    lane: Lane,
    /// When the drain that is under way began.
    draining_since: Option<Instant>,
    /// The record that the cache has, as far as this lane put it there or found it.
    cached: Option<Record>,
    /// The period in which the key was touched last.
    touched: u32,
    /// The store is about to forget the mark: the lane stays, and its mark is read afterwards.
    set_aside: bool,
}

/// What a request sees of its lanes beside the lanes themselves.
pub(super) struct View<'a> {
    pub(super) lanes: Lanes<'a>,
    pub(super) draining_since: SmallVec<[&'a mut Option<Instant>; 1]>,
}

impl Table {
    pub(super) fn new(store: Arc<dyn Store>, cache_bytes: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashTable::new())).collect(),
            cache: Cache::builder()
                .max_capacity(cache_bytes)
                .weigher(|key: &Key, _: &Cached| {
                    u32::try_from(key.as_str().len())
                        .unwrap_or(u32::MAX)
                        .saturating_add(CACHED_OVERHEAD)
                })
                .build_with_hasher(RandomState::default()),
            keys: AtomicU64::new(store.len()),
            store,
            uses: Uses::default(),
            reads: AtomicU64::new(1),
            most_keys: AtomicU64::new(u64::MAX),
            holds: Mutex::new(HashMap::new()),
            holding: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn limit_keys(&self, most: u64) {
        self.most_keys.store(most, Ordering::Relaxed);
    }

    pub(super) fn most_keys(&self) -> u64 {
        self.most_keys.load(Ordering::Relaxed)
    }

    pub(super) fn may_add_key(&self) -> bool {
        self.keys.load(Ordering::Relaxed) < self.most_keys()
    }

    pub(super) fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// Runs one step over the lanes of `keys`, which are distinct, making those that are missing.
    ///
    /// `retry` tells that the request has waited before, so that a read that failed is an answer
    /// to it and not to be tried again.
    pub(super) fn with_lanes<R>(
        self: &Arc<Self>,
        keys: &[Key],
        retry: bool,
        step: impl FnOnce(View<'_>) -> R,
    ) -> R {
        let mut reads: SmallVec<[(Key, u64); 1]> = SmallVec::new();
        let mut wake = Vec::new();
        let result = match keys {
            [key] => self.with_one(key, retry, &mut reads, &mut wake, step),
            keys => self.with_several(keys, retry, &mut reads, &mut wake, step),
        };
        wake.into_iter().for_each(Waker::wake);
        for (key, read) in reads {
            self.read(&key, read);
        }
        result
    }

    fn read(self: &Arc<Self>, key: &Key, read: u64) {
        let table = Arc::clone(self);
        let of = key.clone();
        let reply = Reply::new(move |result| table.loaded(&of, read, result));
        self.store.read(key, reply);
    }

    fn with_one<R>(
        &self,
        key: &Key,
        retry: bool,
        reads: &mut SmallVec<[(Key, u64); 1]>,
        wake: &mut Vec<Waker>,
        step: impl FnOnce(View<'_>) -> R,
    ) -> R {
        let mut shard = self.shard(shard_of(key));
        let found = shard.entry(key.hash_value(), |slot| slot.key == *key, hash_of_slot);
        let mut slot = match found {
            Entry::Occupied(mut slot) => {
                if !retry && fault::planted(Fault::CacheDecides) {
                    let cached = self.cache.get(key).map(|cached| cached.record);
                    slot.get_mut().lane.recall(cached);
                }
                slot
            }
            Entry::Vacant(vacant) => vacant.insert(self.open(key)),
        };
        let opened = slot.get_mut();
        self.read_if_needed(opened, retry, reads);
        let result = step(View {
            lanes: SmallVec::from_iter([&mut opened.lane]),
            draining_since: SmallVec::from_iter([&mut opened.draining_since]),
        });
        opened.tidy();
        wake.extend(opened.lane.reset_to_wake().cloned());
        if opened.is_idle() {
            let (freed, _) = slot.remove();
            self.free(freed);
        }
        result
    }

    fn with_several<R>(
        &self,
        keys: &[Key],
        retry: bool,
        reads: &mut SmallVec<[(Key, u64); 1]>,
        wake: &mut Vec<Waker>,
        step: impl FnOnce(View<'_>) -> R,
    ) -> R {
        let mut order: SmallVec<[usize; 4]> = keys.iter().map(shard_of).collect();
        order.sort_unstable();
        order.dedup();
        let shards: Shards<'_> = order.into_iter().map(|at| (at, self.shard(at))).collect();
        // Under all the locks at once, the lanes can be taken out and nobody sees them missing.
        let mut taken = Taken {
            table: self,
            shards,
            slots: SmallVec::new(),
            wake,
        };
        let Taken { shards, slots, .. } = &mut taken;
        for key in keys {
            let at = shard_of(key);
            let found = shards
                .iter_mut()
                .find(|shard| shard.0 == at)
                .and_then(|shard| {
                    let found = shard
                        .1
                        .find_entry(key.hash_value(), |slot| slot.key == *key);
                    found.ok().map(|entry| entry.remove().0)
                });
            let mut slot = found.unwrap_or_else(|| self.open(key));
            self.read_if_needed(&mut slot, retry, reads);
            slots.push(slot);
        }
        let mut lanes = Lanes::new();
        let mut draining_since = SmallVec::new();
        for slot in slots {
            lanes.push(&mut slot.lane);
            draining_since.push(&mut slot.draining_since);
        }
        step(View {
            lanes,
            draining_since,
        })
    }

    /// Tells one lane what happened, where it still exists, and wakes whom it says.
    pub(super) fn tell(&self, key: &Key, event: impl FnOnce(&mut Lane) -> Vec<Waker>) {
        let wake = {
            let mut shard = self.shard(shard_of(key));
            let Ok(mut slot) = shard.find_entry(key.hash_value(), |slot| slot.key == *key) else {
                return;
            };
            let mut wake = event(&mut slot.get_mut().lane);
            slot.get_mut().tidy();
            wake.extend(slot.get().lane.reset_to_wake().cloned());
            if slot.get().is_idle() {
                let (freed, _) = slot.remove();
                self.free(freed);
            }
            wake
        };
        if !fault::planted(Fault::DropWake) {
            wake.into_iter().for_each(Waker::wake);
        }
    }

    /// Tells the lanes of one request, in turn, of something that can only release others.
    pub(super) fn tell_each(
        &self,
        keys: &[Key],
        tickets: &[Option<lane::Ticket>],
        mut event: impl FnMut(&mut Lane, lane::Ticket) -> Vec<Waker>,
    ) {
        for (key, ticket) in keys.iter().zip(tickets) {
            if let Some(ticket) = *ticket {
                self.tell(key, |lane| event(lane, ticket));
            }
        }
    }

    /// Carries out what a step left to be done, once its lanes are let go.
    pub(super) fn carry_out(
        self: &Arc<Self>,
        keys: &[Key],
        effects: Effects,
        drain: impl Fn(&Handle),
    ) {
        // First: a commit that is counted and never submitted would hold its lane for ever.
        if !effects.commit.is_empty() {
            self.commit(keys, effects.commit);
        }
        effects.wake.into_iter().for_each(Waker::wake);
        effects.drain.iter().for_each(drain);
    }

    pub(super) fn commit(self: &Arc<Self>, keys: &[Key], commits: Vec<(usize, u64, Record, bool)>) {
        let mut raises = Vec::with_capacity(commits.len());
        let mut changes: SmallVec<[(Key, u64); 1]> = SmallVec::new();
        for (index, change, record, first) in commits {
            let Some(key) = keys.get(index) else { continue };
            if first {
                self.keys.fetch_add(1, Ordering::Relaxed);
            }
            changes.push((key.clone(), change));
            raises.push(Raise {
                key: key.clone(),
                record,
            });
        }
        let table = Arc::clone(self);
        let reply = Reply::new(move |result: Result<(), StoreError>| {
            if let Err(error) = &result {
                tracing::error!(%error, "a mark could not be made durable");
            }
            for (key, change) in &changes {
                table.tell(key, |lane| lane.committed(*change, result.is_ok()));
            }
        });
        self.store.commit(raises, reply);
    }

    fn loaded(&self, key: &Key, read: u64, result: Result<Option<Record>, StoreError>) {
        match result {
            Ok(record) => {
                // After the read: the floor is durable before a mark is forgotten.
                let absent = record.is_none();
                let floor = absent.then(|| self.store.floor(key.namespace())).flatten();
                self.tell(key, |lane| {
                    // The hold is looked up under the lane's lock: its end walks all lanes after
                    // it has taken the namespace off the list.
                    lane.loaded(read, record, floor, self.is_held(key))
                });
            }
            Err(error) => {
                tracing::error!(%error, "a mark could not be read");
                self.tell(key, |lane| lane.load_failed(read));
            }
        }
    }

    fn open(&self, key: &Key) -> Slot {
        let cached = self.cache.get(key);
        let lane = match &cached {
            Some(cached) => Lane::known(Some(cached.record.clone()), self.is_held(key)),
            // The number of a read starts at 1: 0 says that none has been started.
            None => Lane::loading(0),
        };
        Slot {
            key: key.clone(),
            lane,
            draining_since: None,
            // A mark that comes from the store is touched there.
            touched: cached
                .as_ref()
                .map_or_else(|| self.uses.period(), |one| one.touched),
            cached: cached.map(|one| one.record),
            set_aside: false,
        }
    }

    fn read_if_needed(&self, slot: &mut Slot, retry: bool, reads: &mut SmallVec<[(Key, u64); 1]>) {
        let unread = slot.lane.read_under_way() == Some(0);
        if unread || (slot.lane.read_failed() && !retry) {
            let read = self.reads.fetch_add(1, Ordering::Relaxed);
            slot.lane.load_again(read);
            reads.push((slot.key.clone(), read));
        }
    }

    /// Keeps the mark of a lane that is over in the cache. Called under the lock of its shard.
    fn free(&self, slot: Slot) {
        let record = slot.lane.record();
        let Some(record) = record.filter(|_| slot.lane.read_under_way().is_none()) else {
            return;
        };
        let due = self.uses.is_due(&slot.key, slot.touched);
        if due || slot.cached.as_ref() != Some(record) {
            let cached = Cached {
                record: record.clone(),
                touched: self.uses.period(),
            };
            self.cache.insert(slot.key.clone(), cached);
        }
        if due {
            self.touch(slot.key.clone(), record.clone());
        }
    }

    // Forgetting.

    pub(super) fn floor(&self, namespace: &str) -> Option<Token> {
        self.store.floor(namespace)
    }

    /// Commits a record as it is, so that its key counts as used.
    ///
    /// Under the lock of the key's shard, although it calls the store: whatever is committed later
    /// on this key is behind it in the store's queue. Let go of first, it could come so late that
    /// the key was forgotten twice meanwhile, and bring back the mark of the first time.
    fn touch(&self, key: Key, record: Record) {
        // What can't be written now is touched in a later period.
        let reply = Reply::new(|_| {});
        self.store.commit(vec![Raise { key, record }], reply);
    }

    /// What is in use and was not touched in this period, from now on is.
    pub(super) fn touch_lanes(&self) {
        for shard in &self.shards {
            for slot in lock(shard).iter_mut() {
                let due = self.uses.is_due(&slot.key, slot.touched);
                if let Some(record) = slot.lane.record().filter(|_| due) {
                    self.touch(slot.key.clone(), record.clone());
                    slot.touched = self.uses.period();
                }
            }
        }
    }

    /// Sets the mark of `key` aside, unless the key is in use; gives the number of the read that
    /// whoever comes now waits for.
    pub(super) fn set_aside(&self, key: &Key) -> Option<u64> {
        let mut shard = self.shard(shard_of(key));
        let found = shard.entry(key.hash_value(), |slot| slot.key == *key, hash_of_slot);
        let Entry::Vacant(vacant) = found else {
            // Read 0 is none that could be awaited.
            return fault::planted(Fault::ForgetInUse).then_some(0);
        };
        let (period, cached) = (self.uses.period(), self.cache.get(key));
        if self.is_held(key) || cached.is_some_and(|cached| cached.touched == period) {
            return None;
        }
        self.cache.invalidate(key);
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        vacant.insert(Slot {
            key: key.clone(),
            lane: Lane::loading(read),
            draining_since: None,
            cached: None,
            touched: period,
            set_aside: true,
        });
        Some(read)
    }

    /// Reads the marks of `keys` that somebody waits for, and frees the lanes of the others.
    pub(super) fn put_back(self: &Arc<Self>, keys: Vec<(Key, u64)>) {
        for (key, read) in keys {
            {
                let mut shard = self.shard(shard_of(&key));
                let mine = |slot: &Slot| {
                    slot.key == key && slot.set_aside && slot.lane.read_under_way() == Some(read)
                };
                let Ok(mut slot) = shard.find_entry(key.hash_value(), mine) else {
                    continue;
                };
                slot.get_mut().set_aside = false;
                if slot.get().is_idle() {
                    slot.remove();
                    continue;
                }
            }
            self.read(&key, read);
        }
    }

    /// So many keys have no mark any more.
    pub(super) fn forgotten(&self, marks: u64) {
        let less = |keys: u64| Some(keys.saturating_sub(marks));
        // It always gives a number, so it does not fail.
        let _ = self
            .keys
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Empties the cache.
    #[cfg(test)]
    pub(super) fn evict(&self) {
        self.cache.invalidate_all();
    }

    /// Takes one key out of the cache.
    #[cfg(all(test, feature = "shuttle"))]
    pub(super) fn forget(&self, key: &Key) {
        self.cache.invalidate(key);
    }

    // The hold after a crash.

    pub(super) fn hold(&self, namespace: &str, until: Instant) {
        let mut holds = lock(&self.holds);
        let latest = holds.entry(namespace.into()).or_insert(until);
        *latest = until.max(*latest);
        self.holding.store(true, Ordering::SeqCst);
    }

    /// Ends the hold of `namespace`, unless it goes on beyond `until`.
    pub(super) fn hold_over(&self, namespace: &str, until: Instant) {
        {
            let mut holds = lock(&self.holds);
            if holds.get(namespace).is_none_or(|latest| *latest > until) {
                return;
            }
            holds.remove(namespace);
            self.holding.store(!holds.is_empty(), Ordering::SeqCst);
        }
        let mut wake = Vec::new();
        for shard in &self.shards {
            for slot in lock(shard).iter_mut() {
                if slot.key.namespace() == namespace {
                    wake.append(&mut slot.lane.hold_over());
                    slot.tidy();
                    wake.extend(slot.lane.reset_to_wake().cloned());
                }
            }
        }
        wake.into_iter().for_each(Waker::wake);
    }

    pub(super) fn holds(&self) -> bool {
        self.holding.load(Ordering::SeqCst)
    }

    fn is_held(&self, key: &Key) -> bool {
        // Hardly ever is any, and to find that out costs less than to find the namespace.
        self.holds() && self.is_namespace_held(key.namespace())
    }

    pub(super) fn is_namespace_held(&self, namespace: &str) -> bool {
        self.holding.load(Ordering::SeqCst) && lock(&self.holds).contains_key(namespace)
    }

    // The stop.

    /// From now on nothing is admitted or sent. Wakes everybody to be told so.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let mut wake = Vec::new();
        self.each(|_, lane| wake.extend(lane.wakers().cloned()));
        wake.into_iter().for_each(Waker::wake);
    }

    /// Stops because the store has failed for good.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
        self.stop();
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    // What is in use.

    /// Calls `look` for every lane, a shard at a time.
    pub(super) fn each(&self, mut look: impl FnMut(&Key, &Lane)) {
        for shard in &self.shards {
            for slot in lock(shard).iter() {
                look(&slot.key, &slot.lane);
            }
        }
    }

    pub(super) fn look<R>(&self, key: &Key, look: impl FnOnce(&Lane) -> R) -> Option<R> {
        let shard = self.shard(shard_of(key));
        let slot = shard.find(key.hash_value(), |slot| slot.key == *key)?;
        Some(look(&slot.lane))
    }

    fn shard(&self, at: usize) -> MutexGuard<'_, HashTable<Slot>> {
        #[expect(clippy::indexing_slicing, reason = "a shard's number is below SHARDS")]
        lock(&self.shards[at])
    }
}

impl Slot {
    fn is_idle(&self) -> bool {
        self.lane.is_idle() && !self.set_aside
    }

    /// The drain's clock runs until nothing holds the mark any more. A commit that failed and that
    /// nobody waits for is no drain: whoever commits it again starts a clock of its own.
    fn tidy(&mut self) {
        if self.draining_since.is_none() {
            return;
        }
        let held = self.lane.mark().and_then(|mark| self.lane.held(mark));
        let over = match held {
            None => true,
            Some(Held::Commit) => self.lane.counts().1 == 0,
            Some(Held::InFlight | Held::Unsettled) => false,
        };
        if over {
            self.draining_since = None;
        }
    }
}

type Shards<'a> = SmallVec<[(usize, MutexGuard<'a, HashTable<Slot>>); 4]>;

/// Lanes that were taken out of their shards for one step. They go back when it ends, in a panic
/// as well: what is in flight in them must not be forgotten.
struct Taken<'a> {
    table: &'a Table,
    shards: Shards<'a>,
    slots: SmallVec<[Slot; 4]>,
    /// Whose reset can go on.
    wake: &'a mut Vec<Waker>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for mut slot in self.slots.drain(..) {
            slot.tidy();
            self.wake.extend(slot.lane.reset_to_wake().cloned());
            if slot.is_idle() {
                self.table.free(slot);
                continue;
            }
            let at = shard_of(&slot.key);
            if let Some(shard) = self.shards.iter_mut().find(|shard| shard.0 == at) {
                shard
                    .1
                    .insert_unique(slot.key.hash_value(), slot, hash_of_slot);
            }
        }
    }
}

fn shard_of(key: &Key) -> usize {
    // The upper bits: the hash table inside the shard uses the lower ones.
    let at = (key.hash_value() >> 58) as usize;
    at % SHARDS
}

fn hash_of_slot(slot: &Slot) -> u64 {
    slot.key.hash_value()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while a lane was held has left it in a state that was consistent step by step, and
    // whoever panicked counts as an unknown outcome: going on is safer than losing the mark.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
