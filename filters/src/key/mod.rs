//! Keys: the names of protected resources.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
#[cfg(not(feature = "sim"))]
use std::sync::LazyLock;

#[cfg(feature = "sim")]
use foldhash::quality::FixedState;
#[cfg(not(feature = "sim"))]
use foldhash::quality::RandomState;

pub mod fold;
pub mod host;
pub mod path;
pub mod query;
pub mod rules;
pub mod template;

pub mod parts;
#[cfg(test)]
mod properties;

pub use host::{HostError, normalize_host};
pub use parts::{KeyError, KeyParts, destination_path, destination_scheme};
pub use path::{AmbiguousPath, Case, DecodedPath, PathRules};
pub use rules::{Access, DerivedKey, KeyRule, KeyRules};
pub use template::{KeyTemplate, TemplateError, Uses};

/// Keys come from clients, so their hash is seeded for each process.
#[cfg(not(feature = "sim"))]
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);
/// A simulation must come out the same in every process, and its keys come from nobody.
#[cfg(feature = "sim")]
static HASHER: FixedState = FixedState::with_seed(1);

/// A namespaced key, `NAMESPACE/KEY`, with its hash.
///
/// A clone is a reference count. The namespace never contains a slash, so two different pairs of
/// namespace and key never make the same text.
#[derive(Clone)]
pub struct Key {
    text: Arc<str>,
    hash: u64,
}

impl Key {
    /// The longest key, in bytes, the namespace not counted.
    pub const MAX_BYTES: usize = 1024;

    /// A key from its full text, `NAMESPACE/KEY`.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self {
            hash: HASHER.hash_one(text),
            text: Arc::from(text),
        }
    }

    /// A key of a namespace. The caller has checked that the namespace holds no slash and that the
    /// key is 1 to [`Key::MAX_BYTES`] bytes.
    #[must_use]
    pub fn new(namespace: &str, key: &str) -> Self {
        let mut text = String::with_capacity(namespace.len() + 1 + key.len());
        text.push_str(namespace);
        text.push('/');
        text.push_str(key);
        Self::from_text(&text)
    }

    /// The full text, `NAMESPACE/KEY`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How the keys begin that the gateway keeps for itself beside marks: no namespace does.
    pub const INTERNAL: char = '!';

    /// Whether this is such a key.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.text.starts_with(Self::INTERNAL)
    }

    /// The namespace: everything before the first slash.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.text.split_once('/').map_or(&*self.text, |pair| pair.0)
    }

    /// A hash of the text, the same for equal keys within one process.
    #[must_use]
    pub const fn hash_value(&self) -> u64 {
        self.hash
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.text)
    }
}
