//! Counts what an HTTP/2 client sends that carries no request, and says when it is a flood.
//!
//! The codec bounds what it keeps for such frames; what they cost to read, and to answer, it does
//! not count. Frames are told apart by their heads alone; the codec judges everything else.
//!
//! An allowance is spent by overhead and earned by work: whoever uploads, downloads or makes
//! requests may send the `WINDOW_UPDATE`, `PING` and `SETTINGS` that go with it, and whoever only
//! idles gets a few each second. Cancelled requests have an allowance of their own, since each has
//! cost an upstream something.

use std::time::Duration;

use tokio::time::Instant;

use super::Unserved;
use super::frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Head, RST_STREAM, Scan};

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The last type that the standard defines; all above are extensions.
const LAST_KNOWN: u8 = CONTINUATION;

/// Frames of overhead that may come at once, and each second when nothing else does.
const OVERHEAD: Rate = Rate {
    most: 1_000,
    per_second: 20,
};
/// Requests that may be cancelled at once, and each second; at once as many as may be under way, if
/// that is more. Who gives up on everything is no attacker.
const RESETS: Rate = Rate {
    most: 100,
    per_second: 50,
};

/// The client sends far more than its requests need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Frames that carry nothing.
    Overhead,
    /// Requests that are cancelled as soon as they are made.
    Resets,
    /// More of bodies than there is room for.
    Bodies,
}

impl Flood {
    /// As logs say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overhead => "frames that carry nothing",
            Self::Resets => "requests that are cancelled",
            Self::Bodies => "bodies beyond their windows",
        }
    }
}

/// Counts both ways of one connection.
#[derive(Debug)]
pub struct Meter {
    /// Bytes of the preface that are still to come.
    preface: usize,
    read: Scan,
    /// Between a HEADERS frame and the end of its header block.
    in_block: bool,
    /// Frames and header blocks that have come whole.
    whole: u64,
    overhead: Allowance,
    resets: Allowance,
}

impl Meter {
    /// A meter of a connection that begins now, with its preface, and may carry so many requests at
    /// once.
    #[must_use]
    pub fn new(streams: u32, now: Instant) -> Self {
        let resets = Rate {
            most: RESETS.most.max(streams),
            ..RESETS
        };
        Self {
            preface: PREFACE.len(),
            read: Scan::new(),
            in_block: false,
            whole: 0,
            overhead: Allowance::new(OVERHEAD, now),
            resets: Allowance::new(resets, now),
        }
    }

