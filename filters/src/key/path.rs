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

fn class(byte: u8) -> Class {
    const TABLE: [Class; 256] = {
        let mut table = [Class::Other; 256];
        let mut byte = 0u8;
        while byte < 128 {
            if byte.is_ascii_alphanumeric()
                || matches!(
                    byte,
                    b'-' | b'.'
                        | b'_'
                        | b'~'
                        | b'!'
                        | b'$'
                        | b'&'
                        | b'\''
                        | b'('
                        | b')'
                        | b'*'
                        | b'+'
                        | b','
                        | b'='
                        | b':'
                        | b'@'
                )
            {
                #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
                {
                    table[byte as usize] = Class::Plain;
                }
            }
            byte += 1;
        }
        table[b'/' as usize] = Class::Slash;
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
mod tests {
    use super::*;

    fn strict(path: &str) -> Result<String, AmbiguousPath> {
        read(path.as_bytes(), PathRules::Strict)
    }

    fn opaque(path: &str) -> Result<String, AmbiguousPath> {
        read(path.as_bytes(), PathRules::Opaque)
    }

    fn read(path: &[u8], rules: PathRules) -> Result<String, AmbiguousPath> {
        DecodedPath::read(path, rules, Case::Sensitive).map(|path| path.text(rules).to_owned())
    }

    // K1
    #[test]
    fn dot_segments_are_refused_in_any_encoding() {
        for path in [
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/a/%2e%2e/b",
            "/a/%2E%2e",
            "/a/.%2e/b",
            "/%2e/b",
            "/a/%2e.",
            "/a/..;x=1/b",
            "/a/%2e%2e;/b",
            "/../",
            "/./",
            "/..%2Fb",
            "/a%2F..%2Fb",
            "/a%5C..%5Cb",
            "/a%2f%2e%2e",
            "/a/..%5Cb",
            "/a/.;/b",
            "/a/..%3Bx",
        ] {
            assert!(strict(path).is_err(), "{path}");
            assert_eq!(opaque(path), Err(AmbiguousPath::DotSegment), "{path}");
        }
        for path in [
            "/...",
            "/a/.b",
            "/a/..b",
            "/a/b..",
            "/.well-known/x",
            "/a.b/c.",
        ] {
            assert_eq!(strict(path).as_deref(), Ok(&path[1..]), "{path}");
        }
    }

    // K2
    #[test]
    fn empty_segments_are_refused_or_kept() {
        for path in ["//", "//a", "/a//b", "/a//", "/a///b"] {
            assert_eq!(strict(path), Err(AmbiguousPath::EmptySegment), "{path}");
            assert_eq!(opaque(path).as_deref(), Ok(&path[1..]), "{path}");
        }
        assert_eq!(strict("//%61"), Err(AmbiguousPath::EmptySegment));
        assert_eq!(opaque("//%61").as_deref(), Ok("/a"));
    }

    // K3
    #[test]
    fn slashes_that_hide_are_refused_by_strict() {
        for path in ["/a%2Fb", "/a%2fb", "/%2F", "/a/%2f"] {
            assert_eq!(strict(path), Err(AmbiguousPath::EncodedSlash), "{path}");
        }
        for path in ["/a%5Cb", "/a%5cb", "/a\\b", "/\\"] {
            assert_eq!(strict(path), Err(AmbiguousPath::Backslash), "{path}");
        }
        assert_eq!(opaque("/a\\b"), Err(AmbiguousPath::Backslash));
        assert_eq!(opaque("/a%5Cb").as_deref(), Ok("a\\b"));
    }

    // K4
    #[test]
    fn aliases_decode_to_one_text() {
        assert_eq!(strict("/%61%40"), strict("/a@"));
        for path in ["/a%2fb", "/a%2Fb", "/a/b", "/%61/b"] {
            assert_eq!(opaque(path).as_deref(), Ok("a/b"), "{path}");
        }
        assert_eq!(strict("/%c3%a9"), strict("/%C3%A9"));
    }

    // K5
    #[test]
    fn escapes_are_decoded_once_only() {
        assert_eq!(strict("/a/%252e%252e/b").as_deref(), Ok("a/%2e%2e/b"));
        assert_eq!(strict("/a%252Fb").as_deref(), Ok("a%2Fb"));
        assert_eq!(opaque("/a%25").as_deref(), Ok("a%"));
    }

    // K6
    #[test]
    fn malformed_escapes_are_refused() {
        for path in [
            "/%zz", "/%", "/a%", "/%4", "/%g0", "/%0g", "/%+1", "/%%41", "/% 1", "/%-1",
        ] {
            assert_eq!(strict(path), Err(AmbiguousPath::MalformedEscape), "{path}");
            assert_eq!(opaque(path), Err(AmbiguousPath::MalformedEscape), "{path}");
        }
    }

    // K7
    #[test]
    fn overlong_invalid_and_raw_bytes_are_refused() {
        for path in [
            "/%c0%af",
            "/%c0%ae",
            "/%e0%80%af",
            "/%ff",
            "/%c3",
            "/%ed%a0%80",
            "/%f5%80%80%80",
        ] {
            assert_eq!(strict(path), Err(AmbiguousPath::NotUtf8), "{path}");
            assert_eq!(opaque(path), Err(AmbiguousPath::NotUtf8), "{path}");
        }
        for rules in [PathRules::Strict, PathRules::Opaque] {
            assert_eq!(
                read("/é".as_bytes(), rules),
                Err(AmbiguousPath::RawByte(0xc3))
            );
            assert_eq!(read(b"/\xff", rules), Err(AmbiguousPath::RawByte(0xff)));
        }
        assert_eq!(strict("/%C3%A9").as_deref(), Ok("é"));
    }

    // K8
    #[test]
    fn control_characters_are_refused_in_any_encoding() {
        for path in [
            "/%00",
            "/a%0d%0ab",
            "/%09",
            "/%1f",
            "/%7f",
            "/%7F",
            "/%C2%80",
            "/%c2%9f",
            "/a\0",
            "/\u{7f}",
            "/\r\n",
        ] {
            assert_eq!(strict(path), Err(AmbiguousPath::Control), "{path:?}");
            assert_eq!(opaque(path), Err(AmbiguousPath::Control), "{path:?}");
        }
    }

    // K9
    #[test]
    fn bytes_that_must_be_escaped_are_refused_raw() {
        for byte in b"|<>\"^`{}[]#? " {
            let path = [b'/', b'a', *byte];
            for rules in [PathRules::Strict, PathRules::Opaque] {
                assert_eq!(read(&path, rules), Err(AmbiguousPath::RawByte(*byte)));
            }
            let escaped = format!("/a%{byte:02X}");
            assert_eq!(strict(&escaped), Ok(format!("a{}", char::from(*byte))));
        }
        assert_eq!(strict("/\t"), Err(AmbiguousPath::Control));
        assert_eq!(
            strict("/-._~!$&'()*+,=:@").as_deref(),
            Ok("-._~!$&'()*+,=:@")
        );
    }

    // K10
    #[test]
    fn parameters_are_refused_or_kept() {
        for path in ["/a;b=c", "/a%3Bb", "/a%3bb", "/;"] {
            assert_eq!(strict(path), Err(AmbiguousPath::Parameters), "{path}");
        }
        assert_eq!(opaque("/a;b=c").as_deref(), Ok("a;b=c"));
        assert_eq!(opaque("/a%3Bb").as_deref(), Ok("a;b"));
    }

    // K11
    #[test]
    fn one_trailing_slash_is_dropped_or_kept() {
        assert_eq!(strict("/a/"), strict("/a"));
        assert_eq!(strict("/%61/").as_deref(), Ok("a"));
        assert_eq!(opaque("/a/").as_deref(), Ok("a/"));
        assert_eq!(strict("/").as_deref(), Ok(""));
        assert_eq!(opaque("/").as_deref(), Ok(""));
    }

    // K11
    #[test]
    fn what_becomes_a_separator_when_folded_is_refused() {
        let folded = |path: &'static str| {
            DecodedPath::read(path.as_bytes(), PathRules::Opaque, Case::Insensitive).map(drop)
        };
        for path in [
            "/a%EF%BC%8Fb",
            "/%E2%80%A5/b",
            "/a%EF%BC%9Bb",
            "/a/%EF%BC%8E",
            "/%EF%BC%BC",
            "/.%C2%AD./x",
        ] {
            assert_eq!(folded(path), Err(AmbiguousPath::FoldedSeparator), "{path}");
            assert!(opaque(path).is_ok(), "{path}");
        }
        assert_eq!(folded("/%C3%84/B"), Ok(()));
    }

    // K12
    #[test]
    fn only_an_absolute_path_is_read() {
        for path in ["", "*", "a", "http://host/a", "%2Fa"] {
            assert_eq!(opaque(path), Err(AmbiguousPath::NotAbsolute), "{path}");
        }
    }

    #[test]
    fn an_ordinary_path_is_borrowed() {
        let path = DecodedPath::decode(b"/objects/42/a.b").unwrap();
        assert!(matches!(path.text, Cow::Borrowed("objects/42/a.b")));
    }
}
