//! The flusher: one thread that moves marks from memory into the index, and frees the log.
//!
//! In this order: the index has the marks durably, with a checkpoint; `CHECKPOINT` says the same;
//! the segments before it are used again. At open the two checkpoints must agree, or be one step
//! apart as a crash between the first two leaves them, so neither side can roll back unseen.

use std::sync::Arc;

use fencegate_filters::Key;
use fencegate_filters::store::StoreError;

use super::disk::{is_no_space, is_not_opened, is_read_only, replace};
use super::files::{CHECKPOINT, Checkpoint};
use super::index::{IndexChange, IndexError, IndexMark};
use super::lock_mutex;
use super::shared::{Chore, FailOnPanic, Memory, Shared};
use super::table::Table;

enum Work {
    Flush(Vec<Key>),
    Resolve(Key),
    Chore(Chore),
    MakeSpare,
    Stop,
}

/// Why a flush did not come to its end.
enum FlushError {
    /// There is no room, nothing may be written, or no file could be opened, now.
    NoSpace,
    Final(String),
}

impl From<IndexError> for FlushError {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::NoSpace | IndexError::NotOpened(_) => Self::NoSpace,
            error => Self::Final(error.to_string()),
        }
    }
}

impl FlushError {
    fn of(what: &str, error: &std::io::Error) -> Self {
        if is_no_space(error) || is_read_only(error) || is_not_opened(error) {
            Self::NoSpace
        } else {
            Self::Final(format!("{what}: {error}"))
        }
    }
}

/// Runs until the store is closed or fails.
pub(super) fn run(shared: &Shared) {
    let _guard = FailOnPanic(shared, "flusher");
    loop {
        match wait(shared) {
            Work::Stop => {
                // Those who asked are told that nobody will.
                drop(std::mem::take(&mut lock_mutex(&shared.memory).chores));
                return;
            }
            work => act(shared, work),
        }
    }
}

/// Does one thing, if there is any; `waited`: since there was no room, long enough to try again.
#[cfg(feature = "sim")]
pub(super) fn step(shared: &Shared, waited: bool) -> bool {
    let next = next(shared, &mut lock_mutex(&shared.memory), waited);
    match next {
        None | Some(Work::Stop) => false,
        Some(work) => {
            act(shared, work);
            true
        }
    }
}

fn act(shared: &Shared, work: Work) {
    match work {
        Work::Stop => {}
        // A failure is remembered by `ask` itself; anything else may be over in a moment.
        Work::Resolve(key) => {
            let unread = shared.ask(&key).is_err();
            lock_mutex(&shared.memory).unread = unread;
        }
        Work::MakeSpare => make_spare(shared),
        Work::Chore(Chore::FindIdle {
            namespace,
            after,
            limit,
            reply,
        }) => {
            let found = shared.idle_keys(&namespace, after.as_ref(), limit);
            reply.send(found.map_err(|error| shared.index_failed(&error)));
        }
        Work::Chore(Chore::Forget { keys, reply }) => {
            let forgotten = forget(shared, keys);
            reply.send(forgotten.map_err(|error| match error {
                FlushError::NoSpace => StoreError::NoSpace,
                FlushError::Final(why) => shared.fail(&why),
            }));
        }
        Work::Flush(unresolved) => {
            let flushed = flush(shared, &unresolved);
            let mut memory = lock_mutex(&shared.memory);
            memory.no_space = matches!(flushed, Err(FlushError::NoSpace));
            drop(memory);
            shared.room_wait.notify_all();
            if let Err(FlushError::Final(why)) = flushed {
                shared.fail(&why);
            }
        }
    }
}

fn next(shared: &Shared, memory: &mut Memory, waited: bool) -> Option<Work> {
    if memory.stop || shared.failed().is_some() {
        return Some(Work::Stop);
    }
    // Between two frames: a checkpoint stands for whole ones.
    if memory.wants_flush && !memory.half_frame && memory.tables.frozen.is_none() {
        memory.wants_flush = false;
        memory.tables.freeze();
    }
    if let Some(frozen) = memory
        .tables
        .frozen
        .as_deref()
        .filter(|_| !memory.no_space || waited)
    {
        let unresolved = frozen.iter().filter(|entry| !entry.resolved);
        return Some(Work::Flush(
            unresolved.map(|entry| entry.key.clone()).collect(),
        ));
    }
    // A flush that has come half way is in the index and not in the count of its keys. A chore would
    // write that count.
    if memory.tables.frozen.is_none()
        && let Some(chore) = memory.chores.pop_front()
    {
        return Some(Work::Chore(chore));
    }
    if std::mem::take(&mut memory.wants_spare) {
        return Some(Work::MakeSpare);
    }
    if memory.unread && !waited {
        return None;
    }
    let unresolved = memory.tables.next_unresolved();
    unresolved.map(|(key, _)| Work::Resolve(key))
}

