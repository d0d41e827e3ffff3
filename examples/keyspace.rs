//! A store with many keys: how fast they are loaded, how fast it opens, what it takes of memory and
//! disk, and how long an advance takes on hot, cold and new keys.
//!
//! `cargo run --release --example keyspace -- [--keys N] [--path DIR] [--seconds S] [--json FILE]`
//!
//! With `--forget ROUNDS` it shows instead that forgetting bounds the disk: each round has N fresh
//! keys, and those of the round before are forgotten.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use fencegate::store::{EmbeddedStore, Options};
use fencegate_filters::store::{Binding, Raise, Record, Reply, Store, StoreError};
use fencegate_filters::{Key, Token};
use serde_json::{Value, json};

type AnyError = Box<dyn std::error::Error>;

/// How many keys are loaded with one commit, and how many commits wait at once.
const AT_ONCE: u64 = 1000;
const COMMITS: usize = 8;
/// How many keys are looked at for forgetting at a time.
const LOOKED_AT: usize = 10_000;
/// At how many sizes on the way the store is measured.
const SIZES: u64 = 5;
const NAMESPACE: &str = "n";
/// So many keys are hot.
const HOT: u64 = 1000;

/// A key of 40 bytes.
fn key(number: u64) -> Key {
    Key::from_text(&format!("{NAMESPACE}/key-{:034}", scatter(number)))
}

/// Spreads numbers, so that keys do not come in the order in which they sort. Odd multiples of all
/// numbers are different.
fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn raise(number: u64, counter: u64) -> Option<Raise> {
    let record = Record {
        mark: Token::new(0, counter)?,
        holder: Binding::Unbound,
        draining: false,
        resets: 0,
    };
    let key = key(number);
    Some(Raise { key, record })
}

type Answer<T> = Receiver<Result<T, StoreError>>;

fn ask<T: Send + 'static>(call: impl FnOnce(Reply<T>)) -> Answer<T> {
    let (sender, receiver) = channel();
    // Whoever asked waits for it.
    call(Reply::new(move |result| drop(sender.send(result))));
    receiver
}

/// Loads the keys `from..to`.
fn load(store: &EmbeddedStore, from: u64, to: u64, counter: u64) -> Result<(), AnyError> {
    let mut waiting = std::collections::VecDeque::new();
    let mut first = from;
    while first < to || !waiting.is_empty() {
        if first < to && waiting.len() < COMMITS {
            let next = to.min(first + AT_ONCE);
            let raises = (first..next).filter_map(|number| raise(number, counter));
            let raises: Vec<_> = raises.collect();
            waiting.push_back(ask(|reply| store.commit(raises, reply)));
            first = next;
        } else if let Some(oldest) = waiting.pop_front() {
            oldest.recv()??;
        }
    }
    Ok(())
}

/// One advance after the other for a while, each behind a read of its mark; gives how long each
/// took, in microseconds, sorted.
fn advance(
    store: &EmbeddedStore,
    time: Duration,
    counter: &mut u64,
    mut next: impl FnMut(u64) -> u64,
) -> Result<Vec<u128>, AnyError> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        *counter += 1;
        let number = next(*counter);
        let Some(raise) = raise(number, *counter) else {
            continue;
        };
        let asked = Instant::now();
        ask(|reply| store.read(&raise.key, reply)).recv()??;
        ask(|reply| store.commit(vec![raise], reply)).recv()??;
        times.push(asked.elapsed().as_micros());
    }
    times.sort_unstable();
    Ok(times)
}

/// The same for reads alone.
fn read(
    store: &EmbeddedStore,
    time: Duration,
    mut next: impl FnMut() -> u64,
) -> Result<Vec<u128>, AnyError> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        let key = key(next());
        let asked = Instant::now();
        ask(|reply| store.read(&key, reply)).recv()??;
        times.push(asked.elapsed().as_micros());
    }
    times.sort_unstable();
    Ok(times)
}

fn quantiles(times: &[u128]) -> Value {
    let at = |percent: usize| times.get(times.len() * percent / 100).copied();
    json!({ "count": times.len(), "p50_us": at(50), "p99_us": at(99), "max_us": times.last() })
}

fn disk_bytes(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // A table that was merged meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        bytes += match metadata.is_dir() {
            true => disk_bytes(&entry.path())?,
            false => metadata.len(),
        };
    }
    Ok(bytes)
}

/// The resident memory of this process, in bytes; 0 where the system does not say.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

/// Numbers below `bound`, in an order that repeats; another `seed`, above 0, has another order.
fn draws(bound: u64, seed: u64) -> impl FnMut() -> u64 {
    let mut state = 0x2545_f491_4f6c_dd1d_u64.wrapping_mul(seed);
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % bound.max(1)
    }
}

