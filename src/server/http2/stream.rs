//! One HTTP/2 stream: a request, and its response.
//!
//! A stream that the client resets is a client that has left, and so is one that it stops reading
//! for longer than `timeouts.idle`: what it leaves behind is the exchange's to end.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fencegate_filters::Peer;
use fencegate_filters::fault::{self, Fault};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{CONTENT_LENGTH, COOKIE, DATE, EXPECT, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use tokio::time::Instant;

use super::pace::Answers;
use crate::access::AccessBody;
use crate::body::{ClientBody, Half, StreamBody, Unread};
use crate::gateway::Settings;
use crate::timer::LazyTimer;

/// A stream whose request has come.
pub(super) struct Stream {
    respond: SendResponse<Bytes>,
    answers: Answers,
    /// Where the client waits for `100 Continue`: whether its body is wanted.
    wanted: Option<Arc<AtomicBool>>,
    /// What is left of its body when that is dropped.
    unread: Unread,
    /// How long the client may read nothing.
    stall: Option<Duration>,
}

/// How long a client that was answered before it had sent all of its body may go on with it, and be
/// silent meanwhile. Some take a reset for the whole answer where they are still at it.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_SILENCE: Duration = Duration::from_secs(1);

impl Stream {
    /// The request as the gateway's service takes it, and what its response goes to.
    pub(super) fn new(
        request: Request<Half>,
        respond: SendResponse<Bytes>,
        answers: Answers,
        peer: &Peer,
        settings: &Settings,
    ) -> (Request<ClientBody>, Self) {
        let (mut head, body) = request.into_parts();
        let headers = &mut head.headers;
        let wanted = headers.contains_key(EXPECT).then(Arc::default);
        // The codec holds the body to it; that it is the only one is checked with the head.
        let length = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        if let Some(authority) = head.uri.authority()
            && !headers.contains_key(HOST)
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            // RFC 9113, section 8.3.1. Where both came they are compared.
            headers.insert(HOST, host);
        }
        join_cookies(headers);
        head.extensions.insert(peer.clone());
        let unread = Unread::default();
        let body = StreamBody::new(body, unread.clone(), length, wanted.clone());
        let request = Request::from_parts(head, ClientBody::Http2(Box::new(body)));
        let stream = Self {
            respond,
            answers,
            wanted,
            unread,
            stall: settings.timeouts.write_stall,
        };
        (request, stream)
    }

    /// Waits for the response and sends it. Dropped early, or where the client has reset the
    /// stream, the client has left.
    pub(super) async fn serve<F>(mut self, response: F)
    where
        F: Future<Output = Result<Response<AccessBody>, Infallible>>,
    {
        let Some(response) = self.answer(response).await else {
            return;
        };
        let (mut head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody can have asked for it here (RFC 9113, section 8.6).
            self.respond.send_reset(Reason::INTERNAL_ERROR);
            return;
        }
        make_http2(&mut head.headers, &body);
        let over = body.is_end_stream();
        // Before the connection is woken for it.
        self.answers.add();
        let Ok(sender) = self
            .respond
            .send_response(Response::from_parts(head, ()), over)
        else {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
            return;
        };
        if !over {
            let mut pipe = Pipe {
                body,
                sender,
                data: Bytes::new(),
                stall: self.stall,
                stalled: LazyTimer::default(),
            };
            std::future::poll_fn(|cx| pipe.poll(cx)).await;
        }
        if let Some(body) = self.unread.take() {
            linger(body).await;
        }
    }

    /// `None`: the client has left.
    async fn answer<F>(&mut self, response: F) -> Option<Response<AccessBody>>
    where
        F: Future<Output = Result<Response<AccessBody>, Infallible>>,
    {
        let mut response = pin!(response);
        std::future::poll_fn(|cx| {
            let answered = response.as_mut().poll(cx);
            let wanted = self.wanted.as_ref();
            if wanted.is_some_and(|wanted| wanted.swap(false, Ordering::Relaxed)) {
                let mut go_on = Response::new(());
                *go_on.status_mut() = StatusCode::CONTINUE;
                // A client that is gone is seen below.
                let _ = self.respond.send_informational(go_on);
            }
            match answered {
                Poll::Ready(Ok(response)) => Poll::Ready(Some(response)),
                Poll::Pending => self.respond.poll_reset(cx).map(|_| None),
            }
        })
        .await
    }
}

