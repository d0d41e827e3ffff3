//! Marks in memory that the index does not have yet.
//!
//! Commits go to the *active* table. When it is full it becomes the *frozen* one, which the flusher
//! writes to the index while a new active table fills. An entry is *resolved* once it was merged
//! with what the index knows of its key: only then does it answer reads, and only then is it known
//! whether the key is new. What a read of the index found is remembered for a while as a *hint*, so
//! that the commit that follows the read resolves at once.

use std::sync::Arc;

use fencegate_filters::Key;
use fencegate_filters::store::{Raise, Record};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

use super::record::merge;

/// How many hints are kept. They live between a read and the commit that follows it.
const HINTS: usize = 1 << 16;

/// One key's record in memory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) record: Record,
    /// When it was committed last, in seconds of uptime; 0 where none is counted.
    pub(super) stamp: u32,
    /// Whether `record` is merged with the index's, and `new` is known.
    pub(super) resolved: bool,
    /// Whether neither the index nor an older table has the key, and it counts as one.
    pub(super) new: bool,
}

/// Records by key.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashTable<Entry>,
    /// How many entries are new.
    pub(super) new: u64,
    /// The last sequence number whose records are in it.
    pub(super) last: u64,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries
            .find(key.hash_value(), |entry| entry.key == *key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The index has nothing of `key` any more.
    fn forgotten(&mut self, key: &Key) -> bool {
        let entry = self
            .entries
            .find_mut(key.hash_value(), |entry| entry.key == *key);
        let Some(entry) = entry else { return false };
        entry.resolved = true;
        self.new += u64::from(!entry.new);
        entry.new = true;
        true
    }

    /// Merges what the index has of `key` into its entry.
    fn resolve(&mut self, key: &Key, found: Option<&Record>, elsewhere: bool) {
        let entry = self
            .entries
            .find_mut(key.hash_value(), |entry| entry.key == *key);
        let Some(entry) = entry.filter(|entry| !entry.resolved) else {
            return;
        };
        if let Some(found) = found {
            let newer = std::mem::replace(&mut entry.record, found.clone());
            merge(&mut entry.record, newer);
        }
        entry.resolved = true;
        entry.new = found.is_none() && !elsewhere && !key.is_internal();
        self.new += u64::from(entry.new);
    }
}

/// What memory says to a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// The record, complete.
    Found(Record),
    /// The index has to be asked.
    Ask,
}

/// Both tables, the hints, and the count of keys.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) active: Table,
    /// Changes only by being resolved. While the flusher has a clone, it is.
    pub(super) frozen: Option<Arc<Table>>,
    /// How many keys the index has.
    pub(super) indexed: u64,
    /// Rises whenever the index changes: what was read from it before then may be outdated.
    pub(super) generation: u64,
    /// The uptime by which commits are stamped, in seconds; 0 where none is counted.
    pub(super) uptime: u32,
    hints: HashTable<(Key, Option<Record>)>,
    /// Keys of the active table that were not resolved when they came into it.
    unresolved: Vec<Key>,
    /// The same of the frozen table. A flush resolves them all, and they go with it: who commits
    /// without a pause would otherwise have them pile up.
    frozen_unresolved: Vec<Key>,
}

impl Tables {
    /// How many keys have a mark; `None` while some are not resolved.
    pub(super) fn count(&self) -> Option<u64> {
        let frozen = self.frozen.as_ref().map_or(0, |table| table.new);
        (!self.has_unresolved()).then_some(self.indexed + frozen + self.active.new)
    }

    /// How many keys have a mark at the least, should the index no longer answer.
    pub(super) fn least_count(&self) -> u64 {
        let frozen = self.frozen.as_ref().map_or(0, |table| table.new);
        self.indexed + frozen + self.active.new
    }

    /// The keys in memory that start with `prefix` and sort after `after`, in no order.
    pub(super) fn keys(&self, prefix: &str, after: Option<&str>) -> Vec<Key> {
        let tables = self.frozen.as_deref().into_iter().chain([&self.active]);
        let keys = tables.flat_map(Table::iter).map(|entry| &entry.key);
        keys.filter(|key| key.as_str().starts_with(prefix))
            .filter(|key| after.is_none_or(|after| key.as_str() > after))
            .cloned()
            .collect()
    }

