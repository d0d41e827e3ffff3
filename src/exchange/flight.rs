//! A request in flight: the upstream connection, the permit, and what has been received.
//!
//! Whoever drives a flight holds its lock for one poll: the client's connection while it waits for
//! the head and reads the body, a task of the gateway's own once the client has left or a newer
//! token wants it out of the way. Another request that has to cut it takes the connection out of
//! the same lock and closes it there and then.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::{Cut, InFlight, Permit, Uploads};
use fencegate_filters::{Outcome, Reason, Refusal};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::tunnel;
use crate::body::{Broken, ResponseBody};
use crate::server::TunnelSlot;
use crate::upstream::upload::Upload;
use crate::upstream::wire::UploadError;
use crate::upstream::{Conn, Upstream};

/// How much of a response is read ahead when a newer token waits and the client is slow.
const READ_AHEAD: usize = 1024 * 1024;

/// How long the body of a request that expects `100 Continue` is held.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

type Answer = Result<Response<Incoming>, hyper::client::conn::TrySendError<Request<Upload>>>;

/// A request in flight.
pub(super) struct Flight {
    upstream: Arc<Upstream>,
    /// The longest gap between two reads of the request body.
    body_timeout: Option<Duration>,
    slot: Mutex<Slot>,
    /// A newer token waits.
    draining: AtomicBool,
}

enum Slot {
    /// Registered, and nothing written yet.
    Ready,
    /// Cut before anything was written.
    CutBefore(Cut),
    Head(Box<Head>),
    Body(Box<Reading>),
    /// The response has been received whole; its client has not.
    Rest(VecDeque<Frame<Bytes>>),
    Tunnel(Arc<Notify>),
    /// It has ended; why, where its driver has not been told yet.
    Over(Option<Refusal>),
}

/// Waits for the response's head.
struct Head {
    conn: Conn,
    answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
    permit: Option<Permit>,
    has_body: bool,
    /// When the body may be sent although no `100 Continue` came.
    continue_at: Option<Instant>,
    upgrade: Option<TunnelSlot>,
    driver: Option<Waker>,
}

/// Reads the response's body.
struct Reading {
    conn: Conn,
    incoming: Incoming,
    permit: Option<Permit>,
    has_body: bool,
    /// Why the outcome is unknown although the response may arrive whole.
    doubtful: bool,
    arrived: VecDeque<Frame<Bytes>>,
    arrived_bytes: usize,
    /// Whether a task of the gateway's own reads ahead.
    pumped: bool,
    /// Whether the client has left, and only the outcome matters.
    discard: bool,
    /// When a response that nobody reads any more is cut, where a newer token waits for its end.
    end_at: Option<Instant>,
    waiting_since: Option<Instant>,
    reader: Option<Waker>,
    pump: Option<Waker>,
}

/// What the wait for the head has come to.
pub(super) enum Headed {
    /// The response, to be passed on.
    Response(Response<ResponseBody>),
    /// Not a byte was written: the request, to be sent on another connection.
    Unsent(Box<Request<Upload>>, Option<Permit>),
    /// It failed.
    Failed(Refusal),
}

