//! The head of a request, before any decision is made from it: what different servers read in
//! different ways is refused here, so that what is checked is what counts.
//!
//! - A `Connection` option that names a guarded field asks the next hop to delete it, on whichever
//!   of several `Connection` lines it stands. One that is no token (RFC 9110, section 7.6.1), such
//!   as `"fencing-token"` in quotes or `fencing-token;q=1`, may be read as that name elsewhere.
//! - A field whose name differs from a guarded one only in `_`, `.` and their like in place of `-`
//!   is the same field to servers that follow CGI. For a token header the reason is
//!   `malformed-token`, since it is a second token; for all others `bad-request`.
//! - `Host` must name one host, and agree with the target's authority (RFC 9112, section 3.2;
//!   RFC 9113, section 8.3.1). What a host is, and when two are the same, is what it is in keys
//!   ([`normalize_host`]); ports are the same when they are so after the scheme's default.
//! - CONNECT and the authority and asterisk forms of the target are refused, and so is TRACE in
//!   any case of its letters, since it would echo an injected credential.
//! - An expectation other than `100-continue` is not met (RFC 9110, section 10.1.1).
//!
//! Framing (`Content-Length`, `Transfer-Encoding`) is the codec's to judge.
//!
//! ```
//! use fencegate_filters::{GuardedNames, guard, names};
//! use http::Request;
//!
//! let guarded = GuardedNames::new([names::FENCING_TOKEN.clone()], []);
//! let (head, ()) = Request::put("/objects/42")
//!     .header("host", "storage.internal")
//!     .header("connection", "keep-alive")
//!     .header("connection", "fencing-token")
//!     .body(())?
//!     .into_parts();
//! assert!(guard::check(&head, &guarded).is_err());
//! # Ok::<(), http::Error>(())
//! ```

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Uri, Version};

use crate::key::host::{HostError, normalize_host, split_port};
use crate::names::{self, Lengths, alike, elements, is_token, trim};
use crate::{Peer, Reason, Refusal};

/// The fields from which decisions are made. A clone is a reference count.
#[derive(Clone, Debug)]
pub struct GuardedNames {
    names: Arc<[Guarded]>,
    lengths: Lengths,
}

#[derive(Debug)]
struct Guarded {
    name: HeaderName,
    token: bool,
}

impl GuardedNames {
    /// Guards `tokens` (the headers that carry tokens) and `others` (those that a key is made of)
    /// besides `Host`, `Authorization`, `Content-Length`, `Transfer-Encoding` and
    /// `Fencing-Holder`, which always are.
    #[must_use]
    pub fn new(
        tokens: impl IntoIterator<Item = HeaderName>,
        others: impl IntoIterator<Item = HeaderName>,
    ) -> Self {
        let always = [
            HOST,
            AUTHORIZATION,
            CONTENT_LENGTH,
            TRANSFER_ENCODING,
            names::FENCING_HOLDER.clone(),
        ];
        let tokens = tokens.into_iter().map(|name| Guarded { name, token: true });
        let others = others.into_iter().chain(always);
        let names: Arc<[Guarded]> = tokens
            .chain(others.map(|name| Guarded { name, token: false }))
            .collect();
        let mut lengths = Lengths::default();
        for guarded in &*names {
            lengths.add(guarded.name.as_str().as_bytes());
        }
        Self { names, lengths }
    }

    fn alike(&self, name: &[u8]) -> Option<&Guarded> {
        if !self.lengths.may_hold(name) {
            return None;
        }
        self.names
            .iter()
            .find(|guarded| alike(guarded.name.as_str().as_bytes(), name))
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.names.iter().any(|guarded| guarded.name == name)
    }
}

/// All checks of this module, in the order that gives the most telling answer.
///
/// # Errors
///
/// The refusal of the first check that fails.
pub fn check(head: &Parts, guarded: &GuardedNames) -> Result<(), Refusal> {
    check_target(&head.method, &head.uri)?;
    check_host(head.version, &head.uri, &head.headers)?;
    check_names(&head.headers, guarded)?;
    check_expect(&head.headers)
}

/// Refuses methods and forms of the target that a gateway has no business with.
///
/// # Errors
///
/// [`Reason::MethodNotAllowed`] for TRACE, [`Reason::BadRequest`] for CONNECT, the authority and
/// asterisk forms, and schemes other than `http` and `https`.
pub fn check_target(method: &Method, uri: &Uri) -> Result<(), Refusal> {
    // Methods are case-sensitive, but not to every server.
    let is = |name: &str| method.as_str().eq_ignore_ascii_case(name);
    if is("TRACE") {
        return Err(Refusal::new(
            Reason::MethodNotAllowed,
            "TRACE would echo the headers that the gateway adds; use another method",
        ));
    }
    if is("CONNECT") || (uri.scheme().is_none() && uri.authority().is_some()) {
        return Err(bad(
            "the gateway opens no tunnels; send the path of the resource",
        ));
    }
    if uri.path() == "*" {
        return Err(bad("the target * names no resource; send the path of one"));
    }
    match uri.scheme_str() {
        None | Some("http" | "https") => Ok(()),
        Some(_) => Err(bad("the target's scheme is neither http nor https")),
    }
}

