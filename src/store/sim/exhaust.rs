//! Every workload of up to three steps, with a crash, or an error, at every operation of the disk.
//!
//! A store is used by one client, step by step, and each step is over when all threads rest: so a
//! workload makes the same operations in each run. Before each of them the disk is kept as it is,
//! with what was acknowledged until then. From each disk that was kept, a store is opened after a
//! kill, and after every loss of power that the [`Odometer`] knows. It must open, have every
//! acknowledged mark, no mark that nobody asked for, whole commits, and say truly whether it was
//! closed cleanly. Many losses leave the same bytes: what is alike, with the same things known, is
//! opened once.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use fencegate_filters::Token;
use fencegate_filters::store::StoreError;

use super::super::disk::{is_no_space, is_not_opened};
use super::super::engine::Engine;
use super::super::lock_mutex;
use super::super::opening::Settings;
use super::super::rules::NamespaceRules;
use super::super::shared::Tuning;
use super::super::sim_disk::{Failure, Faults, Odometer, SimDisk};
use super::{commit, forget_idle, open_with, raise, rest};

/// One step of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Commits one key.
    One,
    /// Commits two keys at once.
    Pair,
    /// Commits a key that fills a segment, so that the log goes on to the next.
    Long,
    /// Moves the marks into the index, with a checkpoint.
    Flush,
    /// Vouches for the end of the log, as when it is idle.
    Seal,
    /// Forgets the keys, once they are in the index.
    Forget,
    /// Puts the rules of a namespace.
    Rules,
    /// Closes the store cleanly, and opens it.
    Close,
    /// Kills the process, and opens the store.
    Kill,
}

const STEPS: [Step; 9] = [
    Step::One,
    Step::Pair,
    Step::Long,
    Step::Flush,
    Step::Seal,
    Step::Forget,
    Step::Rules,
    Step::Close,
    Step::Kill,
];

/// What must be said of a store that is opened now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Clean {
    /// A commit may have come since the last close.
    #[default]
    No,
    /// It is being closed or opened, and nothing is in flight.
    Either,
    /// It was closed.
    Yes,
}

/// What the client knows.
#[derive(Clone, Debug, Default)]
struct Ledger {
    /// Every commit: its mark, its keys, whether it was acknowledged.
    commits: Vec<(u64, Vec<String>, bool)>,
    /// The namespaces whose rules were put, and how often.
    rules: (u64, u64),
    clean: Clean,
    step: usize,
}

/// A disk as a crash would leave it, and what the client knew by then.
struct Kept {
    disk: SimDisk,
    ledger: Ledger,
    /// All threads rest: a step is over.
    rests: bool,
}

fn settings() -> Settings {
    Settings {
        path: "sim".into(),
        require_existing: false,
        segment_bytes: 16 << 10,
        readers: 1,
        tuning: Tuning {
            flush_segments: 1,
            memory_keys: 1000,
            // A step of its own does what idle time would.
            idle: Duration::from_secs(3600),
            no_space_wait: Duration::from_millis(1),
            uptime_unit: Duration::from_secs(1),
        },
    }
}

fn open(disk: &SimDisk) -> Result<Engine, String> {
    open_with(disk, &settings()).map_err(|error| error.to_string())
}

/// A store in use.
struct Life {
    disk: SimDisk,
    engine: Option<Engine>,
    ledger: Arc<Mutex<Ledger>>,
    kept: Arc<Mutex<Vec<Kept>>>,
}

impl Life {
    /// Keeps the disk before each operation of the steps from `first` on, once it has failed where
    /// it is to.
    fn new(disk: SimDisk, first: usize) -> Self {
        let (ledger, kept) = (
            Arc::<Mutex<Ledger>>::default(),
            Arc::<Mutex<Vec<_>>>::default(),
        );
        let (known, keep) = (Arc::clone(&ledger), Arc::clone(&kept));
        disk.watch(move |disk| {
            let ledger = lock_mutex(&known).clone();
            if ledger.step >= first && !disk.is_to_fail() {
                let disk = disk.clone();
                lock_mutex(&keep).push(Kept {
                    disk,
                    ledger,
                    rests: false,
                });
            }
        });
        Self {
            disk,
            engine: None,
            ledger,
            kept,
        }
    }

