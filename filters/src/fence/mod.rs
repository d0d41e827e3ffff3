//! The fence: marks, lanes, drains and outcomes.
//!
//! [`Fence`] is the handle that all requests share. [`lane`] and [`step`] are its rules, pure and
//! on their own; [`admission`] is a request's way through them.

pub mod admission;
mod forgetting;
pub mod in_flight;
pub mod lane;
mod layer;
#[cfg(all(test, feature = "shuttle"))]
mod orders;
mod reset;
mod send;
pub mod step;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

pub use admission::{Admission, Admit, Claim, Drain, Observation, OnTimeout, Permit};
pub use forgetting::SetAside;
pub use in_flight::{Cut, Handle, InFlight, Uploads};
pub use lane::{Access, Ask};
pub use layer::{FenceLayer, FenceService, ResponseFuture};
pub use reset::{Reset, ResetError};
pub use send::{BodyError, RequestBody, ResponseBody, SendFuture, SendLayer, SendService};

use self::step::{Arrival, Bounds, Places};
use self::table::Table;
use crate::fault::{self, Fault};
use crate::refusal::{Reason, Refusal};
use crate::store::{Binding, Record, Store, StoreError};
use crate::sync::{sleep_until, spawn};
use crate::{Key, Token};

/// All marks and lanes of one gateway. A clone is a reference count.
#[derive(Clone)]
pub struct Fence {
    table: Arc<Table>,
}

/// One key as an operator sees it.
#[derive(Clone, Debug)]
pub struct KeyView {
    /// The key.
    pub key: Key,
    /// Its mark.
    pub mark: Token,
    /// To whom the mark is bound.
    pub holder: Binding,
    /// Writes in flight.
    pub in_flight: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Writes whose outcome is unknown and has not settled.
    pub unsettled: usize,
}

/// What is in use, over all keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Keys that have a mark.
    pub keys: u64,
    /// Writes in flight.
    pub in_flight: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Writes whose outcome is unknown and has not settled.
    pub unsettled: usize,
}

