//! Why a store could not be opened, closed or read by the tools.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a store was not opened. Says what happened, where, and what can be done.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it open.
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// The process that holds the lock; `None` where it could not be read.
        pid: Option<u32>,
    },
    /// There is no store in the directory, and one is required.
    Missing {
        /// The store's directory.
        path: PathBuf,
    },
    /// It was written by another version of fencegate.
    Version {
        /// The store's directory.
        path: PathBuf,
        /// The version that its `FORMAT` file names.
        found: String,
    },
    /// Something in it is damaged.
    Corrupt {
        /// The store's directory.
        path: PathBuf,
        /// The damaged file, within the directory.
        file: String,
        /// Where in the file, in bytes; `None` where it is the file as a whole.
        offset: Option<u64>,
        /// What is wrong with it.
        what: String,
    },
    /// The operating system refused something.
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_owned(),
            source,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { path, pid } => {
                let path = path.display();
                match pid {
                    Some(pid) => write!(f, "the store in {path} is in use by process {pid}")?,
                    None => write!(f, "the store in {path} is in use by another process")?,
                }
                f.write_str("; stop that process, or give this one another directory")
            }
            Self::Missing { path } => write!(
                f,
                "there is no store in {}; mount the volume that has it, or, to begin with no marks \
                 at all, start the gateway without store.require_existing",
                path.display()
            ),
            Self::Version { path, found } => write!(
                f,
                "the store in {} has format version {found:?}, and this fencegate knows version \
                 {}; use the fencegate that wrote it",
                path.display(),
                super::files::FORMAT_VERSION
            ),
            Self::Corrupt {
                path,
                file,
                offset,
                what,
            } => {
                write!(f, "the store is damaged: {}", path.join(file).display())?;
                if let Some(offset) = offset {
                    write!(f, " at byte {offset}")?;
                }
                write!(
                    f,
                    ": {what}; run: fencegate store verify {}",
                    path.display()
                )
            }
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
