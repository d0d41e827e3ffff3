//! From a request's claim to its end: admission, the permit, the outcome.
//!
//! ```text
//! Claim --admit--> Admission --send--> Permit --ended--> outcome
//!                       ^                 |
//!                       +-----unsent------+
//! ```
//!
//! Every arrow is one atomic step over all keys of the request. Whatever is dropped on the way is
//! accounted for: a claim that waited leaves its lanes, an admission was never sent, and a permit
//! counts as an unknown outcome.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::Fence;
use super::in_flight::{Cut, Handle, Uploads};
use super::lane::{Access, Ask, Held, Ticket};
use super::step::{self, Arrival, Bounds, Effects, Places, Refused};
use crate::fault::{self, Fault};
use crate::refusal::{Outcome, Reason, Refusal};
pub(super) use crate::sync::now;
use crate::sync::{Sleep, sleep_until, try_spawn};
use crate::{Key, Token};

/// What an advance does with older writes, and how long it waits (`fence.drain`).
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long it may take, from the raise.
    pub timeout: Duration,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// What happens to uploads that are under way.
    pub uploads: Uploads,
    /// How long an unknown outcome holds newer tokens: `upstream.settle`.
    pub settle: Duration,
    /// How many may wait for one key.
    pub waiting: usize,
}

impl Default for Drain {
    /// 30 s, then `refuse`; uploads are cut; 15 s to settle; 256 may wait.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            on_timeout: OnTimeout::Refuse,
            uploads: Uploads::Cut,
            settle: Duration::from_secs(15),
            waiting: 256,
        }
    }
}

/// What an advance does when its older writes have not ended in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// The advance is refused, and the older writes run on.
    #[default]
    Refuse,
    /// The older writes are cut, and the advance waits for them to settle.
    Cut,
}

/// What one request asks of the fence: its keys, all distinct, with the token for each.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The keys.
    pub keys: SmallVec<[Key; 1]>,
    /// What it asks of each, in the same order.
    pub asks: SmallVec<[Ask; 1]>,
    /// Whether the request is a write: only writes are in flight.
    pub write: bool,
    /// How it drains and waits.
    pub drain: Drain,
}

impl Claim {
    /// A write to one key, with this token; all else as by default.
    #[must_use]
    pub fn write(key: Key, token: Token) -> Self {
        let ask = Ask {
            token,
            holder: None,
            access: Access::Write,
            max_advance: None,
            new_epochs: true,
        };
        Self {
            keys: SmallVec::from_iter([key]),
            asks: SmallVec::from_iter([ask]),
            write: true,
            drain: Drain::default(),
        }
    }

    pub(super) fn refusal(&self, index: usize, refused: Refused) -> Refusal {
        if let Refused::Held(held) = refused {
            return self.held(index, held);
        }
        let (reason, mark, detail) = match refused {
            Refused::Stale(mark) => (
                Reason::StaleToken,
                Some(mark),
                "A newer fencing token has been seen for this key: the lock was handed on; acquire it again and start over.",
            ),
            Refused::HolderMismatch(mark) => (
                Reason::HolderMismatch,
                Some(mark),
                "This token is bound to another holder: two holders must never share one token; acquire the lock again.",
            ),
            Refused::JumpTooLarge(mark) => (
                Reason::JumpTooLarge,
                Some(mark),
                "The token is further above the mark than this route allows: check where the token came from.",
            ),
            Refused::Store | Refused::Held(_) => (
                Reason::StoreUnavailable,
                None,
                "The mark could not be read or made durable, so nothing was forwarded; try again later.",
            ),
            Refused::Sealed => (
                Reason::Draining,
                None,
                "The mark of this key is being reset by an administrator, and nothing is let through until then; try again.",
            ),
            Refused::Queue => (
                Reason::Busy,
                None,
                "Too many requests already wait for this key; try again later.",
            ),
            Refused::Keys => (
                Reason::Busy,
                None,
                "The limit on the number of keys is reached, so this key can't get a mark.",
            ),
        };
        self.refuse(index, reason, mark, detail)
    }

