//! The log's files: preallocated, zeroed in advance, and used again.
//!
//! A segment is a block with a header, and frames after it. Writing over blocks that the file
//! already has costs a sync of the data alone; a growing file would cost one of its metadata too.
//! Each use of a segment has an id of its own, one higher than the last that was given out, and
//! its header is durable before a frame is written to it. So the segments in use and those in
//! reserve always have ids without a gap.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::disk::{Disk, DiskFile, final_error, is_no_space, is_read_only, write_all};
use super::frame::BLOCK_BYTES;

/// Where a segment's frames begin.
pub(super) const FIRST_FRAME: usize = BLOCK_BYTES;
/// The smallest segment: a header, and room for a frame of the longest key.
pub(super) const MIN_BYTES: usize = 4 * BLOCK_BYTES;

const PREFIX: &str = "segment-";
const MAGIC: &[u8; 8] = b"fgsegmt1";
const HEADER_BYTES: usize = 28;

/// One file of the log.
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) file: Box<dyn DiskFile>,
    /// Which use of the file this is.
    pub(super) id: u64,
    /// Its length.
    pub(super) bytes: usize,
}

/// A segment that has frames which the index may lack, or the one that is written to.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) segment: Arc<Segment>,
    /// The sequence number of its first frame.
    pub(super) first: u64,
}

/// Whether a file of this name is a segment.
pub(super) fn is_segment(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The header of a segment.
pub(super) fn header(seed: u32, id: u64, bytes: usize) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&id.to_le_bytes());
    header.extend_from_slice(&(bytes as u64).to_le_bytes());
    let checksum = crc32c::crc32c_append(seed, &header);
    header.extend_from_slice(&checksum.to_le_bytes());
    header
}

/// The id and the length that a header gives; `None` where it is damaged.
pub(super) fn read_header(block: &[u8], seed: u32) -> Option<(u64, usize)> {
    let block = block.first_chunk::<HEADER_BYTES>()?;
    let number = |at: usize| Some(u64::from_le_bytes(*block.get(at..)?.first_chunk()?));
    let (id, bytes) = (number(8)?, usize::try_from(number(16)?).ok()?);
    (block[..] == header(seed, id, bytes)[..]).then_some((id, bytes))
}

/// All segments of a log.
pub(super) struct Segments {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) seed: u32,
    /// The length of new segments.
    pub(super) bytes: usize,
    /// How many are kept in reserve; more are removed.
    pub(super) reserve: usize,
    /// In the order of their ids. The last is written to.
    pub(super) live: VecDeque<Live>,
    pub(super) spare: VecDeque<Arc<Segment>>,
    /// The id that the next segment gets.
    pub(super) next_id: u64,
}

impl Segments {
    /// Makes a segment and puts it in reserve.
    pub(super) fn add_spare(&mut self) -> io::Result<()> {
        let id = self.next_id;
        let name = format!("{PREFIX}{id:012}");
        let file = self.create(&name).inspect_err(|_| {
            // Half a segment without a header is harmless, but it takes room.
            let _ = self.disk.remove(&name);
        })?;
        let segment = Segment {
            name,
            file,
            id,
            bytes: self.bytes,
        };
        self.begin_use(&segment)?;
        self.next_id += 1;
        self.spare.push_back(Arc::new(segment));
        Ok(())
    }

    /// Writes and syncs the header of a segment that is to be used under its id.
    ///
    /// After an error the id may go to another segment. So where a part of the header may have been
    /// written, the file is gone for good, or the error is a final one.
    fn begin_use(&self, segment: &Segment) -> io::Result<()> {
        let Segment { name, file, .. } = segment;
        let header = header(self.seed, segment.id, segment.bytes);
        match write_all(&**file, &header, 0) {
            Ok(()) => file.sync(),
            Err(error) if is_no_space(&error) || is_read_only(&error) => {
                let gone = self.disk.remove(name);
                gone.and_then(|()| self.disk.sync_dir()).map_err(|gone| {
                    let what = format!("{name} got no header ({error}), and was not removed");
                    final_error(&what, &gone)
                })?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.disk.create(name)?;
        let zeros = vec![0; self.bytes.min(1 << 20)];
        let mut offset = 0;
        while offset < self.bytes {
            let part = zeros.get(..self.bytes - offset).unwrap_or(&zeros);
            write_all(&*file, part, offset as u64)?;
            offset += part.len();
        }
        // The header vouches for the length and the name, so it comes after both.
        file.sync()?;
        self.disk.sync_dir()?;
        Ok(file)
    }

    /// Writes and syncs the headers again of the segments that frames may come to.
    ///
    /// To be called at open. Such a header may have come from the kernel's memory alone, of a
    /// process that was killed before its sync or whose sync failed. After a failed sync the kernel
    /// may take it for clean, and the sync of a frame would no longer bring it to the disk.
    pub(super) fn vouch(&self) -> io::Result<()> {
        let last = self.live.back().map(|live| &live.segment);
        for segment in last.into_iter().chain(&self.spare) {
            let header = header(self.seed, segment.id, segment.bytes);
            write_all(&*segment.file, &header, 0)?;
            segment.file.sync()?;
        }
        Ok(())
    }

    /// Goes on to the next segment, whose first frame will have the number `first`.
    pub(super) fn advance(&mut self, first: u64) -> io::Result<Arc<Segment>> {
        if self.spare.is_empty() {
            self.add_spare()?;
        }
        let segment = self.spare.pop_front().ok_or(io::ErrorKind::NotFound)?;
        self.live.push_back(Live {
            segment: Arc::clone(&segment),
            first,
        });
        Ok(segment)
    }

    /// The oldest segment that is needed by an index that is complete up to `sequence`.
    pub(super) fn oldest_needed(&self, sequence: u64) -> Option<Live> {
        let mut segments = self.live.iter().peekable();
        while let Some(live) = segments.next() {
            if segments
                .peek()
                .is_none_or(|next| next.first > sequence.saturating_add(1))
            {
                return Some(live.clone());
            }
        }
        None
    }

    /// Puts the segments before `oldest` in reserve, under new ids.
    ///
    /// To be called when a checkpoint that names `oldest` is durable, not before.
    pub(super) fn recycle_before(&mut self, oldest: u64) -> io::Result<()> {
        while self.live.front().is_some_and(|l| l.segment.id < oldest) {
            let Some(Live { segment, .. }) = self.live.pop_front() else {
                break;
            };
            let reusable = segment.bytes == self.bytes && self.spare.len() < self.reserve;
            match Arc::try_unwrap(segment) {
                Ok(mut segment) if reusable => {
                    segment.id = self.next_id;
                    match self.begin_use(&segment) {
                        Ok(()) => {
                            self.next_id += 1;
                            self.spare.push_back(Arc::new(segment));
                        }
                        // Its file is gone; another one will be made.
                        Err(error) if is_no_space(&error) || is_read_only(&error) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(segment) => self.disk.remove(&segment.name)?,
                Err(segment) => self.disk.remove(&segment.name)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flip_in_a_header_is_noticed() {
        let bytes = header(1, 7, 1 << 20);
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(read_header(&bytes, 1), Some((7, 1 << 20)));
        assert_eq!(read_header(&bytes, 2), None);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_header(&bytes, 1), None, "bit {bit}");
        }
    }
}
