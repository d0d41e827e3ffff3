//! A connection to one of the gateway's own APIs. Its bytes are judged as those of every client
//! (`src/wire/`), so that a head that is too broken for the codec is told so like any other fault.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::{Refusal, problem};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::server::end_with_unread_body;
use crate::wire::{
    ClientIo, ConnState, ConnTimeouts, Ended, HeadLimits, LingerLimits, Refuse, ServingBody,
    Violation, Watchdog,
};

/// How long the head of a call may take, and how long a client may be silent between two.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How large the head of a call may be, and how much of what its client does not read is kept.
pub(crate) const HEAD_BYTES: usize = 16 << 10;

/// Serves the calls of one connection, one after the other. What it gives is the connection to a
/// client that may still read: [`ClientIo::finish`] closes it so that the client can.
pub(crate) async fn serve<S, A, F, B>(stream: S, answer: A) -> Option<ClientIo<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let state = ConnState::new();
    let heads = HeadLimits {
        header_bytes: HEAD_BYTES,
        ..HeadLimits::default()
    };
    let refuse: Refuse = Arc::new(refused);
    let linger = LingerLimits::default();
    let io = ClientIo::new(stream, heads, linger, Arc::clone(&state), refuse);
    let service = service_fn(|request| {
        let serving = state.serving();
        let answer = answer(request);
        let state = &state;
        // Only what can be moved lets go of its stream in the end.
        Box::pin(async move {
            let mut response = answer.await;
            end_with_unread_body(state, &mut response);
            Ok::<_, Infallible>(response.map(|body| ServingBody::new(body, serving)))
        })
    });
    let mut conn = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(io, service);
    let mut watchdog = Watchdog::new(ConnTimeouts {
        header: Some(HEADER_TIMEOUT),
        idle: Some(HEADER_TIMEOUT),
        ..ConnTimeouts::default()
    });
    let ended = std::future::poll_fn(|cx| {
        watchdog.poll_while_timely(cx, &state, |cx| conn.poll_without_shutdown(cx))
    });
    let served = matches!(ended.await, Ended::Served(Ok(())));
    served.then(|| conn.into_parts().io)
}

/// The whole answer to a head that is too broken for the codec.
fn refused(violation: &Violation) -> Vec<u8> {
    problem::raw(&Refusal::new(violation.reason, violation.detail))
}