/// Refuses a target in absolute form whose scheme is not that of the connection: `https` without
/// TLS and `http` within it name a resource of another server (RFC 9110, section 7.4). A peer that
/// speaks for others may have been reached by either, and a peer that is not known by any.
///
/// In HTTP/2 every target has a scheme, and proxies leave there what their client asked for.
///
/// # Errors
///
/// [`Reason::BadRequest`].
pub fn check_scheme(version: Version, uri: &Uri, peer: Option<&Peer>) -> Result<(), Refusal> {
    match (uri.scheme_str(), peer) {
        (Some(scheme), Some(peer)) if version < Version::HTTP_2 && !peer.is_reached_by(scheme) => {
            Err(bad(
                "the target's scheme is not that of this connection; send the path alone",
            ))
        }
        _ => Ok(()),
    }
}

/// Refuses a request that does not name exactly one host.
///
/// # Errors
///
/// [`Reason::BadRequest`].
pub fn check_host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut lines = headers.get_all(HOST).iter();
    let host = lines.next();
    if lines.next().is_some() {
        return Err(bad("Host stands on more than one line; send it once"));
    }
    let host = host
        .map(|line| HostPort::parse(trim(line.as_bytes())))
        .transpose()?;
    let authority = uri
        .authority()
        .map(|authority| HostPort::parse(authority.as_str().as_bytes()))
        .transpose()?;
    match (host, authority) {
        (Some(host), Some(authority)) if !host.same(&authority, uri.scheme_str()) => Err(bad(
            "the target's authority is not the Host; send the same in both",
        )),
        (None, None) if version > Version::HTTP_10 => {
            Err(bad("Host is missing; send the name of the host"))
        }
        // Unlike in HTTP/2, an authority in the target does not stand for Host.
        (None, Some(_)) if version == Version::HTTP_11 => {
            Err(bad("Host is missing; send the target's authority in it"))
        }
        _ => Ok(()),
    }
}

/// Refuses a head that asks a hop to delete a guarded field, or has a second spelling of one.
///
/// # Errors
///
/// [`Reason::MalformedToken`] for a second spelling of a token header, else
/// [`Reason::BadRequest`].
pub fn check_names(headers: &HeaderMap, guarded: &GuardedNames) -> Result<(), Refusal> {
    for line in headers.get_all(CONNECTION) {
        // Nearly every line is one of these.
        if matches!(line.as_bytes(), b"keep-alive" | b"close") {
            continue;
        }
        for option in elements(line.as_bytes()) {
            if !is_token(option) {
                return Err(bad(
                    "Connection has an option that is no token; send names and commas alone",
                ));
            }
            if let Some(named) = guarded.alike(option) {
                return Err(Refusal::new(
                    Reason::BadRequest,
                    format!(
                        "Connection names {}, which must reach the upstream; take it out of Connection",
                        named.name
                    ),
                ));
            }
        }
    }
    for name in headers.keys() {
        let spelling = name.as_str().as_bytes();
        // A guarded name itself is nobody's twin; to see that first spares comparing by letters.
        if !guarded.lengths.may_hold(spelling) || guarded.contains(name) {
            continue;
        }
        if let Some(twin) = guarded.alike(spelling) {
            let reason = if twin.token {
                Reason::MalformedToken
            } else {
                Reason::BadRequest
            };
            return Err(Refusal::new(
                reason,
                format!(
                    "{name} is {} to servers that make variables of names; send {} alone",
                    twin.name, twin.name
                ),
            ));
        }
    }
    Ok(())
}

/// Refuses expectations that the gateway can't meet.
///
/// # Errors
///
/// [`Reason::ExpectationFailed`].
pub fn check_expect(headers: &HeaderMap) -> Result<(), Refusal> {
    for line in headers.get_all(EXPECT) {
        for expectation in elements(line.as_bytes()) {
            if !expectation.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::new(
                    Reason::ExpectationFailed,
                    "Expect asks for something other than 100-continue; leave it out",
                ));
            }
        }
    }
    Ok(())
}

/// A host in its one spelling and, where one is given, its port.
struct HostPort<'a> {
    host: Cow<'a, str>,
    port: Option<u16>,
}

