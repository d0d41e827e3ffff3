//! The waker that an upstream connection's codec is given.
//!
//! The codec and the exchange that drives it talk through channels, and each message wakes the
//! other side, which is the very task that is at work. Without this every response would cost one
//! more turn of its client's connection, in which nothing is found to do.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Nobody is at work: a call wakes the task.
const ASLEEP: u8 = 0;
/// The task is at work on the connection: a call is noted.
const AWAKE: u8 = 1;
/// It was called while it was at work.
const CALLED: u8 = 2;

/// Wakes the task that drives a connection, unless that is at work on it.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    state: AtomicU8,
    task: Mutex<Option<Waker>>,
}

impl Alarm {
    /// The task is at work from now on.
    pub(super) fn hush(&self) {
        self.state.store(AWAKE, Ordering::SeqCst);
    }

    /// It is done. Whether it was called meanwhile, so that there may be more to do.
    pub(super) fn listen(&self) -> bool {
        self.state.swap(ASLEEP, Ordering::SeqCst) == CALLED
    }

    /// Whether it was called since [`Self::hush`].
    pub(super) fn was_called(&self) -> bool {
        self.state.load(Ordering::SeqCst) == CALLED
    }

    /// Whom to wake from now on; `None`: nobody.
    pub(super) fn set(&self, task: Option<&Waker>) {
        let mut set = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*set, task) {
            (Some(old), Some(new)) if old.will_wake(new) => {}
            (None, None) => {}
            _ => *set = task.cloned(),
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let noted = self
            .state
            .compare_exchange(AWAKE, CALLED, Ordering::SeqCst, Ordering::SeqCst);
        if noted != Err(ASLEEP) {
            return;
        }
        // Woken outside the lock, which the task may want.
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_a_task_that_is_not_at_work_is_woken() {
        let count = Arc::new(Count::default());
        let woken = || count.0.load(Ordering::SeqCst);
        let alarm = Arc::new(Alarm::default());
        let waker = Waker::from(Arc::clone(&alarm));
        waker.wake_by_ref();
        assert_eq!(woken(), 0, "there is nobody to wake");

        alarm.set(Some(&Waker::from(Arc::clone(&count))));
        waker.wake_by_ref();
        assert_eq!(woken(), 1);

        alarm.hush();
        assert!(!alarm.listen());
        alarm.hush();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(woken(), 1);
        assert!(alarm.listen());

        waker.wake_by_ref();
        assert_eq!(woken(), 2);
        alarm.set(None);
        waker.wake();
        assert_eq!(woken(), 2);
    }
}
