//! The token and the holder of a request, read from its header.
//!
//! A token stands on exactly one field line over all names that the route accepts. Two lines, a
//! comma list, or two names at once are malformed, also where the values agree: proxies and
//! servers differ in which of several they take, and the one that was checked must be the one that
//! counts. What the client sent is never repeated in an answer.
//!
//! ```
//! use fencegate_filters::{names, tokens};
//! use http::{HeaderMap, HeaderValue};
//!
//! let accepted = [names::FENCING_TOKEN.clone(), names::X_FENCING_TOKEN.clone()];
//! let mut headers = HeaderMap::new();
//! assert!(tokens::read_tokens(&headers, &accepted)?.is_none());
//!
//! headers.insert("fencing-token", HeaderValue::from_static("7.42"));
//! assert_eq!(tokens::read_tokens(&headers, &accepted)?, Some("7.42".parse()?));
//!
//! headers.insert("x-fencing-token", HeaderValue::from_static("7.42"));
//! assert!(tokens::read_tokens(&headers, &accepted).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::fault::{self, Fault};
use crate::names::{self, trim};
use crate::{Reason, Refusal, Token};

/// The longest name of a holder, in bytes.
pub const MAX_HOLDER_BYTES: usize = 128;

/// Reads the one field line that `names` may have in `headers`; `None` where there is none.
///
/// For tokens that are not read here: a signed one is verified first.
///
/// # Errors
///
/// [`Reason::MalformedToken`] where there is more than one line.
pub fn read_line<'a>(
    headers: &'a HeaderMap,
    names: &[HeaderName],
) -> Result<Option<(&'a HeaderName, &'a HeaderValue)>, Refusal> {
    let mut found: Option<(&HeaderName, &HeaderValue)> = None;
    // One pass over all lines: a few comparisons cost less than hashing each name.
    for (name, line) in headers {
        if !names.contains(name) {
            continue;
        }
        match found {
            Some(_) if fault::planted(Fault::FirstLineOnly) => {}
            Some((other, _)) if other == name => {
                return Err(malformed(format!(
                    "{name} stands on more than one line; send exactly one token"
                )));
            }
            Some((other, _)) => {
                return Err(malformed(format!(
                    "both {other} and {name} are present; send the token in one of them"
                )));
            }
            None => found = Some((name, line)),
        }
    }
    Ok(found)
}

/// Reads the token of a request; `None` where it has none.
///
/// # Errors
///
/// [`Reason::MalformedToken`] where there is anything but one well-formed token on one line.
pub fn read_tokens(headers: &HeaderMap, names: &[HeaderName]) -> Result<Option<Token>, Refusal> {
    let Some((name, value)) = read_line(headers, names)? else {
        return Ok(None);
    };
    let value = trim(value.as_bytes());
    match Token::from_bytes(value) {
        Ok(token) => Ok(Some(token)),
        Err(_) if value.contains(&b',') => Err(malformed(format!(
            "{name} is a list; send exactly one token"
        ))),
        Err(error) => Err(malformed(format!(
            "{name}: {error}; send the number that the lock service gave with the lock"
        ))),
    }
}

/// Reads the holder of a request (`Fencing-Holder`); `None` where it names none.
///
/// # Errors
///
/// [`Reason::BadRequest`] where there is more than one line, or anything but 1 to
/// [`MAX_HOLDER_BYTES`] visible ASCII characters.
pub fn read_holder(headers: &HeaderMap) -> Result<Option<Arc<str>>, Refusal> {
    let mut lines = headers.get_all(&names::FENCING_HOLDER).iter();
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    if lines.next().is_some() {
        return Err(Refusal::new(
            Reason::BadRequest,
            "fencing-holder stands on more than one line; send it once",
        ));
    }
    match holder(trim(line.as_bytes())) {
        Some(holder) => Ok(Some(holder)),
        None => Err(Refusal::new(
            Reason::BadRequest,
            "fencing-holder is not 1 to 128 visible ASCII characters without spaces",
        )),
    }
}

/// The name of a holder; `None` where it is anything but 1 to [`MAX_HOLDER_BYTES`] visible ASCII
/// characters.
#[must_use]
pub fn holder(name: &[u8]) -> Option<Arc<str>> {
    let legal =
        (1..=MAX_HOLDER_BYTES).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    let name = std::str::from_utf8(name).ok()?;
    legal.then(|| Arc::from(name))
}

