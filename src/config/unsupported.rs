//! What the config knows and this version does not do.
//!
//! Such a key is refused rather than ignored: somebody who writes `tls` and gets plain text has
//! been lied to. What is refused is cut from the tree before it is decoded, so that a feature that
//! lands is a row less here and a field more there.

use super::problem::Reporter;
use super::tree::{Kind, Node};

/// The keys, and the one value that each may still have because it asks for nothing. `[]` is any
/// item of a list, `*` any key of a mapping.
const KEYS: &[(&str, Option<&str>)] = &[
    ("store.etcd", None),
    ("routes.[].fence.partition", None),
    ("telemetry", None),
];

/// Cuts every key of the table from the tree below `root`, and reports it.
pub(super) fn cut(root: &mut Node, reporter: &mut Reporter<'_>) {
    for (pattern, harmless) in KEYS {
        let segments: Vec<&str> = pattern.split('.').collect();
        cut_one(root, &segments, *harmless, reporter);
    }
}

fn cut_one(node: &mut Node, pattern: &[&str], harmless: Option<&str>, reporter: &mut Reporter<'_>) {
    let Some((first, rest)) = pattern.split_first() else {
        return;
    };
    match &mut node.kind {
        Kind::List(items) if *first == "[]" => {
            for item in items {
                cut_one(item, rest, harmless, reporter);
            }
        }
        Kind::Map(entries) if rest.is_empty() => entries.retain(|entry| {
            if entry.key != *first {
                return true;
            }
            let same = |value: &Node| match &value.kind {
                Kind::Scalar(scalar) => Some(scalar.value.as_str()) == harmless,
                Kind::List(_) | Kind::Map(_) => false,
            };
            if !same(&entry.value) {
                let message = match harmless {
                    None => format!("{first} is not supported by this version"),
                    Some(only) => {
                        format!("{first} other than {only} is not supported by this version")
                    }
                };
                reporter.problem(&entry.key_at, message);
            }
            false
        }),
        Kind::Map(entries) => {
            for entry in entries
                .iter_mut()
                .filter(|entry| *first == "*" || entry.key == *first)
            {
                cut_one(&mut entry.value, rest, harmless, reporter);
            }
        }
        Kind::Scalar(_) | Kind::List(_) => {}
    }
}
