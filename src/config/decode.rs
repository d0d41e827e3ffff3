//! From the tree to typed values, collecting every problem on the way.
//!
//! A value that can't be read is reported and replaced by a default, so that what follows it is
//! still looked at. Nobody sees the replacement: a config with problems is not handed out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::choice::Choice;
use super::expand::Env;
use super::problem::{Position, Problem, Reporter, Spanned, quoted};
use super::scalar::{self, ONE_YEAR};
use super::tree::{Entry, Kind, Node, Scalar};
use crate::signed::KeySet;

/// Reads typed values out of nodes.
pub(super) struct Decoder<'a> {
    pub(super) reporter: Reporter<'a>,
    pub(super) env: Env<'a>,
    /// The files that were read besides.
    pub(super) files: Vec<PathBuf>,
    /// The keys that they have; `None` where they are broken.
    pub(super) key_sets: BTreeMap<PathBuf, Option<Arc<KeySet>>>,
    /// What is odd about them.
    pub(super) warnings: Vec<Problem>,
}

impl<'a> Decoder<'a> {
    pub(super) const fn new(file: &'a Path, env: Env<'a>) -> Self {
        Self {
            reporter: Reporter::new(file),
            env,
            files: Vec::new(),
            key_sets: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, at: &Position, message: impl Into<String>) {
        self.reporter.problem(at, message);
    }

    /// A mapping; nothing at all is an empty one, as where all of a section is commented out.
    pub(super) fn map<'n>(&mut self, node: &'n Node) -> Map<'n> {
        let (entries, broken): (&[Entry], bool) = match &node.kind {
            Kind::Map(entries) => (entries, false),
            _ if node.is_null() => (&[], false),
            _ => {
                self.wrong_type(node, "a mapping");
                (&[], true)
            }
        };
        Map {
            at: &node.at,
            entries,
            known: Vec::new(),
            broken,
        }
    }

    /// The items of a list; `None` when there is none, or nothing was written.
    pub(super) fn list<'n>(&mut self, node: &'n Node) -> Option<&'n [Node]> {
        match &node.kind {
            Kind::List(items) => Some(items),
            _ if node.is_null() => None,
            _ => {
                self.wrong_type(node, "a list");
                None
            }
        }
    }

    /// A list of one kind of item; those that can't be read are left out.
    pub(super) fn items<T>(
        &mut self,
        node: &Node,
        mut read: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.list(node)?;
        Some(items.iter().filter_map(|item| read(self, item)).collect())
    }

    /// Text. What YAML takes for a number or a truth value must be quoted, lest `name: 1e3` and
    /// `name: no` surprise somebody.
    pub(super) fn text<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        let scalar = self.scalar(node, "text")?;
        let literal = scalar.plain && scalar.written == scalar.value;
        let kind = if scalar.is_null() {
            Some("nothing")
        } else if literal && matches!(scalar.value.as_str(), "true" | "false") {
            Some("a truth value")
        } else if literal
            && scalar.value.parse::<f64>().is_ok()
            && scalar.value.contains(|c: char| c.is_ascii_digit())
        {
            Some("a number")
        } else {
            None
        };
        match kind {
            None => Some(&scalar.value),
            Some("nothing") => {
                self.problem(&node.at, "expected text, found nothing");
                None
            }
            Some(kind) => {
                let message = format!("expected text, found {kind}; put it in quotes");
                self.problem(&node.at, message);
                None
            }
        }
    }

    /// Text and its place.
    pub(super) fn spanned(&mut self, node: &Node) -> Option<Spanned<String>> {
        let text = self.text(node)?.to_owned();
        if text.is_empty() {
            self.problem(&node.at, "expected text, found \"\"");
            return None;
        }
        Some(Spanned::new(text, node.at.clone()))
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, node: &Node) -> Option<bool> {
        let scalar = self.scalar(node, "true or false")?;
        match scalar.value.as_str() {
            "true" if scalar.plain => Some(true),
            "false" if scalar.plain => Some(false),
            _ => self.expected(node, "true or false"),
        }
    }

    /// A whole number of a range.
    pub(super) fn number(&mut self, node: &Node, least: u64, most: u64) -> Option<u64> {
        let scalar = self.scalar(node, "a number")?;
        let digits = scalar.plain && scalar::is_digits(&scalar.value);
        match scalar.value.parse::<u64>() {
            Ok(number) if digits && (least..=most).contains(&number) => Some(number),
            _ if digits && most == u64::MAX => {
                self.expected(node, &format!("a whole number of at least {least}"))
            }
            _ if digits => self.expected(node, &format!("a number from {least} to {most}")),
            _ => self.expected(node, "a whole number"),
        }
    }

    /// A whole number that counts things in memory.
    pub(super) fn count(&mut self, node: &Node, least: u64, most: u64) -> Option<usize> {
        let number = self.number(node, least, most)?;
        usize::try_from(number).ok()
    }

    /// A duration such as `5s`, from `least` to a year.
    pub(super) fn duration(&mut self, node: &Node, least: Duration) -> Option<Duration> {
        let scalar = self.scalar(node, "a duration such as 250ms, 5s or 2m")?;
        match scalar::duration(&scalar.value) {
            None => self.expected(node, "a duration such as 250ms, 5s or 2m"),
            Some(duration) if duration < least => {
                self.expected(node, &format!("a duration of at least {least:?}"))
            }
            Some(duration) if duration > ONE_YEAR => {
                self.expected(node, "a duration of at most 365 days")
            }
            duration => duration,
        }
    }

    /// A size such as `64KiB`, of a range.
    pub(super) fn size(&mut self, node: &Node, least: u64, most: u64) -> Option<u64> {
        let scalar = self.scalar(node, "a size such as 64KiB or 1GiB")?;
        match scalar::size(&scalar.value) {
            None => self.expected(node, "a size such as 64KiB or 1GiB"),
            Some(size) if size < least || size > most => {
                let least = scalar::show_size(least);
                let most = scalar::show_size(most);
                self.expected(node, &format!("a size from {least} to {most}"))
            }
            size => size,
        }
    }

    /// What `none` switches off; the outer `None` says that it could not be read.
    #[expect(
        clippy::option_option,
        reason = "not readable and switched off are two things"
    )]
    pub(super) fn or_none<T>(
        &mut self,
        node: &Node,
        read: impl FnOnce(&mut Self, &Node) -> Option<T>,
    ) -> Option<Option<T>> {
        match &node.kind {
            Kind::Scalar(scalar) if scalar.plain && scalar.value == "none" => Some(None),
            _ => read(self, node).map(Some),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Choice>(&mut self, node: &Node) -> Option<T> {
        let words: Vec<&str> = T::ALL.iter().map(|choice| choice.word()).collect();
        let expected = match words.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => words.concat(),
        };
        let scalar = self.scalar(node, &expected)?;
        let found = T::ALL.iter().find(|choice| choice.word() == scalar.value);
        found.copied().or_else(|| self.expected(node, &expected))
    }

    /// Reports that a value should be something else, and repeats it as it was written.
    pub(super) fn expected<T>(&mut self, node: &Node, expected: &str) -> Option<T> {
        let found = match &node.kind {
            Kind::Scalar(_) if node.is_null() => "nothing".to_owned(),
            Kind::Scalar(scalar) => quoted(&scalar.written),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
        };
        self.problem(&node.at, format!("expected {expected}, found {found}"));
        None
    }

    fn scalar<'n>(&mut self, node: &'n Node, expected: &str) -> Option<&'n Scalar> {
        match &node.kind {
            Kind::Scalar(scalar) => Some(scalar),
            Kind::List(_) | Kind::Map(_) => self.expected(node, expected),
        }
    }

    /// As [`Self::expected`], but text is not repeated: where a mapping or a list should be, it may
    /// be anything.
    fn wrong_type(&mut self, node: &Node, expected: &str) {
        let found = match &node.kind {
            Kind::Scalar(_) => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        };
        self.problem(&node.at, format!("expected {expected}, found {found}"));
    }
}

