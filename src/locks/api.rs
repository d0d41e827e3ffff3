//! The lock service over HTTP, on a listener of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fencegate_filters::lock::Lease;
use fencegate_filters::problem::{Rendering, respond};
use fencegate_filters::{Key, Reason, Refusal, Token};
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Number;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::cell::Grant;
use super::delivery::{Delivery, Watched};
use super::events::Watch;
use super::service::{Acquire, Locks};
use super::view::View;
use crate::api::{
    Answer, Callers, HEADER_TIMEOUT, Page, blocking, collect, json, key_of, not_allowed, read,
    serve, text,
};
use crate::config::{Address, TokenHash};
use crate::net::Stream;
use crate::server::Door;

/// The most connections at once: everybody who waits has one.
const MOST_CONNECTIONS: usize = 16_384;

static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What describes the API to programs.
const OPENAPI: &str = include_str!("openapi.json");

/// How long a lease may last.
const TTL_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;

/// How long somebody may wait in the queue.
const MOST_WAIT_MS: u64 = 3_600_000;

/// How long the name of a holder or of a request may be.
const MOST_NAME: usize = 128;

/// The calls of the lock service.
pub struct Api {
    locks: Arc<Locks>,
    callers: Callers,
    door: Arc<Door>,
}

/// Grants that a connection is to be told of.
type Told = Delivery<Grant>;

/// Most answers are whole; events go on.
type ApiBody = Either<Full<Bytes>, Watch>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AcquireCall {
    holder: String,
    #[serde(deserialize_with = "whole")]
    ttl_ms: u64,
    #[serde(default, deserialize_with = "whole")]
    wait_ms: u64,
    #[serde(default)]
    request_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RenewCall {
    token: String,
    #[serde(deserialize_with = "whole")]
    ttl_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseCall {
    token: String,
}

/// A whole number, however it is written: to JSON Schema `1000.0` is one, and some languages know no
/// other numbers.
fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let number = Number::deserialize(from)?;
    let written = || {
        let number = number.as_f64().filter(|number| number.fract() == 0.0)?;
        format!("{number:.0}").parse().ok()
    };
    let whole = number.as_u64().or_else(written);
    whole.ok_or_else(|| D::Error::custom("expected a whole number that is not negative"))
}

#[derive(Serialize)]
struct LeaseAnswer<'a> {
    key: &'a str,
    token: String,
    holder: &'a str,
    ttl_ms: u64,
}

#[derive(Serialize)]
struct LockAnswer {
    key: String,
    holder: Option<String>,
    token: Option<String>,
    expires_in_ms: Option<u64>,
    waiting: usize,
}

#[derive(Serialize)]
struct Listing {
    locks: Vec<LockAnswer>,
    next: Option<String>,
}

impl From<View> for LockAnswer {
    fn from(view: View) -> Self {
        let lease = view.lease.as_ref();
        Self {
            key: view.key.to_string(),
            holder: lease.map(|lease| lease.holder.to_string()),
            token: lease.map(|lease| lease.token.to_string()),
            expires_in_ms: view.expires_in.map(millis),
            waiting: view.waiting,
        }
    }
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    OpenApi,
    List,
    View,
    Events,
    Acquire,
    Renew,
    Release,
}

impl Call {
    /// Which call a path is, and of which lock, as that is written there.
    fn of(path: &str) -> Result<(Self, Option<&str>), Refusal> {
        match path {
            "/openapi.json" => return Ok((Self::OpenApi, None)),
            "/v1/locks" => return Ok((Self::List, None)),
            _ => {}
        }
        let rest = path.strip_prefix("/v1/locks/").ok_or_else(unknown)?;
        let (key, call) = match rest.split_once('/') {
            None => (rest, Self::View),
            Some((key, "events")) => (key, Self::Events),
            Some((key, "acquire")) => (key, Self::Acquire),
            Some((key, "renew")) => (key, Self::Renew),
            Some((key, "release")) => (key, Self::Release),
            Some(_) => return Err(unknown()),
        };
        Ok((call, Some(key)))
    }

