//! The layer that answers refusals: outside of it there are only responses.
//!
//! It stands around all other filters, shows a refusal as the route's policy wants it, and adds
//! what is known of the request. Where the route only observes, it tells in `Fencing-Decision`
//! what enforcing would have refused.
//!
//! ```
//! use bytes::Bytes;
//! use fencegate_filters::{Reason, Refusal, RespondLayer};
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower_layer::Layer;
//! use tower_service::Service;
//!
//! struct Refuses;
//!
//! impl Service<Request<()>> for Refuses {
//!     type Response = Response<Full<Bytes>>;
//!     type Error = Refusal;
//!     type Future = std::future::Ready<Result<Self::Response, Refusal>>;
//!     # fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Refusal>> {
//!     #     std::task::Poll::Ready(Ok(()))
//!     # }
//!     fn call(&mut self, _: Request<()>) -> Self::Future {
//!         std::future::ready(Err(Refusal::new(Reason::Busy, "come back later")))
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let response = RespondLayer.layer(Refuses).call(Request::new(())).await.unwrap();
//! assert_eq!(response.status(), 503);
//! assert_eq!(response.headers()["fencing-outcome"], "not-forwarded");
//! # });
//! ```

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::names::FENCING_DECISION;
use crate::passage::{Decision, Passage};
use crate::problem::{Rendering, respond};
use crate::refusal::{Outcome, Refusal};

/// Makes responses of refusals.
#[derive(Clone, Copy, Debug, Default)]
pub struct RespondLayer;

impl<S> Layer<S> for RespondLayer {
    type Service = RespondService<S>;

    fn layer(&self, inner: S) -> RespondService<S> {
        RespondService { inner }
    }
}

/// The service of [`RespondLayer`].
#[derive(Clone, Debug)]
pub struct RespondService<S> {
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for RespondService<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
    S::Error: Into<Refusal>,
    RB: From<Bytes>,
{
    type Response = Response<RB>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Whoever fails to get ready fails for good: the call says how.
        self.inner.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        ResponseFuture {
            passage: Passage::of(&mut request),
            rendering: Rendering::of(request.method(), request.headers()),
            future: self.inner.call(request),
        }
    }
}

pin_project! {
    /// The future of [`RespondService`].
    pub struct ResponseFuture<F> {
        #[pin]
        future: F,
        passage: Passage,
        rendering: Rendering,
    }
}

impl<F, RB, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
    E: Into<Refusal>,
    RB: From<Bytes>,
{
    type Output = Result<Response<RB>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.future.poll(cx));
        let mut facts = this.passage.facts();
        let mut response = answer.unwrap_or_else(|error| {
            let mut refusal: Refusal = error.into();
            if let Some(policy) = &facts.policy {
                this.rendering.refuse_status = policy.policy().refuse_status;
                this.rendering.reveal_mark = policy.policy().reveal_mark;
            }
            let key = facts.keys.first().map(|fact| fact.key.clone());
            refusal.key = refusal.key.take().or(key);
            refusal.token = refusal.token.or(facts.token);
            if refusal.outcome == Outcome::NotForwarded {
                facts.decision = Decision::Refused;
            }
            facts.outcome = Some(refusal.outcome);
            respond(&refusal, this.rendering)
        });
        if let Some(refusal) = facts.would_refuse() {
            let told = format!("would-refuse; reason={}", refusal.reason.as_str());
            if let Ok(told) = HeaderValue::try_from(told) {
                response.headers_mut().insert(&FENCING_DECISION, told);
            }
        }
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::Waker;

    use http::StatusCode;
    use http_body_util::Full;

    use super::*;
    use crate::Reason;
    use crate::key::KeyRules;
    use crate::policy::Policy;
    use crate::testing::answer;

    #[derive(Clone)]
    struct Refuses(Refusal);

    impl<B> Service<Request<B>> for Refuses {
        type Response = Response<Full<Bytes>>;
        type Error = Refusal;
        type Future = std::future::Ready<Result<Self::Response, Refusal>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<B>) -> Self::Future {
            std::future::ready(Err(self.0.clone()))
        }
    }

    fn call<S>(inner: S, request: Request<()>) -> Response<Full<Bytes>>
    where
        S: Service<Request<()>, Response = Response<Full<Bytes>>, Error: Into<Refusal>>,
    {
        let mut service = RespondLayer.layer(inner);
        let mut cx = Context::from_waker(Waker::noop());
        match pin!(service.call(request)).poll(&mut cx) {
            Poll::Ready(Ok(response)) => response,
            Poll::Pending => panic!("it did not answer at once"),
        }
    }

    #[test]
    fn a_refusal_is_shown_as_the_route_wants_it() {
        let mut policy = Policy::new("r", KeyRules::single("n", "{path}").unwrap());
        policy.refuse_status = StatusCode::LOCKED;
        policy.reveal_mark = false;
        let mut request = Request::new(());
        let passage = Passage::of(&mut request);
        passage.facts().policy = Some(Arc::new(policy));
        let mut refusal = Refusal::new(Reason::StaleToken, "x");
        refusal.mark = crate::Token::new(0, 34);
        let response = call(Refuses(refusal), request);
        assert_eq!(response.status(), StatusCode::LOCKED);
        assert!(!response.headers().contains_key("fencing-mark"));
        assert_eq!(passage.facts().decision, Decision::Refused);
        assert_eq!(passage.facts().outcome, Some(Outcome::NotForwarded));
    }

    #[test]
    fn what_would_be_refused_is_told() {
        let mut request = Request::new(());
        let would = Refusal::new(Reason::TokenRequired, "x");
        Passage::of(&mut request).facts().would_refuse = Some(Box::new(would));
        let inner = answer(|_: Request<()>| Response::new(Full::new(Bytes::new())));
        let response = call(inner, request);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.headers()["fencing-decision"],
            "would-refuse; reason=token-required"
        );
    }
}
