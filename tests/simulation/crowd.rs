//! Many seeds, on all cores.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::run::{Ran, run};

/// Longer than any seed takes, on a machine however busy: what takes longer hangs.
const HANGS: Duration = Duration::from_secs(120);

pub(crate) struct Crowd {
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// Instead of a count: how long.
    pub(crate) time: Option<Duration>,
}

/// What came of all of them.
#[derive(Default)]
pub(crate) struct All {
    pub(crate) seeds: u64,
    pub(crate) last: u64,
    pub(crate) simulated: Duration,
    pub(crate) reached: u64,
    pub(crate) answered: u64,
    pub(crate) good: u64,
    pub(crate) over_http2: u64,
    pub(crate) crashes: u64,
    /// In how many of them marks were forgotten.
    pub(crate) forgot: u64,
    pub(crate) wrong: Vec<(u64, String)>,
}

impl fmt::Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds up to {}: {:.2} h simulated, {} requests at the resource, {} answers, {} of them over HTTP/2 and {} good, \
             {} ends of the gateway, marks forgotten in {} of the seeds, {} seeds wrong",
            self.seeds,
            self.last,
            self.simulated.as_secs_f64() / 3600.0,
            self.reached,
            self.answered,
            self.over_http2,
            self.good,
            self.crashes,
            self.forgot,
            self.wrong.len()
        )
    }
}

impl All {
    fn add(&mut self, seed: u64, ran: Ran) {
        self.seeds += 1;
        self.last = self.last.max(seed);
        self.simulated += ran.simulated;
        self.reached += ran.reached as u64;
        self.answered += ran.answered as u64;
        self.good += ran.good as u64;
        self.over_http2 += ran.over_http2 as u64;
        self.crashes += ran.crashes;
        self.forgot += u64::from(ran.forgot);
        if !ran.wrong.is_empty() {
            println!("seed {seed} is wrong: {}", ran.wrong.join("\n"));
            self.wrong.push((seed, ran.wrong.join("\n")));
        }
    }
}

impl Crowd {
    /// Runs seeds until they are through, the time is over, or one is wrong.
    pub(crate) fn run(&self) -> All {
        println!("seeds from {}", self.first);
        let next = AtomicU64::new(self.first);
        let stop = AtomicBool::new(false);
        let end = self.time.map(|time| Instant::now() + time);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (sender, receiver) = mpsc::channel();
        let mut all = All::default();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (sender, next, stop) = (sender.clone(), &next, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let seed = next.fetch_add(1, Ordering::SeqCst);
                        let over = match end {
                            Some(end) => Instant::now() >= end,
                            None => seed >= self.first + self.count,
                        };
                        if over {
                            return;
                        }
                        let _ = sender.send((seed, None));
                        let _ = sender.send((seed, Some(run(seed))));
                    }
                });
            }
            drop(sender);
            let mut running: Vec<u64> = Vec::new();
            loop {
                match receiver.recv_timeout(HANGS) {
                    Ok((seed, None)) => running.push(seed),
                    Ok((seed, Some(ran))) => {
                        running.retain(|other| *other != seed);
                        all.add(seed, ran);
                        if !all.wrong.is_empty() {
                            stop.store(true, Ordering::SeqCst);
                        }
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        // The scope would wait for ever for those that hang.
                        println!("seeds {running:?} hang");
                        std::process::exit(101);
                    }
                }
            }
        });
        all
    }
}

/// Runs one seed, prints its history, and fails where it is wrong.
pub(crate) fn replay(seed: u64) {
    let ran = run(seed);
    for line in &ran.lines {
        println!("{line}");
    }
    println!(
        "seed {seed}: hash {:016x}, {:.1} s simulated, {} requests at the resource, {} answers, {} good",
        ran.hash,
        ran.simulated.as_secs_f64(),
        ran.reached,
        ran.answered,
        ran.good
    );
    assert!(
        ran.wrong.is_empty(),
        "seed {seed}: {}\n{}",
        ran.wrong.join("\n"),
        how_to_replay(seed)
    );
}

pub(crate) fn how_to_replay(seed: u64) -> String {
    let fault = std::env::var("FENCEGATE_FAULT")
        .map_or(String::new(), |fault| format!("FENCEGATE_FAULT={fault} "));
    let features = if cfg!(feature = "faults") {
        "sim,faults"
    } else {
        "sim"
    };
    format!(
        "replay it with: {fault}FENCEGATE_SEED={seed} cargo test --features {features} \
         --test simulation seeds -- --nocapture"
    )
}
