//! The rules that the marks of a namespace were made under.
//!
//! A mark protects a resource only while the resource keeps its key. The rules are kept beside the
//! marks as text, so that a start or a reload under other ones can be refused and can say what
//! changed.

use std::collections::BTreeMap;

use super::model::{KeyRule, Route};

/// The canonical text of everything that a key of `route`, or its split into reads and writes,
/// comes from: `ROUTE.FIELD` to text. Two configs that mean the same have the same text, whatever
/// was left to defaults. A route that only refuses makes no keys and has none.
#[must_use]
pub fn rules(route: &Route) -> BTreeMap<String, String> {
    if route.deny {
        return BTreeMap::new();
    }
    let fence = &route.fence;
    let hosts = route.hosts.iter().map(|host| host.value.as_str());
    let fields = [
        ("hosts", sorted(hosts)),
        ("path", route.path.value.clone()),
        ("namespace", route.namespace.value.clone()),
        ("fence.require", fence.require.as_str().to_owned()),
        ("fence.mode", fence.mode.as_str().to_owned()),
        ("fence.keys", keys(&fence.keys)),
        ("fence.path", fence.path.as_str().to_owned()),
        ("fence.case", fence.case.as_str().to_owned()),
        (
            "fence.safe_methods",
            sorted(fence.safe_methods.iter().map(http::Method::as_str)),
        ),
    ];
    fields
        .into_iter()
        .map(|(field, text)| (format!("{}.{field}", route.name.value), text))
        .collect()
}

fn sorted<'t>(items: impl Iterator<Item = &'t str>) -> String {
    let mut items: Vec<&str> = items.collect();
    items.sort_unstable();
    items.dedup();
    items.join(", ")
}

/// In the order of the file, which is the order in which they are computed. The token's header is
/// not part of a key, nor of the split.
fn keys(rules: &[KeyRule]) -> String {
    let texts: Vec<String> = rules
        .iter()
        .map(|rule| {
            format!(
                "{:?} {} {}",
                rule.key.value,
                rule.when.as_str(),
                rule.access.as_str()
            )
        })
        .collect();
    texts.join(", ")
}
