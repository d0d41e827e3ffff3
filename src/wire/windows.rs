//! What the client of an HTTP/2 connection may send of bodies that nobody reads yet.
//!
//! A body that waits for its request to be admitted is kept in memory, and a connection may have
//! many that wait. The codec has one size for the windows of all its streams: what an upload needs
//! to be fast is far more than one that waits should hold. So the client is told a smaller size than
//! the codec goes by, and the rest with one WINDOW_UPDATE once the body is wanted. Until then, what
//! waits on the whole connection is counted: the codec would take as much as it goes by.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use fencegate_filters::fault::{self, Fault};

use super::frames::{
    DATA, END_STREAM, HEAD_BYTES, HEADERS, Head, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use super::meter::Flood;

/// What a client may send on one stream before any of it has been read, where it is being read.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// The same where it is not: a small upload goes in one piece.
const FIRST_WINDOW: u32 = 16 * 1024;
/// A body that has come no further than this may never need more.
const OPENS_AT: u32 = FIRST_WINDOW / 2;
/// What a client may send, on all streams together, before it has heard of other windows (RFC 9113,
/// section 6.9.2).
const DEFAULT_WINDOW: u32 = 65_535;
/// The most streams that are counted. The codec has room for fewer.
const MOST: usize = 1024;

const ACK: u8 = 0x1;
/// A setting is a name of two bytes and a value of four.
const SETTING_BYTES: usize = 6;
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];

