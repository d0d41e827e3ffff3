//! The embedded store over its public face, on real files.
//!
//! No test here starts a process: one that is just being started has all files of this process, and
//! with them the lock of a store that another test has closed and opens again. What needs processes
//! is in `store_processes.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::store::{asked, commit, copy, files, mark, open, options, raise, read, reply};
use fencegate::store::{EmbeddedStore, NamespaceRules, OpenError, Options, tools};
use fencegate_filters::store::{Binding, Store, StoreError};
use fencegate_filters::{Key, Token};

/// The marks of a small store, closed, in a directory that goes with the value.
fn small(keys: u64) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 16 << 10,
        ..options(directory.path())
    };
    let store = EmbeddedStore::open(&options).unwrap();
    for n in 1..=keys {
        commit(&store, vec![raise(&format!("n/{n}"), n)]).unwrap();
    }
    store.close(true).unwrap();
    directory
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.to_string_lossy().contains("segment-"));
    names.sort();
    names
}

#[test]
fn what_is_committed_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let nested = directory.path().join("a/b/c");
    let store = open(&nested);
    assert!(store.is_empty() && store.was_clean());
    assert_eq!(read(&store, "n/1"), None);
    let mut bound = raise("n/1", 34);
    bound.record.holder = Binding::Holder("pod-7".into());
    bound.record.draining = true;
    commit(&store, vec![bound.clone(), raise("n/2", 1)]).unwrap();
    commit(&store, vec![raise("n/1", 33)]).unwrap();
    assert_eq!(read(&store, "n/1").as_ref(), Some(&bound.record));
    store.close(true).unwrap();
    drop(store);
    let store = open(&nested);
    assert_eq!(read(&store, "n/1"), Some(bound.record));
    assert_eq!((mark(&store, "n/2"), store.len()), (1, 2));
}

#[test]
fn clean_means_closed_cleanly_just_now() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert!(open(path).was_clean(), "a new store");
    assert!(!open(path).was_clean(), "one that was dropped");
    open(path).close(false).unwrap();
    let store = open(path);
    assert!(!store.was_clean(), "one that was closed unclean");
    store.close(true).unwrap();
    assert!(store.close(true).is_err(), "closed twice");
    drop(store);
    let marker = fs::read(path.join("CLEAN")).unwrap();
    let store = open(path);
    assert!(store.was_clean());
    assert!(
        !path.join("CLEAN").exists(),
        "it is gone while the store is open"
    );
    drop(store);
    fs::write(path.join("CLEAN"), &marker).unwrap();
    assert!(!open(path).was_clean(), "an old marker");
    open(path).close(true).unwrap();
    let mut marker = fs::read(path.join("CLEAN")).unwrap();
    marker[40] ^= 1;
    fs::write(path.join("CLEAN"), &marker).unwrap();
    assert!(!open(path).was_clean(), "a damaged marker");
}

#[test]
fn a_second_opening_names_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let error = EmbeddedStore::open(&options(directory.path())).unwrap_err();
    let pid = std::process::id();
    assert!(matches!(error, OpenError::Locked { pid: Some(found), .. } if found == pid));
    assert!(
        error.to_string().contains(&format!("process {pid}")),
        "{error}"
    );
    assert!(matches!(
        tools::verify(directory.path()).unwrap_err(),
        tools::ToolError::Open(OpenError::Locked { .. })
    ));
    drop(store);
    open(directory.path());
}

#[test]
fn require_existing_refuses_what_has_no_store() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().to_owned(), directory.path().join("none")] {
        let options = Options {
            require_existing: true,
            ..options(&path)
        };
        let error = EmbeddedStore::open(&options).unwrap_err();
        assert!(matches!(error, OpenError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("require_existing"));
        assert!(tools::stats(&path).is_err());
    }
    drop(open(directory.path()));
    let options = Options {
        require_existing: true,
        ..options(directory.path())
    };
    EmbeddedStore::open(&options).unwrap();
}

