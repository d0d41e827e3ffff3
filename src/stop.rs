//! How far a stop has gone, and who waits for it.
//!
//! A `watch` channel would do as well, but that wakes those who wait in an order of chance. Here
//! they wake in the order in which they came, so that a simulated stop can be repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

/// How a stop goes on, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stop {
    /// No connection is accepted; each ends with the request that is on it.
    Draining = 1,
    /// What is left is dropped.
    Cutting = 2,
    /// Nothing is left, or the process is to end at once.
    Over = 3,
}

/// Tells how far the stop has gone. It is over when this is dropped.
#[derive(Debug, Default)]
pub struct Stopper(Stopping);

impl Stopper {
    /// Goes on to `stop`.
    pub fn go_on(&self, stop: Stop) {
        self.0.0.reached.fetch_max(stop as u8, Ordering::SeqCst);
        self.0.0.changed.notify_waiters();
    }

    /// For those who wait.
    #[must_use]
    pub fn stopping(&self) -> Stopping {
        self.0.clone()
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.go_on(Stop::Over);
    }
}

/// Is told how far the stop has gone.
#[derive(Clone, Debug, Default)]
pub struct Stopping(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    reached: AtomicU8,
    changed: Notify,
}

impl Stopping {
    /// Whether the stop has gone as far as `stop`.
    #[must_use]
    pub fn has_reached(&self, stop: Stop) -> bool {
        self.0.reached.load(Ordering::SeqCst) >= stop as u8
    }

    /// Waits until the stop has gone as far as `stop`.
    pub async fn reached(&self, stop: Stop) {
        loop {
            // It counts from its making on, so that no change is missed between the look and the wait.
            let changed = self.0.changed.notified();
            if self.has_reached(stop) {
                return;
            }
            changed.await;
        }
    }
}
