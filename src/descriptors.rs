//! How many descriptors the process may have, and how many client connections fit.
//!
//! What runs out of them can't open a file of the store either. So connections are shed before that,
//! also where the config would let more of them in.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

/// What a client's connection takes: itself, and one to the upstream. Those of HTTP/2 may need more of the latter, others none.
const PER_CONNECTION: u64 = 2;

/// What is kept for everything else: the store and its index, listeners, the admin API, spooled bodies.
const RESERVE: u64 = 1024;

/// Connections to upstreams.
static TO_UPSTREAMS: AtomicU64 = AtomicU64::new(0);

/// A connection to an upstream has this for as long as it is open.
#[derive(Debug)]
pub(crate) struct Place(());

impl Place {
    /// A place among the connections to upstreams, of which there may be as many as of clients'.
    ///
    /// # Errors
    ///
    /// [`is_wanting`] knows it.
    pub(crate) fn to_upstream() -> io::Result<Self> {
        let most = getrlimit(Resource::Nofile).current.map(fitting);
        let before = TO_UPSTREAMS.fetch_add(1, Ordering::Relaxed);
        let place = Self(());
        match most.is_none_or(|most| before < most) {
            true => Ok(place),
            false => Err(io::Error::other(Full)),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TO_UPSTREAMS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "as many connections to upstreams are open as the limit on open files has room for",
        )
    }
}

impl std::error::Error for Full {}

/// Whether a connection failed for want of descriptors here: its other end has nothing to do with it.
pub(crate) fn is_wanting(error: &io::Error) -> bool {
    let full = error.get_ref().is_some_and(|inner| inner.is::<Full>());
    full || [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// Each connection takes a descriptor, and the usual soft limit of 1,024 is soon reached.
pub(crate) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}

/// The most client connections that there may be: as many as `asked`, or as fit.
pub(crate) fn most_connections(asked: Option<usize>) -> Option<usize> {
    let Some(files) = getrlimit(Resource::Nofile).current else {
        return asked;
    };
    let most = usize::try_from(fitting(files)).unwrap_or(usize::MAX);
    match asked {
        Some(asked) if asked <= most => Some(asked),
        Some(asked) => {
            tracing::warn!(
                "`limits.connections` is {asked}, for which {} open files are needed, and the process may \
                 have {files}: no more than {most} connections are held at once; raise the hard limit \
                 (`ulimit -Hn`, `LimitNOFILE=` of systemd, `--ulimit nofile=` of a container), or lower \
                 `limits.connections`",
                needed(asked)
            );
            Some(most)
        }
        None => Some(most),
    }
}

fn needed(connections: usize) -> u64 {
    u64::try_from(connections)
        .unwrap_or(u64::MAX)
        .saturating_mul(PER_CONNECTION)
        .saturating_add(RESERVE)
}

/// A process that may have few has at least half of them for the rest.
fn fitting(files: u64) -> u64 {
    let reserve = RESERVE.min(files / 2);
    ((files - reserve) / PER_CONNECTION).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_the_rest() {
        for files in [0, 1, 2, 3, 64, 256, 1024, 2047, 2048, 20_000, 1 << 20] {
            let most = fitting(files);
            let rest = files.saturating_sub(most * PER_CONNECTION);
            assert!(rest >= RESERVE.min(files / 2) || most == 1, "{files}");
            assert!(most >= 1, "{files}");
        }
        assert_eq!(fitting(20_000), 9488);
    }

    #[test]
    fn what_is_needed_is_what_fits() {
        for connections in [512, 10_000, 500_000] {
            assert_eq!(fitting(needed(connections)), connections as u64);
        }
        assert_eq!(needed(usize::MAX), u64::MAX);
    }
}
