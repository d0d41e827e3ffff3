//! The stream under the codec of a client's connection: it hands up what the guard lets pass, and
//! ends the connection in a way that the client can hear.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use fencegate_filters::Reason;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::flat::poll_write_parts;

use super::buffer::Buffer;
use super::linger::Farewell;
use super::meter::PREFACE;
use super::{ConnState, Guard, HeadLimits, LingerLimits, Next, Phase, Violation};

/// Renders the whole response to a head that broke a rule; it must say `Connection: close`.
pub type Refuse = Arc<dyn Fn(&Violation) -> Vec<u8> + Send + Sync>;

/// A client's stream as the codec sees it.
///
/// Requests go up one at a time: what a client sends behind a request stays here until the response
/// has been written. So the first bytes of a tunnel are never read as a request, a broken request
/// behind a good one is answered after it, and nothing is taken from an unread body.
///
/// A head that breaks a rule never reaches the codec. The refusal is written here, the close
/// lingers, and then the codec is told that the stream has ended. A broken body fails the read with
/// [`io::ErrorKind::InvalidData`] and the [`Violation`] as its source.
pub struct ClientIo<S> {
    stream: S,
    buffer: Buffer,
    guard: Guard,
    state: Arc<ConnState>,
    refuse: Refuse,
    linger: LingerLimits,
    farewell: Option<Farewell>,
    /// The guard has seen all that is in the buffer, and wants more.
    starved: bool,
    at_boundary: bool,
    broken: Option<Violation>,
    /// The first bytes may turn out to be the preface of HTTP/2.
    watches_for_preface: bool,
    eof: bool,
    /// The turn in which the stream was last found empty.
    empty_in: u32,
    /// Something was written and is not flushed, or is to be written still.
    dirty: bool,
}

impl<S> ClientIo<S> {
    /// Wraps a client's stream on which nothing has been read yet.
    pub fn new(
        stream: S,
        limits: HeadLimits,
        linger: LingerLimits,
        state: Arc<ConnState>,
        refuse: Refuse,
    ) -> Self {
        Self {
            stream,
            buffer: Buffer::new(),
            guard: Guard::new(limits),
            state,
            refuse,
            linger,
            farewell: None,
            starved: true,
            at_boundary: false,
            broken: None,
            watches_for_preface: false,
            eof: false,
            empty_in: 0,
            dirty: false,
        }
    }

    /// Where the client begins with the preface of HTTP/2, the codec is told that the stream has
    /// ended, and [`ConnState::is_http2`] tells the driver: [`Self::into_inner`] has the stream.
    #[must_use]
    pub fn watch_for_preface(mut self) -> Self {
        self.watches_for_preface = true;
        self
    }

    /// What the stream is doing, shared with the service and the driver.
    pub fn state(&self) -> &Arc<ConnState> {
        &self.state
    }

    /// Whether the body of the last request has arrived whole.
    pub fn body_complete(&self) -> bool {
        self.guard.body_complete()
    }

    /// The stream, and what was read from it and not handed on: for a tunnel.
    pub fn into_inner(self) -> (S, Vec<u8>) {
        (self.stream, self.buffer.rest().to_vec())
    }

    /// Whether the client may still be sending something that would be answered with a reset.
    fn may_be_sending(&self) -> bool {
        !self.eof
            && !self.state.is_tunnel()
            && (self.broken.is_some() || !self.buffer.is_empty() || !self.guard.body_complete())
    }

    /// Whether the codec has nothing left of the last response. It is shown in this order: the body
    /// is dropped, what it left is written, the stream is flushed; only then does the codec read.
    fn turned_over(&self) -> bool {
        self.state.is_answered() && !self.dirty
    }

    fn break_off(&mut self, violation: Violation) {
        self.broken = Some(violation);
        if violation.in_head {
            self.state.set_phase(Phase::Closing);
            let words = (self.refuse)(&violation);
            self.farewell = Some(Farewell::new(words, (!self.eof).then_some(self.linger)));
        }
    }

    /// Looks whether the first bytes are the preface. `false`: it takes more of them to know.
    fn tell_protocol(&mut self) -> bool {
        let pending = self.buffer.pending();
        let count = pending.len().min(PREFACE.len());
        let same = pending.get(..count) == PREFACE.get(..count);
        if same && count < PREFACE.len() {
            self.starved = true;
            if self.state.phase() != Phase::Head {
                self.state.head_began();
            }
            return false;
        }
        self.watches_for_preface = false;
        if same {
            self.state.speak_http2();
        }
        true
    }

    /// Lets the guard judge what has arrived, and notes what that says of the connection.
    fn judge(&mut self) {
        if self.watches_for_preface && (!self.tell_protocol() || self.state.is_http2()) {
            return;
        }
        let was_head = self.guard.in_head();
        let seen = self.guard.inspect(self.buffer.pending());
        self.buffer.approve(seen.pass);
        if was_head && !self.guard.in_head() && seen.pass > 0 {
            self.state.request_began();
            self.state.set_phase(Phase::Body);
        }
        match seen.next {
            Next::More => self.starved = true,
            Next::Boundary => {
                self.at_boundary = true;
                self.state.set_phase(Phase::InService);
            }
            // What passed before it is handed on first.
            Next::Violation(violation) => self.break_off(violation),
        }
        if was_head
            && self.state.phase() != Phase::Head
            && self.guard.head_started(self.buffer.pending())
        {
            self.state.head_began();
        }
    }

