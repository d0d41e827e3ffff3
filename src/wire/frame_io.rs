//! The stream under the codec of an HTTP/2 connection: it counts the frames that pass, and ends the
//! connection in a way that the client can hear.
//!
//! The codec judges the frames themselves. What it does not bound is here: floods of frames that
//! carry nothing, frames that begin and never end, and writes that nobody reads; and what it repairs
//! in silence is put before it so that it refuses it. Nor does it stop
//! while there is anything to read: it is given so much in one turn, and others have theirs.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use fencegate_filters::fault::{self, Fault};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::blocks::Blocks;
use super::frames::Scan;
use super::linger::Farewell;
use super::meter::{Flood, Meter, PREFACE, TurnLeft};
use super::unserved::{Unserved, Verdicts};
use super::windows::{Greeting, Windows};
use super::{ConnState, LingerLimits};
use crate::outbox;

/// A client that floods has as long to read that it is to go away, and nothing of it is read any
/// more: that would be to go on serving it.
const PAUSE: Duration = Duration::from_millis(200);
/// What is read into once nothing that comes matters any more.
const SCRATCH_BYTES: usize = 8 * 1024;

/// A client's stream as the HTTP/2 codec sees it.
pub struct FrameIo<S> {
    stream: S,
    /// What was read and not handed on: before it was known to be HTTP/2, or beyond a turn.
    read_ahead: Bytes,
    meter: Meter,
    blocks: Blocks,
    /// What was judged and is to be handed on next.
    judged: Vec<u8>,
    written: Scan,
    verdicts: Verdicts,
    unserved: Arc<Unserved>,
    /// What the client sends, past the preface.
    heads: Scan,
    preface: usize,
    windows: Arc<Windows>,
    greeting: Greeting,
    /// What goes to the client before anything else of the codec's.
    ahead: Vec<u8>,
    /// The driver's turn, and what of it is left.
    turn: u32,
    left: TurnLeft,
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
            read_ahead: read_ahead.into(),
            meter: Meter::new(streams, Instant::now()),
            blocks: Blocks::after(PREFACE.len()),
            judged: Vec::new(),
            written: Scan::new(),
            verdicts: Verdicts::new(),
            unserved: Arc::default(),
            heads: Scan::new(),
            preface: PREFACE.len(),
            windows: Windows::new(streams),
            greeting: Greeting::default(),
            ahead: Vec::new(),
            turn: state.turn(),
            left: TurnLeft::WHOLE,
            unfinished: None,
            state,
            eof: false,
            farewell: None,
            pause: None,
        }
    }

    /// The streams on it that nobody serves yet.
    #[must_use]
    pub fn unserved(&self) -> Arc<Unserved> {
        Arc::clone(&self.unserved)
    }

    /// The windows of its streams.
    pub(crate) fn windows(&self) -> Arc<Windows> {
        Arc::clone(&self.windows)
    }

    /// Counts what has come, and says how much of it is to be handed on now. A flood is told to the
    /// driver, and nothing of it is handed on.
    fn admit(&mut self, bytes: &[u8]) -> Option<usize> {
        let uncounted = fault::planted(Fault::UncountedFrames);
        let read = self
            .meter
            .read(bytes, &mut self.left, &self.unserved, Instant::now);
        let taken = match read {
            Ok(taken) => taken,
            Err(_) if uncounted => bytes.len(),
            Err(flood) => {
                self.state.flood(flood);
                return None;
            }
        };
        let handed_on = bytes.get(..taken).unwrap_or_default();
        if let Err(flood) = self.count_bodies(handed_on) {
            self.state.flood(flood);
            return None;
        }
        let unfinished = self.meter.unfinished();
        if unfinished != self.unfinished {
            self.unfinished = unfinished;
            match unfinished {
                Some(_) => self.state.head_began(),
                None => self.state.head_ended(),
            }
        }
        Some(taken)
    }

    fn count_bodies(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        let mut rest = bytes.get(skipped..).unwrap_or_default();
        while let Some((head, after)) = self.heads.next(rest) {
            if let Some(head) = head {
                self.windows.read(head)?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Hands on what was judged, as far as there is room.
    fn hand_on_judged(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.judged.len().min(buf.remaining());
        let judged = self.judged.drain(..count);
        buf.put_slice(judged.as_slice());
    }

    /// Whether enough has been handed on in the turn that is under way.
    fn turn_is_over(&mut self) -> bool {
        let turn = self.state.turn();
        if turn != self.turn || fault::planted(Fault::EndlessTurns) {
            self.turn = turn;
            self.left = TurnLeft::WHOLE;
        }
        self.left.is_over()
    }

    /// Has the rest wait until others have had their turns.
    fn end_turn<T>(&self, cx: &mut Context<'_>) -> Poll<T> {
        self.state.leave_unread(true);
        outbox::yield_turn(cx);
        Poll::Pending
    }

    /// Looks at what the client is sent.
    fn look_at(&mut self, written: &[u8]) {
        let mut rest = written;
        while let Some((head, after)) = self.written.next(rest) {
            let payload = rest.len() - after.len();
            match head {
                Some(head) => {
                    self.meter.written(head);
                    self.windows.written(head);
                    self.verdicts.head(head, &self.unserved);
                }
                None => {
                    let payload = rest.get(..payload).unwrap_or_default();
                    self.verdicts.payload(payload, &self.unserved);
                }
            }
            rest = after;
        }
    }

    fn note_write(&mut self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(_)) => self.state.write_moved(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.write_blocked(),
        }
    }
}

impl<S: AsyncWrite + Unpin> FrameIo<S> {
    /// Takes what of the codec's first frame there is: it is written in another form.
    fn greet(&mut self, written: &[u8]) -> Option<usize> {
        let taken = self.greeting.take(written, &mut self.ahead);
        if taken == 0 {
            return None;
        }
        self.look_at(written.get(..taken).unwrap_or_default());
        Some(taken)
    }

    /// Writes what goes before anything else of the codec's. That is between two of its frames.
    fn write_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.written.is_between() {
            self.windows.tell(&mut self.ahead, cx.waker());
        }
        while !self.ahead.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.ahead);
            self.note_write(&written);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => drop(self.ahead.drain(..count)),
            }
        }
        Poll::Ready(Ok(()))
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
        if !this.judged.is_empty() {
            this.hand_on_judged(buf);
            return Poll::Ready(Ok(()));
        }
        if this.turn_is_over() {
            return this.end_turn(cx);
        }
        this.state.leave_unread(false);
        loop {
            let before = buf.filled().len();
            let was_ahead = !this.read_ahead.is_empty();
            if was_ahead {
                let count = this.read_ahead.len().min(buf.remaining());
                buf.put_slice(this.read_ahead.get(..count).unwrap_or_default());
            } else {
                ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            }
            let bytes = buf.filled().get(before..).unwrap_or_default();
            if bytes.is_empty() {
                this.eof = true;
                return Poll::Ready(Ok(()));
            }
            let Some(taken) = this.admit(bytes) else {
                buf.set_filled(before);
                return Poll::Pending;
            };
            let (now, later) = bytes.split_at(taken);
            if was_ahead {
                this.read_ahead.advance(taken);
            } else if !later.is_empty() {
                this.read_ahead = Bytes::copy_from_slice(later);
            }
            let passed = match fault::planted(Fault::UnreadBlocks) {
                true => taken,
                false => this.blocks.pass(now, &mut this.judged),
            };
            buf.set_filled(before + passed);
            this.hand_on_judged(buf);
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            // All of it is kept until more comes.
            if this.turn_is_over() {
                return this.end_turn(cx);
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FrameIo<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.write_ahead(cx))?;
        if let Some(count) = this.greet(buf) {
            return Poll::Ready(Ok(count));
        }
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.note_write(&written);
        if let Poll::Ready(Ok(count)) = &written {
            this.look_at(buf.get(..*count).unwrap_or_default());
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.write_ahead(cx))?;
        if let Some(count) = bufs.iter().find_map(|buf| this.greet(buf)) {
            return Poll::Ready(Ok(count));
        }
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.note_write(&written);
        if let Poll::Ready(Ok(count)) = &written {
            let mut left = *count;
            for buf in bufs {
                let part = left.min(buf.len());
                this.look_at(buf.get(..part).unwrap_or_default());
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
        ready!(this.write_ahead(cx))?;
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        if flushed.is_pending() {
            this.state.write_blocked();
        }
        flushed
    }

    /// The codec has said its last words.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flooded = this.state.flooded().is_some() || this.verdicts.told_to_calm_down();
        let linger = (!this.eof && !flooded).then_some(LingerLimits::SHORT);
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncWriteExt;

    use super::*;

    const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0abcdefgh";

    /// Reads until it is told to wait; what has come.
    fn turn(io: &mut FrameIo<&[u8]>, size: usize) -> Vec<u8> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut all = Vec::new();
        io.state.begin_turn();
        loop {
            let mut room = vec![0; size];
            let mut buf = ReadBuf::new(&mut room);
            match Pin::new(&mut *io).poll_read(&mut cx, &mut buf) {
                Poll::Ready(Ok(())) if buf.filled().is_empty() => return all,
                Poll::Ready(Ok(())) => all.extend_from_slice(buf.filled()),
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => return all,
            }
        }
    }

    #[tokio::test]
    async fn a_turn_is_bounded_and_nothing_is_lost() {
        let pings = PING.repeat(100);
        for size in [1, 10, 100, 10_000] {
            let all = [&PREFACE[..], &pings].concat();
            let (ahead, later) = all.split_at(1_000);
            let mut io = FrameIo::new(later, ahead.to_vec(), 100, ConnState::new());
            let first = turn(&mut io, size);
            // It ends with the head of the frame, or with the read that has it.
            let frames = (first.len() - PREFACE.len()).div_ceil(PING.len());
            assert_eq!(frames, 64, "in pieces of {size}");
            let second = turn(&mut io, size);
            assert_eq!([first, second].concat(), all, "in pieces of {size}");
        }
    }

    /// How long the end of a connection takes that was ended for this reason, and whether what the
    /// client had still to say was read.
    async fn end_of(code: u8) -> (Duration, bool) {
        let (mut client, gateway) = tokio::io::duplex(1024);
        let mut io = FrameIo::new(gateway, Vec::new(), 100, ConnState::new());
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, code];
        io.write_all(&goaway).await.unwrap();
        let begin = Instant::now();
        let more = client.write_all(&[0; 2000]);
        let (read, _) = tokio::join!(tokio::time::timeout(PAUSE, more), io.shutdown());
        (begin.elapsed(), read.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_that_is_told_to_calm_down_nothing_more_is_read() {
        let (took, read) = end_of(11).await;
        assert!(took < 2 * PAUSE && !read, "{took:?}");
        let (took, read) = end_of(1).await;
        assert!(took >= LingerLimits::SHORT.silence && read, "{took:?}");
    }
}
