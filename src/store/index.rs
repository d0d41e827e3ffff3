//! The index behind the log: all marks up to the last checkpoint, sorted, on disk.
//!
//! fjall is used through its ingestion alone: a sorted batch becomes a new, checksummed table that
//! is synced and registered in one atomic step, checkpoint included. Its journal stays empty. So
//! what its journal does badly (it takes some flipped bits for a torn tail, and cuts the file)
//! cannot lose a mark, and what an ingestion returned from is durable.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fencegate_filters::store::Record;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use super::disk::{is_no_descriptor, is_no_space, is_read_only};
use super::files::{field, seal, unseal};
use super::record::{Kept, decode_record, encode_record};

/// The directory of the index, within the store's.
pub(super) const INDEX: &str = "index";

/// What the index says of itself, written in one step with the marks it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexMark {
    /// The checkpoint's generation.
    pub(super) generation: u64,
    /// The last sequence number of the log that it has.
    pub(super) sequence: u64,
    /// How many keys it has.
    pub(super) keys: u64,
}

/// What becomes of one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct IndexChange<'a> {
    pub(super) key: &'a str,
    /// Its record and its stamp; `None`: it has none any more.
    pub(super) record: Option<(&'a Record, u32)>,
}

/// All marks up to a checkpoint.
pub(super) trait Index: Send + Sync {
    /// What it says of itself; `None` before the first `apply`.
    fn mark(&self) -> Result<Option<IndexMark>, IndexError>;
    /// The record of one key.
    fn get(&self, key: &str) -> Result<Option<Kept>, IndexError>;
    /// Makes `changes`, which are sorted by key, and replaces the mark, durably and as one.
    fn apply(&self, changes: &[IndexChange<'_>], mark: IndexMark) -> Result<(), IndexError>;
    /// Makes durable what is found at open. To be called before anything is built on it.
    fn vouch(&self) -> Result<(), IndexError>;
    /// Up to `limit` keys that start with `prefix` and sort after `after`, in order.
    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Kept)>, IndexError>;
}

/// Why the index did not do what it was asked.
#[derive(Debug)]
pub(super) enum IndexError {
    /// There is no room, or nothing may be written, now.
    NoSpace,
    /// No file could be opened, now, and nothing else has happened.
    NotOpened(String),
    /// A value in it is not what was written.
    Damaged(String),
    /// The engine failed.
    Engine(String),
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSpace => f.write_str("no space left for the index"),
            Self::NotOpened(what) => write!(f, "no file of the index could be opened: {what}"),
            Self::Damaged(what) => write!(f, "the index is damaged: {what}"),
            Self::Engine(what) => write!(f, "the index failed: {what}"),
        }
    }
}

impl From<fjall::Error> for IndexError {
    fn from(error: fjall::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(this) = cause {
            let passes = |error: &io::Error| is_no_space(error) || is_read_only(error);
            if this.downcast_ref().is_some_and(passes) {
                return Self::NoSpace;
            }
            if this.downcast_ref().is_some_and(wants_descriptor) {
                return Self::NotOpened(error.to_string());
            }
            cause = this.source();
        }
        Self::Engine(error.to_string())
    }
}

/// Whether an error of the engine is the want of a descriptor. Its temporary files hide the code in
/// the text of an error of their own.
fn wants_descriptor(error: &io::Error) -> bool {
    let hidden = || {
        let text = error.to_string();
        let codes = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
        let says =
            |code: rustix::io::Errno| text.contains(&format!("(os error {})", code.raw_os_error()));
        codes.into_iter().any(says)
    };
    is_no_descriptor(error) || (error.raw_os_error().is_none() && hidden())
}

/// How many tables may wait to be merged before no more are added.
const MOST_UNMERGED: usize = 16;
/// How long the engine may go without merging any. It stops for good when it once fails.
const MERGE_TIMEOUT: Duration = Duration::from_secs(60);
const MERGE_POLL: Duration = Duration::from_millis(2);

/// How many files the engine keeps open to read from. The reserve of descriptors that the gateway
/// keeps from its connections has room for them.
const OPEN_TABLES: usize = 256;
/// More files than an ingestion has open at once.
const INGESTION_FILES: usize = 16;

/// The engine's file that says which list of its tables counts.
const CURRENT: &str = "current";
/// Sorts before every key.
const MARK_KEY: &[u8] = b"c";
/// Before the text of each key.
const KEY_PREFIX: u8 = b'k';

fn index_key(text: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(text.len() + 1);
    key.push(KEY_PREFIX);
    key.extend_from_slice(text.as_bytes());
    key
}

/// The index on fjall.
pub(super) struct FjallIndex {
    path: PathBuf,
    /// The files that say which list of tables counts.
    pointers: Vec<PathBuf>,
    database: Database,
    marks: Keyspace,
}

/// Which file a name stands for: another one after each rename over it.
type Identity = (u64, i64, i64);

