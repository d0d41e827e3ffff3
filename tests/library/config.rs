//! The config as its users meet it: defaults, problems with their places, and the reference file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use fencegate::config::{
    Access, Body, Case, Config, Holder, Level, Loaded, LogFormat, Mode, NewEpochs, OnTimeout,
    PathRules, Problems, Require, Uploads, Url, When, rules,
};
use proptest::prelude::*;

/// The least that is a config.
const LEAST: &str = "\
listeners:
  - address: 127.0.0.1:8080
upstreams:
  store:
    urls: [http://127.0.0.1:9000]
routes:
  - name: files
    path: /files/{*path}
    upstream: store
";

const SECRET: &str = "hunter2-correct-horse";

fn env(name: &str) -> Option<String> {
    match name {
        "AUTH" => Some(format!("Bearer {SECRET}")),
        "HOST" => Some("127.0.0.1".to_owned()),
        "NUMBER" => Some("42".to_owned()),
        "ON" => Some("true".to_owned()),
        "EMPTY" => Some(String::new()),
        "CONTROL" => Some(format!("{SECRET}\u{1}")),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Loaded, Problems> {
    Config::parse(text, Path::new("c.yaml"), &env)
}

fn good(text: &str) -> Config {
    match parse(text) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{problems}\n{text}"),
    }
}

fn bad(text: &str) -> Problems {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(problems) => problems,
    }
}

/// The problems of `text`, as they print.
fn lines(text: &str) -> Vec<String> {
    let problems = bad(text);
    problems
        .as_slice()
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The least config with `more` at its end.
fn with(more: &str) -> String {
    format!("{LEAST}{more}")
}

/// The least config with a key of the route's fence.
fn fence(key: &str) -> String {
    with(&format!("    fence:\n      {key}\n"))
}

/// The least config with a key of its upstream.
fn upstream(key: &str) -> String {
    LEAST.replace("routes:", &format!("    {key}\nroutes:"))
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn every_default() {
    let config = good(LEAST);
    assert_eq!(config.listeners.len(), 1);
    assert_eq!(
        config.listeners[0].address.value.to_string(),
        "127.0.0.1:8080"
    );
    assert!(config.trusted_proxies.is_empty());
    assert!(!config.forwarded);
    assert!(config.admin.is_none());
    assert_eq!(config.store.path, Path::new("./data"));
    assert_eq!(config.store.cache, 256 << 20);
    assert!(!config.store.require_existing);

    let upstream = &config.upstreams["store"];
    assert!(matches!(&upstream.urls[0].value, Url::Http(a) if a.to_string() == "127.0.0.1:9000"));
    assert_eq!(upstream.connect_timeout, secs(5));
    assert_eq!(upstream.timeout, secs(60));
    assert_eq!(upstream.settle, secs(15));
    assert!(!upstream.discards_incomplete);
    assert_eq!(upstream.unknown_statuses, BTreeSet::from([502, 504]));
    assert!(!upstream.rewrite_destination);
    assert!(upstream.headers.is_empty());
    assert_eq!(upstream.pool.max_idle, 128);
    assert_eq!(upstream.pool.idle_timeout, secs(4));
    assert!(!upstream.preserve_header_case);

    let route = &config.routes[0];
    assert_eq!(route.name.value, "files");
    assert!(route.hosts.is_empty() && route.methods.is_empty() && route.query.is_empty());
    assert!(!route.deny && !route.rekey);
    assert_eq!(route.upstream.as_ref().unwrap().value, "store");
    assert_eq!(route.namespace.value, "files");

    let fence = &route.fence;
    assert_eq!(fence.require, Require::Writes);
    assert_eq!(fence.mode, Mode::Enforce);
    assert_eq!(fence.keys.len(), 1);
    assert_eq!(fence.keys[0].key.value, "{path}");
    assert_eq!(fence.keys[0].when, When::Always);
    assert_eq!(fence.keys[0].access, Access::Write);
    assert!(fence.keys[0].token_header.is_none());
    let methods: Vec<&str> = fence.safe_methods.iter().map(|m| m.as_str()).collect();
    assert_eq!(
        methods,
        ["GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH"]
    );
    let headers: Vec<&str> = fence
        .token_headers
        .iter()
        .map(|h| h.value.as_str())
        .collect();
    assert_eq!(headers, ["fencing-token", "x-fencing-token"]);
    assert!(fence.forward_token);
    assert_eq!(fence.holder, Holder::Ignore);
    assert_eq!(fence.max_advance, None);
    assert_eq!(fence.new_epochs, NewEpochs::Allow);
    assert_eq!(fence.path, PathRules::Strict);
    assert_eq!(fence.case, Case::Sensitive);
    assert_eq!(fence.body, Body::Stream);
    assert_eq!(fence.drain.timeout, secs(30));
    assert_eq!(fence.drain.on_timeout, OnTimeout::Refuse);
    assert_eq!(fence.drain.uploads, Uploads::Cut);
    assert_eq!(fence.refuse_status, 409);
    assert!(fence.reveal_mark);
    assert!(!fence.allow_method_override);

    assert_eq!(config.limits.header_bytes, 64 << 10);
    assert_eq!(config.limits.header_count, 100);
    assert_eq!(config.limits.body, None);
    assert_eq!(config.limits.connections, Some(10_000));
    assert_eq!(config.limits.keys, None);
    assert_eq!(config.limits.waiting_per_key, 256);
    assert_eq!(config.limits.requests_per_connection, None);
    assert_eq!(config.limits.http2_streams, 100);
    assert_eq!(config.timeouts.header, Some(secs(10)));
    assert_eq!(config.timeouts.idle, Some(secs(60)));
    assert_eq!(config.timeouts.body, Some(secs(30)));
    assert_eq!(config.shutdown.timeout, secs(30));
    assert_eq!(config.log.format, LogFormat::Auto);
    assert_eq!(config.log.level, Level::Info);
    assert!(config.log.access);
}

#[test]
fn every_key_is_read() {
    let hash = "ab".repeat(32);
    let text = format!(
        r#"
listeners: [{{ address: "0.0.0.0:80", proxy_protocol: false }}, {{ address: "[::1]:81" }}]
trusted_proxies: [10.0.0.0/8, 192.0.2.1, "fd00::/8"]
forwarded: true
admin: {{ address: 0.0.0.0:90, tokens: ["sha256:{hash}"], insecure: false }}
store: {{ path: /var/lib/fencegate, cache: 1GiB, require_existing: true }}
upstreams:
  a:
    urls: [builtin:objects]
    http2: false
    connect_timeout: 250ms
    timeout: 2m
    settle: 1s
    discards_incomplete: true
    unknown_statuses: [202, 502]
    rewrite_destination: true
    headers: {{ Authorization: {{ env: AUTH }}, x-tier: "gold", x-env: "${{HOST}}" }}
    pool: {{ max_idle: 0, idle_timeout: 1s }}
    preserve_header_case: true
routes:
  - name: copy
    hosts: ["{{bucket}}.s3.internal"]
    path: /{{*path}}
    methods: [PUT, MOVE]
    query: [uploadId]
    rekey: true
    upstream: a
    namespace: shared
    fence:
      require: all
      mode: observe
      keys:
        - key: "{{path}}"
        - {{ key: "{{header.destination|path}}", when: present, access: read, token_header: Fencing-Token-Destination }}
      safe_methods: []
      token_headers: [X-Fence]
      forward_token: false
      holder: bind
      trust: any
      max_advance: 1000
      new_epochs: refuse
      path: opaque
      case: insensitive
      body: spool
      drain: {{ timeout: 5s, on_timeout: cut, uploads: wait }}
      refuse_status: 412
      reveal_mark: false
      allow_method_override: true
  - {{ name: closed, path: /closed, deny: true }}
limits: {{ header_bytes: 8KiB, header_count: 20, body: 10MiB, connections: none, keys: 5, waiting_per_key: 1, requests_per_connection: 9, http2_streams: 7 }}
timeouts: {{ header: none, idle: none, body: none }}
shutdown: {{ timeout: 0s }}
log: {{ format: json, level: debug, access: false }}
"#
    );
    let config = good(&text);
    assert_eq!(config.listeners[1].address.value.to_string(), "[::1]:81");
    assert!(config.trusted_proxies[0].contains("10.9.9.9".parse().unwrap()));
    assert!(config.trusted_proxies[1].contains("::ffff:192.0.2.1".parse().unwrap()));
    assert!(!config.trusted_proxies[1].contains("192.0.2.2".parse().unwrap()));
    assert!(config.forwarded);
    assert_eq!(
        config.admin.as_ref().unwrap().tokens[0].as_bytes(),
        &[0xab; 32]
    );
    assert_eq!(config.store.cache, 1 << 30);
    let upstream = &config.upstreams["a"];
    assert!(matches!(upstream.urls[0].value, Url::BuiltinObjects));
    assert_eq!(upstream.connect_timeout, Duration::from_millis(250));
    assert_eq!(upstream.headers[0].name.value, "authorization");
    assert_eq!(
        upstream.headers[0].value.expose().as_bytes(),
        format!("Bearer {SECRET}").as_bytes()
    );
    assert_eq!(upstream.headers[2].value.expose().as_bytes(), b"127.0.0.1");
    let fence = &config.routes[0].fence;
    assert_eq!(fence.keys[1].access, Access::Read);
    assert_eq!(
        fence.keys[1].token_header.as_ref().unwrap().value,
        "fencing-token-destination"
    );
    assert_eq!(fence.token_headers[0].value, "x-fence");
    assert_eq!(fence.max_advance, Some(1000));
    assert_eq!(fence.drain.on_timeout, OnTimeout::Cut);
    assert!(fence.safe_methods.is_empty());
    assert!(config.routes[1].upstream.is_none());
    assert_eq!(config.limits.body, Some(10 << 20));
    assert_eq!(config.limits.connections, None);
    assert_eq!(config.timeouts.header, None);
    assert_eq!(config.shutdown.timeout, Duration::ZERO);
}

#[test]
fn places_are_kept_for_later_stages() {
    let config = good(LEAST);
    let at = &config.routes[0].path.at;
    assert_eq!(
        (at.line, at.column, &*at.key_path),
        (8, 11, "routes[0].path")
    );
}

#[test]
fn an_admin_section_is_loopback_by_default_and_guarded_elsewhere() {
    let admin = good(&with("admin: {}\n")).admin.unwrap();
    assert_eq!(admin.address.value.to_string(), "127.0.0.1:8081");
    assert!(good(&with("admin:\n")).admin.is_none());
    let open = with("admin: { address: 0.0.0.0:8081 }\n");
    assert_eq!(
        lines(&open),
        [
            "c.yaml:10:19: admin.address: others than this machine reach this address: it needs \
          admin.tokens, admin.tls that requires certificates of clients, or admin.insecure: true"
        ]
    );
    for meant in [
        "insecure: true",
        &format!("tokens: ['sha256:{}']", "0".repeat(64)),
    ] {
        good(&open.replace(" }", &format!(", {meant} }}")));
    }
    for inside in [
        "localhost:1",
        "127.9.9.9:1",
        "'[::1]:1'",
        "'[::ffff:127.0.0.1]:1'",
    ] {
        good(&with(&format!("admin: {{ address: {inside} }}\n")));
    }
}

/// A config that is wrong in one way, and the only problem that it has.
#[track_caller]
fn only(text: &str, expected: &str) {
    assert_eq!(lines(text), [expected], "{text}");
}

#[test]
fn one_problem_each() {
    let mut wrong = Vec::new();
    for (text, expected) in [
        // The file as a whole.
        (
            String::new(),
            "c.yaml:1:1: the file is empty, a config needs listeners, upstreams and routes",
        ),
        (
            "# nothing\n".to_owned(),
            "c.yaml:1:1: the file is empty, a config needs listeners, upstreams and routes",
        ),
        (
            "- a\n".to_owned(),
            "c.yaml:1:1: a config is a mapping of listeners, upstreams, routes and more",
        ),
        (
            "text".to_owned(),
            "c.yaml:1:1: a config is a mapping of listeners, upstreams, routes and more",
        ),
        (
            with("---\na: b\n"),
            "c.yaml:10:1: a second document starts here, a config is one document",
        ),
        // Keys.
        (
            with("stroe: {}\n"),
            "c.yaml:10:1: stroe: unknown key \"stroe\"; did you mean store?",
        ),
        (
            fence("drain: { timeot: 5s }"),
            "c.yaml:11:16: routes[0].fence.drain.timeot: unknown key \"timeot\"; did you mean timeout?",
        ),
        (
            with("log: { colour: no }\n"),
            "c.yaml:10:8: log.colour: unknown key \"colour\"; expected one of format, level, access",
        ),
        (
            with("store: {}\nstore: {}\n"),
            "c.yaml:11:1: store: key \"store\" is given twice, first in line 10",
        ),
        (with("[a]: b\n"), "c.yaml:10:1: a key must be text"),
        (
            with("? {a: b}\n: {c: [d]}\n"),
            "c.yaml:10:3: a key must be text",
        ),
        (
            LEAST.replace("    path: /files/{*path}\n", ""),
            "c.yaml:7:5: routes[0]: path is missing",
        ),
        (
            LEAST.replace("  - name: files\n", "  - deny: false\n"),
            "c.yaml:7:5: routes[0]: name is missing",
        ),
        (
            LEAST.replace("    upstream: store\n", ""),
            "c.yaml:7:5: routes[0]: upstream is missing",
        ),
        // Types.
        (
            with("store: text\n"),
            "c.yaml:10:8: store: expected a mapping, found text",
        ),
        (
            with("trusted_proxies: text\n"),
            "c.yaml:10:18: trusted_proxies: expected a list, found text",
        ),
        (
            with("forwarded: maybe\n"),
            "c.yaml:10:12: forwarded: expected true or false, found \"maybe\"",
        ),
        (
            with("forwarded: 'true'\n"),
            "c.yaml:10:12: forwarded: expected true or false, found \"true\"",
        ),
        (
            with("forwarded:\n"),
            "c.yaml:10:10: forwarded: expected true or false, found nothing",
        ),
        (
            with("forwarded: []\n"),
            "c.yaml:10:12: forwarded: expected true or false, found a list",
        ),
        (
            LEAST.replace("name: files", "name: 42"),
            "c.yaml:7:11: routes[0].name: expected text, found a number; put it in quotes",
        ),
        (
            LEAST.replace("name: files", "name: true"),
            "c.yaml:7:11: routes[0].name: expected text, found a truth value; put it in quotes",
        ),
        (
            LEAST.replace("name: files", "name: ''"),
            "c.yaml:7:11: routes[0].name: expected text, found \"\"",
        ),
        (
            with("store: !!map {}\n"),
            "c.yaml:10:8: tags such as \"tag:yaml.org,2002:!map\" are not supported",
        ),
        // Durations, sizes, numbers, words.
        (
            fence("drain: { timeout: 5 parsecs }"),
            "c.yaml:11:25: routes[0].fence.drain.timeout: expected a duration such as 250ms, 5s or 2m, found \"5 parsecs\"",
        ),
        (
            fence("drain: { timeout: 0s }"),
            "c.yaml:11:25: routes[0].fence.drain.timeout: expected a duration of at least 1ms, found \"0s\"",
        ),
        (
            fence("drain: { timeout: none }"),
            "c.yaml:11:25: routes[0].fence.drain.timeout: expected a duration such as 250ms, 5s or 2m, found \"none\"",
        ),
        (
            upstream("settle: 99ms"),
            "c.yaml:6:13: upstreams.store.settle: expected a duration of at least 100ms, found \"99ms\"",
        ),
        (
            upstream("timeout: 366d"),
            "c.yaml:6:14: upstreams.store.timeout: expected a duration of at most 365 days, found \"366d\"",
        ),
        (
            with("store: { cache: 1KB }\n"),
            "c.yaml:10:17: store.cache: expected a size such as 64KiB or 1GiB, found \"1KB\"",
        ),
        (
            with("store: { cache: 1KiB }\n"),
            "c.yaml:10:17: store.cache: expected a size from 1MiB to 1TiB, found \"1KiB\"",
        ),
        (
            with("limits: { waiting_per_key: none }\n"),
            "c.yaml:10:28: limits.waiting_per_key: expected a whole number, found \"none\"",
        ),
        (
            with("limits: { header_count: 0 }\n"),
            "c.yaml:10:25: limits.header_count: expected a number from 1 to 10000, found \"0\"",
        ),
        (
            fence("max_advance: 0"),
            "c.yaml:11:20: routes[0].fence.max_advance: expected a whole number of at least 1, found \"0\"",
        ),
        (
            fence("require: some"),
            "c.yaml:11:16: routes[0].fence.require: expected writes, all or never, found \"some\"",
        ),
        (
            fence("refuse_status: 503"),
            "c.yaml:11:22: routes[0].fence.refuse_status: expected a number from 400 to 499, found \"503\"",
        ),
        (
            upstream("unknown_statuses: [502, 600]"),
            "c.yaml:6:29: upstreams.store.unknown_statuses[1]: expected a number from 100 to 599, found \"600\"",
        ),
        // Addresses, URLs, networks, headers, methods.
        (
            LEAST.replace("127.0.0.1:8080", "127.0.0.1"),
            "c.yaml:2:14: listeners[0].address: expected HOST:PORT (the port is missing), found \"127.0.0.1\"",
        ),
        (
            LEAST.replace("127.0.0.1:8080", ":8080"),
            "c.yaml:2:14: listeners[0].address: expected HOST:PORT (the host is not an IP address or a name), found \":8080\"",
        ),
        (
            LEAST.replace("http://127.0.0.1:9000", "ftp://a"),
            "c.yaml:5:12: upstreams.store.urls[0]: expected http://HOST[:PORT], https://HOST[:PORT], unix:/PATH or builtin:objects",
        ),
        (
            LEAST.replace("http://127.0.0.1:9000", "http://a/b"),
            "c.yaml:5:12: upstreams.store.urls[0]: a URL has no path or query: the path of the request is forwarded as it came",
        ),
        (
            LEAST.replace("[http://127.0.0.1:9000]", "[]"),
            "c.yaml:5:11: upstreams.store.urls: at least one URL is needed",
        ),
        (
            with("trusted_proxies: [10.0.0.1/8]\n"),
            "c.yaml:10:19: trusted_proxies[0]: bits beyond the prefix are set; the network would be 10.0.0.0/8",
        ),
        (
            with("trusted_proxies: [10.0.0.0/33]\n"),
            "c.yaml:10:19: trusted_proxies[0]: expected a network such as 10.0.0.0/8 or fd00::/8",
        ),
        (
            upstream("headers: { 'a b': c }"),
            "c.yaml:6:16: upstreams.store.headers.\"a b\": \"a b\" is not a header name",
        ),
        (
            upstream("headers: { Host: c }"),
            "c.yaml:6:16: upstreams.store.headers.Host: the header host can't be set on requests to an upstream",
        ),
        (
            upstream("headers: { x-a: b, X-A: c }"),
            "c.yaml:6:24: upstreams.store.headers.X-A: header x-a is set twice",
        ),
        (
            fence("token_headers: []"),
            "c.yaml:11:22: routes[0].fence.token_headers: at least one header must be able to carry the token",
        ),
        (
            fence("token_headers: [Connection]"),
            "c.yaml:11:23: routes[0].fence.token_headers[0]: the header connection can't carry a token",
        ),
        (
            fence("token_headers: [a-b, A_B]"),
            "c.yaml:11:28: routes[0].fence.token_headers[1]: the header a_b is listed twice",
        ),
        (
            fence("safe_methods: [get]"),
            "c.yaml:11:22: routes[0].fence.safe_methods[0]: expected a method in upper case, found \"get\"",
        ),
        (
            fence("safe_methods: [GET, GET]"),
            "c.yaml:11:27: routes[0].fence.safe_methods[1]: GET is listed twice",
        ),
        (
            fence("safe_methods: [TRACE]"),
            "c.yaml:11:22: routes[0].fence.safe_methods[0]: TRACE is never forwarded",
        ),
        (
            fence("{ key: a, keys: [{ key: b }] }"),
            "c.yaml:11:23: routes[0].fence.keys: keys stands instead of key: give one of the two",
        ),
        // The parts together.
        (
            upstream("headers: { X-Fencing-Token: '1' }"),
            "c.yaml:6:16: upstreams.store.headers.X-Fencing-Token: the header x-fencing-token carries the token of route \"files\", it can't be set here",
        ),
        (
            LEAST.replace("  - address: 127.0.0.1:8080\n", "  {}\n"),
            "c.yaml:2:3: listeners: expected a list, found a mapping",
        ),
        (
            with("forwarded:\n\nlog: {}\n"),
            "c.yaml:10:10: forwarded: expected true or false, found nothing",
        ),
        (
            LEAST.replace("upstream: store", "upstream: stone"),
            "c.yaml:9:15: routes[0].upstream: there is no upstream \"stone\"; there is store",
        ),
        (
            LEAST.replace("  - address: 127.0.0.1:8080\n", "  []\n"),
            "c.yaml:2:3: listeners: at least one listener is needed",
        ),
        (
            LEAST.replace("name: files", "name: a/b"),
            "c.yaml:7:11: routes[0].name: a route's name is made of 1 to 64 letters, digits, dots, dashes and underscores, found \"a/b\"",
        ),
        (
            with("    namespace: a/b\n"),
            "c.yaml:10:16: routes[0].namespace: a namespace is made of 1 to 64 letters, digits, dots, dashes and underscores, found \"a/b\"",
        ),
        (
            with("  - { name: files, path: /, upstream: store }\n"),
            "c.yaml:10:13: routes[1].name: another route is named \"files\" too, in line 7",
        ),
        (
            LEAST.replace("path: /files", "path: files"),
            "c.yaml:8:11: routes[0].path: a path begins with a slash",
        ),
        (
            fence("body: spool"),
            "c.yaml:11:13: routes[0].fence.body: body: spool needs a limits.body that is not none",
        ),
        (
            with("admin: { address: 127.0.0.1:8080 }\n"),
            "c.yaml:10:19: admin.address: 127.0.0.1:8080 is listened on already, in line 2",
        ),
        // The environment.
        (
            upstream("headers: { a: \"x${NOPE}\" }"),
            "c.yaml:6:19: upstreams.store.headers.a: the environment variable NOPE is not set, or is not UTF-8",
        ),
    ] {
        let found = lines(&text);
        if found != [expected] {
            wrong.push(format!("expected {expected:?}, found {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn yaml_that_is_none_has_a_place() {
    let problems = lines("listeners:\n  - address: [\n");
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("c.yaml:3:1: this is not YAML: "),
        "{problems:?}"
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = "\
listeners:
  - address: nowhere
    tls: {}
upstreams:
  a: { urls: [gopher://x], tiemout: 5s }
routes:
  - name: r
    path: /
    upstream: b
    fence: { mode: loose, keys: [{ when: never }] }
telemetry: {}
";
    let problems = bad(text);
    let places: Vec<String> = problems
        .as_slice()
        .iter()
        .map(|p| format!("{}:{} {}", p.line, p.column, p.key_path))
        .collect();
    assert_eq!(
        places,
        [
            "2:14 listeners[0].address",
            "3:10 listeners[0].tls",
            "3:10 listeners[0].tls",
            "5:15 upstreams.a.urls[0]",
            "5:28 upstreams.a.tiemout",
            "9:15 routes[0].upstream",
            "10:20 routes[0].fence.mode",
            "10:34 routes[0].fence.keys[0]",
            "10:42 routes[0].fence.keys[0].when",
            "11:1 telemetry",
        ]
    );
    assert!(
        problems.to_string().ends_with("\n10 problems"),
        "{problems}"
    );
}

#[test]
fn the_addresses_of_an_upstream() {
    let urls = |urls: &str| LEAST.replace("[http://127.0.0.1:9000]", urls);
    let config = good(&urls("[http://a, 'http://a:81', unix:/run/a.sock]"));
    let found: Vec<_> = config.upstreams["store"].urls.iter().collect();
    let found: Vec<_> = found.iter().map(|url| url.value.to_string()).collect();
    assert_eq!(found, ["http://a:80", "http://a:81", "unix:/run/a.sock"]);

    for (text, expected) in [
        (
            "[http://a, HTTP://A:80/]",
            "c.yaml:5:22: upstreams.store.urls[1]: http://a:80 stands here twice, first in line 5",
        ),
        (
            "[http://a, 'builtin:objects']",
            "c.yaml:5:22: upstreams.store.urls[1]: builtin:objects can't be one of several addresses",
        ),
        (
            "[unix:a.sock]",
            "c.yaml:5:12: upstreams.store.urls[0]: a unix socket needs an absolute path of at most \
             107 bytes, as in unix:/run/x.sock",
        ),
    ] {
        assert_eq!(lines(&urls(text)), [expected]);
    }
    let many: Vec<_> = (0..65)
        .map(|port| format!("'http://a:{}'", port + 1))
        .collect();
    let many = format!("[{}]", many.join(", "));
    let problems = bad(&urls(&many)).to_string();
    assert!(
        problems.contains("urls[64]: more than 64 URLs"),
        "{problems}"
    );
}

#[test]
fn upstreams_that_share_an_address_are_one_resource() {
    let text = "
listeners: [{ address: '127.0.0.1:8080' }]
upstreams:
  a: { urls: ['http://a', 'http://b'] }
  b: { urls: ['http://b', 'unix:/c'] }
  c: { urls: ['unix:/c'] }
  d: { urls: ['http://d'] }
routes:
  - { name: one, path: '/one/{*path}', upstream: a }
  - { name: two, path: '/two/{*path}', upstream: c }
  - { name: three, path: '/three/{*path}', upstream: d }
";
    let loaded = parse(text).unwrap();
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    let warning = loaded.warnings[0].to_string();
    assert!(warning.contains("two keys"), "{warning}");
}

#[test]
fn health_checks() {
    let health = |text: &str| upstream(&format!("health: {text}"));
    let config = good(&health("{ path: '/healthz?full' }"));
    let found = config.upstreams["store"].health.as_ref().unwrap();
    assert_eq!(
        (found.path.as_str(), found.interval),
        ("/healthz?full", secs(5))
    );
    for (text, expected) in [
        ("{}", "c.yaml:6:13: upstreams.store.health: path is missing"),
        (
            "{ path: healthz }",
            "c.yaml:6:21: upstreams.store.health.path: expected a path such as /healthz",
        ),
        (
            "{ path: '/a#b' }",
            "c.yaml:6:21: upstreams.store.health.path: expected a path such as /healthz",
        ),
        (
            "{ path: /, interval: 10ms }",
            "c.yaml:6:34: upstreams.store.health.interval: expected a duration of at least 100ms, found \
             \"10ms\"",
        ),
        (
            "{ path: /, intervall: 1s }",
            "c.yaml:6:24: upstreams.store.health.intervall: unknown key \"intervall\"; did you mean \
             interval?",
        ),
    ] {
        assert_eq!(lines(&health(text)), [expected], "{text}");
    }
    let builtin = health("{ path: / }").replace("http://127.0.0.1:9000", "'builtin:objects'");
    assert_eq!(
        lines(&builtin),
        ["c.yaml:6:13: upstreams.store.health: builtin:objects is always well"]
    );
}

#[test]
fn what_is_not_built_is_refused() {
    for (text, key) in [
        (with("store: { etcd: {} }\n"), "store.etcd"),
        (fence("partition: '{id}'"), "routes[0].fence.partition"),
        (with("telemetry: { otlp: 'http://a' }\n"), "telemetry"),
    ] {
        let problems = bad(&text);
        assert_eq!(problems.as_slice().len(), 1, "{problems}");
        let problem = &problems.as_slice()[0];
        assert_eq!(problem.key_path, key);
        assert!(
            problem.message.ends_with("not supported by this version"),
            "{problem}"
        );
    }
}

#[test]
fn the_environment_fills_values_and_never_keys() {
    let config = good(
        &LEAST
            .replace("127.0.0.1:8080", "\"${HOST}:80${NUMBER}\"")
            .replace("name: files", "name: ${NUMBER}")
            .replace("upstream: store", "upstream: store\n    deny: ${ON}"),
    );
    assert_eq!(
        config.listeners[0].address.value.to_string(),
        "127.0.0.1:8042"
    );
    assert_eq!(config.routes[0].name.value, "42");
    assert!(config.routes[0].deny);
    only(
        &with("${HOST}: a\n"),
        "c.yaml:10:1: \"${HOST}\": unknown key \"${HOST}\"; expected one of listeners, \
         trusted_proxies, forwarded, admin, locks, store, upstreams, routes, limits, timeouts, shutdown, log",
    );
    let config = good(&fence("key: 'a$$b$c'"));
    assert_eq!(config.routes[0].fence.keys[0].key.value, "a$b$c");
}

#[test]
fn secrets_come_from_files_beside_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    fs::write(dir.path().join("auth"), format!("Bearer {SECRET}\r\n")).unwrap();
    fs::write(dir.path().join("empty"), "\n").unwrap();
    fs::write(dir.path().join("lines"), format!("{SECRET}\n{SECRET}\n")).unwrap();
    let load = |value: &str| {
        fs::write(
            &file,
            upstream(&format!("headers: {{ authorization: {value} }}")),
        )
        .unwrap();
        Config::load(&file)
    };
    let config = load("{ file: auth }").unwrap().config;
    let header = &config.upstreams["store"].headers[0];
    assert_eq!(
        header.value.expose().as_bytes(),
        format!("Bearer {SECRET}").as_bytes()
    );
    for (value, expected) in [
        ("{ file: empty }", "empty is empty"),
        ("{ file: lines }", "not a legal header value"),
        ("{ file: missing }", "can't read"),
        ("{ file: . }", "it is not a file"),
        (
            "{ file: a, env: b }",
            "expected a value, { env: NAME } or { file: PATH }",
        ),
    ] {
        let problems = load(value).unwrap_err().to_string();
        assert!(problems.contains(expected), "{problems}");
        assert!(!problems.contains(SECRET), "{problems}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let config = good(&upstream(
        "headers: { authorization: { env: AUTH }, x-a: \"${AUTH}\" }",
    ));
    let shown = format!("{config:?}");
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(shown.contains("***"));
    let hash = "0123456789abcdef".repeat(4);
    let config = good(&with(&format!("admin: {{ tokens: ['sha256:{hash}'] }}\n")));
    assert!(!format!("{config:?}").contains(&hash));

    for text in [
        upstream(&format!("headers: {{ authorization: [{SECRET}] }}")),
        upstream(&format!("headers: {{ authorization: {{ {SECRET} }} }}")),
        upstream(&format!(
            "headers: {{ authorization: {{ value: {SECRET} }} }}"
        )),
        upstream(&format!(
            "headers: {{ authorization: {{ env: {SECRET} }} }}"
        )),
        upstream(&format!("headers: {{ authorization: \"${{{SECRET}}}\" }}")),
        upstream(&format!(
            "headers: {{ authorization: \"{SECRET}\\u0001\" }}"
        )),
        upstream("headers: { authorization: { env: CONTROL } }"),
        upstream("headers: { authorization: { env: EMPTY } }"),
        upstream(&format!("headers: {SECRET}")),
        upstream("timeout: ${AUTH}"),
        fence("mode: ${AUTH}"),
        LEAST.replace("127.0.0.1:9000", &format!("me:{SECRET}@127.0.0.1:9000")),
        with(&format!("admin: {{ tokens: [{SECRET}] }}\n")),
    ] {
        let problems = bad(&text);
        assert!(!problems.to_string().contains(SECRET), "{problems}");
        assert!(!format!("{problems:?}").contains(SECRET), "{problems}");
    }
}

#[test]
fn aliases_are_followed_within_bounds() {
    let config = good(
        "\
listeners: [{ address: 127.0.0.1:1 }]
upstreams:
  a: &a { urls: [builtin:objects], settle: 3s }
  b: *a
routes:
  - { name: r, path: /a, upstream: a, fence: &f { mode: observe } }
  - { name: s, path: /b, upstream: b, fence: *f }
",
    );
    assert_eq!(config.upstreams["b"].settle, secs(3));
    assert_eq!(config.routes[1].fence.mode, Mode::Observe);

    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..20 {
        let last = n - 1;
        laughs += &format!(
            "a{n}: &a{n} [{}]\n",
            vec![format!("*a{last}"); 10].join(", ")
        );
    }
    assert!(lines(&laughs)[0].ends_with("the file has more than 20000 values"));
    // What is really written may be as much as the file holds.
    let mut routes = LEAST.to_owned();
    for n in 0..10_000 {
        routes += &format!(
            "  - {{ name: r{n}, path: \"/r{n}/{{id}}\", upstream: store, fence: {{ require: all, key: \"r{n}/{{id}}\" }} }}\n"
        );
    }
    assert_eq!(good(&routes).routes.len(), 10_001);
    assert!(lines("a: &a [*a]")[0].contains("alias refers to a value that it is part of"));
    assert!(lines(&"[".repeat(100))[0].contains("nested more than 32 deep"));
    assert!(lines(&with("<<: {}\n"))[0].ends_with("merge keys are not supported"));
}

#[test]
fn a_file_that_can_not_be_read_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let problems = Config::load(&file).unwrap_err().to_string();
    assert!(
        problems.contains("config.yaml: can't read the config: "),
        "{problems}"
    );
    fs::write(&file, b"listeners:\n  - \xff\n").unwrap();
    let problems = Config::load(&file).unwrap_err().to_string();
    assert!(
        problems.contains("config.yaml:2:5: the file is not UTF-8"),
        "{problems}"
    );
    fs::write(&file, vec![b'#'; 9 << 20]).unwrap();
    let problems = Config::load(&file).unwrap_err().to_string();
    assert!(problems.contains("larger than 8MiB"), "{problems}");
    fs::write(&file, format!("\u{feff}{LEAST}")).unwrap();
    Config::load(&file).unwrap();
}

#[test]
fn what_is_most_likely_not_meant_is_warned_of() {
    let warnings = |text: &str| -> Vec<String> {
        let loaded = parse(text).unwrap();
        loaded.warnings.iter().map(ToString::to_string).collect()
    };
    let no_warnings: [&str; 0] = [];
    assert_eq!(warnings(LEAST), no_warnings);
    let other = with("  - { name: other, path: /, upstream: store }\n");
    assert_eq!(
        warnings(&other),
        [
            "c.yaml:10:39: routes[1].upstream: route files reaches the upstream store under the \
          namespace files, and this route under other: the same resource would have two keys"
        ]
    );
    assert_eq!(
        warnings(&other.replace("path: /,", "path: /, namespace: files,")),
        no_warnings
    );
    assert_eq!(
        warnings(&other.replace("path: /,", "path: /, deny: true,")),
        no_warnings
    );
    assert_eq!(
        warnings(&other.replace(" }", ", fence: { require: never } }")),
        [
            "c.yaml:10:39: routes[1].upstream: route files fences the upstream store, and this route \
          reaches it without a fence"
        ]
    );
    let twin = other
        .replace(
            "routes:",
            "  twin: { urls: ['HTTP://127.0.0.1:9000/'] }\nroutes:",
        )
        .replace("path: /, upstream: store", "path: /, upstream: twin");
    assert_eq!(warnings(&twin).len(), 1, "one address is one resource");
    assert_eq!(warnings(&fence("new_epochs: refuse")).len(), 1);
}

#[test]
fn rules_are_the_same_however_they_are_written() {
    let of = |text: &str| rules(&good(text).routes[0]);
    let plain = of(LEAST);
    assert_eq!(plain["files.path"], "/files/{*path}");
    assert_eq!(plain["files.namespace"], "files");
    assert_eq!(
        of(&fence(
            "{ require: writes, keys: [{ key: '{path}' }], mode: enforce }"
        )),
        plain
    );
    assert_eq!(
        of(&fence(
            "safe_methods: [SEARCH, REPORT, PROPFIND, OPTIONS, HEAD, GET]"
        )),
        plain
    );
    assert_eq!(of(&fence("drain: { timeout: 1s }")), plain);
    for (key, field) in [
        ("require: all", "files.fence.require"),
        ("mode: observe", "files.fence.mode"),
        ("key: x", "files.fence.keys"),
        (
            "keys: [{ key: '{path}', access: read }]",
            "files.fence.keys",
        ),
        ("path: opaque", "files.fence.path"),
        ("case: insensitive", "files.fence.case"),
        ("safe_methods: [GET]", "files.fence.safe_methods"),
    ] {
        let other = of(&fence(key));
        let changed: Vec<&String> = other
            .keys()
            .filter(|k| other.get(*k) != plain.get(*k))
            .collect();
        assert_eq!(changed, [field], "{key}");
    }
    assert!(of(&with("    deny: true\n")).is_empty());
}

const REFERENCE: &str = include_str!("../../config.yaml");

#[test]
fn the_reference_config_is_one_and_shows_the_defaults() {
    let loaded = parse(REFERENCE).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    // What is commented out is uncommented: a comment whose text begins with a key.
    let all: Vec<String> = REFERENCE
        .lines()
        .map(|line| {
            let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
            match rest.strip_prefix("# ") {
                Some(rest) if is_key(rest) => format!("{indent}{rest}"),
                _ => line.to_owned(),
            }
        })
        .collect();
    assert!(all.len() > 90, "{}", all.len());
    let written = parse(&all.join("\n")).unwrap_or_else(|problems| panic!("{problems}"));
    // One text per config, without the places.
    let text = |config: &Config| {
        let shown = format!("{config:#?}");
        let lines = shown.lines().filter(|line| {
            let line = line.trim_start();
            !["line:", "column:", "key_path:"]
                .iter()
                .any(|key| line.starts_with(key))
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(text(&written.config), text(&loaded.config));
}

fn is_key(text: &str) -> bool {
    let key = text.trim_start().split(':').next().unwrap_or_default();
    let value = text.trim_start().get(key.len()..).unwrap_or_default();
    !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        && (value == ":" || value.starts_with(": "))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn text_that_looks_like_yaml_never_panics(text in "[ab \\n:\\-{}\\[\\],&*!|>'\"#%@?$~<0-9\\t]{0,80}") {
        let _ = parse(&text);
    }

    #[test]
    fn a_config_with_a_piece_replaced_never_panics(
        start in 0..REFERENCE.len(),
        length in 0..40_usize,
        piece in "[ab \\n:{}\\[\\],&*!'\"#$]{0,6}",
    ) {
        let end = (start + length).min(REFERENCE.len());
        if let (Some(before), Some(after)) = (REFERENCE.get(..start), REFERENCE.get(end..)) {
            let _ = parse(&format!("{before}{piece}{after}"));
        }
    }
}

#[test]
fn what_is_forgotten_is_named() {
    let forget = |text: &str| with(&format!("store: {{ forget: {text} }}\n"));
    let config = good(&forget("{ namespaces: [files], after: 90d }"));
    let forget_90d = config.store.forget.unwrap();
    assert_eq!(forget_90d.namespaces[0].value, "files");
    assert_eq!(forget_90d.after, Duration::from_hours(90 * 24));
    assert!(good(&with("")).store.forget.is_none());
    for (text, key, what) in [
        ("{ after: 1d }", "store.forget", "namespaces"),
        ("{ namespaces: [files] }", "store.forget", "after"),
        (
            "{ namespaces: [], after: 1d }",
            "store.forget",
            "at least one",
        ),
        (
            "{ namespaces: [flies], after: 1d }",
            "store.forget.namespaces[0]",
            "no route has",
        ),
        (
            "{ namespaces: [files], after: 10ms }",
            "store.forget.after",
            "at least 1s",
        ),
        (
            "{ namespaces: [files], after: 1d, floor: 7 }",
            "store.forget.floor",
            "floor",
        ),
    ] {
        let problems = bad(&forget(text));
        assert_eq!(problems.as_slice().len(), 1, "{problems}");
        let problem = &problems.as_slice()[0];
        assert_eq!(problem.key_path, key, "{problem}");
        assert!(problem.message.contains(what), "{problem}");
    }
}
