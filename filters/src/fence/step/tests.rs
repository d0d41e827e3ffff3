//! Steps over the lanes of whole requests, as one thread would take them.

mod random;

use super::*;
use crate::store::Binding;

type L = Lane<&'static str, &'static str>;
type E = Effects<&'static str, &'static str>;

const BOUNDS: Bounds = Bounds {
    waiting: 2,
    new_keys: true,
};

fn t(counter: u64) -> Token {
    Token::new(0, counter).unwrap()
}

fn write(counter: u64) -> Ask {
    Ask {
        token: t(counter),
        holder: None,
        access: Access::Write,
        max_advance: None,
        new_epochs: true,
    }
}

fn read(counter: u64) -> Ask {
    Ask {
        access: Access::Read,
        ..write(counter)
    }
}

fn held_by(counter: u64, holder: &str) -> Ask {
    Ask {
        holder: Some(Binding::Holder(holder.into())),
        ..write(counter)
    }
}

fn at(counter: u64) -> L {
    Lane::known(
        Some(Record {
            mark: t(counter),
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
        }),
        false,
    )
}

/// One request: what it asks, where it waits, and its name, by which it is woken.
struct Request {
    asks: Vec<Ask>,
    places: Places,
    name: &'static str,
}

impl Request {
    fn new(name: &'static str, asks: impl IntoIterator<Item = Ask>) -> Self {
        Self {
            asks: asks.into_iter().collect(),
            places: Places::new(),
            name,
        }
    }

    fn look(&mut self, lanes: &mut [L]) -> (Arrival, E) {
        self.look_within(lanes, BOUNDS)
    }

    fn look_within(&mut self, lanes: &mut [L], bounds: Bounds) -> (Arrival, E) {
        let mut effects = E::default();
        let mut lanes: Vec<&mut L> = lanes.iter_mut().collect();
        let arrival = arrive(
            &mut lanes,
            &self.asks,
            &mut self.places,
            bounds,
            &self.name,
            &mut effects,
        );
        (arrival, effects)
    }

    fn send(&self, lanes: &mut [L]) -> Result<Vec<Option<Ticket>>, (usize, Refused)> {
        let mut lanes: Vec<&mut L> = lanes.iter_mut().collect();
        send(&mut lanes, &self.asks, true, &self.name).map(|tickets| tickets.to_vec())
    }

    fn leave(&self, lanes: &mut [L]) {
        let mut lanes: Vec<&mut L> = lanes.iter_mut().collect();
        leave(&mut lanes, &self.places);
    }
}

fn marks(effects: &E) -> Vec<(usize, Token)> {
    effects
        .commit
        .iter()
        .map(|commit| (commit.0, commit.2.mark))
        .collect()
}

#[test]
fn below_the_mark_is_refused_with_the_mark() {
    let mut lanes = [at(34)];
    let (arrival, effects) = Request::new("33", [write(33)]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Refused(0, Refused::Stale(t(34))));
    assert!(effects.commit.is_empty() && lanes[0].is_idle());
}

#[test]
fn an_equal_token_is_admitted_and_writes_nothing() {
    let mut lanes = [at(34)];
    let (arrival, effects) = Request::new("34", [write(34)]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Admitted);
    assert!(effects.commit.is_empty());
    assert!(!lanes[0].is_idle(), "its lane is kept until it is sent");
}

#[test]
fn an_equal_token_waits_with_the_advance_that_is_under_way() {
    let mut lanes = [at(33)];
    let mut first = Request::new("first", [write(34)]);
    let mut second = Request::new("second", [write(34)]);
    let (arrival, effects) = first.look(&mut lanes);
    assert_eq!(arrival, Arrival::Waiting);
    assert_eq!(marks(&effects), [(0, t(34))]);
    let (arrival, effects) = second.look(&mut lanes);
    assert_eq!(arrival, Arrival::Waiting);
    assert!(effects.commit.is_empty(), "one commit is enough");
    assert_eq!(lanes[0].committed(1, true), ["first", "second"]);
    assert_eq!(second.look(&mut lanes).0, Arrival::Admitted);
    assert_eq!(first.look(&mut lanes).0, Arrival::Admitted);
}

