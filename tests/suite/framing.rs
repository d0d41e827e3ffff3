//! Broken and contradictory HTTP/1.1: the upstream must never see two requests where one was fenced.

use crate::common::{Connection, Next, Request, Stage, send_raw};

/// A request that a desynchronised upstream would find in the body.
const SMUGGLED: &str =
    "PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\nFencing-Token: 1\r\nContent-Length: 0\r\n\r\n";

fn put(lines: &str, body: &str) -> String {
    format!(
        "PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\nFencing-Token: 34\r\n{lines}\r\n{body}"
    )
}

/// Asserts that a message was refused, or forwarded as one request with one framing after which
/// the client's connection is closed.
fn assert_refused_or_repaired(stage: &Stage, bytes: &str, what: &str) {
    let before = stage.recorder.count();
    let mut connection = Connection::open(stage.http());
    connection.send(bytes);
    if let Ok(answer) = connection.try_response("PUT") {
        if answer.status < 400 {
            let seen = stage.recorder.last();
            let framings =
                seen.headers("content-length").len() + seen.headers("transfer-encoding").len();
            assert_eq!(framings, 1, "{what}: forwarded with one framing: {seen:?}");
            assert_eq!(
                stage.recorder.count(),
                before + 1,
                "{what}: forwarded as one request"
            );
            assert!(
                connection.try_response("PUT").is_err(),
                "{what}: the connection is closed after a repaired request"
            );
            return;
        }
        assert!(
            (400..500).contains(&answer.status) || answer.status == 501,
            "{what}: got {}",
            answer.status
        );
    }
    assert_eq!(
        stage.recorder.count(),
        before,
        "{what}: refused and forwarded"
    );
}

fn assert_never_two(stage: &Stage) {
    for write in stage.recorder.history().0 {
        assert_ne!(
            write.token,
            Some(1.into()),
            "the request in a body never becomes a request: {write:?}"
        );
    }
}

// S1
#[test]
fn content_length_beside_transfer_encoding_is_never_forwarded_as_both() {
    let stage = Stage::at_34();
    for (what, lines) in [
        (
            "length first",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "coding first",
            "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        ),
        (
            "length 0",
            "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        ),
    ] {
        assert_refused_or_repaired(&stage, &put(lines, &format!("0\r\n\r\n{SMUGGLED}")), what);
    }
    assert_never_two(&stage);
    stage.assert_alive();
}

// S2 S3
#[test]
fn a_transfer_coding_that_is_not_plainly_chunked_is_refused() {
    let stage = Stage::at_34();
    for coding in [
        "xchunked",
        "chunkedx",
        "chunked, identity",
        "identity",
        "identity, chunked",
        "chunked, chunked",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked;q=1",
        "\"chunked\"",
        "\u{b}chunked",
        "chunked\u{c}",
        "chunked\0",
        ",chunked,x",
        "chunk\u{e9}d",
        "",
    ] {
        let lines = format!("Transfer-Encoding: {coding}\r\n");
        let what = format!("Transfer-Encoding: {coding:?}");
        let body = format!("0\r\n\r\n{SMUGGLED}");
        stage.assert_not_forwarded(put(&lines, &body), &what, |status| {
            (400..500).contains(&status) || status == 501
        });
    }
    for lines in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Content-Length: 5\r\nTransfer_Encoding: chunked\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n",
    ] {
        let body = format!("0\r\n\r\n{SMUGGLED}");
        assert_refused_or_repaired(&stage, &put(lines, &body), lines);
    }
    assert_never_two(&stage);
    stage.assert_alive();
}

// S4 S5
#[test]
fn a_content_length_is_one_number() {
    let stage = Stage::at_34();
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 6\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length:\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -0\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 5;\r\n",
        "Content-Length: five\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 18446744073709551621\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Content-Length : 5\r\n",
    ] {
        stage.assert_bad(put(lines, "datum"), &format!("{lines:?}"));
    }
    for lines in [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 5\r\n",
    ] {
        let before = stage.recorder.count();
        if let Ok(answer) = send_raw(stage.http(), put(lines, "datum"))
            && answer.status < 400
        {
            let seen = stage.recorder.last();
            assert_eq!(
                (seen.headers("content-length"), seen.body.len()),
                (vec!["5"], 5),
                "equal lengths may be merged into one: {lines:?}"
            );
        } else {
            assert_eq!(
                stage.recorder.count(),
                before,
                "{lines:?}: refused and forwarded"
            );
        }
    }
    stage.assert_alive();
}

// S6
#[test]
fn http_1_0_has_no_transfer_codings() {
    let stage = Stage::at_34();
    let bytes = format!(
        "PUT /objects/42 HTTP/1.0\r\nHost: store.test\r\nFencing-Token: 34\r\n\
         Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n{SMUGGLED}"
    );
    stage.assert_bad(bytes, "Transfer-Encoding on HTTP/1.0");
    assert_never_two(&stage);
    stage.assert_alive();
}

