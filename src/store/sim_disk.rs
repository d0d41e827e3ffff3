//! A disk in memory that keeps what a real one may: of everything not synced, any part.
//!
//! It is there for tests alone, in this crate and of the gateway as a whole.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "what is wrong here fails a test"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use aws_lc_rs::digest;
use fencegate_filters::Key;

use super::disk::{Disk, DiskFile, opening_failed};
use super::index::{Index, IndexChange, IndexError, IndexMark};
use super::lock_mutex;
use super::record::Kept;
use crate::sync::Mutex;

/// A small generator: the tests print its seed, and the seed repeats the run.
pub struct Random(u64);

impl Random {
    /// The seed says it all.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}

/// What the disk does wrong.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// After this many operations, none has any effect.
    pub crash_after: Option<u64>,
    /// Nothing can be opened: no file, and none of the index.
    pub no_descriptors: bool,
    /// Writes write half, then say that there is no room.
    pub no_space: bool,
    /// Nothing may be written.
    pub read_only: bool,
    /// Syncs of files fail.
    pub failing_syncs: bool,
    /// Writes fail.
    pub failing_writes: bool,
    /// Writes are interrupted, and write a few bytes at a time.
    pub short_writes: bool,
    /// Syncs of files do nothing, and say they did. The tests must notice.
    pub lying_syncs: bool,
    /// The same for the directory.
    pub lying_dir_syncs: bool,
    /// Renames do nothing, and say they did.
    pub lying_renames: bool,
    /// The index says that it has taken in marks that it has not.
    pub forgetful_index: bool,
}

/// How one operation fails, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An input/output error, and nothing has happened. What a failed sync should have made durable
    /// never will be by a later one.
    Io,
    /// There is no room. A write has written a part, as long as the part of its length that is
    /// given in hundredths, at the most all but one byte.
    NoSpace(usize),
    /// Nothing may be written. A sync that says so has made nothing durable.
    ReadOnly,
    /// There is no descriptor. Of what is neither to open nor to create a file, the error says no
    /// more than any other.
    NoDescriptor,
}

/// What a loss of power leaves of one write that was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// Nothing.
    Lost,
    /// All of it.
    Whole,
    /// Its first bytes.
    Prefix(usize),
    /// The sectors whose bits are set in this mask, which repeats.
    Sectors(u64),
}

/// Decides what a loss of power leaves.
pub trait Choose {
    /// What is left of a write of this length.
    fn write(&mut self, length: usize) -> Fate;
    /// Whether a change of names has become durable.
    fn change(&mut self) -> bool;
}

impl Choose for Random {
    fn write(&mut self, length: usize) -> Fate {
        match self.below(4) {
            0 => Fate::Lost,
            1 => Fate::Whole,
            2 => Fate::Prefix(self.below(length)),
            _ => Fate::Sectors(self.0),
        }
    }

    fn change(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// Goes through all choices, one with each [`turn`](Self::turn).
#[derive(Default)]
pub struct Odometer {
    wheels: Vec<(usize, usize)>,
    at: usize,
}

impl Odometer {
    fn choose(&mut self, bound: usize) -> usize {
        if self.at == self.wheels.len() {
            self.wheels.push((0, bound));
        }
        self.at += 1;
        self.wheels[self.at - 1].0
    }

    /// Turns to the next combination; `false` after the last.
    pub fn turn(&mut self) -> bool {
        self.at = 0;
        while let Some((value, bound)) = self.wheels.last_mut() {
            *value += 1;
            if *value < *bound {
                return true;
            }
            self.wheels.pop();
        }
        false
    }
}

impl Choose for Odometer {
    fn write(&mut self, length: usize) -> Fate {
        match self.choose(6) {
            0 => Fate::Lost,
            1 => Fate::Whole,
            2 => Fate::Prefix(length / 2),
            3 => Fate::Prefix(length.saturating_sub(1)),
            4 => Fate::Sectors(0x5555_5555_5555_5555),
            _ => Fate::Sectors(0xaaaa_aaaa_aaaa_aaaa),
        }
    }

    fn change(&mut self) -> bool {
        self.choose(2) == 0
    }
}

#[derive(Clone, Default)]
struct Contents {
    durable: Arc<Vec<u8>>,
    current: Arc<Vec<u8>>,
    pending: Vec<(usize, Vec<u8>)>,
}

impl Contents {
    /// Makes everything durable that was written since the last sync, failed ones included.
    fn sync(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            write(Arc::make_mut(&mut self.durable), offset, &bytes);
        }
    }
}

type Watcher = Arc<dyn Fn(&SimDisk) + Send + Sync>;
type Change = Vec<(String, Option<usize>)>;

#[derive(Clone, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<Change>,
    entries: BTreeMap<String, Kept>,
    mark: Option<IndexMark>,
    /// What the index was, as long as its last step is not durable.
    index_before: Option<(BTreeMap<String, Kept>, Option<IndexMark>)>,
    index_full: bool,
    operations: u64,
    faults: Faults,
    failing: Option<(u64, Failure)>,
    /// The rest of a write that has found no room for it.
    full: bool,
    watcher: Option<Watcher>,
}

