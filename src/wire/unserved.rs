//! Which streams of an HTTP/2 connection nobody serves yet, and what the codec tells them instead.
//!
//! The codec refuses by itself what breaks a rule of HTTP/2, or a limit, and says so to the client
//! alone. What it writes tells of it: a stream that ends before anybody served it was refused, and a
//! GOAWAY with an error ends them all.

use std::mem;
use std::sync::{Mutex, PoisonError};

use fencegate_filters::Reason;

use super::frames::{GOAWAY, HEADERS, Head, RST_STREAM};

const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The most streams that are known not to be served. The codec has room for fewer.
const MOST: usize = 1024;

/// A stream, or a connection, that the codec has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The stream; `None`: the connection.
    pub stream: Option<u32>,
    /// The error code that the client was told; `None`: an answer with status 431.
    pub code: Option<u32>,
}

impl Refused {
    /// What HTTP/1 would have called it.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self.code {
            None => Reason::HeadersTooLarge,
            Some(REFUSED_STREAM | ENHANCE_YOUR_CALM) => Reason::Busy,
            Some(_) => Reason::BadRequest,
        }
    }

    /// One sentence for the log.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        match (self.stream, self.code) {
            (_, None) => "The fields are larger than the codec takes.",
            (_, Some(REFUSED_STREAM)) => {
                "The connection has as many requests as it may have; this one may be sent again."
            }
            (Some(_), Some(_)) => "The request breaks a rule of HTTP/2, so its stream was reset.",
            (None, Some(ENHANCE_YOUR_CALM)) => {
                "The client makes more trouble than sense, so its connection was ended."
            }
            (None, Some(_)) => "The client broke a rule of HTTP/2, so its connection was ended.",
        }
    }
}

/// The streams of a connection that have begun and that nobody serves yet.
#[derive(Debug, Default)]
pub struct Unserved(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The newest stream that has begun.
    newest: u32,
    waiting: Vec<u32>,
    refused: Vec<Refused>,
}

impl Unserved {
    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A header block of this stream has begun to come: a request, or trailers.
    pub(super) fn began(&self, stream: u32) {
        self.with(|inner| {
            if stream > inner.newest && inner.waiting.len() < MOST {
                inner.newest = stream;
                inner.waiting.push(stream);
            }
        });
    }

    /// Somebody serves it, and writes its access line.
    pub(crate) fn served(&self, stream: u32) {
        self.with(|inner| inner.forget(stream));
    }

    /// What was refused since the last time.
    pub(crate) fn take_refused(&self) -> Vec<Refused> {
        self.with(|inner| mem::take(&mut inner.refused))
    }

    fn ended(&self, stream: u32, code: Option<u32>) {
        self.with(|inner| {
            if inner.forget(stream) {
                let stream = Some(stream);
                inner.refused.push(Refused { stream, code });
            }
        });
    }

    fn went_away(&self, code: u32) {
        if code != NO_ERROR {
            let (stream, code) = (None, Some(code));
            self.with(|inner| inner.refused.push(Refused { stream, code }));
        }
    }
}

impl Inner {
    /// Whether it was unserved.
    fn forget(&mut self, stream: u32) -> bool {
        let place = self.waiting.iter().position(|waiting| *waiting == stream);
        place.map(|place| self.waiting.remove(place)).is_some()
    }
}

/// Reads the verdicts among the frames that the codec writes.
#[derive(Debug)]
pub(super) struct Verdicts {
    /// The frame whose payload comes, and what of it has come.
    kind: u8,
    stream: u32,
    payload: [u8; 8],
    have: usize,
    calm: bool,
}

impl Verdicts {
    pub(super) const fn new() -> Self {
        Self {
            kind: u8::MAX,
            stream: 0,
            payload: [0; 8],
            have: 0,
            calm: false,
        }
    }

    /// Whether the client was told that it makes too much trouble.
    pub(super) const fn told_to_calm_down(&self) -> bool {
        self.calm
    }

    /// A frame begins.
    pub(super) fn head(&mut self, head: Head, unserved: &Unserved) {
        (self.kind, self.stream, self.have) = (head.kind, head.stream, 0);
        if head.kind == HEADERS {
            // Whoever serves a stream was known before.
            unserved.ended(head.stream, None);
        }
    }

    /// Of its payload.
    pub(super) fn payload(&mut self, bytes: &[u8], unserved: &Unserved) {
        let whole = match self.kind {
            RST_STREAM => 4,
            GOAWAY => 8,
            _ => return,
        };
        for byte in bytes {
            if self.have == whole {
                break;
            }
            if let Some(place) = self.payload.get_mut(self.have) {
                *place = *byte;
            }
            self.have += 1;
        }
        if self.have < whole {
            return;
        }
        let [a, b, c, d, e, f, g, h] = self.payload;
        match self.kind {
            RST_STREAM => unserved.ended(self.stream, Some(u32::from_be_bytes([a, b, c, d]))),
            _ => {
                let code = u32::from_be_bytes([e, f, g, h]);
                self.calm |= code == ENHANCE_YOUR_CALM;
                unserved.went_away(code);
            }
        }
        self.kind = u8::MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Scan;
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        let mut frame = vec![0, 0, length, kind, 0];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn refused(written: &[u8], size: usize) -> Vec<Refused> {
        let unserved = Unserved::default();
        for stream in [1, 3, 5, 7, 7, 3] {
            unserved.began(stream);
        }
        unserved.served(3);
        let (mut scan, mut verdicts) = (Scan::new(), Verdicts::new());
        for bytes in written.chunks(size) {
            let mut rest = bytes;
            while let Some((head, after)) = scan.next(rest) {
                match head {
                    Some(head) => verdicts.head(head, &unserved),
                    None => verdicts.payload(&rest[..rest.len() - after.len()], &unserved),
                }
                rest = after;
            }
        }
        unserved.take_refused()
    }

    #[test]
    fn whatever_ends_before_it_is_served_was_refused() {
        let mut written = frame(RST_STREAM, 1, &[0, 0, 0, 1]);
        written.extend(frame(HEADERS, 3, &[0x88]));
        written.extend(frame(RST_STREAM, 3, &[0, 0, 0, 8]));
        written.extend(frame(HEADERS, 7, &[0x88]));
        written.extend(frame(RST_STREAM, 7, &[0, 0, 0, 1]));
        written.extend(frame(GOAWAY, 0, &[0, 0, 0, 7, 0, 0, 0, 0]));
        written.extend(frame(
            GOAWAY,
            0,
            &[0, 0, 0, 7, 0, 0, 0, 9, b'w', b'h', b'y'],
        ));
        let one = |stream, code| Refused { stream, code };
        for size in [1, 2, 5, 9, 13, 1_000] {
            let told = [
                one(Some(1), Some(1)),
                one(Some(7), None),
                one(None, Some(9)),
            ];
            assert_eq!(refused(&written, size), told, "in pieces of {size}");
        }
    }
}
