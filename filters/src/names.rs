//! The header fields of the fence, and how names are compared.

use http::HeaderName;

/// The token that a client sends.
pub static FENCING_TOKEN: HeaderName = HeaderName::from_static("fencing-token");
/// Another name for the same, where `x-` is the house style.
pub static X_FENCING_TOKEN: HeaderName = HeaderName::from_static("x-fencing-token");
/// Who holds the lock; optional.
pub static FENCING_HOLDER: HeaderName = HeaderName::from_static("fencing-holder");
/// The mark that a refused token was compared with. Only ever sent by the gateway.
pub static FENCING_MARK: HeaderName = HeaderName::from_static("fencing-mark");
/// Whether the client may assume that nothing happened. Only ever sent by the gateway.
pub static FENCING_OUTCOME: HeaderName = HeaderName::from_static("fencing-outcome");
/// What the fence would have decided in observe mode. Only ever sent by the gateway.
pub static FENCING_DECISION: HeaderName = HeaderName::from_static("fencing-decision");

/// A byte of a field name as CGI-like upstreams read it. They turn `-` into `_`, and some of them
/// every other character too that is neither letter nor digit, so that `Fencing_Token`,
/// `Fencing.Token` and `Fencing-Token` become one variable.
const fn folded(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' | b'a'..=b'z' => byte,
        b'A'..=b'Z' => byte.to_ascii_lowercase(),
        _ => b'-',
    }
}

/// Whether two names are one to an upstream that tells only letters and digits apart.
///
/// From their ends: many names begin alike.
pub(crate) fn alike(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .rev()
            .zip(other.iter().rev())
            .all(|(&one, &other)| folded(one) == folded(other))
}

/// The lengths of some names: rules out most others without comparing them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lengths(u64);

impl Lengths {
    const fn bit(name: &[u8]) -> u64 {
        // All names of 63 bytes and more share one bit.
        let length = if name.len() < 63 { name.len() } else { 63 };
        1 << length
    }

    pub(crate) const fn add(&mut self, name: &[u8]) {
        self.0 |= Self::bit(name);
    }

    pub(crate) const fn may_hold(self, name: &[u8]) -> bool {
        self.0 & Self::bit(name) != 0
    }
}

/// The elements of a comma list, without the white space around them and without empty ones
/// (RFC 9110, section 5.6.1.2).
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(trim)
        .filter(|element| !element.is_empty())
}

/// Whether it is a token (RFC 9110, section 5.6.2): a name, and nothing else.
pub(crate) fn is_token(text: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_tchar)
}

/// `value` without the spaces and tabs around it: what HTTP calls optional white space, and
/// nothing else (RFC 9110, section 5.6.3).
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_alike_whatever_their_case_and_punctuation() {
        for twin in [
            &b"Fencing_Token"[..],
            b"FENCING-TOKEN",
            b"fencing.token",
            b"Fencing!Token",
        ] {
            assert!(alike(twin, b"fencing-token"), "{twin:?}");
        }
        assert!(!alike(b"fencing-tokens", b"fencing-token"));
        assert!(!alike(b"fencingxtoken", b"fencing-token"));
    }

    #[test]
    fn lengths_never_rule_out_what_was_added() {
        let long = "x".repeat(200);
        let mut lengths = Lengths::default();
        lengths.add(b"host");
        lengths.add(long.as_bytes());
        assert!(lengths.may_hold(b"hosT"));
        assert!(lengths.may_hold(long.as_bytes()));
        assert!(!lengths.may_hold(b"via"));
    }

    #[test]
    fn only_spaces_and_tabs_are_white_space() {
        assert_eq!(trim(b" \t a b\t "), b"a b");
        assert_eq!(trim(b" \t "), b"");
        assert_eq!(trim(b"\x0ba\xa0"), b"\x0ba\xa0");
    }

    #[test]
    fn empty_elements_of_a_list_are_none() {
        let list: Vec<_> = elements(b", close ,,\tx\t,").collect();
        assert_eq!(list, [&b"close"[..], b"x"]);
    }
}
