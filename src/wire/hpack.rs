//! Header blocks of HTTP/2, read beside the codec for what it passes over in silence (RFC 7541).
//!
//! The codec drops pseudo-header fields from trailers, and cuts a `:path` at `#`. Neither is left for
//! anybody above it to see, so the blocks are read here as well: of each field only what kind it is,
//! and its size, which decides what leaves the table. No value is kept.

use std::collections::VecDeque;

/// The size of the table that a client may fill where nobody has told it another.
const TABLE_BYTES: usize = 4096;
/// What an entry counts beyond its name and value (RFC 7541, section 4.1).
const ENTRY_BYTES: usize = 32;
const PATH: &[u8] = b":path";

/// The lengths of the names in the static table (RFC 7541, appendix A).
const STATIC_NAMES: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// What is no header block. The codec will say so, and end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// What a header block has among its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// A pseudo-header field.
    pub(super) pseudo: bool,
    /// A `:path` with a fragment.
    pub(super) fragment: bool,
}

/// Reads the header blocks of one direction of a connection, all of them and in order.
#[derive(Debug)]
pub(super) struct Reader {
    /// The newest first.
    table: VecDeque<Entry>,
    bytes: usize,
    most: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    fragment: bool,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    length: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Path,
    OtherPseudo,
    Field,
}

impl Reader {
    pub(super) const fn new() -> Self {
        Self {
            table: VecDeque::new(),
            bytes: 0,
            most: TABLE_BYTES,
        }
    }

    /// Reads a whole block.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Found, Broken> {
        let mut rest = Rest(block);
        let mut found = Found::default();
        while let Some(first) = rest.0.first().copied() {
            let entry = match first {
                // Both by number.
                0x80.. => self.entry(rest.number(7)?)?,
                // With a value of its own, kept in the table.
                0x40.. => {
                    let entry = self.literal(&mut rest, 6)?;
                    self.keep(entry);
                    entry
                }
                0x20.. => {
                    let most = rest.number(5)?;
                    if most > TABLE_BYTES {
                        return Err(Broken);
                    }
                    self.most = most;
                    self.make_room(0);
                    continue;
                }
                // With a value of its own, kept nowhere.
                _ => self.literal(&mut rest, 4)?,
            };
            found.pseudo |= entry.name.kind != Kind::Field;
            found.fragment |= entry.fragment;
        }
        Ok(found)
    }

    fn literal(&self, rest: &mut Rest<'_>, bits: u32) -> Result<Entry, Broken> {
        let name = match rest.number(bits)? {
            0 => rest.name()?,
            number => self.entry(number)?.name,
        };
        let mut length = 0;
        let mut fragment = false;
        rest.string(|byte| {
            length += 1;
            fragment |= byte == b'#';
        })?;
        Ok(Entry {
            name,
            fragment: fragment && name.kind == Kind::Path,
            bytes: name.length + length + ENTRY_BYTES,
        })
    }

    fn entry(&self, number: usize) -> Result<Entry, Broken> {
        let place = number.checked_sub(1).ok_or(Broken)?;
        if let Some(length) = STATIC_NAMES.get(place) {
            let kind = match number {
                4 | 5 => Kind::Path,
                1..=14 => Kind::OtherPseudo,
                _ => Kind::Field,
            };
            return Ok(Entry {
                name: Name {
                    length: usize::from(*length),
                    kind,
                },
                fragment: false,
                bytes: 0,
            });
        }
        let entry = self.table.get(place - STATIC_NAMES.len());
        entry.copied().ok_or(Broken)
    }

    fn keep(&mut self, entry: Entry) {
        self.make_room(entry.bytes);
        // One that is larger than the table empties it, and is not kept (section 4.4).
        if entry.bytes <= self.most {
            self.bytes += entry.bytes;
            self.table.push_front(entry);
        }
    }

    fn make_room(&mut self, bytes: usize) {
        while self.bytes + bytes > self.most {
            let Some(oldest) = self.table.pop_back() else {
                return;
            };
            self.bytes -= oldest.bytes;
        }
    }
}

