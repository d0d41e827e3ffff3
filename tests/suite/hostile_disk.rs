//! What a disk, a clock or a system call may do to the store of a running gateway.
//!
//! Some of it needs root, strace or libfaketime. Where these are missing the tests skip and say so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use crate::common::strace::{self, Blow, CALLS, Traced};
use crate::common::{Config, Gateway, Launch, Recorder, Request, Stage, eventually, run};
use serde_json::json;

/// The first bytes of a frame of the log.
const MAGIC: [u8; 4] = [0xfe, b'f', b'g', 0xff];
const BLOCK: usize = 4096;

/// The files of a store, its index left out, with their contents up to the last byte that is not 0.
fn copy_store(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_store(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// The segment that has frames.
fn segment(store: &Path) -> PathBuf {
    let names = std::fs::read_dir(store).unwrap();
    let paths = names.map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = paths
        .filter(|path| path.to_string_lossy().contains("segment-"))
        .filter(|path| {
            let bytes = std::fs::read(path).unwrap();
            bytes.get(BLOCK..BLOCK + 4) == Some(&MAGIC)
        })
        .collect();
    segments.sort();
    segments.pop().unwrap()
}

/// Writes `bytes` over a part of a file.
fn overwrite(file: &Path, offset: usize, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(bytes, offset as u64).unwrap();
}

fn export(store: &Path) -> Result<String, String> {
    let output = run(&["store", "export", store.to_str().unwrap()]);
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

// D3
#[test]
fn a_tail_torn_at_any_byte_recovers_to_the_last_good_record() {
    let mut stage = Stage::new();
    for token in ["31", "32", "33"] {
        stage.raise("/objects/42", token);
    }
    stage.raise("/objects/last", "34");
    stage.gateway.kill();
    let store = stage.gateway.store();
    let file = segment(&store);
    let bytes = std::fs::read(&file).unwrap();
    let key = b"objects/last";
    let at = bytes
        .windows(key.len())
        .position(|window| window == key)
        .unwrap();
    let begin = (0..at)
        .rev()
        .find(|&at| bytes[at..].starts_with(&MAGIC))
        .unwrap();
    // An epoch of 0 follows the text of the key, and a counter whose first byte alone is not 0.
    let end = at + key.len() + 8 + 1;
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let name = file.file_name().unwrap();
    for cut in begin..=end {
        let torn = tempfile::tempdir().unwrap();
        copy_store(&store, torn.path());
        overwrite(&torn.path().join(name), cut, &vec![0; used.max(end) - cut]);
        let marks = export(torn.path()).unwrap_or_else(|error| panic!("torn at {cut}: {error}"));
        assert!(
            marks.contains(r#""objects/42","token":"33""#),
            "torn at {cut}: {marks}"
        );
        assert_eq!(
            marks.contains("objects/last"),
            cut == end,
            "torn at {cut}: {marks}"
        );
        if cut == (begin + end) / 2 {
            let config =
                Config::new(&stage.recorder.url()).set("store.path", torn.path().to_str().unwrap());
            let gateway = Gateway::start(config);
            Request::put("/objects/42")
                .token(32)
                .send(gateway.http)
                .assert_fenced(409, "stale-token", "after a torn tail");
        }
    }
    println!("{} cuts", end - begin + 1);
}

// D5
#[test]
fn a_zeroed_stale_or_misplaced_block_is_refused_and_named() {
    let mut stage = Stage::new();
    let stale = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        for key in 0..60 {
            stage.raise(
                &format!("/objects/{key}-{}", "k".repeat(150)),
                &round.to_string(),
            );
        }
        if round == 2 {
            assert!(stage.gateway.terminate().success());
            copy_store(&stage.gateway.store(), stale.path());
            stage.gateway.restart();
        }
    }
    assert!(stage.gateway.terminate().success());
    let store = stage.gateway.store();
    let file = segment(&store);
    let name = file.file_name().unwrap().to_str().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let stale = std::fs::read(stale.path().join(name)).unwrap();
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap() / BLOCK;
    let end_of_stale = stale.iter().rposition(|&byte| byte != 0).unwrap() / BLOCK;
    assert!(
        used > end_of_stale && end_of_stale > 3,
        "{used}, {end_of_stale}"
    );
    let block = |of: &[u8], n: usize| of[n * BLOCK..(n + 1) * BLOCK].to_vec();
    let damages = [
        ("zeroed", 2, vec![0; BLOCK]),
        ("misplaced", 2, block(&bytes, 3)),
        ("misplaced", 3, block(&bytes, 2)),
        // What was there before: nothing is written into a block that a seal has closed.
        ("stale", end_of_stale + 1, block(&stale, end_of_stale + 1)),
    ];
    for (what, n, block) in damages {
        let damaged = tempfile::tempdir().unwrap();
        copy_store(&store, damaged.path());
        overwrite(&damaged.path().join(name), n * BLOCK, &block);
        let failed = Gateway::fails(Config::new(&stage.recorder.url()), damaged.path());
        assert!(!failed.status.success(), "{what} block {n}");
        let errors = failed.errors;
        assert!(errors.contains("damaged"), "{what} block {n}: {errors}");
        assert!(
            errors.contains(name),
            "{what} block {n}, by its file: {errors}"
        );
        assert!(
            errors.contains("store verify"),
            "{what} block {n}: {errors}"
        );
    }
}

/// Traces the thread that writes the log.
fn hit_commits(stage: &Stage, log: &Path, blow: (&str, &str, Blow)) -> Traced {
    let (call, when, blow) = blow;
    let blow = Some((call, when.to_owned(), blow));
    Traced::attach(stage.gateway.pid(), "store-committer", log, CALLS, blow)
}

// D8
#[test]
fn calls_that_are_interrupted_are_made_again() {
    if !strace::available() {
        return;
    }
    let stage = Stage::at_34();
    let logs = tempfile::tempdir().unwrap();
    for (call, token) in [("pwrite64", 40), ("fdatasync", 50)] {
        let log = logs.path().join(call);
        let traced = hit_commits(&stage, &log, (call, "1+2", Blow::Eintr));
        for token in token..token + 5 {
            stage.raise("/objects/42", &token.to_string());
        }
        let hit = traced.log().iter().filter(|call| call.was_hit()).count();
        assert!(hit >= 5, "{call} was interrupted {hit} times");
    }
    stage.recorder.history().assert_ordered();
}

// D8
#[test]
fn a_write_that_fails_is_closed_and_final() {
    if !strace::available() {
        return;
    }
    let mut stage = Stage::at_34();
    let logs = tempfile::tempdir().unwrap();
    let traced = hit_commits(
        &stage,
        &logs.path().join("log"),
        ("pwrite64", "1", Blow::Eio),
    );
    let forwarded = stage.recorder.count();
    let advance = Request::put("/objects/42").token(35).try_send(stage.http());
    if let Ok(answer) = advance {
        answer.assert_fenced(503, "store-unavailable", "G4: closed on failure");
    }
    assert!(!stage.gateway.wait().success(), "it stops");
    drop(traced);
    assert_eq!(stage.recorder.count(), forwarded);
    stage.gateway.restart();
    stage
        .send(&Request::put("/objects/42").token(33))
        .assert_fenced(409, "stale-token", "after the restart");
}

// D7
#[test]
fn a_failed_sync_is_never_tried_again_and_stops_the_process() {
    if !strace::available() {
        return;
    }
    let mut stage = Stage::at_34();
    let logs = tempfile::tempdir().unwrap();
    let traced = hit_commits(
        &stage,
        &logs.path().join("log"),
        ("fdatasync", "1", Blow::Eio),
    );
    let forwarded = stage.recorder.count();
    if let Ok(answer) = Request::put("/objects/42").token(35).try_send(stage.http()) {
        answer.assert_fenced(503, "store-unavailable", "G4: closed on failure");
    }
    let status = stage.gateway.wait();
    assert_eq!(status.code(), Some(1), "{}", stage.gateway.errors());
    let log = traced.log();
    let after = log.iter().skip_while(|call| !call.was_hit()).skip(1);
    let after: Vec<_> = after.filter(|call| call.name.contains("sync")).collect();
    assert!(after.is_empty(), "no sync follows: {after:?}");
    assert_eq!(
        stage.recorder.count(),
        forwarded,
        "nothing is passed unchecked"
    );
    stage.gateway.restart();
    stage.recorder.history().assert_ordered();
}

// D1, D2
#[test]
fn a_start_makes_what_it_finds_of_the_index_durable_before_it_goes_on() {
    if !strace::available() {
        return;
    }
    let mut stage = Stage::at_34();
    stage.gateway.kill();
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("log");
    let under = strace::under(&log, &["fsync", "fdatasync", "pwrite64"], None);
    stage.gateway.launch(Launch {
        under,
        ..Launch::default()
    });
    stage.gateway.restart();
    let calls = strace::read(&log);
    let synced = |call: &strace::Call, path: &str| {
        call.name == "fsync" && call.line.contains(&format!("{path}>"))
    };
    // The seal of the log is the first record that a start writes.
    let log_goes_on = calls
        .iter()
        .position(|call| call.name == "pwrite64" && call.line.contains("\\376fg\\377"))
        .expect("the log is sealed");
    let index = std::fs::canonicalize(stage.gateway.store().join("index")).unwrap();
    let mut pointers = 0;
    let mut below = vec![index];
    while let Some(path) = below.pop() {
        let is_pointer = path.file_name().is_some_and(|name| name == "current");
        pointers += usize::from(is_pointer);
        if path.is_dir() {
            below.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if !is_pointer {
            continue;
        }
        let path = path.display().to_string();
        assert!(
            calls[..log_goes_on].iter().any(|call| synced(call, &path)),
            "{path} is not synced: {calls:#?}"
        );
    }
    assert!(pointers > 0);
}

// D16
#[test]
fn a_sync_that_stalls_for_five_seconds_delays_advances_only() {
    if !strace::available() {
        return;
    }
    let plain = json!({
        "name": "plain", "path": "/plain/{id}", "upstream": "objects",
        "fence": { "require": "never" },
    });
    let stage = Stage::with(|config| config.route(plain));
    stage.raise("/objects/42", "34");
    stage.raise("/objects/other", "7");
    let logs = tempfile::tempdir().unwrap();
    let stall = ("fdatasync", "1", Blow::Delay(5000));
    let _traced = hit_commits(&stage, &logs.path().join("log"), stall);
    let begin = Instant::now();
    let advance = Request::put("/objects/42")
        .token(35)
        .tag("advance")
        .spawn(stage.http());
    stage.gateway.wait_key("objects/42", "waiting", 1);
    let mut served = 0;
    while begin.elapsed() < Duration::from_secs(4) {
        stage
            .send(&Request::put("/objects/other").token(7))
            .assert_ok("an equal token");
        stage
            .send(&Request::put("/plain/1"))
            .assert_ok("another route");
        let stale = stage.send(&Request::put("/objects/42").token(34));
        stale.assert_fenced(409, "stale-token", "from memory");
        served += 3;
    }
    assert!(stage.recorder.history().tagged("advance").is_empty(), "G3");
    advance
        .join()
        .unwrap()
        .assert_ok("the advance, once the sync is done");
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(5), "{took:?}");
    println!("{served} answers while the sync stood still; the advance took {took:?}");
    stage.recorder.history().assert_ordered();
}

/// Where Debian has the library that gives a process another clock.
fn faketime() -> Option<PathBuf> {
    let mut architectures = std::fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok);
    architectures.find_map(|entry| {
        let library = entry.path().join("faketime/libfaketime.so.1");
        library.exists().then_some(library)
    })
}

/// The wall clock that the process sees: what stands in `file`, read anew with each look.
fn with_clock(library: &Path, file: &Path) -> Launch {
    Launch {
        variables: vec![
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // The clock on the wall is moved. No machine moves the monotonic one.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ],
        ..Launch::default()
    }
}

/// What the library leaves in memory of processes that are killed.
#[derive(Default)]
struct Leftovers(Vec<u32>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        for pid in &self.0 {
            for name in ["faketime_shm", "sem.faketime_sem"] {
                let _ = std::fs::remove_file(format!("/dev/shm/{name}_{pid}"));
            }
        }
    }
}

/// The year that the gateway's log gives.
fn year(gateway: &Gateway) -> i64 {
    let errors = gateway.errors();
    let text = errors.rsplit("\"timestamp\":\"").next().unwrap();
    text[..4]
        .parse()
        .unwrap_or_else(|_| panic!("no year: {errors}"))
}

// D14
#[test]
fn a_clock_that_is_ten_years_off_or_moves_changes_nothing() {
    let Some(library) = faketime() else {
        println!("skipped: libfaketime is not there");
        return;
    };
    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let this_year = 1970 + i64::try_from(seconds / 31_556_952).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let clock = dir.path().join("clock");
    let set = |offset: &str| std::fs::write(&clock, format!("{offset}\n")).unwrap();
    set("+0");
    // Goes after the gateway.
    let mut leftovers = Leftovers::default();
    let mut stage = Stage::with(|config| config.settle("700ms"));
    let config = Config::new(&stage.recorder.url()).settle("700ms");
    stage.gateway.launch(with_clock(&library, &clock));
    stage.gateway.restart_as(config);
    leftovers.0.push(stage.gateway.pid());
    stage.recorder.on("lost", |exchange| {
        exchange.works_on(Duration::from_millis(500));
        exchange.read_body()?;
        Ok(crate::common::Next::Reset)
    });
    let mut token = 34;
    // From ten years ahead to ten years back, and the other way, while it runs and while it is
    // stopped; each time after a kill, and with a write whose outcome is unknown.
    for (at_start, later, years) in [
        ("+0", "+3652d", 10),
        ("+3652d", "-3652d", -10),
        ("-3652d", "+3652d", 10),
    ] {
        set(at_start);
        stage.gateway.kill();
        let begin = Instant::now();
        stage.gateway.restart();
        leftovers.0.push(stage.gateway.pid());
        if token > 34 {
            stage
                .send(&Request::put("/objects/42").token(token - 1))
                .assert_fenced(409, "stale-token", "after a restart");
        }
        stage
            .send(&Request::put("/objects/42").token(token))
            .assert_ok("an advance or an equal token");
        if token > 34 {
            // The hold after a crash is as long as ever.
            stage
                .send(&Request::put("/objects/42").token(token + 1))
                .assert_ok("after the hold");
            let held = begin.elapsed();
            assert!(held >= Duration::from_millis(650), "{held:?}");
            assert!(held < Duration::from_secs(5), "{held:?}");
        }
        token += 2;
        let lost = stage.send(&Request::put("/objects/42").token(token).tag("lost"));
        assert_eq!(lost.status, 502, "{lost:?}");
        let begin = Instant::now();
        set(later);
        token += 1;
        stage
            .send(&Request::put("/objects/42").token(token))
            .assert_ok("once it has settled");
        let settled = begin.elapsed();
        assert!(settled >= Duration::from_millis(600), "{settled:?}");
        assert!(settled < Duration::from_secs(5), "{settled:?}");
        let expected = this_year + years;
        eventually(&format!("the clock says {expected}"), || {
            ((year(&stage.gateway) - expected).abs() <= 1).then_some(())
        });
    }
    assert!(stage.gateway.terminate().success());
    set("-3652d");
    stage.gateway.restart();
    leftovers.0.push(stage.gateway.pid());
    stage
        .send(&Request::put("/objects/42").token(token - 1))
        .assert_fenced(409, "stale-token", "at the end");
    stage
        .send(&Request::put("/objects/42").token(token))
        .assert_ok("an equal token");
    stage.recorder.history().assert_ordered();
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A mounted file system, gone with the test.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn tmpfs() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=160m", "tmpfs"])
            .arg(dir.path());
        succeeds(&mut mount).then_some(Self(dir))
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        mount
            .args(["-o", &format!("remount,{how}")])
            .arg(self.0.path());
        assert!(succeeds(&mut mount), "it can be mounted {how}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        succeeds(Command::new("umount").args(["-l"]).arg(self.0.path()));
    }
}

// D9
#[test]
fn a_store_that_is_mounted_read_only_is_refused_at_start_and_whole_after() {
    let Some(mounted) = Mounted::tmpfs() else {
        println!("skipped: a file system of its own needs root");
        return;
    };
    let recorder = Recorder::start();
    let store = mounted.0.path().join("store");
    let config = Config::new(&recorder.url()).set("store.path", store.to_str().unwrap());
    let mut gateway = Gateway::start(config.clone());
    Request::put("/objects/42")
        .token(34)
        .send(gateway.http)
        .assert_ok("while it can be written");
    gateway.kill();
    mounted.remount("ro");
    let failed = Gateway::fails(config, &store);
    assert!(!failed.status.success());
    assert!(
        failed.errors.contains("Read-only") && failed.errors.contains(store.to_str().unwrap()),
        "it says what and where: {}",
        failed.errors
    );
    mounted.remount("rw");
    gateway.restart();
    Request::put("/objects/42")
        .token(33)
        .send(gateway.http)
        .assert_fenced(409, "stale-token", "after it");
}
