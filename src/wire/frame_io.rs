//! The stream under the codec of an HTTP/2 connection: it counts the frames that pass, and ends the
//! connection in a way that the client can hear.
//!
//! The codec judges the frames themselves. What it does not bound is here: floods of frames that
//! carry nothing, frames that begin and never end, and writes that nobody reads.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fencegate_filters::fault::{self, Fault};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::linger::Farewell;
use super::meter::Meter;
use super::{ConnState, LingerLimits};

/// A client is told why the connection ends, and closes it: that takes no longer.
const LINGER: LingerLimits = LingerLimits {
    silence: Duration::from_secs(1),
    total: Duration::from_secs(5),
};
/// A client that floods has as long to read that it is to go away, and nothing of it is read any
/// more: that would be to go on serving it.
const PAUSE: Duration = Duration::from_millis(200);
/// What is read into once nothing that comes matters any more.
const SCRATCH_BYTES: usize = 8 * 1024;

/// A client's stream as the HTTP/2 codec sees it.
pub struct FrameIo<S> {
    stream: S,
    /// What was read before it was known to be HTTP/2, and how much of it was handed on.
    read_ahead: Vec<u8>,
    handed: usize,
    meter: Meter,
    /// The frame that had begun and not ended when last looked at.
    unfinished: Option<u64>,
    state: Arc<ConnState>,
    eof: bool,
    farewell: Option<(Farewell, Box<[u8]>)>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> FrameIo<S> {
    /// Wraps a client's stream, of which `read_ahead` has been read: the preface and what followed
    /// it, or nothing. `streams`: how many requests it may carry at once.
    pub fn new(stream: S, read_ahead: Vec<u8>, streams: u32, state: Arc<ConnState>) -> Self {
        Self {
            stream,
            read_ahead,
            handed: 0,
            meter: Meter::new(streams, Instant::now()),
            unfinished: None,
            state,
            eof: false,
            farewell: None,
            pause: None,
        }
    }

    /// Counts what has come. A flood is told to the driver, and nothing of it is handed on.
    fn admit(&mut self, bytes: &[u8]) -> bool {
        if let Err(flood) = self.meter.read(bytes, Instant::now)
            && !fault::planted(Fault::UncountedFrames)
        {
            self.state.flood(flood);
            return false;
        }
        let unfinished = self.meter.unfinished();
        if unfinished != self.unfinished {
            self.unfinished = unfinished;
            match unfinished {
                Some(_) => self.state.head_began(),
                None => self.state.head_ended(),
            }
        }
        true
    }

    fn note_write(&mut self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(_)) => self.state.write_moved(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.write_blocked(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state.flooded().is_some() {
            return Poll::Pending;
        }
        if let Some(rest @ [_, ..]) = this.read_ahead.get(this.handed..) {
            let count = rest.len().min(buf.remaining());
            let bytes = rest.get(..count).unwrap_or_default().to_vec();
            this.handed += count;
            if this.handed == this.read_ahead.len() {
                this.read_ahead = Vec::new();
                this.handed = 0;
            }
            if !this.admit(&bytes) {
                return Poll::Pending;
            }
            buf.put_slice(&bytes);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let bytes = buf.filled().get(before..).unwrap_or_default();
        if bytes.is_empty() {
            this.eof = true;
        } else if !this.admit(bytes) {
            buf.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FrameIo<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.note_write(&written);
        if let Poll::Ready(Ok(count)) = &written {
            this.meter.written(buf.get(..*count).unwrap_or_default());
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.note_write(&written);
        if let Poll::Ready(Ok(count)) = &written {
            let mut left = *count;
            for buf in bufs {
                let part = left.min(buf.len());
                this.meter.written(buf.get(..part).unwrap_or_default());
                left -= part;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        if flushed.is_pending() {
            this.state.write_blocked();
        }
        flushed
    }

    /// The codec has said its last words.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flooded = this.state.flooded().is_some();
        let linger = (!this.eof && !flooded).then_some(LINGER);
        let (farewell, scratch) = this.farewell.get_or_insert_with(|| {
            let scratch = vec![0; SCRATCH_BYTES].into_boxed_slice();
            (Farewell::new(Vec::new(), linger), scratch)
        });
        ready!(farewell.poll(cx, &mut this.stream, scratch, &this.state));
        if flooded {
            let pause = this.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
            ready!(pause.as_mut().poll(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> fmt::Debug for FrameIo<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameIo")
            .field("meter", &self.meter)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
