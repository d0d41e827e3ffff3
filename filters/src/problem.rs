//! The one place where a [`Refusal`] becomes a response.
//!
//! The body is `application/problem+json` (RFC 9457) with the members `type`, `title`, `status`,
//! `detail`, `reason`, and, where they are known, `key`, `token` and `mark`. Tokens are strings:
//! JavaScript loses digits above 2^53. `Fencing-Outcome` is always there and says whether the
//! client may assume that nothing happened.
//!
//! A gRPC client gets a trailers-only response instead: HTTP 200 with `grpc-status` and
//! `grpc-message` in the head, since gRPC libraries read nothing else. An answer to HEAD has the
//! header of the answer to GET, `Content-Length` included, and no body (RFC 9110, section 9.3.2).
//!
//! ```
//! use bytes::Bytes;
//! use fencegate_filters::{Reason, Refusal, Rendering, problem};
//!
//! let refusal = Refusal::new(Reason::TokenRequired, "send Fencing-Token with the write");
//! let response = problem::respond::<Bytes>(&refusal, &Rendering::default());
//! assert_eq!(response.status(), 428);
//! assert_eq!(response.headers()["fencing-outcome"], "not-forwarded");
//! ```

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::{Outcome, Refusal, Token, names};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What `grpc-message` must encode: all but space and visible ASCII, and the percent sign (gRPC
/// over HTTP/2, "Responses"). Bytes above 127 are always encoded.
const GRPC_ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// How a refusal is shown to one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rendering {
    /// Whether the mark is shown (`fence.reveal_mark`).
    pub reveal_mark: bool,
    /// What stands for 409 (`fence.refuse_status`).
    pub refuse_status: StatusCode,
    /// Whether the client speaks gRPC.
    pub grpc: bool,
    /// Whether the request was HEAD, whose answer has no body.
    pub head: bool,
}

impl Rendering {
    /// The rendering for a request, with the route's choices left at their defaults.
    #[must_use]
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        Self {
            grpc: is_grpc(headers),
            head: method == Method::HEAD,
            ..Self::default()
        }
    }

    /// The HTTP status of `refusal`, gRPC left aside.
    #[must_use]
    pub fn status(&self, refusal: &Refusal) -> StatusCode {
        match refusal.reason.status() {
            StatusCode::CONFLICT => self.refuse_status,
            status => status,
        }
    }

    fn mark(&self, refusal: &Refusal) -> Option<Token> {
        refusal.mark.filter(|_| self.reveal_mark)
    }
}

impl Default for Rendering {
    fn default() -> Self {
        Self {
            reveal_mark: true,
            refuse_status: StatusCode::CONFLICT,
            grpc: false,
            head: false,
        }
    }
}

/// Whether a request is gRPC: its content type begins with `application/grpc`.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const PREFIX: &[u8] = b"application/grpc";
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.as_bytes().get(..PREFIX.len()))
        .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// The response that tells a client of `refusal`.
