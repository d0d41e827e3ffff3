//! The readers: threads that ask the index for marks that memory does not have.

use super::lock_mutex;
use super::shared::{Asked, FailOnPanic, ReadQueue, Shared};

/// The most reads that one reader takes at once.
const BATCH: usize = 32;

/// Runs until the store is closed; what is still asked then is answered first.
pub(super) fn run(shared: &Shared) {
    let _guard = FailOnPanic(shared, "reader");
    let mut batch = Vec::with_capacity(BATCH);
    while next(shared, &mut batch) {
        answer(shared, &mut batch);
    }
}

/// Answers one batch, if anything is asked.
#[cfg(feature = "sim")]
pub(super) fn step(shared: &Shared) -> bool {
    let mut batch = Vec::new();
    let taken = take(&mut lock_mutex(&shared.reads), &mut batch);
    answer(shared, &mut batch);
    taken
}

fn answer(shared: &Shared, batch: &mut Vec<Asked>) {
    let generation = lock_mutex(&shared.memory).tables.generation;
    let found: Vec<_> = batch
        .iter()
        .map(|asked| shared.index.get(asked.key.as_str()))
        .collect();
    // All answers of the index go to memory under one hold of its lock.
    let resolved: Vec<_> = {
        let tables = &mut lock_mutex(&shared.memory).tables;
        let pairs = batch.iter().zip(found);
        pairs
            .map(|(asked, found)| {
                found.map(|found| {
                    let stamp = found.as_ref().map(|kept| kept.stamp);
                    let record = found.map(|kept| kept.record);
                    let resolved = tables.resolve(&asked.key, record, generation)?;
                    shared.touch(&asked.key, resolved.as_ref(), stamp);
                    Ok(resolved)
                })
            })
            .collect()
    };
    for (Asked { key, reply }, resolved) in batch.drain(..).zip(resolved) {
        let answer = match (shared.failed(), resolved) {
            (Some(error), _) => Err(error),
            (None, Ok(Ok(record))) => Ok(record),
            // The index has changed in between.
            (None, Ok(Err(()))) => shared.ask(&key),
            (None, Err(error)) => Err(shared.index_failed(&error)),
        };
        reply.send(answer);
    }
}

fn take(queue: &mut ReadQueue, batch: &mut Vec<Asked>) -> bool {
    let waiting = queue.asked.len();
    // One that waits alone is not to wait behind others while a reader is idle.
    let share = waiting.div_ceil(2).min(BATCH);
    batch.extend(queue.asked.drain(..share));
    waiting > 0
}

/// Waits for reads, and takes its share of them; `false` once the store is closed.
fn next(shared: &Shared, batch: &mut Vec<Asked>) -> bool {
    let mut queue = lock_mutex(&shared.reads);
    loop {
        if take(&mut queue, batch) {
            return true;
        }
        if queue.stop {
            return false;
        }
        queue = super::unpoisoned(shared.reads_wait.wait(queue));
    }
}
