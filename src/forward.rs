//! The last service: makes an admitted request the upstream's, and exchanges it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fencegate_filters::passage::Passage;
use fencegate_filters::{Reason, Refusal, names};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header};
use tower_service::Service;

use crate::body::{RequestBody, ResponseBody};
use crate::exchange::{Terms, exchange};
use crate::route::Route;
use crate::server::TunnelSlot;
use crate::upstream::Upstream;

/// Exchanges requests with the upstream of their route.
#[derive(Clone, Debug)]
pub struct Forward {
    body_timeout: Option<Duration>,
}

impl Forward {
    /// No gap between two reads of a request body may be longer than `body_timeout`.
    pub const fn new(body_timeout: Option<Duration>) -> Self {
        Self { body_timeout }
    }
}

impl Service<Request<RequestBody>> for Forward {
    type Response = Response<ResponseBody>;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Refusal>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let body_timeout = self.body_timeout;
        Box::pin(forward(request, body_timeout))
    }
}

async fn forward(
    mut request: Request<RequestBody>,
    body_timeout: Option<Duration>,
) -> Result<Response<ResponseBody>, Refusal> {
    let passage = Passage::of(&mut request);
    let Some(route) = request.extensions_mut().remove::<Arc<Route>>() else {
        return Err(Refusal::new(
            Reason::NoRoute,
            "No route takes this request.",
        ));
    };
    let Some(upstream) = &route.upstream else {
        return Err(Refusal::new(
            Reason::Forbidden,
            "This route refuses all requests.",
        ));
    };
    let asks = request.headers().contains_key(header::UPGRADE);
    let upgrade = request.extensions_mut().remove::<TunnelSlot>();
    let upgrade = upgrade.filter(|_| asks);
    let (mut head, body) = request.into_parts();
    head.uri = origin_form(&head.uri);
    head.version = Version::HTTP_11;
    make_upstreams(&mut head.headers, &route, upstream)?;
    // The codec keeps the spelling of header names among the extensions.
    let out = Request::from_parts(head, body);
    let terms = Terms {
        admission: passage.facts().admission.take(),
        trailers: route.trailers.clone(),
        body_timeout,
        upgrade,
    };
    let began = Instant::now();
    let mut answer = exchange(upstream, out, terms).await;
    if let Ok(response) = &mut answer {
        // The gateway's own words are nobody else's.
        for name in [
            &names::FENCING_MARK,
            &names::FENCING_OUTCOME,
            &names::FENCING_DECISION,
        ] {
            response.headers_mut().remove(HeaderName::clone(name));
        }
    }
    let mut facts = passage.facts();
    facts.upstream = Some(began.elapsed());
    if let Err(refusal) = &answer {
        facts.outcome = Some(refusal.outcome);
    }
    drop(facts);
    answer
}

/// The target as the upstream gets it: byte for byte what the key was made of, in origin form.
fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        // `http://host?query` has no path: RFC 9112, section 3.2.1 has `/` sent for it.
        Some(target) if target.as_str().starts_with('?') => {
            let target = format!("/{target}");
            PathAndQuery::try_from(target).map_or_else(|_| Uri::from_static("/"), Uri::from)
        }
        Some(target) => Uri::from(target.clone()),
        None => Uri::from_static("/"),
    }
}

/// The header as the upstream gets it.
fn make_upstreams(
    headers: &mut HeaderMap,
    route: &Route,
    upstream: &Upstream,
) -> Result<(), Refusal> {
    route.strip.filter(headers);
    if !route.forward_token {
        let named = route.policy.keys.keys().iter();
        let named = named.filter_map(|rule| rule.token_header.as_ref());
        for name in route.policy.token_headers.iter().chain(named) {
            headers.remove(name);
        }
    }
    for (name, value) in &route.headers {
        headers.insert(name.clone(), value.clone());
    }
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, authority(upstream)?);
    }
    if route.rewrite_destination {
        rewrite_destination(headers, upstream)?;
    }
    Ok(())
}

fn authority(upstream: &Upstream) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(&upstream.authority).map_err(|_| {
        Refusal::new(
            Reason::UpstreamUnreachable,
            "The upstream's name is not a host name.",
        )
    })
}

/// Makes an absolute Destination the upstream's own. That its authority was this gateway's has been
/// checked where the key was made of it; its path stays as it came.
fn rewrite_destination(headers: &mut HeaderMap, upstream: &Upstream) -> Result<(), Refusal> {
    let Some(value) = headers.get("destination") else {
        return Ok(());
    };
    let broken = || Refusal::new(Reason::BadRequest, "Destination is not a URI.");
    let text = value.to_str().map_err(|_| broken())?;
    let Some((_, rest)) = text.split_once("://") else {
        return Ok(());
    };
    let path = rest.find('/').map_or("/", |at| rest.split_at(at).1);
    let rewritten = format!("http://{}{path}", upstream.authority);
    let rewritten = HeaderValue::try_from(rewritten).map_err(|_| broken())?;
    headers.insert("destination", rewritten);
    Ok(())
}
