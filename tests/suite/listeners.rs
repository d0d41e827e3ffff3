//! Listeners on unix sockets, and behind proxies that pass on bytes.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::common::tls::{Authority, connect_over, over_unix};
use crate::common::{Config, Connection, Ended, Gateway, Recorder, Request, Stage, eventually};
use serde_json::json;

fn write(token: u64) -> Request {
    Request::put("/objects/42").token(token)
}

fn second(config: Config, listener: serde_json::Value) -> Config {
    config.set("listeners", json!([{ "address": "127.0.0.1:0" }, listener]))
}

#[test]
fn clients_come_by_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let address = format!("unix:{}", path.display());
    let mut stage =
        Stage::with(|config| second(config, json!({ "address": address })).set("forwarded", true));
    assert!(
        stage
            .gateway
            .says("ready")
            .contains(&format!("http={address}"))
    );
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666, "the directory says who may come");
    let mut client = over_unix(&path).unwrap();
    let told = write(34).header("X-Forwarded-For", "1.1.1.1");
    client
        .send(told.whole())
        .response()
        .assert_ok("by the socket");
    let seen = stage.recorder.last();
    assert_eq!(seen.header("x-forwarded-for"), None, "it has no address");
    assert_eq!(
        seen.header("forwarded"),
        Some("for=unknown;host=\"store.test\";proto=http")
    );
    let stale = client.send(write(33).whole()).response();
    stale.assert_fenced(409, "stale-token", "fenced all the same");
    let body = vec![b'x'; 3_000_000];
    client
        .send(write(34).body(&body).whole())
        .response()
        .assert_ok("a large one");
    assert!(stage.recorder.last().body == body);
    drop(client);
    assert!(stage.gateway.terminate().success());
    assert!(!path.exists(), "the file goes with the process");
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let listener = json!({ "address": format!("unix:{}", path.display()) });
    let recorder = Recorder::start();
    let config = second(Config::new(&recorder.url()).settle("100ms"), listener);
    let mut stage = Stage::before(recorder, |_| config.clone());
    let store = tempfile::tempdir().unwrap();
    let failed = Gateway::fails(config.clone(), store.path());
    assert!(
        failed.errors.contains("could not listen on"),
        "{}",
        failed.errors
    );
    assert_eq!(failed.status.code(), Some(1));

    stage.gateway.kill();
    assert!(path.exists());
    stage.gateway.restart();
    let answer = over_unix(&path).unwrap().send(write(34).whole()).response();
    answer.assert_ok("a dead one was replaced");
    stage.gateway.terminate();

    std::fs::write(&path, "something of somebody's").unwrap();
    let failed = Gateway::fails(config.clone(), store.path());
    assert!(
        failed.errors.contains("could not listen on"),
        "{}",
        failed.errors
    );
    assert!(path.exists(), "what is no socket stays");
    std::fs::remove_file(&path).unwrap();

    let other = UnixListener::bind(&path).unwrap();
    Gateway::fails(config, store.path());
    drop(other);
    assert!(path.exists(), "another's socket stays");
}

/// A PROXY header of version 2.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    bytes.extend(rest);
    bytes
}

const FROM: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 1, 1, 0, 80];

fn proxied(stage: &Stage) -> SocketAddr {
    let line = stage.gateway.says("ready");
    let address = line.rsplit("http=").next().unwrap();
    let address = address.split("https=").last().unwrap();
    address.split_whitespace().next().unwrap().parse().unwrap()
}

fn behind_proxy(trusted: &str, tls: serde_json::Value) -> Stage {
    let listener = json!({ "address": "127.0.0.1:0", "proxy_protocol": true, "tls": tls });
    Stage::with(|config| {
        second(config, listener)
            .set("trusted_proxies", json!([trusted]))
            .set("timeouts.header", "2s")
    })
}

#[test]
fn a_proxy_says_whose_bytes_it_passes_on() {
    let stage = behind_proxy("127.0.0.1", json!(null));
    for (header, from) in [
        (header(0x21, 0x11, &FROM), "192.0.2.7"),
        (
            header(0x21, 0x11, &[&FROM[..], &[4, 0, 1, 0]].concat()),
            "192.0.2.7",
        ),
        (header(0x20, 0, &[]), "127.0.0.1"),
    ] {
        let mut client = Connection::open(proxied(&stage));
        // In pieces, and with the request right behind it.
        client.send(&header[..5]).send(&header[5..]);
        client.send([write(34).whole(), write(34).whole()].concat());
        client.response().assert_ok("a write");
        client
            .response()
            .assert_ok("the next one on the connection");
        let seen = stage.recorder.last();
        assert_eq!(seen.header("x-forwarded-for"), Some(from));
    }
}