// S7 S8 S11
#[test]
fn broken_chunks_never_complete_a_request() {
    let stage = Stage::at_34_with(|config| config.settle("100ms"));
    let chunked = "Transfer-Encoding: chunked\r\n";
    for body in [
        "0x5\r\ndatum\r\n0\r\n\r\n",
        "+5\r\ndatum\r\n0\r\n\r\n",
        "-5\r\ndatum\r\n0\r\n\r\n",
        "0_5\r\ndatum\r\n0\r\n\r\n",
        "10000000000000005\r\ndatum\r\n0\r\n\r\n",
        "ffffffffffffffff5\r\ndatum\r\n0\r\n\r\n",
        "\r\ndatum\r\n0\r\n\r\n",
        "g\r\ndatum\r\n0\r\n\r\n",
        "5;a\nb\r\ndatum\r\n0\r\n\r\n",
        "5;a\rb\r\ndatum\r\n0\r\n\r\n",
        "5;a\0b\r\ndatum\r\n0\r\n\r\n",
        "5\ndatum\n0\n\n",
        "5\rdatum\r\n0\r\n\r\n",
        "3\r\ndatum\r\n0\r\n\r\n",
        "5\r\ndatum0\r\n\r\n",
        "5\r\ndatum\n0\r\n\r\n",
    ] {
        let mut connection = Connection::open(stage.http());
        connection.send(put(chunked, body)).finish();
        if let Ok(answer) = connection.try_response("PUT") {
            assert!(
                answer.status >= 400,
                "a broken chunk is no good request: {body:?} got {}",
                answer.status
            );
        }
    }
    for write in stage.recorder.history().0.iter().skip(1) {
        assert_eq!(
            write.body_done, None,
            "what was broken never arrives as a whole request: {write:?}"
        );
    }
}

// S9
#[test]
fn a_huge_chunk_extension_is_bounded_and_not_forwarded() {
    let stage = Stage::at_34_with(|config| config.settle("100ms"));
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut connection = Connection::open(stage.http());
    connection.send(put(chunked, "5;"));
    let piece = "e".repeat(64 * 1024);
    let refused = (0..256).any(|_| connection.try_send(&piece).is_err());
    assert!(
        refused
            || connection
                .try_response("PUT")
                .map_or(true, |answer| answer.status >= 400),
        "16 MiB of a chunk extension are too much"
    );
    assert!(
        stage.recorder.bytes() < 64 * 1024,
        "an extension is hop by hop: it is not forwarded"
    );
    let small = put(chunked, "5;name=value\r\ndatum\r\n0\r\n\r\n");
    if let Ok(answer) = send_raw(stage.http(), small)
        && answer.status < 400
    {
        let seen = stage.recorder.last();
        assert_eq!(seen.body, b"datum");
        let raw = String::from_utf8(stage.recorder.raw(seen.connection)).unwrap();
        assert!(!raw.contains("name=value"), "an extension is not forwarded");
    }
}

// S10
#[test]
fn a_bare_cr_or_a_nul_in_the_head_is_refused() {
    let stage = Stage::at_34();
    for lines in [
        "X-A: b\rContent-Length: 5\r\n",
        "X-A: b\rTransfer-Encoding: chunked\r\n",
        "X-A: b\r\rc\r\n",
        "X-A\r: b\r\n",
        "X-A: b\0c\r\n",
        "\rX-A: b\r\n",
    ] {
        stage.assert_bad(put(lines, ""), &format!("{lines:?}"));
    }
    for line in [
        "PUT /objects/42\rHTTP/1.1\r\n",
        "PUT\r/objects/42 HTTP/1.1\r\n",
        "PUT /objects/42 HTTP/1.1\rX: y\r\n",
        "PUT /objects/42 HTTP/9.9\r\n",
        "PUT /objects/42 HTTP/1.2.3\r\n",
        "PUT /objects/42 http/1.1\r\n",
        "PUT /objects/42\r\n",
        "PUT  /objects/42  HTTP/1.1\r\n",
        "PUT /objects/42 HTTP/1.1 x\r\n",
        "\0PUT /objects/42 HTTP/1.1\r\n",
        "P\u{e9}T /objects/42 HTTP/1.1\r\n",
    ] {
        let rest = "Host: store.test\r\nFencing-Token: 34\r\nContent-Length: 0\r\n\r\n";
        stage.assert_not_forwarded(format!("{line}{rest}"), &format!("{line:?}"), |status| {
            (400..500).contains(&status) || status == 505
        });
    }
    stage.assert_alive();
}