#[test]
fn an_advance_is_committed_and_drains_and_is_admitted_when_both_are_done() {
    // C1
    for commit_first in [true, false] {
        let mut lanes = [at(33)];
        let mut old = Request::new("33", [write(33)]);
        assert_eq!(old.look(&mut lanes).0, Arrival::Admitted);
        let tickets = old.send(&mut lanes).unwrap();
        let mut new = Request::new("34", [write(34)]);
        let (arrival, effects) = new.look(&mut lanes);
        assert_eq!(arrival, Arrival::Waiting);
        assert_eq!(effects.drain, ["33"]);
        assert!(effects.commit[0].2.draining);
        let woken = if commit_first {
            assert!(lanes[0].committed(1, true).is_empty());
            assert_eq!(new.look(&mut lanes).0, Arrival::Waiting);
            lanes[0].ended(tickets[0].unwrap(), false).1
        } else {
            assert!(lanes[0].ended(tickets[0].unwrap(), false).1.is_empty());
            assert_eq!(new.look(&mut lanes).0, Arrival::Waiting);
            lanes[0].committed(1, true)
        };
        assert_eq!(woken, ["34"]);
        let (arrival, effects) = new.look(&mut lanes);
        assert_eq!(arrival, Arrival::Admitted);
        assert!(effects.commit.is_empty() && effects.drain.is_empty());
    }
}

#[test]
fn a_still_newer_token_refuses_those_that_wait_with_a_lower_one() {
    // C3
    let mut lanes = [at(34)];
    let mut older = Request::new("35", [write(35)]);
    let mut newer = Request::new("36", [write(36)]);
    assert_eq!(older.look(&mut lanes).0, Arrival::Waiting);
    let (arrival, effects) = newer.look(&mut lanes);
    assert_eq!(arrival, Arrival::Waiting);
    assert_eq!(effects.wake, ["35"]);
    assert_eq!(
        older.look(&mut lanes).0,
        Arrival::Refused(0, Refused::Stale(t(36)))
    );
    // The commit of what is stale by now frees nobody.
    assert!(lanes[0].committed(1, true).is_empty());
    assert_eq!(lanes[0].committed(2, true), ["36"]);
    assert_eq!(newer.look(&mut lanes).0, Arrival::Admitted);
}

#[test]
fn admitted_and_unsent_holds_nobody_and_is_compared_once_more() {
    // C2, C5
    let mut lanes = [at(34)];
    let mut older = Request::new("34", [write(34)]);
    assert_eq!(older.look(&mut lanes).0, Arrival::Admitted);
    let mut newer = Request::new("35", [write(35)]);
    let (_, effects) = newer.look(&mut lanes);
    assert!(effects.drain.is_empty() && !effects.commit[0].2.draining);
    lanes[0].committed(1, true);
    assert_eq!(newer.look(&mut lanes).0, Arrival::Admitted);
    assert_eq!(older.send(&mut lanes), Err((0, Refused::Stale(t(35)))));
    assert!(newer.send(&mut lanes).is_ok());
}

#[test]
fn a_failed_commit_is_an_answer_to_all_who_wait_and_is_committed_again() {
    // C15
    let mut lanes = [at(33)];
    let mut first = Request::new("first", [write(34)]);
    let mut second = Request::new("second", [write(34)]);
    first.look(&mut lanes);
    second.look(&mut lanes);
    assert_eq!(lanes[0].committed(1, false), ["first", "second"]);
    let refused = Arrival::Refused(0, Refused::Store);
    assert_eq!(first.look(&mut lanes).0, refused);
    // The mark stays raised.
    let (arrival, _) = Request::new("33", [write(33)]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Refused(0, Refused::Stale(t(34))));
    let mut third = Request::new("third", [write(34)]);
    let (arrival, effects) = third.look(&mut lanes);
    assert_eq!(arrival, Arrival::Waiting);
    assert_eq!(marks(&effects), [(0, t(34))]);
    assert!(!effects.commit[0].3, "the key is counted once");
    assert_eq!(second.look(&mut lanes).0, refused, "also after that");
    assert_eq!(lanes[0].committed(2, true), ["third"]);
    assert_eq!(third.look(&mut lanes).0, Arrival::Admitted);
}

