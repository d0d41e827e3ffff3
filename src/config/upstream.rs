//! Upstreams, and the credentials that only the gate knows.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use http::HeaderName;
use http::uri::PathAndQuery;

use super::address::Url;
use super::decode::{Decoder, Map, pairs};
use super::expand::{is_name, not_set};
use super::header::{self, Use};
use super::model::{Health, Pool, Upstream, UpstreamHeader, UpstreamTls};
use super::problem::{Position, Spanned};
use super::secret::Secret;
use super::tls::{Read, cannot_use, file as read_file};
use super::tree::{Kind, Node};
use crate::tls::{Bad, ClientTls, Protocol};

const MS: Duration = Duration::from_millis(1);

/// The shortest settle. Below it the time that a packet is on its way counts for more than the time
/// that the upstream works.
const LEAST_SETTLE: Duration = Duration::from_millis(100);

/// The shortest time between two health checks.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// The most URLs of an upstream.
const MAX_URLS: usize = 64;

/// The largest file that can hold a secret, in bytes.
const MAX_SECRET: u64 = 64 * 1024;

/// Reads one upstream.
pub(super) fn upstream(d: &mut Decoder<'_>, node: &Node) -> Upstream {
    let mut map = d.map(node);
    let urls = map
        .require(d, "urls")
        .map(|node| urls(d, node))
        .unwrap_or_default();
    let seconds = Duration::from_secs;
    let http2 = map.get("http2").is_some_and(|node| {
        let http2 = d.boolean(node).unwrap_or(false);
        if http2 && urls.iter().any(|url| url.value == Url::BuiltinObjects) {
            d.problem(&node.at, "builtin:objects does not speak HTTP/2");
        }
        http2
    });
    let tls = tls(d, &mut map, &urls, http2);
    let health = map.get("health").and_then(|node| {
        if node.is_null() {
            return None;
        }
        if urls.iter().any(|url| url.value == Url::BuiltinObjects) {
            d.problem(&node.at, "builtin:objects is always well");
        }
        health(d, node)
    });
    let upstream = Upstream {
        urls,
        tls,
        health,
        http2,
        connect_timeout: map.or("connect_timeout", seconds(5), |node| d.duration(node, MS)),
        timeout: map.or("timeout", seconds(60), |node| d.duration(node, MS)),
        settle: map.or("settle", seconds(15), |node| d.duration(node, LEAST_SETTLE)),
        discards_incomplete: map.or("discards_incomplete", false, |node| d.boolean(node)),
        unknown_statuses: map.or("unknown_statuses", BTreeSet::from([502, 504]), |node| {
            let statuses = d.items(node, |d, node| {
                d.number(node, 100, 599).and_then(|n| u16::try_from(n).ok())
            });
            statuses.map(BTreeSet::from_iter)
        }),
        rewrite_destination: map.or("rewrite_destination", false, |node| d.boolean(node)),
        headers: map
            .get("headers")
            .map_or_else(Vec::new, |node| headers(d, node)),
        pool: pool(d, &mut map),
        preserve_header_case: map.or("preserve_header_case", false, |node| d.boolean(node)),
    };
    map.finish(d);
    upstream
}