impl Flight {
    pub(super) fn new(upstream: Arc<Upstream>, body_timeout: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            body_timeout,
            slot: Mutex::new(Slot::Ready),
            draining: AtomicBool::new(false),
        })
    }

    /// Hands the request to the codec.
    pub(super) fn start(
        &self,
        mut conn: Conn,
        request: Request<Upload>,
        permit: Option<Permit>,
        upgrade: Option<TunnelSlot>,
        expects: bool,
    ) -> Result<(), Refusal> {
        let mut slot = self.lock();
        if let Slot::CutBefore(why) = *slot {
            *slot = Slot::Over(None);
            drop(slot);
            let mut refusal = cut(why, permit.as_ref()).with_outcome(Outcome::NotForwarded);
            if why == Cut::Superseded {
                // Nothing was in flight yet: it came too late, that is all.
                refusal.reason = Reason::StaleToken;
                refusal.detail =
                    "A newer fencing token came before this request could be sent.".into();
            }
            if let Some(permit) = permit {
                permit.ended(Outcome::NotForwarded, false);
            }
            return Err(refusal);
        }
        let has_body = !request.body().is_end_stream();
        conn.wire.begin(!has_body, expects && has_body);
        conn.timer.set(None);
        let answer = Box::pin(conn.sender.try_send_request(request));
        *slot = Slot::Head(Box::new(Head {
            conn,
            answer,
            permit,
            has_body,
            continue_at: (expects && has_body).then(|| Instant::now() + CONTINUE_WAIT),
            upgrade,
            driver: None,
        }));
        Ok(())
    }

    pub(super) fn poll_head(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Headed> {
        let mut slot = self.lock();
        let Slot::Head(head) = &mut *slot else {
            let refusal = match &mut *slot {
                Slot::Over(refusal) => refusal.take(),
                _ => None,
            };
            return Poll::Ready(Headed::Failed(
                refusal.unwrap_or_else(|| cut(Cut::Superseded, None)),
            ));
        };
        head.conn.drive(cx);
        let answer = match head.answer.as_mut().poll(cx) {
            Poll::Ready(answer) => answer,
            // The codec ended without an answer: it gives back what it had not begun with.
            Poll::Pending if head.conn.is_closed() => {
                return Poll::Ready(self.codec_ended(&mut slot, cx));
            }
            Poll::Pending => {
                let Some(refusal) = self.wait_for_head(head, cx) else {
                    return Poll::Pending;
                };
                self.end_head(&mut slot, None);
                return Poll::Ready(Headed::Failed(refusal));
            }
        };
        let Slot::Head(head) = std::mem::replace(&mut *slot, Slot::Over(None)) else {
            return Poll::Pending;
        };
        match answer {
            Ok(response) => Poll::Ready(self.answered(&mut slot, *head, response, cx)),
            Err(mut error) => Poll::Ready(match error.take_message() {
                Some(request) => Headed::Unsent(Box::new(request), head.permit),
                None => {
                    let refusal = failed(head.conn.wire.upload_error());
                    self.close(head.conn, head.permit, head.has_body);
                    Headed::Failed(refusal)
                }
            }),
        }
    }

    /// The connection ended in good order before the codec had taken the request from its queue.
    fn codec_ended(&self, slot: &mut Slot, cx: &mut Context<'_>) -> Headed {
        let Slot::Head(head) = std::mem::replace(slot, Slot::Over(None)) else {
            return Headed::Failed(failed(None));
        };
        let Head {
            conn,
            mut answer,
            permit,
            has_body,
            ..
        } = *head;
        let settles = self.settles(&conn, has_body);
        drop(conn);
        if let Poll::Ready(Err(mut error)) = answer.as_mut().poll(cx)
            && let Some(request) = error.take_message()
        {
            return Headed::Unsent(Box::new(request), permit);
        }
        if let Some(permit) = permit {
            permit.ended(Outcome::Unknown, settles);
        }
        Headed::Failed(failed(None))
    }

    /// Timers while there is no head; the refusal where one has run out.
    fn wait_for_head(&self, head: &mut Head, cx: &mut Context<'_>) -> Option<Refusal> {
        if head
            .driver
            .as_ref()
            .is_none_or(|driver| !driver.will_wake(cx.waker()))
        {
            head.driver = Some(cx.waker().clone());
        }
        let wire = Arc::clone(&head.conn.wire);
        loop {
            let now = Instant::now();
            if let Some(at) = head.continue_at {
                if wire.may_continue() || at <= now {
                    head.continue_at = None;
                    wire.go_on();
                    head.conn.drive(cx);
                    wire.progress();
                    continue;
                }
                head.conn.timer.set(Some(at));
            } else if wire.take_progress() || head.conn.timer.deadline().is_none() {
                let slow_client = wire.waits_for_client();
                let limit = if slow_client {
                    self.body_timeout
                } else {
                    Some(self.upstream.timeout)
                };
                head.conn.timer.set(limit.map(|limit| now + limit));
            }
            if head.conn.timer.poll_expired(cx).is_pending() {
                return None;
            }
            if head.continue_at.is_some() {
                continue;
            }
            if wire.waits_for_client() {
                wire.upload_failed(UploadError::TooSlow);
                return Some(failed(Some(UploadError::TooSlow)));
            }
            return Some(
                Refusal::new(
                    Reason::UpstreamTimeout,
                    "The upstream did not answer in time; it may still apply the request.",
                )
                .with_outcome(Outcome::Unknown),
            );
        }
    }

    /// The head has come.
    fn answered(
        self: &Arc<Self>,
        slot: &mut Slot,
        mut head: Head,
        response: Response<Incoming>,
        cx: &mut Context<'_>,
    ) -> Headed {
        let (parts, incoming) = response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switched(slot, head, parts, cx);
        }
        if is_ambiguous(&parts.headers) {
            self.close(head.conn, head.permit, head.has_body);
            return Headed::Failed(failed(None));
        }
        head.conn.wire.head_has_come();
        let early = !head.conn.wire.sent_whole();
        if early {
            head.conn.wire.stop();
        }
        if let Some(limit) = keep_alive_timeout(&parts.headers) {
            head.conn.limit_idle(limit);
        }
        let mut reading = Reading {
            doubtful: early
                || self
                    .upstream
                    .unknown_statuses
                    .contains(&parts.status.as_u16()),
            conn: head.conn,
            incoming,
            permit: head.permit,
            has_body: head.has_body,
            arrived: VecDeque::new(),
            arrived_bytes: 0,
            pumped: false,
            discard: false,
            end_at: None,
            waiting_since: None,
            reader: None,
            pump: None,
        };
        reading.conn.timer.set(None);
        // What has come along with the head needs no second look: the write ends here.
        let body = match self.read_arrived(&mut reading, cx) {
            Poll::Ready(Ok(())) => {
                let frames: Vec<_> = std::mem::take(&mut reading.arrived).into();
                self.finish(reading);
                if frames.is_empty() {
                    ResponseBody::Empty
                } else {
                    ResponseBody::Arrived(frames.into_iter())
                }
            }
            Poll::Ready(Err(())) => {
                self.close(reading.conn, reading.permit, reading.has_body);
                return Headed::Failed(failed(None));
            }
            Poll::Pending => {
                let hint = reading.incoming.size_hint();
                let arrived = reading.arrived_bytes as u64;
                *slot = Slot::Body(Box::new(reading));
                if self.draining.load(Ordering::SeqCst) {
                    self.read_ahead(slot);
                }
                ResponseBody::Stream(ResponseStream {
                    flight: Arc::clone(self),
                    left: hint.exact().map(|left| left + arrived),
                    over: false,
                })
            }
        };
        Headed::Response(Response::from_parts(parts, body))
    }

    /// Reads what is there, up to the end or the bound; `Ready(Ok)` at the end.
    fn read_arrived(&self, reading: &mut Reading, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
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
                    reading.arrived.push_back(frame);
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
        // The codec hands over one frame at a time, so it is driven until nothing comes of it.
        for drive in [false, true] {
            if drive {
                reading.conn.drive(cx);
            }
            if let Poll::Ready(frame) = Pin::new(&mut reading.incoming).poll_frame(cx) {
                reading.waiting_since = None;
                reading.conn.timer.set(None);
                return Poll::Ready(frame.map(|frame| frame.map_err(|_| ())));
            }
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
    fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut slot = self.lock();
        let reading = match &mut *slot {
            Slot::Body(reading) => reading,
            Slot::Rest(frames) => return Poll::Ready(frames.pop_front().map(Ok)),
            Slot::Over(None) => return Poll::Ready(None),
            _ => return Poll::Ready(Some(Err(Broken))),
        };
        if let Some(frame) = reading.arrived.pop_front() {
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
    fn read_ahead(self: &Arc<Self>, slot: &mut Slot) {
        let Slot::Body(reading) = slot else { return };
        if std::mem::replace(&mut reading.pumped, true) {
            if let Some(pump) = reading.pump.take() {
                pump.wake();
            }
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let keeper = Keeper(Arc::clone(self));
                runtime.spawn(std::future::poll_fn(move |cx| keeper.0.poll_pump(cx)));
            }
            Err(_) => reading.pumped = false,
        }
    }

    fn poll_pump(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.lock();
        loop {
            let Slot::Body(reading) = &mut *slot else {
                return Poll::Ready(());
            };
            if reading.discard && self.draining.load(Ordering::SeqCst) {
                let end = *reading
                    .end_at
                    .get_or_insert_with(|| Instant::now() + self.upstream.timeout);
                if end <= Instant::now() {
                    self.end_body(&mut slot);
                    return Poll::Ready(());
                }
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
                Poll::Pending => {
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
        self.finish(*reading);
    }

    fn finish_body(&self, slot: &mut Slot) {
        if let Slot::Body(reading) = std::mem::replace(slot, Slot::Over(None)) {
            self.finish(*reading);
        }
    }

    /// The response was received whole.
    fn finish(&self, mut reading: Reading) {
        if reading.doubtful {
            self.close(reading.conn, reading.permit, reading.has_body);
            return;
        }
        if let Some(permit) = reading.permit.take() {
            permit.ended(Outcome::Completed, false);
        }
        self.upstream.keep(reading.conn);
    }

    /// Whether the upstream may still work on a request that has not completed.
    fn settles(&self, conn: &Conn, has_body: bool) -> bool {
        let incomplete = has_body && !conn.wire.body_ended();
        !(self.upstream.discards_incomplete && incomplete)
    }

    /// Closes the connection of a request that has not completed, then lets go of its lanes.
    fn close(&self, conn: Conn, permit: Option<Permit>, has_body: bool) {
        let settles = self.settles(&conn, has_body);
        drop(conn);
        if let Some(permit) = permit {
            permit.ended(Outcome::Unknown, settles);
        }
    }

    fn end_head(&self, slot: &mut Slot, why: Option<Refusal>) {
        if let Slot::Head(head) = std::mem::replace(slot, Slot::Over(why)) {
            drop(head.answer);
            if let Some(driver) = head.driver {
                driver.wake();
            }
            self.close(head.conn, head.permit, head.has_body);
        }
    }

    fn end_body(&self, slot: &mut Slot) {
        let why = cut(Cut::Superseded, None);
        if let Slot::Body(reading) = std::mem::replace(slot, Slot::Over(Some(why))) {
            drop(reading.incoming);
            for waker in [reading.reader, reading.pump].into_iter().flatten() {
                waker.wake();
            }
            self.close(reading.conn, reading.permit, reading.has_body);
        }
    }

    /// The upstream switched protocols.
    fn switched(
        self: &Arc<Self>,
        slot: &mut Slot,
        mut head: Head,
        parts: http::response::Parts,
        cx: &mut Context<'_>,
    ) -> Headed {
        head.conn.drive(cx);
        let Some(client) = head.upgrade.filter(|_| head.conn.is_closed()) else {
            // Nobody asked for it.
            self.close(head.conn, head.permit, head.has_body);
            return Headed::Failed(failed(None));
        };
        let cut = Arc::new(Notify::new());
        *slot = Slot::Tunnel(Arc::clone(&cut));
        if self.draining.load(Ordering::SeqCst) {
            cut.notify_one();
        }
        drop(head.answer);
        tunnel::spawn(
            client.wait(),
            head.conn,
            head.permit,
            cut,
            self.upstream.timeout,
        );
        Headed::Response(Response::from_parts(parts, ResponseBody::Empty))
    }

    /// The client has gone away while its request was in flight: a write that was sent whole runs
    /// on to its end, because its outcome matters; everything else is cut.
    fn client_left(self: &Arc<Self>) {
        let mut slot = self.lock();
        if std::thread::panicking() {
            self.end_head_or_body(&mut slot, Cut::Stopping);
            return;
        }
        let (runs_on, headed) = match &mut *slot {
            Slot::Head(head) => (runs_on(&mut head.permit, &head.conn), false),
            Slot::Body(reading) => (runs_on(&mut reading.permit, &reading.conn), true),
            _ => return,
        };
        let runtime = tokio::runtime::Handle::try_current();
        let (true, Ok(runtime)) = (runs_on, runtime) else {
            self.end_head_or_body(&mut slot, Cut::Superseded);
            return;
        };
        if headed {
            if let Slot::Body(reading) = &mut *slot {
                reading.discard = true;
            }
            self.read_ahead(&mut slot);
            return;
        }
        drop(slot);
        let keeper = Keeper(Arc::clone(self));
        runtime.spawn(async move {
            // Dropping the response leaves its body to be discarded in the same way.
            drop(std::future::poll_fn(|cx| keeper.0.poll_head(cx)).await);
        });
    }

    fn end_head_or_body(&self, slot: &mut Slot, why: Cut) {
        match slot {
            Slot::Head(head) => {
                let refusal = cut(why, head.permit.as_ref());
                self.end_head(slot, Some(refusal));
            }
            Slot::Body(_) => self.end_body(slot),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task of the gateway's own that drives a flight: whatever ends the task, a panic included, ends
/// what is still under way.
struct Keeper(Arc<Flight>);

impl Drop for Keeper {
    fn drop(&mut self) {
        let panics = std::thread::panicking();
        let mut slot = self.0.lock();
        // Where the head has just come, the body has a driver of its own.
        if panics || matches!(*slot, Slot::Head(_)) {
            self.0.end_head_or_body(&mut slot, Cut::Stopping);
        }
    }
}

fn runs_on(permit: &mut Option<Permit>, conn: &Conn) -> bool {
    let write = permit.as_ref().is_some_and(Permit::is_write);
    if fault::planted(Fault::ReleaseOnLeave)
        && let Some(permit) = permit.take()
    {
        permit.ended(Outcome::Completed, false);
    }
    write && conn.wire.sent_whole()
}

impl InFlight for Flight {
    fn drain(self: Arc<Self>, uploads: Uploads) {
        self.draining.store(true, Ordering::SeqCst);
        let mut slot = self.lock();
        let whole = match &*slot {
            Slot::Head(head) => head.conn.wire.sent_whole(),
            Slot::Body(reading) => reading.conn.wire.sent_whole(),
            Slot::Tunnel(cut) => {
                cut.notify_one();
                return;
            }
            // Nothing has been written yet, and now nothing will be.
            Slot::Ready => {
                *slot = Slot::CutBefore(Cut::Superseded);
                return;
            }
            Slot::CutBefore(_) | Slot::Rest(_) | Slot::Over(_) => return,
        };
        if !whole && uploads == Uploads::Cut {
            self.end_head_or_body(&mut slot, Cut::Superseded);
        } else {
            self.read_ahead(&mut slot);
        }
    }

    fn cut(self: Arc<Self>, why: Cut) {
        let mut slot = self.lock();
        match &*slot {
            Slot::Head(_) | Slot::Body(_) => self.end_head_or_body(&mut slot, why),
            Slot::Tunnel(cut) => cut.notify_one(),
            Slot::Ready => *slot = Slot::CutBefore(why),
            Slot::CutBefore(_) | Slot::Rest(_) | Slot::Over(_) => {}
        }
    }
}

/// The answer to a request that was cut.
fn cut(why: Cut, permit: Option<&Permit>) -> Refusal {
    let mut refusal = match why {
        Cut::Superseded => Refusal::new(
            Reason::Superseded,
            "A newer fencing token came while this request was in flight, and it was cut.",
        ),
        Cut::Stopping => Refusal::new(
            Reason::ShuttingDown,
            "The gateway is stopping, and this request was cut; the upstream may have applied it.",
        ),
    };
    if let Some((key, token, mark)) = permit.and_then(Permit::superseded_by) {
        refusal.key = Some(key);
        refusal.token = Some(token);
        refusal.mark = Some(mark);
    }
    refusal.with_outcome(Outcome::Unknown)
}

/// The refusal for a request that failed after it had been handed to the codec.
fn failed(upload: Option<UploadError>) -> Refusal {
    let (reason, detail) = match upload {
        Some(UploadError::TooLarge) => (
            Reason::BodyTooLarge,
            "The body is above the limit; the upload was cut, and the upstream may have seen its beginning.",
        ),
        Some(UploadError::TooSlow) => (
            Reason::RequestTimeout,
            "The body came too slowly; the upload was cut, and the upstream may have seen its beginning.",
        ),
        Some(UploadError::Client) => (
            Reason::BadRequest,
            "The body broke off or was malformed; the upload was cut, and the upstream may have seen its beginning.",
        ),
        None => (
            Reason::UpstreamFailed,
            "The upstream closed the connection or answered with broken HTTP; it may have applied the request.",
        ),
    };
    Refusal::new(reason, detail).with_outcome(Outcome::Unknown)
}

/// Whether recipients would find the end of this response in different places, or its content
/// coded in a way that is not passed on: the codec takes the first of two framings and says
/// nothing of the other (RFC 9112, section 6.3).
fn is_ambiguous(headers: &http::HeaderMap) -> bool {
    let mut codings = headers.get_all(http::header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return false;
    };
    !coding
        .as_bytes()
        .trim_ascii()
        .eq_ignore_ascii_case(b"chunked")
        || codings.next().is_some()
        || headers.contains_key(http::header::CONTENT_LENGTH)
}

/// What the upstream allows an idle connection, less a margin: a request that meets the close on
/// its way is an unknown outcome.
fn keep_alive_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| {
        let (name, seconds) = part.trim().split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("timeout")
            .then_some(seconds)
    })?;
    let allowed = Duration::from_secs(seconds.trim().parse().ok()?);
    Some(
        allowed
            .saturating_sub(Duration::from_secs(1))
            .max(allowed / 2),
    )
}

/// The upstream's response body, as it comes.
pub struct ResponseStream {
    flight: Arc<Flight>,
    left: Option<u64>,
    over: bool,
}

impl ResponseStream {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = self.flight.poll_body(cx);
        match &frame {
            Poll::Ready(None | Some(Err(_))) => self.over = true,
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                    self.over = *left == 0;
                }
            }
            Poll::Pending => {}
        }
        frame
    }

    pub(crate) const fn is_end_stream(&self) -> bool {
        self.over
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if !self.over {
            self.flight.client_left();
        }
    }
}

impl std::fmt::Debug for ResponseStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseStream")
    }
}

/// Waits for the head on the client's behalf; dropped early, the client has left.
pub(super) struct Awaiting {
    pub(super) flight: Arc<Flight>,
    pub(super) done: bool,
}

impl Future for Awaiting {
    type Output = Headed;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Headed> {
        let this = self.get_mut();
        let headed = this.flight.poll_head(cx);
        this.done = headed.is_ready();
        headed
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        if !self.done {
            self.flight.client_left();
        }
    }
}
