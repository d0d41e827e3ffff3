//! The files of a store, built and then damaged: an opening recovers or refuses. It never panics,
//! never gives a mark below what a naive reader finds, and never one that nobody wrote.
//!
//! The input is a program: the first byte chooses between a log that was written by the rules and
//! damaged in one place, and frames of any kind anywhere, damaged anywhere.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use fencegate::store::OpenError;
use fencegate::store::door::{FrameSpec, Image, frame, header, record, seed};
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 4096;
const SEGMENT: usize = 4 * BLOCK;
const FRAME_HEADER: usize = 32;

type Mark = (u64, u64);

/// Draws from the input; zeros when it is used up.
struct Draw<'a>(&'a [u8]);

impl Draw<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    fn below(&mut self, bound: usize) -> usize {
        let wide = usize::from(self.byte()) << 8 | usize::from(self.byte());
        wide % bound.max(1)
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn key(&mut self) -> String {
        let long = self.byte();
        let name = ["a", "b", "c", "d"][usize::from(long % 4)];
        format!("n/{name}{}", "x".repeat(usize::from(long / 4) * 12))
    }

    fn records(&mut self) -> (Vec<(String, Mark)>, Vec<u8>) {
        let (mut said, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..self.below(4) {
            let key = self.key();
            let mark = (u64::from(self.byte() % 2), u64::from(self.byte()) + 1);
            let odd = self.byte();
            let holder = (odd & 1 != 0).then_some("holder");
            bytes.extend(record(&key, mark, holder, odd & 2 != 0));
            said.push((key, mark));
        }
        (said, bytes)
    }
}

fn name(segment: u64) -> String {
    format!("segment-{segment:012}")
}

fn raise(marks: &mut BTreeMap<String, Mark>, key: &str, mark: Mark) {
    let known = marks.entry(key.to_owned()).or_insert(mark);
    *known = mark.max(*known);
}

/// A log as the gateway writes it. Gives what was acknowledged before the last frame with records,
/// and all of it; and whether the log is sealed behind that.
fn by_the_rules(
    draw: &mut Draw<'_>,
) -> (Image, BTreeMap<String, Mark>, BTreeMap<String, Mark>, bool) {
    let mut image = Image::new(1, 0, 0, 1, 1);
    image.index = Some((1, 0, 0));
    let (mut before, mut all) = (BTreeMap::new(), BTreeMap::new());
    let (mut segment, mut position, mut sequence) = (1_u64, BLOCK, 0_u64);
    let mut bytes = vec![0; SEGMENT];
    let put = |bytes: &mut Vec<u8>, at: usize, part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
    };
    put(&mut bytes, 0, &header(1, SEGMENT));
    let mut sealed = false;
    for _ in 0..draw.below(40) {
        sealed = draw.byte() % 5 == 0;
        let (said, payload) = if sealed {
            <_>::default()
        } else {
            draw.records()
        };
        let spec = FrameSpec {
            segment,
            sequence: sequence + 1,
            records: said.len() as u32,
            payload,
        };
        let mut written = frame(&spec);
        let mut at = if sealed {
            position.next_multiple_of(BLOCK)
        } else {
            position
        };
        if at + written.len() > SEGMENT {
            image.files.insert(
                name(segment),
                std::mem::replace(&mut bytes, vec![0; SEGMENT]),
            );
            segment += 1;
            put(&mut bytes, 0, &header(segment, SEGMENT));
            written = frame(&FrameSpec { segment, ..spec });
            at = BLOCK;
        }
        put(&mut bytes, at, &written);
        (position, sequence) = (at + written.len(), sequence + 1);
        if !said.is_empty() {
            before.clone_from(&all);
            said.iter()
                .for_each(|(key, mark)| raise(&mut all, key, *mark));
        }
    }
    image.files.insert(name(segment), bytes);
    if draw.byte() % 2 == 0 {
        let mut spare = vec![0; SEGMENT];
        put(&mut spare, 0, &header(segment + 1, SEGMENT));
        image.files.insert(name(segment + 1), spare);
    }
    if sealed && draw.byte() % 2 == 0 {
        image.clean(sequence);
    }
    (image, before, all, sealed)
}

