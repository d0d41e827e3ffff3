//! The seam to the network: streams to clients and upstreams, and what accepts them.
//!
//! Nothing above it knows what a stream is made of. The real ones are the kernel's; with the
//! feature `sim` there is a simulated one beside them, and the simulation's tests swap nothing else
//! of the way from accept to upstream.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsStream;

use crate::flat::poll_write_parts;
use crate::outbox::ClientTcp;
#[cfg(feature = "sim")]
use crate::sim;

/// A stream to a client or to an upstream.
#[derive(Debug)]
pub enum Stream {
    /// TCP, from a client.
    Client(ClientTcp),
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket, or a socket pair to an upstream in this process.
    Unix(UnixStream),
    /// TLS over another one. Dropped, it closes that one at once and without a word.
    Tls(Box<TlsStream<Self>>),
    /// A stream of the simulated network.
    #[cfg(feature = "sim")]
    Simulated(Box<dyn sim::Stream>),
}

impl Stream {
    /// Sends small writes at once. A broken socket shows at its first use.
    pub fn set_nodelay(&self) {
        match self {
            Self::Client(stream) => stream.set_nodelay(),
            Self::Tcp(stream) => drop(stream.set_nodelay(true)),
            Self::Tls(stream) => stream.get_ref().0.set_nodelay(),
            _ => {}
        }
    }

    /// Whether it may have taken what the kernel has not, until it is flushed.
    #[must_use]
    pub const fn holds_back(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Sends everything at once from now on: see [`ClientTcp::keep_nothing`].
    pub fn keep_nothing(&self) {
        match self {
            Self::Client(stream) => stream.keep_nothing(),
            Self::Tls(stream) => stream.get_ref().0.keep_nothing(),
            _ => {}
        }
    }

    /// Whether the other end sends nothing any more, however much of what it sent is still unread.
    #[must_use]
    pub fn has_left(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let stream = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => return stream.get_ref().0.has_left(),
            _ => return false,
        };
        let mut asked = [PollFd::new(stream, PollFlags::RDHUP)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let _ = poll(&mut asked, Some(&at_once));
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        asked.iter().any(|one| one.revents().intersects(ended))
    }

    /// The first byte that has come and was not read, which stays unread. `None`: nothing will come,
    /// or it can't be told.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub async fn peek(&mut self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let have = match self {
            Self::Client(stream) => stream.peek(&mut first).await?,
            Self::Tcp(stream) => stream.peek(&mut first).await?,
            Self::Unix(stream) => {
                let stream = &*stream;
                let peek = || Ok(recv(stream, &mut first, RecvFlags::PEEK)?.0);
                stream.async_io(Interest::READABLE, peek).await?
            }
            Self::Tls(_) => 0,
            #[cfg(feature = "sim")]
            Self::Simulated(_) => 0,
        };
        let [first] = first;
        Ok((have > 0).then_some(first))
    }

    /// Writes what can be written without waiting.
    ///
    /// # Errors
    ///
    /// As the system says, or `WouldBlock`.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Client(stream) => stream.try_write(bytes),
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tls(stream) => write_now(stream, bytes),
            #[cfg(feature = "sim")]
            Self::Simulated(stream) => write_now(stream, bytes),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Client(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "sim")]
            Self::Simulated(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Client(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            #[cfg(feature = "sim")]
            Self::Simulated(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Client(stream) => poll_write_parts(Pin::new(stream), cx, bufs),
            Self::Tcp(stream) => poll_write_parts(Pin::new(stream), cx, bufs),
            Self::Unix(stream) => poll_write_parts(Pin::new(stream), cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            #[cfg(feature = "sim")]
            Self::Simulated(stream) => poll_write_parts(Pin::new(stream), cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Client(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "sim")]
            Self::Simulated(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Client(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "sim")]
            Self::Simulated(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn write_now<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<usize> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(stream).poll_write(&mut cx, bytes) {
        Poll::Ready(written) => written,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A listening socket that no runtime knows of yet.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A unix socket.
    Unix(std::os::unix::net::UnixListener),
}

/// What clients connect to.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
    /// A listener of the simulated network.
    #[cfg(feature = "sim")]
    Simulated(Box<dyn sim::Listener>),
}

impl Listener {
    /// Registers a bound socket with this thread's runtime.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn from_std(listener: Bound) -> io::Result<Self> {
        Ok(match listener {
            Bound::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            Bound::Unix(listener) => Self::Unix(UnixListener::from_std(listener)?),
        })
    }

    /// The next client, and its address where it has one.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Client(ClientTcp::new(stream)), Some(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), None))
            }
            #[cfg(feature = "sim")]
            Self::Simulated(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((stream, Some(peer)))
            }
        }
    }
}
