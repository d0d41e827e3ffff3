//! What is in a store's directory before its threads run: found, made, checked and tidied.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencegate_filters::store::Raise;

use super::disk::{Disk, read_file, replace};
use super::error::OpenError;
use super::files::{
    CHECKPOINT, CLEAN, CREATING, Checkpoint, FORMAT, Format, RULES, StoreId, read_clean,
};
use super::index::{INDEX, Index, IndexError, IndexMark};
use super::rules::Rules;
use super::scan::{Scan, Scanner};
use super::segment::{MIN_BYTES, Segment, Segments, is_segment};
use super::shared::{Shared, Tuning};
use super::table::Tables;
use crate::sync::Mutex;

/// What an engine is opened with.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) require_existing: bool,
    pub(super) segment_bytes: usize,
    pub(super) readers: usize,
    pub(super) tuning: Tuning,
}

/// Opens the index; told whether to make it anew, without what a crash may have left.
pub(super) type OpenIndex<'a> = &'a dyn Fn(bool) -> Result<Arc<dyn Index>, IndexError>;

/// What is found in a directory before anything is changed.
pub(super) struct Found {
    pub(super) id: StoreId,
    pub(super) index: Arc<dyn Index>,
    pub(super) checkpoint: Checkpoint,
    pub(super) mark: IndexMark,
    /// The log's last sequence number at the last clean close, if it says so.
    pub(super) clean: Option<u64>,
    pub(super) rules: Rules,
}

/// A directory that is being opened.
pub(super) struct Opening<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) path: &'a Path,
}

impl Opening<'_> {
    pub(super) fn io(&self, name: &str, source: std::io::Error) -> OpenError {
        OpenError::io(self.path.join(name), source)
    }

    pub(super) fn corrupt(&self, file: &str, what: String) -> OpenError {
        OpenError::Corrupt {
            path: self.path.to_owned(),
            file: file.to_owned(),
            offset: None,
            what,
        }
    }

    /// Whether there is a store. One that was never finished is none; files of one without the
    /// file that says so are damage.
    pub(super) fn exists(&self) -> Result<bool, OpenError> {
        let names = self.disk.list().map_err(|error| self.io("", error))?;
        let has = |name: &str| names.iter().any(|found| found == name);
        if has(FORMAT) {
            return Ok(true);
        }
        let ours = names.iter().find(|name| {
            is_segment(name) || [CHECKPOINT, CLEAN, RULES, INDEX].contains(&name.as_str())
        });
        match ours {
            Some(name) if !has(CREATING) => {
                let what = format!("it is missing, and there is {name}");
                Err(self.corrupt(FORMAT, what))
            }
            _ => Ok(false),
        }
    }

    /// Writes what version it has from now on, before anything that an older one can't read.
    pub(super) fn upgrade(&self, id: StoreId) -> std::io::Result<()> {
        let current = Format::write(id);
        if read_file(self.disk, FORMAT)?.as_ref() == Some(&current) {
            return Ok(());
        }
        replace(self.disk, FORMAT, &current)
    }

    /// Removes what is no longer needed, the clean marker above all, before anything is admitted.
    ///
    /// The names that are found may be in the kernel's memory alone, of a process that was killed
    /// before their sync. A removal that outlived what it follows from would leave a damaged store.
    pub(super) fn tidy(&self, scan: &Scan) -> std::io::Result<()> {
        self.disk.sync_dir()?;
        let names = self.disk.list()?;
        for name in names {
            let leftover = scan.leftover.contains(&name) || name.ends_with(".new");
            if leftover || [CLEAN, CREATING].contains(&name.as_str()) {
                self.disk.remove(&name)?;
            }
        }
        self.disk.sync_dir()
    }
}

/// Makes an empty store. `FORMAT` comes last: without it there is no store.
pub(super) fn create(
    disk: Arc<dyn Disk>,
    open_index: OpenIndex<'_>,
    settings: &Settings,
) -> Result<(), OpenError> {
    let opening = Opening {
        disk: &*disk,
        path: &settings.path,
    };
    let failed = |error| opening.io("", error);
    let begin = || {
        disk.create(CREATING)?.sync()?;
        disk.sync_dir()?;
        for name in disk.list()? {
            if is_segment(&name) || [CHECKPOINT, CLEAN, RULES].contains(&name.as_str()) {
                disk.remove(&name)?;
            }
        }
        Ok(())
    };
    begin().map_err(failed)?;
    let id = StoreId::random();
    let index_failed =
        |error: IndexError| opening.io(INDEX, std::io::Error::other(error.to_string()));
    let index = open_index(true).map_err(index_failed)?;
    let mark = IndexMark {
        generation: 1,
        sequence: 0,
        keys: 0,
    };
    index.apply(&[], mark).map_err(index_failed)?;
    let mut segments = settings.segments(Arc::clone(&disk), id);
    let mut finish = || {
        segments.add_spare()?;
        let checkpoint = Checkpoint {
            generation: 1,
            sequence: 0,
            keys: 0,
            segment: 1,
            first: 1,
        };
        replace(&*disk, CHECKPOINT, &checkpoint.write(id))?;
        replace(&*disk, RULES, &Rules::none())?;
        replace(&*disk, FORMAT, &Format::write(id))
    };
    finish().map_err(failed)
}

