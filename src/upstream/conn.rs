//! One connection to an upstream, driven by whoever uses it.
//!
//! The codec's connection is not a task of its own: the exchange that has it polls it, so that
//! dropping it closes the socket at once, and no wake-up is spent between the two.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use tokio::time::Instant;

use super::alarm::Alarm;
use super::http2::Http2;
use super::io::UpstreamIo;
use super::received::Received;
use super::upload::Upload;
use super::wire::Wire;
use crate::descriptors;
use crate::net::Stream;
use crate::timer::LazyTimer;

/// A connection to an upstream, with at most one request on it.
pub struct Conn {
    codec: Codec,
    /// What the socket and the body tell.
    pub wire: Arc<Wire>,
    /// The exchange's deadline; its timer is kept from request to request.
    pub timer: LazyTimer,
    /// The number of the address that it leads to.
    pub(crate) place: usize,
    /// Its place among all connections to upstreams.
    pub(super) descriptor: Option<descriptors::Place>,
    /// The worker whose reactor the socket is registered with.
    pub(super) worker: usize,
    /// When it was last given back, and how long it may stay so.
    pub(super) idle_since: Instant,
    pub(super) idle_limit: Duration,
    /// When it was made.
    pub(super) made: Instant,
    closed: bool,
    /// The upstream has answered in HTTP/1.0.
    outdated: bool,
    alarm: Arc<Alarm>,
    /// Rings `alarm`.
    waker: Waker,
}

#[allow(
    clippy::large_enum_variant,
    reason = "connections are boxed, and most of them are the large one"
)]
enum Codec {
    Http1 {
        connection: http1::Connection<UpstreamIo, Upload>,
        sender: http1::SendRequest<Upload>,
    },
    Http2(Box<Http2>),
}

/// A request that is given back: nothing of it was sent, where it is there.
pub type Unsent = Option<Box<Request<Upload>>>;

/// What a request that was sent waits for.
pub enum Answer {
    /// By HTTP/1.
    Http1(Pin<Box<dyn Future<Output = Http1Answer> + Send>>),
    /// By HTTP/2 its connection has it.
    Http2,
}

type Http1Answer = Result<Response<Incoming>, TrySendError<Request<Upload>>>;

impl Answer {
    /// The request, where the codec of a connection that is no more had not begun with it.
    pub fn take_unsent(self, cx: &mut Context<'_>) -> Unsent {
        match self {
            Self::Http1(mut answer) => match answer.as_mut().poll(cx) {
                Poll::Ready(Err(mut error)) => error.take_message().map(Box::new),
                _ => None,
            },
            Self::Http2 => None,
        }
    }
}

/// How often a codec that calls itself is driven on before others have their turn.
const TURNS: usize = 4;

impl Conn {
    pub(super) async fn handshake(
        socket: Stream,
        builder: &http1::Builder,
        worker: usize,
        idle_limit: Duration,
    ) -> hyper::Result<Self> {
        let wire = Arc::new(Wire::default());
        let io = UpstreamIo::new(socket, Arc::clone(&wire));
        let (sender, connection) = builder.handshake(io).await?;
        let codec = Codec::Http1 { connection, sender };
        Ok(Self::new(codec, wire, worker, idle_limit))
    }

    /// A connection that speaks HTTP/2, over TLS where that is `secure`, once the upstream has said
    /// that it does too.
    pub(super) async fn handshake_http2(
        socket: Stream,
        secure: bool,
        worker: usize,
        idle_limit: Duration,
    ) -> io::Result<Self> {
        let wire = Arc::new(Wire::default());
        let codec = Http2::handshake(socket, secure, Arc::clone(&wire))
            .await
            .map_err(io::Error::other)?;
        let mut conn = Self::new(Codec::Http2(Box::new(codec)), wire, worker, idle_limit);
        poll_fn(|cx| {
            conn.drive(cx);
            if conn.wire.is_greeted() {
                Poll::Ready(Ok(()))
            } else if conn.closed {
                Poll::Ready(Err(io::Error::other("the upstream does not speak HTTP/2")))
            } else {
                Poll::Pending
            }
        })
        .await?;
        Ok(conn)
    }

