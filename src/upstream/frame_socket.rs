//! The socket under the codec of an HTTP/2 connection to an upstream: it tells the [`Wire`] what the
//! socket has taken, frame by frame.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use fencegate_filters::fault::{self, Fault};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::Wire;
use crate::net::Stream;
use crate::wire::frames::{DATA, END_STREAM, HEADERS, SETTINGS, Scan};

/// What a client sends first of all, before any frame.
const PREFACE_BYTES: usize = 24;

/// A [`Stream`] that counts frames.
#[derive(Debug)]
pub(super) struct FrameSocket {
    socket: Stream,
    wire: Arc<Wire>,
    read: Scan,
    written: Scan,
    preface: usize,
    /// The frame that is being written ends the request.
    ending: bool,
    /// The frame that ends the request has been taken, but not by the kernel.
    held_back: bool,
}

impl FrameSocket {
    pub(super) const fn new(socket: Stream, wire: Arc<Wire>) -> Self {
        Self {
            socket,
            wire,
            read: Scan::new(),
            written: Scan::new(),
            preface: PREFACE_BYTES,
            ending: false,
            held_back: false,
        }
    }

    fn note_written(&mut self, bytes: &[u8]) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        let mut rest = bytes.get(skipped..).unwrap_or_default();
        while let Some((head, after)) = self.written.next(rest) {
            rest = after;
            if let Some(head) = head {
                self.ending = matches!(head.kind, DATA | HEADERS) && head.flags & END_STREAM != 0;
            }
            if self.ending && self.written.is_between() {
                self.ending = false;
                if self.socket.holds_back() && !fault::planted(Fault::FlushUnheard) {
                    self.held_back = true;
                } else {
                    self.wire.sent_last_frame();
                }
            }
        }
    }

    /// Whether what was read may be handed on.
    fn note_read(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        let mut overhead = 0;
        while let Some((head, after)) = self.read.next(rest) {
            rest = after;
            let Some(head) = head else { continue };
            if !self.wire.is_greeted() {
                // RFC 9113, section 3.4: whatever else begins otherwise.
                if head.kind != SETTINGS {
                    return false;
                }
                self.wire.greet();
            }
            if head.kind != DATA {
                overhead += usize::try_from(head.length).unwrap_or(usize::MAX);
            }
        }
        self.wire.may_read_on(overhead)
    }
}

impl AsyncRead for FrameSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        let bytes = buf.filled().get(before..).unwrap_or_default();
        if this.note_read(bytes) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
        }
    }
}

impl AsyncWrite for FrameSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.socket).poll_write(cx, buf))?;
        if count > 0 {
            this.wire.has_written();
            this.note_written(buf.get(..count).unwrap_or_default());
        }
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.socket).poll_write_vectored(cx, bufs))?;
        if count > 0 {
            this.wire.has_written();
            let mut left = count;
            for buf in bufs {
                let part = left.min(buf.len());
                this.note_written(buf.get(..part).unwrap_or_default());
                left -= part;
            }
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
        if std::mem::take(&mut this.held_back) {
            this.wire.sent_last_frame();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::super::io::tests::pair;
    use super::*;

    fn frame(kind: u8, flags: u8, payload: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, payload, kind, flags, 0, 0, 0, 1];
        frame.resize(frame.len() + usize::from(payload), 0);
        frame
    }

    fn socket() -> (FrameSocket, Arc<Wire>) {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let wire = Arc::new(Wire::default());
        let mut socket = FrameSocket::new(Stream::Unix(ours), Arc::clone(&wire));
        socket.note_written(&[0; PREFACE_BYTES]);
        wire.begin(false, false);
        (socket, wire)
    }

    #[tokio::test]
    async fn a_request_is_sent_whole_with_the_last_byte_of_its_last_frame() {
        let request = [
            frame(SETTINGS, 1, 0),
            frame(HEADERS, 4, 30),
            frame(DATA, 0, 200),
            frame(DATA, END_STREAM, 7),
        ]
        .concat();
        for size in [1, 3, 9, 50, request.len() - 1] {
            let (mut socket, wire) = socket();
            let (before, last) = request.split_at(request.len() - 1);
            for part in before.chunks(size) {
                socket.note_written(part);
                assert!(!wire.sent_whole(), "in pieces of {size}");
            }
            socket.note_written(last);
            assert!(wire.sent_whole(), "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn the_end_may_be_a_frame_of_nothing_or_the_head() {
        for last in [
            frame(DATA, END_STREAM, 0),
            frame(HEADERS, END_STREAM | 4, 5),
        ] {
            let (mut socket, wire) = socket();
            socket.note_written(&frame(HEADERS, 4, 30));
            // An acknowledged PING has the same bit.
            socket.note_written(&frame(6, 1, 8));
            assert!(!wire.sent_whole());
            socket.note_written(&last);
            assert!(wire.sent_whole());
        }
    }

    #[tokio::test]
    async fn an_upstream_has_to_begin_with_settings() {
        let (mut socket, wire) = socket();
        assert!(!socket.note_read(b"HTTP/1.1 400 Bad Request\r\n"));
        assert!(!wire.is_greeted());
        let (mut socket, wire) = self::socket();
        assert!(socket.note_read(&frame(SETTINGS, 0, 0)[..5]));
        assert!(!wire.is_greeted());
        assert!(socket.note_read(&frame(SETTINGS, 0, 0)[5..]));
        assert!(wire.is_greeted());
    }

    #[tokio::test]
    async fn the_last_frame_is_not_sent_while_tls_holds_it_back() {
        let (ours, mut theirs) = pair().await;
        let wire = Arc::new(Wire::default());
        wire.begin(false, false);
        let mut socket = FrameSocket::new(ours, Arc::clone(&wire));
        let mut cx = Context::from_waker(Waker::noop());
        let mut write = |socket: &mut FrameSocket, bytes: &[u8]| match Pin::new(socket)
            .poll_write(&mut cx, bytes)
        {
            Poll::Ready(count) => assert_eq!(count.unwrap(), bytes.len()),
            Poll::Pending => panic!("TLS takes more than the socket"),
        };
        write(&mut socket, &[0; PREFACE_BYTES]);
        let mut frame = vec![0, 3, 232, DATA, 0, 0, 0, 0, 1];
        frame.resize(9 + 1000, b'x');
        let mut written = PREFACE_BYTES;
        loop {
            write(&mut socket, &frame);
            written += frame.len();
            let mut cx = Context::from_waker(Waker::noop());
            if Pin::new(&mut socket).poll_flush(&mut cx).is_pending() {
                break;
            }
        }
        frame[4] = END_STREAM;
        write(&mut socket, &frame);
        written += frame.len();
        assert!(!wire.sent_whole(), "the kernel does not have it all");
        let mut read = vec![0; written];
        let flushing = std::future::poll_fn(|cx| Pin::new(&mut socket).poll_flush(cx));
        let (flushed, read_all) = tokio::join!(flushing, theirs.read_exact(&mut read));
        flushed.unwrap();
        read_all.unwrap();
        assert!(wire.sent_whole());
    }
}
