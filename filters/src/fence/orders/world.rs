//! What a scenario stands on: a store that answers from threads of its own, and a resource that
//! checks what reaches it.
//!
//! Their own locks are plain ones. Nothing switches to another thread while one is held, so they
//! add no order that the fence could not meet.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};

use crate::fence::{Admission, Claim, Cut, Drain, Fence, Handle, InFlight, Permit, Uploads};
use crate::refusal::{Outcome, Reason, Refusal};
use crate::store::{Binding, Raise, Record, Reply, Store, StoreError};
use crate::sync::{advance, now, restart};
use crate::{Key, Token};

pub(super) const SETTLE: Duration = Duration::from_secs(15);
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn t(counter: u64) -> Token {
    Token::new(0, counter).unwrap_or(Token::NONE)
}

pub(super) fn k(key: &str) -> Key {
    Key::new("n", key)
}

/// Lets others run for a while.
pub(super) fn pause(turns: usize) {
    (0..turns).for_each(|_| thread::yield_now());
}

/// A claim to write these keys.
pub(super) fn claim(keys: &[&str], counter: u64) -> Claim {
    let mut claim = Claim::write(k(keys[0]), t(counter));
    claim.keys = keys.iter().map(|key| k(key)).collect();
    let ask = claim.asks[0].clone();
    claim.asks = keys.iter().map(|_| ask.clone()).collect();
    claim.drain = Drain {
        timeout: TIMEOUT,
        settle: SETTLE,
        ..Drain::default()
    };
    claim
}

/// Keeps marks. Reads and commits are looked at, and answered, each by a thread of its own, so
/// that they end in any order, long after they were asked for.
#[derive(Default)]
pub(super) struct Keeper {
    marks: Mutex<BTreeMap<Key, Record>>,
    /// What stands for a mark that is gone.
    floor: Mutex<Option<Token>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Which commits fail, counted from 0, and which reads.
    failing_commits: BTreeSet<usize>,
    failing_reads: BTreeSet<usize>,
    commits: AtomicUsize,
    reads: AtomicUsize,
    /// Answers within the call.
    at_once: bool,
}

impl Keeper {
    pub(super) fn mark(&self, key: &Key) -> Token {
        let marks = self.marks.lock().unwrap();
        marks.get(key).map_or(Token::NONE, |record| record.mark)
    }

    /// Forgets a mark below a floor; `false` where there is none by then.
    fn forget(&self, key: &Key) -> bool {
        let Some(floor) = self.mark(key).counter().checked_add(1).map(t) else {
            return false;
        };
        let higher = (*self.floor.lock().unwrap()).max(Some(floor));
        *self.floor.lock().unwrap() = higher;
        pause(2);
        let mut marks = self.marks.lock().unwrap();
        let below = |record: &Record| Some(record.mark) < higher;
        marks.get(key).is_some_and(below) && marks.remove(key).is_some()
    }

    /// How many keys have a mark.
    pub(super) fn len(&self) -> u64 {
        self.marks.lock().unwrap().len() as u64
    }

    fn keep(&self, raises: &[Raise]) {
        let mut marks = self.marks.lock().unwrap();
        for raise in raises {
            match marks.get_mut(&raise.key) {
                Some(record) => record.merge(raise.record.clone()),
                None => drop(marks.insert(raise.key.clone(), raise.record.clone())),
            }
        }
    }

    fn answer(&self, answer: impl FnOnce() + Send + 'static) {
        if self.at_once {
            return answer();
        }
        let thread = thread::spawn(answer);
        self.threads.lock().unwrap().push(thread);
    }

    /// Waits until all that was asked is answered.
    fn finish(&self) {
        loop {
            let next = self.threads.lock().unwrap().pop();
            let Some(thread) = next else { return };
            thread.join().unwrap();
        }
    }
}

/// A `Keeper` that its own threads can hold.
pub(super) struct Kept(pub(super) Arc<Keeper>);