impl Fence {
    /// A fence over `store`, with at most about `cache_bytes` of memory for idle marks.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, cache_bytes: u64) -> Self {
        Self {
            table: Arc::new(Table::new(store, cache_bytes)),
        }
    }

    /// Caps how many keys may have a mark (`limits.keys`).
    pub fn limit_keys(&self, most: Option<u64>) {
        self.table.limit_keys(most.unwrap_or(u64::MAX));
    }

    /// Holds the keys of `namespace` as after a crash until `until`; of several such calls for one
    /// namespace the latest `until` counts.
    ///
    /// Must be called within a tokio runtime, which ends the hold; and before the first claim.
    pub fn hold(&self, namespace: &str, until: Instant) {
        self.table.hold(namespace, until);
        let (table, namespace) = (Arc::clone(&self.table), namespace.to_owned());
        spawn(async move {
            sleep_until(until.into()).await;
            table.hold_over(&namespace, until);
        });
    }

    /// How many keys may have a mark; `None` where that is not limited.
    #[must_use]
    pub fn most_keys(&self) -> Option<u64> {
        Some(self.table.most_keys()).filter(|most| *most < u64::MAX)
    }

    /// Whether `limits.keys` leaves room for one more.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.table.may_add_key()
    }

    /// Asks for admission.
    pub fn admit(&self, claim: impl Into<Box<Claim>>) -> Admit {
        Admit::new(self.clone(), claim.into())
    }

    /// Lowers the mark of `key` from `from`, which it must be, to `to`, once everything that was
    /// forwarded before has ended or settled; `drain` says how, and how long that may take.
    pub fn reset(&self, key: Key, from: Token, to: Token, drain: Drain) -> Reset {
        Reset::new(self.clone(), key, from, to, drain)
    }

    /// Compares a claim with the marks as they are, and changes nothing.
    ///
    /// # Errors
    ///
    /// What [`Self::admit`] would refuse it for at once.
    pub async fn compare(&self, claim: impl Into<Box<Claim>>) -> Result<(), Refusal> {
        let claim = claim.into();
        let until = admission::after(admission::now(), claim.drain.timeout);
        let mut look = Looking {
            fence: self.clone(),
            claim,
            places: Places::new(),
            raises: false,
        };
        let compared = std::future::poll_fn(|cx| match look.once(cx.waker()) {
            Some(verdict) => std::task::Poll::Ready(verdict),
            None => std::task::Poll::Pending,
        });
        match tokio::time::timeout_at(until, compared).await {
            Ok(None) => Ok(()),
            Ok(Some(refusal)) => Err(refusal),
            Err(_) => Err(Refusal::new(
                Reason::StoreUnavailable,
                "The mark could not be read in time; try again later.",
            )),
        }
    }

    /// Lets a claim through whatever its tokens are, and finds out what enforcing would have
    /// answered: marks are raised, nobody waits and nobody is drained.
    ///
    /// Keys whose token is [`Token::NONE`] are in flight and nothing more.
    pub fn observe(&self, claim: impl Into<Box<Claim>>) -> Admission {
        let claim = claim.into();
        let seen = Arc::new(Observation::default());
        let mut tokens = claim.clone();
        let fenced = |token: Token| token != Token::NONE;
        tokens.keys = claim
            .keys
            .iter()
            .zip(&claim.asks)
            .filter(|one| fenced(one.1.token))
            .map(|one| one.0.clone())
            .collect();
        tokens.asks.retain(|ask| fenced(ask.token));
        if tokens.keys.is_empty() {
            let _ = seen.verdict.set(None);
        } else {
            self.look_on(tokens, &seen);
        }
        Admission::observed(self.clone(), claim, seen)
    }

    fn look_on(&self, claim: Box<Claim>, seen: &Arc<Observation>) {
        let mut look = Looking {
            fence: self.clone(),
            claim,
            places: Places::new(),
            raises: true,
        };
        match look.once(std::task::Waker::noop()) {
            Some(verdict) => {
                let _ = seen.verdict.set(verdict);
            }
            // A mark has to be read first, which must not delay the request.
            None => {
                let seen = Arc::clone(seen);
                spawn(async move {
                    let verdict = std::future::poll_fn(|cx| match look.once(cx.waker()) {
                        Some(verdict) => std::task::Poll::Ready(verdict),
                        None => std::task::Poll::Pending,
                    });
                    let _ = seen.verdict.set(verdict.await);
                });
            }
        }
    }

    /// The mark of `key` as it is in memory, durable or not; `None` where it has none.
    ///
    /// # Errors
    ///
    /// It could not be read in time, or not at all.
    pub async fn mark(&self, key: &Key) -> Result<Option<Token>, Refusal> {
        let mut looking = MarkLook {
            fence: self.clone(),
            keys: [key.clone()],
            places: Places::new(),
        };
        let until = admission::after(admission::now(), MARK_TIME);
        let looked = std::future::poll_fn(|cx| match looking.once(cx.waker()) {
            Some(mark) => std::task::Poll::Ready(mark),
            None => std::task::Poll::Pending,
        });
        match tokio::time::timeout_at(until, looked).await {
            Ok(Ok(mark)) => Ok(mark),
            Ok(Err(())) | Err(_) => Err(Refusal::new(
                Reason::StoreUnavailable,
                "The mark could not be read; try again later.",
            )),
        }
    }

    /// Whether nothing is admitted any more.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.table.is_stopping()
    }

    /// What is known of `key`; `None` where it has no mark. Reads the disk.
    ///
    /// # Errors
    ///
    /// As the store says.
    pub fn key(&self, key: &Key) -> Result<Option<KeyView>, StoreError> {
        let live = self
            .table
            .look(key, |lane| (lane.record().cloned(), lane.counts()));
        if let Some((Some(record), counts)) = live {
            return Ok(Some(view(key.clone(), record, counts)));
        }
        let found = self.table.store().list(key.as_str(), None, 1)?;
        Ok(found
            .into_iter()
            .find(|one| one.0 == *key)
            .map(|(key, record)| view(key, record, live.map_or((0, 0, 0), |live| live.1))))
    }

    /// Up to `limit` keys that have a mark, in order; see [`Store::list`]. Reads the disk.
    ///
    /// # Errors
    ///
    /// As the store says.
    pub fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<KeyView>, StoreError> {
        // What the gateway keeps for itself sorts before all marks, and is none.
        const MARKS: &str = "!\u{10ffff}";
        let after = after.filter(|after| *after > MARKS).unwrap_or(MARKS);
        let durable = self.table.store().list(prefix, Some(after), limit)?;
        Ok(durable
            .into_iter()
            .map(|(key, record)| {
                let live = self
                    .table
                    .look(&key, |lane| (lane.record().cloned(), lane.counts()));
                match live {
                    Some((in_memory, counts)) => view(key, in_memory.unwrap_or(record), counts),
                    None => view(key, record, (0, 0, 0)),
                }
            })
            .collect())
    }

    /// What is in use now. Walks all lanes.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            keys: self.table.keys(),
            ..Totals::default()
        };
        self.table.each(|_, lane| {
            let (in_flight, waiting, unsettled) = lane.counts();
            totals.in_flight += in_flight;
            totals.waiting += waiting;
            totals.unsettled += unsettled;
        });
        totals
    }

    /// Whether nothing is in flight or unsettled in any lane, and no hold after a crash is on: a
    /// stop may mark the store clean.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let mut quiet = !self.table.holds();
        self.table.each(|_, lane| quiet &= lane.is_quiet());
        quiet || fault::planted(Fault::CleanUnsettled)
    }

    /// The same for the keys of one namespace.
    #[must_use]
    pub fn is_namespace_quiet(&self, namespace: &str) -> bool {
        let mut quiet = !self.table.is_namespace_held(namespace);
        self.table.each(|key, lane| {
            quiet &= key.namespace() != namespace || lane.is_quiet();
        });
        quiet
    }

    /// Cuts the tunnels that are open under keys of one namespace.
    pub fn end_tunnels(&self, namespace: &str) {
        let mut handles: Vec<Handle> = Vec::new();
        self.table.each(|key, lane| {
            if key.namespace() == namespace {
                handles.extend(lane.all().cloned());
            }
        });
        handles.into_iter().for_each(|handle| handle.end_tunnel());
    }

    /// The store has failed for good: as [`stop`](Self::stop), but what waits is refused as
    /// `store-unavailable`, as whatever asks the store is.
    pub fn fail(&self) {
        self.table.fail();
        self.cut_all();
    }

    /// From now on nothing is admitted or sent: what waits is refused as `shutting-down`, and every
    /// write in flight is cut.
    pub fn stop(&self) {
        self.table.stop();
        self.cut_all();
    }

    fn cut_all(&self) {
        let mut handles = Vec::new();
        self.table
            .each(|_, lane| handles.extend(lane.all().cloned()));
        handles
            .into_iter()
            .for_each(|handle: Handle| handle.cut(Cut::Stopping));
    }
}

