//! The bytes between the socket and the codec: first those that may be handed on, then those that
//! are not yet judged.

use std::cell::RefCell;
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// Holds an ordinary request whole.
const BASE_BYTES: usize = 8 * 1024;
/// So many buffers of that size that no connection needs are kept in a thread. It takes few: a request comes and is handed on in
/// one turn, and the one that was used last is still in the processor's cache.
const SPARE: usize = 64;
/// How far it grows for a body that arrives fast.
const BULK_BYTES: usize = 64 * 1024;

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct Buffer {
    /// None at all while there is nothing in it.
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
            bytes: Vec::new(),
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
            self.give_back();
        }
    }

    /// What to read into when nothing that comes matters any more.
    pub(super) fn scratch(&mut self) -> &mut [u8] {
        (self.start, self.approved, self.end) = (0, 0, 0);
        self.make_room();
        &mut self.bytes
    }

    /// Gives back what a bulky body made it take.
    pub(super) fn shrink(&mut self) {
        if self.bytes.len() > BASE_BYTES && self.is_empty() {
            self.bytes = Vec::new();
        }
        self.filled = false;
    }

    /// An empty buffer of the ordinary size is another connection's as well.
    fn give_back(&mut self) {
        if self.bytes.len() != BASE_BYTES || self.filled {
            return;
        }
        let bytes = mem::take(&mut self.bytes);
        SPARES.with_borrow_mut(|spares| {
            if spares.len() < SPARE {
                spares.push(bytes);
            }
        });
    }

    pub(super) fn is_full(&self) -> bool {
        !self.bytes.is_empty() && self.end - self.start == self.bytes.len()
    }

    /// Makes room for at least a byte. A line that is not whole makes it grow, and the guard bounds
    /// how long a line may be.
    pub(super) fn make_room(&mut self) {
        if self.bytes.is_empty() {
            let spare = SPARES.with_borrow_mut(Vec::pop);
            self.bytes = spare.unwrap_or_else(|| vec![0; BASE_BYTES]);
        } else if self.is_empty() {
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
        let Poll::Ready(read) = Pin::new(stream).poll_read(cx, &mut buf) else {
            self.filled = false;
            if self.is_empty() {
                self.give_back();
            }
            return Poll::Pending;
        };
        read?;
        let bytes = buf.filled().len();
        self.filled = buf.remaining() == 0;
        self.end += bytes;
        Poll::Ready(Ok(bytes))
    }
}