    fn ledger(&self, change: impl FnOnce(&mut Ledger)) {
        change(&mut lock_mutex(&self.ledger));
    }

    /// Opens the store. One error of the disk may stop that, a second one there is not.
    fn open(&mut self) -> Result<(), String> {
        let opened = match open(&self.disk) {
            Err(_) if !self.disk.is_to_fail() && self.disk.operations() > 0 => open(&self.disk),
            opened => opened,
        };
        self.engine = Some(opened.map_err(|error| format!("a sound store is refused: {error}"))?);
        self.ledger(|ledger| ledger.clean = Clean::No);
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), String> {
        let engine = self.engine.as_ref().ok_or("no store")?;
        match step {
            Step::One => self.commit(&["n/a"]),
            Step::Pair => self.commit(&["n/a", "n/b"]),
            Step::Long => self.commit(&[&long()]),
            Step::Flush => {
                lock_mutex(&engine.shared.memory).tables.freeze();
                engine.shared.flusher_wait.notify_one();
            }
            Step::Forget => self.forget(engine),
            Step::Seal => {
                lock_mutex(&engine.shared.commits).hooks.seal = true;
                engine.shared.commits_wait.notify_one();
            }
            Step::Rules => self.put_rules(),
            Step::Close => {
                self.ledger(|ledger| ledger.clean = Clean::Either);
                let closed = engine.close(true);
                self.engine = None;
                if closed.is_ok() {
                    self.ledger(|ledger| ledger.clean = Clean::Yes);
                    self.keep();
                    self.ledger(|ledger| ledger.clean = Clean::Either);
                }
                self.open()?;
            }
            Step::Kill => self.restart()?,
        }
        self.rest();
        let failed = |engine: &Engine| engine.shared.failed().is_some();
        if self.engine.as_ref().is_some_and(failed) {
            // The process ends, and its supervisor starts another.
            self.restart()?;
            self.rest();
        }
        self.keep();
        self.ledger(|ledger| ledger.step += 1);
        Ok(())
    }

    fn restart(&mut self) -> Result<(), String> {
        let next = self.disk.kill();
        drop(self.engine.take());
        self.disk = next;
        self.open()
    }

    fn commit(&self, keys: &[&str]) {
        let Some(engine) = &self.engine else { return };
        let mut mark = 0;
        self.ledger(|ledger| {
            mark = ledger.commits.len() as u64 + 1;
            let keys = keys.iter().map(|&key| key.to_owned());
            ledger.commits.push((mark, keys.collect(), false));
        });
        let raises = keys.iter().map(|key| raise(key, mark)).collect();
        if commit(engine, raises).is_ok() {
            self.ledger(|ledger| {
                if let Some(last) = ledger.commits.last_mut() {
                    last.2 = true;
                }
            });
        }
    }

    /// An hour is over, and nothing was used.
    fn forget(&self, engine: &Engine) {
        lock_mutex(&engine.shared.memory).wants_flush = true;
        engine.shared.flusher_wait.notify_one();
        self.rest();
        let keys = ["n/a".to_owned(), "n/b".to_owned(), long()];
        let step = lock_mutex(&self.ledger).step;
        engine.shared.ages.age("n", 3600 << step);
        // Whether it worked, the checks find out.
        let _ = forget_idle(engine, &keys.each_ref().map(String::as_str));
    }

    fn put_rules(&self) {
        let Some(engine) = &self.engine else { return };
        let mut asked = 0;
        self.ledger(|ledger| {
            ledger.rules.1 += 1;
            asked = ledger.rules.1;
        });
        let rules = NamespaceRules {
            fingerprint: BTreeMap::new(),
            settle: Duration::from_secs(asked),
        };
        let changed = BTreeMap::from([("n".to_owned(), rules)]);
        match engine.rules.put(&*engine.shared.disk, &changed) {
            Ok(()) => self.ledger(|ledger| ledger.rules.0 = asked),
            Err(error) if is_no_space(&error) || is_not_opened(&error) => {}
            Err(error) => drop(engine.shared.fail(&error.to_string())),
        }
    }

    fn rest(&self) {
        if let Some(engine) = &self.engine {
            rest(engine);
        }
    }

