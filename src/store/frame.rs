//! The log's frames: what one write and one sync make durable, all of it or nothing.
//!
//! ```text
//! frame   = magic u32, payload length u32, segment u64, sequence u64, records u32, checksum u32,
//!           payload, zeros up to a multiple of 8                              ; little endian
//! payload = *raise                                                  ; a seal has none
//! ```
//!
//! The checksum is a crc32c over everything but itself and the zeros, begun from the store's own
//! id, so that bytes of another store, or bytes that a client chose, never pass for a frame. The
//! magic has bytes that no UTF-8 text contains, for the same reason. Segment and sequence tell a
//! frame of this life of the segment from one that the segment held before it was recycled.

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 32;
/// Frames begin at multiples of this.
pub(super) const ALIGN: usize = 8;
/// What a disk writes as one: a seal begins a block of its own.
pub(super) const BLOCK_BYTES: usize = 4096;

const MAGIC: [u8; 4] = [0xfe, b'f', b'g', 0xff];
const CHECKSUM_AT: usize = 28;

/// One valid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) segment: u64,
    pub(super) sequence: u64,
    pub(super) records: u32,
    pub(super) payload: &'a [u8],
    /// The length on disk.
    pub(super) bytes: usize,
}

/// Begins a frame in an empty buffer: the payload is appended after it.
pub(super) fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEADER_BYTES, 0);
}

/// How long a frame becomes with a payload that makes the buffer `length` long.
pub(super) const fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGN)
}

/// Fills in the header of the frame in `buffer`, and pads it.
///
/// Fails where the payload is longer than a `u32` can say.
pub(super) fn finish(
    buffer: &mut Vec<u8>,
    seed: u32,
    segment: u64,
    sequence: u64,
    records: u32,
) -> Option<()> {
    let payload = u32::try_from(buffer.len().checked_sub(HEADER_BYTES)?).ok()?;
    let header = buffer.first_chunk_mut::<HEADER_BYTES>()?;
    let fields = MAGIC
        .into_iter()
        .chain(payload.to_le_bytes())
        .chain(segment.to_le_bytes())
        .chain(sequence.to_le_bytes())
        .chain(records.to_le_bytes());
    for (byte, field) in header.iter_mut().zip(fields) {
        *byte = field;
    }
    let checksum = checksum(buffer, seed)?;
    let place = buffer.get_mut(CHECKSUM_AT..HEADER_BYTES)?;
    place.copy_from_slice(&checksum.to_le_bytes());
    buffer.resize(padded(buffer.len()), 0);
    Some(())
}

fn checksum(frame: &[u8], seed: u32) -> Option<u32> {
    let header = crc32c::crc32c_append(seed, frame.get(..CHECKSUM_AT)?);
    Some(crc32c::crc32c_append(header, frame.get(HEADER_BYTES..)?))
}

/// The valid frame that begins at `offset`, if one does.
pub(super) fn frame_at(bytes: &[u8], offset: usize, seed: u32) -> Option<Frame<'_>> {
    let rest = bytes.get(offset..)?;
    if rest.first_chunk() != Some(&MAGIC) {
        return None;
    }
    let u32_at = |at: usize| Some(u32::from_le_bytes(*rest.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*rest.get(at..)?.first_chunk()?));
    let length = HEADER_BYTES.checked_add(usize::try_from(u32_at(4)?).ok()?)?;
    let frame = rest.get(..length)?;
    if checksum(frame, seed)? != u32_at(CHECKSUM_AT)? {
        return None;
    }
    Some(Frame {
        segment: u64_at(8)?,
        sequence: u64_at(16)?,
        records: u32_at(24)?,
        payload: frame.get(HEADER_BYTES..)?,
        bytes: padded(length),
    })
}

/// Where the first valid frame at or after `from` begins for which `wanted` holds.
pub(super) fn find(
    bytes: &[u8],
    from: usize,
    seed: u32,
    wanted: impl Fn(&Frame<'_>) -> bool,
) -> Option<usize> {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let mut begin = from.next_multiple_of(ALIGN);
    while begin < bytes.len() {
        let end = (begin + 1).next_multiple_of(BLOCK_BYTES).min(bytes.len());
        let block = bytes.get(begin..end)?;
        // Segments are long, and zeros mostly, which are compared many at once.
        if Some(block) != ZEROS.get(..block.len()) {
            let found = (begin..end)
                .step_by(ALIGN)
                .find(|&at| frame_at(bytes, at, seed).is_some_and(|frame| wanted(&frame)));
            if found.is_some() {
                return found;
            }
        }
        begin = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        begin(&mut buffer);
        buffer.extend_from_slice(payload);
        finish(&mut buffer, 7, 3, 9, 1).unwrap();
        buffer
    }

    #[test]
    fn what_is_written_is_read() {
        for length in 0..40 {
            let payload = vec![5; length];
            let bytes = frame(&payload);
            assert_eq!(bytes.len() % ALIGN, 0);
            let read = frame_at(&bytes, 0, 7).unwrap();
            assert_eq!((read.segment, read.sequence, read.records), (3, 9, 1));
            assert_eq!((read.payload, read.bytes), (&*payload, bytes.len()));
        }
    }

    #[test]
    fn another_stores_frame_is_none() {
        assert_eq!(frame_at(&frame(b"payload"), 0, 8), None);
    }

    #[test]
    fn every_flip_and_every_cut_is_noticed() {
        let bytes = frame(b"payload that is not a multiple of eight");
        let end = HEADER_BYTES + 39;
        for bit in 0..end * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(frame_at(&bytes, 0, 7), None, "bit {bit}");
        }
        for cut in 0..end {
            assert_eq!(frame_at(&bytes[..cut], 0, 7), None, "cut at {cut}");
        }
    }

    #[test]
    fn is_found_after_garbage() {
        let mut bytes = vec![0xfe; 64];
        bytes.extend(frame(b"x"));
        assert_eq!(find(&bytes, 1, 7, |_| true), Some(64));
        assert_eq!(find(&bytes, 1, 7, |frame| frame.sequence > 9), None);
    }
}
