//! Appends frames to the log. Owned by the committer alone.

use std::io;
use std::sync::Arc;

use fencegate_filters::fault::{self, Fault};

use super::disk::{is_no_space, is_not_opened, is_read_only, write_all};
use super::frame::{BLOCK_BYTES, begin, finish, padded};
use super::lock_mutex;
use super::scan::Scan;
use super::segment::{FIRST_FRAME, Segment, Segments};
use crate::sync::Mutex;

/// The writing end of the log.
pub(super) struct Log {
    pub(super) segments: Arc<Mutex<Segments>>,
    seed: u32,
    active: Arc<Segment>,
    position: usize,
    last: u64,
    /// Where a frame ends that was written and is not synced yet.
    unsynced: Option<usize>,
    sealed: bool,
    rotated: bool,
    /// A refused frame may stand at `position`, where the next one goes.
    refused: bool,
    longest: usize,
    buffer: Vec<u8>,
}

/// Why a frame was not appended.
#[derive(Debug)]
pub(super) enum AppendError {
    /// There is no room, now. Nothing was appended, and the next frame goes to the same place.
    NoSpace,
    /// Nothing may be written, now. As with no room.
    ReadOnly,
    /// No file could be opened for the next segment, now. As with no room.
    NotOpened(String),
    /// The frame is longer than a segment.
    TooLong,
    /// What is on disk is no longer known: nothing may be appended any more.
    Final(String),
}

impl AppendError {
    fn of(what: &str, segment: &str, error: &io::Error) -> Self {
        if is_no_space(error) {
            Self::NoSpace
        } else if is_read_only(error) {
            Self::ReadOnly
        } else if is_not_opened(error) {
            Self::NotOpened(format!("{what} {segment}: {error}"))
        } else {
            Self::Final(format!("{what} {segment}: {error}"))
        }
    }
}

impl Log {
    /// Goes on where `scan` found the end.
    ///
    /// The last frame is written and synced again: it may have come from the kernel's memory
    /// alone, of a process that was killed between its write and its sync, or whose sync failed.
    pub(super) fn resume(
        segments: Arc<Mutex<Segments>>,
        seed: u32,
        active: Arc<Segment>,
        scan: &Scan,
    ) -> io::Result<Self> {
        if let Some((segment, offset, frame)) = &scan.tail {
            write_all(&*segment.file, frame, *offset as u64)?;
            segment.file.sync()?;
        }
        let longest = lock_mutex(&segments).bytes.saturating_sub(FIRST_FRAME);
        Ok(Self {
            segments,
            seed,
            active,
            position: scan.position,
            last: scan.last,
            unsynced: None,
            sealed: false,
            rotated: true,
            refused: false,
            longest,
            buffer: Vec::new(),
        })
    }

    /// The sequence number of the last frame.
    pub(super) const fn last(&self) -> u64 {
        self.last
    }

    /// Whether the last frame vouches for those before it.
    pub(super) const fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// How long a buffer may be that is to become a frame.
    pub(super) const fn longest_frame(&self) -> usize {
        self.longest
    }

    /// How many segments the index has to free, if that may have changed since the last call.
    pub(super) fn rotated(&mut self) -> Option<usize> {
        std::mem::take(&mut self.rotated).then(|| lock_mutex(&self.segments).live.len())
    }

    /// Writes the frame in `buffer` behind the last one. It is not there before it is synced.
    pub(super) fn append(&mut self, buffer: &mut Vec<u8>, records: u32) -> Result<(), AppendError> {
        self.write(self.position, buffer, records)
    }

    /// Syncs the frame that was written; gives its sequence number.
    pub(super) fn sync(&mut self) -> Result<u64, AppendError> {
        // After a failed sync the kernel may call the pages clean all the same: a second one that
        // succeeds would say nothing.
        let Segment { name, file, .. } = &*self.active;
        match file.sync() {
            Err(error) if !fault::planted(Fault::IgnoreSyncResult) => {
                return Err(AppendError::Final(format!("syncing {name}: {error}")));
            }
            _ => {}
        }
        if let Some(end) = self.unsynced.take() {
            self.refused = false;
            self.last += 1;
            self.position = end;
            self.sealed = false;
        }
        Ok(self.last)
    }

    /// Appends an empty frame, at the start of a block of its own.
    pub(super) fn seal(&mut self) -> Result<(), AppendError> {
        self.void_refused()?;
        let mut buffer = std::mem::take(&mut self.buffer);
        begin(&mut buffer);
        let result = self.write(self.position.next_multiple_of(BLOCK_BYTES), &mut buffer, 0);
        self.buffer = buffer;
        let result = result.and_then(|()| self.sync());
        self.sealed = result.is_ok();
        result.map(drop)
    }

    /// Takes the number of a refused frame in the place where that frame may stand.
    ///
    /// A write that finds no room may have written all but the zeros at the end, which is a valid
    /// frame. Written over, it is gone. Left where it is, with its number given to a frame in
    /// another place, it would pass for that one at the next opening.
    fn void_refused(&mut self) -> Result<(), AppendError> {
        if !self.refused {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        begin(&mut buffer);
        let result = self.put(self.position, &mut buffer, 0);
        self.buffer = buffer;
        result.and_then(|()| self.sync()).map(drop)
    }

    /// Writes a frame at `position`, or at the start of the next segment.
    fn write(
        &mut self,
        mut position: usize,
        buffer: &mut Vec<u8>,
        records: u32,
    ) -> Result<(), AppendError> {
        let bytes = padded(buffer.len());
        if bytes > self.longest {
            return Err(AppendError::TooLong);
        }
        if position + bytes > self.active.bytes {
            self.void_refused()?;
        }
        // A segment made with another setting may be too short for the frame, so look again.
        while position + bytes > self.active.bytes {
            self.rotated = true;
            self.active = lock_mutex(&self.segments)
                .advance(self.last + 1)
                .map_err(|error| {
                    AppendError::of("making a segment after", &self.active.name, &error)
                })?;
            position = FIRST_FRAME;
            self.position = position;
        }
        self.put(position, buffer, records)
    }

    /// Writes a frame in the active segment, in which there is room for it.
    fn put(
        &mut self,
        position: usize,
        buffer: &mut Vec<u8>,
        records: u32,
    ) -> Result<(), AppendError> {
        let sequence = self.last + 1;
        finish(buffer, self.seed, self.active.id, sequence, records).ok_or(AppendError::TooLong)?;
        let Segment { name, file, .. } = &*self.active;
        // Until it is there, and synced. The next frame goes to the same place, also where that is
        // the next block, in which only a seal would begin: what stands there is written over.
        (self.position, self.refused, self.sealed) = (position, true, false);
        write_all(&**file, buffer, position as u64)
            .map_err(|error| AppendError::of("writing", name, &error))?;
        self.unsynced = Some(position + buffer.len());
        Ok(())
    }
}
