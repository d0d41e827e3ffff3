//! The store on a simulated disk: crashes at every operation, and every kind of failure.

#![allow(
    clippy::print_stdout,
    reason = "what was tried is counted, and the counts are printed"
)]

mod damage;
mod exhaust;
mod forgetting;
mod refusals;

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fencegate_filters::store::{Binding, Raise, Record, Reply, StoreError};
use fencegate_filters::{Key, Token};

use super::engine::Engine;
use super::error::OpenError;
use super::lock_mutex;
use super::opening::Settings;
use super::shared::{Chore, Tuning};
use super::sim_disk::{Failure, Faults, Random, SimDisk, open_index};

fn settings() -> Settings {
    Settings {
        path: "sim".into(),
        require_existing: false,
        segment_bytes: 16 << 10,
        readers: 1,
        tuning: Tuning {
            flush_segments: 1,
            memory_keys: 40,
            idle: Duration::from_millis(1),
            no_space_wait: Duration::from_millis(20),
            uptime_unit: Duration::from_secs(1),
        },
    }
}

fn open(disk: &SimDisk) -> Result<Engine, OpenError> {
    open_with(disk, &settings())
}

fn open_with(disk: &SimDisk, settings: &Settings) -> Result<Engine, OpenError> {
    let index = |fresh| Ok(open_index(disk, fresh));
    Engine::open(Arc::new(disk.clone()), &index, settings)
}

fn raise(key: &str, counter: u64) -> Raise {
    Raise {
        key: Key::from_text(key),
        record: Record {
            mark: Token::new(0, counter).unwrap(),
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
        },
    }
}

fn commit(engine: &Engine, raises: Vec<Raise>) -> Result<(), StoreError> {
    let (sender, receiver) = mpsc::channel();
    let reply = Reply::new(move |result| drop(sender.send(result)));
    engine.shared.commit(raises, reply);
    receiver.recv().unwrap()
}

fn read(engine: &Engine, key: &str) -> Result<u64, StoreError> {
    let (sender, receiver) = mpsc::channel();
    let reply = Reply::new(move |result| drop(sender.send(result)));
    engine.shared.read(&Key::from_text(key), reply);
    let record: Option<Record> = receiver.recv().unwrap()?;
    Ok(record.map_or(0, |record| record.mark.counter()))
}

fn asked<T: Send + 'static>(call: impl FnOnce(Reply<T>)) -> Result<T, StoreError> {
    let (sender, receiver) = mpsc::channel();
    call(Reply::new(move |result| drop(sender.send(result))));
    receiver.recv().unwrap()
}

/// The keys of the namespace `n` that may be forgotten.
fn idle_keys(engine: &Engine) -> Result<Vec<(Key, Token)>, StoreError> {
    let idle = asked(|reply| {
        engine.chore(Chore::FindIdle {
            namespace: "n".into(),
            after: None,
            limit: 10_000,
            reply,
        });
    })?;
    assert_eq!(idle.next, None);
    Ok(idle.keys)
}

/// Forgets those of `keys` that may be.
fn forget_idle(engine: &Engine, keys: &[&str]) -> Result<u64, StoreError> {
    let mut idle = idle_keys(engine)?;
    idle.retain(|(key, _)| keys.contains(&key.as_str()));
    asked(|reply| engine.forget(idle, reply))
}

