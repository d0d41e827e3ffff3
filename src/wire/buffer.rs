//! The bytes between the socket and the codec: first those that may be handed on, then those that
//! are not yet judged.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Holds an ordinary request whole, and is little enough to keep for every idle connection.
const BASE_BYTES: usize = 8 * 1024;
/// How far it grows for a body that arrives fast.
const BULK_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    /// Up to here it may be handed on.
    approved: usize,
    end: usize,
    /// The last read left no room: more than it holds is waiting.
    filled: bool,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BASE_BYTES],
            start: 0,
            approved: 0,
            end: 0,
            filled: false,
        }
    }

    /// What may be handed on.
    pub(super) fn approved(&self) -> &[u8] {
        self.bytes
            .get(self.start..self.approved)
            .unwrap_or_default()
    }

    /// What is not yet judged.
    pub(super) fn pending(&self) -> &[u8] {
        self.bytes.get(self.approved..self.end).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Everything that was not handed on.
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub(super) fn approve(&mut self, bytes: usize) {
        self.approved = self.end.min(self.approved + bytes);
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        self.start = self.approved.min(self.start + bytes);
        if self.is_empty() {
            (self.start, self.approved, self.end) = (0, 0, 0);
        }
    }

    /// What to read into when nothing that comes matters any more.
    pub(super) fn scratch(&mut self) -> &mut [u8] {
        (self.start, self.approved, self.end) = (0, 0, 0);
        &mut self.bytes
    }

    /// Gives back what a bulky body made it take.
    pub(super) fn shrink(&mut self) {
        if self.bytes.len() > BASE_BYTES && self.is_empty() {
            self.bytes = vec![0; BASE_BYTES];
        }
        self.filled = false;
    }

    pub(super) fn is_full(&self) -> bool {
        self.end - self.start == self.bytes.len()
    }

    /// Makes room for at least a byte. A line that is not whole makes it grow, and the guard bounds
    /// how long a line may be.
    pub(super) fn make_room(&mut self) {
        if self.is_empty() {
            if self.filled && self.bytes.len() < BULK_BYTES {
                self.bytes = vec![0; self.bytes.len() * 2];
            }
        } else if self.end == self.bytes.len() {
            if self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                self.approved -= self.start;
                self.end -= self.start;
                self.start = 0;
            } else {
                self.bytes.resize(self.bytes.len() * 2, 0);
            }
        }
    }

    /// Reads once. Zero is the end of the stream, or that there was no room.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(self.bytes.get_mut(self.end..).unwrap_or_default());
        ready!(Pin::new(stream).poll_read(cx, &mut buf))?;
        let bytes = buf.filled().len();
        self.filled = buf.remaining() == 0;
        self.end += bytes;
        Poll::Ready(Ok(bytes))
    }
}
