//! The last service: makes an admitted request the upstream's, and exchanges it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use fencegate_filters::passage::Passage;
use fencegate_filters::{Reason, Refusal, StripLayer, names};
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
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<RequestBody>) -> ResponseFuture {
        let passage = Passage::of(&mut request);
        let exchanged = match prepare(&mut request) {
            Ok((upstream, trailers)) => {
                let terms = Terms {
                    admission: passage.facts().admission.take(),
                    trailers,
                    body_timeout: self.body_timeout,
                    upgrade: request.extensions_mut().remove::<TunnelSlot>(),
                };
                Exchanged::UnderWay(Box::pin(exchange(upstream, request, terms)))
            }
            Err(refusal) => Exchanged::Refused(Some(Box::new(refusal))),
        };
        ResponseFuture {
            exchanged,
            passage,
            began: Instant::now(),
        }
    }
}

/// The future of [`Forward`].
pub struct ResponseFuture {
    exchanged: Exchanged,
    passage: Passage,
    began: Instant,
}

enum Exchanged {
    UnderWay(Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Refusal>> + Send>>),
    Refused(Option<Box<Refusal>>),
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut answer = match &mut this.exchanged {
            Exchanged::UnderWay(exchange) => ready!(exchange.as_mut().poll(cx)),
            Exchanged::Refused(refusal) => match refusal.take() {
                Some(refusal) => return Poll::Ready(Err(*refusal)),
                None => return Poll::Pending,
            },
        };
        let mut facts = this.passage.facts();
        facts.upstream = Some(this.began.elapsed());
        match &mut answer {
            Ok(response) => {
                // The gateway's own words are nobody else's.
                for name in [
                    &names::FENCING_MARK,
                    &names::FENCING_OUTCOME,
                    &names::FENCING_DECISION,
                ] {
                    let name: &HeaderName = name;
                    response.headers_mut().remove(name);
                }
            }
            Err(refusal) => facts.outcome = Some(refusal.outcome),
        }
        drop(facts);
        Poll::Ready(answer)
    }
}

/// Makes the request the upstream's, in place.
fn prepare(request: &mut Request<RequestBody>) -> Result<(Arc<Upstream>, StripLayer), Refusal> {
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
    if !request.headers().contains_key(header::UPGRADE) {
        request.extensions_mut().remove::<TunnelSlot>();
    }
    *request.uri_mut() = origin_form(request.uri());
    *request.version_mut() = Version::HTTP_11;
    let query = match route.forward_token {
        true => String::new(),
        false => request.uri().query().unwrap_or_default().to_owned(),
    };
    make_upstreams(request.headers_mut(), &query, &route, upstream)?;
    Ok((Arc::clone(upstream), route.trailers.clone()))
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
    query: &str,
    route: &Route,
    upstream: &Upstream,
) -> Result<(), Refusal> {
    route.strip.filter(headers);
    if !route.forward_token {
        let named = route.policy.keys.keys().iter();
        let named = named.filter_map(|rule| rule.token_header.as_ref());
        for name in route.policy.token_headers.iter().chain(named) {
            if !is_signed(headers, query, name) {
                headers.remove(name);
            }
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

/// Whether the request's signature covers this field, so that without it the upstream would find
/// the signature wrong: the lists of AWS Signature Version 4, in the header or in a presigned URL,
/// and of RFC 9421.
fn is_signed(headers: &HeaderMap, query: &str, name: &HeaderName) -> bool {
    let name = name.as_str();
    let listed = |list: &str, separators: &[char]| {
        list.split(separators)
            .any(|one| one.trim().eq_ignore_ascii_case(name))
    };
    let after = |text: &str, label: &str| {
        text.split_once(label).map(|pair| {
            pair.1
                .split([',', ' ', '&'])
                .next()
                .unwrap_or_default()
                .to_owned()
        })
    };
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    text(&header::AUTHORIZATION)
        .and_then(|value| after(value, "SignedHeaders="))
        .is_some_and(|list| listed(&list, &[';']))
        || after(query, "X-Amz-SignedHeaders=")
            .is_some_and(|list| listed(&list.replace("%3B", ";").replace("%3b", ";"), &[';']))
        || text(&HeaderName::from_static("signature-input"))
            .is_some_and(|value| listed(value, &['"']))
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
    if text.starts_with('/') {
        return Ok(());
    }
    let Some((_, rest)) = text.split_once("://") else {
        return Ok(());
    };
    let path = rest.find('/').map_or("/", |at| rest.split_at(at).1);
    let rewritten = format!("http://{}{path}", upstream.authority);
    let rewritten = HeaderValue::try_from(rewritten).map_err(|_| broken())?;
    headers.insert("destination", rewritten);
    Ok(())
}
