//! What only shows when the parts of a config are looked at together.

use std::collections::BTreeMap;
use std::path::Path;

use super::address::Url;
use super::choice::{Body, NewEpochs, Require};
use super::decode::Decoder;
use super::model::{Config, Route};
use super::problem::{Position, Problem, Spanned, quoted};
use super::tree::{Kind, Node};

/// The longest name of a route, an upstream or a namespace, in bytes.
const MAX_NAME: usize = 64;

/// Reports what makes the parts of the config unfit for each other.
pub(super) fn check(d: &mut Decoder<'_>, root: &Node, config: &Config) {
    at_least_one(d, root);
    addresses(d, config);
    upstream_names(d, root);
    let mut names: BTreeMap<&str, &Spanned<String>> = BTreeMap::new();
    for (index, route) in config.routes.iter().enumerate() {
        name(d, &route.name, "a route's name");
        if route.namespace != route.name {
            name(d, &route.namespace, "a namespace");
        }
        if let Some(first) = names.get(route.name.value.as_str()) {
            let message = format!(
                "another route is named {} too, in line {}",
                quoted(&route.name.value),
                first.at.line
            );
            d.problem(&route.name.at, message);
        } else if !route.name.value.is_empty() {
            names.insert(&route.name.value, &route.name);
        }
        upstream(d, root, route);
        if route.fence.body == Body::Spool && config.limits.body.is_none() {
            let at = fence_key(root, index, "body").unwrap_or_else(|| route.name.at.clone());
            d.problem(&at, "body: spool needs a limits.body that is not none");
        }
        token_headers(d, config, route);
    }
}

fn at_least_one(d: &mut Decoder<'_>, root: &Node) {
    for (section, one) in [
        ("listeners", "listener"),
        ("upstreams", "upstream"),
        ("routes", "route"),
    ] {
        // A section that is missing or of another type was reported already.
        let Some(node) = child(root, section) else {
            continue;
        };
        let empty = match &node.kind {
            Kind::List(items) => items.is_empty(),
            Kind::Map(entries) => section == "upstreams" && entries.is_empty(),
            Kind::Scalar(_) => node.is_null(),
        };
        if empty {
            d.problem(&node.at, format!("at least one {one} is needed"));
        }
    }
}

fn addresses(d: &mut Decoder<'_>, config: &Config) {
    let listeners = config.listeners.iter().map(|listener| &listener.address);
    let all = listeners.chain(config.admin.iter().map(|admin| &admin.address));
    let mut seen: Vec<&Spanned<super::Address>> = Vec::new();
    for address in all.filter(|address| address.value.port() != 0) {
        match seen.iter().find(|first| first.value == address.value) {
            Some(first) => {
                let message = format!(
                    "{} is listened on already, in line {}",
                    address.value, first.at.line
                );
                d.problem(&address.at, message);
            }
            None => seen.push(address),
        }
    }
    if let Some(admin) = &config.admin
        && !admin.address.value.is_loopback()
        && admin.tokens.is_empty()
        && !admin.insecure
    {
        let message = "others than this machine reach this address: it needs admin.tokens, or \
                       admin.insecure: true";
        d.problem(&admin.address.at, message);
    }
}

fn upstream_names(d: &mut Decoder<'_>, root: &Node) {
    if let Some(Kind::Map(entries)) = child(root, "upstreams").map(|node| &node.kind) {
        for entry in entries {
            let spanned = Spanned::new(entry.key.clone(), entry.key_at.clone());
            name(d, &spanned, "an upstream's name");
        }
    }
}

fn name(d: &mut Decoder<'_>, name: &Spanned<String>, what: &str) {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    // One that is missing was reported already.
    if name.value.len() > MAX_NAME || !name.value.bytes().all(legal) {
        let message = format!(
            "{what} is made of 1 to {MAX_NAME} letters, digits, dots, dashes and underscores, \
             found {}",
            quoted(&name.value)
        );
        d.problem(&name.at, message);
    }
}