/// Drops what still comes of a body: no more than the client's window has room for, since none is
/// given back. Then the stream is reset, where its end has not come.
async fn linger(mut body: Half) {
    let all = async {
        loop {
            let data = std::future::poll_fn(|cx| body.stream.poll_data(cx));
            match tokio::time::timeout(LINGER_SILENCE, data).await {
                Ok(Some(Ok(_))) => {}
                _ => return,
            }
        }
    };
    // Whatever ends it, the stream is over.
    let _ = tokio::time::timeout(LINGER, all).await;
}

/// HTTP/2 may cut the field into lines, and no other recipient knows of that (RFC 9113, section
/// 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Takes out of a response's header what HTTP/2 has no place for (RFC 9113, section 8.2.2), and adds
/// what the codec of HTTP/1 adds by itself.
fn make_http2(headers: &mut HeaderMap, body: &AccessBody) {
    static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    for name in [
        &header::CONNECTION,
        &header::TRANSFER_ENCODING,
        &header::UPGRADE,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
    ] {
        headers.remove(name);
    }
    if !headers.contains_key(DATE) {
        let now = httpdate::fmt_http_date(SystemTime::now());
        if let Ok(now) = HeaderValue::from_str(&now) {
            headers.insert(DATE, now);
        }
    }
    if !body.is_end_stream()
        && !headers.contains_key(CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// A response's body on its way into the stream, as fast as the client reads it.
struct Pipe {
    body: AccessBody,
    sender: SendStream<Bytes>,
    /// What has come from the body and not gone into the stream.
    data: Bytes,
    stall: Option<Duration>,
    /// Since the client's window has been closed.
    stalled: LazyTimer,
}

impl Pipe {
    /// Ready when all has been handed to the codec, or nobody wants it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            while !self.data.is_empty() {
                match self.poll_window(cx) {
                    Poll::Ready(Some(window)) => {
                        let part = self.data.split_to(window.min(self.data.len()));
                        let over = self.data.is_empty() && self.body.is_end_stream();
                        if self.sender.send_data(part, over).is_err() || over {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.data = data,
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            // A client that is gone needs none.
                            let _ = self.sender.send_trailers(trailers);
                        }
                        return Poll::Ready(());
                    }
                },
                Poll::Ready(Some(Err(_))) => {
                    self.sender.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(());
                }
                Poll::Ready(None) => {
                    let _ = self.sender.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
                Poll::Pending => return self.sender.poll_reset(cx).map(|_| ()),
            }
        }
    }

    /// How much may be sent now. `None`: the client has left, or has not read for too long.
    fn poll_window(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        self.sender.reserve_capacity(self.data.len());
        let window = self.sender.capacity();
        if window > 0 {
            self.stalled.set(None);
            return Poll::Ready(Some(window));
        }
        match self.sender.poll_capacity(cx) {
            Poll::Ready(Some(Ok(window))) => {
                self.stalled.set(None);
                return Poll::Ready(Some(window));
            }
            Poll::Ready(_) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        if self.stalled.deadline().is_none() {
            let end = self
                .stall
                .and_then(|stall| Instant::now().checked_add(stall));
            self.stalled.set(end);
        }
        let stalled = self.stalled.poll_expired(cx).is_ready();
        if stalled && !fault::planted(Fault::KeepStalledStream) {
            self.sender.send_reset(Reason::CANCEL);
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}
