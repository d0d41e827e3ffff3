//! The time of a turn.
//!
//! A request asks for the time at every station of its way, and they all lie within microseconds. In
//! one turn of a connection the clock is read once.

use std::cell::Cell;

use tokio::time::Instant;

thread_local! {
    static TURN: Cell<Reading> = const { Cell::new(Reading::Always) };
}

#[derive(Clone, Copy)]
enum Reading {
    /// No turn is under way.
    Always,
    /// The next one counts for the turn.
    Once,
    At(Instant),
}

/// The time: in a [`Turn`], of the first call.
pub(crate) fn now() -> Instant {
    match TURN.get() {
        Reading::At(at) => at,
        Reading::Always => Instant::now(),
        Reading::Once => {
            let at = Instant::now();
            TURN.set(Reading::At(at));
            at
        }
    }
}

/// A turn of this thread's work, short enough that no time passes in it; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(());

impl Turn {
    /// Begins a turn.
    #[must_use]
    pub(crate) fn begin() -> Self {
        TURN.set(Reading::Once);
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.set(Reading::Always);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_in_a_turn_alone() {
        let later = |than: Instant| {
            let mut now = now();
            while now == than {
                now = super::now();
            }
            assert!(now > than);
        };
        later(now());
        let turn = Turn::begin();
        let first = now();
        while Instant::now() == first {}
        assert_eq!(now(), first);
        drop(turn);
        later(first);
    }
}