impl<'a> HostPort<'a> {
    fn parse(text: &'a [u8]) -> Result<Self, Refusal> {
        let Ok(text) = std::str::from_utf8(text) else {
            return Err(bad("the host is not in ASCII; send its Punycode form"));
        };
        let refuse = |error: HostError| Refusal::new(Reason::BadRequest, error.to_string());
        let host = normalize_host(text).map_err(refuse)?;
        let (_, port) = split_port(text).map_err(refuse)?;
        Ok(Self {
            host,
            // An empty port is none (RFC 3986, section 3.2.3).
            port: port.parse().ok(),
        })
    }

    fn same(&self, other: &Self, scheme: Option<&str>) -> bool {
        let default = match scheme {
            Some("https") => 443,
            _ => 80,
        };
        self.host == other.host && self.port.unwrap_or(default) == other.port.unwrap_or(default)
    }
}

fn bad(detail: &'static str) -> Refusal {
    Refusal::new(Reason::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Request};

    fn guarded() -> GuardedNames {
        GuardedNames::new(
            [names::FENCING_TOKEN.clone(), names::X_FENCING_TOKEN.clone()],
            [HeaderName::from_static("destination")],
        )
    }

    fn head(method: &str, target: &str, version: Version, lines: &[(&str, &[u8])]) -> Parts {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .version(version);
        for (name, value) in lines {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        request.body(()).unwrap().into_parts().0
    }

    fn reason(head: &Parts) -> Option<Reason> {
        check(head, &guarded()).err().map(|refusal| refusal.reason)
    }

    fn put(lines: &[(&str, &[u8])]) -> Option<Reason> {
        let mut all: Vec<(&str, &[u8])> = vec![("host", b"storage")];
        all.extend_from_slice(lines);
        reason(&head("PUT", "/objects/42", Version::HTTP_11, &all))
    }

    #[test]
    fn an_ordinary_request_passes() {
        let lines: &[(&str, &[u8])] = &[
            ("fencing-token", b"34"),
            ("x-fencing-token", b"34"),
            ("authorization", b"Bearer x"),
            ("connection", b"keep-alive, x-other"),
            ("expect", b"100-Continue"),
            ("user_agent", b"x"),
        ];
        assert_eq!(put(lines), None);
    }

    #[test]
    fn a_connection_option_may_not_name_a_guarded_field() {
        // T20, T21
        for option in [
            "fencing-token",
            "Fencing-Token",
            "x-fencing-token",
            "fencing_token",
            "fencing-holder",
            "HOST",
            "content-length",
            "transfer-encoding",
            "authorization",
            "Destination",
        ] {
            let value = format!("close,\t{option} ,x");
            assert_eq!(
                put(&[("connection", value.as_bytes())]),
                Some(Reason::BadRequest),
                "{option}"
            );
            assert_eq!(
                put(&[
                    ("connection", b"keep-alive"),
                    ("connection", option.as_bytes())
                ]),
                Some(Reason::BadRequest),
                "{option} on a second line"
            );
        }
    }

    #[test]
    fn a_connection_option_is_a_token() {
        for option in [
            "\"fencing-token\"",
            "fencing-token;q=1",
            "fencing-token=1",
            "fencing token",
            "fencing-token/1",
            "(fencing-token)",
            "\u{a0}fencing-token",
            "\"close\"",
            "close;q=0",
        ] {
            for value in [option.to_owned(), format!("keep-alive, {option}")] {
                assert_eq!(
                    put(&[("connection", value.as_bytes())]),
                    Some(Reason::BadRequest),
                    "{value}"
                );
            }
        }
        for value in [
            "",
            ",",
            ", close,,\tx-a ,",
            "Keep-Alive",
            "x!#$%&'*+.^_`|~0",
        ] {
            assert_eq!(put(&[("connection", value.as_bytes())]), None, "{value}");
        }
    }

    #[test]
    fn a_second_spelling_of_a_guarded_field_is_refused() {
        // T18
        for name in [
            "fencing.token",
            "Fencing!Token",
            "fencing_token",
            "Fencing_Token",
            "X_Fencing_Token",
            "x-fencing_token",
        ] {
            assert_eq!(
                put(&[(name, b"34")]),
                Some(Reason::MalformedToken),
                "{name}"
            );
            let beside: &[(&str, &[u8])] = &[("fencing-token", b"34"), (name, b"34")];
            assert_eq!(put(beside), Some(Reason::MalformedToken), "{name}");
        }
        for name in ["content_length", "Transfer_Encoding", "fencing_holder"] {
            assert_eq!(put(&[(name, b"5")]), Some(Reason::BadRequest), "{name}");
        }
    }

    #[test]
    fn a_guarded_name_may_have_an_underscore_of_its_own() {
        let guarded = GuardedNames::new([], [HeaderName::from_static("x_tenant")]);
        let own = head("PUT", "/", Version::HTTP_11, &[("x_tenant", b"a")]);
        assert!(check_names(&own.headers, &guarded).is_ok());
        let other = head("PUT", "/", Version::HTTP_11, &[("x-tenant", b"a")]);
        assert!(check_names(&other.headers, &guarded).is_err());
    }

    #[test]
    fn http_1_1_names_exactly_one_host() {
        // K15
        let bad: &[&[(&str, &[u8])]] = &[
            &[],
            &[("host", b"")],
            &[("host", b" ")],
            &[("host", b"a"), ("host", b"a")],
            &[("host", b"a, b")],
            &[("host", b"user@a")],
            &[("host", b"a b")],
            &[("host", b"a/b")],
            &[("host", b"a\\b")],
            &[("host", b"a?b")],
            &[("host", b"a#b")],
            &[("host", b"a%2eb")],
            &[("host", b"a..b")],
            &[("host", b".")],
            &[("host", b":80")],
            &[("host", b"a:b")],
            &[("host", b"a:1:2")],
            &[("host", b"a:+80")],
            &[("host", b"a:65536")],
            &[("host", b"a:00000000000000000000080")],
            &[("host", b"[::1")],
            &[("host", b"[::1]x")],
            &[("host", b"[fe80::1%25eth0]")],
            &[("host", b"::1")],
            &[("host", b"caf\xc3\xa9")],
            &[("host", &[b'a'; 256])],
        ];
        for lines in bad {
            let head = head("GET", "/", Version::HTTP_11, lines);
            // Leading zeros of a port are legal.
            let legal = lines.iter().any(|line| line.1.starts_with(b"a:000"));
            let wanted = (!legal).then_some(Reason::BadRequest);
            assert_eq!(reason(&head), wanted, "{lines:?}");
        }
        for host in [
            "a",
            "A.example.",
            "a:80",
            "a:",
            "10.0.0.1:8080",
            "[::1]:80",
            "my_app",
        ] {
            let head = head("GET", "/", Version::HTTP_11, &[("host", host.as_bytes())]);
            assert_eq!(reason(&head), None, "{host}");
        }
    }

    #[test]
    fn http_1_0_may_leave_the_host_out() {
        assert_eq!(reason(&head("GET", "/", Version::HTTP_10, &[])), None);
        assert_eq!(
            reason(&head("GET", "/", Version::HTTP_10, &[("host", b"")])),
            Some(Reason::BadRequest)
        );
    }

    #[test]
    fn the_authority_of_the_target_is_the_host() {
        // K14, K17
        let cases: &[(&str, &str, bool)] = &[
            ("http://a/x", "a", true),
            ("http://A/x", "a:80", true),
            ("http://a:80/x", "a", true),
            ("https://a/x", "a:443", true),
            ("https://a/x", "a:80", false),
            ("http://a:8080/x", "a", false),
            ("http://b/x", "a", false),
            ("http://a./x", "A", true),
            ("http://[0::1]/x", "[::1]:80", true),
            ("http://[::1]:81/x", "[::1]", false),
            ("http://user@a/x", "a", false),
            ("ftp://a/x", "a", false),
        ];
        for &(target, host, same) in cases {
            for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
                let head = head("GET", target, version, &[("host", host.as_bytes())]);
                assert_eq!(reason(&head).is_none(), same, "{target} {host} {version:?}");
            }
        }
    }

    #[test]
    fn only_in_http_2_does_an_authority_stand_for_the_host() {
        assert_eq!(
            reason(&head("GET", "http://a/", Version::HTTP_2, &[])),
            None
        );
        let head = head("GET", "http://a/", Version::HTTP_11, &[]);
        assert_eq!(reason(&head), Some(Reason::BadRequest));
    }

    #[test]
    fn connect_asterisk_and_trace_are_refused() {
        // K18
        let cases = [
            ("CONNECT", "a:443", Reason::BadRequest),
            ("GET", "a:443", Reason::BadRequest),
            ("connect", "/x", Reason::BadRequest),
            ("OPTIONS", "*", Reason::BadRequest),
            ("TRACE", "/x", Reason::MethodNotAllowed),
            ("trace", "/x", Reason::MethodNotAllowed),
        ];
        for (method, target, wanted) in cases {
            let head = head(method, target, Version::HTTP_11, &[("host", b"a:443")]);
            assert_eq!(reason(&head), Some(wanted), "{method} {target}");
        }
    }

    #[test]
    fn an_unknown_expectation_is_not_met() {
        // S15
        for value in ["200-ok", "100-continue, x", "100-continue=1"] {
            assert_eq!(
                put(&[("expect", value.as_bytes())]),
                Some(Reason::ExpectationFailed),
                "{value}"
            );
        }
        let second: &[(&str, &[u8])] = &[("expect", b"100-continue"), ("expect", b"x")];
        assert_eq!(put(second), Some(Reason::ExpectationFailed));
    }
}
