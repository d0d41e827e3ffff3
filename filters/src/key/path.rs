//! Reading the path of a request, decoded exactly once.
//!
//! A key is built from the decoded bytes of the path that is forwarded, and the path that is
//! forwarded is never rewritten. So whatever servers read in different ways must not get a key at
//! all, or the same resource could be had under two of them. `fence.path` says how far that goes:
//!
//! | in the path | `strict` | `opaque` |
//! | --- | --- | --- |
//! | `.` and `..` segments, in any encoding, also before a `;` | refused | refused |
//! | NUL, C0 and C1 control characters, DEL | refused | refused |
//! | malformed escapes, invalid UTF-8, raw 8-bit bytes | refused | refused |
//! | raw bytes outside RFC 3986's `pchar` (a raw `\` too) | refused | refused |
//! | `%2F` | refused | is `/` |
//! | `%5C` | refused | is `\`, and no dot segment may stand beside it |
//! | `;` and `%3B` | refused | is `;` |
//! | empty segments (`//`) | refused | kept |
//! | one trailing slash | legal, not in the key | kept |
//! | `%25` | is `%`, never decoded again | the same |
//!
//! `%3B` is refused in `strict` as `;` is: there are servers that decode first and cut parameters
//! off afterwards. `%5C` is a character like any other to an object store, which is what `opaque`
//! is for; an upstream that reads it as a slash must be `strict`.
//!
//! ```
//! use fencegate_filters::key::{AmbiguousPath, Case, DecodedPath, PathRules};
//!
//! let read = |path: &'static str, rules| DecodedPath::read(path.as_bytes(), rules, Case::Sensitive);
//!
//! assert_eq!(read("/objects/%34%32", PathRules::Strict)?.text(PathRules::Strict), "objects/42");
//! assert_eq!(read("/a%2Fb/", PathRules::Opaque)?.text(PathRules::Opaque), "a/b/");
//! assert_eq!(read("/a%2Fb", PathRules::Strict).unwrap_err(), AmbiguousPath::EncodedSlash);
//! # Ok::<(), AmbiguousPath>(())
//! ```

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

use super::fold::fold;
use crate::{Reason, Refusal};

/// How much of what servers read in different ways a path may hold (`fence.path`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PathRules {
    /// Nothing of it.
    #[default]
    Strict,
    /// What object stores allow in their keys: `%2F`, `%5C`, `;`, empty segments, a trailing slash.
    Opaque,
}

/// Whether the upstream takes `A` and `a` for one name (`fence.case`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Case {
    /// It tells them apart.
    #[default]
    Sensitive,
    /// It takes them for one: keys and literal segments are folded.
    Insensitive,
}

/// Why a path is refused: what servers read in different ways about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AmbiguousPath {
    /// The path does not begin with a slash.
    NotAbsolute,
    /// A `.` or `..` segment.
    DotSegment,
    /// An empty segment, other than one trailing slash.
    EmptySegment,
    /// A backslash.
    Backslash,
    /// A control character.
    Control,
    /// An escaped slash.
    EncodedSlash,
    /// A `%` that two hexadecimal digits don't follow.
    MalformedEscape,
    /// Bytes that are not UTF-8 once decoded, overlong forms among them.
    NotUtf8,
    /// A `;`, which begins parameters for some servers.
    Parameters,
    /// A byte that may not stand in a path as it is (RFC 3986, section 3.3).
    RawByte(u8),
    /// Folded, a character becomes a separator or makes a dot segment.
    FoldedSeparator,
}

impl fmt::Display for AmbiguousPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "the path does not begin with '/': send an absolute path",
            Self::DotSegment => "the path has a '.' or '..' segment: send it resolved",
            Self::EmptySegment => "the path has an empty segment ('//'): send single slashes",
            Self::Backslash => "the path has a backslash: send '/' between segments",
            Self::Control => "the path has a control character: leave it out",
            Self::EncodedSlash => {
                "the path has an escaped slash ('%2F'): send '/' between segments"
            }
            Self::MalformedEscape => {
                "the path has a '%' without two hexadecimal digits: send a percent sign as '%25'"
            }
            Self::NotUtf8 => "the path is not valid UTF-8 once decoded: escape UTF-8 bytes",
            Self::Parameters => "the path has a ';', which some servers cut off: leave it out",
            Self::RawByte(byte) => {
                return write!(
                    f,
                    "the path has the raw byte 0x{byte:02X}: send it as '%{byte:02X}'"
                );
            }
            Self::FoldedSeparator => {
                "the path has a character that is a separator once its case is folded: leave it out"
            }
        })
    }
}

