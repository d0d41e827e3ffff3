//! Opens and closes a store on a disk and an index: the order of the steps is what makes it safe.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use fencegate_filters::Key;
use fencegate_filters::store::{Record, StoreError};

use super::committer::Committer;
use super::disk::{Disk, read_file, replace};
use super::error::OpenError;
use super::files::{
    CHECKPOINT, CLEAN, CREATING, Checkpoint, FORMAT, Format, RULES, StoreId, read_clean,
    write_clean,
};
use super::index::{INDEX, Index, IndexError, IndexMark};
use super::log::Log;
use super::rules::Rules;
use super::scan::{Scan, Scanner};
use super::segment::{MIN_BYTES, Segments, is_segment};
use super::shared::{Shared, Tuning};
use super::table::{Lookup, Tables};
use super::{flusher, lock_mutex, reader};

/// What an engine is opened with.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) require_existing: bool,
    pub(super) segment_bytes: usize,
    pub(super) readers: usize,
    pub(super) tuning: Tuning,
}

/// Opens the index; told whether to make it anew, without what a crash may have left.
pub(super) type OpenIndex<'a> = &'a dyn Fn(bool) -> Result<Arc<dyn Index>, IndexError>;

/// A running store, but for the lock on its directory.
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) was_clean: bool,
    pub(super) rules: Rules,
    committer: Mutex<Option<JoinHandle<Result<u64, StoreError>>>>,
    others: Mutex<Vec<JoinHandle<()>>>,
}

/// What is found in a directory before anything is changed.
pub(super) struct Found {
    pub(super) id: StoreId,
    pub(super) index: Arc<dyn Index>,
    pub(super) checkpoint: Checkpoint,
    pub(super) mark: IndexMark,
    /// The log's last sequence number at the last clean close, if it says so.
    pub(super) clean: Option<u64>,
    pub(super) rules: Rules,
}

struct Opening<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
}

impl Engine {
    /// Opens the store, or makes one.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        open_index: OpenIndex<'_>,
        settings: &Settings,
    ) -> Result<Self, OpenError> {
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
        let scan = found.scan(&*disk, &settings.path, |sequence, raise| {
            tables.insert(sequence, [raise]);
        })?;
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
        Self::start(shared, log, was_clean, found.rules, settings.readers).map_err(failed)
    }

    fn start(
        shared: Arc<Shared>,
        log: Log,
        was_clean: bool,
        rules: Rules,
        readers: usize,
    ) -> std::io::Result<Self> {
        let spawn = |name: &str, run: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("store-{name}"));
            builder.spawn(move || run(&shared))
        };
        let engine = Self {
            shared: Arc::clone(&shared),
            was_clean,
            rules,
            committer: Mutex::default(),
            others: Mutex::default(),
        };
        lock_mutex(&engine.others).push(spawn("flusher", flusher::run)?);
        for _ in 0..readers.max(1) {
            lock_mutex(&engine.others).push(spawn("reader", reader::run)?);
        }
        let committer = Committer::new(Arc::clone(&shared), log);
        let builder = std::thread::Builder::new().name("store-committer".to_owned());
        *lock_mutex(&engine.committer) = Some(builder.spawn(move || committer.run())?);
        Ok(engine)
    }

    /// Ends the threads, once what is pending is answered, and writes `CLEAN` if asked to.
    pub(super) fn close(&self, clean: bool) -> Result<(), StoreError> {
        let shared = &self.shared;
        lock_mutex(&shared.commits).stop = true;
        shared.commits_wait.notify_all();
        let committer = lock_mutex(&self.committer).take();
        let last = committer.and_then(join);
        lock_mutex(&shared.reads).stop = true;
        shared.reads_wait.notify_all();
        lock_mutex(&shared.memory).stop = true;
        shared.flusher_wait.notify_all();
        let others = std::mem::take(&mut *lock_mutex(&self.others));
        for thread in others {
            join(thread);
        }
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
        let found = found.map_err(|error| self.shared.fail(&error.to_string()))?;
        // A key that was flushed in between is in both, and one that is not in `keys` has been in
        // the index since before it was read.
        let mut indexed: std::collections::HashMap<_, _> = found.into_iter().collect();
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
        }
    }
}

