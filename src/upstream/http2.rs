//! The codec of an HTTP/2 connection to an upstream.
//!
//! A connection carries one request at a time and is then kept, as one of HTTP/1 is. To reset a
//! stream is no cut: the upstream may go on with what it has, and nothing tells when it has not. So a
//! cut drops the connection, and there must be nobody else on it. What is gained over HTTP/1 is the
//! protocol, which gRPC servers insist on, and not fewer connections.
//!
//! A request has been sent whole once the socket has taken the frame that ends it, and is unsent while
//! the socket has taken nothing. A response may begin before its request has ended: in HTTP/2 that is
//! a conversation, and the upload goes on beside it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use fencegate_filters::fault::{self, Fault};
use h2::client::{self, ResponseFuture};
use h2::{Reason, SendStream};
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, Scheme};
use http::{HeaderName, Request, Response, StatusCode, Uri, Version, request};
use http_body::{Body, Frame, SizeHint};

use super::conn::Unsent;
use super::frame_socket::FrameSocket;
use super::upload::Upload;
use super::wire::Wire;
use crate::net::Stream;

/// What the upstream may send of a response before any of it has been read.
const WINDOW: u32 = 512 * 1024;
/// What of an upload is kept behind the socket.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// As much as the codec of HTTP/1 takes of a head.
const HEAD_BYTES: u32 = 256 * 1024;
/// A window full of short messages that wait for a slow client (see `server/http2.rs`).
const SMALL_FRAMES_BUDGET: usize = 16 * 1024 * 1024;

/// An HTTP/2 connection, with at most one request on it.
pub(super) struct Http2 {
    connection: client::Connection<FrameSocket, Bytes>,
    sender: client::SendRequest<Bytes>,
    wire: Arc<Wire>,
    scheme: Scheme,
    exchange: Option<Exchange>,
}

/// The request that is on it.
struct Exchange {
    /// What it takes to send it on another connection.
    head: request::Parts,
    upload: Upload,
    /// What was taken of the upload and not given to the codec.
    data: Bytes,
    /// There until all of the upload has been given to the codec.
    sender: Option<SendStream<Bytes>>,
    /// There until the response's head has come.
    response: Option<ResponseFuture>,
}

impl Http2 {
    /// Says what it speaks; the upstream has to say so too before it gets a request.
    pub(super) async fn handshake(
        socket: Stream,
        secure: bool,
        wire: Arc<Wire>,
    ) -> Result<Self, h2::Error> {
        let socket = FrameSocket::new(socket, Arc::clone(&wire));
        let (sender, connection) = client::Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEAD_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .data_frame_budget(SMALL_FRAMES_BUDGET)
            .handshake(socket)
            .await?;
        Ok(Self {
            connection,
            sender,
            wire,
            scheme: if secure { Scheme::HTTPS } else { Scheme::HTTP },
            exchange: None,
        })
    }

