//! From the request to the key: one resource, one key, however it is spelled.

use crate::common::{Config, Request, Stage};
use serde_json::json;

/// The whole path is the key, as `fence.path` says to read it.
fn whole_path(mode: &'static str) -> impl FnOnce(Config) -> Config {
    move |config| {
        config
            .set("routes.0.path", "/{*path}")
            .fence("key", "{path}")
            .fence("path", mode)
    }
}

fn put(target: &[u8]) -> Vec<u8> {
    let mut bytes = b"PUT ".to_vec();
    bytes.extend_from_slice(target);
    bytes.extend_from_slice(
        b" HTTP/1.1\r\nHost: store.test\r\nFencing-Token: 50\r\nContent-Length: 1\r\n\r\nx",
    );
    bytes
}

/// Asserts that the targets are one key, and that each is forwarded as it came.
fn assert_one_key(stage: &Stage, targets: &[&str]) {
    let token = 1000 + stage.recorder.count() as u64;
    let first = targets[0];
    stage.raise(first, &token.to_string());
    for target in targets {
        let stale = stage.send(&Request::put(target).token(token - 1));
        stale.assert_fenced(
            409,
            "stale-token",
            &format!("{target} is the resource {first}"),
        );
        stage.raise(target, &token.to_string());
        assert_eq!(
            &stage.recorder.last().target,
            target,
            "the path that is forwarded is never rewritten"
        );
    }
}

fn assert_ambiguous(stage: &Stage, targets: &[&[u8]]) {
    for target in targets {
        let what = format!("the target {:?}", String::from_utf8_lossy(target));
        if let Some(answer) = stage.assert_bad(put(target), &what) {
            assert_eq!(answer.status, 400, "{what}");
        }
    }
    stage.assert_alive();
}

// K1
#[test]
fn dot_segments_are_refused_in_every_spelling() {
    for mode in ["strict", "opaque"] {
        let stage = Stage::with(whole_path(mode));
        assert_ambiguous(
            &stage,
            &[
                b"/objects/../42",
                b"/objects/./42",
                b"/..",
                b"/.",
                b"/objects/42/..",
                b"/objects/42/.",
                b"/objects/%2e%2e/42",
                b"/objects/%2E%2E/42",
                b"/objects/.%2e/42",
                b"/objects/%2e./42",
                b"/objects/%2e/42",
                b"/../objects/42",
                b"/objects/%2e%2e",
            ],
        );
    }
    let opaque = Stage::with(whole_path("opaque"));
    assert_ambiguous(
        &opaque,
        &[b"/objects/..%2f42", b"/a%2f..%2fb", b"/a%2F.%2Fb"],
    );
}

// K2 K3 K10
#[test]
fn what_servers_read_in_different_ways_is_refused_when_strict() {
    let stage = Stage::with(whole_path("strict"));
    for target in [
        "//objects/42",
        "/objects//42",
        "/objects/42//",
        "/objects%2F42",
        "/objects/%2f",
        "/objects%5C42",
        "/objects%5c42",
        "/objects/42;v=1",
        "/objects;a/42",
        "/objects/42%3",
    ] {
        let answer = stage.assert_bad(put(target.as_bytes()), target).unwrap();
        answer.assert_fenced(400, "ambiguous-path", target);
    }
    assert_ambiguous(&stage, &[b"/objects\\42", b"/\\objects/42"]);
}

// K4
#[test]
fn escapes_are_decoded_once_and_make_no_other_key() {
    let stage = Stage::with(whole_path("strict"));
    assert_one_key(
        &stage,
        &["/objects/a", "/objects/%61", "/%6fbjects/a", "/%6Fbjects/a"],
    );
    assert_one_key(
        &stage,
        &["/objects/a@b", "/objects/a%40b", "/objects/%61@%62"],
    );
    assert_one_key(
        &stage,
        &["/objects/a~b", "/objects/a%7Eb", "/objects/a%7eb"],
    );
    assert_one_key(&stage, &["/objects/%C3%B6", "/objects/%c3%b6"]);
    assert_one_key(&stage, &["/objects/a%20b"]);
    assert_one_key(
        &stage,
        &["/objects/a+b", "/objects/a%2Bb", "/objects/a%2bb"],
    );
}

// K4 K11
#[test]
fn one_trailing_slash_is_not_part_of_a_strict_key() {
    let stage = Stage::with(whole_path("strict"));
    assert_one_key(&stage, &["/objects/42", "/objects/42/"]);
    let captured = Stage::new();
    assert_one_key(&captured, &["/objects/42", "/objects/42/"]);
}