/// The disk, and the index on it, whose steps are atomic. Each is durable when it returns, and seen
/// by the next process a moment before.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

struct SimFile(SimDisk, usize);

fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
    for (name, file) in change {
        match file {
            Some(file) => drop(names.insert(name.clone(), *file)),
            None => drop(names.remove(name)),
        }
    }
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        match self.begin()? {
            None => Ok(()),
            Some(failure) => Err(failure.error()),
        }
    }

    /// Counts an operation; gives how it is to fail.
    fn begin(&mut self) -> io::Result<Option<Failure>> {
        self.show();
        self.operations += 1;
        match self.faults.crash_after {
            Some(after) if self.operations > after => return Err(io::Error::other("crashed")),
            _ => {}
        }
        let fails = |failing: &mut (u64, Failure)| failing.0 == self.operations;
        Ok(self.failing.take_if(fails).map(|failing| failing.1))
    }

    fn show(&self) {
        if let Some(watcher) = self.watcher.clone() {
            watcher(&SimDisk(Arc::new(Mutex::new(self.clone()))));
        }
    }

    /// A disk that does as it is told, with this on it.
    fn rest(mut self) -> SimDisk {
        self.faults = Faults::default();
        self.operations = 0;
        (self.failing, self.full, self.watcher) = (None, false, None);
        SimDisk(Arc::new(Mutex::new(self)))
    }

    /// What the index does first, whatever it is asked.
    fn find_descriptor(&self) -> Result<(), IndexError> {
        match self.faults.no_descriptors {
            true => Err(not_opened()),
            false => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }
}

fn not_opened() -> IndexError {
    IndexError::NotOpened(Failure::NoDescriptor.error().to_string())
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Self::Io => io::Error::other("input/output error"),
            Self::NoSpace(_) => io::ErrorKind::StorageFull.into(),
            Self::ReadOnly => io::ErrorKind::ReadOnlyFilesystem.into(),
            Self::NoDescriptor => rustix::io::Errno::MFILE.into(),
        }
    }
}

impl SimDisk {
    /// The disk as it is now, on which nothing changes any more by what its users do.
    pub fn frozen(&self) -> Self {
        Self(Arc::new(Mutex::new(lock_mutex(&self.0).clone())))
    }

    /// Is shown the disk before each operation.
    pub fn watch(&self, watcher: impl Fn(&Self) + Send + Sync + 'static) {
        lock_mutex(&self.0).watcher = Some(Arc::new(watcher));
    }

    /// Makes the operation of this number fail, counted from the first of the disk's life.
    pub fn fail_at(&self, operation: u64, failure: Failure) {
        lock_mutex(&self.0).failing = Some((operation, failure));
    }

    /// Whether the failure that was asked for is still to come.
    pub fn is_to_fail(&self) -> bool {
        lock_mutex(&self.0).failing.is_some()
    }

    /// The process that uses the disk is killed here: what it does from now on has no effect. The
    /// next process finds this, with all else as it was.
    pub fn kill(&self) -> Self {
        let mut state = lock_mutex(&self.0);
        let next = state.clone();
        state.watcher = None;
        state.failing = None;
        state.faults.crash_after = Some(0);
        Self(Arc::new(Mutex::new(next)))
    }

    /// Puts other faults in place, and counts operations from here on.
    pub fn set(&self, faults: Faults) {
        let mut state = lock_mutex(&self.0);
        state.operations = 0;
        state.faults = faults;
    }

    /// Whether there is no room for the index alone.
    pub fn fill_index(&self, full: bool) {
        lock_mutex(&self.0).index_full = full;
    }

    /// How many operations there were since the faults were set.
    pub fn operations(&self) -> u64 {
        lock_mutex(&self.0).operations
    }

