//! The future of a layer that may have to wait for something before it hands a request on.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use fencegate_filters::Refusal;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

type Readied<B> = Pin<Box<dyn Future<Output = Result<Request<B>, Refusal>> + Send>>;

pin_project! {
    /// The future of a service that readies some requests first.
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
        Readying {
            readied: Readied<B>,
            inner: S,
        },
        Inner {
            #[pin]
            future: S::Future,
        },
    }
}

impl<S: Service<Request<B>>, B> ResponseFuture<S, B> {
    /// Hands the request on as it is.
    pub fn as_is(inner: &mut S, request: Request<B>) -> Self {
        let future = inner.call(request);
        Self {
            state: State::Inner { future },
        }
    }

    /// Hands on what `readied` gives, to the service that was asked whether it is ready.
    pub fn once<F>(inner: &mut S, readied: F) -> Self
    where
        S: Clone,
        F: Future<Output = Result<Request<B>, Refusal>> + Send + 'static,
    {
        let clone = inner.clone();
        Self {
            state: State::Readying {
                readied: Box::pin(readied),
                inner: std::mem::replace(inner, clone),
            },
        }
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
                Project::Readying { readied, inner } => {
                    let request = ready!(readied.as_mut().poll(cx))?;
                    inner.call(request)
                }
            };
            state.set(State::Inner { future });
        }
    }
}
