//! Any steps in any order: there is one lease, tokens only grow, and the first is served first.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Acquire(u64, bool),
    Granted,
    Overtaken,
    Burn,
    End,
    Abandon,
    Renew,
    Release(u64),
    Leave(u64),
    Pass(u64),
    Raise(u64),
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6_u64, any::<bool>()).prop_map(|(who, waits)| Step::Acquire(who, waits)),
        4 => Just(Step::Granted),
        1 => Just(Step::Overtaken),
        1 => Just(Step::Burn),
        1 => Just(Step::End),
        1 => Just(Step::Abandon),
        2 => Just(Step::Renew),
        3 => (0..3_u64).prop_map(Step::Release),
        1 => (0..6_u64).prop_map(Step::Leave),
        3 => (0..12_u64).prop_map(Step::Pass),
        1 => (1..4_u64).prop_map(Step::Raise),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn there_is_one_lease_and_tokens_only_grow(steps in steps()) {
        let (mut lock, mut now, mut mark) = (L::default(), Instant::now(), None::<Token>);
        let mut newest = None::<Token>;
        let mut order = VecDeque::<u64>::new();
        for step in steps {
            match step {
                Step::Acquire(who, waits) => {
                    let held = lock.taken(now, mark).is_some();
                    let waker = waits.then_some(&who);
                    match lock.acquire(&request(who), waker, now, mark, MOST) {
                        Turn::Granted(lease) => {
                            prop_assert!(!held, "two leases at once");
                            prop_assert!(newest.max(mark) < Some(lease.token));
                            prop_assert!(order.front().is_none_or(|first| *first == who));
                            order.retain(|one| *one != who);
                            newest = Some(lease.token);
                            // With the lock fenced on grant.
                            mark = mark.max(newest);
                        }
                        Turn::Held(..) | Turn::Queued => {
                            prop_assert!(held || order.front().is_some_and(|first| *first != who));
                            if waits && !order.contains(&who) {
                                order.push_back(who);
                            }
                        }
                        Turn::Busy => prop_assert!(order.len() >= MOST),
                        Turn::Again(_) | Turn::Resumed(_) | Turn::Coming | Turn::Lost | Turn::Exhausted => prop_assert!(false),
                    }
                }
                Step::Granted => drop(newest.map(|token| lock.granted(token, now))),
                Step::Overtaken => {
                    let overtaken = newest.map(|token| lock.overtaken(token, mark));
                    if let Some(Ok(Some(lease))) = overtaken {
                        prop_assert!(newest.max(mark) < Some(lease.token));
                        newest = Some(lease.token);
                    }
                }
                Step::Burn => drop(newest.and_then(|token| lock.burn(token))),
                Step::End => drop(newest.and_then(|token| lock.end(token))),
                Step::Abandon => drop(newest.and_then(|token| lock.abandon(token, now))),
                Step::Renew => {
                    let held = lock.held(now, mark).is_some();
                    let renewed = newest.map(|token| lock.renew(token, TTL, now, mark));
                    prop_assert!(renewed.is_none_or(|renewed| renewed.is_ok() == held));
                }
                Step::Release(back) => {
                    let token = newest.and_then(|newest| Token::new(0, newest.counter().saturating_sub(back)));
                    let held = lock.held(now, mark).map(|lease| lease.token);
                    let released = token.map(|token| lock.release(token, now, mark));
                    prop_assert!(released.is_none_or(|one| one.is_ok() == (held == token)));
                }
                Step::Leave(who) => {
                    lock.leave(who);
                    order.retain(|one| *one != who);
                }
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
                Step::Raise(by) => mark = Token::new(0, mark.map_or(0, Token::counter) + by),
                Step::Reset => mark = Some(t(1)),
            }
            prop_assert_eq!(lock.waiting(), order.len());
            prop_assert_eq!(lock.issued(), newest);
        }
    }
}