    /// What follows the request that was answered may come up: the next one, or a tunnel. That its
    /// 101 was written first is why the codec never keeps a byte of a tunnel.
    fn turn_over(&mut self) {
        self.at_boundary = false;
        self.starved = self.buffer.is_empty();
        if self.state.is_tunnel() {
            self.guard.tunnel();
            self.state.set_phase(Phase::Tunnel);
            return;
        }
        self.guard.next_request();
        self.state.set_phase(Phase::Idle);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientIo<S> {
    /// Ends the connection as [`Write::poll_shutdown`] does, for a driver that got the stream back
    /// from the codec. It does nothing more where that was done.
    pub async fn finish(&mut self) {
        poll_fn(|cx| self.poll_farewell(cx)).await;
    }

    /// Waits for what a client sends on a connection that has no codec: whether there is anything to serve. A client that is gone, or
    /// that breaks the connection, has nothing.
    pub fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.buffer.make_room();
        ready!(self.poll_fill(cx)).map_or(Poll::Ready(false), |()| Poll::Ready(!self.eof))
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.farewell.is_none() {
            self.state.set_phase(Phase::Closing);
            let linger = self.may_be_sending().then_some(self.linger);
            self.farewell = Some(Farewell::new(Vec::new(), linger));
        }
        match &mut self.farewell {
            Some(farewell) => {
                farewell.poll(cx, &mut self.stream, self.buffer.scratch(), &self.state)
            }
            None => Poll::Ready(()),
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let turn = self.state.turn();
        if turn != 0 && self.empty_in == turn {
            return Poll::Pending;
        }
        let Poll::Ready(filled) = self.buffer.poll_fill(cx, &mut self.stream) else {
            self.empty_in = turn;
            return Poll::Pending;
        };
        match filled? {
            0 => self.eof = true,
            _ => {
                self.starved = false;
                self.state.has_read();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what may pass whatever it is, without a buffer between: at most `left` bytes of a body.
    fn poll_read_body(
        &mut self,
        cx: &mut Context<'_>,
        out: ReadBufCursor<'_>,
        left: u64,
    ) -> Poll<io::Result<()>> {
        let turn = self.state.turn();
        if turn != 0 && self.empty_in == turn {
            return Poll::Pending;
        }
        let mut body = TokioIo::new((&mut self.stream).take(left));
        let Poll::Ready(read) = Pin::new(&mut body).poll_read(cx, out) else {
            self.empty_in = turn;
            return Poll::Pending;
        };
        read?;
        let bytes = left - body.inner().limit();
        if bytes == 0 {
            self.eof = true;
        } else {
            self.state.has_read();
            self.guard.pass_body(bytes);
            if bytes == left {
                self.judge();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The request is complete and not yet answered: the client is watched for going away, and what
    /// it sends is kept.
    fn hold_back(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.eof && !self.buffer.is_full() {
            self.buffer.make_room();
            match self.poll_fill(cx) {
                Poll::Ready(filled) => filled?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_read_approved(
        &mut self,
        cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let approved = self.buffer.approved();
            if !approved.is_empty() {
                let bytes = approved.len().min(out.remaining());
                out.put_slice(approved.get(..bytes).unwrap_or_default());
                self.buffer.consume(bytes);
                return Poll::Ready(Ok(()));
            }
            if self.farewell.is_some() {
                return self.poll_farewell(cx).map(Ok);
            }
            if self.state.is_http2() {
                return Poll::Ready(Ok(()));
            }
            if let Some(violation) = self.broken {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
            }
            if self.at_boundary {
                if !self.turned_over() {
                    self.hold_back(cx)?;
                    if self.buffer.is_empty() {
                        return if self.eof {
                            Poll::Ready(Ok(()))
                        } else {
                            Poll::Pending
                        };
                    }
                    // Only what was held back needs a wake-up of its own.
                    self.state.hold(cx);
                    if !self.turned_over() {
                        return Poll::Pending;
                    }
                }
                self.turn_over();
                continue;
            }
            if self.state.is_expired() && self.guard.in_head() {
                if !self.guard.head_started(self.buffer.pending()) {
                    return Poll::Ready(Ok(()));
                }
                self.break_off(Violation::head(
                    Reason::RequestTimeout,
                    "The request's header took too long to arrive.",
                ));
            } else if !self.starved {
                self.judge();
            } else if self.eof {
                return Poll::Ready(Ok(()));
            } else if self.buffer.is_empty() && self.guard.body_left() > 0 {
                return self.poll_read_body(cx, out, self.guard.body_left());
            } else {
                self.buffer.make_room();
                ready!(self.poll_fill(cx))?;
            }
        }
    }

    /// Notes what came of a write, for the watchdog.
    fn note_write(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.dirty = true;
        match &written {
            Poll::Ready(Ok(_)) => self.state.has_written(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.write_blocked(),
        }
        written
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for ClientIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_read_approved(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for ClientIo<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.note_write(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = poll_write_parts(Pin::new(&mut this.stream), cx, bufs);
        this.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Poll::Ready(flushed) = Pin::new(&mut this.stream).poll_flush(cx) else {
            this.state.write_blocked();
            return Poll::Pending;
        };
        flushed?;
        this.dirty = false;
        if this.at_boundary && this.state.is_answered() {
            this.turn_over();
            // The codec reads again on its own only where its last read was not left waiting.
            if this.eof || !this.starved {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_farewell(cx).map(Ok)
    }
}

impl<S> fmt::Debug for ClientIo<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIo")
            .field("guard", &self.guard)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
