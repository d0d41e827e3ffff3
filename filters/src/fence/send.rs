//! The layer that sends: what is behind it runs only while the fence counts it as in flight.
//!
//! It stands behind [`FenceLayer`](super::FenceLayer), around any service that does the work
//! itself. (A proxy sends when its upstream connection is ready, and takes the
//! [`Admission`](super::Admission) out of the [`Passage`] by itself.)
//!
//! A write is in flight from the call of the inner service to the end of its response's body. It
//! has `completed` when that end has been reached; dropped before, failed or cut, its outcome is
//! unknown and holds newer tokens until it has settled. A newer token cuts a write whose request
//! body has not been read to its end, unless the route waits for uploads; whatever else is in
//! flight is waited for, and cut only where the route says so. A cut drops the inner service's
//! future, or its response's body, there and then: the client gets `superseded`, or a body that
//! breaks off.
//!
//! Work that the inner service has handed on, to a task or to another machine, does not end with
//! its future. That is what `settle` is for.
//!
//! Reads are compared once more, and then they hold nobody and can't be cut. Requests without an
//! admission pass as they are.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Cut, Handle, InFlight, Permit, Uploads};
use crate::fault::{self, Fault};
use crate::passage::Passage;
use crate::refusal::{Outcome, Reason, Refusal};

/// Sends admitted requests to the service behind it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendLayer;

impl<S> Layer<S> for SendLayer {
    type Service = SendService<S>;

    fn layer(&self, inner: S) -> SendService<S> {
        SendService { inner }
    }
}

/// The service of [`SendLayer`].
#[derive(Clone, Debug)]
pub struct SendService<S> {
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for SendService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<RB>>,
    S::Error: Into<Refusal>,
    S::Future: Send + 'static,
    B: Body,
    RB: Body + Send + 'static,
{
    type Response = Response<ResponseBody<RB>>;
    type Error = Refusal;
    type Future = SendFuture<S::Future, RB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let passage = Passage::of(&mut request);
        let admission = passage.facts().admission.take();
        let read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let request = request.map(|body| RequestBody {
            body,
            read: Arc::clone(&read),
        });
        let Some(admission) = admission else {
            return State::Passing {
                future: self.inner.call(request),
            }
            .into();
        };
        let flight = Arc::new(Flight::new(read));
        let handle = Arc::clone(&flight) as Handle;
        let permit = match admission.send(&handle) {
            Ok(permit) => permit,
            Err(refusal) => {
                return State::Refused {
                    refusal: Some(refusal),
                }
                .into();
            }
        };
        let future = self.inner.call(request);
        if !permit.is_write() {
            return State::Passing { future }.into();
        }
        let running = Box::pin(async move { future.await.map_err(Into::into) });
        *flight.lock() = Slot::Running(running, permit);
        State::Sent {
            driver: Some(Driver { flight }),
        }
        .into()
    }
}

/// A write in flight. Whoever drives it holds its lock for one poll; a cut from elsewhere takes
/// what runs out of the same lock, or, while it is being polled, leaves that to the driver.
struct Flight<B> {
    slot: Mutex<Slot<B>>,
    cut: AtomicBool,
    /// Whether the request's body has been read to its end.
    read: Arc<AtomicBool>,
    driver: Mutex<Option<Waker>>,
}

enum Slot<B> {
    /// In flight, and not yet running.
    Ready,
    Running(Running<B>, Permit),
    Body(Pin<Box<B>>, Permit),
    /// Cut, and its driver has not been told.
    Cut,
    Over,
}

type Running<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Refusal>> + Send>>;

impl<B: Body + Send + 'static> InFlight for Flight<B> {
    fn drain(self: Arc<Self>, uploads: Uploads) {
        if uploads == Uploads::Cut && !self.read.load(Ordering::SeqCst) {
            self.cut(Cut::Superseded);
        }
    }

    fn cut(self: Arc<Self>, _: Cut) {
        self.cut.store(true, Ordering::SeqCst);
        self.end_if_cut();
        if let Some(driver) = lock(&self.driver).take() {
            driver.wake();
        }
    }
}

impl<B: Body> Flight<B> {
    fn new(read: Arc<AtomicBool>) -> Self {
        Self {
            slot: Mutex::new(Slot::Ready),
            cut: AtomicBool::new(false),
            read,
            driver: Mutex::new(None),
        }
    }

    /// Ends what was cut. Called after every unlocking as well: a cut that found the lock taken has
    /// left it to whoever held it.
    fn end_if_cut(&self) {
        if !self.cut.load(Ordering::SeqCst) {
            return;
        }
        let mut slot = match self.slot.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if matches!(*slot, Slot::Running(..) | Slot::Body(..)) {
            let cut = std::mem::replace(&mut *slot, Slot::Cut);
            drop(slot);
            cut.end(Outcome::Unknown);
        }
    }