fn wait(shared: &Shared) -> Work {
    let mut memory = lock_mutex(&shared.memory);
    let mut waited = false;
    loop {
        #[cfg(test)]
        {
            memory.hooks.rests = false;
        }
        if let Some(work) = next(shared, &mut memory, waited) {
            return work;
        }
        #[cfg(test)]
        {
            memory.hooks.rests = true;
        }
        if memory.no_space || memory.unread {
            let timed = shared
                .flusher_wait
                .wait_timeout(memory, shared.tuning.no_space_wait);
            let (guard, timeout) = super::unpoisoned(timed);
            memory = guard;
            waited |= timeout.timed_out();
        } else {
            memory = super::unpoisoned(shared.flusher_wait.wait(memory));
        }
    }
}

/// Makes a segment ahead of need. Where there is no room for it, the committer will try again, and
/// answer for it.
fn make_spare(shared: &Shared) {
    let mut segments = lock_mutex(&shared.segments);
    if !segments.spare.is_empty() {
        return;
    }
    let Err(error) = segments.add_spare() else {
        return;
    };
    drop(segments);
    match FlushError::of("making a segment", &error) {
        FlushError::NoSpace => {
            tracing::warn!(%error, "no segment could be made in advance");
        }
        // A failed sync among others, which is final.
        FlushError::Final(why) => drop(shared.fail(&why)),
    }
}

fn flush(shared: &Shared, unresolved: &[Key]) -> Result<(), FlushError> {
    for key in unresolved {
        let asked = shared.ask(key);
        asked.map_err(|error| match shared.failed() {
            Some(_) => FlushError::Final(error.to_string()),
            None => FlushError::NoSpace,
        })?;
    }
    let (frozen, keys) = {
        let memory = lock_mutex(&shared.memory);
        let Some(frozen) = &memory.tables.frozen else {
            return Ok(());
        };
        (Arc::clone(frozen), memory.tables.indexed + frozen.new)
    };
    let mark = IndexMark {
        generation: lock_mutex(&shared.checkpoint).generation + 1,
        sequence: frozen.last,
        keys,
    };
    shared.index.apply(&sorted(&frozen), mark)?;
    drop(frozen);
    checkpoint(shared, mark)?;
    let freed = lock_mutex(&shared.memory).tables.flushed(keys);
    drop(freed);
    Ok(())
}

fn sorted(table: &Table) -> Vec<IndexChange<'_>> {
    let changes = table.iter().map(|entry| IndexChange {
        key: entry.key.as_str(),
        record: Some((&entry.record, entry.stamp)),
    });
    let mut changes: Vec<_> = changes.collect();
    changes.sort_unstable_by_key(|change| change.key);
    changes
}

/// Takes the marks of `keys` out of the index, but for those that are in use by now, and for those
/// that no durable floor is above.
///
/// What the log has of them is older than the checkpoint, so no opening brings it back.
fn forget(shared: &Shared, mut keys: Vec<Key>) -> Result<u64, FlushError> {
    keys.sort_unstable();
    keys.dedup();
    let mut gone = Vec::with_capacity(keys.len());
    for key in keys {
        let idle = shared.idle_record(&key)?;
        let floor = shared.ages.floor(key.namespace());
        if idle.is_some_and(|record| floor.is_some_and(|floor| record.mark < floor)) {
            gone.push(key);
        }
    }
    if gone.is_empty() {
        return Ok(0);
    }
    let count = gone.len() as u64;
    let keys = lock_mutex(&shared.memory)
        .tables
        .indexed
        .saturating_sub(count);
    let (generation, sequence) = {
        let checkpoint = lock_mutex(&shared.checkpoint);
        (checkpoint.generation + 1, checkpoint.sequence)
    };
    let mark = IndexMark {
        generation,
        sequence,
        keys,
    };
    let changes: Vec<_> = gone
        .iter()
        .map(|key| IndexChange {
            key: key.as_str(),
            record: None,
        })
        .collect();
    shared.index.apply(&changes, mark)?;
    lock_mutex(&shared.memory).tables.forgotten(&gone, keys);
    match checkpoint(shared, mark) {
        // They are gone. The next checkpoint of the index has the number of this one, and CHECKPOINT
        // stays one step behind until there is room.
        Ok(()) | Err(FlushError::NoSpace) => Ok(count),
        Err(error) => Err(error),
    }
}

fn checkpoint(shared: &Shared, mark: IndexMark) -> Result<(), FlushError> {
    let oldest = lock_mutex(&shared.segments).oldest_needed(mark.sequence);
    let Some((segment, first)) = oldest.map(|live| (live.segment.id, live.first)) else {
        return Err(FlushError::Final("the log has no segment".to_owned()));
    };
    let next = Checkpoint {
        generation: mark.generation,
        sequence: mark.sequence,
        keys: mark.keys,
        segment,
        first,
    };
    replace(&*shared.disk, CHECKPOINT, &next.write(shared.id))
        .map_err(|error| FlushError::of("writing CHECKPOINT", &error))?;
    *lock_mutex(&shared.checkpoint) = next;
    let recycled = lock_mutex(&shared.segments).recycle_before(segment);
    recycled.map_err(|error| FlushError::of("recycling a segment", &error))
}
