//! The lock that keeps a second process out of the directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Instant;

use super::error::OpenError;
use super::now;

/// The lock file's name.
pub(super) const LOCK: &str = "LOCK";

/// Held for as long as it lives. The kernel lets go of it when the process ends, in whatever way.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    /// When the lock was taken: from here on, no older process writes.
    pub(super) taken_at: Instant,
}

impl Lock {
    /// Takes the lock of the store in `directory`, and writes this process's id into it.
    pub(super) fn take(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join(LOCK);
        let failed = |source: io::Error| OpenError::io(&path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The id is a courtesy: the lock is what counts.
                let _ = file.read_to_string(&mut text);
                return Err(OpenError::Locked {
                    path: directory.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let taken_at = now();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self {
            _file: file,
            taken_at,
        })
    }
}
