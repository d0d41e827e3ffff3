//! The flight as its client's connection has it: dropped early, the client has left.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{Flight, Headed};
use crate::body::Broken;

/// The upstream's response body, as it comes.
pub struct ResponseStream {
    pub(super) flight: Arc<Flight>,
    pub(super) left: Option<u64>,
    pub(super) over: bool,
}

impl ResponseStream {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = self.flight.poll_body(cx);
        match &frame {
            Poll::Ready(None | Some(Err(_))) => self.over = true,
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                    self.over = *left == 0;
                }
            }
            Poll::Pending => {}
        }
        frame
    }

    pub(crate) const fn is_end_stream(&self) -> bool {
        self.over
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if !self.over {
            self.flight.client_left();
        }
    }
}

impl std::fmt::Debug for ResponseStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseStream")
    }
}

/// Waits for the head on the client's behalf; dropped early, the client has left.
pub(in crate::exchange) struct Awaiting {
    pub(in crate::exchange) flight: Arc<Flight>,
    pub(in crate::exchange) done: bool,
}

impl Future for Awaiting {
    type Output = Headed;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Headed> {
        let this = self.get_mut();
        let headed = this.flight.poll_head(cx);
        this.done = headed.is_ready();
        headed
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        if !self.done {
            self.flight.client_left();
        }
    }
}