// S12
#[test]
fn a_request_is_never_taken_from_the_body_of_a_refused_one() {
    let stage = Stage::at_34();
    for framing in ["length", "chunked"] {
        let stale = Request::put("/objects/42").token(33);
        let smuggled = SMUGGLED.replace("Token: 1", "Token: 99");
        let bytes = if framing == "length" {
            stale.body(&smuggled).whole()
        } else {
            let chunk = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
            [stale.chunked_head(), chunk.into_bytes()].concat()
        };
        let mut connection = Connection::open(stage.http());
        connection.send(bytes).response().assert_fenced(
            409,
            "stale-token",
            "refused before its body is read",
        );
        // Either the connection is over, or the next answer is to the next request.
        connection.send(Request::get("/objects/next").tag(framing).whole());
        if let Ok(next) = connection.try_response("GET") {
            next.assert_ok("the next request on the connection");
            assert_eq!(stage.recorder.arrived(framing).target, "/objects/next");
        }
        assert_eq!(stage.mark("objects/42").as_deref(), Some("34"), "{framing}");
    }
    let writes = stage.recorder.history();
    assert!(writes.0.iter().all(|write| write.token != Some(99.into())));
}

// S12
#[test]
fn a_refused_client_that_goes_on_sending_still_reads_the_refusal() {
    let stage = Stage::at_34();
    let mut connection = Connection::open(stage.http());
    connection.send(Request::put("/objects/42").token(33).head(8 << 20));
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..128 {
        if connection.try_send(&piece).is_err() {
            break;
        }
    }
    connection.response().assert_fenced(
        409,
        "stale-token",
        "lingering close: no reset before it is read",
    );
    assert_eq!(
        stage.recorder.count(),
        1,
        "and none of the body went upstream"
    );
}

// S22
#[test]
fn what_follows_connection_close_is_ignored() {
    let stage = Stage::at_34();
    let first = Request::put("/objects/42")
        .token(34)
        .header("Connection", "close");
    let second = Request::put("/objects/43").token(99);
    let mut connection = Connection::open(stage.http());
    connection.send([first.whole(), second.whole()].concat());
    connection.response().assert_ok("the last request");
    assert!(
        connection.try_response("PUT").is_err(),
        "the connection ends after the response"
    );
    assert_eq!(
        stage.mark("objects/43"),
        None,
        "the request after it is ignored"
    );
}

// S23
#[test]
fn pipelined_requests_are_each_fenced_and_answered_in_order() {
    let stage = Stage::at_34();
    let tokens = [34, 33, 35, 34, 35, 36, 1];
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| {
            let request = Request::put("/objects/42").token(token);
            request.body(format!("body of {token}")).whole()
        })
        .collect();
    let mut connection = Connection::open(stage.http());
    connection.send(bytes);
    let statuses: Vec<_> = tokens
        .iter()
        .map_while(|_| Some(connection.try_response("PUT").ok()?.status))
        .collect();
    // A refusal may end the connection, since the body behind it need not be read.
    let expected = [200, 409, 200, 409, 200, 200, 409];
    assert!(
        statuses.len() >= 2 && expected.starts_with(&statuses),
        "answers come in the order of requests: {statuses:?}"
    );
    stage.recorder.history().assert_ordered();
}

#[test]
fn pipelined_reads_are_answered_in_order() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("slow");
    let slow = Request::get("/objects/1").tag("slow").whole();
    let fast = Request::new("DELETE", "/objects/2")
        .token(1)
        .tag("fast")
        .whole();
    stage
        .recorder
        .on("fast", |exchange| exchange.respond(202, "fast"));
    let mut connection = Connection::open(stage.http());
    connection.send([slow, fast].concat());
    stage.recorder.arrived("slow");
    gate.open();
    assert_eq!(
        connection.response().status,
        200,
        "the slow one is answered first"
    );
    assert_eq!(connection.response().status, 202, "then the fast one");
}

// S24
#[test]
fn an_upstream_connection_with_unasked_bytes_is_discarded() {
    let stage = Stage::at_34();
    for (tag, extra) in [
        ("extra", "garbage"),
        ("two", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
    ] {
        stage.recorder.on(tag, move |exchange| {
            exchange.read_body()?;
            exchange.end();
            exchange.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{extra}"
            ))?;
            Ok(Next::KeepAlive)
        });
        let answer = stage.send(&Request::put("/objects/42").token(34).tag(tag));
        assert_eq!(answer.text(), "ok", "the response ends where it says");
        let after = format!("after {tag}");
        for _ in 0..4 {
            let next = stage.send(&Request::get("/objects/42").tag(&after));
            assert_eq!(next.text(), "ok", "no other request gets the extra bytes");
        }
        let history = stage.recorder.history();
        let poisoned = history.tagged(tag).last().unwrap().connection;
        assert!(
            history
                .tagged(&after)
                .iter()
                .all(|next| next.connection != poisoned),
            "the connection is not used again"
        );
    }
}

// S24
#[test]
fn an_unasked_101_is_an_invalid_response() {
    let stage = Stage::at_34();
    stage.recorder.on("101", |exchange| {
        exchange.read_body()?;
        exchange.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        )?;
        exchange.never()
    });
    let answer = stage.send(&Request::put("/objects/42").token(34).tag("101"));
    answer.assert_refused(
        502,
        "upstream-failed",
        "unknown",
        "nobody asked for an upgrade",
    );
    stage.recorder.broke("101");
}