#[test]
fn a_failed_commit_does_not_answer_those_that_wait_for_a_later_one() {
    let mut lanes = [at(33)];
    Request::new("34", [write(34)]).look(&mut lanes);
    let mut newer = Request::new("35", [write(35)]);
    newer.look(&mut lanes);
    assert_eq!(lanes[0].committed(1, false), ["35"]);
    assert_eq!(newer.look(&mut lanes).0, Arrival::Waiting);
    assert_eq!(lanes[0].committed(2, true), ["35"]);
    assert_eq!(newer.look(&mut lanes).0, Arrival::Admitted);
}

#[test]
fn a_client_that_leaves_leaves_the_mark_raised() {
    let mut lanes = [at(33)];
    let mut gone = Request::new("34", [write(34)]);
    gone.look(&mut lanes);
    gone.leave(&mut lanes);
    assert_eq!(lanes[0].counts(), (0, 0, 0));
    assert!(!lanes[0].is_idle(), "its commit is under way");
    lanes[0].committed(1, true);
    assert!(lanes[0].is_idle());
    assert_eq!(lanes[0].mark(), Some(t(34)));
}

#[test]
fn a_binding_is_durable_before_it_is_admitted() {
    let mut lanes = [at(34)];
    let mut first = Request::new("a", [held_by(34, "a")]);
    let (arrival, effects) = first.look(&mut lanes);
    assert_eq!(arrival, Arrival::Waiting);
    assert_eq!(effects.commit[0].2.holder, Binding::Holder("a".into()));
    assert!(effects.drain.is_empty());
    let (arrival, _) = Request::new("b", [held_by(34, "b")]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Refused(0, Refused::HolderMismatch(t(34))));
    assert_eq!(lanes[0].committed(1, true), ["a"]);
    assert_eq!(first.look(&mut lanes).0, Arrival::Admitted);
}

#[test]
fn a_full_queue_refuses_all_but_an_advance() {
    let mut lanes = [at(33)];
    Request::new("a", [write(34)]).look(&mut lanes);
    let mut b = Request::new("b", [write(34)]);
    b.look(&mut lanes);
    let (arrival, _) = Request::new("c", [write(34)]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Refused(0, Refused::Queue));
    assert_eq!(
        b.look(&mut lanes).0,
        Arrival::Waiting,
        "it is in it already"
    );
    let (arrival, effects) = Request::new("d", [write(35)]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Waiting);
    assert_eq!(effects.wake, ["a", "b"]);
    assert_eq!(lanes[0].counts().1, 1);
}

#[test]
fn a_full_queue_for_a_mark_that_is_read_refuses() {
    let mut lanes = [L::loading(1)];
    for name in ["a", "b"] {
        assert_eq!(
            Request::new(name, [write(34)]).look(&mut lanes).0,
            Arrival::Unread
        );
    }
    let (arrival, _) = Request::new("c", [write(34)]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Refused(0, Refused::Queue));
}

#[test]
fn a_queue_is_full_for_those_who_wait_for_the_mark_of_another_key_too() {
    let mut known = at(34);
    // Each comes with a second key of its own, whose mark is being read.
    let mut beside_a_cold_key = |name, counter| {
        let mut lanes = [known.clone(), L::loading(1)];
        let (arrival, _) = Request::new(name, [write(counter), write(1)]).look(&mut lanes);
        let [first, _] = lanes;
        known = first;
        arrival
    };
    assert_eq!(beside_a_cold_key("a", 34), Arrival::Unread);
    assert_eq!(beside_a_cold_key("b", 34), Arrival::Unread);
    let full = Arrival::Refused(0, Refused::Queue);
    assert_eq!(beside_a_cold_key("c", 34), full);
    assert_eq!(beside_a_cold_key("d", 35), Arrival::Unread, "an advance");
}

