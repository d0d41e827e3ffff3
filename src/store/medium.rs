//! Warns of file systems on which marks do not last.

use std::path::Path;

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
const OVERLAYFS: u64 = 0x794c_7630;

/// A sentence for the log where the file system of `path`, or of its nearest parent that exists,
/// goes away with the machine or the container.
#[must_use]
pub fn volatile_medium(path: &Path) -> Option<String> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|path| path.exists())?;
    let kind = rustix::fs::statfs(existing).ok()?.f_type;
    let (name, goes_with) = match kind as u64 & 0xffff_ffff {
        TMPFS => ("tmpfs", "the machine's memory"),
        RAMFS => ("ramfs", "the machine's memory"),
        OVERLAYFS => ("overlayfs", "the container"),
        _ => return None,
    };
    Some(format!(
        "{} is on {name}: marks go with {goes_with}, and a stale holder is let in again after; \
         use a volume that lasts",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_of_memory_and_of_nothing_else() {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            let warning = volatile_medium(&memory.join("not/there/yet")).unwrap();
            assert!(warning.contains("tmpfs"), "{warning}");
        }
        assert_eq!(volatile_medium(Path::new("/proc/self")), None);
    }
}
