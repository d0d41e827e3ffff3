//! How a record is written, in the log and in the index, and how two records of one key merge.
//!
//! ```text
//! record = epoch u64, counter u64, flags u8, [ holder length u16, holder ], [ resets u64 ],
//!          [ stamp u32 ]
//! raise  = key length u16, key, record                                        ; little endian
//! ```
//!
//! The resets are there, and their flag is set, only where there have been some. Only the index has
//! stamps.

use std::sync::Arc;

use fencegate_filters::store::{Binding, Raise, Record};
use fencegate_filters::{Key, Token};

const BINDING: u8 = 0b011;
const UNBOUND: u8 = 0;
const NOBODY: u8 = 1;
const HOLDER: u8 = 2;
const DRAINING: u8 = 0b100;
const RESET: u8 = 0b1000;
const STAMP: u8 = 0b1_0000;

/// A record as the index keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) record: Record,
    /// When it was committed last, in seconds of uptime; 0 where that is not known.
    pub(super) stamp: u32,
}

/// Appends `record` to `out`, with its stamp unless that is 0. Fails, and appends nothing, where the
/// holder is too long to write.
pub(super) fn encode_record(record: &Record, stamp: u32, out: &mut Vec<u8>) -> Result<(), TooLong> {
    let (binding, holder) = match &record.holder {
        Binding::Unbound => (UNBOUND, None),
        Binding::Nobody => (NOBODY, None),
        Binding::Holder(name) => (
            HOLDER,
            Some((u16::try_from(name.len()).map_err(|_| TooLong)?, name)),
        ),
    };
    let draining = if record.draining { DRAINING } else { 0 };
    out.extend_from_slice(&record.mark.epoch().to_le_bytes());
    out.extend_from_slice(&record.mark.counter().to_le_bytes());
    let reset = if record.resets > 0 { RESET } else { 0 };
    let stamped = if stamp > 0 { STAMP } else { 0 };
    out.push(binding | draining | reset | stamped);
    if let Some((length, name)) = holder {
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(name.as_bytes());
    }
    if reset != 0 {
        out.extend_from_slice(&record.resets.to_le_bytes());
    }
    if stamped != 0 {
        out.extend_from_slice(&stamp.to_le_bytes());
    }
    Ok(())
}

/// Appends a key and its record to `out`. Fails, and appends nothing, where one is too long.
pub(super) fn encode_raise(raise: &Raise, out: &mut Vec<u8>) -> Result<(), TooLong> {
    let before = out.len();
    let key = raise.key.as_str();
    let length = u16::try_from(key.len()).map_err(|_| TooLong)?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    encode_record(&raise.record, 0, out).inspect_err(|_| out.truncate(before))
}

/// A key or a holder is longer than 65,535 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Reads one record; `None` where the bytes are not exactly one.
pub(super) fn decode_record(bytes: &[u8]) -> Option<Kept> {
    let mut rest = Reader(bytes);
    let kept = rest.kept()?;
    rest.0.is_empty().then_some(kept)
}

/// Reads raises until the bytes end; `None` where they are anything else.
pub(super) fn decode_raises(bytes: &[u8], mut each: impl FnMut(Raise)) -> Option<u32> {
    let mut rest = Reader(bytes);
    let mut count = 0_u32;
    while !rest.0.is_empty() {
        let length = rest.u16()?;
        let key = Key::from_text(rest.text(length)?);
        let Kept { record, stamp: 0 } = rest.kept()? else {
            return None;
        };
        each(Raise { key, record });
        count = count.checked_add(1)?;
    }
    Some(count)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn text(&mut self, length: u16) -> Option<&'a str> {
        let (head, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        std::str::from_utf8(head).ok()
    }

    fn kept(&mut self) -> Option<Kept> {
        let epoch = u64::from_le_bytes(self.array()?);
        let counter = u64::from_le_bytes(self.array()?);
        let [flags] = self.array::<1>()?;
        let holder = match flags & BINDING {
            UNBOUND => Binding::Unbound,
            NOBODY => Binding::Nobody,
            HOLDER => {
                let length = self.u16()?;
                Binding::Holder(Arc::from(self.text(length)?))
            }
            _ => return None,
        };
        if flags & !(BINDING | DRAINING | RESET | STAMP) != 0 {
            return None;
        }
        let resets = match flags & RESET {
            0 => 0,
            _ => u64::from_le_bytes(self.array()?),
        };
        let stamp = match flags & STAMP {
            0 => 0,
            _ => u32::from_le_bytes(self.array()?),
        };
        let record = Record {
            mark: Token::new(epoch, counter).unwrap_or(Token::NONE),
            holder,
            draining: flags & DRAINING != 0,
            resets,
        };
        Some(Kept { record, stamp })
    }
}