impl FjallIndex {
    /// Opens the index in the store's `directory`, or makes it.
    pub(super) fn open(directory: &Path, cache_bytes: u64) -> Result<Self, IndexError> {
        let path: PathBuf = directory.join(INDEX);
        guarded(|| {
            // With one worker it merges tables at once. With more, the first of them leaves that to
            // the others, and passes each request round in a circle while they are busy. It is
            // there for memtables, which an ingestion does without.
            let database = Database::builder(&path)
                .worker_threads(1)
                .cache_size(cache_bytes)
                .max_cached_files(Some(OPEN_TABLES))
                .open()?;
            let marks = database.keyspace("marks", || {
                // Most keys that are asked for in vain would otherwise cost a read of the last
                // level.
                KeyspaceCreateOptions::default().expect_point_read_hits(false)
            })?;
            let mut pointers = Vec::new();
            find_pointers(&path, &mut pointers)
                .map_err(|error| IndexError::Engine(format!("reading its directory: {error}")))?;
            Ok((pointers, database, marks))
        })
        .map(|(pointers, database, marks)| Self {
            path,
            pointers,
            database,
            marks,
        })
    }

    /// Which lists of tables count. Needs no descriptor.
    fn pointed(&self) -> io::Result<Vec<Identity>> {
        let identity = |path: &PathBuf| {
            let found = std::fs::metadata(path)?;
            Ok((found.ino(), found.ctime(), found.ctime_nsec()))
        };
        self.pointers.iter().map(identity).collect()
    }

    /// The engine slows its writers down when it falls behind with merging tables, but not an
    /// ingestion: every read would look into one more table with each of them.
    fn wait_for_merges(&self) -> Result<(), IndexError> {
        let (mut progress, mut least) = (Instant::now(), usize::MAX);
        loop {
            let tables = self.marks.l0_table_count();
            if tables <= MOST_UNMERGED {
                return Ok(());
            }
            if tables < least {
                (least, progress) = (tables, Instant::now());
            }
            if progress.elapsed() > MERGE_TIMEOUT {
                let what = format!("it has {tables} tables, and merges none");
                return Err(IndexError::Engine(what));
            }
            std::thread::sleep(MERGE_POLL);
        }
    }

    /// Sees to it that an ingestion will hardly want for descriptors: one that did may fail behind the
    /// rename that makes it count.
    fn find_descriptors(&self) -> Result<(), IndexError> {
        let held: io::Result<Vec<File>> = (0..INGESTION_FILES)
            .map(|_| File::open(&self.path))
            .collect();
        held.map(drop)
            .map_err(|error| match is_no_descriptor(&error) {
                true => IndexError::NotOpened(error.to_string()),
                false => IndexError::Engine(format!("opening its directory: {error}")),
            })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<(String, Kept), IndexError> {
        let text = key.get(1..).and_then(|key| std::str::from_utf8(key).ok());
        match (text, decode_record(value)) {
            (Some(text), Some(kept)) => Ok((text.to_owned(), kept)),
            _ => Err(IndexError::Damaged(format!(
                "the record of {}",
                String::from_utf8_lossy(key)
            ))),
        }
    }
}

/// The engine asserts what it believes of its files. On damaged ones that must not take a thread
/// of ours with it.
fn guarded<T>(call: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(IndexError::Engine("the engine panicked".to_owned())))
}