    /// Reads and writes what can be read and written now. Ready once the connection is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.connection).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match &mut self.exchange {
            // Nothing is taken from the client that might have to be sent on another connection.
            Some(exchange) if self.wire.wrote() => exchange.poll_upload(cx),
            _ => Poll::Pending,
        }
    }

    /// Whether another request may be sent.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.sender.poll_ready(cx).map(|ready| ready.is_ok())
    }

    /// Hands a request to the codec.
    pub(super) fn send(&mut self, request: Request<Upload>) {
        let (head, upload) = request.into_parts();
        let sent = self
            .sender
            .send_request(as_http2(&head, &self.scheme), upload.is_end_stream());
        let (response, sender) = match sent {
            Ok((response, sender)) => (Some(response), Some(sender)),
            Err(_) => (None, None),
        };
        self.exchange = Some(Exchange {
            sender: sender.filter(|_| !upload.is_end_stream()),
            head,
            upload,
            data: Bytes::new(),
            response,
        });
    }

    /// The response's head. An error has the request where nothing of it was sent.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody>, Unsent>> {
        let Some(exchange) = &mut self.exchange else {
            return Poll::Ready(Err(None));
        };
        let Some(response) = &mut exchange.response else {
            return Poll::Ready(Err(self.take_unsent()));
        };
        while let Poll::Ready(Some(Ok(informational))) = response.poll_informational(cx) {
            if informational.status() == StatusCode::CONTINUE {
                self.wire.go_on();
            }
        }
        match ready!(Pin::new(response).poll(cx)) {
            Ok(response) => {
                exchange.response = None;
                Poll::Ready(Ok(response.map(ResponseBody::new)))
            }
            Err(_) => Poll::Ready(Err(self.take_unsent())),
        }
    }

    /// The request that was on it has ended.
    pub(super) fn forget(&mut self) {
        self.exchange = None;
    }

    /// The request, where nothing of it was sent.
    pub(super) fn take_unsent(&mut self) -> Unsent {
        let exchange = self.exchange.take()?;
        let unsent = !self.wire.wrote() || fault::planted(Fault::ResendAfterFrames);
        unsent.then(|| Box::new(Request::from_parts(exchange.head, exchange.upload)))
    }
}

impl Exchange {
    /// Sends of the upload what there is and the upstream has room for. Ready where it has failed.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(sender) = &mut self.sender {
            if !self.data.is_empty() {
                sender.reserve_capacity(self.data.len());
                let window = match sender.capacity() {
                    0 => match ready!(sender.poll_capacity(cx)) {
                        Some(Ok(window)) => window,
                        // The upstream wants no more; what it says to it is in its response.
                        _ => {
                            self.sender = None;
                            break;
                        }
                    },
                    window => window,
                };
                let part = self.data.split_to(window.min(self.data.len()));
                let over = self.data.is_empty() && self.upload.is_end_stream();
                if sender.send_data(part, over).is_err() || over {
                    self.sender = None;
                }
                continue;
            }
            let sent = match ready!(Pin::new(&mut self.upload).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.data = data;
                        continue;
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => sender.send_trailers(trailers),
                        Err(_) => continue,
                    },
                },
                Some(Err(_)) => {
                    sender.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                None => sender.send_data(Bytes::new(), true),
            };
            // That the upstream is gone is told by its response.
            let _ = sent;
            self.sender = None;
        }
        Poll::Pending
    }
}

/// The head as HTTP/2 has it (RFC 9113, sections 8.2.2 and 8.3.1). The path stays byte for byte.
fn as_http2(head: &request::Parts, scheme: &Scheme) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_2;
    let mut headers = head.headers.clone();
    for name in [
        &CONNECTION,
        &TRANSFER_ENCODING,
        &UPGRADE,
        &HeaderName::from_static("keep-alive"),
        &HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
    let authority = headers
        .get(HOST)
        .and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut uri = head.uri.clone().into_parts();
    match authority {
        Some(authority) => {
            uri.scheme = Some(scheme.clone());
            uri.authority = Some(authority);
            headers.remove(HOST);
        }
        // Sent as it is: a proxy need not make an authority of it, and this one could not.
        None => *request.version_mut() = Version::HTTP_11,
    }
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_else(|_| head.uri.clone());
    *request.headers_mut() = headers;
    request
}

/// The body of an HTTP/2 response.
#[derive(Debug)]
pub struct ResponseBody {
    stream: h2::RecvStream,
    data_over: bool,
}

impl ResponseBody {
    const fn new(stream: h2::RecvStream) -> Self {
        Self {
            stream,
            data_over: false,
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        if !self.data_over {
            if let Some(data) = ready!(self.stream.poll_data(cx)) {
                let data = data.map_err(|_| ())?;
                self.stream
                    .flow_control()
                    .release_capacity(data.len())
                    .map_err(|_| ())?;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            self.data_over = true;
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|_| ())?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self.is_end_stream() {
            true => SizeHint::with_exact(0),
            // The header has it, where it is known; a body may end in trailers all the same.
            false => SizeHint::default(),
        }
    }
}
