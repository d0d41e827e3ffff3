//! The lane: the state of one key that is in use, as a pure state machine.
//!
//! It has no clock, no I/O and no async: it is told what happened, changes its state, and says in
//! its return value what is to be done. `W` is how a waiting request is woken and `X` is the handle
//! by which a request in flight is drained or cut; a model checker can put `()` for both.
//!
//! What must always hold:
//! - the mark never goes down, but by a [`reset`] that waited for everything to end;
//! - nothing waits with a token below the mark;
//! - a request is let through only while the mark that it carries is durable, no write with a lower
//!   token is in flight or unsettled, and no hold is on.
//!
//! Steps that touch several keys at once are in [`super::step`].

use smallvec::SmallVec;

use self::reset::Reset;
use crate::Token;
use crate::fault::{self, Fault};
pub use crate::key::Access;
use crate::store::{Binding, Record};

/// Names one write in flight within one lane.
pub type Ticket = u64;

/// Names one waiting request, among all lanes: it may wait in several, and outlive them.
pub type Waiter = u64;

/// What a request wants of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// The token for this key.
    pub token: Token,
    /// The holder to compare and to bind; `None` where the route ignores holders.
    pub holder: Option<Binding>,
    /// Whether the key is written or only read from.
    pub access: Access,
    /// The largest advance of the counter within one epoch.
    pub max_advance: Option<u64>,
    /// Whether a new epoch is allowed where `max_advance` is set.
    pub new_epochs: bool,
}

/// How a token compares with the mark of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Below the mark.
    Stale,
    /// Equal, but bound to another holder.
    HolderMismatch,
    /// Above the mark by more than the route allows.
    JumpTooLarge,
    /// Equal.
    Equal,
    /// Equal, and the first holder to come: it binds the mark.
    Bind,
    /// Above the mark.
    Advance,
    /// Above the mark of a key that is only read from.
    Ahead,
}

/// What keeps a token from being admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Older writes are in flight.
    InFlight,
    /// The outcome of an older write is unknown, or a crash may have left one running.
    Unsettled,
    /// The mark is not durable yet.
    Commit,
}

/// The hold after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Hold {
    Off,
    /// Tokens above the mark are held: an orphan with the mark's own token may still run.
    Advances,
    /// Every token is held: an orphan with a lower token may still run.
    All,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InFlight<X> {
    ticket: Ticket,
    token: Token,
    handle: X,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting<W> {
    waiter: Waiter,
    token: Token,
    waker: W,
}

/// The state of one key that is in use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lane<W, X> {
    /// The number of the read that will tell the mark; `None` once it is known.
    loading: Option<u64>,
    /// Whether that read has failed.
    read_failed: bool,
    record: Option<Record>,
    /// The mark that a key without a record counts as having: a higher one has never been
    /// forgotten in its namespace.
    floor: Option<Token>,
    hold: Hold,
    /// Counts the changes to the record; the change of this number is the newest.
    change: u64,
    /// The newest change that is known to be durable.
    durable: u64,
    /// The newest change whose commit failed.
    failed: u64,
    /// Commits that have not been answered.
    committing: u32,
    next_ticket: Ticket,
    /// Admitted requests that have not been sent. They hold nobody; they keep the lane, so that
    /// the mark is at hand when they are compared once more.
    admitted: u32,
    in_flight: SmallVec<[InFlight<X>; 2]>,
    /// How many outcomes of each token are unknown.
    unsettled: Vec<(Token, usize)>,
    waiting: Vec<Waiting<W>>,
    /// Those that wait for the mark to be read: they have not been compared yet.
    unread: Vec<(Waiter, W)>,
    /// The reset of the mark that is under way.
    reset: Option<Box<Reset<W>>>,
}

impl<W: Clone, X: Clone> Lane<W, X> {
    /// A lane whose mark is being read by the read of this number.
    #[must_use]
    pub fn loading(read: u64) -> Self {
        Self {
            loading: Some(read),
            read_failed: false,
            record: None,
            floor: None,
            hold: Hold::Off,
            change: 0,
            durable: 0,
            failed: 0,
            committing: 0,
            next_ticket: 1,
            admitted: 0,
            in_flight: SmallVec::new(),
            unsettled: Vec::new(),
            waiting: Vec::new(),
            unread: Vec::new(),
            reset: None,
        }
    }

    /// A lane whose mark is known; `held` while the hold after a crash is on.
    #[must_use]
    pub fn known(record: Option<Record>, held: bool) -> Self {
        let mut lane = Self::loading(0);
        lane.set_record(record, None, held);
        lane
    }

