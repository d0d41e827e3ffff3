//! Receiving a response: passed on as its client reads it, or read ahead and out of the way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fencegate_filters::Outcome;
use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::Permit;
use http_body::Frame;
use tokio::time::Instant;

use super::{Flight, Keeper, Slot};
use crate::body::{Broken, Frames};
use crate::upstream::{Conn, Received};

/// How much of a response is read ahead when a newer token waits and the client is slow.
const READ_AHEAD: usize = 1024 * 1024;

/// Reads the response's body.
pub(super) struct Reading {
    pub(super) conn: Box<Conn>,
    pub(super) incoming: Received,
    pub(super) permit: Option<Permit>,
    pub(super) has_body: bool,
    /// Why the outcome is unknown although the response may arrive whole.
    pub(super) doubtful: bool,
    pub(super) arrived: Frames,
    pub(super) arrived_bytes: usize,
    /// Whether a task of the gateway's own reads ahead.
    pub(super) pumped: bool,
    /// Whether the client has left, and only the outcome matters.
    pub(super) discard: bool,
    /// When a response is cut for whose end a newer token waits, and which nobody reads any more or
    /// a client too slowly: the time that the upstream may take is all that it has from then on.
    pub(super) end_at: Option<Instant>,
    pub(super) waiting_since: Option<Instant>,
    pub(super) reader: Option<Waker>,
    pub(super) pump: Option<Waker>,
}

