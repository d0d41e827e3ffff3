//! Locks, over the fence and the store.
//!
//! A grant is durable, and fenced, before it is told: its token is written, and raises the mark the
//! way that an advance does. Who acquires does that itself, so that whoever leaves on the way is
//! noticed by the drop of its future.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::{Claim, Drain, Fence};
use fencegate_filters::lock::{Lease, Lock, Request, Term, Turn};
use fencegate_filters::route::Routes;
use fencegate_filters::store::{Record, Reply, Store, StoreError};
use fencegate_filters::{Key, Reason, Refusal, Token};
use http::StatusCode;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::cell::{Cell, Grant, Used, Waker, now, wake};
use super::events::{Event, Ids, Watch, What};
use super::kept;
use crate::route::{Route, drain_of};

/// How often somebody who waits looks, whatever it is told: a mark that others raise ends a lease.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is looked for leases that nobody has noticed the end of.
const SWEEP: Duration = Duration::from_secs(1);

/// How often a grant is tried anew when a newer mark overtakes it.
const MOST_OVERTAKEN: usize = 16;

/// How many may wait in all queues together: whoever holds a lock finds a connection to renew it.
const MOST_WAITING: usize = 12_288;

/// How many may watch.
const MOST_WATCHING: usize = 1024;

/// All locks of a gateway. Those that nobody uses are in the store alone.
pub struct Locks {
    fence: Fence,
    routes: Routes<Route>,
    pub(super) store: Arc<dyn Store>,
    fence_on_grant: bool,
    /// From when on leases of before last for their whole time.
    since: std::time::Instant,
    slots: Mutex<HashMap<Key, Slot>>,
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

enum Slot {
    /// It is being read, for those who want it.
    Loading(Vec<oneshot::Sender<Arc<Cell>>>),
    Ready(Arc<Cell>),
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub(super) struct Acquire {
    pub(super) holder: Arc<str>,
    pub(super) id: Option<Arc<str>>,
    pub(super) ttl: Duration,
    pub(super) wait: Duration,
}

/// A lock as others see it.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) key: Key,
    pub(super) lease: Option<Lease>,
    pub(super) expires_in: Option<Duration>,
    pub(super) waiting: usize,
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
            fence,
            routes,
            store,
            fence_on_grant,
            since: now(),
            slots: Mutex::default(),
            waiters: AtomicU64::new(1),
            waiting: Semaphore::new(MOST_WAITING),
            watching: Arc::new(Semaphore::new(MOST_WATCHING)),
            ids: Ids::default(),
            closed: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        })
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
            let waits = Instant::now() < until;
            let turn = {
                let mut lock = place.used.look(mark);
                // What is kept of a lock is kept for ever, as a mark is.
                if lock.issued().is_none() && mark.is_none() && !self.fence.has_room() {
                    return Err(busy(
                        key,
                        "The limit on the number of keys is reached, so this lock can't be had.",
                    ));
                }
                let waker = waits.then_some(&place.waker);
                lock.acquire(&request, waker, now(), mark, drain.waiting)
            };
            let expires = match turn {
                Turn::Granted(lease) => {
                    return self.give(&place.used, lease, false, drain).await;
                }
                Turn::Again(lease) => return self.give(&place.used, lease, true, drain).await,
                Turn::Lost => return Err(lost(key, None)),
                Turn::Held(holder, expires) if !waits => return Err(held(key, &holder, expires)),
                Turn::Queued if !waits => return Err(queued(key)),
                Turn::Held(_, expires) => expires,
                Turn::Queued => None,
                Turn::Busy => return Err(busy(key, "Too many already wait for this lock.")),
                Turn::Exhausted => return Err(busy(key, "There is no token above the last one.")),
            };
            if waiting.is_none() {
                let place = self.waiting.try_acquire();
                waiting = Some(place.map_err(|_| busy(key, "Too many wait for locks already."))?);
            }
            place.wait(until, expires).await;
        }
    }

    /// Makes a lease durable and fences it; its time begins. `again`: it has been given before.
    async fn give(
        &self,
        used: &Used,
        mut lease: Lease,
        again: bool,
        drain: Drain,
    ) -> Result<(Lease, Grant), Refusal> {
        let mut giving = Giving {
            used,
            token: lease.token,
            given: false,
        };
        let mut overtaken = 0;
        loop {
            let fenced = self.fence_by(&used.key, lease.token, again, drain);
            let (kept, fenced) = tokio::join!(used.keep(), fenced);
            let Err(refusal) = fenced.and_then(|()| kept.map_err(|_| unkept())) else {
                break;
            };
            let stale = refusal.reason == Reason::StaleToken;
            if stale && !again && overtaken < MOST_OVERTAKEN {
                overtaken += 1;
                // Its turn is not over because somebody came with a token from elsewhere.
                if let Ok(mark) = self.fence.mark(&used.key).await {
                    let newer = used.cell.lock().overtaken(lease.token, mark);
                    match newer {
                        Ok(Some(newer)) => {
                            giving.token = newer.token;
                            lease = newer;
                            continue;
                        }
                        Ok(None) => {}
                        // Somebody else's it is already.
                        Err(_) => return Err(lost(&used.key, Some(lease.token))),
                    }
                }
            }
            giving.given = true;
            used.burn(lease.token);
            return Err(match stale {
                true if again => lost(&used.key, Some(lease.token)),
                true => busy(&used.key, "Newer tokens keep coming from elsewhere."),
                false => refusal,
            });
        }
        giving.given = true;
        let token = lease.token;
        let mut lock = used.cell.lock();
        match lock.granted(token, now()) {
            Ok(true) => used.tell(What::Granted, &lease),
            Ok(false) => {}
            Err(_) => return Err(lost(&used.key, Some(token))),
        }
        drop(lock);
        let grant = Grant {
            used: used.clone(),
            token,
        };
        Ok((lease, grant))
    }

    /// Raises the mark, and waits until older writes have drained.
    async fn fence_by(
        &self,
        key: &Key,
        token: Token,
        again: bool,
        drain: Drain,
    ) -> Result<(), Refusal> {
        if !self.fence_on_grant || fault::planted(Fault::GrantUndrained) {
            return Ok(());
        }
        let mut claim = Claim::write(key.clone(), token);
        claim.drain = drain;
        let admit = self.fence.admit(claim);
        let admit = match again {
            true => admit,
            // A token that somebody has come with meanwhile is not to be another's as well.
            false => admit.advancing(),
        };
        // Nothing is to be sent: once admitted it holds nobody.
        admit.await.map(drop)
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
            {
                let mut lock = used.look(mark);
                let Ok(longer) = lock.renew(token, ttl, now(), mark) else {
                    used.tell_refused(token);
                    return Err(lost(key, Some(token)));
                };
                // A longer time that another call has asked for, in vain so far, is not promised
                // either before it is durable.
                if !longer && used.cell.is_kept(&lock) {
                    let lease = lock.lease().cloned();
                    let lease = lease.ok_or_else(|| lost(key, Some(token)))?;
                    used.tell(What::Renewed, &lease);
                    return Ok(Lease { ttl, ..lease });
                }
            }
            used.keep().await.map_err(|_| {
                Refusal::new(
                    Reason::StoreUnavailable,
                    "The longer time could not be made durable; the lease lasts as it did.",
                )
            })?;
        }
    }

    /// Gives a lease back.
    pub(super) async fn release(self: &Arc<Self>, key: &Key, token: Token) -> Result<(), Refusal> {
        drain_of(&self.routes.load(), key)?;
        let used = self.open(key).await?;
        let mark = self.fence.mark(key).await?;
        {
            let mut lock = used.look(mark);
            let Ok(woken) = lock.release(token, now(), mark) else {
                used.tell_refused(token);
                return Err(lost(key, Some(token)));
            };
            if let Some(lease) = lock.lease() {
                used.tell(What::Released, lease);
            }
            wake(woken);
        }
        if let Err(error) = used.keep().await {
            // Should the process end before it is written again, the lease lasts for its time.
            tracing::warn!(%key, %error, "the end of a lease could not be made durable");
        }
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
        let cell = match lock(&self.slots).get(key) {
            Some(Slot::Ready(cell)) => Arc::clone(cell),
            _ => return,
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
        for (_, cell) in self.cells() {
            cell.watchers.close();
        }
    }

    /// Wakes all who wait, so that they see that the gateway is stopping.
    pub(crate) fn wake_all(&self) {
        for (_, cell) in self.cells() {
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
            let cell = match lock(&self.slots).get(&key) {
                Some(Slot::Ready(cell)) => Some(Arc::clone(cell)),
                _ => None,
            };
            views.push(match cell {
                Some(cell) => view(key, &cell.lock(), mark),
                None => view(key, &kept::lock::<Waker>(Some(&record), self.since), mark),
            });
        }
        Ok(views)
    }

    /// The last token that was issued for `key`.
    pub(crate) async fn issued(self: &Arc<Self>, key: &Key) -> Result<Option<Token>, Refusal> {
        let used = self.open(key).await?;
        let issued = used.cell.lock().issued();
        Ok(issued)
    }

    /// Whether somebody has a lease on `key`, or asks for one. Reads the disk.
    pub(crate) fn has_lease(&self, key: &Key) -> Result<bool, StoreError> {
        if lock(&self.slots).contains_key(key) {
            return Ok(true);
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let reply = Reply::new(move |found| drop(sender.send(found)));
        self.store.read(&kept::key_of(key), reply);
        let dropped = StoreError::Unavailable("the store dropped the call".into());
        let record = receiver.recv().unwrap_or(Err(dropped))?;
        // One of before that nobody has used since lasts for its whole time from the start on.
        let found = kept::lock::<Waker>(record.as_ref(), self.since);
        Ok(found.held(now(), None).is_some())
    }

    /// How many locks are held, as far as anybody has used them since the start.
    pub(crate) fn held(&self) -> usize {
        let now = now();
        let cells = self.cells();
        let held = cells
            .iter()
            .filter(|one| one.1.lock().held(now, None).is_some());
        held.count()
    }

    /// Ends leases whose time is over, for as long as it is polled.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            for (key, cell) in self.cells() {
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
                if unkept {
                    used.keep_later();
                }
            }
        }
    }

    fn cells(&self) -> Vec<(Key, Arc<Cell>)> {
        let slots = lock(&self.slots);
        let ready = slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Ready(cell) => Some((key.clone(), Arc::clone(cell))),
            Slot::Loading(_) => None,
        });
        ready.collect()
    }

    // Locks come from the store when they are used, and go when nobody needs them.

    async fn open(self: &Arc<Self>, key: &Key) -> Result<Used, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let first = match lock(&self.slots).entry(key.clone()) {
            Entry::Occupied(mut slot) => match slot.get_mut() {
                Slot::Ready(cell) => {
                    let _ = sender.send(Arc::clone(cell));
                    false
                }
                Slot::Loading(others) => {
                    others.push(sender);
                    false
                }
            },
            Entry::Vacant(slot) => {
                slot.insert(Slot::Loading(vec![sender]));
                true
            }
        };
        if first {
            let (locks, of) = (Arc::clone(self), key.clone());
            let reply = Reply::new(move |result| locks.loaded(&of, result));
            self.store.read(&kept::key_of(key), reply);
        }
        let cell = receiver.await.map_err(|_| {
            Refusal::new(
                Reason::StoreUnavailable,
                "The lock could not be read; try again later.",
            )
        })?;
        Ok(Used {
            locks: Arc::clone(self),
            key: key.clone(),
            cell,
        })
    }

    /// Somebody needs a lock in memory no more.
    pub(super) fn leave(&self, key: &Key, cell: &Arc<Cell>) {
        let mut slots = lock(&self.slots);
        // The table has it, and whoever leaves.
        if Arc::strong_count(cell) <= 2 && cell.is_idle() {
            slots.remove(key);
        }
    }

    fn loaded(&self, key: &Key, result: Result<Option<Record>, StoreError>) {
        let mut slots = lock(&self.slots);
        let Some(Slot::Loading(waiting)) = slots.remove(key) else {
            return;
        };
        let record = match result {
            Ok(record) => record,
            // Those who wait see their end of it closed.
            Err(error) => {
                tracing::error!(%key, %error, "a lock could not be read");
                return;
            }
        };
        let found = kept::lock(record.as_ref(), self.since);
        let cell = Arc::new(Cell::new(found));
        slots.insert(key.clone(), Slot::Ready(Arc::clone(&cell)));
        drop(slots);
        for sender in waiting {
            let _ = sender.send(Arc::clone(&cell));
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
        wake(woken);
    }
}

