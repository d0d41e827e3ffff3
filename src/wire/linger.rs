//! The end of a client's connection: the last words, then a close that lets them be read.
//!
//! A socket that is closed while bytes of the peer are unread answers them with a reset, and a
//! reset makes the peer's kernel throw away what it had not yet read of the answer. So our half is
//! closed first, and what still comes is read and dropped (RFC 9112, section 9.6).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::ConnState;

/// How long to go on reading from a client that has been told all it will be told.
#[derive(Clone, Copy, Debug)]
pub struct LingerLimits {
    /// Until it has been silent for so long.
    pub silence: Duration,
    /// In all.
    pub total: Duration,
}

impl Default for LingerLimits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(5),
            total: Duration::from_secs(30),
        }
    }
}

impl LingerLimits {
    /// For a client that closes the connection itself once it has read why it is over.
    pub(crate) const SHORT: Self = Self {
        silence: Duration::from_secs(1),
        total: Duration::from_secs(5),
    };
}

/// Says `words`, and closes `stream` so that they can be read.
pub(crate) async fn dismiss<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, words: Vec<u8>) {
    let state = ConnState::new();
    let mut farewell = Farewell::new(words, Some(LingerLimits::SHORT));
    let mut scratch = [0; 1024];
    poll_fn(|cx| farewell.poll(cx, &mut stream, &mut scratch, &state)).await;
}

#[derive(Debug)]
enum Step {
    Write,
    Flush,
    Shutdown,
    Linger {
        until: Instant,
        sleep: Pin<Box<Sleep>>,
    },
    Done,
}

/// Writes what is left to say, closes our half, and lingers where that is wanted.
#[derive(Debug)]
pub(super) struct Farewell {
    words: Vec<u8>,
    said: usize,
    /// `None`: the client has nothing more to send.
    linger: Option<LingerLimits>,
    step: Step,
}

impl Farewell {
    pub(super) fn new(words: Vec<u8>, linger: Option<LingerLimits>) -> Self {
        Self {
            words,
            said: 0,
            linger,
            step: Step::Write,
        }
    }

    /// Ready when the socket can be dropped. That the client went away first is no error: there is
    /// nobody left to tell.
    pub(super) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        scratch: &mut [u8],
        state: &ConnState,
    ) -> Poll<()> {
        while !matches!(self.step, Step::Done) {
            let next = ready!(self.poll_step(cx, stream, scratch, state));
            self.step = next.unwrap_or(Step::Done);
        }
        Poll::Ready(())
    }

    fn poll_step<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        scratch: &mut [u8],
        state: &ConnState,
    ) -> Poll<io::Result<Step>> {
        match &mut self.step {
            Step::Write => {
                while let Some(rest @ [_, ..]) = self.words.get(self.said..) {
                    let Poll::Ready(written) = Pin::new(&mut *stream).poll_write(cx, rest) else {
                        state.write_blocked();
                        return Poll::Pending;
                    };
                    match written? {
                        0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        bytes => self.said += bytes,
                    }
                    state.has_written();
                }
                Poll::Ready(Ok(Step::Flush))
            }
            Step::Flush => Pin::new(stream).poll_flush(cx).map_ok(|()| Step::Shutdown),
            Step::Shutdown => {
                ready!(Pin::new(stream).poll_shutdown(cx))?;
                Poll::Ready(Ok(self.linger.map_or(Step::Done, |limits| {
                    let now = Instant::now();
                    let sleep = Box::pin(sleep_until(now + limits.silence.min(limits.total)));
                    Step::Linger {
                        until: now + limits.total,
                        sleep,
                    }
                })))
            }
            Step::Linger { until, sleep } => {
                let silence = self.linger.map_or(Duration::ZERO, |limits| limits.silence);
                let mut heard = false;
                loop {
                    let mut buf = ReadBuf::new(scratch);
                    match Pin::new(&mut *stream).poll_read(cx, &mut buf) {
                        Poll::Ready(Ok(())) if !buf.filled().is_empty() => heard = true,
                        Poll::Ready(_) => return Poll::Ready(Ok(Step::Done)),
                        Poll::Pending => break,
                    }
                    // A client that never lets the socket run dry must not outrun the clock.
                    if Instant::now() >= *until {
                        return Poll::Ready(Ok(Step::Done));
                    }
                }
                if heard {
                    sleep.as_mut().reset((Instant::now() + silence).min(*until));
                }
                sleep.as_mut().poll(cx).map(|()| Ok(Step::Done))
            }
            Step::Done => Poll::Ready(Ok(Step::Done)),
        }
    }
}