    fn new(codec: Codec, wire: Arc<Wire>, worker: usize, idle_limit: Duration) -> Self {
        let alarm = Arc::new(Alarm::default());
        Self {
            codec,
            wire,
            timer: LazyTimer::default(),
            place: 0,
            descriptor: None,
            worker,
            idle_since: Instant::now(),
            idle_limit,
            made: Instant::now(),
            closed: false,
            outdated: false,
            waker: Waker::from(Arc::clone(&alarm)),
            alarm,
        }
    }

    /// Hands a request to the codec.
    pub fn send(&mut self, request: Request<Upload>) -> Answer {
        match &mut self.codec {
            Codec::Http1 { sender, .. } => {
                Answer::Http1(Box::pin(sender.try_send_request(request)))
            }
            Codec::Http2(codec) => {
                codec.send(request);
                Answer::Http2
            }
        }
    }

    /// The head of what answers a request, once a drive has brought it. An error has the request
    /// where nothing of it was sent.
    ///
    /// The version of an answer by HTTP/1 is ours, since that is of one connection alone (RFC 9110,
    /// section 6.2): relayed as it came, HTTP/1.0 would tell a client that a body may end anywhere.
    pub fn poll_answer(
        &mut self,
        answer: &mut Answer,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Received>, Unsent>> {
        match (answer, &mut self.codec) {
            (Answer::Http1(answer), _) => answer.as_mut().poll(cx).map(|answer| match answer {
                Ok(mut response) => {
                    self.outdated |= response.version() < Version::HTTP_11;
                    *response.version_mut() = Version::HTTP_11;
                    Ok(response.map(Received::Http1))
                }
                Err(mut error) => Err(error.take_message().map(Box::new)),
            }),
            (Answer::Http2, Codec::Http2(codec)) => codec
                .poll_answer(cx)
                .map_ok(|response| response.map(Received::Http2)),
            (Answer::Http2, Codec::Http1 { .. }) => Poll::Ready(Err(None)),
        }
    }

    /// The request, where this connection had not begun with it and has it still.
    pub fn take_unsent(&mut self) -> Unsent {
        match &mut self.codec {
            Codec::Http1 { .. } => None,
            Codec::Http2(codec) => codec.take_unsent(),
        }
    }

    /// Whether the upload may go on beside the response.
    pub const fn converses(&self) -> bool {
        matches!(self.codec, Codec::Http2(_))
    }

    /// Reads and writes what can be read and written now; the task of `cx` is woken when there is
    /// more.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        self.alarm.set(Some(cx.waker()));
        for _ in 0..TURNS {
            if self.closed {
                return;
            }
            self.alarm.hush();
            self.wire.begin_turn();
            let mut called = Context::from_waker(&self.waker);
            self.closed = match &mut self.codec {
                Codec::Http1 { connection, .. } => {
                    connection.poll_without_shutdown(&mut called).is_ready()
                }
                Codec::Http2(codec) => codec.poll(&mut called).is_ready(),
            };
            if !self.alarm.listen() {
                return;
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Takes by `step` what the codec has ready, and drives it until there is something or nothing
    /// comes of it; the task of `cx` is woken when there is more.
    ///
    /// `step` calls for the codec, and the socket may do so meanwhile from another thread, whose
    /// reactor it can be registered with: one as well as the other is answered by another drive.
    pub fn take<R>(&mut self, cx: &mut Context<'_>, mut step: impl FnMut() -> Poll<R>) -> Poll<R> {
        for turn in 0..TURNS {
            self.alarm.hush();
            let taken = step();
            let called = self.alarm.listen();
            if taken.is_ready() || (turn > 0 && !called) {
                return taken;
            }
            self.drive(cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks at the socket once, for what came since it was last driven: a close that woke a task
    /// which had other things to do would be noticed by nobody once the connection rests.
    pub fn look(&mut self) {
        self.drive(&mut Context::from_waker(Waker::noop()));
    }

    /// Nobody uses it from now on; it has been driven in this very turn of its task. Whatever
    /// happens on it meanwhile is noted.
    pub(super) fn rest(&mut self) {
        if let Codec::Http2(codec) = &mut self.codec {
            codec.forget();
        }
        self.timer.set(None);
        self.alarm.set(None);
        self.alarm.hush();
    }

    /// Whether it has rested undisturbed and is free for a request, or turns out to be so although
    /// something happened: the upstream may have closed it, or sent what nobody asked for.
    pub(super) fn wake(&mut self) -> bool {
        let disturbed = self.alarm.listen();
        let at_rest = match &self.codec {
            Codec::Http1 { sender, .. } => sender.is_ready(),
            Codec::Http2(_) => true,
        };
        !self.closed && ((!disturbed && at_rest) || self.is_ready())
    }

    /// Whether something happened on it while it rested that leaves it of no use.
    pub(super) fn has_ended(&mut self) -> bool {
        if !self.alarm.was_called() {
            return false;
        }
        let ended = !self.wake();
        self.rest();
        ended
    }

    /// Whether the codec is done with this connection: closed, broken or upgraded.
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether it may carry another request once this one has ended. The codec goes on in the version
    /// that it has read last, and in HTTP/1.0 it leaves out a body whose length is not known.
    pub(super) const fn may_stay(&self) -> bool {
        !self.closed && !self.outdated
    }

    /// Whether it is free for a request, having looked at the socket once.
    fn is_ready(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.drive(&mut cx);
        let ready = match &mut self.codec {
            Codec::Http1 { sender, .. } => sender.poll_ready(&mut cx).map(|ready| ready.is_ok()),
            Codec::Http2(codec) => codec.poll_ready(&mut cx),
        };
        !self.closed && ready == Poll::Ready(true)
    }

    /// The upstream asked for a shorter stay (`Keep-Alive: timeout`).
    pub fn limit_idle(&mut self, limit: Duration) {
        self.idle_limit = self.idle_limit.min(limit);
    }

    /// The socket and what was read from it beyond HTTP, for a tunnel, and the place that it has while it is open; HTTP/2 has none.
    pub fn into_tunnel(self) -> Option<(Stream, bytes::Bytes, impl Send)> {
        match self.codec {
            Codec::Http1 { connection, .. } => {
                let parts = connection.into_parts();
                Some((parts.io.into_socket(), parts.read_buf, self.descriptor))
            }
            Codec::Http2(_) => None,
        }
    }
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    async fn conn() -> (Conn, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let builder = http1::Builder::new();
        let conn = Conn::handshake(Stream::Unix(ours), &builder, 0, Duration::MAX);
        (conn.await.unwrap(), theirs)
    }

    #[tokio::test]
    async fn a_call_that_comes_while_something_is_taken_is_not_lost() {
        let (mut conn, _theirs) = conn().await;
        let socket = conn.waker.clone();
        let mut asked = 0;
        let mut cx = Context::from_waker(Waker::noop());
        let taken = conn.take(&mut cx, || {
            asked += 1;
            match asked {
                1 => Poll::Pending,
                2 => {
                    // As the reactor of another worker does, at any moment.
                    socket.wake_by_ref();
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        });
        assert_eq!((taken, asked), (Poll::Ready(()), 3));
    }

    #[tokio::test]
    async fn nothing_is_asked_again_where_nobody_called() {
        let (mut conn, _theirs) = conn().await;
        let mut asked = 0;
        let mut cx = Context::from_waker(Waker::noop());
        let taken = conn.take(&mut cx, || {
            asked += 1;
            Poll::<()>::Pending
        });
        assert_eq!((taken, asked), (Poll::Pending, 2));
    }
}
