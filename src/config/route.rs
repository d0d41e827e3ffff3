//! Routes and their fences.

use std::time::Duration;

use http::{HeaderName, Method};

use super::choice::{
    Access, Body, Case, Holder, HolderFrom, Mode, NewEpochs, OnTimeout, PathRules, Require, Trust,
    Uploads, When,
};
use super::decode::Decoder;
use super::header::{self, Use};
use super::model::{Drain, Fence, KeyRule, Route};
use super::problem::{Position, Spanned};
use super::signed;
use super::tree::Node;

/// The methods that only read, unless the config says otherwise.
const SAFE_METHODS: [&str; 6] = ["GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH"];

/// The token's header, unless the config says otherwise.
const TOKEN_HEADERS: [&str; 2] = ["fencing-token", "x-fencing-token"];

/// Reads one route.
pub(super) fn route(d: &mut Decoder<'_>, node: &Node) -> Route {
    let mut map = d.map(node);
    let nothing = || Spanned::new(String::new(), node.at.clone());
    let name = map
        .require(d, "name")
        .and_then(|node| d.spanned(node))
        .unwrap_or_else(nothing);
    let hosts = map.or("hosts", Vec::new(), |node| {
        d.items(node, |d, node| d.spanned(node))
    });
    let path = map
        .require(d, "path")
        .and_then(|node| d.spanned(node))
        .unwrap_or_else(nothing);
    if !path.value.is_empty() && !path.value.starts_with('/') {
        d.problem(&path.at, "a path begins with a slash");
    }
    let methods = map.or("methods", Vec::new(), |node| methods(d, node));
    let query = map.or("query", Vec::new(), |node| {
        d.items(node, |d, node| d.spanned(node))
    });
    let deny = map.or("deny", false, |node| d.boolean(node));
    let rekey = map.or("rekey", false, |node| d.boolean(node));
    let upstream = if deny {
        map.get("upstream")
    } else {
        map.require(d, "upstream")
    };
    let upstream = upstream.and_then(|node| d.spanned(node));
    let namespace = map.or("namespace", name.clone(), |node| d.spanned(node));
    let fence = fence(d, map.get("fence"), &node.at);
    map.finish(d);
    Route {
        name,
        hosts,
        path,
        methods,
        query,
        deny,
        rekey,
        upstream,
        namespace,
        fence,
    }
}

fn fence(d: &mut Decoder<'_>, node: Option<&Node>, route: &Position) -> Fence {
    let at = node.map_or(route, |node| &node.at);
    let mut fence = unwritten(at);
    let Some(node) = node else { return fence };
    let mut map = d.map(node);
    fence.require = map.or("require", fence.require, |node| d.choice(node));
    fence.mode = map.or("mode", fence.mode, |node| d.choice(node));
    let (key, keys) = (map.get("key"), map.get("keys"));
    if let Some(rules) = keys_of(d, key, keys) {
        fence.keys = rules;
    }
    fence.safe_methods = map.or("safe_methods", fence.safe_methods, |node| methods(d, node));
    fence.token_headers = map.or("token_headers", fence.token_headers, |node| {
        token_headers(d, node)
    });
    fence.forward_token = map.or("forward_token", true, |node| d.boolean(node));
    fence.holder = map.or("holder", fence.holder, |node| d.choice(node));
    (fence.trust, fence.verifier) = signed::trust(d, &mut map, fence.trust);
    let holder_from = map.get("holder_from");
    fence.holder_from = holder_from
        .and_then(|node| d.choice(node))
        .unwrap_or(fence.holder_from);
    if let Some(node) = holder_from
        && fence.holder_from == HolderFrom::ClientCert
        && fence.holder != Holder::Bind
    {
        d.problem(&node.at, "holder_from: client_cert needs holder: bind");
    }
    fence.max_advance = map.or("max_advance", None, |node| {
        d.or_none(node, |d, node| d.number(node, 1, u64::MAX))
    });
    fence.new_epochs = map.or("new_epochs", fence.new_epochs, |node| d.choice(node));
    fence.path = map.or("path", fence.path, |node| d.choice(node));
    fence.case = map.or("case", fence.case, |node| d.choice(node));
    fence.body = map.or("body", fence.body, |node| d.choice(node));
    if let Some(node) = map.get("drain") {
        fence.drain = drain(d, node, fence.drain);
    }
    fence.refuse_status = map.or("refuse_status", fence.refuse_status, |node| {
        d.number(node, 400, 499).and_then(|n| u16::try_from(n).ok())
    });
    fence.reveal_mark = map.or("reveal_mark", true, |node| d.boolean(node));
    fence.allow_method_override = map.or("allow_method_override", false, |node| d.boolean(node));
    map.finish(d);
    fence
}

