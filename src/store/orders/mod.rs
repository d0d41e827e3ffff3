//! The store in all orders in which its threads may run: callers, the committer, the flusher, the
//! readers, a close and a failure.
//!
//! Whoever asked gets exactly one answer (a lost one leaves its caller waiting, which the checker
//! notices), and what was acknowledged is there after a kill or a loss of power at any point.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[cfg(feature = "faults")]
mod faults;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fencegate_filters::explore::explore;
use fencegate_filters::store::{Binding, Raise, Record, Reply, StoreError};
use fencegate_filters::{Key, Token};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::mpsc;
use shuttle::thread::{self, JoinHandle};

use super::engine::Engine;
use super::index::{Index, IndexChange, IndexError, IndexMark};
use super::opening::Settings;
use super::record::Kept;
use super::shared::{Chore, Tuning};
use super::sim_disk::{Faults, Random, SimDisk, open_index};

/// Memory for two keys, so that commits are flushed, and wait for room, all the time.
fn settings() -> Settings {
    Settings {
        path: "orders".into(),
        require_existing: false,
        segment_bytes: 16 << 10,
        readers: 2,
        tuning: Tuning {
            flush_segments: 1,
            memory_keys: 2,
            idle: Duration::from_millis(1),
            no_space_wait: Duration::from_millis(1),
            uptime_unit: Duration::from_secs(1),
        },
    }
}

/// An index whose reads panic, once that is asked for.
struct Trap(Arc<dyn Index>, Arc<AtomicBool>);

impl Index for Trap {
    fn mark(&self) -> Result<Option<IndexMark>, IndexError> {
        self.0.mark()
    }

    fn get(&self, key: &str) -> Result<Option<Kept>, IndexError> {
        if self.1.load(Ordering::SeqCst) {
            resume_unwind(Box::new("planned"));
        }
        self.0.get(key)
    }

    fn apply(&self, changes: &[IndexChange<'_>], mark: IndexMark) -> Result<(), IndexError> {
        self.0.apply(changes, mark)
    }

    fn vouch(&self) -> Result<(), IndexError> {
        self.0.vouch()
    }

    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Kept)>, IndexError> {
        self.0.range(prefix, after, limit)
    }
}

struct World {
    disk: SimDisk,
    /// Taken out to be dropped.
    engine: Mutex<Option<Arc<Engine>>>,
    acknowledged: Mutex<BTreeMap<String, u64>>,
    asked: AtomicUsize,
    answered: Arc<AtomicUsize>,
    /// Reads of the index panic.
    trap: Arc<AtomicBool>,
}

impl World {
    fn new() -> Arc<Self> {
        let (disk, trap) = (SimDisk::default(), Arc::new(AtomicBool::new(false)));
        let (of, planned) = (disk.clone(), Arc::clone(&trap));
        let index = move |fresh| {
            let index = open_index(&of, fresh);
            Ok(Arc::new(Trap(index, Arc::clone(&planned))) as Arc<dyn Index>)
        };
        let engine = Engine::open(Arc::new(disk.clone()), &index, &settings());
        Arc::new(Self {
            disk,
            engine: Mutex::new(engine.ok().map(Arc::new)),
            acknowledged: Mutex::default(),
            asked: AtomicUsize::new(0),
            answered: Arc::default(),
            trap,
        })
    }

    fn engine(&self) -> Arc<Engine> {
        let engine = self.engine.lock().unwrap();
        Arc::clone(engine.as_ref().expect("a store"))
    }

    fn spawn(self: &Arc<Self>, task: impl FnOnce(&Self) + Send + 'static) -> JoinHandle<()> {
        let world = Arc::clone(self);
        thread::spawn(move || task(&world))
    }

