//! Reloads: another config put in the place of the one in force, whole or not at all.
//!
//! A route whose keys would come from other rules is first closed: what was forwarded under the old
//! rules must have ended before a request is fenced by the new ones, which might give the same
//! resource another key.

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fencegate_filters::fault::{self, Fault};
use fencegate_filters::policy::Require;
use fencegate_filters::route::Router;
use tokio::signal::unix::Signal;

use crate::config::{Config, Listener, Url};
use crate::gateway::Gateway;
use crate::intake::Intake;
use crate::route::{Route, RouteTable};
use crate::rules::Changes;
use crate::run::{RunError, admin_tls, heads, locks_tls, settings, upstreams, way};
use crate::server::Way;
use crate::store::EmbeddedStore;
use crate::upstream::health::{self, Checks};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is looked whether everything under the old rules has ended.
const QUIET_LOOK: Duration = Duration::from_millis(20);

/// Reloads the config when it is told to, or when its file has changed.
pub(crate) struct Reloader {
    file: PathBuf,
    config: Config,
    gateway: Arc<Gateway>,
    store: Arc<EmbeddedStore>,
    workers: usize,
    /// Of the upstreams in force.
    checks: Checks,
}

impl Reloader {
    pub(crate) fn new(
        file: &Path,
        config: Config,
        gateway: Arc<Gateway>,
        store: Arc<EmbeddedStore>,
        workers: usize,
    ) -> Self {
        Self {
            checks: health::begin(&gateway.upstreams.load()),
            file: file.to_owned(),
            config,
            gateway,
            store,
            workers,
        }
    }

    /// The config in force.
    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) async fn run(&mut self, mut told: Signal) -> Infallible {
        let mut seen = self.stamps();
        loop {
            tokio::select! {
                _ = told.recv() => {}
                () = tokio::time::sleep(LOOK) => {
                    let now = self.stamps();
                    if now == seen || now.is_none() {
                        continue;
                    }
                }
            }
            // Before they are read: what changes meanwhile is read again.
            seen = self.stamps();
            let files = self.config.files.clone();
            let reloaded = self.reload().await;
            if self.config.files != files {
                seen = self.stamps();
            }
            self.gateway.metrics.reloaded(reloaded.is_ok());
            match reloaded {
                Ok(()) => tracing::info!(file = %self.file.display(), "config reloaded"),
                Err(error) => {
                    tracing::error!(%error, "the config was not reloaded: the old one stays in force");
                }
            }
        }
    }

    /// When the files were written that the config comes from; `None` while one is missing, as in
    /// the middle of being replaced.
    fn stamps(&self) -> Option<Vec<Stamp>> {
        let files = std::iter::once(&self.file).chain(&self.config.files);
        files.map(|file| stamp(file)).collect()
    }

    async fn reload(&mut self) -> Result<(), RunError> {
        let loaded = Config::load(&self.file).map_err(RunError::Config)?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let config = loaded.config;
        for what in fixed(&self.config, &config) {
            tracing::warn!("{what} can't be changed by a reload: restart to change it");
        }
        let old = self.gateway.upstreams.load_full();
        let kept = |name: &str, url: &Url| {
            let same = *url == Url::BuiltinObjects;
            old.get(name).filter(|_| same)?.builtin()
        };
        let upstreams = upstreams(&config, self.workers, &kept)?;
        let table = RouteTable::build(&config, &self.file, &upstreams).map_err(RunError::Config)?;
        self.change_rules(&table).await?;

        let gateway = &self.gateway;
        self.checks = health::begin(&upstreams);
        gateway.upstreams.store(Arc::new(upstreams));
        gateway.routes.store(table.router);
        gateway.intake.store(Arc::new(Intake {
            guarded: table.guarded,
            body_limit: config.limits.body,
            heads: heads(&config),
        }));
        gateway.settings.store(Arc::new(settings(&config)));
        gateway.fence.limit_keys(config.limits.keys);
        for (index, (address, door)) in gateway.doors.iter().enumerate() {
            let same = |one: &&Listener| one.address.value == *address;
            let there = config.listeners.get(index).filter(same);
            let listener = there.or_else(|| config.listeners.iter().find(same));
            if let Some(listener) = listener {
                door.change(way(listener));
            }
        }
        if let Some(admin) = &config.admin {
            gateway.admin_door.change(Way {
                tls: admin_tls(admin),
                proxy_protocol: false,
            });
        }
        if let Some(locks) = &config.locks {
            gateway.locks_door.change(Way {
                tls: locks_tls(locks),
                proxy_protocol: false,
            });
        }
        self.config = config;
        Ok(())
    }

    /// Makes the namespaces' rules those of `table`, once nothing is left of the old ones.
    async fn change_rules(&self, table: &RouteTable) -> Result<(), RunError> {
        let known = self.store.all_rules().map_err(RunError::Store)?;
        let old = self.gateway.routes.load_full();
        let changes = Changes::find(&known, table, false, Some(&old));
        if !changes.refused.is_empty() {
            return Err(RunError::Rekeyed(changes.refused));
        }
        if !changes.changed.is_empty() && !fault::planted(Fault::RulesInFlight) {
            self.close(&old, &changes).await?;
        }
        if let Err(error) = self.store.put_rules(&changes.put) {
            self.gateway.routes.store(old);
            return Err(RunError::Store(error));
        }
        Ok(())
    }

    /// Closes the routes of the changed namespaces, and waits until what they forwarded has ended
    /// or settled. Where it does not in time, they are opened again as they were.
    async fn close(
        &self,
        old: &Arc<Router<Arc<Route>>>,
        changes: &Changes,
    ) -> Result<(), RunError> {
        let namespaces = &changes.changed;
        let is_changed = |route: &Route| {
            let namespace = route.policy.keys.namespace();
            namespaces.iter().any(|changed| changed == namespace)
        };
        let mut routes = Vec::new();
        let mut closing = Vec::new();
        let mut unfenced = false;
        for (matcher, route) in old.routes() {
            if is_changed(route) {
                routes.push((matcher.clone(), Arc::new(route.closed())));
                closing.push(Arc::downgrade(route));
                unfenced |= route.policy.require == Require::Never;
            } else {
                routes.push((matcher.clone(), Arc::clone(route)));
            }
        }
        let longest = self.gateway.upstreams.load();
        let longest = longest.values().map(|one| one.timeout + one.settle).max();
        let end = Instant::now() + longest.unwrap_or_default() + self.config.shutdown.timeout;
        tracing::info!(
            namespaces = namespaces.join(", "),
            "the rules of keys change: these routes take no requests until what was forwarded by the old rules has ended or settled"
        );
        self.gateway.routes.store(Arc::new(Router::new(routes)));
        let read = self.stamps();
        let mut look = Instant::now();
        // Each old route is held once by the old table; what is more is a request on its way. And
        // who looks for a route in the old table holds the table, beside this caller and `old`.
        let in_use =
            || Arc::strong_count(old) > 1 || closing.iter().any(|route| route.strong_count() > 1);
        let quiet = || {
            let fence = &self.gateway.fence;
            namespaces.iter().all(|name| fence.is_namespace_quiet(name))
        };
        while in_use() || !quiet() {
            if Instant::now() >= end {
                self.gateway.routes.store(Arc::clone(old));
                return Err(RunError::StillInUse(namespaces.clone()));
            }
            if Instant::now() >= look {
                look = Instant::now() + LOOK;
                // Again and again: what was forwarded before may become a tunnel meanwhile.
                for namespace in namespaces {
                    self.gateway.fence.end_tunnels(namespace);
                }
                let now = self.stamps();
                if now.is_some() && now != read {
                    self.gateway.routes.store(Arc::clone(old));
                    return Err(RunError::ChangedAgain);
                }
            }
            tokio::time::sleep(QUIET_LOOK).await;
        }
        if unfenced {
            // What passed unfenced has no lane that would tell when it has settled.
            tokio::time::sleep(changes.longest()).await;
        }
        Ok(())
    }
}