/// One damage, within one block of one file. Says whether it is of one byte alone.
fn damage_once(image: &mut Image, draw: &mut Draw<'_>) -> bool {
    let names: Vec<String> = image.files.keys().cloned().collect();
    let file = &names[draw.below(names.len())];
    let other = image.files[&names[draw.below(names.len())]].clone();
    let bytes = image.files.get_mut(file).expect("it is there");
    if bytes.is_empty() {
        return false;
    }
    let at = draw.below(bytes.len());
    let how = draw.byte() % 5;
    match how {
        0 => bytes[at] ^= 1 << (draw.byte() % 8),
        1 => bytes[at] = draw.byte(),
        // A block that was never written, or another one in its place.
        2 => {
            let from = at / BLOCK * BLOCK;
            let to = bytes.len().min(from + BLOCK);
            bytes[from..to].fill(0);
        }
        3 => {
            let (from, source) = (at / BLOCK * BLOCK, draw.below(4) * BLOCK);
            let to = bytes.len().min(from + BLOCK);
            let block = other.get(source..source + (to - from)).unwrap_or_default();
            bytes[from..from + block.len()].copy_from_slice(block);
        }
        _ => bytes.truncate(at),
    }
    how < 2
}

fn damaged(draw: &mut Draw<'_>) {
    let (mut image, before, all, sealed) = by_the_rules(draw);
    let whole = image.clone();
    let opened = whole
        .open()
        .unwrap_or_else(|error| panic!("a sound store is refused: {error}"));
    assert_eq!(opened.0, all);
    let small = damage_once(&mut image, draw);
    let Some((found, was_clean)) = outcome(&image) else {
        return;
    };
    // A seal vouches for all before it. Without one the last frame may be torn, and what a whole
    // block of the end had looks as if it had never been written.
    let nothing = BTreeMap::new();
    let least = match (sealed, small) {
        (true, _) => &all,
        (false, true) => &before,
        (false, false) => &nothing,
    };
    for (key, mark) in least {
        assert!(
            found.get(key) >= Some(mark),
            "{key}: {:?}, not {mark:?}",
            found.get(key)
        );
    }
    for (key, mark) in &found {
        assert!(
            all.get(key) >= Some(mark),
            "{key} {mark:?} was never written"
        );
    }
    assert!(
        !was_clean || found == all,
        "it is clean, and lacks something"
    );
}

