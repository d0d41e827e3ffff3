//! A lease: whose it is, by which token, and how far it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Request;
use crate::Token;
use crate::fault::{self, Fault};

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

    pub(super) fn answers(&self, request: &Request) -> bool {
        self.id.is_some() && self.id == request.id && self.holder == request.holder
    }
}

/// The token after the newest one: the next counter, or the next epoch where there is none.
pub(super) fn next(newest: Option<Token>) -> Option<Token> {
    let newest = newest.unwrap_or(Token::NONE);
    match newest.counter().checked_add(1) {
        Some(counter) => Token::new(newest.epoch(), counter),
        None => Token::new(newest.epoch().checked_add(1)?, 1),
    }
}
