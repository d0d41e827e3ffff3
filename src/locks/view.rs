//! Locks as others see them.

use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::lock::{Lease, Lock, Term};
use fencegate_filters::store::StoreError;
use fencegate_filters::{Key, Refusal, Token};

use super::cell::{Waker, now};
use super::kept;
use super::service::Locks;
use crate::route::drain_of;

/// A lock as others see it.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) key: Key,
    pub(super) lease: Option<Lease>,
    pub(super) expires_in: Option<Duration>,
    pub(super) waiting: usize,
}

impl Locks {
    /// What is known of a lock; `None` where it has never been granted.
    pub(super) async fn view(self: &Arc<Self>, key: &Key) -> Result<Option<View>, Refusal> {
        drain_of(&self.routes.load(), key)?;
        let used = self.open(key).await?;
        let mark = self.fence.mark(key).await?;
        let lock = used.cell.lock();
        Ok(lock.issued().map(|_| view(key.clone(), &lock, mark)))
    }

    /// Up to `limit` locks that were granted before. Reads the disk.
    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<View>, StoreError> {
        let after = after.map(|after| format!("{}{after}", kept::PREFIX));
        let prefix = format!("{}{prefix}", kept::PREFIX);
        let found = self.store.list(&prefix, after.as_deref(), limit)?;
        let mut views = Vec::with_capacity(found.len());
        for (kept_key, record) in found {
            let Some(key) = kept::name_of(&kept_key) else {
                continue;
            };
            let mark = self.fence.key(&key)?.map(|view| view.mark);
            views.push(match self.table.find(&key) {
                Some(cell) => view(key, &cell.lock(), mark),
                None => {
                    let lock = kept::lock(Some(&record), self.table.since);
                    view(key, &lock, mark)
                }
            });
        }
        Ok(views)
    }

    /// Whether somebody has the lease of `key`, or asks for it.
    pub(crate) async fn is_leased(&self, key: &Key) -> Result<bool, StoreError> {
        self.table.is_leased(key).await
    }

    /// How many locks are held, as far as anybody has used them since the start.
    pub(crate) fn held(&self) -> usize {
        let now = now();
        let cells = self.table.all();
        let held = cells
            .iter()
            .filter(|one| one.1.lock().held(now, None).is_some());
        held.count()
    }
}

fn view(key: Key, lock: &Lock<Waker>, mark: Option<Token>) -> View {
    let now = now();
    let lease = lock.held(now, mark).cloned();
    let expires_in = lease.as_ref().map(|lease| match lease.term {
        Term::Until(until) => until.saturating_duration_since(now),
        // Of such nobody holds the lock.
        Term::Granting | Term::Ended => lease.ttl,
    });
    View {
        key,
        lease,
        expires_in,
        waiting: lock.waiting(),
    }
}