#[test]
fn another_version_is_refused_by_name() {
    let directory = small(1);
    fs::write(directory.path().join("FORMAT"), "fencegate-store 9\n").unwrap();
    let error = EmbeddedStore::open(&options(directory.path())).unwrap_err();
    assert!(matches!(&error, OpenError::Version { found, .. } if found == "9"));
    assert!(error.to_string().contains("\"9\""), "{error}");
}

#[test]
fn a_store_of_a_version_before_is_read_and_becomes_one_of_this() {
    for version in [1, 2] {
        let directory = small(3);
        let file = directory.path().join("FORMAT");
        let now = fs::read_to_string(&file).unwrap();
        let (text, _) = now.split_once("crc32c").unwrap();
        let then = text.replace("fencegate-store 3", &format!("fencegate-store {version}"));
        assert_ne!(then, text);
        let checksum = crc32c::crc32c(then.as_bytes());
        fs::write(&file, format!("{then}crc32c {checksum:08x}\n")).unwrap();
        tools::verify(directory.path()).unwrap();
        let store = open(directory.path());
        assert!(store.len() == 3);
        drop(store);
        assert_eq!(fs::read_to_string(&file).unwrap(), now);
    }
}

#[test]
fn missing_parts_are_damage_and_not_a_new_store() {
    let parts = ["FORMAT", "CHECKPOINT", "index", "segment-000000000001"];
    for part in parts {
        let directory = small(3);
        let path = directory.path().join(part);
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
        let error = EmbeddedStore::open(&options(directory.path())).unwrap_err();
        assert!(
            matches!(error, OpenError::Corrupt { .. }),
            "{part}: {error}"
        );
        assert!(
            error.to_string().contains("fencegate store verify"),
            "{error}"
        );
    }
}

#[test]
fn a_segment_that_is_missing_before_one_in_reserve_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open(&path);
    let segments = || {
        let names = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.starts_with("segment-"))
            .collect();
        names.sort();
        names
    };
    // Until the segment that is written to has both an older one and one in reserve beside it.
    let mut counter = 0;
    while counter < 64 || segments().len() < 3 {
        counter += 1;
        let raises = (0..40).map(|n| raise(&format!("n/{counter}-{n}"), counter));
        commit(&store, raises.collect()).unwrap();
    }
    drop(store);
    let mut opened = 0;
    for name in segments() {
        let copied = directory.path().join(&name);
        copy(&path, &copied);
        fs::remove_file(copied.join(&name)).unwrap();
        match EmbeddedStore::open(&options(&copied)) {
            Err(OpenError::Corrupt { .. }) => {}
            Err(other) => panic!("{name}: {other}"),
            // Only the last in reserve can go without a trace: nothing was ever in it.
            Ok(store) => {
                opened += 1;
                for number in 1..=counter {
                    let mark = mark(&store, &format!("n/{number}-0"));
                    assert_eq!(mark, number, "without {name}");
                }
            }
        }
    }
    assert!(opened <= 1, "{opened} segments were not missed");
}