    fn refuse(
        &self,
        index: usize,
        reason: Reason,
        mark: Option<Token>,
        detail: &'static str,
    ) -> Refusal {
        let mut refusal = Refusal::new(reason, detail);
        refusal.key = self.keys.get(index).cloned();
        refusal.token = self.asks.get(index).map(|ask| ask.token);
        refusal.mark = mark;
        refusal
    }

    fn held(&self, index: usize, held: Held) -> Refusal {
        let (reason, detail) = match held {
            Held::InFlight => (
                Reason::Draining,
                "Older writes on this key were still in flight when the time to wait was over; the mark is raised; try again.",
            ),
            Held::Unsettled => (
                Reason::Settling,
                "The outcome of an older write on this key is unknown and it may still be running; the mark is raised; try again.",
            ),
            Held::Commit => (
                Reason::StoreUnavailable,
                "The mark was not durable when the time to wait was over; try again.",
            ),
        };
        self.refuse(index, reason, None, detail)
    }
}

/// Waits until a claim is admitted or refused.
///
/// Dropping it leaves all lanes; marks that it raised stay raised.
#[must_use = "a claim is admitted only when this is polled"]
pub struct Admit {
    fence: Fence,
    claim: Option<Box<Claim>>,
    places: Places,
    /// When it first had to wait, or the drain that it waits for began.
    began: Option<Instant>,
    waiting: bool,
    deadline: Option<Deadline>,
    /// Whether it still has to raise every mark.
    advances: bool,
}

/// What a close may take: a write that was cut settles from its end, not from the cut.
pub(super) const CLOSE: Duration = Duration::from_secs(1);

/// A day that nobody waits for: what stands for an instant too far away to be told.
const NEVER: Duration = Duration::from_secs(86_400 * 365 * 30);

/// The instant `wait` after `from`.
pub(super) fn after(from: Instant, wait: Duration) -> tokio::time::Instant {
    from.checked_add(wait)
        .unwrap_or_else(|| from + NEVER)
        .into()
}

struct Deadline {
    sleep: Pin<Box<Sleep>>,
    /// Whether older writes have been cut when it first ran out.
    cut: bool,
}

impl Admit {
    pub(super) fn new(fence: Fence, claim: Box<Claim>) -> Self {
        Self {
            fence,
            claim: Some(claim),
            places: Places::new(),
            began: None,
            waiting: false,
            deadline: None,
            advances: false,
        }
    }

    /// The same for a token that is new: a mark that equals it is as one above it, for somebody else
    /// has come with it.
    pub fn advancing(mut self) -> Self {
        self.advances = true;
        self
    }

    /// One look at the lanes. `None`: it waits.
    fn look(&mut self, waker: &Waker) -> Option<Result<(), Refusal>> {
        let Self {
            fence,
            claim,
            places,
            advances,
            ..
        } = self;
        let claim = claim.as_ref()?;
        let table = &fence.table;
        if table.is_stopping() {
            if places.waited {
                table.with_lanes(&claim.keys, true, |mut view| {
                    step::leave(&mut view.lanes, places);
                });
            }
            return Some(Err(stopping(claim, table)));
        }
        let bounds = Bounds {
            waiting: claim.drain.waiting,
            new_keys: table.may_add_key(),
        };
        let mut effects = Effects::default();
        let first = self.began;
        let retry = places.waited;
        let (arrival, since) = table.with_lanes(&claim.keys, retry, |mut view| {
            if *advances {
                let mut lanes = view.lanes.iter().zip(&claim.asks);
                let taken = lanes.position(|(lane, ask)| lane.mark() == Some(ask.token));
                if let Some((index, ask)) = taken.and_then(|at| Some((at, claim.asks.get(at)?))) {
                    if places.waited {
                        step::leave(&mut view.lanes, places);
                    }
                    let stale = Refused::Stale(ask.token);
                    return (Arrival::Refused(index, stale), None);
                }
            }
            let arrival = step::arrive(
                &mut view.lanes,
                &claim.asks,
                places,
                bounds,
                waker,
                &mut effects,
            );
            // Raised, or refused: what it looks at from here on is its own mark.
            *advances &= arrival == Arrival::Unread;
            // The drain's clock runs from the first raise: a newer token does not start it anew.
            if !matches!(arrival, Arrival::Waiting | Arrival::Unread) {
                return (arrival, None);
            }
            let now = first.unwrap_or_else(now);
            let mut since = now;
            if arrival == Arrival::Waiting {
                for running in view.draining_since {
                    since = since.min(*running.get_or_insert(now));
                }
            }
            (arrival, Some(since))
        });
        let uploads = claim.drain.uploads;
        table.carry_out(&claim.keys, effects, |older| {
            Arc::clone(older).drain(uploads);
        });
        match arrival {
            Arrival::Admitted => Some(Ok(())),
            Arrival::Refused(index, refused) => Some(Err(claim.refusal(index, refused))),
            Arrival::Waiting | Arrival::Unread => {
                if !self.waiting {
                    self.waiting = true;
                    self.began = since;
                }
                None
            }
        }
    }

