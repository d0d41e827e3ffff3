//! One lane on its own. Requests are woken by name.

use super::*;
use crate::Token;

type L = Lane<&'static str, u32>;

fn t(counter: u64) -> Token {
    Token::new(0, counter).unwrap()
}

fn ask(counter: u64) -> Ask {
    Ask {
        token: t(counter),
        holder: None,
        access: Access::Write,
        max_advance: None,
        new_epochs: true,
    }
}

fn record(counter: u64) -> Record {
    Record {
        mark: t(counter),
        holder: Binding::Unbound,
        draining: false,
        resets: 0,
    }
}

fn at(counter: u64) -> L {
    Lane::known(Some(record(counter)), false)
}

fn raise(lane: &mut L, counter: u64) -> (Record, Vec<&'static str>) {
    let mut woken = Vec::new();
    let record = lane.raise(&ask(counter), &mut woken);
    (record, woken)
}

fn name(name: &str) -> Binding {
    Binding::Holder(name.into())
}

#[test]
fn tokens_compare_with_the_mark_as_pairs_of_epoch_and_counter() {
    let mut lane = at(34);
    assert_eq!(lane.judge(&ask(33)), Judgement::Stale);
    assert_eq!(lane.judge(&ask(34)), Judgement::Equal);
    assert_eq!(lane.judge(&ask(35)), Judgement::Advance);
    lane = Lane::known(
        Some(Record {
            mark: Token::new(7, 3).unwrap(),
            ..record(1)
        }),
        false,
    );
    assert_eq!(lane.judge(&ask(u64::MAX)), Judgement::Stale);
    let next = Ask {
        token: Token::new(8, 1).unwrap(),
        ..ask(1)
    };
    assert_eq!(lane.judge(&next), Judgement::Advance);
}

#[test]
fn a_key_without_a_mark_takes_any_token_from_those_that_write() {
    let lane = L::known(None, true);
    let far = Ask {
        max_advance: Some(1),
        ..ask(u64::MAX)
    };
    assert_eq!(lane.judge(&far), Judgement::Advance);
    assert_eq!(lane.held(t(1)), None, "no orphan can be left");
    let reads = Ask {
        access: Access::Read,
        ..ask(1)
    };
    assert_eq!(lane.judge(&reads), Judgement::Ahead);
}

#[test]
fn an_advance_is_no_larger_than_the_route_allows() {
    let lane = at(34);
    let limited = |token: Token, new_epochs| Ask {
        token,
        max_advance: Some(10),
        new_epochs,
        ..ask(1)
    };
    assert_eq!(lane.judge(&limited(t(44), true)), Judgement::Advance);
    assert_eq!(lane.judge(&limited(t(45), true)), Judgement::JumpTooLarge);
    assert_eq!(lane.judge(&limited(t(33), true)), Judgement::Stale);
    let epoch = Token::new(1, 1_000_000).unwrap();
    assert_eq!(lane.judge(&limited(epoch, true)), Judgement::Advance);
    assert_eq!(lane.judge(&limited(epoch, false)), Judgement::JumpTooLarge);
}

#[test]
fn a_bound_mark_is_for_its_holder_alone() {
    let with = |holder: Binding| Ask {
        holder: Some(holder),
        ..ask(34)
    };
    let bound = |holder: Binding| {
        L::known(
            Some(Record {
                holder,
                ..record(34)
            }),
            false,
        )
    };
    let lane = bound(name("a"));
    assert_eq!(lane.judge(&with(name("a"))), Judgement::Equal);
    assert_eq!(lane.judge(&with(name("b"))), Judgement::HolderMismatch);
    assert_eq!(
        lane.judge(&with(Binding::Nobody)),
        Judgement::HolderMismatch
    );
    assert_eq!(
        lane.judge(&ask(34)),
        Judgement::Equal,
        "this route ignores holders"
    );
    let lane = bound(Binding::Nobody);
    assert_eq!(lane.judge(&with(Binding::Nobody)), Judgement::Equal);
    assert_eq!(lane.judge(&with(name("a"))), Judgement::HolderMismatch);
    let lane = bound(Binding::Unbound);
    assert_eq!(lane.judge(&with(name("a"))), Judgement::Bind);
    assert_eq!(lane.judge(&with(Binding::Nobody)), Judgement::Bind);
    let reads = Ask {
        access: Access::Read,
        ..with(name("a"))
    };
    assert_eq!(lane.judge(&reads), Judgement::Equal, "a read binds nothing");
}