// K2 K4 K10
#[test]
fn an_opaque_path_keeps_what_object_stores_allow() {
    let stage = Stage::with(whole_path("opaque"));
    assert_one_key(&stage, &["/objects/42", "/objects%2F42", "/objects%2f42"]);
    for (token, target) in [
        (11, "/b/x"),
        (12, "/b//x"),
        (13, "/b/x/"),
        (14, "/b/x;v=1"),
        (15, "/b/x%3Bv=2"),
        (16, "//b/x"),
    ] {
        stage.raise(target, &token.to_string());
    }
    for (key, mark) in [
        ("objects/b/x", "11"),
        ("objects/b//x", "12"),
        ("objects/b/x/", "13"),
        ("objects/b/x;v=1", "14"),
        ("objects/b/x;v=2", "15"),
    ] {
        assert_eq!(
            stage.mark(key).as_deref(),
            Some(mark),
            "{key} is a key of its own"
        );
    }
    assert_ambiguous(
        &stage,
        &[b"/b/%00", b"/b/%0a", b"/b/x%0d%0ay", b"/b/%7f", b"/b/%1b"],
    );
}

// K5
#[test]
fn a_double_escape_is_decoded_once() {
    let stage = Stage::with(whole_path("strict"));
    stage.raise("/objects/%252e%252e", "34");
    assert_eq!(
        stage.mark("objects/objects/%2e%2e").as_deref(),
        Some("34"),
        "%252e is the text %2e and no dot"
    );
    stage.raise("/objects/%2541", "35");
    assert_eq!(stage.mark("objects/objects/%41").as_deref(), Some("35"));
    assert_eq!(stage.mark("objects/objects/A"), None);
}

// K6 K7 K8
#[test]
fn malformed_escapes_and_bytes_are_refused() {
    for mode in ["strict", "opaque"] {
        let stage = Stage::with(whole_path(mode));
        assert_ambiguous(
            &stage,
            &[
                b"/objects/%zz",
                b"/objects/%",
                b"/objects/%4",
                b"/objects/%g1",
                b"/objects/%%41",
                b"/objects/%u0041",
                b"/objects/%00",
                b"/objects/42%00.txt",
                b"/objects/%0d%0a",
                b"/objects/%0a",
                b"/objects/%09",
                b"/objects/%7f",
            ],
        );
    }
    for mode in ["strict", "opaque"] {
        let stage = Stage::with(whole_path(mode));
        assert_ambiguous(
            &stage,
            &[
                b"/objects/%c0%ae%c0%ae",
                b"/objects/%c0%af",
                b"/objects/%e0%80%af",
                b"/objects/%ff",
                b"/objects/%c3",
                b"/objects/%ed%a0%80",
                b"/objects/%f4%90%80%80",
                b"/objects/\xc3\xb6",
                b"/objects/\xff",
            ],
        );
    }
}

// K9
#[test]
fn raw_bytes_outside_the_path_characters_are_refused() {
    let stage = Stage::with(whole_path("strict"));
    for byte in [
        b'|', b'<', b'>', b'"', b'^', b'`', b'{', b'}', b'\t', b' ', 0, 1, 0x7f, 0x0b,
    ] {
        let target = [b"/objects/4", &[byte][..], b"2"].concat();
        stage.assert_bad(put(&target), &format!("the raw byte {byte:#x}"));
    }
    stage.assert_alive();
}

// K11
#[test]
fn case_makes_another_key_unless_it_is_folded() {
    let sensitive = Stage::new();
    sensitive.raise("/objects/Readme", "34");
    sensitive.raise("/objects/README", "1");

    let folded = Stage::with(|config| config.fence("case", "insensitive"));
    assert_one_key(
        &folded,
        &["/objects/Readme", "/objects/README", "/objects/%52EADME"],
    );
    assert_one_key(&folded, &["/objects/%C3%84rger", "/objects/%C3%A4RGER"]);
    assert_one_key(&folded, &["/objects/k", "/objects/%E2%84%AA"]);
}

// K12
#[test]
fn a_fragment_reaches_neither_key_nor_upstream() {
    let stage = Stage::at_34();
    for target in [
        "/objects/42#43",
        "/objects/42#/../43",
        "/objects/42#",
        "/objects/42?a#b",
        "http://store.test/objects/42#43",
    ] {
        let answer = stage.assert_bad(put(target.as_bytes()), target).unwrap();
        answer.assert_fenced(400, "bad-request", target);
    }
    assert_eq!(stage.mark("objects/42#43"), None, "it makes no key");
}

// K13
#[test]
fn a_key_from_the_query_does_not_mind_order_and_refuses_doubles() {
    let stage = Stage::with(|config| {
        config
            .set("routes.0.path", "/blob")
            .fence("key", "{query.id}")
    });
    assert_one_key(
        &stage,
        &[
            "/blob?id=42&v=1",
            "/blob?v=1&id=42",
            "/blob?id=%34%32",
            "/blob?%69d=42",
        ],
    );
    for target in [
        "/blob?id=42&id=42",
        "/blob?id=42&id=43",
        "/blob?id=42&%69d=43",
        "/blob?id=42&v=1&id=",
    ] {
        let answer = stage.assert_bad(put(target.as_bytes()), target).unwrap();
        assert_eq!(answer.status, 400, "{target}");
    }
    for target in ["/blob", "/blob?", "/blob?id=", "/blob?id", "/blob?other=1"] {
        let answer = stage.assert_bad(put(target.as_bytes()), target).unwrap();
        answer.assert_fenced(400, "no-key", &format!("{target} names no resource"));
    }
}

