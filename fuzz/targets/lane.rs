//! The lane, and the steps over several of them, in whatever order things happen: requests come,
//! look, leave, are sent, come back, end and settle; marks are read late or not at all; commits
//! fail; idle lanes are freed and made anew from the cache or from the store.
//!
//! After every event the promises hold, and at the end nobody waits and every lane can be freed.

#![no_main]

use std::collections::BTreeSet;

use fencegate_filters::Token;
use fencegate_filters::fence::lane::{Access, Ask, Judgement, Lane, Ticket};
use fencegate_filters::fence::step::{
    Arrival, Bounds, Effects, Places, Refused, arrive, leave, send,
};
use fencegate_filters::store::{Binding, Record};
use libfuzzer_sys::fuzz_target;

const KEYS: usize = 3;
const MOST_REQUESTS: usize = 48;

type L = Lane<usize, usize>;

fn t(counter: u8) -> Token {
    Token::new(u64::from(counter > 200), u64::from(counter) + 1).expect("above zero")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Admitted,
    InFlight,
    Over,
}

struct Request {
    keys: Vec<usize>,
    asks: Vec<Ask>,
    places: Places,
    state: State,
    tickets: Vec<Option<Ticket>>,
    /// It has several keys, and waited for one of their marks to be read.
    unread: bool,
}

struct Read {
    key: usize,
    number: u64,
    /// What the store had when it was looked at: known late, and told later still.
    looked: Option<Option<Record>>,
}

struct World {
    lanes: Vec<L>,
    requests: Vec<Request>,
    woken: BTreeSet<usize>,
    reads: Vec<Read>,
    next_read: u64,
    commits: Vec<Vec<(usize, u64, Record)>>,
    /// What is durable.
    store: Vec<Option<Record>>,
    /// What the cache has; dropping any of it changes nothing.
    cache: Vec<Option<Record>>,
    /// The highest mark that a lane ever had.
    seen: Vec<Option<Token>>,
    /// The highest token that was sent as a write.
    sent: Vec<Option<Token>>,
    in_flight: Vec<(usize, usize, Token)>,
    unsettled: Vec<(usize, Token)>,
    held: bool,
    /// What the keys had when the process started.
    orphans: Vec<Option<Record>>,
    bounds: usize,
}

impl World {
    fn new(setup: u8) -> Self {
        let record = |draining| {
            Some(Record {
                mark: t(4),
                holder: Binding::Unbound,
                draining,
                resets: 0,
            })
        };
        let store = vec![None, record(setup & 1 != 0), record(false)];
        Self {
            lanes: (0..KEYS).map(|_| L::loading(0)).collect(),
            requests: Vec::new(),
            woken: BTreeSet::new(),
            reads: Vec::new(),
            next_read: 1,
            commits: Vec::new(),
            cache: vec![None; KEYS],
            seen: store
                .iter()
                .map(|one: &Option<Record>| one.as_ref().map(|one| one.mark))
                .collect(),
            sent: vec![None; KEYS],
            in_flight: Vec::new(),
            unsettled: Vec::new(),
            held: setup & 2 != 0,
            orphans: store.clone(),
            store,
            bounds: usize::from(setup / 4 % 6) + 1,
        }
    }

    fn steps<R>(
        &mut self,
        keys: &[usize],
        step: impl FnOnce(&mut [&mut L], &mut Vec<Request>) -> R,
    ) -> R {
        let mut lanes: Vec<(usize, &mut L)> = self.lanes.iter_mut().enumerate().collect();
        lanes.retain(|lane| keys.contains(&lane.0));
        lanes.sort_by_key(|lane| keys.iter().position(|key| *key == lane.0));
        let mut lanes: Vec<&mut L> = lanes.into_iter().map(|lane| lane.1).collect();
        step(&mut lanes, &mut self.requests)
    }

    /// As the table does before each step.
    fn read_if_needed(&mut self, keys: &[usize], retry: bool) {
        for &key in keys {
            let lane = &mut self.lanes[key];
            if lane.read_under_way() == Some(0) || (lane.read_failed() && !retry) {
                lane.load_again(self.next_read);
                self.reads.push(Read {
                    key,
                    number: self.next_read,
                    looked: None,
                });
                self.next_read += 1;
            }
        }
    }

