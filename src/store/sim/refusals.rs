//! What an error leaves of a header, or of a seal, and what becomes of it.

use std::io;
use std::sync::Arc;

use super::super::disk::{Disk, is_no_space, is_not_opened, is_read_only, read_file, replace};
use super::super::engine::Engine;
use super::super::files::Checkpoint;
use super::super::frame::{HEADER_BYTES, begin, finish};
use super::super::log::{AppendError, Log};
use super::super::record::encode_raise;
use super::super::scan::{Scan, Scanner};
use super::super::segment::{FIRST_FRAME, Live, MIN_BYTES, Segments, header};
use super::super::sim_disk::{Choose, Failure, Fate, Faults, SimDisk};
use super::super::{flusher, lock_mutex};
use super::{OpenError, commit, open, raise, read, rest};
use crate::sync::Mutex;

/// What is written stays, and no change of a name does that was not synced.
struct NamesAreLost;

impl Choose for NamesAreLost {
    fn write(&mut self, _length: usize) -> Fate {
        Fate::Whole
    }

    fn change(&mut self) -> bool {
        false
    }
}

fn segments(disk: &SimDisk, seed: u32) -> Segments {
    Segments {
        disk: Arc::new(disk.clone()),
        seed,
        bytes: MIN_BYTES,
        reserve: 4,
        live: std::collections::VecDeque::new(),
        spare: std::collections::VecDeque::new(),
        next_id: 1,
    }
}

fn is_final(error: &io::Error) -> bool {
    !is_no_space(error) && !is_read_only(error) && !is_not_opened(error)
}

/// Those of making a segment: create, zeros, sync, names, header, sync.
const HEADER_WRITE: u64 = 5;
const HEADER_SYNC: u64 = 6;

#[test]
fn a_refused_header_leaves_no_file_behind() {
    for failure in [Failure::NoSpace(0), Failure::NoSpace(97), Failure::ReadOnly] {
        let disk = SimDisk::default();
        let mut segments = segments(&disk, 7);
        disk.fail_at(HEADER_WRITE, failure);
        let error = segments.add_spare().unwrap_err();
        assert!(!is_final(&error), "{failure:?}: {error}");
        let found = disk.after_power_loss(&mut NamesAreLost);
        assert_eq!(found.names(), <[String; 0]>::default(), "{failure:?}");
        segments.add_spare().unwrap();
        assert_eq!(segments.next_id, 2);
    }
}

#[test]
fn a_refused_header_whose_file_stays_is_final() {
    // Neither the removal nor its sync is had.
    for last in [HEADER_WRITE, HEADER_WRITE + 1] {
        let disk = SimDisk::default();
        disk.set(Faults {
            crash_after: Some(last),
            ..Faults::default()
        });
        disk.fail_at(HEADER_WRITE, Failure::NoSpace(97));
        let error = segments(&disk, 7).add_spare().unwrap_err();
        assert!(is_final(&error), "{error}");
    }
}

#[test]
fn a_failed_sync_of_a_header_is_final_whatever_its_reason() {
    for failure in [
        Failure::NoSpace(0),
        Failure::ReadOnly,
        Failure::Io,
        Failure::NoDescriptor,
    ] {
        let disk = SimDisk::default();
        let mut segments = segments(&disk, 7);
        disk.fail_at(HEADER_SYNC, failure);
        let error = segments.add_spare().unwrap_err();
        assert!(is_final(&error), "made, {failure:?}: {error}");

        let disk = SimDisk::default();
        let mut segments = self::segments(&disk, 7);
        for first in 1..=2 {
            segments.advance(first).unwrap();
        }
        disk.fail_at(disk.operations() + 2, failure);
        let error = segments.recycle_before(2).unwrap_err();
        assert!(is_final(&error), "used again, {failure:?}: {error}");
    }
}

#[test]
fn a_file_that_could_not_be_opened_is_no_failure_and_nothing_else_passes_for_it() {
    let disk = SimDisk::default();
    let mut segments = segments(&disk, 7);
    disk.fail_at(1, Failure::NoDescriptor);
    let error = segments.add_spare().unwrap_err();
    assert!(is_not_opened(&error), "{error}");
    assert_eq!(disk.names(), <[String; 0]>::default());
    segments.add_spare().unwrap();
    assert_eq!(segments.next_id, 2);

    replace(&disk, "small", b"one").unwrap();
    disk.fail_at(disk.operations() + 1, Failure::NoDescriptor);
    let error = replace(&disk, "small", b"two").unwrap_err();
    assert!(is_not_opened(&error), "{error}");
    assert_eq!(read_file(&disk, "small").unwrap().unwrap(), b"one");

    // The same code from a write, a sync or a rename says nothing of what was done.
    for operation in 2..=HEADER_SYNC {
        let disk = SimDisk::default();
        disk.fail_at(operation, Failure::NoDescriptor);
        let error = self::segments(&disk, 7).add_spare().unwrap_err();
        assert!(is_final(&error), "{operation}: {error}");
    }
}

