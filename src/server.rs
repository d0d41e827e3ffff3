//! From a listening socket to a client's connection, and from that to the gateway's service.

mod http2;
mod opening;
mod proxy_header;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fencegate_filters::forwarding::Scheme;
use fencegate_filters::{Peer, Reason, Refusal, problem};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as HyperService;
use pin_project_lite::pin_project;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;
use tower_service::Service;

use crate::access::{AccessBody, log_broken_head};
use crate::body::ClientBody;
use crate::clock;
use crate::gateway::{Gateway, Settings};
use crate::net::{Listener, Stream};
use crate::stop::{Stop, Stopping};
use crate::tls;
use crate::wire::{
    ClientIo, ConnState, Ended, FrameIo, LingerLimits, Refuse, Serving, ServingBody, Violation,
    Watchdog,
};

use self::opening::Client;
pub use self::opening::{Door, Way};

/// How long to wait after a failed accept: it failed for want of something that others will free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many header lines the codec takes unless it is told otherwise.
const CODEC_LINES: usize = 100;

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Binds one socket for each worker to `address`.
///
/// # Errors
///
/// As the system says. Another process on the address is found out although the workers share it.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    // Sockets that may share a port share it with another process's as well: ask once without.
    let probe = socket(address, false)?;
    let bound = probe
        .local_addr()?
        .as_socket()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    drop(probe);
    let mut listeners = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = socket(bound, true)?;
        socket.listen(1024)?;
        listeners.push(socket.into());
    }
    Ok(listeners)
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Accepts connections until the stop begins.
pub async fn accept(listener: Listener, door: Arc<Door>, gateway: Arc<Gateway>, stop: Stopping) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.reached(Stop::Draining) => return,
            accepted = listener.accept() => accepted,
        };
        let (mut stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let way = door.way();
        let Some(counted) = Counted::new(&gateway) else {
            // Within TLS it would take a handshake to say so.
            if way.is_none() {
                shed(&mut stream);
            }
            continue;
        };
        stream.set_nodelay();
        let settings = gateway.settings.load_full();
        let service = gateway.service(&settings);
        let stop = stop.clone();
        let Some(way) = way else {
            let peer = peer.map(|peer| peer.ip());
            let client = Client::new(peer, Scheme::Http, &settings);
            tokio::spawn(connection(stream, client, settings, service, stop, counted));
            continue;
        };
        tokio::spawn(async move {
            // Boxed, so that it takes no room once it is over.
            let opened = Box::pin(way.open(stream, peer, &settings, &stop)).await;
            drop(way);
            if let Some((stream, client)) = opened {
                connection(stream, client, settings, service, stop, counted).await;
            }
        });
    }
}

/// One connection too many: told so, if that can be done without waiting.
fn shed(stream: &mut Stream) {
    let refusal = Refusal::new(
        Reason::Busy,
        "Too many connections are open; try again later.",
    );
    let _ = stream.try_write(&problem::raw(&refusal));
}

/// A place among the connections.
struct Counted(Arc<Gateway>);

impl Counted {
    fn new(gateway: &Arc<Gateway>) -> Option<Self> {
        let before = gateway.connections.fetch_add(1, Ordering::Relaxed);
        gateway.metrics.connections.inc();
        let counted = Self(Arc::clone(gateway));
        let fits = gateway
            .settings
            .load()
            .connections
            .is_none_or(|most| before < most);
        fits.then_some(counted)
    }

    /// Counts it among those at rest, until that is dropped.
    fn rest(&self) -> Resting<'_> {
        self.0.metrics.resting.inc();
        Resting(self)
    }
}

struct Resting<'a>(&'a Counted);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.0.metrics.resting.dec();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.connections.dec();
    }
}

