//! Everything in the config but upstreams and routes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::address::{Address, BadAddress, Endpoint};
use super::choice::{Level, LogFormat};
use super::cidr::Cidr;
use super::decode::{Decoder, Map, named};
use super::model::{
    Admin, Config, Forget, Limits, Listener, Locks, Log, Shutdown, Store, Timeouts,
};
use super::problem::Spanned;
use super::secret::TokenHash;
use super::tree::Node;
use super::{route, tls, upstream};
use crate::tls::Protocol;

const MS: Duration = Duration::from_millis(1);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The largest number of anything that is held in memory.
const MANY: u64 = u32::MAX as u64;

/// The most streams of one connection: each may fill a window.
const MOST_STREAMS: u64 = 1_000;

/// Where the admin listener is bound by default.
const ADMIN_ADDRESS: &str = "127.0.0.1:8081";

/// Where the lock service is bound by default.
const LOCKS_ADDRESS: &str = "127.0.0.1:8082";

/// Reads the whole config.
pub(super) fn config(d: &mut Decoder<'_>, root: &Node) -> Config {
    let mut map = d.map(root);
    let listeners = map
        .require(d, "listeners")
        .and_then(|node| d.items(node, |d, node| Some(listener(d, node))))
        .unwrap_or_default();
    let trusted_proxies = map.or("trusted_proxies", Vec::new(), |node| d.items(node, cidr));
    let forwarded = map.or("forwarded", false, |node| d.boolean(node));
    let admin = map
        .get("admin")
        .filter(|node| !node.is_null())
        .map(|node| admin(d, node));
    let locks = map
        .get("locks")
        .filter(|node| !node.is_null())
        .map(|node| locks(d, node));
    let store = store(d, map.get("store"));
    let upstreams = map
        .require(d, "upstreams")
        .map_or_else(BTreeMap::new, |node| named(d, node, upstream::upstream));
    let routes = map
        .require(d, "routes")
        .and_then(|node| d.items(node, |d, node| Some(route::route(d, node))))
        .unwrap_or_default();
    let limits = limits(d, map.get("limits"));
    let timeouts = timeouts(d, map.get("timeouts"));
    let shutdown = shutdown(d, map.get("shutdown"));
    let log = log(d, map.get("log"));
    map.finish(d);
    Config {
        listeners,
        trusted_proxies,
        forwarded,
        admin,
        locks,
        store,
        upstreams,
        routes,
        limits,
        timeouts,
        shutdown,
        log,
        files: Vec::new(),
    }
}

fn listener(d: &mut Decoder<'_>, node: &Node) -> Listener {
    let mut map = d.map(node);
    let address = map
        .require(d, "address")
        .and_then(|node| address(d, node))
        .unwrap_or_else(|| Spanned::new(Endpoint::Tcp(Address::unreadable()), node.at.clone()));
    let tls = map
        .get("tls")
        .filter(|node| !node.is_null())
        .and_then(|node| tls::server(d, node, Protocol::ALL));
    let proxy_protocol = map.get("proxy_protocol");
    let proxied = proxy_protocol.and_then(|node| d.boolean(node)) == Some(true);
    if let (Some(node), true, Endpoint::Unix(_)) = (proxy_protocol, proxied, &address.value) {
        let message = "a unix socket has no address that trusted_proxies could name";
        d.problem(&node.at, message);
    }
    map.finish(d);
    Listener {
        address,
        tls,
        proxy_protocol: proxied,
    }
}

