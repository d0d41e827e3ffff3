//! The admin listener: health, metrics, and what is known of keys.
//!
//! It is meant for loopback. So that no web page can reach it through a browser on this machine,
//! requests that name another host or come from another site are refused.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fencegate_filters::fence::KeyView;
use fencegate_filters::key::normalize_host;
use fencegate_filters::problem::{Rendering, respond};
use fencegate_filters::store::Binding;
use fencegate_filters::{Key, Reason, Refusal};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::config::TokenHash;
use crate::gateway::Gateway;

/// The most keys that one listing gives.
const MOST_LISTED: usize = 1000;

/// The most connections at once.
const MOST_CONNECTIONS: usize = 256;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The admin API.
pub struct Admin {
    gateway: Arc<Gateway>,
    tokens: Vec<TokenHash>,
    /// Hosts by which it may be asked beside loopback: the one that it is bound to.
    host: Option<String>,
}

type Answer = Result<Response<Full<Bytes>>, Refusal>;

#[derive(Serialize)]
struct KeyAnswer {
    key: String,
    mark: String,
    holder: Option<String>,
    in_flight: usize,
    waiting: usize,
    unsettled: usize,
}

#[derive(Serialize)]
struct Listing {
    keys: Vec<KeyAnswer>,
    next: Option<String>,
}

impl From<KeyView> for KeyAnswer {
    fn from(view: KeyView) -> Self {
        Self {
            key: view.key.to_string(),
            mark: view.mark.to_string(),
            holder: match view.holder {
                Binding::Holder(name) => Some(name.to_string()),
                Binding::Unbound | Binding::Nobody => None,
            },
            in_flight: view.in_flight,
            waiting: view.waiting,
            unsettled: view.unsettled,
        }
    }
}