    /// The time to wait is over: `Some` ends the wait.
    fn timed_out(&mut self) -> Option<Refusal> {
        let claim = self.claim.as_ref()?;
        let deadline = self.deadline.as_mut()?;
        let table = &self.fence.table;
        if claim.drain.on_timeout == OnTimeout::Cut && !deadline.cut {
            deadline.cut = true;
            let older: Vec<Handle> = table.with_lanes(&claim.keys, true, |view| {
                view.lanes
                    .iter()
                    .zip(&claim.asks)
                    .flat_map(|(lane, ask)| lane.older(ask.token).cloned().collect::<Vec<_>>())
                    .collect()
            });
            // What has been cut before, by whomever, has the same time to settle.
            let unsettled = || {
                table.with_lanes(&claim.keys, true, |view| {
                    let held = step::held(&view.lanes, &claim.asks);
                    held.is_some_and(|held| held.1 == Held::Unsettled)
                })
            };
            if !older.is_empty() || unsettled() {
                older
                    .into_iter()
                    .for_each(|older| older.cut(Cut::Superseded));
                let settled = claim.drain.settle.saturating_add(CLOSE);
                deadline.sleep.as_mut().reset(after(now(), settled));
                return None;
            }
        }
        let places = &self.places;
        let held = table.with_lanes(&claim.keys, true, |mut view| {
            let held = step::held(&view.lanes, &claim.asks);
            if held.is_none()
                && view
                    .lanes
                    .iter()
                    .all(|lane| lane.read_under_way().is_none())
            {
                // Released between the last look and now: one look more.
                return None;
            }
            step::leave(&mut view.lanes, places);
            // This drain is over; the next to come starts one of its own.
            view.draining_since
                .into_iter()
                .for_each(|since| *since = None);
            Some(held)
        })?;
        Some(held.map_or_else(
            || claim.refusal(0, Refused::Store),
            |(index, held)| claim.held(index, held),
        ))
    }

    fn finish(&mut self, result: Result<(), Refusal>) -> Poll<Result<Admission, Refusal>> {
        let Some(claim) = self.claim.take() else {
            return Poll::Pending;
        };
        Poll::Ready(result.map(|()| Admission {
            fence: self.fence.clone(),
            claim,
            pinned: true,
            observed: None,
        }))
    }
}

impl Admit {
    /// The answer, where nothing has to be waited for. `None`: it is to be polled.
    pub fn try_now(&mut self) -> Option<Result<Admission, Refusal>> {
        let result = self.look(Waker::noop())?;
        match self.finish(result) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }
}

