//! Forgets the marks of keys that nobody has used for `store.forget.after`.
//!
//! What may go is the store's to say, by age, and what is in use the fence's, by its lanes; here they
//! meet. A key with a lease is in use as well.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::fence::Fence;
use fencegate_filters::store::StoreError;
use fencegate_filters::{Key, Token};

use crate::config;
use crate::locks::Locks;
use crate::store::{EmbeddedStore, asked};

/// How many keys are looked at, and how many marks are set aside, at a time. Whoever comes for one
/// that is set aside waits until all of them are put back.
const CHUNK: usize = 2000;

/// How often it is looked whether a period is over.
const SHORTEST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_secs(300);

pub(crate) struct Forgetter {
    fence: Fence,
    locks: Option<Arc<Locks>>,
    store: Arc<EmbeddedStore>,
    namespaces: Vec<String>,
    after: Duration,
}

impl Forgetter {
    /// Tells the store and the fence what is to be forgotten; `None` where nothing is.
    pub(crate) async fn start(
        config: &config::Store,
        fence: &Fence,
        locks: Option<&Arc<Locks>>,
        store: &Arc<EmbeddedStore>,
    ) -> Result<Option<Self>, StoreError> {
        let Some(forget) = &config.forget else {
            asked(|reply| store.start_forgetting(&[], Duration::ZERO, reply)).await?;
            return Ok(None);
        };
        let names = forget.namespaces.iter().map(|one| one.value.clone());
        let namespaces: Vec<String> = names.collect();
        asked(|reply| store.start_forgetting(&namespaces, forget.after, reply)).await?;
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
    ///
    /// Dropped in between, what is set aside is put back while the store may still forget it. That
    /// does no harm: the floor is durable and known by then, and what a lane has read of a mark before
    /// it went is what was admitted.
    pub(crate) async fn run(self) {
        let look = (self.after / 8).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        let mut period = 0;
        loop {
            tokio::time::sleep(look).await;
            match self.turn(period).await {
                Ok(now) => period = now,
                Err(StoreError::NoSpace) => {
                    tracing::warn!("no room to forget marks; it is tried again");
                }
                // It may be busy. Where it has failed or is closed, it says so itself, and the
                // process ends.
                Err(StoreError::Unavailable(why)) => {
                    tracing::debug!(%why, "no marks could be forgotten; it is tried again");
                }
            }
        }
    }

    /// Keeps the uptime; when a period is over, touches what is in use and forgets what is idle.
    async fn turn(&self, before: u32) -> Result<u32, StoreError> {
        asked(|reply| self.store.keep_uptime(reply)).await?;
        let period = self.store.period();
        if period == before {
            return Ok(period);
        }
        self.fence.turn(period);
        for namespace in &self.namespaces {
            let forgotten = self.sweep(namespace).await?;
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

    async fn sweep(&self, namespace: &str) -> Result<u64, StoreError> {
        let (mut forgotten, mut after) = (0, None::<Key>);
        loop {
            let look = |reply| {
                self.store
                    .idle_keys(namespace, after.as_ref(), CHUNK, reply);
            };
            let found = asked(look).await?;
            forgotten += self.forget(found.keys).await?;
            if found.next.is_none() {
                return Ok(forgotten);
            }
            after = found.next;
        }
    }

    async fn forget(&self, idle: Vec<(Key, Token)>) -> Result<u64, StoreError> {
        let marks: HashMap<Key, Token> = idle.iter().cloned().collect();
        let mut aside = self.fence.set_aside(idle.into_iter().map(|one| one.0));
        if let Some(locks) = &self.locks {
            // After it was set aside: whoever takes the lock now waits for what is left of the mark.
            let mut leased = HashSet::new();
            for key in aside.keys() {
                if locks.is_leased(key).await? {
                    leased.insert(key.clone());
                }
            }
            aside.put_back(|key| leased.contains(key));
        }
        let marks = |key: &Key| Some((key.clone(), *marks.get(key)?));
        let keys: Vec<_> = aside.keys().filter_map(marks).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let forgotten = asked(|reply| self.store.forget(keys, reply)).await?;
        aside.forgotten(forgotten);
        Ok(forgotten)
    }
}
