//! Acknowledged advances per second of the embedded store, beside an ideal group-commit log on the
//! same disk in the same run.
//!
//! `cargo run --release --example store_bench -- [--seconds S] [--rounds N] [--path DIR]`
//!
//! With `--turn store` or `--turn ideal` it is one turn of `benches/advances.py`: `--keys hot` or
//! `random`, `--advancers N`, and with `--preload N` random keys are among so many that the store
//! has already. It prints one line of JSON.
//!
//! The ideal log is the least that a durable advance can cost: the same record bytes, appended by
//! one committer to a file that was zeroed in advance, one sync for all that is pending, an answer
//! to each. Store and ideal take turns; the medians of the rounds are compared.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fencegate::store::{EmbeddedStore, Options};
use fencegate_filters::store::{Binding, Raise, Record, Reply, Store};
use fencegate_filters::{Key, Token};

type AnyError = Box<dyn std::error::Error>;

const HOT_KEYS: u64 = 1000;
/// How many keys are loaded with one commit.
const LOADED_AT_ONCE: usize = 1000;
const ADVANCERS: [usize; 4] = [1, 64, 512, 1000];

/// What both sides do: make a raise durable, then answer.
trait Advance: Sync {
    fn advance(&self, raise: Raise, reply: Reply<()>);
}

/// Reads the mark first, where the key is new, as a lane does.
struct Fenced<'a>(&'a Arc<EmbeddedStore>, bool);

impl Advance for Fenced<'_> {
    fn advance(&self, raise: Raise, reply: Reply<()>) {
        if !self.1 {
            return self.0.commit(vec![raise], reply);
        }
        let store = Arc::clone(self.0);
        let key = raise.key.clone();
        let read = Reply::new(move |found: Result<Option<Record>, _>| match found {
            Ok(_) => store.commit(vec![raise], reply),
            Err(error) => reply.send(Err(error)),
        });
        self.0.read(&key, read);
    }
}

/// What waits for the next sync, and whether to stop.
type Pending = (Vec<(Raise, Reply<()>)>, bool);

/// The ideal: pending raises, and one thread that writes and syncs them.
#[derive(Default)]
struct Ideal {
    pending: Mutex<Pending>,
    wait: Condvar,
    syncs: Mutex<u64>,
}

impl Advance for Ideal {
    fn advance(&self, raise: Raise, reply: Reply<()>) {
        if let Ok(mut pending) = self.pending.lock() {
            pending.0.push((raise, reply));
            self.wait.notify_one();
        }
    }
}

impl Ideal {
    fn synced(&self) -> u64 {
        self.syncs.lock().map_or(0, |syncs| *syncs)
    }

    fn stop(&self) {
        if let Ok(mut pending) = self.pending.lock() {
            pending.1 = true;
        }
        self.wait.notify_one();
    }

    fn run(&self, path: &Path) -> io::Result<()> {
        const BYTES: usize = 16 << 20;
        let file = File::create(path)?;
        file.write_all_at(&vec![0; BYTES], 0)?;
        file.sync_all()?;
        let (mut batch, mut buffer, mut position) = (Vec::new(), Vec::new(), 0);
        loop {
            {
                let Ok(mut pending) = self.pending.lock() else {
                    return Ok(());
                };
                while pending.0.is_empty() {
                    if pending.1 {
                        return Ok(());
                    }
                    match self.wait.wait(pending) {
                        Ok(guard) => pending = guard,
                        Err(_) => return Ok(()),
                    }
                }
                std::mem::swap(&mut pending.0, &mut batch);
            }
            buffer.clear();
            for (raise, _) in &batch {
                let key = raise.key.as_str();
                buffer.extend_from_slice(&(key.len() as u64).to_le_bytes()[..2]);
                buffer.extend_from_slice(key.as_bytes());
                buffer.extend_from_slice(&raise.record.mark.epoch().to_le_bytes());
                buffer.extend_from_slice(&raise.record.mark.counter().to_le_bytes());
                buffer.push(0);
            }
            if position + buffer.len() > BYTES {
                position = 0;
            }
            file.write_all_at(&buffer, position as u64)?;
            file.sync_data()?;
            position += buffer.len();
            if let Ok(mut syncs) = self.syncs.lock() {
                *syncs += 1;
            }
            for (_, reply) in batch.drain(..) {
                reply.send(Ok(()));
            }
        }
    }
}

/// Which keys are advanced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    Hot,
    /// No key comes twice.
    New,
    /// Among so many.
    Random(u64),
}

/// What came of a turn.
struct Turn {
    /// Acknowledged advances.
    advances: u64,
    seconds: f64,
    /// How long each took, in microseconds.
    times: Vec<u32>,
}

