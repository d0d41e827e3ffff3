//! The heads of HTTP/2 frames in a stream of bytes (RFC 9113, section 4.1). They are never compressed,
//! so that frames can be told apart without a codec.

pub(crate) const HEAD_BYTES: usize = 9;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) const fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            // The first bit is reserved, and to be ignored.
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }
}

/// Finds the heads of frames in a stream of bytes.
#[derive(Debug)]
pub(crate) struct Scan {
    head: [u8; HEAD_BYTES],
    have: usize,
    /// Of the payload, still to come.
    left: usize,
    kind: u8,
}

impl Scan {
    pub(crate) const fn new() -> Self {
        Self {
            head: [0; HEAD_BYTES],
            have: 0,
            left: 0,
            kind: DATA,
        }
    }

    /// Takes the payload, or a head, off the front. A head is told once it is whole. `None`: no
    /// bytes are left.
    pub(crate) fn next<'a>(&mut self, bytes: &'a [u8]) -> Option<(Option<Head>, &'a [u8])> {
        if bytes.is_empty() {
            return None;
        }
        if self.left > 0 {
            let taken = self.left.min(bytes.len());
            self.left -= taken;
            return Some((None, bytes.get(taken..).unwrap_or_default()));
        }
        let taken = (HEAD_BYTES - self.have).min(bytes.len());
        let (front, rest) = bytes.split_at_checked(taken)?;
        if let Some(into) = self.head.get_mut(self.have..self.have + taken) {
            into.copy_from_slice(front);
        }
        self.have += taken;
        if self.have < HEAD_BYTES {
            return Some((None, rest));
        }
        self.have = 0;
        let head = Head::parse(&self.head);
        self.left = usize::try_from(head.length).unwrap_or(usize::MAX);
        self.kind = head.kind;
        Some((Some(head), rest))
    }

    /// Whether a head, or the payload of anything but DATA, has begun and not ended.
    pub(crate) const fn is_within(&self) -> bool {
        self.have > 0 || (self.left > 0 && self.kind != DATA)
    }

    /// Whether all that has begun has ended.
    pub(crate) const fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}