#[test]
fn a_newer_token_is_free_of_the_old_binding_and_binds_anew() {
    let mut lane = at(34);
    let mut ask = ask(35);
    ask.holder = Some(name("b"));
    assert_eq!(lane.raise(&ask, &mut Vec::new()).holder, name("b"));
    ask.token = t(36);
    ask.holder = None;
    assert_eq!(lane.raise(&ask, &mut Vec::new()).holder, Binding::Unbound);
}

#[test]
fn a_raise_makes_older_tokens_stale_at_once_and_wakes_those_that_wait_with_them() {
    let mut lane = at(33);
    lane.begin(t(33), 1);
    raise(&mut lane, 34);
    lane.wait(1, t(34), &"34");
    lane.wait(2, t(36), &"36");
    let (record, woken) = raise(&mut lane, 35);
    assert_eq!(record.mark, t(35));
    assert_eq!(woken, ["34"]);
    assert_eq!(lane.judge(&ask(34)), Judgement::Stale);
    assert!(!lane.is_waiting(1) && lane.is_waiting(2));
}

#[test]
fn an_older_write_holds_newer_tokens_and_not_equal_ones() {
    let mut lane = at(33);
    let older = lane.begin(t(33), 1);
    assert_eq!(lane.held(t(33)), None);
    raise(&mut lane, 34);
    let change = lane.change();
    assert!(lane.committed(change, true).is_empty());
    assert_eq!(lane.held(t(34)), Some(Held::InFlight));
    lane.wait(1, t(34), &"34");
    let (handle, woken) = lane.ended(older, false);
    assert_eq!((handle, woken), (Some(1), vec!["34"]));
    assert_eq!(lane.held(t(34)), None);
    assert_eq!(lane.ended(older, false), (None, vec![]), "it ends once");
}

#[test]
fn an_unknown_outcome_holds_newer_tokens_until_it_has_settled() {
    let mut lane = at(33);
    let older = lane.begin(t(33), 1);
    lane.ended(older, true);
    assert_eq!(lane.held(t(33)), None);
    assert_eq!(lane.held(t(34)), Some(Held::Unsettled));
    assert!(!lane.is_idle() && !lane.is_quiet());
    lane.wait(1, t(34), &"34");
    assert_eq!(lane.settled(t(33)), ["34"]);
    assert_eq!(lane.held(t(34)), None);
}

#[test]
fn a_mark_that_is_not_durable_holds_every_token() {
    let mut lane = at(33);
    raise(&mut lane, 34);
    assert_eq!(lane.held(t(34)), Some(Held::Commit));
    raise(&mut lane, 35);
    assert!(lane.committed(1, true).is_empty());
    assert_eq!(lane.held(t(35)), Some(Held::Commit));
    lane.wait(1, t(35), &"35");
    assert_eq!(lane.committed(2, true), ["35"]);
    assert_eq!(lane.held(t(35)), None);
}

#[test]
fn answers_to_commits_may_come_in_any_order() {
    let mut lane = at(33);
    raise(&mut lane, 34);
    raise(&mut lane, 35);
    lane.committed(2, true);
    assert_eq!(lane.held(t(35)), None, "the higher mark is durable");
    assert!(!lane.is_idle(), "an answer is outstanding");
    lane.committed(1, false);
    assert_eq!(lane.held(t(35)), None);
    assert!(!lane.has_failed(1) && !lane.needs_commit());
    lane.leave(1);
    assert!(lane.is_idle());
}

#[test]
fn a_failed_commit_wakes_all_and_keeps_the_mark_and_the_lane() {
    let mut lane = at(33);
    raise(&mut lane, 34);
    lane.wait(1, t(34), &"a");
    lane.wait(2, t(34), &"b");
    assert_eq!(lane.committed(1, false), ["a", "b"]);
    assert_eq!(lane.mark(), Some(t(34)));
    assert!(lane.has_failed(1) && lane.needs_commit() && !lane.is_idle());
    assert_eq!(lane.commit_again().unwrap().mark, t(34));
    assert!(!lane.needs_commit());
    lane.committed(2, true);
    assert!(lane.is_idle() && !lane.has_failed(1));
}