/// A mapping that is being read. Every key must be asked for, so that the rest is known to be
/// unknown.
pub(super) struct Map<'n> {
    pub(super) at: &'n Position,
    entries: &'n [Entry],
    known: Vec<&'static str>,
    /// What stands here is no mapping, which was reported.
    broken: bool,
}

impl<'n> Map<'n> {
    /// The value of a key that may be left out.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'n Node> {
        self.known.push(key);
        self.entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    /// The value of a key that must be there.
    pub(super) fn require(&mut self, d: &mut Decoder<'_>, key: &'static str) -> Option<&'n Node> {
        let value = self.get(key);
        if value.is_none() && !self.broken {
            d.problem(self.at, format!("{key} is missing"));
        }
        value
    }

    /// A key that may be left out, and its default.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&'n Node) -> Option<T>,
    ) -> T {
        self.get(key).and_then(read).unwrap_or(default)
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(self, d: &mut Decoder<'_>) {
        for entry in self.entries {
            if self.known.contains(&entry.key.as_str()) {
                continue;
            }
            let message = if entry.key == "<<" {
                "merge keys are not supported".to_owned()
            } else {
                unknown(&entry.key, &self.known)
            };
            d.problem(&entry.key_at, message);
        }
    }
}

/// The named things of a mapping whose keys are free.
pub(super) fn named<T>(
    d: &mut Decoder<'_>,
    node: &Node,
    mut read: impl FnMut(&mut Decoder<'_>, &Node) -> T,
) -> BTreeMap<String, T> {
    let map = d.map(node);
    let mut out = BTreeMap::new();
    for entry in map.entries {
        out.insert(entry.key.clone(), read(d, &entry.value));
    }
    out
}

/// Each key of a mapping with its place and value.
pub(super) fn pairs<'n>(
    d: &mut Decoder<'_>,
    node: &'n Node,
) -> impl Iterator<Item = (&'n str, &'n Position, &'n Node)> {
    let map = d.map(node);
    map.entries
        .iter()
        .map(|entry| (entry.key.as_str(), &entry.key_at, &entry.value))
}

