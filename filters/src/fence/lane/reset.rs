//! The one way down: a reset of the mark.
//!
//! ```text
//! sealed, drains --nothing is left--> is committed --> over
//! ```
//!
//! From the seal on nothing is admitted or sent. The mark stays what it is until a lower one is
//! durable, and that is committed only when nothing is left that was forwarded or admitted before,
//! whatever its token: with a mark that is lower, a token that was the newest could be one that a
//! newer token no longer waits for.

use super::{Hold, Lane, Waiter};
use crate::Token;
use crate::fault::{self, Fault};
use crate::store::{Binding, Record};

/// A reset that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reset<W> {
    waiter: Waiter,
    to: Token,
    pub(super) waker: W,
    pub(super) stage: Stage,
    /// Nobody waits for it any more, and its commit has not been answered.
    abandoned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// What is in flight, unsettled, admitted or uncommitted has to end.
    Draining,
    /// The lower mark is being made durable, as this change.
    Committing(u64),
    /// It is durable, or that failed.
    Over(bool),
}

/// What a look at a reset finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resetting {
    /// The mark is being read.
    Unread,
    /// The lane is sealed from now on: whoever is in flight is to be drained.
    Sealed,
    /// Something is left from before.
    Draining,
    /// Nothing is left: this record is to be committed as change [`Lane::change`].
    Lower(Record),
    /// The lower mark is not durable yet.
    Committing,
    /// It is.
    Done,
    /// It never began, or ended with the mark as it was.
    Refused(NotReset),
}

/// Why a mark is not reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReset {
    /// The mark could not be read, or the lower one not be made durable.
    Store,
    /// There is no mark.
    NoMark,
    /// The mark is another one.
    Mark(Token),
    /// Another reset of it is under way.
    Sealed,
}

