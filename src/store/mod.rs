//! The embedded store: marks on the disk of the gateway.
//!
//! An acknowledgement waits for a small log alone: everything pending becomes one frame, written
//! over blocks that were zeroed in advance, and one sync. Marks are then in memory, and move into
//! an index behind the log when a segment or two are full, upon which the segments are used again.
//!
//! | file | what |
//! | --- | --- |
//! | `frame`, `segment`, `scan`, `log` | the log: its format, its files, reading and appending |
//! | `committer`, `flusher`, `reader` | the threads |
//! | `stepped` | the same work without threads, for the simulation |
//! | `table`, `index` | marks in memory, and on disk |
//! | `opening`, `engine` | what is found at open, and the running store |
//! | `ages`, `forget` | the uptime, floors, and marks that are forgotten |
//! | `files`, `rules`, `lock` | the small files of the directory |
//! | `disk` | the seam to the file system |
//! | `tools` | verify, export, import, stats |

mod ages;
mod committer;
mod disk;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod door;
mod engine;
mod error;
mod files;
mod flusher;
mod forget;
mod frame;
mod index;
mod lock;
mod log;
mod medium;
mod opening;
mod reader;
mod record;
mod rules;
mod scan;
mod segment;
mod shared;
mod table;
pub mod tools;

#[cfg(test)]
#[cfg(feature = "shuttle")]
mod orders;
// On real threads; under a checker of threads there is `orders`.
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod sim;
#[cfg(any(test, feature = "sim"))]
pub mod sim_disk;
#[cfg(feature = "sim")]
mod stepped;
#[cfg(feature = "sim")]
pub use self::stepped::Pace;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, LockResult, PoisonError};
use std::time::{Duration, Instant};

use fencegate_filters::store::{Raise, Record, Reply, Store, StoreError};
use fencegate_filters::{Key, Token};

use self::disk::{Directory, create_dir_durably};
use self::engine::Engine;
pub use self::error::OpenError;
pub use self::forget::IdleKeys;
use self::index::{FjallIndex, INDEX, Index, IndexError};
use self::lock::Lock;
pub use self::medium::volatile_medium;
use self::opening::Settings;
pub use self::rules::NamespaceRules;
use self::shared::Tuning;
use crate::sync::{Mutex, MutexGuard};

/// How long to wait before trying again for room.
const NO_SPACE_WAIT: Duration = Duration::from_secs(1);

/// By what the uptime is counted.
const UPTIME_UNIT: Duration = Duration::from_secs(1);

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory. It is created, parents included, unless `require_existing` is set.
    pub path: PathBuf,
    /// Refuse a directory that has no store, which would be one without any marks.
    pub require_existing: bool,
    /// Memory for blocks of the index, in bytes.
    pub cache_bytes: u64,
    /// The length of one segment of the log, in bytes. One commit must fit into it.
    pub segment_bytes: usize,
    /// How many segments fill before their marks move into the index.
    pub flush_segments: usize,
    /// How many keys gather in memory before they do.
    pub memory_keys: usize,
    /// Threads that read the index.
    pub readers: usize,
    /// How long nothing is committed before the end of the log is sealed.
    pub idle: Duration,
}

impl Options {
    /// The defaults, for a store in `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            require_existing: false,
            cache_bytes: 64 << 20,
            segment_bytes: 16 << 20,
            flush_segments: 4,
            memory_keys: 200_000,
            readers: 2,
            idle: Duration::from_millis(100),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            path: self.path.clone(),
            require_existing: self.require_existing,
            segment_bytes: self.segment_bytes,
            readers: self.readers,
            tuning: Tuning {
                flush_segments: self.flush_segments.max(1),
                memory_keys: self.memory_keys.max(1),
                idle: self.idle,
                no_space_wait: NO_SPACE_WAIT,
                uptime_unit: UPTIME_UNIT,
            },
        }
    }
}

/// Marks in a directory, which it holds locked for as long as it lives.
///
/// Dropped without [`close`](Self::close), it is as after a crash: nothing acknowledged is lost,
/// and [`was_clean`](Self::was_clean) says `false` at the next opening.
pub struct EmbeddedStore {
    engine: Engine,
    opened_at: Instant,
}

