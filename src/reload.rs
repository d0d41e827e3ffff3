//! Reloads: another config put in the place of the one in force, whole or not at all.
//!
//! A route whose keys would come from other rules is first closed: what was forwarded under the old
//! rules must have ended before a request is fenced by the new ones, which might give the same
//! resource another key.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fencegate_filters::route::Router;
use tokio::signal::unix::Signal;

use crate::config::{Config, Url};
use crate::gateway::Gateway;
use crate::intake::Intake;
use crate::route::{Route, RouteTable};
use crate::run::{RunError, differences, settings, upstreams};
use crate::store::{EmbeddedStore, NamespaceRules};

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
        let mut seen = changed_at(&self.file);
        loop {
            tokio::select! {
                _ = told.recv() => {}
                () = tokio::time::sleep(LOOK) => {
                    let now = changed_at(&self.file);
                    if now == seen || now.is_none() {
                        continue;
                    }
                }
            }
            seen = changed_at(&self.file);
            let reloaded = self.reload().await;
            self.gateway.metrics.reloaded(reloaded.is_ok());
            match reloaded {
                Ok(()) => tracing::info!(file = %self.file.display(), "config reloaded"),
                Err(error) => {
                    tracing::error!(%error, "the config was not reloaded: the old one stays in force");
                }
            }
        }
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
            old.get(name)
                .filter(|_| same)
                .map(|upstream| upstream.address.clone())
        };
        let upstreams = upstreams(&config, self.workers, &kept)?;
        let table = RouteTable::build(&config, &self.file, &upstreams).map_err(RunError::Config)?;
        self.change_rules(&table).await?;

        let gateway = &self.gateway;
        gateway.upstreams.store(Arc::new(upstreams));
        gateway.routes.store(table.router);
        gateway.intake.store(Arc::new(Intake {
            guarded: table.guarded,
            body_limit: config.limits.body,
        }));
        gateway.settings.store(Arc::new(settings(&config)));
        gateway.fence.limit_keys(config.limits.keys);
        self.config = config;
        Ok(())
    }

    /// Makes the namespaces' rules those of `table`, once nothing is left of the old ones.
    async fn change_rules(&self, table: &RouteTable) -> Result<(), RunError> {
        let known = self.store.all_rules().map_err(RunError::Store)?;
        let mut changes = Vec::new();
        let mut changed = Vec::new();
        for (namespace, rules) in &table.rules {
            let Some(stored) = known.get(namespace) else {
                continue;
            };
            if stored.fingerprint != rules.fingerprint {
                changed.push(namespace.as_str());
                if !rules.rekey {
                    changes.extend(differences(&stored.fingerprint, &rules.fingerprint));
                }
            }
        }
        // Routes that are gone take their rules with them, and what they forwarded as well.
        let gone = known
            .keys()
            .filter(|namespace| !table.rules.contains_key(*namespace));
        changed.extend(gone.map(String::as_str));
        if !changes.is_empty() {
            return Err(RunError::Rekeyed(changes));
        }
        if !changed.is_empty() {
            self.close(&changed).await?;
        }
        for (namespace, rules) in &table.rules {
            let settle = table.settles.get(namespace).copied().unwrap_or_default();
            let stored = known.get(namespace);
            let now = NamespaceRules {
                fingerprint: rules.fingerprint.clone(),
                // What was forwarded before may still be running for as long as it was allowed to.
                settle: stored.map_or(settle, |stored| stored.settle.max(settle)),
            };
            if stored != Some(&now) {
                self.store
                    .put_rules(namespace, &now)
                    .map_err(RunError::Store)?;
            }
        }
        Ok(())
    }

    /// Closes the routes of these namespaces, and waits until what they forwarded has ended or
    /// settled. Where it does not in time, they are opened again as they were.
    async fn close(&self, namespaces: &[&str]) -> Result<(), RunError> {
        let old = self.gateway.routes.load_full();
        let is_changed = |route: &Route| namespaces.contains(&route.policy.keys.namespace());
        let mut routes = Vec::new();
        let mut closing = Vec::new();
        for (matcher, route) in old.routes() {
            if is_changed(route) {
                routes.push((matcher.clone(), Arc::new(route.closed())));
                closing.push(Arc::downgrade(route));
            } else {
                routes.push((matcher.clone(), Arc::clone(route)));
            }
        }
        let upstreams = self.gateway.upstreams.load();
        let longest = upstreams
            .values()
            .map(|upstream| upstream.timeout + upstream.settle)
            .max();
        let end = Instant::now() + longest.unwrap_or_default() + self.config.shutdown.timeout;
        self.gateway.routes.store(Arc::new(Router::new(routes)));
        drop(upstreams);
        let matchers = old;
        // This table itself holds each old route once; what is more is a request on its way.
        let in_use = || closing.iter().any(|route| route.strong_count() > 1);
        let quiet = || {
            namespaces
                .iter()
                .all(|namespace| self.gateway.fence.is_namespace_quiet(namespace))
        };
        while in_use() || !quiet() {
            if Instant::now() >= end {
                self.gateway.routes.store(matchers);
                return Err(RunError::StillInUse(
                    namespaces.iter().map(|&name| name.to_owned()).collect(),
                ));
            }
            tokio::time::sleep(QUIET_LOOK).await;
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
    let store = |config: &Config| (config.store.path.clone(), config.store.cache);
    let log = |config: &Config| (config.log.format, config.log.level);
    let mut fixed = Vec::new();
    if addresses(old) != addresses(new) {
        fixed.push("listeners");
    }
    if admin(old) != admin(new) {
        fixed.push("admin");
    }
    if store(old) != store(new) {
        fixed.push("store");
    }
    if log(old) != log(new) {
        fixed.push("log.format or log.level");
    }
    fixed
}

fn changed_at(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file)
        .and_then(|file| file.modified())
        .ok()
}