fn unknown(key: &str, known: &[&str]) -> String {
    let alike = known
        .iter()
        .map(|candidate| (distance(key, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(3));
    match alike {
        Some((_, candidate)) => {
            format!("unknown key {}; did you mean {candidate}?", quoted(key))
        }
        None => format!(
            "unknown key {}; expected one of {}",
            quoted(key),
            known.join(", ")
        ),
    }
}

/// How many characters must be put in, taken out, replaced or swapped with their neighbour to make
/// one key of another; case and the kind of dash are not counted.
fn distance(left: &str, right: &str) -> usize {
    let fold = |c: char| {
        if c == '-' {
            '_'
        } else {
            c.to_ascii_lowercase()
        }
    };
    let right: Vec<char> = right.chars().map(fold).collect();
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    // The rows of the two prefixes of `left` before this one, and the characters that ended them.
    let mut above: Vec<usize> = (0..=right.len()).collect();
    let mut above_that: Vec<usize> = Vec::new();
    let mut l_before = None;
    for (row_index, l) in left.chars().map(fold).enumerate() {
        let mut row = vec![row_index + 1];
        let mut r_before = None;
        for (index, &r) in right.iter().enumerate() {
            let mut least = (at(&above, index) + usize::from(l != r))
                .min(at(&above, index + 1) + 1)
                .min(at(&row, index) + 1);
            if l_before == Some(r) && r_before == Some(l) {
                least = least.min(at(&above_that, index.saturating_sub(1)) + 1);
            }
            row.push(least);
            r_before = Some(r);
        }
        above_that = std::mem::replace(&mut above, row);
        l_before = Some(l);
    }
    at(&above, right.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (left, right, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("adress", "address", 1),
            ("Token-Headers", "token_headers", 0),
            ("drian", "drain", 1),
            ("stroe", "store", 1),
            ("ab", "ba", 1),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
    }

    #[test]
    fn a_key_that_is_like_none_lists_them_all() {
        assert_eq!(
            unknown("colour", &["path", "cache"]),
            "unknown key \"colour\"; expected one of path, cache"
        );
        assert_eq!(
            unknown("pth", &["path", "cache"]),
            "unknown key \"pth\"; did you mean path?"
        );
    }
}
