//! Waiting for events instead of for time.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A door that is shut until somebody opens it, and open ever after.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>, Duration);

impl Gate {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One that stays shut for so long on purpose.
    pub(crate) fn shut_for(time: Duration) -> Self {
        Self(Arc::default(), time)
    }

    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn is_open(&self) -> bool {
        *self.0.0.lock().unwrap()
    }

    /// Waits until the gate is open, or for `time` at most; says whether it is open.
    pub(crate) fn wait_for(&self, time: Duration) -> bool {
        let open = self.0.0.lock().unwrap();
        *self
            .0
            .1
            .wait_timeout_while(open, time, |open| !*open)
            .unwrap()
            .0
    }

    pub(crate) fn wait(&self) {
        assert!(self.wait_for(PATIENCE + self.1), "nobody opened the gate");
    }
}

/// Asks again and again until `probe` gives an answer; fails, saying `what`, when it never does.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Gives this thread, and those that it starts, the lowest priority: whoever else wants the CPU has
/// it at once. By a lower one alone (`nice`) a thread that runs is left to the end of its slice.
pub(crate) fn yield_to_all() {
    let this = rustix::thread::gettid();
    let number = this.as_raw_nonzero().to_string();
    let idle = std::process::Command::new("chrt")
        .args(["--idle", "--pid", "0", &number])
        .status();
    if !idle.is_ok_and(|status| status.success()) {
        rustix::process::setpriority_process(Some(this), 19).unwrap();
    }
}