#[test]
fn an_index_or_a_checkpoint_of_before_is_refused() {
    for part in ["index", "CHECKPOINT"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        open(&path).close(true).unwrap();
        let old = directory.path().join("old");
        copy(&path, &old);
        let store = open(&path);
        // One generation apart is what a crash may leave: so there must be more in between.
        let checkpoint = || fs::read(path.join("CHECKPOINT")).unwrap_or_default();
        let (mut generations, mut last) = (0, checkpoint());
        for round in 0..2_000 {
            let raises = (0..400).map(|n| raise(&format!("n/{round}-{n}"), 1));
            commit(&store, raises.collect()).unwrap();
            let now = checkpoint();
            if now != last {
                (generations, last) = (generations + 1, now);
            }
            if generations >= 3 {
                break;
            }
        }
        assert!(generations >= 3, "the marks never moved into the index");
        store.close(true).unwrap();
        drop(store);
        let (from, to) = (old.join(part), path.join(part));
        if from.is_dir() {
            fs::remove_dir_all(&to).unwrap();
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
        let error = EmbeddedStore::open(&options(&path)).unwrap_err();
        assert!(
            matches!(error, OpenError::Corrupt { .. }),
            "{part}: {error}"
        );
    }
}

/// Opens a damaged copy: it refuses, or has all marks of `small(keys)` up to `known`.
fn refuses_or_knows(path: &Path, known: u64, what: &str) -> bool {
    let store = match EmbeddedStore::open(&options(path)) {
        Ok(store) => store,
        Err(OpenError::Corrupt { .. } | OpenError::Version { .. }) => return false,
        Err(error) => panic!("{what}: {error}"),
    };
    for n in 1..=known {
        assert_eq!(mark(&store, &format!("n/{n}")), n, "{what}");
    }
    true
}

#[test]
fn a_tail_torn_at_any_byte_loses_only_what_was_torn() {
    let directory = small(6);
    let segment = segments(directory.path()).remove(0);
    let bytes = fs::read(&segment).unwrap();
    // Seals stand at block starts; the frames of the marks follow the first.
    let frames: Vec<usize> = (0..bytes.len())
        .step_by(8)
        .filter(|&at| bytes[at..].starts_with(&[0xfe, b'f', b'g', 0xff]))
        .collect();
    let (&last, &seal) = match &frames[..] {
        [.., last, seal] => (last, seal),
        _ => panic!("no frames: {frames:?}"),
    };
    assert_eq!(seal % 4096, 0);
    let end = last + 32 + 2 + 3 + 17;
    let template = directory.path();
    for cut in last..end {
        let torn = tempfile::tempdir().unwrap();
        copy(template, torn.path());
        let mut bytes = bytes.clone();
        bytes[cut..].fill(0);
        fs::write(torn.path().join(segment.file_name().unwrap()), bytes).unwrap();
        // As a crash leaves it: without the marker, which would tell that the end is missing.
        fs::remove_file(torn.path().join("CLEAN")).unwrap();
        assert!(refuses_or_knows(torn.path(), 5, &format!("cut at {cut}")));
        assert!(refuses_or_knows(
            torn.path(),
            5,
            &format!("cut at {cut}, again")
        ));
    }
    let torn = tempfile::tempdir().unwrap();
    copy(template, torn.path());
    let mut bytes = bytes;
    bytes[end - 1..].fill(0);
    fs::write(torn.path().join(segment.file_name().unwrap()), bytes).unwrap();
    assert!(!refuses_or_knows(
        torn.path(),
        6,
        "torn, but closed cleanly"
    ));
}

#[test]
fn no_flipped_bit_lowers_a_mark() {
    let directory = small(4);
    let mut refused = 0;
    let mut files = segments(directory.path());
    files.extend(["FORMAT", "CHECKPOINT"].map(|name| directory.path().join(name)));
    for file in files {
        let bytes = fs::read(&file).unwrap();
        // Where all is zero, all bits are alike.
        let places = (0..bytes.len()).filter(|&at| bytes[at] != 0);
        for (n, at) in places.step_by(2).enumerate() {
            let flipped = tempfile::tempdir().unwrap();
            copy(directory.path(), flipped.path());
            // Also without the marker, which would give some of it away.
            if n % 3 == 0 {
                fs::remove_file(flipped.path().join("CLEAN")).unwrap();
            }
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (n % 8);
            fs::write(flipped.path().join(file.file_name().unwrap()), bytes).unwrap();
            let what = format!("{} at {at}", file.display());
            refused += u32::from(!refuses_or_knows(flipped.path(), 4, &what));
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn no_flipped_bit_in_the_index_lowers_a_mark() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let count = 1200;
    for n in 1..=count {
        commit(&store, vec![raise(&format!("n/{n}"), n)]).unwrap();
    }
    store.close(true).unwrap();
    drop(store);
    assert!(tools::stats(directory.path()).unwrap().checkpoint > 0);
    let (mut noticed, mut seed) = (0, 7_usize);
    for file in files(&directory.path().join("index")) {
        let length = fs::metadata(&file).unwrap().len();
        for _ in 0..12 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut bytes = fs::read(&file).unwrap();
            if bytes.is_empty() || length > 8 << 20 {
                continue;
            }
            let at = (seed >> 20) % bytes.len();
            bytes[at] ^= 1 << (seed % 8);
            let flipped = tempfile::tempdir().unwrap();
            copy(directory.path(), flipped.path());
            let relative = file.strip_prefix(directory.path()).unwrap();
            fs::write(flipped.path().join(relative), bytes).unwrap();
            let Ok(store) = EmbeddedStore::open(&options(flipped.path())) else {
                noticed += 1;
                continue;
            };
            for n in 1..=count {
                let (reply, receiver) = reply();
                store.read(&Key::from_text(&format!("n/{n}")), reply);
                match receiver.recv().unwrap() {
                    Ok(record) => {
                        let found = record.map_or(0, |record| record.mark.counter());
                        assert_eq!(found, n, "{} at {at}", relative.display());
                    }
                    Err(StoreError::Unavailable(_)) => {
                        noticed += 1;
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    assert!(noticed > 10, "{noticed}");
}

#[test]
fn a_zeroed_stale_or_misplaced_block_is_noticed() {
    let directory = small(300);
    let segment = segments(directory.path()).remove(0);
    let bytes = fs::read(&segment).unwrap();
    let block = |n: usize| n * 4096..(n + 1) * 4096;
    for n in 0..3 {
        let damaged = tempfile::tempdir().unwrap();
        copy(directory.path(), damaged.path());
        let mut bytes = bytes.clone();
        match n {
            0 => bytes[block(2)].fill(0),
            1 => bytes.copy_within(block(1), block(2).start),
            _ => bytes.copy_within(block(3), block(2).start),
        }
        fs::write(damaged.path().join(segment.file_name().unwrap()), bytes).unwrap();
        let error = EmbeddedStore::open(&options(damaged.path())).unwrap_err();
        let OpenError::Corrupt { file, offset, .. } = &error else {
            panic!("damage {n}: {error}");
        };
        assert!(file.starts_with("segment-") && offset.is_some(), "{error}");
        assert!(tools::verify(damaged.path()).is_err());
    }
}

#[test]
fn segments_are_used_again_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut counter = 0;
    for round in 0..3 {
        let store = open(directory.path());
        for _ in 0..60 {
            counter += 1;
            let raises = (0..100).map(|n| raise(&format!("n/{n:03}-{round}"), counter));
            commit(&store, raises.collect()).unwrap();
        }
        assert_eq!(store.len(), 100 * (round + 1));
        store.close(round % 2 == 0).unwrap();
    }
    let store = open(directory.path());
    for round in 0..3 {
        assert_eq!(mark(&store, &format!("n/007-{round}")), 60 * (round + 1));
    }
    assert_eq!(store.len(), 300);
    store.close(true).unwrap();
    drop(store);
    assert!(segments(directory.path()).len() < 10);
    let report = tools::verify(directory.path()).unwrap();
    assert_eq!((report.keys, report.clean), (300, true));
    assert!(report.checkpoint > 0 && report.last > 180, "{report:?}");
}

#[test]
fn many_at_once_are_all_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in 1..=50 {
                    let own = format!("n/own-{thread}-{n}");
                    let raises = vec![raise("n/shared", thread * 50 + n), raise(&own, n)];
                    commit(store, raises).unwrap();
                    assert_eq!(mark(store, &own), n);
                }
            });
        }
    });
    assert_eq!((store.len(), mark(&store, "n/shared")), (401, 400));
}

