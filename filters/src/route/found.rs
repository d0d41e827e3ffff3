//! What the search for a route ends with.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method};
use smallvec::SmallVec;

use super::RouteMatcher;
use super::pattern::{HostPattern, Piece};
use crate::key::parts::Captures;
use crate::key::{
    AmbiguousPath, DecodedPath, DerivedKey, HostError, KeyError, KeyParts, KeyRules, PathRules,
};
use crate::{Reason, Refusal};

/// The route of a request, and what it captured.
#[derive(Clone, Debug)]
pub struct Match<'r, 'a, R> {
    /// What was registered with the route.
    pub route: &'r R,
    /// The route's place in the config.
    pub index: usize,
    pub(super) matcher: &'r RouteMatcher,
    pub(super) host_pattern: Option<&'r HostPattern>,
    pub(super) host: Option<Cow<'a, str>>,
    /// With its port, which a Destination is compared with.
    pub(super) raw_host: Option<&'a str>,
    pub(super) path: DecodedPath<'a>,
    /// Whether a `%2F` belongs to the segment that it stands in.
    pub(super) slashes_are_data: bool,
}

impl<R> Match<'_, '_, R> {
    /// The host, normalised.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The decoded path by the route's rules, as `{path}` has it.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.text(self.matcher.rules)
    }

    /// What the path and the host captured, by name. A `{*name}` that matched nothing is empty.
    #[must_use]
    pub fn captures(&self) -> Captures<'_> {
        let mut captures = Captures::new();
        self.capture_path(&mut captures);
        if let (Some(pattern), Some(host)) = (self.host_pattern, self.host.as_deref()) {
            capture_host(pattern, host, &mut captures);
        }
        captures
    }

    /// The keys of the request, by the rules of its route. The query and the header are those that
    /// are sent upstream.
    ///
    /// # Errors
    ///
    /// As for [`KeyRules::derive`].
    pub fn keys<'k>(
        &self,
        rules: &'k KeyRules,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<SmallVec<[DerivedKey<'k>; 2]>, KeyError> {
        rules.derive(&KeyParts {
            captures: &self.captures(),
            host: self.raw_host,
            path: self.path(),
            query,
            headers,
        })
    }

    fn capture_path<'c>(&'c self, captures: &mut Captures<'c>) {
        let pieces = &self.matcher.path.0;
        if !pieces.iter().any(|piece| piece.name().is_some()) {
            return;
        }
        let text = self.path.text(PathRules::Opaque);
        let data: &[usize] = if self.slashes_are_data {
            self.path.encoded_slashes()
        } else {
            &[]
        };
        let bounds = bounds(text, data);
        let mut next = 0;
        for (at, piece) in pieces.iter().enumerate() {
            let behind = pieces.len() - at - 1;
            let end = match piece {
                // Only a rest takes more or less than one segment.
                Piece::Rest(_) => bounds.len().saturating_sub(behind),
                _ => next + 1,
            };
            if let Some(name) = piece.name() {
                let first = bounds.get(next).filter(|_| next < end);
                let last = end.checked_sub(1).and_then(|last| bounds.get(last));
                let value = first.zip(last).map_or("", |(first, last)| {
                    // A trailing slash is part of an opaque name that may hold slashes at all.
                    let keeps_slash = behind == 0
                        && matches!(piece, Piece::Rest(_))
                        && self.matcher.rules == PathRules::Opaque;
                    let to = if keeps_slash { text.len() } else { last.1 };
                    text.get(first.0..to).unwrap_or_default()
                });
                captures.push((name, value));
            }
            next = end;
        }
    }
}

/// Where the segments of a path begin and end; slashes at the offsets in `data` are characters.
fn bounds(text: &str, data: &[usize]) -> SmallVec<[(usize, usize); 16]> {
    let mut bounds = SmallVec::new();
    let mut start = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte == b'/' && !data.contains(&at) {
            bounds.push((start, at));
            start = at + 1;
        }
    }
    // One trailing slash makes no segment.
    if start < text.len() {
        bounds.push((start, text.len()));
    }
    bounds
}

fn capture_host<'c>(pattern: &'c HostPattern, host: &'c str, captures: &mut Captures<'c>) {
    let mut rest = host;
    for piece in pattern.0.iter().rev() {
        let (head, label) = match rest.rsplit_once('.') {
            Some(pair) if !host.starts_with('[') && !matches!(piece, Piece::Rest(_)) => pair,
            _ => ("", rest),
        };
        if let Some(name) = piece.name() {
            captures.push((name, label));
        }
        rest = head;
    }
}

/// Why a request has no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError<'r, R> {
    /// No route matches.
    NoRoute,
    /// Routes match but for their methods, which are these, for `Allow`.
    MethodNotAllowed {
        /// Sorted, without duplicates.
        allowed: Vec<&'r Method>,
    },
    /// Servers read the path in different ways.
    AmbiguousPath {
        /// What is ambiguous about it.
        what: AmbiguousPath,
        /// The one route that every reading of the path leads to; `None` where there is no route,
        /// or not one.
        route: Option<&'r R>,
    },
    /// Whether the query has a parameter depends on whether `;` separates parameters.
    AmbiguousQuery {
        /// The parameter.
        name: &'r str,
    },
    /// `Host` names no single host.
    Host(HostError),
}

impl<R> fmt::Display for RouteError<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("no route matches the host and path: check the URL"),
            Self::MethodNotAllowed { allowed } => {
                f.write_str("no route takes this method here: use ")?;
                for (at, method) in allowed.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { ", " })?;
                    f.write_str(method.as_str())?;
                }
                Ok(())
            }
            Self::AmbiguousPath { what, .. } => what.fmt(f),
            Self::AmbiguousQuery { name } => write!(
                f,
                "the query parameter '{name}' stands beside a ';', which separates parameters for some servers: send it as '%3B'"
            ),
            Self::Host(error) => error.fmt(f),
        }
    }
}

impl<R: fmt::Debug> std::error::Error for RouteError<'_, R> {}

impl<R> From<&RouteError<'_, R>> for Refusal {
    fn from(error: &RouteError<'_, R>) -> Self {
        let reason = match error {
            RouteError::NoRoute => Reason::NoRoute,
            RouteError::MethodNotAllowed { .. } => Reason::MethodNotAllowed,
            RouteError::AmbiguousPath { .. } => Reason::AmbiguousPath,
            RouteError::AmbiguousQuery { .. } | RouteError::Host(_) => Reason::BadRequest,
        };
        let refusal = Self::new(reason, error.to_string());
        let RouteError::MethodNotAllowed { allowed } = error else {
            return refusal;
        };
        let names: Vec<&str> = allowed.iter().map(|method| method.as_str()).collect();
        match HeaderValue::try_from(names.join(", ")) {
            Ok(allowed) => refusal.with_allow(Arc::new(allowed)),
            Err(_) => refusal,
        }
    }
}
