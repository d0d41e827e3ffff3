//! A lock in memory: how it is, whether the store has it so, and who watches it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::lock::{Lease, Lock, Term};
use fencegate_filters::store::{Raise, Reply, StoreError};
use fencegate_filters::{Key, Reason, Refusal, Token};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::delivery::Tell;
use super::events::{Event, Watchers, What};
use super::kept;
use super::refusals::lost;
use super::service::Locks;

pub(super) type Waker = Arc<Notify>;

pub(super) struct Cell {
    lock: Mutex<Lock<Waker>>,
    /// The newest version that is durable.
    durable: AtomicU64,
    pub(super) watchers: Watchers,
    /// Tells when it is known whether a lease was given.
    pub(super) given: Notify,
}

impl Cell {
    /// A lock as it is in the store.
    pub(super) fn new(found: Lock<Waker>) -> Self {
        Self {
            durable: AtomicU64::new(found.version()),
            lock: Mutex::new(found),
            watchers: Watchers::default(),
            given: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Lock<Waker>> {
        // What a panic leaves is consistent: every step of a lock is whole.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store has it as it is.
    pub(super) fn is_kept(&self, lock: &Lock<Waker>) -> bool {
        lock.version() <= self.durable.load(Ordering::SeqCst)
    }

    /// Nobody needs it in memory: the store has it, nobody holds it, and nobody waits.
    pub(super) fn is_idle(&self) -> bool {
        let lock = self.lock();
        let ended = lock.lease().is_none_or(|lease| lease.term == Term::Ended);
        ended && self.is_kept(&lock) && lock.waiting() == 0
    }
}

/// A lock in use.
pub(super) struct Used {
    pub(super) locks: Arc<Locks>,
    pub(super) key: Key,
    pub(super) cell: Arc<Cell>,
}

impl Clone for Used {
    fn clone(&self) -> Self {
        Self {
            locks: Arc::clone(&self.locks),
            key: self.key.clone(),
            cell: Arc::clone(&self.cell),
        }
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.locks.table.leave(&self.key, &self.cell);
    }
}

impl Used {
    /// The lock as it is now: a lease that is over has ended.
    pub(super) fn look(&self, mark: Option<Token>) -> MutexGuard<'_, Lock<Waker>> {
        let mut lock = self.cell.lock();
        if lock.expire(now(), mark) {
            if let Some(lease) = lock.lease().filter(|lease| lease.told) {
                tracing::info!(key = %self.key, token = %lease.token, "a lease has expired");
                self.tell(What::Expired, lease);
            }
            if !fault::planted(Fault::SleepOnExpiry) {
                wake(lock.next_in_line());
            }
        }
        lock
    }

    /// Tells whoever watches what happened to a lease. While the lock is held, so that it is told
    /// in the order in which it happened.
    pub(super) fn tell(&self, what: What, lease: &Lease) {
        let event = Event {
            what,
            key: &self.key,
            token: lease.token,
            holder: Some(&lease.holder),
            reason: None,
        };
        self.cell.watchers.tell(&self.locks.ids, &event);
    }

    /// Somebody came with a token that is not the holder's. A lease that is said to be over does not
    /// come back with a restart.
    pub(super) async fn refuse(&self, token: Token) -> Refusal {
        self.tell_refused(token);
        self.keep_end().await;
        lost(&self.key, Some(token))
    }

    fn tell_refused(&self, token: Token) {
        let event = Event {
            what: What::Refused,
            key: &self.key,
            token,
            holder: None,
            reason: Some(Reason::LockLost.as_str()),
        };
        self.cell.watchers.tell(&self.locks.ids, &event);
    }

    /// Makes the lock durable as it is now.
    pub(super) async fn keep(&self) -> Result<(), StoreError> {
        let (sender, receiver) = oneshot::channel();
        self.commit(move |result| drop(sender.send(result)));
        let dropped = StoreError::Unavailable("the store dropped the call".into());
        receiver.await.unwrap_or(Err(dropped))
    }

    /// The same for the end of a lease. Should that fail, and the process end before it is written
    /// again, the lease lasts for its time.
    pub(super) async fn keep_end(&self) {
        if let Err(error) = self.keep().await {
            tracing::warn!(key = %self.key, %error, "the end of a lease could not be made durable");
        }
    }

    /// The same, for those who need not know.
    pub(super) fn keep_later(&self) {
        let key = self.key.clone();
        self.commit(move |result| {
            if let Err(error) = result {
                tracing::warn!(%key, %error, "the end of a lease could not be made durable");
            }
        });
    }

    fn commit(&self, answer: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        let record = {
            let lock = self.cell.lock();
            kept::record(&*lock).filter(|_| !self.cell.is_kept(&lock))
        };
        let Some(record) = record else {
            return answer(Ok(()));
        };
        let (cell, version) = (Arc::clone(&self.cell), record.resets);
        let reply = Reply::new(move |result: Result<(), StoreError>| {
            if result.is_ok() {
                cell.durable.fetch_max(version, Ordering::SeqCst);
            }
            // Whoever waits for the answer may be the last who leaves.
            drop(cell);
            answer(result);
        });
        let key = kept::key_of(&self.key);
        let raise = Raise { key, record };
        self.locks.store.commit(vec![raise], reply);
    }

    /// The lease with this token can't be given.
    pub(super) fn burn(&self, token: Token) {
        let woken = self.cell.lock().burn(token);
        self.ended(woken);
    }

    /// Nobody was told of the lease with this token.
    pub(super) fn abandon(&self, token: Token) {
        let woken = {
            let mut lock = self.cell.lock();
            let woken = lock.abandon(token, now());
            let lease = lock.lease().filter(|lease| lease.told && woken.is_some());
            if let Some(lease) = lease {
                self.tell(What::Released, lease);
            }
            woken
        };
        self.ended(woken);
    }

    fn ended(&self, woken: Option<Vec<Waker>>) {
        if let Some(woken) = woken {
            wake(woken);
            self.keep_later();
        }
    }
}

/// A grant that a connection is to be told of.
pub(super) struct Grant {
    pub(super) used: Used,
    pub(super) token: Token,
}

impl Tell for Grant {
    fn still_holds(&self) -> bool {
        let lock = self.used.cell.lock();
        let held = lock.held(now(), None);
        held.is_some_and(|lease| lease.token == self.token)
    }

    fn sent(self) {
        self.used.cell.lock().delivered(self.token, now(), None);
    }

    fn unsent(self) {
        self.used.abandon(self.token);
    }
}

pub(super) fn wake(wakers: Vec<Waker>) {
    wakers.iter().for_each(|waker| waker.notify_one());
}

/// Now, by the clock that the timers go by.
pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}
