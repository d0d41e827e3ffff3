//! How many locks can be had. What is kept of a lock is kept for ever, as a mark is, and
//! `limits.keys` bounds both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::Fence;
use fencegate_filters::store::{Store, StoreError};
use fencegate_filters::{Refusal, Token};
use tokio::sync::OnceCell;

use super::kept;
use crate::api::blocking;

/// How many locks are read at once when they are counted.
const PAGE: usize = 1000;

/// What is left for locks that nobody has had yet.
pub(super) struct Room {
    fence: Fence,
    store: Arc<dyn Store>,
    /// Whether every lock has a mark: then marks are counted, and locks need not be.
    marked: bool,
    /// How many locks are kept; counted once somebody asks.
    kept: OnceCell<AtomicU64>,
}

impl Room {
    pub(super) fn new(fence: Fence, store: Arc<dyn Store>, marked: bool) -> Self {
        Self {
            fence,
            store,
            marked,
            kept: OnceCell::new(),
        }
    }

    /// Whether a lock that nobody has had yet may be, on a key with this mark.
    pub(super) async fn is_left(&self, mark: Option<Token>) -> Result<bool, Refusal> {
        if self.marked {
            return Ok(mark.is_some() || self.fence.has_room());
        }
        let most = self.fence.most_keys();
        let Some(most) = most.filter(|_| !fault::planted(Fault::UnboundedLocks)) else {
            return Ok(true);
        };
        let store = Arc::clone(&self.store);
        let count = || blocking(move || count(&*store));
        let kept = self.kept.get_or_try_init(count).await?;
        Ok(kept.load(Ordering::Relaxed) < most)
    }

    /// A lock is had for the first time.
    pub(super) fn take(&self) {
        // One that nobody has counted yet will be.
        if let Some(kept) = self.kept.get() {
            kept.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn count(store: &dyn Store) -> Result<AtomicU64, StoreError> {
    let (mut count, mut after) = (0, None);
    loop {
        let page = store.list(kept::PREFIX, after.as_deref(), PAGE)?;
        count += page.len() as u64;
        match page.last().filter(|_| page.len() == PAGE) {
            Some((last, _)) => after = Some(last.to_string()),
            None => return Ok(count.into()),
        }
    }
}
