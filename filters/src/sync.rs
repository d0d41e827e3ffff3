//! What the lane table shares between threads, and the time that it waits by.
//!
//! These are the standard library's locks and atomics, and tokio's timers. Under the feature
//! `shuttle`, which only tests set, they are those of a checker that decides which thread runs
//! next, so that a test explores the orders in which they may; time then passes where the test
//! says so. Neither costs the other anything. Mere counters, which nobody waits for and nothing is
//! decided by, are not among them.

#[cfg(feature = "shuttle")]
pub(crate) use self::checked::{AtomicBool, Mutex, MutexGuard, Sleep, now, sleep_until};
#[cfg(not(feature = "shuttle"))]
pub(crate) use self::real::{AtomicBool, Mutex, MutexGuard, Sleep, now, sleep_until};

#[cfg(feature = "shuttle")]
pub(crate) use self::checked::{spawn, try_spawn};
#[cfg(not(feature = "shuttle"))]
pub(crate) use self::real::{spawn, try_spawn};

#[cfg(not(feature = "shuttle"))]
mod real {
    use std::future::Future;
    use std::time::Instant;

    pub(crate) use std::sync::atomic::AtomicBool;
    pub(crate) use std::sync::{Mutex, MutexGuard};
    pub(crate) use tokio::time::{Sleep, sleep_until};

    /// Now, by the clock that the runtime's timers go by.
    pub(crate) fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Runs a task on the runtime in which this is called.
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }

    /// The same; where there is no runtime the task is dropped.
    pub(crate) fn try_spawn(task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(task);
        }
    }
}

#[cfg(feature = "shuttle")]
mod checked {
    use std::cell::RefCell;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};
    #[cfg(test)]
    use std::time::Duration;
    use std::time::Instant;

    pub(crate) use shuttle::sync::atomic::AtomicBool;
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};

    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        drop(shuttle::future::spawn(task));
    }

    pub(crate) use spawn as try_spawn;

    /// The clock of one execution. All its threads run on one thread of the system, so it needs no
    /// lock; nothing else runs while it is borrowed.
    struct Clock {
        now: Instant,
        sleeping: Vec<(Instant, Waker)>,
    }

    thread_local! {
        static CLOCK: RefCell<Clock> = RefCell::new(Clock {
            now: Instant::now(),
            sleeping: Vec::new(),
        });
    }

    pub(crate) fn now() -> Instant {
        CLOCK.with_borrow(|clock| clock.now)
    }

    /// What of an earlier execution still sleeps is forgotten.
    #[cfg(test)]
    pub(crate) fn restart() {
        let sleeping = CLOCK.with_borrow_mut(|clock| std::mem::take(&mut clock.sleeping));
        // The tasks that these would wake are gone.
        sleeping.into_iter().for_each(std::mem::forget);
    }

    /// Lets time pass, and wakes whoever slept until then.
    #[cfg(test)]
    pub(crate) fn advance(by: Duration) {
        let due = CLOCK.with_borrow_mut(|clock| {
            clock.now += by;
            let now = clock.now;
            let (due, later) = std::mem::take(&mut clock.sleeping)
                .into_iter()
                .partition(|one: &(Instant, Waker)| one.0 <= now);
            clock.sleeping = later;
            due
        });
        due.into_iter().for_each(|one| one.1.wake());
    }

    /// Stands for tokio's timer of the same name.
    pub(crate) struct Sleep(Instant);

    pub(crate) fn sleep_until(until: tokio::time::Instant) -> Sleep {
        Sleep(until.into_std())
    }

    impl Sleep {
        pub(crate) fn reset(mut self: Pin<&mut Self>, until: tokio::time::Instant) {
            self.0 = until.into_std();
        }
    }

    impl Future for Sleep {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            CLOCK.with_borrow_mut(|clock| {
                if clock.now >= self.0 {
                    return Poll::Ready(());
                }
                clock.sleeping.push((self.0, cx.waker().clone()));
                Poll::Pending
            })
        }
    }
}

#[cfg(all(test, feature = "shuttle"))]
pub(crate) use self::checked::{advance, restart};
