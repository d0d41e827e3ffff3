//! The locks that are in memory. They come from the store when they are used, and go when nobody
//! needs them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use fencegate_filters::store::{Record, Reply, Store, StoreError};
use fencegate_filters::{Key, Reason, Refusal};
use tokio::sync::oneshot;

use super::cell::{Cell, Waker, now};
use super::kept;
use crate::store::asked;

/// Locks by their keys.
pub(super) struct Table {
    store: Arc<dyn Store>,
    /// From when on leases of before last for their whole time.
    pub(super) since: Instant,
    slots: Mutex<HashMap<Key, Slot>>,
}

enum Slot {
    /// It is being read, for those who want it.
    Loading(Vec<oneshot::Sender<Arc<Cell>>>),
    Ready(Arc<Cell>),
}

impl Table {
    pub(super) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            since: now(),
            slots: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        // What a panic leaves is consistent: every change of the table is whole.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lock, where it is in memory.
    pub(super) fn find(&self, key: &Key) -> Option<Arc<Cell>> {
        match self.lock().get(key) {
            Some(Slot::Ready(cell)) => Some(Arc::clone(cell)),
            Some(Slot::Loading(_)) | None => None,
        }
    }

    /// Whether somebody has the lease of `key`, is being given it, or waits for it.
    pub(super) async fn is_leased(&self, key: &Key) -> Result<bool, StoreError> {
        // In memory, or on its way there, it is for those who only look at it as well, and for a moment behind its end.
        if let Some(Slot::Ready(cell)) = self.lock().get(key) {
            return Ok(!cell.is_idle());
        }
        let kept = kept::key_of(key);
        let record = asked(|reply| self.store.read(&kept, reply)).await?;
        // One of before that nobody has used since lasts for its whole time from the start on.
        let found = kept::lock::<Waker>(record.as_ref(), self.since);
        Ok(found.taken(now(), None).is_some())
    }

    /// All that are in memory.
    pub(super) fn all(&self) -> Vec<(Key, Arc<Cell>)> {
        let slots = self.lock();
        let ready = slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Ready(cell) => Some((key.clone(), Arc::clone(cell))),
            Slot::Loading(_) => None,
        });
        ready.collect()
    }

    /// A lock, read from the store where it is not in memory.
    pub(super) async fn open(self: &Arc<Self>, key: &Key) -> Result<Arc<Cell>, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let first = match self.lock().entry(key.clone()) {
            Entry::Occupied(mut slot) => match slot.get_mut() {
                Slot::Ready(cell) => {
                    let _ = sender.send(Arc::clone(cell));
                    false
                }
                Slot::Loading(others) => {
                    others.push(sender);
                    false
                }
            },
            Entry::Vacant(slot) => {
                slot.insert(Slot::Loading(vec![sender]));
                true
            }
        };
        if first {
            let (table, of) = (Arc::clone(self), key.clone());
            let reply = Reply::new(move |result| table.loaded(&of, result));
            self.store.read(&kept::key_of(key), reply);
        }
        receiver.await.map_err(|_| {
            Refusal::new(
                Reason::StoreUnavailable,
                "The lock could not be read; try again later.",
            )
        })
    }

    /// Somebody needs a lock in memory no more.
    pub(super) fn leave(&self, key: &Key, cell: &Arc<Cell>) {
        let mut slots = self.lock();
        // The table has it, and whoever leaves.
        if Arc::strong_count(cell) <= 2 && cell.is_idle() {
            slots.remove(key);
        }
    }

    fn loaded(&self, key: &Key, result: Result<Option<Record>, StoreError>) {
        let mut slots = self.lock();
        let Some(Slot::Loading(waiting)) = slots.remove(key) else {
            return;
        };
        let record = match result {
            Ok(record) => record,
            // Those who wait see their end of it closed.
            Err(error) => {
                tracing::error!(%key, %error, "a lock could not be read");
                return;
            }
        };
        let found = kept::lock(record.as_ref(), self.since);
        let cell = Arc::new(Cell::new(found));
        slots.insert(key.clone(), Slot::Ready(Arc::clone(&cell)));
        drop(slots);
        for sender in waiting {
            let _ = sender.send(Arc::clone(&cell));
        }
    }
}