#[test]
fn lists_memory_and_index_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for n in (0..1500).rev() {
        let raises = vec![raise(&format!("a/{n:04}"), n + 1), raise("b/1", n + 1)];
        commit(&store, raises).unwrap();
    }
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let chunk = store.list("a/", after.as_deref(), 97).unwrap();
        let Some((last, _)) = chunk.last() else { break };
        after = Some(last.as_str().to_owned());
        seen.extend(chunk);
    }
    assert_eq!(seen.len(), 1500);
    for (n, (key, record)) in seen.iter().enumerate() {
        assert_eq!(key.as_str(), format!("a/{n:04}"));
        assert_eq!(record.mark.counter(), n as u64 + 1);
    }
    assert_eq!(store.list("", None, 0).unwrap(), []);
    assert_eq!(store.list("c", None, 9).unwrap(), []);
    assert_eq!(
        (store.list("", None, 9999).unwrap().len(), store.len()),
        (1501, 1501)
    );
}

#[test]
fn a_commit_too_long_is_refused_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let raises = (0..9000).map(|n| raise(&format!("n/{n}"), 1));
    assert!(matches!(
        commit(&store, raises.collect()),
        Err(StoreError::Unavailable(_))
    ));
    let key = "k".repeat(70_000);
    assert!(matches!(
        commit(&store, vec![raise(&key, 1)]),
        Err(StoreError::Unavailable(_))
    ));
    commit(&store, vec![raise("n/1", 1)]).unwrap();
    assert_eq!(store.len(), 1);
}

