//! The committer: one thread that makes everything pending durable with one write and one sync.
//!
//! While it syncs, further commits gather; the next batch is all of them. A commit that comes alone
//! is written at once.

use std::sync::Arc;
use std::time::Instant;

use fencegate_filters::store::StoreError;

use super::frame::{begin, padded};
use super::lock_mutex;
use super::log::{AppendError, Log};
use super::record::encode_raise;
use super::shared::{FailOnPanic, Memory, Pending, Shared};

/// A frame is closed when it has reached this length.
const FRAME_GOAL: usize = 1 << 20;
/// How many raises go to memory under one hold of its lock, so that reads do not wait for all.
const INSERTS: usize = 256;

pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Log,
    live: usize,
    buffer: Vec<u8>,
    group: Vec<Pending>,
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
            buffer: Vec::new(),
            group: Vec::new(),
        }
    }

    /// Runs until the store is closed; gives the log's last sequence number, once it is sealed.
    pub(super) fn run(mut self) -> Result<u64, StoreError> {
        let shared = Arc::clone(&self.shared);
        let _guard = FailOnPanic(&shared, "committer");
        let mut pending = Vec::new();
        loop {
            match self.wait(&mut pending) {
                Work::Commits => self.commit(&mut pending),
                Work::Idle => self.idle(),
                Work::Stop => break,
            }
        }
        if let Some(error) = shared.failed() {
            return Err(error);
        }
        if !self.log.is_sealed() {
            self.log.seal().map_err(|error| self.refusal(error))?;
        }
        Ok(self.log.last())
    }

    fn wait(&self, pending: &mut Vec<Pending>) -> Work {
        let mut queue = lock_mutex(&self.shared.commits);
        loop {
            if !queue.pending.is_empty() {
                std::mem::swap(&mut queue.pending, pending);
                return Work::Commits;
            }
            if queue.stop {
                return Work::Stop;
            }
            let wait = &self.shared.commits_wait;
            if self.log.is_sealed() || self.shared.failed().is_some() {
                queue = super::unpoisoned(wait.wait(queue));
            } else {
                let idle = self.shared.tuning.idle;
                let (guard, timeout) = super::unpoisoned(wait.wait_timeout(queue, idle));
                queue = guard;
                if timeout.timed_out() && queue.pending.is_empty() && !queue.stop {
                    return Work::Idle;
                }
            }
        }
    }

    /// Vouches for the last frame, now that there is time.
    fn idle(&mut self) {
        match self.log.seal() {
            // It is tried again after the next commit, or the next idle time.
            Ok(()) | Err(AppendError::NoSpace | AppendError::ReadOnly | AppendError::TooLong) => {}
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
            AppendError::TooLong => {
                StoreError::Unavailable("the commit is longer than a segment of the log".into())
            }
            AppendError::Final(why) => self.shared.fail(&why),
        }
    }

    fn commit(&mut self, pending: &mut Vec<Pending>) {
        let mut rest = pending.drain(..).peekable();
        while rest.peek().is_some() {
            if let Err(error) = self.wait_for_room() {
                for Pending { reply, .. } in rest {
                    reply.send(Err(error.clone()));
                }
                return;
            }
            let records = self.gather(&mut rest);
            if self.group.is_empty() {
                continue;
            }
            let began = Instant::now();
            let appended = self.log.append(&mut self.buffer, records);
            match appended {
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
    }

    /// Moves as many commits into the frame and the group as fit; gives the number of records.
    fn gather(&mut self, rest: &mut std::iter::Peekable<std::vec::Drain<'_, Pending>>) -> u32 {
        begin(&mut self.buffer);
        let mut records = 0_u32;
        while self.buffer.len() < FRAME_GOAL {
            let Some(next) = rest.peek() else { break };
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
                self.group.extend(rest.next());
                continue;
            }
            self.buffer.truncate(before);
            if encoded.is_ok() && !self.group.is_empty() {
                break;
            }
            if let Some(Pending { reply, .. }) = rest.next() {
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
            let mut memory = lock_mutex(&self.shared.memory);
            let tables = &mut memory.tables;
            tables.insert(sequence, raises.by_ref().take(INSERTS));
        }
        drop(raises);
        let mut memory = lock_mutex(&self.shared.memory);
        memory.wants_spare |= rotated.is_some();
        let Memory { tables, .. } = &mut *memory;
        let tuning = &self.shared.tuning;
        let full = tables.active.len() >= tuning.memory_keys || self.live > tuning.flush_segments;
        let frozen = full && tables.freeze();
        // To wake the flusher for nothing would cost each commit a switch of threads.
        let work = frozen || rotated.is_some() || tables.has_unresolved();
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

    /// Waits while both tables are full: the log may not outrun the index without bound.
    fn wait_for_room(&self) -> Result<(), StoreError> {
        let most = self.shared.tuning.memory_keys.saturating_mul(2);
        let mut memory = lock_mutex(&self.shared.memory);
        loop {
            if let Some(error) = self.shared.failed() {
                return Err(error);
            }
            let behind = self.live > self.shared.tuning.flush_segments.saturating_mul(2);
            let full = memory.tables.active.len() >= most || behind;
            if memory.tables.frozen.is_none() || !full {
                return Ok(());
            }
            if memory.no_space {
                return Err(StoreError::NoSpace);
            }
            memory = super::unpoisoned(self.shared.room_wait.wait(memory));
        }
    }
}
