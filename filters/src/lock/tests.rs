//! A lock, step by step.

mod random;

use super::memory::REMEMBERED;
use super::*;

type L = Lock<u64>;

const MOST: usize = 3;
const TTL: Duration = Duration::from_secs(10);

fn t(counter: u64) -> Token {
    Token::new(0, counter).unwrap()
}

fn request(waiter: Waiter) -> Request {
    Request {
        waiter,
        holder: format!("h{waiter}").into(),
        id: None,
        ttl: TTL,
    }
}

fn named(waiter: Waiter, holder: &str, id: &str) -> Request {
    Request {
        holder: holder.into(),
        id: Some(id.into()),
        ..request(waiter)
    }
}

fn take(lock: &mut L, request: &Request, now: Instant, mark: Option<Token>) -> Token {
    match lock.acquire(request, None, now, mark, MOST) {
        Turn::Granted(lease) => {
            lock.granted(lease.token, now).unwrap();
            lease.token
        }
        other => panic!("{other:?}"),
    }
}

fn wait(lock: &mut L, waiter: Waiter, now: Instant) -> Turn {
    lock.acquire(&request(waiter), Some(&waiter), now, None, MOST)
}

#[test]
fn those_that_wait_are_served_in_the_order_in_which_they_came() {
    let (mut lock, now) = (L::default(), Instant::now());
    let token = take(&mut lock, &request(1), now, None);
    for waiter in [2, 3, 4] {
        assert!(
            matches!(wait(&mut lock, waiter, now), Turn::Held(holder, Some(until))
            if &*holder == "h1" && until == now + TTL)
        );
    }
    assert_eq!(wait(&mut lock, 5, now), Turn::Busy);
    assert_eq!(lock.release(token, now, None), Ok(vec![2]));
    assert_eq!(wait(&mut lock, 3, now), Turn::Queued, "not its turn");
    assert!(matches!(
        lock.acquire(&request(6), None, now, None, MOST),
        Turn::Queued
    ));
    assert_eq!(lock.leave(2), [3]);
    assert!(matches!(wait(&mut lock, 3, now), Turn::Granted(lease) if lease.token == t(2)));
    assert_eq!(lock.waiting(), 1);
}

#[test]
fn a_lease_is_over_when_its_time_is_or_a_mark_is_above_it() {
    let (mut lock, now) = (L::default(), Instant::now());
    let token = take(&mut lock, &request(1), now, Some(t(34)));
    assert_eq!(token, t(35));
    assert_eq!(
        lock.renew(token, TTL, now + TTL / 2, Some(t(35))),
        Ok(false)
    );
    let before = now + TTL;
    assert!(lock.held(before, Some(t(35))).is_some());
    assert!(lock.held(before, Some(t(36))).is_none(), "a newer mark");
    assert!(lock.held(now + TTL / 2 + TTL, Some(t(35))).is_none());
    assert_eq!(lock.renew(token, TTL, before, Some(t(36))), Err(Lost));
    assert_eq!(lock.release(token, before, Some(t(36))), Err(Lost));
    assert_eq!(take(&mut lock, &request(2), before, Some(t(36))), t(37));
}

#[test]
fn a_longer_time_is_kept_before_it_is_promised() {
    let (mut lock, now) = (L::default(), Instant::now());
    let token = take(&mut lock, &request(1), now, None);
    assert_eq!(lock.renew(token, TTL / 2, now, None), Ok(false));
    assert_eq!(lock.renew(token, TTL * 2, now, None), Ok(true));
    assert_eq!(lock.lease().unwrap().ttl, TTL * 2);
    assert_eq!(lock.renew(token, TTL * 2, now, None), Ok(false));
    assert!(lock.held(now + TTL, None).is_some());
}

#[test]
fn a_request_that_comes_again_gets_what_it_got_until_that_is_over() {
    let (mut lock, now) = (L::default(), Instant::now());
    let first = named(1, "a", "x");
    let token = take(&mut lock, &first, now, None);
    let again = |lock: &mut L, request: &Request| lock.acquire(request, None, now, None, MOST);
    assert!(
        matches!(again(&mut lock, &named(2, "a", "x")), Turn::Again(lease) if lease.token == token)
    );
    for other in [named(3, "a", "y"), named(4, "b", "x"), request(1)] {
        assert!(matches!(again(&mut lock, &other), Turn::Held(..)));
    }
    lock.release(token, now, None).unwrap();
    assert_eq!(again(&mut lock, &named(5, "a", "x")), Turn::Lost);
    assert!(matches!(
        again(&mut lock, &named(6, "a", "z")),
        Turn::Granted(_)
    ));
}

#[test]
fn a_request_that_comes_again_after_others_had_the_lock_gets_no_second_lease() {
    let (mut lock, now) = (L::default(), Instant::now());
    let token = take(&mut lock, &named(1, "a", "x"), now, None);
    lock.release(token, now, None).unwrap();
    for n in 0..REMEMBERED as u64 {
        let token = take(&mut lock, &named(2, "b", &n.to_string()), now, None);
        lock.release(token, now, None).unwrap();
    }
    let again = named(3, "a", "x");
    assert_eq!(lock.acquire(&again, None, now, None, MOST), Turn::Lost);
    let other = named(4, "b", "x");
    take(&mut lock, &other, now, None);
}