/// The files in a directory, and those in it, that say which list of tables counts.
fn find_pointers(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_pointers(&entry.path(), found)?;
        } else if entry.file_name() == CURRENT {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Syncs a directory and those in it, and the files that say which list of tables counts.
fn sync_names(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_names(&entry.path())?;
        } else if entry.file_name() == CURRENT {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

impl Index for FjallIndex {
    fn mark(&self) -> Result<Option<IndexMark>, IndexError> {
        let Some(bytes) = guarded(|| Ok(self.marks.get(MARK_KEY)?))? else {
            return Ok(None);
        };
        let number = |name| field(unseal(&bytes)?, name)?.parse::<u64>().ok();
        let mark = || {
            let mark = IndexMark {
                generation: number("generation")?,
                sequence: number("sequence")?,
                keys: number("keys")?,
            };
            Some((mark, number("engine")?))
        };
        let (mark, engine) =
            mark().ok_or_else(|| IndexError::Damaged("its checkpoint".to_owned()))?;
        // The engine tells newer values from older by its own counter. Should it ever begin that
        // anew, older marks would hide newer ones.
        if self.database.seqno() <= engine {
            return Err(IndexError::Damaged(format!(
                "the engine's counter fell from {engine} to {}",
                self.database.seqno()
            )));
        }
        Ok(Some(mark))
    }

    fn get(&self, key: &str) -> Result<Option<Kept>, IndexError> {
        let key = index_key(key);
        match guarded(|| Ok(self.marks.get(&key)?))? {
            None => Ok(None),
            Some(value) => Self::decode(&key, &value).map(|(_, kept)| Some(kept)),
        }
    }

    fn apply(&self, changes: &[IndexChange<'_>], mark: IndexMark) -> Result<(), IndexError> {
        let IndexMark {
            generation,
            sequence,
            keys,
        } = mark;
        self.wait_for_merges()?;
        self.find_descriptors()?;
        let unknown = |error: io::Error| IndexError::Engine(format!("its list of tables: {error}"));
        let before = self.pointed().map_err(unknown)?;
        let applied = guarded(|| {
            let engine = self.database.seqno();
            let text = format!(
                "generation {generation}\nsequence {sequence}\nkeys {keys}\nengine {engine}\n"
            );
            let mut ingestion = self.marks.start_ingestion()?;
            ingestion.write(MARK_KEY, seal(text))?;
            let mut value = Vec::new();
            for IndexChange { key, record } in changes {
                let Some((record, stamp)) = record else {
                    ingestion.write_tombstone(index_key(key))?;
                    continue;
                };
                value.clear();
                encode_record(record, *stamp, &mut value)
                    .map_err(|_| IndexError::Damaged(format!("the record of {key} is too long")))?;
                ingestion.write(index_key(key), &*value)?;
            }
            Ok(ingestion.finish()?)
        });
        applied.map_err(|error| match (error, self.pointed()) {
            // The engine takes the new list of tables for its own once it has renamed and synced what
            // points to it. Up to the rename all that it has written is of no account, and is left
            // behind or written over. After the rename the engine goes by another list than the
            // disk, and another ingestion would write over files that count.
            (IndexError::NotOpened(what), Ok(after)) if after == before => {
                IndexError::NotOpened(what)
            }
            (IndexError::NotOpened(what), _) => IndexError::Engine(what),
            (error, _) => error,
        })
    }

    /// The engine syncs a table, then the list of tables, and each name, before it renames the file
    /// that says which list counts. Only that rename may be in the kernel's memory alone: of a
    /// process that was killed before its last sync.
    fn vouch(&self) -> Result<(), IndexError> {
        sync_names(&self.path).map_err(|error| IndexError::Engine(format!("its sync: {error}")))
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Kept)>, IndexError> {
        let prefix = index_key(prefix);
        let from = match after.map(index_key) {
            // The least key that sorts after another is that key and a zero byte.
            Some(mut after) if after >= prefix => {
                after.push(0);
                after
            }
            _ => prefix.clone(),
        };
        guarded(|| {
            let mut found = Vec::new();
            for entry in self.marks.range(from..).take(limit) {
                let (key, value) = entry.into_inner()?;
                if !key.starts_with(&prefix) {
                    break;
                }
                found.push(Self::decode(&key, &value)?);
            }
            Ok(found)
        })
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
            holder: Binding::Nobody,
            draining: false,
            resets: 0,
        }
    }

    fn put<'a>(key: &'a str, record: &'a Record) -> IndexChange<'a> {
        let record = Some((record, 7));
        IndexChange { key, record }
    }

    #[test]
    fn what_is_taken_out_is_gone_and_its_room_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let index = FjallIndex::open(directory.path(), 1 << 20).unwrap();
        let mark = |generation| IndexMark {
            generation,
            sequence: 1,
            keys: 0,
        };
        let one = record(1);
        for round in 0..40 {
            let keys: Vec<_> = (0..2000).map(|n| format!("n/{round:03}{n:05}")).collect();
            let puts: Vec<_> = keys.iter().map(|key| put(key, &one)).collect();
            index.apply(&puts, mark(2 * round + 1)).unwrap();
            let kept = index.get(&keys[7]).unwrap();
            assert_eq!(kept.map(|kept| kept.stamp), Some(7));
            let gone: Vec<_> = keys
                .iter()
                .map(|key| IndexChange { key, record: None })
                .collect();
            index.apply(&gone, mark(2 * round + 2)).unwrap();
            assert_eq!(index.get(&keys[7]).unwrap(), None);
        }
        assert!(index.range("", None, 9).unwrap().is_empty());
        drop(index);
        let index = FjallIndex::open(directory.path(), 1 << 20).unwrap();
        assert!(index.range("", None, 9).unwrap().is_empty());
    }

    #[test]
    fn hot_keys_do_not_pile_up() {
        let directory = tempfile::tempdir().unwrap();
        let index = FjallIndex::open(directory.path(), 1 << 20).unwrap();
        let keys: Vec<_> = (0..500).map(|n| format!("n/{n:05}")).collect();
        for round in 1..=200 {
            let record = record(round);
            let entries: Vec<_> = keys.iter().map(|key| put(key, &record)).collect();
            let mark = IndexMark {
                generation: round,
                sequence: round,
                keys: 500,
            };
            index.apply(&entries, mark).unwrap();
            assert_eq!(index.mark().unwrap(), Some(mark));
            assert_eq!(index.get("n/00007").unwrap().unwrap().record, record);
        }
        assert!(index.marks.l0_table_count() <= MOST_UNMERGED + 1);
        drop(index);
        let index = FjallIndex::open(directory.path(), 1 << 20).unwrap();
        assert_eq!(index.get("n/00499").unwrap().unwrap().record, record(200));
        assert_eq!(index.range("n/", None, 999).unwrap().len(), 500);
    }
}
