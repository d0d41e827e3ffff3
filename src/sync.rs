//! What the store's threads share: the standard library's threads, locks and atomics.
//!
//! Under the feature `shuttle`, which only tests set, they are those of a checker that decides
//! which thread runs next, so that a test explores the orders in which they may. A wait that may
//! time out then does so now and then. Neither costs the other anything.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::atomic::AtomicBool;
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::thread;

#[cfg(feature = "shuttle")]
pub(crate) use self::checked::{Condvar, thread};
#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::atomic::AtomicBool;
#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};

#[cfg(feature = "shuttle")]
mod checked {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, LockResult, PoisonError};
    use std::time::Duration;

    use shuttle::rand::{Rng, thread_rng};
    use shuttle::sync::MutexGuard;

    /// One wait in so many times out.
    const TIMES_OUT: u32 = 4;

    /// A condition variable whose waits time out now and then: a thread of its own wakes it, as
    /// any wake-up that was meant for nobody.
    #[derive(Default)]
    pub(crate) struct Condvar(Arc<shuttle::sync::Condvar>);

    pub(crate) struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        pub(crate) const fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
        ) -> LockResult<MutexGuard<'a, T>> {
            self.0.wait(guard)
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
            let over = Arc::new(AtomicBool::new(false));
            if thread_rng().gen_ratio(1, TIMES_OUT) {
                let (condvar, over) = (Arc::clone(&self.0), Arc::clone(&over));
                shuttle::thread::spawn(move || {
                    over.store(true, Ordering::SeqCst);
                    condvar.notify_all();
                });
            }
            let guard = self.0.wait(guard);
            let result = WaitTimeoutResult(over.load(Ordering::SeqCst));
            match guard {
                Ok(guard) => Ok((guard, result)),
                Err(poisoned) => Err(PoisonError::new((poisoned.into_inner(), result))),
            }
        }
    }

    /// Threads whose panic ends them alone, as it does in the standard library.
    pub(crate) mod thread {
        use std::panic::{AssertUnwindSafe, catch_unwind};

        pub(crate) use shuttle::thread::current;

        pub(crate) struct Builder(shuttle::thread::Builder);

        pub(crate) struct JoinHandle<T>(shuttle::thread::JoinHandle<std::thread::Result<T>>);

        impl Builder {
            pub(crate) fn new() -> Self {
                Self(shuttle::thread::Builder::new())
            }

            pub(crate) fn name(self, name: String) -> Self {
                Self(self.0.name(name))
            }

            pub(crate) fn spawn<T: Send + 'static>(
                self,
                run: impl FnOnce() -> T + Send + 'static,
            ) -> std::io::Result<JoinHandle<T>> {
                let caught = move || catch_unwind(AssertUnwindSafe(run));
                self.0.spawn(caught).map(JoinHandle)
            }
        }

        impl<T> JoinHandle<T> {
            pub(crate) fn thread(&self) -> &shuttle::thread::Thread {
                self.0.thread()
            }

            pub(crate) fn join(self) -> std::thread::Result<T> {
                self.0.join().and_then(|result| result)
            }
        }
    }
}
