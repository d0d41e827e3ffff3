//! What was wrong with the bytes of a client.

use std::fmt;

use fencegate_filters::Reason;

/// The first rule that a client's byte stream broke. Nothing after it is ever read as HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What it is refused as.
    pub reason: Reason,
    /// One sentence for the client.
    pub detail: &'static str,
    /// Whether it was in a request's head, which then reached nobody, or in its body or trailers.
    pub in_head: bool,
}

impl Violation {
    pub(super) const fn head(reason: Reason, detail: &'static str) -> Self {
        Self {
            reason,
            detail,
            in_head: true,
        }
    }

    pub(super) const fn bad(detail: &'static str) -> Self {
        Self::head(Reason::BadRequest, detail)
    }

    pub(super) const fn in_body(mut self) -> Self {
        self.in_head = false;
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.detail)
    }
}

impl std::error::Error for Violation {}
