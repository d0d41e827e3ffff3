//! What a connection is doing: shared by the adapter below the codec, the service above it, and
//! the driver that polls both. Atomics only on the way of an ordinary request.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::meter::Flood;
use crate::clock;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing has arrived yet.
    Fresh,
    /// Between two requests.
    Idle,
    /// A head has begun to arrive.
    Head,
    /// A head has been handed to the codec, its body not yet to the end.
    Body,
    /// A request has arrived whole; its response is not yet written.
    InService,
    /// It carries another protocol.
    Tunnel,
    /// A refusal is being written, or the connection lingers.
    Closing,
}

/// The state of one connection. Times are kept in microseconds since it was accepted.
#[derive(Debug)]
pub struct ConnState {
    accepted: Instant,
    phase: AtomicU8,
    head_since: AtomicU64,
    last_read: AtomicU64,
    last_progress: AtomicU64,
    /// Zero: no write is pending.
    write_blocked_since: AtomicU64,
    /// Counts the driver's turns; zero where nobody does.
    turn: AtomicU32,
    /// Whether a turn of HTTP/2 was over before all that had come was read.
    unread: AtomicBool,
    answered: AtomicBool,
    tunnel: AtomicBool,
    expired: AtomicBool,
    /// Set only while bytes of a next request are held back.
    held: AtomicBool,
    http2: AtomicBool,
    /// Zero: no flood.
    flood: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl ConnState {
    /// The state of a connection that has just been accepted.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            accepted: Instant::now(),
            phase: AtomicU8::new(Phase::Fresh as u8),
            head_since: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            last_progress: AtomicU64::new(0),
            write_blocked_since: AtomicU64::new(0),
            turn: AtomicU32::new(0),
            unread: AtomicBool::new(false),
            answered: AtomicBool::new(true),
            tunnel: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            held: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            flood: AtomicU8::new(0),
            waker: Mutex::new(None),
        })
    }

    /// The driver's task has been woken, for whatever reason, and polls the codec until it waits
    /// again. A socket that was found empty in a turn is not asked again in the same turn: whatever
    /// comes meanwhile wakes the task anew.
    pub fn begin_turn(&self) {
        let next = self.turn.load(Ordering::Relaxed).wrapping_add(1);
        self.turn.store(next.max(1), Ordering::Relaxed);
    }

    /// The turn that is under way; zero where nobody counts.
    pub(super) fn turn(&self) -> u32 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Of an HTTP/2 connection: whether more has come, or may have, than was read so far.
    pub(crate) fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    pub(super) fn leave_unread(&self, unread: bool) {
        self.unread.store(unread, Ordering::Relaxed);
    }

    /// What the connection is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        const ALL: [Phase; 7] = [
            Phase::Fresh,
            Phase::Idle,
            Phase::Head,
            Phase::Body,
            Phase::InService,
            Phase::Tunnel,
            Phase::Closing,
        ];
        let phase = self.phase.load(Ordering::Acquire);
        ALL.get(usize::from(phase))
            .copied()
            .unwrap_or(Phase::Closing)
    }

    /// Whether the body of the request in service has arrived whole.
    #[must_use]
    pub fn body_complete(&self) -> bool {
        self.phase() != Phase::Body
    }

    /// When bytes last came from the client.
    #[must_use]
    pub fn last_read(&self) -> Instant {
        self.at(self.last_read.load(Ordering::Relaxed))
    }

    /// When bytes last went either way.
    #[must_use]
    pub fn last_progress(&self) -> Instant {
        self.at(self.last_progress.load(Ordering::Relaxed))
    }

    /// When the first byte of the head arrived that is being read now, or was last.
    #[must_use]
    pub fn head_since(&self) -> Instant {
        self.at(self.head_since.load(Ordering::Relaxed))
    }

    /// Since when a write waits for the client without having moved a byte.
    #[must_use]
    pub fn write_blocked_since(&self) -> Option<Instant> {
        match self.write_blocked_since.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(self.at(micros)),
        }
    }

    /// When it was accepted.
    #[must_use]
    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// Marks the current request as being served, until the guard is dropped.
    ///
    /// The service takes one for *every* request, and keeps it to the end of the response's body
    /// (see [`ServingBody`]): what a client sent behind a request stays below the codec until then.
    #[must_use]
    pub fn serving(self: &Arc<Self>) -> Serving {
        Serving(Arc::clone(self))
    }

    /// The request in service is being answered with 101, so what follows it is another protocol.
    /// To be called before the response is handed to the codec. Without it, what follows is HTTP.
    pub fn tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
    }

    /// The time for a head, or between requests, is over. When the codec's connection is polled
    /// the next time, a head that has begun is refused with 408, and the connection ends.
    pub fn expire(&self) {
        self.expired.store(true, Ordering::Release);
    }

    /// Whether [`Self::tunnel`] was called.
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Acquire)
    }

    /// Whether the client began with the preface of HTTP/2.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Acquire)
    }

    /// The client speaks HTTP/2: from now on its requests are streams.
    pub(crate) fn speak_http2(&self) {
        self.http2.store(true, Ordering::Release);
    }

    /// The flood that the client has sent, if it has.
    #[must_use]
    pub fn flooded(&self) -> Option<Flood> {
        match self.flood.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Flood::Overhead),
            2 => Some(Flood::Resets),
            _ => Some(Flood::Bodies),
        }
    }

    pub(super) fn flood(&self, flood: Flood) {
        let number = match flood {
            Flood::Overhead => 1,
            Flood::Resets => 2,
            Flood::Bodies => 3,
        };
        self.flood.store(number, Ordering::Relaxed);
    }

    /// Of an HTTP/2 connection: whether requests are on it, and whether the last of them has just
    /// ended. The time between two of them runs from there, whatever else passes meanwhile.
    pub(crate) fn serve_streams(&self, any: bool, just_ended: bool) {
        if just_ended {
            self.last_progress.store(self.now(), Ordering::Relaxed);
        }
        // What has begun to arrive has a time of its own.
        if self.phase() != Phase::Head {
            self.set_phase(if any { Phase::Body } else { Phase::Idle });
        }
    }

    /// What had begun has come whole.
    pub(super) fn head_ended(&self) {
        self.set_phase(Phase::Body);
    }

    pub(super) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    /// Whether the response to the last request was handed to the codec whole.
    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::SeqCst)
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Counted from now, not from the last read: the head may have waited here for its turn.
    pub(super) fn head_began(&self) {
        self.head_since.store(self.now(), Ordering::Relaxed);
        self.set_phase(Phase::Head);
    }

    /// A head has passed: the service above will see a request.
    pub(super) fn request_began(&self) {
        self.answered.store(false, Ordering::Release);
    }

    pub(super) fn has_read(&self) {
        let now = self.now();
        self.last_read.store(now, Ordering::Relaxed);
        self.last_progress.store(now, Ordering::Relaxed);
    }

    pub(super) fn has_written(&self) {
        self.last_progress.store(self.now(), Ordering::Relaxed);
        self.write_blocked_since.store(0, Ordering::Relaxed);
    }

    /// A write has moved, which says nothing of requests.
    pub(super) fn write_moved(&self) {
        self.write_blocked_since.store(0, Ordering::Relaxed);
    }

    pub(super) fn write_blocked(&self) {
        if self.write_blocked_since.load(Ordering::Relaxed) == 0 {
            self.write_blocked_since
                .store(self.now().max(1), Ordering::Relaxed);
        }
    }

    /// Asks for a wake-up when the request in service is answered. Whoever asks must look once
    /// more afterwards.
    pub(super) fn hold(&self, cx: &Context<'_>) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        self.held.store(true, Ordering::SeqCst);
    }

    pub(super) fn release(&self) {
        if self.held.load(Ordering::SeqCst) && self.held.swap(false, Ordering::SeqCst) {
            let waker = self
                .waker
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn now(&self) -> u64 {
        let open = clock::now().saturating_duration_since(self.accepted);
        u64::try_from(open.as_micros()).unwrap_or(u64::MAX)
    }

    fn at(&self, micros: u64) -> Instant {
        self.accepted + Duration::from_micros(micros)
    }
}

/// A request is being served. Dropping it says that its response has been handed over whole, or
/// that there will be none.
#[derive(Debug)]
pub struct Serving(Arc<ConnState>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.answered.store(true, Ordering::SeqCst);
        self.0.release();
    }
}

pin_project! {
    /// A response's body that carries [`Serving`] to its end.
    #[derive(Debug)]
    pub struct ServingBody<B> {
        #[pin]
        body: B,
        serving: Serving,
    }
}

impl<B> ServingBody<B> {
    /// Binds `serving` to the life of `body`.
    pub fn new(body: B, serving: Serving) -> Self {
        Self { body, serving }
    }
}

impl<B: Body> Body for ServingBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
