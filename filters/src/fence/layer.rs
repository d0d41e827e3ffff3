//! The layer that admits: what is behind it sees only requests that the fence let through.
//!
//! It takes the [`Claim`](super::Claim) that an earlier filter left in the [`Passage`], and leaves
//! an [`Admission`](super::Admission) there. The admitted request holds nobody until somebody
//! sends it: [`SendLayer`](super::SendLayer) does so around any service, and an HTTP gateway does
//! it when its upstream connection is ready.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Admission, Admit, Fence};
use crate::passage::{Decision, Passage};
use crate::policy::Mode;
use crate::refusal::Refusal;

/// Admits requests, or refuses them.
#[derive(Clone)]
pub struct FenceLayer {
    fence: Fence,
}

impl FenceLayer {
    /// A layer over this fence.
    #[must_use]
    pub const fn new(fence: Fence) -> Self {
        Self { fence }
    }
}

impl<S> Layer<S> for FenceLayer {
    type Service = FenceService<S>;

    fn layer(&self, inner: S) -> FenceService<S> {
        FenceService {
            fence: self.fence.clone(),
            inner,
        }
    }
}

/// The service of [`FenceLayer`].
#[derive(Clone)]
pub struct FenceService<S> {
    fence: Fence,
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for FenceService<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    S::Error: Into<Refusal>,
{
    type Response = Response<RB>;
    type Error = Refusal;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let passage = Passage::of(&mut request);
        let claim = passage.facts().claim.take();
        let Some((claim, mode)) = claim else {
            passage.facts().decision = Decision::Unfenced;
            return State::Inner {
                future: self.inner.call(request),
            }
            .into();
        };
        if mode == Mode::Observe {
            let admission = self.fence.observe(claim);
            let mut facts = passage.facts();
            facts.observation = admission.observation().cloned();
            facts.admission = Some(admission);
            facts.decision = Decision::Observed;
            drop(facts);
            return State::Inner {
                future: self.inner.call(request),
            }
            .into();
        }
        let mut admit = self.fence.admit(claim);
        // Mostly nothing holds it, and then nothing has to be kept for later.
        match admit.try_now() {
            Some(admitted) => match note(&passage, admitted, Duration::ZERO) {
                Ok(()) => State::Inner {
                    future: self.inner.call(request),
                },
                Err(refusal) => State::Refused {
                    refusal: Some(Box::new(refusal)),
                },
            },
            None => {
                // The service that was polled ready is the one to call.
                let clone = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, clone);
                State::Admitting {
                    waiting: Some(Box::new(Waiting {
                        began: Instant::now(),
                        admit,
                        passage,
                        inner,
                        request,
                    })),
                }
            }
        }
        .into()
    }
}

/// Notes a decision in the passage.
fn note(
    passage: &Passage,
    admitted: Result<Admission, Refusal>,
    waited: Duration,
) -> Result<(), Refusal> {
    let mut facts = passage.facts();
    facts.waited = waited;
    match admitted {
        Ok(admission) => {
            facts.decision = Decision::Admitted;
            facts.admission = Some(admission);
            Ok(())
        }
        Err(refusal) => {
            facts.decision = Decision::Refused;
            Err(refusal)
        }
    }
}

/// A request that has to wait.
struct Waiting<S, B> {
    began: Instant,
    admit: Admit,
    passage: Passage,
    inner: S,
    request: Request<B>,
}

pin_project! {
    /// The future of [`FenceService`].
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = Project]
    enum State<S, B>
    where
        S: Service<Request<B>>,
    {
        Admitting {
            waiting: Option<Box<Waiting<S, B>>>,
        },
        Refused {
            refusal: Option<Box<Refusal>>,
        },
        Inner {
            #[pin]
            future: S::Future,
        },
    }
}

impl<S: Service<Request<B>>, B> From<State<S, B>> for ResponseFuture<S, B> {
    fn from(state: State<S, B>) -> Self {
        Self { state }
    }
}

impl<S, B, RB> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<RB>>,
    S::Error: Into<Refusal>,
{
    type Output = Result<Response<RB>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let future = match state.as_mut().project() {
                Project::Inner { future } => return future.poll(cx).map_err(Into::into),
                Project::Refused { refusal } => {
                    return match refusal.take() {
                        Some(refusal) => Poll::Ready(Err(*refusal)),
                        None => Poll::Pending,
                    };
                }
                Project::Admitting { waiting } => {
                    let Some(held) = waiting else {
                        return Poll::Pending;
                    };
                    let admitted = ready!(Pin::new(&mut held.admit).poll(cx));
                    note(&held.passage, admitted, held.began.elapsed())?;
                    let Some(mut held) = waiting.take().map(|held| *held) else {
                        return Poll::Pending;
                    };
                    held.inner.call(held.request)
                }
            };
            state.set(State::Inner { future });
        }
    }
}

#[cfg(test)]
mod tests;
