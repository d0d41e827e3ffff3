//! Reads the log at open: which segments there are, and every frame after the last checkpoint.
//!
//! Frames are numbered without a gap, and each is synced before the next is written. So the log
//! ends at the first place where no valid frame follows, and a valid frame anywhere after that
//! place means that something that was durable is damaged. At the end itself a torn write and
//! damage look alike; therefore an idle log is *sealed*: an empty frame at the next block's start
//! vouches for everything before it.

use std::path::Path;
use std::sync::Arc;

use fencegate_filters::store::Raise;

use super::disk::{Disk, read_all};
use super::error::OpenError;
use super::files::Checkpoint;
use super::frame::{BLOCK_BYTES, Frame, find, frame_at};
use super::record::decode_raises;
use super::segment::{FIRST_FRAME, Live, Segment, is_segment, read_header};

/// What a log has.
pub(super) struct Scan {
    /// The segments with frames that may be needed; the last is to be written to.
    pub(super) live: Vec<Live>,
    /// Empty ones, whose ids go on without a gap.
    pub(super) spare: Vec<Arc<Segment>>,
    /// Files that hold nothing.
    pub(super) leftover: Vec<String>,
    /// Where in the last live segment the next frame goes.
    pub(super) position: usize,
    /// The sequence number of the last frame.
    pub(super) last: u64,
    /// Where the last frame is, and its bytes.
    pub(super) tail: Option<(Arc<Segment>, usize, Vec<u8>)>,
    /// How many records it has after the checkpoint.
    pub(super) records: u64,
}

/// Where to look, and what is known beforehand.
pub(super) struct Scanner<'a> {
    pub(super) disk: &'a dyn Disk,
    /// The store's directory, for errors.
    pub(super) path: &'a Path,
    pub(super) seed: u32,
    pub(super) checkpoint: Checkpoint,
    /// The last sequence number that the index has.
    pub(super) indexed: u64,
}

/// The files of a log.
struct Sorted {
    /// From the oldest that is needed, with ids that go on without a gap.
    chain: Vec<Segment>,
    /// Those that hold nothing.
    leftover: Vec<String>,
    /// Those that have a valid header, but no place in the chain.
    strays: Vec<String>,
}

