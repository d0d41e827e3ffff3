//! Path templates and host patterns.

use std::fmt;

use super::trie::Step;
use crate::key::fold::fold;
use crate::key::normalize_host;
use crate::key::template::is_capture_name;

/// Why a text is no path template or host pattern, or a route can't be made of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// The path does not begin with a slash.
    Relative,
    /// A `{` without a `}`, or the other way round.
    Braces,
    /// A capture that is not a whole segment or a whole label.
    PartialSegment(Box<str>),
    /// A capture's name that is not a letter or `_`, then letters, digits, `_` and `-`.
    Name(Box<str>),
    /// Two captures of one name in a path and a host pattern of one route.
    Duplicate(Box<str>),
    /// Two `{*rest}` in one path.
    TwoRests,
    /// An empty segment or label.
    EmptySegment,
    /// A segment that no path can have: `.`, `..`, a control character, a query, a backslash.
    Unreachable(Box<str>),
    /// An escape in a literal segment; segments are compared decoded.
    Escape(Box<str>),
    /// A bare `*`, which is written `{*name}` in a path.
    Star,
    /// A `{*name}` or `*` in a host that is not its first label.
    HostWildcard,
    /// A label that no host has.
    HostLabel(Box<str>),
    /// A query parameter's name that is empty or holds what a query gives a meaning to.
    QueryName(Box<str>),
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relative => f.write_str("the path must begin with '/'"),
            Self::Braces => f.write_str("the braces don't pair"),
            Self::PartialSegment(segment) => write!(
                f,
                "'{segment}': a capture must be the whole segment, such as '/{{id}}/'"
            ),
            Self::Name(name) => write!(
                f,
                "'{name}' is not a capture name: use letters, digits, '_' and '-'"
            ),
            Self::Duplicate(name) => write!(f, "the capture '{name}' stands there twice"),
            Self::TwoRests => f.write_str("a path can have one '{*name}' only"),
            Self::EmptySegment => f.write_str("a segment or label is empty"),
            Self::Unreachable(segment) => write!(f, "no path can have the segment '{segment}'"),
            Self::Escape(segment) => write!(
                f,
                "'{segment}': write the segment decoded, paths are compared after decoding"
            ),
            Self::Star => f.write_str("write '{*name}' instead of '*'"),
            Self::HostWildcard => {
                f.write_str("'*' and '{*name}' can only be the first label of a host")
            }
            Self::HostLabel(label) => write!(f, "no host can have the label '{label}'"),
            Self::QueryName(name) => write!(f, "'{name}' is not a query parameter's name"),
        }
    }
}

impl std::error::Error for PatternError {}

/// One segment of a path template or one label of a host pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Literal(Box<str>),
    Capture(Box<str>),
    /// The name is empty for a bare `*` in a host.
    Rest(Box<str>),
}

impl Piece {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let Some(inner) = text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
        else {
            if !text.contains(['{', '}']) {
                return Ok(Self::Literal(text.into()));
            }
            let balanced = text.matches('{').count() == text.matches('}').count();
            return Err(if balanced {
                PatternError::PartialSegment(text.into())
            } else {
                PatternError::Braces
            });
        };
        if inner.contains(['{', '}']) {
            return Err(PatternError::PartialSegment(text.into()));
        }
        let (name, rest) = match inner.strip_prefix('*') {
            Some(name) => (name, true),
            None => (inner, false),
        };
        if !is_capture_name(name) {
            return Err(PatternError::Name(name.into()));
        }
        Ok(if rest {
            Self::Rest(name.into())
        } else {
            Self::Capture(name.into())
        })
    }

    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Capture(name) | Self::Rest(name) if !name.is_empty() => Some(name),
            _ => None,
        }
    }

    const fn is_rest(&self) -> bool {
        matches!(self, Self::Rest(_))
    }

    fn step(&self) -> Step<'_> {
        match self {
            Self::Literal(text) => Step::Literal(text),
            Self::Capture(_) => Step::Capture,
            Self::Rest(_) => Step::Rest,
        }
    }
}

/// A parsed path template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathTemplate(pub(super) Vec<Piece>);

impl PathTemplate {
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        let body = text.strip_prefix('/').ok_or(PatternError::Relative)?;
        let body = body.strip_suffix('/').unwrap_or(body);
        if body.is_empty() {
            return if text == "/" {
                Ok(Self(Vec::new()))
            } else {
                Err(PatternError::EmptySegment)
            };
        }
        let pieces = body
            .split('/')
            .map(|segment| {
                let piece = Piece::parse(segment)?;
                if let Piece::Literal(text) = &piece {
                    check_literal(text)?;
                }
                Ok(piece)
            })
            .collect::<Result<Vec<_>, PatternError>>()?;
        if pieces.iter().filter(|piece| piece.is_rest()).count() > 1 {
            return Err(PatternError::TwoRests);
        }
        Ok(Self(pieces))
    }

    /// The same with its literals folded.
    pub(super) fn folded(&self) -> Self {
        Self(
            self.0
                .iter()
                .map(|piece| match piece {
                    Piece::Literal(text) => Piece::Literal(fold(text).into()),
                    other => other.clone(),
                })
                .collect(),
        )
    }

    pub(super) fn steps(&self) -> Vec<Step<'_>> {
        self.0.iter().map(Piece::step).collect()
    }

    /// How specific the template is: of two that match one path, the lesser is the more specific.
    pub(super) fn rank(&self) -> Vec<u8> {
        rank(self.0.iter())
    }
}

