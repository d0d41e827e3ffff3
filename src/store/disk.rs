//! What the log and the small files ask of a disk: one directory of files.
//!
//! The seam exists for the tests, whose simulated disk loses what was not synced, tears writes and
//! fails calls. It is as narrow as the kernel's: nothing here is atomic but a rename, and nothing
//! is durable before its sync, names included.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::lock::Lock;

/// One directory.
pub(super) trait Disk: Send + Sync {
    /// The names in the directory, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file to read and write. Where nothing more may be open, now, it fails so
    /// that [`is_not_opened`] knows it.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Creates an empty file, or empties the one that is there. Fails as [`open`](Self::open) does,
    /// and leaves no file then, or an empty one.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file over another.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Asks the kernel to make the names durable.
    fn flush_dir(&self) -> io::Result<()>;
    /// Makes the names durable.
    fn sync_dir(&self) -> io::Result<()> {
        self.flush_dir().map_err(failed_sync)
    }
}

/// One open file.
pub(super) trait DiskFile: Send + Sync {
    /// Its length, in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads at `offset`; fewer bytes than asked for, or 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at `offset`; may write fewer bytes than given.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Asks the kernel to make the contents durable.
    fn flush(&self) -> io::Result<()>;
    /// Makes the contents durable.
    fn sync(&self) -> io::Result<()> {
        self.flush().map_err(failed_sync)
    }
}

/// A failed sync is final whatever its reason is: a second one that succeeds would say nothing of
/// what the first had to write. So the error is none of those after which something is tried again.
fn failed_sync(error: io::Error) -> io::Error {
    io::Error::other(format!("its sync failed: {error}"))
}

/// The same of another error that leaves behind what can't be gone on with.
pub(super) fn final_error(what: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}

/// Writes all of `bytes`, whatever number of calls it takes.
pub(super) fn write_all(file: &dyn DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a whole file.
pub(super) fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Reads a whole file by its name; `None` where there is none.
pub(super) fn read_file(disk: &dyn Disk, name: &str) -> io::Result<Option<Vec<u8>>> {
    match disk.open(name) {
        Ok(file) => read_all(&*file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file by one with `bytes`, durably: a crash leaves the old one or the new, whole.
pub(super) fn replace(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let fresh = format!("{name}.new");
    let file = disk.create(&fresh)?;
    write_all(&*file, bytes, 0)?;
    file.sync()?;
    drop(file);
    disk.rename(&fresh, name)?;
    disk.sync_dir()
}

/// Whether an error means that there is no room, now.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether an error means that nothing may be written, now.
pub(super) fn is_read_only(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ReadOnlyFilesystem
}

/// Nothing could be opened, for want of a descriptor or of the kernel's memory. Neither was anything
/// written by the call that says so, nor anything synced.
#[derive(Debug)]
struct NotOpened(io::Error);

impl fmt::Display for NotOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NotOpened {}

/// The error of a call that opens or creates a file, and does nothing else. The same code from a
/// write or a sync says nothing of what it has done, and stays what it is.
pub(super) fn opening_failed(error: io::Error) -> io::Error {
    let no_memory = error.raw_os_error() == Some(rustix::io::Errno::NOMEM.raw_os_error());
    match is_no_descriptor(&error) || no_memory {
        true => io::Error::other(NotOpened(error)),
        false => error,
    }
}

/// Whether an error means that no file could be opened, now, and that nothing else has happened.
pub(super) fn is_not_opened(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<NotOpened>())
}

/// Whether an error means that this process, or the system, has no descriptor left.
pub(super) fn is_no_descriptor(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// A directory of the real file system. It stays locked for as long as anything can write to it.
pub(super) struct Directory {
    path: PathBuf,
    /// Open for as long as it lives: a sync of the names must not fail for want of a descriptor.
    names: File,
    _lock: Lock,
}

impl Directory {
    pub(super) fn open(path: &Path, lock: Lock) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            names: File::open(path)?,
            _lock: lock,
        })
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path.join(name))
            .map_err(opening_failed)?;
        Ok(Box::new(file))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path.join(name))
            .map_err(opening_failed)?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn flush_dir(&self) -> io::Result<()> {
        self.names.sync_all()
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Creates a directory and its missing parents, each of them durably.
pub(super) fn create_dir_durably(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_dir_durably(parent)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}
