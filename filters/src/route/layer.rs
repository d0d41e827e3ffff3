//! The layer that finds a request's route and makes its keys.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use http::{Method, Request, Response, header};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Match, RequestView, RouteError, RouteMatcher, Router};
use crate::Peer;
use crate::fault::{self, Fault};
use crate::hop_by_hop::upgrades;
use crate::key::{destination_path, destination_scheme};
use crate::passage::{Facts, KeyFact, Passage};
use crate::policy::{AsPolicy, Mode, Policy, Require};
use crate::refusal::{Reason, Refusal};

/// The routes in force; a reload puts others in their place.
pub type Routes<R> = Arc<ArcSwap<Router<Arc<R>>>>;

/// Finds the route, and leaves it ([`Facts::route_as`]) and its keys in the [`Passage`].
///
/// `Host` must have been checked before: one, and the authority of an absolute target.
pub struct RouteLayer<R> {
    routes: Routes<R>,
}

impl<R> RouteLayer<R> {
    /// A layer over these routes.
    #[must_use]
    pub const fn new(routes: Routes<R>) -> Self {
        Self { routes }
    }

    /// A layer over routes that stay as they are.
    pub fn fixed(routes: impl IntoIterator<Item = (RouteMatcher, R)>) -> Self {
        let routes = routes
            .into_iter()
            .map(|(matcher, route)| (matcher, Arc::new(route)));
        Self::new(Arc::new(ArcSwap::from_pointee(Router::new(routes))))
    }
}

impl<R> Clone for RouteLayer<R> {
    fn clone(&self) -> Self {
        Self {
            routes: Arc::clone(&self.routes),
        }
    }
}

impl<R, S> Layer<S> for RouteLayer<R> {
    type Service = RouteService<R, S>;

    fn layer(&self, inner: S) -> Self::Service {
        RouteService {
            routes: Arc::clone(&self.routes),
            inner,
        }
    }
}

/// The service of [`RouteLayer`].
pub struct RouteService<R, S> {
    routes: Routes<R>,
    inner: S,
}

impl<R, S: Clone> Clone for RouteService<R, S> {
    fn clone(&self) -> Self {
        Self {
            routes: Arc::clone(&self.routes),
            inner: self.inner.clone(),
        }
    }
}

impl<R, S, B, RB> Service<Request<B>> for RouteService<R, S>
where
    R: AsPolicy,
    S: Service<Request<B>, Response = Response<RB>>,
    S::Error: Into<Refusal>,
{
    type Response = Response<RB>;
    type Error = Refusal;
    type Future = Checked<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let passage = Passage::of(&mut request);
        let found = find(&self.routes.load(), &request, &mut passage.facts());
        match found {
            Ok(()) => Checked::go(self.inner.call(request)),
            Err(refusal) => Checked::refuse(refusal),
        }
    }
}

fn find<R: AsPolicy, B>(
    router: &Router<Arc<R>>,
    request: &Request<B>,
    facts: &mut Facts,
) -> Result<(), Refusal> {
    let host = request
        .headers()
        .get(header::HOST)
        .map(|host| host.to_str())
        .transpose()
        .map_err(|_| Refusal::new(Reason::BadRequest, "Host is not a host name."))?;
    let view = RequestView {
        method: request.method(),
        host,
        path: path_of_key(request),
        query: request.uri().query(),
    };
    let route = match router.find(&view) {
        Ok(found) => {
            let policy = found.route.policy();
            facts.route = Some(Arc::clone(&policy.route));
            if policy.deny {
                return Err(Refusal::new(
                    Reason::Forbidden,
                    "This route refuses all requests.",
                ));
            }
            if policy.closed {
                return Err(Refusal::new(
                    Reason::Draining,
                    "The rules of this route are being changed, and what was forwarded under the old ones has not ended; try again.",
                ));
            }
            if is_fenced(policy, request) {
                make_keys(router, policy, &found, request, facts);
            }
            Arc::clone(found.route)
        }
        // Only observed: the request goes where every reading of its path leads.
        Err(
            ref error @ RouteError::AmbiguousPath {
                route: Some(route), ..
            },
        ) if route.policy().mode == Mode::Observe && !route.policy().deny => {
            facts.route = Some(Arc::clone(&route.policy().route));
            facts.would_refuse = Some(Box::new(Refusal::from(error)));
            Arc::clone(route)
        }
        Err(error) => return Err(Refusal::from(&error)),
    };
    facts.policy = Some(route);
    Ok(())
}