    /// Keeps the disk also where no operation follows.
    fn keep(&self) {
        let ledger = lock_mutex(&self.ledger).clone();
        let disk = self.disk.frozen();
        lock_mutex(&self.kept).push(Kept {
            disk,
            ledger,
            rests: true,
        });
    }
}

/// A key that fills a segment.
fn long() -> String {
    format!("n/{}", "l".repeat(12_200))
}

/// Opens a store on what a crash has left, and compares it with what was known.
fn check(disk: &SimDisk, ledger: &Ledger) -> Result<Engine, String> {
    let engine = open(disk).map_err(|error| format!("a sound store is refused: {error}"))?;
    match ledger.clean {
        Clean::No if engine.was_clean && !ledger.commits.is_empty() => {
            return Err("a crash passes for a clean close".to_owned());
        }
        Clean::Yes if !engine.was_clean => return Err("a clean close is forgotten".to_owned()),
        _ => {}
    }
    let floor = engine.shared.ages.floor("n").map_or(0, Token::counter);
    let listed = engine.list("", None, usize::MAX);
    let listed = listed.map_err(|error| error.to_string())?;
    let found: BTreeMap<_, _> = listed
        .iter()
        .filter(|(key, _)| !key.is_internal())
        .map(|(key, record)| (key.as_str(), record.mark.counter()))
        .collect();
    if engine.len() != found.len() as u64 {
        return Err(format!(
            "{} keys are counted of {}",
            engine.len(),
            found.len()
        ));
    }
    for (mark, keys, acknowledged) in &ledger.commits {
        let has = |key: &String| found.get(key.as_str()).copied();
        // Of a commit, all keys or none; a later one may have raised a key further, and one that was
        // forgotten has the floor for its mark.
        let present = keys.iter().any(|key| has(key) == Some(*mark));
        let counts = |key: &String| has(key).unwrap_or(floor);
        for key in keys {
            if (*acknowledged || present) && counts(key) < *mark {
                let name = key.get(..3).unwrap_or_default();
                return Err(format!("{name} has the mark {}, below {mark}", counts(key)));
            }
        }
    }
    for (key, mark) in found {
        let asked = |(asked, keys, _): &(u64, Vec<String>, bool)| {
            *asked == mark && keys.iter().any(|asked| asked == key)
        };
        if !ledger.commits.iter().any(asked) {
            return Err(format!("nobody asked for the mark {mark}"));
        }
    }
    let rules = engine
        .rules
        .get("n")
        .map_or(0, |rules| rules.settle.as_secs());
    if rules < ledger.rules.0 || rules > ledger.rules.1 {
        return Err(format!("the rules are {rules}, of {:?}", ledger.rules));
    }
    Ok(engine)
}

/// The crashes that were looked at: what the client knew, and what was on the disk.
#[derive(Default)]
struct Seen(Mutex<HashSet<[u8; 32]>>);

impl Seen {
    /// Checks what a crash has left, unless it was checked already.
    fn check(&self, disk: &SimDisk, ledger: &Ledger, counts: &mut Counts) -> Result<(), String> {
        let mut seen = digest::Context::new(&digest::SHA256);
        let Ledger {
            commits,
            rules,
            clean,
            step: _,
        } = ledger;
        for (mark, keys, acknowledged) in commits {
            seen.update(format!("{mark} {acknowledged} {} ", keys.len()).as_bytes());
            for key in keys {
                seen.update(key.as_bytes());
                seen.update(b" ");
            }
        }
        seen.update(format!("{rules:?} {clean:?}").as_bytes());
        seen.update(&disk.fingerprint());
        let seen: [u8; 32] = seen.finish().as_ref().try_into().unwrap();
        if lock_mutex(&self.0).insert(seen) {
            check(disk, ledger)?;
            counts.opened += 1;
        }
        Ok(())
    }
}

