//! Forgetting the marks of keys that nobody uses (`store.forget`), as far as the lanes go.
//!
//! A key with a lane is never forgotten. So a mark that the store is to forget is *set aside* first:
//! while it is, the key has a lane of which the mark is still to be read, so that whoever comes
//! waits, and finds what is left of it. Nothing is in the cache then either.
//!
//! For how long a key has not been used the store knows from what was committed last. An equal
//! token commits nothing, so what is used is *touched* once in each period of time: its record is
//! committed as it is, and nobody waits for that.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::Fence;
use super::table::Table;
use crate::{Key, Token};

/// Which keys are touched, and when.
#[derive(Default)]
pub(super) struct Uses {
    namespaces: OnceLock<HashSet<Box<str>>>,
    /// The number of the period. 0: nothing is forgotten.
    period: AtomicU32,
}

impl Uses {
    pub(super) fn period(&self) -> u32 {
        self.period.load(Ordering::Relaxed)
    }

    /// Whether a key that was touched in `period` the last time is to be touched.
    pub(super) fn is_due(&self, key: &Key, period: u32) -> bool {
        period != self.period() && self.forgets(key)
    }

    fn forgets(&self, key: &Key) -> bool {
        let namespaces = self.namespaces.get();
        namespaces.is_some_and(|names| names.contains(key.namespace()))
    }
}

/// Keys whose marks are set aside. Dropping it puts them back as the store has them by then.
#[must_use = "what is set aside is put back when this is dropped"]
pub struct SetAside {
    table: Arc<Table>,
    /// The keys, each with the number of the read that its lane waits for.
    keys: Vec<(Key, u64)>,
}

impl Fence {
    /// The namespaces whose keys are touched when they are used. Only the first call counts.
    pub fn forgets(&self, namespaces: impl IntoIterator<Item = Box<str>>) {
        // A second one has nothing to say: the config is read once.
        let _ = self
            .table
            .uses
            .namespaces
            .set(namespaces.into_iter().collect());
    }

    /// The period of this number begins, from 1 on: what is in use is touched, and what is used
    /// within it will be.
    pub fn turn(&self, period: u32) {
        self.table.uses.period.store(period, Ordering::Relaxed);
        self.table.touch_lanes();
    }

    /// What stands for the mark of a key of `namespace` that has none of its own.
    #[must_use]
    pub fn floor(&self, namespace: &str) -> Option<Token> {
        self.table.floor(namespace)
    }

    /// Sets the marks of those of `keys` aside that nobody uses: that have no lane, were not used
    /// in this period, and are not held after a crash.
    pub fn set_aside(&self, keys: impl IntoIterator<Item = Key>) -> SetAside {
        let table = Arc::clone(&self.table);
        let taken = keys.into_iter().filter_map(|key| {
            let read = table.set_aside(&key)?;
            Some((key, read))
        });
        SetAside {
            keys: taken.collect(),
            table,
        }
    }
}

impl SetAside {
    /// The keys that are set aside.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter().map(|one| &one.0)
    }

    /// Puts those back at once that `keep` says are to stay as they are.
    pub fn put_back(&mut self, mut keep: impl FnMut(&Key) -> bool) {
        let (back, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.keys)
            .into_iter()
            .partition(|one| keep(&one.0));
        self.keys = stay;
        self.table.put_back(back);
    }

    /// So many of them have no mark any more.
    pub fn forgotten(self, marks: u64) {
        self.table.forgotten(marks);
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        self.table.put_back(std::mem::take(&mut self.keys));
    }
}