fn upstream(d: &mut Decoder<'_>, root: &Node, route: &Route) {
    let Some(name) = &route.upstream else { return };
    let Some(Kind::Map(entries)) = child(root, "upstreams").map(|node| &node.kind) else {
        return;
    };
    if !entries.iter().any(|entry| entry.key == name.value) {
        let known: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let message = format!(
            "there is no upstream {}; there is {}",
            quoted(&name.value),
            known.join(", ")
        );
        d.problem(&name.at, message);
    }
}

/// A header that the upstream's config sets is no longer what the client sent in it.
fn token_headers(d: &mut Decoder<'_>, config: &Config, route: &Route) {
    let Some(upstream) =
        (route.upstream.as_ref()).and_then(|name| config.upstreams.get(&name.value))
    else {
        return;
    };
    let of_keys = (route.fence.keys.iter()).filter_map(|rule| rule.token_header.as_ref());
    for name in route.fence.token_headers.iter().chain(of_keys) {
        if let Some(set) = (upstream.headers.iter()).find(|header| header.name.value == name.value)
        {
            let message = format!(
                "the header {} carries the token of route {}, it can't be set here",
                name.value,
                quoted(&route.name.value)
            );
            d.problem(&set.name.at, message);
        }
    }
}

fn child<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Kind::Map(entries) = &node.kind else {
        return None;
    };
    let entry = entries.iter().find(|entry| entry.key == key)?;
    Some(&entry.value)
}

/// The place of a key of a route's fence.
fn fence_key(root: &Node, index: usize, key: &str) -> Option<Position> {
    let Some(Kind::List(routes)) = child(root, "routes").map(|node| &node.kind) else {
        return None;
    };
    let node = child(child(routes.get(index)?, "fence")?, key)?;
    Some(node.at.clone())
}

/// What is legal and most likely not meant.
pub(super) fn warnings(file: &Path, config: &Config) -> Vec<Problem> {
    let mut out = Vec::new();
    let mut resources: BTreeMap<String, Vec<(&Route, &Spanned<String>)>> = BTreeMap::new();
    for route in config.routes.iter().filter(|route| !route.deny) {
        if let Some(upstream) = &route.upstream {
            let routes = resources.entry(resource(config, &upstream.value));
            routes.or_default().push((route, upstream));
        }
    }
    let fenced = |route: &Route| route.fence.require != Require::Never;
    for routes in resources.values() {
        let Some((first, _)) = routes.iter().find(|(route, _)| fenced(route)) else {
            continue;
        };
        for (route, upstream) in routes {
            let name = &upstream.value;
            if !fenced(route) {
                let message = format!(
                    "route {} fences the upstream {name}, and this route reaches it without a fence",
                    first.name.value
                );
                out.push(Problem::new(file, &upstream.at, message));
            } else if route.namespace.value != first.namespace.value {
                let message = format!(
                    "route {} reaches the upstream {name} under the namespace {}, and this route \
                     under {}: the same resource would have two keys",
                    first.name.value, first.namespace.value, route.namespace.value
                );
                out.push(Problem::new(file, &upstream.at, message));
            }
        }
    }
    for route in &config.routes {
        if route.fence.new_epochs == NewEpochs::Refuse && route.fence.max_advance.is_none() {
            let message = "new_epochs: refuse does nothing where max_advance is not set";
            out.push(Problem::new(file, &route.name.at, message));
        }
    }
    super::problem::sort(&mut out);
    out
}

/// What an upstream's name stands for. Two upstreams with one address are one resource; two object
/// stores within the process are two.
fn resource(config: &Config, name: &str) -> String {
    let urls = config
        .upstreams
        .get(name)
        .map(|upstream| upstream.urls.as_slice());
    match urls {
        Some([url, ..]) if matches!(url.value, Url::Http(_)) => url.value.to_string(),
        _ => name.to_owned(),
    }
}