/// Joins a thread, unless it is this one: an answer may drop the last handle of the store.
fn join<T>(thread: JoinHandle<T>) -> Option<T> {
    if thread.thread().id() == std::thread::current().id() {
        return None;
    }
    thread.join().ok()
}

impl Opening<'_> {
    fn io(&self, name: &str, source: std::io::Error) -> OpenError {
        OpenError::io(self.path.join(name), source)
    }

    fn corrupt(&self, file: &str, what: String) -> OpenError {
        OpenError::Corrupt {
            path: self.path.to_owned(),
            file: file.to_owned(),
            offset: None,
            what,
        }
    }

    /// Whether there is a store. One that was never finished is none; files of one without the
    /// file that says so are damage.
    fn exists(&self) -> Result<bool, OpenError> {
        let names = self.disk.list().map_err(|error| self.io("", error))?;
        let has = |name: &str| names.iter().any(|found| found == name);
        if has(FORMAT) {
            return Ok(true);
        }
        let ours = names.iter().find(|name| {
            is_segment(name) || [CHECKPOINT, CLEAN, RULES, INDEX].contains(&name.as_str())
        });
        match ours {
            Some(name) if !has(CREATING) => {
                let what = format!("it is missing, and there is {name}");
                Err(self.corrupt(FORMAT, what))
            }
            _ => Ok(false),
        }
    }

    /// Removes what is no longer needed, the clean marker above all, before anything is admitted.
    fn tidy(&self, scan: &Scan) -> std::io::Result<()> {
        let names = self.disk.list()?;
        for name in names {
            let leftover = scan.leftover.contains(&name) || name.ends_with(".new");
            if leftover || [CLEAN, CREATING].contains(&name.as_str()) {
                self.disk.remove(&name)?;
            }
        }
        self.disk.sync_dir()
    }
}

/// Makes an empty store. `FORMAT` comes last: without it there is no store.
fn create(
    disk: Arc<dyn Disk>,
    open_index: OpenIndex<'_>,
    settings: &Settings,
) -> Result<(), OpenError> {
    let opening = Opening {
        disk: &*disk,
        path: &settings.path,
    };
    let failed = |error| opening.io("", error);
    let begin = || {
        disk.create(CREATING)?.sync()?;
        disk.sync_dir()?;
        for name in disk.list()? {
            if is_segment(&name) || [CHECKPOINT, CLEAN, RULES].contains(&name.as_str()) {
                disk.remove(&name)?;
            }
        }
        Ok(())
    };
    begin().map_err(failed)?;
    let id = StoreId::random();
    let index_failed =
        |error: IndexError| opening.io(INDEX, std::io::Error::other(error.to_string()));
    let index = open_index(true).map_err(index_failed)?;
    let mark = IndexMark {
        generation: 1,
        sequence: 0,
        keys: 0,
    };
    index.apply(&[], mark).map_err(index_failed)?;
    let mut segments = settings.segments(Arc::clone(&disk), id);
    let mut finish = || {
        segments.add_spare()?;
        let checkpoint = Checkpoint {
            generation: 1,
            sequence: 0,
            keys: 0,
            segment: 1,
            first: 1,
        };
        replace(&*disk, CHECKPOINT, &checkpoint.write(id))?;
        replace(&*disk, FORMAT, &Format::write(id))
    };
    finish().map_err(failed)
}

impl Settings {
    fn segments(&self, disk: Arc<dyn Disk>, id: StoreId) -> Segments {
        Segments {
            disk,
            seed: id.seed(),
            bytes: self.segment_bytes.max(MIN_BYTES),
            reserve: self.tuning.flush_segments + 1,
            live: std::collections::VecDeque::new(),
            spare: std::collections::VecDeque::new(),
            next_id: 1,
        }
    }
}