    /// Takes in the raises of the batch with this sequence number.
    pub(super) fn insert(&mut self, sequence: u64, raises: impl IntoIterator<Item = Raise>) {
        self.active.last = self.active.last.max(sequence);
        for Raise { key, record } in raises {
            let hash = key.hash_value();
            match self.active.entries.entry(
                hash,
                |entry| entry.key == key,
                |entry| entry.key.hash_value(),
            ) {
                Slot::Occupied(mut slot) => {
                    let entry = slot.get_mut();
                    entry.stamp = self.uptime;
                    merge(&mut entry.record, record);
                }
                Slot::Vacant(slot) => {
                    let mut entry = Entry {
                        key: key.clone(),
                        record,
                        stamp: self.uptime,
                        resolved: false,
                        new: false,
                    };
                    if let Some(older) = self.frozen.as_ref().and_then(|table| table.get(&key)) {
                        let newer = std::mem::replace(&mut entry.record, older.record.clone());
                        merge(&mut entry.record, newer);
                        entry.resolved = older.resolved;
                    } else if let Ok(hint) = self.hints.find_entry(hash, |hint| hint.0 == key) {
                        let ((_, found), _) = hint.remove();
                        entry.new = found.is_none() && !key.is_internal();
                        entry.resolved = true;
                        if let Some(mut found) = found {
                            merge(&mut found, entry.record);
                            entry.record = found;
                        }
                    }
                    self.active.new += u64::from(entry.new);
                    if !entry.resolved {
                        self.unresolved.push(key);
                    }
                    slot.insert(entry);
                }
            }
        }
    }

    /// Whether memory has anything of `key`.
    pub(super) fn has(&self, key: &Key) -> bool {
        let frozen = self
            .frozen
            .as_ref()
            .is_some_and(|table| table.get(key).is_some());
        frozen || self.active.get(key).is_some()
    }

    /// The index has nothing of `gone` any more, and `keys` keys. What of them was committed
    /// meanwhile is new.
    pub(super) fn forgotten(&mut self, gone: &[Key], keys: u64) {
        self.indexed = keys;
        self.generation += 1;
        self.hints.clear();
        for key in gone {
            let frozen = self.frozen.as_mut().and_then(Arc::get_mut);
            if !frozen.is_some_and(|table| table.forgotten(key)) {
                self.active.forgotten(key);
            }
        }
    }

    /// Answers a read, if memory can.
    pub(super) fn lookup(&self, key: &Key) -> Lookup {
        let frozen = || self.frozen.as_ref().and_then(|table| table.get(key));
        match self.active.get(key).or_else(frozen) {
            Some(entry) if entry.resolved => Lookup::Found(entry.record.clone()),
            _ => Lookup::Ask,
        }
    }

    /// Takes in what the index had of `key` at `generation`, and gives the whole record; `Err`
    /// where the index has changed since, and has to be asked again.
    pub(super) fn resolve(
        &mut self,
        key: &Key,
        found: Option<Record>,
        generation: u64,
    ) -> Result<Option<Record>, ()> {
        if generation != self.generation {
            return Err(());
        }
        let mut older = false;
        if let Some(frozen) = &mut self.frozen {
            if let Some(frozen) = Arc::get_mut(frozen) {
                frozen.resolve(key, found.as_ref(), false);
            }
            older = frozen.get(key).is_some();
        }
        self.active.resolve(key, found.as_ref(), older);
        if let Lookup::Found(record) = self.lookup(key) {
            return Ok(Some(record));
        }
        if self.hints.len() >= HINTS {
            self.hints.clear();
        }
        let hint = self.hints.entry(
            key.hash_value(),
            |hint| hint.0 == *key,
            |hint| hint.0.hash_value(),
        );
        hint.insert((key.clone(), found.clone()));
        Ok(found)
    }

    /// Whether there may be keys to be resolved.
    pub(super) fn has_unresolved(&self) -> bool {
        !(self.unresolved.is_empty() && self.frozen_unresolved.is_empty())
    }

    /// A key that is to be resolved, with the generation at which to ask.
    pub(super) fn next_unresolved(&mut self) -> Option<(Key, u64)> {
        for keys in [&mut self.frozen_unresolved, &mut self.unresolved] {
            while let Some(key) = keys.last() {
                // A read may have resolved it in the meantime.
                let pending = |table: &Table| table.get(key).is_some_and(|entry| !entry.resolved);
                if pending(&self.active) || self.frozen.as_deref().is_some_and(pending) {
                    return Some((key.clone(), self.generation));
                }
                keys.pop();
            }
        }
        None
    }

    /// Freezes the active table, if there is none frozen and it has anything.
    pub(super) fn freeze(&mut self) -> bool {
        if self.frozen.is_some() || self.active.len() == 0 {
            return false;
        }
        self.frozen = Some(Arc::new(std::mem::take(&mut self.active)));
        self.frozen_unresolved = std::mem::take(&mut self.unresolved);
        true
    }

    /// The frozen table is in the index now, which has `keys` keys. What memory no longer needs is
    /// given back: to free that much takes a while, and is better done without the lock.
    pub(super) fn flushed(&mut self, keys: u64) -> impl Sized + use<> {
        self.indexed = keys;
        self.generation += 1;
        let resolved = std::mem::take(&mut self.frozen_unresolved);
        debug_assert!(
            self.frozen
                .iter()
                .flat_map(|table| table.iter())
                .all(|entry| entry.resolved)
        );
        (
            self.frozen.take(),
            std::mem::take(&mut self.hints),
            resolved,
        )
    }
}

#[cfg(test)]
mod tests {
    use fencegate_filters::Token;
    use fencegate_filters::store::Binding;

    use super::*;

