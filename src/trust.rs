//! The layer that takes no token that was never issued (`fence.trust: issued`).
//!
//! A token above every one that the lock service has issued for its key was made up: it would lock
//! out everybody who holds one that was not. What was issued only grows, so it is compared before
//! the lane is looked at.

use std::sync::Arc;
use std::task::{Context, Poll};

use fencegate_filters::fence::Claim;
use fencegate_filters::passage::Passage;
use fencegate_filters::policy::Mode;
use fencegate_filters::{Reason, Refusal, Token};
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::locks::Locks;
use crate::readied::ResponseFuture;
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
        match locks {
            None => ResponseFuture::as_is(&mut self.inner, request),
            Some(locks) => {
                let compared = compare(Arc::clone(locks), request);
                ResponseFuture::once(&mut self.inner, compared)
            }
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