    fn reply<T: Send + 'static>(&self, sender: mpsc::Sender<Result<T, StoreError>>) -> Reply<T> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answered = Arc::clone(&self.answered);
        Reply::new(move |result| {
            answered.fetch_add(1, Ordering::SeqCst);
            let _ = sender.send(result);
        })
    }

    /// Makes one call, and waits for its answer.
    fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Engine, Reply<T>),
    ) -> Result<T, StoreError> {
        let (sender, receiver) = mpsc::channel();
        call(&self.engine(), self.reply(sender));
        receiver.recv().expect("an answer")
    }

    /// Commits, and waits for the answer.
    fn commit(&self, keys: &[&str], counter: u64) -> Result<(), StoreError> {
        let raises = keys.iter().map(|key| Raise {
            key: Key::from_text(key),
            record: Record {
                mark: Token::new(0, counter).unwrap(),
                holder: Binding::Unbound,
                draining: false,
                resets: 0,
            },
        });
        let (sender, receiver) = mpsc::channel();
        let reply = self.reply(sender);
        self.engine().shared.commit(raises.collect(), reply);
        let result = receiver.recv().expect("an answer");
        if result.is_ok() {
            let mut acknowledged = self.acknowledged.lock().unwrap();
            for key in keys {
                let mark = acknowledged.entry((*key).to_owned()).or_default();
                *mark = counter.max(*mark);
            }
        }
        result
    }

    /// Reads, and sees at least what was acknowledged before.
    fn read(&self, key: &str) -> Result<u64, StoreError> {
        let least = self.acknowledged.lock().unwrap().get(key).copied();
        let (sender, receiver) = mpsc::channel();
        let reply = self.reply(sender);
        self.engine().shared.read(&Key::from_text(key), reply);
        let record: Option<Record> = receiver.recv().expect("an answer")?;
        let mark = record.map_or_else(|| floor(&self.engine()), |record| record.mark.counter());
        assert!(mark >= least.unwrap_or(0), "{key} fell to {mark}");
        Ok(mark)
    }

    /// The power fails now: what was acknowledged before is on what is found.
    fn crash(&self) {
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        let mut random = Random::new(thread_rng().r#gen());
        let found = match thread_rng().gen_ratio(1, 2) {
            true => self.disk.after_power_loss(&mut random),
            false => self.disk.after_kill(),
        };
        Self::check(&found, &acknowledged);
    }

    fn check(found: &SimDisk, acknowledged: &BTreeMap<String, u64>) -> bool {
        let index = |fresh| Ok(open_index(found, fresh));
        let engine = Engine::open(Arc::new(found.clone()), &index, &settings());
        let engine = engine.unwrap_or_else(|error| panic!("refused: {error}"));
        let listed = engine.list("", None, usize::MAX).unwrap();
        let marks: BTreeMap<_, _> = listed
            .iter()
            .map(|(key, record)| (key.as_str(), record.mark.counter()))
            .collect();
        for (key, least) in acknowledged {
            let found = marks.get(key.as_str()).copied();
            let counts = found.unwrap_or_else(|| floor(&engine));
            assert!(counts >= *least, "{key}: {found:?} after a {least}");
        }
        engine.was_clean
    }

    fn all_answered(&self) {
        let (asked, answered) = (&self.asked, &self.answered);
        assert_eq!(
            asked.load(Ordering::SeqCst),
            answered.load(Ordering::SeqCst)
        );
    }

    /// Closes, and looks at what is left on the disk.
    fn finish(&self) {
        self.engine().close(true).unwrap();
        self.all_answered();
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        assert!(Self::check(&self.disk.after_kill(), &acknowledged));
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    threads.into_iter().for_each(|one| one.join().unwrap());
}

/// What stands for the mark of a key that has none.
fn floor(engine: &Engine) -> u64 {
    engine.shared.ages.floor("n").map_or(0, Token::counter)
}

fn callers_share_commits() {
    let world = World::new();
    let callers = [(&["n/a"][..], 1), (&["n/b", "n/a"], 2), (&["n/c"], 3)];
    let mut threads = Vec::new();
    for (keys, counter) in callers {
        threads.push(world.spawn(move |world| {
            world.commit(keys, counter).unwrap();
            world.commit(keys, counter + 3).unwrap();
            assert!(world.read(keys[0]).unwrap() >= counter + 3);
        }));
    }
    threads.push(world.spawn(|world| {
        world.read("n/b").unwrap();
        world.read("n/z").unwrap();
    }));
    threads.push(world.spawn(World::crash));
    join(threads);
    assert_eq!(world.engine().len(), 3);
    world.finish();
}

#[test]
fn callers_that_share_commits() {
    explore(callers_share_commits);
}

/// Nothing but a queue, its committer, and callers who come while it is at work.
fn a_queue_is_handed_over() {
    let world = World::new();
    let threads = [1, 2, 3].map(|counter| {
        world.spawn(move |world| {
            world.commit(&["n/a"], counter).unwrap();
            world.commit(&["n/a"], counter + 3).unwrap();
        })
    });
    join(threads.into());
    world.finish();
}

#[test]
fn a_queue_that_is_handed_over() {
    explore(a_queue_is_handed_over);
}

/// Whatever is in the index is old, and is forgotten.
fn forget(world: &World) {
    let engine = world.engine();
    engine.shared.ages.age("n", 3600);
    super::lock_mutex(&engine.shared.memory).wants_flush = true;
    engine.shared.flusher_wait.notify_one();
    let find = |engine: &Engine, reply| {
        engine.chore(Chore::FindIdle {
            namespace: "n".into(),
            after: None,
            limit: 9,
            reply,
        });
    };
    let idle = world.ask(find).unwrap().keys;
    world
        .ask(|engine, reply| engine.forget(idle, reply))
        .unwrap();
}

fn marks_are_forgotten_meanwhile(floor_before: bool) {
    let world = World::new();
    if floor_before {
        world.commit(&["n/z"], 100).unwrap();
        forget(&world);
    }
    let mut threads = vec![
        world.spawn(|world| {
            for counter in 1..=2 {
                world.commit(&["n/a"], counter).unwrap();
            }
        }),
        world.spawn(|world| {
            for _ in 0..2 {
                world.read("n/a").unwrap();
            }
        }),
        world.spawn(|world| (0..3).for_each(|_| forget(world))),
    ];
    if !floor_before {
        threads.push(world.spawn(World::crash));
    }
    join(threads);
    world.read("n/a").unwrap();
    let listed = world.engine().list("n/", None, 9).unwrap().len();
    assert_eq!(world.engine().len(), listed as u64);
    world.finish();
}

fn marks_are_forgotten() {
    marks_are_forgotten_meanwhile(false);
}

#[test]
fn marks_that_are_forgotten_while_callers_come() {
    explore(marks_are_forgotten);
}

/// What is forgotten raises no floor any more: nothing but the order of the queue is between a
/// record that comes late and the newest.
#[test]
fn marks_that_are_forgotten_below_a_floor_while_callers_come() {
    explore(|| marks_are_forgotten_meanwhile(true));
}

fn the_power_fails_while_one_is_forgotten() {
    let world = World::new();
    world.commit(&["n/a"], 1).unwrap();
    let threads = vec![world.spawn(World::crash), world.spawn(forget)];
    join(threads);
    assert_eq!(world.engine().len(), 0);
    world.finish();
}

#[test]
fn a_loss_of_power_while_a_mark_is_forgotten() {
    explore(the_power_fails_while_one_is_forgotten);
}

fn memory_is_full() {
    let world = World::new();
    world.disk.fill_index(true);
    let mut threads = Vec::new();
    for n in 0..3_u64 {
        threads.push(world.spawn(move |world| {
            for key in ["n/a", "n/b", "n/c", "n/d"] {
                let result = world.commit(&[&format!("{key}{n}")], n + 1);
                assert!(matches!(result, Ok(()) | Err(StoreError::NoSpace)));
            }
        }));
    }
    threads.push(world.spawn(|world| world.disk.fill_index(false)));
    join(threads);
    world.finish();
}

#[test]
fn memory_that_is_full_waits_for_room_or_says_so() {
    explore(memory_is_full);
}

fn a_close_races() {
    let world = World::new();
    let mut threads = Vec::new();
    for counter in [1, 2] {
        threads.push(world.spawn(move |world| {
            let first = world.commit(&["n/a", "n/b"], counter);
            let second = world.commit(&["n/a"], counter + 2);
            assert!(first.is_ok() || second.is_err(), "it is closed for good");
            let _ = world.read("n/c");
        }));
    }
    let closer = world.spawn(|world| {
        world.engine().close(true).unwrap();
        assert!(world.commit(&["n/a"], 9).is_err());
        assert!(world.engine().close(true).is_err(), "closed twice");
    });
    threads.push(closer);
    join(threads);
    world.all_answered();
    let acknowledged = world.acknowledged.lock().unwrap().clone();
    assert!(World::check(&world.disk.after_kill(), &acknowledged));
}

#[test]
fn a_close_that_races_with_callers() {
    explore(a_close_races);
}

fn a_sync_fails() {
    let world = World::new();
    let told = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&told);
    let hook = move |_| {
        counts.fetch_add(1, Ordering::SeqCst);
    };
    world.engine().shared.on_failure(Box::new(hook));
    let mut threads = Vec::new();
    for counter in [1, 2, 3] {
        threads.push(world.spawn(move |world| {
            let first = world.commit(&["n/a", "n/b"], counter);
            let second = world.commit(&["n/c"], counter);
            assert!(first.is_ok() || second.is_err(), "a failure is final");
            let _ = world.read("n/d");
        }));
    }
    threads.push(world.spawn(|world| {
        world.disk.set(Faults {
            failing_syncs: true,
            ..Faults::default()
        });
    }));
    join(threads);
    assert!(world.commit(&["n/a"], 9).is_err());
    assert!(world.engine().close(true).is_err());
    world.all_answered();
    assert_eq!(told.load(Ordering::SeqCst), 1);
    world.crash();
}

