//! Small responses of one turn of a worker, sent together at its end.
//!
//! A worker handles what has come on all of its sockets, and then waits for more. A response that is
//! sent as soon as it is there wakes the client's thread, which handles it and sleeps again before the
//! next one comes: every response pays for a wake-up, on both sides. Sent together, many pay for one.
//! What is sent to upstreams does not wait here: a cut must know what they have got.
//!
//! [`ClientTcp`] takes small writes for sent, and keeps them until [`send_all`] is called. [`sender`] is
//! a task of each worker that does it: the first that is kept wakes it, so it comes behind all that
//! had something to do by then, and before whatever comes later. It is not left to the moment in which
//! the worker has nothing more to do, since a client that always has something to do would put that
//! off for the others; and so many are not kept waiting at all. What the socket does not take then is
//! sent as the socket allows, by the task that wrote it: it is woken, and has to flush.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The most bytes of one stream that are kept.
const SMALL: usize = 4096;

/// So many streams with something to send are not kept waiting for the end of a turn.
const MANY: usize = 64;

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(false) };
    static SENDER: RefCell<Option<Waker>> = const { RefCell::new(None) };
    static KEPT: RefCell<Vec<Arc<Outgoing>>> = const { RefCell::new(Vec::new()) };
}

/// From now on, streams that are made in this thread keep small writes: its runtime runs [`sender`],
/// or calls [`send_all`].
pub fn enable() {
    ENABLED.set(true);
}

/// The task that sends what is kept in this thread, for ever.
pub async fn sender() {
    std::future::poll_fn(|cx| {
        SENDER.set(Some(cx.waker().clone()));
        send_all();
        Poll::<()>::Pending
    })
    .await;
}

/// Ends the turn of a task that could go on: it is woken when all others that can have had theirs, and
/// what has come on sockets has been looked at. It is for whoever serves one client, so that it does
/// not keep the others waiting.
pub fn yield_turn(cx: &mut Context<'_>) {
    // Polled once, it hands the waker to the runtime, and needs no second time.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

fn wake_sender() {
    SENDER.with_borrow(|sender| {
        if let Some(sender) = sender {
            sender.wake_by_ref();
        }
    });
}

/// Sends what is kept in this thread.
pub fn send_all() {
    let mut kept = KEPT.take();
    for outgoing in kept.drain(..) {
        outgoing.send_kept();
    }
    // The room for the next turn.
    KEPT.set(kept);
}

/// A client's TCP stream.
#[derive(Debug)]
pub struct ClientTcp {
    incoming: OwnedReadHalf,
    outgoing: Arc<Outgoing>,
}

#[derive(Debug)]
struct Outgoing(Mutex<Sending>);

#[derive(Debug)]
struct Sending {
    /// There until this is dropped.
    socket: Option<OwnedWriteHalf>,
    keeps: bool,
    /// What was taken for sent, and how much of it was sent.
    bytes: Vec<u8>,
    sent: usize,
    /// Whether [`send_all`] will come to it.
    listed: bool,
    failed: Option<io::Error>,
    /// Who has to flush what could not be sent at once.
    task: Option<Waker>,
}

impl ClientTcp {
    /// A stream that keeps small writes where the thread is [`enable`]d for it.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        let (incoming, outgoing) = stream.into_split();
        let sending = Sending {
            socket: Some(outgoing),
            keeps: ENABLED.get(),
            bytes: Vec::new(),
            sent: 0,
            listed: false,
            failed: None,
            task: None,
        };
        Self {
            incoming,
            outgoing: Arc::new(Outgoing(Mutex::new(sending))),
        }
    }

    /// Sends everything at once from now on, for a task that does not flush when it is woken.
    pub fn keep_nothing(&self) {
        self.outgoing.lock().keeps = false;
    }

    /// Reads what has come, once something has, and leaves it there.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let socket: &TcpStream = self.incoming.as_ref();
        socket.peek(bytes).await
    }

    /// Writes what can be written without waiting.
    ///
    /// # Errors
    ///
    /// As the system says, or `WouldBlock`.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let socket: &TcpStream = self.incoming.as_ref();
        socket.try_write(bytes)
    }

    /// Sends small packets at once. A broken socket shows at its first use.
    pub fn set_nodelay(&self) {
        let socket: &TcpStream = self.incoming.as_ref();
        let _ = socket.set_nodelay(true);
    }
}

