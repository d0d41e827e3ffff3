//! The fingerprints of each namespace's rules, in one small file.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::disk::{Disk, replace};
use super::files::{RULES, seal, unseal};
use super::lock_mutex;
use crate::sync::Mutex;

/// What a namespace's keys were made by, and how long its upstreams may work on what is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRules {
    /// Each rule's name and its canonical text.
    pub fingerprint: BTreeMap<String, String>,
    /// The longest settle of the upstreams that the namespace reaches.
    pub settle: Duration,
}

/// By namespace.
#[derive(Default)]
pub(super) struct Rules(Mutex<BTreeMap<String, NamespaceRules>>);

impl Rules {
    /// Those of a new store, which has no namespaces.
    pub(super) fn none() -> Vec<u8> {
        seal("{}\n".to_owned())
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let rules = serde_json::from_str(unseal(bytes)?).ok()?;
        Some(Self(Mutex::new(rules)))
    }

    pub(super) fn get(&self, namespace: &str) -> Option<NamespaceRules> {
        lock_mutex(&self.0).get(namespace).cloned()
    }

    pub(super) fn all(&self) -> BTreeMap<String, NamespaceRules> {
        lock_mutex(&self.0).clone()
    }

    /// Replaces the rules of these namespaces, durably and in one step.
    pub(super) fn put(
        &self,
        disk: &dyn Disk,
        changed: &BTreeMap<String, NamespaceRules>,
    ) -> std::io::Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let mut all = lock_mutex(&self.0);
        let mut next = all.clone();
        next.extend(changed.clone());
        let mut text = serde_json::to_string_pretty(&next).map_err(std::io::Error::other)?;
        text.push('\n');
        replace(disk, RULES, &seal(text))?;
        *all = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim_disk::SimDisk;
    use super::*;

    fn put(namespaces: usize) -> (Rules, u64) {
        let (rules, disk) = (Rules::default(), SimDisk::default());
        let names = (0..namespaces).map(|n| (format!("n{n}"), NamespaceRules::default()));
        rules.put(&disk, &names.collect()).unwrap();
        (rules, disk.operations())
    }

    #[test]
    fn ten_thousand_namespaces_are_put_as_one_is() {
        let (rules, operations) = put(10_000);
        assert_eq!(rules.all().len(), 10_000);
        assert_eq!(operations, put(1).1);
        assert_eq!(put(0).1, 0);
    }
}
