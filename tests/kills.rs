//! The process is killed under load, again and again, and started again.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use common::{Dice, Stage, Storm, eventually, weather};

/// How long a start may take.
const MOST: Duration = Duration::from_secs(1);

/// A number from the environment, which a long run sets.
fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// What came of the kills of one gateway.
struct Killed {
    starts: Vec<Duration>,
    writes: usize,
    keys: usize,
}

/// A gateway of its own is killed under load, and started again.
fn kill_under_load(rounds: u64, seed: u64) -> Killed {
    let mut stage = Stage::with(|config| config.settle("300ms"));
    weather(&stage.recorder);
    let counter = Arc::new(AtomicU64::new(1));
    let mut dice = Dice::new(seed);
    let mut starts = Vec::new();
    for round in 1..=rounds {
        let before = stage.recorder.count();
        // Hot keys in one half of the rounds, mostly new ones in the other.
        let keys = if round % 2 == 0 { 3 } else { 100_000 };
        let storm = Storm::start(stage.http(), 12, keys, &counter, seed * 1000 + round);
        let enough = before + 5 + usize::try_from(dice.below(40)).unwrap();
        eventually("some writes reach the resource", || {
            (stage.recorder.count() >= enough).then_some(())
        });
        stage.gateway.kill();
        storm.stop();
        let begin = Instant::now();
        stage.gateway.restart();
        let took = begin.elapsed();
        assert!(
            took < MOST,
            "seed {seed}, round {round}: it takes {took:?} to start"
        );
        starts.push(took);
        stage.assert_marks_hold();
    }
    let history = stage.recorder.history();
    history.assert_ordered();
    Killed {
        starts,
        writes: history.0.len(),
        keys: history.keys().len(),
    }
}

// D1
#[test]
fn a_gateway_that_is_killed_under_load_loses_no_mark_and_is_soon_back() {
    let (rounds, seed) = (number("FENCEGATE_KILLS", 150), number("FENCEGATE_SEED", 11));
    println!("seed {seed}: FENCEGATE_SEED={seed} FENCEGATE_KILLS={rounds} repeats it");
    // Two at once: each waits for its settle most of the time.
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| kill_under_load(rounds.div_ceil(2), seed));
        let other = kill_under_load(rounds / 2, seed + 1);
        (one.join().unwrap(), other)
    });
    let mut starts = [one.starts, other.starts].concat();
    starts.sort();
    println!(
        "{rounds} kills, {} writes at the resource, {} keys; ready again after {:?} (median), {:?} \
         (the slowest)",
        one.writes + other.writes,
        one.keys + other.keys,
        starts.get(starts.len() / 2).copied().unwrap_or_default(),
        starts.last().copied().unwrap_or_default(),
    );
}