impl<W: Clone, X: Clone> Lane<W, X> {
    /// Whether a reset keeps everybody out.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.reset
            .as_ref()
            .is_some_and(|reset| !matches!(reset.stage, Stage::Over(_)))
    }

    /// Whoever waits for a reset to go on, where it can.
    #[must_use]
    pub fn reset_to_wake(&self) -> Option<&W> {
        let reset = self.reset.as_ref()?;
        let ready = reset.stage == Stage::Draining && self.is_drained();
        ready.then_some(&reset.waker)
    }

    /// Asks for a reset of the mark `from` to the lower one `to`, or looks how far that is.
    ///
    /// `wake` gets whoever waits in the lane when it is sealed, to be refused.
    pub fn reset(
        &mut self,
        waiter: Waiter,
        from: Token,
        to: Token,
        waker: &W,
        wake: &mut Vec<W>,
    ) -> Resetting {
        if self.loading.is_some() {
            if self.read_failed {
                self.leave(waiter);
                return Resetting::Refused(NotReset::Store);
            }
            self.wait_for_mark(waiter, waker);
            return Resetting::Unread;
        }
        self.leave(waiter);
        if let Some(reset) = &mut self.reset {
            if reset.waiter != waiter {
                return Resetting::Refused(NotReset::Sealed);
            }
            reset.waker = waker.clone();
            return self.go_on();
        }
        // A floor is no mark that could be lowered.
        match self.record.as_ref().map(|record| record.mark) {
            None => return Resetting::Refused(NotReset::NoMark),
            Some(mark) if mark != from => return Resetting::Refused(NotReset::Mark(mark)),
            Some(_) => {}
        }
        self.reset = Some(Box::new(Reset {
            waiter,
            to,
            waker: waker.clone(),
            stage: Stage::Draining,
            abandoned: false,
        }));
        wake.extend(self.wakers().cloned());
        Resetting::Sealed
    }

    fn go_on(&mut self) -> Resetting {
        let Some(reset) = &self.reset else {
            return Resetting::Refused(NotReset::Store);
        };
        match reset.stage {
            Stage::Draining if self.is_drained() => {
                let Some(old) = &self.record else {
                    return Resetting::Refused(NotReset::NoMark);
                };
                // Nothing is left from before, so that no drain is under way. The mark stays as it
                // is until this one is durable.
                let lower = Record {
                    mark: reset.to,
                    holder: Binding::Unbound,
                    draining: false,
                    resets: old.resets + 1,
                };
                self.change += 1;
                self.committing += 1;
                let change = self.change;
                if let Some(reset) = &mut self.reset {
                    reset.stage = Stage::Committing(change);
                }
                Resetting::Lower(lower)
            }
            Stage::Draining => Resetting::Draining,
            Stage::Committing(_) => Resetting::Committing,
            Stage::Over(durable) => {
                self.reset = None;
                match durable {
                    true => Resetting::Done,
                    false => Resetting::Refused(NotReset::Store),
                }
            }
        }
    }

    /// Nobody waits for a reset any more. One that is being committed goes on by itself.
    pub fn leave_reset(&mut self, waiter: Waiter) {
        self.leave(waiter);
        let Some(reset) = self.reset.as_mut().filter(|one| one.waiter == waiter) else {
            return;
        };
        match reset.stage {
            Stage::Committing(_) => reset.abandoned = true,
            Stage::Draining | Stage::Over(_) => self.reset = None,
        }
    }

    /// Nothing that was admitted or forwarded is left, whatever its token, nor what a crash may
    /// have left; and no commit is under way.
    fn is_drained(&self) -> bool {
        let quiet = self.in_flight.is_empty()
            && self.unsettled.is_empty()
            && self.hold == Hold::Off
            && self.admitted == 0;
        (quiet || fault::planted(Fault::ResetWithoutDrain)) && self.committing == 0
    }

    /// The commit of change `change` has ended. Gives whom to wake, where it was a reset's.
    pub(super) fn reset_committed(&mut self, change: u64, durable: bool) -> Option<W> {
        let reset = self.reset.as_mut()?;
        if reset.stage != Stage::Committing(change) {
            return None;
        }
        let record = self.record.as_mut()?;
        // Where it failed it may be on the disk all the same. What is raised from now on has to be
        // as new as it, so that the mark that stays is the one that is found after a crash.
        record.resets += 1;
        if durable {
            record.mark = reset.to;
            record.holder = Binding::Unbound;
            record.draining = false;
        }
        let waker = reset.waker.clone();
        if reset.abandoned {
            self.reset = None;
        } else {
            reset.stage = Stage::Over(durable);
        }
        Some(waker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::lane::{Access, Ask};
    use crate::fence::step::{self, Arrival, Bounds, Effects, Places, Refused};

    type L = Lane<&'static str, u32>;

    const BOUNDS: Bounds = Bounds {
        waiting: 9,
        new_keys: true,
    };

    fn t(counter: u64) -> Token {
        Token::new(0, counter).unwrap()
    }

    fn ask(counter: u64) -> [Ask; 1] {
        [Ask {
            token: t(counter),
            holder: None,
            access: Access::Write,
            max_advance: None,
            new_epochs: true,
        }]
    }

    fn record(counter: u64, draining: bool) -> Record {
        Record {
            mark: t(counter),
            holder: Binding::Nobody,
            draining,
            resets: 0,
        }
    }

    fn at(counter: u64) -> L {
        Lane::known(Some(record(counter, false)), false)
    }

    fn arrive(lane: &mut L, counter: u64) -> Arrival {
        let mut effects = Effects::default();
        let mut places = Places::new();
        let asks = ask(counter);
        step::arrive(
            &mut [lane],
            &asks,
            &mut places,
            BOUNDS,
            &"other",
            &mut effects,
        )
    }

    fn send(lane: &mut L, counter: u64) -> Result<u64, Refused> {
        step::send(&mut [lane], &ask(counter), true, &7)
            .map(|tickets| tickets[0].unwrap())
            .map_err(|one| one.1)
    }

    fn reset(lane: &mut L, from: u64, to: u64) -> Resetting {
        lane.reset(1, t(from), t(to), &"reset", &mut Vec::new())
    }

    fn lowered(lane: &mut L, from: u64, to: u64) -> Record {
        match reset(lane, from, to) {
            Resetting::Lower(record) => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_waits_for_everything_in_flight_whatever_its_token() {
        let mut lane = at(50);
        assert_eq!(arrive(&mut lane, 50), Arrival::Admitted);
        let ticket = send(&mut lane, 50).unwrap();
        assert_eq!(reset(&mut lane, 50, 34), Resetting::Sealed);
        assert_eq!(reset(&mut lane, 50, 34), Resetting::Draining);
        assert_eq!(lane.reset_to_wake(), None);
        lane.ended(ticket, true);
        assert_eq!(
            reset(&mut lane, 50, 34),
            Resetting::Draining,
            "its outcome is unknown"
        );
        lane.settled(t(50));
        assert_eq!(lane.reset_to_wake(), Some(&"reset"));
        let lower = lowered(&mut lane, 50, 34);
        assert_eq!((lower.mark, lower.resets), (t(34), 1));
        assert_eq!(lower.holder, Binding::Unbound);
        assert_eq!(lane.mark(), Some(t(50)), "until the lower mark is durable");
        assert_eq!(arrive(&mut lane, 50), Arrival::Refused(0, Refused::Sealed));
        assert_eq!(lane.committed(lane.change(), true), ["reset"]);
        assert_eq!(lane.record(), Some(&lower));
        assert_eq!(reset(&mut lane, 50, 34), Resetting::Done);
        assert!(lane.is_idle());
        assert_eq!(arrive(&mut lane, 34), Arrival::Admitted);
        assert!(matches!(
            arrive(&mut lane, 33),
            Arrival::Refused(0, Refused::Stale(_))
        ));
    }

    #[test]
    fn what_is_admitted_is_refused_when_it_is_sent_and_waited_for_until_then() {
        let mut lane = at(50);
        assert_eq!(arrive(&mut lane, 50), Arrival::Admitted);
        assert_eq!(reset(&mut lane, 50, 34), Resetting::Sealed);
        assert_eq!(reset(&mut lane, 50, 34), Resetting::Draining);
        assert_eq!(send(&mut lane, 50), Err(Refused::Sealed));
        lowered(&mut lane, 50, 34);
    }

    #[test]
    fn those_that_wait_are_woken_and_refused() {
        let mut lane = at(50);
        assert_eq!(arrive(&mut lane, 50), Arrival::Admitted);
        let _ticket = send(&mut lane, 50).unwrap();
        let (mut places, mut effects) = (Places::new(), Effects::default());
        let arrival = step::arrive(
            &mut [&mut lane],
            &ask(51),
            &mut places,
            BOUNDS,
            &"51",
            &mut effects,
        );
        assert_eq!(arrival, Arrival::Waiting);
        lane.committed(lane.change(), true);
        let mut wake = Vec::new();
        assert_eq!(
            lane.reset(1, t(50), t(34), &"reset", &mut wake),
            Resetting::Refused(NotReset::Mark(t(51)))
        );
        assert_eq!(
            lane.reset(1, t(51), t(34), &"reset", &mut wake),
            Resetting::Sealed
        );
        assert!(wake.contains(&"51"), "{wake:?}");
        let arrival = step::arrive(
            &mut [&mut lane],
            &ask(51),
            &mut places,
            BOUNDS,
            &"51",
            &mut effects,
        );
        assert_eq!(arrival, Arrival::Refused(0, Refused::Sealed));
        assert_eq!(lane.counts(), (1, 0, 0));
    }

    #[test]
    fn a_failed_one_leaves_the_mark_above_what_may_be_on_the_disk() {
        let mut lane = at(50);
        assert_eq!(reset(&mut lane, 50, 34), Resetting::Sealed);
        let lower = lowered(&mut lane, 50, 34);
        lane.committed(lane.change(), false);
        assert_eq!(
            reset(&mut lane, 50, 34),
            Resetting::Refused(NotReset::Store)
        );
        assert!(lane.needs_commit() && !lane.is_idle());
        // Whichever of the two reached the disk, and in whatever order.
        let mut effects = Effects::default();
        let arrival = step::arrive(
            &mut [&mut lane],
            &ask(50),
            &mut Places::new(),
            BOUNDS,
            &"50",
            &mut effects,
        );
        assert_eq!(arrival, Arrival::Waiting);
        let again = effects.commit[0].2.clone();
        let mut kept = lower;
        kept.merge(again.clone());
        assert_eq!(kept, again);
        assert_eq!(kept.mark, t(50));
    }

    #[test]
    fn the_hold_after_a_crash_is_waited_for_and_the_draining_bit_goes() {
        let mut lane: L = Lane::known(Some(record(50, true)), true);
        assert_eq!(reset(&mut lane, 50, 34), Resetting::Sealed);
        assert_eq!(reset(&mut lane, 50, 34), Resetting::Draining);
        lane.hold_over();
        assert!(!lowered(&mut lane, 50, 34).draining);
    }

    #[test]
    fn one_that_nobody_waits_for_leaves_the_mark_or_ends_by_itself() {
        let mut lane = at(50);
        reset(&mut lane, 50, 34);
        lane.leave_reset(1);
        assert!(lane.is_idle() && lane.mark() == Some(t(50)));
        reset(&mut lane, 50, 34);
        lowered(&mut lane, 50, 34);
        lane.leave_reset(1);
        assert!(!lane.is_idle());
        lane.committed(lane.change(), true);
        assert!(lane.is_idle() && lane.mark() == Some(t(34)));
    }

    #[test]
    fn only_the_mark_that_is_there_is_reset_and_by_one_at_a_time() {
        let mut none: L = Lane::known(None, false);
        assert_eq!(
            reset(&mut none, 50, 34),
            Resetting::Refused(NotReset::NoMark)
        );
        let mut lane = at(50);
        for from in [49, 51] {
            assert_eq!(
                reset(&mut lane, from, 34),
                Resetting::Refused(NotReset::Mark(t(50)))
            );
        }
        reset(&mut lane, 50, 34);
        let second = lane.reset(2, t(50), t(33), &"second", &mut Vec::new());
        assert_eq!(second, Resetting::Refused(NotReset::Sealed));
        lane.leave_reset(2);
        assert!(lane.is_sealed(), "another's leaving changes nothing");
    }
}