fn view(key: Key, record: Record, counts: (usize, usize, usize)) -> KeyView {
    KeyView {
        key,
        mark: record.mark,
        holder: record.holder,
        in_flight: counts.0,
        waiting: counts.1,
        unsettled: counts.2,
    }
}

/// How long the read of a mark may take where nothing else says so.
const MARK_TIME: std::time::Duration = std::time::Duration::from_secs(30);

/// A look at a mark alone.
struct MarkLook {
    fence: Fence,
    keys: [Key; 1],
    places: Places,
}

impl MarkLook {
    /// `None` where the mark has to be read first.
    fn once(&mut self, waker: &std::task::Waker) -> Option<Result<Option<Token>, ()>> {
        let places = &mut self.places;
        let retry = places.waited;
        let table = &self.fence.table;
        table.with_lanes(&self.keys, retry, |mut view| {
            let lane = view.lanes.first_mut()?;
            if lane.read_under_way().is_some() && !lane.read_failed() {
                places.waited = true;
                lane.wait_for_mark(places.waiter, waker);
                return None;
            }
            lane.leave(places.waiter);
            places.waited = false;
            Some(match lane.read_failed() {
                true => Err(()),
                false => Ok(lane.mark()),
            })
        })
    }
}

impl Drop for MarkLook {
    fn drop(&mut self) {
        if self.places.waited {
            let places = &self.places;
            self.fence.table.with_lanes(&self.keys, true, |mut view| {
                step::leave(&mut view.lanes, places);
            });
        }
    }
}

/// A look at the lanes of a request that does not wait in them.
struct Looking {
    fence: Fence,
    claim: Box<Claim>,
    places: Places,
    /// Whether marks are raised, or only compared.
    raises: bool,
}

impl Looking {
    /// `None` where a mark has to be read first.
    fn once(&mut self, waker: &std::task::Waker) -> Option<Option<Refusal>> {
        let table = &self.fence.table;
        let bounds = Bounds {
            waiting: usize::MAX,
            new_keys: table.may_add_key(),
        };
        let (claim, places, raises) = (&self.claim, &mut self.places, self.raises);
        let mut effects = table::Effects::default();
        let retry = places.waited;
        let arrival = table.with_lanes(&claim.keys, retry, |mut view| {
            step::look(
                &mut view.lanes,
                &claim.asks,
                places,
                bounds,
                raises,
                waker,
                &mut effects,
            )
        });
        table.carry_out(&claim.keys, effects, |_| {});
        if arrival != Arrival::Unread {
            // It has left its lanes, so that dropping it needs no look at them.
            self.places.waited = false;
        }
        match arrival {
            Arrival::Unread => None,
            Arrival::Refused(index, refused) => Some(Some(claim.refusal(index, refused))),
            Arrival::Admitted | Arrival::Waiting => Some(None),
        }
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if !self.places.waited {
            return;
        }
        let places = &mut self.places;
        self.fence
            .table
            .with_lanes(&self.claim.keys, true, |mut view| {
                step::leave(&mut view.lanes, places);
            });
    }
}
