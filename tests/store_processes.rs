//! The embedded store in processes of its own: killed, and shown damaged files.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, in its helpers too"
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::store::{commit, copy, files, mark, open, options, raise};
use fencegate::store::{EmbeddedStore, Options, tools};

const CHILD: &str = "FENCEGATE_STORE_TEST_CHILD";

/// Held by a test while it runs. A process that is just being started has all files of this one, so
/// the lock of a store that was closed a moment ago as well: nobody else opens stores here meanwhile.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the real binary makes of a damaged store.
enum Exported {
    Marks(String),
    Refused,
    /// It did not live to say what is wrong: the index engine believes a length that is damaged.
    Aborted,
}

fn export_by_binary(path: &Path) -> Exported {
    let output = Command::new(env!("CARGO_BIN_EXE_fencegate"))
        .args(["store", "export"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    match output.status.code() {
        Some(0) => Exported::Marks(String::from_utf8(output.stdout).unwrap()),
        Some(_) => Exported::Refused,
        None => Exported::Aborted,
    }
}

/// In every file of the index of a small store, every fifth byte has a bit flipped or is where the
/// file ends; in a long run, each bit of every byte.
#[test]
fn no_cut_and_no_flipped_bit_of_the_index_lowers_a_mark() {
    let _alone = alone();
    let all = std::env::var_os("FENCEGATE_EXHAUST_STEPS").is_some();
    // Thousands of stores are opened: none of their syncs is to wait for a disk.
    let memory = Path::new("/dev/shm");
    let directory = || match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    let good = directory();
    let keys = 12;
    let flushing = Options {
        segment_bytes: 16 << 10,
        memory_keys: 4,
        ..options(good.path())
    };
    let store = EmbeddedStore::open(&flushing).unwrap();
    for n in 1..=keys {
        commit(&store, vec![raise(&format!("n/{n}"), n)]).unwrap();
    }
    store.close(true).unwrap();
    drop(store);
    // What is in memory goes to the index when its own thread comes to it, which a stop does not wait for.
    let mut newest = keys;
    while tools::stats(good.path()).unwrap().checkpoint == 0 {
        let store = EmbeddedStore::open(&flushing).unwrap();
        newest += 1;
        assert!(newest < 10_000, "nothing ever goes to the index");
        commit(&store, vec![raise("n/1", newest)]).unwrap();
        std::thread::yield_now();
        store.close(true).unwrap();
    }
    let mut damages = Vec::new();
    for file in files(&good.path().join("index")) {
        let bytes = fs::read(&file).unwrap();
        for at in (0..bytes.len()).step_by(if all { 1 } else { 5 }) {
            damages.push((file.clone(), at, None));
            let bits = if all { 0..8 } else { at % 8..at % 8 + 1 };
            damages.extend(bits.map(|bit| (file.clone(), at, Some(bit))));
        }
    }
    let untouched = directory();
    copy(good.path(), untouched.path());
    let Exported::Marks(expected) = export_by_binary(untouched.path()) else {
        panic!("it is sound");
    };
    assert_eq!(expected.lines().count(), usize::try_from(keys).unwrap());
    let next = AtomicUsize::new(0);
    let (refused, aborted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some((file, at, bit)) = damages.get(next.fetch_add(1, Relaxed)) {
                    let damaged = directory();
                    copy(good.path(), damaged.path());
                    let relative = file.strip_prefix(good.path()).unwrap();
                    let mut bytes = fs::read(file).unwrap();
                    match bit {
                        Some(bit) => bytes[*at] ^= 1 << bit,
                        None => bytes.truncate(*at),
                    }
                    fs::write(damaged.path().join(relative), bytes).unwrap();
                    match export_by_binary(damaged.path()) {
                        Exported::Refused => drop(refused.fetch_add(1, Relaxed)),
                        Exported::Aborted => drop(aborted.fetch_add(1, Relaxed)),
                        Exported::Marks(marks) => {
                            let what = format!("{} at {at}, {bit:?}", relative.display());
                            assert_eq!(marks, expected, "{what}");
                        }
                    }
                }
            });
        }
    });
    let (refused, aborted) = (refused.into_inner(), aborted.into_inner());
    println!(
        "{} damages of the index: {refused} refused, {aborted} ended the process, the others \
         harmless",
        damages.len()
    );
    assert!(refused > damages.len() / 4, "{refused}");
}

/// Not a test by itself: what `survives_being_killed` starts, and kills.
#[test]
fn child_under_load() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let store = open(Path::new(&path));
    let first = mark(&store, "n/0");
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let store = &store;
            scope.spawn(move || {
                for counter in first + 1.. {
                    let key = format!("n/{thread}");
                    let many = (0..20)
                        .map(|n| raise(&format!("m/{thread}-{n}-{}", counter % 97), counter));
                    let raises = many.chain([raise(&key, counter)]).collect();
                    commit(store, raises).unwrap();
                    // One write, so that lines of two threads do not mix.
                    let line = format!("ack {thread} {counter}\n");
                    std::io::stderr().write_all(line.as_bytes()).unwrap();
                }
            });
        }
    });
}

#[test]
fn survives_being_killed() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = [0_u64; 4];
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_under_load", "--exact", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Killed after a number of answers, so after a different number of system calls each time.
        let stop = 150 + 37 * round;
        for (n, line) in lines.map_while(Result::ok).enumerate() {
            let mut words = line.split(' ');
            assert_eq!(words.next(), Some("ack"), "{line}");
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            // The last line may be cut short by the kill: then its number is lower, never higher.
            if let (Some(thread), Some(counter)) = (number(), number()) {
                let best = &mut acknowledged[usize::try_from(thread).unwrap()];
                *best = counter.max(*best);
            }
            if n == stop {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let store = open(directory.path());
        assert!(!store.was_clean());
        for (thread, &least) in acknowledged.iter().enumerate() {
            let found = mark(&store, &format!("n/{thread}"));
            assert!(found >= least, "round {round}: {found} < {least}");
            let (key, counter) = (format!("m/{thread}-7-{}", least % 97), least);
            assert!(mark(&store, &key) >= counter, "one commit, one frame");
        }
    }
    assert!(acknowledged.iter().all(|&counter| counter > 0));
    tools::verify(directory.path()).unwrap();
}
