//! The rules that keys are made by, as they stand in the config and as the marks were made by them.
//!
//! Under other rules the same resource has another key, where no mark guards it and nothing drains
//! what was forwarded before. So a change has to be meant (`rekey: true`), and it waits until
//! everything under the old rules has ended or settled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::route::{RouteMatcher, Router};

use crate::route::{Route, RouteTable};
use crate::store::NamespaceRules;

/// How the rules of a config differ from those in the store.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Differences that no route says are meant, in words.
    pub refused: Vec<String>,
    /// The namespaces of which something may still be running under other rules.
    pub changed: Vec<String>,
    /// What the store has to know before a request is taken under the new rules.
    pub put: BTreeMap<String, NamespaceRules>,
    /// How long what was forwarded for each namespace may run on.
    pub settles: BTreeMap<String, Duration>,
}

impl Changes {
    /// Compares what the store knows with `table`. `clean`: nothing of an earlier run can be left,
    /// so a shorter settle counts at once. `before`: the routes so far, where they are known.
    pub(crate) fn find(
        known: &BTreeMap<String, NamespaceRules>,
        table: &RouteTable,
        clean: bool,
        before: Option<&Router<Arc<Route>>>,
    ) -> Self {
        let mut found = Self {
            settles: table.settles.clone(),
            ..Self::default()
        };
        let known: BTreeMap<_, _> = known.iter().filter(|one| !is_gone(one.1)).collect();
        let mut new = BTreeSet::new();
        for (namespace, rules) in &table.rules {
            let stored = known.get(namespace);
            let settle = found.settles.entry(namespace.clone()).or_default();
            let mut now = NamespaceRules {
                fingerprint: rules.fingerprint.clone(),
                settle: *settle,
            };
            match stored {
                None => {
                    new.insert(namespace.as_str());
                }
                Some(stored) => {
                    // Orphans run for as long as the old config allowed them to.
                    *settle = (*settle).max(stored.settle);
                    if !clean {
                        now.settle = *settle;
                    }
                    if stored.fingerprint != rules.fingerprint {
                        found.changed.push(namespace.clone());
                        if !rules.rekey {
                            let differences = differences(&stored.fingerprint, &rules.fingerprint);
                            found.refused.extend(differences);
                        }
                    }
                }
            }
            if stored.is_none_or(|stored| **stored != now) {
                found.put.insert(namespace.clone(), now);
            }
        }
        // Where no namespace is new, nothing has to be compared.
        let old = before.map(|before| match new.is_empty() {
            true => BTreeMap::new(),
            false => routes_of(before),
        });
        let routes = routes_of(&table.router);
        let new = new.iter().filter_map(|namespace| routes.get(namespace));
        let new: Vec<&Reaching<'_>> = new.flatten().collect();
        for (namespace, stored) in known {
            if !table.rules.contains_key(namespace) {
                found.changed.push(namespace.clone());
                found.put.insert(namespace.clone(), gone());
                found.settles.insert(namespace.clone(), stored.settle);
                continue;
            }
            // A new namespace may take requests for resources that had their keys in this one.
            let shares = match &old {
                None => !new.is_empty(),
                Some(old) => {
                    let mut old = old.get(namespace.as_str()).into_iter().flatten();
                    old.any(|old| new.iter().any(|new| may_share(old, new)))
                }
            };
            if shares && !found.changed.contains(namespace) {
                found.changed.push(namespace.clone());
            }
        }
        found
    }

    /// The longest time that something may still be running under other rules.
    pub(crate) fn longest(&self) -> Duration {
        let settles = self
            .changed
            .iter()
            .filter_map(|name| self.settles.get(name));
        settles.copied().max().unwrap_or_default()
    }
}

type Reaching<'a> = (&'a RouteMatcher, &'a Route);

/// The routes that forward requests, by namespace.
fn routes_of(router: &Router<Arc<Route>>) -> BTreeMap<&str, Vec<Reaching<'_>>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for (matcher, route) in router.routes() {
        if route.upstream.is_some() {
            let namespace = route.policy.keys.namespace();
            found
                .entry(namespace)
                .or_default()
                .push((matcher, &**route));
        }
    }
    found
}

/// Whether a request of one of these routes may be for a resource that a request of the other is
/// for. A resource is a path of an upstream: it is told by the path alone where no header names another one.
fn may_share((one_path, one): &Reaching<'_>, (other_path, other): &Reaching<'_>) -> bool {
    let by_header = |route: &Route| route.policy.keys.headers().next().is_some();
    let paths = one_path.may_share_paths(other_path) || by_header(one) || by_header(other);
    let urls = |route: &Route| -> BTreeSet<String> {
        let upstream = route.upstream.iter();
        upstream
            .flat_map(|one| one.urls().map(str::to_owned))
            .collect()
    };
    paths && !urls(one).is_disjoint(&urls(other))
}

/// What is kept of a namespace that no route has any more, once nothing is left of it.
fn gone() -> NamespaceRules {
    NamespaceRules {
        fingerprint: BTreeMap::new(),
        settle: Duration::ZERO,
    }
}

fn is_gone(rules: &NamespaceRules) -> bool {
    *rules == gone()
}

fn differences(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| {
            let show = |rules: &BTreeMap<String, String>| {
                rules
                    .get(name)
                    .map_or_else(|| "nothing".to_owned(), |text| format!("{text:?}"))
            };
            format!("{name}: was {}, is {}", show(old), show(new))
        })
        .collect()
}