/// What https takes; `None` where no URL asks for it, or something is wrong.
fn tls(
    d: &mut Decoder<'_>,
    map: &mut Map<'_>,
    urls: &[Spanned<Url>],
    http2: bool,
) -> Option<UpstreamTls> {
    let node = map.get("tls").filter(|node| !node.is_null());
    let https = urls.iter().find_map(|url| match &url.value {
        Url::Https(address) => Some((&url.at, address)),
        _ => None,
    });
    let Some((at, address)) = https else {
        if let Some(node) = node {
            d.problem(&node.at, "no URL of this upstream is https");
        }
        return None;
    };
    let protocol = if http2 {
        Protocol::Http2
    } else {
        Protocol::Http1
    };
    let Some(node) = node else {
        return client(d, at, at, [None, None, None], protocol)
            .map(|client| UpstreamTls { client });
    };
    let mut map = d.map(node);
    let (ca, cert, key) = (map.get("ca"), map.get("cert"), map.get("key"));
    let name = map.get("server_name").map(|node| d.spanned(node));
    map.finish(d);
    if let (Some(one), None) | (None, Some(one)) = (cert, key) {
        d.problem(&one.at, "a certificate and its key come together");
        return None;
    }
    let mut files = [None, None, None];
    for (file, node) in files.iter_mut().zip([ca, cert, key]) {
        if let Some(node) = node {
            *file = Some(read_file(d, node)?);
        }
    }
    let client = client(d, &node.at, at, files, protocol)?;
    let named = match name {
        Some(name) => {
            let name = name?;
            let named = client.named(&name.value);
            if named.is_none() {
                d.problem(&name.at, "expected the name that the certificate is for");
            }
            named?
        }
        None => {
            if client.named(address.host()).is_none() {
                d.problem(
                    at,
                    "no certificate can be for this host: tls.server_name is needed",
                );
            }
            client
        }
    };
    Some(UpstreamTls { client: named })
}

fn client(
    d: &mut Decoder<'_>,
    section: &Position,
    url: &Position,
    files: [Option<Read>; 3],
    protocol: Protocol,
) -> Option<ClientTls> {
    let [ca, cert, key] = &files;
    let authorities = ca.as_ref().map(|ca| ca.bytes.as_slice());
    let own = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert.bytes.as_slice(), key.bytes.as_slice())),
        _ => None,
    };
    match ClientTls::new(authorities, own, protocol) {
        Ok(client) => Some(client),
        Err(all) => {
            for bad in all {
                let (file, what) = match bad {
                    Bad::Certificate(what) => (cert, what),
                    Bad::Key(what) => (key, what),
                    Bad::Authorities(what) => (ca, what),
                };
                match file {
                    Some(file) => d.problem(&file.path.at, cannot_use(&file.path.value, what)),
                    None if section == url => d.problem(url, format!("{what}: tls.ca is needed")),
                    None => d.problem(section, format!("{what}: ca is needed")),
                }
            }
            None
        }
    }
}

fn urls(d: &mut Decoder<'_>, node: &Node) -> Vec<Spanned<Url>> {
    match &node.kind {
        Kind::List(items) if items.is_empty() => d.problem(&node.at, "at least one URL is needed"),
        _ if node.is_null() => d.problem(&node.at, "at least one URL is needed"),
        Kind::List(items) => {
            if let Some(item) = items.get(MAX_URLS) {
                d.problem(&item.at, format!("more than {MAX_URLS} URLs"));
            }
        }
        Kind::Scalar(_) | Kind::Map(_) => {}
    }
    let urls = d.items(node, url).unwrap_or_default();
    for (index, url) in urls.iter().enumerate() {
        let mut before = urls.iter().take(index);
        if let Some(first) = before.find(|first| first.value == url.value) {
            let message = format!(
                "{} stands here twice, first in line {}",
                url.value, first.at.line
            );
            d.problem(&url.at, message);
        } else if url.value == Url::BuiltinObjects && urls.len() > 1 {
            d.problem(&url.at, "builtin:objects can't be one of several addresses");
        }
    }
    urls
}

fn url(d: &mut Decoder<'_>, node: &Node) -> Option<Spanned<Url>> {
    let text = d.text(node)?;
    match text.parse() {
        Ok(url) => Some(Spanned::new(url, node.at.clone())),
        Err(error) => {
            // Not repeated: a URL is where people put passwords.
            d.problem(&node.at, format!("{error}"));
            None
        }
    }
}

fn health(d: &mut Decoder<'_>, node: &Node) -> Option<Health> {
    let mut map = d.map(node);
    let path = map.require(d, "path").and_then(|node| path(d, node));
    let interval = map.or("interval", Duration::from_secs(5), |node| {
        d.duration(node, LEAST_INTERVAL)
    });
    map.finish(d);
    Some(Health {
        path: path?,
        interval,
    })
}

