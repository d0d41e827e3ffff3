//! Routing: which route a request belongs to, by host, path, method and query.
//!
//! # The most specific route wins
//!
//! Of all routes that match, the first in this order:
//!
//! 1. By host, label by label from the right: a literal label before a capture, a capture before
//!    `*` and `{*name}`; a route without hosts comes last.
//! 2. By path, segment by segment from the left: a literal before `{name}`, `{name}` before the
//!    end of the template, the end before `{*name}`; behind a `{*name}`, the end comes last.
//! 3. A route with methods before one without.
//! 4. The one that wants more query parameters.
//! 5. The order of the config.
//!
//! A trailing slash never decides between routes.
//!
//! # A path that servers read in different ways
//!
//! Some paths are read in different ways: `//` is merged by some, `;x` cut off, `%5C` taken for a
//! slash, `%2F` for a slash or for a character. Such a path must not fall through from a fenced
//! route that can't read it to one that is fenced less. So it is matched in *every* such reading,
//! and it is served only if all readings that match lead to one and the same route, and that route
//! reads paths by the opaque rules. Otherwise it is refused as ambiguous, and so is such a path
//! above 4,096 bytes. What no rules accept, dot segments first of all, is always refused; and where
//! a host has a route with `case: insensitive`, what folding makes a separator is too.
//!
//! The captures of an opaque route come from the decoded path, in which a `%2F` is a slash like any
//! other. Only where no route matches that, a `%2F` may be part of the segment that it stands in,
//! as in `/projects/{id}` and `/projects/group%2Fname`; then `/projects/group/name` has no route,
//! and there is still one name for one resource.
//!
//! ```
//! use fencegate_filters::route::{RequestView, RouteError, RouteMatcher, Router};
//!
//! let router = Router::new([
//!     (RouteMatcher::new("/objects/{id}")?, "fenced"),
//!     (RouteMatcher::new("/{*path}")?, "open"),
//! ]);
//! let view = |path: &'static str| RequestView {
//!     method: &http::Method::PUT,
//!     host: Some("example.com"),
//!     path,
//!     query: None,
//! };
//! let found = router.find(&view("/objects/%34%32")).unwrap();
//! assert_eq!(*found.route, "fenced");
//! assert_eq!(found.captures()[..], [("id", "42")]);
//!
//! // Not "open": there are servers that read it as /objects/42.
//! assert!(matches!(
//!     router.find(&view("/objects//42")),
//!     Err(RouteError::AmbiguousPath { .. })
//! ));
//! # Ok::<(), fencegate_filters::route::PatternError>(())
//! ```

mod found;
mod layer;
mod matcher;
mod pattern;
mod readings;
mod search;
mod trie;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::HashMap;

use http::Method;

pub use found::{Match, RouteError};
pub use layer::{Checked, RouteLayer, RouteService, Routes};
pub use matcher::RouteMatcher;
pub use pattern::PatternError;

use crate::key::{AmbiguousPath, Case, DecodedPath, PathRules, normalize_host};
use pattern::HostPattern;
use search::with_data_slashes;
use trie::{Node, Step};

/// What routing looks at in a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// The value of `Host`, or what stands for it.
    pub host: Option<&'a str>,
    /// The path as it is sent upstream.
    pub path: &'a str,
    /// The query as it is sent upstream, without the `?`.
    pub query: Option<&'a str>,
}

/// A route under one of its hosts. Its id is its place in the order of specificity.
#[derive(Debug)]
struct Entry {
    route: usize,
    host: Option<HostPattern>,
}

/// The routes of one host pattern.
#[derive(Debug, Default)]
struct Group {
    sensitive: Option<Node>,
    insensitive: Option<Node>,
}

/// All routes, indexed by host and path.
#[derive(Debug)]
pub struct Router<R> {
    routes: Vec<(RouteMatcher, R)>,
    entries: Vec<Entry>,
    hosts: Node,
    groups: Vec<Group>,
    every_host: Group,
    has_strict: bool,
}

impl<R> Router<R> {
    /// Indexes routes, given in the order of the config.
    pub fn new(routes: impl IntoIterator<Item = (RouteMatcher, R)>) -> Self {
        let routes: Vec<_> = routes.into_iter().collect();
        let mut entries: Vec<Entry> = Vec::new();
        for (route, (matcher, _)) in routes.iter().enumerate() {
            if matcher.hosts.is_empty() {
                entries.push(Entry { route, host: None });
            }
            entries.extend(matcher.hosts.iter().map(|host| Entry {
                route,
                host: Some(host.clone()),
            }));
        }
        entries.sort_by_cached_key(|entry| {
            let matcher = routes.get(entry.route).map(|(matcher, _)| matcher);
            (
                entry.host.is_none(),
                entry.host.as_ref().map(HostPattern::rank),
                matcher.map(|matcher| matcher.path.rank()),
                matcher.is_none_or(|matcher| matcher.methods.is_empty()),
                Reverse(matcher.map_or(0, |matcher| matcher.query.len())),
                entry.route,
            )
        });
        let mut router = Self {
            has_strict: routes
                .iter()
                .any(|(matcher, _)| matcher.rules == PathRules::Strict),
            routes,
            entries: Vec::new(),
            hosts: Node::default(),
            groups: Vec::new(),
            every_host: Group::default(),
        };
        router.index(&entries);
        router.entries = entries;
        router
    }

