//! Names of headers that the config gives a meaning.

use http::HeaderName;

use super::decode::Decoder;
use super::problem::{Position, Spanned, quoted};

/// What a header is named for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It carries a token.
    Token,
    /// It is set on requests to an upstream.
    Upstream,
}

/// Fields that frame the message or name its connection: they belong to the HTTP codec.
const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields that mean something else than a token to the gate.
const TAKEN: &[&str] = &[
    "authorization",
    "fencing-decision",
    "fencing-holder",
    "fencing-mark",
    "fencing-outcome",
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];

/// The name of a header, in lower case.
pub(super) fn name(
    d: &mut Decoder<'_>,
    text: &str,
    at: &Position,
    used: Use,
) -> Option<Spanned<HeaderName>> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        d.problem(at, format!("{} is not a header name", quoted(text)));
        return None;
    };
    let known = name.as_str();
    if FRAMING.contains(&known) || (used == Use::Token && TAKEN.contains(&known)) {
        let purpose = match used {
            Use::Token => "carry a token",
            Use::Upstream => "be set on requests to an upstream",
        };
        d.problem(at, format!("the header {known} can't {purpose}"));
        return None;
    }
    Some(Spanned::new(name, at.clone()))
}