fn malformed(detail: String) -> Refusal {
    Refusal::new(Reason::MalformedToken, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value).unwrap(),
            );
        }
        headers
    }

    fn read(lines: &[(&str, &[u8])]) -> Result<Option<Token>, Refusal> {
        let names = [names::FENCING_TOKEN.clone(), names::X_FENCING_TOKEN.clone()];
        read_tokens(&headers(lines), &names)
    }

    #[test]
    fn no_line_is_no_token() {
        // T1
        assert_eq!(read(&[("accept", b"34")]).unwrap(), None);
    }

    #[test]
    fn one_line_under_either_name_and_in_any_case_is_the_token() {
        // T3, T17
        for name in ["fencing-token", "Fencing-Token", "X-FENCING-TOKEN"] {
            let token = read(&[(name, b" \t34\t ")]).unwrap();
            assert_eq!(token, Token::new(0, 34), "{name}");
        }
    }

    #[test]
    fn more_than_one_line_is_malformed_even_where_the_values_agree() {
        // T13, T14, T15
        let cases: &[&[(&str, &[u8])]] = &[
            &[("fencing-token", b"34"), ("fencing-token", b"34")],
            &[("fencing-token", b"34"), ("fencing-token", b"99")],
            &[("fencing-token", b"99"), ("fencing-token", b"34")],
            &[("fencing-token", b"34"), ("x-fencing-token", b"34")],
            &[("x-fencing-token", b""), ("fencing-token", b"34")],
            &[("fencing-token", b"34, 99")],
            &[("fencing-token", b"34,")],
        ];
        for case in cases {
            let refusal = read(case).unwrap_err();
            assert_eq!(refusal.reason, Reason::MalformedToken, "{case:?}");
        }
    }

    #[test]
    fn anything_but_one_number_is_malformed() {
        // T2, T4, T5, T6, T8, T10, T11
        let long = vec![b'1'; 10_000];
        let cases: &[&[u8]] = &[
            b"",
            b" ",
            b"\t",
            b"3 4",
            b"34;v=1",
            b"\"34\"",
            b"+34",
            b"-1",
            b"-0",
            b"3.4e1",
            b"0x22",
            b"34_0",
            b"34.",
            b".34",
            b"1.2.3",
            b"0",
            b"18446744073709551616",
            b"\xc2\xa034",
            b"\xef\xbb\xbf34",
            b"\xd9\xa3\xd9\xa4",
            &long,
        ];
        for case in cases {
            let refusal = read(&[("fencing-token", case)]).unwrap_err();
            assert_eq!(refusal.reason, Reason::MalformedToken, "{case:?}");
        }
    }

    #[test]
    fn the_detail_says_what_is_wrong_and_repeats_nothing_that_was_sent() {
        let refusal = read(&[("fencing-token", b"<script>,\x80")]).unwrap_err();
        assert_eq!(
            refusal.detail,
            "fencing-token is a list; send exactly one token"
        );
        let refusal = read(&[("x-fencing-token", b"<script>")]).unwrap_err();
        assert!(
            refusal
                .detail
                .starts_with("x-fencing-token: the token is not")
        );
        assert!(!refusal.detail.contains("script"));
    }

    #[test]
    fn a_name_that_is_listed_twice_is_read_once() {
        let names = [names::FENCING_TOKEN.clone(), names::FENCING_TOKEN.clone()];
        let headers = headers(&[("fencing-token", b"34")]);
        assert_eq!(read_tokens(&headers, &names).unwrap(), Token::new(0, 34));
    }

    #[test]
    fn a_holder_is_visible_ascii_on_one_line() {
        let longest = [b'h'; MAX_HOLDER_BYTES];
        for value in [&b"pod-7/main"[..], b" padded\t", &longest] {
            let holder = read_holder(&headers(&[("fencing-holder", value)])).unwrap();
            assert_eq!(holder.unwrap().as_bytes(), trim(value));
        }
        assert!(read_holder(&HeaderMap::new()).unwrap().is_none());
    }

    #[test]
    fn any_other_holder_is_refused() {
        let too_long = [b'h'; MAX_HOLDER_BYTES + 1];
        for value in [
            &b""[..],
            b" ",
            b"two words",
            b"caf\xc3\xa9",
            b"a\tb",
            &too_long,
        ] {
            let refusal = read_holder(&headers(&[("fencing-holder", value)])).unwrap_err();
            assert_eq!(refusal.reason, Reason::BadRequest, "{value:?}");
        }
        let twice = headers(&[("fencing-holder", b"a"), ("fencing-holder", b"a")]);
        assert_eq!(read_holder(&twice).unwrap_err().reason, Reason::BadRequest);
    }
}
