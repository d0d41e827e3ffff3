//! The readers: threads that ask the index for marks that memory does not have.

use super::lock_mutex;
use super::shared::{Asked, FailOnPanic, Shared};

/// Runs until the store is closed; what is still asked then is answered first.
pub(super) fn run(shared: &Shared) {
    let _guard = FailOnPanic(shared, "reader");
    while let Some(Asked { key, reply }) = next(shared) {
        let answer = match shared.failed() {
            Some(error) => Err(error),
            None => shared.ask(&key),
        };
        reply.send(answer);
    }
}

fn next(shared: &Shared) -> Option<Asked> {
    let mut queue = lock_mutex(&shared.reads);
    loop {
        if let Some(asked) = queue.asked.pop_front() {
            return Some(asked);
        }
        if queue.stop {
            return None;
        }
        queue = super::unpoisoned(shared.reads_wait.wait(queue));
    }
}
