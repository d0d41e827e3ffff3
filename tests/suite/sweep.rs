//! Every system call that the store makes, from the making of an empty store to its close, is hit
//! in turn: the process is killed at it, or it fails.
//!
//! The binary is the real one, on a real file system; strace hits it. After each hit the gateway is
//! started again, and every mark that the resource has seen must be enforced. The store is as small
//! as it can be (`FENCEGATE_SMALL_STORE`), so that segments fill and marks move into the index.
//!
//! What is hit is found by a run of each phase in which nothing is. `FENCEGATE_SWEEP_EVERY=1` takes
//! all of it; by default, of the many alike calls of the index engine, one in a few.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::strace::{self, Blow, CALLS, Call, Traced};
use crate::common::{Config, Connection, Gateway, Launch, Recorder, Request, Signal, eventually};
use serde_json::json;
use tempfile::TempDir;

/// How many keys have the mark 34 before anything is hit.
const KEYS: u64 = 8;

/// What the gateway is at when it is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// It makes a store.
    Make,
    /// It opens one that was closed.
    OpenClean,
    /// It opens one whose process was killed.
    OpenKilled,
    /// The thread that writes the log, under writes.
    Commit,
    /// The thread that moves marks into the index, under writes.
    Flush,
    /// The main thread, at the stop.
    Close,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::Make,
        Self::OpenClean,
        Self::OpenKilled,
        Self::Commit,
        Self::Flush,
        Self::Close,
    ];

    /// The thread that is hit while the gateway runs; `None` where it is hit as it starts.
    fn thread(self) -> Option<&'static str> {
        match self {
            Self::Make | Self::OpenClean | Self::OpenKilled => None,
            Self::Commit => Some("store-committer"),
            Self::Flush => Some("store-flusher"),
            Self::Close => Some("main"),
        }
    }
}

/// One call to be hit.
#[derive(Clone, Debug)]
struct Point {
    phase: Phase,
    call: String,
    nth: u32,
    blow: Blow,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The process was killed.
    Killed,
    /// It did not start, and said why.
    Refused,
    /// It stopped by itself, with an exit code that is not 0.
    Stopped,
    /// It went on, and admits advances.
    WentOn,
    /// The call was not made this time.
    Missed,
}

/// Stores to begin with, made once.
struct Stores {
    clean: TempDir,
    killed: TempDir,
}

fn config(recorder: &Recorder) -> Config {
    // Sixteen long keys in one request fill a segment.
    let keys: Vec<_> = (0..16)
        .map(|part| json!({ "key": format!("{{id}}-{part}") }))
        .collect();
    let bulk = json!({
        "name": "bulk", "path": "/bulk/{id}", "upstream": "objects", "fence": { "keys": keys },
    });
    Config::new(&recorder.url()).settle("100ms").route(bulk)
}