    /// Nobody drives it any more.
    fn abandon(&self) {
        let left = std::mem::replace(&mut *self.lock(), Slot::Over);
        let outcome = match &left {
            // The client's connection asks no further when it has all the bytes that were promised.
            Slot::Body(body, _) if is_over(&**body) => Outcome::Completed,
            _ if fault::planted(Fault::ReleaseOnLeave) => Outcome::Completed,
            _ if fault::planted(Fault::PanicCompletes) && std::thread::panicking() => {
                Outcome::Completed
            }
            _ => Outcome::Unknown,
        };
        left.end(outcome);
    }

    /// Runs one poll of what is in the slot.
    fn drive<R>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Slot<B>, &mut Context<'_>) -> R,
    ) -> R {
        *lock(&self.driver) = Some(cx.waker().clone());
        self.end_if_cut();
        let result = poll(&mut self.lock(), cx);
        self.end_if_cut();
        result
    }

    /// The response; its body where that is over, and otherwise `None`: it stays in the slot.
    fn poll_response(&self, cx: &mut Context<'_>) -> Poll<Result<Response<Option<B>>, Refusal>> {
        let polled = self.drive(cx, |slot, cx| {
            if let Slot::Running(running, _) = slot {
                let answer = ready!(running.as_mut().poll(cx));
                if let Slot::Running(running, permit) = std::mem::replace(slot, Slot::Over) {
                    return Poll::Ready(Some((running, slot.answered(answer, permit))));
                }
            }
            Poll::Ready(None)
        });
        let Some((running, (answer, ended))) = ready!(polled) else {
            return Poll::Ready(Err(superseded()));
        };
        // Nothing of it runs any more when the write ends.
        drop(running);
        if let Some((permit, outcome)) = ended {
            permit.ended(outcome, true);
        }
        Poll::Ready(answer)
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Given<B>>> {
        let (frame, over) = self.drive(cx, |slot, cx| {
            let Slot::Body(body, _) = slot else {
                let cut = matches!(std::mem::replace(slot, Slot::Over), Slot::Cut);
                return (Poll::Ready(cut.then_some(Err(BodyError::Cut))), None);
            };
            let frame = body.as_mut().poll_frame(cx);
            let outcome = match &frame {
                Poll::Ready(None) => Outcome::Completed,
                Poll::Ready(Some(Err(_))) => Outcome::Unknown,
                Poll::Ready(Some(Ok(_))) if body.is_end_stream() => Outcome::Completed,
                Poll::Ready(Some(Ok(_))) | Poll::Pending => {
                    return (frame.map(inner_error), None);
                }
            };
            let over = (std::mem::replace(slot, Slot::Over), outcome);
            (frame.map(inner_error), Some(over))
        });
        if let Some((slot, outcome)) = over {
            slot.end(outcome);
        }
        frame
    }

    fn lock(&self) -> MutexGuard<'_, Slot<B>> {
        lock(&self.slot)
    }
}

type Given<B> = Result<Frame<<B as Body>::Data>, BodyError<<B as Body>::Error>>;

fn inner_error<T, E>(frame: Option<Result<T, E>>) -> Option<Result<T, BodyError<E>>> {
    frame.map(|frame| frame.map_err(BodyError::Inner))
}

type Answered<B> = (
    Result<Response<Option<B>>, Refusal>,
    Option<(Permit, Outcome)>,
);

impl<B: Body> Slot<B> {
    /// The inner service has answered. With a body that is not over, the write goes on here;
    /// otherwise it is to be ended.
    fn answered(&mut self, answer: Result<Response<B>, Refusal>, permit: Permit) -> Answered<B> {
        let response = match answer {
            Ok(response) => response,
            Err(refusal) => {
                let outcome = refusal.outcome;
                return (Err(refusal), Some((permit, outcome)));
            }
        };
        let (parts, body) = response.into_parts();
        if body.is_end_stream() {
            let response = Response::from_parts(parts, Some(body));
            return (Ok(response), Some((permit, Outcome::Completed)));
        }
        if fault::planted(Fault::DrainHeadsOnly) {
            let response = Response::from_parts(parts, Some(body));
            return (Ok(response), Some((permit, Outcome::Completed)));
        }
        *self = Self::Body(Box::pin(body), permit);
        (Ok(Response::from_parts(parts, None)), None)
    }

    /// Drops what runs, and then the write has ended.
    fn end(self, outcome: Outcome) {
        let permit = match self {
            Self::Ready | Self::Cut | Self::Over => return,
            Self::Running(running, permit) => {
                drop(running);
                permit
            }
            Self::Body(body, permit) => {
                drop(body);
                permit
            }
        };
        permit.ended(outcome, true);
    }
}

