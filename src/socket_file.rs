//! A listening unix socket, and its file.
//!
//! The file outlives a process that is killed. So one behind which nobody listens is put out of the
//! way, and one behind which somebody does is an error, as for a port. Who may reach the directory may
//! connect: the file itself is open to all, as nginx and systemd have it.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// The file of a socket that this process listens on. Dropping it removes the file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    same: Identity,
}

/// Device, number and birth of a file: a number is soon given to another one.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    let file = std::fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}

/// Listens at `path`.
///
/// # Errors
///
/// As the system says; `AddrInUse` where somebody listens there, `AlreadyExists` where something
/// else than a socket is.
pub fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if is_listened_on(path)? {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o666))?;
    let file = SocketFile {
        path: path.to_owned(),
        same: identity(path)?,
    };
    Ok((listener, file))
}

fn is_listened_on(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Whoever has no room for one more listens all the same.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have put its own there meanwhile.
        if identity(&self.path).is_ok_and(|there| there == self.same) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (first, file) = listen(&path).unwrap();
        let live = listen(&path).map(drop).unwrap_err();
        assert_eq!(live.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        // So that its number is not given to the next one, in the same moment.
        std::fs::hard_link(&path, dir.path().join("old")).unwrap();
        // As after a crash: nobody has removed the file.
        let (second, newer) = listen(&path).unwrap();
        drop(file);
        assert!(path.exists(), "it is another's by now");
        drop((second, newer));
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        let other = listen(&path).map(drop).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::AlreadyExists);
    }
}
