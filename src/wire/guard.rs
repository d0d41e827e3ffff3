//! The judge of a client's HTTP/1 byte stream. Pure: it is shown bytes, and says which may pass.
//!
//! It is stricter than RFC 9112 wherever the RFC lets a recipient repair a message, because two
//! hops that repair differently see different requests. A head passes whole or not at all; a body
//! passes as it comes, its framing line by line.

use super::chunked::Chunks;
use super::head::{Framing, HeadScan};
use super::{HeadLimits, Violation};

/// What may be done with the bytes that were shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// So many bytes at the front may be handed on. They must not be shown again.
    pub pass: usize,
    /// What comes after them.
    pub next: Next,
}

/// What comes after the bytes that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Judging the rest takes more bytes: they are to be kept, and shown again with what follows.
    More,
    /// A request has ended. The rest is kept back until [`Guard::next_request`] or
    /// [`Guard::tunnel`] says what it is.
    Boundary,
    /// The rest is not HTTP that this gateway serves, and nothing may pass any more.
    Violation(Violation),
}

/// Judges the requests of one connection, one after the other.
///
/// ```
/// use fencegate::wire::{Guard, HeadLimits, Next};
///
/// let mut guard = Guard::new(HeadLimits::default());
/// let bytes = b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /b ";
/// let seen = guard.inspect(bytes);
/// assert_eq!((seen.pass, seen.next), (49, Next::Boundary));
/// guard.next_request();
/// assert_eq!(guard.inspect(&bytes[49..]).next, Next::More);
/// ```
#[derive(Debug)]
pub struct Guard {
    limits: HeadLimits,
    state: State,
}

#[derive(Debug)]
enum State {
    Head(HeadScan),
    Length(u64),
    Chunked(Chunks),
    Boundary,
    Tunnel,
    Broken(Violation),
}

impl Guard {
    /// A guard at the start of a connection.
    #[must_use]
    pub fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            state: State::Head(HeadScan::default()),
        }
    }

    /// Judges `pending`: all bytes that have arrived and have not passed yet, in order. How they
    /// were split over calls changes no verdict, and no byte of a head is searched twice.
    pub fn inspect(&mut self, pending: &[u8]) -> Inspection {
        let mut pass = 0;
        let next = loop {
            let rest = pending.get(pass..).unwrap_or_default();
            match &mut self.state {
                State::Head(scan) => match scan.scan(rest, &self.limits) {
                    Ok(Some(head)) => {
                        pass += head.len;
                        self.state = match head.framing {
                            Framing::Length(0) => State::Boundary,
                            Framing::Length(length) => State::Length(length),
                            Framing::Chunked => State::Chunked(Chunks::default()),
                        };
                    }
                    Ok(None) => break Next::More,
                    Err(violation) => self.state = State::Broken(violation),
                },
                State::Length(left) => {
                    let bytes =
                        usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    pass += bytes;
                    *left -= bytes as u64;
                    if *left > 0 {
                        break Next::More;
                    }
                    self.state = State::Boundary;
                }
                State::Chunked(chunks) => {
                    let scanned = chunks.scan(rest, &self.limits);
                    pass += scanned.pass;
                    match scanned.end {
                        Ok(true) => self.state = State::Boundary,
                        Ok(false) => break Next::More,
                        Err(violation) => self.state = State::Broken(violation),
                    }
                }
                State::Boundary => break Next::Boundary,
                State::Tunnel => {
                    pass = pending.len();
                    break Next::More;
                }
                State::Broken(violation) => break Next::Violation(*violation),
            }
        };
        Inspection { pass, next }
    }

    /// How many bytes of a body are still to come whose length was given: whatever they are, they may pass.
    #[must_use]
    pub const fn body_left(&self) -> u64 {
        match self.state {
            State::Length(left) => left,
            _ => 0,
        }
    }

    /// So many of [`Self::body_left`] have passed without being shown.
    pub fn pass_body(&mut self, bytes: u64) {
        if let State::Length(left) = &mut self.state {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                self.state = State::Boundary;
            }
        }
    }

    /// What follows the request that has ended is another one. It does nothing elsewhere than at a
    /// boundary.
    pub fn next_request(&mut self) {
        if matches!(self.state, State::Boundary) {
            self.state = State::Head(HeadScan::default());
        }
    }

    /// What follows the request that has ended is another protocol (RFC 9110, section 7.8), and
    /// passes as it is. It does nothing elsewhere than at a boundary.
    pub fn tunnel(&mut self) {
        if matches!(self.state, State::Boundary) {
            self.state = State::Tunnel;
        }
    }

    /// Whether the stream stands before the end of a head, or before its beginning.
    #[must_use]
    pub fn in_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Whether a request has begun in `pending`; the empty line that may precede one is none.
    #[must_use]
    pub fn head_started(&self, pending: &[u8]) -> bool {
        matches!(self.state, State::Head(_)) && HeadScan::started(pending)
    }

    /// Whether the request whose head has passed has been seen to its end.
    #[must_use]
    pub fn body_complete(&self) -> bool {
        matches!(self.state, State::Head(_) | State::Boundary | State::Tunnel)
    }
}
