//! What the gateway's own APIs have in common: who may call, what a call's body is, and what an
//! answer looks like.

mod connection;

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fencegate_filters::key::normalize_host;
use fencegate_filters::{Key, Reason, Refusal};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::TokenHash;

pub(crate) use self::connection::{HEADER_TIMEOUT, serve};

/// The most that one listing gives.
const MOST_LISTED: usize = 1000;

/// How long the body of a call may be.
const BODY_BYTES: usize = 16 << 10;

/// How long it may take to come.
const BODY_TIME: Duration = Duration::from_secs(10);

pub(crate) type Answer = Result<Response<Full<Bytes>>, Refusal>;

/// Which part of a list is asked for.
pub(crate) struct Page {
    pub(crate) prefix: String,
    pub(crate) after: Option<String>,
    pub(crate) limit: usize,
}

impl Page {
    /// Reads a query.
    pub(crate) fn read(query: &str) -> Result<Self, Refusal> {
        let bad = |detail: &'static str| Refusal::new(Reason::BadRequest, detail);
        let mut page = Self {
            prefix: String::new(),
            after: None,
            limit: 100,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match name {
                "prefix" => page.prefix = value,
                "after" => page.after = Some(value),
                "limit" => {
                    let limit = value.parse().ok();
                    page.limit = limit
                        .filter(|limit| (1..=MOST_LISTED).contains(limit))
                        .ok_or_else(|| bad("limit is a number from 1 to 1000."))?;
                }
                _ => return Err(bad("The parameters are prefix, after and limit.")),
            }
        }
        Ok(page)
    }
}

/// Who may call an API.
pub(crate) struct Callers {
    /// Its section in the config.
    section: &'static str,
    tokens: Vec<TokenHash>,
    /// Hosts by which it may be asked beside loopback: the one that it is bound to.
    host: Option<String>,
    /// Whether it may be asked by any name.
    any_host: bool,
}

impl Callers {
    /// The callers of the API of this section. Without `tokens` nobody has to prove who they are.
    pub(crate) fn new(section: &'static str, tokens: Vec<TokenHash>, host: &str) -> Self {
        Self {
            section,
            tokens,
            host: normalize_host(host).ok().map(|host| host.into_owned()),
            any_host: false,
        }
    }

    /// The same for programs on other machines, which know it by whatever name it has there. A page
    /// that makes a name resolve to it has no token.
    pub(crate) fn by_any_name(mut self) -> Self {
        self.any_host = true;
        self
    }

    /// A page on another site must not get here, be it by a request across sites or by a name that
    /// it makes resolve to this machine.
    pub(crate) fn check_site(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let forbidden = |detail: &'static str| Refusal::new(Reason::Forbidden, detail);
        let Some(host) = only(headers, &header::HOST) else {
            return Err(Refusal::new(
                Reason::BadRequest,
                "Send one Host: this API looks at it (RFC 9112, section 3.2).",
            ));
        };
        let host = host.to_str().ok();
        if !host.is_some_and(|host| self.any_host || self.is_own(host)) {
            return Err(forbidden(
                "This API answers only to localhost, to IP addresses, and to the host it is bound to.",
            ));
        }
        let origin = headers.get(header::ORIGIN).map(|origin| {
            let origin = origin.to_str().unwrap_or_default();
            origin.split_once("://").map(|pair| pair.1)
        });
        if origin.is_some_and(|origin| origin.is_none() || origin != host) {
            return Err(forbidden("This API answers no other site."));
        }
        let cross_site = headers
            .get("sec-fetch-site")
            .is_some_and(|site| site != "same-origin" && site != "none");
        if cross_site {
            return Err(forbidden("This API answers no other site."));
        }
        Ok(())
    }

