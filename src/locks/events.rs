//! What happens to a lock, as it happens (`GET /v1/locks/{key}/events`), by server-sent events.
//!
//! Whoever reads too slowly is told how many events it missed, and one that does not read at all is
//! cut off: what is kept for it is bounded. Nothing of the past is kept. Whoever comes again with
//! the id of the last event that it saw is told that it may have missed some, and looks at the lock.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fencegate_filters::fault::{self, Fault};
use fencegate_filters::{Key, Token};
use http_body::{Body, Frame};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, Sleep};

use super::cell::Used;

/// How many events are kept for one that reads slowly.
const KEPT: usize = 64;

/// How long nothing is sent before a comment is, so that whoever is between does not hang up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Somebody got the lock, and is about to be told so.
    Granted,
    /// The lease lasts anew.
    Renewed,
    /// It was given back, or whoever should have been told of it had left.
    Released,
    /// Its time is over, or there is a newer token.
    Expired,
    /// Somebody came with a token that is not the holder's.
    Refused,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Renewed => "renewed",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Refused => "refused",
        }
    }
}

/// One event of one lock.
pub(super) struct Event<'a> {
    pub(super) what: What,
    pub(super) key: &'a Key,
    pub(super) token: Token,
    pub(super) holder: Option<&'a str>,
    /// Why somebody was refused.
    pub(super) reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Data<'a> {
    key: &'a str,
    token: String,
    holder: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Missed<'a> {
    key: &'a str,
    /// `None`: nobody knows.
    missed: Option<u64>,
}

/// The ids of events: those of two runs of the process are never the same.
#[derive(Debug)]
pub(super) struct Ids {
    run: u128,
    last: AtomicU64,
}

impl Default for Ids {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            run: since.map_or(0, |since| since.as_micros()),
            last: AtomicU64::new(0),
        }
    }
}

impl Ids {
    fn next(&self) -> String {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{:x}-{number}", self.run)
    }
}

struct Watcher {
    sender: mpsc::Sender<Bytes>,
    /// How many events it has missed since the last one that was kept for it.
    missed: u64,
    number: u64,
}

/// Who watches a lock.
#[derive(Default)]
pub(super) struct Watchers {
    all: Mutex<Vec<Watcher>>,
    last: AtomicU64,
}

impl Watchers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Watcher>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Tells everybody who watches.
    pub(super) fn tell(&self, ids: &Ids, event: &Event<'_>) {
        let mut all = self.lock();
        let lost = event.what == What::Renewed && fault::planted(Fault::LoseEvents);
        if all.is_empty() || lost {
            return;
        }
        let data = Data {
            key: event.key.as_str(),
            token: event.token.to_string(),
            holder: event.holder,
            reason: event.reason,
        };
        let bytes = rendered(Some(&ids.next()), event.what.name(), &data);
        all.retain_mut(|watcher| watcher.take(bytes.clone()));
        if fault::planted(Fault::RepeatEvents) {
            all.retain_mut(|watcher| watcher.take(bytes.clone()));
        }
    }

    fn add(&self) -> (u64, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(KEPT);
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        self.lock().push(Watcher {
            sender,
            missed: 0,
            number,
        });
        (number, receiver)
    }

    fn remove(&self, number: u64) {
        self.lock().retain(|watcher| watcher.number != number);
    }

    /// How many events a watcher has missed that has read all that was kept for it.
    fn missed(&self, number: u64) -> u64 {
        let mut all = self.lock();
        let found = all.iter_mut().find(|watcher| watcher.number == number);
        found.map_or(0, |watcher| std::mem::take(&mut watcher.missed))
    }

    /// Ends it for everybody who watches.
    pub(super) fn close(&self) {
        self.lock().clear();
    }
}

