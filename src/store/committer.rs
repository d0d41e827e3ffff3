//! The committer: one thread that makes everything pending durable with one write and one sync.
//!
//! While it syncs, further commits gather; the next batch is all of them. A commit that comes alone
//! is written at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use fencegate_filters::store::StoreError;

use super::frame::{begin, padded};
use super::lock_mutex;
use super::log::{AppendError, Log};
use super::record::encode_raise;
use super::shared::{CommitQueue, FailOnPanic, Memory, Pending, Shared};

/// A frame is closed when it has reached this length.
const FRAME_GOAL: usize = 1 << 20;
/// How many raises go to memory under one hold of its lock, so that reads do not wait for all.
const INSERTS: usize = 256;

pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Log,
    live: usize,
    /// What was taken from the queue and is in no frame yet.
    taken: VecDeque<Pending>,
    buffer: Vec<u8>,
    /// What is in the frame.
    group: Vec<Pending>,
    frame: Frame,
}

/// How far the frame under way has come.
enum Frame {
    /// There is none.
    None,
    /// It is to be written.
    Gathered(u32),
    /// It is to be synced.
    Written(u32, Instant),
    /// It is durable, or it failed: to be answered.
    Synced(u32, Instant, Result<u64, AppendError>),
}

enum Work {
    Commits,
    Idle,
    Stop,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, log: Log) -> Self {
        Self {
            shared,
            log,
            live: 0,
            taken: VecDeque::new(),
            buffer: Vec::new(),
            group: Vec::new(),
            frame: Frame::None,
        }
    }

    /// Runs until the store is closed; gives the log's last sequence number, once it is sealed.
    pub(super) fn run(mut self) -> Result<u64, StoreError> {
        let shared = Arc::clone(&self.shared);
        let _guard = FailOnPanic(&shared, "committer");
        loop {
            if self.is_idle() {
                match self.wait() {
                    Work::Commits => {}
                    Work::Idle => {
                        self.idle();
                        continue;
                    }
                    Work::Stop => break,
                }
            }
            if self.is_between()
                && let Err(error) = self.wait_for_room()
            {
                self.refuse_taken(&error);
                continue;
            }
            self.step();
        }
        self.finish()
    }

    /// Seals the log; gives its last sequence number.
    pub(super) fn finish(&mut self) -> Result<u64, StoreError> {
        if let Some(error) = self.shared.failed() {
            return Err(error);
        }
        if !self.log.is_sealed() {
            self.log.seal().map_err(|error| self.refusal(error))?;
        }
        Ok(self.log.last())
    }

    /// Whether nothing was taken that is not answered.
    pub(super) fn is_idle(&self) -> bool {
        self.taken.is_empty() && self.is_between()
    }

    /// Whether no frame is under way.
    pub(super) const fn is_between(&self) -> bool {
        matches!(self.frame, Frame::None)
    }

    /// One step of a frame: gathered, written, synced, answered. The first needs room in memory.
    pub(super) fn step(&mut self) {
        self.frame = match std::mem::replace(&mut self.frame, Frame::None) {
            Frame::None => {
                let records = self.gather();
                match self.group.is_empty() {
                    true => Frame::None,
                    false => Frame::Gathered(records),
                }
            }
            Frame::Gathered(records) => {
                let began = Instant::now();
                match self.log.append(&mut self.buffer, records) {
                    Ok(()) => Frame::Written(records, began),
                    Err(error) => Frame::Synced(records, began, Err(error)),
                }
            }
            Frame::Written(records, began) => Frame::Synced(records, began, self.log.sync()),
            Frame::Synced(records, began, result) => {
                self.answer(records, began, result);
                Frame::None
            }
        };
    }

    fn answer(&mut self, records: u32, began: Instant, result: Result<u64, AppendError>) {
        match result {
            Ok(sequence) => {
                if let Some(hook) = self.shared.on_batch.get() {
                    hook(records as usize, began.elapsed());
                }
                self.publish(sequence);
            }
            Err(error) => {
                let error = self.refusal(error);
                for Pending { reply, .. } in self.group.drain(..) {
                    reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Answers what was taken and is in no frame.
    pub(super) fn refuse_taken(&mut self, error: &StoreError) {
        for Pending { reply, .. } in self.taken.drain(..) {
            reply.send(Err(error.clone()));
        }
    }

    /// Takes everything pending; `false` where that is nothing.
    pub(super) fn take(&mut self, queue: &mut CommitQueue) -> bool {
        if queue.pending.is_empty() {
            return false;
        }
        std::mem::swap(&mut queue.pending, &mut self.taken);
        true
    }

    fn wait(&mut self) -> Work {
        let shared = Arc::clone(&self.shared);
        let mut queue = lock_mutex(&shared.commits);
        loop {
            #[cfg(test)]
            {
                queue.hooks.rests = false;
                if std::mem::take(&mut queue.hooks.seal) {
                    return Work::Idle;
                }
            }
            if self.take(&mut queue) {
                return Work::Commits;
            }
            if queue.stop {
                return Work::Stop;
            }
            #[cfg(test)]
            {
                queue.hooks.rests = true;
            }
            let wait = &shared.commits_wait;
            if self.log.is_sealed() || shared.failed().is_some() {
                queue = super::unpoisoned(wait.wait(queue));
            } else {
                let idle = shared.tuning.idle;
                let (guard, timeout) = super::unpoisoned(wait.wait_timeout(queue, idle));
                queue = guard;
                if timeout.timed_out() && queue.pending.is_empty() && !queue.stop {
                    return Work::Idle;
                }
            }
        }
    }

    /// Vouches for the last frame, now that there is time.
    pub(super) fn idle(&mut self) {
        match self.log.seal() {
            // It is tried again after the next commit, or the next idle time.
            Ok(())
            | Err(
                AppendError::NoSpace
                | AppendError::ReadOnly
                | AppendError::NotOpened(_)
                | AppendError::TooLong,
            ) => {}
            Err(AppendError::Final(why)) => {
                self.shared.fail(&why);
            }
        }
    }

    fn refusal(&self, error: AppendError) -> StoreError {
        match error {
            AppendError::NoSpace => StoreError::NoSpace,
            AppendError::ReadOnly => {
                StoreError::Unavailable("the store's file system is read-only".into())
            }
            AppendError::NotOpened(why) => StoreError::Unavailable(why.into()),
            AppendError::TooLong => {
                StoreError::Unavailable("the commit is longer than a segment of the log".into())
            }
            AppendError::Final(why) => self.shared.fail(&why),
        }
    }

    /// Moves as many commits into the frame and the group as fit; gives the number of records.
    fn gather(&mut self) -> u32 {
        begin(&mut self.buffer);
        let mut records = 0_u32;
        while self.buffer.len() < FRAME_GOAL {
            let Some(next) = self.taken.front() else {
                break;
            };
            let before = self.buffer.len();
            let encoded = next
                .raises
                .iter()
                .try_for_each(|raise| encode_raise(raise, &mut self.buffer));
            let count = u32::try_from(next.raises.len()).ok();
            let count = count.and_then(|count| records.checked_add(count));
            let fits = padded(self.buffer.len()) <= self.log.longest_frame();
            if let (Ok(()), true, Some(count)) = (encoded, fits, count) {
                records = count;
                self.group.extend(self.taken.pop_front());
                continue;
            }
            self.buffer.truncate(before);
            if encoded.is_ok() && !self.group.is_empty() {
                break;
            }
            if let Some(Pending { reply, .. }) = self.taken.pop_front() {
                let why = "the commit is longer than the log can take";
                reply.send(Err(StoreError::Unavailable(why.into())));
            }
        }
        records
    }

    /// Makes a durable group visible, and answers it.
    fn publish(&mut self, sequence: u64) {
        let rotated = self.log.rotated();
        self.live = rotated.unwrap_or(self.live);
        let mut raises = self
            .group
            .iter_mut()
            .flat_map(|pending| std::mem::take(&mut pending.raises))
            .peekable();
        while raises.peek().is_some() {
            let uptime = self.shared.ages.uptime();
            let mut memory = lock_mutex(&self.shared.memory);
            memory.half_frame = true;
            let tables = &mut memory.tables;
            tables.uptime = uptime;
            tables.insert(sequence, raises.by_ref().take(INSERTS));
        }
        drop(raises);
        let mut memory = lock_mutex(&self.shared.memory);
        memory.half_frame = false;
        memory.wants_spare |= rotated.is_some();
        let wants_flush = memory.wants_flush;
        let Memory { tables, .. } = &mut *memory;
        let tuning = &self.shared.tuning;
        let full = tables.active.len() >= tuning.memory_keys || self.live > tuning.flush_segments;
        let frozen = full && tables.freeze();
        // To wake the flusher for nothing would cost each commit a switch of threads.
        let work = frozen || wants_flush || rotated.is_some() || tables.has_unresolved();
        if frozen {
            // What is live now is what the new table has to answer for, at most one segment.
            self.live = 1;
        }
        drop(memory);
        if work {
            self.shared.flusher_wait.notify_one();
        }
        for Pending { reply, .. } in self.group.drain(..) {
            reply.send(Ok(()));
        }
    }

    /// Whether memory takes more: the log may not outrun the index without bound.
    pub(super) fn room(&self, memory: &Memory) -> Result<bool, StoreError> {
        if let Some(error) = self.shared.failed() {
            return Err(error);
        }
        let tuning = &self.shared.tuning;
        let most = tuning.memory_keys.saturating_mul(2);
        let behind = self.live > tuning.flush_segments.saturating_mul(2);
        let full = memory.tables.active.len() >= most || behind;
        if memory.tables.frozen.is_none() || !full {
            return Ok(true);
        }
        if memory.no_space {
            return Err(StoreError::NoSpace);
        }
        Ok(false)
    }

    /// Waits while both tables are full.
    fn wait_for_room(&self) -> Result<(), StoreError> {
        let mut memory = lock_mutex(&self.shared.memory);
        while !self.room(&memory)? {
            memory = super::unpoisoned(self.shared.room_wait.wait(memory));
        }
        Ok(())
    }
}
