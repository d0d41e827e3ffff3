//! Appends frames to the log. Owned by the committer alone.

use std::io;
use std::sync::{Arc, Mutex};

use super::disk::{is_no_space, is_read_only, write_all};
use super::frame::{BLOCK_BYTES, begin, finish, padded};
use super::lock_mutex;
use super::scan::Scan;
use super::segment::{FIRST_FRAME, Segment, Segments};

/// The writing end of the log.
pub(super) struct Log {
    pub(super) segments: Arc<Mutex<Segments>>,
    seed: u32,
    active: Arc<Segment>,
    position: usize,
    last: u64,
    sealed: bool,
    rotated: bool,
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
            sealed: false,
            rotated: true,
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

    /// Appends the frame in `buffer`, and syncs it; gives its sequence number.
    pub(super) fn append(
        &mut self,
        buffer: &mut Vec<u8>,
        records: u32,
    ) -> Result<u64, AppendError> {
        self.write(self.position, buffer, records)?;
        self.sealed = false;
        Ok(self.last)
    }

    /// Appends an empty frame, at the start of a block of its own.
    pub(super) fn seal(&mut self) -> Result<(), AppendError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        begin(&mut buffer);
        let result = self.write(self.position.next_multiple_of(BLOCK_BYTES), &mut buffer, 0);
        self.buffer = buffer;
        self.sealed = result.is_ok();
        result
    }

    fn write(
        &mut self,
        mut position: usize,
        buffer: &mut Vec<u8>,
        records: u32,
    ) -> Result<(), AppendError> {
        let sequence = self.last + 1;
        let bytes = padded(buffer.len());
        if bytes > self.longest {
            return Err(AppendError::TooLong);
        }
        // A segment made with another setting may be too short for the frame, so look again.
        while position + bytes > self.active.bytes {
            self.rotated = true;
            self.active = lock_mutex(&self.segments)
                .advance(sequence)
                .map_err(|error| {
                    AppendError::of("making a segment after", &self.active.name, &error)
                })?;
            position = FIRST_FRAME;
            self.position = position;
        }
        finish(buffer, self.seed, self.active.id, sequence, records).ok_or(AppendError::TooLong)?;
        let Segment { name, file, .. } = &*self.active;
        write_all(&**file, buffer, position as u64)
            .map_err(|error| AppendError::of("writing", name, &error))?;
        // After a failed sync the kernel may call the pages clean all the same: a second one that
        // succeeds would say nothing.
        file.sync()
            .map_err(|error| AppendError::Final(format!("syncing {name}: {error}")))?;
        self.last = sequence;
        self.position = position + buffer.len();
        Ok(())
    }
}