    fn index(&mut self, entries: &[Entry]) {
        let mut groups: HashMap<Vec<Step<'_>>, usize> = HashMap::new();
        for (id, entry) in (0u32..).zip(entries) {
            let Some((matcher, _)) = self.routes.get(entry.route) else {
                continue;
            };
            let group = match &entry.host {
                None => Some(&mut self.every_host),
                Some(host) => {
                    let steps = host.steps();
                    let at = groups.get(&steps).copied().unwrap_or_else(|| {
                        let at = self.groups.len();
                        self.groups.push(Group::default());
                        self.hosts
                            .insert(&steps, u32::try_from(at).unwrap_or(u32::MAX));
                        groups.insert(steps, at);
                        at
                    });
                    self.groups.get_mut(at)
                }
            };
            let Some(group) = group else { continue };
            match matcher.case {
                Case::Sensitive => group
                    .sensitive
                    .get_or_insert_default()
                    .insert(&matcher.path.steps(), id),
                Case::Insensitive => group
                    .insensitive
                    .get_or_insert_default()
                    .insert(&matcher.path.folded().steps(), id),
            }
        }
    }

    /// The routes, in the order of the config.
    #[must_use]
    pub fn routes(&self) -> &[(RouteMatcher, R)] {
        &self.routes
    }

    /// Finds the route of a request.
    ///
    /// # Errors
    ///
    /// That there is none, or that the request doesn't say in one way which it is.
    pub fn find<'r, 'a>(
        &'r self,
        request: &RequestView<'a>,
    ) -> Result<Match<'r, 'a, R>, RouteError<'r, R>> {
        let host = request
            .host
            .map(normalize_host)
            .transpose()
            .map_err(RouteError::Host)?;
        let groups = self.groups_of(host.as_deref());
        let raw = request.path.as_bytes();
        let path = DecodedPath::decode(raw).map_err(|what| RouteError::AmbiguousPath {
            what,
            route: self.sole(&self.routes_of_readings(&groups, request)),
        })?;
        // To an upstream that folds, such a path is another one than it is here.
        if groups.iter().any(|group| group.insensitive.is_some()) {
            path.judge(PathRules::Opaque, Case::Insensitive)
                .map_err(|what| RouteError::AmbiguousPath { what, route: None })?;
        }
        let (id, slashes_are_data) = match path.ambiguity() {
            None => {
                let search = self.search(&groups, path.text(PathRules::Opaque), request);
                (self.settled(&search)?, false)
            }
            Some(what) => self.find_contested(&groups, &path, what, request)?,
        };
        let (entry, index, (matcher, route)) = self
            .entries
            .get(id as usize)
            .and_then(|entry| Some((entry, entry.route, self.routes.get(entry.route)?)))
            .ok_or(RouteError::NoRoute)?;
        path.judge(matcher.rules, matcher.case)
            .map_err(|what| RouteError::AmbiguousPath {
                what,
                route: Some(route),
            })?;
        Ok(Match {
            route,
            index,
            matcher,
            host_pattern: entry.host.as_ref(),
            host,
            raw_host: request.host,
            path,
            slashes_are_data,
        })
    }

    /// The entry for a path that servers read in different ways, and whether a `%2F` is a
    /// character in it.
    #[cold]
    fn find_contested(
        &self,
        groups: &[&Group],
        path: &DecodedPath<'_>,
        what: AmbiguousPath,
        request: &RequestView<'_>,
    ) -> Result<(u32, bool), RouteError<'_, R>> {
        let text = path.text(PathRules::Opaque);
        let plain = self.search(groups, text, request);
        let readings = self.routes_of_readings(groups, request);
        if readings.is_empty() && plain.verdict().is_none() && !self.has_strict {
            return self.settled(&plain).map(|id| (id, false));
        }
        let route = self.sole(&readings);
        if route.is_some() {
            if let Some((id, true)) = plain.verdict() {
                return Ok((id, false));
            }
            let data = self.search(groups, &with_data_slashes(path), request);
            if let Some((id, true)) = data.verdict() {
                return Ok((id, true));
            }
        }
        Err(RouteError::AmbiguousPath { what, route })
    }

    /// The routes that the readings of the path lead to, each once.
    #[cold]
    fn routes_of_readings(&self, groups: &[&Group], request: &RequestView<'_>) -> Vec<usize> {
        let mut routes = Vec::new();
        readings::readings(request.path.as_bytes(), &mut |reading| {
            if let Some((id, _)) = self.search(groups, reading, request).verdict()
                && let Some(entry) = self.entries.get(id as usize)
                && !routes.contains(&entry.route)
            {
                routes.push(entry.route);
            }
        });
        routes
    }

    fn sole(&self, routes: &[usize]) -> Option<&R> {
        match routes {
            [route] => self.routes.get(*route).map(|(_, route)| route),
            _ => None,
        }
    }
}