#[test]
fn the_draining_bit_tells_of_older_writes_in_flight_unsettled_or_orphaned() {
    let mut lane = at(33);
    assert!(!raise(&mut lane, 34).0.draining, "nothing is in flight");
    let write = lane.begin(t(34), 1);
    assert!(raise(&mut lane, 35).0.draining, "in flight");
    lane.ended(write, true);
    assert!(raise(&mut lane, 36).0.draining, "unsettled");
    lane.settled(t(34));
    assert!(!raise(&mut lane, 37).0.draining, "settled");
    let mut held = L::known(Some(record(33)), true);
    assert!(raise(&mut held, 34).0.draining, "an orphan may still run");
    held.hold_over();
    assert!(!raise(&mut held, 35).0.draining);
}

#[test]
fn an_equal_write_in_flight_sets_no_draining_bit_when_it_is_bound() {
    let mut bind = ask(34);
    bind.holder = Some(name("a"));
    let mut lane = at(34);
    lane.begin(t(34), 1);
    assert!(!lane.raise(&bind, &mut Vec::new()).draining);
    // The hold alone says nothing of writes older than the mark that it found.
    let mut held = L::known(Some(record(34)), true);
    assert!(!held.raise(&bind, &mut Vec::new()).draining);
}

#[test]
fn the_same_mark_once_more_keeps_its_draining_bit() {
    let draining = Record {
        draining: true,
        resets: 0,
        ..record(34)
    };
    let mut lane = L::known(Some(draining), false);
    let mut bind = ask(34);
    bind.holder = Some(Binding::Nobody);
    assert!(lane.raise(&bind, &mut Vec::new()).draining);
    lane.committed(1, false);
    assert!(lane.commit_again().unwrap().draining);
}

#[test]
fn after_a_crash_advances_are_held_and_equal_tokens_are_not() {
    let mut lane = L::known(Some(record(33)), true);
    assert_eq!(lane.held(t(33)), None);
    assert_eq!(lane.held(t(34)), Some(Held::Unsettled));
    raise(&mut lane, 34);
    lane.committed(1, true);
    assert_eq!(
        lane.held(t(34)),
        Some(Held::Unsettled),
        "the raise frees nobody"
    );
    lane.wait(1, t(34), &"34");
    assert_eq!(lane.hold_over(), ["34"]);
    assert_eq!(lane.held(t(34)), None);
}

#[test]
fn after_a_crash_a_key_that_was_draining_holds_every_token() {
    // C7
    let draining = Record {
        draining: true,
        resets: 0,
        ..record(34)
    };
    let mut lane = L::known(Some(draining.clone()), true);
    assert_eq!(lane.held(t(34)), Some(Held::Unsettled));
    lane.hold_over();
    assert_eq!(lane.held(t(34)), None);
    assert_eq!(L::known(Some(draining), false).held(t(34)), None);
}

#[test]
fn a_read_that_this_lane_does_not_wait_for_changes_nothing() {
    // C14
    let mut lane = L::loading(2);
    lane.wait_for_mark(1, &"33");
    assert!(lane.loaded(1, Some(record(1)), None, false).is_empty());
    assert!(lane.load_failed(1).is_empty() && !lane.read_failed());
    assert_eq!(lane.mark(), None);
    assert_eq!(lane.loaded(2, Some(record(34)), None, false), ["33"]);
    assert!(lane.loaded(2, Some(record(1)), None, false).is_empty());
    assert_eq!(lane.mark(), Some(t(34)));
}

#[test]
fn a_failed_read_wakes_those_that_wait_and_may_be_tried_again() {
    let mut lane = L::loading(1);
    lane.wait_for_mark(1, &"a");
    assert_eq!(lane.load_failed(1), ["a"]);
    assert!(lane.read_failed() && !lane.is_idle());
    lane.load_again(2);
    assert!(!lane.read_failed());
    assert_eq!(lane.loaded(2, None, None, false), ["a"]);
    lane.load_again(3);
    assert_eq!(
        lane.read_under_way(),
        None,
        "a mark that is known is not read"
    );
}

