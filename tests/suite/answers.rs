//! What the gateway makes of odd answers, and what of a request's wording reaches the upstream.

use std::time::{Duration, Instant};

use crate::common::{Connection, Gate, Next, Request, Stage};
use serde_json::json;

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

#[test]
fn a_response_with_two_framings_is_an_invalid_one() {
    let hidden = "okHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong";
    let chunked = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for fields in [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
    ] {
        let stage = Stage::with(|config| config.settle("500ms"));
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n{chunked}");
        stage.recorder.on("odd", move |exchange| {
            exchange.read_body()?;
            exchange.send(&answer)?;
            exchange.never()
        });
        let refused = stage.send(&write(33, "odd"));
        refused.assert_refused(502, "upstream-failed", "unknown", fields);
        let began = Instant::now();
        stage
            .send(&write(34, "newer"))
            .assert_ok("once it has settled");
        assert!(
            began.elapsed() > Duration::from_millis(300),
            "an invalid response leaves the outcome unknown: {fields}"
        );
    }
}

#[test]
fn the_gateways_own_words_are_not_the_upstreams() {
    let stage = Stage::new();
    stage.recorder.on("liar", |exchange| {
        exchange.read_body()?;
        let lies = "Fencing-Outcome: not-forwarded\r\nFencing-Mark: 999\r\n";
        exchange.respond_with(500, lies, "failed")
    });
    let answer = stage.send(&write(33, "liar"));
    assert_eq!(answer.status, 500);
    assert_eq!(answer.header("fencing-outcome"), None);
    assert_eq!(answer.header("fencing-mark"), None);
}

#[test]
fn informational_responses_without_end_are_cut_short() {
    let stage = Stage::with(|config| config.settle("200ms"));
    stage.recorder.on("flood", |exchange| {
        exchange.read_body()?;
        let many = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(200);
        loop {
            exchange.send(&many)?;
        }
    });
    let answer = stage.send(&write(33, "flood"));
    answer.assert_refused(502, "upstream-failed", "unknown", "a flood of 103");
    stage
        .send(&write(34, "newer"))
        .assert_ok("the worker is free");
}

#[test]
fn header_names_keep_their_case_where_the_upstream_cares() {
    for (preserve, expected) in [(true, "X-OddCase: 1"), (false, "x-oddcase: 1")] {
        let stage = Stage::with(|config| config.upstream("preserve_header_case", preserve));
        let mut client = Connection::open(stage.http());
        client.send("PUT /objects/42 HTTP/1.1\r\nHost: h\r\nFencing-Token: 33\r\nX-OddCase: 1\r\nContent-Length: 0\r\n\r\n");
        client.response().assert_ok("a plain write");
        let sent = stage.recorder.raw(stage.recorder.last().connection);
        let sent = String::from_utf8(sent).unwrap();
        assert!(sent.contains(expected), "{sent}");
    }
}

#[test]
fn a_token_that_the_signature_covers_is_forwarded_all_the_same() {
    let stage = Stage::with(|config| config.fence("forward_token", false));
    stage.send(&write(33, "plain")).assert_ok("a plain write");
    assert_eq!(
        stage.recorder.arrived("plain").header("fencing-token"),
        None
    );
    for (tag, field, value) in [
        (
            "aws",
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=fencing-token;host, Signature=00",
        ),
        (
            "rfc-9421",
            "Signature-Input",
            r#"sig1=("@method" "fencing-token");created=1"#,
        ),
        (
            "draft",
            "Signature",
            r#"keyId="k",headers="(request-target) host Fencing-Token",signature="00""#,
        ),
        (
            "draft-in-authorization",
            "Authorization",
            r#"Signature keyId="k",headers="host fencing-token",signature="00""#,
        ),
    ] {
        let signed = write(33, tag).header(field, value);
        stage.send(&signed).assert_ok("a signed write");
        let signed = stage.recorder.arrived(tag);
        assert_eq!(signed.header("fencing-token"), Some("33"), "{tag}");
    }
    let other = r#"keyId="k",headers="host date",signature="fencing-token""#;
    let signed = write(33, "other").header("Signature", other);
    stage
        .send(&signed)
        .assert_ok("a write that is signed otherwise");
    assert_eq!(
        stage.recorder.arrived("other").header("fencing-token"),
        None
    );
}

#[test]
fn a_refusal_that_leaves_a_body_unread_says_that_it_closes() {
    let stage = Stage::at_34();
    let mut client = Connection::open(stage.http());
    client.send(Request::put("/objects/42").token(33).head(300_000));
    let answer = client.response();
    answer.assert_fenced(409, "stale-token", "33 after 34");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[test]
fn a_destination_in_a_namespace_of_another_route_is_refused() {
    let dav = json!({
        "name": "dav", "path": "/dav/{*path}", "upstream": "objects",
        "fence": { "keys": [{ "key": "{path}" }, { "key": "{header.destination|path}", "when": "present" }] }
    });
    let other = json!({
        "name": "other", "path": "/other/{*path}", "methods": ["GET", "DELETE"], "upstream": "objects",
        "fence": { "key": "{path}" }
    });
    let stage = Stage::with(|config| config.routes(json!([dav, other])));
    for (target, status) in [("/dav/b", 200), ("/other/b", 400), ("/nowhere/b", 400)] {
        let copy = Request::new("COPY", "/dav/a")
            .token(33)
            .header("Destination", target);
        assert_eq!(stage.send(&copy).status, status, "{target}");
    }
}

/// The codec goes on in the version that it has read last: behind an answer in HTTP/1.0, a body of
/// unknown length would be left out.
#[test]
fn a_connection_that_has_answered_in_http_1_0_carries_no_other_request() {
    let stage = Stage::new();
    stage.recorder.on("old", |exchange| {
        exchange.read_body()?;
        exchange.end();
        let fields = "Content-Length: 2\r\nConnection: keep-alive\r\n";
        exchange.send(format!("HTTP/1.0 200 OK\r\n{fields}\r\nok"))?;
        Ok(Next::KeepAlive)
    });
    // Of one connection, so that it is one worker's.
    let mut client = Connection::open(stage.http());
    for token in 1..4 {
        let read = Request::get("/objects/other").tag("old");
        client.send(read.whole());
        let answer = client.response();
        answer.assert_ok("an answer in HTTP/1.0");
        let line = &answer.head.line;
        assert!(line.starts_with("HTTP/1.1 "), "its own version: {line}");
        client
            .send(write(token, "chunked").chunked_head())
            .send("5\r\nhello\r\n0\r\n\r\n");
        client.response().assert_ok("a body of unknown length");
        let write = stage.recorder.last();
        assert_eq!(write.body, b"hello");
        let raw = stage.recorder.raw(write.connection);
        assert!(!String::from_utf8_lossy(&raw).contains("HTTP/1.0"));
    }
}

#[test]
fn an_answer_in_http_1_0_that_breaks_off_is_not_whole() {
    let stage = Stage::with(|config| config.settle("200ms"));
    let gate = Gate::new();
    let breaks = gate.clone();
    stage.recorder.on("old", move |exchange| {
        exchange.read_body()?;
        exchange.send("HTTP/1.0 200 OK\r\n\r\npartial")?;
        exchange.wait(&breaks)?;
        Ok(Next::Reset)
    });
    let mut client = Connection::open(stage.http());
    client.send(write(1, "old").whole());
    client.head().unwrap();
    client.take("7\r\npartial".len()).unwrap();
    gate.open();
    client.ended();
    assert!(client.take(1).is_err(), "no last chunk");
}