/// Uses a store that was opened after a crash once more.
fn goes_on(engine: Engine, disk: &SimDisk, ledger: &Ledger) -> Result<(), String> {
    let mut ledger = ledger.clone();
    let mark = ledger.commits.len() as u64 + 1;
    let committed: Result<(), StoreError> = commit(&engine, vec![raise("n/a", mark)]);
    committed.map_err(|error| error.to_string())?;
    ledger.commits.push((mark, vec!["n/a".to_owned()], true));
    engine.close(true).map_err(|error| error.to_string())?;
    drop(engine);
    ledger.clean = Clean::Yes;
    check(disk, &ledger).map(drop)
}

/// How many cases were tried.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    workloads: u64,
    operations: u64,
    errors: u64,
    kills: u64,
    losses: u64,
    again: u64,
    /// How many of them were not like another.
    opened: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.workloads += other.workloads;
        self.operations += other.operations;
        self.errors += other.errors;
        self.kills += other.kills;
        self.losses += other.losses;
        self.again += other.again;
        self.opened += other.opened;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            workloads,
            operations,
            errors,
            kills,
            losses,
            again,
            opened,
        } = self;
        write!(
            f,
            "{workloads} workloads, {operations} crash points, {errors} errors; {kills} kills, \
             {losses} losses of power, {again} crashes while it was opened, {opened} of them unlike"
        )
    }
}

/// The most losses of power that are tried at one point. No workload reaches it.
const MOST_LOSSES: usize = 5000;

/// Tries every crash at one point. With `deep`, the store that is opened crashes too, at each of
/// its operations.
fn crash(kept: &Kept, deep: bool, seen: &Seen, counts: &mut Counts) -> Result<(), String> {
    let Kept { disk, ledger, .. } = kept;
    counts.operations += 1;
    let killed = disk.after_kill();
    let failed = |error| format!("after a kill: {error}");
    if deep {
        let points = watched(&killed);
        let engine = check(&killed, ledger).map_err(failed)?;
        killed.watch(|_| {});
        crash_again(&points, ledger, seen, counts)
            .map_err(|error| format!("after a kill, and a loss of power: {error}"))?;
        goes_on(engine, &killed, ledger)
            .map_err(|error| format!("in use after a kill: {error}"))?;
    } else {
        seen.check(&killed, ledger, counts).map_err(failed)?;
    }
    counts.kills += 1;
    let mut odometer = Odometer::default();
    for turn in 0.. {
        assert!(turn < MOST_LOSSES, "too much is unsynced at once");
        let lost = disk.after_power_loss(&mut odometer);
        let failed = |error| format!("after loss {turn} of power: {error}");
        counts.losses += 1;
        if deep {
            let points = watched(&lost);
            drop(check(&lost, ledger).map_err(failed)?);
            crash_again(&points, ledger, seen, counts)
                .map_err(|error| format!("after loss {turn} of power, and another: {error}"))?;
        } else {
            seen.check(&lost, ledger, counts).map_err(failed)?;
        }
        if !odometer.turn() {
            break;
        }
    }
    Ok(())
}

/// Keeps the disk as it is before each operation from now on.
fn watched(disk: &SimDisk) -> Arc<Mutex<Vec<SimDisk>>> {
    let points = Arc::<Mutex<Vec<_>>>::default();
    let keep = Arc::clone(&points);
    disk.watch(move |disk| lock_mutex(&keep).push(disk.clone()));
    points
}

/// Tries every loss of power at each of the points that a store which was opened came by.
fn crash_again(
    points: &Mutex<Vec<SimDisk>>,
    ledger: &Ledger,
    seen: &Seen,
    counts: &mut Counts,
) -> Result<(), String> {
    for point in std::mem::take(&mut *lock_mutex(points)) {
        let mut again = Odometer::default();
        loop {
            let mut ledger = ledger.clone();
            if ledger.clean == Clean::Yes {
                ledger.clean = Clean::Either;
            }
            let lost = point.after_power_loss(&mut again);
            seen.check(&lost, &ledger, counts)?;
            counts.again += 1;
            if !again.turn() {
                break;
            }
        }
    }
    Ok(())
}

/// All workloads of exactly `length` steps; of the longer ones with forgetting, those in which there
/// is something new to forget.
fn workloads(length: u32) -> impl Iterator<Item = Vec<Step>> {
    let count = STEPS.len().pow(length);
    let all = (0..count).map(move |mut number| {
        let mut steps = Vec::new();
        for _ in 0..length {
            steps.push(STEPS[number % STEPS.len()]);
            number /= STEPS.len();
        }
        steps
    });
    all.filter(|steps| steps.len() < 3 || forgets_something(steps))
}