#[test]
fn a_grant_that_failed_may_be_asked_for_again_and_one_that_was_told_lasts() {
    let (mut lock, now) = (L::default(), Instant::now());
    let request = named(1, "a", "x");
    let granted = |turn| match turn {
        Turn::Granted(lease) | Turn::Resumed(lease) | Turn::Again(lease) => lease.token,
        other => panic!("{other:?}"),
    };
    let first = granted(lock.acquire(&request, None, now, None, MOST));
    let coming = lock.acquire(&request, None, now, None, MOST);
    assert_eq!(coming, Turn::Coming, "it is being given");
    // Whoever asked has left, and asks again; its drain fails as well.
    assert_eq!(lock.abandon(first, now), None);
    assert_eq!(
        granted(lock.acquire(&request, None, now, None, MOST)),
        first
    );
    assert_eq!(lock.burn(first), Some(vec![]));
    let second = granted(lock.acquire(&request, None, now, None, MOST));
    assert_eq!(second, t(2), "a token of its own");
    assert_eq!(lock.granted(second, now), Ok(true));
    assert_eq!(
        granted(lock.acquire(&request, None, now, None, MOST)),
        second
    );
    assert_eq!(lock.burn(second), None);
    assert!(lock.held(now, None).is_some());
}

#[test]
fn a_mark_from_elsewhere_takes_nobodys_turn_away() {
    let (mut lock, now) = (L::default(), Instant::now());
    let Turn::Granted(lease) = lock.acquire(&request(1), None, now, None, MOST) else {
        panic!()
    };
    assert!(matches!(wait(&mut lock, 2, now), Turn::Held(..)));
    let looks = lock.acquire(&request(2), Some(&2), now, Some(t(50)), MOST);
    assert!(matches!(looks, Turn::Held(..)), "{looks:?}");
    let lease = lock.overtaken(lease.token, Some(t(50))).unwrap().unwrap();
    assert_eq!(lease.token, t(51));
    assert_eq!(lock.granted(t(51), now), Ok(true));
    assert_eq!(
        lock.overtaken(t(51), Some(t(60))),
        Err(Lost),
        "it was told of"
    );
    assert!(lock.held(now, Some(t(60))).is_none());
}

#[test]
fn whoever_guesses_the_token_that_is_being_granted_takes_nothing_away() {
    let (mut lock, now) = (L::default(), Instant::now());
    let Turn::Granted(lease) = lock.acquire(&request(1), None, now, None, MOST) else {
        panic!()
    };
    assert_eq!(lock.held(now, None), None, "nobody was told of it");
    assert_eq!(lock.taken(now, None), Some(&lease));
    assert_eq!(lock.renew(lease.token, TTL, now, None), Err(Lost));
    assert_eq!(lock.release(lease.token, now, None), Err(Lost));
    assert_eq!(lock.granted(lease.token, now), Ok(true));
    assert_eq!(lock.release(lease.token, now, None), Ok(vec![]));
}

#[test]
fn the_time_of_a_lease_begins_when_its_reply_has_gone_out() {
    let (mut lock, now) = (L::default(), Instant::now());
    let token = take(&mut lock, &request(1), now, None);
    assert!(lock.delivered(token, now + TTL / 2, None));
    assert!(lock.held(now + TTL, None).is_some());
    assert!(!lock.delivered(token, now + TTL * 2, None), "too late");
    assert!(lock.held(now + TTL * 2, None).is_none());
}

#[test]
fn whoever_leaves_in_the_midst_of_a_grant_frees_the_lock_unless_it_may_ask_again() {
    let (mut lock, now) = (L::default(), Instant::now());
    let Turn::Granted(lease) = lock.acquire(&request(1), None, now, None, MOST) else {
        panic!()
    };
    wait(&mut lock, 2, now);
    assert_eq!(lock.abandon(lease.token, now), Some(vec![2]));
    assert_eq!(lock.granted(lease.token, now), Err(Lost));
    assert!(matches!(wait(&mut lock, 2, now), Turn::Granted(_)));
    let mut lock = L::default();
    let Turn::Granted(lease) = lock.acquire(&named(1, "a", "x"), None, now, None, MOST) else {
        panic!()
    };
    assert_eq!(lock.abandon(lease.token, now), None);
    assert!(lock.held(now, None).is_some());
    assert!(lock.held(now + TTL, None).is_none());
}

#[test]
fn an_exhausted_counter_goes_on_in_the_next_epoch() {
    let (mut lock, now) = (L::default(), Instant::now());
    let token = take(&mut lock, &request(1), now, Token::new(7, u64::MAX));
    assert_eq!(token, Token::new(8, 1).unwrap());
    let mut lock = L::default();
    let last = Token::new(u64::MAX, u64::MAX);
    assert_eq!(
        lock.acquire(&request(1), None, now, last, MOST),
        Turn::Exhausted
    );
}
