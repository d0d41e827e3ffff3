//! How late this process's threads were: a resource that a busy machine held up is told from a fence that broke.
//!
//! What a test writes down as the end of a write is when a thread of the resource came to see it. Where that thread was later than
//! `settle`, a history is out of order although no byte was.

use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked.
const STEP: Duration = Duration::from_millis(10);
/// What is worth to be noted.
const NOTED: Duration = Duration::from_millis(50);

static WATCH: Once = Once::new();
static LATE: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());

/// From here on it is noted how late a thread that sleeps for a moment wakes up.
pub(super) fn watch() {
    WATCH.call_once(|| {
        thread::spawn(|| {
            loop {
                let asleep = Instant::now();
                thread::sleep(STEP);
                let late = asleep.elapsed().saturating_sub(STEP);
                if late >= NOTED {
                    LATE.lock().unwrap().push((Instant::now(), late));
                }
            }
        });
    });
}

/// The longest that a thread was late between the two, or up to a second behind them; nothing, where it was not worth to be noted.
pub(super) fn longest(from: Instant, to: Instant) -> Duration {
    let late = LATE.lock().unwrap();
    let near = late
        .iter()
        .filter(|(woke, late)| *woke >= from && *woke - *late <= to + Duration::from_secs(1));
    near.map(|(_, late)| *late).max().unwrap_or_default()
}
