//! Makes the codec of HTTP/2 refuse what it would repair in silence: pseudo-header fields in trailers
//! (RFC 9113, section 8.1) and a `:path` with a fragment.
//!
//! The frames of header blocks are kept until they are whole, and read. A block that must not pass gets
//! one more field at its end: the codec stays in step with the client's table, and judges.

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEAD_BYTES, HEADERS, Head, RST_STREAM,
};
use super::hpack::Reader;

/// Put into a request whose `:path` had a fragment, which is cut off by the time anybody sees it. A
/// client that sends it is refused for what it has not done.
pub(crate) const CUT_TARGET: &str = "fencegate-cut-target";

/// What the codec takes for no request: a field that HTTP/2 has no place for (section 8.2.2).
const NO_REQUEST: &str = "connection";

const PADDED: u8 = 0x8;
const WITH_PRIORITY: u8 = 0x20;
/// The longest frame that the codec takes.
const LONGEST: usize = 16 * 1024;
/// The most streams that are known to have begun and not to have ended. The codec has room for fewer;
/// those that it has reset itself are forgotten in time.
const MOST_OPEN: usize = 1024;
/// The longest block that is read. The codec ends a connection with far less in one.
const MOST: usize = 1024 * 1024;

/// The header blocks of what a client sends.
#[derive(Debug)]
pub(super) struct Blocks {
    reader: Reader,
    /// Bytes of the preface, or of a frame that is none of a block's, that pass as they are.
    left: usize,
    /// A frame of a block, or its head, that has not come whole.
    held: Vec<u8>,
    /// The frames of a block before its last.
    block: Vec<u8>,
    /// What the block is that is under way.
    kind: Kind,
    /// The newest stream that has begun, and those that have not ended since.
    newest: u32,
    open: Vec<u32>,
    /// Something came that the codec ends the connection for: it is left to that.
    blind: bool,
}

/// What a header block is, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    Trailers,
    /// Out of place, which the codec sees.
    Neither,
}

impl Blocks {
    /// For a connection on which so many bytes come before the first frame.
    pub(super) const fn after(preface: usize) -> Self {
        Self {
            reader: Reader::new(),
            left: preface,
            held: Vec::new(),
            block: Vec::new(),
            kind: Kind::Neither,
            newest: 0,
            open: Vec::new(),
            blind: false,
        }
    }

    /// Takes what has come, and says how much of it passes as it is; what passes behind that is put
    /// into `out`, which is empty. The rest is kept.
    pub(super) fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let mut rest = bytes;
        let mut as_it_is = 0;
        while !rest.is_empty() {
            if self.blind {
                pass(rest, &mut as_it_is, out);
                break;
            }
            if self.left > 0 {
                let (now, later) = rest.split_at(self.left.min(rest.len()));
                pass(now, &mut as_it_is, out);
                self.left -= now.len();
                rest = later;
                continue;
            }
            if self.held.is_empty()
                && let Some(length) = frame_length(rest)
            {
                if !is_of_block(rest) {
                    self.note_end(rest);
                    self.left = length;
                    continue;
                }
                if length > HEAD_BYTES + LONGEST {
                    self.blind = true;
                    continue;
                }
                if let Some((frame, later)) = rest.split_at_checked(length) {
                    match self.judge(frame) {
                        None => pass(frame, &mut as_it_is, out),
                        Some(more) => spoil(frame, more, out),
                    }
                    rest = later;
                    continue;
                }
            }
            let wanted = frame_length(&self.held).unwrap_or(HEAD_BYTES);
            let (now, later) =
                rest.split_at(wanted.saturating_sub(self.held.len()).min(rest.len()));
            self.held.extend_from_slice(now);
            rest = later;
            self.release(out);
        }
        as_it_is
    }

    /// Lets go of what is held, if it is whole or none of a block's.
    fn release(&mut self, out: &mut Vec<u8>) {
        let Some(length) = frame_length(&self.held) else {
            return;
        };
        if !is_of_block(&self.held) {
            let held = std::mem::take(&mut self.held);
            self.note_end(&held);
            self.left = length - held.len();
            out.extend_from_slice(&held);
        } else if length > HEAD_BYTES + LONGEST {
            self.blind = true;
            out.append(&mut self.held);
        } else if self.held.len() == length {
            let frame = std::mem::take(&mut self.held);
            match self.judge(&frame) {
                None => out.extend_from_slice(&frame),
                Some(more) => spoil(&frame, more, out),
            }
        }
    }

    /// Looks at a frame that is none of a block's.
    fn note_end(&mut self, frame: &[u8]) {
        let Some(head) = frame.first_chunk().map(Head::parse) else {
            return;
        };
        let ends = match head.kind {
            DATA => head.flags & END_STREAM != 0,
            RST_STREAM => true,
            _ => false,
        };
        if ends {
            self.open.retain(|open| *open != head.stream);
        }
    }

    /// What the block is that begins.
    fn kind_of(&mut self, head: Head) -> Kind {
        let ends = head.flags & END_STREAM != 0;
        if head.stream > self.newest {
            self.newest = head.stream;
            if !ends {
                if self.open.len() == MOST_OPEN {
                    self.open.remove(0);
                }
                self.open.push(head.stream);
            }
            return Kind::Request;
        }
        let Some(place) = self.open.iter().position(|open| *open == head.stream) else {
            return Kind::Neither;
        };
        if ends {
            self.open.remove(place);
        }
        Kind::Trailers
    }

    /// Reads a frame of a block; the name of the field that its block gets, where it must not pass.
    fn judge(&mut self, frame: &[u8]) -> Option<&'static str> {
        let Some((head, fragment)) = parse(frame) else {
            self.blind = true;
            return None;
        };
        if head.kind == HEADERS {
            self.kind = self.kind_of(head);
            self.block.clear();
        }
        let last = head.flags & END_HEADERS != 0;
        if !last || !self.block.is_empty() {
            self.block.extend_from_slice(fragment);
        }
        if !last {
            self.blind |= self.block.len() > MOST;
            return None;
        }
        let whole = match self.block.as_slice() {
            [] => fragment,
            block => block,
        };
        let read = self.reader.read(whole);
        self.block = Vec::new();
        let Ok(found) = read else {
            self.blind = true;
            return None;
        };
        match self.kind {
            Kind::Request if found.fragment => Some(CUT_TARGET),
            Kind::Trailers if found.pseudo => Some(NO_REQUEST),
            _ => None,
        }
    }
}

