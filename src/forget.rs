//! Forgets the marks of keys that nobody has used for `store.forget.after`.
//!
//! What may go is the store's to say, by age, and what is in use the fence's, by its lanes; here they
//! meet. A key with a lease is in use as well.

use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::Key;
use fencegate_filters::fence::Fence;
use fencegate_filters::store::StoreError;

use crate::config;
use crate::locks::Locks;
use crate::store::EmbeddedStore;

/// How many keys are looked at, and how many marks are set aside, at a time.
const CHUNK: usize = 10_000;

/// How often it is looked whether a period is over.
const SHORTEST_LOOK: Duration = Duration::from_millis(200);
const LONGEST_LOOK: Duration = Duration::from_secs(300);

pub(crate) struct Forgetter {
    fence: Fence,
    locks: Option<Arc<Locks>>,
    store: Arc<EmbeddedStore>,
    namespaces: Vec<String>,
    after: Duration,
}

impl Forgetter {
    /// Tells the store and the fence what is to be forgotten, before the first request comes; `None`
    /// where nothing is.
    pub(crate) fn start(
        config: &config::Store,
        fence: &Fence,
        locks: Option<&Arc<Locks>>,
        store: &Arc<EmbeddedStore>,
    ) -> Result<Option<Self>, StoreError> {
        let Some(forget) = &config.forget else {
            store.start_forgetting(&[], Duration::ZERO)?;
            return Ok(None);
        };
        let namespaces: Vec<String> = forget
            .namespaces
            .iter()
            .map(|one| one.value.clone())
            .collect();
        store.start_forgetting(&namespaces, forget.after)?;
        fence.forgets(namespaces.iter().map(|name| Box::from(name.as_str())));
        fence.turn(store.period());
        Ok(Some(Self {
            fence: fence.clone(),
            locks: locks.cloned(),
            store: Arc::clone(store),
            namespaces,
            after: forget.after,
        }))
    }

    /// Forgets, for as long as it is polled and the store works.
    pub(crate) async fn run(self) {
        let look = (self.after / 8).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        let (this, mut period) = (Arc::new(self), 0);
        loop {
            tokio::time::sleep(look).await;
            let (turning, before) = (Arc::clone(&this), period);
            // Whatever is set aside is put back by the thread that did so, also after a stop.
            let turned = tokio::task::spawn_blocking(move || turning.turn(before)).await;
            match turned {
                Ok(Ok(now)) => period = now,
                Ok(Err(StoreError::NoSpace)) => {
                    tracing::warn!("no room to forget marks; it is tried again");
                }
                // The store has failed or is closed, and says so itself.
                Ok(Err(StoreError::Unavailable(_))) | Err(_) => return,
            }
        }
    }

    /// Keeps the uptime; when a period is over, touches what is in use and forgets what is idle.
    fn turn(&self, before: u32) -> Result<u32, StoreError> {
        self.store.keep_uptime()?;
        let period = self.store.period();
        if period == before {
            return Ok(period);
        }
        self.fence.turn(period);
        for namespace in &self.namespaces {
            let forgotten = self.sweep(namespace)?;
            if forgotten > 0 {
                tracing::info!(
                    namespace,
                    marks = forgotten,
                    "marks of idle keys were forgotten"
                );
            }
        }
        Ok(period)
    }

    fn sweep(&self, namespace: &str) -> Result<u64, StoreError> {
        let (mut forgotten, mut after) = (0, None::<Key>);
        loop {
            let found = self.store.idle_keys(namespace, after.as_ref(), CHUNK)?;
            forgotten += self.forget(found.keys)?;
            after = match found.next {
                Some(next) => Some(next),
                None => return Ok(forgotten),
            };
        }
    }

    fn forget(&self, keys: Vec<Key>) -> Result<u64, StoreError> {
        let mut aside = self.fence.set_aside(keys);
        if let Some(locks) = &self.locks {
            let mut failed = None;
            // After it was set aside: whoever takes the lock now waits for what is left of the mark.
            aside.put_back(|key| {
                locks.has_lease(key).unwrap_or_else(|error| {
                    failed = Some(error);
                    true
                })
            });
            if let Some(error) = failed {
                return Err(error);
            }
        }
        let keys: Vec<Key> = aside.keys().cloned().collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let forgotten = self.store.forget(keys)?;
        aside.forgotten(forgotten);
        Ok(forgotten)
    }
}
