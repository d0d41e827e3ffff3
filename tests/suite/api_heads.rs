//! Heads that are too broken for the codec, on the gateway's own APIs: the lock service and the admin
//! listener answer them as every other listener does, and then end the connection.

use std::net::SocketAddr;

use crate::common::{Connection, Ended, Request, Stage, send_raw};
use serde_json::json;

const LISTEN: &str = "127.0.0.1:0";

/// A gateway, and the addresses of its APIs with something that can be asked for there.
fn house() -> (Stage, [(SocketAddr, &'static str); 2]) {
    let stage = Stage::with(|config| config.set("locks.address", LISTEN));
    let apis = [
        (stage.gateway.locks(), "/openapi.json"),
        (stage.gateway.admin, "/livez"),
    ];
    (stage, apis)
}

/// A request with these lines between its Host and its end.
fn with(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
}

#[test]
fn a_broken_head_is_told_what_is_wrong_with_it() {
    let (_stage, apis) = house();
    for (address, target) in apis {
        let many = "X: y\r\n".repeat(101);
        let huge = format!("X: {}\r\n", "y".repeat(70_000));
        let long = format!("/{}", "x".repeat(70_000));
        for (bytes, status, reason) in [
            ("\0\0\0\0".to_owned(), 400, "bad-request"),
            ("\x16\x03\x01\x02".to_owned(), 400, "bad-request"),
            (
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
                400,
                "bad-request",
            ),
            (format!("GET {target}\r\n\r\n"), 400, "bad-request"),
            (format!("GET {target} HTTP/1.2\r\n\r\n"), 400, "bad-request"),
            (
                format!("GET  {target} HTTP/1.1\r\n\r\n"),
                400,
                "bad-request",
            ),
            (
                format!("GET {target} HTTP/1.1\nHost: localhost\n\n"),
                400,
                "bad-request",
            ),
            (with(target, "Host: localhost\r\n"), 400, "bad-request"),
            (with(target, "no colon\r\n"), 400, "bad-request"),
            (with(target, "Space : before\r\n"), 400, "bad-request"),
            (with(target, "X: a\r\n folded\r\n"), 400, "bad-request"),
            (with(target, "X: \0\r\n"), 400, "bad-request"),
            (with(target, "Content-Length: x\r\n"), 400, "bad-request"),
            (
                with(
                    target,
                    "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
                ),
                400,
                "bad-request",
            ),
            (
                with(target, "Transfer-Encoding: gzip, chunked\r\n"),
                501,
                "not-implemented",
            ),
            (with(target, &many), 431, "headers-too-large"),
            (with(target, &huge), 431, "headers-too-large"),
            (with(&long, ""), 414, "uri-too-long"),
        ] {
            let what: String = bytes.chars().take(60).collect();
            let answer = send_raw(address, &bytes).unwrap();
            answer.assert_fenced(status, reason, &what);
            let kind = answer.header("content-type");
            assert_eq!(kind, Some("application/problem+json"), "{what:?}");
            assert_eq!(answer.header("connection"), Some("close"), "{what:?}");
        }
        assert_eq!(send_raw(address, with(target, "")).unwrap().status, 200);
        let hostless = send_raw(address, format!("GET {target} HTTP/1.0\r\n\r\n")).unwrap();
        hostless.assert_fenced(400, "bad-request", "without a Host");
    }
}

#[test]
fn what_stands_behind_a_broken_head_is_never_read() {
    let (_stage, apis) = house();
    for (address, target) in apis {
        let mut client = Connection::open(address);
        let (good, bad) = (with(target, ""), with(target, "no colon\r\n"));
        client.send([good.clone(), bad, good].concat());
        assert_eq!(client.response().status, 200);
        client
            .response()
            .assert_fenced(400, "bad-request", "the second of three");
        assert_eq!(client.try_response("GET").unwrap_err(), Ended::Closed);
    }
}

#[test]
fn a_broken_head_leaves_locks_as_they_are() {
    let (stage, [(locks, _), _]) = house();
    let key = "objects/42";
    let take = json!({ "holder": "pod-a", "ttl_ms": 60_000 });
    let mut client = Connection::open(locks);
    let take = stage.gateway.lock_call(key, "acquire", &take);
    client.send(take.whole());
    assert_eq!(client.response().json()["token"], "1");
    // Its lease is not of the connection on which it was told.
    client.send("GET / HTTP/1.1\nHost: localhost\n\n");
    client
        .response()
        .assert_fenced(400, "bad-request", "a bare LF");
    let view = stage.gateway.lock_view(key).json();
    assert_eq!(
        (&view["holder"], &view["token"]),
        (&json!("pod-a"), &json!("1"))
    );
    // A body that breaks the rules in the midst of a call takes nothing away either.
    let release = Request::new("POST", "/v1/locks/objects%2F42/release").host("localhost");
    let mut client = Connection::open(locks);
    client.send(release.chunked_head());
    client.send("zz\r\n{\"token\":\"1\"}\r\n0\r\n\r\n");
    client
        .response()
        .assert_fenced(400, "bad-request", "a chunk without a size");
    assert_eq!(stage.gateway.lock_view(key).json()["token"], "1");
}
