//! The head of a request: request line and header, judged a line at a time as it arrives.

use fencegate_filters::Reason;
use memchr::memchr;

use super::{Violation, field};

/// Far above every registered method.
pub const MAX_METHOD_BYTES: usize = 64;
/// Two spaces, `HTTP/1.1` and CR, around method and target.
const REQUEST_LINE_REST: usize = 11;
/// RFC 9112, section 6.2 sets no upper bound; beyond this no signed counter holds it.
const MAX_LENGTH: u64 = i64::MAX as u64;
/// Those of 2^64.
const MAX_LENGTH_DIGITS: usize = 20;

/// How large a request's head may be.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the whole head: request line, header, and the empty line. Trailers get as many,
    /// counted anew, but never above 16 KiB.
    pub header_bytes: usize,
    /// Header lines. Trailers get as many, counted anew.
    pub header_count: usize,
    /// Bytes of the request target. The codec above takes no more than 65,534.
    pub target_bytes: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self {
            header_bytes: 64 * 1024,
            header_count: 100,
            target_bytes: 32 * 1024,
        }
    }
}

/// How the end of a request's body is known (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// A head that broke no rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) len: usize,
    pub(super) framing: Framing,
}

/// How far the head at the front of the pending bytes has been judged.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadScan {
    /// Where the request line starts: behind the one empty line that may precede it.
    origin: usize,
    /// Everything before it is whole lines that broke no rule.
    judged: usize,
    /// Everything before it was searched for the end of the line.
    searched: usize,
    request_line: bool,
    http_10: bool,
    fields: usize,
    host: bool,
    length: Option<u64>,
    chunked: bool,
}

impl HeadScan {
    /// Goes on with `pending`, which starts where it started the last time. `None` asks for more.
    ///
    /// Limits come before content, and content is judged only once its line is whole, so that the
    /// verdict is the same however the bytes were split. The first byte alone is judged at once: a
    /// TLS or binary client would else wait for a timeout.
    pub(super) fn scan(
        &mut self,
        pending: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<Head>, Violation> {
        if self.judged == 0 {
            match pending {
                [] | [b'\r'] => return Ok(None),
                // RFC 9112, section 2.2: an empty line before the request line is to be ignored.
                [b'\r', b'\n', ..] => (self.origin, self.judged, self.searched) = (2, 2, 2),
                _ => {}
            }
        }
        if !self.request_line
            && pending
                .get(self.origin)
                .is_some_and(|&byte| !field::is_tchar(byte))
        {
            return Err(Violation::bad(
                "The request line does not start with a method.",
            ));
        }
        loop {
            let unsearched = pending.get(self.searched..).unwrap_or_default();
            let Some(lf) = memchr(b'\n', unsearched).map(|at| self.searched + at) else {
                self.searched = pending.len();
                return self
                    .check_size(pending.len(), pending.len() + 1, limits)
                    .map(|()| None);
            };
            let line = pending.get(self.judged..lf).unwrap_or_default();
            self.check_size(lf, lf + 1, limits)?;
            (self.judged, self.searched) = (lf + 1, lf + 1);
            // RFC 9112, section 2.2 lets a recipient take a bare LF for a line end; those who do
            // and those who don't see different requests.
            let line = line
                .strip_suffix(b"\r")
                .ok_or(Violation::bad("A line ends in a bare LF."))?;
            if !self.request_line {
                self.request_line = true;
                self.http_10 = request_line(line, limits)?;
            } else if line.is_empty() {
                let framing = if self.chunked {
                    Framing::Chunked
                } else {
                    Framing::Length(self.length.unwrap_or(0))
                };
                return Ok(Some(Head {
                    len: lf + 1,
                    framing,
                }));
            } else {
                self.field(line, limits)?;
            }
        }
    }

    /// Whether the request has begun, rather than the empty line that may precede it.
    pub(super) fn started(pending: &[u8]) -> bool {
        !matches!(pending, [] | [b'\r'] | [b'\r', b'\n'])
    }

    /// `line_end` is behind the last known byte of the line that began at `self.judged`, and
    /// `head_end` is the least that the head can come to.
    fn check_size(
        &self,
        line_end: usize,
        head_end: usize,
        limits: &HeadLimits,
    ) -> Result<(), Violation> {
        let head_full = head_end - self.origin > limits.header_bytes;
        if self.request_line {
            if head_full {
                return Err(Violation::head(
                    Reason::HeadersTooLarge,
                    "The request's header is too large.",
                ));
            }
        } else if head_full
            || line_end - self.judged
                > limits
                    .target_bytes
                    .saturating_add(MAX_METHOD_BYTES + REQUEST_LINE_REST)
        {
            return Err(Violation::head(Reason::UriTooLong, TARGET_TOO_LONG));
        }
        Ok(())
    }

    fn field(&mut self, line: &[u8], limits: &HeadLimits) -> Result<(), Violation> {
        self.fields += 1;
        if self.fields > limits.header_count {
            return Err(Violation::head(
                Reason::HeadersTooLarge,
                "The request has too many header lines.",
            ));
        }
        let (name, value) = field::split(line)?;
        // The length sorts out almost every other header before a byte is compared.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                // RFC 9112, section 3.2.
                if self.host {
                    return Err(Violation::bad("The request has more than one Host header."));
                }
                self.host = true;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err(Violation::bad(
                        "The request has more than one Content-Length header.",
                    ));
                }
                self.length = Some(content_length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                // RFC 9112, section 6.1: a 1.0 message with it is to be taken as badly framed.
                if self.http_10 {
                    return Err(Violation::bad("HTTP/1.0 has no Transfer-Encoding."));
                }
                if self.chunked {
                    return Err(Violation::bad(
                        "The request has more than one Transfer-Encoding header.",
                    ));
                }
                transfer_encoding(value)?;
                self.chunked = true;
            }
            _ => {}
        }
        // RFC 9112, section 6.1: the two together are an attempt at smuggling.
        if self.chunked && self.length.is_some() {
            return Err(Violation::bad(
                "Content-Length and Transfer-Encoding exclude each other.",
            ));
        }
        Ok(())
    }
}