#[test]
fn rules_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let rules = NamespaceRules {
        fingerprint: BTreeMap::from([("objects".into(), "key={id}".into())]),
        settle: Duration::from_millis(1500),
    };
    let store = open(directory.path());
    assert_eq!(store.rules("objects"), Ok(None));
    let both = [
        ("objects", rules.clone()),
        ("other", NamespaceRules::default()),
    ];
    let both = both.map(|(namespace, rules)| (namespace.to_owned(), rules));
    store.put_rules(&both.into()).unwrap();
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.rules("objects"), Ok(Some(rules)));
    assert_eq!(store.all_rules().unwrap().len(), 2);
    drop(store);
    let path = directory.path().join("RULES");
    let mut bytes = fs::read(&path).unwrap();
    bytes[9] ^= 4;
    fs::write(&path, bytes).unwrap();
    assert!(EmbeddedStore::open(&options(directory.path())).is_err());
    // Without them nobody could tell by which rules the marks were made.
    fs::remove_file(&path).unwrap();
    let missing = EmbeddedStore::open(&options(directory.path())).unwrap_err();
    let missing = missing.to_string();
    assert!(
        missing.contains("RULES") && missing.contains("missing"),
        "{missing}"
    );
}

#[test]
fn an_export_is_imported_whole_and_only_raises() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let store = open(&from);
    let mut bound = raise("n/bound", 7);
    bound.record.holder = Binding::Holder("pod".into());
    bound.record.draining = true;
    let mut nobody = raise("n/nobody", u64::MAX);
    nobody.record.holder = Binding::Nobody;
    commit(
        &store,
        vec![raise("n/1", 5), raise("n/2", 5), bound, nobody],
    )
    .unwrap();
    store.close(true).unwrap();
    drop(store);
    let mut lines = Vec::new();
    assert_eq!(tools::export(&from, &mut lines).unwrap(), 4);
    let text = String::from_utf8(lines.clone()).unwrap();
    let first = r#"{"key":"n/1","token":"5","holder":null,"draining":false}"#;
    assert_eq!(text.lines().next(), Some(first));

    let store = open(&to);
    commit(&store, vec![raise("n/1", 9)]).unwrap();
    store.close(true).unwrap();
    drop(store);
    assert_eq!(tools::import(&to, &mut &*lines).unwrap(), 4);
    assert!(tools::stats(&to).unwrap().clean);
    let mut again = Vec::new();
    tools::export(&to, &mut again).unwrap();
    let expected = text.replace(r#""n/1","token":"5""#, r#""n/1","token":"9""#);
    assert_eq!(String::from_utf8(again).unwrap(), expected);
    assert_eq!(tools::verify(&to).unwrap().keys, 4);
}