/// What a reload does not change although the file does.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let addresses = |config: &Config| -> Vec<_> {
        let listeners = config.listeners.iter();
        listeners
            .map(|listener| listener.address.value.clone())
            .collect()
    };
    let admin = |config: &Config| {
        let admin = config.admin.as_ref();
        admin.map(|admin| (admin.address.value.clone(), admin.tokens.clone()))
    };
    let locks = |config: &Config| {
        let locks = config.locks.as_ref();
        locks.map(|one| {
            (
                one.address.value.clone(),
                one.tokens.clone(),
                one.fence_on_grant,
            )
        })
    };
    let store = |config: &Config| {
        let forget = config.store.forget.as_ref().map(|forget| {
            let names = forget.namespaces.iter().map(|one| one.value.clone());
            (names.collect::<Vec<_>>(), forget.after)
        });
        (config.store.path.clone(), config.store.cache, forget)
    };
    let log = |config: &Config| (config.log.format, config.log.level);
    let mut fixed = Vec::new();
    if addresses(old) != addresses(new) {
        fixed.push("listeners");
    }
    if admin(old) != admin(new) {
        fixed.push("admin");
    }
    if locks(old) != locks(new) {
        fixed.push("locks");
    }
    if store(old) != store(new) {
        fixed.push("store");
    }
    if log(old) != log(new) {
        fixed.push("log.format or log.level");
    }
    fixed
}

/// When a file was written, and which file it was: one that is put in the place of another may be
/// as old.
type Stamp = (SystemTime, u64, u64);

fn stamp(file: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(file).ok()?;
    Some((file.modified().ok()?, file.ino(), file.len()))
}