impl Turn {
    fn per_second(&self) -> f64 {
        self.advances as f64 / self.seconds
    }

    fn quantile(&mut self, percent: usize) -> u32 {
        self.times.sort_unstable();
        let place = self.times.len() * percent / 100;
        self.times.get(place).copied().unwrap_or_default()
    }
}

fn random_key(number: u64) -> Key {
    Key::from_text(&format!("objects/random-key-{number:021}"))
}

fn record(counter: u64) -> Option<Record> {
    Some(Record {
        mark: Token::new(0, counter)?,
        holder: Binding::Unbound,
        draining: false,
        resets: 0,
    })
}

/// Odd multiples wander through all numbers: none comes twice.
fn wander(counter: u64) -> u64 {
    counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Keeps `advancers` advances in flight for a while.
fn drive(side: &dyn Advance, keys: Keys, advancers: usize, time: Duration, base: u64) -> Turn {
    let done = Arc::new((Mutex::new(Vec::<usize>::new()), Condvar::new()));
    let mut began = vec![Instant::now(); advancers];
    let hot: Vec<Key> = (0..HOT_KEYS)
        .map(|n| Key::from_text(&format!("objects/hot-key-of-forty-bytes-{n:09}")))
        .collect();
    let mut counter = base;
    let mut submit = |advancer: usize| {
        counter += 1;
        let key = match keys {
            Keys::Hot => hot.get((counter % HOT_KEYS) as usize).cloned(),
            Keys::New => Some(random_key(wander(counter))),
            Keys::Random(among) => Some(random_key((wander(counter) >> 20) % among)),
        };
        let (Some(key), Some(record)) = (key, record(counter)) else {
            return;
        };
        let done = Arc::clone(&done);
        let reply = Reply::new(move |result| {
            if result.is_ok()
                && let Ok(mut list) = done.0.lock()
            {
                list.push(advancer);
                if list.len() == 1 {
                    done.1.notify_one();
                }
            }
        });
        side.advance(Raise { key, record }, reply);
    };
    for advancer in 0..advancers {
        submit(advancer);
    }
    let begin = Instant::now();
    let mut turn = Turn {
        advances: 0,
        seconds: time.as_secs_f64(),
        times: Vec::new(),
    };
    let mut batch = Vec::new();
    let mut in_flight = advancers;
    while in_flight > 0 {
        {
            let Ok(mut list) = done.0.lock() else { break };
            while list.is_empty() {
                match done.1.wait(list) {
                    Ok(guard) => list = guard,
                    Err(_) => return turn,
                }
            }
            std::mem::swap(&mut *list, &mut batch);
        }
        let now = Instant::now();
        let running = now.duration_since(begin) < time;
        for advancer in batch.drain(..) {
            if running {
                turn.advances += 1;
                if let Some(began) = began.get_mut(advancer) {
                    let took = now.duration_since(std::mem::replace(began, now));
                    turn.times
                        .push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
                }
                submit(advancer);
            } else {
                in_flight -= 1;
            }
        }
    }
    turn
}

/// Loads keys until there are so many.
fn preload(store: &EmbeddedStore, keys: u64) -> Result<(), AnyError> {
    let mut missing = store.len()..keys;
    loop {
        let some: Vec<u64> = missing.by_ref().take(LOADED_AT_ONCE).collect();
        if some.is_empty() {
            return Ok(());
        }
        let some = some.into_iter();
        let raises = some.filter_map(|number| {
            let (key, record) = (random_key(number), record(1)?);
            Some(Raise { key, record })
        });
        let (sender, receiver) = std::sync::mpsc::channel();
        let reply = Reply::new(move |result| drop(sender.send(result)));
        store.commit(raises.collect(), reply);
        receiver.recv()??;
    }
}

/// One turn, for `benches/advances.py`.
fn one_turn(side: &str, path: &Path, time: Duration) -> Result<(), AnyError> {
    let advancers = argument("--advancers").map_or(Ok(64), |text| text.parse())?;
    let among: u64 = argument("--preload").map_or(Ok(0), |text| text.parse())?;
    let keys = match (argument("--keys").as_deref(), among) {
        (Some("random"), 0) => Keys::New,
        (Some("random"), among) => Keys::Random(among),
        _ => Keys::Hot,
    };
    // Each turn is a process of its own, and its marks are above those of the one before.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let base = u64::try_from(now.as_micros())?;
    let (mut turn, syncs, written) = match side {
        "store" => {
            let store = Arc::new(EmbeddedStore::open(&Options::new(path.join("store")))?);
            preload(&store, among)?;
            let syncs = Arc::new(AtomicU64::new(0));
            let batches = Arc::clone(&syncs);
            store.on_batch(move |_, _| {
                batches.fetch_add(1, Ordering::Relaxed);
            });
            let before = bytes_written(path);
            let turn = drive(
                &Fenced(&store, keys != Keys::Hot),
                keys,
                advancers,
                time,
                base,
            );
            let written = bytes_written(path) - before;
            store.close(true)?;
            (turn, syncs.load(Ordering::Relaxed), written)
        }
        "ideal" => {
            let (ideal, log) = (Ideal::default(), path.join("ideal"));
            std::thread::scope(|scope| -> Result<_, AnyError> {
                let thread = scope.spawn(|| ideal.run(&log));
                // The file is zeroed first, which is no part of the turn.
                drop(drive(&ideal, keys, 1, Duration::from_millis(1), base));
                let (syncs, before) = (ideal.synced(), bytes_written(path));
                let turn = drive(&ideal, keys, advancers, time, base);
                let written = bytes_written(path) - before;
                ideal.stop();
                thread.join().map_err(|_| "the ideal log panicked")??;
                Ok((turn, ideal.synced() - syncs, written))
            })?
        }
        other => return Err(format!("--turn {other}: it is store or ideal").into()),
    };
    let line = serde_json::json!({
        "advances": turn.advances,
        "seconds": turn.seconds,
        "p50_us": turn.quantile(50),
        "p99_us": turn.quantile(99),
        "syncs": syncs,
        "bytes": written,
    });
    writeln!(io::stdout().lock(), "{line}")?;
    Ok(())
}

/// What was written to the disk under `path`, by whomever; 0 where the system does not say. What it
/// counts for one process is of no use: it takes a page that is many blocks for written whole.
fn bytes_written(path: &Path) -> u64 {
    let Ok(metadata) = std::fs::metadata(path) else {
        return 0;
    };
    let device = metadata.dev();
    let major = (device >> 8 & 0xfff) | (device >> 32 & !0xfff);
    let minor = (device & 0xff) | (device >> 12 & !0xff);
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"));
    let stat = stat.unwrap_or_default();
    // In sectors, which are of 512 bytes whatever the disk's are.
    let sectors: Option<u64> = stat
        .split_whitespace()
        .nth(6)
        .and_then(|one| one.parse().ok());
    sectors.unwrap_or_default() * 512
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn main() -> Result<(), AnyError> {
    let seconds: f64 = argument("--seconds").map_or(Ok(1.0), |text| text.parse())?;
    let rounds: u64 = argument("--rounds").map_or(Ok(3), |text| text.parse())?;
    let parent = argument("--path").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let time = Duration::from_secs_f64(seconds);
    if let Some(side) = argument("--turn") {
        return one_turn(&side, &parent, time);
    }
    let directory = tempfile::tempdir_in(parent)?;
    let store = Arc::new(EmbeddedStore::open(&Options::new(
        directory.path().join("store"),
    ))?);
    let ideal = Ideal::default();
    let mut out = io::stdout().lock();
    let log = directory.path().join("ideal");
    std::thread::scope(|scope| -> Result<(), AnyError> {
        let thread = scope.spawn(|| ideal.run(&log));
        writeln!(
            out,
            "keys    advancers      store/s      ideal/s   ratio   ideal syncs/s"
        )?;
        let mut base = 0;
        for (keys, name) in [(Keys::Hot, "hot"), (Keys::New, "random")] {
            for advancers in ADVANCERS {
                let (mut ours, mut theirs, mut syncs) = (Vec::new(), Vec::new(), 0);
                for _ in 0..rounds {
                    base += 1 << 32;
                    let fenced = Fenced(&store, keys != Keys::Hot);
                    ours.push(drive(&fenced, keys, advancers, time, base).per_second());
                    let before = ideal.synced();
                    theirs.push(drive(&ideal, keys, advancers, time, base).per_second());
                    syncs += ideal.synced() - before;
                }
                let (ours, theirs) = (median(ours), median(theirs));
                let syncs = syncs as f64 / (seconds * rounds as f64);
                writeln!(
                    out,
                    "{name:6} {advancers:10} {ours:12.0} {theirs:12.0} {:7.2} {syncs:15.0}",
                    ours / theirs
                )?;
            }
        }
        ideal.stop();
        thread.join().map_err(|_| "the ideal log panicked")??;
        Ok(())
    })?;
    let begin = Instant::now();
    let keys = store.len();
    writeln!(out, "{keys} keys, counted in {:.1?}", begin.elapsed())?;
    store.close(true)?;
    drop(store);
    let begin = Instant::now();
    let store = EmbeddedStore::open(&Options::new(directory.path().join("store")))?;
    writeln!(
        out,
        "opened again in {:.1?}, clean: {}",
        begin.elapsed(),
        store.was_clean()
    )?;
    store.close(true)?;
    Ok(())
}