#[test]
fn a_bad_line_imports_nothing() {
    let bad = [
        "{",
        r#"{"key":"n/1"}"#,
        r#"{"key":"n/1","token":5}"#,
        r#"{"key":"n/1","token":"0"}"#,
        r#"{"key":"n/1","token":"+5"}"#,
        r#"{"key":"none","token":"5"}"#,
        r#"{"key":"n/","token":"5"}"#,
        r#"{"key":"n/1","token":"5","holder":"a b"}"#,
        r#"{"key":"n/1","token":"5","extra":1}"#,
    ];
    for line in bad {
        let directory = tempfile::tempdir().unwrap();
        let text = format!("{{\"key\":\"n/1\",\"token\":\"5\"}}\n\n{line}\n");
        let error = tools::import(directory.path(), &mut text.as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("line 3: "), "{line}: {error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
    let directory = tempfile::tempdir().unwrap();
    let error = tools::import(directory.path(), &mut &b"\xff\n"[..]).unwrap_err();
    assert!(matches!(error, tools::ToolError::Line { number: 1, .. }));
}

#[test]
fn floors_are_exported_imported_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let store = open(&from);
    asked(|reply| store.start_forgetting(&["n".to_owned()], Duration::ZERO, reply)).unwrap();
    commit(
        &store,
        vec![raise("n/1", 5), raise("n/2", 9), raise("m/1", 99)],
    )
    .unwrap();
    let begin = std::time::Instant::now();
    let idle = loop {
        asked(|reply| store.keep_uptime(reply)).unwrap();
        let idle = asked(|reply| store.idle_keys("n", None, 9, reply)).unwrap();
        if idle.keys.len() == 2 {
            break idle.keys;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing is idle");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(asked(|reply| store.forget(idle, reply)).unwrap(), 2);
    commit(&store, vec![raise("n/3", 4)]).unwrap();
    store.close(true).unwrap();
    drop(store);
    let report = tools::verify(&from).unwrap();
    assert_eq!((report.keys, report.floors["n"].as_str()), (2, "10"));
    let mut lines = Vec::new();
    assert_eq!(tools::export(&from, &mut lines).unwrap(), 3);
    let text = String::from_utf8(lines.clone()).unwrap();
    assert!(
        text.starts_with("{\"key\":\"!floors/n\",\"token\":\"10\","),
        "{text}"
    );

    assert_eq!(tools::import(&to, &mut &*lines).unwrap(), 3);
    let store = open(&to);
    assert_eq!(store.floor("n"), Token::new(0, 10));
    assert_eq!((mark(&store, "n/1"), mark(&store, "n/3")), (0, 4));
    store.close(true).unwrap();
    drop(store);
    // What this store has forgotten comes back by no line that is below its floor.
    let old = "{\"key\":\"n/1\",\"token\":\"5\"}\n{\"key\":\"n/2\",\"token\":\"12\"}\n";
    assert_eq!(tools::import(&to, &mut old.as_bytes()).unwrap(), 2);
    let store = open(&to);
    assert_eq!((mark(&store, "n/1"), mark(&store, "n/2")), (0, 12));
    drop(store);

    // An older copy, in which the keys still have marks: those that are forgotten where the lines
    // come from count as the floor, whatever they were here.
    let old = directory.path().join("old");
    let store = open(&old);
    let raises = vec![
        raise("n/1", 5),
        raise("n/2", 12),
        raise("n/3", 4),
        raise("m/1", 1),
    ];
    commit(&store, raises).unwrap();
    store.close(true).unwrap();
    drop(store);
    assert_eq!(tools::import(&old, &mut &*lines).unwrap(), 3);
    let store = open(&old);
    let marks = ["n/1", "n/2", "n/3", "m/1"].map(|key| mark(&store, key));
    assert_eq!(marks, [10, 12, 4, 99]);
    assert_eq!(store.floor("n"), Token::new(0, 10));
}
