//! The request body on its way to the upstream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use fencegate_filters::StripLayer;
use http::{HeaderName, header};
use http_body::{Body, Frame, SizeHint};

use super::wire::Wire;
use crate::body::RequestBody;

/// Trailer fields that a recipient may merge into the header (RFC 9110, section 6.5.1): what the
/// fence decides by, and what the gateway says of the client, must not come from there.
pub static NOT_IN_TRAILERS: [HeaderName; 17] = [
    header::HOST,
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("true-client-ip"),
];

/// A request body that can be held, watched and stopped.
#[derive(Debug)]
pub struct Upload {
    body: RequestBody,
    wire: Arc<Wire>,
    /// What is left of a body whose length is known: the codec does not ask for its end.
    left: Option<u64>,
    trailers: StripLayer,
}

impl Upload {
    /// `trailers`: what is not forwarded in trailers.
    pub fn new(body: RequestBody, wire: Arc<Wire>, trailers: StripLayer) -> Self {
        Self {
            left: body.size_hint().exact(),
            body,
            wire,
            trailers,
        }
    }

    /// The same body, for another connection: not a byte of it has been read.
    pub fn into_body(self) -> RequestBody {
        self.body
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadFailed;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        // The exchange polls the connection, and so this body, whenever one of these changes.
        if this.wire.is_stopped() || !this.wire.may_continue() {
            return Poll::Pending;
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => {
                this.wire.set_waits_for_client(true);
                Poll::Pending
            }
            Poll::Ready(None) => {
                this.wire.body_has_ended();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.wire.upload_failed(error);
                Poll::Ready(Some(Err(UploadFailed)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.wire.set_waits_for_client(false);
                this.wire.progress();
                let frame = match frame.into_trailers() {
                    Ok(mut trailers) => {
                        this.wire.body_has_ended();
                        this.trailers.filter(&mut trailers);
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    Err(frame) => frame,
                };
                if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                if this.left == Some(0) || this.body.is_end_stream() {
                    this.wire.body_has_ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body could not be read; why is in [`Wire::upload_error`].
#[derive(Debug)]
pub struct UploadFailed;

impl std::fmt::Display for UploadFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request body could not be read")
    }
}

impl std::error::Error for UploadFailed {}