impl Found {
    /// Reads the small files, and opens the index.
    pub(super) fn read(
        disk: &dyn Disk,
        open_index: OpenIndex<'_>,
        path: &Path,
    ) -> Result<Self, OpenError> {
        let opening = Opening { disk, path };
        let read = |name: &str| read_file(disk, name).map_err(|error| opening.io(name, error));
        let damaged = |name: &str| opening.corrupt(name, "its checksum does not agree".to_owned());
        let id = match Format::read(&read(FORMAT)?.unwrap_or_default()) {
            Format::Known(id) => id,
            Format::Other(found) => {
                let path = path.to_owned();
                return Err(OpenError::Version { path, found });
            }
            Format::Damaged => return Err(damaged(FORMAT)),
        };
        let checkpoint = read(CHECKPOINT)?.ok_or_else(|| damaged(CHECKPOINT))?;
        let checkpoint = Checkpoint::read(&checkpoint, id).ok_or_else(|| damaged(CHECKPOINT))?;
        // A damaged marker is no marker, which only holds back longer.
        let clean = read(CLEAN)?.and_then(|bytes| read_clean(&bytes, id));
        let rules = match read(RULES)? {
            None => Rules::default(),
            Some(bytes) => Rules::parse(&bytes).ok_or_else(|| damaged(RULES))?,
        };
        let index_failed = |error: IndexError| opening.corrupt(INDEX, error.to_string());
        let index = open_index(false).map_err(index_failed)?;
        let mark = index.mark().map_err(index_failed)?;
        let mark = mark.ok_or_else(|| opening.corrupt(INDEX, "it is empty".to_owned()))?;
        // A crash between the index and the file leaves them one step apart.
        let one_ahead =
            mark.generation == checkpoint.generation + 1 && mark.sequence >= checkpoint.sequence;
        let same = mark.generation == checkpoint.generation
            && mark.sequence == checkpoint.sequence
            && mark.keys == checkpoint.keys;
        if !same && !one_ahead {
            let what = format!(
                "it is at checkpoint {} (frame {}), and CHECKPOINT says {} (frame {})",
                mark.generation, mark.sequence, checkpoint.generation, checkpoint.sequence
            );
            return Err(opening.corrupt(INDEX, what));
        }
        Ok(Self {
            id,
            index,
            checkpoint,
            mark,
            clean,
            rules,
        })
    }

    /// Reads the log, and gives `apply` the raises that the index lacks.
    pub(super) fn scan(
        &self,
        disk: &dyn Disk,
        path: &Path,
        apply: impl FnMut(u64, fencegate_filters::store::Raise),
    ) -> Result<Scan, OpenError> {
        let scanner = Scanner {
            disk,
            path,
            seed: self.id.seed(),
            checkpoint: self.checkpoint,
            indexed: self.mark.sequence,
        };
        scanner.scan(apply)
    }

    fn resume(
        &self,
        disk: Arc<dyn Disk>,
        settings: &Settings,
        scan: &Scan,
        tables: Tables,
    ) -> std::io::Result<(Arc<Shared>, Arc<super::segment::Segment>)> {
        let mut segments = settings.segments(Arc::clone(&disk), self.id);
        segments.live.extend(scan.live.iter().cloned());
        segments.spare.extend(scan.spare.iter().cloned());
        let last_id = segments.spare.back().map(|segment| segment.id);
        let active = segments.live.back().map(|live| Arc::clone(&live.segment));
        let active = active.ok_or(std::io::ErrorKind::NotFound)?;
        segments.next_id = last_id.unwrap_or(active.id) + 1;
        let checkpoint = Checkpoint {
            generation: self.mark.generation,
            sequence: self.mark.sequence,
            keys: self.mark.keys,
            ..self.checkpoint
        };
        // Where the index is one step ahead, the file follows before the index goes on.
        if checkpoint != self.checkpoint {
            replace(&*disk, CHECKPOINT, &checkpoint.write(self.id))?;
        }
        let shared = Shared::new(
            disk,
            self.id,
            Arc::clone(&self.index),
            Arc::new(Mutex::new(segments)),
            settings.tuning,
            checkpoint,
            tables,
        );
        Ok((Arc::new(shared), active))
    }
}
