//! Active health checks: each address of an upstream is asked now and then whether it is well.
//!
//! A check is a GET over a connection of its own. Any answer of the 200 or 300 class in time is a
//! good one. Three in a row have to fail for an address to be taken for sick, and two to succeed for
//! well again. Until the first one has ended it is taken for well, and that one counts at once.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;

use fencegate_filters::StripLayer;
use http::{HeaderValue, Request, Response, StatusCode, header};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::upload::Upload;
use super::{Place, Received, Upstream};
use crate::body::RequestBody;
use crate::config;

/// The checks of some upstreams. They stop when it is dropped.
pub(crate) struct Checks(#[expect(dead_code, reason = "it is there to be dropped")] JoinSet<()>);

/// Begins to check those upstreams that want it, the first time at once.
pub(crate) fn begin(upstreams: &BTreeMap<String, Arc<Upstream>>) -> Checks {
    let mut checks = JoinSet::new();
    for upstream in upstreams.values() {
        let Some(health) = &upstream.health else {
            continue;
        };
        for number in 0..upstream.places.len() {
            checks.spawn(watch(Arc::clone(upstream), number, health.clone()));
        }
    }
    Checks(checks)
}

async fn watch(upstream: Arc<Upstream>, number: usize, health: config::Health) {
    let Some(place) = upstream.places.get(number) else {
        return;
    };
    let mut ticks = tokio::time::interval(health.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // One is over before the next one begins.
        let check = check(&upstream, number, place, &health);
        let checked = tokio::time::timeout(health.interval, check).await;
        let checked = checked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if !upstream.rotation().checked(number, checked.is_ok()) {
            continue;
        }
        let (name, address) = (&upstream.name, &place.url);
        match checked {
            Ok(()) => tracing::info!(upstream = %name, %address, "the address is healthy again"),
            Err(error) => {
                tracing::warn!(upstream = %name, %address, %error, "the address is not healthy: it is left alone");
            }
        }
    }
}

async fn check(
    upstream: &Upstream,
    number: usize,
    place: &Place,
    health: &config::Health,
) -> io::Result<()> {
    let limit = upstream.connect_timeout.min(health.interval);
    let mut conn = upstream.connect_to(number, place, limit).await?;
    let body = RequestBody::Spooled(Box::default());
    let body = Upload::new(body, Arc::clone(&conn.wire), StripLayer::new());
    let mut request = Request::new(body);
    *request.uri_mut() = health.path.clone().into();
    let host = HeaderValue::from_str(&place.address.authority()).map_err(io::Error::other)?;
    request.headers_mut().insert(header::HOST, host);
    let agent = HeaderValue::from_static("fencegate");
    request.headers_mut().insert(header::USER_AGENT, agent);
    conn.wire.begin(true, false);
    let mut answer = conn.send(request);
    let response: Option<Response<Received>> = poll_fn(|cx| {
        conn.drive(cx);
        match conn.poll_answer(&mut answer, cx) {
            Poll::Ready(response) => Poll::Ready(response.ok()),
            Poll::Pending if conn.is_closed() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    match response.map(|response| response.status()) {
        Some(status) if status.is_success() || status.is_redirection() => Ok(()),
        Some(status) => Err(answered(status)),
        None => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

fn answered(status: StatusCode) -> io::Error {
    io::Error::other(format!("it answered {}", status.as_u16()))
}
