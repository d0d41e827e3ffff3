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

mod lease;
mod memory;
mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::lease::next;
pub use self::lease::{Lease, Term};
use self::memory::Memory;
use self::queue::{Full, Queue};
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

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The lock is its own, once the lease is durable and fenced: then [`Lock::granted`].
    Granted(Lease),
    /// It has come before, and that one left before it was told of its lease: as granted, but for
    /// what has been done of it.
    Resumed(Lease),
    /// It has come before, and this is what it got; it is to be made sure of as the first was.
    Again(Lease),
    /// It has come before, and that one is being given the lease: to be asked again once it is
    /// known what came of it.
    Coming,
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
    /// Requests whose leases are over.
    past: Memory,
    queue: Queue<W>,
}

impl<W> Default for Lock<W> {
    fn default() -> Self {
        Self {
            issued: None,
            version: 0,
            lease: None,
            past: Memory::default(),
            queue: Queue::default(),
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
            queue: Queue::default(),
        }
    }

    /// Which requests are remembered beside that of the newest lease.
    pub fn past(&self) -> impl Iterator<Item = u64> {
        self.past.iter()
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
    /// takes `most` at most. Whoever is refused [leaves](Self::leave): it may have been the first.
    pub fn acquire(
        &mut self,
        request: &Request,
        waker: Option<&W>,
        now: Instant,
        mark: Option<Token>,
        most: usize,
    ) -> Turn {
        self.expire(now, mark);
        let mut given = self.lease.iter().filter(|lease| lease.answers(request));
        if let Some(lease) = given.next().cloned() {
            if lease.term == Term::Ended {
                return Turn::Lost;
            }
            // It is nobody else's turn before that is over.
            self.leave(request.waiter);
            return match lease.term {
                Term::Granting => Turn::Coming,
                _ if lease.told => Turn::Again(lease),
                _ => self.take_over(lease),
            };
        }
        if self.past.has(request) {
            return Turn::Lost;
        }
        let taken = self.taken(now, mark);
        if taken.is_none() && self.queue.lets(request.waiter) {
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
        let joined = waker.map(|waker| self.queue.join(request.waiter, waker, most));
        if let Some(Err(Full)) = joined {
            return Turn::Busy;
        }
        turn
    }

    /// Whoever was being given the lease has left, and its request has come again: it is given to
    /// that one, as if it were the first.
    fn take_over(&mut self, mut lease: Lease) -> Turn {
        lease.term = Term::Granting;
        self.lease = Some(lease.clone());
        Turn::Resumed(lease)
    }

    fn grant(&mut self, request: &Request, mark: Option<Token>) -> Turn {
        let newest = match fault::planted(Fault::RepeatTokens) {
            true => mark,
            false => self.issued.max(mark),
        };
        let Some(token) = next(newest) else {
            return Turn::Exhausted;
        };
        self.queue.leave(request.waiter);
        if let Some(before) = &self.lease {
            self.past.remember(before);
        }
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
        match self.queue.leave(waiter) {
            true => self.next_in_line(),
            false => Vec::new(),
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
        self.queue.wakers()
    }

    /// Who is to look first.
    #[must_use]
    pub fn next_in_line(&self) -> Vec<W> {
        self.queue.first().cloned().into_iter().collect()
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

#[cfg(test)]
mod tests;
