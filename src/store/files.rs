//! The small files beside the log: text with a checksum on its last line, replaced as a whole.
//!
//! | file | what it says |
//! | --- | --- |
//! | `FORMAT` | the format's version and the store's id |
//! | `CHECKPOINT` | up to which sequence number the index is complete, and where the log begins |
//! | `CLEAN` | the store was closed with nothing in flight, and where the log ended |
//! | `RULES` | the fingerprints of the namespaces' rules |
//! | `CREATING` | the store is being made, and holds nothing yet |

use std::fmt::Write;
use std::hash::{BuildHasher, Hasher};

pub(super) const FORMAT: &str = "FORMAT";
pub(super) const CHECKPOINT: &str = "CHECKPOINT";
pub(super) const CLEAN: &str = "CLEAN";
pub(super) const RULES: &str = "RULES";
pub(super) const CREATING: &str = "CREATING";

/// The version of the format that is written. In this one marks may have been forgotten, and a floor
/// stands for them.
pub(super) const FORMAT_VERSION: &str = "3";
/// Those before it, of which all that is read is the same.
const OLDER_VERSIONS: [&str; 2] = ["1", "2"];
const FORMAT_NAME: &str = "fencegate-store";
const CHECKSUM: &str = "crc32c ";

/// Adds the checksum line.
pub(super) fn seal(mut text: String) -> Vec<u8> {
    let checksum = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "{CHECKSUM}{checksum:08x}");
    text.into_bytes()
}

/// The text before the checksum line; `None` where the checksum does not agree.
pub(super) fn unseal(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let at = text.rfind(CHECKSUM)?;
    let (text, line) = text.split_at_checked(at)?;
    let expected = format!("{CHECKSUM}{:08x}\n", crc32c::crc32c(text.as_bytes()));
    (line == expected).then_some(text)
}

/// The value of the line `name value`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

fn number(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.parse().ok()
}

/// Which store this is: chosen once, at random, so that two stores' files are never mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreId(u64, u64);

impl StoreId {
    /// A new one. The standard library seeds its hashers from the system's randomness.
    pub(super) fn random() -> Self {
        let draw = || {
            let state = std::collections::hash_map::RandomState::new();
            let mut hasher = state.build_hasher();
            hasher.write_u32(std::process::id());
            hasher.finish()
        };
        Self(draw(), draw())
    }

    /// Where the checksums of the log begin from.
    pub(super) fn seed(self) -> u32 {
        crc32c::crc32c(self.to_string().as_bytes())
    }
}

impl std::fmt::Display for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}{:016x}", self.0, self.1)
    }
}

impl std::str::FromStr for StoreId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (high, low) = text.split_at_checked(16).ok_or(())?;
        let half = |text| u64::from_str_radix(text, 16).map_err(drop);
        Ok(Self(half(high)?, half(low)?))
    }
}

/// What `FORMAT` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Ours.
    Known(StoreId),
    /// Of another version.
    Other(String),
    /// Not a format file, or a damaged one.
    Damaged,
}

impl Format {
    pub(super) fn write(id: StoreId) -> Vec<u8> {
        seal(format!("{FORMAT_NAME} {FORMAT_VERSION}\nstore {id}\n"))
    }

    /// Only the first line is common to all versions: it is read before the checksum is asked for.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let first = String::from_utf8_lossy(bytes);
        match field(first.lines().next().unwrap_or_default(), FORMAT_NAME) {
            None => Self::Damaged,
            Some(version) if version == FORMAT_VERSION || OLDER_VERSIONS.contains(&version) => {
                unseal(bytes)
                    .and_then(|text| field(text, "store")?.parse().ok())
                    .map_or(Self::Damaged, Self::Known)
            }
            Some(other) => Self::Other(other.to_owned()),
        }
    }
}

/// Up to where the index is complete. Kept in the index itself, and again in `CHECKPOINT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Rises by one with each checkpoint.
    pub(super) generation: u64,
    /// The last sequence number that the index has.
    pub(super) sequence: u64,
    /// How many keys the index has.
    pub(super) keys: u64,
    /// The oldest segment that the log still needs.
    pub(super) segment: u64,
    /// The sequence number with which that segment begins.
    pub(super) first: u64,
}

impl Checkpoint {
    pub(super) fn write(&self, id: StoreId) -> Vec<u8> {
        let Self {
            generation,
            sequence,
            keys,
            segment,
            first,
        } = self;
        seal(format!(
            "store {id}\ngeneration {generation}\nsequence {sequence}\nkeys {keys}\n\
             segment {segment}\nfirst {first}\n"
        ))
    }

    pub(super) fn read(bytes: &[u8], id: StoreId) -> Option<Self> {
        let text = unseal(bytes)?;
        let store: StoreId = field(text, "store")?.parse().ok()?;
        (store == id).then_some(())?;
        Some(Self {
            generation: number(text, "generation")?,
            sequence: number(text, "sequence")?,
            keys: number(text, "keys")?,
            segment: number(text, "segment")?,
            first: number(text, "first")?,
        })
    }
}

/// `CLEAN`: the log's last sequence number at the close. Every opening appends to the log, so a
/// marker from any earlier close names a number that is no longer the last.
pub(super) fn write_clean(id: StoreId, last: u64) -> Vec<u8> {
    seal(format!("store {id}\nlast {last}\n"))
}

/// Reads `CLEAN`; `None` where it is damaged or another store's.
pub(super) fn read_clean(bytes: &[u8], id: StoreId) -> Option<u64> {
    let text = unseal(bytes)?;
    let store: StoreId = field(text, "store")?.parse().ok()?;
    (store == id).then(|| number(text, "last")).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flip_is_noticed() {
        let id = StoreId::random();
        let checkpoint = Checkpoint {
            generation: 3,
            sequence: 99,
            keys: 12,
            segment: 4,
            first: 80,
        };
        let bytes = checkpoint.write(id);
        assert_eq!(Checkpoint::read(&bytes, id), Some(checkpoint));
        assert_eq!(Checkpoint::read(&bytes, StoreId::random()), None);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Checkpoint::read(&bytes, id), None, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(Checkpoint::read(&bytes[..cut], id), None, "cut at {cut}");
        }
    }

    #[test]
    fn another_version_is_named_and_damage_is_not_a_version() {
        let id = StoreId::random();
        assert_eq!(Format::read(&Format::write(id)), Format::Known(id));
        let newer = b"fencegate-store 4\nwhatever it has then\n";
        assert_eq!(Format::read(newer), Format::Other("4".into()));
        assert_eq!(
            Format::read(b"fencegate-store 1\nstore 12\n"),
            Format::Damaged
        );
        assert_eq!(Format::read(b""), Format::Damaged);
    }

    #[test]
    fn a_clean_marker_is_its_own_stores() {
        let id = StoreId::random();
        assert_eq!(read_clean(&write_clean(id, 7), id), Some(7));
        assert_eq!(read_clean(&write_clean(id, 7), StoreId::random()), None);
    }
}
