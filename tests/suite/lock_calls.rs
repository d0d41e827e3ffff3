//! What is a call of the lock service, and what is none: paths, bodies, names, callers, lists.

use crate::common::locks::token;
use crate::common::{Config, Gateway, Request, Stage};
use serde_json::{Value, json};

#[test]
fn locks_are_listed_in_order_by_pages() {
    let stage = Stage::locking();
    for key in ["objects/b", "objects/a", "objects/c d"] {
        let answer = stage.acquire_other(key, &key.replace(['/', ' '], "-"));
        assert_eq!(answer.status, 200);
    }
    let list = |query: &str| {
        let request = Request::get(&format!("/v1/locks?{query}")).host("localhost");
        request.send(stage.locks()).json()
    };
    let page = list("prefix=objects/&limit=2");
    assert_eq!(page["locks"][0]["key"], "objects/a");
    assert_eq!(page["locks"][1]["holder"], "objects-b");
    assert_eq!(page["next"], "objects/b");
    let rest = list("prefix=objects/&limit=2&after=objects/b");
    assert_eq!(rest["locks"][0]["key"], "objects/c d");
    assert!(rest["next"].is_null() && rest["locks"].as_array().unwrap().len() == 1);
    assert_eq!(list("prefix=none")["locks"], json!([]));
}

#[test]
fn bad_calls_change_nothing_and_are_told_so() {
    let stage = Stage::locking();
    let held = token(&stage.acquire("pod-a"));
    let good = json!({ "holder": "pod-b", "ttl_ms": 1000, "wait_ms": 0 });
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    for (body, what) in [
        (json!({}), "nothing"),
        (json!([]), "a list"),
        (with("ttl_ms", json!(99)), "too short"),
        (with("ttl_ms", json!(3_600_001)), "too long"),
        (with("ttl_ms", json!(-1)), "negative"),
        (with("ttl_ms", json!("1000")), "text"),
        (with("ttl_ms", json!(1000.5)), "a fraction"),
        (with("ttl_ms", json!(1e300)), "a huge number"),
        (with("wait_ms", json!(3_600_001)), "too long a wait"),
        (with("wait_ms", json!(u64::MAX)), "for ever"),
        (with("holder", json!("")), "no name"),
        (with("holder", json!("a b")), "a space"),
        (with("holder", json!("é")), "not ASCII"),
        (with("holder", json!("x".repeat(129))), "a long name"),
        (with("request_id", json!("")), "an empty id"),
        (with("more", json!(1)), "an unknown field"),
    ] {
        stage
            .lock_do("acquire", &body)
            .assert_fenced(400, "bad-request", what);
    }
    for body in [
        json!({ "token": 1 }),
        json!({}),
        json!({ "token": "1", "x": 1 }),
    ] {
        stage
            .lock_do("release", &body)
            .assert_fenced(400, "bad-request", "a release");
    }
    stage
        .release("0")
        .assert_fenced(400, "malformed-token", "no token");
    stage
        .release("x")
        .assert_fenced(400, "malformed-token", "no token");
    let raw = |method: &str, target: &str, body: &str| {
        let request = Request::new(method, target).host("localhost").body(body);
        request.send(stage.locks())
    };
    let good = good.to_string();
    for (target, status, what) in [
        ("/v1/locks/objects%2F42/take", 404, "an unknown action"),
        ("/v1/locks/others%2F42/acquire", 404, "an unknown namespace"),
        (
            "/v1/locks/%21locks%2F42/acquire",
            404,
            "what the gateway keeps for itself",
        ),
        ("/v1/locks/objects/acquire", 400, "no key"),
        ("/v1/locks/objects%2F/acquire", 400, "an empty key"),
        ("/v1/keys/objects%2F42", 404, "another API"),
        ("/", 404, "nothing"),
    ] {
        assert_eq!(raw("POST", target, &good).status, status, "{what}");
    }
    let long = format!("/v1/locks/objects%2F{}/acquire", "k".repeat(1025));
    assert_eq!(raw("POST", &long, &good).status, 400, "a long key");
    let huge = format!("{{{}}}", " ".repeat(20_000));
    assert_eq!(
        raw("POST", "/v1/locks/objects%2F42/acquire", &huge).status,
        413
    );
    assert_eq!(raw("GET", "/v1/locks/objects%2F42/acquire", "").status, 405);
    assert_eq!(raw("DELETE", "/v1/locks/objects%2F42", "").status, 405);
    let evil = stage
        .acquiring("x", 1000, 0)
        .header("Origin", "http://evil.test");
    assert_eq!(evil.send(stage.locks()).status, 403);
    let rebound = stage.acquiring("x", 1000, 0).host("evil.test");
    assert_eq!(rebound.send(stage.locks()).status, 403);
    let never = stage.gateway.lock_view("objects/never");
    never.assert_fenced(404, "no-route", "a lock that was never held");
    let call = stage.gateway.lock_call(
        "objects/never",
        "renew",
        &json!({ "token": "1", "ttl_ms": 1000 }),
    );
    call.send(stage.locks())
        .assert_fenced(409, "lock-lost", "the same");
    let view = stage.view();
    assert_eq!(
        (&view["token"], &view["waiting"]),
        (&json!(held), &json!(0))
    );
}