impl Future for Admit {
    type Output = Result<Admission, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if let Some(result) = this.look(cx.waker()) {
                return this.finish(result);
            }
            let Some(claim) = &this.claim else {
                return Poll::Pending;
            };
            let until = after(this.began.unwrap_or_else(now), claim.drain.timeout);
            let deadline = this.deadline.get_or_insert_with(|| Deadline {
                sleep: Box::pin(sleep_until(until)),
                cut: false,
            });
            ready!(deadline.sleep.as_mut().poll(cx));
            if let Some(refusal) = this.timed_out() {
                return this.finish(Err(refusal));
            }
        }
    }
}

impl Drop for Admit {
    fn drop(&mut self) {
        let Some(claim) = &self.claim else { return };
        if !self.places.waited {
            return;
        }
        let places = &self.places;
        self.fence.table.with_lanes(&claim.keys, true, |mut view| {
            step::leave(&mut view.lanes, places);
        });
    }
}

/// What observing a request found: the refusal that it would have got.
#[derive(Debug, Default)]
pub struct Observation {
    pub(super) verdict: OnceLock<Option<Refusal>>,
}

impl Observation {
    /// The refusal that enforcing would have answered, once it is known; `None` where there is
    /// none, or none yet.
    #[must_use]
    pub fn would_refuse(&self) -> Option<&Refusal> {
        self.verdict.get().and_then(Option::as_ref)
    }
}

/// An admitted request that has not been sent: it holds nobody.
#[must_use = "an admitted request holds nobody until it is sent"]
pub struct Admission {
    fence: Fence,
    /// Boxed once, since it goes through many hands.
    claim: Box<Claim>,
    /// Whether it keeps its lanes.
    pinned: bool,
    observed: Option<Arc<Observation>>,
}

impl Admission {
    pub(super) fn observed(fence: Fence, claim: Box<Claim>, seen: Arc<Observation>) -> Self {
        Self {
            fence,
            claim,
            pinned: false,
            observed: Some(seen),
        }
    }

    /// The claim that was admitted.
    #[must_use]
    pub const fn claim(&self) -> &Claim {
        &self.claim
    }

    /// In observe mode, what was found.
    #[must_use]
    pub const fn observation(&self) -> Option<&Arc<Observation>> {
        self.observed.as_ref()
    }

    /// The connection is ready: compares once more, and the request is in flight from now on.
    ///
    /// The first byte may go out only after this. `handle` is how a newer token reaches the write.
    ///
    /// # Errors
    ///
    /// `stale-token` where a newer token has come since it was admitted.
    pub fn send(mut self, handle: &Handle) -> Result<Permit, Refusal> {
        let claim = &self.claim;
        let observes = self.observed.is_some();
        let table = &self.fence.table;
        let sent = table.with_lanes(&claim.keys, true, |mut view| {
            // Under the lanes' locks: a stop that comes later finds this request in flight.
            if table.is_stopping() {
                return None;
            }
            Some(if observes {
                Ok(step::begin(
                    &mut view.lanes,
                    &claim.asks,
                    claim.write,
                    handle,
                ))
            } else {
                step::send(&mut view.lanes, &claim.asks, claim.write, handle)
            })
        });
        let Some(sent) = sent else {
            return Err(stopping(claim, table));
        };
        self.pinned = false;
        match sent {
            Ok(tickets) => Ok(Permit {
                admission: self,
                live: true,
                tickets,
            }),
            Err((index, refused)) => Err(claim.refusal(index, refused)),
        }
    }
}

/// The answer to a request that the stop of the gateway finds unsent.
fn stopping(claim: &Claim, table: &super::table::Table) -> Refusal {
    let (reason, detail) = if table.has_failed() {
        (
            Reason::StoreUnavailable,
            "The store of the marks has failed and the gateway stops; nothing was forwarded, so it is safe to try again elsewhere or later.",
        )
    } else {
        (
            Reason::ShuttingDown,
            "The gateway is stopping; nothing was forwarded, so it is safe to try again elsewhere or later.",
        )
    };
    claim.refuse(0, reason, None, detail)
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.pinned {
            self.fence.table.with_lanes(&self.claim.keys, true, |view| {
                view.lanes.into_iter().for_each(super::table::Lane::unadmit);
            });
        }
    }
}