impl Store for Kept {
    fn read(&self, key: &Key, reply: Reply<Option<Record>>) {
        let (keeper, key) = (Arc::clone(&self.0), key.clone());
        let number = keeper.reads.fetch_add(1, Ordering::SeqCst);
        self.0.answer(move || {
            if keeper.failing_reads.contains(&number) {
                return reply.send(Err(StoreError::Unavailable("planned".into())));
            }
            let found = keeper.marks.lock().unwrap().get(&key).cloned();
            // Between the look at the disk and the answer anything may happen.
            if !keeper.at_once {
                pause(4);
            }
            reply.send(Ok(found));
        });
    }

    fn commit(&self, raises: Vec<Raise>, reply: Reply<()>) {
        let keeper = Arc::clone(&self.0);
        let number = keeper.commits.fetch_add(1, Ordering::SeqCst);
        self.0.answer(move || {
            if keeper.failing_commits.contains(&number) {
                return reply.send(Err(StoreError::NoSpace));
            }
            keeper.keep(&raises);
            reply.send(Ok(()));
        });
    }

    fn list(
        &self,
        prefix: &str,
        _: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let marks = self.0.marks.lock().unwrap();
        let found = marks
            .iter()
            .filter(|one| one.0.as_str().starts_with(prefix));
        Ok(found
            .take(limit)
            .map(|one| (one.0.clone(), one.1.clone()))
            .collect())
    }

    fn floor(&self, _: &str) -> Option<Token> {
        *self.0.floor.lock().unwrap()
    }

    fn len(&self) -> u64 {
        self.0.len()
    }
}

/// What the resource has seen of one key.
#[derive(Default)]
struct Seen {
    running: Vec<Token>,
    highest: Option<Token>,
    /// Writes whose outcome is unknown, and until when the upstream may work on them.
    unsettled: Vec<(Token, Instant)>,
}

/// The fence, the store under it, and the resource behind it.
pub(super) struct World {
    pub(super) fence: Fence,
    pub(super) keeper: Arc<Keeper>,
    resource: Mutex<BTreeMap<Key, Seen>>,
    /// The newest token of each key that was let in.
    admitted: Mutex<BTreeMap<Key, Token>>,
    /// Until when, after a crash, advances are held on keys that have a mark, and every token on
    /// those that were draining.
    held: Mutex<Option<(Instant, BTreeMap<Key, Record>)>>,
    /// Requests that reached the resource.
    pub(super) sent: AtomicUsize,
    /// Threads that have not ended.
    live: AtomicUsize,
}

/// How a world begins.
#[derive(Default)]
pub(super) struct Start<'a> {
    /// Marks that are on disk: key, token, draining.
    pub(super) marks: &'a [(&'a str, u64, bool)],
    pub(super) failing_commits: &'a [usize],
    pub(super) failing_reads: &'a [usize],
    /// The store answers within the call: fewer threads, for where all orders are explored.
    pub(super) at_once: bool,
}

impl World {
    pub(super) fn new(start: &Start<'_>) -> Arc<Self> {
        restart();
        let keeper = Arc::new(Keeper {
            failing_commits: start.failing_commits.iter().copied().collect(),
            failing_reads: start.failing_reads.iter().copied().collect(),
            at_once: start.at_once,
            ..Keeper::default()
        });
        for &(key, counter, draining) in start.marks {
            let record = Record {
                mark: t(counter),
                holder: Binding::Unbound,
                draining,
                resets: 0,
            };
            let key = k(key);
            keeper.keep(&[Raise { key, record }]);
        }
        let store = Arc::new(Kept(Arc::clone(&keeper)));
        Arc::new(Self {
            fence: Fence::new(store, 1 << 20),
            keeper,
            resource: Mutex::default(),
            admitted: Mutex::default(),
            held: Mutex::default(),
            sent: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
        })
    }