/// Passes bytes as they are, or behind what does not.
fn pass(bytes: &[u8], as_it_is: &mut usize, out: &mut Vec<u8>) {
    if out.is_empty() {
        *as_it_is += bytes.len();
    } else {
        out.extend_from_slice(bytes);
    }
}

/// Puts the frame into `out` with a field of this name at the end of its block.
fn spoil(frame: &[u8], name: &str, out: &mut Vec<u8>) {
    let Some((head, fragment)) = parse(frame) else {
        return;
    };
    // A literal that is not kept in the table, its name and its value as they are.
    let mut field = vec![0, u8::try_from(name.len()).unwrap_or_default()];
    field.extend_from_slice(name.as_bytes());
    field.extend_from_slice(&[1, b'1']);
    if fragment.len() + field.len() <= LONGEST {
        // Padding and priority mean nothing to the codec.
        let flags = head.flags & !(PADDED | WITH_PRIORITY);
        put_frame(head.kind, flags, head.stream, &[fragment, &field], out);
    } else {
        put_frame(
            head.kind,
            head.flags & END_STREAM,
            head.stream,
            &[fragment],
            out,
        );
        put_frame(CONTINUATION, END_HEADERS, head.stream, &[&field], out);
    }
}

fn put_frame(kind: u8, flags: u8, stream: u32, payload: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).unwrap_or_default().to_be_bytes();
    out.extend_from_slice(length.get(1..).unwrap_or_default());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    for part in payload {
        out.extend_from_slice(part);
    }
}

/// The length of the frame that begins here, with its head.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let head = Head::parse(bytes.first_chunk()?);
    Some(HEAD_BYTES + usize::try_from(head.length).unwrap_or(usize::MAX))
}

fn is_of_block(frame: &[u8]) -> bool {
    matches!(frame.get(3), Some(&(HEADERS | CONTINUATION)))
}

