//! The first filter: HTTP that hops could read in two ways, and bodies that are too large.

use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use fencegate_filters::Refusal;
use fencegate_filters::guard::{self, GuardedNames};
use fencegate_filters::limits::check_length;
use fencegate_filters::route::Checked;
use http::{Request, Response};
use hyper::body::Incoming;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::RequestBody;

/// What is checked before anything else is decided; a reload puts another in its place.
#[derive(Debug)]
pub struct Intake {
    /// Headers that no hop may be asked to delete.
    pub guarded: GuardedNames,
    /// The largest request body (`limits.body`).
    pub body_limit: Option<u64>,
}

/// Refuses what is broken or too large.
#[derive(Clone)]
pub struct IntakeLayer {
    intake: Arc<ArcSwap<Intake>>,
}

impl IntakeLayer {
    /// A layer over the rules in force.
    pub const fn new(intake: Arc<ArcSwap<Intake>>) -> Self {
        Self { intake }
    }
}

impl<S> Layer<S> for IntakeLayer {
    type Service = IntakeService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IntakeService {
            intake: Arc::clone(&self.intake),
            inner,
        }
    }
}

/// The service of [`IntakeLayer`].
#[derive(Clone)]
pub struct IntakeService<S> {
    intake: Arc<ArcSwap<Intake>>,
    inner: S,
}

impl<S, RB> Service<Request<Incoming>> for IntakeService<S>
where
    S: Service<Request<RequestBody>, Response = Response<RB>>,
    S::Error: Into<Refusal>,
{
    type Response = Response<RB>;
    type Error = Refusal;
    type Future = Checked<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let intake = self.intake.load();
        let limit = intake.body_limit;
        let checked =
            check(&request, &intake.guarded).and_then(|()| check_length(request.headers(), limit));
        match checked {
            Ok(()) => {
                let request = request.map(|body| RequestBody::incoming(body, limit));
                Checked::go(self.inner.call(request))
            }
            Err(refusal) => Checked::refuse(refusal),
        }
    }
}

/// All that [`guard`] checks, in the order that gives the most telling answer.
fn check<B>(request: &Request<B>, guarded: &GuardedNames) -> Result<(), Refusal> {
    let headers = request.headers();
    guard::check_target(request.method(), request.uri())?;
    guard::check_host(request.version(), request.uri(), headers)?;
    guard::check_names(headers, guarded)?;
    guard::check_expect(headers)
}