#[must_use]
pub fn respond<B>(refusal: &Refusal, rendering: &Rendering) -> Response<B>
where
    B: From<Bytes>,
{
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(&names::FENCING_OUTCOME, outcome(refusal));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(mark) = rendering.mark(refusal) {
        put(&mut headers, names::FENCING_MARK.clone(), mark.to_string());
    }
    if let Some(wait) = refusal.retry_after {
        // Rounded up: a client that comes too early is only refused again.
        let seconds = wait
            .as_secs()
            .saturating_add(u64::from(wait.subsec_nanos() > 0));
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(methods) = &refusal.allow {
        headers.insert(ALLOW, HeaderValue::clone(methods));
    }
    let (status, body) = if rendering.grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(
            &GRPC_STATUS,
            HeaderValue::from(u16::from(refusal.reason.grpc_status())),
        );
        let message = refusal.to_string();
        let message = utf8_percent_encode(&message, GRPC_ENCODED).to_string();
        put(&mut headers, GRPC_MESSAGE.clone(), message);
        (StatusCode::OK, Bytes::new())
    } else {
        let body = json(refusal, rendering);
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let body = if rendering.head { Bytes::new() } else { body };
        (rendering.status(refusal), body)
    };
    let mut response = Response::new(B::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The same as a complete HTTP/1.1 message that ends the connection, for a client whose head was
/// too broken for the codec: neither its route nor its method is known.
#[must_use]
pub fn raw(refusal: &Refusal) -> Vec<u8> {
    let mut response = respond::<Bytes>(refusal, &Rendering::default());
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    let status = response.status();
    let phrase = status.canonical_reason().unwrap_or_default();
    let mut message = format!("HTTP/1.1 {} {phrase}\r\n", status.as_str()).into_bytes();
    for (name, value) in response.headers() {
        message.extend_from_slice(name.as_str().as_bytes());
        message.extend_from_slice(b": ");
        message.extend_from_slice(value.as_bytes());
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(response.body());
    message
}

fn outcome(refusal: &Refusal) -> HeaderValue {
    HeaderValue::from_static(match refusal.outcome {
        Outcome::NotForwarded => Outcome::NotForwarded.as_str(),
        // To a client that gets a refusal, all else is unknown.
        Outcome::Completed | Outcome::Unknown => Outcome::Unknown.as_str(),
    })
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // A token and a percent-encoded text are always legal values.
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        headers.insert(name, value);
    }
}

/// The members of a problem, in the order in which they are written.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<&'a str>,
}

fn json(refusal: &Refusal, rendering: &Rendering) -> Bytes {
    let reason = refusal.reason.as_str();
    let mut kind = String::with_capacity(40);
    // Writing to a string does not fail.
    let _ = write!(kind, "urn:fencegate:{reason}");
    let problem = Problem {
        r#type: kind,
        title: refusal.reason.title(),
        status: rendering.status(refusal).as_u16(),
        detail: &refusal.detail,
        reason,
        key: refusal.key.as_ref().map(crate::Key::as_str),
        token: refusal.token.map(|token| token.to_string()),
        mark: rendering.mark(refusal).map(|mark| mark.to_string()),
        holder: refusal.holder.as_deref(),
    };
    // Strings and numbers always have a JSON form, so there is no error to report.
    serde_json::to_vec(&problem).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, Reason};
    use serde_json::{Value, json};
    use std::sync::Arc;
    use std::time::Duration;

    fn stale() -> Refusal {
        let mut refusal = Refusal::new(Reason::StaleToken, "take the lock again");
        refusal.key = Some(Key::from_text("objects/42"));
        refusal.token = Token::new(0, 33);
        refusal.mark = Token::new(7, 34);
        refusal
    }

    fn render(refusal: &Refusal, rendering: Rendering) -> (Response<Bytes>, Value) {
        let response = respond::<Bytes>(refusal, &rendering);
        let body = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response, body)
    }

    #[test]
    fn a_refusal_is_a_problem_with_all_that_is_known() {
        let (response, body) = render(&stale(), Rendering::default());
        assert_eq!(response.status(), StatusCode::CONFLICT);
        let headers = response.headers();
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
        assert_eq!(headers["fencing-mark"], "7.34");
        assert_eq!(headers["fencing-outcome"], "not-forwarded");
        assert_eq!(headers[CACHE_CONTROL], "no-store");
        assert_eq!(headers[CONTENT_LENGTH], response.body().len().to_string());
        let wanted = json!({
            "type": "urn:fencegate:stale-token", "title": "Stale fencing token", "status": 409,
            "detail": "take the lock again", "reason": "stale-token",
            "key": "objects/42", "token": "33", "mark": "7.34",
        });
        assert_eq!(body, wanted);
    }

    #[test]
    fn the_mark_is_shown_only_where_it_may_be() {
        // A11
        let rendering = Rendering {
            reveal_mark: false,
            ..Rendering::default()
        };
        let (response, body) = render(&stale(), rendering);
        assert!(!response.headers().contains_key("fencing-mark"));
        assert_eq!(body["mark"], Value::Null);
        assert_eq!(body["token"], "33");
    }

    #[test]
    fn the_status_of_a_conflict_can_be_another_and_no_other_status_can() {
        let rendering = Rendering {
            refuse_status: StatusCode::PRECONDITION_FAILED,
            ..Rendering::default()
        };
        let (response, body) = render(&stale(), rendering);
        assert_eq!(response.status(), 412);
        assert_eq!(body["status"], 412);
        let (response, body) = render(&Refusal::new(Reason::NoRoute, "x"), rendering);
        assert_eq!(response.status(), 404);
        assert_eq!(body["status"], 404);
    }

    #[test]
    fn hostile_text_stays_within_its_json_string() {
        // A6
        let mut refusal = stale();
        let text = "objects/\"},\u{0}\r\nx\u{1b}[31m\u{2028}\\</script>é";
        refusal.key = Some(Key::from_text(text));
        refusal.detail = text.into();
        let (response, body) = render(&refusal, Rendering::default());
        assert_eq!(body["key"], text);
        assert_eq!(body["detail"], text);
        assert!(!response.body().iter().any(u8::is_ascii_control));
    }

    #[test]
    fn grpc_gets_trailers_only() {
        let mut request = HeaderMap::new();
        let kind = HeaderValue::from_static("Application/gRPC+proto");
        request.insert(CONTENT_TYPE, kind);
        let rendering = Rendering::of(&Method::POST, &request);
        let mut refusal = stale();
        refusal.detail = "100% é\r\n".into();
        let (response, _) = render(&refusal, rendering);
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.body().is_empty());
        let headers = response.headers();
        assert_eq!(headers[CONTENT_TYPE], "application/grpc");
        assert_eq!(headers["grpc-status"], "10");
        assert_eq!(headers["grpc-message"], "stale-token: 100%25 %C3%A9%0D%0A");
        assert_eq!(headers["fencing-mark"], "7.34");
        assert_eq!(headers["fencing-outcome"], "not-forwarded");
        assert!(!headers.contains_key(CONTENT_LENGTH));
    }

    #[test]
    fn other_content_types_are_not_grpc() {
        for kind in ["application/json", "application/grp", "text/plain", ""] {
            let mut request = HeaderMap::new();
            request.insert(CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
            assert!(!is_grpc(&request), "{kind}");
        }
    }

    #[test]
    fn an_answer_to_head_has_the_same_header_and_no_body() {
        let rendering = Rendering::of(&Method::HEAD, &HeaderMap::new());
        let (head, _) = render(&stale(), rendering);
        let (get, _) = render(&stale(), Rendering::default());
        assert!(head.body().is_empty());
        assert_eq!(head.headers(), get.headers());
        assert_eq!(head.status(), get.status());
    }

    #[test]
    fn retry_after_is_in_whole_seconds_and_never_too_early() {
        let mut refusal = Refusal::new(Reason::Draining, "x");
        assert_eq!(
            render(&refusal, Rendering::default()).0.headers()[RETRY_AFTER],
            "1"
        );
        refusal.retry_after = Some(Duration::from_millis(2001));
        assert_eq!(
            render(&refusal, Rendering::default()).0.headers()[RETRY_AFTER],
            "3"
        );
        refusal.retry_after = Some(Duration::MAX);
        let _ = render(&refusal, Rendering::default());
    }

    #[test]
    fn the_methods_that_are_allowed_are_named() {
        let methods = Arc::new(HeaderValue::from_static("GET, PUT"));
        let refusal = Refusal::new(Reason::MethodNotAllowed, "x").with_allow(methods);
        let (response, _) = render(&refusal, Rendering::default());
        assert_eq!(response.headers()[ALLOW], "GET, PUT");
    }

    #[test]
    fn an_outcome_that_is_not_known_is_said_to_be_so() {
        for outcome in [Outcome::Unknown, Outcome::Completed] {
            let (response, _) = render(&stale().with_outcome(outcome), Rendering::default());
            assert_eq!(response.headers()["fencing-outcome"], "unknown");
        }
    }

    #[test]
    fn a_raw_answer_is_one_whole_message_that_closes() {
        let message = String::from_utf8(raw(&Refusal::new(Reason::BadRequest, "a \"b\""))).unwrap();
        let (head, body) = message.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"));
        assert!(head.contains("\r\nconnection: close"));
        assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())));
        assert!(head.contains("\r\nfencing-outcome: not-forwarded"));
        assert_eq!(
            serde_json::from_str::<Value>(body).unwrap()["reason"],
            "bad-request"
        );
    }

    #[test]
    fn every_reason_has_an_answer_in_every_form() {
        for &reason in Reason::ALL {
            let refusal = Refusal::new(reason, "x");
            let (response, body) = render(&refusal, Rendering::default());
            assert_eq!(body["reason"], reason.as_str());
            assert_eq!(body["status"], response.status().as_u16());
            let message = String::from_utf8(raw(&refusal)).unwrap();
            assert!(!message.contains(" \r\n"), "{reason:?} has a reason phrase");
        }
    }
}