/// The streams of a connection whose windows have not been opened.
#[derive(Debug)]
pub(crate) struct Windows(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// How much of bodies may wait on the connection.
    most: u64,
    waits: u64,
    /// The newest stream that has begun.
    newest: u32,
    narrow: BTreeMap<u32, Narrow>,
    /// Whether the client has acknowledged what it was told: until then the codec does not go by it.
    acknowledged: bool,
    /// Streams of which it has not been told that they are open.
    to_open: Vec<u32>,
    /// The task that tells it.
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Narrow {
    /// As windows count it.
    received: u32,
    wanted: bool,
}

/// The window of one stream. It is no longer counted when this is dropped, and the body with it.
#[derive(Debug)]
pub(crate) struct Window {
    windows: Arc<Windows>,
    stream: u32,
}

impl Window {
    pub(crate) const fn new(windows: Arc<Windows>, stream: u32) -> Self {
        Self { windows, stream }
    }

    /// The body is wanted, so the client is to be given room for more.
    pub(crate) fn open(&self) {
        let waker = self.windows.with(|inner| {
            let narrow = inner.narrow.get_mut(&self.stream)?;
            narrow.wanted = true;
            inner.open_wanted(self.stream).then(|| inner.waker.take())?
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.windows.with(|inner| inner.forget(self.stream));
    }
}

impl Windows {
    /// Of a connection that may carry so many requests at once.
    pub(super) fn new(streams: u32) -> Arc<Self> {
        let most = u64::from(FIRST_WINDOW) * u64::from(streams) + u64::from(DEFAULT_WINDOW);
        Arc::new(Self(Mutex::new(Inner {
            most,
            waits: 0,
            newest: 0,
            narrow: BTreeMap::new(),
            acknowledged: false,
            to_open: Vec::new(),
            waker: None,
        })))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A frame of the client's begins.
    ///
    /// # Errors
    ///
    /// More waits than it was given room for.
    pub(super) fn read(&self, head: Head) -> Result<(), Flood> {
        let ends = head.flags & END_STREAM != 0;
        self.with(|inner| {
            match head.kind {
                HEADERS if head.stream > inner.newest => {
                    inner.newest = head.stream;
                    if !ends && inner.narrow.len() < MOST {
                        inner.narrow.insert(head.stream, Narrow::default());
                    }
                }
                DATA => inner.received(head.stream, head.length, ends),
                RST_STREAM => inner.forget(head.stream),
                SETTINGS if head.flags & ACK != 0 => inner.acknowledged = true,
                _ => {}
            }
            match inner.waits > inner.most && !fault::planted(Fault::WideWindows) {
                true => Err(Flood::Bodies),
                false => Ok(()),
            }
        })
    }

    /// A frame of the codec's begins: what it has reset, it keeps nothing of.
    pub(super) fn written(&self, head: Head) {
        if head.kind == RST_STREAM {
            self.with(|inner| inner.forget(head.stream));
        }
    }

    /// Puts into `out` what the client has still to be told. When there is more, the task of `waker`
    /// is woken.
    pub(super) fn tell(&self, out: &mut Vec<u8>, waker: &Waker) {
        self.with(|inner| {
            if inner.acknowledged {
                for stream in mem::take(&mut inner.to_open) {
                    out.extend_from_slice(&[0, 0, 4, WINDOW_UPDATE, 0]);
                    out.extend_from_slice(&stream.to_be_bytes());
                    out.extend_from_slice(&(STREAM_WINDOW - FIRST_WINDOW).to_be_bytes());
                }
            }
            if !inner.waker.as_ref().is_some_and(|old| old.will_wake(waker)) {
                inner.waker = Some(waker.clone());
            }
        });
    }
}

impl Inner {
    fn received(&mut self, stream: u32, length: u32, ends: bool) {
        let Some(narrow) = self.narrow.get_mut(&stream) else {
            return;
        };
        narrow.received = narrow.received.saturating_add(length);
        self.waits += u64::from(length);
        if ends && narrow.wanted {
            self.forget(stream);
        } else {
            self.open_wanted(stream);
        }
    }

    /// Opens a window that is wanted and may be needed.
    fn open_wanted(&mut self, stream: u32) -> bool {
        let opens = |narrow: &Narrow| narrow.wanted && narrow.received >= OPENS_AT;
        let opens = self.narrow.get(&stream).is_some_and(opens);
        if opens {
            self.forget(stream);
            if !fault::planted(Fault::WideWindows) {
                self.to_open.push(stream);
            }
        }
        opens
    }

    fn forget(&mut self, stream: u32) {
        if let Some(narrow) = self.narrow.remove(&stream) {
            self.waits = self.waits.saturating_sub(u64::from(narrow.received));
        }
        self.to_open.retain(|open| *open != stream);
    }
}

/// The codec's first frame, which tells the client the size of its windows.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    frame: Vec<u8>,
    over: bool,
}

impl Greeting {
    /// Takes what belongs to it off the front of what the codec writes, and says how much that was.
    /// Once it is whole it is put into `out`, with the size that the client is to go by.
    pub(super) fn take(&mut self, written: &[u8], out: &mut Vec<u8>) -> usize {
        if self.over {
            return 0;
        }
        let mut taken = 0;
        for byte in written {
            self.frame.push(*byte);
            taken += 1;
            if self.is_whole() {
                self.narrow();
                out.append(&mut self.frame);
                self.over = true;
                break;
            }
        }
        taken
    }

    fn is_whole(&self) -> bool {
        let head = self.frame.first_chunk::<HEAD_BYTES>();
        let length = |head| usize::try_from(Head::parse(head).length).unwrap_or(usize::MAX);
        head.is_some_and(|head| self.frame.len() >= HEAD_BYTES.saturating_add(length(head)))
    }

    fn narrow(&mut self) {
        if fault::planted(Fault::WideWindows) {
            return;
        }
        let payload = self.frame.get_mut(HEAD_BYTES..).unwrap_or_default();
        for setting in payload.chunks_exact_mut(SETTING_BYTES) {
            if let Some((name, value)) = setting.split_first_chunk_mut::<2>()
                && *name == INITIAL_WINDOW_SIZE
            {
                value.copy_from_slice(&FIRST_WINDOW.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAMS: u32 = 100;

    fn head(kind: u8, flags: u8, stream: u32, length: u32) -> Head {
        Head {
            length,
            kind,
            flags,
            stream,
        }
    }

    fn begun(streams: impl IntoIterator<Item = u32>) -> Arc<Windows> {
        let windows = Windows::new(STREAMS);
        windows.read(head(SETTINGS, ACK, 0, 0)).unwrap();
        for stream in streams {
            windows.read(head(HEADERS, 0, stream, 10)).unwrap();
        }
        windows
    }

    /// The streams that the client is told are open.
    fn told(windows: &Windows) -> Vec<u32> {
        let mut out = Vec::new();
        windows.tell(&mut out, Waker::noop());
        out.chunks(13)
            .map(|frame| {
                assert_eq!(frame[..5], [0, 0, 4, WINDOW_UPDATE, 0]);
                let more = u32::from_be_bytes(frame[9..].try_into().unwrap());
                assert_eq!(more, STREAM_WINDOW - FIRST_WINDOW);
                u32::from_be_bytes(frame[5..9].try_into().unwrap())
            })
            .collect()
    }

    #[test]
    fn a_window_is_opened_once_its_body_is_wanted_and_has_come_some_way() {
        let windows = begun([1, 3, 5]);
        let [first, second, third] =
            [1, 3, 5].map(|stream| Window::new(Arc::clone(&windows), stream));
        for stream in [1, 3] {
            windows.read(head(DATA, 0, stream, FIRST_WINDOW)).unwrap();
        }
        assert!(told(&windows).is_empty(), "nobody wants them");
        first.open();
        third.open();
        assert_eq!(told(&windows), [1]);
        assert!(told(&windows).is_empty(), "it is told once");
        windows.read(head(DATA, 0, 5, OPENS_AT - 1)).unwrap();
        assert!(told(&windows).is_empty(), "it may end here");
        windows.read(head(DATA, 0, 5, 1)).unwrap();
        assert_eq!(told(&windows), [5]);
        drop(second);
        assert!(told(&windows).is_empty());
        assert_eq!(windows.with(|inner| inner.waits), 0);
    }

    #[test]
    fn what_has_ended_is_not_opened() {
        let windows = begun([1, 3, 5, 7]);
        let all = [1, 3, 5, 7].map(|stream| Window::new(Arc::clone(&windows), stream));
        all.iter().for_each(Window::open);
        windows
            .read(head(DATA, END_STREAM, 1, FIRST_WINDOW))
            .unwrap();
        for stream in [3, 5, 7] {
            windows.read(head(DATA, 0, stream, FIRST_WINDOW)).unwrap();
        }
        windows.read(head(RST_STREAM, 0, 3, 4)).unwrap();
        windows.written(head(RST_STREAM, 0, 5, 4));
        assert_eq!(told(&windows), [7]);
    }

    #[test]
    fn nothing_is_opened_before_the_client_goes_by_what_it_was_told() {
        let windows = Windows::new(STREAMS);
        windows.read(head(HEADERS, 0, 1, 10)).unwrap();
        let window = Window::new(Arc::clone(&windows), 1);
        windows.read(head(DATA, 0, 1, DEFAULT_WINDOW)).unwrap();
        window.open();
        assert!(told(&windows).is_empty());
        windows.read(head(SETTINGS, ACK, 0, 0)).unwrap();
        assert_eq!(told(&windows), [1]);
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_read_is_not_counted() {
        let streams = || (0..STREAMS).map(|number| number * 2 + 1);
        let windows = begun(streams());
        let read = Window::new(Arc::clone(&windows), 1);
        read.open();
        windows.read(head(DATA, 0, 1, STREAM_WINDOW)).unwrap();
        for stream in streams() {
            windows.read(head(DATA, 0, stream, FIRST_WINDOW)).unwrap();
        }
        // As much again as a client may have sent before it knew.
        windows.read(head(DATA, 0, 3, DEFAULT_WINDOW)).unwrap();
        windows.read(head(DATA, 0, 5, FIRST_WINDOW)).unwrap();
        let more = windows.read(head(DATA, 0, 7, 1));
        assert_eq!(more, Err(Flood::Bodies));
        // Trailers begin nothing, and neither does what comes for a stream that is over.
        let windows = begun([1]);
        windows.read(head(HEADERS, END_STREAM, 1, 10)).unwrap();
        drop(Window::new(Arc::clone(&windows), 1));
        windows.read(head(DATA, 0, 1, u32::MAX)).unwrap();
        windows.read(head(HEADERS, 0, 1, 10)).unwrap();
        assert!(windows.with(|inner| inner.narrow.is_empty() && inner.waits == 0));
    }

    #[test]
    fn the_greeting_tells_the_smaller_window_in_whatever_pieces_it_comes() {
        let mut codec = vec![0, 0, 12, SETTINGS, 0, 0, 0, 0, 0];
        codec.extend([0, 3, 0, 0, 0, 100, 0, 4]);
        codec.extend(STREAM_WINDOW.to_be_bytes());
        let mut expected = codec.clone();
        expected[17..21].copy_from_slice(&FIRST_WINDOW.to_be_bytes());
        codec.extend(b"the next frame");
        for size in [1, 5, 10, 100] {
            let (mut greeting, mut out) = (Greeting::default(), Vec::new());
            let taken: usize = codec
                .chunks(size)
                .map(|piece| greeting.take(piece, &mut out))
                .sum();
            assert_eq!((taken, &out), (21, &expected), "in pieces of {size}");
        }
    }
}
