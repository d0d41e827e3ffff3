//! What the store's threads share, and how it fails: once, and for good.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fencegate_filters::Key;
use fencegate_filters::fault::{self, Fault};
use fencegate_filters::store::{Raise, Record, Reply, StoreError};

use super::ages::Ages;
use super::disk::Disk;
use super::files::{Checkpoint, StoreId};
use super::forget::IdleKeys;
use super::index::{Index, IndexError};
use super::lock_mutex;
use super::segment::Segments;
use super::table::{Lookup, Tables};
use crate::sync::{AtomicBool, Condvar, Mutex};

/// The most commits, and the most reads, that may wait at once.
const MOST_WAITING: usize = 1 << 20;

/// One `commit` call.
pub(super) struct Pending {
    pub(super) raises: Vec<Raise>,
    pub(super) reply: Reply<()>,
}

/// One `read` call that memory could not answer.
pub(super) struct Asked {
    pub(super) key: Key,
    pub(super) reply: Reply<Option<Record>>,
}

#[derive(Default)]
pub(super) struct CommitQueue {
    pub(super) pending: VecDeque<Pending>,
    pub(super) stop: bool,
    #[cfg(test)]
    pub(super) hooks: Hooks,
}

#[derive(Default)]
pub(super) struct ReadQueue {
    pub(super) asked: VecDeque<Asked>,
    pub(super) stop: bool,
}

/// The tables, and what the flusher is to do about them.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) tables: Tables,
    /// A segment has to be made for the reserve.
    pub(super) wants_spare: bool,
    /// The index found no room the last time.
    pub(super) no_space: bool,
    /// The index could not be read the last time, and may be before long.
    pub(super) unread: bool,
    /// The committer is putting the marks of a frame here, and has not done so with all of them.
    pub(super) half_frame: bool,
    /// The active table is to be moved into the index although it is not full.
    pub(super) wants_flush: bool,
    /// What forgetting asks of the flusher.
    pub(super) chores: VecDeque<Chore>,
    pub(super) stop: bool,
    #[cfg(test)]
    pub(super) hooks: Hooks,
}

/// A part of forgetting marks, for the flusher between two flushes.
pub(super) enum Chore {
    /// To look for keys of `namespace` that may be forgotten, among the next `limit` behind `after`.
    FindIdle {
        namespace: Box<str>,
        after: Option<Key>,
        limit: usize,
        reply: Reply<IdleKeys>,
    },
    /// To take the marks of `keys` out of the index where nothing speaks against it; answered with
    /// the number of those that are gone.
    Forget { keys: Vec<Key>, reply: Reply<u64> },
}

impl Chore {
    pub(super) fn refuse(self, error: StoreError) {
        match self {
            Self::FindIdle { reply, .. } => reply.send(Err(error)),
            Self::Forget { reply, .. } => reply.send(Err(error)),
        }
    }
}

/// Lets a test run a thread of the store step by step.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Hooks {
    /// The thread waits, and had nothing to do when it began to.
    pub(super) rests: bool,
    /// The log is to be sealed now, as when it is idle.
    pub(super) seal: bool,
}

type Hook = Box<dyn FnOnce(Arc<str>) + Send>;

#[derive(Default)]
struct Failure {
    why: Option<Arc<str>>,
    hooks: Vec<Hook>,
}

/// When the store does what by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    /// Segments in use at which the active table is frozen.
    pub(super) flush_segments: usize,
    /// Keys in memory at which it is.
    pub(super) memory_keys: usize,
    /// How long the log is idle before it is sealed.
    pub(super) idle: Duration,
    /// How long to wait before trying again for room.
    pub(super) no_space_wait: Duration,
    /// By what the uptime is counted: a second.
    pub(super) uptime_unit: Duration,
}

/// What the committer, the flusher, the readers and the callers share.
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) id: StoreId,
    pub(super) index: Arc<dyn Index>,
    pub(super) segments: Arc<Mutex<Segments>>,
    pub(super) tuning: Tuning,
    pub(super) ages: Ages,
    pub(super) checkpoint: Mutex<Checkpoint>,
    pub(super) commits: Mutex<CommitQueue>,
    pub(super) commits_wait: Condvar,
    pub(super) reads: Mutex<ReadQueue>,
    pub(super) reads_wait: Condvar,
    pub(super) memory: Mutex<Memory>,
    /// The flusher waits here for work.
    pub(super) flusher_wait: Condvar,
    /// The committer waits here for room in memory.
    pub(super) room_wait: Condvar,
    failure: Mutex<Failure>,
    /// Whether `failure` says anything: asked with each call.
    has_failed: AtomicBool,
    /// Is told of every batch: its marks, and how long they took.
    pub(super) on_batch: OnceLock<BatchHook>,
}

pub(super) type BatchHook = Box<dyn Fn(usize, Duration) + Send + Sync>;

