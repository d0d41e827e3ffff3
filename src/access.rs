//! The outermost layer: one access line and one count for every request, and the one place where a
//! refusal becomes a response.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fencegate_filters::key;
use fencegate_filters::passage::{Decision, Facts, KeyFact, Passage};
use fencegate_filters::problem::{Rendering, respond};
use fencegate_filters::{Outcome, Reason, Refusal};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::{Broken, ResponseBody};
use crate::locks::Locks;
use crate::metrics::{Metrics, RequestLabels, RouteName};
use crate::wire::{Flood, Refused, Violation};

static FENCING_DECISION: HeaderName = HeaderName::from_static("fencing-decision");

/// How many refusals a second are logged one by one; of those above, every hundredth.
const REFUSALS_LOGGED: u64 = 100;

/// Logs, counts and answers.
#[derive(Clone)]
pub struct AccessLayer {
    shared: Arc<Shared>,
}

struct Shared {
    metrics: Arc<Metrics>,
    locks: Option<Arc<Locks>>,
    log: bool,
    no_route: Arc<str>,
}

impl AccessLayer {
    /// `locks` have those who watch them told of refusals; `log`: whether an access line is written
    /// (`log.access`).
    pub fn new(metrics: Arc<Metrics>, locks: Option<Arc<Locks>>, log: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                metrics,
                locks,
                log,
                no_route: Arc::from(""),
            }),
        }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access {
            shared: Arc::clone(&self.shared),
            inner,
        }
    }
}

/// The service of [`AccessLayer`].
#[derive(Clone)]
pub struct Access<S> {
    shared: Arc<Shared>,
    inner: S,
}

impl<S, B> Service<Request<B>> for Access<S>
where
    S: Service<Request<B>, Response = Response<ResponseBody>, Error = Refusal>,
{
    type Response = Response<AccessBody>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The services behind are always ready; a refusal to be so would be one without a request.
        let _ = self.inner.poll_ready(cx);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let passage = Passage::of(&mut request);
        let line = Box::new(Line {
            shared: Arc::clone(&self.shared),
            passage,
            began: self.shared.log.then(Instant::now),
            told: self.shared.log.then(|| Told {
                version: request.version(),
                method: request.method().clone(),
                uri: request.uri().clone(),
            }),
            rendering: Rendering::of(request.method(), request.headers()),
            status: 0,
            bytes: 0,
            refusal: None,
            ended: false,
        });
        ResponseFuture {
            future: self.inner.call(request),
            line: Some(line),
        }
    }
}

pin_project! {
    /// The future of [`Access`].
    pub struct ResponseFuture<F> {
        #[pin]
        future: F,
        line: Option<Box<Line>>,
    }
}

impl<F> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Refusal>>,
{
    type Output = Result<Response<AccessBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.future.poll(cx));
        let Some(mut line) = this.line.take() else {
            return Poll::Pending;
        };
        let mut response = answer.unwrap_or_else(|refusal| line.refuse(refusal));
        if let Some(refusal) = line.passage.facts().would_refuse() {
            let told = format!("would-refuse; reason={}", refusal.reason.as_str());
            if let Ok(told) = HeaderValue::try_from(told) {
                response
                    .headers_mut()
                    .insert(FENCING_DECISION.clone(), told);
            }
        }
        line.status = response.status().as_u16();
        if response.body().is_end_stream() || line.rendering.head {
            // Nobody will poll it.
            line.end(false);
        }
        Poll::Ready(Ok(response.map(|body| AccessBody { body, line })))
    }
}

/// What the access line says, gathered until the response has ended.
struct Line {
    shared: Arc<Shared>,
    passage: Passage,
    began: Option<Instant>,
    told: Option<Told>,
    rendering: Rendering,
    status: u16,
    bytes: u64,
    refusal: Option<Box<Refusal>>,
    ended: bool,
}

struct Told {
    version: Version,
    method: Method,
    uri: Uri,
}