    /// What is found after the power comes back: all that was synced, and any part of the rest.
    pub fn after_power_loss(&self, choose: &mut dyn Choose) -> Self {
        let mut state = lock_mutex(&self.0).clone();
        for file in &mut state.files {
            for (offset, bytes) in std::mem::take(&mut file.pending) {
                let durable = Arc::make_mut(&mut file.durable);
                match choose.write(bytes.len()) {
                    Fate::Lost => {}
                    Fate::Whole => write(durable, offset, &bytes),
                    Fate::Prefix(length) => write(durable, offset, &bytes[..length]),
                    Fate::Sectors(mask) => {
                        for (n, sector) in bytes.chunks(64).enumerate() {
                            if mask.rotate_right(u32::try_from(n % 64).unwrap()) & 1 == 1 {
                                write(durable, offset + n * 64, sector);
                            }
                        }
                    }
                }
            }
            file.current = Arc::clone(&file.durable);
        }
        for change in std::mem::take(&mut state.changes) {
            if choose.change() {
                apply(&mut state.durable_names, &change);
            }
        }
        state.names = state.durable_names.clone();
        if let Some(before) = state.index_before.take()
            && !choose.change()
        {
            (state.entries, state.mark) = before;
        }
        state.rest()
    }

    /// What the next process finds when this one was killed: the kernel has all of it.
    pub fn after_kill(&self) -> Self {
        lock_mutex(&self.0).clone().rest()
    }

    /// A digest of all that a process finds which opens this disk.
    pub fn fingerprint(&self) -> [u8; 32] {
        let state = lock_mutex(&self.0);
        let mut found = digest::Context::new(&digest::SHA256);
        let mut part = |bytes: &[u8]| {
            found.update(&bytes.len().to_le_bytes());
            found.update(bytes);
        };
        for (name, file) in &state.names {
            part(name.as_bytes());
            part(&state.files[*file].current);
        }
        part(b"");
        for (key, kept) in &state.entries {
            part(key.as_bytes());
            part(format!("{kept:?}").as_bytes());
        }
        part(format!("{:?} {}", state.mark, state.index_full).as_bytes());
        found.finish().as_ref().try_into().unwrap()
    }

    /// The bytes of a file, to be damaged.
    pub fn with(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut state = lock_mutex(&self.0);
        let file = state.names[name];
        damage(Arc::make_mut(&mut state.files[file].current));
    }

