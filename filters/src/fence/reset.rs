//! A reset of a mark, from the seal of its lane to the lower mark on disk.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use super::Fence;
use super::admission::{CLOSE, Drain, OnTimeout, after, now};
use super::in_flight::{Cut, Handle};
use super::lane::reset::{NotReset, Resetting};
use super::step::Places;
use crate::sync::{Sleep, sleep_until};
use crate::{Key, Token};

/// Resets a mark: the one way down.
///
/// Its lane is sealed, so that nothing is admitted or sent; whoever waits in it is refused, and
/// everything in flight is drained and settles, whatever its token. Then the lower mark is made
/// durable, and bound to nobody.
///
/// Dropped before the lower mark is being committed, it leaves the mark as it is; dropped later, it
/// ends by itself.
#[must_use = "a mark is reset only when this is polled"]
pub struct Reset {
    fence: Fence,
    keys: [Key; 1],
    from: Token,
    to: Token,
    drain: Drain,
    places: Places,
    deadline: Pin<Box<Sleep>>,
    /// Whether what is in flight was cut when the deadline first ran out.
    cut: bool,
    over: bool,
}

/// Why a mark was not reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// The new mark is not below the old one.
    NotLower,
    /// The key has no mark.
    NoMark,
    /// The mark is this one.
    Mark(Token),
    /// Another reset of it is under way.
    UnderWay,
    /// What was in flight has not ended in time; the mark is as it was.
    InFlight,
    /// What was unknown has not settled in time; the mark is as it was.
    Unsettled,
    /// The mark could not be read or made durable.
    Store,
    /// The gateway is stopping.
    Stopping,
}

impl From<NotReset> for ResetError {
    fn from(why: NotReset) -> Self {
        match why {
            NotReset::Store => Self::Store,
            NotReset::NoMark => Self::NoMark,
            NotReset::Mark(mark) => Self::Mark(mark),
            NotReset::Sealed => Self::UnderWay,
        }
    }
}

impl Reset {
    pub(super) fn new(fence: Fence, key: Key, from: Token, to: Token, drain: Drain) -> Self {
        Self {
            fence,
            keys: [key],
            from,
            to,
            drain,
            places: Places::new(),
            deadline: Box::pin(sleep_until(after(now(), drain.timeout))),
            cut: false,
            over: false,
        }
    }

    /// One look at the lane. `None`: it waits for something to end; `Some(false)`: for the store.
    fn look(&mut self, waker: &Waker) -> Option<Result<bool, ResetError>> {
        if self.to >= self.from {
            return Some(Err(ResetError::NotLower));
        }
        let table = Arc::clone(&self.fence.table);
        loop {
            let waiter = self.places.waiter;
            let mut wake = Vec::new();
            let retry = std::mem::replace(&mut self.places.waited, true);
            let (found, change, handles) = table.with_lanes(&self.keys, retry, |view| {
                let Some(lane) = view.lanes.into_iter().next() else {
                    return (Resetting::Refused(NotReset::Store), 0, Vec::new());
                };
                let found = lane.reset(waiter, self.from, self.to, waker, &mut wake);
                let handles = match found {
                    Resetting::Sealed => lane.all().cloned().collect(),
                    _ => Vec::new(),
                };
                (found, lane.change(), handles)
            });
            wake.into_iter().for_each(Waker::wake);
            let uploads = self.drain.uploads;
            handles
                .into_iter()
                .for_each(|handle: Handle| handle.drain(uploads));
            match found {
                // A reset is asked for once, and the drain may have ended it all.
                Resetting::Sealed => {}
                Resetting::Lower(record) => {
                    table.commit(&self.keys, vec![(0, change, record, false)]);
                }
                // What is being committed may become durable, whatever stops.
                Resetting::Unread | Resetting::Draining if table.is_stopping() => {
                    return Some(Err(ResetError::Stopping));
                }
                Resetting::Unread | Resetting::Draining => return None,
                Resetting::Committing => return Some(Ok(false)),
                Resetting::Done => return Some(Ok(true)),
                Resetting::Refused(why) => return Some(Err(why.into())),
            }
        }
    }

    /// The time to wait is over: `Some` ends the wait.
    fn timed_out(&mut self) -> Option<ResetError> {
        let [key] = &self.keys;
        let table = &self.fence.table;
        let look = |lane: &super::table::Lane| {
            let handles: Vec<Handle> = lane.all().cloned().collect();
            (handles, lane.counts().2)
        };
        let (handles, unsettled) = table.look(key, look).unwrap_or_default();
        if self.drain.on_timeout == OnTimeout::Cut && !self.cut {
            self.cut = true;
            handles
                .into_iter()
                .for_each(|handle| handle.cut(Cut::Superseded));
            // What has been cut before, by whomever, has the same time to settle.
            let settled = self.drain.settle.saturating_add(CLOSE);
            self.deadline.as_mut().reset(after(now(), settled));
            return None;
        }
        let held = unsettled > 0 || table.is_namespace_held(key.namespace());
        Some(match handles.is_empty() && held {
            true => ResetError::Unsettled,
            false => ResetError::InFlight,
        })
    }
}

impl Future for Reset {
    type Output = Result<(), ResetError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match this.look(cx.waker()) {
                Some(Ok(true)) => {
                    this.over = true;
                    return Poll::Ready(Ok(()));
                }
                // What the store will answer is true whenever it does.
                Some(Ok(false)) => return Poll::Pending,
                Some(Err(error)) => {
                    // Whatever else refuses it has found it out of the lane.
                    this.over = error != ResetError::Stopping;
                    return Poll::Ready(Err(error));
                }
                None => {}
            }
            ready!(this.deadline.as_mut().poll(cx));
            if let Some(error) = this.timed_out() {
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl Drop for Reset {
    fn drop(&mut self) {
        if self.over || !self.places.waited {
            return;
        }
        let waiter = self.places.waiter;
        let table = &self.fence.table;
        table.with_lanes(&self.keys, true, |view| {
            for lane in view.lanes {
                lane.leave_reset(waiter);
            }
        });
    }
}