/// Waits until no thread of the store has anything to do.
fn rest(engine: &Engine) {
    let shared = &engine.shared;
    let rests = || {
        let committer = {
            let queue = lock_mutex(&shared.commits);
            queue.hooks.rests && !queue.hooks.seal && queue.pending.is_empty()
        };
        let memory = lock_mutex(&shared.memory);
        let tables = &memory.tables;
        let asked = memory.wants_flush || !memory.chores.is_empty();
        let work =
            asked || tables.frozen.is_some() || memory.wants_spare || tables.has_unresolved();
        committer && !work && memory.hooks.rests
    };
    let begin = std::time::Instant::now();
    while shared.failed().is_none() && !rests() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never rests");
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// What was acknowledged, and what was asked for.
#[derive(Clone, Default)]
struct History {
    acknowledged: BTreeMap<String, u64>,
    counter: u64,
    /// The last close that said it was done was a clean one, and nothing came after.
    clean: bool,
}

/// Commits pairs of keys, with texts that fill segments quickly, until one fails.
fn work(engine: &Engine, history: &mut History, random: &mut Random, commits: usize) -> bool {
    history.clean = false;
    for _ in 0..commits {
        history.counter += 1;
        let key = format!("n/{}-{}", random.below(60), "x".repeat(random.below(700)));
        let pair = [format!("{key}-a"), format!("{key}-b")];
        if random.below(3) == 0 && read(engine, &pair[0]).is_err() {
            return false;
        }
        let raises = pair.iter().map(|key| raise(key, history.counter));
        if commit(engine, raises.collect()).is_err() {
            return false;
        }
        for key in pair {
            history.acknowledged.insert(key, history.counter);
        }
    }
    true
}

/// Every acknowledged mark is there, no mark is one that nobody asked for, pairs are whole.
fn check(engine: &Engine, history: &History) {
    let listed = engine.list("", None, usize::MAX).unwrap();
    let marks: BTreeMap<_, _> = listed
        .iter()
        .map(|(key, record)| (key.as_str(), record.mark.counter()))
        .collect();
    assert_eq!(engine.len(), marks.len() as u64);
    for (key, least) in &history.acknowledged {
        let found = read(engine, key).unwrap();
        assert!(found >= *least && found <= history.counter, "{key}");
        assert_eq!(marks.get(key.as_str()), Some(&found));
    }
    for (key, mark) in &marks {
        if let Some(stem) = key.strip_suffix("-a") {
            assert_eq!(
                marks.get(&*format!("{stem}-b")),
                Some(mark),
                "half a commit"
            );
        }
    }
}

/// Opens, works, and crashes, again and again; panics where a promise is broken.
fn lives(seed: u64, faults: Faults) {
    let mut random = Random::new(seed);
    let mut disk = SimDisk::default();
    let mut history = History::default();
    for _ in 0..8 {
        let crash_after = Some(random.below(260) as u64);
        disk.set(Faults {
            crash_after,
            ..faults
        });
        if let Ok(engine) = open(&disk) {
            assert!(!history.clean || engine.was_clean || history.counter == 0);
            assert!(history.clean || !engine.was_clean || history.counter == 0);
            let commits = random.below(90);
            if work(&engine, &mut history, &mut random, commits) && random.below(3) == 0 {
                history.clean = engine.close(true).is_ok();
            }
        } else {
            history.clean = false;
        }
        disk = match random.below(3) {
            0 => disk.after_kill(),
            _ => disk.after_power_loss(&mut random),
        };
        let clean = history.clean;
        let engine = open(&disk).unwrap_or_else(|error| panic!("refused after a crash: {error}"));
        assert!(!clean || engine.was_clean, "a clean close was forgotten");
        check(&engine, &history);
        history.clean = random.below(2) == 0;
        engine.close(history.clean).unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_many_lives() {
    // More of them, now and then, by hand.
    let seeds = std::env::var("FENCEGATE_SIM_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        if let Err(panic) = catch_unwind(|| lives(seed, Faults::default())) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn the_simulation_notices_a_missing_sync() {
    let lies = [
        Faults {
            lying_syncs: true,
            ..Faults::default()
        },
        Faults {
            lying_dir_syncs: true,
            ..Faults::default()
        },
    ];
    for faults in lies {
        let noticed = |seed| catch_unwind(|| lives(seed, faults)).is_err();
        assert!((0..40).any(noticed));
    }
}

#[test]
fn a_crash_at_any_operation_keeps_what_was_acknowledged() {
    for crash_after in 0.. {
        let mut random = Random::new(crash_after + 1);
        let (disk, mut history) = (SimDisk::default(), History::default());
        disk.set(Faults {
            crash_after: Some(crash_after),
            ..Faults::default()
        });
        let done = open(&disk).is_ok_and(|engine| {
            work(&engine, &mut history, &mut random, 40) && engine.close(true).is_ok()
        });
        let whole = disk.operations() <= crash_after;
        for found in [disk.after_power_loss(&mut random), disk.after_kill()] {
            let engine = open(&found)
                .unwrap_or_else(|error| panic!("refused after operation {crash_after}: {error}"));
            check(&engine, &history);
            assert!(!done || engine.was_clean);
            let mut after = history.clone();
            assert!(work(&engine, &mut after, &mut random, 3));
        }
        if whole {
            return;
        }
    }
}

#[test]
fn no_room_is_said_and_passes() {
    let (disk, mut random) = (SimDisk::default(), Random::new(3));
    let mut history = History::default();
    let engine = open(&disk).unwrap();
    for _ in 0..20 {
        disk.set(Faults {
            no_space: true,
            ..Faults::default()
        });
        let before = read(&engine, "n/full").unwrap();
        let refused = commit(&engine, vec![raise("n/full", 1 << 40)]);
        assert_eq!(refused, Err(StoreError::NoSpace));
        assert_eq!(read(&engine, "n/full"), Ok(before));
        disk.set(Faults::default());
        // The flusher may have met the full disk too, and looks again after a moment.
        let passes = (0..100).any(|_| {
            let worked = work(&engine, &mut history, &mut random, 5);
            if !worked {
                std::thread::sleep(Duration::from_millis(20));
            }
            worked
        });
        assert!(passes, "it goes on once there is room");
        // What is torn by the refusal must not be taken for damage.
        let reopened = open(&disk.after_kill());
        let engine = reopened.unwrap_or_else(|error| panic!("a sound store is refused: {error}"));
        check(&engine, &history);
    }
}

/// A write that finds no room may have written all but the zeros behind a frame.
#[test]
fn a_refused_frame_that_stands_whole_is_not_taken_for_the_next() {
    let mut settings = settings();
    settings.tuning.idle = Duration::from_secs(3600);
    // No mark is in the index, which would hide that the log has lost it.
    settings.tuning.flush_segments = 8;
    let open = |disk: &SimDisk| open_with(disk, &settings);
    // What comes between the refusal and the next commit: nothing, a seal, or a frame that has no
    // room behind the refused one and goes into the next segment.
    let long = "n".repeat(12_200);
    for between in 0..3 {
        let (disk, mut counter) = (SimDisk::default(), 0);
        let engine = open(&disk).unwrap();
        let mut next = |key: &str| {
            counter += 1;
            vec![raise(key, counter)]
        };
        commit(&engine, next("n/before")).unwrap();
        rest(&engine);
        disk.fail_at(disk.operations() + 1, Failure::NoSpace(99));
        assert_eq!(commit(&engine, next("n/full")), Err(StoreError::NoSpace));
        match between {
            0 => {}
            1 => {
                lock_mutex(&engine.shared.commits).hooks.seal = true;
                engine.shared.commits_wait.notify_one();
            }
            _ => commit(&engine, next(&long)).unwrap(),
        }
        rest(&engine);
        commit(&engine, next("n/one")).unwrap();
        commit(&engine, next("n/two")).unwrap();
        rest(&engine);
        let reopened = open(&disk.after_kill());
        let engine = reopened.unwrap_or_else(|error| panic!("a sound store is refused: {error}"));
        let marks = [("n/before", 1), ("n/one", counter - 1), ("n/two", counter)];
        for (key, mark) in marks {
            assert_eq!(read(&engine, key), Ok(mark), "{key}, {between}");
        }
        let mark = if between == 2 { 3 } else { 0 };
        assert_eq!(read(&engine, &long), Ok(mark), "the long key, {between}");
    }
}

#[test]
fn what_a_full_disk_left_of_a_frame_is_no_frame() {
    for length in 1..40 {
        let disk = SimDisk::default();
        let engine = open(&disk).unwrap();
        let key = format!("n/{}", "x".repeat(length));
        commit(&engine, vec![raise(&key, 1)]).unwrap();
        disk.set(Faults {
            no_space: true,
            ..Faults::default()
        });
        let refused = commit(&engine, vec![raise(&key, 2)]);
        assert_eq!(refused, Err(StoreError::NoSpace));
        disk.set(Faults::default());
        // The log is sealed when it is idle, elsewhere and with the number of the refused frame.
        while disk.operations() < 2 {
            std::thread::yield_now();
        }
        commit(&engine, vec![raise(&key, 3)]).unwrap();
        let found = open(&disk.after_kill());
        let found = found.unwrap_or_else(|error| panic!("a sound store is refused: {error}"));
        assert_eq!(read(&found, &key), Ok(3));
    }
}

#[test]
fn a_failed_sync_is_final() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    commit(&engine, vec![raise("n/1", 1)]).unwrap();
    // Nothing but the commit is to meet the failure.
    rest(&engine);
    let (sender, receiver) = mpsc::channel();
    engine
        .shared
        .on_failure(Box::new(move |why| drop(sender.send(why))));
    disk.set(Faults {
        failing_syncs: true,
        ..Faults::default()
    });
    let failed = commit(&engine, vec![raise("n/1", 2)]);
    assert!(matches!(failed, Err(StoreError::Unavailable(_))));
    assert!(receiver.recv().unwrap().contains("syncing segment-"));
    disk.set(Faults::default());
    // The flusher may be at work on a spare segment; it stops when it sees the failure.
    let mut operations = disk.operations();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = disk.operations();
        if now == operations {
            break;
        }
        operations = now;
    }
    assert_eq!(commit(&engine, vec![raise("n/1", 3)]), failed);
    assert!(read(&engine, "n/1").is_err());
    assert!(engine.list("", None, 1).is_err());
    assert!(engine.close(true).is_err());
    assert_eq!(disk.operations(), operations, "nothing is tried again");
    let (sender, receiver) = mpsc::channel();
    let late = Box::new(move |why| drop(sender.send(why)));
    engine.shared.on_failure(late);
    receiver.try_recv().unwrap();
    assert!(!open(&disk.after_kill()).unwrap().was_clean);
}

#[test]
fn a_read_only_disk_refuses_and_still_reads() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    commit(&engine, vec![raise("n/1", 5)]).unwrap();
    disk.set(Faults {
        read_only: true,
        ..Faults::default()
    });
    let refused = commit(&engine, vec![raise("n/1", 6)]);
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    assert_eq!(read(&engine, "n/1"), Ok(5));
    disk.set(Faults::default());
    commit(&engine, vec![raise("n/1", 6)]).unwrap();
    assert_eq!(read(&engine, "n/1"), Ok(6));
}

#[test]
fn more_than_memory_takes_waits_for_room_and_is_said() {
    let (disk, mut history) = (SimDisk::default(), History::default());
    let engine = open(&disk).unwrap();
    disk.fill_index(true);
    let mut refused = 0;
    for n in 1..300 {
        history.counter = n;
        let key = format!("n/{n}");
        match commit(&engine, vec![raise(&key, n)]) {
            Ok(()) => drop(history.acknowledged.insert(key, n)),
            Err(error) => {
                assert_eq!(error, StoreError::NoSpace);
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && history.acknowledged.len() >= 80);
    disk.fill_index(false);
    // The flusher tries again within a second or so; until then it is said that there is no room.
    let begin = std::time::Instant::now();
    while commit(&engine, vec![raise("n/late", 300)]).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    history.counter = 300;
    check(&engine, &history);
}

#[test]
fn a_failed_write_is_final() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    disk.set(Faults {
        failing_writes: true,
        ..Faults::default()
    });
    assert!(commit(&engine, vec![raise("n/1", 2)]).is_err());
    disk.set(Faults::default());
    assert!(commit(&engine, vec![raise("n/1", 2)]).is_err());
}

#[test]
fn short_and_interrupted_writes_are_finished() {
    let (disk, mut random) = (SimDisk::default(), Random::new(5));
    disk.set(Faults {
        short_writes: true,
        ..Faults::default()
    });
    let mut history = History::default();
    let engine = open(&disk).unwrap();
    assert!(work(&engine, &mut history, &mut random, 20));
    engine.close(true).unwrap();
    check(
        &open(&disk.after_power_loss(&mut random)).unwrap(),
        &history,
    );
}

#[test]
fn any_flipped_bit_is_refused_or_harmless() {
    let (disk, mut history) = (SimDisk::default(), History::default());
    let engine = open(&disk).unwrap();
    for n in 1..=3 {
        commit(&engine, vec![raise("n/a", n), raise("n/b", n)]).unwrap();
        history.acknowledged.insert("n/a".into(), n);
        history.acknowledged.insert("n/b".into(), n);
        history.counter = n;
    }
    engine.close(true).unwrap();
    drop(engine);
    let mut refused = 0;
    for name in ["FORMAT", "CHECKPOINT", "CLEAN", "segment-000000000001"] {
        let mut length = 0;
        disk.with(name, |bytes| length = bytes.len());
        for bit in 0..length * 8 {
            // Most of the segment is zeros: of those, one in a while will do.
            let mut zero = false;
            let near = |bytes: &mut Vec<u8>| {
                let (from, to) = ((bit / 8).saturating_sub(8), (bit / 8 + 8).min(length));
                zero = bytes[from..to].iter().all(|&byte| byte == 0);
            };
            disk.with(name, near);
            if zero && bit % 1021 != 0 {
                continue;
            }
            for marker in [true, false] {
                let damaged = disk.after_kill();
                damaged.with(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
                if !marker && name != "CLEAN" {
                    damaged.with("CLEAN", Vec::clear);
                }
                match open(&damaged) {
                    Ok(engine) => check(&engine, &history),
                    Err(OpenError::Corrupt { .. } | OpenError::Version { .. }) => refused += 1,
                    Err(error) => panic!("{name}, bit {bit}: {error}"),
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