#[test]
fn a_stale_token_is_told_so_where_a_queue_is_full_or_another_read_failed() {
    let mut cold = L::loading(1);
    for name in ["a", "b"] {
        let mut lanes = [cold];
        Request::new(name, [write(34)]).look(&mut lanes);
        [cold] = lanes;
    }
    // The stale key comes first, or the cold one does.
    for stale in [0, 1] {
        let mut lanes = [at(34), cold.clone()];
        lanes.rotate_left(stale);
        let ask = |counter| Request::new("c", [write(counter), write(counter)]);
        let (arrival, _) = ask(33).look(&mut lanes);
        assert_eq!(arrival, Arrival::Refused(stale, Refused::Stale(t(34))));
        let (arrival, _) = ask(34).look(&mut lanes);
        assert_eq!(arrival, Arrival::Refused(1 - stale, Refused::Queue));
        lanes[1 - stale].load_failed(1);
        let (arrival, _) = ask(33).look(&mut lanes);
        assert_eq!(arrival, Arrival::Refused(stale, Refused::Stale(t(34))));
        let (arrival, _) = ask(34).look(&mut lanes);
        assert_eq!(arrival, Arrival::Refused(1 - stale, Refused::Store));
    }
    // Where it can wait it does: which marks are known changes no answer.
    let mut lanes = [at(34), L::loading(1)];
    let (arrival, _) = Request::new("d", [write(33), write(33)]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Unread);
}

#[test]
fn a_new_key_above_the_limit_is_refused_and_a_known_one_is_not() {
    let full = Bounds {
        new_keys: false,
        ..BOUNDS
    };
    let mut lanes = [L::known(None, false)];
    let (arrival, _) = Request::new("a", [write(1)]).look_within(&mut lanes, full);
    assert_eq!(arrival, Arrival::Refused(0, Refused::Keys));
    assert_eq!(lanes[0].mark(), None);
    let (arrival, _) = Request::new("a", [write(34)]).look_within(&mut [at(33)], full);
    assert_eq!(arrival, Arrival::Waiting);
}

#[test]
fn a_read_that_failed_is_an_answer_to_those_that_waited_for_it() {
    let mut lanes = [at(33), L::loading(1)];
    let mut request = Request::new("a", [write(34), write(34)]);
    assert_eq!(request.look(&mut lanes).0, Arrival::Unread);
    assert_eq!(
        lanes[0].mark(),
        Some(t(33)),
        "nothing is raised before all are known"
    );
    assert_eq!(lanes[1].load_failed(1), ["a"]);
    assert_eq!(
        request.look(&mut lanes).0,
        Arrival::Refused(1, Refused::Store)
    );
    assert!(lanes.iter().all(L::is_idle));
}

#[test]
fn a_late_read_changes_nothing() {
    // C14: the lane in which 33 waited is gone, and another one has taken its place.
    let mut lanes = [L::loading(1)];
    let mut older = Request::new("33", [write(33)]);
    assert_eq!(older.look(&mut lanes).0, Arrival::Unread);
    lanes = [at(34)];
    assert!(lanes[0].loaded(1, None, None, false).is_empty());
    assert_eq!(
        older.look(&mut lanes).0,
        Arrival::Refused(0, Refused::Stale(t(34)))
    );
}

#[test]
fn several_keys_are_raised_together_or_not_at_all() {
    let mut lanes = [at(33), at(50)];
    let (arrival, effects) = Request::new("a", [write(34), write(49)]).look(&mut lanes);
    assert_eq!(arrival, Arrival::Refused(1, Refused::Stale(t(50))));
    assert!(effects.commit.is_empty() && lanes[0].is_idle());
    assert_eq!(lanes[0].mark(), Some(t(33)));
    let mut both = Request::new("b", [write(34), write(51)]);
    let (arrival, effects) = both.look(&mut lanes);
    assert_eq!(arrival, Arrival::Waiting);
    assert_eq!(marks(&effects), [(0, t(34)), (1, t(51))], "one record");
}

#[test]
fn several_keys_are_waited_for_holding_nothing_and_sent_together() {
    let mut lanes = [at(33), at(50)];
    let blocker = lanes[1].begin(t(50), "50");
    let mut both = Request::new("both", [write(34), write(51)]);
    both.look(&mut lanes);
    lanes[0].committed(1, true);
    lanes[1].committed(1, true);
    // The first key is free: a newer token on it passes while the request waits for the second.
    let mut other = Request::new("other", [write(35)]);
    let (_, effects) = other.look(&mut lanes[..1]);
    assert!(effects.drain.is_empty());
    assert_eq!(effects.wake, ["both"]);
    lanes[0].committed(2, true);
    assert_eq!(other.look(&mut lanes[..1]).0, Arrival::Admitted);
    assert_eq!(
        both.look(&mut lanes).0,
        Arrival::Refused(0, Refused::Stale(t(35)))
    );
    assert_eq!(lanes[1].counts().1, 0, "it has left both");
    assert!(lanes[1].ended(blocker, false).1.is_empty());
}