    fn record(counter: u64) -> Record {
        Record {
            mark: Token::new(0, counter).unwrap(),
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
        }
    }

    fn raise(key: &Key, counter: u64) -> [Raise; 1] {
        [Raise {
            key: key.clone(),
            record: record(counter),
        }]
    }

    #[test]
    fn a_commit_after_a_read_needs_no_other() {
        let (mut tables, key) = (Tables::default(), Key::from_text("n/k"));
        assert_eq!(tables.lookup(&key), Lookup::Ask);
        assert_eq!(tables.resolve(&key, None, 0), Ok(None));
        tables.insert(1, raise(&key, 5));
        assert_eq!(tables.lookup(&key), Lookup::Found(record(5)));
        assert_eq!(tables.count(), Some(1));
    }

    #[test]
    fn what_the_index_has_higher_wins() {
        let (mut tables, key) = (Tables::default(), Key::from_text("n/k"));
        tables.indexed = 1;
        tables.insert(1, raise(&key, 5));
        assert_eq!(tables.count(), None);
        assert_eq!(tables.lookup(&key), Lookup::Ask);
        let (unresolved, generation) = tables.next_unresolved().unwrap();
        let merged = tables.resolve(&unresolved, Some(record(9)), generation);
        assert_eq!(merged, Ok(Some(record(9))));
        assert!(tables.next_unresolved().is_none());
        assert_eq!(tables.count(), Some(1));
    }

    #[test]
    fn an_answer_from_before_a_flush_is_refused() {
        let (mut tables, key) = (Tables::default(), Key::from_text("n/k"));
        tables.insert(1, raise(&key, 5));
        assert!(tables.freeze());
        assert!(!tables.freeze());
        tables.insert(2, raise(&key, 6));
        assert_eq!(tables.resolve(&key, None, 0), Ok(Some(record(6))));
        assert_eq!(tables.count(), None);
        assert!(tables.next_unresolved().is_none());
        assert_eq!(tables.count(), Some(1));
        drop(tables.flushed(1));
        assert_eq!(tables.count(), Some(1));
        assert_eq!(tables.resolve(&key, None, 0), Err(()));
        assert_eq!(tables.lookup(&key), Lookup::Found(record(6)));
    }

    #[test]
    fn a_flush_leaves_nothing_of_its_keys_behind() {
        let mut tables = Tables::default();
        for round in 1..4 {
            let keys: Vec<Key> = (0..100)
                .map(|number| Key::from_text(&format!("n/{round}/{number}")))
                .collect();
            let known = (round - 1) * 101;
            assert_eq!(tables.count(), Some(known));
            tables.insert(round, keys.iter().flat_map(|key| raise(key, round)));
            assert!(tables.freeze());
            // It is all in the frozen table.
            assert!(tables.unresolved.is_empty());
            assert_eq!(tables.count(), None);
            // One comes again while the rest is written, and one that is new.
            tables.insert(round, raise(&keys[0], round));
            let new = Key::from_text(&format!("n/{round}/new"));
            tables.insert(round, raise(&new, round));
            for key in &keys {
                tables.resolve(key, None, tables.generation).unwrap();
            }
            drop(tables.flushed(known + 100));
            assert_eq!(tables.count(), None, "of one key nothing is known");
            assert!(tables.frozen_unresolved.is_empty() && tables.unresolved.len() == 2);
            tables.resolve(&new, None, tables.generation).unwrap();
            assert!(tables.next_unresolved().is_none());
            assert_eq!(tables.count(), Some(known + 101));
            assert!(tables.freeze());
            drop(tables.flushed(known + 101));
        }
    }

    #[test]
    fn what_is_committed_while_the_index_lets_go_of_it_is_new() {
        let (mut tables, key) = (Tables::default(), Key::from_text("n/k"));
        let other = Key::from_text("n/other");
        tables.indexed = 3;
        // A read has found it in the index, and a commit comes while it is taken out there.
        assert_eq!(
            tables.resolve(&key, Some(record(5)), 0),
            Ok(Some(record(5)))
        );
        tables.insert(1, raise(&key, 6));
        tables.insert(1, raise(&other, 6));
        assert!(tables.has(&key) && !tables.has(&Key::from_text("n/none")));
        let gone = [key.clone(), other.clone(), Key::from_text("n/third")];
        tables.forgotten(&gone, 0);
        assert_eq!(tables.lookup(&key), Lookup::Found(record(6)));
        assert_eq!(tables.lookup(&other), Lookup::Found(record(6)));
        assert!(tables.next_unresolved().is_none());
        assert_eq!(tables.count(), Some(2));
        // An answer from before is out of date.
        assert_eq!(tables.resolve(&key, Some(record(5)), 0), Err(()));
        // The same where it was frozen meanwhile, and committed once more.
        assert!(tables.freeze());
        tables.insert(2, raise(&key, 7));
        tables.indexed = 1;
        tables.forgotten(&gone[..1], 0);
        assert_eq!(tables.count(), Some(2));
    }
}