    fn look(&mut self, id: usize) {
        self.woken.remove(&id);
        let keys = self.requests[id].keys.clone();
        let retry = self.requests[id].places.waited;
        self.read_if_needed(&keys, retry);
        let bounds = Bounds {
            waiting: self.bounds,
            new_keys: true,
        };
        let mut effects = Effects::<usize, usize>::default();
        let before: Vec<_> = keys.iter().map(|key| self.lanes[*key].mark()).collect();
        let arrival = self.steps(&keys, |lanes, requests| {
            let request = &mut requests[id];
            arrive(
                lanes,
                &request.asks,
                &mut request.places,
                bounds,
                &id,
                &mut effects,
            )
        });
        self.woken.extend(effects.wake.iter().copied());
        let commit = effects
            .commit
            .into_iter()
            .map(|one| (keys[one.0], one.1, one.2));
        let commit: Vec<_> = commit.collect();
        if !commit.is_empty() {
            self.commits.push(commit);
        }
        match arrival {
            Arrival::Admitted => {
                self.may_go(id, true);
                self.requests[id].state = State::Admitted;
            }
            Arrival::Waiting | Arrival::Unread => {
                let request = &mut self.requests[id];
                request.state = State::Waiting;
                request.unread |= arrival == Arrival::Unread && keys.len() > 1;
            }
            Arrival::Refused(at, refused) => {
                let ask = &self.requests[id].asks[at];
                // One that jumps too far is none, and would be refused all the same.
                let lane = &self.lanes[keys[at]];
                let advance =
                    lane.read_under_way().is_none() && lane.judge(ask) == Judgement::Advance;
                assert!(
                    refused != Refused::Queue || !advance,
                    "a full queue refused an advance"
                );
                if let Refused::Stale(mark) = refused {
                    assert!(mark > ask.token, "not stale");
                }
                let after: Vec<_> = keys.iter().map(|key| self.lanes[*key].mark()).collect();
                assert_eq!(before, after, "a refusal raised a mark");
                self.requests[id].state = State::Over;
            }
        }
    }

    fn durable(&self, key: usize) -> Option<Token> {
        self.store[key].as_ref().map(|record| record.mark)
    }

    /// G1, G2 and G3 for a request that is let through.
    fn may_go(&self, id: usize, admission: bool) {
        let request = &self.requests[id];
        for (&key, ask) in request.keys.iter().zip(&request.asks) {
            let mark = self.lanes[key].mark();
            if ask.access == Access::Write {
                assert_eq!(mark, Some(ask.token), "G1");
                assert!(self.durable(key) >= Some(ask.token), "G3");
            }
            assert!(
                mark <= Some(ask.token) && self.seen[key] <= Some(ask.token),
                "G1"
            );
            if admission {
                assert!(self.durable(key) >= mark, "G3");
            }
            let older = |token: Token| token < ask.token;
            assert!(
                !self
                    .in_flight
                    .iter()
                    .any(|one| one.1 == key && older(one.2)),
                "G2"
            );
            assert!(
                !self
                    .unsettled
                    .iter()
                    .any(|one| one.0 == key && older(one.1)),
                "G2"
            );
            if let (true, Some(orphan)) = (self.held, &self.orphans[key]) {
                let free = !orphan.draining && ask.token == orphan.mark;
                assert!(free, "let in under the hold");
            }
        }
    }

    fn of(&self, state: State) -> Vec<usize> {
        (0..self.requests.len())
            .filter(|id| self.requests[*id].state == state)
            .collect()
    }

    fn end(&mut self, id: usize, settles: bool) {
        let request = &mut self.requests[id];
        request.state = State::Over;
        let lanes = request.keys.iter().zip(&request.asks).zip(&request.tickets);
        for ((&key, ask), ticket) in lanes {
            let Some(ticket) = ticket else { continue };
            self.woken.extend(self.lanes[key].ended(*ticket, settles).1);
            if settles {
                self.unsettled.push((key, ask.token));
            }
        }
        self.in_flight.retain(|one| one.0 != id);
    }

