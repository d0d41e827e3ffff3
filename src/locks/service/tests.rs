//! The service over a store that answers when the test says so: what is durable before it is told,
//! who is woken, what stays in memory, and how many may wait.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;
use fencegate_filters::fence::{Claim, Fence};
use fencegate_filters::lock::Lease;
use fencegate_filters::store::{Raise, Record, Reply, Store, StoreError};
use fencegate_filters::{Key, Reason, Refusal, Token};
use http_body::Body as _;
use tokio::task::unconstrained;

use super::{Acquire, Locks, MOST_WAITING, SWEEP};
use crate::config::Config;
use crate::locks::cell::Grant;
use crate::locks::events::Watch;
use crate::route::RouteTable;

const TTL: Duration = Duration::from_secs(10);

/// How many may wait for one lock, where the config says nothing else.
const PER_KEY: usize = 256;

type Commit = (Vec<Raise>, Reply<()>);

/// A store in memory. Commits wait for the test once it has said so.
#[derive(Default)]
struct Script {
    records: Mutex<BTreeMap<Key, Record>>,
    commits: Mutex<Option<VecDeque<Commit>>>,
}

impl Script {
    fn ask_before_commits(&self) {
        *self.commits.lock().unwrap() = Some(VecDeque::new());
    }

    fn answer_commits(&self) {
        *self.commits.lock().unwrap() = None;
    }

    /// Commits all that wait, and whatever comes from now on.
    fn commit_all(&self) {
        let waiting = self.commits.lock().unwrap().take();
        for (raises, reply) in waiting.into_iter().flatten() {
            self.keep(raises);
            reply.send(Ok(()));
        }
    }

    fn next_commit(&self) -> Commit {
        let mut commits = self.commits.lock().unwrap();
        commits.as_mut().unwrap().pop_front().expect("a commit")
    }

    fn commit_next(&self) {
        let (raises, reply) = self.next_commit();
        self.keep(raises);
        reply.send(Ok(()));
    }

    fn fail_next(&self) {
        self.next_commit().1.send(Err(StoreError::NoSpace));
    }

    fn keep(&self, raises: Vec<Raise>) {
        let mut records = self.records.lock().unwrap();
        for raise in raises {
            match records.get_mut(&raise.key) {
                Some(record) => record.merge(raise.record),
                None => drop(records.insert(raise.key, raise.record)),
            }
        }
    }
}

impl Store for Script {
    fn read(&self, key: &Key, reply: Reply<Option<Record>>) {
        let found = self.records.lock().unwrap().get(key).cloned();
        reply.send(Ok(found));
    }

    fn commit(&self, raises: Vec<Raise>, reply: Reply<()>) {
        if let Some(commits) = &mut *self.commits.lock().unwrap() {
            commits.push_back((raises, reply));
            return;
        }
        self.keep(raises);
        reply.send(Ok(()));
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let records = self.records.lock().unwrap();
        let found = records
            .iter()
            .filter(|one| one.0.as_str().starts_with(prefix))
            .filter(|one| after.is_none_or(|after| one.0.as_str() > after));
        let found = found.map(|(key, record)| (key.clone(), record.clone()));
        Ok(found.take(limit).collect())
    }

    fn len(&self) -> u64 {
        let records = self.records.lock().unwrap();
        records.keys().filter(|key| !key.is_internal()).count() as u64
    }
}

/// The service of one route over such a store.
struct House {
    store: Arc<Script>,
    fence: Fence,
    locks: Arc<Locks>,
}