#[test]
fn an_open_address_needs_tokens_and_they_are_asked_for() {
    // "sesame"
    let hash = "sha256:d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
    let stage = Stage::with(|config| {
        config
            .set("locks.address", "0.0.0.0:0")
            .set("locks.tokens", json!([hash]))
    });
    let call = stage.acquiring("pod-a", 1000, 0);
    assert_eq!(call.send(stage.locks()).status, 403);
    let wrong = call.clone().header("Authorization", "Bearer open");
    assert_eq!(wrong.send(stage.locks()).status, 403);
    let good = call.header("Authorization", "bearer sesame");
    let twice = good.clone().header("Authorization", "Bearer open");
    assert_eq!(twice.send(stage.locks()).status, 403, "two of them");
    let by_name = good.host("locks.example");
    assert_eq!(by_name.send(stage.locks()).status, 200);
    let open = Config::new(&stage.recorder.url()).set("locks.address", "0.0.0.0:0");
    let dir = tempfile::tempdir().unwrap();
    let failed = Gateway::fails(open, &dir.path().join("store"));
    assert_eq!(failed.status.code(), Some(2));
    assert!(failed.errors.contains("locks.tokens"), "{}", failed.errors);
}

#[test]
fn a_body_that_is_not_json_is_told_so_whatever_is_wrong_with_it() {
    let stage = Stage::locking();
    let held = token(&stage.acquire("pod-a"));
    let post = |body: &[u8]| {
        let request = Request::new("POST", "/v1/locks/objects%2F42/acquire");
        request.host("localhost").body(body)
    };
    let good = br#"{"holder":"pod-b","ttl_ms":1000}"#;
    let deep = "[".repeat(5000);
    for (body, what) in [
        (&b""[..], "nothing"),
        (b"{", "half of it"),
        (b"null", "null"),
        (br#"["pod-b",1000,0,null]"#, "a list"),
        (br#""text""#, "a string"),
        (
            br#"{"holder":"a","holder":"b","ttl_ms":1000}"#,
            "a name twice",
        ),
        (br#"{"holder":"a","ttl_ms":1000} {}"#, "more than one"),
        (br#"{"holder":"a","ttl_ms":1e400}"#, "no number"),
        (
            br#"{"holder":"a","ttl_ms":99999999999999999999}"#,
            "a huge number",
        ),
        (b"{\"holder\":\"\xff\",\"ttl_ms\":1000}", "not UTF-8"),
        (b"{\"holder\":\"a\0\",\"ttl_ms\":1000}", "a NUL"),
        (
            b"\xef\xbb\xbf{\"holder\":\"a\",\"ttl_ms\":1000}",
            "a mark of byte order",
        ),
        (b"holder=a&ttl_ms=1000", "a form"),
        (deep.as_bytes(), "a deep one"),
    ] {
        let answer = post(body).send(stage.locks());
        answer.assert_fenced(400, "bad-request", what);
    }
    for kind in [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/xml",
        "\u{e9}",
    ] {
        let answer = post(good).header("Content-Type", kind);
        let answer = answer.send(stage.locks());
        answer.assert_fenced(415, "unsupported-media-type", kind);
    }
    let as_float = br#"{"holder":"pod-b","ttl_ms":1000.0,"wait_ms":0e3}"#;
    let answer = post(as_float).send(stage.locks());
    answer.assert_fenced(409, "lock-held", "whole numbers, however they are written");
    let encoded = post(good).header("Content-Encoding", "gzip");
    let encoded = encoded.send(stage.locks());
    encoded.assert_fenced(415, "unsupported-media-type", "encoded");
    // What curl says of `-d`, and two ways of saying JSON.
    for kind in [
        "application/x-www-form-urlencoded",
        "Application/JSON; charset=utf-8",
        "application/vnd.locks+json",
    ] {
        let answer = post(good).header("Content-Type", kind);
        let answer = answer.send(stage.locks());
        answer.assert_fenced(409, "lock-held", kind);
    }
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "QUERY", "acquire"] {
        let request = Request::new(method, "/v1/locks/objects%2F42/acquire").host("localhost");
        let answer = request.body(good).send(stage.locks());
        answer.assert_fenced(405, "method-not-allowed", method);
        assert_eq!(answer.header("allow"), Some("POST"));
    }
    let nameless = Request::new("TRACE", "/v1/locks/0/acquire").host("localhost");
    let nameless = nameless.send(stage.locks());
    nameless.assert_fenced(405, "method-not-allowed", "whatever the name is");
    let view = stage.view();
    assert_eq!(
        (&view["token"], &view["waiting"]),
        (&json!(held), &json!(0))
    );
}

#[test]
fn odd_names_are_names_and_broken_ones_are_told_so() {
    // Where a key is no path, requests can have any of these.
    let stage = Stage::with(|config| {
        let config = config.set("locks.address", "127.0.0.1:0");
        config.fence("key", "{header.x-key}")
    });
    let odd = [
        "objects/..",
        "objects/ ",
        "objects/a/b//c/",
        "objects/%2F",
        "objects/\u{0}\r\n\u{1b}[2J",
        "objects/\"}'`<script>",
        "objects/\u{1f512}\u{202e}",
        "objects/?prefix=#x",
    ];
    let longest = format!("objects/{}", "k".repeat(1024));
    for key in odd.iter().copied().chain([longest.as_str()]) {
        let answer = stage.acquire_other(key, "pod-a");
        assert_eq!(answer.status, 200, "{key:?}: {}", answer.text());
        assert_eq!(answer.json()["key"], key);
        assert_eq!(stage.gateway.lock_view(key).json()["holder"], "pod-a");
    }
    let list = Request::get("/v1/locks?prefix=objects%2F").host("localhost");
    let list = list.send(stage.locks()).json();
    assert_eq!(list["locks"].as_array().unwrap().len(), odd.len() + 1);
    assert!(
        !stage.gateway.errors().contains('\u{1b}'),
        "control bytes never reach the log"
    );
    let body = json!({ "holder": "pod-a", "ttl_ms": 30_000 }).to_string();
    for key in [
        "objects%2F%ff",
        "objects%2F%c0%af",
        "objects%2F%",
        "objects%2F%2",
        "objects%2F%zz",
        "objects%2F%+2",
        "",
        "%2F42",
        "42",
    ] {
        let target = format!("/v1/locks/{key}/acquire");
        let request = Request::new("POST", &target).host("localhost").body(&body);
        let answer = request.send(stage.locks());
        answer.assert_fenced(400, "bad-request", key);
    }
}