fn forgets_something(steps: &[Step]) -> bool {
    let idles = |step: &Step| !matches!(step, Step::One | Step::Pair | Step::Long);
    steps.first() != Some(&Step::Forget)
        && !steps
            .windows(2)
            .any(|pair| pair[1] == Step::Forget && idles(&pair[0]))
}

/// Runs a workload, with an error or without; gives what was kept from step `first` on, and how
/// many operations there were before it and in all.
fn run(
    base: &SimDisk,
    steps: &[Step],
    first: usize,
    failing: Option<(u64, Failure)>,
) -> Result<(Vec<Kept>, u64, u64), String> {
    run_on(base.after_kill(), steps, first, failing)
}

fn run_on(
    disk: SimDisk,
    steps: &[Step],
    first: usize,
    failing: Option<(u64, Failure)>,
) -> Result<(Vec<Kept>, u64, u64), String> {
    let mut life = Life::new(disk, first);
    life.ledger(|ledger| ledger.clean = Clean::Either);
    if let Some((operation, failure)) = failing {
        life.disk.fail_at(operation, failure);
    }
    life.open()?;
    life.rest();
    let mut before = 0;
    for (n, step) in steps.iter().enumerate() {
        if n == first {
            before = life.disk.operations();
        }
        life.step(*step)?;
    }
    let all = life.disk.operations();
    let kept = std::mem::take(&mut *lock_mutex(&life.kept));
    Ok((kept, before, all))
}

/// An empty store, closed.
fn base() -> SimDisk {
    let disk = SimDisk::default();
    open(&disk).unwrap().close(true).unwrap();
    disk.after_kill()
}

/// Gives each of `cases` to `try_one`, on as many threads as there are cores; prints the sum.
fn in_parallel<T: fmt::Debug + Sync>(
    what: &str,
    cases: &[T],
    try_one: impl Fn(&T, &mut Counts) -> Result<(), String> + Sync,
) -> Counts {
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Counts::default()));
    let begin = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let mut counts = Counts::default();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    counts.workloads += 1;
                    if let Err(error) = try_one(case, &mut counts) {
                        panic!("{case:?}: {error}");
                    }
                }
                lock_mutex(&sum).add(counts);
            });
        }
    });
    let counts = *lock_mutex(&sum);
    println!("{what}: {counts} ({:.1} s)", begin.elapsed().as_secs_f32());
    counts
}

/// How many steps workloads have, at the most: more in a long run than by default.
fn longest(default: u32) -> u32 {
    let steps = std::env::var("FENCEGATE_EXHAUST_STEPS").ok();
    steps
        .and_then(|steps| steps.parse().ok())
        .unwrap_or(default)
}

#[test]
fn a_crash_at_every_operation_of_every_workload_keeps_what_was_acknowledged() {
    let (base, seen) = (base(), Seen::default());
    let cases: Vec<_> = (1..=longest(3)).flat_map(workloads).collect();
    let counts = in_parallel("crashes", &cases, |steps, counts| {
        // Crashes in the steps before are those of a shorter workload.
        let (kept, ..) = run(&base, steps, steps.len() - 1, None)?;
        for kept in &kept {
            crash(kept, steps.len() == 1, &seen, counts)?;
        }
        Ok(())
    });
    assert!(counts.operations > 1000 && counts.again > 100, "{counts}");
}

#[test]
fn a_floor_is_durable_before_what_it_stands_for_is_gone() {
    let (base, seen) = (base(), Seen::default());
    let cases = [
        vec![Step::One, Step::Forget],
        vec![Step::Pair, Step::Forget],
        vec![Step::One, Step::Forget, Step::One, Step::Forget],
    ];
    let counts = in_parallel("forgetting", &cases, |steps, counts| {
        let (kept, ..) = run(&base, steps, 1, None)?;
        let mut gone = false;
        for kept in &kept {
            crash(kept, false, &seen, counts)?;
            gone |= check(&kept.disk.after_kill(), &kept.ledger)?.len() == 0;
        }
        match gone {
            true => Ok(()),
            false => Err("nothing was forgotten".to_owned()),
        }
    });
    assert!(counts.operations > 10, "{counts}");
}