#[test]
fn what_a_client_says_behind_a_proxy_is_not_believed() {
    let stage = behind_proxy("127.0.0.1", json!(null));
    let mut client = Connection::open(proxied(&stage));
    let told = write(34).header("X-Forwarded-For", "1.1.1.1");
    client.send(header(0x21, 0x11, &FROM)).send(told.whole());
    client.response().assert_ok("a write");
    let seen = stage.recorder.last();
    assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.7"));
}

/// It is not the proxy, which is believed.
#[test]
fn a_client_that_the_proxy_does_not_know_is_not_believed() {
    let stage = behind_proxy("127.0.0.1", json!(null));
    let told = write(34)
        .header("X-Forwarded-For", "1.1.1.1")
        .header("X-Forwarded-Proto", "https");
    for (header, from) in [
        (header(0x21, 0, &[]), None),
        (header(0x21, 0x31, &[0; 216]), None),
        (header(0x20, 0, &[]), Some("1.1.1.1, 127.0.0.1")),
    ] {
        let mut client = Connection::open(proxied(&stage));
        client.send(header).send(told.whole());
        client.response().assert_ok("a write");
        let seen = stage.recorder.last();
        assert_eq!(seen.header("x-forwarded-for"), from);
        let proto = if from.is_some() { "https" } else { "http" };
        assert_eq!(seen.header("x-forwarded-proto"), Some(proto));
    }
}

#[test]
fn tls_begins_behind_the_header() {
    let authority = Authority::new();
    let tls = authority.listener(&authority.issue(|_| {}));
    let stage = behind_proxy("127.0.0.1", tls);
    let stream = std::net::TcpStream::connect(proxied(&stage)).unwrap();
    std::io::Write::write_all(&mut &stream, &header(0x21, 0x11, &FROM)).unwrap();
    let (mut client, _) = connect_over(stream, &Arc::new(authority.trust())).unwrap();
    client
        .send(write(34).whole())
        .response()
        .assert_ok("a write");
    let seen = stage.recorder.last();
    assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
}

#[test]
fn whoever_brings_no_header_is_not_served() {
    let stage = behind_proxy("127.0.0.1", json!(null));
    let good = header(0x21, 0x11, &FROM);
    let v1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 257 80\r\n".to_vec();
    let long = header(0x21, 0x11, &[0; 5000]);
    for (bytes, what) in [
        (write(34).whole(), "none"),
        ([v1, write(34).whole()].concat(), "version 1"),
        ([long, write(34).whole()].concat(), "one that is too long"),
        (header(0x21, 0x12, &FROM), "one of datagrams"),
        (good[..20].to_vec(), "one that never ends"),
        (Vec::new(), "nothing"),
    ] {
        let mut client = Connection::open(proxied(&stage));
        let ended = client.send(bytes).ended();
        assert!(
            matches!(ended, Ended::Closed | Ended::Reset),
            "{what}: {ended:?}"
        );
    }
    assert_eq!(stage.recorder.count(), 0);
    let connections = || stage.gateway.metric("fencegate_connections", &[]);
    eventually("none is left", || (connections() == 0.0).then_some(()));

    let stage = behind_proxy("192.0.2.1", json!(null));
    let mut client = Connection::open(proxied(&stage));
    let ended = client.send(good).send(write(34).whole()).ended();
    assert!(
        matches!(ended, Ended::Closed | Ended::Reset),
        "a stranger: {ended:?}"
    );
    assert_eq!(stage.recorder.count(), 0);
}

#[test]
fn who_may_bring_a_header_must_be_said() {
    let dir = tempfile::tempdir().unwrap();
    let check = |listener: serde_json::Value, trusted: serde_json::Value| {
        let file = dir.path().join("config.yaml");
        let config = json!({
            "listeners": [listener],
            "trusted_proxies": trusted,
            "upstreams": { "objects": { "urls": ["builtin:objects"] } },
            "routes": [{ "name": "objects", "path": "/objects/{id}", "upstream": "objects" }],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let output = crate::common::run(&["check", "--config", file.to_str().unwrap()]);
        String::from_utf8(output.stderr).unwrap()
    };
    let tcp = json!({ "address": "127.0.0.1:0", "proxy_protocol": true });
    assert!(check(tcp.clone(), json!(["10.0.0.0/8"])).contains("good"));
    assert!(check(tcp, json!([])).contains("lets in nobody"));
    let unix = json!({ "address": "unix:/run/x", "proxy_protocol": true });
    assert!(check(unix, json!(["10.0.0.0/8"])).contains("a unix socket has no address"));
}
