//! Random requests over several lanes, and what must hold whatever happens.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::super::*;
use crate::store::Binding;

const KEYS: usize = 3;

type L = Lane<usize, usize>;

#[derive(Clone, Debug)]
enum Event {
    /// A request for these keys, with these tokens.
    Come(Vec<(usize, u64, bool)>),
    /// One of those that were woken looks again.
    Look(usize),
    /// One of those that wait leaves.
    Leave(usize),
    /// One that is admitted is sent.
    Send(usize),
    /// One in flight came back unsent.
    Unsent(usize),
    /// One in flight ends, and maybe it has to settle.
    End(usize, bool),
    Settle(usize),
    /// A commit is answered.
    Answer(usize, bool),
    HoldOver,
}

fn event() -> impl Strategy<Value = Event> {
    let ask = (0..KEYS, 1..12u64, prop::bool::weighted(0.2));
    prop_oneof![
        4 => prop::collection::vec(ask, 1..KEYS).prop_map(Event::Come),
        6 => (0..64usize).prop_map(Event::Look),
        1 => (0..64usize).prop_map(Event::Leave),
        4 => (0..64usize).prop_map(Event::Send),
        1 => (0..64usize).prop_map(Event::Unsent),
        3 => (0..64usize, any::<bool>()).prop_map(|(which, settles)| Event::End(which, settles)),
        2 => (0..64usize).prop_map(Event::Settle),
        4 => (0..64usize, prop::bool::weighted(0.8)).prop_map(|(which, ok)| Event::Answer(which, ok)),
        1 => Just(Event::HoldOver),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
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
}

/// What the store was told, and what the test itself knows of each key.
#[derive(Default)]
struct World {
    lanes: Vec<L>,
    requests: Vec<Request>,
    woken: BTreeSet<usize>,
    commits: Vec<Vec<(usize, u64, Token)>>,
    durable: [Option<Token>; KEYS],
    seen: [Option<Token>; KEYS],
    /// The highest token that was sent to write this key.
    sent: [Option<Token>; KEYS],
    in_flight: Vec<(usize, usize, Token)>,
    unsettled: Vec<(usize, Ticket, Token)>,
    held: bool,
    bounds: usize,
}

impl World {
    fn with_keys<R>(
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

    fn look(&mut self, id: usize) -> TestCaseResult {
        self.woken.remove(&id);
        let keys = self.requests[id].keys.clone();
        let bounds = Bounds {
            waiting: self.bounds,
            new_keys: true,
        };
        let mut effects = Effects::<usize, usize>::default();
        let before: Vec<Option<Token>> = keys.iter().map(|key| self.lanes[*key].mark()).collect();
        let arrival = self.with_keys(&keys, |lanes, requests| {
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
        let commit: Vec<_> = effects
            .commit
            .iter()
            .map(|commit| (keys[commit.0], commit.1, commit.2.mark))
            .collect();
        if !commit.is_empty() {
            self.commits.push(commit);
        }
        match arrival {
            Arrival::Admitted => {
                self.may_go(id, true)?;
                self.requests[id].state = State::Admitted;
            }
            Arrival::Waiting | Arrival::Unread => self.requests[id].state = State::Waiting,
            Arrival::Refused(at, refused) => {
                let advance = self.requests[id].asks[at].access == Access::Write
                    && before[at].is_none_or(|mark| self.requests[id].asks[at].token > mark);
                prop_assert!(
                    refused != Refused::Queue || !advance,
                    "a full queue refused an advance"
                );
                let after: Vec<_> = keys.iter().map(|key| self.lanes[*key].mark()).collect();
                prop_assert_eq!(before, after, "a refusal raised a mark");
                self.requests[id].state = State::Over;
            }
        }
        Ok(())
    }

    /// G1, G2 and G3 for a request that is let through.
    fn may_go(&self, id: usize, admission: bool) -> TestCaseResult {
        let request = &self.requests[id];
        for (key, ask) in request.keys.iter().zip(&request.asks) {
            let mark = self.lanes[*key].mark();
            if ask.access == Access::Write {
                prop_assert_eq!(mark, Some(ask.token), "G1");
                prop_assert!(self.durable[*key] >= Some(ask.token), "G3");
            }
            prop_assert!(mark <= Some(ask.token), "G1");
            if admission {
                prop_assert!(self.durable[*key] >= mark, "G3");
            }
            let older = |token: Token| token < ask.token;
            let write = self
                .in_flight
                .iter()
                .any(|one| one.1 == *key && older(one.2));
            let unsettled = self
                .unsettled
                .iter()
                .any(|one| one.0 == *key && older(one.2));
            prop_assert!(!write && !unsettled, "G2");
            // The first key had no mark when the hold began.
            prop_assert!(
                !self.held || *key == 0 || ask.token <= t(4),
                "an advance under the hold"
            );
        }
        Ok(())
    }

    fn of(&self, state: State) -> Vec<usize> {
        (0..self.requests.len())
            .filter(|id| self.requests[*id].state == state)
            .collect()
    }

    fn end(&mut self, id: usize, settles: bool) {
        let request = &mut self.requests[id];
        request.state = State::Over;
        for ((key, ask), ticket) in request.keys.iter().zip(&request.asks).zip(&request.tickets) {
            let Some(ticket) = ticket else { continue };
            self.woken
                .extend(self.lanes[*key].ended(*ticket, settles).1);
            if settles {
                self.unsettled.push((*key, *ticket, ask.token));
            }
        }
        self.in_flight.retain(|one| one.0 != id);
    }

    fn happen(&mut self, event: &Event) -> TestCaseResult {
        let pick =
            |from: &[usize], which: usize| (!from.is_empty()).then(|| from[which % from.len()]);
        match event {
            Event::Come(wanted) => {
                let mut keys = Vec::new();
                let mut asks = Vec::new();
                for (key, token, read) in wanted {
                    if keys.contains(key) {
                        continue;
                    }
                    keys.push(*key);
                    asks.push(Ask {
                        token: t(*token),
                        holder: (*token % 2 == 0).then(|| Binding::Holder("h".into())),
                        access: if *read { Access::Read } else { Access::Write },
                        max_advance: None,
                        new_epochs: true,
                    });
                }
                self.requests.push(Request {
                    keys,
                    asks,
                    places: Places::new(),
                    state: State::Waiting,
                    tickets: Vec::new(),
                });
                self.look(self.requests.len() - 1)?;
            }
            Event::Look(which) => {
                let woken: Vec<usize> = self.woken.iter().copied().collect();
                if let Some(id) = pick(&woken, *which) {
                    self.woken.remove(&id);
                    if self.requests[id].state == State::Waiting {
                        self.look(id)?;
                    }
                }
            }
            Event::Leave(which) => {
                if let Some(id) = pick(&self.of(State::Waiting), *which) {
                    let keys = self.requests[id].keys.clone();
                    self.with_keys(&keys, |lanes, requests| leave(lanes, &requests[id].places));
                    self.requests[id].state = State::Over;
                }
            }
            Event::Send(which) => {
                if let Some(id) = pick(&self.of(State::Admitted), *which) {
                    let keys = self.requests[id].keys.clone();
                    let sent = self.with_keys(&keys, |lanes, requests| {
                        send(lanes, &requests[id].asks, true, &id)
                    });
                    let Ok(tickets) = sent else {
                        self.requests[id].state = State::Over;
                        return Ok(());
                    };
                    self.may_go(id, false)?;
                    for (key, ask) in keys.iter().zip(self.requests[id].asks.clone()) {
                        if ask.access == Access::Write {
                            prop_assert!(self.sent[*key] <= Some(ask.token), "G1");
                            self.sent[*key] = Some(ask.token);
                            self.in_flight.push((id, *key, ask.token));
                        }
                    }
                    self.requests[id].tickets = tickets.to_vec();
                    self.requests[id].state = State::InFlight;
                }
            }
            Event::Unsent(which) => {
                if let Some(id) = pick(&self.of(State::InFlight), *which) {
                    for key in self.requests[id].keys.clone() {
                        self.lanes[key].admit();
                    }
                    self.end(id, false);
                    self.requests[id].state = State::Admitted;
                }
            }
            Event::End(which, settles) => {
                if let Some(id) = pick(&self.of(State::InFlight), *which) {
                    self.end(id, *settles);
                }
            }
            Event::Settle(which) => {
                if !self.unsettled.is_empty() {
                    let (key, _, token) = self.unsettled.remove(which % self.unsettled.len());
                    self.woken.extend(self.lanes[key].settled(token));
                }
            }
            Event::Answer(which, ok) => {
                if !self.commits.is_empty() {
                    // A store answers in any order.
                    for (key, change, mark) in self.commits.remove(which % self.commits.len()) {
                        if *ok {
                            self.durable[key] = self.durable[key].max(Some(mark));
                        }
                        self.woken.extend(self.lanes[key].committed(change, *ok));
                    }
                }
            }
            Event::HoldOver => {
                self.held = false;
                for lane in &mut self.lanes {
                    self.woken.extend(lane.hold_over());
                }
            }
        }
        Ok(())
    }

    fn check(&mut self) -> TestCaseResult {
        for key in 0..KEYS {
            let mark = self.lanes[key].mark();
            prop_assert!(mark >= self.seen[key], "the mark of {key} fell");
            self.seen[key] = mark;
            prop_assert!(
                self.lanes[key].counts().1 <= self.bounds + 1,
                "a queue grew"
            );
        }
        // Whoever waits has a place in all lanes, or has been woken to look.
        for id in self.of(State::Waiting) {
            let request = &self.requests[id];
            let placed = request
                .keys
                .iter()
                .all(|key| self.lanes[*key].is_waiting(request.places.waiter));
            prop_assert!(placed || self.woken.contains(&id), "{id} is lost");
            let free = request
                .keys
                .iter()
                .zip(&request.asks)
                .all(|(key, ask)| self.lanes[*key].held(ask.token).is_none());
            prop_assert!(!free || self.woken.contains(&id), "{id} was not woken");
        }
        Ok(())
    }

    /// Everything ends, and whoever was woken looks: then nobody waits and every lane is idle.
    fn run_out(&mut self) -> TestCaseResult {
        self.happen(&Event::HoldOver)?;
        for _ in 0..10_000 {
            self.check()?;
            let event = if !self.woken.is_empty() {
                Event::Look(0)
            } else if !self.commits.is_empty() {
                Event::Answer(0, true)
            } else if !self.of(State::Admitted).is_empty() {
                Event::Send(0)
            } else if !self.of(State::InFlight).is_empty() {
                Event::End(0, true)
            } else if !self.unsettled.is_empty() {
                Event::Settle(0)
            } else {
                break;
            };
            self.happen(&event)?;
        }
        prop_assert_eq!(
            self.of(State::Waiting),
            Vec::<usize>::new(),
            "somebody waits for ever"
        );
        for lane in &self.lanes {
            prop_assert!(
                lane.is_idle() || lane.needs_commit(),
                "a lane is never freed"
            );
        }
        Ok(())
    }
}

fn t(counter: u64) -> Token {
    Token::new(0, counter).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_promises_hold(
        events in prop::collection::vec(event(), 1..120),
        crashed in any::<bool>(),
        draining in any::<bool>(),
        bounds in 1..6usize,
    ) {
        let record = Record { mark: t(4), holder: Binding::Unbound, draining, resets: 0 };
        let mut world = World {
            lanes: vec![
                L::known(None, crashed),
                L::known(Some(record.clone()), crashed),
                L::known(Some(record), crashed),
            ],
            durable: [None, Some(t(4)), Some(t(4))],
            bounds,
            ..World::default()
        };
        world.held = crashed;
        for event in &events {
            world.happen(event)?;
            world.check()?;
        }
        world.run_out()?;
    }
}