    /// Runs `task` in a thread of its own.
    pub(super) fn spawn(
        self: &Arc<Self>,
        task: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> JoinHandle<()> {
        let world = Arc::clone(self);
        world.live.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            task(&world);
            world.live.fetch_sub(1, Ordering::SeqCst);
        })
    }

    /// Lets time pass until all threads have ended, slowly for those who can run.
    pub(super) fn let_time_pass(&self, step: Duration) {
        for turn in 1_usize.. {
            if self.live.load(Ordering::SeqCst) == 0 {
                return;
            }
            if turn.is_multiple_of(16) {
                advance(step);
            }
            thread::yield_now();
        }
    }

    /// Waits for admission. Whatever was let in before a look began is not newer than what that
    /// look lets in.
    pub(super) fn admit(&self, claim: Claim) -> Result<Admission, Refusal> {
        let asked = claim.clone();
        let mut admit = pin!(self.fence.admit(claim));
        block_on(std::future::poll_fn(|cx| {
            let before = self.admitted.lock().unwrap().clone();
            let looked = ready!(admit.as_mut().poll(cx));
            if looked.is_ok() {
                let mut admitted = self.admitted.lock().unwrap();
                for (key, ask) in asked.keys.iter().zip(&asked.asks) {
                    let newest = before.get(key).copied();
                    assert!(
                        newest <= Some(ask.token),
                        "G1: {key} {} is let in after {newest:?}",
                        ask.token
                    );
                    let newest = admitted.entry(key.clone()).or_insert(ask.token);
                    *newest = ask.token.max(*newest);
                }
            }
            Poll::Ready(looked)
        }))
    }

    /// Forgets the mark of a key, unless it is in use.
    pub(super) fn forget(&self, key: &str) {
        let aside = self.fence.set_aside([k(key)]);
        pause(2);
        let gone = aside.keys().filter(|key| self.keeper.forget(key)).count();
        aside.forgotten(gone as u64);
    }

    /// Holds all keys as after a crash.
    pub(super) fn hold(&self, until: Instant) {
        let marks = self.keeper.marks.lock().unwrap().clone();
        *self.held.lock().unwrap() = Some((until, marks));
        self.fence.hold("n", until);
    }

    fn check_hold(&self, key: &Key, token: Token) {
        if let Some((until, marks)) = &*self.held.lock().unwrap()
            && now() < *until
            && let Some(orphan) = marks.get(key)
        {
            let free = !orphan.draining && token == orphan.mark;
            assert!(free, "{key} {token} under the hold");
        }
    }

    /// G1, G2 and G3, as the resource and the disk see them.
    pub(super) fn begin(&self, claim: &Claim) {
        self.sent.fetch_add(1, Ordering::SeqCst);
        let mut resource = self.resource.lock().unwrap();
        for (key, ask) in claim.keys.iter().zip(&claim.asks) {
            let (token, durable) = (ask.token, self.keeper.mark(key));
            self.check_hold(key, token);
            assert!(
                durable >= token,
                "G3: {key} {token} over a durable {durable}"
            );
            let seen = resource.entry(key.clone()).or_default();
            assert!(
                seen.highest <= Some(token),
                "G1: {key} {token} after {:?}",
                seen.highest
            );
            let older = |one: &Token| *one < token;
            assert!(
                !seen.running.iter().any(older),
                "G2: {key} {token} beside {:?}",
                seen.running
            );
            seen.unsettled.retain(|one| one.1 > now());
            let unsettled = seen.unsettled.iter().any(|one| older(&one.0));
            assert!(!unsettled, "G2: {key} {token} before an older one settled");
            seen.highest = Some(token);
            seen.running.push(token);
        }
    }

    pub(super) fn end(&self, claim: &Claim, settles: bool) {
        let mut resource = self.resource.lock().unwrap();
        for (key, ask) in claim.keys.iter().zip(&claim.asks) {
            let seen = resource.entry(key.clone()).or_default();
            let at = seen.running.iter().position(|one| *one == ask.token);
            seen.running.swap_remove(at.expect("it runs"));
            if settles {
                let until = now() + claim.drain.settle;
                seen.unsettled.push((ask.token, until));
            }
        }
    }

    /// A write that may be refused.
    pub(super) fn write_any(&self, claim: &Claim) {
        self.write(claim);
    }

    /// A write from its claim to its end. Says how it was refused, if it was.
    pub(super) fn write(&self, claim: &Claim) -> Option<Reason> {
        self.write_and(claim, |permit| permit.ended(Outcome::Completed, false))
    }

    pub(super) fn write_and(&self, claim: &Claim, end: impl FnOnce(Permit)) -> Option<Reason> {
        match self.admit(claim.clone()) {
            Ok(admission) => self.send(admission, end),
            Err(refusal) => Some(refusal.reason),
        }
    }

    pub(super) fn send(&self, admission: Admission, end: impl FnOnce(Permit)) -> Option<Reason> {
        let claim = admission.claim().clone();
        let handle: Handle = Arc::new(Untouched);
        match admission.send(&handle) {
            Ok(permit) => {
                self.begin(&claim);
                pause(6);
                self.end(&claim, false);
                end(permit);
                None
            }
            Err(refusal) => Some(refusal.reason),
        }
    }

    /// All is over: nobody waits, no lane is left, and every key has at least the highest mark
    /// that the resource and the disk know of.
    pub(super) fn check(&self) {
        self.keeper.finish();
        assert!(self.fence.is_quiet(), "something is in flight or unsettled");
        assert_eq!(self.fence.totals().waiting, 0, "somebody waits");
        let mut lanes = 0;
        self.fence.table.each(|_, _| lanes += 1);
        assert_eq!(lanes, 0, "lanes are left");
        self.check_marks();
        let resource = self.resource.lock().unwrap();
        let keys: Vec<Key> = resource.keys().cloned().collect();
        drop(resource);
        keys.iter().for_each(|key| self.fence.table.forget(key));
        self.check_marks();
        self.keeper.finish();
    }

    /// An older token than the highest is refused, whatever became of lanes and cache.
    pub(super) fn check_marks(&self) {
        let highest: Vec<_> = {
            let resource = self.resource.lock().unwrap();
            let highest = |seen: &Seen| seen.highest.unwrap_or(Token::NONE);
            resource
                .iter()
                .map(|one| (one.0.clone(), highest(one.1)))
                .collect()
        };
        for (key, highest) in highest {
            let mark = highest.max(self.keeper.mark(&key));
            if mark.counter() < 2 {
                continue;
            }
            let stale = Claim::write(key, t(mark.counter() - 1));
            let refused = self.admit(stale).err().map(|refusal| refusal.mark);
            let known = refused.flatten();
            assert!(known >= Some(mark), "G1: the mark is {known:?}, not {mark}");
        }
    }
}

/// A write in flight that nobody can touch.
struct Untouched;

impl InFlight for Untouched {
    fn drain(self: Arc<Self>, _: Uploads) {}
    fn cut(self: Arc<Self>, _: Cut) {}
}

/// A write in flight that a cut ends as unknown.
#[derive(Default)]
pub(super) struct Cuttable(Mutex<Option<(Arc<World>, Claim, Permit)>>);

impl Cuttable {
    pub(super) fn hold(&self, world: &Arc<World>, claim: &Claim, permit: Permit) {
        *self.0.lock().unwrap() = Some((Arc::clone(world), claim.clone(), permit));
    }

    /// Ends it, unless it has been cut.
    pub(super) fn complete(&self) {
        let taken = self.0.lock().unwrap().take();
        if let Some((world, claim, permit)) = taken {
            world.end(&claim, false);
            permit.ended(Outcome::Completed, false);
        }
    }
}

impl InFlight for Cuttable {
    fn drain(self: Arc<Self>, _: Uploads) {}

    fn cut(self: Arc<Self>, _: Cut) {
        let taken = self.0.lock().unwrap().take();
        if let Some((world, claim, permit)) = taken {
            world.end(&claim, true);
            permit.ended(Outcome::Unknown, true);
        }
    }
}
