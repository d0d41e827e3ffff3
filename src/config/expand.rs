//! `${NAME}` in values: replaced by the environment, before anything else reads them.
//!
//! Keys are left alone, so that the environment fills the config's blanks but never changes its
//! shape. `$$` is a dollar sign; a dollar sign before anything else is itself.

use super::problem::{Position, Reporter};
use super::tree::{Kind, Node};

/// The environment, as a function from names to values.
pub(super) type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Replaces every `${NAME}` in the values below `node`.
pub(super) fn expand(node: &mut Node, env: Env<'_>, reporter: &mut Reporter<'_>) {
    match &mut node.kind {
        Kind::Scalar(scalar) => {
            if scalar.written.contains('$') {
                scalar.value = replace(&scalar.written, &node.at, env, reporter);
            }
        }
        Kind::List(items) => {
            for item in items {
                expand(item, env, reporter);
            }
        }
        Kind::Map(entries) => {
            for entry in entries {
                expand(&mut entry.value, env, reporter);
            }
        }
    }
}

/// Whether `name` can be the name of an environment variable. Whatever else stands in its place may
/// be a secret that slipped, so problems repeat names of this form only.
pub(super) fn is_name(name: &str) -> bool {
    let start = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    name.as_bytes().first().is_some_and(start)
        && name
            .bytes()
            .all(|byte| start(&byte) || byte.is_ascii_digit())
}

fn replace(text: &str, at: &Position, env: Env<'_>, reporter: &mut Reporter<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let Some((name, after)) = after.split_once('}').filter(|pair| is_name(pair.0)) else {
                let message = "expected the name of an environment variable, as in ${NAME}, \
                               after \"${\"; a dollar sign itself is written $$";
                reporter.problem(at, message);
                return out;
            };
            match env(name) {
                Some(value) => out.push_str(&value),
                None => reporter.problem(at, not_set(name)),
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// What is said of a variable that is missing.
pub(super) fn not_set(name: &str) -> String {
    format!("the environment variable {name} is not set, or is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn replaced(text: &str) -> (String, Vec<String>) {
        let mut reporter = Reporter::new(Path::new("c.yaml"));
        let env = |name: &str| (name == "HOST").then(|| "${HOST}$$".to_owned());
        let out = replace(text, &Position::default(), &env, &mut reporter);
        let problems = reporter.into_problems();
        (out, problems.into_iter().map(|p| p.message).collect())
    }

    #[test]
    fn variables_are_replaced_once() {
        assert_eq!(replaced("a${HOST}b").0, "a${HOST}$$b");
    }

    #[test]
    fn dollar_signs_are_escaped_or_alone() {
        assert_eq!(replaced("$$ $1 $ $${HOST} $").0, "$ $1 $ ${HOST} $");
        assert_eq!(replaced("$${HOST}").1, Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(replaced("${OTHER}").1.concat().contains("OTHER is not set"));
    }

    #[test]
    fn what_is_no_name_is_not_repeated() {
        for text in ["${hunter 2}", "${", "${}", "${2}", "${hunter"] {
            let problems = replaced(text).1;
            assert_eq!(problems.len(), 1, "{text}");
            assert!(!problems.concat().contains("hunter"), "{text}");
        }
    }
}
