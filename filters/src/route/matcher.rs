//! What one route matches.

use http::Method;

use super::pattern::{HostPattern, PathTemplate, PatternError, Piece};
use crate::key::fold::fold;
use crate::key::template::is_query_name;
use crate::key::{Case, PathRules};

/// What a route matches: a path template and, where they are given, hosts, methods and names of
/// query parameters.
///
/// ```
/// use fencegate_filters::route::RouteMatcher;
///
/// let matcher = RouteMatcher::new("/{*object}")?.hosts(["{bucket}.s3.internal"])?;
/// assert_eq!(matcher.captures(), ["object", "bucket"]);
/// assert!(RouteMatcher::new("/a/{b").is_err());
/// # Ok::<(), fencegate_filters::route::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatcher {
    pub(super) hosts: Vec<HostPattern>,
    pub(super) path: PathTemplate,
    pub(super) methods: Vec<Method>,
    pub(super) query: Vec<Box<str>>,
    pub(super) rules: PathRules,
    pub(super) case: Case,
}

impl RouteMatcher {
    /// A route of every host and method, strict and case-sensitive.
    ///
    /// In the template `{name}` is one segment, not an empty one, and `{*name}` any number of
    /// segments, none included, so `/{*path}` matches `/` too. Literal segments are written
    /// decoded. A trailing slash changes nothing.
    ///
    /// # Errors
    ///
    /// Whatever no path can match, and captures that are not whole segments or of one name.
    pub fn new(path: &str) -> Result<Self, PatternError> {
        let matcher = Self {
            hosts: Vec::new(),
            path: PathTemplate::parse(path)?,
            methods: Vec::new(),
            query: Vec::new(),
            rules: PathRules::Strict,
            case: Case::Sensitive,
        };
        matcher.check_names(&[])?;
        Ok(matcher)
    }

    /// Only these hosts; none means every host, and requests without one.
    ///
    /// A host is exact, or has captures for labels (`{bucket}.s3.internal`); its first label can
    /// be `*` or `{*name}`, which is one label or more.
    ///
    /// # Errors
    ///
    /// Whatever no host can match, and a capture that the path has too.
    pub fn hosts<H: AsRef<str>>(
        mut self,
        hosts: impl IntoIterator<Item = H>,
    ) -> Result<Self, PatternError> {
        self.hosts = hosts
            .into_iter()
            .map(|host| {
                let host = HostPattern::parse(host.as_ref())?;
                self.check_names(&host.0)?;
                Ok(host)
            })
            .collect::<Result<_, PatternError>>()?;
        Ok(self)
    }

    /// Only these methods; none means every method. Methods are case-sensitive.
    #[must_use]
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Only with query parameters of these names, with or without values.
    ///
    /// # Errors
    ///
    /// A name that is empty, or that holds what a query gives a meaning to.
    pub fn query<N: AsRef<str>>(
        mut self,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, PatternError> {
        self.query = names
            .into_iter()
            .map(|name| {
                let name = name.as_ref();
                if is_query_name(name) {
                    Ok(name.into())
                } else {
                    Err(PatternError::QueryName(name.into()))
                }
            })
            .collect::<Result<_, PatternError>>()?;
        self.query.sort();
        self.query.dedup();
        Ok(self)
    }

    /// The rules by which the route reads paths.
    #[must_use]
    pub const fn path_rules(mut self, rules: PathRules) -> Self {
        self.rules = rules;
        self
    }

    /// Whether literal segments and parameter names are compared folded.
    #[must_use]
    pub const fn case(mut self, case: Case) -> Self {
        self.case = case;
        self
    }

    /// Whether some path may be one of this route and of the other. It may say so of routes that
    /// share none, and not the other way round: only segments that both write out, in front of any `{*name}`, tell two routes
    /// apart, and only where both read paths strictly.
    #[must_use]
    pub fn may_share_paths(&self, other: &Self) -> bool {
        if self.rules != PathRules::Strict || other.rules != PathRules::Strict {
            return true;
        }
        let mut pairs = self.path.0.iter().zip(&other.path.0);
        let told_apart = pairs.find_map(|pair| match pair {
            (Piece::Literal(one), Piece::Literal(another)) => {
                (one != another && fold(one) != fold(another)).then_some(true)
            }
            (Piece::Rest(_), _) | (_, Piece::Rest(_)) => Some(false),
            (Piece::Capture(_), _) | (_, Piece::Capture(_)) => None,
        });
        !told_apart.unwrap_or(false)
    }

    /// The captures that every match has: those of the path, and those that all hosts share.
    #[must_use]
    pub fn captures(&self) -> Vec<&str> {
        let of_path = self.path.0.iter().filter_map(Piece::name);
        let of_hosts = self.hosts.first().into_iter().flat_map(|first| {
            first.0.iter().filter_map(Piece::name).filter(|name| {
                self.hosts
                    .iter()
                    .all(|host| host.0.iter().any(|piece| piece.name() == Some(name)))
            })
        });
        of_path.chain(of_hosts).collect()
    }

    fn check_names(&self, host: &[Piece]) -> Result<(), PatternError> {
        let mut names: Vec<_> = self
            .path
            .0
            .iter()
            .chain(host)
            .filter_map(Piece::name)
            .collect();
        names.sort_unstable();
        match names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
            Some((name, _)) => Err(PatternError::Duplicate((*name).into())),
            None => Ok(()),
        }
    }
}
