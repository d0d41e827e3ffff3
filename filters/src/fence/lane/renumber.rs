//! Lanes that can't be told apart by what they do, made equal.
//!
//! A lane counts its changes and numbers its writes, and these numbers only grow. For what it does
//! only their order counts, and which of them are the same. A model checker renumbers a lane after
//! each step, so that it finds again a state that it has seen.

use smallvec::SmallVec;

use super::reset::Stage;
use super::{Lane, Ticket, Waiter};

/// The new names of what a lane numbers, for those who hold the old ones.
#[derive(Debug)]
pub struct Renumbered {
    durable: u64,
    awaited: Option<u64>,
    tickets: SmallVec<[(Ticket, Ticket); 2]>,
}

impl Renumbered {
    /// The change that was `change`. All that are durable are 0.
    #[must_use]
    pub const fn change(&self, change: u64) -> u64 {
        change.saturating_sub(self.durable)
    }

    /// The write in flight that was `ticket`; 0 where it has ended.
    #[must_use]
    pub fn ticket(&self, ticket: Ticket) -> Ticket {
        let found = self.tickets.iter().find(|one| one.0 == ticket);
        found.map_or(0, |one| one.1)
    }

    /// The read that was `read`: [`AWAITED`], or [`LATE`] where the lane does not wait for it.
    #[must_use]
    pub fn read(&self, read: u64) -> u64 {
        if self.awaited == Some(read) {
            AWAITED
        } else {
            LATE
        }
    }
}

/// The read that a lane waits for.
pub const AWAITED: u64 = 1;
/// A read for which no lane waits.
pub const LATE: u64 = 2;

impl<W, X> Lane<W, X> {
    /// Counts changes from the newest that is durable, tickets and reads from 1, and puts in order
    /// what is kept in the order in which it came and is a set to everybody.
    pub fn renumber(&mut self) -> Renumbered {
        let durable = self.durable;
        self.change -= durable;
        // What failed before the newest durable change holds nobody.
        self.failed = self.failed.saturating_sub(durable);
        self.durable = 0;
        if let Some(reset) = &mut self.reset
            && let Stage::Committing(change) = &mut reset.stage
        {
            *change -= durable;
        }
        let awaited = self.loading.filter(|read| *read != 0);
        self.loading = self.loading.map(|read| read.min(AWAITED));
        self.in_flight.sort_by_key(|one| (one.token, one.ticket));
        let mut tickets = SmallVec::new();
        self.next_ticket = 1;
        for one in &mut self.in_flight {
            tickets.push((one.ticket, self.next_ticket));
            one.ticket = self.next_ticket;
            self.next_ticket += 1;
        }
        self.unsettled.sort_unstable();
        self.waiting.sort_by_key(|one| one.waiter);
        self.unread.sort_by_key(|one: &(Waiter, W)| one.0);
        Renumbered {
            durable,
            awaited,
            tickets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::lane::{Access, Ask};
    use crate::store::Record;
    use crate::{Token, store::Binding};

    type L = Lane<u8, u8>;

    fn ask(counter: u64) -> Ask {
        Ask {
            token: Token::new(0, counter).unwrap(),
            holder: None,
            access: Access::Write,
            max_advance: None,
            new_epochs: true,
        }
    }

    fn raise(lane: &mut L, counter: u64) -> u64 {
        lane.raise(&ask(counter), &mut Vec::new());
        lane.change()
    }

    #[test]
    fn what_is_durable_is_forgotten() {
        let mut lane = L::known(None, false);
        let change = raise(&mut lane, 1);
        lane.committed(change, false);
        let change = raise(&mut lane, 5);
        lane.committed(change, true);
        let names = lane.renumber();
        assert_eq!(names.change(change), 0);
        let record = Record {
            mark: ask(5).token,
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
        };
        assert_eq!(lane, L::known(Some(record), false));
    }

    #[test]
    fn what_failed_is_still_to_be_committed_again() {
        let mut lane = L::known(None, false);
        let change = raise(&mut lane, 1);
        lane.committed(change, true);
        let failed = raise(&mut lane, 2);
        let pending = raise(&mut lane, 3);
        lane.committed(failed, false);
        let names = lane.renumber();
        assert!(lane.has_failed(names.change(failed)));
        assert!(!lane.has_failed(names.change(pending)) && !lane.needs_commit());
        lane.committed(names.change(pending), false);
        assert!(lane.needs_commit());
    }

    #[test]
    fn tickets_are_found_under_their_new_names() {
        let mut lane = L::known(None, false);
        let tickets: Vec<Ticket> = (0..4)
            .map(|handle| lane.begin(ask(1).token, handle))
            .collect();
        lane.ended(tickets[0], false);
        lane.ended(tickets[1], false);
        let names = lane.renumber();
        assert_eq!(names.ticket(tickets[0]), 0);
        assert_eq!(lane.ended(names.ticket(tickets[3]), false).0, Some(3));
        assert_eq!(lane.ended(names.ticket(tickets[2]), false).0, Some(2));
        assert!(lane.is_quiet());
    }

    #[test]
    fn only_the_awaited_read_is_awaited() {
        let mut lane = L::loading(0);
        lane.load_again(7);
        let names = lane.renumber();
        assert_eq!((names.read(6), names.read(7)), (LATE, AWAITED));
        lane.loaded(names.read(6), None, None, false);
        assert!(lane.read_under_way().is_some());
        lane.loaded(names.read(7), None, None, false);
        assert!(lane.read_under_way().is_none());
    }
}