impl Shared {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        id: StoreId,
        index: Arc<dyn Index>,
        segments: Arc<Mutex<Segments>>,
        tuning: Tuning,
        checkpoint: Checkpoint,
        tables: Tables,
    ) -> Self {
        Self {
            disk,
            id,
            index,
            segments,
            tuning,
            ages: Ages::new(super::now(), tuning.uptime_unit),
            checkpoint: Mutex::new(checkpoint),
            commits: Mutex::default(),
            commits_wait: Condvar::new(),
            reads: Mutex::default(),
            reads_wait: Condvar::new(),
            memory: Mutex::new(Memory {
                tables,
                ..Memory::default()
            }),
            flusher_wait: Condvar::new(),
            room_wait: Condvar::new(),
            failure: Mutex::default(),
            has_failed: AtomicBool::new(false),
            on_batch: OnceLock::new(),
        }
    }

    /// The error that every call gets once the store has failed.
    pub(super) fn failed(&self) -> Option<StoreError> {
        if !self.has_failed.load(Ordering::Acquire) {
            return None;
        }
        let failure = lock_mutex(&self.failure);
        failure.why.clone().map(StoreError::Unavailable)
    }

    /// Fails the store for good. Only the first failure counts.
    pub(super) fn fail(&self, why: &str) -> StoreError {
        let why: Arc<str> = Arc::from(why);
        let hooks = {
            let mut failure = lock_mutex(&self.failure);
            if let Some(first) = &failure.why {
                return StoreError::Unavailable(Arc::clone(first));
            }
            failure.why = Some(Arc::clone(&why));
            self.has_failed.store(true, Ordering::Release);
            std::mem::take(&mut failure.hooks)
        };
        tracing::error!(%why, "the store failed");
        for hook in hooks {
            hook(Arc::clone(&why));
        }
        // Whoever waits has to look again. Each lock is taken once in between, so that nobody is
        // about to wait who has not seen the failure. What is queued is answered here: the thread
        // that would may be the one that failed.
        let chores = std::mem::take(&mut lock_mutex(&self.memory).chores);
        self.room_wait.notify_all();
        self.flusher_wait.notify_all();
        let mut commits = VecDeque::new();
        if !fault::planted(Fault::LoseReplies) {
            std::mem::swap(&mut commits, &mut lock_mutex(&self.commits).pending);
        }
        self.commits_wait.notify_all();
        let reads = std::mem::take(&mut lock_mutex(&self.reads).asked);
        self.reads_wait.notify_all();
        let error = StoreError::Unavailable(why);
        for Pending { reply, .. } in commits {
            reply.send(Err(error.clone()));
        }
        for Asked { reply, .. } in reads {
            reply.send(Err(error.clone()));
        }
        for chore in chores {
            chore.refuse(error.clone());
        }
        error
    }

    /// Runs `hook` when the store fails; at once if it already has.
    pub(super) fn on_failure(&self, hook: Hook) {
        let why = {
            let mut failure = lock_mutex(&self.failure);
            match failure.why.clone() {
                Some(why) => why,
                None => return failure.hooks.push(hook),
            }
        };
        hook(why);
    }

    /// Queues a commit.
    pub(super) fn commit(&self, raises: Vec<Raise>, reply: Reply<()>) {
        if let Some(error) = self.failed() {
            return reply.send(Err(error));
        }
        if raises.is_empty() {
            return reply.send(Ok(()));
        }
        let refused = {
            let mut queue = lock_mutex(&self.commits);
            if self.has_failed.load(Ordering::Acquire) {
                Some((reply, "the store has failed"))
            } else if queue.stop {
                Some((reply, "the store is closed"))
            } else if queue.pending.len() >= MOST_WAITING {
                Some((reply, "too many commits are waiting"))
            } else {
                queue.pending.push_back(Pending { raises, reply });
                // Only an empty queue has the committer waiting.
                if queue.pending.len() == 1 && !fault::planted(Fault::DropNotify) {
                    self.commits_wait.notify_one();
                }
                None
            }
        };
        if let Some((reply, why)) = refused {
            reply.send(Err(StoreError::Unavailable(why.into())));
        }
    }

    /// Answers a read from memory, or queues it for the readers.
    pub(super) fn read(&self, key: &Key, reply: Reply<Option<Record>>) {
        if let Some(error) = self.failed() {
            return reply.send(Err(error));
        }
        let lookup = lock_mutex(&self.memory).tables.lookup(key);
        if let Lookup::Found(record) = lookup {
            return reply.send(Ok(Some(record)));
        }
        let refused = {
            let mut queue = lock_mutex(&self.reads);
            if self.has_failed.load(Ordering::Acquire) {
                Some((reply, "the store has failed"))
            } else if queue.stop {
                Some((reply, "the store is closed"))
            } else if queue.asked.len() >= MOST_WAITING {
                Some((reply, "too many reads are waiting"))
            } else {
                let key = key.clone();
                queue.asked.push_back(Asked { key, reply });
                self.reads_wait.notify_one();
                None
            }
        };
        if let Some((reply, why)) = refused {
            reply.send(Err(StoreError::Unavailable(why.into())));
        }
    }

    /// What a caller is told of a read of the index that failed. It is the end of the store, unless
    /// it was only that no file could be opened.
    pub(super) fn index_failed(&self, error: &IndexError) -> StoreError {
        let why = error.to_string();
        match error {
            IndexError::NotOpened(_) => StoreError::Unavailable(why.into()),
            _ => self.fail(&why),
        }
    }

    /// Asks the index for `key`, and merges what it says with what memory has.
    pub(super) fn ask(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        loop {
            let generation = lock_mutex(&self.memory).tables.generation;
            let found = self.index.get(key.as_str());
            let found = found.map_err(|error| self.index_failed(&error))?;
            let found = found.map(|kept| kept.record);
            let mut memory = lock_mutex(&self.memory);
            if let Ok(record) = memory.tables.resolve(key, found, generation) {
                return Ok(record);
            }
        }
    }
}

/// Fails the store when its thread panics: what that thread was at is no longer known.
pub(super) struct FailOnPanic<'a>(pub(super) &'a Shared, pub(super) &'static str);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&format!("its {} panicked", self.1));
        }
    }
}
