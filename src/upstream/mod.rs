//! Upstreams: how to reach them, and the connections that are kept to them.

mod alarm;
pub mod conn;
mod frame_socket;
pub(crate) mod health;
mod http2;
pub mod io;
mod names;
mod received;
mod rotation;
pub mod upload;
pub mod wire;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io as std_io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fencegate_filters::fault::{self, Fault};
use hyper::client::conn::http1;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

pub use self::conn::{Answer, Conn};
use self::names::Name;
pub use self::received::Received;
use self::rotation::Rotation;
pub use self::rotation::Turn;
use crate::clock;
use crate::config;
use crate::descriptors;
use crate::net::Stream;
#[cfg(feature = "sim")]
use crate::sim;
use crate::tls::ClientTls;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Numbers this thread among the workers: each has connections of its own.
pub fn enter_worker(number: usize) {
    WORKER.set(number);
}

/// For how long a connection to a host that has a name is used: the name may stand for another by
/// then.
const NAME_COUNTS: Duration = Duration::from_secs(60);

/// Where an upstream is.
#[derive(Clone)]
pub enum Address {
    /// `host:port`, resolved at every connect.
    Tcp {
        /// The name or address.
        host: String,
        /// The port.
        port: u16,
        /// `None`: without TLS.
        tls: Option<ClientTls>,
    },
    /// A unix socket.
    Unix(PathBuf),
    /// In this process: takes its end of a new socket pair.
    Builtin(Arc<dyn Fn(UnixStream) + Send + Sync>),
    /// In the simulated network.
    #[cfg(feature = "sim")]
    Simulated(Arc<dyn sim::Connector>),
}

impl Address {
    /// What stands in `Host` for it.
    fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port, tls } => {
                let default = if tls.is_some() { 443 } else { 80 };
                match host.contains(':') {
                    true => format!("[{host}]:{port}"),
                    false if *port == default => host.clone(),
                    false => format!("{host}:{port}"),
                }
            }
            Self::Unix(_) | Self::Builtin(_) => "localhost".to_owned(),
            #[cfg(feature = "sim")]
            Self::Simulated(_) => "simulated".to_owned(),
        }
    }

    const fn has_tls(&self) -> bool {
        matches!(self, Self::Tcp { tls: Some(_), .. })
    }

    /// The name in it, which may stand for another machine tomorrow.
    fn name(&self) -> Option<Arc<Name>> {
        match self {
            Self::Tcp { host, .. } if host.parse::<IpAddr>().is_err() => Some(Name::new(host)),
            _ => None,
        }
    }
}

/// The connections that one worker keeps; boxed, since they go from hand to hand and are large.
type Idle = Vec<Box<Conn>>;

/// One address of an upstream.
struct Place {
    /// As it stands in the config.
    url: String,
    address: Address,
    /// `None`: it is no name.
    name: Option<Arc<Name>>,
    /// Of each worker.
    idle: Box<[Mutex<Idle>]>,
}

impl Place {
    /// Whether a connection to it may still be used at this time, as far as time tells. A name is
    /// asked for again after a while, also where its connections are never idle, or always.
    fn counts(&self, conn: &Conn, now: Instant) -> bool {
        let since = |begin| now.saturating_duration_since(begin);
        let named_too_long = self.name.is_some() && since(conn.made) >= NAME_COUNTS;
        since(conn.idle_since) < conn.idle_limit && !named_too_long
    }
}

/// One upstream of the config.
pub struct Upstream {
    /// Its name in the config.
    pub name: String,
    /// Its authority, for requests that came without a Host and for Destination: that of its first
    /// address.
    pub authority: String,
    /// The scheme by which that is reached.
    pub scheme: &'static str,
    /// From the request's last byte to the response's head, and between two reads of a body.
    pub timeout: Duration,
    /// How long it may go on working on a request whose outcome is unknown.
    pub settle: Duration,
    /// Whether it applies nothing of a request whose body did not arrive whole.
    pub discards_incomplete: bool,
    /// Statuses that leave the outcome unknown.
    pub unknown_statuses: BTreeSet<u16>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    idle_per_worker: usize,
    builder: http1::Builder,
    http2: bool,
    health: Option<config::Health>,
    /// At least one.
    places: Box<[Place]>,
    rotation: Mutex<Rotation>,
}