impl Outgoing {
    fn lock(&self) -> MutexGuard<'_, Sending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_kept(&self) {
        let mut sending = self.lock();
        sending.listed = false;
        let task = match sending.try_send() {
            Ok(true) => None,
            Ok(false) => sending.task.take(),
            Err(error) => {
                sending.failed = Some(error);
                sending.task.take()
            }
        };
        drop(sending);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Sending {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    fn has_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent >= self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
    }

    /// Whether all is sent.
    fn try_send(&mut self) -> io::Result<bool> {
        let rest = self.rest();
        let (false, Some(socket)) = (rest.is_empty(), &self.socket) else {
            return Ok(true);
        };
        match socket.try_write(rest) {
            Ok(bytes) => self.has_sent(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(self.rest().is_empty())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        while let (false, Some(socket)) = (self.rest().is_empty(), &mut self.socket) {
            let rest = self.bytes.get(self.sent..).unwrap_or_default();
            match ready!(Pin::new(socket).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.has_sent(bytes),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Keeps a small write, if nothing is before it that could not be sent.
    fn keep(&mut self, bytes: &[u8], cx: &Context<'_>) -> bool {
        let fits = self.bytes.len() + bytes.len() <= SMALL;
        let free = self.listed || self.bytes.is_empty();
        if !(self.keeps && fits && free && self.failed.is_none()) {
            return false;
        }
        self.bytes.extend_from_slice(bytes);
        match &mut self.task {
            Some(task) if task.will_wake(cx.waker()) => {}
            task => *task = Some(cx.waker().clone()),
        }
        true
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // Without this it would close its half by a call of its own, before the socket is closed.
        if let Some(socket) = self.socket.take() {
            socket.forget();
        }
    }
}

impl AsyncRead for ClientTcp {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().incoming).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientTcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut sending = self.outgoing.lock();
        if sending.keep(buf, cx) {
            if !std::mem::replace(&mut sending.listed, true) {
                drop(sending);
                let kept = KEPT.with_borrow_mut(|kept| {
                    kept.push(Arc::clone(&self.outgoing));
                    kept.len()
                });
                if kept >= MANY {
                    send_all();
                } else if kept == 1 {
                    wake_sender();
                }
            }
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(sending.poll_send(cx))?;
        match &mut sending.socket {
            Some(socket) => Pin::new(socket).poll_write(cx, buf),
            None => Poll::Ready(Ok(0)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut sending = self.outgoing.lock();
        ready!(sending.poll_send(cx))?;
        match &mut sending.socket {
            Some(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            None => Poll::Ready(Ok(0)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sending = self.outgoing.lock();
        if sending.listed && sending.keeps {
            return Poll::Ready(Ok(()));
        }
        sending.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sending = self.outgoing.lock();
        ready!(sending.poll_send(cx))?;
        match &mut sending.socket {
            Some(socket) => Pin::new(socket).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A stream that keeps, and a peer that says what has come.
    async fn pair() -> (ClientTcp, std::net::TcpStream) {
        enable();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let peer = std::net::TcpStream::connect(address).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        (ClientTcp::new(stream), peer)
    }

    fn nothing_came(peer: &std::net::TcpStream) -> bool {
        peer.set_nonblocking(true).unwrap();
        let peeked = peer.peek(&mut [0]);
        peer.set_nonblocking(false).unwrap();
        peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    fn expect(peer: &mut std::net::TcpStream, bytes: &[u8]) {
        let mut came = vec![0; bytes.len()];
        peer.read_exact(&mut came).unwrap();
        assert_eq!(came, bytes);
    }

    #[tokio::test]
    async fn small_writes_are_kept_to_the_end_of_the_turn_and_sent_in_order() {
        let (mut stream, mut peer) = pair().await;
        stream.write_all(b"one ").await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(b"two").await.unwrap();
        assert!(nothing_came(&peer));
        send_all();
        expect(&mut peer, b"one two");
        stream.write_all(b"three").await.unwrap();
        send_all();
        expect(&mut peer, b"three");
    }

    #[tokio::test]
    async fn they_do_not_wait_for_a_task_that_always_has_something_to_do() {
        let (mut stream, mut peer) = pair().await;
        tokio::spawn(sender());
        tokio::spawn(std::future::poll_fn(|cx| {
            yield_turn(cx);
            Poll::<()>::Pending
        }));
        tokio::spawn(std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        tokio::task::yield_now().await;
        for _ in 0..3 {
            stream.write_all(b"x").await.unwrap();
            assert!(nothing_came(&peer), "it waits for those before it");
            tokio::task::yield_now().await;
            expect(&mut peer, b"x");
        }
    }

    #[tokio::test]
    async fn what_is_large_is_sent_at_once_behind_what_was_kept() {
        let (mut stream, mut peer) = pair().await;
        stream.write_all(b"small").await.unwrap();
        let large = [7; SMALL + 1];
        stream.write_all(&large).await.unwrap();
        expect(&mut peer, b"small");
        expect(&mut peer, &large);
        send_all();
        assert!(nothing_came(&peer));
    }

    #[tokio::test]
    async fn so_many_are_not_kept_waiting() {
        let mut pairs = Vec::new();
        for _ in 0..MANY {
            pairs.push(pair().await);
        }
        for (stream, peer) in &mut pairs {
            assert!(nothing_came(peer));
            stream.write_all(b"x").await.unwrap();
        }
        for (_, peer) in &mut pairs {
            expect(peer, b"x");
        }
    }

    #[tokio::test]
    async fn what_the_socket_does_not_take_is_flushed_by_the_task_that_is_woken() {
        let (mut stream, mut peer) = pair().await;
        // Fills the socket.
        let mut before = 0;
        while let Ok(bytes) = stream.try_write(&[1; 65536]) {
            before += bytes;
        }
        stream.write_all(b"behind it").await.unwrap();
        let flushing = tokio::spawn(async move {
            // Woken by the writes below, and by the socket.
            stream.write_all(b", all").await.unwrap();
            stream.keep_nothing();
            stream.flush().await.unwrap();
            stream
        });
        let reading = tokio::task::spawn_blocking(move || {
            let mut filled = vec![0; before];
            peer.read_exact(&mut filled).unwrap();
            expect(&mut peer, b"behind it, all");
        });
        send_all();
        reading.await.unwrap();
        drop(flushing.await.unwrap());
    }

    #[tokio::test]
    async fn a_task_is_woken_for_what_could_not_be_sent_and_for_a_failure() {
        struct Woken(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let woken = Arc::new(Woken(0.into()));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let (mut stream, mut peer) = pair().await;
        let mut before = 0;
        while let Ok(bytes) = stream.try_write(&[1; 65536]) {
            before += bytes;
        }
        let wrote = Pin::new(&mut stream).poll_write(&mut cx, b"x");
        assert!(matches!(wrote, Poll::Ready(Ok(1))));
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_ready());
        send_all();
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_pending());
        let mut filled = vec![0; before];
        peer.read_exact(&mut filled).unwrap();
        stream.flush().await.unwrap();
        expect(&mut peer, b"x");

        socket2::SockRef::from(&peer)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
        drop(peer);
        let mut byte = [0; 1];
        let reset = tokio::io::AsyncReadExt::read(&mut stream, &mut byte).await;
        reset.unwrap_err();
        let wrote = Pin::new(&mut stream).poll_write(&mut cx, b"y");
        assert!(matches!(wrote, Poll::Ready(Ok(1))));
        send_all();
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), 2);
        let flushed = Pin::new(&mut stream).poll_flush(&mut cx);
        assert!(matches!(flushed, Poll::Ready(Err(_))));
    }

    #[tokio::test]
    async fn what_was_kept_outlives_the_stream_and_goes_before_a_shutdown() {
        let (mut stream, mut peer) = pair().await;
        stream.write_all(b"last words").await.unwrap();
        drop(stream);
        assert!(nothing_came(&peer));
        send_all();
        let mut all = String::new();
        peer.read_to_string(&mut all).unwrap();
        assert_eq!(all, "last words");

        let (mut stream, mut peer) = pair().await;
        stream.write_all(b"last words").await.unwrap();
        stream.shutdown().await.unwrap();
        all.clear();
        peer.read_to_string(&mut all).unwrap();
        assert_eq!(all, "last words");
    }
}
