//! The layer that receives bodies before the fence is asked (`fence.body: spool`).
//!
//! A slow upload then neither holds the lane nor reaches the upstream half-sent. A token that is
//! stale by now is refused first, without reading the body.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fencegate_filters::Refusal;
use fencegate_filters::fence::Fence;
use fencegate_filters::passage::Passage;
use fencegate_filters::policy::Mode;
use http::{Request, Response, header};
use http_body::Body as _;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::RequestBody;
use crate::readied::ResponseFuture;
use crate::route::Route;
use crate::spool::Spool;

/// Receives bodies whole where the route says so.
#[derive(Clone)]
pub struct SpoolLayer {
    shared: Arc<Shared>,
}

struct Shared {
    fence: Fence,
    spool: Spool,
    body_timeout: Option<Duration>,
}

impl SpoolLayer {
    /// A layer that compares with `fence` first.
    pub fn new(fence: Fence, spool: Spool, body_timeout: Option<Duration>) -> Self {
        Self {
            shared: Arc::new(Shared {
                fence,
                spool,
                body_timeout,
            }),
        }
    }
}

impl<S> Layer<S> for SpoolLayer {
    type Service = SpoolService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SpoolService {
            shared: Arc::clone(&self.shared),
            inner,
        }
    }
}

/// The service of [`SpoolLayer`].
#[derive(Clone)]
pub struct SpoolService<S> {
    shared: Arc<Shared>,
    inner: S,
}

impl<S, RB> Service<Request<RequestBody>> for SpoolService<S>
where
    S: Service<Request<RequestBody>, Response = Response<RB>> + Clone,
    S::Error: Into<Refusal>,
{
    type Response = Response<RB>;
    type Error = Refusal;
    type Future = ResponseFuture<S, RequestBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<RequestBody>) -> Self::Future {
        let spools = !request.body().is_end_stream() && {
            let passage = Passage::of(&mut request);
            let facts = passage.facts();
            // Observing delays nothing, and what is not fenced waits for nothing.
            matches!(facts.claim, Some((_, Mode::Enforce)))
                && facts.route_as::<Route>().is_some_and(|route| route.spool)
        };
        if !spools {
            return ResponseFuture::as_is(&mut self.inner, request);
        }
        let received = receive(Arc::clone(&self.shared), request);
        ResponseFuture::once(&mut self.inner, received)
    }
}

async fn receive(
    shared: Arc<Shared>,
    mut request: Request<RequestBody>,
) -> Result<Request<RequestBody>, Refusal> {
    let passage = Passage::of(&mut request);
    let claim = passage.facts().claim.clone();
    if let Some((claim, Mode::Enforce)) = claim {
        shared.fence.compare(claim).await?;
    }
    let (mut head, body) = request.into_parts();
    let spooled = shared.spool.receive(body, shared.body_timeout).await?;
    // The client has been asked to go on by now.
    head.headers.remove(header::EXPECT);
    Ok(Request::from_parts(
        head,
        RequestBody::Spooled(Box::new(spooled)),
    ))
}