impl Watcher {
    /// `false`: it is there no more.
    fn take(&mut self, bytes: Bytes) -> bool {
        // Once it has missed one it misses all until it has been told so: what it reads has no
        // gap that it does not know of.
        if self.missed > 0 {
            self.missed += 1;
            return !self.sender.is_closed();
        }
        match self.sender.try_send(bytes) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.missed = 1;
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

/// The events of a lock from now on, as the body of an answer.
pub(super) struct Watch {
    used: Used,
    number: u64,
    receiver: mpsc::Receiver<Bytes>,
    first: Option<Bytes>,
    keep_alive: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// `again`: for somebody who has watched before.
    pub(super) fn new(used: Used, place: OwnedSemaphorePermit, again: bool) -> Self {
        let (number, receiver) = used.cell.watchers.add();
        // Something at once, so that it is known that everything from here on will be told of.
        let mut first = b": watching\nretry: 1000\n\n".to_vec();
        if again {
            first.extend_from_slice(&missed(&used.key, None));
        }
        Self {
            used,
            number,
            receiver,
            first: Some(first.into()),
            keep_alive: Box::pin(tokio::time::sleep(KEEP_ALIVE)),
            _place: place,
        }
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if let Poll::Ready(bytes) = self.receiver.poll_recv(cx) {
            if fault::planted(Fault::ReorderEvents)
                && let Ok(later) = self.receiver.try_recv()
            {
                self.first = bytes;
                return Poll::Ready(Some(later));
            }
            return Poll::Ready(bytes);
        }
        let count = self.used.cell.watchers.missed(self.number);
        if count > 0 {
            return Poll::Ready(Some(missed(&self.used.key, Some(count))));
        }
        if self.keep_alive.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Bytes::from_static(b": still here\n\n")));
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.used.cell.watchers.remove(self.number);
    }
}

impl Body for Watch {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let polled = this.poll_bytes(cx);
        if polled.is_ready() {
            this.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
        }
        polled.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn missed(key: &Key, count: Option<u64>) -> Bytes {
    let data = Missed {
        key: key.as_str(),
        missed: count,
    };
    rendered(None, "missed", &data)
}

/// JSON has no line breaks, so that the data is one line.
fn rendered(id: Option<&str>, name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    Bytes::from(format!("{id}event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(watchers: &Watchers, ids: &Ids, counter: u64) {
        watchers.tell(
            ids,
            &Event {
                what: What::Granted,
                key: &Key::new("objects", "a\nb"),
                token: Token::new(0, counter).unwrap(),
                holder: Some("pod-7"),
                reason: None,
            },
        );
    }

    #[test]
    fn an_event_is_three_lines_whatever_the_key_is() {
        let (watchers, ids) = (Watchers::default(), Ids::default());
        let (_, mut receiver) = watchers.add();
        told(&watchers, &ids, 1);
        let text = String::from_utf8(receiver.try_recv().unwrap().to_vec()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("id: ") && lines[0].ends_with("-1"),
            "{text}"
        );
        assert_eq!(
            lines[1..],
            [
                "event: granted",
                r#"data: {"key":"objects/a\nb","token":"1","holder":"pod-7"}"#,
                ""
            ]
        );
    }

    #[test]
    fn whoever_reads_slowly_knows_what_it_missed_and_nothing_more_is_kept() {
        let (watchers, ids) = (Watchers::default(), Ids::default());
        let (number, mut receiver) = watchers.add();
        for counter in 1..=KEPT as u64 + 10 {
            told(&watchers, &ids, counter);
        }
        assert!(receiver.try_recv().is_ok());
        // There is room again, and yet it would not know of the gap.
        told(&watchers, &ids, 1000);
        let mut kept = 1;
        while receiver.try_recv().is_ok() {
            kept += 1;
        }
        assert_eq!(kept, KEPT);
        assert_eq!(watchers.missed(number), 11);
        assert_eq!(watchers.missed(number), 0);
        told(&watchers, &ids, 1001);
        assert!(receiver.try_recv().is_ok());
    }

    #[test]
    fn those_who_left_are_forgotten_and_a_stop_ends_it_for_the_others() {
        let (watchers, ids) = (Watchers::default(), Ids::default());
        let (_, left) = watchers.add();
        let (_, mut stays) = watchers.add();
        drop(left);
        told(&watchers, &ids, 1);
        assert_eq!(watchers.lock().len(), 1);
        watchers.close();
        assert!(stays.try_recv().is_ok());
        assert_eq!(
            stays.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        );
    }
}