impl std::error::Error for AmbiguousPath {}

impl From<AmbiguousPath> for Refusal {
    fn from(what: AmbiguousPath) -> Self {
        Self::new(Reason::AmbiguousPath, what.to_string())
    }
}

/// A path that at least the opaque rules accept, decoded once.
#[derive(Clone, Debug)]
pub struct DecodedPath<'a> {
    /// Decoded, without the leading slash.
    text: Cow<'a, str>,
    /// What the strict rules refuse about it.
    strict: Option<AmbiguousPath>,
    /// Where in `text` the slashes stand that came as `%2F`, ascending.
    encoded_slashes: SmallVec<[usize; 2]>,
}

impl<'a> DecodedPath<'a> {
    /// Reads a path by the given rules.
    ///
    /// # Errors
    ///
    /// What is ambiguous about it.
    pub fn read(raw: &'a [u8], rules: PathRules, case: Case) -> Result<Self, AmbiguousPath> {
        let path = Self::decode(raw)?;
        path.judge(rules, case)?;
        Ok(path)
    }

    /// Reads a path by the opaque rules; [`DecodedPath::judge`] holds it against stricter ones.
    ///
    /// # Errors
    ///
    /// What no rules accept.
    pub fn decode(raw: &'a [u8]) -> Result<Self, AmbiguousPath> {
        let body = raw.strip_prefix(b"/").ok_or(AmbiguousPath::NotAbsolute)?;
        let mut strict = None;
        let mut segment = body;
        let mut length = 0;
        for (at, &byte) in body.iter().enumerate() {
            match class(byte) {
                Class::Plain => length += 1,
                Class::Slash => {
                    let (name, _) = segment.split_at_checked(length).unwrap_or_default();
                    if is_dot(name) {
                        return Err(AmbiguousPath::DotSegment);
                    }
                    if name.is_empty() {
                        strict = Some(AmbiguousPath::EmptySegment);
                    }
                    segment = body.get(at + 1..).unwrap_or_default();
                    length = 0;
                }
                Class::Other => return Self::decode_escapes(body),
            }
        }
        if is_dot(segment) {
            return Err(AmbiguousPath::DotSegment);
        }
        let text = std::str::from_utf8(body).map_err(|_| AmbiguousPath::NotUtf8)?;
        Ok(Self {
            text: Cow::Borrowed(text),
            strict,
            encoded_slashes: SmallVec::new(),
        })
    }

    /// The same for a path that holds more than plain characters and slashes.
    #[cold]
    fn decode_escapes(body: &[u8]) -> Result<Self, AmbiguousPath> {
        let mut bytes = Vec::with_capacity(body.len());
        let mut strict = None;
        let mut encoded_slashes = SmallVec::new();
        let mut rest = body.iter();
        while let Some(&byte) = rest.next() {
            let byte = match byte {
                b'%' => {
                    let byte = escape(rest.next(), rest.next())?;
                    match byte {
                        b'/' => {
                            strict.get_or_insert(AmbiguousPath::EncodedSlash);
                            encoded_slashes.push(bytes.len());
                        }
                        b'\\' => {
                            strict.get_or_insert(AmbiguousPath::Backslash);
                        }
                        b';' => {
                            strict.get_or_insert(AmbiguousPath::Parameters);
                        }
                        0..=0x1f | 0x7f => return Err(AmbiguousPath::Control),
                        _ => {}
                    }
                    byte
                }
                b';' => {
                    strict.get_or_insert(AmbiguousPath::Parameters);
                    byte
                }
                b'\\' => return Err(AmbiguousPath::Backslash),
                0..=0x1f | 0x7f => return Err(AmbiguousPath::Control),
                _ if class(byte) == Class::Other => return Err(AmbiguousPath::RawByte(byte)),
                _ => byte,
            };
            bytes.push(byte);
        }
        let text = String::from_utf8(bytes).map_err(|_| AmbiguousPath::NotUtf8)?;
        // C0 and DEL are gone already; these are U+0080 to U+009F.
        if text.chars().any(char::is_control) {
            return Err(AmbiguousPath::Control);
        }
        if has_dot_segment(&text) {
            return Err(AmbiguousPath::DotSegment);
        }
        if text.starts_with('/') || text.contains("//") {
            strict.get_or_insert(AmbiguousPath::EmptySegment);
        }
        Ok(Self {
            text: Cow::Owned(text),
            strict,
            encoded_slashes,
        })
    }