fn path(d: &mut Decoder<'_>, node: &Node) -> Option<PathAndQuery> {
    let text = d.text(node)?;
    let path = PathAndQuery::try_from(text).ok();
    // The type would cut a fragment off, and put the slash in front that is missing.
    let path = path.filter(|path| path.as_str() == text && text.starts_with('/'));
    if path.is_none() {
        d.problem(&node.at, "expected a path such as /healthz");
    }
    path
}

fn pool(d: &mut Decoder<'_>, upstream: &mut Map<'_>) -> Pool {
    let mut pool = Pool {
        max_idle: 128,
        idle_timeout: Duration::from_secs(4),
    };
    if let Some(node) = upstream.get("pool") {
        let mut map = d.map(node);
        pool.max_idle = map.or("max_idle", pool.max_idle, |node| d.count(node, 0, 1 << 20));
        pool.idle_timeout = map.or("idle_timeout", pool.idle_timeout, |node| {
            d.duration(node, MS)
        });
        map.finish(d);
    }
    pool
}

fn headers(d: &mut Decoder<'_>, node: &Node) -> Vec<UpstreamHeader> {
    let mut seen: Vec<HeaderName> = Vec::new();
    let mut out = Vec::new();
    let entries: Vec<_> = pairs(d, node).collect();
    for (key, key_at, value) in entries {
        let name = header::name(d, key, key_at, Use::Upstream);
        let value = secret(d, value);
        let Some(name) = name else { continue };
        if seen.contains(&name.value) {
            d.problem(key_at, format!("header {} is set twice", name.value));
            continue;
        }
        seen.push(name.value.clone());
        if let Some(value) = value {
            out.push(UpstreamHeader { name, value });
        }
    }
    out
}

/// A value, `{ env: NAME }` or `{ file: PATH }`. No problem repeats any of it but a variable's name
/// and a file's path.
fn secret(d: &mut Decoder<'_>, node: &Node) -> Option<Secret> {
    const FORMS: &str = "expected a value, { env: NAME } or { file: PATH }";
    let (at, bytes) = match &node.kind {
        Kind::List(_) => {
            d.problem(&node.at, FORMS);
            return None;
        }
        Kind::Scalar(_) => (&node.at, d.text(node)?.as_bytes().to_vec()),
        Kind::Map(entries) => match entries.as_slice() {
            [entry] if entry.key == "env" => {
                let at = &entry.value.at;
                (at, variable(d, &entry.value)?.into_bytes())
            }
            [entry] if entry.key == "file" => {
                let path = d.spanned(&entry.value)?;
                (&entry.value.at, file(d, Path::new(&path.value), &path.at)?)
            }
            _ => {
                d.problem(&node.at, FORMS);
                return None;
            }
        },
    };
    let secret = Secret::from_bytes(&bytes);
    if secret.is_none() {
        d.problem(at, "the value is not a legal header value");
    }
    secret
}

fn variable(d: &mut Decoder<'_>, node: &Node) -> Option<String> {
    let name = d.text(node)?;
    if !is_name(name) {
        d.problem(&node.at, "expected the name of an environment variable");
        return None;
    }
    let value = (d.env)(name);
    match &value {
        None => d.problem(&node.at, not_set(name)),
        Some(value) if value.is_empty() => {
            d.problem(
                &node.at,
                format!("the environment variable {name} is empty"),
            );
        }
        Some(_) => return value,
    }
    None
}

/// The bytes of a secret's file, relative to the config file, without the newline at its end.
fn file(d: &mut Decoder<'_>, path: &Path, at: &Position) -> Option<Vec<u8>> {
    let base = d.reporter.file().parent().unwrap_or(Path::new(""));
    let path = base.join(path);
    d.files.push(path.clone());
    match read(&path) {
        Ok(bytes) if bytes.is_empty() => {
            d.problem(at, format!("{} is empty", path.display()));
            None
        }
        Ok(bytes) => Some(bytes),
        Err(error) => {
            d.problem(at, format!("can't read {}: {error}", path.display()));
            None
        }
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    // A pipe would block the start for ever, a device might never end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_SECRET + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SECRET {
        return Err(std::io::Error::other("it is larger than a secret can be"));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Ok(bytes)
}
