//! Locks, over the fence and the store.
//!
//! A grant is durable, and fenced, before it is told: its token is written, and raises the mark the
//! way that an advance does. Who acquires does that itself, so that whoever leaves on the way is
//! noticed by the drop of its future.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::Fence;
use fencegate_filters::lock::{Lease, Lost, Request, Term, Turn};
use fencegate_filters::route::Routes;
use fencegate_filters::store::Store;
use fencegate_filters::{Key, Reason, Refusal, Token};
use http::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::cell::{Grant, Used, Waker, now, wake};
use super::events::{Event, Ids, Watch, What};
use super::refusals::{busy, full, held, lost, queued, stopping};
use super::room::Room;
use super::table::Table;
use crate::route::{Route, drain_of, key_meant};

/// How often somebody who waits looks, whatever it is told: a mark that others raise ends a lease.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is looked for leases that nobody has noticed the end of.
const SWEEP: Duration = Duration::from_secs(1);

/// How many may wait in all queues together: whoever holds a lock finds a connection to renew it.
const MOST_WAITING: usize = 12_288;

/// How many may watch.
const MOST_WATCHING: usize = 1024;

/// All locks of a gateway. Those that nobody uses are in the store alone.
pub struct Locks {
    pub(super) fence: Fence,
    pub(super) routes: Routes<Route>,
    pub(super) store: Arc<dyn Store>,
    pub(super) fence_on_grant: bool,
    room: Room,
    pub(super) table: Arc<Table>,
    waiters: AtomicU64,
    waiting: Semaphore,
    watching: Arc<Semaphore>,
    /// The ids of what watchers are told.
    pub(super) ids: Ids,
    /// Whether nobody may watch any more.
    closed: AtomicBool,
    /// Calls that have no answer yet.
    calls: AtomicUsize,
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub(super) struct Acquire {
    pub(super) holder: Arc<str>,
    pub(super) id: Option<Arc<str>>,
    pub(super) ttl: Duration,
    pub(super) wait: Duration,
}

impl Locks {
    /// The locks of what `routes` fence, kept in `store`.
    pub fn new(
        fence: Fence,
        routes: Routes<Route>,
        store: Arc<dyn Store>,
        fence_on_grant: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            room: Room::new(fence.clone(), Arc::clone(&store), fence_on_grant),
            fence,
            routes,
            table: Table::new(Arc::clone(&store)),
            store,
            fence_on_grant,
            waiters: AtomicU64::new(1),
            waiting: Semaphore::new(MOST_WAITING),
            watching: Arc::new(Semaphore::new(MOST_WATCHING)),
            ids: Ids::default(),
            closed: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        })
    }

    /// The key of the lock that somebody names.
    pub(super) fn key_meant(&self, named: &Key) -> Result<Key, Refusal> {
        key_meant(&self.routes.load(), named)
    }

    /// Waits for the lock, and takes it.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        key: &Key,
        call: &Acquire,
    ) -> Result<(Lease, Grant), Refusal> {
        let drain = drain_of(&self.routes.load(), key)?;
        let place = Place {
            used: self.open(key).await?,
            waker: Waker::default(),
            waiter: self.waiters.fetch_add(1, Ordering::Relaxed),
        };
        let request = Request {
            waiter: place.waiter,
            holder: Arc::clone(&call.holder),
            id: call.id.clone(),
            ttl: call.ttl,
        };
        let until = Instant::now() + call.wait;
        let mut waiting = None;
        loop {
            if self.fence.is_stopping() {
                return Err(stopping());
            }
            let mark = self.fence.mark(key).await?;
            let is_new = place.used.cell.lock().issued().is_none();
            if is_new && !self.room.is_left(mark).await? {
                return Err(full(key));
            }
            let waits = Instant::now() < until;
            // Before the look, so that nothing that comes of it is missed.
            let given = place.used.cell.given.notified();
            let mut coming = false;
            let turn = {
                let mut lock = place.used.look(mark);
                let is_new = lock.issued().is_none();
                let waker = waits.then_some(&place.waker);
                let turn = lock.acquire(&request, waker, now(), mark, drain.waiting);
                if is_new && matches!(turn, Turn::Granted(_)) {
                    self.room.take();
                }
                turn
            };
            let expires = match turn {
                Turn::Granted(lease) => {
                    return self.give(&place.used, lease, true, drain).await;
                }
                Turn::Resumed(lease) | Turn::Again(lease) => {
                    return self.give(&place.used, lease, false, drain).await;
                }
                Turn::Coming => {
                    coming = true;
                    None
                }
                Turn::Lost => return Err(lost(key, None)),
                Turn::Held(holder, expires) if !waits => return Err(held(key, &holder, expires)),
                Turn::Queued if !waits => return Err(queued(key)),
                Turn::Held(_, expires) => expires,
                Turn::Queued => None,
                Turn::Busy => return Err(busy(key, "Too many already wait for this lock.")),
                Turn::Exhausted => return Err(busy(key, "There is no token above the last one.")),
            };
            if waiting.is_none() && !fault::planted(Fault::UnboundedWaiters) {
                let place = self.waiting.try_acquire();
                waiting = Some(place.map_err(|_| busy(key, "Too many wait for locks already."))?);
            }
            match coming {
                true => drop(tokio::time::timeout(LOOK, given).await),
                false => place.wait(until, expires).await,
            }
        }
    }

    /// Lets a lease last anew.
    pub(super) async fn renew(
        self: &Arc<Self>,
        key: &Key,
        token: Token,
        ttl: Duration,
    ) -> Result<Lease, Refusal> {
        drain_of(&self.routes.load(), key)?;
        let used = self.open(key).await?;
        loop {
            let mark = self.fence.mark(key).await?;
            match Self::renewed(&used, token, ttl, mark) {
                Ok(Some(lease)) => return Ok(lease),
                Ok(None) => {}
                Err(Lost) => return Err(used.refuse(token).await),
            }
            used.keep().await.map_err(|_| {
                Refusal::new(
                    Reason::StoreUnavailable,
                    "The longer time could not be made durable; the lease lasts as it did.",
                )
            })?;
        }
    }

    /// The lease as it lasts anew; `None` where that has to be kept first.
    fn renewed(
        used: &Used,
        token: Token,
        ttl: Duration,
        mark: Option<Token>,
    ) -> Result<Option<Lease>, Lost> {
        let mut lock = used.look(mark);
        let longer = lock.renew(token, ttl, now(), mark)?;
        // A longer time that another call has asked for, in vain so far, is not promised either
        // before it is durable.
        let is_kept = !longer && used.cell.is_kept(&lock);
        if !is_kept && !fault::planted(Fault::RenewUnkept) {
            return Ok(None);
        }
        let lease = lock.lease().cloned().ok_or(Lost)?;
        used.tell(What::Renewed, &lease);
        Ok(Some(Lease { ttl, ..lease }))
    }

    /// Gives a lease back.
    pub(super) async fn release(self: &Arc<Self>, key: &Key, token: Token) -> Result<(), Refusal> {
        drain_of(&self.routes.load(), key)?;
        let used = self.open(key).await?;
        let mark = self.fence.mark(key).await?;
        let released = {
            let mut lock = used.look(mark);
            let woken = lock.release(token, now(), mark);
            if let (Ok(_), Some(lease)) = (&woken, lock.lease()) {
                used.tell(What::Released, lease);
            }
            woken.map(wake)
        };
        if released == Err(Lost) {
            return Err(used.refuse(token).await);
        }
        used.keep_end().await;
        Ok(())
    }

    /// What happens to a lock from now on. `again`: for somebody who has watched it before.
    pub(super) async fn watch(self: &Arc<Self>, key: &Key, again: bool) -> Result<Watch, Refusal> {
        drain_of(&self.routes.load(), key)?;
        let place = Arc::clone(&self.watching).try_acquire_owned();
        let place = place.map_err(|_| busy(key, "Too many watch locks already."))?;
        let watch = Watch::new(self.open(key).await?, place, again);
        // Looked at only now: whoever comes later than the stop is not told of it.
        match self.closed.load(Ordering::SeqCst) {
            true => Err(stopping()),
            false => Ok(watch),
        }
    }

    /// A request was refused: whoever watches the lock of its key learns that somebody came with a
    /// token that does not count.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        if self.watching.available_permits() == MOST_WATCHING {
            return;
        }
        let final_ones = [StatusCode::CONFLICT, StatusCode::FORBIDDEN];
        let (Some(key), Some(token)) = (&refusal.key, refusal.token) else {
            return;
        };
        if !final_ones.contains(&refusal.reason.status()) {
            return;
        }
        let Some(cell) = self.table.find(key) else {
            return;
        };
        let event = Event {
            what: What::Refused,
            key,
            token,
            holder: refusal.holder.as_deref(),
            reason: Some(refusal.reason.as_str()),
        };
        cell.watchers.tell(&self.ids, &event);
    }

    /// Ends all watching: it is never over by itself.
    pub(crate) fn end_watches(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for (_, cell) in self.table.all() {
            cell.watchers.close();
        }
    }

    /// Wakes all who wait, so that they see that the gateway is stopping.
    pub(crate) fn wake_all(&self) {
        for (_, cell) in self.table.all() {
            let wakers: Vec<_> = cell.lock().wakers().cloned().collect();
            wake(wakers);
        }
    }

    /// A call that has no answer until what this gives is dropped.
    pub(super) fn calling(&self) -> impl Drop + '_ {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Calling(&self.calls)
    }

    /// Whether every call has its answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls.load(Ordering::SeqCst) == 0
    }

    /// The last token that was issued for `key`.
    pub(crate) async fn issued(self: &Arc<Self>, key: &Key) -> Result<Option<Token>, Refusal> {
        let used = self.open(key).await?;
        let issued = used.cell.lock().issued();
        Ok(issued)
    }

    /// A lock, for as long as what is given lives.
    pub(super) async fn open(self: &Arc<Self>, key: &Key) -> Result<Used, Refusal> {
        Ok(Used {
            cell: self.table.open(key).await?,
            locks: Arc::clone(self),
            key: key.clone(),
        })
    }

    /// Ends leases whose time is over, for as long as it is polled.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            for (key, cell) in self.table.all() {
                let used = Used {
                    locks: Arc::clone(&self),
                    key,
                    cell,
                };
                // Who waits looks at the mark; for who watches that is done here.
                let mark = match used.cell.watchers.is_empty() {
                    true => None,
                    false => self.fence.mark(&used.key).await.ok().flatten(),
                };
                let unkept = {
                    let lock = used.look(mark);
                    let ended = lock.lease().is_some_and(|lease| lease.term == Term::Ended);
                    ended && !used.cell.is_kept(&lock)
                };
                if unkept && !fault::planted(Fault::KeepEndedLocks) {
                    used.keep_later();
                }
            }
        }
    }
}

struct Calling<'a>(&'a AtomicUsize);

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A place in a queue, which goes with whoever has it.
struct Place {
    used: Used,
    waker: Waker,
    waiter: u64,
}

impl Place {
    /// Waits until it is worth another look: when it is told so, when the lease of another is over,
    /// or when it has waited long enough.
    async fn wait(&self, until: Instant, expires: Option<std::time::Instant>) {
        let mut look = until.min(Instant::now() + LOOK);
        if let Some(expires) = expires {
            look = look.min(Instant::from_std(expires));
        }
        let _ = tokio::time::timeout_at(look, self.waker.notified()).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let woken = self.used.cell.lock().leave(self.waiter);
        if !fault::planted(Fault::SleepOnLeave) {
            wake(woken);
        }
    }
}

#[cfg(test)]
// Under a checker of threads nothing runs outside of it.
#[cfg(not(feature = "shuttle"))]
mod tests;