/// What of a block is still to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn byte(&mut self) -> Result<u8, Broken> {
        let (first, rest) = self.0.split_first().ok_or(Broken)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number that begins in the last `bits` of a byte (section 5.1).
    fn number(&mut self, bits: u32) -> Result<usize, Broken> {
        let mask = (1_usize << bits) - 1;
        let mut number = usize::from(self.byte()?) & mask;
        if number < mask {
            return Ok(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Broken)
    }

    /// A string (section 5.2), byte by byte.
    fn string(&mut self, mut take: impl FnMut(u8)) -> Result<(), Broken> {
        let huffman = self.0.first().ok_or(Broken)? & 0x80 != 0;
        let length = self.number(7)?;
        let (string, rest) = self.0.split_at_checked(length).ok_or(Broken)?;
        self.0 = rest;
        if huffman {
            return huffman::decode(string, take);
        }
        string.iter().copied().for_each(&mut take);
        Ok(())
    }

    fn name(&mut self) -> Result<Name, Broken> {
        let mut length = 0;
        let mut first = None;
        let mut is_path = true;
        self.string(|byte| {
            first = first.or(Some(byte));
            is_path &= PATH.get(length) == Some(&byte);
            length += 1;
        })?;
        let kind = match first {
            Some(b':') if is_path && length == PATH.len() => Kind::Path,
            Some(b':') => Kind::OtherPseudo,
            _ => Kind::Field,
        };
        Ok(Name { length, kind })
    }
}

/// The code of strings (RFC 7541, appendix B).
mod huffman {
    use super::Broken;

    /// How many bits the code of each byte has. It is canonical: among those of one length codes grow
    /// with the bytes, and each length goes on where the one before it ended.
    const BITS: [u8; 256] = [
        13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30,
        28, 28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
        5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
        7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5,
        7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22,
        22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23,
        22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22,
        21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26,
        26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20,
        24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27,
        27, 28, 27, 27, 27, 27, 27, 26,
    ];
    const SHORTEST: usize = 5;
    const LONGEST: usize = 30;

    /// Of each length: its first code, and where its bytes begin in `BYTES`.
    static LENGTHS: [(u32, usize); LONGEST + 2] = TABLES.0;
    /// All bytes in the order of their codes.
    static BYTES: [u8; 256] = TABLES.1;
    const TABLES: ([(u32, usize); LONGEST + 2], [u8; 256]) = tables();

