//! YAML as a tree in which every node knows its place.

use std::sync::Arc;

use super::problem::{Position, quoted};

/// One value of the file.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A value that is one piece of text.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    /// As it was written: the only form that a problem may repeat.
    pub(super) written: String,
    /// As it is meant, with `${NAME}` replaced, which may make it a secret.
    pub(super) value: String,
    /// Written without quotes, so that it can be a number, `true`, `none` or nothing at all.
    pub(super) plain: bool,
}

/// One key of a mapping and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: Position,
    pub(super) value: Node,
}

impl Node {
    /// Whether nothing was written here: `key:`, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar(scalar) if scalar.is_null())
    }

    /// How many nodes it is made of, and how deep they are nested.
    pub(super) fn measure(&self) -> (usize, usize) {
        let below = |sum: (usize, usize), child: &Self| {
            let (nodes, depth) = child.measure();
            (sum.0 + nodes, sum.1.max(depth + 1))
        };
        match &self.kind {
            Kind::Scalar(_) => (1, 1),
            Kind::List(items) => items.iter().fold((1, 1), below),
            Kind::Map(entries) => entries.iter().map(|entry| &entry.value).fold((1, 1), below),
        }
    }

    /// Gives it another key path, and what is below it too.
    pub(super) fn move_to(&mut self, key_path: Arc<str>) {
        self.at.key_path = key_path;
        match &mut self.kind {
            Kind::Scalar(_) => {}
            Kind::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    item.move_to(item_path(&self.at.key_path, index));
                }
            }
            Kind::Map(entries) => {
                for entry in entries {
                    entry.key_at.key_path = entry_path(&self.at.key_path, &entry.key);
                    entry.value.move_to(entry.key_at.key_path.clone());
                }
            }
        }
    }
}

impl Scalar {
    /// Whether nothing was written here; a variable that is empty is text.
    pub(super) fn is_null(&self) -> bool {
        self.plain && matches!(self.written.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

/// `listeners` and 0 as `listeners[0]`.
pub(super) fn item_path(path: &str, index: usize) -> Arc<str> {
    Arc::from(format!("{path}[{index}]"))
}

/// `routes[0]` and `path` as `routes[0].path`.
pub(super) fn entry_path(path: &str, key: &str) -> Arc<str> {
    let simple = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let key = if !key.is_empty() && key.bytes().all(simple) {
        key.to_owned()
    } else {
        quoted(key)
    };
    if path.is_empty() {
        Arc::from(key)
    } else {
        Arc::from(format!("{path}.{key}"))
    }
}