fn check_literal(text: &str) -> Result<(), PatternError> {
    let unreachable = matches!(text, "." | "..")
        || text
            .chars()
            .any(|c| c.is_control() || matches!(c, '\\' | '?' | '#'));
    let bytes = text.as_bytes();
    let escape = bytes.windows(3).any(|window| match window {
        [b'%', high, low] => high.is_ascii_hexdigit() && low.is_ascii_hexdigit(),
        _ => false,
    });
    if text.is_empty() {
        Err(PatternError::EmptySegment)
    } else if text == "*" {
        Err(PatternError::Star)
    } else if unreachable {
        Err(PatternError::Unreachable(text.into()))
    } else if escape {
        Err(PatternError::Escape(text.into()))
    } else {
        Ok(())
    }
}

/// Position by position: a literal before a capture, a capture before the end, the end before a
/// rest; behind a rest, the end comes last.
fn rank<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Vec<u8> {
    let mut rank: Vec<u8> = pieces
        .map(|piece| match piece {
            Piece::Literal(_) => 0,
            Piece::Capture(_) => 1,
            Piece::Rest(_) => 3,
        })
        .collect();
    rank.push(if rank.contains(&3) { 4 } else { 2 });
    rank
}

/// A parsed host pattern, its labels from left to right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPattern(pub(super) Vec<Piece>);

impl HostPattern {
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        if text.starts_with('[') {
            let address = normalize_host(text)
                .ok()
                .filter(|_| text.ends_with(']'))
                .ok_or_else(|| PatternError::HostLabel(text.into()))?;
            return Ok(Self(vec![Piece::Literal(address.into())]));
        }
        let pieces = text
            .strip_suffix('.')
            .unwrap_or(text)
            .split('.')
            .enumerate()
            .map(|(at, label)| {
                let piece = if label == "*" {
                    Piece::Rest("".into())
                } else {
                    Piece::parse(label)?
                };
                match piece {
                    Piece::Rest(_) if at > 0 => Err(PatternError::HostWildcard),
                    Piece::Literal(label) if label.is_empty() => Err(PatternError::EmptySegment),
                    Piece::Literal(label) => match normalize_host(&label) {
                        Ok(normal) if normal.len() == label.len() => {
                            Ok(Piece::Literal(normal.into()))
                        }
                        _ => Err(PatternError::HostLabel(label)),
                    },
                    piece => Ok(piece),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self(pieces))
    }

    /// From the right, as names nest. A wildcard is at least one label.
    pub(super) fn steps(&self) -> Vec<Step<'_>> {
        let mut steps: Vec<_> = self.0.iter().rev().map(Piece::step).collect();
        if steps.last() == Some(&Step::Rest) {
            steps.insert(steps.len() - 1, Step::Capture);
        }
        steps
    }

    pub(super) fn rank(&self) -> Vec<u8> {
        let mut rank = rank(self.0.iter().rev());
        if let Some(at) = rank.iter().position(|&step| step == 3) {
            rank.insert(at, 1);
        }
        rank
    }
}

/// The labels of a normalised host, from the right. An address is one label.
pub(super) fn labels(host: &str) -> impl Iterator<Item = &str> {
    let address = host.starts_with('[');
    host.rsplit(move |c| c == '.' && !address)
}

#[cfg(test)]
mod tests {
    use super::PatternError::*;
    use crate::route::RouteMatcher;

    #[test]
    fn templates_that_can_match_nothing_are_errors() {
        for (template, error) in [
            ("objects", Relative),
            ("", Relative),
            ("/{a", Braces),
            ("/a}", Braces),
            ("/a{b}", PartialSegment("a{b}".into())),
            ("/{a}{b}", PartialSegment("{a}{b}".into())),
            ("/{}", Name("".into())),
            ("/{*}", Name("".into())),
            ("/{query.a}", Name("query.a".into())),
            ("/{a}/{a}", Duplicate("a".into())),
            ("/{a}/{*a}", Duplicate("a".into())),
            ("/{*a}/x/{*b}", TwoRests),
            ("//", EmptySegment),
            ("/a//b", EmptySegment),
            ("/a/..", Unreachable("..".into())),
            ("/a?b", Unreachable("a?b".into())),
            ("/a%20b", Escape("a%20b".into())),
            ("/a/*", Star),
        ] {
            assert_eq!(RouteMatcher::new(template), Err(error), "{template}");
        }
        for (host, error) in [
            ("", EmptySegment),
            ("a..b", EmptySegment),
            ("a.*", HostWildcard),
            ("a.{*b}", HostWildcard),
            ("a{b}.c", PartialSegment("a{b}".into())),
            ("{a", Braces),
            ("{x}.a", Duplicate("x".into())),
            ("a:80", HostLabel("a:80".into())),
            ("a b", HostLabel("a b".into())),
            ("[::1]:80", HostLabel("[::1]:80".into())),
            ("[x]", HostLabel("[x]".into())),
        ] {
            assert_eq!(
                RouteMatcher::new("/{x}").unwrap().hosts([host]),
                Err(error),
                "{host}"
            );
        }
        assert!(RouteMatcher::new("/").unwrap().query([""]).is_err());
        assert!(RouteMatcher::new("/").unwrap().query(["a=b"]).is_err());
    }
}
