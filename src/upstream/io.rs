//! The socket under the codec of an upstream connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use fencegate_filters::fault::{self, Fault};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::Wire;
use crate::net::Stream;

/// A [`Stream`] that tells a [`Wire`] what it wrote, and how much it read.
#[derive(Debug)]
pub struct UpstreamIo {
    socket: TokioIo<Counted>,
    wire: Arc<Wire>,
}

#[derive(Debug)]
struct Counted {
    socket: Stream,
    /// The bytes of the last read.
    read: usize,
}

impl AsyncRead for Counted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(cx, buf);
        this.read = buf.filled().len() - before;
        read
    }
}

impl UpstreamIo {
    pub(super) fn new(socket: Stream, wire: Arc<Wire>) -> Self {
        Self {
            socket: TokioIo::new(Counted { socket, read: 0 }),
            wire,
        }
    }

    /// The socket, for a tunnel or to be closed.
    pub fn into_socket(self) -> Stream {
        self.socket.into_inner().socket
    }
}

impl Read for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.wire.is_empty() {
            return Poll::Pending;
        }
        let read = Pin::new(&mut this.socket).poll_read(cx, buf);
        if read.is_pending() {
            this.wire.found_empty();
        }
        let bytes = this.socket.inner().read;
        if matches!(read, Poll::Ready(Ok(()))) && !this.wire.may_read_on(bytes) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        read
    }
}

impl Write for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket.inner_mut().socket).poll_write(cx, buf);
        if matches!(written, Poll::Ready(Ok(_))) {
            this.wire.progress();
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket.inner_mut().socket).poll_write_vectored(cx, bufs);
        if matches!(written, Poll::Ready(Ok(_))) {
            this.wire.progress();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The codec calls this only once its own buffer is empty, and TLS is done only once its buffer
    /// is: what they had is with the kernel.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.socket.inner_mut().socket).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) || fault::planted(Fault::FlushUnheard) {
            this.wire.flushed();
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket.inner_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::task::Waker;

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use socket2::SockRef;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::config::ClientAuth;
    use crate::tls::{ClientTls, Protocol, ServerTls};

    /// Both ends of TLS over a pair of sockets that take little.
    pub(in super::super) async fn pair() -> (Stream, Stream) {
        let name = vec!["store.test".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(name).unwrap();
        let (cert, key) = (cert.pem(), signing_key.serialize_pem());
        let (cert, key) = (cert.as_bytes(), key.as_bytes());
        let server = ServerTls::new(cert, key, None, ClientAuth::None, Protocol::ALL).unwrap();
        let client = ClientTls::new(Some(cert), None, Protocol::Http1).unwrap();
        let client = client.named("store.test").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        for socket in [&ours, &theirs] {
            SockRef::from(socket).set_send_buffer_size(4096).unwrap();
        }
        let (ours, theirs) = tokio::join!(
            client.connect(Stream::Unix(ours)),
            server.accept(Stream::Unix(theirs))
        );
        (ours.unwrap(), theirs.unwrap().0)
    }

    #[tokio::test]
    async fn what_tls_holds_back_is_not_sent() {
        let (ours, mut theirs) = pair().await;
        let wire = Arc::new(Wire::default());
        wire.begin(false, false);
        let mut io = UpstreamIo::new(ours, Arc::clone(&wire));
        let mut cx = Context::from_waker(Waker::noop());
        // Until the socket takes no more, and a piece that only TLS has taken.
        let mut written = 0;
        let flushed = loop {
            match Pin::new(&mut io).poll_write(&mut cx, &[b'x'; 1000]) {
                Poll::Ready(count) => written += count.unwrap(),
                Poll::Pending => panic!("TLS takes more than the socket"),
            }
            let flushed = Pin::new(&mut io).poll_flush(&mut cx);
            if flushed.is_pending() {
                break flushed;
            }
        };
        wire.body_has_ended();
        assert!(flushed.is_pending());
        assert!(Pin::new(&mut io).poll_flush(&mut cx).is_pending());
        assert!(!wire.sent_whole(), "the kernel does not have it all");
        let mut read = vec![0; written];
        let flushing = std::future::poll_fn(|cx| Pin::new(&mut io).poll_flush(cx));
        let (flushed, read_all) = tokio::join!(flushing, theirs.read_exact(&mut read));
        flushed.unwrap();
        read_all.unwrap();
        assert!(wire.sent_whole());
    }
}