impl Settings {
    fn segments(&self, disk: Arc<dyn Disk>, id: StoreId) -> Segments {
        Segments {
            disk,
            seed: id.seed(),
            bytes: self.segment_bytes.max(MIN_BYTES),
            reserve: self.tuning.flush_segments + 1,
            live: std::collections::VecDeque::new(),
            spare: std::collections::VecDeque::new(),
            next_id: 1,
        }
    }
}

impl Found {
    /// Reads the small files, and opens the index.
    pub(super) fn read(
        disk: &dyn Disk,
        open_index: OpenIndex<'_>,
        path: &Path,
    ) -> Result<Self, OpenError> {
        let opening = Opening { disk, path };
        let read = |name: &str| read_file(disk, name).map_err(|error| opening.io(name, error));
        let damaged = |name: &str| opening.corrupt(name, "its checksum does not agree".to_owned());
        let missing = |name: &str| opening.corrupt(name, "it is missing".to_owned());
        let id = match Format::read(&read(FORMAT)?.unwrap_or_default()) {
            Format::Known(id) => id,
            Format::Other(found) => {
                let path = path.to_owned();
                return Err(OpenError::Version { path, found });
            }
            Format::Damaged => return Err(damaged(FORMAT)),
        };
        let checkpoint = read(CHECKPOINT)?.ok_or_else(|| missing(CHECKPOINT))?;
        let checkpoint = Checkpoint::read(&checkpoint, id).ok_or_else(|| damaged(CHECKPOINT))?;
        // A damaged marker is no marker, which only holds back longer.
        let clean = read(CLEAN)?.and_then(|bytes| read_clean(&bytes, id));
        // Without them, marks could be taken for those of other rules.
        let rules = read(RULES)?.ok_or_else(|| missing(RULES))?;
        let rules = Rules::parse(&rules).ok_or_else(|| damaged(RULES))?;
        let index_failed = |error: IndexError| opening.corrupt(INDEX, error.to_string());
        let index = open_index(false).map_err(index_failed)?;
        let mark = index.mark().map_err(index_failed)?;
        let mark = mark.ok_or_else(|| opening.corrupt(INDEX, "it is empty".to_owned()))?;
        // A crash between the index and the file leaves them one step apart.
        let one_ahead =
            mark.generation == checkpoint.generation + 1 && mark.sequence >= checkpoint.sequence;
        let same = mark.generation == checkpoint.generation
            && mark.sequence == checkpoint.sequence
            && mark.keys == checkpoint.keys;
        if !same && !one_ahead {
            let what = format!(
                "it is at checkpoint {} (frame {}), and CHECKPOINT says {} (frame {})",
                mark.generation, mark.sequence, checkpoint.generation, checkpoint.sequence
            );
            return Err(opening.corrupt(INDEX, what));
        }
        Ok(Self {
            id,
            index,
            checkpoint,
            mark,
            clean,
            rules,
        })
    }

    /// Reads the log, and gives `apply` the raises that the index lacks.
    pub(super) fn scan(
        &self,
        disk: &dyn Disk,
        path: &Path,
        apply: impl FnMut(u64, Raise),
    ) -> Result<Scan, OpenError> {
        let scanner = Scanner {
            disk,
            path,
            seed: self.id.seed(),
            checkpoint: self.checkpoint,
            indexed: self.mark.sequence,
        };
        scanner.scan(apply)
    }

    pub(super) fn resume(
        &self,
        disk: Arc<dyn Disk>,
        settings: &Settings,
        scan: &Scan,
        tables: Tables,
    ) -> std::io::Result<(Arc<Shared>, Arc<Segment>)> {
        let mut segments = settings.segments(Arc::clone(&disk), self.id);
        segments.live.extend(scan.live.iter().cloned());
        segments.spare.extend(scan.spare.iter().cloned());
        let last_id = segments.spare.back().map(|segment| segment.id);
        let active = segments.live.back().map(|live| Arc::clone(&live.segment));
        let active = active.ok_or(std::io::ErrorKind::NotFound)?;
        segments.next_id = last_id.unwrap_or(active.id) + 1;
        segments.vouch()?;
        let vouched = self.index.vouch();
        vouched.map_err(|error| std::io::Error::other(error.to_string()))?;
        let checkpoint = Checkpoint {
            generation: self.mark.generation,
            sequence: self.mark.sequence,
            keys: self.mark.keys,
            ..self.checkpoint
        };
        // Where the index is one step ahead, the file follows before the index goes on.
        if checkpoint != self.checkpoint {
            replace(&*disk, CHECKPOINT, &checkpoint.write(self.id))?;
        }
        let shared = Shared::new(
            disk,
            self.id,
            Arc::clone(&self.index),
            Arc::new(Mutex::new(segments)),
            settings.tuning,
            checkpoint,
            tables,
        );
        Ok((Arc::new(shared), active))
    }
}