/// A lease on its way to whoever acquires it; dropped before it is given, it is abandoned.
struct Giving<'a> {
    used: &'a Used,
    token: Token,
    given: bool,
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        if !self.given {
            self.used.abandon(self.token);
        }
    }
}

fn view(key: Key, lock: &Lock<Waker>, mark: Option<Token>) -> View {
    let now = now();
    let lease = lock.held(now, mark).cloned();
    let expires_in = lease.as_ref().map(|lease| match lease.term {
        Term::Until(until) => until.saturating_duration_since(now),
        // Its time has not begun.
        Term::Granting | Term::Ended => lease.ttl,
    });
    View {
        key,
        lease,
        expires_in,
        waiting: lock.waiting(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves is consistent: every change of the table is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refusal(key: &Key, reason: Reason, detail: &'static str) -> Refusal {
    let mut refusal = Refusal::new(reason, detail);
    refusal.key = Some(key.clone());
    refusal
}

fn held(key: &Key, holder: &Arc<str>, expires: Option<std::time::Instant>) -> Refusal {
    let detail = "Somebody else holds this lock; wait for it, or try again when it expires.";
    let mut refusal = refusal(key, Reason::LockHeld, detail);
    refusal.holder = Some(Arc::clone(holder));
    let left = expires.map(|until| until.saturating_duration_since(now()));
    refusal.retry_after = Some(left.unwrap_or(LOOK).max(LOOK));
    refusal
}

fn queued(key: &Key) -> Refusal {
    let detail = "This lock is being handed on, and others wait for it.";
    let mut refusal = refusal(key, Reason::LockHeld, detail);
    refusal.retry_after = Some(LOOK);
    refusal
}

fn lost(key: &Key, token: Option<Token>) -> Refusal {
    let detail =
        "This lease was released, has expired, or a newer token has come: acquire the lock again.";
    let mut refusal = refusal(key, Reason::LockLost, detail);
    refusal.token = token;
    refusal
}

fn unkept() -> Refusal {
    Refusal::new(
        Reason::StoreUnavailable,
        "The lease could not be made durable, so it was not given; try again later.",
    )
}

fn busy(key: &Key, detail: &'static str) -> Refusal {
    refusal(key, Reason::Busy, detail)
}

fn stopping() -> Refusal {
    Refusal::new(
        Reason::ShuttingDown,
        "The gateway is stopping; try again elsewhere or later.",
    )
}