    fn come(&mut self, which: u8, more: &mut impl FnMut() -> u8) {
        if self.requests.len() >= MOST_REQUESTS {
            return;
        }
        let (mut keys, mut asks) = (Vec::new(), Vec::new());
        for _ in 0..1 + which % 3 {
            let key = usize::from(more()) % KEYS;
            let (token, odd) = (more() % 12, more());
            if keys.contains(&key) {
                continue;
            }
            keys.push(key);
            asks.push(Ask {
                token: t(if odd & 64 != 0 { token + 198 } else { token }),
                holder: match odd % 4 {
                    0 => Some(Binding::Nobody),
                    1 => Some(Binding::Holder("h".into())),
                    _ => None,
                },
                access: if odd & 24 == 24 {
                    Access::Read
                } else {
                    Access::Write
                },
                max_advance: (odd & 32 != 0).then_some(3),
                new_epochs: odd & 128 != 0,
            });
        }
        self.requests.push(Request {
            keys,
            asks,
            places: Places::new(),
            state: State::Waiting,
            tickets: Vec::new(),
            unread: false,
        });
        self.look(self.requests.len() - 1);
    }

    fn happen(&mut self, event: u8, which: u8, more: &mut impl FnMut() -> u8) {
        let pick = |from: &[usize]| {
            let at = usize::from(which).checked_rem(from.len())?;
            from.get(at).copied()
        };
        let at = usize::from(which);
        match event % 12 {
            0 | 1 => self.come(which, more),
            2 => {
                let woken: Vec<_> = self.woken.iter().copied().collect();
                if let Some(id) = pick(&woken) {
                    self.woken.remove(&id);
                    if self.requests[id].state == State::Waiting {
                        self.look(id);
                    }
                }
            }
            3 => {
                if let Some(id) = pick(&self.of(State::Waiting)) {
                    let keys = self.requests[id].keys.clone();
                    self.steps(&keys, |lanes, requests| leave(lanes, &requests[id].places));
                    self.requests[id].state = State::Over;
                }
            }
            4 => {
                if let Some(id) = pick(&self.of(State::Admitted)) {
                    self.send(id);
                }
            }
            5 => {
                if let Some(id) = pick(&self.of(State::InFlight)) {
                    for key in self.requests[id].keys.clone() {
                        self.lanes[key].admit();
                    }
                    self.end(id, false);
                    self.requests[id].state = State::Admitted;
                }
            }
            6 => {
                if let Some(id) = pick(&self.of(State::InFlight)) {
                    self.end(id, which & 128 != 0);
                }
            }
            7 => {
                if !self.unsettled.is_empty() {
                    let (key, token) = self.unsettled.remove(at % self.unsettled.len());
                    self.woken.extend(self.lanes[key].settled(token));
                }
            }
            8 => self.answer_commit(at, which % 4 != 3),
            9 => self.answer_read(at, which % 8 != 7),
            10 => self.free(at % KEYS, which & 128 != 0),
            _ => {
                if which > 240 {
                    self.hold_over();
                } else if let Some(id) = pick(&self.of(State::Admitted)) {
                    // It is given up unsent.
                    for key in self.requests[id].keys.clone() {
                        self.lanes[key].unadmit();
                    }
                    self.requests[id].state = State::Over;
                }
            }
        }
        self.check();
    }

    fn send(&mut self, id: usize) {
        let keys = self.requests[id].keys.clone();
        let sent = self.steps(&keys, |lanes, requests| {
            send(lanes, &requests[id].asks, true, &id)
        });
        let Ok(tickets) = sent else {
            self.requests[id].state = State::Over;
            return;
        };
        self.may_go(id, false);
        for (key, ask) in keys.iter().zip(self.requests[id].asks.clone()) {
            if ask.access == Access::Write {
                assert!(self.sent[*key] <= Some(ask.token), "G1");
                self.sent[*key] = Some(ask.token);
                self.in_flight.push((id, *key, ask.token));
            }
        }
        self.requests[id].tickets = tickets.to_vec();
        self.requests[id].state = State::InFlight;
    }

    /// A store answers in any order.
    fn answer_commit(&mut self, at: usize, durable: bool) {
        if self.commits.is_empty() {
            return;
        }
        for (key, change, record) in self.commits.remove(at % self.commits.len()) {
            if durable {
                match &mut self.store[key] {
                    Some(known) => known.merge(record),
                    none => *none = Some(record),
                }
            }
            self.woken
                .extend(self.lanes[key].committed(change, durable));
        }
    }

