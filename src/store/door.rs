//! A door to the files of a store, for the fuzz targets: they write whatever they like, well-formed
//! or not, and see what an opening makes of it.

use std::collections::BTreeMap;

use fencegate_filters::Token;
use fencegate_filters::store::{Binding, Raise, Record, Store};

use super::files::{CHECKPOINT, CLEAN, Checkpoint, FORMAT, Format, RULES, StoreId, write_clean};
use super::frame::{begin, finish};
use super::index::IndexMark;
use super::record::{Kept, encode_raise};
use super::rules::Rules;
use super::segment;
use super::sim_disk::SimDisk;
use super::{EmbeddedStore, Key, OpenError};

/// Everything that a directory of a store holds.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The files, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What the index says of itself: generation, last sequence number, number of keys.
    pub index: Option<(u64, u64, u64)>,
    /// The marks in it.
    pub marks: BTreeMap<String, (u64, u64)>,
}

/// What a frame says, to be written with a checksum that fits.
#[derive(Clone, Debug, Default)]
pub struct FrameSpec {
    /// For which use of a segment.
    pub segment: u64,
    /// Its number.
    pub sequence: u64,
    /// How many records it claims to have.
    pub records: u32,
    /// The bytes of its records.
    pub payload: Vec<u8>,
}

/// The id of every store that comes through here.
fn id() -> StoreId {
    "00000000000000070000000000000009"
        .parse()
        .unwrap_or_else(|()| StoreId::random())
}

/// Where its checksums begin from.
#[must_use]
pub fn seed() -> u32 {
    id().seed()
}

/// One record, as it stands in a frame.
#[must_use]
pub fn record(key: &str, mark: (u64, u64), holder: Option<&str>, draining: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let record = Record {
        mark: Token::new(mark.0, mark.1).unwrap_or(Token::NONE),
        holder: holder.map_or(Binding::Unbound, |name| Binding::Holder(name.into())),
        draining,
        resets: 0,
    };
    let key = Key::from_text(key);
    // One that is too long is written as nothing.
    let _ = encode_raise(&Raise { key, record }, &mut bytes);
    bytes
}

/// A frame with a checksum that fits.
#[must_use]
pub fn frame(spec: &FrameSpec) -> Vec<u8> {
    let mut buffer = Vec::new();
    begin(&mut buffer);
    buffer.extend_from_slice(&spec.payload);
    let FrameSpec {
        segment,
        sequence,
        records,
        ..
    } = *spec;
    match finish(&mut buffer, seed(), segment, sequence, records) {
        Some(()) => buffer,
        None => Vec::new(),
    }
}

/// The header of a segment.
#[must_use]
pub fn header(segment: u64, bytes: usize) -> Vec<u8> {
    segment::header(seed(), segment, bytes)
}

impl Image {
    /// A directory with the files that say which store it is, and where its log begins.
    #[must_use]
    pub fn new(generation: u64, sequence: u64, keys: u64, segment: u64, first: u64) -> Self {
        let checkpoint = Checkpoint {
            generation,
            sequence,
            keys,
            segment,
            first,
        };
        let mut image = Self::default();
        image.files.insert(FORMAT.to_owned(), Format::write(id()));
        image.files.insert(RULES.to_owned(), Rules::none());
        image
            .files
            .insert(CHECKPOINT.to_owned(), checkpoint.write(id()));
        image
    }

    /// It was closed cleanly after this frame.
    pub fn clean(&mut self, last: u64) {
        self.files.insert(CLEAN.to_owned(), write_clean(id(), last));
    }

    /// Opens it; gives the marks that are found, and whether the last stop was clean.
    ///
    /// # Errors
    ///
    /// As the opening says.
    pub fn open(&self) -> Result<(BTreeMap<String, (u64, u64)>, bool), OpenError> {
        let mark = self.index.map(|(generation, sequence, keys)| IndexMark {
            generation,
            sequence,
            keys,
        });
        let entries = self.marks.iter().map(|(key, mark)| {
            let record = Record {
                mark: Token::new(mark.0, mark.1).unwrap_or(Token::NONE),
                holder: Binding::Unbound,
                draining: false,
                resets: 0,
            };
            (key.clone(), Kept { record, stamp: 0 })
        });
        let disk = SimDisk::holding(&self.files, entries.collect(), mark);
        let store = EmbeddedStore::open_simulated(&disk)?;
        let listed = store.list("", None, usize::MAX).unwrap_or_default();
        let marks = listed.into_iter().map(|(key, record)| {
            let mark = (record.mark.epoch(), record.mark.counter());
            (key.as_str().to_owned(), mark)
        });
        Ok((marks.collect(), store.was_clean()))
    }
}