    #[allow(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        reason = "computed when it is compiled, where a slip is an error"
    )]
    const fn tables() -> ([(u32, usize); LONGEST + 2], [u8; 256]) {
        let mut lengths = [(0, 0); LONGEST + 2];
        let mut bytes = [0; 256];
        let mut count = 0;
        let mut code = 0;
        let mut bits = SHORTEST;
        while bits <= LONGEST {
            lengths[bits] = (code, count);
            let mut byte = 0;
            while byte < 256 {
                if BITS[byte] as usize == bits {
                    bytes[count] = byte as u8;
                    count += 1;
                    code += 1;
                }
                byte += 1;
            }
            code <<= 1;
            bits += 1;
        }
        lengths[LONGEST + 1] = (0, count);
        (lengths, bytes)
    }

    /// Gives the bytes of a string one by one.
    pub(super) fn decode(string: &[u8], mut take: impl FnMut(u8)) -> Result<(), Broken> {
        let mut code = 0_u32;
        let mut bits = 0;
        for byte in string {
            for place in (0..8).rev() {
                code = code << 1 | u32::from(byte >> place & 1);
                bits += 1;
                if bits < SHORTEST {
                    continue;
                }
                let (Some((first, begin)), Some((_, end))) =
                    (LENGTHS.get(bits), LENGTHS.get(bits + 1))
                else {
                    // The end of the string within it, or nothing.
                    return Err(Broken);
                };
                let Some(place) = code.checked_sub(*first) else {
                    continue;
                };
                let place = begin + usize::try_from(place).unwrap_or(usize::MAX);
                if place < *end
                    && let Some(found) = BYTES.get(place)
                {
                    take(*found);
                    (code, bits) = (0, 0);
                }
            }
        }
        // What is left is padding, of ones, and shorter than a byte.
        (bits < 8 && code == (1 << bits) - 1)
            .then_some(())
            .ok_or(Broken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOTHING: Found = Found {
        pseudo: false,
        fragment: false,
    };

    fn expected(fields: &[(Vec<u8>, Vec<u8>)]) -> Found {
        Found {
            pseudo: fields.iter().any(|(name, _)| name.starts_with(b":")),
            fragment: fields
                .iter()
                .any(|(name, value)| name == PATH && value.contains(&b'#')),
        }
    }

    /// The examples of RFC 7541, appendix C.4: three requests of one connection, in Huffman's code.
    #[test]
    fn requests_are_read_one_after_the_other() {
        let mut reader = Reader::new();
        for block in [
            &b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..],
            b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
            b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
        ] {
            let found = reader.read(block).unwrap();
            assert!(found.pseudo && !found.fragment);
        }
        assert_eq!(reader.bytes, 164, "as the appendix says");
        assert_eq!(reader.read(b"\xbe\xbf"), Ok(NOTHING), "both fields");
        let authority = reader.read(b"\xc0").unwrap();
        assert!(authority.pseudo, "from the table");
    }

    #[test]
    fn a_fragment_is_found_wherever_it_stands() {
        for (block, fragment) in [
            (&b"\x04\x03/a#"[..], true),
            (b"\x44\x02/a", false),
            (b"\x45\x01#", true),
            (b"\x00\x05:path\x02#a", true),
            (b"\x00\x05:pata\x02#a", false),
            (b"\x00\x06:path:\x02#a", false),
            // 12 bits, and padding.
            (b"\x04\x82\xff\xaf", true),
        ] {
            let found = Reader::new().read(block).unwrap();
            assert_eq!(
                (found.pseudo, found.fragment),
                (true, fragment),
                "{block:?}"
            );
        }
        let mut reader = Reader::new();
        reader.read(b"\x44\x03/a#").unwrap();
        assert!(reader.read(b"\xbe").unwrap().fragment, "from the table");
        let other = reader.read(b"\x0f\x2f\x02/a").unwrap();
        assert!(other.pseudo && !other.fragment, "its name alone");
    }

    #[test]
    fn what_leaves_the_table_is_unknown() {
        let mut reader = Reader::new();
        reader.read(b"\x40\x01a\x01b").unwrap();
        reader.read(b"\xbe").unwrap();
        assert_eq!(reader.read(b"\xbf"), Err(Broken));
        // A size of 0, and the size from before.
        reader.read(b"\x20\x3f\xe1\x1f").unwrap();
        assert_eq!(reader.read(b"\xbe"), Err(Broken));
        let mut reader = Reader::new();
        for _ in 0..1_000 {
            reader.read(b"\x40\x01a\x01b").unwrap();
        }
        assert_eq!(reader.table.len(), 4096 / 34);
    }

    #[test]
    fn what_is_none_is_broken() {
        for block in [
            &b"\x80"[..],
            b"\xbe",
            b"\xff\xff\xff\xff\xff\xff",
            b"\x3f\xe2\x1f",
            b"\x40",
            b"\x40\x01",
            b"\x40\x01a\x02b",
            b"\x04\x81\x00",
            b"\x04\x84\xff\xff\xff\xff",
            b"\x04\x82\x1f\xff",
        ] {
            assert_eq!(Reader::new().read(block), Err(Broken), "{block:?}");
        }
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(b":path".to_vec()),
            Just(b":authority".to_vec()),
            Just(b"cookie".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
        ]
    }

    fn fields() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let value = proptest::collection::vec(any::<u8>(), 0..300);
        proptest::collection::vec((names(), value), 0..10)
    }

    proptest! {
        /// Whatever a client's encoder makes of its fields, over one connection.
        #[test]
        fn what_an_encoder_wrote_is_read(blocks in proptest::collection::vec(fields(), 1..20)) {
            let mut encoder = loona_hpack::Encoder::new();
            let mut reader = Reader::new();
            for fields in blocks {
                let pairs = fields.iter().map(|(name, value)| (&name[..], &value[..]));
                let block = encoder.encode(pairs);
                prop_assert_eq!(reader.read(&block), Ok(expected(&fields)));
            }
        }

        /// What another decoder reads is read, and alike.
        #[test]
        fn what_a_decoder_reads_is_read_alike(
            blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..10)
        ) {
            let mut decoder = loona_hpack::Decoder::new();
            let mut reader = Reader::new();
            for block in blocks {
                let Ok(read) = decoder.decode(&block) else { break };
                let fields: Vec<_> = read
                    .into_iter()
                    .map(|(name, value)| (name.to_vec(), value.to_vec()))
                    .collect();
                // The other one takes any size of the table.
                let Ok(found) = reader.read(&block) else { break };
                prop_assert_eq!(found, expected(&fields));
            }
        }
    }
}