fn launch(fault: Option<&'static str>, under: Vec<String>) -> Launch {
    Launch {
        fault,
        under,
        variables: vec![("FENCEGATE_SMALL_STORE", "1".to_owned())],
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn bulk(round: u64) -> Request {
    Request::put(&format!("/bulk/{round}-{}", "k".repeat(700)))
}

impl Stores {
    fn make() -> Self {
        let recorder = Recorder::start();
        let dir = tempfile::tempdir().unwrap();
        let mut gateway = Gateway::try_start(dir, config(&recorder), launch(None, vec![])).unwrap();
        for key in 0..KEYS {
            let write = Request::put(&format!("/objects/{key}")).token(34);
            write.send(gateway.http).assert_ok("a first write");
        }
        for round in 0..3 {
            bulk(round)
                .token(34)
                .send(gateway.http)
                .assert_ok("a first bulk");
        }
        let store = gateway.store();
        gateway.kill();
        let killed = tempfile::tempdir().unwrap();
        copy(&store, &killed.path().join("store"));
        gateway.restart();
        assert!(gateway.terminate().success());
        let clean = tempfile::tempdir().unwrap();
        copy(&store, &clean.path().join("store"));
        Self { clean, killed }
    }

    /// A directory with the store that a phase begins with.
    fn directory(&self, phase: Phase) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        match phase {
            Phase::Make => {}
            Phase::OpenKilled => copy(self.killed.path(), dir.path()),
            _ => copy(self.clean.path(), dir.path()),
        }
        dir
    }
}

/// Sends a write to a gateway that may be gone; the status, if there is one.
fn write(gateway: &Gateway, request: Request) -> Option<u16> {
    let stream = std::net::TcpStream::connect(gateway.http).ok()?;
    let mut client = Connection::over(stream);
    client.send(request.whole());
    client.try_response("PUT").ok().map(|answer| answer.status)
}

/// Writes that move everything in the store: advances, equal tokens, new keys, keys that fill
/// segments. Ends early when the gateway is gone.
fn work(gateway: &Gateway) {
    for round in 0..4 {
        let object = |key: u64, token: u64| Request::put(&format!("/objects/{key}")).token(token);
        let writes = [
            object(round, 35),
            object(round, 35),
            object(100 + round, 1),
            bulk(10 + round).token(1),
        ];
        for request in writes {
            if write(gateway, request).is_none() {
                return;
            }
        }
    }
}

/// Whether a line of a log is about the store.
fn is_of_store(call: &Call, dir: &Path) -> bool {
    call.line.contains(&format!("{}/store", dir.display()))
}

/// One run of a phase; gives the gateway, as it is after the blow.
struct Run {
    gateway: Gateway,
    recorder: Recorder,
    /// Whether it became ready.
    started: bool,
    log: PathBuf,
    _logs: TempDir,
}

fn run(
    stores: &Stores,
    phase: Phase,
    blow: Option<(&str, u32, Blow)>,
    fault: Option<&'static str>,
) -> Run {
    let recorder = Recorder::start();
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("log");
    let calls: Vec<_> = match blow {
        // Syncs are always looked at: none may follow one that has failed.
        Some((call, ..)) => vec![call, "fsync", "fdatasync"],
        None => CALLS.to_vec(),
    };
    let under = match phase.thread() {
        None => strace::under(&log, &calls, blow),
        Some(_) => Vec::new(),
    };
    let dir = stores.directory(phase);
    let mut gateway = Gateway::begin(dir, config(&recorder), launch(fault, under));
    let started = gateway.become_ready().is_ok();
    let mut run = Run {
        gateway,
        recorder,
        started,
        log,
        _logs: logs,
    };
    if !started {
        return run;
    }
    let gateway = &mut run.gateway;
    let Some(thread) = phase.thread() else {
        work(gateway);
        return run;
    };
    let when = blow.map(|(call, nth, blow)| (call, nth.to_string(), blow));
    let traced = Traced::attach(gateway.pid(), thread, &run.log, &calls, when);
    if phase == Phase::Close {
        gateway.signal(Signal::TERM);
        gateway.wait();
        return run;
    }
    work(gateway);
    if phase == Phase::Flush {
        // What the writes have left to do is done when there is no more of it for a while.
        let mut before = usize::MAX;
        eventually("the flusher rests", || {
            let now = traced.log().len();
            let rests = now == std::mem::replace(&mut before, now);
            std::thread::sleep(Duration::from_millis(20));
            (rests || gateway.ended().is_some()).then_some(())
        });
    }
    run
}

/// What there is to hit.
fn points(stores: &Stores, phases: &[Phase]) -> Vec<Point> {
    let every = std::env::var("FENCEGATE_SWEEP_EVERY").ok();
    let every = every
        .and_then(|every| every.parse().ok())
        .unwrap_or(4_usize);
    let mut points = Vec::new();
    let only = std::env::var("FENCEGATE_SWEEP_PHASE").ok();
    let wanted = |phase: &Phase| {
        only.as_ref()
            .is_none_or(|only| format!("{phase:?}") == *only)
    };
    for phase in phases.iter().copied().filter(wanted) {
        let mut run = run(stores, phase, None, None);
        assert!(run.started, "{phase:?}");
        run.gateway.kill();
        let dir = run.gateway.store().parent().unwrap().to_owned();
        let calls = strace::read(&run.log)
            .into_iter()
            .filter(|call| is_of_store(call, &dir) && (phase.thread().is_some() || call.first));
        let mut of_index = 0;
        for call in calls {
            if call.line.contains("/store/index") {
                of_index += 1;
                if of_index % every != 0 {
                    continue;
                }
            }
            let grows = match call.name.as_str() {
                "openat" => call.line.contains("O_CREAT"),
                "flock" | "unlink" => false,
                _ => true,
            };
            for blow in [Blow::Kill, Blow::Eio, Blow::NoSpace] {
                if blow == Blow::NoSpace && !grows {
                    continue;
                }
                points.push(Point {
                    phase,
                    call: call.name.clone(),
                    nth: call.nth,
                    blow,
                });
            }
        }
    }
    points
}

/// Hits one point, and looks at what comes of it; `Err` where a promise is broken.
fn hit(stores: &Stores, point: &Point, fault: Option<&'static str>) -> Result<Outcome, String> {
    let Point {
        phase,
        call,
        nth,
        blow,
    } = point;
    let mut run = run(stores, *phase, Some((call, *nth, *blow)), fault);
    let log = strace::read(&run.log);
    let dir = run.gateway.store().parent().unwrap().to_owned();
    let was_hit = match blow {
        Blow::Kill => made_and_died(&mut run, point),
        _ => log.iter().any(Call::was_hit),
    };
    let elsewhere = log
        .iter()
        .find(|call| call.was_hit() && !is_of_store(call, &dir));
    if let Some(call) = elsewhere {
        return Err(format!("another call was hit: {}", call.line));
    }
    let is_sync = call == "fsync" || call == "fdatasync";
    // The engine's list of keyspaces and its journal say nothing of marks, and it makes do without
    // their syncs.
    let of_marks =
        |line: &str| !line.contains("/index/keyspaces/0") && !line.contains("/index/0.jnl");
    let hit = log.iter().find(|call| call.was_hit());
    let is_sync = is_sync && hit.is_some_and(|call| of_marks(&call.line));
    let outcome = match (was_hit, blow) {
        (false, _) => Outcome::Missed,
        (true, Blow::Kill) => Outcome::Killed,
        (true, _) if !run.started => {
            if run.gateway.errors().trim().is_empty() {
                return Err("it refuses to start and does not say why".to_owned());
            }
            Outcome::Refused
        }
        (true, _) => goes_on(&mut run, *phase, is_sync && *blow == Blow::Eio)?,
    };
    if is_sync && was_hit && *blow == Blow::Eio {
        let mut after = log.iter().skip_while(|call| !call.was_hit());
        let hit = after.next().map(|call| file(&call.line));
        let own = |call: &&Call| call.first || phase.thread().is_some();
        if let Some(again) = after.filter(own).find(|call| Some(file(&call.line)) == hit) {
            return Err(format!("a failed sync is tried again: {}", again.line));
        }
    }
    let _ = run.gateway.ended().is_none().then(|| run.gateway.kill());
    run.gateway.launch(launch(fault, Vec::new()));
    let begin = Instant::now();
    let restarted = run.gateway.try_restart();
    restarted.map_err(|failed| format!("it does not start again: {failed:?}"))?;
    if begin.elapsed() > Duration::from_secs(5) {
        return Err(format!("it takes {:?} to start again", begin.elapsed()));
    }
    verify(&run, *phase)?;
    Ok(outcome)
}

/// Whether the call at which the process is to be killed was made. If so, waits for its death.
fn made_and_died(run: &mut Run, point: &Point) -> bool {
    let made = |call: &Call| {
        let own = point.phase.thread().is_some() || call.first;
        own && call.name == point.call && call.nth == point.nth
    };
    let begin = Instant::now();
    while run.gateway.ended().is_none() {
        // The log may be a little behind.
        let waited = begin.elapsed() > Duration::from_millis(200);
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "never killed: {point:?}"
        );
        if waited && !strace::read(&run.log).iter().any(made) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// The file that a sync in a log is of.
fn file(line: &str) -> &str {
    let begin = line.find('<').map_or(0, |at| at + 1);
    let rest = line.get(begin..).unwrap_or_default();
    rest.split('>').next().unwrap_or_default()
}

/// What becomes of a gateway that was hit by an error while it ran.
fn goes_on(run: &mut Run, phase: Phase, must_stop: bool) -> Result<Outcome, String> {
    let begin = Instant::now();
    loop {
        if let Some(status) = run.gateway.ended() {
            return match status.success() {
                true if phase == Phase::Close && !must_stop => Ok(Outcome::WentOn),
                true => Err("it ends with the exit code 0".to_owned()),
                false => Ok(Outcome::Stopped),
            };
        }
        let advance = Request::put("/objects/after").token(1);
        if !must_stop && write(&run.gateway, advance) == Some(200) {
            return Ok(Outcome::WentOn);
        }
        if begin.elapsed() > Duration::from_secs(10) {
            return Err("it neither stops nor admits advances".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Every mark that the resource has seen is enforced, and nothing is wedged.
fn verify(run: &Run, phase: Phase) -> Result<(), String> {
    let Run {
        gateway, recorder, ..
    } = run;
    let marks = gateway.marks();
    let history = recorder.history();
    for path in history.keys() {
        let path = path.trim_start_matches('/');
        let keys = match path.starts_with("bulk/") {
            true => (0..16).map(|part| format!("{path}-{part}")).collect(),
            false => vec![path.to_owned()],
        };
        for key in keys {
            if marks.get(&key).copied() < history.highest(&format!("/{path}")) {
                return Err(format!("G3: {key:.20} was forwarded, and its mark is gone"));
            }
        }
    }
    let known = if phase == Phase::Make { 0 } else { KEYS };
    for key in 0..known {
        if marks.get(&format!("objects/{key}")).copied() < Some(34.into()) {
            return Err(format!("the mark of {key} is lower than it was"));
        }
    }
    for key in 0..known.min(2) {
        let stale = Request::put(&format!("/objects/{key}"))
            .token(33)
            .tag("stale");
        match write(gateway, stale) {
            Some(409) => {}
            other => return Err(format!("a stale token gets {other:?}")),
        }
    }
    let advance = write(gateway, Request::put("/objects/0").token(99));
    if advance != Some(200) {
        return Err(format!("an advance gets {advance:?}"));
    }
    history.check().map_err(|violation| violation.to_string())
}

/// What is counted for the table.
type Table = BTreeMap<(Blow, String), BTreeMap<Outcome, u32>>;

fn print(table: &Table) {
    println!(
        "{:8} {:10} {:>6} {:>7} {:>8} {:>8} {:>8} {:>7}",
        "blow", "call", "points", "killed", "refused", "stopped", "went on", "missed"
    );
    let mut sums = BTreeMap::<Blow, u32>::new();
    for ((blow, call), outcomes) in table {
        let of = |outcome| outcomes.get(&outcome).copied().unwrap_or(0);
        let all: u32 = outcomes.values().sum();
        *sums.entry(*blow).or_default() += all;
        println!(
            "{:8} {call:10} {all:6} {:7} {:8} {:8} {:8} {:7}",
            blow.name(),
            of(Outcome::Killed),
            of(Outcome::Refused),
            of(Outcome::Stopped),
            of(Outcome::WentOn),
            of(Outcome::Missed),
        );
    }
    for (blow, sum) in sums {
        println!("{}: {sum} points", blow.name());
    }
}

// D1 D6 D7 D8 D10
#[test]
fn a_kill_or_an_error_at_every_call_of_the_store_loses_no_mark() {
    if !strace::available() {
        return;
    }
    let begin = Instant::now();
    let stores = Stores::make();
    let points = points(&stores, &Phase::ALL);
    let (next, table) = (AtomicUsize::new(0), Mutex::new(Table::new()));
    let broken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(point) = points.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match hit(&stores, point, None) {
                        Ok(outcome) => {
                            let mut table = table.lock().unwrap();
                            let row = table.entry((point.blow, point.call.clone())).or_default();
                            *row.entry(outcome).or_default() += 1;
                        }
                        Err(error) => broken.lock().unwrap().push(format!("{point:?}: {error}")),
                    }
                }
            });
        }
    });
    print(&table.into_inner().unwrap());
    let took = begin.elapsed().as_secs();
    println!("{} points in {took} s", points.len());
    let broken = broken.into_inner().unwrap();
    assert!(
        broken.is_empty(),
        "{} broken:\n{}",
        broken.len(),
        broken.join("\n")
    );
}

