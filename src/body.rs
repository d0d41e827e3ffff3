//! Bodies on their way through the gate.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use fencegate_filters::fault::{self, Fault};
use fencegate_filters::limits::{LimitBody, LimitError};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::exchange::ResponseStream;
use crate::spool::Spooled;
use crate::upstream::wire::UploadError;
use crate::wire::Window;

/// A request body as a client's connection has it.
#[derive(Debug)]
pub enum ClientBody {
    /// Of an HTTP/1 message.
    Http1(Incoming),
    /// Of an HTTP/2 stream.
    Http2(Box<StreamBody>),
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|_| UploadError::Client),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

/// What a client sends on an HTTP/2 stream. To drop it resets the stream, where its end has not come.
#[derive(Debug)]
pub struct Half {
    /// Of the codec.
    pub(crate) stream: h2::RecvStream,
    window: Window,
}

impl Half {
    pub(crate) const fn new(stream: h2::RecvStream, window: Window) -> Self {
        Self { stream, window }
    }
}

/// The request body of an HTTP/2 stream.
///
/// What has been read of it may be sent anew by the client: so nothing is read, and the client soon
/// stops, where nobody wants it.
#[derive(Debug)]
pub struct StreamBody {
    /// There until this is dropped.
    stream: Option<Half>,
    /// Whether anybody has asked for it yet.
    begun: bool,
    /// Where it goes then.
    unread: Unread,
    /// What is left of a Content-Length.
    left: Option<u64>,
    /// The last bytes of a Content-Length. The stream may go on behind them, and then the message
    /// is malformed (RFC 9113, section 8.1.1): an upstream must not have got it whole by then.
    last: Option<Bytes>,
    data_over: bool,
    /// Set when the body is first wanted, for a client that waits for `100 Continue`.
    wanted: Option<Arc<AtomicBool>>,
}

/// What is left of a request body that nobody reads any more.
#[derive(Clone, Debug, Default)]
pub struct Unread(Arc<Mutex<Option<Half>>>);

impl Unread {
    /// Takes it, where there is something left.
    pub fn take(&self) -> Option<Half> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        let left = self
            .stream
            .take()
            .filter(|left| !left.stream.is_end_stream());
        *self.unread.0.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }
}

