//! Bodies on their way through the gate.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use fencegate_filters::limits::{LimitBody, LimitError};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::exchange::ResponseStream;
use crate::spool::Spooled;
use crate::upstream::wire::UploadError;

/// A request body: as it comes from the client, or received before.
#[derive(Debug)]
pub enum RequestBody {
    /// As it comes, within `limits.body`.
    Incoming(LimitBody<Incoming>),
    /// Received whole before the request was admitted.
    Spooled(Box<Spooled>),
}

impl RequestBody {
    /// A body as it comes from the client, of at most `limit` bytes.
    pub const fn incoming(body: Incoming, limit: Option<u64>) -> Self {
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
                LimitError::Body(_) => UploadError::Client,
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
    Arrived(std::vec::IntoIter<Frame<Bytes>>),
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
            Self::Arrived(frames) => Poll::Ready(frames.next().map(Ok)),
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Arrived(frames) => frames.as_slice().is_empty(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Arrived(frames) => {
                let data = |frame: &Frame<Bytes>| frame.data_ref().map(Bytes::len);
                if frames.as_slice().iter().all(|frame| frame.is_data()) {
                    let bytes: usize = frames.as_slice().iter().filter_map(data).sum();
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
