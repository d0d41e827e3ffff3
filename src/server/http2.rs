//! HTTP/2 connections: each request is a stream, and a task of its own.
//!
//! The codec here is `h2` itself rather than hyper's wrapper around it. A client that stops reading
//! one stream must be found out, one that floods must be told to go away, and a `100 Continue` is
//! sent only once the body is wanted: the wrapper has no way to say any of these.

mod pace;
mod stream;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use fencegate_filters::Peer;
use fencegate_filters::fault::{self, Fault};
use h2::Reason;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower_service::Service;

use self::pace::Pace;
use self::stream::Stream;
use crate::access::{AccessBody, log_flood, log_refused_by_codec};
use crate::body::{ClientBody, Half};
use crate::gateway::Settings;
use crate::outbox;
use crate::stop::{Stop, Stopping};
use crate::timer::LazyTimer;
use crate::wire::{
    ConnState, Expired, Flood, FrameIo, Refused, STREAM_WINDOW, Unserved, Watchdog, Window, Windows,
};

/// What of a response is kept for one stream behind the socket.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// What DATA frames of few bytes may cost in memory beyond those bytes, as the codec counts it: 256
/// for each that waits. Streams of short messages are ordinary; so many that wait are not.
const SMALL_FRAMES_BUDGET: usize = 4 * 1024 * 1024;
/// Streams that the codec may have to reset because the client broke a rule, in the life of one
/// connection.
const MOST_BROKEN_STREAMS: usize = 100;
/// Reset streams on which the client may still be sending what it sent before it knew.
const MOST_RESET_STREAMS: usize = 100;
/// Requests of one connection that are begun before other connections have their turn.
const MOST_AT_ONCE: usize = 16;
/// For how many turns what has come is read before any of it is begun: enough for all requests that
/// there may be at once, and for as many more as end the connection.
const MOST_PUT_OFF: u32 = 16;
/// How long a client has to close a connection that it has been told is over.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Codec<T> = h2::server::Connection<FrameIo<T>, Bytes>;

/// Serves an HTTP/2 connection to its end.
pub(super) async fn serve<T, S>(
    io: FrameIo<T>,
    peer: Peer,
    settings: Arc<Settings>,
    service: S,
    state: Arc<ConnState>,
    stop: Stopping,
) where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<ClientBody>, Response = Response<AccessBody>, Error = Infallible>,
    S::Future: Send + 'static,
{
    let unserved = io.unserved();
    let windows = io.windows();
    let handshake = builder(&settings).handshake(io);
    let longest = settings.timeouts.header.unwrap_or(Duration::MAX);
    let codec = tokio::select! {
        biased;
        () = stop.reached(Stop::Cutting) => return,
        shaken = tokio::time::timeout(longest, handshake) => match shaken {
            Ok(Ok(codec)) => codec,
            Ok(Err(error)) => {
                if let Some(code) = error.reason() {
                    let (stream, code) = (None, Some(code.into()));
                    log_refused_by_codec(&Refused { stream, code });
                }
                return;
            }
            Err(_) => return,
        },
    };
    state.serve_streams(false, true);
    let mut connection = Connection {
        codec,
        streams: JoinSet::new(),
        service,
        peer,
        watchdog: Watchdog::new(settings.timeouts),
        pace: Pace::new(settings.http2_streams),
        settings,
        state,
        unserved,
        windows,
        put_off: 0,
        requests: 0,
        busy: false,
        leaving: false,
        closed: false,
        closing: LazyTimer::default(),
    };
    let mut draining = pin!(stop.reached(Stop::Draining));
    let mut cutting = pin!(stop.reached(Stop::Cutting));
    let mut told = false;
    std::future::poll_fn(|cx| {
        connection.state.begin_turn();
        if cutting.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !told && draining.as_mut().poll(cx).is_ready() {
            told = true;
            connection.leave();
        }
        let over = connection.poll(cx);
        connection.log_refused();
        over
    })
    .await;
}