/// What needs a descriptor is refused where there is none, the store lives, and goes on when there are some.
#[test]
fn a_store_outlives_a_want_of_descriptors() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    // Each of them fills a segment.
    let long = |n: u64| format!("n/{}{n}", "l".repeat(12_200));
    commit(&engine, vec![raise("n/a", 1)]).unwrap();
    rest(&engine);
    disk.set(Faults {
        no_descriptors: true,
        ..Faults::default()
    });
    assert!(read(&engine, "n/cold").is_err(), "the index can't be read");
    assert!(engine.list("", None, 1).is_err());
    let mut acknowledged = Vec::new();
    for n in 1..=20 {
        if commit(&engine, vec![raise(&long(n), n)]).is_ok() {
            acknowledged.push(n);
        }
    }
    assert!(acknowledged.len() < 20, "a segment can't be made");
    assert_eq!(engine.shared.failed(), None);
    assert_eq!(read(&engine, "n/a"), Ok(1), "what is in memory is known");
    disk.set(Faults::default());
    let passes = (0..100).any(|_| {
        let passed = commit(&engine, vec![raise(&long(21), 21)]).is_ok();
        if !passed {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        passed
    });
    assert!(passes, "it goes on once there are descriptors");
    acknowledged.push(21);
    rest(&engine);
    for store in [None, Some(open(&disk.after_kill()).unwrap())] {
        let store = store.as_ref().unwrap_or(&engine);
        for &n in &acknowledged {
            assert_eq!(read(store, &long(n)), Ok(n));
        }
    }
    engine.close(true).unwrap();
}

/// A store with one commit, and the name, the id and the bytes of the segment that has it.
fn used() -> (SimDisk, u32, String, u64, Vec<u8>) {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    commit(&engine, vec![raise("n/a", 3)]).unwrap();
    rest(&engine);
    let seed = engine.shared.id.seed();
    let active = {
        let segments = lock_mutex(&engine.shared.segments);
        Arc::clone(&segments.live.back().unwrap().segment)
    };
    let mut bytes = Vec::new();
    disk.with(&active.name, |found| bytes.clone_from(found));
    (
        disk.after_kill(),
        seed,
        active.name.clone(),
        active.id,
        bytes,
    )
}

#[test]
fn of_two_files_with_one_id_the_one_with_frames_counts() {
    let (disk, seed, name, id, bytes) = used();
    for twin in ["segment-000000000000", "segment-000000000099"] {
        let disk = disk.after_kill();
        let file = disk.create(twin).unwrap();
        file.write_at(&header(seed, id, bytes.len()), 0).unwrap();
        file.write_at(&[0], bytes.len() as u64 - 1).unwrap();
        let opened = open(&disk);
        let engine = opened.unwrap_or_else(|error| panic!("a sound store is refused: {error}"));
        assert_eq!(read(&engine, "n/a"), Ok(3));
        assert!(disk.names().contains(&name) && !disk.names().contains(&twin.to_owned()));
    }
}

#[test]
fn two_files_with_one_id_and_frames_are_damage() {
    let (disk, _, name, _, bytes) = used();
    for twin in ["segment-000000000000", "segment-000000000099"] {
        let disk = disk.after_kill();
        disk.create(twin).unwrap().write_at(&bytes, 0).unwrap();
        match open(&disk) {
            Err(error @ OpenError::Corrupt { .. }) => {
                let said = error.to_string();
                assert!(said.contains(&name) && said.contains(twin), "{said}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("one of the two was chosen"),
        }
    }
}

/// A seal has no zeros behind it. One whose checksum ends in a zero is whole without its last byte
/// all the same.
fn seed_of_such_a_seal(segment: u64, sequence: u64) -> u32 {
    let ends_in_zero = |seed: &u32| {
        let mut buffer = Vec::new();
        begin(&mut buffer);
        finish(&mut buffer, *seed, segment, sequence, 0).unwrap();
        buffer[HEADER_BYTES - 1] == 0
    };
    (0..).find(ends_in_zero).unwrap()
}

#[test]
fn a_refused_seal_that_stands_whole_is_not_taken_for_the_next_frame() {
    let frame = |key: &str| {
        let mut buffer = Vec::new();
        begin(&mut buffer);
        encode_raise(&raise(key, 9), &mut buffer).unwrap();
        buffer
    };
    let seed = seed_of_such_a_seal(1, 2);
    let disk = SimDisk::default();
    let mut segments = segments(&disk, seed);
    let active = segments.advance(1).unwrap();
    let scan = Scan {
        live: Vec::new(),
        spare: Vec::new(),
        leftover: Vec::new(),
        position: FIRST_FRAME,
        last: 0,
        tail: None,
        records: 0,
    };
    let segments = Arc::new(Mutex::new(segments));
    let mut log = Log::resume(segments, seed, active, &scan).unwrap();
    log.append(&mut frame("n/first"), 1).unwrap();
    log.sync().unwrap();
    disk.fail_at(disk.operations() + 1, Failure::NoSpace(99));
    assert!(matches!(log.seal(), Err(AppendError::NoSpace)));
    // It has no room in this segment, so that what was refused stays.
    let long = "n".repeat(12_200);
    log.append(&mut frame(&long), 1).unwrap();
    let last = log.sync().unwrap();

    let checkpoint = Checkpoint {
        generation: 1,
        sequence: 0,
        keys: 0,
        segment: 1,
        first: 1,
    };
    let scanner = Scanner {
        disk: &disk,
        path: "sim".as_ref(),
        seed,
        checkpoint,
        indexed: 0,
    };
    let mut found = Vec::new();
    let scan = scanner.scan(|_, raise| found.push(raise.key.as_str().to_owned()));
    let scan = scan.unwrap_or_else(|error| panic!("a sound log is refused: {error}"));
    assert_eq!(found, ["n/first".to_owned(), long]);
    assert_eq!(scan.last, last);
    let ids = |live: &Live| live.segment.id;
    assert_eq!(scan.live.iter().map(ids).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn threads_that_run_alone_end_with_the_store() {
    let disk = SimDisk::default();
    let index = |fresh| Ok(super::open_index(&disk, fresh));
    let settings = super::settings();
    let (engine, log) = Engine::prepare(Arc::new(disk.clone()), &index, &settings).unwrap();
    // As where the system refuses the second thread.
    engine.spawn("flusher", flusher::run).unwrap();
    let shared = Arc::downgrade(&engine.shared);
    drop((engine, log));
    assert!(shared.upgrade().is_none(), "a thread still has the store");
}
