//! Acknowledged advances per second of the embedded store, beside an ideal group-commit log on the
//! same disk in the same run.
//!
//! `cargo run --release --example store_bench -- [--seconds S] [--rounds N] [--path DIR]`
//!
//! The ideal log is the least that a durable advance can cost: the same record bytes, appended by
//! one committer to a file that was zeroed in advance, one sync for all that is pending, an answer
//! to each. Store and ideal take turns; the medians of the rounds are compared.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fencegate::store::{EmbeddedStore, Options};
use fencegate_filters::store::{Binding, Raise, Record, Reply, Store};
use fencegate_filters::{Key, Token};

type AnyError = Box<dyn std::error::Error>;

const HOT_KEYS: u64 = 1000;
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
    Random,
}

/// Keeps `advancers` advances in flight for a while; gives acknowledged ones per second.
fn drive(side: &dyn Advance, keys: Keys, advancers: usize, time: Duration, base: u64) -> f64 {
    let done = Arc::new((Mutex::new(Vec::<usize>::new()), Condvar::new()));
    let hot: Vec<Key> = (0..HOT_KEYS)
        .map(|n| Key::from_text(&format!("objects/hot-key-of-forty-bytes-{n:09}")))
        .collect();
    let mut counter = base;
    let mut submit = |advancer: usize| {
        counter += 1;
        let key = match keys {
            Keys::Hot => hot.get((counter % HOT_KEYS) as usize).cloned(),
            // Odd multiples wander through all numbers: no key comes twice.
            Keys::Random => Some(Key::from_text(&format!(
                "objects/random-key-{:021}",
                counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ))),
        };
        let (Some(key), Some(mark)) = (key, Token::new(0, counter)) else {
            return;
        };
        let record = Record {
            mark,
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
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
    let (begin, mut acknowledged, mut batch) = (Instant::now(), 0_u64, Vec::new());
    let mut in_flight = advancers;
    while in_flight > 0 {
        {
            let Ok(mut list) = done.0.lock() else { break };
            while list.is_empty() {
                match done.1.wait(list) {
                    Ok(guard) => list = guard,
                    Err(_) => return 0.0,
                }
            }
            std::mem::swap(&mut *list, &mut batch);
        }
        let running = begin.elapsed() < time;
        for advancer in batch.drain(..) {
            if running {
                acknowledged += 1;
                submit(advancer);
            } else {
                in_flight -= 1;
            }
        }
    }
    acknowledged as f64 / time.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn main() -> Result<(), AnyError> {
    let seconds: f64 = argument("--seconds").map_or(Ok(1.0), |text| text.parse())?;
    let rounds: u64 = argument("--rounds").map_or(Ok(3), |text| text.parse())?;
    let parent = argument("--path").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let directory = tempfile::tempdir_in(parent)?;
    let time = Duration::from_secs_f64(seconds);
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
        for (keys, name) in [(Keys::Hot, "hot"), (Keys::Random, "random")] {
            for advancers in ADVANCERS {
                let (mut ours, mut theirs, mut syncs) = (Vec::new(), Vec::new(), 0);
                for _ in 0..rounds {
                    base += 1 << 32;
                    let fenced = Fenced(&store, keys == Keys::Random);
                    ours.push(drive(&fenced, keys, advancers, time, base));
                    let before = ideal.syncs.lock().map_or(0, |syncs| *syncs);
                    theirs.push(drive(&ideal, keys, advancers, time, base));
                    syncs += ideal.syncs.lock().map_or(0, |syncs| *syncs) - before;
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
        if let Ok(mut pending) = ideal.pending.lock() {
            pending.1 = true;
        }
        ideal.wait.notify_one();
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
