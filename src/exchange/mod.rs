//! The exchange of one admitted request with its upstream.
//!
//! The gateway owns it, not the client's connection: see `flight.rs`. A request is sent again only
//! where the codec says that not a byte of it was written, once, on a fresh connection, and after
//! it has been compared with the mark once more.

mod flight;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::fence::{Admission, Permit};
use fencegate_filters::{Outcome, Reason, Refusal, StripLayer};
use http::{Request, Response, StatusCode};
use http_body::Body as _;

pub use self::flight::ResponseStream;
use self::flight::{Awaiting, Flight, Headed};
use crate::body::{RequestBody, ResponseBody};
use crate::server::TunnelSlot;
use crate::upstream::upload::Upload;
use crate::upstream::{Conn, Upstream};

/// What an exchange has to know beside the request.
pub struct Terms {
    /// The admission; `None` for a request that is not fenced.
    pub admission: Option<Admission>,
    /// What the client's trailers must not carry.
    pub trailers: StripLayer,
    /// The longest gap between two reads of the request body.
    pub body_timeout: Option<Duration>,
    /// Where the client's stream comes from, where the request asks for another protocol.
    pub upgrade: Option<TunnelSlot>,
}

/// Sends `request` to `upstream` and waits for its head.
///
/// # Errors
///
/// `stale-token` where a newer token came before it was sent; `upstream-unreachable` where nothing
/// was sent; and where the outcome is unknown, `upstream-failed`, `upstream-timeout`, `superseded`,
/// `request-timeout`, `body-too-large` or `bad-request`.
pub async fn exchange(
    upstream: Arc<Upstream>,
    mut request: Request<RequestBody>,
    mut terms: Terms,
) -> Result<Response<ResponseBody>, Refusal> {
    let expects = request.headers().contains_key(http::header::EXPECT);
    let body = request.body();
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        // The codec takes a body of unknown length for none where the method is GET.
        let chunked = http::HeaderValue::from_static("chunked");
        let headers = request.headers_mut();
        headers.insert(http::header::TRANSFER_ENCODING, chunked);
    }
    let mut fresh = false;
    loop {
        let conn = connection(&upstream, fresh).await?;
        let flight = Flight::new(Arc::clone(&upstream), terms.body_timeout);
        let permit: Option<Permit> = match terms.admission.take() {
            Some(admission) => Some(admission.send(&handle(&flight))?),
            None => None,
        };
        let wire = Arc::clone(&conn.wire);
        let trailers = terms.trailers.clone();
        let mut sending = request.map(|body| Upload::new(body, wire, trailers));
        if expects {
            let wire = Arc::clone(&conn.wire);
            hyper::ext::on_informational(&mut sending, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    wire.go_on();
                }
            });
        }
        flight.start(conn, sending, permit, terms.upgrade.clone(), expects)?;
        let awaiting = Awaiting {
            flight,
            done: false,
        };
        match awaiting.await {
            Headed::Response(response) => return Ok(response),
            Headed::Failed(refusal) => return Err(refusal),
            Headed::Unsent(unsent, permit) => {
                if fresh {
                    if let Some(permit) = permit {
                        permit.ended(Outcome::NotForwarded, false);
                    }
                    return Err(unreachable("closed before the request could be sent"));
                }
                fresh = true;
                terms.admission = permit.map(Permit::unsent);
                request = unsent.map(Upload::into_body);
            }
        }
    }
}

fn handle(flight: &Arc<Flight>) -> fencegate_filters::fence::Handle {
    Arc::<Flight>::clone(flight)
}

async fn connection(upstream: &Upstream, fresh: bool) -> Result<Conn, Refusal> {
    if !fresh && let Some(conn) = upstream.kept() {
        return Ok(conn);
    }
    // Boxed: it is rare, and large.
    Box::pin(upstream.connect()).await.map_err(|error| {
        tracing::warn!(upstream = %upstream.name, %error, "no connection to the upstream");
        unreachable("could not be reached")
    })
}

fn unreachable(how: &str) -> Refusal {
    Refusal::new(
        Reason::UpstreamUnreachable,
        format!("The upstream {how}; nothing was sent, so it is safe to try again."),
    )
}
