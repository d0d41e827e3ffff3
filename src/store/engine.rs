//! Opens and closes a store on a disk and an index: the order of the steps is what makes it safe.

use std::sync::Arc;

use fencegate_filters::Key;
use fencegate_filters::store::{Record, StoreError};

use super::ages;
use super::committer::Committer;
use super::disk::{Disk, replace};
use super::error::OpenError;
use super::files::{CLEAN, write_clean};
use super::index::INDEX;
use super::log::Log;
use super::opening::{Found, OpenIndex, Opening, Settings, create};
use super::rules::Rules;
use super::shared::Shared;
use super::table::{Lookup, Tables};
use super::{flusher, lock_mutex, reader};
use crate::sync::Mutex;
use crate::sync::thread::{self, JoinHandle};

/// Who commits.
pub(super) enum Committing {
    /// A thread of its own.
    Thread(JoinHandle<Result<u64, StoreError>>),
    /// Whoever steps it.
    #[cfg(feature = "sim")]
    Stepped(Box<Committer>),
}

/// A running store, but for the lock on its directory.
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) was_clean: bool,
    pub(super) rules: Rules,
    pub(super) committer: Mutex<Option<Committing>>,
    others: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Opens the store, or makes one, and starts its threads.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        open_index: OpenIndex<'_>,
        settings: &Settings,
    ) -> Result<Self, OpenError> {
        let (engine, log) = Self::prepare(disk, open_index, settings)?;
        let started = engine.start(log, settings.readers);
        started.map_err(|error| OpenError::io(&settings.path, error))?;
        Ok(engine)
    }

    /// The store as it is before its threads run, and its log.
    pub(super) fn prepare(
        disk: Arc<dyn Disk>,
        open_index: OpenIndex<'_>,
        settings: &Settings,
    ) -> Result<(Self, Log), OpenError> {
        let opening = Opening {
            disk: &*disk,
            path: &settings.path,
        };
        let fresh = !opening.exists()?;
        if fresh {
            if settings.require_existing {
                return Err(OpenError::Missing {
                    path: settings.path.clone(),
                });
            }
            create(Arc::clone(&disk), open_index, settings)?;
        }
        let found = Found::read(&*disk, open_index, &settings.path)?;
        let mut tables = Tables::default();
        tables.indexed = found.mark.keys;
        let indexed = |error: super::IndexError| opening.corrupt(INDEX, error.to_string());
        tables.uptime = ages::indexed_uptime(&*found.index).map_err(indexed)?;
        let scan = found.scan(&*disk, &settings.path, |sequence, raise| {
            // What comes behind it in the log was committed later.
            if let Some(uptime) = ages::uptime_of(&raise) {
                tables.uptime = tables.uptime.max(uptime);
            }
            tables.insert(sequence, [raise]);
        })?;
        let uptime = tables.uptime;
        // Every opening moves the log's end, so a marker that names it is from the last close.
        let was_clean = fresh || found.clean == Some(scan.last);
        if found.clean.is_some_and(|last| last > scan.last) {
            let what = format!(
                "the store was closed at frame {}, and the log ends at frame {}",
                found.clean.unwrap_or_default(),
                scan.last
            );
            return Err(opening.corrupt(CLEAN, what));
        }
        let failed = |error| opening.io("", error);
        opening.upgrade(found.id).map_err(failed)?;
        opening.tidy(&scan).map_err(failed)?;
        let shared = found.resume(disk.clone(), settings, &scan, tables);
        let (shared, active) = shared.map_err(failed)?;
        let log = Log::resume(Arc::clone(&shared.segments), found.id.seed(), active, &scan);
        let mut log = log.map_err(failed)?;
        // From here on no frame of before is the last one, and no earlier marker fits.
        log.seal().map_err(|error| {
            opening.io(
                "",
                std::io::Error::other(format!("sealing the log: {error:?}")),
            )
        })?;
        shared.ages.begin(uptime);
        let engine = Self {
            shared,
            was_clean,
            rules: found.rules,
            committer: Mutex::default(),
            others: Mutex::default(),
        };
        // Before the first read is answered.
        engine
            .find_floors()
            .map_err(|error| opening.corrupt(INDEX, error.to_string()))?;
        Ok((engine, log))
    }

    fn start(&self, log: Log, readers: usize) -> std::io::Result<()> {
        self.spawn("flusher", flusher::run)?;
        for _ in 0..readers.max(1) {
            self.spawn("reader", reader::run)?;
        }
        let committer = Committer::new(Arc::clone(&self.shared), log);
        let builder = thread::Builder::new().name("store-committer".to_owned());
        let thread = builder.spawn(move || committer.run())?;
        *lock_mutex(&self.committer) = Some(Committing::Thread(thread));
        Ok(())
    }

    pub(super) fn spawn(&self, name: &str, run: fn(&Shared)) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let builder = thread::Builder::new().name(format!("store-{name}"));
        let thread = builder.spawn(move || run(&shared))?;
        lock_mutex(&self.others).push(thread);
        Ok(())
    }

    /// Ends the threads, once what is pending is answered, and writes `CLEAN` if asked to.
    pub(super) fn close(&self, clean: bool) -> Result<(), StoreError> {
        let shared = &self.shared;
        lock_mutex(&shared.commits).stop = true;
        shared.commits_wait.notify_all();
        let committer = lock_mutex(&self.committer).take();
        let last = committer.and_then(|committer| match committer {
            Committing::Thread(thread) => join(thread),
            #[cfg(feature = "sim")]
            Committing::Stepped(committer) => Some(super::stepped::run_out(*committer)),
        });
        self.stop_others();
        if let Some(error) = shared.failed() {
            return Err(error);
        }
        let closed = || StoreError::Unavailable("the store is closed already".into());
        let last = last.ok_or_else(closed)??;
        if clean {
            let marker = write_clean(shared.id, last);
            replace(&*shared.disk, CLEAN, &marker).map_err(|error| {
                StoreError::Unavailable(format!("writing CLEAN: {error}").into())
            })?;
        }
        Ok(())
    }

    /// Ends the threads but for the committer.
    fn stop_others(&self) {
        let shared = &self.shared;
        lock_mutex(&shared.reads).stop = true;
        shared.reads_wait.notify_all();
        lock_mutex(&shared.memory).stop = true;
        shared.flusher_wait.notify_all();
        let others = std::mem::take(&mut *lock_mutex(&self.others));
        for thread in others {
            join(thread);
        }
    }

    /// How many keys have a mark.
    pub(super) fn len(&self) -> u64 {
        loop {
            let next = {
                let mut memory = lock_mutex(&self.shared.memory);
                let next = memory.tables.next_unresolved();
                if let Some(count) = memory.tables.count() {
                    return count;
                }
                next
            };
            if let Some((key, _)) = next
                && self.shared.ask(&key).is_err()
            {
                return lock_mutex(&self.shared.memory).tables.least_count();
            }
        }
    }

    /// Up to `limit` keys, in order, from memory and the index together.
    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        if let Some(error) = self.shared.failed() {
            return Err(error);
        }
        let mut keys = lock_mutex(&self.shared.memory).tables.keys(prefix, after);
        let found = self.shared.index.range(prefix, after, limit);
        let found = found.map_err(|error| self.shared.index_failed(&error))?;
        // A key that was flushed in between is in both, and one that is not in `keys` has been in
        // the index since before it was read.
        let found = found.into_iter().map(|(key, kept)| (key, kept.record));
        let mut indexed: std::collections::HashMap<_, _> = found.collect();
        keys.extend(indexed.keys().map(|key| Key::from_text(key)));
        keys.sort_unstable();
        keys.dedup();
        keys.truncate(limit);
        let record = |key: Key| {
            let known = lock_mutex(&self.shared.memory).tables.lookup(&key);
            let record = match (known, indexed.remove(key.as_str())) {
                (Lookup::Found(record), _) => Some(record),
                (Lookup::Ask, _) => self.shared.ask(&key)?,
            };
            Ok(record.map(|record| (key, record)))
        };
        keys.into_iter()
            .map(record)
            .filter_map(Result::transpose)
            .collect()
    }
}

impl Drop for Engine {
    /// As after a crash: not clean, but without threads left behind.
    fn drop(&mut self) {
        if lock_mutex(&self.committer).is_some() {
            let _ = self.close(false);
        } else {
            // Those that ran before an open failed would keep the store, and its lock.
            self.stop_others();
        }
    }
}

/// Joins a thread, unless it is this one: an answer may drop the last handle of the store.
fn join<T>(thread: JoinHandle<T>) -> Option<T> {
    if thread.thread().id() == thread::current().id() {
        return None;
    }
    thread.join().ok()
}
