//! The exchange of one admitted request with its upstream.
//!
//! The gateway owns it, not the client's connection: see `flight.rs`. A request is sent again only
//! where the codec says that not a byte of it was written, once, on a fresh connection, and after
//! it has been compared with the mark once more.

mod flight;
mod tunnel;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::{Admission, Permit};
use fencegate_filters::{Outcome, Reason, Refusal, StripLayer};
use http::{Request, Response, StatusCode};
use http_body::Body as _;

pub use self::flight::ResponseStream;
use self::flight::{Awaiting, Flight, Headed};
use crate::body::{RequestBody, ResponseBody};
use crate::descriptors;
use crate::server::TunnelSlot;
use crate::upstream::upload::Upload;
use crate::upstream::{Conn, Turn, Upstream};

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

/// The exchange of one request: ready with the response's head.
///
/// Its errors are `stale-token` where a newer token came before the request was sent;
/// `upstream-unreachable` where nothing was sent; and where the outcome is unknown,
/// `upstream-failed`, `upstream-timeout`, `superseded`, `request-timeout`, `body-too-large` or
/// `bad-request`.
pub enum Exchange {
    /// Sent on a kept connection.
    Sent(Sent),
    /// On a new connection.
    Anew(Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Refusal>> + Send>>),
    /// It was not sent.
    Refused(Option<Box<Refusal>>),
}

/// A request that was sent, and what it takes to send it once more should it come back unsent.
pub struct Sent {
    awaiting: Awaiting,
    again: Again,
}

struct Again {
    upstream: Arc<Upstream>,
    trailers: StripLayer,
    body_timeout: Option<Duration>,
    upgrade: Option<TunnelSlot>,
    /// What a planted fault sends although bytes may have been sent.
    resend: Option<Box<Request<RequestBody>>>,
}

/// Sends `request` to `upstream`, at once where a connection is kept.
pub fn exchange(
    upstream: Arc<Upstream>,
    mut request: Request<RequestBody>,
    terms: Terms,
) -> Exchange {
    let body = request.body();
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        // The codec takes a body of unknown length for none where the method is GET.
        let chunked = http::HeaderValue::from_static("chunked");
        let headers = request.headers_mut();
        headers.insert(http::header::TRANSFER_ENCODING, chunked);
    }
    let resends = match fault::planted(Fault::MoveAfterBytes) {
        true => upstream.has_several(),
        false => fault::planted(Fault::ResendAfterBytes) && request.body().is_end_stream(),
    };
    let again = Again {
        resend: resends.then(|| Box::new(without_body(&request))),
        upstream,
        trailers: terms.trailers,
        body_timeout: terms.body_timeout,
        upgrade: terms.upgrade,
    };
    let turn = again.upstream.turn();
    let Some(conn) = again.upstream.kept(&turn) else {
        return Exchange::Anew(Box::pin(first(again, turn, request, terms.admission)));
    };
    match again.send(conn, request, terms.admission) {
        Ok(awaiting) => Exchange::Sent(Sent { awaiting, again }),
        Err(refusal) => Exchange::Refused(Some(Box::new(refusal))),
    }
}

impl Future for Exchange {
    type Output = Result<Response<ResponseBody>, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match &mut *self {
                Self::Sent(sent) => match ready!(Pin::new(&mut sent.awaiting).poll(cx)) {
                    Headed::Response(response) => return Poll::Ready(Ok(response)),
                    Headed::Failed(refusal) => match sent.again.resend.take() {
                        Some(request) => (request, None),
                        None => return Poll::Ready(Err(refusal)),
                    },
                    Headed::Unsent(request, permit) => (
                        Box::new(request.map(Upload::into_body)),
                        permit.map(Permit::unsent),
                    ),
                },
                Self::Anew(anew) => return anew.as_mut().poll(cx),
                Self::Refused(refusal) => {
                    return match refusal.take() {
                        Some(refusal) => Poll::Ready(Err(*refusal)),
                        None => Poll::Pending,
                    };
                }
            };
            let (request, admission) = next;
            if let Self::Sent(sent) = std::mem::replace(&mut *self, Self::Refused(None)) {
                *self = Self::Anew(Box::pin(last(sent.again, *request, admission)));
            }
        }
    }
}

/// On a connection that was made for it, and once more on another where that was closed before the
/// request could be sent.
async fn first(
    mut again: Again,
    turn: Turn,
    request: Request<RequestBody>,
    admission: Option<Admission>,
) -> Result<Response<ResponseBody>, Refusal> {
    let conn = connect(&again.upstream, turn).await?;
    match again.send(conn, request, admission)?.await {
        Headed::Response(response) => Ok(response),
        Headed::Failed(refusal) => match again.resend.take() {
            Some(request) => last(again, *request, None).await,
            None => Err(refusal),
        },
        Headed::Unsent(request, permit) => {
            let admission = permit.map(Permit::unsent);
            last(again, request.map(Upload::into_body), admission).await
        }
    }
}

/// On a connection that was made for it, and not again.
async fn last(
    again: Again,
    request: Request<RequestBody>,
    admission: Option<Admission>,
) -> Result<Response<ResponseBody>, Refusal> {
    let turn = again.upstream.turn();
    let conn = connect(&again.upstream, turn).await?;
    match again.send(conn, request, admission)?.await {
        Headed::Response(response) => Ok(response),
        Headed::Failed(refusal) => Err(refusal),
        Headed::Unsent(_, permit) => {
            if let Some(permit) = permit {
                permit.ended(Outcome::NotForwarded, false);
            }
            Err(unreachable("closed before the request could be sent"))
        }
    }
}

impl Again {
    /// Compares it with the mark once more, and hands it to the codec: it is in flight.
    fn send(
        &self,
        conn: Box<Conn>,
        request: Request<RequestBody>,
        admission: Option<Admission>,
    ) -> Result<Awaiting, Refusal> {
        let flight = Flight::new(Arc::clone(&self.upstream), conn.place, self.body_timeout);
        let permit: Option<Permit> = match admission {
            Some(admission) => Some(admission.send(&handle(&flight))?),
            None => None,
        };
        // Without a body nothing is held until a 100 comes.
        let expects =
            !request.body().is_end_stream() && request.headers().contains_key(http::header::EXPECT);
        let wire = Arc::clone(&conn.wire);
        let mut sending =
            request.map(|body| Upload::new(body, Arc::clone(&wire), self.trailers.clone()));
        if expects {
            hyper::ext::on_informational(&mut sending, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    wire.go_on();
                }
            });
        }
        flight.start(conn, sending, permit, self.upgrade.clone(), expects)?;
        Ok(Awaiting {
            flight,
            done: false,
        })
    }
}

/// What a planted fault sends once more.
fn without_body(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut again = Request::new(RequestBody::Spooled(Box::default()));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    again
}

fn handle(flight: &Arc<Flight>) -> fencegate_filters::fence::Handle {
    Arc::<Flight>::clone(flight)
}

async fn connect(upstream: &Upstream, turn: Turn) -> Result<Box<Conn>, Refusal> {
    upstream.connect(turn).await.map_err(|error| {
        tracing::warn!(upstream = %upstream.name, %error, "no connection to the upstream");
        if descriptors::is_wanting(&error) {
            return Refusal::new(
                Reason::Busy,
                "There is no room for another connection to the upstream; nothing was sent, so it is safe to try again.",
            );
        }
        unreachable("could not be reached")
    })
}

fn unreachable(how: &str) -> Refusal {
    Refusal::new(
        Reason::UpstreamUnreachable,
        format!("The upstream {how}; nothing was sent, so it is safe to try again."),
    )
}
