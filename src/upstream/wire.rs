//! What one upstream connection knows of the request that is on it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

/// The most bytes that may come before a response's body, informational responses included. A head
/// alone is bounded by the codec, at less.
const MOST_HEAD_BYTES: usize = 1024 * 1024;

/// Why a request body could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum UploadError {
    /// The client went away or broke the framing.
    Client = 1,
    /// The body is above `limits.body`.
    TooLarge = 2,
    /// The client sent nothing for `timeouts.body`.
    TooSlow = 3,
}

/// The progress of a request, shared by its body, the socket under the codec and the exchange.
///
/// All three run in one task at a time; the atomics are there because that task may be another
/// thread's when a newer token takes the connection away.
#[derive(Debug, Default)]
pub struct Wire {
    body_ended: AtomicBool,
    sent_whole: AtomicBool,
    /// Of HTTP/2 alone: the upstream has said what it speaks.
    greeted: AtomicBool,
    /// Of HTTP/2 alone: anything was written since the request began.
    wrote: AtomicBool,
    stopped: AtomicBool,
    may_continue: AtomicBool,
    waits_for_client: AtomicBool,
    progressed: AtomicBool,
    empty: AtomicBool,
    /// Bytes read since the request began, until its response's head has come.
    head_bytes: AtomicUsize,
    upload_error: AtomicU8,
}

impl Wire {
    /// A new request begins; `empty` tells that it has no body, `held` that its body must wait for
    /// the upstream's `100 Continue`.
    pub fn begin(&self, empty: bool, held: bool) {
        self.body_ended.store(empty, Ordering::Relaxed);
        self.sent_whole.store(false, Ordering::Relaxed);
        self.wrote.store(false, Ordering::Relaxed);
        self.stopped.store(false, Ordering::Relaxed);
        self.may_continue.store(!held, Ordering::Relaxed);
        self.waits_for_client.store(false, Ordering::Relaxed);
        self.progressed.store(false, Ordering::Relaxed);
        self.head_bytes.store(0, Ordering::Relaxed);
        self.upload_error.store(0, Ordering::Relaxed);
    }

    /// The body has been handed to the codec whole.
    pub fn body_has_ended(&self) {
        self.body_ended.store(true, Ordering::Relaxed);
        self.waits_for_client.store(false, Ordering::Relaxed);
    }

    /// Whether the body has been handed to the codec whole.
    pub fn body_ended(&self) -> bool {
        self.body_ended.load(Ordering::Relaxed)
    }

    /// The codec has nothing left to write.
    pub fn flushed(&self) {
        if self.body_ended() {
            self.sent_whole.store(true, Ordering::Release);
        }
    }

    /// The socket has taken the last frame of the request.
    pub(super) fn sent_last_frame(&self) {
        self.sent_whole.store(true, Ordering::Release);
    }

    /// The socket has taken something.
    pub(super) fn has_written(&self) {
        self.wrote.store(true, Ordering::Relaxed);
        self.progress();
    }

    /// Whether the socket has taken anything since the request began.
    pub(super) fn wrote(&self) -> bool {
        self.wrote.load(Ordering::Relaxed)
    }

    /// The upstream has begun as HTTP/2 begins.
    pub(super) fn greet(&self) {
        self.greeted.store(true, Ordering::Relaxed);
    }

    /// Whether the upstream has begun as HTTP/2 begins.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.load(Ordering::Relaxed)
    }

    /// Whether the request has been handed to the socket whole.
    pub fn sent_whole(&self) -> bool {
        self.sent_whole.load(Ordering::Acquire)
    }

    /// Nothing more of the body is to be sent.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether nothing more of the body is to be sent.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The upstream wants the body, or did not say so in time.
    pub fn go_on(&self) {
        self.may_continue.store(true, Ordering::Relaxed);
    }

    /// Whether the body may be sent.
    pub fn may_continue(&self) -> bool {
        self.may_continue.load(Ordering::Relaxed)
    }

    /// Whether the next piece of the body has to come from the client first.
    pub fn set_waits_for_client(&self, waits: bool) {
        self.waits_for_client.store(waits, Ordering::Relaxed);
    }

    /// See [`Self::set_waits_for_client`].
    pub fn waits_for_client(&self) -> bool {
        self.waits_for_client.load(Ordering::Relaxed)
    }

    /// Something was read from the client or written to the upstream.
    pub fn progress(&self) {
        self.progressed.store(true, Ordering::Relaxed);
    }

    /// Whether there was progress since the last call.
    pub fn take_progress(&self) -> bool {
        self.progressed.load(Ordering::Relaxed) && {
            self.progressed.store(false, Ordering::Relaxed);
            true
        }
    }

    /// The codec's turn begins: the socket may have something.
    pub(super) fn begin_turn(&self) {
        self.empty.store(false, Ordering::Relaxed);
    }

    /// The socket was found empty, and calls when it no longer is.
    pub(super) fn found_empty(&self) {
        self.empty.store(true, Ordering::Relaxed);
    }

    /// Whether it was found empty in this turn, and need not be asked again.
    pub(super) fn is_empty(&self) -> bool {
        self.empty.load(Ordering::Relaxed)
    }

    /// The response's head has come: what is read from now on is its body.
    pub fn head_has_come(&self) {
        self.head_bytes.store(usize::MAX, Ordering::Relaxed);
    }

    /// So many bytes were read. `false` where so much has come without a head that it can only be a
    /// flood of informational responses.
    pub fn may_read_on(&self, bytes: usize) -> bool {
        let before = self.head_bytes.load(Ordering::Relaxed);
        if before == usize::MAX {
            return true;
        }
        let now = before.saturating_add(bytes);
        self.head_bytes.store(now, Ordering::Relaxed);
        now <= MOST_HEAD_BYTES
    }

    /// The body failed.
    pub fn upload_failed(&self, error: UploadError) {
        self.upload_error.store(error as u8, Ordering::Relaxed);
    }

    /// Why the body failed, if it did.
    pub fn upload_error(&self) -> Option<UploadError> {
        match self.upload_error.load(Ordering::Relaxed) {
            1 => Some(UploadError::Client),
            2 => Some(UploadError::TooLarge),
            3 => Some(UploadError::TooSlow),
            _ => None,
        }
    }
}
