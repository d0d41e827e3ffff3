//! Reading one parameter of a query, decoded exactly once.
//!
//! Parameters are separated by `&`. Names are compared after decoding, so `%69d=1&id=2` gives `id`
//! twice. What servers read in different ways is refused where it touches a parameter that a key
//! or a route is made of:
//!
//! - the name twice, even with equal values: servers take the first, the last, or both;
//! - a `;` beside it, which separates parameters for some servers;
//! - a raw `+` in its value, which is a space to form decoders and a plus sign to others.
//!
//! ```
//! use fencegate_filters::key::Case;
//! use fencegate_filters::key::query::{QueryError, value};
//!
//! let read = |query: &'static str| value(query, "id", Case::Sensitive);
//! assert_eq!(read("x=1&id=a%2Fb")?.as_deref(), Some("a/b"));
//! assert_eq!(read("x=1")?, None);
//! assert_eq!(read("%69d=1&id=2"), Err(QueryError::Twice));
//! # Ok::<(), QueryError>(())
//! ```

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;

use super::fold::fold;
use super::path::{Case, escape};

/// Why a query parameter can't be read in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryError {
    /// The parameter stands there twice.
    Twice,
    /// A raw `;` beside the parameter.
    Separator,
    /// A raw `+` in the value.
    Plus,
    /// A `%` that two hexadecimal digits don't follow.
    MalformedEscape,
    /// The value is not UTF-8 once decoded.
    NotUtf8,
    /// A control character.
    Control,
    /// A byte that must be escaped.
    RawByte,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Twice => "is given twice: send it once",
            Self::Separator => {
                "stands beside a ';', which separates parameters for some servers: send it as '%3B'"
            }
            Self::Plus => "has a '+', which is a space for some servers: send '%20' or '%2B'",
            Self::MalformedEscape => {
                "has a '%' without two hexadecimal digits: send a percent sign as '%25'"
            }
            Self::NotUtf8 => "is not valid UTF-8 once decoded: escape UTF-8 bytes",
            Self::Control => "has a control character: leave it out",
            Self::RawByte => "has a byte that may not stand in a query: escape it",
        })
    }
}

impl std::error::Error for QueryError {}

/// The decoded value of a parameter; `None` where the query doesn't have it.
///
/// # Errors
///
/// Whatever servers read in different ways about it.
pub fn value<'a>(
    query: &'a str,
    name: &str,
    case: Case,
) -> Result<Option<Cow<'a, str>>, QueryError> {
    find(query, name, case)?.map(decode).transpose()
}

/// Whether the query has a parameter of this name, with a value or without.
///
/// # Errors
///
/// [`QueryError::Separator`], where it depends on whether `;` separates parameters.
pub fn has(query: &str, name: &str, case: Case) -> Result<bool, QueryError> {
    match find(query, name, case) {
        Ok(value) => Ok(value.is_some()),
        Err(QueryError::Twice) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The raw value of a parameter.
fn find<'a>(query: &'a str, name: &str, case: Case) -> Result<Option<&'a str>, QueryError> {
    let mut found = None;
    let mut twice = false;
    for parameter in query.split('&') {
        if parameter.contains(';') {
            if parameter
                .split(';')
                .any(|piece| is_named(split(piece).0, name, case))
            {
                return Err(QueryError::Separator);
            }
            continue;
        }
        let (raw_name, raw_value) = split(parameter);
        if is_named(raw_name, name, case) {
            twice |= found.is_some();
            found = Some(raw_value);
        }
    }
    if twice {
        return Err(QueryError::Twice);
    }
    Ok(found)
}

fn split(parameter: &str) -> (&str, &str) {
    parameter.split_once('=').unwrap_or((parameter, ""))
}

/// Whether a raw name is this one for any server: an escape that is malformed stands for itself.
fn is_named(raw: &str, name: &str, case: Case) -> bool {
    match case {
        Case::Sensitive if !raw.contains('%') => raw == name,
        Case::Sensitive => percent_decode_str(raw).decode_utf8_lossy() == name,
        Case::Insensitive => fold(&percent_decode_str(raw).decode_utf8_lossy()) == fold(name),
    }
}

