//! The framing of a chunked body (RFC 9112, section 7.1).

use fencegate_filters::Reason;
use memchr::memchr;

use super::{HeadLimits, Violation, field};

/// Hex digits of a chunk's size: what 64 bits hold.
const MAX_SIZE_DIGITS: usize = 16;
/// As for a Content-Length: beyond this no signed counter holds it.
const MAX_SIZE: u64 = i64::MAX as u64;
/// Extensions mean nothing to anybody here; these bounds keep them from being a body of their own.
const MAX_EXTENSION_BYTES: usize = 256;
const MAX_EXTENSION_BYTES_PER_BODY: usize = 16 * 1024;
/// What the codec above takes when it is not told otherwise.
const MAX_TRAILER_BYTES: usize = 16 * 1024;

#[derive(Clone, Debug, Default)]
enum At {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

/// Where in a chunked body the stream stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunks {
    at: At,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailers: usize,
}

/// What of the bytes at hand is well-formed, and whether the body ends with it.
pub(super) struct Scanned {
    pub(super) pass: usize,
    pub(super) end: Result<bool, Violation>,
}

impl Chunks {
    /// Goes on with `pending`, from which what was passed the last time is gone. Lines are passed
    /// only when whole.
    pub(super) fn scan(&mut self, pending: &[u8], limits: &HeadLimits) -> Scanned {
        let mut pass = 0;
        loop {
            let rest = pending.get(pass..).unwrap_or_default();
            match self.step(rest, limits) {
                Ok(Step::Passed(bytes)) => pass += bytes,
                Ok(Step::Done(bytes)) => {
                    return Scanned {
                        pass: pass + bytes,
                        end: Ok(true),
                    };
                }
                Ok(Step::More) => {
                    return Scanned {
                        pass,
                        end: Ok(false),
                    };
                }
                Err(violation) => {
                    return Scanned {
                        pass,
                        end: Err(violation.in_body()),
                    };
                }
            }
        }
    }

    fn step(&mut self, rest: &[u8], limits: &HeadLimits) -> Result<Step, Violation> {
        match &mut self.at {
            At::Size => {
                let Some((line, len)) = line(
                    rest,
                    MAX_SIZE_DIGITS + MAX_EXTENSION_BYTES,
                    CHUNK_LINE_TOO_LONG,
                )?
                else {
                    return Ok(Step::More);
                };
                let size = self.chunk_size(line)?;
                self.at = if size == 0 {
                    At::Trailers
                } else {
                    At::Data(size)
                };
                Ok(Step::Passed(len))
            }
            At::Data(left) => {
                if rest.is_empty() {
                    return Ok(Step::More);
                }
                let bytes = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                *left -= bytes as u64;
                if *left == 0 {
                    self.at = At::DataEnd;
                }
                Ok(Step::Passed(bytes))
            }
            At::DataEnd => match rest {
                [] | [b'\r'] => Ok(Step::More),
                [b'\r', b'\n', ..] => {
                    self.at = At::Size;
                    Ok(Step::Passed(2))
                }
                _ => Err(Violation::bad("A chunk is longer than its size says.")),
            },
            At::Trailers => self.trailer(rest, limits),
        }
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<u64, Violation> {
        const MALFORMED: Violation =
            Violation::bad("A chunk's size is not 1 to 16 hexadecimal digits, or above 2^63.");
        let digits = line
            .iter()
            .position(|byte| !byte.is_ascii_hexdigit())
            .unwrap_or(line.len());
        let (digits, extension) = line.split_at(digits);
        if digits.is_empty()
            || digits.len() > MAX_SIZE_DIGITS
            || !matches!(extension, [] | [b';', ..])
        {
            return Err(MALFORMED);
        }
        if field::has_control(extension) {
            return Err(Violation::bad("A chunk extension has a control character."));
        }
        self.extension_bytes += extension.len();
        if extension.len() > MAX_EXTENSION_BYTES
            || self.extension_bytes > MAX_EXTENSION_BYTES_PER_BODY
        {
            return Err(Violation::bad("The chunk extensions are too long."));
        }
        let text = std::str::from_utf8(digits).map_err(|_| MALFORMED)?;
        match u64::from_str_radix(text, 16) {
            Ok(size) if size <= MAX_SIZE => Ok(size),
            _ => Err(MALFORMED),
        }
    }

    fn trailer(&mut self, rest: &[u8], limits: &HeadLimits) -> Result<Step, Violation> {
        const TOO_LARGE: Violation =
            Violation::head(Reason::HeadersTooLarge, "The trailers are too large.");
        let max = limits
            .header_bytes
            .min(MAX_TRAILER_BYTES)
            .saturating_sub(self.trailer_bytes);
        let Some((line, len)) = line(rest, max, TOO_LARGE)? else {
            return Ok(Step::More);
        };
        if line.is_empty() {
            return Ok(Step::Done(len));
        }
        self.trailer_bytes += len;
        self.trailers += 1;
        if self.trailers > limits.header_count {
            return Err(TOO_LARGE);
        }
        field::split(line)?;
        Ok(Step::Passed(len))
    }
}

enum Step {
    Passed(usize),
    Done(usize),
    More,
}

const CHUNK_LINE_TOO_LONG: Violation = Violation::bad("A chunk's size line is too long.");

/// The line at the front, without its CRLF, and its length with it. `None` asks for more.
fn line(rest: &[u8], max: usize, too_long: Violation) -> Result<Option<(&[u8], usize)>, Violation> {
    // With the CRLF a line may be two bytes longer.
    let window = rest.get(..max.saturating_add(2)).unwrap_or(rest);
    let Some(lf) = memchr(b'\n', window) else {
        return if rest.len() >= max.saturating_add(2) {
            Err(too_long)
        } else {
            Ok(None)
        };
    };
    let line = window.get(..lf).unwrap_or_default();
    let line = line
        .strip_suffix(b"\r")
        .ok_or(Violation::bad("A line ends in a bare LF."))?;
    Ok(Some((line, lf + 1)))
}
