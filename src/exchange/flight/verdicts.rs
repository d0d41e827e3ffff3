//! What is said of a request that did not end well, and what a response's head tells of its
//! connection.

use std::time::Duration;

use fencegate_filters::fence::{Cut, Permit};
use fencegate_filters::{Outcome, Reason, Refusal};
use http::HeaderName;

use crate::upstream::wire::UploadError;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The answer to a request that was cut.
pub(super) fn cut(why: Cut, permit: Option<&Permit>) -> Refusal {
    let mut refusal = match why {
        Cut::Superseded => Refusal::new(
            Reason::Superseded,
            "A newer fencing token came while this request was in flight, and it was cut.",
        ),
        Cut::Stopping => Refusal::new(
            Reason::ShuttingDown,
            "The gateway is stopping, and this request was cut; the upstream may have applied it.",
        ),
    };
    if let Some((key, token, mark)) = permit.and_then(Permit::superseded_by) {
        refusal.key = Some(key);
        refusal.token = Some(token);
        refusal.mark = Some(mark);
    }
    refusal.with_outcome(Outcome::Unknown)
}

/// The refusal for a request that failed after it had been handed to the codec.
pub(super) fn failed(upload: Option<UploadError>) -> Refusal {
    let (reason, detail) = match upload {
        Some(UploadError::TooLarge) => (
            Reason::BodyTooLarge,
            "The body is above the limit; the upload was cut, and the upstream may have seen its beginning.",
        ),
        Some(UploadError::TooSlow) => (
            Reason::RequestTimeout,
            "The body came too slowly; the upload was cut, and the upstream may have seen its beginning.",
        ),
        Some(UploadError::Client) => (
            Reason::BadRequest,
            "The body broke off or was malformed; the upload was cut, and the upstream may have seen its beginning.",
        ),
        None => (
            Reason::UpstreamFailed,
            "The upstream closed the connection or answered with broken HTTP; it may have applied the request.",
        ),
    };
    Refusal::new(reason, detail).with_outcome(Outcome::Unknown)
}

/// Whether recipients would find the end of this response in different places, or its content
/// coded in a way that is not passed on: the codec takes the first of two framings and says
/// nothing of the other (RFC 9112, section 6.3). A length that is told twice would be passed on so,
/// and not every client takes that for one (RFC 9110, section 8.6).
pub(super) fn is_ambiguous(headers: &http::HeaderMap) -> bool {
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    let listed = lengths
        .next()
        .is_some_and(|length| length.as_bytes().contains(&b','));
    if listed || lengths.next().is_some() {
        return true;
    }
    let mut codings = headers.get_all(http::header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return false;
    };
    !coding
        .as_bytes()
        .trim_ascii()
        .eq_ignore_ascii_case(b"chunked")
        || codings.next().is_some()
        || headers.contains_key(http::header::CONTENT_LENGTH)
}

/// What the upstream allows an idle connection, less a margin: a request that meets the close on
/// its way is an unknown outcome.
pub(super) fn keep_alive_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get(&KEEP_ALIVE)?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| {
        let (name, seconds) = part.trim().split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("timeout")
            .then_some(seconds)
    })?;
    let allowed = Duration::from_secs(seconds.trim().parse().ok()?);
    Some(
        allowed
            .saturating_sub(Duration::from_secs(1))
            .max(allowed / 2),
    )
}
