//! The layer that takes no token that was never issued (`fence.trust: issued`).
//!
//! A token above every one that the lock service has issued for its key was made up: it would lock
//! out everybody who holds one that was not. What was issued only grows, so it is compared before
//! the lane is looked at.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use fencegate_filters::fence::Claim;
use fencegate_filters::passage::Passage;
use fencegate_filters::policy::Mode;
use fencegate_filters::{Reason, Refusal, Token};
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::locks::Locks;
use crate::route::Route;

/// Compares tokens with those that were issued, where the route says so.
#[derive(Clone)]
pub struct TrustLayer {
    locks: Option<Arc<Locks>>,
}

impl TrustLayer {
    /// A layer that asks `locks`. Without them no route says so.
    pub const fn new(locks: Option<Arc<Locks>>) -> Self {
        Self { locks }
    }
}

impl<S> Layer<S> for TrustLayer {
    type Service = TrustService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TrustService {
            locks: self.locks.clone(),
            inner,
        }
    }
}

/// The service of [`TrustLayer`].
#[derive(Clone)]
pub struct TrustService<S> {
    locks: Option<Arc<Locks>>,
    inner: S,
}

type Compared<B> = Pin<Box<dyn Future<Output = Result<Request<B>, Refusal>> + Send>>;

impl<S, B, RB> Service<Request<B>> for TrustService<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    S::Error: Into<Refusal>,
    B: Send + 'static,
{
    type Response = Response<RB>;
    type Error = Refusal;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let locks = self.locks.as_ref().filter(|_| {
            let passage = Passage::of(&mut request);
            let facts = passage.facts();
            let issued = || facts.route_as::<Route>().is_some_and(|one| one.issued_only);
            facts.claim.is_some() && issued()
        });
        let Some(locks) = locks else {
            return ResponseFuture {
                state: State::Inner {
                    future: self.inner.call(request),
                },
            };
        };
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        ResponseFuture {
            state: State::Comparing {
                compared: Box::pin(compare(Arc::clone(locks), request)),
                inner: Some(inner),
            },
        }
    }
}

async fn compare<B>(locks: Arc<Locks>, mut request: Request<B>) -> Result<Request<B>, Refusal> {
    let passage = Passage::of(&mut request);
    let claim = passage.facts().claim.clone();
    let Some((claim, mode)) = claim else {
        return Ok(request);
    };
    if let Err(refusal) = all_issued(&locks, &claim).await {
        if mode == Mode::Enforce {
            return Err(refusal);
        }
        let mut facts = passage.facts();
        facts.would_refuse = Some(Box::new(refusal));
        // In flight it is all the same; its token raises nothing.
        if let Some((claim, _)) = &mut facts.claim {
            claim
                .asks
                .iter_mut()
                .for_each(|ask| ask.token = Token::NONE);
        }
    }
    Ok(request)
}

async fn all_issued(locks: &Arc<Locks>, claim: &Claim) -> Result<(), Refusal> {
    for (key, ask) in claim.keys.iter().zip(&claim.asks) {
        if ask.token > locks.issued(key).await?.unwrap_or(Token::NONE) {
            let mut refusal = Refusal::new(
                Reason::UnknownToken,
                "The lock service has never issued this token for this key: acquire the lock, and send its token.",
            );
            refusal.key = Some(key.clone());
            refusal.token = Some(ask.token);
            return Err(refusal);
        }
    }
    Ok(())
}

pin_project! {
    /// The future of [`TrustService`].
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
        Comparing {
            compared: Compared<B>,
            inner: Option<S>,
        },
        Inner {
            #[pin]
            future: S::Future,
        },
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
                Project::Comparing { compared, inner } => {
                    let request = match compared.as_mut().poll(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(request) => request?,
                    };
                    let Some(mut inner) = inner.take() else {
                        return Poll::Pending;
                    };
                    inner.call(request)
                }
            };
            state.set(State::Inner { future });
        }
    }
}