    fn set_record(&mut self, record: Option<Record>, floor: Option<Token>, held: bool) {
        self.loading = None;
        self.floor = floor.filter(|_| record.is_none());
        self.hold = match &record {
            Some(record) if held && !fault::planted(Fault::NoCrashHold) => {
                if record.draining && !fault::planted(Fault::NoDrainingHold) {
                    Hold::All
                } else {
                    Hold::Advances
                }
            }
            // The floor stands for its mark.
            None if held && self.floor.is_some() => Hold::Advances,
            // A key without a mark has never been forwarded: no orphan can be left.
            _ => Hold::Off,
        };
        self.record = record;
    }

    // What is known.

    /// The number of the read that is under way.
    #[must_use]
    pub const fn read_under_way(&self) -> Option<u64> {
        self.loading
    }

    /// The mark, or the floor that stands for it; `None` while it is unknown or there is neither.
    #[must_use]
    pub fn mark(&self) -> Option<Token> {
        let own = self.record.as_ref().map(|record| record.mark);
        own.or(self.floor)
    }

    /// The record as it stands in memory.
    #[must_use]
    pub const fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Writes in flight, requests waiting, outcomes unsettled.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (
            self.in_flight.len(),
            self.waiting.len() + self.unread.len(),
            self.unsettled.iter().map(|one| one.1).sum(),
        )
    }

    /// Nothing is admitted, in flight, waiting, unsettled or uncommitted: the lane can be freed.
    /// Where its mark is known, it is what the store has; a read that is still under way will find
    /// another lane or none, and change nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_quiet()
            && self.admitted == 0
            && self.waiting.is_empty()
            && self.unread.is_empty()
            && self.committing == 0
            && self.durable == self.change
            && self.reset.is_none()
    }

    /// Nothing that was forwarded is in flight or unsettled.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.unsettled.is_empty()
    }

    /// Compares a token with the mark. Changes nothing.
    #[must_use]
    pub fn judge(&self, ask: &Ask) -> Judgement {
        let Some(record) = &self.record else {
            // A token that is equal to the floor gets a record as well: whatever was admitted on a
            // key is in its own record for as long as it has one. And it is the first of its key,
            // as far as anybody knows, so no jump is too large.
            return match ask.access {
                _ if self.floor.is_some_and(|floor| ask.token < floor) => Judgement::Stale,
                Access::Write => Judgement::Advance,
                Access::Read => Judgement::Ahead,
            };
        };
        if ask.token < record.mark {
            return Judgement::Stale;
        }
        if ask.token == record.mark {
            return match (&ask.holder, &record.holder) {
                (None, _) => Judgement::Equal,
                (Some(_), Binding::Unbound) if ask.access == Access::Write => Judgement::Bind,
                (Some(_), Binding::Unbound) => Judgement::Equal,
                (Some(asked), bound) if asked == bound => Judgement::Equal,
                (Some(_), _) => Judgement::HolderMismatch,
            };
        }
        if ask.access == Access::Read {
            return Judgement::Ahead;
        }
        if let Some(most) = ask.max_advance {
            let jump = if ask.token.epoch() == record.mark.epoch() {
                ask.token.counter() - record.mark.counter() > most
            } else {
                !ask.new_epochs
            };
            if jump {
                return Judgement::JumpTooLarge;
            }
        }
        Judgement::Advance
    }

    /// What keeps `token` from being admitted now; `None` when nothing does.
    #[must_use]
    pub fn held(&self, token: Token) -> Option<Held> {
        if fault::planted(Fault::NoDrain) {
            return (self.change != self.durable && !fault::planted(Fault::ForwardBeforeSync))
                .then_some(Held::Commit);
        }
        if self.in_flight.iter().any(|older| older.token < token) {
            return Some(Held::InFlight);
        }
        let orphans = match self.hold {
            Hold::Off => false,
            Hold::Advances => self.mark().is_some_and(|mark| token > mark),
            Hold::All => true,
        };
        if orphans || self.unsettled.iter().any(|older| older.0 < token) {
            return Some(Held::Unsettled);
        }
        (self.change != self.durable && !fault::planted(Fault::ForwardBeforeSync))
            .then_some(Held::Commit)
    }

    /// Whether the commit of this change has failed and no later one succeeded.
    #[must_use]
    pub const fn has_failed(&self, change: u64) -> bool {
        self.failed >= change && self.durable < change
    }

    /// The number of the newest change to the record.
    #[must_use]
    pub const fn change(&self) -> u64 {
        self.change
    }

    /// Whether the newest change failed to commit, so that an equal token must commit it again.
    #[must_use]
    pub fn needs_commit(&self) -> bool {
        self.durable < self.change
            && self.failed >= self.change
            && !fault::planted(Fault::FailedCommitWedges)
    }

    /// The handles of writes in flight whose token is below `token`.
    pub fn older(&self, token: Token) -> impl Iterator<Item = &X> {
        self.in_flight
            .iter()
            .filter(move |older| older.token < token)
            .map(|older| &older.handle)
    }

    /// The handles of all writes in flight.
    pub fn all(&self) -> impl Iterator<Item = &X> {
        self.in_flight.iter().map(|one| &one.handle)
    }

    /// The wakers of all that wait.
    pub fn wakers(&self) -> impl Iterator<Item = &W> {
        let waiting = self.waiting.iter().map(|one| &one.waker);
        let reset = self.reset.iter().map(|reset| &reset.waker);
        waiting
            .chain(self.unread.iter().map(|one| &one.1))
            .chain(reset)
    }

    // What happens.

    /// The read of number `read` has ended; `floor` is that of the key's namespace, as it is after
    /// the read. A read that this lane does not wait for changes nothing. Returns whom to wake.
    pub fn loaded(
        &mut self,
        read: u64,
        record: Option<Record>,
        floor: Option<Token>,
        held: bool,
    ) -> Vec<W> {
        if self.loading != Some(read) && !fault::planted(Fault::LateReadOverwrites) {
            return Vec::new();
        }
        let record = record.filter(|_| !fault::planted(Fault::ForgetMarks));
        let floor = floor.filter(|_| !fault::planted(Fault::FloorUnheard));
        self.set_record(record, floor, held);
        self.unread_wakers()
    }

    /// The read of number `read` failed: those that wait for it are woken to be refused.
    pub fn load_failed(&mut self, read: u64) -> Vec<W> {
        if self.loading != Some(read) {
            return Vec::new();
        }
        self.read_failed = true;
        self.unread_wakers()
    }

    /// They stay until they have looked: the lane must not be freed before.
    fn unread_wakers(&self) -> Vec<W> {
        self.unread.iter().map(|one| one.1.clone()).collect()
    }

    /// Whether the mark could not be read; [`Self::load_again`] tries once more.
    #[must_use]
    pub const fn read_failed(&self) -> bool {
        self.read_failed
    }

    /// Starts the read of number `read`, where an earlier one failed.
    pub const fn load_again(&mut self, read: u64) {
        if self.loading.is_some() {
            self.loading = Some(read);
            self.read_failed = false;
        }
    }

    /// What the cache has of this key, where a fault makes it decide: a lane that is there knows
    /// better.
    pub fn recall(&mut self, cached: Option<Record>) {
        if fault::planted(Fault::CacheDecides) && cached.is_some() {
            self.record = cached;
        }
    }

    /// Raises or binds the mark to what `ask` says; from this instant older tokens are stale.
    ///
    /// Returns the record to commit as change [`Self::change`]; wakes those who have become stale.
    pub fn raise(&mut self, ask: &Ask, wake: &mut Vec<W>) -> Record {
        debug_assert!(self.mark().is_none_or(|mark| ask.token >= mark));
        let advance = self.record.as_ref().map(|old| old.mark) != Some(ask.token);
        let draining = self.record.as_ref().is_some_and(|old| {
            // The same mark once more: what was true when it was raised stays true.
            !advance && old.draining
        }) || (advance && self.hold != Hold::Off)
            || self.older(ask.token).next().is_some()
            || self.unsettled.iter().any(|older| older.0 < ask.token);
        if advance && self.hold == Hold::Advances {
            // What is held as an advance over the old mark is from now on equal to the new one.
            self.hold = Hold::All;
        }
        let holder = match (&ask.holder, &self.record) {
            (Some(holder), _) => holder.clone(),
            (None, Some(record)) if !advance => record.holder.clone(),
            (None, _) => Binding::Unbound,
        };
        let record = Record {
            mark: ask.token,
            holder,
            draining,
            resets: self.record.as_ref().map_or(0, |old| old.resets),
        };
        self.record = Some(record.clone());
        self.change += 1;
        self.committing += 1;
        if advance {
            self.waiting.retain(|waiting| {
                let stale = waiting.token < ask.token;
                if stale {
                    wake.push(waiting.waker.clone());
                }
                !stale
            });
        }
        record
    }

    /// Commits the mark as it stands once more, after its commit failed.
    ///
    /// Returns the record to commit as change [`Self::change`].
    pub fn commit_again(&mut self) -> Option<Record> {
        let record = self.record.clone()?;
        self.change += 1;
        self.committing += 1;
        Some(record)
    }

    /// The commit of change `change` has ended. Returns whom to wake.
    pub fn committed(&mut self, change: u64, durable: bool) -> Vec<W> {
        debug_assert!(self.committing > 0);
        self.committing = self.committing.saturating_sub(1);
        let durable = durable || fault::planted(Fault::IgnoreSyncResult);
        let reset = self.reset_committed(change, durable);
        let mut wake: Vec<W> = if durable {
            self.durable = self.durable.max(change);
            self.released()
        } else {
            self.failed = self.failed.max(change);
            self.waiting
                .drain(..)
                .map(|waiting| waiting.waker)
                .collect()
        };
        wake.extend(reset);
        wake
    }

    /// Whether this request waits here.
    #[must_use]
    pub fn is_waiting(&self, waiter: Waiter) -> bool {
        self.waiting.iter().any(|one| one.waiter == waiter)
            || self.unread.iter().any(|one| one.0 == waiter)
    }

    /// A request begins to wait, or goes on waiting with a new waker.
    pub fn wait(&mut self, waiter: Waiter, token: Token, waker: &W) {
        if let Some(waiting) = self.waiting.iter_mut().find(|one| one.waiter == waiter) {
            waiting.waker = waker.clone();
            return;
        }
        self.unread.retain(|one| one.0 != waiter);
        self.waiting.push(Waiting {
            waiter,
            token,
            waker: waker.clone(),
        });
    }

    /// A request begins to wait for the mark to be read, or goes on with a new waker.
    pub fn wait_for_mark(&mut self, waiter: Waiter, waker: &W) {
        if let Some(waiting) = self.unread.iter_mut().find(|one| one.0 == waiter) {
            waiting.1 = waker.clone();
        } else {
            self.waiting.retain(|one| one.waiter != waiter);
            self.unread.push((waiter, waker.clone()));
        }
    }

    /// A waiting request is admitted, refused, or its client has left.
    pub fn leave(&mut self, waiter: Waiter) {
        self.waiting.retain(|one| one.waiter != waiter);
        self.unread.retain(|one| one.0 != waiter);
    }

    /// A request is admitted.
    pub const fn admit(&mut self) {
        self.admitted += 1;
    }

    /// An admitted request is sent, refused, or given up.
    pub const fn unadmit(&mut self) {
        debug_assert!(self.admitted > 0);
        self.admitted = self.admitted.saturating_sub(1);
    }

    /// A write is about to be sent: it is in flight from now on.
    ///
    /// Whether it may be sent is [`super::step::send`]'s to decide, over all its keys at once.
    pub fn begin(&mut self, token: Token, handle: X) -> Ticket {
        let ticket = self.ticket();
        self.in_flight.push(InFlight {
            ticket,
            token,
            handle,
        });
        ticket
    }

    /// A write in flight has ended: completed, not forwarded, or, where `settles`, with an outcome
    /// that is unknown and holds newer tokens until [`Self::settled`].
    ///
    /// Returns its handle, for the caller to drop once the lane is let go, and whom to wake.
    pub fn ended(&mut self, ticket: Ticket, settles: bool) -> (Option<X>, Vec<W>) {
        let Some(at) = self.in_flight.iter().position(|one| one.ticket == ticket) else {
            return (None, Vec::new());
        };
        let ended = self.in_flight.swap_remove(at);
        if settles && !fault::planted(Fault::UnknownCompletes) {
            match self.unsettled.iter_mut().find(|one| one.0 == ended.token) {
                Some(same) => same.1 += 1,
                None => self.unsettled.push((ended.token, 1)),
            }
        }
        (Some(ended.handle), self.released())
    }

    /// The time to settle of one unknown outcome of this token is over. Returns whom to wake.
    pub fn settled(&mut self, token: Token) -> Vec<W> {
        if let Some(one) = self.unsettled.iter_mut().find(|one| one.0 == token) {
            one.1 -= 1;
        }
        self.unsettled.retain(|one| one.1 > 0);
        self.released()
    }

    /// The hold after a crash is over. Returns whom to wake.
    pub fn hold_over(&mut self) -> Vec<W> {
        self.hold = Hold::Off;
        self.released()
    }

    fn ticket(&mut self) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        ticket
    }

    /// Those that nothing in this lane holds any more, in the order in which they came.
    fn released(&self) -> Vec<W> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        self.waiting
            .iter()
            .filter(|waiting| self.held(waiting.token).is_none())
            .map(|waiting| waiting.waker.clone())
            .collect()
    }
}

#[cfg(feature = "faults")]
pub mod renumber;
pub mod reset;
#[cfg(test)]
mod tests;
