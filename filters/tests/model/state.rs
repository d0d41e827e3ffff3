//! Where a run stands: the real lanes, what stands around them, and what the resource has seen.

use std::hash::{Hash, Hasher};

use fencegate_filters::Token;
use fencegate_filters::fence::lane::renumber::{LATE, Renumbered};
use fencegate_filters::fence::lane::{self, Ticket};
use fencegate_filters::fence::step::Places;
use fencegate_filters::store::Record;
use smallvec::SmallVec;

/// How many keys there are.
pub(crate) const KEYS: usize = 2;

/// Names a request while the gateway has it, and is its waker and its handle: which request it
/// asks for, and which copy of it.
pub(crate) type Slot = u8;

/// The real lane.
pub(crate) type Lane = lane::Lane<Slot, Slot>;

/// A token's counter; 0 is none.
pub(crate) type Number = u8;

pub(crate) fn number(token: Token) -> Number {
    Number::try_from(token.counter()).unwrap()
}

/// What only grows: how often a mark was reset, and what it is.
pub(crate) fn rank_of(record: Option<&Record>) -> (u64, Number) {
    record.map_or((0, 0), |record| (record.resets, number(record.mark)))
}

/// The mark of a record; 0 where there is none.
pub(crate) fn mark_of(record: Option<&Record>) -> Number {
    record.map_or(0, |record| number(record.mark))
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// In the queues of its lanes. Woken, it has yet to look again.
    Waiting {
        places: Places,
        woken: bool,
    },
    /// Let through, and its upstream connection is not ready.
    Admitted,
    InFlight(SmallVec<[Option<Ticket>; 2]>),
    /// Its lanes think that it has ended, and it has not. Only a fault leads here.
    LetGo,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    pub(crate) slot: Slot,
    pub(crate) phase: Phase,
}

/// Raises that the store was told of and has not answered, all or none of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Commit(pub(crate) SmallVec<[(usize, u64, Record); 2]>);

/// A read of a mark whose answer is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Read {
    pub(crate) key: usize,
    pub(crate) number: u64,
    pub(crate) found: Option<Record>,
}

/// What the second lane of a request has yet to be told: its lanes are told in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Tell {
    Ended(usize, Ticket, bool),
    Settled(usize, Number),
    Committed(usize, u64, bool),
}

/// A write whose outcome is unknown: the resource may apply it until it has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Unsettled {
    /// Which request it was.
    pub(crate) ask: u8,
    /// Whether its lanes were told so. Only a fault says no.
    pub(crate) told: bool,
}

/// An administrator lowers a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lowering {
    pub(crate) from: Number,
    pub(crate) to: Number,
    /// Woken, it has yet to look again.
    pub(crate) woken: bool,
}

/// Names the reset of a key among those that wait: its waker, and who it is in its lane.
pub(crate) const RESETS: Slot = 200;

/// How often what the environment may do is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Left {
    pub(crate) requests: u8,
    pub(crate) crashes: u8,
    pub(crate) clean_restarts: u8,
    pub(crate) failed_commits: u8,
    pub(crate) failed_reads: u8,
    pub(crate) slow_reads: u8,
    pub(crate) unsent: u8,
    pub(crate) resets: u8,
    pub(crate) forgets: u8,
    pub(crate) touches: u8,
}

