//! Real threads on a few keys, with a store that answers from a thread of its own.

use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::store::Reply;

/// Keeps the highest mark of each key, answers late and now and then fails.
struct Slow(mpsc::Sender<Box<dyn FnOnce(u64) + Send>>, Arc<Script>);

impl Slow {
    fn new() -> (Arc<Self>, Arc<Script>) {
        let (sender, calls) = mpsc::channel::<Box<dyn FnOnce(u64) + Send>>();
        thread::spawn(move || {
            for (number, call) in calls.into_iter().enumerate() {
                call(number as u64);
            }
        });
        let script = Script::new(&[]);
        (Arc::new(Self(sender, Arc::clone(&script))), script)
    }
}

impl Store for Slow {
    fn read(&self, key: &Key, reply: Reply<Option<Record>>) {
        let (script, key) = (Arc::clone(&self.1), key.clone());
        let _ = self.0.send(Box::new(move |_| script.read(&key, reply)));
    }

    fn commit(&self, raises: Vec<Raise>, reply: Reply<()>) {
        let script = Arc::clone(&self.1);
        let _ = self.0.send(Box::new(move |number| {
            if number % 17 != 0 {
                script.commit(raises, reply);
            }
        }));
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.1.list(prefix, after, limit)
    }

    fn len(&self) -> u64 {
        self.1.len()
    }
}

/// What the resource saw: the tokens of the writes that run on each key, and the highest of all.
#[derive(Default)]
struct Resource(std::sync::Mutex<(Vec<(usize, u64)>, [u64; 2])>);

impl Resource {
    fn begin(&self, key: usize, token: u64) {
        let (running, highest) = &mut *self.0.lock().unwrap();
        assert!(token >= highest[key], "{token} after {}", highest[key]);
        assert!(
            running.iter().all(|one| one.0 != key || one.1 >= token),
            "{token} beside an older write: {running:?}"
        );
        highest[key] = token;
        running.push((key, token));
    }

    fn end(&self, key: usize, token: u64) {
        let (running, _) = &mut *self.0.lock().unwrap();
        let at = running.iter().position(|one| *one == (key, token)).unwrap();
        running.swap_remove(at);
    }
}

#[test]
fn threads_that_race_on_two_keys_keep_the_promises_and_lose_no_wake_up() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 400;
    let (store, script) = Slow::new();
    let fence = Fence::new(store, 0);
    let resource = Arc::new(Resource::default());
    let next = Arc::new(AtomicU64::new(1));
    let sent = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let fence = fence.clone();
            let resource = Arc::clone(&resource);
            let (next, sent) = (Arc::clone(&next), Arc::clone(&sent));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    for round in 0..ROUNDS {
                        let token = next.fetch_add(u64::from(round % 3 == 0), Ordering::SeqCst);
                        let keys: &[usize] = match (round + thread) % 3 {
                            0 => &[0],
                            1 => &[1],
                            _ => &[1, 0],
                        };
                        let names: Vec<_> =
                            keys.iter().map(|key| (["a", "b"][*key], token)).collect();
                        let mut claim = claim_of(&names);
                        claim.drain.settle = Duration::from_millis(1);
                        claim.drain.waiting = 64;
                        let admitted = fence.admit(claim);
                        let admitted = tokio::time::timeout(Duration::from_secs(20), admitted)
                            .await
                            .expect("a wake-up was lost");
                        let Ok(admission) = admitted else { continue };
                        if round % 5 == 0 {
                            tokio::task::yield_now().await;
                        }
                        let (_, handle) = Write::new();
                        let Ok(permit) = admission.send(&handle) else {
                            continue;
                        };
                        sent.fetch_add(1, Ordering::SeqCst);
                        keys.iter().for_each(|key| resource.begin(*key, token));
                        if round % 2 == 0 {
                            tokio::task::yield_now().await;
                        }
                        keys.iter().for_each(|key| resource.end(*key, token));
                        permit.ended(Outcome::Unknown, round % 7 == 0);
                    }
                    // What this runtime settles must settle before it goes.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|one| one.join().unwrap());
    assert!(sent.load(Ordering::SeqCst) > 0);
    assert!(fence.is_quiet());
    assert_eq!(fence.totals().waiting, 0);
    for (name, highest) in ["a", "b"].iter().zip(resource.0.lock().unwrap().1) {
        assert!(script.mark(&k(name)).unwrap().mark >= t(highest));
    }
}