    /// Counts what the client sent, up to the end of the frame with which `turn` is used up; says how
    /// many bytes that were. `now` is asked only where an allowance is used up.
    ///
    /// # Errors
    ///
    /// The flood that it is; what came with it need not be looked at.
    pub fn read(
        &mut self,
        bytes: &[u8],
        turn: &mut TurnLeft,
        unserved: &Unserved,
        now: impl Fn() -> Instant,
    ) -> Result<usize, Flood> {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        let mut rest = bytes.get(skipped..).unwrap_or_default();
        while !(turn.is_over() && self.read.is_between()) {
            let Some((head, after)) = self.read.next(rest) else {
                break;
            };
            rest = after;
            if let Some(head) = head {
                turn.spend(head);
                if head.kind == HEADERS {
                    unserved.began(head.stream);
                }
                self.count(head, &now)?;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    fn count(&mut self, head: Head, now: &impl Fn() -> Instant) -> Result<(), Flood> {
        let ends_block = head.flags & END_HEADERS != 0;
        let overhead = match head.kind {
            DATA if head.length > 0 => {
                self.overhead.earn(1);
                0
            }
            // The end of a body is no overhead, and there is one for each request.
            DATA => u32::from(head.flags & END_STREAM == 0),
            HEADERS => {
                self.in_block = !ends_block;
                self.overhead.earn(4);
                0
            }
            CONTINUATION => {
                self.in_block = !ends_block;
                u32::from(head.length == 0)
            }
            RST_STREAM => {
                self.resets.spend(1, now).ok_or(Flood::Resets)?;
                1
            }
            // Of these the payload is overhead as well.
            kind if kind > LAST_KNOWN => 1 + head.length / 1024,
            _ => 1,
        };
        if !self.in_block {
            self.whole += 1;
        }
        self.overhead.spend(overhead, now).ok_or(Flood::Overhead)
    }

    /// Counts a frame that the client was sent: it may say so much in return.
    pub(super) fn written(&mut self, head: Head) {
        match head.kind {
            // An update of both windows, and a PING that measures the way; and more updates from
            // those who read in small pieces.
            DATA => self.overhead.earn(3 + head.length / 1024),
            HEADERS => {
                self.overhead.earn(2);
                self.resets.earn(1);
            }
            _ => {}
        }
    }

    /// Where a frame, or a header block, has begun and not yet come whole: how many came before it,
    /// so that it can be told from the next. The payload of DATA is watched by whoever reads it.
    #[must_use]
    pub fn unfinished(&self) -> Option<u64> {
        (self.in_block || self.read.is_within()).then_some(self.whole)
    }
}

/// What of a client's frames may still be handled before others have their turn.
#[derive(Clone, Copy, Debug)]
pub struct TurnLeft(u32);

impl TurnLeft {
    /// A turn that begins: some tens of microseconds, whatever it is spent on.
    pub(super) const WHOLE: Self = Self(64);

    /// Whether the turn is over.
    #[must_use]
    pub const fn is_over(self) -> bool {
        self.0 == 0
    }

    /// A header block takes its time to decode, by its length, and may begin a request.
    const fn spend(&mut self, head: Head) {
        let cost = match head.kind {
            HEADERS | CONTINUATION => 4 + head.length / 256,
            _ => 1,
        };
        self.0 = self.0.saturating_sub(cost);
    }
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    most: u32,
    per_second: u32,
}

/// What may still be spent.
#[derive(Debug)]
struct Allowance {
    rate: Rate,
    left: u32,
    /// Until when time has been turned into allowance.
    since: Instant,
}

impl Allowance {
    const fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            left: rate.most,
            since: now,
        }
    }

    fn earn(&mut self, amount: u32) {
        self.left = self.left.saturating_add(amount).min(self.rate.most);
    }

    /// `None` where there is too little left.
    fn spend(&mut self, amount: u32, now: &impl Fn() -> Instant) -> Option<()> {
        if self.left < amount {
            let now = now();
            let seconds = now.saturating_duration_since(self.since).as_secs();
            let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
            self.earn(seconds.saturating_mul(self.rate.per_second));
            self.since += Duration::from_secs(u64::from(seconds));
        }
        self.left = self.left.checked_sub(amount)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::HEAD_BYTES;
    use super::*;

    const STREAMS: u32 = 150;
    const PING: u8 = 6;
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + payload, 0);
        frame
    }

    fn head(kind: u8, length: u32) -> Head {
        Head {
            length,
            kind,
            flags: 0,
            stream: 1,
        }
    }

    impl Meter {
        /// Counts all of it, whatever a turn may be.
        fn read_all(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Flood> {
            let mut turn = TurnLeft(u32::MAX);
            let taken = self.read(bytes, &mut turn, &Unserved::default(), now)?;
            assert_eq!(taken, bytes.len());
            Ok(())
        }
    }

    fn meter() -> (Meter, Instant) {
        let now = Instant::now();
        let mut meter = Meter::new(STREAMS, now);
        meter.read_all(PREFACE, || now).unwrap();
        (meter, now)
    }

    /// How many of `frame` are taken before they are a flood.
    fn taken(frame: &[u8]) -> (usize, Flood) {
        let (mut meter, now) = meter();
        let mut count = 0;
        loop {
            if let Err(flood) = meter.read_all(frame, || now) {
                return (count, flood);
            }
            count += 1;
            assert!(count < 100_000, "never a flood");
        }
    }

    #[test]
    fn frames_that_carry_nothing_are_a_flood() {
        for (kind, flags, payload) in [
            (PING, 0, 8),
            (PING, 1, 8),
            (SETTINGS, 0, 0),
            (SETTINGS, 1, 0),
            (WINDOW_UPDATE, 0, 4),
            (2, 0, 5),
            (DATA, 0, 0),
            (CONTINUATION, 0, 0),
            (0xbe, 0, 0),
        ] {
            let frame = frame(kind, flags, payload);
            assert_eq!(taken(&frame), (1_000, Flood::Overhead), "type {kind}");
        }
        let (count, _) = taken(&frame(0xbe, 0, 16_384));
        assert_eq!(count, 1_000 / 17, "the payload of extensions counts");
    }

    #[test]
    fn cancelled_requests_are_a_flood() {
        let mut both = frame(HEADERS, END_HEADERS | END_STREAM, 20);
        both.extend(frame(RST_STREAM, 0, 4));
        assert_eq!(taken(&both), (150, Flood::Resets));
    }