impl EmbeddedStore {
    /// Opens the store in `options.path`, or makes one. Blocks until every acknowledged mark can
    /// be read.
    ///
    /// # Errors
    ///
    /// As [`OpenError`] says.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let path = &options.path;
        if options.require_existing && !path.is_dir() {
            return Err(OpenError::Missing { path: path.clone() });
        }
        create_dir_durably(path).map_err(|error| OpenError::io(path, error))?;
        let lock = Lock::take(path)?;
        let opened_at = lock.taken_at;
        let disk = Directory::open(path, lock).map_err(|error| OpenError::io(path, error))?;
        let disk = Arc::new(disk);
        let open_index = |fresh| open_index(path, fresh, options.cache_bytes);
        let engine = Engine::open(disk, &open_index, &options.settings())?;
        Ok(Self { engine, opened_at })
    }

    /// Whether the store was closed with `close(true)` the last time. A new one counts as clean.
    #[must_use]
    pub const fn was_clean(&self) -> bool {
        self.engine.was_clean
    }

    /// When the lock was taken: since then no other process has used the store.
    #[must_use]
    pub const fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Runs `hook` once, on the failing thread, when the store fails for good; at once where it
    /// has already. It is given what failed.
    pub fn on_failure(&self, hook: impl FnOnce(Arc<str>) + Send + 'static) {
        self.engine.shared.on_failure(Box::new(hook));
    }

    /// Calls `hook` after every batch with the number of its marks and the time that its write and
    /// sync took, on the committing thread. The first hook stays.
    pub fn on_batch(&self, hook: impl Fn(usize, Duration) + Send + Sync + 'static) {
        // A second one has nobody to tell.
        let _ = self.engine.shared.on_batch.set(Box::new(hook));
    }

    /// Answers what is pending, then ends. With `clean`, the next opening will find that nothing
    /// was in flight. The directory stays locked until the store is dropped.
    ///
    /// # Errors
    ///
    /// Where the store had failed, could not be closed cleanly, or was closed before.
    pub fn close(&self, clean: bool) -> Result<(), StoreError> {
        self.engine.close(clean)
    }

    /// The rules that were put last for a namespace.
    ///
    /// # Errors
    ///
    /// Where the store has failed.
    pub fn rules(&self, namespace: &str) -> Result<Option<NamespaceRules>, StoreError> {
        self.working()?;
        Ok(self.engine.rules.get(namespace))
    }

    /// The rules of all namespaces.
    ///
    /// # Errors
    ///
    /// Where the store has failed.
    pub fn all_rules(&self) -> Result<BTreeMap<String, NamespaceRules>, StoreError> {
        self.working()?;
        Ok(self.engine.rules.all())
    }

    /// Makes the rules of these namespaces durable, all of them or none. Blocks for a few syncs, however
    /// many they are.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`] where there is no room, and [`StoreError::Unavailable`] where no file
    /// could be opened; any other failure is final.
    pub fn put_rules(&self, changed: &BTreeMap<String, NamespaceRules>) -> Result<(), StoreError> {
        self.working()?;
        let shared = &self.engine.shared;
        let put = self.engine.rules.put(&*shared.disk, changed);
        put.map_err(|error| {
            let what = format!("writing {}: {error}", files::RULES);
            if disk::is_no_space(&error) {
                StoreError::NoSpace
            } else if disk::is_not_opened(&error) {
                StoreError::Unavailable(what.into())
            } else {
                shared.fail(&what)
            }
        })
    }

    fn working(&self) -> Result<(), StoreError> {
        self.engine.shared.failed().map_or(Ok(()), Err)
    }
}

impl Store for EmbeddedStore {
    fn read(&self, key: &Key, reply: Reply<Option<Record>>) {
        self.engine.shared.read(key, reply);
    }

    fn commit(&self, raises: Vec<Raise>, reply: Reply<()>) {
        self.engine.shared.commit(raises, reply);
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.engine.list(prefix, after, limit)
    }

    fn floor(&self, namespace: &str) -> Option<Token> {
        self.engine.shared.ages.floor(namespace)
    }

    /// Exact. Reads the disk only for keys that were committed without having been read before.
    fn len(&self) -> u64 {
        self.engine.len()
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("was_clean", &self.was_clean())
            .finish_non_exhaustive()
    }
}

/// Makes one call to a store, and waits for its answer.
pub(crate) async fn asked<T: Send + 'static>(call: impl FnOnce(Reply<T>)) -> Result<T, StoreError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // Whoever left needs no answer.
    call(Reply::new(move |result| drop(sender.send(result))));
    let dropped = StoreError::Unavailable("the store dropped the call".into());
    receiver.await.unwrap_or(Err(dropped))
}

fn open_index(
    path: &std::path::Path,
    fresh: bool,
    cache_bytes: u64,
) -> Result<Arc<dyn Index>, IndexError> {
    let directory = path.join(INDEX);
    if fresh && directory.exists() {
        std::fs::remove_dir_all(&directory)
            .map_err(|error| IndexError::Engine(error.to_string()))?;
    }
    if !fresh && !directory.is_dir() {
        // The engine would make a new one.
        return Err(IndexError::Damaged("it is missing".to_owned()));
    }
    let index = FjallIndex::open(path, cache_bytes)?;
    Ok(Arc::new(index))
}

/// Now, by the clock that a runtime's timers go by; the system's where there is no runtime.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Locks a mutex whose holders leave nothing half done when they panic: a thread of ours that
/// does so fails the store.
fn lock_mutex<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}

fn unpoisoned<T>(result: LockResult<T>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}