impl Line {
    fn refuse(&mut self, mut refusal: Refusal) -> Response<ResponseBody> {
        let mut facts = self.passage.facts();
        if let Some(policy) = facts.policy.clone() {
            let policy = policy.policy();
            self.rendering.refuse_status = policy.refuse_status;
            self.rendering.reveal_mark = policy.reveal_mark;
        }
        refusal.key = refusal
            .key
            .take()
            .or_else(|| facts.keys.first().map(|fact| fact.key.clone()));
        if refusal.key.as_ref() == facts.keys.first().map(|fact| &fact.key) {
            refusal.token = refusal.token.or(facts.token);
        }
        let admitted = matches!(facts.decision, Decision::Admitted | Decision::Unfenced);
        let by_upstream = refusal.reason == Reason::UpstreamUnreachable;
        if refusal.outcome == Outcome::NotForwarded && !(admitted && by_upstream) {
            facts.decision = Decision::Refused;
        }
        facts.outcome = Some(refusal.outcome);
        drop(facts);
        if let Some(locks) = &self.shared.locks {
            locks.refused(&refusal);
        }
        let response = respond::<Bytes>(&refusal, &self.rendering).map(ResponseBody::whole);
        self.refusal = Some(Box::new(refusal));
        response
    }

    fn end(&mut self, broken: bool) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let facts = self.passage.facts();
        let reason = self
            .refusal
            .as_deref()
            .or_else(|| facts.would_refuse())
            .map_or("", |refusal| refusal.reason.as_str());
        self.shared.metrics.request(RequestLabels {
            route: RouteName(
                facts
                    .route
                    .clone()
                    .unwrap_or_else(|| Arc::clone(&self.shared.no_route)),
            ),
            decision: facts.decision.as_str(),
            reason,
        });
        if facts.decision == Decision::Admitted {
            self.shared.metrics.admitted(facts.waited);
        }
        if let Some(took) = facts.upstream {
            self.shared.metrics.upstream(took);
        }
        if let Some(told) = &self.told {
            self.log(&facts, told, reason, broken);
        }
    }

    fn log(&self, facts: &Facts, told: &Told, reason: &str, broken: bool) {
        let refused = self.refusal.is_some() || facts.would_refuse().is_some();
        // What may have reached the upstream is never left out, whatever became of it.
        let forwarded = matches!(
            facts.decision,
            Decision::Admitted | Decision::Unfenced | Decision::Observed
        );
        if refused && !forwarded && !SAMPLER.takes() {
            return;
        }
        let refusal = self.refusal.as_deref().or_else(|| facts.would_refuse());
        // A request of several keys is refused for one of them.
        let first = facts.keys.first().map(|fact| &fact.key);
        let key = refusal.and_then(|one| one.key.as_ref()).or(first);
        let token = match refusal {
            Some(one) if key != first => one.token,
            _ => facts.token,
        };
        let key = key.map(|key| Escaped(key.as_str()));
        // Who is admitted with a token has raised the mark to it, unless it was there already.
        let raises = |fact: &KeyFact| fact.access == key::Access::Write;
        let raised = facts.decision == Decision::Admitted && facts.keys.first().is_some_and(raises);
        let mark = refusal.and_then(|one| one.mark);
        let mark = mark.or(facts.token.filter(|_| raised));
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "fencegate::access",
                    protocol = protocol(told.version),
                    method = %told.method,
                    path = %Escaped(told.uri.path()),
                    status = (self.status > 0).then_some(self.status),
                    route = facts.route.as_deref(),
                    decision = facts.decision.as_str(),
                    reason = (!reason.is_empty()).then_some(reason),
                    key = key.as_ref().map(tracing::field::display),
                    token = token.map(tracing::field::display),
                    mark = mark.map(tracing::field::display),
                    outcome = facts.outcome.map(Outcome::as_str),
                    bytes = self.bytes,
                    client_left = (self.status == 0).then_some(true),
                    broken = (broken && self.status > 0).then_some(true),
                    waited_us = micros(facts.waited),
                    upstream_us = facts.upstream.map(micros),
                    total_us = self.began.map(|began| micros(began.elapsed())),
                    "request"
                )
            };
        }
        if refused {
            line!(warn);
        } else {
            line!(info);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.end(true);
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Text from a client, for a log: control and non-ASCII characters escaped, cut after 256.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const LONGEST: usize = 256;
        let plain = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
        let (mut rest, mut left) = (self.0, LONGEST);
        loop {
            // Whole runs at once: each write goes through the formatter, JSON, and a check of UTF-8.
            let run = rest.bytes().take(left).take_while(plain).count();
            let (run, after) = rest.split_at(run);
            f.write_str(run)?;
            left -= run.len();
            let mut after = after.chars();
            let Some(character) = after.next() else {
                return Ok(());
            };
            if left == 0 {
                return f.write_str("…");
            }
            write!(f, "{}", character.escape_unicode())?;
            left -= 1;
            rest = after.as_str();
        }
    }
}

