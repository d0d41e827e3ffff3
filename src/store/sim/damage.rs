//! Every truncation and every flipped bit of a small store's files: it is refused, or has all marks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::error::OpenError;
use super::super::lock_mutex;
use super::super::opening::{Found, Opening};
use super::super::rules::NamespaceRules;
use super::super::sim_disk::{SimDisk, open_index};
use super::super::table::Tables;
use super::{commit, open, open_with, raise, rest, settings};

type Marks = BTreeMap<String, u64>;

/// Reads everything that an opening reads, and changes nothing; gives the marks, and whether the
/// store was closed cleanly.
fn read(disk: &SimDisk) -> Result<(Marks, bool), OpenError> {
    let path = "sim".as_ref();
    let opening = Opening { disk, path };
    if !opening.exists()? {
        return Ok((Marks::new(), true));
    }
    let found = Found::read(disk, &|fresh| Ok(open_index(disk, fresh)), path)?;
    let mut tables = Tables::default();
    let scan = found.scan(disk, path, |sequence, raise| {
        tables.insert(sequence, [raise]);
    })?;
    if found.clean.is_some_and(|last| last > scan.last) {
        return Err(opening.corrupt("CLEAN", "the log ends before it".to_owned()));
    }
    let mut marks = Marks::new();
    for (key, record) in found.index.range("", None, usize::MAX).unwrap() {
        marks.insert(key, record.record.mark.counter());
    }
    for entry in tables.active.iter() {
        let mark = marks.entry(entry.key.as_str().to_owned()).or_default();
        *mark = entry.record.mark.counter().max(*mark);
    }
    Ok((marks, found.clean == Some(scan.last)))
}

/// A store with marks in the index and in two segments, whose log is sealed.
fn small() -> (SimDisk, Marks) {
    let (disk, mut marks) = (SimDisk::default(), Marks::new());
    let mut settings = settings();
    settings.tuning.flush_segments = 2;
    // The log is sealed here after each commit, not by the clock: where what stands decides which
    // commit is the one that moves marks into the index.
    settings.tuning.idle = Duration::from_secs(3600);
    let engine = open_with(&disk, &settings).unwrap();
    let mut counter = 0;
    let mut raise_both = |engine: &_, keys: [&str; 2]| {
        counter += 1;
        commit(engine, keys.map(|key| raise(key, counter)).into()).unwrap();
        for key in keys {
            marks.insert(key.to_owned(), counter);
        }
        rest(engine);
        lock_mutex(&engine.shared.commits).hooks.seal = true;
        engine.shared.commits_wait.notify_one();
        rest(engine);
    };
    let long = "l".repeat(5000);
    for keys in [
        ["a", "b"],
        ["c", "d"],
        ["b", &long],
        ["a", &long],
        ["a", "e"],
        ["h", &long],
    ] {
        raise_both(&engine, keys);
        raise_both(&engine, keys);
    }
    let rules = NamespaceRules::default();
    let changed = [("n".to_owned(), rules)].into();
    engine.rules.put(&disk, &changed).unwrap();
    drop(engine);
    let engine = open_with(&disk, &settings).unwrap();
    for keys in [["b", "f"], ["g", &long], ["a", "b"]] {
        raise_both(&engine, keys);
    }
    engine.close(true).unwrap();
    (disk.after_kill(), marks)
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    /// The file ends here.
    Cut(usize),
    /// From here on it is zero.
    Zero(usize),
    Flip(usize),
}

impl Damage {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Cut(at) => bytes.truncate(at),
            Self::Zero(at) => bytes[at..].fill(0),
            Self::Flip(bit) => bytes[bit / 8] ^= 1 << (bit % 8),
        }
    }
}

/// All cuts and flips, but that of long runs of one byte, zeros above all, every eighth byte and one
/// bit of it is enough: they are all alike. In a long run none is left out.
fn damages(bytes: &[u8]) -> Vec<Damage> {
    let all = std::env::var_os("FENCEGATE_EXHAUST_STEPS").is_some();
    let differs = |at: &usize| {
        let around = &bytes[at.saturating_sub(16)..(at + 16).min(bytes.len())];
        all || around.iter().any(|&byte| byte != bytes[*at])
    };
    let places: Vec<_> = (0..bytes.len())
        .filter(|at| at % 8 == 0 || differs(at))
        .collect();
    let cuts = places
        .iter()
        .flat_map(|&at| [Damage::Cut(at), Damage::Zero(at)]);
    let flips = places.iter().flat_map(|at| {
        let bits = if differs(at) {
            0..8
        } else {
            at / 8 % 8..at / 8 % 8 + 1
        };
        bits.map(move |bit| Damage::Flip(at * 8 + bit))
    });
    cuts.chain(flips).collect()
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused_or_harmless() {
    let (disk, marks) = small();
    let mut cases = Vec::new();
    let names = disk.names();
    assert!(names.len() >= 7, "{names:?}");
    for name in &names {
        let mut bytes = Vec::new();
        disk.with(name, |found| bytes.clone_from(found));
        cases.extend(damages(&bytes).into_iter().map(|damage| (name, damage)));
    }
    let (next, refused, opened) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let try_one = |name: &str, damage: Damage, marked: bool| {
        let damaged = disk.after_kill();
        damaged.with(name, |bytes| damage.apply(bytes));
        if !marked {
            damaged.with("CLEAN", Vec::clear);
        }
        match read(&damaged) {
            Err(OpenError::Corrupt { .. } | OpenError::Version { .. }) => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Ok((found, clean)) => {
                opened.fetch_add(1, Ordering::Relaxed);
                assert_eq!(found, marks, "{damage:?} of {name}");
                assert!(!clean || marked, "{damage:?} of {name}");
            }
            Err(error) => panic!("{damage:?} of {name}: {error}"),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(name, damage)) = cases.get(n) else {
                        return;
                    };
                    try_one(name, damage, true);
                    try_one(name, damage, false);
                    // What was only read is opened as well, now and then.
                    if n % 499 == 0 {
                        let damaged = disk.after_kill();
                        damaged.with(name, |bytes| damage.apply(bytes));
                        if let Ok(engine) = open(&damaged) {
                            for (key, mark) in &marks {
                                assert_eq!(super::read(&engine, key), Ok(*mark), "{damage:?}");
                            }
                        }
                    }
                }
            });
        }
    });
    let (refused, opened) = (refused.into_inner(), opened.into_inner());
    println!(
        "{} damages of {names:?}, each with and without the clean marker: {refused} refused, \
         {opened} recovered exactly",
        cases.len()
    );
    assert!(refused > 1000 && opened > 1000);
}