impl Admin {
    /// The API over `gateway`. Without `tokens` nobody has to prove who they are.
    pub fn new(gateway: Arc<Gateway>, tokens: Vec<TokenHash>, host: &str) -> Self {
        Self {
            gateway,
            tokens,
            host: normalize_host(host).ok().map(|host| host.into_owned()),
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
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "an admin connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let admin = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let admin = Arc::clone(&admin);
                    async move { Ok::<_, Infallible>(admin.answer(&request).await) }
                });
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                drop(place);
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match self.route(request).await {
            Ok(response) => response,
            Err(refusal) => {
                let rendering = Rendering::of(request.method(), request.headers());
                respond::<Bytes>(&refusal, &rendering).map(Full::new)
            }
        }
    }

    async fn route(&self, request: &Request<Incoming>) -> Answer {
        if request.uri().authority().is_some() {
            return Err(Refusal::new(
                Reason::BadRequest,
                "Send the path alone as the target.",
            ));
        }
        self.check_site(request.headers())?;
        let path = request.uri().path();
        let health = matches!(path, "/livez" | "/readyz");
        if !health {
            self.check_token(request.headers())?;
        }
        let known =
            health || path == "/metrics" || path == "/v1/keys" || path.starts_with("/v1/keys/");
        if !known {
            return Err(Refusal::new(
                Reason::NoRoute,
                "There is /livez, /readyz, /metrics, /v1/keys and /v1/keys/{key}.",
            ));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let refusal = Refusal::new(
                Reason::MethodNotAllowed,
                "Only GET and HEAD are known here.",
            );
            return Err(refusal.with_allow(Arc::new(HeaderValue::from_static("GET, HEAD"))));
        }
        match path {
            "/livez" => Ok(text(
                StatusCode::OK,
                "text/plain; charset=utf-8",
                "ok\n".into(),
            )),
            "/readyz" if self.gateway.ready.load(Ordering::SeqCst) => Ok(text(
                StatusCode::OK,
                "text/plain; charset=utf-8",
                "ok\n".into(),
            )),
            "/readyz" => Err(Refusal::new(
                Reason::ShuttingDown,
                "Not ready: starting or stopping.",
            )),
            "/metrics" => {
                let metrics = self.gateway.metrics.render(&self.gateway.fence);
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                Ok(text(StatusCode::OK, kind, metrics))
            }
            "/v1/keys" => self.list(request.uri().query().unwrap_or_default()).await,
            _ => {
                self.key(path.strip_prefix("/v1/keys/").unwrap_or_default())
                    .await
            }
        }
    }

    /// A page on another site must not get here, be it by a request across sites or by a name that
    /// it makes resolve to this machine.
    fn check_site(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let forbidden = |detail: &'static str| Refusal::new(Reason::Forbidden, detail);
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        let host = host.filter(|_| hosts.next().is_none());
        if !host.is_some_and(|host| self.is_own(host)) {
            return Err(forbidden(
                "The admin API answers only to localhost, to IP addresses, and to the host it is bound to.",
            ));
        }
        let origin = headers.get(header::ORIGIN).map(|origin| {
            let origin = origin.to_str().unwrap_or_default();
            origin.split_once("://").map(|pair| pair.1)
        });
        if origin.is_some_and(|origin| origin.is_none() || origin != host) {
            return Err(forbidden("The admin API answers no other site."));
        }
        let cross_site = headers
            .get("sec-fetch-site")
            .is_some_and(|site| site != "same-origin" && site != "none");
        if cross_site {
            return Err(forbidden("The admin API answers no other site."));
        }
        Ok(())
    }

    fn is_own(&self, host: &str) -> bool {
        let Ok(host) = normalize_host(host) else {
            return false;
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || bare.parse::<IpAddr>().is_ok()
            || self.host.as_deref() == Some(&*host)
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
            .unwrap_or_default();
        let hash: [u8; 32] = Sha256::digest(sent).into();
        // All are compared, so that the time tells nothing of which one was near.
        let mut known = subtle::Choice::from(0);
        for token in &self.tokens {
            known |= token.as_bytes().ct_eq(&hash);
        }
        if bool::from(known) {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::Forbidden,
            "Send one of the bearer tokens of admin.tokens in Authorization.",
        ))
    }

    async fn list(&self, query: &str) -> Answer {
        let (mut prefix, mut after, mut limit) = (String::new(), None, 100);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match name {
                "prefix" => prefix = value,
                "after" => after = Some(value),
                "limit" => {
                    limit = value
                        .parse()
                        .ok()
                        .filter(|limit| (1..=MOST_LISTED).contains(limit))
                        .ok_or_else(|| {
                            Refusal::new(Reason::BadRequest, "limit is a number from 1 to 1000.")
                        })?;
                }
                _ => {
                    return Err(Refusal::new(
                        Reason::BadRequest,
                        "The parameters are prefix, after and limit.",
                    ));
                }
            }
        }
        let fence = self.gateway.fence.clone();
        // One more than asked for tells whether there is a next page.
        let mut views = blocking(move || fence.keys(&prefix, after.as_deref(), limit + 1)).await?;
        let more = views.len() > limit;
        views.truncate(limit);
        let next = views
            .last()
            .filter(|_| more)
            .map(|view| view.key.to_string());
        let keys = views.into_iter().map(KeyAnswer::from).collect();
        json(&Listing { keys, next })
    }

    async fn key(&self, encoded: &str) -> Answer {
        let name = decode(encoded)?;
        if encoded.contains('/') || !name.contains('/') {
            return Err(Refusal::new(
                Reason::BadRequest,
                "A key is NAMESPACE/KEY, percent-encoded into one segment: objects%2F42.",
            ));
        }
        let key = Key::from_text(&name);
        let fence = self.gateway.fence.clone();
        match blocking(move || fence.key(&key)).await? {
            Some(view) => json(&KeyAnswer::from(view)),
            None => Err(Refusal::new(Reason::NoRoute, "This key has no mark.")),
        }
    }
}

/// Runs what reads the disk away from the listener's thread.
async fn blocking<T, E>(read: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Refusal>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let unavailable = || {
        Refusal::new(
            Reason::StoreUnavailable,
            "The marks could not be read; the log says why.",
        )
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => {
            tracing::error!(%error, "marks could not be read for the admin API");
            Err(unavailable())
        }
        Err(_) => Err(unavailable()),
    }
}

fn decode(encoded: &str) -> Result<String, Refusal> {
    let decoded = percent_decode_str(encoded).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Refusal::new(Reason::BadRequest, "That is not UTF-8, percent-encoded."))
}

fn json(value: &impl Serialize) -> Answer {
    let text_of = serde_json::to_string(value)
        .map_err(|_| Refusal::new(Reason::StoreUnavailable, "The answer could not be written."))?;
    Ok(text(StatusCode::OK, "application/json", text_of + "\n"))
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}
