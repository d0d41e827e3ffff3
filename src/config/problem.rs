//! What is wrong with a config file, and where.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest piece of the file that a problem repeats, in characters.
const MAX_QUOTED: usize = 60;

/// A place in the config file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// Which value stands there, such as `routes[0].fence.drain.timeout`; empty for the whole file.
    pub key_path: Arc<str>,
}

/// A value that remembers where it was written, for the stages that read more into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands; for a default, where the mapping stands that leaves it out.
    pub at: Position,
}

impl<T> Spanned<T> {
    /// A value and its place.
    pub const fn new(value: T, at: Position) -> Self {
        Self { value, at }
    }
}

/// One thing that is wrong, or at least suspicious, in a config file.
///
/// It prints as `FILE:LINE:COLUMN: KEY_PATH: MESSAGE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The config file.
    pub file: PathBuf,
    /// The line, from 1; 0 where there is no place to name, as for a file that can't be read.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// The value that the problem is about; empty for the whole file.
    pub key_path: String,
    /// One sentence without a full stop.
    pub message: String,
}

impl Problem {
    /// A problem at a place in `file`.
    pub fn new(file: &Path, at: &Position, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: at.line,
            column: at.column,
            key_path: at.key_path.to_string(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", Plain(&self.file.to_string_lossy()))?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.key_path.is_empty() {
            write!(f, " {}:", Plain(&self.key_path))?;
        }
        write!(f, " {}", Plain(&self.message))
    }
}

/// A text that may quote the file, with what could mislead a terminal spelt out.
struct Plain<'t>(&'t str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| match char {
            // Those that turn the direction of the text around them are no control characters.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                write!(f, "{}", char.escape_unicode())
            }
            char if char.is_control() => write!(f, "{}", char.escape_debug()),
            char => f.write_char(char),
        })
    }
}

/// Everything that is wrong with a config file, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems in the order of the file; those of one place keep the order they were found in.
    #[must_use]
    pub fn new(mut list: Vec<Problem>) -> Self {
        sort(&mut list);
        Self(list)
    }

    /// Each problem.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.0.len() {
            1 => f.write_str("1 problem"),
            count => write!(f, "{count} problems"),
        }
    }
}

impl std::error::Error for Problems {}

/// Collects the problems of one file.
pub(super) struct Reporter<'f> {
    file: &'f Path,
    problems: Vec<Problem>,
}

impl<'f> Reporter<'f> {
    pub(super) const fn new(file: &'f Path) -> Self {
        Self {
            file,
            problems: Vec::new(),
        }
    }

    pub(super) const fn file(&self) -> &'f Path {
        self.file
    }

    pub(super) fn problem(&mut self, at: &Position, message: impl Into<String>) {
        self.problems.push(Problem::new(self.file, at, message));
    }

    /// Adds those of another file.
    pub(super) fn add(&mut self, problems: Vec<Problem>) {
        self.problems.extend(problems);
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

/// Orders problems as a reader meets them, file by file.
pub(super) fn sort(list: &mut [Problem]) {
    let place = |problem: &Problem| (problem.line, problem.column);
    list.sort_by(|one, other| {
        let files = one.file.cmp(&other.file);
        files.then_with(|| place(one).cmp(&place(other)))
    });
}

/// A piece of the file as a problem repeats it: quoted, escaped and cut to a bearable length.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(MAX_QUOTED).collect();
    if short.len() == text.len() {
        format!("{short:?}")
    } else {
        format!("{short:?}…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize, key_path: &str) -> Position {
        Position {
            line,
            column,
            key_path: Arc::from(key_path),
        }
    }

    #[test]
    fn problems_print_in_the_order_of_the_file_with_a_count() {
        let file = Path::new("config.yaml");
        let problems = Problems::new(vec![
            Problem::new(file, &at(12, 7, "routes[0].path"), "second"),
            Problem::new(file, &at(3, 1, ""), "first"),
        ]);
        assert_eq!(
            problems.to_string(),
            "config.yaml:3:1: first\nconfig.yaml:12:7: routes[0].path: second\n2 problems"
        );
    }

    #[test]
    fn what_is_quoted_can_not_mislead_a_terminal() {
        let problem = Problem::new(
            Path::new("c\n.yaml"),
            &at(1, 2, "routes[0].na\u{1b}[2Jme"),
            "no path can have the segment '\u{1c}\u{202e}é'",
        );
        assert_eq!(
            problem.to_string(),
            "c\\n.yaml:1:2: routes[0].na\\u{1b}[2Jme: \
             no path can have the segment '\\u{1c}\\u{202e}é'"
        );
    }

    #[test]
    fn a_problem_without_a_place_names_the_file_only() {
        let problem = Problem::new(Path::new("c.yaml"), &Position::default(), "is not there");
        assert_eq!(problem.to_string(), "c.yaml: is not there");
    }

    #[test]
    fn what_is_repeated_is_short_and_printable() {
        assert_eq!(quoted("a\nb\u{1b}"), r#""a\nb\u{1b}""#);
        assert!(quoted(&"x".repeat(500)).chars().count() < 70);
    }
}