/// The fence of a route that says nothing about it.
fn unwritten(at: &Position) -> Fence {
    Fence {
        require: Require::Writes,
        mode: Mode::Enforce,
        keys: vec![plain_rule(Spanned::new("{path}".to_owned(), at.clone()))],
        safe_methods: SAFE_METHODS
            .iter()
            .filter_map(|name| Method::from_bytes(name.as_bytes()).ok())
            .collect(),
        token_headers: TOKEN_HEADERS
            .iter()
            .map(|name| Spanned::new(HeaderName::from_static(name), at.clone()))
            .collect(),
        forward_token: true,
        holder: Holder::Ignore,
        trust: Spanned::new(Trust::Any, at.clone()),
        verifier: None,
        holder_from: HolderFrom::Header,
        max_advance: None,
        new_epochs: NewEpochs::Allow,
        path: PathRules::Strict,
        case: Case::Sensitive,
        body: Body::Stream,
        drain: Drain {
            timeout: Duration::from_secs(30),
            on_timeout: OnTimeout::Refuse,
            uploads: Uploads::Cut,
        },
        refuse_status: 409,
        reveal_mark: true,
        allow_method_override: false,
    }
}

const fn plain_rule(key: Spanned<String>) -> KeyRule {
    KeyRule {
        key,
        when: When::Always,
        access: Access::Write,
        token_header: None,
    }
}

fn keys_of(d: &mut Decoder<'_>, key: Option<&Node>, keys: Option<&Node>) -> Option<Vec<KeyRule>> {
    let template = key.and_then(|node| d.spanned(node));
    let rules = keys
        .and_then(|node| d.items(node, |d, node| key_rule(d, node)))
        .filter(|rules| !rules.is_empty());
    if let (Some(_), Some(keys), Some(_)) = (key, keys, &rules) {
        d.problem(&keys.at, "keys stands instead of key: give one of the two");
    }
    rules.or_else(|| template.map(|key| vec![plain_rule(key)]))
}

fn key_rule(d: &mut Decoder<'_>, node: &Node) -> Option<KeyRule> {
    let mut map = d.map(node);
    let key = map.require(d, "key").and_then(|node| d.spanned(node));
    let when = map.or("when", When::Always, |node| d.choice(node));
    let access = map.or("access", Access::Write, |node| d.choice(node));
    let token_header = map.get("token_header").and_then(|node| {
        let text = d.text(node)?;
        header::name(d, text, &node.at, Use::Token)
    });
    map.finish(d);
    Some(KeyRule {
        key: key?,
        when,
        access,
        token_header,
    })
}

fn drain(d: &mut Decoder<'_>, node: &Node, default: Drain) -> Drain {
    let mut map = d.map(node);
    let drain = Drain {
        timeout: map.or("timeout", default.timeout, |node| {
            d.duration(node, Duration::from_millis(1))
        }),
        on_timeout: map.or("on_timeout", default.on_timeout, |node| d.choice(node)),
        uploads: map.or("uploads", default.uploads, |node| d.choice(node)),
    };
    map.finish(d);
    drain
}

fn methods(d: &mut Decoder<'_>, node: &Node) -> Option<Vec<Method>> {
    let mut seen: Vec<Method> = Vec::new();
    for item in d.list(node)? {
        if let Some(method) = method(d, item) {
            if seen.contains(&method) {
                d.problem(&item.at, format!("{method} is listed twice"));
            } else {
                seen.push(method);
            }
        }
    }
    Some(seen)
}

fn method(d: &mut Decoder<'_>, node: &Node) -> Option<Method> {
    let text = d.text(node)?;
    let Ok(method) = Method::from_bytes(text.as_bytes()) else {
        return d.expected(node, "a method such as PUT");
    };
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return d.expected(node, "a method in upper case");
    }
    if matches!(method, Method::CONNECT | Method::TRACE) {
        d.problem(&node.at, format!("{method} is never forwarded"));
        return None;
    }
    Some(method)
}

fn token_headers(d: &mut Decoder<'_>, node: &Node) -> Option<Vec<Spanned<HeaderName>>> {
    // Peers read `_` as `-`, and then two names that differ in it only are one.
    let folded = |name: &HeaderName| name.as_str().replace('_', "-");
    let mut seen: Vec<Spanned<HeaderName>> = Vec::new();
    let items = d.list(node)?;
    if items.is_empty() {
        d.problem(
            &node.at,
            "at least one header must be able to carry the token",
        );
    }
    for item in items {
        let Some(text) = d.text(item) else { continue };
        let Some(name) = header::name(d, text, &item.at, Use::Token) else {
            continue;
        };
        if seen
            .iter()
            .any(|other| folded(&other.value) == folded(&name.value))
        {
            d.problem(
                &item.at,
                format!("the header {} is listed twice", name.value),
            );
        } else {
            seen.push(name);
        }
    }
    Some(seen)
}