/// A request in flight.
///
/// Dropping it, in a panic as well, counts as an unknown outcome at that moment: whoever holds it
/// must have closed the upstream connection before.
#[must_use = "a permit that is dropped is an unknown outcome"]
pub struct Permit {
    admission: Admission,
    /// Whether it has not ended yet.
    live: bool,
    tickets: SmallVec<[Option<Ticket>; 1]>,
}

impl Permit {
    /// Not a byte was written, as the HTTP library says for certain: back to being admitted, to be
    /// compared once more when it is sent on another connection.
    pub fn unsent(mut self) -> Admission {
        self.live = false;
        let admitted = &self.admission;
        let observes = admitted.observed.is_some();
        let tickets = &self.tickets;
        let mut wake = Vec::new();
        // Dropped when the lanes are let go: a handle may be the last of what it stands for.
        let mut handles: SmallVec<[Handle; 1]> = SmallVec::new();
        let table = &admitted.fence.table;
        table.with_lanes(&admitted.claim.keys, true, |mut view| {
            for (lane, ticket) in view.lanes.iter_mut().zip(tickets) {
                if !observes {
                    lane.admit();
                }
                if let Some(ticket) = ticket {
                    let (handle, mut released) = lane.ended(*ticket, false);
                    handles.extend(handle);
                    wake.append(&mut released);
                }
            }
        });
        wake.into_iter().for_each(Waker::wake);
        Admission {
            fence: admitted.fence.clone(),
            claim: admitted.claim.clone(),
            pinned: !observes,
            observed: admitted.observed.clone(),
        }
    }

    /// The request has ended, and the connection is closed or back with the upstream's answer
    /// whole. `settles`: whether the upstream may still be working on it.
    pub fn ended(mut self, outcome: Outcome, settles: bool) {
        self.end(outcome == Outcome::Unknown && settles);
    }

    /// Whether this request holds any lane: a read does not.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.tickets.iter().any(Option::is_some)
    }

    /// The claim under which it was admitted.
    #[must_use]
    pub const fn claim(&self) -> &Claim {
        self.admission.claim()
    }

    /// The first key that has a newer mark by now, its token, and that mark.
    #[must_use]
    pub fn superseded_by(&self) -> Option<(Key, Token, Token)> {
        let table = &self.admission.fence.table;
        let claim = &self.admission.claim;
        claim.keys.iter().zip(&claim.asks).find_map(|(key, ask)| {
            let mark = table.look(key, |lane| lane.mark()).flatten()?;
            (mark > ask.token).then(|| (key.clone(), ask.token, mark))
        })
    }

    fn end(&mut self, settles: bool) {
        if !std::mem::take(&mut self.live) || !self.is_write() {
            return;
        }
        let table = &self.admission.fence.table;
        let keys = &self.admission.claim.keys;
        // Dropped when the lanes are let go: a handle may be the last of what it stands for.
        let mut handles: SmallVec<[Handle; 1]> = SmallVec::new();
        table.tell_each(keys, &self.tickets, |lane, ticket| {
            let (handle, released) = lane.ended(ticket, settles);
            handles.extend(handle);
            released
        });
        if !settles {
            return;
        }
        let settled = after(now(), self.admission.claim.drain.settle);
        let (table, tickets) = (Arc::clone(table), self.tickets.clone());
        let claim = self.admission.claim.clone();
        // Without a runtime nobody can tell when it has settled: then it never does.
        try_spawn(async move {
            sleep_until(settled).await;
            let tokens = claim.asks.iter().map(|ask| ask.token);
            for ((key, ticket), token) in claim.keys.iter().zip(&tickets).zip(tokens) {
                if ticket.is_some() {
                    table.tell(key, |lane| lane.settled(token));
                }
            }
        });
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.end(!fault::planted(Fault::PanicCompletes));
    }
}