    /// The names of the files.
    pub fn names(&self) -> Vec<String> {
        lock_mutex(&self.0).names.keys().cloned().collect()
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(lock_mutex(&self.0).names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = lock_mutex(&self.0);
        let file = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile(self.clone(), file)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = lock_mutex(&self.0);
        state.operation().map_err(opening_failed)?;
        if state.faults.no_descriptors {
            return Err(opening_failed(Failure::NoDescriptor.error()));
        }
        let file = state.files.len();
        state.files.push(Contents::default());
        state.change(vec![(name.to_owned(), Some(file))]);
        Ok(Box::new(SimFile(self.clone(), file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = lock_mutex(&self.0);
        state.operation()?;
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        if state.faults.lying_renames {
            return Ok(());
        }
        state.change(vec![(from.to_owned(), None), (to.to_owned(), Some(file))]);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = lock_mutex(&self.0);
        state.operation()?;
        state.change(vec![(name.to_owned(), None)]);
        Ok(())
    }

    fn flush_dir(&self) -> io::Result<()> {
        let mut state = lock_mutex(&self.0);
        state.operation()?;
        if !state.faults.lying_dir_syncs {
            state.changes.clear();
            state.durable_names = state.names.clone();
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock_mutex(&self.0.0).files[self.1].current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = lock_mutex(&self.0.0);
        let bytes = state.files[self.1].current.get(place(offset)..);
        let bytes = bytes.unwrap_or_default();
        let length = buffer.len().min(bytes.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = lock_mutex(&self.0.0);
        if std::mem::take(&mut state.full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let failure = state.begin()?;
        let faults = state.faults;
        if faults.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if faults.failing_writes {
            return Err(io::Error::other("input/output error"));
        }
        let mut bytes = bytes;
        match failure {
            None => {}
            Some(Failure::NoSpace(percent)) if percent > 0 => {
                let part = (bytes.len() * percent / 100).min(bytes.len() - 1);
                bytes = &bytes[..part];
                state.full = true;
            }
            Some(failure) => return Err(failure.error()),
        }
        if faults.short_writes {
            if state.operations.is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            bytes = &bytes[..bytes.len().min(11)];
        }
        if faults.no_space {
            if bytes.len() < 8 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            bytes = &bytes[..bytes.len() / 2];
        }
        let file = &mut state.files[self.1];
        write(Arc::make_mut(&mut file.current), place(offset), bytes);
        file.pending.push((place(offset), bytes.to_vec()));
        Ok(bytes.len())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = lock_mutex(&self.0.0);
        let mut failure = state.begin()?;
        let faults = state.faults;
        let file = &mut state.files[self.1];
        if faults.failing_syncs {
            failure = Some(Failure::Io);
        }
        if let Some(failure) = failure {
            // The kernel takes the pages for clean from now on. What of them the disk has is known
            // to nobody; here it has none.
            file.pending.clear();
            return Err(failure.error());
        }
        if !faults.lying_syncs {
            file.sync();
        }
        Ok(())
    }
}

impl Index for SimDisk {
    fn mark(&self) -> Result<Option<IndexMark>, IndexError> {
        Ok(lock_mutex(&self.0).mark)
    }

    fn get(&self, key: &str) -> Result<Option<Kept>, IndexError> {
        let state = lock_mutex(&self.0);
        state.find_descriptor()?;
        Ok(state.entries.get(key).cloned())
    }

    fn apply(&self, changes: &[IndexChange<'_>], mark: IndexMark) -> Result<(), IndexError> {
        let mut state = lock_mutex(&self.0);
        let crashed = |error: io::Error| IndexError::Engine(error.to_string());
        match state.begin().map_err(crashed)? {
            None => {}
            Some(Failure::NoSpace(_) | Failure::ReadOnly) => return Err(IndexError::NoSpace),
            Some(Failure::NoDescriptor) => return Err(not_opened()),
            Some(failure) => return Err(crashed(failure.error())),
        }
        assert!(changes.is_sorted_by(|a, b| a.key < b.key));
        state.find_descriptor()?;
        if state.index_full || state.faults.no_space || state.faults.read_only {
            return Err(IndexError::NoSpace);
        }
        if state.faults.forgetful_index {
            state.mark = Some(mark);
            return Ok(());
        }
        let watched = state.watcher.is_some();
        let before = watched.then(|| (state.entries.clone(), state.mark));
        for IndexChange { key, record } in changes {
            match *record {
                Some((record, stamp)) => {
                    let record = record.clone();
                    let kept = Kept { record, stamp };
                    state.entries.insert((*key).to_owned(), kept);
                }
                None => assert!(state.entries.remove(*key).is_some(), "it had {key}"),
            }
        }
        state.mark = Some(mark);
        let marks = state
            .entries
            .keys()
            .filter(|key| !key.starts_with(Key::INTERNAL));
        assert_eq!(marks.count() as u64, mark.keys, "the count is exact");
        if watched {
            state.index_before = before;
            state.show();
            state.index_before = None;
        }
        Ok(())
    }

    fn vouch(&self) -> Result<(), IndexError> {
        lock_mutex(&self.0).index_before = None;
        Ok(())
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Kept)>, IndexError> {
        let state = lock_mutex(&self.0);
        state.find_descriptor()?;
        let entries = state.entries.iter();
        let found = entries
            .filter(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
            .map(|(key, kept)| (key.clone(), kept.clone()));
        Ok(found.take(limit).collect())
    }
}

/// Makes the index of a new store empty.
pub(super) fn open_index(disk: &SimDisk, fresh: bool) -> Arc<dyn Index> {
    if fresh {
        let mut state = lock_mutex(&disk.0);
        state.entries.clear();
        state.mark = None;
    }
    Arc::new(disk.clone())
}

#[cfg(feature = "fuzzing")]
impl SimDisk {
    /// A disk with these files on it, and an index with these entries.
    pub(super) fn holding(
        files: &BTreeMap<String, Vec<u8>>,
        entries: BTreeMap<String, Kept>,
        mark: Option<IndexMark>,
    ) -> Self {
        let mut state = State {
            entries,
            mark,
            ..State::default()
        };
        for (name, bytes) in files {
            state.names.insert(name.clone(), state.files.len());
            state.files.push(Contents {
                durable: Arc::new(bytes.clone()),
                current: Arc::new(bytes.clone()),
                pending: Vec::new(),
            });
        }
        state.durable_names = state.names.clone();
        Self(Arc::new(Mutex::new(state)))
    }
}
