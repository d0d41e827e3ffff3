//! A lock: who has the lease, and who is next. A pure state machine, as the lane is.
//!
//! It has no clock and no I/O: it is told the time, and the mark of its key, with every call. `W` is
//! how somebody in the queue is woken.
//!
//! ```text
//! free --acquire--> being granted --granted--> held until --release, expiry, a newer mark--> free
//!                        |
//!                        +--burn, abandon--> free
//! ```
//!
//! What must always hold:
//! - there is one lease at most, and its token is above every one that was issued before;
//! - whoever waits is served in the order in which they came, whatever marks come from elsewhere;
//! - a request that comes again never gets a second lease, as long as it is remembered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Token;
use crate::fault::{self, Fault};

/// Names one who acquires.
pub type Waiter = u64;

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who it is in the queue.
    pub waiter: Waiter,
    /// The name under which the lock is held.
    pub holder: Arc<str>,
    /// How the same request is known when it comes again.
    pub id: Option<Arc<str>>,
    /// How long the lease lasts without a renewal.
    pub ttl: Duration,
}

/// How many requests are remembered, beside that of the newest lease.
const REMEMBERED: usize = 16;

/// How far a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// It is being made durable, and older writes drain: its time has not begun.
    Granting,
    /// It is held until then.
    Until(Instant),
    /// It was released, has expired, or was lost.
    Ended,
}

/// A lease, the newest of its lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its token.
    pub token: Token,
    /// Who has it.
    pub holder: Arc<str>,
    /// The request that it answers.
    pub id: Option<Arc<str>>,
    /// How long it lasts.
    pub ttl: Duration,
    /// How far it is.
    pub term: Term,
    /// Whether somebody may have been told of it.
    pub told: bool,
}

impl Lease {
    /// Whether somebody may hold the lock by it.
    #[must_use]
    pub fn is_live(&self, now: Instant, mark: Option<Token>) -> bool {
        let timely = match self.term {
            // A mark that overtakes it gives it a newer token, and takes nobody's turn away.
            Term::Granting => return true,
            Term::Until(until) if fault::planted(Fault::ExpireEarly) => now + self.ttl / 2 < until,
            Term::Until(until) => now < until,
            Term::Ended => false,
        };
        timely && mark.is_none_or(|mark| mark <= self.token)
    }

    fn answers(&self, request: &Request) -> bool {
        self.id.is_some() && self.id == request.id && self.holder == request.holder
    }
}

