//! What only shows when the parts of a config are looked at together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::address::{Endpoint, Url};
use super::choice::{Body, ClientAuth, HolderFrom, NewEpochs, Require, Trust};
use super::decode::Decoder;
use super::model::{Config, Route, Tls};
use super::problem::{Position, Problem, Spanned, quoted};
use super::tree::{Kind, Node};

/// The longest name of a route, an upstream or a namespace, in bytes.
const MAX_NAME: usize = 64;

/// How long before a certificate expires that is warned of, in days.
const SOON_DAYS: i64 = 14;

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
        trust(d, config, route);
    }
    forget(d, root, config);
}

/// What is forgotten has to be something: a name that is misspelt would keep every mark for ever.
fn forget(d: &mut Decoder<'_>, root: &Node, config: &Config) {
    let Some(forget) = &config.store.forget else {
        return;
    };
    if forget.namespaces.is_empty()
        && let Some(at) = child(root, "store").and_then(|store| child(store, "forget"))
    {
        d.problem(&at.at, "forget needs at least one namespace");
    }
    for namespace in &forget.namespaces {
        if !config
            .routes
            .iter()
            .any(|route| route.namespace.value == namespace.value)
        {
            let message = format!("no route has the namespace {}", quoted(&namespace.value));
            d.problem(&namespace.at, message);
        }
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
    let of_listener = |one: &super::Listener| one.address.clone();
    let tcp = |address: &Spanned<super::Address>| {
        Spanned::new(Endpoint::Tcp(address.value.clone()), address.at.clone())
    };
    let all = config.listeners.iter().map(of_listener);
    let all = all
        .chain(config.admin.iter().map(|one| tcp(&one.address)))
        .chain(config.locks.iter().map(|one| tcp(&one.address)));
    let mut seen: Vec<Spanned<Endpoint>> = Vec::new();
    for address in all.filter(|address| !address.value.is_free_choice()) {
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
    for listener in &config.listeners {
        if listener.proxy_protocol && config.trusted_proxies.is_empty() {
            let message = "proxy_protocol lets in nobody where trusted_proxies is empty";
            d.problem(&listener.address.at, message);
        }
    }
    let proven = |tls: &Option<Tls>| tls.as_ref().is_some_and(requires_certificates);
    let admin = config.admin.as_ref().map(|admin| {
        let open = admin.tokens.is_empty() && !proven(&admin.tls) && !admin.insecure;
        ("admin", &admin.address, open)
    });
    let locks = config.locks.as_ref().map(|locks| {
        let open = locks.tokens.is_empty() && !proven(&locks.tls) && !locks.insecure;
        ("locks", &locks.address, open)
    });
    for (section, address, open) in admin.into_iter().chain(locks) {
        if !address.value.is_loopback() && open {
            let message = format!(
                "others than this machine reach this address: it needs {section}.tokens, \
                 {section}.tls that requires certificates of clients, or {section}.insecure: true"
            );
            d.problem(&address.at, message);
        }
    }
}

fn requires_certificates(tls: &Tls) -> bool {
    tls.server.client_auth() == ClientAuth::Required
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
        let known = entries.iter().map(|entry| entry.key.escape_debug());
        let known: Vec<String> = known.map(|name| name.to_string()).collect();
        let message = format!(
            "there is no upstream {}; there is {}",
            quoted(&name.value),
            known.join(", ")
        );
        d.problem(&name.at, message);
    }
}

/// Without a lock service nothing is issued.
fn trust(d: &mut Decoder<'_>, config: &Config, route: &Route) {
    if route.fence.trust.value == Trust::Issued && config.locks.is_none() {
        let message = "trust: issued takes the tokens of this gateway's lock service: it needs the \
                       section locks";
        d.problem(&route.fence.trust.at, message);
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
    if config.locks.is_some() {
        let trusting = |route: &&Route| fenced(route) && route.fence.trust.value == Trust::Any;
        for route in config
            .routes
            .iter()
            .filter(|route| !route.deny)
            .filter(trusting)
        {
            let message = format!(
                "route {} takes tokens that this gateway's lock service has not issued, so that a \
                 client that makes one up locks out whoever holds the lock; trust: issued does not",
                route.name.value
            );
            out.push(Problem::new(file, &route.fence.trust.at, message));
        }
    }
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
    forgetting(file, config, &mut out);
    certificates(file, config, &mut out);
    super::problem::sort(&mut out);
    out
}

/// A floor stands for the mark of every key that has none: a token that nobody issued would become
/// the floor of its whole namespace once its key is forgotten. And the lock service issues tokens that
/// are ordered within one key alone.
fn forgetting(file: &Path, config: &Config, out: &mut Vec<Problem>) {
    let forgotten = config
        .store
        .forget
        .iter()
        .flat_map(|forget| &forget.namespaces);
    for namespace in forgotten {
        for route in &config.routes {
            if route.namespace.value != namespace.value || route.fence.require == Require::Never {
                continue;
            }
            let why = match route.fence.trust.value {
                Trust::Any => {
                    "takes any token, and one that nobody issued would become the floor of the whole namespace once it is forgotten (max_advance does not limit the first token of a key): trust: signed keeps such tokens out"
                }
                Trust::Issued => {
                    "takes the tokens of the lock service, which are ordered within one key alone: a key that comes back begins above all that were forgotten"
                }
                Trust::Signed => continue,
            };
            let message = format!(
                "marks of {} are forgotten, and route {} {why}",
                quoted(&namespace.value),
                quoted(&route.name.value),
            );
            out.push(Problem::new(file, &namespace.at, message));
        }
    }
}

/// Certificates that count no more, or soon will not, and routes that ask for what no listener does.
fn certificates(file: &Path, config: &Config, out: &mut Vec<Problem>) {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let of_listeners = config.listeners.iter().filter_map(|one| one.tls.as_ref());
    let of_admin = config.admin.iter().filter_map(|admin| admin.tls.as_ref());
    let of_locks = config.locks.iter().filter_map(|locks| locks.tls.as_ref());
    for tls in of_listeners.clone().chain(of_admin).chain(of_locks) {
        let Some(validity) = tls.server.validity() else {
            continue;
        };
        let days = (validity.to - now).div_euclid(24 * 60 * 60);
        let what = if validity.to < now {
            "has expired".to_owned()
        } else if validity.from > now {
            "is not valid yet".to_owned()
        } else if days < SOON_DAYS {
            format!("expires in {days} days")
        } else {
            continue;
        };
        let message = format!("the certificate {} {what}", tls.cert.value.display());
        out.push(Problem::new(file, &tls.cert.at, message));
    }
    let asks = |tls: &Tls| tls.server.client_auth() != ClientAuth::None;
    if of_listeners.clone().any(asks) {
        return;
    }
    for route in &config.routes {
        if route.fence.holder_from == HolderFrom::ClientCert {
            let message = "holder_from: client_cert refuses everything where no listener asks \
                           for certificates of clients";
            out.push(Problem::new(file, &route.name.at, message));
        }
    }
}

/// What an upstream's name stands for: the first of those that are reached at one of its addresses,
/// or at one of theirs. Upstreams that share an address are one resource; two object stores within
/// the process are two.
fn resource(config: &Config, name: &str) -> String {
    let mut names = BTreeSet::from([name]);
    loop {
        let known = names.len();
        let urls: Vec<&Url> = (names.iter())
            .filter_map(|name| config.upstreams.get(*name))
            .flat_map(|upstream| upstream.urls.iter().map(|url| &url.value))
            .filter(|url| **url != Url::BuiltinObjects)
            .collect();
        let sharing = config.upstreams.iter().filter(|(_, upstream)| {
            let mut theirs = upstream.urls.iter();
            theirs.any(|url| urls.contains(&&url.value))
        });
        names.extend(sharing.map(|(name, _)| name.as_str()));
        if names.len() == known {
            return names.first().copied().unwrap_or(name).to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    #[test]
    fn names_that_are_listed_can_not_mislead_a_terminal() {
        let text = "
listeners: [{ address: 127.0.0.1:8080 }]
upstreams: { \"ob\\x1b[2Jts\": { urls: ['builtin:objects'] } }
routes: [{ name: objects, path: '/objects/{id}', upstream: objects, fence: { key: '{id}' } }]
";
        let problems = Config::parse(text, Path::new("config.yaml"), &|_| None).unwrap_err();
        let said = problems.to_string();
        assert!(said.contains("there is ob\\u{1b}[2Jts"), "{said}");
        assert!(
            !said.chars().any(|char| char.is_control() && char != '\n'),
            "{said}"
        );
    }
}
