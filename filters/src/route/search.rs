//! The search for the best route in one reading of a path.

use smallvec::SmallVec;

use super::pattern::labels;
use super::readings::DATA_SLASH;
use super::{Group, RequestView, RouteError, Router};
use crate::key::fold::fold;
use crate::key::{DecodedPath, PathRules, query};

/// The outcome of the search in one reading of a path.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// The id of the best entry.
    pub(super) best: Option<u32>,
    /// The id of the best entry of which the query doesn't say whether it matches.
    unclear: Option<u32>,
    /// Ids of entries that match but for the method.
    other_methods: SmallVec<[u32; 4]>,
    /// How many entries were looked at.
    pub(super) offered: usize,
}

impl Search {
    /// The entry that decides, and whether it does match.
    pub(super) fn verdict(&self) -> Option<(u32, bool)> {
        match (self.best, self.unclear) {
            (best, Some(unclear)) if best.is_none_or(|best| unclear < best) => {
                Some((unclear, false))
            }
            (best, _) => best.map(|best| (best, true)),
        }
    }
}

impl<R> Router<R> {
    /// The groups whose hosts match.
    pub(super) fn groups_of(&self, host: Option<&str>) -> SmallVec<[&Group; 4]> {
        let mut groups = SmallVec::new();
        if let Some(host) = host
            && !self.groups.is_empty()
        {
            let labels: SmallVec<[&str; 8]> = labels(host).collect();
            self.hosts.visit(&labels, &mut |found| {
                groups.extend(found.iter().filter_map(|&id| self.groups.get(id as usize)));
            });
        }
        groups.push(&self.every_host);
        groups
    }

    /// The best entry for one reading of the path.
    pub(super) fn search(
        &self,
        groups: &[&Group],
        text: &str,
        request: &RequestView<'_>,
    ) -> Search {
        let mut search = Search::default();
        for group in groups {
            if let Some(node) = &group.sensitive {
                node.visit(&segments(text), &mut |ids| {
                    self.weigh(ids, request, &mut search);
                });
            }
            if let Some(node) = &group.insensitive {
                node.visit(&segments(&fold(text)), &mut |ids| {
                    self.weigh(ids, request, &mut search);
                });
            }
        }
        search
    }

    /// Looks for the first of the entries, all of which match by host and path, that matches by
    /// method and query.
    fn weigh(&self, ids: &[u32], request: &RequestView<'_>, search: &mut Search) {
        for &id in ids {
            if search.best.is_some_and(|best| best < id) {
                return;
            }
            search.offered += 1;
            let Some((matcher, _)) = self
                .entries
                .get(id as usize)
                .and_then(|entry| self.routes.get(entry.route))
            else {
                continue;
            };
            let mut clear = true;
            let has_query = matcher.query.iter().all(|name| {
                request.query.is_some_and(|query| {
                    query::has(query, name, matcher.case).unwrap_or_else(|_| {
                        clear = false;
                        true
                    })
                })
            });
            if !has_query {
                continue;
            }
            if !matcher.methods.is_empty() && !matcher.methods.contains(request.method) {
                search.other_methods.push(id);
            } else if clear {
                search.best = Some(id);
                return;
            } else if search.unclear.is_none_or(|unclear| id < unclear) {
                search.unclear = Some(id);
            }
        }
    }

    /// The entry that a search settled on.
    pub(super) fn settled(&self, search: &Search) -> Result<u32, RouteError<'_, R>> {
        let matcher = |id: u32| {
            let entry = self.entries.get(id as usize)?;
            self.routes.get(entry.route).map(|(matcher, _)| matcher)
        };
        match search.verdict() {
            Some((id, true)) => Ok(id),
            Some((id, false)) => Err(RouteError::AmbiguousQuery {
                name: matcher(id)
                    .and_then(|matcher| matcher.query.first())
                    .map_or("", |name| name),
            }),
            None if search.other_methods.is_empty() => Err(RouteError::NoRoute),
            None => {
                let mut allowed: Vec<_> = search
                    .other_methods
                    .iter()
                    .filter_map(|&id| matcher(id))
                    .flat_map(|matcher| &matcher.methods)
                    .collect();
                allowed.sort_unstable_by_key(|method| method.as_str());
                allowed.dedup();
                Err(RouteError::MethodNotAllowed { allowed })
            }
        }
    }
}

/// The segments of a decoded path without its leading slash; one trailing slash makes none.
fn segments(text: &str) -> SmallVec<[&str; 16]> {
    if text.is_empty() {
        return SmallVec::new();
    }
    let text = text.strip_suffix('/').unwrap_or(text);
    // By bytes: a search for a character costs more than a segment is long.
    let mut segments = SmallVec::new();
    let mut start = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte == b'/' {
            segments.push(text.get(start..at).unwrap_or_default());
            start = at + 1;
        }
    }
    segments.push(text.get(start..).unwrap_or_default());
    segments
}

/// The decoded path with every `%2F` as a character of its segment.
pub(super) fn with_data_slashes(path: &DecodedPath<'_>) -> String {
    let data = path.encoded_slashes();
    path.text(PathRules::Opaque)
        .char_indices()
        .map(|(at, character)| {
            if data.contains(&at) {
                DATA_SLASH
            } else {
                character
            }
        })
        .collect()
}