fn builder(settings: &Settings) -> h2::server::Builder {
    let heads = &settings.heads;
    // Whatever an HTTP/1 head may be is to pass, and what is a little larger is to be refused with
    // words, which the codec has none of.
    let lines = heads.header_count.saturating_mul(32);
    let list = heads.header_bytes.saturating_add(lines).saturating_mul(2);
    // A stream whose request waits must never take the window from one whose request is under way
    // and may be what the other waits for.
    let windows = match fault::planted(Fault::OneWindowForAll) {
        true => 1,
        false => settings.http2_streams,
    };
    let window = STREAM_WINDOW.saturating_mul(windows);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.http2_streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(window)
        .max_header_list_size(u32::try_from(list).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .max_local_error_reset_streams(Some(MOST_BROKEN_STREAMS))
        .max_concurrent_reset_streams(MOST_RESET_STREAMS)
        .max_pending_accept_reset_streams(MOST_RESET_STREAMS);
    builder
}

/// One connection. Whatever ends it ends its streams: their clients have left.
struct Connection<T, S> {
    codec: Codec<T>,
    streams: JoinSet<()>,
    service: S,
    peer: Peer,
    settings: Arc<Settings>,
    state: Arc<ConnState>,
    unserved: Arc<Unserved>,
    windows: Arc<Windows>,
    watchdog: Watchdog,
    /// What the codec has of requests beyond it waits there, and so counts among its streams.
    pace: Pace,
    /// Turns in a row in which there was more to read.
    put_off: u32,
    requests: u64,
    /// Whether streams were on it when last looked at.
    busy: bool,
    /// The client has been asked to make no more requests on it.
    leaving: bool,
    /// It is over, and is only told so.
    closed: bool,
    /// Until when the client has to let it be over.
    closing: LazyTimer,
}

impl<T, S> Connection<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<ClientBody>, Response = Response<AccessBody>, Error = Infallible>,
    S::Future: Send + 'static,
{
    /// Ready when the connection can be dropped.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.poll_requests(cx).is_ready() {
                return Poll::Ready(());
            }
            while let Poll::Ready(Some(_)) = self.streams.poll_join_next(cx) {}
            let any = !self.streams.is_empty();
            let just_ended = self.busy && !any;
            self.busy = any;
            self.state.serve_streams(any, just_ended);
            if self.leaving && !self.closed {
                // It has been asked, and has a moment to make sure that nothing is on its way.
                match self.closing.deadline() {
                    Some(_) if any => self.closing.set(None),
                    None if !any => self.closing.set(Instant::now().checked_add(LAST_WORDS)),
                    _ => {}
                }
            }
            if self.closing.poll_expired(cx).is_ready() {
                return Poll::Ready(());
            }
            if self.closed {
                return Poll::Pending;
            }
            if let Some(flood) = self.state.flooded() {
                log_flood(flood);
                self.close(match flood {
                    Flood::Bodies => Reason::FLOW_CONTROL_ERROR,
                    Flood::Overhead | Flood::Resets => Reason::ENHANCE_YOUR_CALM,
                });
                continue;
            }
            match ready!(self.watchdog.poll_expired(cx, &self.state)) {
                Expired::Header | Expired::Idle => self.close(Reason::NO_ERROR),
                Expired::WriteStall => return Poll::Ready(()),
            }
        }
    }

    /// Reads, writes, and takes the requests that have come. Ready when the codec has ended.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..MOST_AT_ONCE {
            if self.puts_off() {
                if self.poll_codec(cx).is_ready() {
                    return Poll::Ready(());
                }
                if self.state.has_unread() {
                    self.put_off += 1;
                    return Poll::Pending;
                }
            }
            if self.pace.poll_ready(cx).is_pending() {
                return self.poll_codec(cx);
            }
            match ready!(self.codec.poll_accept(cx)) {
                Some(Ok((request, respond))) => self.take(request, respond, cx),
                Some(Err(error)) => {
                    log_failed(&error);
                    return Poll::Ready(());
                }
                None => return Poll::Ready(()),
            }
        }
        outbox::yield_turn(cx);
        Poll::Pending
    }

    /// Whether more is to be read before a request is begun: a client that is to be sent away for
    /// what it has sent already has cost upstreams nothing. Whoever always has more to send waits for
    /// so long alone.
    fn puts_off(&mut self) -> bool {
        if !self.state.has_unread() {
            self.put_off = 0;
        }
        self.state.has_unread()
            && self.put_off < MOST_PUT_OFF
            && !fault::planted(Fault::UnpacedRequests)
    }

    /// Reads and writes, and leaves the requests where they are.
    fn poll_codec(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(error) = ready!(self.codec.poll_closed(cx)) {
            log_failed(&error);
        }
        Poll::Ready(())
    }

    fn take(
        &mut self,
        request: Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
        cx: &mut Context<'_>,
    ) {
        self.requests += 1;
        let window = Window::new(Arc::clone(&self.windows), respond.stream_id().as_u32());
        if respond.poll_reset(cx).is_ready() {
            // Its reset came with it: there was never anybody to serve.
            self.unserved.served(respond.stream_id().as_u32());
            return;
        }
        if let Some(most) = self.settings.requests_per_connection {
            if self.requests > most {
                // It may be sent on another connection: that is what this reason says.
                respond.send_reset(Reason::REFUSED_STREAM);
                return;
            }
            if self.requests == most {
                self.leave();
            }
        }
        self.unserved.served(respond.stream_id().as_u32());
        self.pace.spend();
        let answers = self.pace.answers();
        let request = request.map(|body| Half::new(body, window));
        let (request, stream) = Stream::new(request, respond, answers, &self.peer, &self.settings);
        let future = self.service.call(request);
        self.streams.spawn(stream.serve(future));
    }

    /// Logs what the codec has refused by itself. Why the connection was closed was told before.
    fn log_refused(&self) {
        let refused = self.unserved.take_refused();
        let told = |refused: &&Refused| !(self.closed && refused.stream.is_none());
        refused.iter().filter(told).for_each(log_refused_by_codec);
    }

    /// Asks the client to make no more requests here.
    fn leave(&mut self) {
        self.leaving = true;
        self.codec.graceful_shutdown();
    }

    /// Ends the connection, and what is on it, as soon as the client has been told why.
    fn close(&mut self, why: Reason) {
        self.closed = true;
        self.codec.abrupt_shutdown(why);
        self.closing.set(Instant::now().checked_add(LAST_WORDS));
    }
}

fn log_failed(error: &h2::Error) {
    tracing::debug!(%error, "an HTTP/2 connection has failed");
}

#[cfg(test)]
mod tests;