impl Scanner<'_> {
    /// Reads everything, and gives `apply` the raises that the index lacks. Writes nothing.
    pub(super) fn scan(&self, mut apply: impl FnMut(u64, Raise)) -> Result<Scan, OpenError> {
        let Sorted {
            chain,
            mut leftover,
            strays,
        } = self.segments()?;
        let mut scan = Scan {
            live: Vec::new(),
            spare: Vec::new(),
            leftover: Vec::new(),
            position: FIRST_FRAME,
            last: self.checkpoint.first.saturating_sub(1),
            tail: None,
            records: 0,
        };
        for segment in chain {
            let first = scan.last + 1;
            let bytes = read_all(&*segment.file).map_err(|error| self.io(&segment.name, error))?;
            let end = self.frames(&segment, &bytes, &mut scan, &mut apply)?;
            let segment = Arc::new(segment);
            match end {
                None if !scan.live.is_empty() => scan.spare.push(segment),
                end => {
                    // A segment that was passed over empty loses nothing: the numbers go on.
                    for segment in scan.spare.drain(..) {
                        scan.live.push(Live { segment, first });
                    }
                    scan.position = FIRST_FRAME;
                    if let Some((start, end)) = end {
                        scan.position = end;
                        let frame = bytes.get(start..end).unwrap_or_default().to_vec();
                        scan.tail = Some((Arc::clone(&segment), start, frame));
                    }
                    scan.live.push(Live { segment, first });
                }
            }
        }
        for name in strays {
            self.refuse_frames_after(&name, scan.last, "a segment before it is missing")?;
            leftover.push(name);
        }
        let known = self.checkpoint.sequence.max(self.indexed);
        if scan.last < known {
            let name = scan.live.last().map(|live| live.segment.name.clone());
            let what = format!(
                "the log ends at frame {}, and the index has frame {known}",
                scan.last
            );
            let offset = Some(scan.position);
            return Err(self.corrupt(&name.unwrap_or_default(), offset, what));
        }
        scan.leftover = leftover;
        Ok(scan)
    }

    fn segments(&self) -> Result<Sorted, OpenError> {
        let (mut found, mut leftover) = (Vec::new(), Vec::new());
        let names = self.disk.list().map_err(|error| self.io("", error))?;
        for name in names.into_iter().filter(|name| is_segment(name)) {
            let open = || {
                let file = self.disk.open(&name)?;
                let mut block = vec![0; FIRST_FRAME];
                let read = file.read_at(&mut block, 0)?;
                block.truncate(read);
                let length = file.len()?;
                Ok((file, block, length))
            };
            let (file, block, length) = open().map_err(|error| self.io(&name, error))?;
            match read_header(&block, self.seed) {
                None => {
                    let known = self.checkpoint.sequence;
                    self.refuse_frames_after(&name, known, "its header is damaged")?;
                    leftover.push(name);
                }
                Some((id, _)) if id < self.checkpoint.segment => leftover.push(name),
                Some((_, bytes)) if bytes as u64 != length => {
                    let what = format!("it has {length} bytes, and should have {bytes}");
                    return Err(self.corrupt(&name, None, what));
                }
                Some((id, bytes)) => found.push(Segment {
                    name,
                    file,
                    id,
                    bytes,
                }),
            }
        }
        found.sort_by_key(|segment| segment.id);
        let (found, mut strays) = self.one_of_each(found)?;
        let mut chain = Vec::new();
        let mut next = self.checkpoint.segment;
        for segment in found {
            if segment.id == next {
                next += 1;
                chain.push(segment);
            } else if chain.is_empty() {
                strays.push(segment.name);
            } else {
                // Ids go on without a gap, those in reserve included. What was in the missing one
                // is not known, and it may have been acknowledged.
                let what =
                    format!("segment {next} of the log is missing, and a later one is there");
                return Err(self.corrupt(&segment.name, None, what));
            }
        }
        if chain.is_empty() {
            let what = format!("segment {} of the log is missing", self.checkpoint.segment);
            return Err(self.corrupt(super::files::CHECKPOINT, None, what));
        }
        Ok(Sorted {
            chain,
            leftover,
            strays,
        })
    }

    /// Of the files with one id, which are next to each other, the one with frames of that use; and
    /// the names of the others.
    ///
    /// No two should have one. Where it happened all the same, frames went to one of them alone.
    fn one_of_each(&self, found: Vec<Segment>) -> Result<(Vec<Segment>, Vec<String>), OpenError> {
        let (mut kept, mut others) = (Vec::<Segment>::new(), Vec::new());
        for segment in found {
            let Some(last) = kept.pop_if(|last| last.id == segment.id) else {
                kept.push(segment);
                continue;
            };
            let (first, second) = (self.has_frames(&last)?, self.has_frames(&segment)?);
            if first && second {
                let what = format!(
                    "{} has the id {} too, and frames as well",
                    last.name, last.id
                );
                return Err(self.corrupt(&segment.name, None, what));
            }
            let (keep, other) = if second {
                (segment, last)
            } else {
                (last, segment)
            };
            kept.push(keep);
            others.push(other.name);
        }
        Ok((kept, others))
    }

    /// Whether a segment has a frame of the use that its header names.
    fn has_frames(&self, segment: &Segment) -> Result<bool, OpenError> {
        let bytes = read_all(&*segment.file).map_err(|error| self.io(&segment.name, error))?;
        let of_this_use = |frame: &Frame<'_>| frame.segment == segment.id;
        Ok(find(&bytes, FIRST_FRAME, self.seed, of_this_use).is_some())
    }

    /// Reads the frames of one segment; gives where the last of them begins and ends.
    fn frames(
        &self,
        segment: &Segment,
        bytes: &[u8],
        scan: &mut Scan,
        apply: &mut impl FnMut(u64, Raise),
    ) -> Result<Option<(usize, usize)>, OpenError> {
        let mut position = FIRST_FRAME;
        let mut last = None;
        while let Some((at, frame)) = self.next(bytes, position, segment.id, scan.last + 1) {
            if frame.sequence > self.indexed {
                let count = decode_raises(frame.payload, |raise| apply(frame.sequence, raise));
                if count != Some(frame.records) {
                    let what = "a frame holds what no fencegate writes".to_owned();
                    return Err(self.corrupt(&segment.name, Some(at), what));
                }
                scan.records += u64::from(frame.records);
            }
            scan.last = frame.sequence;
            position = at + frame.bytes;
            last = Some((at, position));
        }
        let later = find(bytes, position, self.seed, |frame| {
            frame.segment == segment.id && frame.sequence > scan.last
        });
        match later {
            None => Ok(last),
            Some(later) => {
                let what = format!(
                    "frame {} is damaged, and a later one at byte {later} is whole",
                    scan.last + 1
                );
                Err(self.corrupt(&segment.name, Some(position), what))
            }
        }
    }

    /// The frame with this number: where the last one ended, or at the block after.
    fn next<'b>(
        &self,
        bytes: &'b [u8],
        position: usize,
        segment: u64,
        sequence: u64,
    ) -> Option<(usize, Frame<'b>)> {
        [position, position.next_multiple_of(BLOCK_BYTES)]
            .into_iter()
            .find_map(|at| {
                let frame = frame_at(bytes, at, self.seed)?;
                let wanted = frame.segment == segment && frame.sequence == sequence;
                wanted.then_some((at, frame))
            })
    }

    fn refuse_frames_after(&self, name: &str, sequence: u64, why: &str) -> Result<(), OpenError> {
        let bytes = self.disk.open(name).and_then(|file| read_all(&*file));
        let bytes = bytes.map_err(|error| self.io(name, error))?;
        let needed = |frame: &Frame<'_>| frame.sequence > sequence;
        match find(&bytes, 0, self.seed, needed) {
            None => Ok(()),
            Some(at) => {
                let what = format!("{why}, and it has frames that the index lacks");
                Err(self.corrupt(name, Some(at), what))
            }
        }
    }

    fn corrupt(&self, file: &str, offset: Option<usize>, what: String) -> OpenError {
        OpenError::Corrupt {
            path: self.path.to_owned(),
            file: file.to_owned(),
            offset: offset.map(|offset| offset as u64),
            what,
        }
    }

    fn io(&self, name: &str, source: std::io::Error) -> OpenError {
        OpenError::io(self.path.join(name), source)
    }
}
