//! The last service: makes an admitted request the upstream's, and exchanges it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fencegate_filters::passage::Passage;
use fencegate_filters::{Reason, Refusal, StripLayer, names};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header};
use tokio::time::Instant;
use tower_service::Service;

use crate::body::{RequestBody, ResponseBody};
use crate::clock;
use crate::exchange::{Exchange, Terms, exchange};
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
        let (route, admission) = {
            let mut facts = passage.facts();
            (facts.route_as::<Route>(), facts.admission.take())
        };
        let exchange = match prepare(&mut request, route.as_deref()) {
            Ok((upstream, trailers)) => {
                let upgrades = request.headers().contains_key(header::UPGRADE);
                let terms = Terms {
                    admission,
                    trailers,
                    body_timeout: self.body_timeout,
                    upgrade: match upgrades {
                        true => request.extensions_mut().remove::<TunnelSlot>(),
                        false => None,
                    },
                };
                exchange(upstream, request, terms)
            }
            Err(refusal) => Exchange::Refused(Some(Box::new(refusal))),
        };
        ResponseFuture {
            exchange,
            passage,
            began: clock::now(),
        }
    }
}

/// The future of [`Forward`].
pub struct ResponseFuture {
    exchange: Exchange,
    passage: Passage,
    began: Instant,
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut answer = ready!(Pin::new(&mut this.exchange).poll(cx));
        let mut facts = this.passage.facts();
        facts.upstream = Some(clock::now().duration_since(this.began));
        match &mut answer {
            Ok(response) => {
                remove_own_words(response.headers_mut());
            }
            Err(refusal) => facts.outcome = Some(refusal.outcome),
        }
        drop(facts);
        Poll::Ready(answer)
    }
}

/// The gateway's own words are nobody else's.
fn remove_own_words(headers: &mut HeaderMap) {
    // One look at the names: three removals would hash three names for nothing.
    let mut names = headers.keys();
    if !names.any(|name| name.as_str().starts_with("fencing-")) {
        return;
    }
    for name in [
        &names::FENCING_MARK,
        &names::FENCING_OUTCOME,
        &names::FENCING_DECISION,
    ] {
        let name: &HeaderName = name;
        headers.remove(name);
    }
}

/// Makes the request the upstream's, in place.
fn prepare(
    request: &mut Request<RequestBody>,
    route: Option<&Route>,
) -> Result<(Arc<Upstream>, StripLayer), Refusal> {
    let Some(route) = route else {
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
    if let Some(origin) = origin_form(request.uri()) {
        *request.uri_mut() = origin;
    }
    if request.headers().contains_key(header::EXPECT) && !expects_continue(request) {
        request.headers_mut().remove(header::EXPECT);
    }
    *request.version_mut() = Version::HTTP_11;
    let query = match route.forward_token {
        true => String::new(),
        false => request.uri().query().unwrap_or_default().to_owned(),
    };
    make_upstreams(request.headers_mut(), &query, route, upstream)?;
    Ok((Arc::clone(upstream), route.trailers.clone()))
}

/// Whether the client waits for a 100. HTTP/1.0 knows of none (RFC 9110, section 10.1.1), and a line
/// that lists nothing asks for nothing.
fn expects_continue(request: &Request<RequestBody>) -> bool {
    let lines = request.headers().get_all(header::EXPECT);
    request.version() > Version::HTTP_10
        && lines
            .iter()
            .any(|line| line.as_bytes().iter().any(u8::is_ascii_alphanumeric))
}

/// The target as the upstream gets it: byte for byte what the key was made of, in origin form;
/// `None` where it came in that form.
fn origin_form(uri: &Uri) -> Option<Uri> {
    let target = uri.path_and_query();
    if uri.authority().is_none() && target.is_some_and(|target| target.as_str().starts_with('/')) {
        return None;
    }
    Some(match target {
        // `http://host?query` has no path: RFC 9112, section 3.2.1 has `/` sent for it.
        Some(target) if target.as_str().starts_with('?') => {
            // Displayed, it would have a slash in front already.
            let target = format!("/{}", target.as_str());
            PathAndQuery::try_from(target).map_or_else(|_| Uri::from_static("/"), Uri::from)
        }
        Some(target) => Uri::from(target.clone()),
        None => Uri::from_static("/"),
    })
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
/// of RFC 9421, and of the drafts before it (draft-cavage-http-signatures).
fn is_signed(headers: &HeaderMap, query: &str, name: &HeaderName) -> bool {
    let name = name.as_str();
    let listed = |list: &str, separators: &[char]| {
        list.split(separators)
            .any(|one| one.trim().eq_ignore_ascii_case(name))
    };
    let after = |text: &str, label: &str, end: &[char]| {
        let list = text.split_once(label)?.1.split(end).next();
        list.map(str::to_owned)
    };
    let any = |field: HeaderName, covers: &dyn Fn(&str) -> bool| {
        let lines = headers.get_all(field).into_iter();
        lines.filter_map(|line| line.to_str().ok()).any(covers)
    };
    let aws = |text: &str, label: &str| {
        after(text, label, &[',', ' ', '&'])
            .is_some_and(|list| listed(&list.replace("%3B", ";").replace("%3b", ";"), &[';']))
    };
    let draft =
        |line: &str| after(line, "headers=\"", &['"']).is_some_and(|list| listed(&list, &[' ']));
    any(header::AUTHORIZATION, &|line| {
        aws(line, "SignedHeaders=") || draft(line)
    }) || aws(query, "X-Amz-SignedHeaders=")
        || any(HeaderName::from_static("signature"), &draft)
        || any(HeaderName::from_static("signature-input"), &|line| {
            listed(line, &['"'])
        })
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
    let rewritten = format!("{}://{}{path}", upstream.scheme, upstream.authority);
    let rewritten = HeaderValue::try_from(rewritten).map_err(|_| broken())?;
    headers.insert("destination", rewritten);
    Ok(())
}
