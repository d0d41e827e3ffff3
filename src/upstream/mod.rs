//! Upstreams: how to reach them, and the connections that are kept to them.

pub mod conn;
pub mod io;
pub mod upload;
pub mod wire;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io as std_io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

pub use self::conn::Conn;
use self::io::Socket;
use crate::config;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Numbers this thread among the workers: each has connections of its own.
pub fn enter_worker(number: usize) {
    WORKER.set(number);
}

/// Where an upstream is.
#[derive(Clone)]
pub enum Address {
    /// `host:port`, resolved at every connect.
    Tcp {
        /// The name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// In this process: takes its end of a new socket pair.
    Builtin(Arc<dyn Fn(UnixStream) + Send + Sync>),
}

/// One upstream of the config.
pub struct Upstream {
    /// Its name in the config.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// Its authority, for requests that came without a Host and for Destination.
    pub authority: String,
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
    idle: Box<[Mutex<Vec<Conn>>]>,
}

impl Upstream {
    /// An upstream for this many workers.
    pub fn new(name: &str, config: &config::Upstream, address: Address, workers: usize) -> Self {
        let mut builder = http1::Builder::new();
        if config.preserve_header_case {
            builder.preserve_header_case(true);
        }
        let authority = match &address {
            Address::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port: 80 } => host.clone(),
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Builtin(_) => "localhost".to_owned(),
        };
        Self {
            name: name.to_owned(),
            address,
            authority,
            timeout: config.timeout,
            settle: config.settle,
            discards_incomplete: config.discards_incomplete,
            unknown_statuses: config.unknown_statuses.clone(),
            connect_timeout: config.connect_timeout,
            idle_timeout: config.pool.idle_timeout,
            idle_per_worker: config.pool.max_idle.div_ceil(workers.max(1)),
            builder,
            idle: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
        }
    }

    /// A kept connection that is ready for a request.
    pub fn kept(&self) -> Option<Conn> {
        let idle = self.idle.get(WORKER.get())?;
        loop {
            let mut conn = idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if conn.idle_since.elapsed() < conn.idle_limit && conn.is_ready() {
                return Some(conn);
            }
        }
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// As the system says, or `TimedOut` after `connect_timeout`.
    pub async fn connect(&self) -> std_io::Result<Conn> {
        let connecting = async {
            let socket = match &self.address {
                Address::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    self.make_closes_final(&stream)?;
                    Socket::Tcp(stream)
                }
                Address::Builtin(accept) => {
                    let (ours, theirs) = UnixStream::pair()?;
                    accept(theirs);
                    Socket::Unix(ours)
                }
            };
            let worker = WORKER.get();
            Conn::handshake(socket, &self.builder, worker, self.idle_timeout)
                .await
                .map_err(std_io::Error::other)
        };
        tokio::time::timeout(self.connect_timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(std_io::ErrorKind::TimedOut.into()))
    }

    /// A close must end the request for good: what is still in the send buffer is dropped with
    /// the connection, also when this process is killed, and an upstream that has stopped to
    /// acknowledge gets nothing after `settle`.
    fn make_closes_final(&self, stream: &TcpStream) -> std_io::Result<()> {
        let socket = SockRef::from(stream);
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_user_timeout(Some(self.settle.max(Duration::from_millis(1))))
    }

    /// Gives back a connection whose request has ended in good order.
    pub fn keep(&self, mut conn: Conn) {
        let worker = WORKER.get();
        let Some(idle) = self.idle.get(worker) else {
            return;
        };
        if conn.worker != worker || !conn.is_ready() {
            return;
        }
        conn.timer.set(None);
        conn.idle_since = Instant::now();
        let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.idle_per_worker {
            idle.push(conn);
        }
    }

    /// Closes this worker's connections that have been idle for too long.
    pub fn reap(&self) {
        let Some(idle) = self.idle.get(WORKER.get()) else {
            return;
        };
        let expired: Vec<Conn> = {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.extract_if(.., |conn| conn.idle_since.elapsed() >= conn.idle_limit)
                .collect()
        };
        drop(expired);
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