impl Upstream {
    /// An upstream with these addresses, each with its URL, for this many workers.
    pub fn new(
        name: &str,
        config: &config::Upstream,
        addresses: Vec<(String, Address)>,
        workers: usize,
    ) -> Self {
        let mut builder = http1::Builder::new();
        if config.preserve_header_case {
            builder.preserve_header_case(true);
        }
        let workers = workers.max(1);
        let places: Box<[Place]> = addresses
            .into_iter()
            .map(|(url, address)| Place {
                url,
                name: address.name(),
                address,
                idle: (0..workers).map(|_| Mutex::default()).collect(),
            })
            .collect();
        let first = places.first().map(|place| &place.address);
        Self {
            name: name.to_owned(),
            authority: first.map(Address::authority).unwrap_or_default(),
            scheme: match first {
                Some(first) if first.has_tls() => "https",
                _ => "http",
            },
            timeout: config.timeout,
            settle: config.settle,
            discards_incomplete: config.discards_incomplete,
            unknown_statuses: config.unknown_statuses.clone(),
            connect_timeout: config.connect_timeout,
            idle_timeout: config.pool.idle_timeout,
            idle_per_worker: config.pool.max_idle.div_ceil(workers * places.len().max(1)),
            builder,
            http2: config.http2,
            health: config.health.clone(),
            rotation: Mutex::new(Rotation::new(places.len())),
            places,
        }
    }

