//! One connection to an upstream, driven by whoever uses it.
//!
//! The codec's connection is not a task of its own: the exchange that has it polls it, so that
//! dropping it closes the socket at once, and no wake-up is spent between the two.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::client::conn::http1;
use tokio::time::Instant;

use super::io::{Socket, UpstreamIo};
use super::upload::Upload;
use super::wire::Wire;
use crate::timer::LazyTimer;

/// A connection to an upstream, with at most one request on it.
pub struct Conn {
    codec: Box<http1::Connection<UpstreamIo, Upload>>,
    /// Hands requests to the codec.
    pub sender: http1::SendRequest<Upload>,
    /// What the socket and the body tell.
    pub wire: Arc<Wire>,
    /// The exchange's deadline; its timer is kept from request to request.
    pub timer: LazyTimer,
    /// The worker whose reactor the socket is registered with.
    pub(super) worker: usize,
    /// When it was last given back, and how long it may stay so.
    pub(super) idle_since: Instant,
    pub(super) idle_limit: Duration,
    closed: bool,
}

impl Conn {
    pub(super) async fn handshake(
        socket: Socket,
        builder: &http1::Builder,
        worker: usize,
        idle_limit: Duration,
    ) -> hyper::Result<Self> {
        let wire = Arc::new(Wire::default());
        let io = UpstreamIo::new(socket, Arc::clone(&wire));
        let (sender, codec) = builder.handshake(io).await?;
        Ok(Self {
            codec: Box::new(codec),
            sender,
            wire,
            timer: LazyTimer::default(),
            worker,
            idle_since: Instant::now(),
            idle_limit,
            closed: false,
        })
    }

    /// Reads and writes what can be read and written now.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.closed && self.codec.poll_without_shutdown(cx).is_ready() {
            self.closed = true;
        }
    }

    /// Whether the codec is done with this connection: closed, broken or upgraded.
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether it is free for a request, having looked at the socket once: the upstream may have
    /// closed it, or sent what nobody asked for.
    pub fn is_ready(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.drive(&mut cx);
        !self.closed && matches!(self.sender.poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// The upstream asked for a shorter stay (`Keep-Alive: timeout`).
    pub fn limit_idle(&mut self, limit: Duration) {
        self.idle_limit = self.idle_limit.min(limit);
    }

    /// The socket and what was read from it beyond HTTP, for a tunnel.
    pub fn into_tunnel(self) -> (Socket, bytes::Bytes) {
        let parts = self.codec.into_parts();
        (parts.io.into_socket(), parts.read_buf)
    }
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}
