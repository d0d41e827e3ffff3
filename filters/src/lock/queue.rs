//! Those who wait for a lock, in the order in which they came.

use std::collections::VecDeque;

use super::Waiter;

#[derive(Clone, Debug)]
struct Waiting<W> {
    waiter: Waiter,
    waker: W,
}

/// Who waits, the first first.
#[derive(Clone, Debug)]
pub(super) struct Queue<W>(VecDeque<Waiting<W>>);

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

/// There is no place left.
pub(super) struct Full;

impl<W: Clone> Queue<W> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody comes before this one.
    pub(super) fn lets(&self, waiter: Waiter) -> bool {
        let first = self.0.front();
        first.is_none_or(|first| first.waiter == waiter)
    }

    /// Takes a place at the end, of `most`, or keeps the one that this one has.
    pub(super) fn join(&mut self, waiter: Waiter, waker: &W, most: usize) -> Result<(), Full> {
        let full = self.0.len() >= most;
        let waker = waker.clone();
        match self.0.iter_mut().find(|one| one.waiter == waiter) {
            Some(waiting) => waiting.waker = waker,
            None if full => return Err(Full),
            None => self.0.push_back(Waiting { waiter, waker }),
        }
        Ok(())
    }

    /// `false`: this one had no place.
    pub(super) fn leave(&mut self, waiter: Waiter) -> bool {
        let before = self.0.len();
        self.0.retain(|one| one.waiter != waiter);
        self.0.len() < before
    }

    /// How the first one is woken.
    pub(super) fn first(&self) -> Option<&W> {
        self.wakers().next()
    }

    pub(super) fn wakers(&self) -> impl Iterator<Item = &W> {
        self.0.iter().map(|one| &one.waker)
    }
}
