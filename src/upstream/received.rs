//! A response's body as an upstream's connection has it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::http2;

/// What is being received.
#[derive(Debug)]
pub enum Received {
    /// By HTTP/1.
    Http1(Incoming),
    /// By HTTP/2.
    Http2(http2::ResponseBody),
}

impl Received {
    /// The next frame; an error where the response is broken.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        match self {
            Self::Http1(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|_| ()))),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    /// Whether it has come to its end.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    /// How much is left, where that is known.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}