    /// Holds the path against the rules.
    ///
    /// # Errors
    ///
    /// What they refuse about it.
    pub fn judge(&self, rules: PathRules, case: Case) -> Result<(), AmbiguousPath> {
        if let (PathRules::Strict, Some(what)) = (rules, self.strict) {
            return Err(what);
        }
        if case == Case::Insensitive && folding_moves_a_separator(&self.text) {
            return Err(AmbiguousPath::FoldedSeparator);
        }
        Ok(())
    }

    /// What the strict rules refuse about the path.
    #[must_use]
    pub const fn ambiguity(&self) -> Option<AmbiguousPath> {
        self.strict
    }

    /// The decoded path without its leading slash, as `{path}` has it: under the strict rules
    /// without a trailing slash too.
    #[must_use]
    pub fn text(&self, rules: PathRules) -> &str {
        match rules {
            PathRules::Strict => self.text.strip_suffix('/').unwrap_or(&self.text),
            PathRules::Opaque => &self.text,
        }
    }

    /// The offsets in the opaque text of the slashes that came as `%2F`.
    pub(crate) fn encoded_slashes(&self) -> &[usize] {
        &self.encoded_slashes
    }
}

/// Whether a text has a dot segment for any server: one that takes `\` for a slash, or cuts
/// parameters off, included.
pub(crate) fn has_dot_segment(text: &str) -> bool {
    text.split(['/', '\\'])
        .any(|segment| is_dot(segment.split(';').next().unwrap_or_default().as_bytes()))
}

/// Whether `NFKC_Casefold` makes or removes a separator, as it makes a `/` of U+FF0F.
fn folding_moves_a_separator(text: &str) -> bool {
    if text.is_ascii() {
        return false;
    }
    let separators = |text: &str| {
        text.chars()
            .filter(|character| matches!(character, '/' | '\\' | ';'))
            .count()
    };
    let folded = fold(text);
    separators(text) != separators(&folded) || has_dot_segment(&folded)
}

const fn is_dot(segment: &[u8]) -> bool {
    matches!(segment, b"." | b"..")
}

/// What a byte may be in a path without being looked at more closely.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// RFC 3986's `pchar`, without `%` and `;`.
    Plain,
    Slash,
    Other,
}

const fn classify(byte: u8) -> Class {
    match byte {
        b'/' => Class::Slash,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => Class::Plain,
        b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' => Class::Plain,
        b'*' | b'+' | b',' | b'=' | b':' | b'@' => Class::Plain,
        _ => Class::Other,
    }
}

fn class(byte: u8) -> Class {
    const TABLE: [Class; 256] = {
        let mut table = [Class::Other; 256];
        let mut byte = 0u8;
        while byte < 128 {
            #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
            {
                table[byte as usize] = classify(byte);
            }
            byte += 1;
        }
        table
    };
    TABLE
        .get(usize::from(byte))
        .copied()
        .unwrap_or(Class::Other)
}

/// The byte that two hexadecimal digits stand for.
pub(crate) fn escape(high: Option<&u8>, low: Option<&u8>) -> Result<u8, AmbiguousPath> {
    let digit = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
    digit(high)
        .zip(digit(low))
        .and_then(|(high, low)| u8::try_from(high * 16 + low).ok())
        .ok_or(AmbiguousPath::MalformedEscape)
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
