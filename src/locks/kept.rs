//! What is kept of a lock, as a record of the store beside the marks.
//!
//! Its key is that of the lock behind `!locks/`, which no namespace begins with. The record's mark
//! is the last token that was issued, its text is the newest lease, and its count of resets that of
//! the lock's changes: so of two records the one that was written later wins, in whatever order they
//! come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::lock::{Lease, Lock, Term};
use fencegate_filters::store::{Binding, Record};
use fencegate_filters::{Key, Token};
use serde::{Deserialize, Serialize};

/// How the keys of locks begin in the store.
pub(crate) const PREFIX: &str = "!locks/";

/// A lease as it is kept. Where none is, or one that has ended, nobody holds the lock.
#[derive(Serialize, Deserialize)]
struct Kept {
    holder: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    ttl_ms: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
    /// Requests of before, of which it is known that what they got is over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    past: Vec<u64>,
}

/// The key under which the lock of `key` is kept.
pub(super) fn key_of(key: &Key) -> Key {
    Key::from_text(&format!("{PREFIX}{key}"))
}

/// The key of the lock that is kept under `key`.
pub(super) fn name_of(key: &Key) -> Option<Key> {
    key.as_str().strip_prefix(PREFIX).map(Key::from_text)
}

/// The lock as it is to be kept; `None` where it has never been granted.
pub(super) fn record<W: Clone>(lock: &Lock<W>) -> Option<Record> {
    let lease = lock.lease().map(|lease| Kept {
        holder: lease.holder.to_string(),
        request_id: lease.id.as_deref().map(str::to_owned),
        ttl_ms: u64::try_from(lease.ttl.as_millis()).unwrap_or(u64::MAX),
        ended: lease.term == Term::Ended,
        past: lock.past().collect(),
    });
    let text = lease.and_then(|lease| serde_json::to_string(&lease).ok());
    Some(Record {
        mark: lock.issued()?,
        holder: text.map_or(Binding::Unbound, |text| Binding::Holder(text.into())),
        draining: false,
        resets: lock.version(),
    })
}

/// The lock as it was kept. A lease that has not ended lasts for its whole time from `since` on:
/// nobody knows how much of it was over.
pub(super) fn lock<W: Clone>(record: Option<&Record>, since: Instant) -> Lock<W> {
    let Some(record) = record.filter(|_| !fault::planted(Fault::ForgetLeases)) else {
        return Lock::default();
    };
    let text = match &record.holder {
        Binding::Holder(text) => Some(text),
        Binding::Unbound | Binding::Nobody => None,
    };
    let mut kept = text.and_then(|text| serde_json::from_str::<Kept>(text).ok());
    let past = kept.as_mut().map(|kept| std::mem::take(&mut kept.past));
    let lease = kept.map(|kept| lease(kept, record.mark, since));
    Lock::kept(record.mark, lease, past.unwrap_or_default(), record.resets)
}

fn lease(kept: Kept, token: Token, since: Instant) -> Lease {
    let ttl = Duration::from_millis(kept.ttl_ms);
    Lease {
        token,
        holder: kept.holder.into(),
        id: kept.request_id.map(Arc::from),
        ttl,
        term: match kept.ended {
            true => Term::Ended,
            false => Term::Until(since + ttl),
        },
        // As far as anybody knows.
        told: true,
    }
}

#[cfg(test)]
mod tests {
    use fencegate_filters::lock::{Request, Turn};

    use super::*;

    #[test]
    fn what_is_kept_is_found_again_with_its_whole_time() {
        let (mut one, now) = (Lock::<()>::default(), Instant::now());
        assert!(record(&one).is_none());
        let request = Request {
            waiter: 1,
            holder: "pod \"7\"".into(),
            id: Some("x".into()),
            ttl: Duration::from_secs(10),
        };
        let turn = one.acquire(&request, None, now, Token::new(7, 41), 1);
        assert!(matches!(turn, Turn::Granted(_)));
        let kept = record(&one).unwrap();
        let later = now + Duration::from_secs(60);
        let found: Lock<()> = lock(Some(&kept), later);
        let lease = found.held(later, None).unwrap();
        assert_eq!(lease.token, Token::new(7, 42).unwrap());
        assert_eq!(lease.term, Term::Until(later + request.ttl));
        assert_eq!((&lease.holder, &lease.id), (&request.holder, &request.id));
        one.end(lease.token);
        let mut newer = kept;
        newer.merge(record(&one).unwrap());
        let mut found: Lock<()> = lock(Some(&newer), later);
        assert!(found.held(later, None).is_none());
        assert_eq!(found.issued(), Token::new(7, 42));
        let other = Request {
            id: Some("y".into()),
            ..request.clone()
        };
        let turn = found.acquire(&other, None, later, None, 1);
        assert!(matches!(turn, Turn::Granted(_)));
        let mut found: Lock<()> = lock(record(&found).as_ref(), later);
        let turn = found.acquire(&request, None, later, None, 1);
        assert_eq!(turn, Turn::Lost, "it is remembered");
    }

    #[test]
    fn its_key_is_beside_all_marks() {
        let key = Key::new("objects", "a/b");
        let kept = key_of(&key);
        assert!(kept.is_internal() && !key.is_internal());
        assert_eq!(name_of(&kept), Some(key.clone()));
        assert_eq!(name_of(&key), None);
    }
}
