//! What whoever asks for a lock is refused with.

use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::{Key, Reason, Refusal, Token};

use super::cell::now;

/// When to come again where nobody knows when the lock is free.
const AGAIN: Duration = Duration::from_secs(1);

fn refusal(key: &Key, reason: Reason, detail: &'static str) -> Refusal {
    let mut refusal = Refusal::new(reason, detail);
    refusal.key = Some(key.clone());
    refusal
}

pub(super) fn held(key: &Key, holder: &Arc<str>, expires: Option<std::time::Instant>) -> Refusal {
    let detail = "Somebody else holds this lock; wait for it, or try again when it expires.";
    let mut refusal = refusal(key, Reason::LockHeld, detail);
    refusal.holder = Some(Arc::clone(holder));
    let left = expires.map(|until| until.saturating_duration_since(now()));
    refusal.retry_after = Some(left.unwrap_or(AGAIN).max(AGAIN));
    refusal
}

pub(super) fn queued(key: &Key) -> Refusal {
    let detail = "This lock is being handed on, and others wait for it.";
    let mut refusal = refusal(key, Reason::LockHeld, detail);
    refusal.retry_after = Some(AGAIN);
    refusal
}

pub(super) fn lost(key: &Key, token: Option<Token>) -> Refusal {
    let detail =
        "This lease was released, has expired, or a newer token has come: acquire the lock again.";
    let mut refusal = refusal(key, Reason::LockLost, detail);
    refusal.token = token;
    refusal
}

pub(super) fn unkept() -> Refusal {
    Refusal::new(
        Reason::StoreUnavailable,
        "The lease could not be made durable, so it was not given; try again later.",
    )
}

pub(super) fn busy(key: &Key, detail: &'static str) -> Refusal {
    refusal(key, Reason::Busy, detail)
}

pub(super) fn stopping() -> Refusal {
    Refusal::new(
        Reason::ShuttingDown,
        "The gateway is stopping; try again elsewhere or later.",
    )
}

pub(super) fn full(key: &Key) -> Refusal {
    let detail = "As many keys as limits.keys allows are known, so this lock can't be had: use those that were had before, or have the limit raised.";
    busy(key, detail)
}
