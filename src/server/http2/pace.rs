//! How many requests of one HTTP/2 connection may be begun.
//!
//! Each may take a connection to an upstream of its own. A client that makes a hundred requests at
//! once, is told to go away and comes back would have upstreams take, and lose, a hundred connections
//! each time, until they take none from anybody. So a connection may begin with a few, and earns more
//! by what is answered: soon as many as may be under way at once. Whoever has only requests that are
//! not answered for long, such as calls that stay open, gets one more with each pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use fencegate_filters::fault::{self, Fault};
use tokio::time::Instant;

use crate::timer::LazyTimer;

/// What a new connection may begin at once.
const AT_FIRST: u32 = 8;
/// What each answer is worth: the request that was spent for it, and one more.
const FOR_AN_ANSWER: u32 = 2;
/// How long it takes to earn one without an answer.
const PAUSE: Duration = Duration::from_millis(1);

/// What a connection may still begin.
#[derive(Debug)]
pub(super) struct Pace {
    left: u32,
    most: u32,
    answers: Answers,
    pause: LazyTimer,
}

/// Counts the answers that are still to be turned into requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(Arc<AtomicU32>);

impl Answers {
    /// A request has been answered.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Pace {
    /// Of a new connection that may carry so many requests at once.
    pub(super) fn new(streams: u32) -> Self {
        Self {
            left: AT_FIRST.min(streams),
            most: streams,
            answers: Answers::default(),
            pause: LazyTimer::default(),
        }
    }

    /// Where a request that is begun is told as answered.
    pub(super) fn answers(&self) -> Answers {
        self.answers.clone()
    }

    /// Ready when a request may be begun. What an answer earns is seen when this is polled again,
    /// which the connection's task is: it has the answer to write.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let answers = self.answers.0.swap(0, Ordering::Relaxed);
        self.earn(answers.saturating_mul(FOR_AN_ANSWER));
        if self.left == 0 && !fault::planted(Fault::UnpacedRequests) {
            if self.pause.deadline().is_none() {
                self.pause.set(Instant::now().checked_add(PAUSE));
            }
            if self.pause.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
            self.earn(1);
        }
        self.pause.set(None);
        Poll::Ready(())
    }

    /// A request has been begun.
    pub(super) const fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    fn earn(&mut self, amount: u32) {
        self.left = self.left.saturating_add(amount).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Begins what may be begun now, up to a thousand; says how much it was.
    fn begin_all(pace: &mut Pace) -> u32 {
        let mut cx = Context::from_waker(Waker::noop());
        let mut begun = 0;
        while begun < 1_000 && pace.poll_ready(&mut cx).is_ready() {
            pace.spend();
            begun += 1;
        }
        begun
    }

    fn answer(pace: &Pace, count: u32) {
        (0..count).for_each(|_| pace.answers().add());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_earn_as_many_requests_as_there_may_be() {
        let mut pace = Pace::new(100);
        let mut rounds = Vec::new();
        for _ in 0..5 {
            let begun = begin_all(&mut pace);
            rounds.push(begun);
            answer(&pace, begun);
        }
        assert_eq!(rounds, [8, 16, 32, 64, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_answers_time_earns_one_at_a_time() {
        let mut pace = Pace::new(100);
        assert_eq!(begin_all(&mut pace), 8);
        for _ in 0..100 {
            assert_eq!(begin_all(&mut pace), 0);
            std::future::poll_fn(|cx| pace.poll_ready(cx)).await;
            assert_eq!(begin_all(&mut pace), 1);
        }
        // However long it has been.
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(begin_all(&mut pace), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_limit_counts() {
        let mut pace = Pace::new(3);
        assert_eq!(begin_all(&mut pace), 3);
        answer(&pace, 3);
        assert_eq!(begin_all(&mut pace), 3);
    }
}
