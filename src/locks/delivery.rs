//! Whether a reply went out.
//!
//! A grant of which nobody can have been told is taken back. What tells is the connection itself:
//! a reply has left when everything that was written is flushed, and whatever has not when the
//! connection ends never will. A client that has left is asked for before a reply is written and
//! not behind it: who has read it whole may leave at once. The time of a lease begins when its reply has left; one that is over
//! by then is not told of any more, and the connection ends instead.
//!
//! It also notices clients that do not read, and those that have left: the codec does not look for
//! the end of what a client sends while something unread lies before it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::net::Stream;

/// How long a client may read nothing of what is written to it.
const STALL: Duration = Duration::from_secs(30);

/// How often it is looked whether the client is still there, at most.
const LOOK: Duration = Duration::from_millis(500);

/// What a reply says.
pub(super) trait Tell {
    /// Whether it is still so.
    fn still_holds(&self) -> bool;

    /// The reply has gone out.
    fn sent(self);

    /// It never will.
    fn unsent(self);
}

/// The other end of a connection.
pub(super) trait Far {
    /// Whether it sends nothing any more, whatever of it is unread.
    fn has_left(&self) -> bool;
}

impl Far for Stream {
    fn has_left(&self) -> bool {
        self.has_left()
    }
}

/// What a connection was told and has not sent yet. The codec may have the replies to several
/// requests of which a client reads none.
pub(super) struct Delivery<T>(Mutex<Vec<T>>);

impl<T> Default for Delivery<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T: Tell> Delivery<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reply that the connection is about to get says this.
    pub(super) fn telling(&self, what: T) {
        self.lock().push(what);
    }

    fn sent(&self) {
        let sent = std::mem::take(&mut *self.lock());
        sent.into_iter().for_each(T::sent);
    }

    /// The connection has ended.
    pub(super) fn ended(&self) {
        let unsent = std::mem::take(&mut *self.lock());
        unsent.into_iter().for_each(T::unsent);
    }
}

/// A connection that knows what has gone out.
pub(super) struct Watched<S, T> {
    stream: S,
    delivery: Arc<Delivery<T>>,
    stalled: Option<Pin<Box<Sleep>>>,
    looked: Instant,
}

impl<S, T> Watched<S, T> {
    pub(super) fn new(stream: S, delivery: Arc<Delivery<T>>) -> Self {
        Self {
            stream,
            delivery,
            stalled: None,
            looked: Instant::now(),
        }
    }

    /// Bounds how long nothing can be written.
    fn bounded<R>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled = || Box::pin(tokio::time::sleep(STALL));
        let stalled = self.stalled.get_or_insert_with(stalled);
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: Far, T: Tell> Watched<S, T> {
    /// Whether what is about to be written can still reach somebody to whom it says something true.
    fn check(&self) -> io::Result<()> {
        let waiting = self.delivery.lock();
        if !waiting.iter().all(T::still_holds) {
            return Err(io::Error::other("what the reply says is over"));
        }
        if !waiting.is_empty() && self.stream.has_left() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin, T> AsyncRead for Watched<S, T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Far + Unpin, T: Tell> AsyncWrite for Watched<S, T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.bounded(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The codec flushes when it has written all that it has, and whenever it looks at the
    /// connection at all.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        ready!(this.bounded(cx, flushed))?;
        this.delivery.sent();
        if this.looked.elapsed() >= LOOK {
            this.looked = Instant::now();
            if this.stream.has_left() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    /// A stream whose other end leaves when it is told to.
    struct Leaving {
        stream: DuplexStream,
        left: Arc<AtomicBool>,
    }

    impl Far for Leaving {
        fn has_left(&self) -> bool {
            self.left.load(Ordering::SeqCst)
        }
    }

    impl AsyncRead for Leaving {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Leaving {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
        }
    }

    #[derive(Default)]
    struct Seen {
        over: AtomicBool,
        sent: AtomicUsize,
        unsent: AtomicUsize,
    }

    impl Tell for Arc<Seen> {
        fn still_holds(&self) -> bool {
            !self.over.load(Ordering::SeqCst)
        }

        fn sent(self) {
            self.sent.fetch_add(1, Ordering::SeqCst);
        }

        fn unsent(self) {
            self.unsent.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Seen {
        fn counts(&self) -> (usize, usize) {
            let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
            (count(&self.sent), count(&self.unsent))
        }
    }

    type Watching = (
        Watched<Leaving, Arc<Seen>>,
        DuplexStream,
        Arc<Seen>,
        Arc<Delivery<Arc<Seen>>>,
    );

    fn watched() -> Watching {
        let delivery = Arc::new(Delivery::default());
        let (near, far) = tokio::io::duplex(4);
        let seen = Arc::new(Seen::default());
        let near = Leaving {
            stream: near,
            left: Arc::default(),
        };
        let watched = Watched::new(near, Arc::clone(&delivery));
        (watched, far, seen, delivery)
    }

    #[tokio::test]
    async fn what_is_flushed_has_gone_out_and_what_is_not_has_not() {
        let (mut watched, far, seen, delivery) = watched();
        delivery.telling(Arc::clone(&seen));
        watched.write_all(b"ok").await.unwrap();
        assert_eq!(seen.counts(), (0, 0));
        watched.flush().await.unwrap();
        assert_eq!(seen.counts(), (1, 0));
        delivery.telling(Arc::clone(&seen));
        delivery.telling(Arc::clone(&seen));
        drop(far);
        assert!(watched.write_all(b"never").await.is_err());
        delivery.ended();
        assert_eq!(seen.counts(), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_behind_the_reply_was_told() {
        let (mut watched, _far, seen, delivery) = watched();
        tokio::time::advance(LOOK).await;
        delivery.telling(Arc::clone(&seen));
        watched.write_all(b"ok").await.unwrap();
        watched.stream.left.store(true, Ordering::SeqCst);
        assert!(watched.flush().await.is_err(), "the connection ends");
        delivery.ended();
        assert_eq!(seen.counts(), (1, 0));
    }

    #[tokio::test]
    async fn who_left_before_the_reply_is_not_told() {
        let (mut watched, _far, seen, delivery) = watched();
        delivery.telling(Arc::clone(&seen));
        watched.stream.left.store(true, Ordering::SeqCst);
        assert!(watched.write_all(b"ok").await.is_err());
        delivery.ended();
        assert_eq!(seen.counts(), (0, 1));
    }

    #[tokio::test]
    async fn what_is_over_is_not_told_any_more() {
        let (mut watched, mut far, seen, delivery) = watched();
        delivery.telling(Arc::clone(&seen));
        watched.write_all(b"full").await.unwrap();
        seen.over.store(true, Ordering::SeqCst);
        assert!(watched.write_all(b"more").await.is_err());
        delivery.ended();
        assert_eq!(seen.counts(), (0, 1));
        drop(watched);
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"full");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut_off() {
        let (mut watched, _far, ..) = watched();
        let began = Instant::now();
        let error = watched.write_all(b"too much").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= STALL);
    }
}