const TARGET_TOO_LONG: &str = "The request target is too long.";

/// RFC 9112, section 3, without the lenience it allows. Says whether it is HTTP/1.0.
fn request_line(line: &[u8], limits: &HeadLimits) -> Result<bool, Violation> {
    const MALFORMED: Violation =
        Violation::bad("The request line is not METHOD SP target SP HTTP/1.1.");
    let space = line
        .iter()
        .position(|&byte| !field::is_tchar(byte))
        .ok_or(MALFORMED)?;
    let (method, rest) = line.split_at(space);
    let rest = rest.strip_prefix(b" ").ok_or(MALFORMED)?;
    if method.is_empty() || method.len() > MAX_METHOD_BYTES {
        return Err(Violation::bad("The method is empty or too long."));
    }
    let (target, version) = rest.split_last_chunk::<9>().ok_or(MALFORMED)?;
    let http_10 = match version {
        b" HTTP/1.1" => false,
        b" HTTP/1.0" => true,
        _ => {
            return Err(Violation::bad(
                "The request line does not end in HTTP/1.1 or HTTP/1.0.",
            ));
        }
    };
    if target.len() > limits.target_bytes {
        return Err(Violation::head(Reason::UriTooLong, TARGET_TOO_LONG));
    }
    check_target(target)?;
    Ok(http_10)
}

/// What could not be parsed above must not get there: it would be answered without a body there. A
/// fragment is no part of a target (RFC 9112, section 3.2), and hops cut it off or take it for path.
fn check_target(target: &[u8]) -> Result<(), Violation> {
    // Neither has an early exit, so that both compile to vector code.
    let visible = target.iter().fold(true, |all, &byte| {
        all & (byte > 0x20) & (byte < 0x7f) & (byte != b'#')
    });
    let plain = target
        .iter()
        .fold(target.first() == Some(&b'/'), |all, &byte| {
            let odd = (byte == b'"') | (byte == b'<') | (byte == b'>') | (byte == b'\\');
            all & !odd & (byte != b'^') & (byte != b'`') & (byte < b'{')
        });
    if !visible || target.is_empty() {
        return Err(Violation::bad(
            "The request target is empty or has a character that is not allowed there.",
        ));
    }
    if !plain && http::Uri::try_from(target).is_err() {
        return Err(Violation::bad("The request target is not a URI."));
    }
    Ok(())
}

/// RFC 9110, section 8.6: 1*DIGIT, and of one number only. Zeros in front are legal; more digits
/// than any number needs are refused, since not every reader takes them.
fn content_length(value: &[u8]) -> Result<u64, Violation> {
    const MALFORMED: Violation =
        Violation::bad("Content-Length is not one decimal number below 2^63.");
    if value.is_empty() || value.len() > MAX_LENGTH_DIGITS {
        return Err(MALFORMED);
    }
    let length = value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    });
    length
        .filter(|&length| length <= MAX_LENGTH)
        .ok_or(MALFORMED)
}

/// RFC 9112, section 6.1. `chunked` alone is served. Well-formed lists of other known codings are
/// told from attempts to hide `chunked` from some hop.
fn transfer_encoding(value: &[u8]) -> Result<(), Violation> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    const OTHERS: [&[u8]; 7] = [
        b"gzip",
        b"x-gzip",
        b"deflate",
        b"compress",
        b"x-compress",
        b"br",
        b"zstd",
    ];
    let mut codings = value
        .split(|&byte| byte == b',')
        .map(field::trim)
        .peekable();
    let mut others = 0;
    while let Some(coding) = codings.next() {
        if OTHERS
            .iter()
            .any(|other| coding.eq_ignore_ascii_case(other))
        {
            others += 1;
        } else if !(coding.eq_ignore_ascii_case(b"chunked")
            && codings.peek().is_none()
            && others > 0)
        {
            return Err(Violation::bad("Transfer-Encoding is not exactly chunked."));
        }
    }
    Err(Violation::head(
        Reason::NotImplemented,
        "Of transfer codings only chunked is served.",
    ))
}