/// The head of a whole frame, and its part of the block.
fn parse(frame: &[u8]) -> Option<(Head, &[u8])> {
    let (head, mut payload) = frame.split_first_chunk()?;
    let head = Head::parse(head);
    if head.kind == CONTINUATION {
        return Some((head, payload));
    }
    if head.flags & PADDED != 0 {
        let (padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    if head.flags & WITH_PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    Some((head, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// What passes of a stream that comes in pieces of `size`.
    fn passed(stream: &[u8], size: usize) -> Vec<u8> {
        let mut blocks = Blocks::after(PREFACE.len());
        let mut all = Vec::new();
        for bytes in stream.chunks(size) {
            let mut out = Vec::new();
            let as_it_is = blocks.pass(bytes, &mut out);
            all.extend(&bytes[..as_it_is]);
            all.extend(out);
        }
        all
    }

    fn assert_passes(frames: &[(Vec<u8>, Option<Vec<u8>>)]) {
        let mut sent = PREFACE.to_vec();
        let mut expected = PREFACE.to_vec();
        for (frame, other) in frames {
            sent.extend(frame);
            expected.extend(other.as_ref().unwrap_or(frame));
        }
        for size in [1, 2, 8, 9, 10, 23, 24, 25, 100, 100_000] {
            assert_eq!(passed(&sent, size), expected, "in pieces of {size}");
        }
    }

    /// The frame with another field, where that is `block`.
    fn spoiled(kind: u8, flags: u8, stream: u32, block: &[u8], name: &str) -> Option<Vec<u8>> {
        let mut block = block.to_vec();
        block.extend([0, u8::try_from(name.len()).unwrap()]);
        block.extend(name.as_bytes());
        block.extend([1, b'1']);
        Some(frame(kind, flags, stream, &block))
    }

    #[test]
    fn what_is_well_passes_as_it_came() {
        assert_passes(&[
            (frame(4, 0, 0, &[0; 12]), None),
            (frame(HEADERS, END_HEADERS, 1, b"\x83\x44\x02/a"), None),
            (frame(DATA, 0, 1, &[7; 300]), None),
            (
                frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01a\x01#"),
                None,
            ),
            (frame(HEADERS, END_STREAM, 3, b"\x83"), None),
            (frame(CONTINUATION, 0, 3, b""), None),
            (frame(CONTINUATION, END_HEADERS, 3, b"\xbe"), None),
            (
                frame(
                    HEADERS,
                    END_HEADERS | PADDED | WITH_PRIORITY,
                    5,
                    b"\x02\x00\x00\x00\x00\x10\x83\xbe##",
                ),
                None,
            ),
        ]);
    }

    #[test]
    fn what_must_not_pass_gets_a_field_by_which_it_does_not() {
        let whole = END_HEADERS | END_STREAM;
        assert_passes(&[
            (frame(HEADERS, END_HEADERS, 1, b"\x83\x44\x02/a"), None),
            (frame(DATA, 0, 1, b"abc"), None),
            (
                frame(HEADERS, whole, 1, b"\x82"),
                spoiled(HEADERS, whole, 1, b"\x82", NO_REQUEST),
            ),
            (
                frame(HEADERS, END_HEADERS | PADDED, 3, b"\x01\x83\x04\x03/a#\0"),
                spoiled(HEADERS, END_HEADERS, 3, b"\x83\x04\x03/a#", CUT_TARGET),
            ),
            (frame(HEADERS, END_STREAM, 3, b"\x00\x01a"), None),
            (frame(CONTINUATION, 0, 3, b"\x01b"), None),
            (
                frame(CONTINUATION, END_HEADERS, 3, b"\xbe"),
                spoiled(CONTINUATION, END_HEADERS, 3, b"\xbe", NO_REQUEST),
            ),
        ]);
        // Where it has no room.
        let long = [&b"\x82\x00\x01a\x7f\xf3\x7e"[..], &[b'x'; 16_370]].concat();
        let sent = &long[..];
        assert!((LONGEST - 13..=LONGEST).contains(&sent.len()));
        let mut expected = frame(HEADERS, END_STREAM, 1, sent);
        expected.extend(spoiled(CONTINUATION, END_HEADERS, 1, b"", NO_REQUEST).unwrap());
        assert_passes(&[
            (frame(HEADERS, END_HEADERS, 1, b"\x83"), None),
            (frame(HEADERS, whole, 1, sent), Some(expected)),
        ]);
    }

    #[test]
    fn what_is_out_of_place_is_left_to_the_codec() {
        let whole = END_HEADERS | END_STREAM;
        let open = || (frame(HEADERS, END_HEADERS, 1, b"\x83"), None);
        let again = || (frame(HEADERS, whole, 1, b"\x83"), None);
        assert_passes(&[(frame(HEADERS, whole, 1, b"\x83"), None), again()]);
        assert_passes(&[open(), (frame(DATA, END_STREAM, 1, b"a"), None), again()]);
        assert_passes(&[open(), (frame(RST_STREAM, 0, 1, &[0; 4]), None), again()]);
    }

    #[test]
    fn what_the_codec_ends_the_connection_for_is_left_to_it() {
        let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x82");
        let open = frame(HEADERS, END_HEADERS, 1, b"\x83");
        for broken in [
            frame(HEADERS, END_HEADERS, 1, b"\xff"),
            frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09"),
            frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"\x00"),
            frame(HEADERS, END_HEADERS, 1, &[0x82; LONGEST + 1]),
        ] {
            assert_passes(&[
                (open.clone(), None),
                (broken, None),
                (trailers.clone(), None),
            ]);
        }
    }
}