/// A promise that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Promise {
    G1,
    G2,
    G3,
    G4,
    G7,
    Liveness,
    Lane,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) lanes: [Option<Lane>; KEYS],
    /// The marks of keys that have no lane.
    pub(crate) cache: [Option<Record>; KEYS],
    /// What a crash can't take.
    pub(crate) disk: [Option<Record>; KEYS],
    /// What stands for the mark of a key that has none; 0 where no mark was ever forgotten. Durable.
    pub(crate) floor: Number,
    /// Records that are to be committed as they were once, that nobody waits for.
    pub(crate) touches: SmallVec<[(usize, Record); 2]>,
    pub(crate) commits: SmallVec<[Commit; 2]>,
    pub(crate) reads: SmallVec<[Read; 2]>,
    pub(crate) tells: SmallVec<[Tell; 2]>,
    pub(crate) attempts: SmallVec<[Attempt; 4]>,
    pub(crate) unsettled: SmallVec<[Unsettled; 4]>,
    /// The lowest token of the writes that crashes have orphaned and that may still run.
    pub(crate) orphans: [Number; KEYS],
    /// Whether the hold after a crash is on.
    pub(crate) hold: bool,
    /// The resets that are under way.
    pub(crate) resets: [Option<Lowering>; KEYS],
    /// The newest token that went to the resource: it may have begun it.
    pub(crate) begun: [Number; KEYS],
    /// The newest token that was admitted.
    pub(crate) admitted: [Number; KEYS],
    pub(crate) left: Left,
    pub(crate) broken: Option<(Promise, &'static str)>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, to: &mut H) {
        self.lanes.hash(to);
        self.cache.hash(to);
        self.disk.hash(to);
        self.floor.hash(to);
        self.touches.hash(to);
        self.commits.hash(to);
        self.reads.hash(to);
        self.tells.hash(to);
        self.attempts.hash(to);
        self.unsettled.hash(to);
        self.orphans.hash(to);
        self.hold.hash(to);
        self.resets.hash(to);
        self.begun.hash(to);
        self.admitted.hash(to);
        self.left.hash(to);
        self.broken.is_some().hash(to);
    }
}

impl State {
    /// The mark that a durable record stands for, or that stands for one that there is not.
    pub(crate) fn durable(&self, key: usize) -> Number {
        let record = self.disk[key].as_ref();
        record.map_or(self.floor, |record| number(record.mark))
    }

    /// Renumbers and puts in order, so that states that can't be told apart are one.
    ///
    /// `keys_of` are the keys of the request in a slot.
    pub(crate) fn renumber<'a>(&mut self, keys_of: impl Fn(Slot) -> &'a [usize]) {
        let names: [Option<Renumbered>; KEYS] = self
            .lanes
            .each_mut()
            .map(|lane| lane.as_mut().map(Lane::renumber));
        let names = |key: usize| names[key].as_ref();
        for (key, change, _) in self.commits.iter_mut().flat_map(|commit| &mut commit.0) {
            *change = names(*key).unwrap().change(*change);
        }
        for read in &mut self.reads {
            read.number = names(read.key).map_or(LATE, |names| names.read(read.number));
        }
        for tell in &mut self.tells {
            match tell {
                Tell::Ended(key, ticket, _) => *ticket = names(*key).unwrap().ticket(*ticket),
                Tell::Committed(key, change, _) => *change = names(*key).unwrap().change(*change),
                Tell::Settled(..) => {}
            }
        }
        for attempt in &mut self.attempts {
            let keys = keys_of(attempt.slot);
            match &mut attempt.phase {
                Phase::Waiting { places, .. } => {
                    // One that was woken because a commit failed is in no queue: its lane may have
                    // been freed since.
                    for (key, change) in keys.iter().zip(&mut places.changes) {
                        *change = names(*key).map_or(*change, |names| names.change(*change));
                    }
                }
                Phase::InFlight(tickets) => {
                    for (key, ticket) in keys.iter().zip(tickets) {
                        if let Some(ticket) = ticket {
                            *ticket = names(*key).unwrap().ticket(*ticket);
                        }
                    }
                }
                Phase::Admitted | Phase::LetGo => {}
            }
        }
        self.attempts.sort_by_key(|attempt| attempt.slot);
        self.commits.sort_by(|one, other| {
            let order = |commit: &Commit| {
                let raises = commit.0.iter();
                raises
                    .map(|raise| (raise.0, raise.1, raise.2.mark))
                    .collect::<SmallVec<[_; 2]>>()
            };
            order(one).cmp(&order(other))
        });
        self.reads
            .sort_by_key(|read| (read.key, read.number, mark_of(read.found.as_ref())));
        self.touches
            .sort_by_key(|(key, record)| (*key, rank_of(Some(record))));
        self.tells.sort_unstable();
        self.unsettled.sort_unstable();
    }
}
