//! A request in flight: the upstream connection, the permit, and what has been received.
//!
//! Whoever drives a flight holds its lock for one poll: the client's connection while it waits for
//! the head and reads the body, a task of the gateway's own once the client has left or a newer
//! token wants it out of the way. Another request that has to cut it takes the connection out of
//! the same lock and closes it there and then.
//!
//! | file | what |
//! | --- | --- |
//! | `flight` | from the send to the response's head, cuts, and every end |
//! | `reading` | the response's body |
//! | `client` | what the client's connection holds of it |
//! | `verdicts` | what is said of a request that did not end well |

mod client;
mod reading;
mod verdicts;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::{Cut, InFlight, Permit, Uploads};
use fencegate_filters::{Outcome, Reason, Refusal};
use http::{Request, Response, StatusCode};
use http_body::Body;
use tokio::sync::Notify;
use tokio::time::Instant;

pub(super) use self::client::Awaiting;
pub use self::client::ResponseStream;
use self::reading::Reading;
use self::verdicts::{cut, failed, is_ambiguous, keep_alive_timeout};
use super::tunnel;
use crate::body::{Frames, ResponseBody};
use crate::clock;
use crate::server::TunnelSlot;
use crate::upstream::upload::Upload;
use crate::upstream::wire::UploadError;
use crate::upstream::{Answer, Conn, Received, Upstream};

/// How long the body of a request that expects `100 Continue` is held.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A request in flight.
pub(super) struct Flight {
    upstream: Arc<Upstream>,
    /// Which of its addresses the request goes to.
    place: usize,
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
    Rest(Frames),
    Tunnel(Arc<Notify>),
    /// It has ended; why, where its driver has not been told yet.
    Over(Option<Refusal>),
}

/// Waits for the response's head.
struct Head {
    conn: Box<Conn>,
    answer: Answer,
    permit: Option<Permit>,
    has_body: bool,
    /// When the body may be sent although no `100 Continue` came.
    continue_at: Option<Instant>,
    upgrade: Option<TunnelSlot>,
    driver: Option<Waker>,
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
    pub(super) fn new(
        upstream: Arc<Upstream>,
        place: usize,
        body_timeout: Option<Duration>,
    ) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            place,
            body_timeout,
            slot: Mutex::new(Slot::Ready),
            draining: AtomicBool::new(false),
        })
    }

    /// Hands the request to the codec.
    pub(super) fn start(
        &self,
        mut conn: Box<Conn>,
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
        conn.wire.begin(!has_body, expects);
        conn.timer.set(None);
        let answer = conn.send(request);
        *slot = Slot::Head(Box::new(Head {
            conn,
            answer,
            permit,
            has_body,
            continue_at: (expects).then(|| Instant::now() + CONTINUE_WAIT),
            upgrade,
            driver: None,
        }));
        Ok(())
    }

    pub(super) fn poll_head(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Headed> {
        let headed = ready!(self.poll_headed(cx));
        match &headed {
            Headed::Response(_) => self.upstream.tell(self.place, true),
            Headed::Failed(refusal) => match refusal.reason {
                Reason::UpstreamTimeout | Reason::UpstreamFailed => {
                    self.upstream.tell(self.place, false);
                }
                _ => {}
            },
            Headed::Unsent(..) => {}
        }
        Poll::Ready(headed)
    }

    fn poll_headed(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Headed> {
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
        // It comes of the drive above and of nothing else: a waker would only call this task again
        // for what it is about to see.
        let mut quiet = Context::from_waker(Waker::noop());
        let answer = match head.conn.poll_answer(&mut head.answer, &mut quiet) {
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
            Err(unsent) => Poll::Ready(match unsent {
                Some(request) => Headed::Unsent(request, head.permit),
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
            mut conn,
            answer,
            permit,
            has_body,
            ..
        } = *head;
        let settles = self.settles(&conn, has_body);
        let unsent = conn.take_unsent();
        drop(conn);
        if let Some(request) = unsent.or_else(|| answer.take_unsent(cx)) {
            return Headed::Unsent(request, permit);
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
            let now = clock::now();
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
        response: Response<Received>,
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
        let early = !head.conn.wire.sent_whole() && !head.conn.converses();
        if early {
            head.conn.wire.stop();
        }
        if let Some(limit) = keep_alive_timeout(&parts.headers) {
            head.conn.limit_idle(limit);
        }
        let status_tells_nothing = self
            .upstream
            .unknown_statuses
            .contains(&parts.status.as_u16());
        if fault::planted(Fault::DrainHeadsOnly)
            && let Some(permit) = head.permit.take()
        {
            permit.ended(Outcome::Completed, false);
        }
        let mut reading = Reading {
            doubtful: (early && !fault::planted(Fault::EarlyAnswerCompletes))
                || (status_tells_nothing && !fault::planted(Fault::UnknownStatusCompletes)),
            conn: head.conn,
            incoming,
            permit: head.permit,
            has_body: head.has_body,
            arrived: Frames::default(),
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
                let frames = std::mem::take(&mut reading.arrived);
                self.finish(reading);
                ResponseBody::arrived(frames)
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

    /// Whether the upstream may still work on a request that has not completed.
    fn settles(&self, conn: &Conn, has_body: bool) -> bool {
        let incomplete = has_body && !conn.wire.body_ended();
        !(self.upstream.discards_incomplete && incomplete)
    }

    /// Closes the connection of a request that has not completed, then lets go of its lanes.
    fn close(&self, conn: Box<Conn>, permit: Option<Permit>, has_body: bool) {
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
        let keeper = Keeper::new(self, false);
        runtime.spawn(async move {
            // Dropping the response leaves its body to be discarded in the same way.
            drop(std::future::poll_fn(|cx| keeper.flight.poll_head(cx)).await);
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
struct Keeper {
    flight: Arc<Flight>,
    /// Whether it drives the body, not the head.
    pumps: bool,
    /// Whether the spawning is over: a task that a runtime has no more use for is dropped within
    /// it, by whoever holds the flight's lock.
    spawned: Arc<AtomicBool>,
}

impl Keeper {
    fn new(flight: &Arc<Flight>, pumps: bool) -> Self {
        Self {
            flight: Arc::clone(flight),
            pumps,
            spawned: Arc::new(AtomicBool::new(!pumps)),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if !self.spawned.load(Ordering::SeqCst) {
            return;
        }
        let panics = std::thread::panicking();
        let mut slot = self.flight.lock();
        // Where the head has just come, the body has a driver of its own.
        if panics || self.pumps || matches!(*slot, Slot::Head(_)) {
            self.flight.end_head_or_body(&mut slot, Cut::Stopping);
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

    fn end_tunnel(&self) {
        if let Slot::Tunnel(cut) = &*self.lock() {
            cut.notify_one();
        }
    }
}
