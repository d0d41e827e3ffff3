//! The bytes between the socket and the codec: first those that may be handed on, then those that
//! are not yet judged.

use std::cell::RefCell;
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// What a read is offered: a request with a body of some size comes by one read.
const READ_BYTES: usize = 32 * 1024;
/// So many buffers of that size that no connection needs are kept in a thread. It takes few: a request comes and is handed on in
/// one turn, and the one that was used last is still in the processor's cache.
const SPARE: usize = 16;
/// Fewer bytes than this, which wait for others, are kept in a buffer of their own size: clients that send a head slowly take
/// little.
const FEW_BYTES: usize = 4 * 1024;

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
}

impl Buffer {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            approved: 0,
            end: 0,
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

    /// An empty buffer of the ordinary size is another connection's as well.
    fn give_back(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        if bytes.len() != READ_BYTES {
            return;
        }
        SPARES.with_borrow_mut(|spares| {
            if spares.len() < SPARE {
                spares.push(bytes);
            }
        });
    }

    /// Gives back what it has taken for a read that brought nothing, or little.
    fn settle(&mut self) {
        if self.is_empty() {
            self.give_back();
        } else if self.bytes.len() == READ_BYTES && self.rest().len() < FEW_BYTES {
            let few = self.rest().to_vec();
            self.give_back();
            self.bytes = few;
            self.approved -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.end - self.start >= READ_BYTES
    }

    /// Makes room for at least a byte. A line that is not whole makes it grow, and the guard bounds
    /// how long a line may be.
    pub(super) fn make_room(&mut self) {
        if self.bytes.len() < READ_BYTES {
            let spare = SPARES.with_borrow_mut(Vec::pop);
            let few = mem::replace(
                &mut self.bytes,
                spare.unwrap_or_else(|| vec![0; READ_BYTES]),
            );
            if let Some(front) = self.bytes.get_mut(..few.len()) {
                front.copy_from_slice(&few);
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
            self.settle();
            return Poll::Pending;
        };
        read?;
        let bytes = buf.filled().len();
        self.end += bytes;
        if bytes == 0 {
            self.settle();
        }
        Poll::Ready(Ok(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn fill(buffer: &mut Buffer, stream: &mut DuplexStream) -> Poll<usize> {
        buffer.make_room();
        let mut cx = Context::from_waker(Waker::noop());
        buffer.poll_fill(&mut cx, stream).map(Result::unwrap)
    }

    #[tokio::test]
    async fn few_bytes_that_wait_for_others_take_few() {
        let (mut client, mut stream) = duplex(1024);
        let mut buffer = Buffer::new();
        client.write_all(b"old GET /").await.unwrap();
        assert_eq!(fill(&mut buffer, &mut stream), Poll::Ready(9));
        buffer.approve(4);
        buffer.consume(4);
        buffer.approve(1);
        assert_eq!(fill(&mut buffer, &mut stream), Poll::Pending);
        assert_eq!(buffer.bytes.len(), 5);
        assert_eq!(
            (buffer.approved(), buffer.pending()),
            (&b"G"[..], &b"ET /"[..])
        );
        client.write_all(b"42").await.unwrap();
        assert_eq!(fill(&mut buffer, &mut stream), Poll::Ready(2));
        assert_eq!(
            (buffer.approved(), buffer.pending()),
            (&b"G"[..], &b"ET /42"[..])
        );
    }

    #[tokio::test]
    async fn an_empty_buffer_takes_nothing() {
        let (client, mut stream) = duplex(1024);
        let mut buffer = Buffer::new();
        assert_eq!(fill(&mut buffer, &mut stream), Poll::Pending);
        assert_eq!(buffer.bytes.capacity(), 0);
        drop(client);
        assert_eq!(fill(&mut buffer, &mut stream), Poll::Ready(0));
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    #[tokio::test]
    async fn a_long_line_makes_it_grow() {
        let (mut client, mut stream) = duplex(3 * READ_BYTES);
        let mut buffer = Buffer::new();
        let line = vec![b'x'; 2 * READ_BYTES + 1];
        client.write_all(&line).await.unwrap();
        while fill(&mut buffer, &mut stream).is_ready() {}
        assert_eq!(buffer.pending(), &line[..]);
        buffer.approve(line.len());
        buffer.consume(line.len());
        assert_eq!(buffer.bytes.capacity(), 0);
    }
}