fn decode(raw: &str) -> Result<Cow<'_, str>, QueryError> {
    let mut escaped = false;
    for byte in raw.bytes() {
        match byte {
            b'%' => escaped = true,
            b'+' => return Err(QueryError::Plus),
            0..=0x1f | 0x7f => return Err(QueryError::Control),
            b' ' | b'#' | 0x80.. => return Err(QueryError::RawByte),
            _ => {}
        }
    }
    if !escaped {
        return Ok(Cow::Borrowed(raw));
    }
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'%' => escape(rest.next(), rest.next()).map_err(|_| QueryError::MalformedEscape)?,
            _ => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| QueryError::NotUtf8)?;
    if text.chars().any(char::is_control) {
        return Err(QueryError::Control);
    }
    Ok(Cow::Owned(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(query: &str) -> Result<Option<String>, QueryError> {
        value(query, "id", Case::Sensitive).map(|value| value.map(Cow::into_owned))
    }

    fn some(value: &str) -> Result<Option<String>, QueryError> {
        Ok(Some(value.to_owned()))
    }

    // K13
    #[test]
    fn the_order_of_parameters_changes_nothing() {
        for query in [
            "id=7&x=1",
            "x=1&id=7",
            "x=1&&id=7&",
            "%69d=7",
            "id=%37",
            "i%64=7&x",
        ] {
            assert_eq!(id(query), some("7"), "{query}");
        }
    }

    // K13
    #[test]
    fn a_parameter_given_twice_is_refused() {
        for query in [
            "id=1&id=2",
            "id=1&id=1",
            "%69d=1&id=2",
            "id&id=1",
            "id=1&x=2&i%64=",
        ] {
            assert_eq!(id(query), Err(QueryError::Twice), "{query}");
        }
        assert_eq!(id("id=1&ID=2"), some("1"));
        assert_eq!(
            value("id=1&ID=2", "id", Case::Insensitive),
            Err(QueryError::Twice)
        );
    }

    #[test]
    fn a_semicolon_beside_the_parameter_is_refused() {
        for query in [
            "id=1;x=2",
            "x=1;id=2",
            "x=1;id=2&id=3",
            "id=3&x;%69d",
            "id=;",
        ] {
            assert_eq!(id(query), Err(QueryError::Separator), "{query}");
        }
        assert_eq!(id("x=1;y=2&id=3"), some("3"));
        assert_eq!(id("id=1%3Bid=2"), some("1;id=2"));
    }

    #[test]
    fn a_value_is_decoded_once() {
        assert_eq!(id("id=%2561"), some("%61"));
        assert_eq!(id("id=a%2Fb=c"), some("a/b=c"));
        assert_eq!(id("id=a%20b%2B"), some("a b+"));
        assert_eq!(id("id"), some(""));
        assert_eq!(id("idx=1"), Ok(None));
        assert_eq!(id(""), Ok(None));
    }

    #[test]
    fn a_value_that_servers_read_in_different_ways_is_refused() {
        for (query, error) in [
            ("id=a+b", QueryError::Plus),
            ("id=%zz", QueryError::MalformedEscape),
            ("id=%", QueryError::MalformedEscape),
            ("id=%ff", QueryError::NotUtf8),
            ("id=%c0%af", QueryError::NotUtf8),
            ("id=%00", QueryError::Control),
            ("id=a%0d%0a", QueryError::Control),
            ("id=%c2%85", QueryError::Control),
            ("id=é", QueryError::RawByte),
        ] {
            assert_eq!(id(query), Err(error), "{query}");
        }
    }

    #[test]
    fn presence_needs_no_value() {
        for query in [
            "uploads",
            "uploads=",
            "x&uploads=1",
            "upl%6Fads",
            "uploads&uploads",
        ] {
            assert_eq!(has(query, "uploads", Case::Sensitive), Ok(true), "{query}");
        }
        assert_eq!(has("upload", "uploads", Case::Sensitive), Ok(false));
        assert_eq!(
            has("x;uploads", "uploads", Case::Sensitive),
            Err(QueryError::Separator)
        );
    }
}