/// Merges `new` into `old`, as [`Record::merge`] says.
pub(super) fn merge(old: &mut Record, new: Record) {
    old.merge(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(counter: u64, holder: Binding, draining: bool) -> Record {
        Record {
            mark: Token::new(7, counter).unwrap(),
            holder,
            draining,
            resets: 0,
        }
    }

    fn reset(record: Record, resets: u64) -> Record {
        Record { resets, ..record }
    }

    #[test]
    fn what_is_written_is_read() {
        let records = [
            record(1, Binding::Unbound, false),
            record(u64::MAX, Binding::Nobody, true),
            record(3, Binding::Holder("pod-7".into()), true),
            reset(record(4, Binding::Holder("pod-7".into()), false), 1),
            reset(record(5, Binding::Unbound, true), u64::MAX),
        ];
        let mut bytes = Vec::new();
        for (n, record) in records.iter().enumerate() {
            for stamp in [0, 7, u32::MAX] {
                let mut one = Vec::new();
                encode_record(record, stamp, &mut one).unwrap();
                let record = record.clone();
                assert_eq!(decode_record(&one), Some(Kept { record, stamp }));
                assert_eq!(decode_record(&one[..one.len() - 1]), None);
            }
            let key = Key::from_text(&format!("objects/{n}"));
            let record = record.clone();
            encode_raise(&Raise { key, record }, &mut bytes).unwrap();
        }
        let mut read = Vec::new();
        assert_eq!(decode_raises(&bytes, |raise| read.push(raise)), Some(5));
        assert_eq!(read[2].key.as_str(), "objects/2");
        assert_eq!(read[2].record, records[2]);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut bytes = Vec::new();
        let key = Key::from_text("objects/1");
        let record = reset(record(9, Binding::Holder("h".into()), false), 7);
        encode_raise(&Raise { key, record }, &mut bytes).unwrap();
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                let _ = decode_raises(&bytes, |_| ());
                let _ = decode_raises(&bytes[..at], |_| ());
            }
        }
    }

    #[test]
    fn a_key_too_long_appends_nothing() {
        let mut bytes = vec![1];
        let key = Key::from_text(&"k".repeat(70_000));
        let record = record(9, Binding::Unbound, false);
        assert_eq!(
            encode_raise(&Raise { key, record }, &mut bytes),
            Err(TooLong)
        );
        assert_eq!(bytes, [1]);
    }

    #[test]
    fn marks_only_rise_and_bindings_only_bind() {
        let mut known = record(5, Binding::Unbound, false);
        merge(&mut known, record(4, Binding::Nobody, true));
        assert_eq!(known, record(5, Binding::Unbound, false));
        merge(&mut known, record(5, Binding::Holder("a".into()), true));
        assert_eq!(known, record(5, Binding::Holder("a".into()), true));
        merge(&mut known, record(5, Binding::Nobody, false));
        merge(&mut known, record(5, Binding::Holder("b".into()), false));
        assert_eq!(known, record(5, Binding::Holder("a".into()), true));
        merge(&mut known, record(6, Binding::Unbound, false));
        assert_eq!(known, record(6, Binding::Unbound, false));
    }

    #[test]
    fn a_reset_lowers_a_mark_in_whatever_order_records_come() {
        let written = [
            record(50, Binding::Nobody, true),
            reset(record(34, Binding::Unbound, false), 1),
            reset(record(35, Binding::Nobody, false), 1),
            record(51, Binding::Nobody, false),
        ];
        for first in 0..4 {
            for second in 0..4 {
                let mut known = written[first].clone();
                merge(&mut known, written[second].clone());
                for one in &written {
                    merge(&mut known, one.clone());
                }
                assert_eq!(known, written[2], "{first} before {second}");
            }
        }
    }
}