/// The path that is forwarded; another one only where that fault is planted.
fn path_of_key<B>(request: &Request<B>) -> &str {
    let other = || request.headers().get("x-original-url")?.to_str().ok();
    match fault::planted(Fault::KeyOfAnotherPath) {
        true => other().unwrap_or_else(|| request.uri().path()),
        false => request.uri().path(),
    }
}

fn make_keys<R: AsPolicy, B>(
    router: &Router<Arc<R>>,
    policy: &Policy,
    found: &Match<'_, '_, Arc<R>>,
    request: &Request<B>,
    facts: &mut Facts,
) {
    let derived = found.keys(&policy.keys, request.uri().query(), request.headers());
    let derived = derived.map_err(Refusal::from).and_then(|keys| {
        check_destination(router, policy, found, request)?;
        Ok(keys)
    });
    match derived {
        Ok(keys) => {
            facts.keys = keys
                .into_iter()
                .map(|one| KeyFact {
                    key: one.key,
                    access: one.access,
                    token_header: one.token_header.cloned(),
                })
                .collect();
        }
        Err(refusal) => facts.key_error = Some(Box::new(refusal)),
    }
}

/// A Destination names a resource of some route, and its key here must be the one that it has
/// there: a route of another namespace would fence it under another name.
fn check_destination<R: AsPolicy, B>(
    router: &Router<Arc<R>>,
    policy: &Policy,
    found: &Match<'_, '_, Arc<R>>,
    request: &Request<B>,
) -> Result<(), Refusal> {
    if !policy.keys.uses_destination() {
        return Ok(());
    }
    let Some(path) = destination_path(request.headers(), found.host())? else {
        return Ok(());
    };
    let peer = request.extensions().get::<Peer>();
    if let (Some(peer), Some(scheme)) = (peer, destination_scheme(request.headers()))
        && !peer.is_reached_by(scheme)
    {
        return Err(Refusal::new(
            Reason::BadRequest,
            "The Destination's scheme is not that of this connection: send the path alone.",
        ));
    }
    // Whoever takes any of these there must agree on the key; at least one must take something.
    let mut taken = false;
    let mut same = true;
    for method in [
        &Method::PUT,
        &Method::DELETE,
        &Method::GET,
        request.method(),
    ] {
        let view = RequestView {
            method,
            host: found.host(),
            path,
            query: None,
        };
        match router.find(&view) {
            Ok(there) => {
                let there = there.route.policy();
                taken = true;
                same &= there.keys.namespace() == policy.keys.namespace() && !there.deny;
            }
            Err(RouteError::MethodNotAllowed { .. }) => {}
            Err(_) => same = false,
        }
    }
    let same = same && taken;
    if same {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::BadRequest,
        "The Destination belongs to another route's namespace, or to none: its key here would not be the one that it has there.",
    ))
}

/// Whether keys are needed: a read without any token passes, whatever its key is.
fn is_fenced<B>(policy: &Policy, request: &Request<B>) -> bool {
    let headers = request.headers();
    let has_token = || {
        policy
            .token_headers
            .iter()
            .chain(
                policy
                    .keys
                    .keys()
                    .iter()
                    .filter_map(|rule| rule.token_header.as_ref()),
            )
            .any(|name| headers.contains_key(name))
    };
    match policy.require {
        Require::Never => false,
        Require::All => true,
        Require::Writes => {
            policy.is_write(request.method(), upgrades(request.version(), headers)) || has_token()
        }
    }
}

pin_project! {
    /// The future of a filter that decides before it calls the service behind it.
    pub struct Checked<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = Project]
    enum State<F> {
        Refused {
            refusal: Option<Refusal>,
        },
        Inner {
            #[pin]
            future: F,
        },
    }
}

impl<F> Checked<F> {
    /// Passed on.
    pub const fn go(future: F) -> Self {
        Self {
            state: State::Inner { future },
        }
    }

    /// Refused here.
    pub const fn refuse(refusal: Refusal) -> Self {
        Self {
            state: State::Refused {
                refusal: Some(refusal),
            },
        }
    }
}

impl<F, T, E> Future for Checked<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<Refusal>,
{
    type Output = Result<T, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Project::Refused { refusal } => match refusal.take() {
                Some(refusal) => Poll::Ready(Err(refusal)),
                None => Poll::Pending,
            },
            Project::Inner { future } => future.poll(cx).map_err(Into::into),
        }
    }
}