#[test]
fn a_crash_while_a_store_is_made_leaves_none_or_a_whole_one() {
    let life = Life::new(SimDisk::default(), 0);
    life.ledger(|ledger| ledger.clean = Clean::Either);
    drop(open(&life.disk).unwrap());
    let mut counts = Counts::default();
    for kept in lock_mutex(&life.kept).iter() {
        crash(kept, true, &Seen::default(), &mut counts).unwrap_or_else(|error| panic!("{error}"));
    }
    println!("creation: {counts}");
    assert!(counts.operations > 10);
}

/// Runs a workload in which one operation fails, and crashes after each step behind it; where it is
/// `thorough`, before each operation.
fn error(
    base: &SimDisk,
    steps: &[Step],
    last: usize,
    failing: Option<(u64, Failure)>,
    thorough: bool,
    seen: &Seen,
    counts: &mut Counts,
) -> Result<(), String> {
    let (kept, ..) = run(base, steps, last, failing)?;
    counts.errors += 1;
    for Kept { disk, ledger, .. } in kept.iter().filter(|kept| thorough || kept.rests) {
        counts.operations += 1;
        seen.check(&disk.after_kill(), ledger, counts)?;
        counts.kills += 1;
    }
    kept.last()
        .map_or(Ok(()), |end| crash(end, false, seen, counts))
}

#[test]
fn an_error_at_every_operation_of_every_workload_is_survived() {
    let (base, seen) = (base(), Seen::default());
    let failures = [
        Failure::Io,
        Failure::NoSpace(0),
        Failure::NoSpace(50),
        Failure::NoSpace(97),
        Failure::ReadOnly,
        Failure::NoDescriptor,
    ];
    let longest = longest(2);
    // A crash before each operation is for the shorter ones.
    let thorough = longest as usize - 1;
    let cases: Vec<_> = (1..=longest).flat_map(workloads).collect();
    let counts = in_parallel("errors", &cases, |steps, counts| {
        let last = steps.len() - 1;
        let (_, before, all) = run(&base, steps, last, None)?;
        // What an error leaves shows in what comes after it.
        for tail in [[Step::Seal, Step::One], [Step::Long, Step::One]] {
            let steps = [&**steps, &tail].concat();
            for operation in before + 1..=all {
                for failure in failures {
                    let failing = Some((operation, failure));
                    let thorough = last < thorough;
                    let tried = error(&base, &steps, last, failing, thorough, &seen, counts);
                    tried.map_err(|error| {
                        format!("{failure:?} at {operation} of {steps:?}: {error}")
                    })?;
                }
            }
        }
        Ok(())
    });
    assert!(counts.errors > 1000, "{counts}");
}

#[test]
fn the_workloads_notice_what_is_planted() {
    let base = base();
    let planted = [
        (
            "the result of a sync is ignored",
            Faults {
                lying_syncs: true,
                ..Faults::default()
            },
        ),
        (
            "the sync of the directory is missing",
            Faults {
                lying_dir_syncs: true,
                ..Faults::default()
            },
        ),
        (
            "the index forgets marks",
            Faults {
                forgetful_index: true,
                ..Faults::default()
            },
        ),
        (
            "a file is not put in the place of the old one",
            Faults {
                lying_renames: true,
                ..Faults::default()
            },
        ),
    ];
    for (what, faults) in planted {
        let mut found = None;
        let mut cases = (1..=3).flat_map(workloads);
        while found.is_none() {
            let steps = cases
                .next()
                .unwrap_or_else(|| panic!("{what}: it is not noticed"));
            let (disk, seen) = (base.after_kill(), Seen::default());
            disk.set(faults);
            let tried = run_on(disk, &steps, 0, None).and_then(|(kept, ..)| {
                let mut crashes = kept.iter();
                crashes.try_for_each(|kept| crash(kept, false, &seen, &mut Counts::default()))
            });
            found = tried.err().map(|error| format!("by {steps:?}: {error}"));
        }
        println!("{what}: noticed {}", found.unwrap_or_default());
    }
}