fn is_over<B: Body>(body: &B) -> bool {
    body.is_end_stream() || body.size_hint().exact() == Some(0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of the service behind leaves it in its slot, to be dropped with an unknown outcome.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn superseded() -> Refusal {
    Refusal::new(
        Reason::Superseded,
        "A newer fencing token has come while this request was in flight, and it was cut; it may have been applied in part.",
    )
    .with_outcome(Outcome::Unknown)
}

/// Drives a flight; dropped, it abandons it.
struct Driver<B: Body> {
    flight: Arc<Flight<B>>,
}

impl<B: Body> Drop for Driver<B> {
    fn drop(&mut self) {
        self.flight.abandon();
    }
}

pin_project! {
    /// The future of [`SendService`].
    pub struct SendFuture<F, B>
    where
        B: Body,
    {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = Project]
    enum State<F, B>
    where
        B: Body,
    {
        /// A newer token has come since it was admitted.
        Refused { refusal: Option<Refusal> },
        /// Nothing that is in flight: unfenced, or a read.
        Passing {
            #[pin]
            future: F,
        },
        Sent { driver: Option<Driver<B>> },
        /// It has answered.
        Done,
    }
}

impl<F, B: Body> From<State<F, B>> for SendFuture<F, B> {
    fn from(state: State<F, B>) -> Self {
        Self { state }
    }
}

impl<F, B, E> Future for SendFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Refusal>,
    B: Body,
{
    type Output = Result<Response<ResponseBody<B>>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let answer = match state.as_mut().project() {
            Project::Done => return Poll::Pending,
            Project::Refused { refusal } => match refusal.take() {
                Some(refusal) => Err(refusal),
                None => return Poll::Pending,
            },
            Project::Passing { future } => ready!(future.poll(cx))
                .map(|response| response.map(ResponseBody::plain))
                .map_err(Into::into),
            Project::Sent { driver } => {
                let Some(driving) = driver else {
                    return Poll::Pending;
                };
                let answer = ready!(driving.flight.poll_response(cx));
                let driver = driver.take();
                answer.map(|response| {
                    response.map(|body| match (body, driver) {
                        (None, Some(driver)) => ResponseBody {
                            inner: Inner::Sent { driver },
                        },
                        (body, _) => ResponseBody {
                            inner: Inner::Plain { body },
                        },
                    })
                })
            }
        };
        state.set(State::Done);
        Poll::Ready(answer)
    }
}

pin_project! {
    /// A request's body that tells whether it has been read to its end.
    pub struct RequestBody<B> {
        #[pin]
        body: B,
        read: Arc<AtomicBool>,
    }
}

impl<B: Body> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        if frame.is_none() || is_over(&*this.body) {
            this.read.store(true, Ordering::SeqCst);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// A response's body, with which the write that it answers ends.
    pub struct ResponseBody<B>
    where
        B: Body,
    {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProject]
    enum Inner<B>
    where
        B: Body,
    {
        /// Nothing that is in flight. `None` once it has no more to give.
        Plain {
            #[pin]
            body: Option<B>,
        },
        Sent { driver: Driver<B> },
    }
}

/// The body of an answer that did not come from the service.
impl<B: Body + From<Bytes>> From<Bytes> for ResponseBody<B> {
    fn from(bytes: Bytes) -> Self {
        Self::plain(B::from(bytes))
    }
}

impl<B: Body> ResponseBody<B> {
    const fn plain(body: B) -> Self {
        Self {
            inner: Inner::Plain { body: Some(body) },
        }
    }
}

/// Why a response's body broke off.
#[derive(Debug)]
pub enum BodyError<E> {
    /// It was cut by a newer token.
    Cut,
    /// It failed.
    Inner(E),
}

impl<E: fmt::Display> fmt::Display for BodyError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut => f.write_str("the request was superseded by a newer fencing token"),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: Error + 'static> Error for BodyError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Cut => None,
            Self::Inner(error) => error.source(),
        }
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = BodyError<B::Error>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Given<B>>> {
        match self.project().inner.project() {
            InnerProject::Plain { body } => match body.as_pin_mut() {
                Some(body) => body.poll_frame(cx).map(inner_error),
                None => Poll::Ready(None),
            },
            InnerProject::Sent { driver } => driver.flight.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Plain { body } => body.as_ref().is_none_or(Body::is_end_stream),
            Inner::Sent { driver } => match &*driver.flight.lock() {
                Slot::Body(body, _) => body.is_end_stream(),
                slot => matches!(slot, Slot::Over),
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Plain { body } => body
                .as_ref()
                .map_or_else(|| SizeHint::with_exact(0), Body::size_hint),
            Inner::Sent { driver } => match &*driver.flight.lock() {
                Slot::Body(body, _) => body.size_hint(),
                Slot::Over => SizeHint::with_exact(0),
                _ => SizeHint::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