    #[test]
    fn whoever_is_served_may_cancel_as_often() {
        let (mut meter, now) = meter();
        for _ in 0..10_000 {
            meter
                .read_all(&frame(HEADERS, END_HEADERS, 20), || now)
                .unwrap();
            meter.written(head(HEADERS, 20));
            meter.read_all(&frame(RST_STREAM, 0, 4), || now).unwrap();
        }
    }

    #[test]
    fn work_earns_the_overhead_that_goes_with_it() {
        let (mut meter, now) = meter();
        for _ in 0..10_000 {
            meter.written(head(DATA, 100));
            for kind in [WINDOW_UPDATE, WINDOW_UPDATE, PING] {
                meter.read_all(&frame(kind, 0, 4), || now).unwrap();
            }
        }
        for _ in 0..10_000 {
            meter.read_all(&frame(DATA, 0, 1), || now).unwrap();
            meter.read_all(&frame(PING, 0, 8), || now).unwrap();
        }
        for _ in 0..1_000 {
            meter.written(head(DATA, 16_384));
            for _ in 0..19 {
                meter.read_all(&frame(WINDOW_UPDATE, 0, 4), || now).unwrap();
            }
        }
    }

    #[test]
    fn who_idles_may_ping_for_ever() {
        let (mut meter, mut now) = meter();
        for _ in 0..100_000 {
            now += Duration::from_millis(50);
            meter.read_all(&frame(PING, 0, 8), || now).unwrap();
        }
    }

    #[test]
    fn how_the_bytes_are_split_changes_nothing() {
        let mut stream = PREFACE.to_vec();
        for _ in 0..1_000 {
            stream.extend(frame(PING, 0, 8));
        }
        for size in [1, 2, 7, 9, 16, 17, 1_000] {
            let now = Instant::now();
            let mut meter = Meter::new(STREAMS, now);
            for bytes in stream.chunks(size) {
                meter.read_all(bytes, || now).unwrap();
            }
            let last = meter.read_all(&frame(PING, 0, 8), || now);
            assert_eq!(last, Err(Flood::Overhead), "in pieces of {size}");
        }
    }

    #[test]
    fn a_frame_that_has_begun_is_told_from_the_next() {
        let (mut meter, now) = meter();
        assert_eq!(meter.unfinished(), None);
        let block = frame(HEADERS, 0, 3);
        meter.read_all(&block[..4], || now).unwrap();
        assert_eq!(meter.unfinished(), Some(0));
        meter.read_all(&block[4..], || now).unwrap();
        assert_eq!(meter.unfinished(), Some(0), "its block has not ended");
        meter
            .read_all(&frame(CONTINUATION, END_HEADERS, 1), || now)
            .unwrap();
        assert_eq!(meter.unfinished(), None);
        meter.read_all(&frame(PING, 0, 8)[..12], || now).unwrap();
        assert_eq!(meter.unfinished(), Some(2));
        meter.read_all(&[0; 5], || now).unwrap();
        meter.read_all(&frame(DATA, 0, 100)[..50], || now).unwrap();
        assert_eq!(meter.unfinished(), None, "whoever reads a body watches it");
    }

    #[test]
    fn a_turn_ends_with_a_frame() {
        let (mut meter, now) = meter();
        let none = Unserved::default();
        let ping = frame(PING, 0, 8);
        let mut stream = ping.repeat(100);
        let mut turn = TurnLeft::WHOLE;
        let taken = meter.read(&stream, &mut turn, &none, || now).unwrap();
        assert_eq!((taken, turn.is_over()), (64 * ping.len(), true));
        assert_eq!(
            meter.read(&stream[taken..], &mut turn, &none, || now),
            Ok(0)
        );
        let mut turn = TurnLeft::WHOLE;
        let rest = meter
            .read(&stream[taken..], &mut turn, &none, || now)
            .unwrap();
        assert_eq!((taken + rest, turn.is_over()), (stream.len(), false));

        stream = frame(HEADERS, END_HEADERS, 10_000);
        stream.extend(frame(DATA, 0, 5));
        for size in [1, 1_000, 20_000] {
            let mut turn = TurnLeft(40);
            let mut taken = 0;
            for bytes in stream.chunks(size) {
                taken += meter.read(bytes, &mut turn, &none, || now).unwrap();
            }
            assert_eq!(taken, HEAD_BYTES + 10_000, "in pieces of {size}");
            meter.read_all(&frame(DATA, 0, 5), || now).unwrap();
        }
    }
}