/// Serves one connection to its end.
async fn connection<S>(
    stream: Stream,
    client: Client,
    settings: Arc<Settings>,
    service: S,
    stop: Stopping,
    counted: Counted,
) where
    S: Service<Request<ClientBody>, Response = Response<AccessBody>, Error = Infallible>
        + Send
        + Unpin
        + 'static,
    S::Future: Send + Unpin + 'static,
{
    let state = ConnState::new();
    if client.protocol == Some(tls::Protocol::Http2) {
        state.speak_http2();
        let io = FrameIo::new(
            stream,
            Vec::new(),
            settings.http2_streams,
            Arc::clone(&state),
        );
        return Box::pin(http2::serve(
            io,
            client.peer,
            settings,
            service,
            state,
            stop,
        ))
        .await;
    }
    let refuse: Refuse = Arc::new(answer_broken_head);
    let mut io = ClientIo::new(
        stream,
        settings.heads,
        LingerLimits::default(),
        Arc::clone(&state),
        refuse,
    );
    if client.protocol.is_none() {
        io = io.watch_for_preface();
    }
    let service = ConnService {
        service: RefCell::new(service),
        state: Arc::clone(&state),
        tunnel: TunnelSlot::default(),
        peer: client.peer,
        requests: Cell::new(0),
        most: settings.requests_per_connection,
    };
    let mut watchdog = Watchdog::new(settings.timeouts).that_lets_rest();
    let mut quiet = Quiet { io, service };
    loop {
        // Boxed, so that a connection at rest has no room for a codec.
        let serving = Box::pin(serve_http1(quiet, &settings, &mut watchdog, &stop));
        let Some(left) = serving.await else {
            return;
        };
        quiet = left;
        let _resting = counted.rest();
        if !rest(&mut quiet.io, &mut watchdog, &stop).await {
            return quiet.io.finish().await;
        }
    }
}

/// A client's connection with nothing under way: what is left of it when its codec, and the codec's buffers, are taken down.
struct Quiet<S> {
    io: ClientIo<Stream>,
    service: ConnService<S>,
}

/// Waits until the client sends something: whether it did, in time.
async fn rest(io: &mut ClientIo<Stream>, watchdog: &mut Watchdog, stop: &Stopping) -> bool {
    let state = Arc::clone(io.state());
    let mut stopping = pin!(stop.reached(Stop::Draining));
    let arrival = std::future::poll_fn(|cx| {
        let _turn = clock::Turn::begin();
        state.begin_turn();
        if stopping.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        if let Poll::Ready(arrived) = io.poll_arrival(cx) {
            return Poll::Ready(arrived);
        }
        watchdog.poll_expired(cx, &state).map(|_| false)
    });
    arrival.await
}

/// Serves a connection until it ends, or nothing is under way on it for a while.
async fn serve_http1<S>(
    quiet: Quiet<S>,
    settings: &Arc<Settings>,
    watchdog: &mut Watchdog,
    stop: &Stopping,
) -> Option<Quiet<S>>
where
    S: Service<Request<ClientBody>, Response = Response<AccessBody>, Error = Infallible>
        + Send
        + Unpin
        + 'static,
    S::Future: Send + Unpin + 'static,
{
    let Quiet { io, service } = quiet;
    let state = Arc::clone(io.state());
    let tunnel = service.tunnel.clone();
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None);
    if settings.preserve_header_case {
        builder.preserve_header_case(true);
    }
    // The guard has counted the lines before. Up to so many the codec has room for without being
    // told, and told it would look for room anew in each request.
    if settings.heads.header_count > CODEC_LINES {
        builder.max_headers(settings.heads.header_count);
    }
    let mut conn = builder.serve_connection(io, service);
    let mut draining = false;
    let mut asked = false;
    let mut stopping = pin!(stop.reached(Stop::Draining));
    let mut cutting: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    let ended = std::future::poll_fn(|cx| {
        let _turn = clock::Turn::begin();
        state.begin_turn();
        // Asked once it wakes this task when it changes, and whether it has is cheaper to know
        // than to ask again with every request.
        let ask = !asked || stop.has_reached(Stop::Draining);
        asked = true;
        if !draining && ask && stopping.as_mut().poll(cx).is_ready() {
            draining = true;
            Pin::new(&mut conn).graceful_shutdown();
            let stop = stop.clone();
            cutting = Some(Box::pin(async move {
                stop.reached(Stop::Cutting).await;
            }));
        }
        if let Some(cutting) = &mut cutting
            && cutting.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Ended::Late);
        }
        watchdog.poll_while_timely(cx, &state, |cx| conn.poll_without_shutdown(cx))
    })
    .await;
    match ended {
        Ended::Quiet => {
            let parts = conn.into_parts();
            return Some(Quiet {
                io: parts.io,
                service: parts.service,
            });
        }
        Ended::Late => return None,
        Ended::Served(Err(_)) if !state.is_tunnel() && !state.is_http2() => return None,
        Ended::Served(_) => {}
    }
    let parts = conn.into_parts();
    let mut io = parts.io;
    if state.is_http2() {
        let ConnService { service, peer, .. } = parts.service;
        let (stream, read_ahead) = io.into_inner();
        let io = FrameIo::new(
            stream,
            read_ahead,
            settings.http2_streams,
            Arc::clone(&state),
        );
        let settings = Arc::clone(settings);
        // Boxed, so that a connection that is not HTTP/2 has no room for one.
        Box::pin(http2::serve(
            io,
            peer,
            settings,
            service.into_inner(),
            state,
            stop.clone(),
        ))
        .await;
    } else if state.is_tunnel() {
        let (stream, read_ahead) = io.into_inner();
        tunnel.hand_over(ClientStream { stream, read_ahead });
    } else {
        io.finish().await;
    }
    None
}

