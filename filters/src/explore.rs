//! Runs a scenario under a checker that decides which thread runs next: in random orders, in those
//! that a few preemptions make (PCT), or in all of them. For tests only.
//!
//! What was explored is printed with its seed. A failure prints the command that repeats it.
//!
//! | variable | what |
//! | --- | --- |
//! | `FENCEGATE_SHUTTLE_SCHEDULES` | schedules of each scenario and scheduler |
//! | `FENCEGATE_SHUTTLE_SECONDS` | the most time for them |
//! | `FENCEGATE_SHUTTLE_SEED` | the seed; else a new one for each run |

use std::hash::{BuildHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// A failing schedule is repeated with all of its batch.
const BATCH: usize = 25;
/// The least depths at which PCT finds what needs so many orderings to go wrong.
const DEPTHS: [usize; 3] = [2, 3, 5];
/// More steps than any scenario needs: beyond them, something runs in circles.
const MOST_STEPS: usize = 100_000;

/// How much is explored.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Schedules of each scheduler.
    pub schedules: usize,
    /// The most time that each scheduler takes.
    pub most: Duration,
    /// Where the seeds begin.
    pub seed: u64,
}

impl Effort {
    /// What the environment says, or else little enough for every run of the tests.
    #[must_use]
    pub fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse().ok();
        let seed = || std::hash::RandomState::new().build_hasher().finish() >> 16;
        Self {
            schedules: number("FENCEGATE_SHUTTLE_SCHEDULES")
                .and_then(|count: u64| usize::try_from(count).ok())
                .unwrap_or(600),
            most: number("FENCEGATE_SHUTTLE_SECONDS")
                .map_or(Duration::from_millis(1500), Duration::from_secs),
            seed: number("FENCEGATE_SHUTTLE_SEED").unwrap_or_else(seed),
        }
    }
}

type Body = Arc<dyn Fn() + Send + Sync>;

/// Explores random orders and those of PCT.
///
/// # Panics
///
/// As `scenario` does in one of them, and where all its threads wait for ever.
pub fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let (effort, scenario) = (Effort::from_env(), Arc::new(scenario) as Body);
    let began = Instant::now();
    let [random, pct] = [Kind::Random, Kind::Pct].map(|kind| {
        let (schedules, failure) = search(kind, effort, &scenario, FailurePersistence::Print);
        if let Some((seed, panic)) = failure {
            eprintln!(
                "{}: a schedule fails; to repeat it:\n  FENCEGATE_SHUTTLE_SEED={seed} \
                 FENCEGATE_SHUTTLE_SCHEDULES={BATCH} cargo test --workspace \
                 --features shuttle,faults --lib -- --exact {}",
                name(),
                name()
            );
            resume_unwind(panic);
        }
        schedules
    });
    eprintln!(
        "explored {}: {random} random and {pct} PCT schedules, seed {}, {:.1} s",
        name(),
        effort.seed,
        began.elapsed().as_secs_f64()
    );
}

/// Explores every order that there is, and says how many that were.
///
/// # Panics
///
/// As `scenario` does in one of them, and where there are more than `most`.
pub fn exhaust(most: usize, scenario: impl Fn() + Send + Sync + 'static) -> usize {
    let began = Instant::now();
    let scheduler = DfsScheduler::new(Some(most + 1), false);
    let schedules = Runner::new(scheduler, config(FailurePersistence::Print)).run(scenario);
    assert!(schedules <= most, "more than {most} schedules");
    eprintln!(
        "exhausted {}: all {schedules} schedules, {:.1} s",
        name(),
        began.elapsed().as_secs_f64()
    );
    schedules
}

/// Explores until a schedule fails, and says how many that took; `None` where none did.
///
/// A planted fault has to be found so.
#[must_use]
pub fn find(scenario: impl Fn() + Send + Sync + 'static) -> Option<usize> {
    let (mut effort, scenario) = (Effort::from_env(), Arc::new(scenario) as Body);
    effort.schedules = effort.schedules.max(5000);
    effort.most = effort.most.max(Duration::from_secs(20));
    let mut before = 0;
    for kind in [Kind::Random, Kind::Pct] {
        let (schedules, failure) = search(kind, effort, &scenario, FailurePersistence::None);
        before += schedules;
        if failure.is_some() {
            eprintln!("found by {}: after at most {before} schedules", name());
            return Some(before);
        }
    }
    None
}

#[derive(Clone, Copy)]
enum Kind {
    Random,
    Pct,
}

type Failure = (u64, Box<dyn std::any::Any + Send>);

/// How many schedules were explored, and the seed of the batch that failed.
fn search(
    kind: Kind,
    effort: Effort,
    scenario: &Body,
    persistence: FailurePersistence,
) -> (usize, Option<Failure>) {
    let (began, mut schedules) = (Instant::now(), 0);
    let mut seed = effort.seed;
    while schedules < effort.schedules && began.elapsed() < effort.most {
        let body = Arc::clone(scenario);
        let run = |scheduler: Box<dyn Scheduler + Send>| {
            Runner::new(scheduler, config(persistence.clone())).run(move || body())
        };
        // The first schedule of PCT only measures: the depth is chosen by the seed alone, so that
        // the seed repeats the batch.
        let depth = usize::try_from(seed % DEPTHS.len() as u64).unwrap_or_default();
        let depth = DEPTHS.get(depth).copied().unwrap_or(2);
        let scheduler: Box<dyn Scheduler + Send> = match kind {
            Kind::Random => Box::new(RandomScheduler::new_from_seed(seed, BATCH)),
            Kind::Pct => Box::new(PctScheduler::new_from_seed(seed, depth, BATCH)),
        };
        match catch_unwind(AssertUnwindSafe(|| run(scheduler))) {
            Ok(more) => schedules += more,
            Err(panic) => return (schedules + BATCH, Some((seed, panic))),
        }
        seed = seed.wrapping_add(1);
    }
    (schedules, None)
}

fn config(persistence: FailurePersistence) -> Config {
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.failure_persistence = persistence;
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    // Atomics are explored as if all were sequentially consistent; see the docs.
    config.silence_warnings = true;
    config
}

/// The test harness names its threads after the tests.
fn name() -> String {
    let thread = std::thread::current();
    thread.name().unwrap_or("a scenario").to_owned()
}