impl House {
    fn new() -> Self {
        let text = r#"{
            "listeners": [{ "address": "127.0.0.1:0" }],
            "upstreams": { "objects": { "urls": ["http://127.0.0.1:1"] } },
            "routes": [{ "name": "objects", "path": "/{id}", "upstream": "objects", "fence": { "key": "{id}" } }]
        }"#;
        let file = Path::new("config.yaml");
        let config = Config::parse(text, file, &|_| None).unwrap().config;
        let table = RouteTable::build(&config, file, &BTreeMap::new()).unwrap();
        let store = Arc::new(Script::default());
        let fence = Fence::new(Arc::clone(&store) as Arc<dyn Store>, 1 << 20);
        let routes = Arc::new(ArcSwap::new(table.router));
        let locks = Locks::new(fence.clone(), routes, Arc::clone(&store) as _, true);
        Self {
            store,
            fence,
            locks,
        }
    }

    fn acquire(&self, key: &Key, holder: &str, wait: Duration) -> Call<(Lease, Grant)> {
        self.acquire_as(key, holder, None, wait)
    }

    fn acquire_as(
        &self,
        key: &Key,
        holder: &str,
        id: Option<&str>,
        wait: Duration,
    ) -> Call<(Lease, Grant)> {
        let (locks, key) = (Arc::clone(&self.locks), key.clone());
        let call = Acquire {
            holder: holder.into(),
            id: id.map(Into::into),
            ttl: TTL,
            wait,
        };
        Call::new(async move { locks.acquire(&key, &call).await })
    }

    /// Takes a free lock.
    fn take(&self, key: &Key) -> Token {
        let mut call = self.acquire(key, "pod-0", Duration::ZERO);
        let (lease, grant) = call.expect_ready().unwrap();
        // As the connection does once the reply has gone out.
        crate::locks::delivery::Tell::sent(grant);
        lease.token
    }

    fn renew(&self, key: &Key, token: Token, ttl: Duration) -> Call<Lease> {
        let (locks, key) = (Arc::clone(&self.locks), key.clone());
        Call::new(async move { locks.renew(&key, token, ttl).await })
    }

    fn release(&self, key: &Key, token: Token) {
        let (locks, key) = (Arc::clone(&self.locks), key.clone());
        let mut call = Call::new(async move { locks.release(&key, token).await });
        call.expect_ready().unwrap();
    }

    fn watch(&self, key: &Key) -> Watch {
        let (locks, key) = (Arc::clone(&self.locks), key.clone());
        let mut call = Call::new(async move { locks.watch(&key, false).await });
        call.expect_ready().unwrap()
    }

    fn waiting(&self, key: &Key) -> usize {
        let (locks, key) = (Arc::clone(&self.locks), key.clone());
        let mut view = Call::new(async move { locks.view(&key).await });
        view.expect_ready().unwrap().unwrap().waiting
    }

    /// Somebody comes with a token from elsewhere.
    fn raise(&self, key: &Key, token: Token) {
        let admit = self.fence.admit(Claim::write(key.clone(), token));
        drop(Call::new(admit).expect_ready().unwrap());
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A call that is polled by hand, so that no time passes meanwhile.
struct Call<T> {
    future: Pin<Box<dyn Future<Output = Result<T, Refusal>>>>,
    woken: Arc<Woken>,
}

impl<T> Call<T> {
    fn new(future: impl Future<Output = Result<T, Refusal>> + 'static) -> Self {
        Self {
            future: Box::pin(unconstrained(future)),
            woken: Arc::default(),
        }
    }

    /// Polls it until it waits for somebody else.
    fn poll(&mut self) -> Poll<Result<T, Refusal>> {
        let waker = Arc::clone(&self.woken).into();
        let mut cx = Context::from_waker(&waker);
        loop {
            self.woken.0.store(false, Ordering::SeqCst);
            let polled = self.future.as_mut().poll(&mut cx);
            if polled.is_ready() || !self.is_woken() {
                return polled;
            }
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }

    #[track_caller]
    fn expect_ready(&mut self) -> Result<T, Refusal> {
        match self.poll() {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("there is no answer yet"),
        }
    }

    #[track_caller]
    fn expect_refused(&mut self, reason: Reason) {
        match self.expect_ready() {
            Err(refusal) => assert_eq!(refusal.reason, reason),
            Ok(_) => panic!("it was not refused"),
        }
    }
}

/// What somebody who watches has been told since it last looked, as `EVENT TOKEN`.
fn told(watch: &mut Watch) -> Vec<String> {
    let mut text = String::new();
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(frame) = Pin::new(&mut *watch).poll_frame(&mut cx) {
        let bytes = frame.unwrap().unwrap().into_data().unwrap();
        text += std::str::from_utf8(&bytes).unwrap();
    }
    let mut names = Vec::new();
    for line in text.lines() {
        match line.split_once(": ") {
            Some(("event", name)) => names.push(name.to_owned()),
            Some(("data", data)) => {
                let data: serde_json::Value = serde_json::from_str(data).unwrap();
                let token = data["token"].as_str().unwrap();
                names.last_mut().unwrap().extend([" ", token]);
            }
            _ => {}
        }
    }
    names
}

fn key(name: &str) -> Key {
    Key::new("objects", name)
}

fn token(counter: u64) -> Token {
    Token::new(0, counter).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_longer_time_is_promised_to_nobody_before_it_is_durable() {
    let (house, key) = (House::new(), key("42"));
    let token = house.take(&key);
    house.store.ask_before_commits();
    let mut first = house.renew(&key, token, TTL * 2);
    assert!(first.poll().is_pending());
    // Somebody asks for what the first has asked for in vain so far.
    let mut second = house.renew(&key, token, TTL * 2);
    assert!(second.poll().is_pending());
    house.store.fail_next();
    first.expect_refused(Reason::StoreUnavailable);
    assert!(second.poll().is_pending(), "it has failed for the other");
    house.store.commit_next();
    assert_eq!(second.expect_ready().unwrap().ttl, TTL * 2);
    // What is durable is told at once, and so is a shorter time.
    for ttl in [TTL * 2, TTL] {
        let mut more = house.renew(&key, token, ttl);
        assert_eq!(more.expect_ready().unwrap().ttl, ttl);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_end_a_renewal_notices_is_handed_on_at_once() {
    let (house, key) = (House::new(), key("42"));
    let first = house.take(&key);
    let mut next = house.acquire(&key, "pod-1", TTL);
    assert!(next.poll().is_pending());
    house.raise(&key, token(50));
    assert!(!next.is_woken(), "nobody has looked");
    house
        .renew(&key, first, TTL)
        .expect_refused(Reason::LockLost);
    assert!(next.is_woken());
    assert_eq!(next.expect_ready().unwrap().0.token, token(51));
}

#[tokio::test(start_paused = true)]
async fn who_is_told_in_its_turn_that_it_was_lost_keeps_nobody_waiting() {
    let (house, key) = (House::new(), key("42"));
    let first = house.take(&key);
    // The same request twice, as from a client that lost its connection.
    let mut named = [0, 1].map(|_| house.acquire_as(&key, "pod-1", Some("r-1"), TTL));
    let mut next = house.acquire(&key, "pod-2", TTL);
    assert!(named.iter_mut().all(|call| call.poll().is_pending()));
    assert!(next.poll().is_pending());
    house.release(&key, first);
    let [mut one, mut other] = named;
    let (lease, _grant) = one.expect_ready().unwrap();
    house.release(&key, lease.token);
    other.expect_refused(Reason::LockLost);
    assert!(next.is_woken());
    assert_eq!(next.expect_ready().unwrap().0.token, token(3));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_twice_at_once_gets_one_grant() {
    let (house, key) = (House::new(), key("42"));
    house.store.ask_before_commits();
    let mut both = [0, 1].map(|_| house.acquire_as(&key, "pod-1", Some("r-1"), Duration::ZERO));
    assert!(both.iter_mut().all(|call| call.poll().is_pending()));
    house.store.commit_all();
    for call in &mut both {
        assert!(call.is_woken());
        assert_eq!(call.expect_ready().unwrap().0.token, token(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_came_again_takes_over_from_one_that_left() {
    let (house, key) = (House::new(), key("42"));
    house.store.ask_before_commits();
    let [mut first, mut again] =
        [0, 1].map(|_| house.acquire_as(&key, "pod-1", Some("r-1"), Duration::ZERO));
    assert!(first.poll().is_pending() && again.poll().is_pending());
    drop(first);
    assert!(again.is_woken());
    assert!(again.poll().is_pending());
    // The time of a lease that nobody was told of does not run.
    tokio::time::advance(TTL * 2).await;
    house.store.commit_all();
    let (lease, grant) = again.expect_ready().unwrap();
    crate::locks::delivery::Tell::sent(grant);
    let mut renewed = house.renew(&key, lease.token, TTL);
    renewed.expect_ready().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_end_a_renewal_notices_leaves_memory() {
    let (house, key) = (House::new(), key("42"));
    let first = house.take(&key);
    house.raise(&key, token(50));
    house.store.ask_before_commits();
    let mut renewed = house.renew(&key, first, TTL);
    assert!(renewed.poll().is_pending(), "it could come back as it is");
    house.store.fail_next();
    renewed.expect_refused(Reason::LockLost);
    assert_eq!(
        house.locks.table.all().len(),
        1,
        "the store does not have it so"
    );
    let sweep = tokio::spawn(Arc::clone(&house.locks).sweep());
    // The first time there is no room for it.
    tokio::time::sleep(SWEEP * 3 / 2).await;
    house.store.fail_next();
    tokio::time::sleep(SWEEP).await;
    house.store.commit_next();
    tokio::time::sleep(SWEEP).await;
    assert!(house.locks.table.all().is_empty());
    sweep.abort();
    house.store.answer_commits();
    assert_eq!(house.take(&key), token(51));
}

#[tokio::test(start_paused = true)]
async fn whoever_only_looks_at_a_lock_leases_nothing() {
    let (house, key) = (House::new(), key("42"));
    let leased = async || house.locks.is_leased(&key).await.unwrap();
    let watch = house.watch(&key);
    assert!(!leased().await);
    let first = house.take(&key);
    assert!(leased().await);
    house.store.ask_before_commits();
    let (locks, of) = (Arc::clone(&house.locks), key.clone());
    let mut release = Call::new(async move { locks.release(&of, first).await });
    assert!(release.poll().is_pending());
    assert!(leased().await, "with a restart it would come back");
    house.store.commit_all();
    release.expect_ready().unwrap();
    assert!(!leased().await);
    drop(watch);
}

#[tokio::test(start_paused = true)]
async fn events_come_once_each_in_their_order_and_not_before_they_are_true() {
    let (house, key) = (House::new(), key("42"));
    let mut watch = house.watch(&key);
    let first = house.take(&key);
    house.store.ask_before_commits();
    let mut longer = house.renew(&key, first, TTL * 2);
    assert!(longer.poll().is_pending());
    assert_eq!(told(&mut watch), ["granted 1"], "it is not durable yet");
    house.store.commit_next();
    longer.expect_ready().unwrap();
    house.store.answer_commits();
    house.release(&key, first);
    let second = house.take(&key);
    house.raise(&key, token(50));
    let mut late = house.renew(&key, second, TTL);
    late.expect_refused(Reason::LockLost);
    let all = [
        "renewed 1",
        "released 1",
        "granted 2",
        "expired 2",
        "refused 2",
    ];
    assert_eq!(told(&mut watch), all);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_bounded_over_all_locks() {
    let house = House::new();
    let keys: Vec<_> = (0..=MOST_WAITING / PER_KEY)
        .map(|n| key(&n.to_string()))
        .collect();
    let tokens: Vec<_> = keys.iter().map(|key| house.take(key)).collect();
    let (full, other) = keys.split_at(MOST_WAITING / PER_KEY);
    let wait = |key: &Key| {
        let mut call = house.acquire(key, "pod-1", TTL);
        assert!(call.poll().is_pending());
        call
    };
    let mut waiters: Vec<VecDeque<_>> = full
        .iter()
        .map(|key| (0..PER_KEY).map(|_| wait(key)).collect())
        .collect();
    for key in &keys {
        let mut more = house.acquire(key, "pod-2", TTL);
        more.expect_refused(Reason::Busy);
    }
    assert_eq!(house.waiting(&other[0]), 0, "nothing is left of it");
    // It can be asked for all the same, by who does not wait.
    let mut asks = house.acquire(&other[0], "pod-2", Duration::ZERO);
    asks.expect_refused(Reason::LockHeld);
    // Those who wait are served, and make room.
    for (n, key) in full.iter().enumerate() {
        assert_eq!(house.waiting(key), PER_KEY);
        house.release(key, tokens[n]);
        let mut first = waiters[n].pop_front().unwrap();
        assert!(first.is_woken());
        assert!(first.expect_ready().is_ok());
    }
    let mut late: Vec<_> = full.iter().map(|_| wait(&other[0])).collect();
    house
        .acquire(&other[0], "pod-2", TTL)
        .expect_refused(Reason::Busy);
    assert_eq!(house.waiting(&other[0]), late.len());
    drop(late.pop());
    drop(wait(&other[0]));
    drop(waiters);
    for key in full {
        assert_eq!(house.waiting(key), 0);
    }
}