    const fn methods(self) -> &'static [Method] {
        match self {
            Self::OpenApi | Self::List | Self::View | Self::Events => &[Method::GET, Method::HEAD],
            Self::Acquire | Self::Renew | Self::Release => &[Method::POST],
        }
    }

    const fn allow(self) -> &'static str {
        match self {
            Self::OpenApi | Self::List | Self::View | Self::Events => "GET, HEAD",
            Self::Acquire | Self::Renew | Self::Release => "POST",
        }
    }
}

impl Api {
    /// The calls over `locks`, for whoever comes in by `door`. Without `tokens` nobody has to prove
    /// who they are, and on loopback without TLS the name by which it is asked is looked at instead.
    pub fn new(
        locks: Arc<Locks>,
        tokens: Vec<TokenHash>,
        address: &Address,
        door: Arc<Door>,
    ) -> Self {
        // A page that makes a name resolve to this machine has no certificate for that name.
        let by_any_name = !tokens.is_empty() || !address.is_loopback() || door.has_tls();
        let callers = Callers::new("locks", tokens, address.host());
        Self {
            locks,
            callers: match by_any_name {
                true => callers.by_any_name(),
                false => callers,
            },
            door,
        }
    }

    /// Serves `listener` until the process ends.
    ///
    /// # Errors
    ///
    /// Where the listener can't be used at all.
    pub async fn serve(self: Arc<Self>, listener: std::net::TcpListener) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return Ok(());
            };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the locks could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let api = Arc::clone(&self);
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let door = &api.door;
                let stream = door
                    .enter(Stream::Tcp(stream), Some(peer.ip()), HEADER_TIMEOUT)
                    .await;
                if let Some(stream) = stream {
                    api.connection(stream).await;
                }
                drop(place);
            });
        }
    }

    async fn connection(&self, stream: Stream) {
        let told = Arc::new(Told::default());
        let stream = Watched::new(stream, Arc::clone(&told));
        let served = serve(stream, |call| self.answer(call, &told)).await;
        told.ended();
        if let Some(mut io) = served {
            io.finish().await;
        }
    }

    async fn answer(&self, request: Request<Incoming>, told: &Told) -> Response<ApiBody> {
        let _calling = self.locks.calling();
        let rendering = Rendering::of(request.method(), request.headers());
        match self.route(request, told).await {
            Ok(response) => response,
            Err(refusal) => {
                let response = respond::<Bytes>(&refusal, &rendering);
                response.map(|body| Either::Left(Full::new(body)))
            }
        }
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        told: &Told,
    ) -> Result<Response<ApiBody>, Refusal> {
        let (request, body) = request.into_parts();
        if request.uri.authority().is_some() {
            return Err(Refusal::new(
                Reason::BadRequest,
                "Send the path alone as the target.",
            ));
        }
        self.callers.check_site(&request.headers)?;
        self.callers.check_token(&request.headers)?;
        let headers = &request.headers;
        let (call, key) = Call::of(request.uri.path())?;
        // What can't be done with any lock is said before the name of this one is looked at.
        if !call.methods().contains(&request.method) {
            return Err(not_allowed(call.allow()));
        }
        let named = key.map(key_of).transpose()?;
        let key = named
            .map(|named| match call {
                // What is held by a name of older rules can be given back.
                Call::Acquire => self.locks.key_meant(&named),
                _ => Ok(self.locks.key_meant(&named).unwrap_or(named)),
            })
            .transpose()?;
        let answer = match (call, key) {
            (Call::OpenApi, _) => Ok(text(StatusCode::OK, "application/json", OPENAPI.into())),
            (Call::List, _) => self.list(request.uri.query().unwrap_or_default()).await,
            (_, None) => Err(unknown()),
            (Call::View, Some(key)) => self.view(&key).await,
            (Call::Events, Some(key)) => return self.events(&key, &request).await,
            (Call::Acquire, Some(key)) => {
                let body = json_of(headers, body).await?;
                self.acquire(&key, &body, told).await
            }
            (Call::Renew, Some(key)) => self.renew(&key, &json_of(headers, body).await?).await,
            (Call::Release, Some(key)) => self.release(&key, &json_of(headers, body).await?).await,
        };
        answer.map(|response| response.map(Either::Left))
    }

    async fn events(&self, key: &Key, request: &Parts) -> Result<Response<ApiBody>, Refusal> {
        let again = request.headers.contains_key(&LAST_EVENT_ID);
        let watch = self.locks.watch(key, again).await?;
        let mut response = Response::new(match request.method == Method::HEAD {
            true => Either::Left(Full::default()),
            false => Either::Right(watch),
        });
        let headers = response.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, "text/event-stream"),
            (CACHE_CONTROL, "no-store"),
            // A connection that has had events is not used for anything else.
            (CONNECTION, "close"),
            // nginx would keep events back until it has many of them.
            (HeaderName::from_static("x-accel-buffering"), "no"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Ok(response)
    }

    async fn acquire(&self, key: &Key, body: &[u8], told: &Told) -> Answer {
        let example = r#"{"holder": "pod-7", "ttl_ms": 10000, "wait_ms": 60000}"#;
        let call: AcquireCall = read(body, example)?;
        name(&call.holder, "holder")?;
        if let Some(id) = &call.request_id {
            name(id, "request_id")?;
        }
        if call.wait_ms > MOST_WAIT_MS {
            let detail = format!("\"wait_ms\" is {MOST_WAIT_MS} at most.");
            return Err(Refusal::new(Reason::BadRequest, detail));
        }
        let acquire = Acquire {
            holder: call.holder.into(),
            id: call.request_id.map(Into::into),
            ttl: ttl(call.ttl_ms)?,
            wait: Duration::from_millis(call.wait_ms),
        };
        let (lease, grant) = self.locks.acquire(key, &acquire).await?;
        let answer = lease_answer(key, &lease);
        told.telling(grant);
        answer
    }

    async fn renew(&self, key: &Key, body: &[u8]) -> Answer {
        let call: RenewCall = read(body, r#"{"token": "35", "ttl_ms": 10000}"#)?;
        let lease = self
            .locks
            .renew(key, token(&call.token)?, ttl(call.ttl_ms)?)
            .await?;
        lease_answer(key, &lease)
    }

    async fn release(&self, key: &Key, body: &[u8]) -> Answer {
        let call: ReleaseCall = read(body, r#"{"token": "35"}"#)?;
        self.locks.release(key, token(&call.token)?).await?;
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }

    async fn view(&self, key: &Key) -> Answer {
        match self.locks.view(key).await? {
            Some(view) => json(&LockAnswer::from(view)),
            None => Err(Refusal::new(
                Reason::NoRoute,
                "This lock has never been held.",
            )),
        }
    }

    async fn list(&self, query: &str) -> Answer {
        let Page {
            prefix,
            after,
            limit,
        } = Page::read(query)?;
        let locks = Arc::clone(&self.locks);
        // One more than asked for tells whether there is a next page.
        let list = move || locks.list(&prefix, after.as_deref(), limit + 1);
        let mut views = blocking(list).await?;
        let more = views.len() > limit;
        views.truncate(limit);
        let next = views.last().filter(|_| more);
        let next = next.map(|view| view.key.to_string());
        let locks = views.into_iter().map(LockAnswer::from).collect();
        json(&Listing { locks, next })
    }
}

/// The body of a call, which is JSON.
///
/// A type that says so is not insisted on: `curl -d` says `application/x-www-form-urlencoded`
/// whatever it sends, and pages of other sites are kept out by their origin.
async fn json_of(headers: &HeaderMap, body: Incoming) -> Result<Bytes, Refusal> {
    let unfit = |detail: &'static str| Refusal::new(Reason::UnsupportedMediaType, detail);
    let kind = headers.get(CONTENT_TYPE).map(|kind| {
        let kind = kind.to_str().unwrap_or_default();
        let kind = kind.split_once(';').map_or(kind, |parts| parts.0);
        kind.trim().to_ascii_lowercase()
    });
    let fits = |kind: &str| {
        let json = kind == "application/json" || kind.ends_with("+json");
        json || kind == "application/x-www-form-urlencoded"
    };
    if kind.is_some_and(|kind| !fits(&kind)) {
        return Err(unfit("Send the body as application/json."));
    }
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(unfit("Send the body without a Content-Encoding."));
    }
    collect(body).await
}

