//! A disk in memory that keeps what a real one may: of everything not synced, any part.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use fencegate_filters::store::Record;

use super::super::disk::{Disk, DiskFile};
use super::super::index::{Index, IndexError, IndexMark};
use super::super::lock_mutex;

/// A small generator: the tests print its seed, and the seed repeats the run.
pub(in super::super) struct Random(u64);

impl Random {
    pub(in super::super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub(in super::super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}

/// What the disk does wrong.
#[derive(Clone, Copy, Default)]
pub(in super::super) struct Faults {
    /// After this many operations, none has any effect.
    pub(in super::super) crash_after: Option<u64>,
    /// Writes write half, then say that there is no room.
    pub(in super::super) no_space: bool,
    pub(in super::super) read_only: bool,
    pub(in super::super) failing_syncs: bool,
    pub(in super::super) failing_writes: bool,
    /// Writes are interrupted, and write a few bytes at a time.
    pub(in super::super) short_writes: bool,
    /// Syncs of files do nothing, and say they did. The tests must notice.
    pub(in super::super) lying_syncs: bool,
    /// The same for the directory.
    pub(in super::super) lying_dir_syncs: bool,
}

#[derive(Clone, Default)]
struct Contents {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

type Change = Vec<(String, Option<usize>)>;

#[derive(Clone, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<Change>,
    entries: BTreeMap<String, Record>,
    mark: Option<IndexMark>,
    index_full: bool,
    operations: u64,
    faults: Faults,
}

/// The disk, and the index on it, whose steps are atomic and durable.
#[derive(Clone, Default)]
pub(in super::super) struct SimDisk(Arc<Mutex<State>>);

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
        self.operations += 1;
        match self.faults.crash_after {
            Some(after) if self.operations > after => Err(io::Error::other("crashed")),
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }
}

impl SimDisk {
    pub(in super::super) fn set(&self, faults: Faults) {
        let mut state = lock_mutex(&self.0);
        state.operations = 0;
        state.faults = faults;
    }

    /// Whether there is no room for the index alone.
    pub(in super::super) fn fill_index(&self, full: bool) {
        lock_mutex(&self.0).index_full = full;
    }

    pub(in super::super) fn operations(&self) -> u64 {
        lock_mutex(&self.0).operations
    }

    /// What is found after the power comes back: all that was synced, and any part of the rest.
    pub(in super::super) fn after_power_loss(&self, random: &mut Random) -> Self {
        let mut state = lock_mutex(&self.0).clone();
        for file in &mut state.files {
            let (mut durable, pending) = (file.durable.clone(), std::mem::take(&mut file.pending));
            for (offset, bytes) in pending {
                match random.below(4) {
                    0 => {}
                    1 => write(&mut durable, offset, &bytes),
                    2 => write(&mut durable, offset, &bytes[..random.below(bytes.len())]),
                    _ => {
                        // Any sectors of it, in any order.
                        for (n, sector) in bytes.chunks(64).enumerate() {
                            if random.below(2) == 0 {
                                write(&mut durable, offset + n * 64, sector);
                            }
                        }
                    }
                }
            }
            file.durable.clone_from(&durable);
            file.current = durable;
        }
        for change in std::mem::take(&mut state.changes) {
            if random.below(2) == 0 {
                apply(&mut state.durable_names, &change);
            }
        }
        state.names = state.durable_names.clone();
        state.faults = Faults::default();
        state.operations = 0;
        Self(Arc::new(Mutex::new(state)))
    }

    /// What the next process finds when this one was killed: the kernel has all of it.
    pub(in super::super) fn after_kill(&self) -> Self {
        let mut state = lock_mutex(&self.0).clone();
        state.faults = Faults::default();
        state.operations = 0;
        Self(Arc::new(Mutex::new(state)))
    }

    /// The bytes of a file, to be damaged.
    pub(in super::super) fn with(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut state = lock_mutex(&self.0);
        let file = state.names[name];
        damage(&mut state.files[file].current);
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
        state.operation()?;
        let file = state.files.len();
        state.files.push(Contents::default());
        state.change(vec![(name.to_owned(), Some(file))]);
        Ok(Box::new(SimFile(self.clone(), file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = lock_mutex(&self.0);
        state.operation()?;
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(vec![(from.to_owned(), None), (to.to_owned(), Some(file))]);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = lock_mutex(&self.0);
        state.operation()?;
        state.change(vec![(name.to_owned(), None)]);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
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
        state.operation()?;
        let faults = state.faults;
        if faults.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if faults.failing_writes {
            return Err(io::Error::other("input/output error"));
        }
        let mut bytes = bytes;
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
        write(&mut file.current, place(offset), bytes);
        file.pending.push((place(offset), bytes.to_vec()));
        Ok(bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = lock_mutex(&self.0.0);
        state.operation()?;
        let faults = state.faults;
        let file = &mut state.files[self.1];
        if faults.failing_syncs {
            return Err(io::Error::other("input/output error"));
        }
        if !faults.lying_syncs {
            file.pending.clear();
            file.durable.clone_from(&file.current);
        }
        Ok(())
    }
}

impl Index for SimDisk {
    fn mark(&self) -> Result<Option<IndexMark>, IndexError> {
        Ok(lock_mutex(&self.0).mark)
    }

    fn get(&self, key: &str) -> Result<Option<Record>, IndexError> {
        Ok(lock_mutex(&self.0).entries.get(key).cloned())
    }

    fn apply(&self, entries: &[(&str, &Record)], mark: IndexMark) -> Result<(), IndexError> {
        let mut state = lock_mutex(&self.0);
        let crashed = |error: io::Error| IndexError::Engine(error.to_string());
        state.operation().map_err(crashed)?;
        assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
        if state.index_full || state.faults.no_space || state.faults.read_only {
            return Err(IndexError::NoSpace);
        }
        for (key, record) in entries {
            state.entries.insert((*key).to_owned(), (*record).clone());
        }
        state.mark = Some(mark);
        assert_eq!(state.entries.len() as u64, mark.keys, "the count is exact");
        Ok(())
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, IndexError> {
        let state = lock_mutex(&self.0);
        let entries = state.entries.iter();
        let found = entries
            .filter(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
            .map(|(key, record)| (key.clone(), record.clone()));
        Ok(found.take(limit).collect())
    }
}

/// Makes the index of a new store empty.
pub(in super::super) fn open_index(disk: &SimDisk, fresh: bool) -> Arc<dyn Index> {
    if fresh {
        let mut state = lock_mutex(&disk.0);
        state.entries.clear();
        state.mark = None;
    }
    Arc::new(disk.clone())
}
