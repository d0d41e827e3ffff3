//! Refusals: every reason for which a request ends without the upstream's answer, and the one
//! table of what each becomes on the wire.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::{Key, Token};

/// How a request that the gateway had to answer itself ended, as far as the client may assume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing was sent upstream: nothing happened.
    NotForwarded,
    /// Handed over whole, and its response was received whole.
    Completed,
    /// Something was sent, and what became of it is not known.
    Unknown,
}

impl Outcome {
    /// As it stands in `Fencing-Outcome`, in logs and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotForwarded => "not-forwarded",
            Self::Completed => "completed",
            Self::Unknown => "unknown",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:ident, $grpc:literal, $title:literal;)*) => {
        /// Why a request was refused or failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As it stands in `type`, `reason`, logs and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status, unless the route overrides 409.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// The gRPC status code (google.rpc.Code).
            #[must_use]
            pub const fn grpc_status(self) -> u8 {
                match self { $(Self::$name => $grpc,)* }
            }

            /// A short summary of the kind of problem (RFC 9457, section 3.1.3).
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

reasons! {
    /// The token is below the mark.
    StaleToken = "stale-token", CONFLICT, 10, "Stale fencing token";
    /// The token equals the mark, which is bound to another holder.
    HolderMismatch = "holder-mismatch", CONFLICT, 10, "Fencing token held by another holder";
    /// The request was in flight and was cut by a newer token.
    Superseded = "superseded", CONFLICT, 10, "Superseded by a newer fencing token";
    /// Somebody else holds the lock.
    LockHeld = "lock-held", CONFLICT, 10, "Lock held by another holder";
    /// The lock was released, has expired, or was overtaken.
    LockLost = "lock-lost", CONFLICT, 10, "Lock lost";
    /// A write without a token.
    TokenRequired = "token-required", PRECONDITION_REQUIRED, 9, "Fencing token required";
    /// A token header that is not one token.
    MalformedToken = "malformed-token", BAD_REQUEST, 3, "Malformed fencing token";
    /// A path that servers read in different ways.
    AmbiguousPath = "ambiguous-path", BAD_REQUEST, 3, "Ambiguous path";
    /// A part of the key is missing, empty, given twice, or the key is too long.
    NoKey = "no-key", BAD_REQUEST, 3, "No key";
    /// Broken or contradictory HTTP.
    BadRequest = "bad-request", BAD_REQUEST, 3, "Bad request";
    /// A route with `deny: true`, or a caller who may not.
    Forbidden = "forbidden", FORBIDDEN, 7, "Forbidden";
    /// A signed token that does not verify, no longer counts, or is for another key.
    BadSignature = "bad-signature", FORBIDDEN, 7, "Fencing token not verified";
    /// The token is above every one that was issued for the key.
    UnknownToken = "unknown-token", FORBIDDEN, 7, "Fencing token was never issued";
    /// The token advances the mark by more than `fence.max_advance` allows.
    JumpTooLarge = "jump-too-large", FORBIDDEN, 7, "Fencing token advances too far";
    /// No route matches.
    NoRoute = "no-route", NOT_FOUND, 12, "No route";
    /// A route matches all but the method.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, 12, "Method not allowed";
    /// The client was too slow.
    RequestTimeout = "request-timeout", REQUEST_TIMEOUT, 4, "Request timeout";
    /// An `Expect` other than `100-continue`.
    ExpectationFailed = "expectation-failed", EXPECTATION_FAILED, 3, "Expectation failed";
    /// A transfer coding other than `chunked`.
    NotImplemented = "not-implemented", NOT_IMPLEMENTED, 12, "Not implemented";
    /// The body is above `limits.body`.
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE, 8, "Body too large";
    /// The body of a call to the gateway's own APIs is not JSON, or is encoded.
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, 3, "Unsupported media type";
    /// The request target is above `limits.header_bytes`.
    UriTooLong = "uri-too-long", URI_TOO_LONG, 8, "Request target too long";
    /// The header is above `limits.header_bytes` or `limits.header_count`.
    HeadersTooLarge = "headers-too-large", REQUEST_HEADER_FIELDS_TOO_LARGE, 8, "Headers too large";
    /// Older writes were still in flight when the time to wait was over.
    Draining = "draining", SERVICE_UNAVAILABLE, 14, "Older writes are still in flight";
    /// An unknown outcome, or the hold after a crash, had not settled in time.
    Settling = "settling", SERVICE_UNAVAILABLE, 14, "An older write may still be running";
    /// A limit on waiting requests, keys or connections is reached.
    Busy = "busy", SERVICE_UNAVAILABLE, 14, "Busy";
    /// A mark could not be read or made durable.
    StoreUnavailable = "store-unavailable", SERVICE_UNAVAILABLE, 14, "Mark store unavailable";
    /// The gateway is stopping.
    ShuttingDown = "shutting-down", SERVICE_UNAVAILABLE, 14, "Shutting down";
    /// No connection to the upstream: nothing was sent.
    UpstreamUnreachable = "upstream-unreachable", BAD_GATEWAY, 14, "Upstream unreachable";
    /// The upstream reset the connection or answered with broken HTTP.
    UpstreamFailed = "upstream-failed", BAD_GATEWAY, 2, "Upstream failed";
    /// The upstream did not answer in time.
    UpstreamTimeout = "upstream-timeout", GATEWAY_TIMEOUT, 4, "Upstream timeout";
}

/// A request that the gateway answers itself: why, and what the client is told.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// One sentence that says what happened and what to do.
    pub detail: Cow<'static, str>,
    /// Whether the client may assume that nothing happened.
    pub outcome: Outcome,
    /// The key, where it is known.
    pub key: Option<Key>,
    /// The token, where one was read.
    pub token: Option<Token>,
    /// The mark that the token was compared with.
    pub mark: Option<Token>,
    /// Who holds the lock that was asked for.
    pub holder: Option<Arc<str>>,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
    /// The methods that the target has, where the method was refused and they are known
    /// (RFC 9110, section 10.2.1).
    pub allow: Option<Arc<HeaderValue>>,
}

impl Refusal {
    /// A refusal of a request of which nothing was sent upstream.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            outcome: Outcome::NotForwarded,
            key: None,
            token: None,
            mark: None,
            holder: None,
            retry_after: (reason.status() == StatusCode::SERVICE_UNAVAILABLE)
                .then_some(Duration::from_secs(1)),
            allow: None,
        }
    }

    /// The same with the methods that would not be refused.
    #[must_use]
    pub fn with_allow(mut self, methods: Arc<HeaderValue>) -> Self {
        self.allow = Some(methods);
        self
    }

    /// The same for a request that may have reached the upstream.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.detail)
    }
}

impl std::error::Error for Refusal {}

/// A service that can't fail stands behind any filter.
impl From<Infallible> for Refusal {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