    /// What it reaches, as the config names it.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|place| place.url.as_str())
    }

    /// Its address in this process, where it is there.
    pub fn builtin(&self) -> Option<Address> {
        let mut addresses = self.places.iter().map(|place| &place.address);
        addresses
            .find(|address| matches!(address, Address::Builtin(_)))
            .cloned()
    }

    /// Each of its URLs, and whether all is well with it.
    pub fn standings(&self) -> Vec<(&str, bool)> {
        let rotation = self.rotation();
        self.urls()
            .enumerate()
            .map(|(number, url)| (url, rotation.is_well(number)))
            .collect()
    }

    /// Whether it has more than one address.
    pub fn has_several(&self) -> bool {
        self.places.len() > 1
    }

    /// Where a request goes.
    pub fn turn(&self) -> Turn {
        if !self.has_several() {
            return Turn::only();
        }
        self.rotation().turn(clock::now())
    }

    /// A kept connection that is ready for a request.
    pub fn kept(&self, turn: &Turn) -> Option<Box<Conn>> {
        let first = turn.order.first().filter(|_| turn.kept)?;
        let place = self.places.get(*first)?;
        let idle = place.idle.get(WORKER.get())?;
        loop {
            let mut conn = idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if place.counts(&conn, clock::now()) && conn.wake() {
                return Some(conn);
            }
        }
    }

    /// A new connection: to the next address where none comes about to the first. Nothing of a
    /// request is sent before there is one.
    ///
    /// # Errors
    ///
    /// Of the last address: as the system says, or `TimedOut`. All of it takes `connect_timeout` at
    /// the most, of which each address has its share.
    pub async fn connect(&self, turn: Turn) -> std_io::Result<Box<Conn>> {
        let end = Instant::now() + self.connect_timeout;
        let mut last = std_io::ErrorKind::NotFound.into();
        for (done, number) in turn.order.iter().copied().enumerate() {
            let Some(place) = self.places.get(number) else {
                continue;
            };
            let share = share(end, turn.order.len() - done);
            match self.connect_to(number, place, share).await {
                Ok(conn) => {
                    if self.rotation().succeeded(number) {
                        tracing::info!(upstream = %self.name, address = %place.url, "the address is reached again");
                    }
                    return Ok(conn);
                }
                Err(error) if descriptors::is_wanting(&error) => return Err(error),
                Err(error) => {
                    let ejected = self.rotation().failed(number, Instant::now());
                    if let Some(time) = ejected.filter(|_| self.has_several()) {
                        tracing::warn!(
                            upstream = %self.name,
                            address = %place.url,
                            %error,
                            left_alone_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                            "no connection to an address: it is left alone for a while"
                        );
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// A new connection to one address, within `limit`.
    async fn connect_to(
        &self,
        number: usize,
        place: &Place,
        limit: Duration,
    ) -> std_io::Result<Box<Conn>> {
        let end = Instant::now() + limit;
        let descriptor = descriptors::Place::to_upstream()?;
        let connecting = async {
            let socket = self.socket(place, end).await?;
            let worker = WORKER.get();
            let mut conn = if self.http2 {
                let secure = place.address.has_tls();
                Conn::handshake_http2(socket, secure, worker, self.idle_timeout).await?
            } else {
                Conn::handshake(socket, &self.builder, worker, self.idle_timeout)
                    .await
                    .map_err(std_io::Error::other)?
            };
            conn.place = number;
            conn.descriptor = Some(descriptor);
            Ok(Box::new(conn))
        };
        tokio::time::timeout_at(end, connecting)
            .await
            .unwrap_or_else(|_| Err(std_io::ErrorKind::TimedOut.into()))
    }

    async fn socket(&self, place: &Place, end: Instant) -> std_io::Result<Stream> {
        match &place.address {
            Address::Tcp { host, port, tls } => {
                let stream = connect_tcp(place.name.as_ref(), host, *port, end).await?;
                stream.set_nodelay(true)?;
                self.make_closes_final(&stream)?;
                let stream = Stream::Tcp(stream);
                match tls {
                    // Boxed: it is rare, and large.
                    Some(tls) => Box::pin(tls.connect(stream)).await,
                    None => Ok(stream),
                }
            }
            Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
            Address::Builtin(accept) => {
                let (ours, theirs) = UnixStream::pair()?;
                accept(theirs);
                Ok(Stream::Unix(ours))
            }
            #[cfg(feature = "sim")]
            Address::Simulated(connector) => connector.connect().await,
        }
    }

    /// A close must end the request for good: what is still in the send buffer is dropped with
    /// the connection, also when this process is killed, and an upstream that has stopped to
    /// acknowledge gets nothing after `settle`.
    fn make_closes_final(&self, stream: &TcpStream) -> std_io::Result<()> {
        let socket = SockRef::from(stream);
        if !fault::planted(Fault::NoLinger) {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        socket.set_tcp_user_timeout(Some(self.settle.max(Duration::from_millis(1))))
    }

    /// Gives back a connection whose request has ended in good order.
    pub fn keep(&self, mut conn: Box<Conn>) {
        let worker = WORKER.get();
        let Some(place) = self.places.get(conn.place) else {
            return;
        };
        let Some(idle) = place.idle.get(worker) else {
            return;
        };
        // Whether it can be used once more is asked when it is taken: much may happen until then.
        if conn.worker != worker || !conn.may_stay() {
            return;
        }
        conn.idle_since = clock::now();
        if !place.counts(&conn, conn.idle_since) {
            return;
        }
        conn.rest();
        let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.idle_per_worker {
            idle.push(conn);
        }
    }

    /// Closes this worker's connections that have been idle for too long, or that the upstream has
    /// closed.
    pub fn reap(&self) {
        for place in &self.places {
            let Some(idle) = place.idle.get(WORKER.get()) else {
                return;
            };
            let expired: Idle = {
                let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.extract_if(.., |conn| {
                    !place.counts(conn, Instant::now()) || conn.has_ended()
                })
                .collect()
            };
            drop(expired);
        }
    }

    /// An address has answered a request, or has not although it had it whole or broke it off. Cuts,
    /// and what the client failed to send, tell nothing of it.
    pub fn tell(&self, place: usize, answered: bool) {
        if !self.has_several() {
            return;
        }
        let Some(address) = self.places.get(place).map(|place| &place.url) else {
            return;
        };
        if answered {
            if self.rotation().answered(place) {
                tracing::info!(upstream = %self.name, %address, "the address answers again");
            }
            return;
        }
        let ejected = self.rotation().unanswered(place, Instant::now());
        if let Some(time) = ejected {
            tracing::warn!(
                upstream = %self.name,
                %address,
                left_alone_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                "an address answers no requests: it is left alone for a while"
            );
        }
    }

    fn rotation(&self) -> MutexGuard<'_, Rotation> {
        self.rotation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one of so many tries may take of the time until `end`.
fn share(end: Instant, tries: usize) -> Duration {
    let left = end.saturating_duration_since(Instant::now());
    left / u32::try_from(tries.max(1)).unwrap_or(u32::MAX)
}

/// Resolves a name and tries each of its addresses, of which each has its share of the time.
async fn connect_tcp(
    name: Option<&Arc<Name>>,
    host: &str,
    port: u16,
    end: Instant,
) -> std_io::Result<TcpStream> {
    let Some(name) = name else {
        return TcpStream::connect((host, port)).await;
    };
    let found = name.in_turn(name.addresses(share(end, 2)).await?);
    let mut last = std_io::ErrorKind::NotFound.into();
    for (done, address) in found.iter().enumerate() {
        let share = share(end, found.len() - done);
        let tried = tokio::time::timeout(share, TcpStream::connect((*address, port))).await;
        name.tried(*address, matches!(tried, Ok(Ok(_))));
        match tried {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = std_io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
