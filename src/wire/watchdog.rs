//! The clock over a client's connection: one timer, set anew only when it fires or is too late.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::{ConnState, Phase};

/// How long a client may take. `None` switches a limit off.
#[derive(Clone, Copy, Debug)]
pub struct ConnTimeouts {
    /// From the first byte of a head to its end; on a new connection, from accept.
    pub header: Option<Duration>,
    /// Between two requests.
    pub idle: Option<Duration>,
    /// How long a write may wait without moving a byte.
    pub write_stall: Option<Duration>,
}

impl Default for ConnTimeouts {
    fn default() -> Self {
        Self {
            header: Some(Duration::from_secs(10)),
            idle: Some(Duration::from_secs(60)),
            write_stall: Some(Duration::from_secs(60)),
        }
    }
}

/// How long a client's connection is quiet before its codec is taken down: long enough that a client in a loop never pays for
/// that, and short enough that those that only keep their connections open do not hold the codec's buffers.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Why a connection is not polled any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended<T> {
    /// It has ended by itself.
    Served(T),
    /// The client was not in time, and the connection is to be dropped.
    Late,
    /// Nothing is under way, and nothing has been for a while: the codec can go until more comes.
    Quiet,
}

/// Which time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// The client was too slow with a head.
    Header,
    /// No further request came.
    Idle,
    /// The client does not read what it is sent.
    WriteStall,
}

/// Watches one connection. A request on a connection that is kept busy arms no timer: the one from
/// before fires at some time, finds that there was progress, and is set anew.
#[derive(Debug)]
pub struct Watchdog {
    timeouts: ConnTimeouts,
    /// After how long a connection is [`Ended::Quiet`].
    rest: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes, once it is armed.
    waker: Option<Waker>,
}

impl Watchdog {
    /// A watchdog that has seen nothing yet.
    #[must_use]
    pub fn new(timeouts: ConnTimeouts) -> Self {
        Self {
            timeouts,
            rest: None,
            sleep: None,
            waker: None,
        }
    }

    /// Tells [`Ended::Quiet`] too.
    #[must_use]
    pub fn that_lets_rest(mut self) -> Self {
        self.rest = Some(REST_AFTER);
        self
    }

    /// Polls a connection for as long as its client is in time, and something is under way. A head that
    /// has begun is answered first; the second time there is no more patience.
    pub fn poll_while_timely<T>(
        &mut self,
        cx: &mut Context<'_>,
        state: &ConnState,
        mut connection: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Ended<T>> {
        loop {
            if let Poll::Ready(ended) = connection(cx) {
                return Poll::Ready(Ended::Served(ended));
            }
            match ready!(self.poll_due(cx, state, self.rest)) {
                None => return Poll::Ready(Ended::Quiet),
                Some(Expired::Header | Expired::Idle) if !state.is_expired() => state.expire(),
                _ => return Poll::Ready(Ended::Late),
            }
        }
    }

    /// Ready when a time is over. To be polled after the connection, in the same task, whenever
    /// that was polled.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>, state: &ConnState) -> Poll<Expired> {
        loop {
            if let Some(expired) = ready!(self.poll_due(cx, state, None)) {
                return Poll::Ready(expired);
            }
        }
    }

    /// Ready when a time is over: which, or `None` where nothing has moved for `rest`.
    fn poll_due(
        &mut self,
        cx: &mut Context<'_>,
        state: &ConnState,
        rest: Option<Duration>,
    ) -> Poll<Option<Expired>> {
        loop {
            let due = self.timeouts.due(state, rest);
            let armed = self.is_armed_for(cx);
            match (&mut self.sleep, due) {
                (None, None) => return Poll::Pending,
                (None, Some((at, _))) => self.sleep = Some(Box::pin(sleep_until(at))),
                (Some(sleep), Some((at, _))) if at < sleep.deadline() => sleep.as_mut().reset(at),
                (Some(sleep), _) if armed && !sleep.is_elapsed() => return Poll::Pending,
                _ => {}
            }
            let Some(sleep) = &mut self.sleep else {
                return Poll::Pending;
            };
            if sleep.as_mut().poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.waker = None;
            match due {
                Some((at, expired)) if at <= sleep.deadline() => return Poll::Ready(expired),
                Some((at, _)) => sleep.as_mut().reset(at),
                None => self.sleep = None,
            }
        }
    }

    /// Whether the timer is set and wakes this task: then it need not be looked at until it does.
    fn is_armed_for(&self, cx: &Context<'_>) -> bool {
        self.waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
    }
}

impl ConnTimeouts {
    /// The earliest time that may be over, and which: a limit, or `rest`.
    fn due(&self, state: &ConnState, rest: Option<Duration>) -> Option<(Instant, Option<Expired>)> {
        let quiet = match state.phase() {
            Phase::Fresh => due(Some(state.accepted()), rest, None),
            Phase::Idle => due(Some(state.last_progress()), rest, None),
            _ => None,
        };
        let phase = match state.phase() {
            Phase::Fresh => due(Some(state.accepted()), self.header, Some(Expired::Header)),
            Phase::Head => due(Some(state.head_since()), self.header, Some(Expired::Header)),
            Phase::Idle => due(Some(state.last_progress()), self.idle, Some(Expired::Idle)),
            // Handed to the codec whole, and nothing of it waits for the client.
            Phase::InService if state.is_answered() && state.write_blocked_since().is_none() => {
                due(Some(state.last_progress()), self.idle, Some(Expired::Idle))
            }
            Phase::Body | Phase::InService | Phase::Tunnel | Phase::Closing => None,
        };
        let write = due(
            state.write_blocked_since(),
            self.write_stall,
            Some(Expired::WriteStall),
        );
        // The first of those that are due at once: late is late.
        let all = phase.into_iter().chain(write).chain(quiet);
        all.min_by_key(|(at, _)| *at)
    }
}

fn due(
    since: Option<Instant>,
    timeout: Option<Duration>,
    expired: Option<Expired>,
) -> Option<(Instant, Option<Expired>)> {
    Some((since?.checked_add(timeout?)?, expired))
}