impl StreamBody {
    /// `unread`: what gets the rest when this is dropped; `length`: the request's Content-Length;
    /// `wanted`: where to tell that the body is wanted.
    pub const fn new(
        stream: Half,
        unread: Unread,
        length: Option<u64>,
        wanted: Option<Arc<AtomicBool>>,
    ) -> Self {
        Self {
            stream: Some(stream),
            begun: false,
            unread,
            left: length,
            last: None,
            data_over: false,
            wanted,
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        if let Some(wanted) = self.wanted.take() {
            wanted.store(true, Ordering::Relaxed);
        }
        let Some(Half { stream, window }) = &mut self.stream else {
            return Poll::Ready(None);
        };
        if !self.begun {
            self.begun = true;
            window.open();
        }
        while !self.data_over {
            let data = match ready!(stream.poll_data(cx)) {
                Some(data) => data.map_err(|_| UploadError::Client)?,
                None => {
                    self.data_over = true;
                    match self.last.take() {
                        Some(last) => return Poll::Ready(Some(Ok(Frame::data(last)))),
                        None => break,
                    }
                }
            };
            // The window was filled by these bytes, and they are handed on.
            stream
                .flow_control()
                .release_capacity(data.len())
                .map_err(|_| UploadError::Client)?;
            if data.is_empty() {
                continue;
            }
            if let Some(left) = &mut self.left {
                *left = left.saturating_sub(data.len() as u64);
                let whole = *left == 0 && !fault::planted(Fault::LongBodyIsWhole);
                if whole && !stream.is_end_stream() {
                    self.last = Some(data);
                    continue;
                }
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(stream.poll_trailers(cx)).map_err(|_| UploadError::Client)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        let half = self.stream.as_ref();
        self.last.is_none() && half.is_none_or(|half| half.stream.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() {
            return SizeHint::with_exact(0);
        }
        let last = self.last.as_ref().map_or(0, |last| last.len() as u64);
        self.left
            .map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + last))
    }
}

/// A request body: as it comes from the client, or received before.
#[derive(Debug)]
pub enum RequestBody {
    /// As it comes, within `limits.body`.
    Incoming(LimitBody<ClientBody>),
    /// Received whole before the request was admitted.
    Spooled(Box<Spooled>),
}

impl RequestBody {
    /// A body as it comes from the client, of at most `limit` bytes.
    pub const fn incoming(body: ClientBody, limit: Option<u64>) -> Self {
        Self::Incoming(LimitBody::new(body, limit))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.get_mut() {
            Self::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(|error| match error {
                LimitError::TooLarge(_) => UploadError::TooLarge,
                LimitError::Body(error) => error,
            }),
            Self::Spooled(body) => Pin::new(body.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Incoming(body) => body.is_end_stream(),
            Self::Spooled(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Incoming(body) => body.size_hint(),
            Self::Spooled(body) => body.size_hint(),
        }
    }
}

/// A response body: the gateway's own, or the upstream's.
#[derive(Debug, Default)]
pub enum ResponseBody {
    /// Nothing.
    #[default]
    Empty,
    /// A whole body, at once.
    Whole(Option<Bytes>),
    /// Frames that had arrived when the head was passed on, and nothing behind them.
    Arrived(Frames),
    /// The upstream's, as it comes.
    Stream(ResponseStream),
}

impl ResponseBody {
    /// A whole body; empty bytes are no body.
    pub fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::Empty
        } else {
            Self::Whole(Some(bytes))
        }
    }

    /// Everything that there is of a body.
    pub fn arrived(mut frames: Frames) -> Self {
        if !frames.rest.is_empty() {
            return Self::Arrived(frames);
        }
        match frames.first.take().map(Frame::into_data) {
            None => Self::Empty,
            Some(Ok(bytes)) => Self::whole(bytes),
            Some(Err(trailers)) => {
                frames.first = Some(trailers);
                Self::Arrived(frames)
            }
        }
    }
}

/// Frames that have arrived, first in, first out. Nearly always there is one, which costs no
/// allocation.
#[derive(Debug, Default)]
pub struct Frames {
    /// In front of `rest`, which is empty where this is `None`.
    first: Option<Frame<Bytes>>,
    rest: VecDeque<Frame<Bytes>>,
}

impl Frames {
    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Adds one behind all others.
    pub fn push(&mut self, frame: Frame<Bytes>) {
        if self.first.is_none() {
            self.first = Some(frame);
        } else {
            self.rest.push_back(frame);
        }
    }

    /// Takes the first.
    pub fn pop(&mut self) -> Option<Frame<Bytes>> {
        let first = self.first.take();
        if !self.rest.is_empty() {
            self.first = self.rest.pop_front();
        }
        first
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.first = None;
        self.rest.clear();
    }

    fn iter(&self) -> impl Iterator<Item = &Frame<Bytes>> {
        self.first.iter().chain(&self.rest)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Arrived(frames) => Poll::Ready(frames.pop().map(Ok)),
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Arrived(frames) => frames.is_empty(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Arrived(frames) => {
                let data = |frame: &Frame<Bytes>| frame.data_ref().map(Bytes::len);
                if frames.iter().all(Frame::is_data) {
                    let bytes: usize = frames.iter().filter_map(data).sum();
                    SizeHint::with_exact(bytes as u64)
                } else {
                    SizeHint::default()
                }
            }
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

/// The response breaks off: its client sees a connection that closes too early.
#[derive(Debug)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the response broke off")
    }
}

impl std::error::Error for Broken {}
