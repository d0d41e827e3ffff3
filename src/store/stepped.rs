//! The work of the store's threads without threads: a task steps it, by the runtime's clock.
//!
//! The steps are the threads' own. What a disk takes is time between them, so that requests come,
//! and the power goes, between a write and its sync, and between that and the answers.

use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::store::StoreError;

use super::committer::Committer;
use super::engine::{Committing, Engine};
use super::error::OpenError;
use super::flusher;
use super::opening::Settings;
use super::shared::{Shared, Tuning};
use super::sim_disk::{SimDisk, open_index};
use super::{EmbeddedStore, lock_mutex, now, reader};

/// How often a step looks for work.
const LOOK: Duration = Duration::from_millis(1);

/// How long the disk takes for the next thing that it is asked.
pub trait Pace: Send {
    /// Draws a time.
    fn draw(&mut self) -> Duration;
}

impl EmbeddedStore {
    /// Opens the store on a simulated disk. Nothing is committed, read from the index, or moved to
    /// it but by [`work`](Self::work).
    ///
    /// # Errors
    ///
    /// As [`OpenError`] says.
    pub fn open_simulated(disk: &SimDisk) -> Result<Self, OpenError> {
        let settings = Settings {
            path: "simulated".into(),
            require_existing: false,
            // Small, so that segments are filled, flushed and used again all the time.
            segment_bytes: 16 << 10,
            readers: 1,
            tuning: Tuning {
                flush_segments: 1,
                memory_keys: 4,
                idle: Duration::from_millis(20),
                no_space_wait: super::NO_SPACE_WAIT,
                // Lives are short here.
                uptime_unit: Duration::from_millis(10),
            },
        };
        let opened_at = now();
        let index = |fresh| Ok(open_index(disk, fresh));
        let (engine, log) = Engine::prepare(Arc::new(disk.clone()), &index, &settings)?;
        let committer = Committer::new(Arc::clone(&engine.shared), log);
        *lock_mutex(&engine.committer) = Some(Committing::Stepped(Box::new(committer)));
        Ok(Self { engine, opened_at })
    }

    /// Does the threads' work for as long as it is polled.
    pub async fn work(&self, mut pace: impl Pace) {
        let shared = &self.engine.shared;
        let (mut idle, mut full) = (Duration::ZERO, Duration::ZERO);
        loop {
            tokio::time::sleep(LOOK).await;
            if lock_mutex(&shared.reads).asked.is_empty() {
                full = self.flush(full);
            } else {
                tokio::time::sleep(pace.draw()).await;
                reader::step(shared);
            }
            idle += LOOK;
            while self.step_committer(&mut idle) {
                tokio::time::sleep(pace.draw()).await;
            }
        }
    }

    /// Lets the flusher do one thing. `full` is how long there has been no room.
    fn flush(&self, full: Duration) -> Duration {
        let shared = &self.engine.shared;
        let waited = full >= shared.tuning.no_space_wait;
        flusher::step(shared, waited);
        match lock_mutex(&shared.memory).no_space {
            true if !waited => full + LOOK,
            _ => Duration::ZERO,
        }
    }

    /// One step of the committer's, if there is one to do.
    fn step_committer(&self, idle: &mut Duration) -> bool {
        let shared = &self.engine.shared;
        let mut slot = lock_mutex(&self.engine.committer);
        let Some(Committing::Stepped(committer)) = &mut *slot else {
            return false;
        };
        if committer.is_idle() && !committer.take(&mut lock_mutex(&shared.commits)) {
            if *idle >= shared.tuning.idle
                && !committer.log.is_sealed()
                && shared.failed().is_none()
            {
                *idle = Duration::ZERO;
                committer.idle();
            }
            return false;
        }
        *idle = Duration::ZERO;
        step(committer, shared)
    }
}

/// `false` where there is no room for it now.
fn step(committer: &mut Committer, shared: &Shared) -> bool {
    let room = match committer.is_between() {
        true => committer.room(&lock_mutex(&shared.memory)),
        false => Ok(true),
    };
    match room {
        Ok(true) => committer.step(),
        Ok(false) => return false,
        Err(error) => committer.refuse_taken(&error),
    }
    true
}

/// What a thread does between the word to stop and its end.
pub(super) fn run_out(mut committer: Committer) -> Result<u64, StoreError> {
    let shared = Arc::clone(&committer.shared);
    loop {
        while flusher::step(&shared, false) {}
        let idle = committer.is_idle() && !committer.take(&mut lock_mutex(&shared.commits));
        if idle || !step(&mut committer, &shared) {
            return committer.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use fencegate_filters::store::{Binding, Raise, Record, Reply, Store};
    use fencegate_filters::{Key, Token};

    use super::*;

    fn t(counter: u64) -> Token {
        Token::new(0, counter).unwrap()
    }

    fn ask<T: Send + 'static>(call: impl FnOnce(Reply<T>)) -> Receiver<Result<T, StoreError>> {
        let (sender, receiver) = channel();
        call(Reply::new(move |result| drop(sender.send(result))));
        receiver
    }

    fn commit(store: &EmbeddedStore, key: &Key, mark: u64) -> Receiver<Result<(), StoreError>> {
        let record = Record {
            mark: t(mark),
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
        };
        let key = key.clone();
        ask(|reply| store.commit(vec![Raise { key, record }], reply))
    }

    /// The next steps of the committer: a commit is gathered, written, synced and answered.
    fn steps(store: &EmbeddedStore, count: usize) {
        let mut idle = Duration::ZERO;
        for _ in 0..count {
            assert!(store.step_committer(&mut idle));
        }
    }

    fn flush(store: &EmbeddedStore) {
        lock_mutex(&store.engine.shared.memory).wants_flush = true;
        while flusher::step(&store.engine.shared, false) {}
    }

    #[test]
    fn no_touch_that_comes_late_takes_the_place_of_a_mark_that_is_forgotten() {
        let store = EmbeddedStore::open_simulated(&SimDisk::default()).unwrap();
        let (shared, key) = (&store.engine.shared, Key::from_text("n/a"));
        // It is above all that comes.
        shared.ages.raise_floor("n", t(100));
        let first = commit(&store, &key, 1);
        steps(&store, 4);
        assert_eq!(first.try_recv(), Ok(Ok(())));
        flush(&store);
        shared.ages.age("n", 3600);
        // A newer mark is on its way while the older one is read, and touched: behind it in the queue.
        let second = commit(&store, &key, 2);
        steps(&store, 1);
        let read = ask(|reply| store.read(&key, reply));
        assert!(reader::step(shared));
        let found = read.try_recv().unwrap().unwrap().unwrap();
        assert_eq!(found.mark, t(1));
        steps(&store, 3);
        assert_eq!(second.try_recv(), Ok(Ok(())));
        flush(&store);
        shared.ages.age("n", 3600);
        let gone = ask(|reply| store.forget(vec![(key.clone(), t(2))], reply));
        flush(&store);
        let mut idle = Duration::ZERO;
        while store.step_committer(&mut idle) {}
        flush(&store);
        let gone = gone.try_recv().unwrap().unwrap();
        let read = ask(|reply| store.read(&key, reply));
        reader::step(shared);
        let found = read.try_recv().unwrap().unwrap();
        let found = found.map(|record| record.mark);
        assert!(
            found.is_none_or(|mark| mark == t(2)),
            "{gone} gone, {found:?} found"
        );
    }
}