/// What is remembered of a request: FNV-1a over its holder and its id, the same in every process.
fn fingerprint(holder: &str, id: &str) -> u64 {
    // Neither has a line break in it.
    let bytes = holder.bytes().chain(*b"\n").chain(id.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[derive(Clone, Debug)]
struct Waiting<W> {
    waiter: Waiter,
    waker: W,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The lock is its own, once the lease is durable and fenced: then [`Lock::granted`].
    Granted(Lease),
    /// It has come before, and this is what it got; it is to be made sure of as the first was.
    Again(Lease),
    /// It has come before, and what it got is over.
    Lost,
    /// Somebody else has it, until then as far as is known; `None` in the midst of a grant.
    Held(Arc<str>, Option<Instant>),
    /// It is free, and others come first.
    Queued,
    /// Too many wait.
    Busy,
    /// There is no token above the last one.
    Exhausted,
}

/// The lease with this token is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// A lock.
#[derive(Clone, Debug)]
pub struct Lock<W> {
    /// The last token that was issued.
    issued: Option<Token>,
    /// How often it has changed in a way that is kept.
    version: u64,
    lease: Option<Lease>,
    /// Requests whose leases are over, the newest last.
    past: VecDeque<u64>,
    queue: VecDeque<Waiting<W>>,
}

impl<W> Default for Lock<W> {
    fn default() -> Self {
        Self {
            issued: None,
            version: 0,
            lease: None,
            past: VecDeque::new(),
            queue: VecDeque::new(),
        }
    }
}

impl<W: Clone> Lock<W> {
    /// A lock as it was kept: the last token, the newest lease, which requests of before are
    /// remembered, and how often it had changed.
    #[must_use]
    pub fn kept(issued: Token, lease: Option<Lease>, past: Vec<u64>, version: u64) -> Self {
        Self {
            issued: Some(issued),
            version,
            lease,
            past: past.into(),
            queue: VecDeque::new(),
        }
    }

    /// Which requests are remembered beside that of the newest lease.
    pub fn past(&self) -> impl Iterator<Item = u64> {
        self.past.iter().copied()
    }

    /// The last token that was issued.
    #[must_use]
    pub const fn issued(&self) -> Option<Token> {
        self.issued
    }

    /// How often it has changed in a way that is to be kept.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The newest lease, live or ended.
    #[must_use]
    pub const fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// The lease by which the lock is nobody else's: it is held, or being granted.
    #[must_use]
    pub fn taken(&self, now: Instant, mark: Option<Token>) -> Option<&Lease> {
        self.lease.as_ref().filter(|lease| lease.is_live(now, mark))
    }

    /// The lease by which the lock is held. Nobody holds it by one that is still being granted.
    #[must_use]
    pub fn held(&self, now: Instant, mark: Option<Token>) -> Option<&Lease> {
        let given =
            |lease: &&Lease| lease.term != Term::Granting || fault::planted(Fault::ShowUngranted);
        self.taken(now, mark).filter(given)
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Asks for the lock, or looks again. With a waker it waits in the queue where it has to, which
    /// takes `most` at most.
    pub fn acquire(
        &mut self,
        request: &Request,
        waker: Option<&W>,
        now: Instant,
        mark: Option<Token>,
        most: usize,
    ) -> Turn {
        self.expire(now, mark);
        if let Some(lease) = self.lease.as_ref().filter(|lease| lease.answers(request)) {
            let turn = match lease.term {
                Term::Ended => Turn::Lost,
                Term::Granting | Term::Until(_) => Turn::Again(lease.clone()),
            };
            self.leave(request.waiter);
            return turn;
        }
        if self.has_ended(request) {
            self.leave(request.waiter);
            return Turn::Lost;
        }
        let taken = self.taken(now, mark);
        let first = self
            .queue
            .front()
            .is_none_or(|first| first.waiter == request.waiter);
        if taken.is_none() && first {
            return self.grant(request, mark);
        }
        let turn = match taken {
            Some(Lease { holder, term, .. }) => {
                let until = match term {
                    Term::Until(until) => Some(*until),
                    Term::Granting | Term::Ended => None,
                };
                Turn::Held(Arc::clone(holder), until)
            }
            None => Turn::Queued,
        };
        if let Some(waker) = waker {
            let full = self.queue.len() >= most;
            let found = self
                .queue
                .iter_mut()
                .find(|one| one.waiter == request.waiter);
            match found {
                Some(waiting) => waiting.waker = waker.clone(),
                None if full => return Turn::Busy,
                None => self.queue.push_back(Waiting {
                    waiter: request.waiter,
                    waker: waker.clone(),
                }),
            }
        }
        turn
    }

    fn grant(&mut self, request: &Request, mark: Option<Token>) -> Turn {
        let newest = match fault::planted(Fault::RepeatTokens) {
            true => mark,
            false => self.issued.max(mark),
        };
        let Some(token) = next(newest) else {
            self.leave(request.waiter);
            return Turn::Exhausted;
        };
        self.queue.retain(|one| one.waiter != request.waiter);
        self.remember();
        let lease = Lease {
            token,
            holder: Arc::clone(&request.holder),
            id: request.id.clone(),
            ttl: request.ttl,
            term: Term::Granting,
            told: false,
        };
        self.issued = Some(token);
        self.lease = Some(lease.clone());
        self.version += 1;
        Turn::Granted(lease)
    }

    /// Another lease takes the place of the newest one, whose request may come again.
    fn remember(&mut self) {
        let Some(lease) = &self.lease else { return };
        let Some(id) = &lease.id else { return };
        self.past.push_back(fingerprint(&lease.holder, id));
        if self.past.len() > REMEMBERED {
            self.past.pop_front();
        }
    }

    fn has_ended(&self, request: &Request) -> bool {
        let known = |id: &Arc<str>| self.past.contains(&fingerprint(&request.holder, id));
        request.id.as_ref().is_some_and(known)
    }

    /// A mark came above the lease with this token while it was being granted: it goes on with a
    /// token above that mark. `None`: there is none.
    ///
    /// # Errors
    ///
    /// It is no more, or somebody was told of it.
    pub fn overtaken(&mut self, token: Token, mark: Option<Token>) -> Result<Option<Lease>, Lost> {
        let newest = self.issued.max(mark);
        let lease = self.of(token)?;
        if lease.term != Term::Granting {
            return Err(Lost);
        }
        let Some(token) = next(newest) else {
            return Ok(None);
        };
        lease.token = token;
        let lease = lease.clone();
        self.issued = Some(token);
        self.version += 1;
        Ok(Some(lease))
    }

    /// The lease with this token is durable and fenced, and about to be told of: its time begins.
    /// Gives whether nobody was told of it before.
    ///
    /// # Errors
    ///
    /// It is no more.
    pub fn granted(&mut self, token: Token, now: Instant) -> Result<bool, Lost> {
        let lease = self.of(token)?;
        lease.term = Term::Until(now + lease.ttl);
        Ok(!std::mem::replace(&mut lease.told, true))
    }

    /// The reply that tells of the lease with this token has gone out: its time begins only now.
    /// Gives whether it still lasts.
    pub fn delivered(&mut self, token: Token, now: Instant, mark: Option<Token>) -> bool {
        self.expire(now, mark);
        let Ok(lease) = self.of(token) else {
            return false;
        };
        lease.term = Term::Until(now + lease.ttl);
        true
    }

    /// The lease with this token can't be given. Gives whom to wake; `None` where it was over
    /// before, or goes on: one that somebody was told of lasts for its time.
    pub fn burn(&mut self, token: Token) -> Option<Vec<W>> {
        let lease = self.of(token).ok().filter(|lease| !lease.told)?;
        // Whoever asks again was given nothing, and is not to be told that it was lost.
        lease.id = None;
        self.end(token)
    }

    /// The lease with this token is over. Gives whom to wake; `None` where it was before.
    pub fn end(&mut self, token: Token) -> Option<Vec<W>> {
        self.of(token).ok()?.term = Term::Ended;
        self.version += 1;
        Some(self.next_in_line())
    }

    /// Whoever asked for the lease with this token has left before it was told. One that may ask
    /// again keeps it for its time; any other's is over. Gives whom to wake; `None` where it goes on.
    pub fn abandon(&mut self, token: Token, now: Instant) -> Option<Vec<W>> {
        let lease = self.of(token).ok()?;
        if lease.id.is_none() {
            return self.end(token);
        }
        if lease.term == Term::Granting {
            lease.term = Term::Until(now + lease.ttl);
        }
        None
    }

    /// Lets the lease with this token last until `ttl` from now. Gives whether that is longer than
    /// it ever was to last, and so has to be kept first: call it again then.
    ///
    /// # Errors
    ///
    /// The lease is no more.
    pub fn renew(
        &mut self,
        token: Token,
        ttl: Duration,
        now: Instant,
        mark: Option<Token>,
    ) -> Result<bool, Lost> {
        self.expire(now, mark);
        let lease = self.given(token)?;
        if ttl > lease.ttl {
            lease.ttl = ttl;
            self.version += 1;
            return Ok(true);
        }
        lease.term = Term::Until(now + ttl);
        Ok(false)
    }

    /// Gives the lease with this token back. Gives whom to wake.
    ///
    /// # Errors
    ///
    /// The lease is no more.
    pub fn release(
        &mut self,
        token: Token,
        now: Instant,
        mark: Option<Token>,
    ) -> Result<Vec<W>, Lost> {
        self.expire(now, mark);
        self.given(token)?;
        self.end(token).ok_or(Lost)
    }

    /// Whoever waited does so no more. Gives whom to wake.
    pub fn leave(&mut self, waiter: Waiter) -> Vec<W> {
        let before = self.queue.len();
        self.queue.retain(|one| one.waiter != waiter);
        match self.queue.len() == before {
            true => Vec::new(),
            false => self.next_in_line(),
        }
    }

    /// Ends a lease whose time is over, or above whose token there is a mark. `true` where it has.
    pub fn expire(&mut self, now: Instant, mark: Option<Token>) -> bool {
        match &mut self.lease {
            Some(lease) if lease.term != Term::Ended && !lease.is_live(now, mark) => {
                lease.term = Term::Ended;
                self.version += 1;
                true
            }
            _ => false,
        }
    }

    /// Everybody who waits.
    pub fn wakers(&self) -> impl Iterator<Item = &W> {
        self.queue.iter().map(|one| &one.waker)
    }

    /// Who is to look first.
    #[must_use]
    pub fn next_in_line(&self) -> Vec<W> {
        let first = self.queue.front();
        first.map(|first| first.waker.clone()).into_iter().collect()
    }

    /// The lease with this token, where somebody may have it: of one that is being granted nobody
    /// has been told, so whoever comes with its token has guessed it.
    fn given(&mut self, token: Token) -> Result<&mut Lease, Lost> {
        let lease = self.of(token)?;
        match lease.term {
            Term::Granting => Err(Lost),
            Term::Until(_) | Term::Ended => Ok(lease),
        }
    }

    /// The lease with this token, where it has not ended.
    fn of(&mut self, token: Token) -> Result<&mut Lease, Lost> {
        let lease = self.lease.as_mut();
        lease
            .filter(|lease| lease.token == token && lease.term != Term::Ended)
            .ok_or(Lost)
    }
}

/// The token after the newest one: the next counter, or the next epoch where there is none.
fn next(newest: Option<Token>) -> Option<Token> {
    let newest = newest.unwrap_or(Token::NONE);
    match newest.counter().checked_add(1) {
        Some(counter) => Token::new(newest.epoch(), counter),
        None => Token::new(newest.epoch().checked_add(1)?, 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            Turn::Granted(lease) | Turn::Again(lease) => lease.token,
            other => panic!("{other:?}"),
        };
        let first = granted(lock.acquire(&request, None, now, None, MOST));
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
                            Turn::Again(_) | Turn::Lost | Turn::Exhausted => prop_assert!(false),
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
}