/// The whole response to a head that is too broken for the codec.
fn answer_broken_head(violation: &Violation) -> Vec<u8> {
    log_broken_head(violation);
    problem::raw(&Refusal::new(violation.reason, violation.detail))
}

/// What is left of a request's body will not be read as a request.
pub(crate) fn end_with_unread_body<B>(state: &ConnState, response: &mut Response<B>) {
    if !state.body_complete() {
        response.headers_mut().insert(header::CONNECTION, CLOSE);
    }
}

/// A client's stream that has left HTTP, and what was read from it beyond.
#[derive(Debug)]
pub struct ClientStream {
    /// The stream.
    pub stream: Stream,
    /// What the client sent before it saw the 101.
    pub read_ahead: Vec<u8>,
}

/// Where a tunnel gets its client's stream from, once the codec has let go of it.
#[derive(Clone, Debug, Default)]
pub struct TunnelSlot(Arc<Mutex<Option<oneshot::Sender<ClientStream>>>>);

impl TunnelSlot {
    /// Asks for the stream. It never comes where the connection ends before.
    #[must_use]
    pub fn wait(&self) -> oneshot::Receiver<ClientStream> {
        let (sender, receiver) = oneshot::channel();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    fn hand_over(&self, stream: ClientStream) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waiting) = waiting {
            // Nobody waits any more: the stream is closed.
            let _ = waiting.send(stream);
        }
    }
}

/// The gateway's service as one connection has it.
struct ConnService<S> {
    /// One for all its requests, since the layers remember what they have found right on it.
    service: RefCell<S>,
    state: Arc<ConnState>,
    tunnel: TunnelSlot,
    peer: Peer,
    requests: Cell<u64>,
    most: Option<u64>,
}

impl<S> HyperService<Request<Incoming>> for ConnService<S>
where
    S: Service<Request<ClientBody>, Response = Response<AccessBody>, Error = Infallible>,
{
    type Response = Response<ServingBody<AccessBody>>;
    type Error = Infallible;
    type Future = ConnFuture<S::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let serving = self.state.serving();
        let number = self.requests.get() + 1;
        self.requests.set(number);
        request.extensions_mut().insert(self.peer.clone());
        if request.headers().contains_key(header::UPGRADE) {
            request.extensions_mut().insert(self.tunnel.clone());
        }
        ConnFuture {
            future: self
                .service
                .borrow_mut()
                .call(request.map(ClientBody::Http1)),
            state: Arc::clone(&self.state),
            serving: Some(serving),
            last: self.most.is_some_and(|most| number >= most),
        }
    }
}

pin_project! {
    /// The answer to one request on a connection.
    struct ConnFuture<F> {
        #[pin]
        future: F,
        state: Arc<ConnState>,
        serving: Option<Serving>,
        last: bool,
    }
}

impl<F> Future for ConnFuture<F>
where
    F: Future<Output = Result<Response<AccessBody>, Infallible>>,
{
    type Output = Result<Response<ServingBody<AccessBody>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match ready!(this.future.poll(cx)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            this.state.tunnel();
        } else if *this.last {
            response.headers_mut().insert(header::CONNECTION, CLOSE);
        } else {
            end_with_unread_body(this.state, &mut response);
        }
        let Some(serving) = this.serving.take() else {
            return Poll::Pending;
        };
        Poll::Ready(Ok(response.map(|body| ServingBody::new(body, serving))))
    }
}