fn measure(path: &Path, keys: u64, time: Duration) -> Result<Value, AnyError> {
    let mut out = io::stdout().lock();
    let store = EmbeddedStore::open(&Options::new(path))?;
    let (begin, mut sizes, mut loaded) = (Instant::now(), Vec::new(), 0);
    for step in 1..=SIZES {
        let next = keys * step / SIZES;
        load(&store, loaded, next, 1)?;
        loaded = next;
        let (bytes, seconds) = (disk_bytes(path)?, begin.elapsed().as_secs_f64());
        writeln!(
            out,
            "{loaded:>10} keys: {:>9.0} keys/s so far, {:>7.1} MiB on disk, {:>5.1} bytes a key, {:>6.1} MiB of memory",
            loaded as f64 / seconds,
            bytes as f64 / f64::from(1 << 20),
            bytes as f64 / loaded as f64,
            resident() as f64 / f64::from(1 << 20),
        )?;
        sizes.push(
            json!({ "keys": loaded, "seconds": seconds, "bytes": bytes, "resident": resident() }),
        );
    }
    store.close(true)?;
    drop(store);
    // The page cache has what was written a moment ago: an opening after a boot reads it.
    let begin = Instant::now();
    let store = EmbeddedStore::open(&Options::new(path))?;
    let opened = begin.elapsed();
    let (settled, opened_with) = (disk_bytes(path)?, resident());
    writeln!(
        out,
        "opened in {opened:.1?} with {} keys, {:.1} MiB of memory; {:.1} bytes a key on disk",
        store.len(),
        opened_with as f64 / f64::from(1 << 20),
        settled as f64 / keys as f64,
    )?;
    let mut counter = 1;
    // What was advanced is not cold any more.
    let (mut cold, mut reads) = (draws(keys, 1), draws(keys, 3));
    let kinds = [
        (
            "hot, advance",
            advance(&store, time, &mut counter, |count| count % HOT)?,
        ),
        (
            "cold, advance",
            advance(&store, time, &mut counter, |_| cold())?,
        ),
        (
            "new, advance",
            advance(&store, time, &mut counter, |count| keys + count)?,
        ),
        ("cold, read", read(&store, time, &mut reads)?),
    ];
    let mut latencies = serde_json::Map::new();
    for (name, times) in &kinds {
        let found = quantiles(times);
        writeln!(out, "{name:14} {found}")?;
        latencies.insert((*name).to_owned(), found);
    }
    let resident = resident();
    writeln!(
        out,
        "{:.1} MiB of memory at the end",
        resident as f64 / f64::from(1 << 20)
    )?;
    store.close(true)?;
    Ok(json!({
        "keys": keys,
        "sizes": sizes,
        "open_seconds": opened.as_secs_f64(),
        "resident_when_open": opened_with,
        "bytes_on_disk": settled,
        "resident_at_end": resident,
        "latencies": latencies,
    }))
}

/// Fresh keys in each round, and those of the round before are forgotten.
fn forget(path: &Path, keys: u64, rounds: u64) -> Result<Value, AnyError> {
    let mut out = io::stdout().lock();
    let store = Arc::new(EmbeddedStore::open(&Options::new(path))?);
    let namespaces = [NAMESPACE.to_owned()];
    ask(|reply| store.start_forgetting(&namespaces, Duration::ZERO, reply)).recv()??;
    let mut lines = Vec::new();
    for round in 0..rounds {
        let begin = Instant::now();
        load(&store, round * keys, (round + 1) * keys, round + 1)?;
        let loaded = begin.elapsed();
        let begin = Instant::now();
        let mut forgotten = 0;
        while store.len() > 0 && begin.elapsed() < Duration::from_secs(60) {
            ask(|reply| store.keep_uptime(reply)).recv()??;
            let mut after = None;
            loop {
                let look = |reply| store.idle_keys(NAMESPACE, after.as_ref(), LOOKED_AT, reply);
                let idle = ask(look).recv()??;
                forgotten += ask(|reply| store.forget(idle.keys, reply)).recv()??;
                after = idle.next;
                if after.is_none() {
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let bytes = disk_bytes(path)?;
        let floor = store.floor(NAMESPACE).map(|floor| floor.to_string());
        writeln!(
            out,
            "round {round}: {keys} keys loaded in {loaded:.1?}, {forgotten} forgotten in {:.1?}, {} keys left, floor {}, {:.1} MiB on disk",
            begin.elapsed(),
            store.len(),
            floor.as_deref().unwrap_or("none"),
            bytes as f64 / f64::from(1 << 20),
        )?;
        lines.push(
            json!({ "round": round, "forgotten": forgotten, "left": store.len(), "bytes": bytes }),
        );
    }
    store.close(true)?;
    Ok(json!({ "keys": keys, "rounds": lines }))
}

fn main() -> Result<(), AnyError> {
    let keys: u64 = argument("--keys").map_or(Ok(10_000_000), |text| text.parse())?;
    let seconds: f64 = argument("--seconds").map_or(Ok(5.0), |text| text.parse())?;
    let parent = argument("--path").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let directory = tempfile::tempdir_in(parent)?;
    let path = directory.path().join("store");
    let found = match argument("--forget") {
        Some(rounds) => forget(&path, keys, rounds.parse()?)?,
        None => measure(&path, keys, Duration::from_secs_f64(seconds))?,
    };
    if let Some(file) = argument("--json") {
        std::fs::write(file, serde_json::to_string_pretty(&found)?)?;
    }
    Ok(())
}