fn lease_answer(key: &Key, lease: &Lease) -> Answer {
    json(&LeaseAnswer {
        key: key.as_str(),
        token: lease.token.to_string(),
        holder: &lease.holder,
        ttl_ms: millis(lease.ttl),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn ttl(ms: u64) -> Result<Duration, Refusal> {
    if TTL_MS.contains(&ms) {
        return Ok(Duration::from_millis(ms));
    }
    let detail = format!(
        "\"ttl_ms\" is a number from {} to {}.",
        TTL_MS.start(),
        TTL_MS.end()
    );
    Err(Refusal::new(Reason::BadRequest, detail))
}

fn token(text: &str) -> Result<Token, Refusal> {
    text.parse()
        .map_err(|error| Refusal::new(Reason::MalformedToken, format!("In \"token\", {error}.")))
}

fn name(text: &str, field: &str) -> Result<(), Refusal> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if visible && (1..=MOST_NAME).contains(&text.len()) {
        return Ok(());
    }
    let detail = format!("\"{field}\" is 1 to {MOST_NAME} visible ASCII characters.");
    Err(Refusal::new(Reason::BadRequest, detail))
}

fn unknown() -> Refusal {
    Refusal::new(
        Reason::NoRoute,
        "There is /v1/locks, /v1/locks/{key}, and /v1/locks/{key}/acquire, /renew, /release and /events; a key's slashes are written %2F. /openapi.json tells more.",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_call_is_in_the_document_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let mut found = Vec::new();
        for (path, item) in paths {
            let filled = path.replace("{key}", "objects%2F42");
            let (call, key) = Call::of(&filled).unwrap();
            assert_eq!(key.is_some(), path.contains("{key}"), "{path}");
            for method in ["get", "put", "post", "delete", "patch"] {
                let name = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                let known = call.methods().contains(&name);
                assert_eq!(item.get(method).is_some(), known, "{method} {path}");
            }
            found.push(call);
        }
        for call in [
            Call::OpenApi,
            Call::List,
            Call::View,
            Call::Events,
            Call::Acquire,
            Call::Renew,
            Call::Release,
        ] {
            // A new one is to be added to both.
            match call {
                Call::OpenApi | Call::List | Call::View | Call::Events => {}
                Call::Acquire | Call::Renew | Call::Release => {}
            }
            assert!(found.contains(&call), "{call:?} is not in the document");
            let allow: Vec<_> = call.methods().iter().map(Method::as_str).collect();
            assert_eq!(call.allow(), allow.join(", "));
        }
    }

    #[test]
    fn the_bounds_in_the_document_are_those_of_the_calls() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let schemas = &document["components"]["schemas"];
        let acquire = &schemas["Acquire"]["properties"];
        for ttl in [
            &acquire["ttl_ms"],
            &schemas["Renew"]["properties"]["ttl_ms"],
        ] {
            assert_eq!(ttl["minimum"], *TTL_MS.start());
            assert_eq!(ttl["maximum"], *TTL_MS.end());
        }
        assert_eq!(acquire["wait_ms"]["maximum"], MOST_WAIT_MS);
        let pattern = schemas["Name"]["pattern"].as_str().unwrap();
        assert!(
            pattern.ends_with(&format!("{{1,{MOST_NAME}}}$")),
            "{pattern}"
        );
    }
}