    fn is_own(&self, host: &str) -> bool {
        let Ok(host) = normalize_host(host) else {
            return false;
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || bare.parse::<IpAddr>().is_ok()
            || self.host.as_deref() == Some(&*host)
    }

    /// How the hash of the bearer token begins, where there has to be one.
    pub(crate) fn check_token(&self, headers: &HeaderMap) -> Result<Option<String>, Refusal> {
        if self.tokens.is_empty() {
            return Ok(None);
        }
        let sent = only(headers, &header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().split_at_checked(b"Bearer ".len()))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map_or(&[][..], |(_, token)| token);
        let hash: [u8; 32] = Sha256::digest(sent).into();
        // All are compared, so that the time tells nothing of which one was near.
        let mut known = subtle::Choice::from(0);
        for token in &self.tokens {
            known |= token.as_bytes().ct_eq(&hash);
        }
        if bool::from(known) {
            let [one, two, three, four, ..] = hash;
            let begins = u32::from_be_bytes([one, two, three, four]);
            return Ok(Some(format!("sha256:{begins:08x}")));
        }
        Err(Refusal::new(
            Reason::Forbidden,
            format!(
                "Send one of the bearer tokens of {}.tokens in Authorization.",
                self.section
            ),
        ))
    }
}

/// A field that comes once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The key that one segment of a path names.
pub(crate) fn key_of(encoded: &str) -> Result<Key, Refusal> {
    let name = decode(encoded)?;
    let good = name.split_once('/').is_some_and(|(namespace, key)| {
        !namespace.is_empty() && (1..=Key::MAX_BYTES).contains(&key.len())
    });
    if good {
        return Ok(Key::from_text(&name));
    }
    let long = name
        .split_once('/')
        .is_some_and(|(_, key)| key.len() > Key::MAX_BYTES);
    let detail = match long {
        true => format!("The key is too long: the most is {} bytes.", Key::MAX_BYTES),
        false => "A key is NAMESPACE/KEY, as objects/42; in a URL it is percent-encoded into one segment: objects%2F42.".to_owned(),
    };
    Err(Refusal::new(Reason::BadRequest, detail))
}

pub(crate) fn not_allowed(methods: &'static str) -> Refusal {
    let refusal = Refusal::new(
        Reason::MethodNotAllowed,
        format!("Only {methods} is known here."),
    );
    refusal.with_allow(Arc::new(HeaderValue::from_static(methods)))
}

/// Runs what reads the disk away from the listener's thread.
pub(crate) async fn blocking<T, E>(
    read: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Refusal>
where
    T: Send + 'static,
    E: Display + Send + 'static,
{
    let unavailable = || {
        Refusal::new(
            Reason::StoreUnavailable,
            "The marks could not be read; the log says why.",
        )
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => {
            tracing::error!(%error, "marks could not be read for the admin API");
            Err(unavailable())
        }
        Err(_) => Err(unavailable()),
    }
}

pub(crate) fn decode(encoded: &str) -> Result<String, Refusal> {
    let mut escapes = encoded.split('%').skip(1);
    let hex = |text: &[u8]| text.iter().all(u8::is_ascii_hexdigit);
    if !escapes.all(|escape| escape.as_bytes().get(..2).is_some_and(hex)) {
        let detail =
            "A percent sign stands before two hexadecimal digits; one that is meant is %25.";
        return Err(Refusal::new(Reason::BadRequest, detail));
    }
    let decoded = percent_decode_str(encoded).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Refusal::new(Reason::BadRequest, "That is not UTF-8, percent-encoded."))
}

pub(crate) fn json(value: &impl Serialize) -> Answer {
    let text_of = serde_json::to_string(value)
        .map_err(|_| Refusal::new(Reason::StoreUnavailable, "The answer could not be written."))?;
    Ok(text(StatusCode::OK, "application/json", text_of + "\n"))
}

pub(crate) fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// Reads a call's body; `example` is what it could be.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, Refusal> {
    let bad = |why: &dyn Display| {
        let detail = format!("The body is not as it should be ({why}); send {example}.");
        Refusal::new(Reason::BadRequest, detail)
    };
    // A list would be taken for the members in their order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(bad(&"it is no JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| bad(&error))
}

/// The whole body of a call, within bounds.
pub(crate) async fn collect<B>(body: B) -> Result<Bytes, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let whole = Limited::new(body, BODY_BYTES).collect();
    match tokio::time::timeout(BODY_TIME, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::new(
            Reason::BodyTooLarge,
            "The body of a call is at most 16 KiB.",
        )),
        Ok(Err(_)) => Err(Refusal::new(Reason::BadRequest, "The body broke off.")),
        Err(_) => Err(Refusal::new(
            Reason::RequestTimeout,
            "The body did not come in time.",
        )),
    }
}
