//! The one spelling of a host.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

/// Why the value of `Host` names no single host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostError {
    /// The name is empty, or one of its labels is.
    Empty,
    /// A character that no host name has: user info, a comma, a space, an escape, a raw 8-bit byte.
    Character(char),
    /// What follows the colon is not a port.
    Port,
    /// What stands in brackets is not an IPv6 address.
    Address,
    /// The name is longer than 255 bytes (RFC 1035, section 2.3.4).
    TooLong,
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => {
                f.write_str("the host has an empty name or label: send HOST or HOST:PORT")
            }
            Self::Character(character) => write!(
                f,
                "the host has the character {character:?}: send one HOST or HOST:PORT and nothing else"
            ),
            Self::Port => f.write_str("the host's port is not a number up to 65535, or there is a user's name in front of the host: correct it"),
            Self::Address => f.write_str("the host is not an IPv6 address in brackets: correct it"),
            Self::TooLong => f.write_str("the host is longer than 255 bytes: send a host name"),
        }
    }
}

impl std::error::Error for HostError {}

/// A host in its one spelling: in lower case, without port and trailing dot; an IPv6 address in
/// brackets in its canonical form (RFC 5952).
///
/// # Errors
///
/// Whatever is not one `host[:port]`: user info, a list, an empty label, an escaped character. A
/// name in another script must come as Punycode, as browsers send it.
///
/// ```
/// use fencegate_filters::key::normalize_host;
///
/// assert_eq!(normalize_host("Example.COM.:8080")?, "example.com");
/// assert_eq!(normalize_host("[0:0::1]:80")?, "[::1]");
/// assert!(normalize_host("user@example.com").is_err());
/// # Ok::<(), fencegate_filters::key::HostError>(())
/// ```
pub fn normalize_host(value: &str) -> Result<Cow<'_, str>, HostError> {
    let (host, port) = split_port(value)?;
    if !port.bytes().all(|byte| byte.is_ascii_digit())
        || (!port.is_empty() && port.parse::<u16>().is_err())
    {
        return Err(HostError::Port);
    }
    if let Some(address) = host.strip_prefix('[') {
        let address: Ipv6Addr = address
            .strip_suffix(']')
            .and_then(|address| address.parse().ok())
            .ok_or(HostError::Address)?;
        return Ok(Cow::Owned(format!("[{address}]")));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.len() > 255 {
        return Err(HostError::TooLong);
    }
    let mut upper = false;
    // Before the first label it is as if a dot had come.
    let mut last = Class::Dot;
    for (at, &byte) in host.as_bytes().iter().enumerate() {
        let class = class(byte);
        match class {
            Class::Plain => {}
            Class::Upper => upper = true,
            Class::Dot if last == Class::Dot => return Err(HostError::Empty),
            Class::Dot => {}
            Class::Other => {
                // Everything before it is ASCII, so a character begins here.
                let character = host.get(at..).and_then(|rest| rest.chars().next());
                return Err(HostError::Character(character.unwrap_or_default()));
            }
        }
        last = class;
    }
    if last == Class::Dot {
        return Err(HostError::Empty);
    }
    Ok(if upper {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    })
}

/// What a byte is in a host's name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Plain,
    Upper,
    Dot,
    Other,
}

const fn class(byte: u8) -> Class {
    /// By the byte: a host is read in every request.
    const CLASSES: [Class; 256] = {
        let mut classes = [Class::Other; 256];
        let mut byte = 0;
        while byte < 256 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::indexing_slicing,
                reason = "the loop ends at 255, at compile time"
            )]
            {
                classes[byte] = match byte as u8 {
                    b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => Class::Plain,
                    b'A'..=b'Z' => Class::Upper,
                    b'.' => Class::Dot,
                    _ => Class::Other,
                };
            }
            byte += 1;
        }
        classes
    };
    #[expect(clippy::indexing_slicing, reason = "there is a class for each byte")]
    CLASSES[byte as usize]
}

/// The host, and the port or an empty text.
pub(crate) fn split_port(value: &str) -> Result<(&str, &str), HostError> {
    if value.starts_with('[') {
        let end = value.find(']').ok_or(HostError::Address)?;
        let (host, rest) = value.split_at_checked(end + 1).ok_or(HostError::Address)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if rest.is_empty() => Ok((host, "")),
            None => Err(HostError::Port),
        };
    }
    // By bytes: a search for a character costs more than a host is long.
    let colon = value.bytes().position(|byte| byte == b':');
    let halves = colon.and_then(|at| Some((value.get(..at)?, value.get(at + 1..)?)));
    Ok(halves.unwrap_or((value, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    // K16
    #[test]
    fn case_port_and_trailing_dot_make_one_host() {
        for value in [
            "example.com",
            "EXAMPLE.com",
            "example.com:80",
            "example.com.",
            "Example.Com.:8080",
            "example.com:",
        ] {
            assert_eq!(
                normalize_host(value).as_deref(),
                Ok("example.com"),
                "{value}"
            );
        }
        for value in ["[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]", "[0::0001]:1"] {
            assert_eq!(normalize_host(value).as_deref(), Ok("[::1]"), "{value}");
        }
        assert_eq!(normalize_host("127.0.0.1:1").as_deref(), Ok("127.0.0.1"));
    }

    // K15
    #[test]
    fn what_is_not_one_host_is_refused() {
        for value in [
            "",
            ".",
            "..",
            "a..b",
            "a..",
            ".a",
            "a,b",
            "a, b",
            "u@a",
            "u:p@a",
            "a b",
            " a",
            "a:80:80",
            "a:x",
            "a:+1",
            "a:65536",
            "[::1",
            "[::1]x",
            "[::1%25eth0]",
            "[a]",
            "::1",
            "a/b",
            "a%2e",
            "é",
            "a\0",
            "a?b",
            "a#b",
            "a\\b",
            ":80",
        ] {
            assert!(normalize_host(value).is_err(), "{value:?}");
        }
        assert_eq!(normalize_host(&"a".repeat(256)), Err(HostError::TooLong));
    }

    #[test]
    fn a_normal_host_is_borrowed() {
        assert!(matches!(normalize_host("a.b:1"), Ok(Cow::Borrowed("a.b"))));
    }
}