    /// First the store is looked at, then, at some later time, the lane is told.
    fn answer_read(&mut self, at: usize, works: bool) {
        if self.reads.is_empty() {
            return;
        }
        let at = at % self.reads.len();
        let key = self.reads[at].key;
        if works && self.reads[at].looked.is_none() {
            self.reads[at].looked = Some(self.store[key].clone());
            return;
        }
        let read = self.reads.swap_remove(at);
        let woken = match read.looked {
            Some(record) => self.lanes[key].loaded(read.number, record, None, self.held),
            None => self.lanes[key].load_failed(read.number),
        };
        self.woken.extend(woken);
    }

    /// As the table does: an idle lane goes to the cache, and the next one comes from there, unless
    /// the cache has dropped it.
    fn free(&mut self, key: usize, dropped: bool) {
        if dropped {
            self.cache[key] = None;
        }
        let lane = &self.lanes[key];
        if !lane.is_idle() {
            return;
        }
        if lane.read_under_way().is_none() {
            self.cache[key] = lane.record().cloned();
            assert_eq!(
                lane.mark(),
                self.durable(key),
                "a mark is freed that is not durable"
            );
        }
        self.lanes[key] = match &self.cache[key] {
            Some(record) => L::known(Some(record.clone()), self.held),
            None => L::loading(0),
        };
    }

    fn hold_over(&mut self) {
        self.held = false;
        for lane in &mut self.lanes {
            self.woken.extend(lane.hold_over());
        }
    }

    fn check(&mut self) {
        for key in 0..KEYS {
            let lane = &self.lanes[key];
            if lane.read_under_way().is_none() {
                assert!(lane.mark() >= self.seen[key], "the mark of {key} fell");
                self.seen[key] = lane.mark();
            }
            // One that waited for the mark of another key of its own had joined unchecked.
            let unchecked = |one: &&Request| {
                one.unread && one.state == State::Waiting && one.keys.contains(&key)
            };
            let most = self.bounds + 1 + self.requests.iter().filter(unchecked).count();
            assert!(lane.counts().1 <= most, "a queue grew");
        }
        // Whoever waits has a place in all its lanes, or has been woken to look.
        for id in self.of(State::Waiting) {
            let request = &self.requests[id];
            let waits = |key: &usize| self.lanes[*key].is_waiting(request.places.waiter);
            let placed = request.keys.iter().all(waits);
            assert!(placed || self.woken.contains(&id), "{id} is lost");
            let mut lanes = request.keys.iter().zip(&request.asks);
            let free = lanes.all(|(key, ask)| {
                let lane = &self.lanes[*key];
                lane.read_under_way().is_none() && lane.held(ask.token).is_none()
            });
            assert!(!free || self.woken.contains(&id), "{id} was not woken");
        }
    }

    /// Everything ends, and whoever was woken looks: then nobody waits and every lane is idle.
    fn run_out(&mut self) {
        self.hold_over();
        for _ in 0..100_000 {
            self.check();
            if let Some(&id) = self.woken.iter().next() {
                self.woken.remove(&id);
                if self.requests[id].state == State::Waiting {
                    self.look(id);
                }
            } else if !self.reads.is_empty() {
                self.answer_read(0, true);
            } else if !self.commits.is_empty() {
                self.answer_commit(0, true);
            } else if let Some(&id) = self.of(State::Admitted).first() {
                self.send(id);
            } else if let Some(&id) = self.of(State::InFlight).first() {
                self.end(id, true);
            } else if let Some((key, token)) = self.unsettled.pop() {
                self.woken.extend(self.lanes[key].settled(token));
            } else {
                break;
            }
        }
        assert!(
            self.of(State::Waiting).is_empty(),
            "somebody waits for ever"
        );
        for lane in &self.lanes {
            assert!(
                lane.is_idle() || lane.needs_commit(),
                "a lane is never freed"
            );
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.iter().copied();
    let mut world = World::new(bytes.next().unwrap_or(0));
    while let Some(event) = bytes.next() {
        let which = bytes.next().unwrap_or(0);
        world.happen(event, which, &mut || bytes.next().unwrap_or(0));
    }
    world.run_out();
});
