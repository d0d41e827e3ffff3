//! The gateway in a simulated world: one seed is one history of clients, networks, crashes and disks.
//!
//! | variable | what |
//! | --- | --- |
//! | `FENCEGATE_SEED` | the one seed to run, or the first of `FENCEGATE_SEEDS` |
//! | `FENCEGATE_SEEDS` | how many seeds to run; 300 by default |
//! | `FENCEGATE_SECONDS` | how long to go on with further seeds, instead of a number of them |
//! | `FENCEGATE_FAULT` | with the feature `faults`: what is broken on purpose |
//!
//! `FENCEGATE_SEED=123 cargo test --features sim --test simulation seeds -- --nocapture` replays one
//! seed, and prints its history.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod crowd;
mod dice;
#[cfg(feature = "faults")]
mod faults;
mod gateway;
mod holder;
mod http2;
mod nemesis;
mod regressions;
mod resource;
mod run;
mod scenario;
mod wire;
mod world;

use std::process::Command;
use std::time::{Duration, Instant};

use crowd::{Crowd, replay};

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")),
    )
}

/// The oracle finds nothing wrong with any seed.
#[test]
fn seeds() {
    let first = variable("FENCEGATE_SEED");
    let count = variable("FENCEGATE_SEEDS");
    if let (Some(seed), None) = (first, count) {
        return replay(seed);
    }
    let crowd = Crowd {
        first: first.unwrap_or(1),
        count: count.unwrap_or(300),
        time: variable("FENCEGATE_SECONDS").map(Duration::from_secs),
    };
    let began = Instant::now();
    let all = crowd.run();
    println!("{all} in {:.0} s", began.elapsed().as_secs_f64());
    if let Some((seed, wrong)) = all.wrong.first() {
        panic!("seed {seed}: {wrong}\n{}", crowd::how_to_replay(*seed));
    }
    // A simulation in which nothing gets through has nothing to say.
    assert!(
        all.good * 5 > all.answered && all.answered > all.seeds * 20,
        "{all}"
    );
    assert!(
        all.crashes > all.seeds && all.forgot * 5 > all.seeds,
        "{all}"
    );
    // Half of the clients by the dice, and seeds that have none of one kind or the other.
    let over_http1 = all.answered - all.over_http2;
    assert!(
        all.over_http2 > all.seeds * 10 && over_http1 > all.seeds * 10,
        "{all}"
    );
}

/// The same seed is the same history, in this process and in another.
#[test]
fn a_seed_is_one_history() {
    let rounds = variable("FENCEGATE_SEEDS").unwrap_or(1);
    for seed in (0..rounds).flat_map(|_| [7, 8, 9]) {
        let here = run::run(seed);
        let again = run::run(seed);
        let differs = here
            .lines
            .iter()
            .zip(&again.lines)
            .find(|pair| pair.0 != pair.1);
        assert_eq!(differs, None, "seed {seed} twice in one process");
        assert_eq!(here.lines.len(), again.lines.len(), "seed {seed}");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "seeds", "--nocapture"])
            .env("FENCEGATE_SEED", seed.to_string())
            .env_remove("FENCEGATE_SEEDS")
            .output()
            .unwrap();
        let elsewhere = String::from_utf8_lossy(&output.stdout).into_owned();
        let hash = format!("hash {:016x}", here.hash);
        println!("seed {seed}: {hash}");
        assert!(
            elsewhere.contains(&hash),
            "{hash} in another process:\n{elsewhere}"
        );
    }
}
