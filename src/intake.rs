//! The first filter: HTTP that hops could read in two ways, and bodies that are too large.

use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use fencegate_filters::guard::{self, GuardedNames};
use fencegate_filters::limits::check_length;
use fencegate_filters::route::Checked;
use fencegate_filters::{Peer, Reason, Refusal};
use http::header::{CONTENT_LENGTH, HOST};
use http::{Request, Response, Version};
use tower_layer::Layer;
use tower_service::Service;

use crate::body::{ClientBody, RequestBody};
use crate::wire::{CUT_TARGET, HeadLimits, MAX_METHOD_BYTES};

/// What is checked before anything else is decided; a reload puts another in its place.
#[derive(Debug)]
pub struct Intake {
    /// Headers that no hop may be asked to delete.
    pub guarded: GuardedNames,
    /// The largest request body (`limits.body`).
    pub body_limit: Option<u64>,
    /// How large heads may be, of which the bytes were not seen.
    pub heads: HeadLimits,
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
            host: None,
        }
    }
}

/// The longest Host that is remembered. With zeros in front of its port a right one may be as long as a head: such a one is checked each time, and
/// does not stay in memory.
const LONGEST_KNOWN_HOST: usize = 300;

/// The service of [`IntakeLayer`], of one connection.
#[derive(Clone)]
pub struct IntakeService<S> {
    intake: Arc<ArcSwap<Intake>>,
    inner: S,
    /// The Host that was last found right by itself: most connections send no other.
    host: Option<Box<[u8]>>,
}

impl<S, RB> Service<Request<ClientBody>> for IntakeService<S>
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

    fn call(&mut self, request: Request<ClientBody>) -> Self::Future {
        let intake = self.intake.load();
        let limit = intake.body_limit;
        let checked = check(&request, &intake, &mut self.host)
            .and_then(|()| check_length(request.headers(), limit));
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
fn check<B>(
    request: &Request<B>,
    intake: &Intake,
    known: &mut Option<Box<[u8]>>,
) -> Result<(), Refusal> {
    let headers = request.headers();
    if request.version() == Version::HTTP_2 {
        check_fields(request, &intake.heads)?;
    }
    guard::check_target(request.method(), request.uri())?;
    let peer = request.extensions().get::<Peer>();
    guard::check_scheme(request.version(), request.uri(), peer)?;
    if !is_host(known.as_deref(), request) {
        guard::check_host(request.version(), request.uri(), headers)?;
        let line = alone(request).filter(|line| line.len() <= LONGEST_KNOWN_HOST);
        *known = line.map(Box::from);
    }
    guard::check_names(headers, &intake.guarded)?;
    guard::check_expect(headers)
}

/// Whether the request names its host by this line and nothing else.
fn is_host<B>(known: Option<&[u8]>, request: &Request<B>) -> bool {
    known.is_some() && alone(request) == known
}

/// The one line that names the request's host, where there is nothing that has to agree with it.
fn alone<B>(request: &Request<B>) -> Option<&[u8]> {
    let mut lines = request.headers().get_all(HOST).iter();
    let line = lines.next()?;
    (lines.next().is_none() && request.uri().authority().is_none()).then_some(line.as_bytes())
}

/// What the guard checks on the bytes of an HTTP/1 head, on the fields of an HTTP/2 one.
fn check_fields<B>(request: &Request<B>, limits: &HeadLimits) -> Result<(), Refusal> {
    let headers = request.headers();
    let target = request
        .uri()
        .path_and_query()
        .map_or("", |target| target.as_str());
    if target.len() > limits.target_bytes {
        return Err(Refusal::new(
            Reason::UriTooLong,
            "The request target is too long.",
        ));
    }
    // As much as the line of HTTP/1 would take.
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len())
        .sum();
    if bytes + target.len() > limits.header_bytes || headers.len() > limits.header_count {
        return Err(Refusal::new(
            Reason::HeadersTooLarge,
            "The request's header is too large.",
        ));
    }
    if headers.contains_key(CUT_TARGET) {
        return Err(bad("The request target has a fragment."));
    }
    let visible = target.bytes().all(|byte| byte.is_ascii_graphic());
    if !visible || !(target.starts_with('/') || target == "*") {
        return Err(bad(
            "The request target is no path, or has a character that is not allowed there.",
        ));
    }
    if request.method().as_str().len() > MAX_METHOD_BYTES {
        return Err(bad("The method is too long."));
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        if lengths.next().is_some() {
            return Err(bad("The request has more than one Content-Length header."));
        }
        // The codec holds the body to it, and takes an empty one for zero.
        if length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit) {
            return Err(bad("Content-Length is not a decimal number."));
        }
    }
    Ok(())
}

fn bad(detail: &'static str) -> Refusal {
    Refusal::new(Reason::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use http::header::HOST;

    use super::*;

    fn intake() -> Intake {
        Intake {
            guarded: GuardedNames::new([], []),
            body_limit: None,
            heads: HeadLimits::default(),
        }
    }

    fn request(target: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_host_that_is_too_long_is_right_each_time_and_not_remembered() {
        let intake = intake();
        let mut known = None;
        let long = format!("storage:{:0>600}", 80);
        for host in ["storage", &long, &long, "storage"] {
            assert!(check(&request("/a", &[host]), &intake, &mut known).is_ok());
            let kept = known.as_deref().map(<[u8]>::len);
            assert_eq!(kept, (host == "storage").then_some(host.len()));
        }
    }

    #[test]
    fn a_host_that_was_right_spares_no_other_one_its_check() {
        let intake = intake();
        let mut known = None;
        let mut reads = |target: &str, hosts: &[&str]| {
            check(&request(target, hosts), &intake, &mut known).is_ok()
        };
        for _ in 0..2 {
            assert!(reads("/a", &["storage"]));
            assert!(reads("/b", &["storage"]));
            assert!(!reads("/a", &["storage", "storage"]));
            assert!(reads("/a", &["storage"]));
            assert!(!reads("/a", &["storage", "other"]));
            assert!(!reads("/a", &["storage,other"]));
            assert!(!reads("/a", &[]));
            assert!(!reads("http://other/a", &["storage"]));
            assert!(reads("http://storage/a", &["storage"]));
            assert!(reads("/a", &["other"]));
        }
    }
}