/// Hits the thread that writes the log until a broken promise is found, and says which.
fn is_seen(stores: &Stores, fault: &'static str) -> Option<String> {
    points(stores, &[Phase::Commit]).iter().find_map(|point| {
        let found = hit(stores, point, Some(fault)).err()?;
        Some(format!(
            "{} at {} {}: {found}",
            point.blow.name(),
            point.call,
            point.nth
        ))
    })
}

#[test]
fn the_sweep_sees_planted_faults() {
    if !strace::available() {
        return;
    }
    let stores = Stores::make();
    for fault in ["forward-before-sync", "ignore-sync-result", "forget-marks"] {
        let seen = is_seen(&stores, fault);
        println!("{fault}: {}", seen.as_deref().unwrap_or("not seen"));
        assert!(seen.is_some(), "{fault} is not seen");
    }
}

/// A token whose commit found no room, and that comes again when there is some. `true`: admitted.
fn comes_again(stores: &Stores, fault: Option<&'static str>) -> bool {
    let recorder = Recorder::start();
    let config = config(&recorder).set("routes.0.fence.drain", json!({ "timeout": "2s" }));
    let dir = stores.directory(Phase::Commit);
    let gateway = Gateway::try_start(dir, config, launch(fault, Vec::new())).unwrap();
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("log");
    let full = Some(("pwrite64", "1".to_owned(), Blow::NoSpace));
    let traced = Traced::attach(gateway.pid(), "store-committer", &log, CALLS, full);
    let again = Request::put("/objects/0").token(35);
    again
        .send(gateway.http)
        .assert_fenced(503, "store-unavailable", "no room");
    assert!(recorder.history().0.is_empty(), "it is not forwarded");
    drop(traced);
    write(&gateway, again) == Some(200)
}

// C15
#[test]
fn a_token_whose_commit_found_no_room_is_committed_when_it_comes_again() {
    if !strace::available() {
        return;
    }
    let stores = Stores::make();
    assert!(comes_again(&stores, None));
    assert!(
        !comes_again(&stores, Some("failed-commit-wedges")),
        "the fault is seen"
    );
}