impl Flight {
    /// Reads what is there, up to the end or the bound; `Ready(Ok)` at the end.
    pub(super) fn read_arrived(
        &self,
        reading: &mut Reading,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ()>> {
        loop {
            if reading.incoming.is_end_stream() {
                return Poll::Ready(Ok(()));
            }
            if reading.arrived_bytes >= READ_AHEAD
                || (!reading.pumped && reading.arrived.len() >= 2)
            {
                return Poll::Pending;
            }
            match self.poll_upstream(reading, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(()))) => return Poll::Ready(Err(())),
                Poll::Ready(Some(Ok(frame))) => {
                    reading.arrived_bytes += frame.data_ref().map_or(0, Bytes::len);
                    reading.arrived.push(frame);
                }
            }
        }
    }

    /// The next frame from the upstream itself.
    fn poll_upstream(
        &self,
        reading: &mut Reading,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        let Reading { conn, incoming, .. } = reading;
        // As with the head, what there is comes of the drive and of nothing else.
        let mut quiet = Context::from_waker(Waker::noop());
        let taken = conn.take(cx, || incoming.poll_frame(&mut quiet));
        if let Poll::Ready(frame) = taken {
            reading.waiting_since = None;
            reading.conn.timer.set(None);
            return Poll::Ready(frame);
        }
        if reading.conn.converses() && reading.conn.wire.take_progress() {
            // The upload goes on beside the response.
            reading.waiting_since = None;
        }
        let since = *reading.waiting_since.get_or_insert_with(Instant::now);
        let gap = since + self.upstream.timeout;
        let end = reading.end_at.map_or(gap, |end| end.min(gap));
        reading.conn.timer.set(Some(end));
        if reading.conn.timer.poll_expired(cx).is_ready() {
            return Poll::Ready(Some(Err(())));
        }
        Poll::Pending
    }

    /// The next frame for the client.
    pub(super) fn poll_body(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut slot = self.lock();
        let reading = match &mut *slot {
            Slot::Body(reading) => reading,
            Slot::Rest(frames) => return Poll::Ready(frames.pop().map(Ok)),
            Slot::Over(None) => return Poll::Ready(None),
            _ => return Poll::Ready(Some(Err(Broken))),
        };
        if let Some(frame) = reading.arrived.pop() {
            reading.arrived_bytes -= frame.data_ref().map_or(0, Bytes::len);
            if let Some(pump) = reading.pump.take() {
                pump.wake();
            }
            // The end may be known already; then nobody has to ask for it.
            if reading.arrived.is_empty() && reading.incoming.is_end_stream() && !reading.pumped {
                self.finish_body(&mut slot);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        if reading.pumped {
            reading.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let frame = match self.poll_upstream(reading, cx) {
            Poll::Pending => {
                reading.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        match frame {
            Some(Ok(frame)) => {
                if reading.incoming.is_end_stream() {
                    self.finish_body(&mut slot);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                self.finish_body(&mut slot);
                Poll::Ready(None)
            }
            Some(Err(())) => {
                self.end_body(&mut slot);
                Poll::Ready(Some(Err(Broken)))
            }
        }
    }

    /// A task of the gateway's own reads the response, so that a slow client holds nobody back.
    pub(super) fn read_ahead(self: &Arc<Self>, slot: &mut Slot) {
        let Slot::Body(reading) = slot else { return };
        if std::mem::replace(&mut reading.pumped, true) {
            if let Some(pump) = reading.pump.take() {
                pump.wake();
            }
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let keeper = Keeper::new(self, true);
                let spawned = Arc::clone(&keeper.spawned);
                let pump = std::future::poll_fn(move |cx| keeper.flight.poll_pump(cx));
                if runtime.spawn(pump).is_finished() {
                    // The runtime is shutting down, and has dropped it already.
                    self.end_body(slot);
                } else {
                    spawned.store(true, Ordering::SeqCst);
                }
            }
            Err(_) => reading.pumped = false,
        }
    }

    pub(super) fn poll_pump(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.lock();
        loop {
            let Slot::Body(reading) = &mut *slot else {
                return Poll::Ready(());
            };
            let slow = reading.discard || reading.arrived_bytes >= READ_AHEAD;
            if slow && self.draining.load(Ordering::SeqCst) {
                let end = || Instant::now() + self.upstream.timeout;
                reading.end_at.get_or_insert_with(end);
            }
            if reading.end_at.is_some_and(|end| end <= Instant::now()) {
                self.end_body(&mut slot);
                return Poll::Ready(());
            }
            let read = self.read_arrived(reading, cx);
            let more = reading.discard && !reading.arrived.is_empty();
            if reading.discard {
                reading.arrived.clear();
                reading.arrived_bytes = 0;
            }
            if !reading.arrived.is_empty()
                && let Some(reader) = reading.reader.take()
            {
                reader.wake();
            }
            match read {
                Poll::Pending if more => {}
                // The bound of what is read ahead has been reached in this very turn.
                Poll::Pending if !slow && reading.arrived_bytes >= READ_AHEAD => {}
                Poll::Pending => {
                    if slow && !reading.discard {
                        // The upstream was not asked, so nothing else sees to it that this ends.
                        reading.conn.timer.set(reading.end_at);
                        if reading.conn.timer.poll_expired(cx).is_ready() {
                            continue;
                        }
                    }
                    reading.pump = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => {
                    self.read_whole(&mut slot);
                    return Poll::Ready(());
                }
                Poll::Ready(Err(())) => {
                    self.end_body(&mut slot);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// The response has been read ahead whole: the write ends, its client may go on reading.
    fn read_whole(&self, slot: &mut Slot) {
        let Slot::Body(mut reading) = std::mem::replace(slot, Slot::Over(None)) else {
            return;
        };
        *slot = Slot::Rest(std::mem::take(&mut reading.arrived));
        if let Some(reader) = reading.reader.take() {
            reader.wake();
        }
        reading.conn.look();
        self.finish(*reading);
    }

    fn finish_body(&self, slot: &mut Slot) {
        if let Slot::Body(mut reading) = std::mem::replace(slot, Slot::Over(None)) {
            reading.conn.look();
            self.finish(*reading);
        }
    }

    /// The response was received whole, and its connection has been looked at since.
    pub(super) fn finish(&self, mut reading: Reading) {
        // In HTTP/2 a response may begin before its request has ended, and must not end before it.
        let early = !reading.conn.wire.sent_whole() && !fault::planted(Fault::EarlyAnswerCompletes);
        if reading.doubtful || early {
            self.close(reading.conn, reading.permit, reading.has_body);
            return;
        }
        if let Some(permit) = reading.permit.take() {
            permit.ended(Outcome::Completed, false);
        }
        self.upstream.keep(reading.conn);
    }
}