fn address<T>(d: &mut Decoder<'_>, node: &Node) -> Option<Spanned<T>>
where
    T: FromStr<Err = BadAddress>,
{
    let text = d.text(node)?;
    match text.parse() {
        Ok(address) => Some(Spanned::new(address, node.at.clone())),
        Err(error) => {
            let expected = format!("HOST:PORT ({error})");
            d.expected(node, &expected)
        }
    }
}

fn cidr(d: &mut Decoder<'_>, node: &Node) -> Option<Cidr> {
    let text = d.text(node)?;
    match text.parse() {
        Ok(cidr) => Some(cidr),
        Err(error) => {
            d.problem(&node.at, format!("{error}"));
            None
        }
    }
}

fn admin(d: &mut Decoder<'_>, node: &Node) -> Admin {
    let mut map = d.map(node);
    let address = address_or(d, map.get("address"), node, ADMIN_ADDRESS);
    let tokens = map.or("tokens", Vec::new(), |node| tokens(d, node));
    let tls = map.get("tls").and_then(|node| tls::of_api(d, node));
    let insecure = map.or("insecure", false, |node| d.boolean(node));
    map.finish(d);
    Admin {
        address,
        tokens,
        tls,
        insecure,
    }
}

fn locks(d: &mut Decoder<'_>, node: &Node) -> Locks {
    let mut map = d.map(node);
    let address = address_or(d, map.get("address"), node, LOCKS_ADDRESS);
    let fence_on_grant = map.or("fence_on_grant", true, |node| d.boolean(node));
    let tokens = map.or("tokens", Vec::new(), |node| tokens(d, node));
    let tls = map.get("tls").and_then(|node| tls::of_api(d, node));
    let insecure = map.or("insecure", false, |node| d.boolean(node));
    map.finish(d);
    Locks {
        address,
        fence_on_grant,
        tokens,
        tls,
        insecure,
    }
}

fn address_or(
    d: &mut Decoder<'_>,
    found: Option<&Node>,
    section: &Node,
    default: &str,
) -> Spanned<Address> {
    let address = match found {
        Some(node) => address(d, node),
        None => default
            .parse()
            .ok()
            .map(|address| Spanned::new(address, section.at.clone())),
    };
    address.unwrap_or_else(|| Spanned::new(Address::unreadable(), section.at.clone()))
}

fn tokens(d: &mut Decoder<'_>, node: &Node) -> Option<Vec<TokenHash>> {
    d.items(node, |d, node| {
        let hash = TokenHash::parse(d.text(node)?);
        if hash.is_none() {
            // Not repeated: it may well be the token itself.
            let message = "expected \"sha256:\" and the 64 hexadecimal digits of the token's hash";
            d.problem(&node.at, message);
        }
        hash
    })
}

/// A section of which everything may be left out, itself included.
fn section<'n>(d: &mut Decoder<'_>, node: Option<&'n Node>) -> Option<Map<'n>> {
    node.map(|node| d.map(node))
}

fn store(d: &mut Decoder<'_>, node: Option<&Node>) -> Store {
    let mut store = Store {
        path: PathBuf::from("./data"),
        cache: 256 * MIB,
        require_existing: false,
        forget: None,
    };
    if let Some(mut map) = section(d, node) {
        store.path = map.or("path", store.path, |node| {
            d.spanned(node).map(|path| PathBuf::from(path.value))
        });
        store.cache = map.or("cache", store.cache, |node| d.size(node, MIB, 1024 * GIB));
        store.require_existing = map.or("require_existing", false, |node| d.boolean(node));
        store.forget = map
            .get("forget")
            .filter(|node| !node.is_null())
            .and_then(|node| forget(d, node));
        map.finish(d);
    }
    store
}

fn forget(d: &mut Decoder<'_>, node: &Node) -> Option<Forget> {
    let mut map = d.map(node);
    let namespaces = map
        .require(d, "namespaces")
        .and_then(|node| d.items(node, |d, node| d.spanned(node)));
    let after = map
        .require(d, "after")
        .and_then(|node| d.duration(node, Duration::from_secs(1)));
    map.finish(d);
    Some(Forget {
        namespaces: namespaces?,
        after: after?,
    })
}

fn limits(d: &mut Decoder<'_>, node: Option<&Node>) -> Limits {
    let mut limits = Limits {
        header_bytes: 64 * KIB,
        header_count: 100,
        body: None,
        connections: Some(10_000),
        keys: None,
        waiting_per_key: 256,
        requests_per_connection: None,
        http2_streams: 100,
    };
    if let Some(mut map) = section(d, node) {
        limits.header_bytes = map.or("header_bytes", limits.header_bytes, |node| {
            d.size(node, 8 * KIB, 16 * MIB)
        });
        limits.header_count = map.or("header_count", limits.header_count, |node| {
            d.count(node, 1, 10_000)
        });
        limits.body = map.or("body", limits.body, |node| {
            d.or_none(node, |d, node| d.size(node, 0, u64::MAX))
        });
        limits.connections = map.or("connections", limits.connections, |node| {
            d.or_none(node, |d, node| d.count(node, 1, MANY))
        });
        limits.keys = map.or("keys", limits.keys, |node| {
            d.or_none(node, |d, node| d.number(node, 1, u64::MAX))
        });
        limits.waiting_per_key = map.or("waiting_per_key", limits.waiting_per_key, |node| {
            d.count(node, 1, MANY)
        });
        limits.requests_per_connection = map.or(
            "requests_per_connection",
            limits.requests_per_connection,
            |node| d.or_none(node, |d, node| d.number(node, 1, u64::MAX)),
        );
        limits.http2_streams = map.or("http2_streams", limits.http2_streams, |node| {
            d.number(node, 1, MOST_STREAMS)
                .and_then(|streams| u32::try_from(streams).ok())
        });
        map.finish(d);
    }
    limits
}

fn timeouts(d: &mut Decoder<'_>, node: Option<&Node>) -> Timeouts {
    let mut timeouts = Timeouts {
        header: Some(Duration::from_secs(10)),
        idle: Some(Duration::from_mins(1)),
        body: Some(Duration::from_secs(30)),
    };
    if let Some(mut map) = section(d, node) {
        let mut read = |node| d.or_none(node, |d, node| d.duration(node, MS));
        timeouts.header = map.or("header", timeouts.header, &mut read);
        timeouts.idle = map.or("idle", timeouts.idle, &mut read);
        timeouts.body = map.or("body", timeouts.body, &mut read);
        map.finish(d);
    }
    timeouts
}

fn shutdown(d: &mut Decoder<'_>, node: Option<&Node>) -> Shutdown {
    let mut shutdown = Shutdown {
        timeout: Duration::from_secs(30),
    };
    if let Some(mut map) = section(d, node) {
        shutdown.timeout = map.or("timeout", shutdown.timeout, |node| {
            d.duration(node, Duration::ZERO)
        });
        map.finish(d);
    }
    shutdown
}

fn log(d: &mut Decoder<'_>, node: Option<&Node>) -> Log {
    let mut log = Log {
        format: LogFormat::Auto,
        level: Level::Info,
        access: true,
    };
    if let Some(mut map) = section(d, node) {
        log.format = map.or("format", log.format, |node| d.choice(node));
        log.level = map.or("level", log.level, |node| d.choice(node));
        log.access = map.or("access", log.access, |node| d.boolean(node));
        map.finish(d);
    }
    log
}