// K18
#[test]
fn methods_that_are_no_requests_for_a_resource_are_refused() {
    let stage = Stage::with(whole_path("strict"));
    let line = |line: &str, host: &str| {
        format!("{line} HTTP/1.1\r\nHost: {host}\r\nFencing-Token: 34\r\n\r\n")
    };
    let connect = line("CONNECT store.test:443", "store.test:443");
    let answer = stage.assert_bad(connect, "CONNECT");
    assert!(
        answer.is_none_or(|answer| answer.status == 400),
        "CONNECT is 400"
    );
    let asterisk = line("OPTIONS *", "store.test");
    let answer = stage.assert_bad(asterisk, "OPTIONS *");
    assert!(
        answer.is_none_or(|answer| answer.status == 400),
        "OPTIONS * is 400"
    );
    let answer = stage
        .assert_bad(line("TRACE /objects/42", "store.test"), "TRACE")
        .unwrap();
    answer.assert_fenced(405, "method-not-allowed", "TRACE would echo the credential");
}

// K19 K25
#[test]
fn headers_that_change_the_request_after_the_check_are_stripped() {
    let names = [
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "X-Original-URL",
        "X-Rewrite-URL",
    ];
    let mut request = Request::get("/objects/42");
    for name in names {
        request = request.header(name, "DELETE");
    }
    let stage = Stage::new();
    stage.send(&request).assert_ok("a read");
    for name in names {
        assert_eq!(
            stage.recorder.last().header(name),
            None,
            "{name} is stripped"
        );
    }
    let allowed = Stage::with(|config| config.fence("allow_method_override", true));
    allowed
        .send(&request.token(34))
        .assert_ok("a read with a token");
    assert_eq!(
        allowed.recorder.last().header("X-HTTP-Method-Override"),
        Some("DELETE"),
        "allow_method_override keeps it"
    );
}

// K25
#[test]
fn no_header_gives_the_key_another_path_than_the_one_that_is_forwarded() {
    let stage = Stage::at_34();
    for name in ["X-Original-URL", "X-Rewrite-URL"] {
        let stale = Request::put("/objects/42").token(33);
        stage
            .send(&stale.header(name, "/objects/other"))
            .assert_fenced(409, "stale-token", name);
    }
    assert!(stage.gateway.key("objects/other").is_none());
}

// K20
#[test]
fn an_unknown_method_is_a_write() {
    let stage = Stage::at_34();
    for method in [
        "get",
        "Get",
        "PATCH",
        "DELETE",
        "POST",
        "LOCK",
        "MKCOL",
        "BREW",
        "PROPPATCH",
    ] {
        stage
            .send(&Request::new(method, "/objects/42"))
            .assert_fenced(428, "token-required", method);
        stage
            .send(&Request::new(method, "/objects/42").token(33))
            .assert_fenced(409, "stale-token", method);
        stage
            .send(&Request::new(method, "/objects/42").token(34))
            .assert_ok(method);
        assert_eq!(stage.recorder.last().method, method, "forwarded as it came");
    }
}

#[test]
fn safe_methods_are_reads_and_the_list_is_the_configs() {
    let stage = Stage::at_34();
    for method in ["GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH"] {
        let request = Request::new(method, "/objects/42");
        let answer = request.try_send(stage.http()).unwrap();
        answer.assert_ok(method);
    }
    let few = Stage::with(|config| config.fence("safe_methods", json!(["GET"])));
    few.send(&Request::new("PROPFIND", "/objects/42"))
        .assert_fenced(428, "token-required", "PROPFIND is a write here");
}

// K26
#[test]
fn a_key_above_one_kib_is_refused_and_leaves_nothing() {
    let stage = Stage::at_34();
    let longest = "k".repeat(1024);
    stage.raise(&format!("/objects/{longest}"), "34");
    let keys = stage.gateway.metric("fencegate_keys", &[]);
    let answer = stage
        .assert_bad(
            put(format!("/objects/{longest}k").as_bytes()),
            "1,025 bytes",
        )
        .unwrap();
    assert_eq!(answer.status, 400, "a key has at most 1,024 bytes");
    let escaped = "%6b".repeat(1024);
    stage.raise(&format!("/objects/{escaped}"), "35");
    assert_eq!(
        stage.gateway.metric("fencegate_keys", &[]),
        keys,
        "no state is kept of it, and a key is measured decoded"
    );
}