#[test]
fn a_sync_that_fails_answers_everybody() {
    explore(a_sync_fails);
}

/// Callers come and go until a thread of the store panics; then it has failed.
fn a_panic(world: &Arc<World>, provoke: impl FnOnce(&World)) {
    let (sender, failed) = mpsc::channel();
    let hook = move |_| {
        let _ = sender.send(());
    };
    world.engine().shared.on_failure(Box::new(hook));
    let mut threads = Vec::new();
    for key in ["n/a", "n/b", "n/d"] {
        threads.push(world.spawn(move |world| {
            let _ = world.commit(&[key], 1);
            let _ = world.read("n/c");
            let _ = world.commit(&[key], 2);
        }));
    }
    threads.push(world.spawn(|world| world.trap.store(true, Ordering::SeqCst)));
    join(threads);
    provoke(world);
    failed.recv().expect("a failure");
    assert!(world.commit(&["n/a"], 9).is_err());
    assert!(world.read("n/e").is_err());
    assert!(world.engine().close(true).is_err());
    world.all_answered();
    world.crash();
}

fn a_reader_panics() {
    let world = World::new();
    a_panic(&world, |world| drop(world.read("n/y")));
}

#[test]
fn a_reader_that_panics_fails_the_store() {
    explore(a_reader_panics);
}

