//! The admin listener: health, metrics, what is known of keys, and what is done to their marks.
//!
//! It is meant for loopback. So that no web page can reach it through a browser on this machine,
//! requests that name another host or come from another site are refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fencegate_filters::fence::KeyView;
use fencegate_filters::problem::{Rendering, respond};
use fencegate_filters::store::Binding;
use fencegate_filters::{Key, Reason, Refusal};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::api::{
    Answer, Callers, HEADER_TIMEOUT, Page, blocking, collect, json, key_of, not_allowed, serve,
    text,
};
use crate::config::TokenHash;
use crate::gateway::Gateway;
use crate::marks::{self, Caller};
use crate::net::Stream;
use crate::route::key_meant;

/// The most connections at once.
const MOST_CONNECTIONS: usize = 256;

/// The admin API.
pub struct Admin {
    gateway: Arc<Gateway>,
    callers: Callers,
}

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
            callers: Callers::new("admin", tokens, host),
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
                    tracing::warn!(%error, "an admin connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let admin = Arc::clone(&self);
            tokio::spawn(async move {
                let door = &admin.gateway.admin_door;
                let stream = door
                    .enter(Stream::Tcp(stream), Some(peer.ip()), HEADER_TIMEOUT)
                    .await;
                let Some(stream) = stream else {
                    return drop(place);
                };
                if let Some(mut io) = serve(stream, |call| admin.answer(call, peer)).await {
                    io.finish().await;
                }
                drop(place);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let rendering = Rendering::of(request.method(), request.headers());
        match self.route(request, peer).await {
            Ok(response) => response,
            Err(refusal) => respond::<Bytes>(&refusal, &rendering).map(Full::new),
        }
    }

    async fn route(&self, request: Request<Incoming>, peer: SocketAddr) -> Answer {
        let (request, body) = request.into_parts();
        if request.uri.authority().is_some() {
            return Err(Refusal::new(
                Reason::BadRequest,
                "Send the path alone as the target.",
            ));
        }
        self.callers.check_site(&request.headers)?;
        let path = request.uri.path();
        let health = matches!(path, "/livez" | "/readyz");
        let bearer = match health {
            true => None,
            false => self.callers.check_token(&request.headers)?,
        };
        let known =
            health || path == "/metrics" || path == "/v1/keys" || path.starts_with("/v1/keys/");
        if !known {
            return Err(unknown());
        }
        if let Some((encoded, action)) = action(path) {
            let caller = Caller {
                peer: Some(peer),
                token: bearer,
            };
            let key = key_of(encoded)?;
            let body = match (action, &request.method) {
                ("raise" | "reset", &Method::POST) => collect(body).await?,
                ("raise" | "reset", _) => return Err(not_allowed("POST")),
                _ => return Err(unknown()),
            };
            let key = match action {
                // To fence a name that no request has would fence nothing.
                "raise" => key_meant(&self.gateway.routes.load(), &key)?,
                _ => key,
            };
            let done = match action {
                "raise" => marks::raise(&self.gateway, &key, &body, &caller).await,
                _ => marks::reset(&self.gateway, &key, &body, &caller).await,
            };
            done?;
            return self.key(key).await;
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Err(not_allowed("GET, HEAD"));
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
                let metrics = self.gateway.metrics.render(&self.gateway);
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                Ok(text(StatusCode::OK, kind, metrics))
            }
            "/v1/keys" => self.list(request.uri.query().unwrap_or_default()).await,
            _ => {
                let encoded = path.strip_prefix("/v1/keys/").unwrap_or_default();
                self.key(key_of(encoded)?).await
            }
        }
    }

    async fn list(&self, query: &str) -> Answer {
        let Page {
            prefix,
            after,
            limit,
        } = Page::read(query)?;
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

    async fn key(&self, key: Key) -> Answer {
        let none = || Refusal::new(Reason::NoRoute, "This key has no mark.");
        if key.is_internal() {
            return Err(none());
        }
        let fence = self.gateway.fence.clone();
        match blocking(move || fence.key(&key)).await? {
            Some(view) => json(&KeyAnswer::from(view)),
            None => Err(none()),
        }
    }
}

/// What is to be done to a key, where the path says so.
fn action(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/v1/keys/")?.split_once('/')
}

fn unknown() -> Refusal {
    Refusal::new(
        Reason::NoRoute,
        "There is /livez, /readyz, /metrics, /v1/keys, /v1/keys/{key}, /v1/keys/{key}/raise and /v1/keys/{key}/reset; a key's slashes are written %2F.",
    )
}