#[test]
fn a_request_waits_in_one_place_and_with_its_newest_waker() {
    let mut lane = L::loading(1);
    lane.wait_for_mark(1, &"old");
    lane.wait_for_mark(1, &"new");
    assert_eq!(lane.counts(), (0, 1, 0));
    assert_eq!(lane.loaded(1, Some(record(33)), None, false), ["new"]);
    raise(&mut lane, 34);
    lane.wait(1, t(34), &"old");
    lane.wait(1, t(34), &"new");
    assert_eq!(lane.counts(), (0, 1, 0));
    assert_eq!(lane.committed(1, true), ["new"]);
    lane.leave(1);
    assert!(lane.is_idle());
}

#[test]
fn a_lane_lives_as_long_as_anything_needs_it() {
    let mut lane = at(33);
    assert!(lane.is_idle());
    lane.admit();
    assert!(!lane.is_idle() && lane.is_quiet(), "admitted holds nobody");
    assert_eq!(lane.held(t(34)), None);
    lane.unadmit();
    let write = lane.begin(t(33), 1);
    assert!(!lane.is_idle());
    lane.ended(write, true);
    assert!(!lane.is_idle());
    lane.settled(t(33));
    assert!(lane.is_idle());
    raise(&mut lane, 34);
    assert!(!lane.is_idle());
    lane.committed(1, true);
    assert!(lane.is_idle());
}

#[test]
fn a_key_without_a_mark_has_the_floor_for_one() {
    let mut lane = L::loading(1);
    lane.loaded(1, None, Some(t(40)), false);
    assert_eq!((lane.mark(), lane.record()), (Some(t(40)), None));
    assert_eq!(lane.judge(&ask(39)), Judgement::Stale);
    let mut read = ask(39);
    read.access = Access::Read;
    assert_eq!(lane.judge(&read), Judgement::Stale);
    read.token = t(40);
    assert_eq!(lane.judge(&read), Judgement::Ahead);
    // The first token of a key may be as high as it likes.
    let mut far = ask(1_000_000);
    far.max_advance = Some(1);
    assert_eq!(lane.judge(&far), Judgement::Advance);
    // What is admitted is in a record of the key's own, also where it is equal to the floor.
    assert_eq!(lane.judge(&ask(40)), Judgement::Advance);
    let record = lane.raise(&ask(40), &mut Vec::new());
    assert_eq!((record.mark, record.resets), (t(40), 0));
    assert_eq!(lane.held(t(40)), Some(Held::Commit));
    lane.committed(lane.change(), true);
    assert_eq!(lane.held(t(40)), None);
    assert_eq!(lane.judge(&ask(40)), Judgement::Equal);
}

#[test]
fn a_mark_of_its_own_may_be_below_the_floor() {
    let mut lane = L::loading(1);
    lane.loaded(1, Some(record(34)), Some(t(40)), false);
    assert_eq!(lane.mark(), Some(t(34)));
    assert_eq!(lane.judge(&ask(34)), Judgement::Equal);
}

#[test]
fn after_a_crash_a_floor_holds_advances_as_a_mark_does() {
    let mut lane = L::loading(1);
    lane.loaded(1, None, Some(t(40)), true);
    assert_eq!(lane.held(t(41)), Some(Held::Unsettled));
    lane.raise(&ask(41), &mut Vec::new());
    lane.committed(lane.change(), true);
    assert_eq!(lane.held(t(41)), Some(Held::Unsettled));
    assert_eq!(lane.hold_over().len(), 0);
    assert_eq!(lane.held(t(41)), None);
}

#[test]
fn a_floor_is_no_mark_that_could_be_reset() {
    let mut lane = L::loading(1);
    lane.loaded(1, None, Some(t(40)), false);
    let refused = lane.reset(7, t(40), t(1), &"r", &mut Vec::new());
    assert_eq!(refused, reset::Resetting::Refused(reset::NotReset::NoMark));
    assert!(lane.is_idle());
}