fn the_committer_panics() {
    let world = World::new();
    let trap = Arc::clone(&world.trap);
    let hook = move |_, _| {
        if trap.load(Ordering::SeqCst) {
            resume_unwind(Box::new("planned"));
        }
    };
    assert!(world.engine().shared.on_batch.set(Box::new(hook)).is_ok());
    a_panic(&world, |world| drop(world.commit(&["n/y"], 1)));
}

#[test]
fn a_committer_that_panics_answers_everybody() {
    explore(the_committer_panics);
}

/// An answer may drop the last handle of the store, on one of the store's own threads.
fn an_answer_drops_the_store() {
    let world = World::new();
    let engine = world.engine.lock().unwrap().take().expect("a store");
    let (sender, receiver) = mpsc::channel();
    let last = Arc::clone(&engine);
    let reply = world.reply(sender);
    let commit = Reply::new(move |result| {
        drop(last);
        reply.send(result);
    });
    let raises = vec![Raise {
        key: Key::from_text("n/a"),
        record: Record {
            mark: Token::new(0, 1).unwrap(),
            holder: Binding::Unbound,
            draining: false,
            resets: 0,
        },
    }];
    engine.shared.commit(raises, commit);
    drop(engine);
    receiver.recv().expect("an answer").unwrap();
    world.all_answered();
}

#[test]
fn an_answer_that_drops_the_store() {
    explore(an_answer_drops_the_store);
}