#[test]
fn one_stale_key_at_sending_sends_none() {
    let mut lanes = [at(34), at(50)];
    let mut both = Request::new("both", [write(34), write(50)]);
    assert_eq!(both.look(&mut lanes).0, Arrival::Admitted);
    Request::new("51", [write(51)]).look(&mut lanes[1..]);
    assert_eq!(both.send(&mut lanes), Err((1, Refused::Stale(t(51)))));
    assert!(lanes[0].is_idle() && lanes[1].is_quiet());
}

#[test]
fn a_key_that_is_read_drains_and_raises_nothing() {
    let mut lanes = [at(10), at(33)];
    let write_of_source = lanes[0].begin(t(10), "10");
    let mut copy = Request::new("copy", [read(20), write(33)]);
    let (arrival, effects) = copy.look(&mut lanes);
    assert_eq!(arrival, Arrival::Waiting);
    assert!(effects.commit.is_empty());
    assert_eq!(lanes[0].mark(), Some(t(10)));
    assert_eq!(lanes[0].ended(write_of_source, false).1, ["copy"]);
    assert_eq!(copy.look(&mut lanes).0, Arrival::Admitted);
    let tickets = copy.send(&mut lanes).unwrap();
    assert!(tickets[0].is_none() && tickets[1].is_some());
    assert!(lanes[0].is_idle(), "a read holds nobody back");
}

#[test]
fn a_key_that_is_read_is_not_sent_beside_an_older_write_that_began_since() {
    let mut lanes = [at(10)];
    let mut copy = Request::new("copy", [read(20)]);
    assert_eq!(copy.look(&mut lanes).0, Arrival::Admitted);
    let mut between = Request::new("15", [write(15)]);
    between.look(&mut lanes);
    lanes[0].committed(1, true);
    assert_eq!(between.look(&mut lanes).0, Arrival::Admitted);
    let ticket = between.send(&mut lanes).unwrap()[0].unwrap();
    assert_eq!(
        copy.send(&mut lanes),
        Err((0, Refused::Held(Held::InFlight)))
    );
    lanes[0].ended(ticket, true);
    lanes[0].admit();
    assert_eq!(
        copy.send(&mut lanes),
        Err((0, Refused::Held(Held::Unsettled)))
    );
    lanes[0].settled(t(15));
    lanes[0].admit();
    assert!(copy.send(&mut lanes).is_ok());
}

#[test]
fn what_holds_is_told_by_gravity() {
    let mut lanes = [at(33), at(33), at(33)];
    lanes[2].begin(t(33), "x");
    let unsettled = lanes[1].begin(t(33), "y");
    lanes[1].ended(unsettled, true);
    let asks = [write(34), write(34), write(34)];
    Request::new("a", asks.clone()).look(&mut lanes);
    let told = |lanes: &mut [L]| {
        let lanes: Vec<&mut L> = lanes.iter_mut().collect();
        held(&lanes, &asks[..lanes.len()])
    };
    assert_eq!(told(&mut lanes), Some((2, Held::InFlight)));
    assert_eq!(told(&mut lanes[..2]), Some((1, Held::Unsettled)));
    assert_eq!(told(&mut lanes[..1]), Some((0, Held::Commit)));
}

#[test]
fn a_look_raises_only_where_it_is_told_to_and_never_waits() {
    for raises in [true, false] {
        let mut lanes = [at(33)];
        lanes[0].begin(t(33), "33");
        let mut effects = E::default();
        let mut places = Places::new();
        let mut borrowed: Vec<&mut L> = lanes.iter_mut().collect();
        let asks = [write(34)];
        let arrival = look(
            &mut borrowed,
            &asks,
            &mut places,
            BOUNDS,
            raises,
            &"look",
            &mut effects,
        );
        assert_eq!(arrival, Arrival::Admitted);
        assert_eq!(effects.commit.len(), usize::from(raises));
        assert!(effects.drain.is_empty());
        assert_eq!(lanes[0].mark(), Some(t(if raises { 34 } else { 33 })));
        assert_eq!(lanes[0].counts(), (1, 0, 0));
    }
}