/// Logs a head that was too broken to become a request.
pub fn log_broken_head(violation: &Violation) {
    if SAMPLER.takes() {
        tracing::warn!(
            target: "fencegate::access",
            reason = violation.reason.as_str(),
            detail = violation.detail,
            "broken request refused"
        );
    }
}

/// Logs a stream, or a connection, that the codec of HTTP/2 has refused.
pub fn log_refused_by_codec(refused: &Refused) {
    if SAMPLER.takes() {
        tracing::warn!(
            target: "fencegate::access",
            protocol = protocol(Version::HTTP_2),
            stream = refused.stream,
            reason = refused.reason().as_str(),
            code = refused.code.map(|code| tracing::field::debug(h2::Reason::from(code))),
            detail = refused.detail(),
            "broken request refused"
        );
    }
}

/// Logs that a client's connection is ended for what it has sent too much of.
pub fn log_flood(flood: Flood) {
    if SAMPLER.takes() {
        tracing::warn!(
            target: "fencegate::access",
            protocol = protocol(Version::HTTP_2),
            flood = flood.as_str(),
            "an HTTP/2 connection is closed"
        );
    }
}

/// Logs a connection on which it never came to a request: a handshake that failed, or a PROXY header
/// that is none. Whoever closes before saying anything, as some checks of health do, is no news.
pub fn log_not_opened(peer: Option<IpAddr>, error: &io::Error) {
    let peer = peer.map(tracing::field::display);
    if error.kind() == io::ErrorKind::UnexpectedEof {
        tracing::debug!(peer, %error, "a connection was closed before it was opened");
    } else if SAMPLER.takes() {
        tracing::info!(target: "fencegate::access", peer, %error, "a connection could not be opened");
    }
}

/// One for the process: a flood comes over many connections.
static SAMPLER: Sampler = Sampler {
    second: AtomicU64::new(0),
    count: AtomicU64::new(0),
};

/// Bounds how many refusals are logged under a flood.
struct Sampler {
    /// The second that is being counted, and how many it had.
    second: AtomicU64,
    count: AtomicU64,
}

impl Sampler {
    fn takes(&self) -> bool {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        if self.second.swap(now, Ordering::Relaxed) != now {
            self.count.store(0, Ordering::Relaxed);
        }
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        count < REFUSALS_LOGGED || count.is_multiple_of(100)
    }
}

pin_project! {
    /// A response's body that ends its access line.
    pub struct AccessBody {
        #[pin]
        body: ResponseBody,
        line: Box<Line>,
    }
}

impl Body for AccessBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                this.line.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                if this.body.is_end_stream() {
                    this.line.end(false);
                }
            }
            None => this.line.end(false),
            Some(Err(_)) => this.line.end(true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_clients_is_escaped_and_cut() {
        let said = |text: &str| Escaped(text).to_string();
        assert_eq!(said(""), "");
        assert_eq!(said("objects/a b~\""), "objects/a b~\"");
        assert_eq!(said("a\n\u{1b}b\u{7f}ü"), r"a\u{a}\u{1b}b\u{7f}\u{fc}");
        assert_eq!(said("ü"), r"\u{fc}");
        for plain in [0, 1, 254, 255] {
            let whole = "x".repeat(plain) + &"ü".repeat(256 - plain);
            let escaped = "x".repeat(plain) + &r"\u{fc}".repeat(256 - plain);
            assert_eq!(said(&whole), escaped);
            for more in ["x", "ü", "\n"] {
                assert_eq!(said(&(whole.clone() + more)), escaped.clone() + "…");
            }
        }
        assert_eq!(said(&"x".repeat(256)), "x".repeat(256));
        assert_eq!(said(&"x".repeat(257)), "x".repeat(256) + "…");
    }
}