/// What an opening finds; `None` where it refuses in the words for that.
fn outcome(image: &Image) -> Option<(BTreeMap<String, Mark>, bool)> {
    match image.open() {
        Ok(opened) => Some(opened),
        Err(OpenError::Corrupt { .. } | OpenError::Version { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Frames of any kind anywhere.
fn anything(draw: &mut Draw<'_>) {
    let small = |draw: &mut Draw<'_>| u64::from(draw.byte() % 8);
    let (sequence, segment) = (small(draw), small(draw) % 4);
    let keys = small(draw) % 4;
    let first = small(draw);
    let mut image = Image::new(2, sequence, keys, segment, first);
    image.index = Some((2 + small(draw) % 2, sequence + small(draw) % 3, keys));
    for _ in 0..keys {
        image
            .marks
            .insert(draw.key(), (0, u64::from(draw.byte()) + 1));
    }
    // Its count is the index's own to keep right.
    if let Some(index) = &mut image.index {
        index.2 = image.marks.len() as u64;
    }
    if image.marks.len() as u64 != keys {
        let rewritten = Image::new(2, sequence, image.marks.len() as u64, segment, first);
        image.files = rewritten.files;
    }
    for _ in 0..1 + draw.below(4) {
        let id = small(draw) % 6;
        let mut bytes = vec![0; SEGMENT];
        let head = header(id, SEGMENT);
        bytes[..head.len()].copy_from_slice(&head);
        let mut position = BLOCK;
        for _ in 0..draw.below(8) {
            let odd = draw.byte();
            let (said, mut payload) = draw.records();
            if odd & 1 != 0 {
                payload.push(draw.byte());
            }
            let spec = FrameSpec {
                segment: if odd & 6 == 6 { small(draw) } else { id },
                sequence: small(draw),
                records: said.len() as u32 + u32::from(odd & 8 != 0 && odd & 16 != 0),
                payload,
            };
            let written = frame(&spec);
            let at = match odd >> 5 {
                0 => draw.below(SEGMENT) / 8 * 8,
                1 => position.next_multiple_of(BLOCK),
                _ => position,
            };
            if let Some(place) = bytes.get_mut(at..at + written.len()) {
                place.copy_from_slice(&written);
                position = at + written.len();
            }
        }
        image.files.insert(name(id), bytes);
    }
    if draw.byte() % 3 == 0 {
        image.clean(small(draw));
    }
    while !draw.is_over() {
        damage_once(&mut image, draw);
    }
    let Some((found, _)) = outcome(&image) else {
        return;
    };
    check(&image, segment, first, &found);
}

/// A frame as a naive reader finds it.
struct Found {
    segment: u64,
    sequence: u64,
    said: Option<Vec<(String, Mark)>>,
    bytes: Vec<u8>,
}

/// Every frame whose checksum fits, wherever it stands behind the block of the segment's header: no
/// log begins within that one.
fn frames(bytes: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    for at in (BLOCK..bytes.len()).step_by(8) {
        let rest = &bytes[at..];
        if rest.len() < FRAME_HEADER || rest[..4] != [0xfe, b'f', b'g', 0xff] {
            continue;
        }
        let number = |from: usize, to: usize| {
            rest[from..to]
                .iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let length = FRAME_HEADER as u64 + number(4, 8);
        if length > rest.len() as u64 {
            continue;
        }
        let payload = &rest[FRAME_HEADER..length as usize];
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(seed(), &rest[..28]), payload);
        if u64::from(sum) != number(28, 32) {
            continue;
        }
        found.push(Found {
            segment: number(8, 16),
            sequence: number(16, 24),
            said: said(payload).filter(|said| said.len() as u64 == number(24, 28)),
            bytes: payload.to_vec(),
        });
    }
    found
}

fn said(mut rest: &[u8]) -> Option<Vec<(String, Mark)>> {
    let mut said = Vec::new();
    while !rest.is_empty() {
        let mut take = |length: usize| {
            let (head, tail) = rest.split_at_checked(length)?;
            rest = tail;
            Some(head.to_vec())
        };
        let number = |bytes: Vec<u8>| {
            bytes
                .iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let length = number(take(2)?) as usize;
        let key = String::from_utf8(take(length)?).ok()?;
        let mark = (number(take(8)?), number(take(8)?));
        if take(1)?[0] & 3 == 2 {
            let length = number(take(2)?) as usize;
            take(length)?;
        }
        said.push((key, mark));
    }
    Some(said)
}

/// Nothing that an opening accepted is missing in what it gives, and nothing is made up. `oldest`
/// and `first`: where the log begins, by the checkpoint.
fn check(image: &Image, oldest: u64, first: u64, found: &BTreeMap<String, Mark>) {
    let indexed = image.index.map_or(0, |index| index.1);
    let mut all = Vec::new();
    for (name, bytes) in &image.files {
        let id = bytes
            .get(8..16)
            .and_then(|id| id.try_into().ok())
            .map(u64::from_le_bytes);
        if name.starts_with("segment-") {
            all.extend(
                frames(bytes)
                    .into_iter()
                    .filter(|frame| Some(frame.segment) == id),
            );
        }
    }
    let written: BTreeSet<(&String, &Mark)> = all
        .iter()
        .filter_map(|frame| frame.said.as_ref())
        .flatten()
        .map(|(key, mark)| (key, mark))
        .chain(&image.marks)
        .collect();
    for one in found {
        assert!(written.contains(&one), "{one:?} was never written");
    }
    for (key, mark) in &image.marks {
        assert!(found.get(key) >= Some(mark), "{key} fell below the index");
    }
    // Frames that follow the checkpoint without a gap. Two that differ under one number were never
    // written by anybody, so what they say binds nobody.
    for next in first.. {
        let same: Vec<&Found> = all
            .iter()
            .filter(|frame| frame.sequence == next && frame.segment >= oldest)
            .collect();
        let payloads: BTreeSet<&[u8]> = same.iter().map(|frame| &*frame.bytes).collect();
        let Some(one) = same.first() else { break };
        if next > indexed && payloads.len() == 1 {
            for (key, mark) in one.said.iter().flatten() {
                assert!(
                    found.get(key) >= Some(mark),
                    "frame {next} of {key} is lost"
                );
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut draw = Draw(data);
    match draw.byte() % 2 {
        0 => damaged(&mut draw),
        _ => anything(&mut draw),
    }
});
