//! HTTP/2 from clients, in frames written by hand and by a real client: the same request's way, and
//! the same guarantees.

use std::time::{Duration, Instant};

use crate::common::http2::{
    CANCEL, CONTINUATION, END_HEADERS, END_STREAM, Frame, Gone, HEADERS, Http2, NO_ERROR,
    PROTOCOL_ERROR, REFUSED_STREAM, SETTINGS, WINDOW_UPDATE, block, pseudo,
};
use crate::common::{Connection, Ended, Gate, Next, Request, Signal, Stage, eventually};
use serde_json::json;

const KEY: &str = "objects/42";

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

fn open(stage: &Stage) -> Http2 {
    Http2::open(stage.http())
}

/// Fields after those that a PUT of `objects/42` begins with.
fn put<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = pseudo("PUT", "/objects/42");
    fields.extend_from_slice(more);
    fields
}

/// Asserts result B for what `send` sends on the stream that it returns: refused, reset or cut off,
/// nothing sent upstream, the mark as it was.
#[track_caller]
fn assert_bad(
    stage: &Stage,
    what: &str,
    send: impl FnOnce(&mut Http2) -> u32,
) -> Result<u16, Gone> {
    let (count, received) = (stage.recorder.count(), stage.recorder.bytes());
    let mark = stage.mark(KEY);
    let mut client = open(stage);
    let stream = send(&mut client);
    let answer = client.try_response(stream).map(|response| {
        assert!(
            (400..500).contains(&response.status),
            "{what}: expected a refusal, got {response:?}"
        );
        response.status
    });
    assert_ne!(answer, Err(Gone::Ended(Ended::Silent)), "{what}: no answer");
    assert_eq!(
        (stage.recorder.count(), stage.recorder.bytes()),
        (count, received),
        "{what}: nothing of it may reach the upstream"
    );
    assert_eq!(stage.mark(KEY), mark, "{what}: bad input changes no mark");
    answer
}

// The request's way

#[test]
fn a_request_is_fenced_and_forwarded_as_one_of_http_1() {
    let stage = Stage::at_34();
    let mut client = open(&stage);
    let stream = client.request(&write(35, "good"));
    let answer = client.response(stream);
    answer.assert_ok("a newer write");
    assert_eq!(answer.text(), "ok");
    assert!(answer.header("date").is_some());
    assert_eq!(answer.header("connection"), None);
    let seen = stage.recorder.arrived("good");
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str()),
        ("PUT", "/objects/42")
    );
    assert_eq!(seen.headers("host"), ["store.test"]);
    assert_eq!(seen.header("via"), Some("2 fencegate"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.headers("content-length"), ["4"]);
    assert_eq!(seen.body, b"data");
    assert_eq!(stage.mark(KEY).as_deref(), Some("35"));

    let stream = client.request(&write(34, "stale"));
    let answer = client.response(stream);
    answer.assert_fenced(409, "stale-token", "a stale write");
    assert_eq!(answer.header("fencing-mark"), Some("35"));
    let stream = client.request(&Request::put("/objects/42"));
    client
        .response(stream)
        .assert_fenced(428, "token-required", "a write without a token");
    let stream = client.request(&Request::get("/elsewhere"));
    client
        .response(stream)
        .assert_fenced(404, "no-route", "a path of no route");
    assert!(stage.recorder.history().tagged("stale").is_empty());
    assert!(stage.gateway.errors().contains("\"protocol\":\"HTTP/2\""));
}

#[test]
fn requests_of_one_connection_run_side_by_side() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("held");
    let mut client = open(&stage);
    let held: Vec<u32> = (0..40)
        .map(|id| client.request(&Request::put(&format!("/objects/{id}")).token(1).tag("held")))
        .collect();
    let free = client.request(&Request::get("/objects/free"));
    client
        .response(free)
        .assert_ok("a read beside writes that are held");
    gate.open();
    for stream in held {
        client.response(stream).assert_ok("a write that was held");
    }
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_head_comes_in_as_many_pieces_as_it_likes() {
    let stage = Stage::new();
    let mut client = open(&stage);
    let bytes = block(&put(&[("fencing-token", "1"), ("x-tag", "pieces")]));
    let stream = client.stream();
    let (first, rest) = bytes.split_at(3);
    client.send(&Frame::new(HEADERS, END_STREAM, stream, first));
    let (second, third) = rest.split_at(rest.len() / 2);
    client.send(&Frame::new(CONTINUATION, 0, stream, second));
    client.send(&Frame::new(CONTINUATION, END_HEADERS, stream, third));
    client.response(stream).assert_ok("a head in three frames");
    let seen = stage.recorder.arrived("pieces");
    assert_eq!(seen.token.unwrap().counter, 1);
}

#[test]
fn cookies_in_pieces_are_one_field_upstream() {
    let stage = Stage::new();
    let mut client = open(&stage);
    let request = Request::get("/objects/42")
        .tag("cookies")
        .header("Cookie", "a=1")
        .header("Cookie", "b=2");
    let stream = client.request(&request);
    client.response(stream).assert_ok("a read");
    let seen = stage.recorder.arrived("cookies");
    assert_eq!(seen.headers("cookie"), ["a=1; b=2"]);
}

#[test]
fn responses_without_a_body_end_with_their_head() {
    let stage = Stage::new();
    for status in [204, 304] {
        stage.recorder.on(&status.to_string(), move |exchange| {
            exchange.end();
            exchange.send(format!("HTTP/1.1 {status} None\r\nETag: \"1\"\r\n\r\n"))?;
            Ok(Next::KeepAlive)
        });
    }
    let mut client = open(&stage);
    for status in [204, 304] {
        let stream = client.request(&Request::get("/objects/42").tag(&status.to_string()));
        let answer = client.response(stream);
        assert_eq!((answer.status, answer.body.len()), (status, 0));
        assert_eq!(answer.header("etag"), Some("\"1\""));
    }
    let stream = client.request(&Request::new("HEAD", "/objects/42"));
    let answer = client.response(stream);
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(answer.header("content-length"), Some("2"));
    let stream = client.request(&Request::new("HEAD", "/nowhere"));
    let answer = client.response(stream);
    assert_eq!((answer.status, answer.body.len()), (404, 0));
}

#[test]
fn trailers_pass_both_ways() {
    let stage = Stage::new();
    stage.recorder.on("trailers", |exchange| {
        exchange.read_body()?;
        exchange.end();
        exchange.send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
             2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
        )?;
        Ok(Next::KeepAlive)
    });
    let mut client = open(&stage);
    let request = write(1, "trailers").header("Trailer", "X-Check");
    let stream = client.begin(&request, None);
    client.data(stream, "data", 0);
    let trailers = block(&[("x-check", "ok"), ("fencing-token", "99")]);
    client.send(&Frame::new(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        trailers,
    ));
    let answer = client.response(stream);
    answer.assert_ok("a write with trailers");
    assert_eq!(answer.trailer("x-sum"), Some("7"));
    let seen = stage.recorder.received("trailers");
    assert_eq!(seen.body, b"data");
    assert_eq!(
        seen.trailers,
        [("x-check".to_owned(), "ok".to_owned())],
        "T22: a token in trailers is not forwarded"
    );
    assert_eq!(stage.mark(KEY).as_deref(), Some("1"), "nor read");
}

// S13
#[test]
fn no_100_comes_before_admission() {
    let stage = Stage::at_34();
    let mut client = open(&stage);
    let expecting = |token, tag| write(token, tag).header("Expect", "100-continue");
    let stream = client.begin(&expecting(33, "stale"), Some(4));
    let answer = client.response(stream);
    answer.assert_fenced(409, "stale-token", "a stale upload");
    assert!(answer.informational.is_empty(), "it is not asked to send");

    let stream = client.begin(&expecting(35, "fresh"), Some(4));
    stage.recorder.arrived("fresh");
    client.sync().unwrap();
    client.data(stream, "data", END_STREAM);
    let answer = client.response(stream);
    answer.assert_ok("a write that expects");
    assert_eq!(answer.informational, [100]);
    assert_eq!(stage.recorder.received("fresh").body, b"data");
}

#[test]
fn a_refused_upload_that_soon_ends_is_not_reset() {
    let stage = Stage::at_34();
    let mut client = open(&stage);
    let stream = client.begin(&write(33, "stale"), Some(4));
    let answer = client.response(stream);
    answer.assert_fenced(409, "stale-token", "an upload that is stale");
    client.data(stream, "data", END_STREAM);
    // What this asks for is answered after whatever the data has led to.
    client.sync().unwrap();
    let next = client.request(&write(34, "next"));
    client.response(next).assert_ok("the next request");
    assert!(!client.was_reset(stream), "it ended as streams end");
}

#[test]
fn a_refusal_is_read_whole_and_then_the_upload_is_called_off() {
    let stage = Stage::at_34();
    let mut client = open(&stage);
    let stream = client.begin(&write(33, "stale"), Some(1 << 20));
    client.data(stream, vec![0; 16_384], 0);
    let answer = client.response(stream);
    answer.assert_fenced(409, "stale-token", "an upload that is stale");
    assert_eq!(client.reset_code(stream), Ok(NO_ERROR));
    // What it sent before it knew is no reason to end the connection.
    for _ in 0..3 {
        client.data(stream, vec![0; 16_384], 0);
    }
    let stream = client.request(&write(34, "next"));
    client.response(stream).assert_ok("the next request");
    assert_eq!(stage.recorder.count(), 2, "the stale one sent nothing");
}

// The body of a request that waits is not read: it stops at the window.
#[test]
fn a_body_is_not_read_before_admission() {
    let stage = Stage::with(|config| config.settle("300ms"));
    let gate = stage.recorder.hold("older");
    let mut client = open(&stage);
    let older = client.request(&write(33, "older"));
    stage.recorder.received("older");
    let newer = client.begin(&write(34, "newer"), Some(32_768));
    for _ in 0..2 {
        client.data(newer, vec![1; 16_384], 0);
    }
    stage.gateway.wait_key(KEY, "waiting", 1);
    client.sync().unwrap();
    let opened = |client: &Http2| {
        let mut others = client.others.iter();
        others.any(|frame| frame.kind == WINDOW_UPDATE && frame.stream == newer)
    };
    assert!(!opened(&client), "its window is not opened again");
    client.data(newer, "", END_STREAM);
    gate.open();
    client.response(older).assert_ok("the older write");
    client.response(newer).assert_ok("the newer write");
    stage.recorder.history().assert_ordered();
}

/// A write that waits must not take the window from the one that it waits for.
#[test]
fn uploads_that_wait_leave_room_for_those_under_way() {
    let stage =
        Stage::with(|config| config.fence("drain", json!({ "uploads": "wait", "timeout": "30s" })));
    let mut client = open(&stage);
    client.sync().unwrap();
    let older = client.begin(&write(33, "older"), None);
    client.data(older, "begins", 0);
    stage.recorder.has_body("older", 6);
    let waiting: Vec<u32> = (0..20)
        .map(|_| {
            let stream = client.begin(&write(34, "newer"), None);
            client.data(stream, vec![0; 16_384], 0);
            stream
        })
        .collect();
    stage.gateway.wait_key(KEY, "waiting", 20);
    client.data(older, "ends", END_STREAM);
    client.response(older).assert_ok("the older write");
    for stream in waiting {
        client.data(stream, "", END_STREAM);
        client.response(stream).assert_ok("a write that waited");
    }
    stage.recorder.history().assert_ordered();
}

// Hostile heads

// T23
#[test]
fn a_second_token_is_malformed_wherever_it_stands() {
    let stage = Stage::at_34();
    for [one, other] in [["34", "34"], ["34", "99"], ["99", "34"]] {
        let fields = put(&[("fencing-token", one), ("fencing-token", other)]);
        let answer = assert_bad(&stage, "twice", |client| {
            client.headers(&fields, END_STREAM)
        });
        assert_eq!(answer, Ok(400));
        let fields = put(&[("fencing-token", one), ("x-fencing-token", other)]);
        let answer = assert_bad(&stage, "two names", |client| {
            client.headers(&fields, END_STREAM)
        });
        assert_eq!(answer, Ok(400));
        let answer = assert_bad(&stage, "over two frames", |client| {
            let stream = client.stream();
            let first = block(&put(&[("fencing-token", one)]));
            let rest = block(&[("fencing-token", other)]);
            client.send(&Frame::new(HEADERS, END_STREAM, stream, first));
            client.send(&Frame::new(CONTINUATION, END_HEADERS, stream, rest));
            stream
        });
        assert_eq!(answer, Ok(400));
        // The second begins in one frame and ends in the next.
        let answer = assert_bad(&stage, "split within", |client| {
            let stream = client.stream();
            let mut first = block(&put(&[("fencing-token", one)]));
            let rest = block(&[("fencing-token", other)]);
            first.extend(&rest[..9]);
            client.send(&Frame::new(HEADERS, END_STREAM, stream, first));
            client.send(&Frame::new(CONTINUATION, END_HEADERS, stream, &rest[9..]));
            stream
        });
        assert_eq!(answer, Ok(400));
    }
    let fields = put(&[("fencing-token", "34, 99")]);
    let answer = assert_bad(&stage, "a list", |client| {
        client.headers(&fields, END_STREAM)
    });
    assert_eq!(answer, Ok(400));
}

// T18, T24, T26
#[test]
fn names_have_one_spelling() {
    let stage = Stage::at_34();
    for name in ["Fencing-Token", "FENCING-TOKEN", "X-Other", ""] {
        let fields = put(&[("fencing-token", "34"), (name, "34")]);
        let answer = assert_bad(&stage, name, |client| client.headers(&fields, END_STREAM));
        assert!(
            matches!(
                answer,
                Err(Gone::Reset(PROTOCOL_ERROR) | Gone::Away(PROTOCOL_ERROR))
            ),
            "{name:?}: {answer:?}"
        );
    }
    for name in ["fencing_token", "x_fencing_token"] {
        let fields = put(&[("fencing-token", "34"), (name, "34")]);
        let answer = assert_bad(&stage, name, |client| client.headers(&fields, END_STREAM));
        assert_eq!(answer, Ok(400), "{name}");
    }
}

// K15, K17
#[test]
fn the_authority_and_host_are_one() {
    let stage = Stage::at_34();
    let token = ("fencing-token", "34");
    for host in [
        "other.test",
        "store.test:81",
        "store.test, other.test",
        "user@store.test",
        "",
    ] {
        let fields = put(&[("host", host), token]);
        let answer = assert_bad(&stage, host, |client| client.headers(&fields, END_STREAM));
        assert_eq!(answer, Ok(400), "host: {host}");
        let mut fields = put(&[("host", "store.test"), token]);
        fields[2].1 = host;
        let answer = assert_bad(&stage, host, |client| client.headers(&fields, END_STREAM));
        assert!(
            matches!(answer, Ok(400) | Err(Gone::Reset(PROTOCOL_ERROR))),
            ":authority: {host}: {answer:?}"
        );
    }
    let fields = put(&[("host", "store.test"), ("host", "store.test"), token]);
    let answer = assert_bad(&stage, "two hosts", |client| {
        client.headers(&fields, END_STREAM)
    });
    assert_eq!(answer, Ok(400));
    let without = |fields: Vec<(&'static str, &'static str)>| -> Vec<_> {
        let kept = |field: &(&str, &str)| field.0 != ":authority";
        fields.into_iter().filter(kept).collect()
    };
    let fields = without(put(&[token]));
    let answer = assert_bad(&stage, "no host", |client| {
        client.headers(&fields, END_STREAM)
    });
    assert_eq!(answer, Ok(400));

    let mut client = open(&stage);
    for (fields, host) in [
        (
            put(&[("host", "STORE.test:80"), token, ("x-tag", "same")]),
            "STORE.test:80",
        ),
        (
            without(put(&[("host", "store.test"), token, ("x-tag", "alone")])),
            "store.test",
        ),
        (put(&[token, ("x-tag", "authority")]), "store.test"),
    ] {
        let stream = client.headers(&fields, END_STREAM);
        client.response(stream).assert_ok("one host");
        let seen = stage.recorder.arrived(fields.last().unwrap().1);
        assert_eq!(seen.headers("host"), [host]);
    }
}

// S20
#[test]
fn fields_of_a_connection_are_a_protocol_error() {
    let stage = Stage::at_34();
    for (name, value) in [
        ("connection", "close"),
        ("connection", "fencing-token"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "websocket"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
    ] {
        let fields = put(&[("fencing-token", "34"), (name, value)]);
        let answer = assert_bad(&stage, name, |client| client.headers(&fields, END_STREAM));
        assert_eq!(answer, Err(Gone::Reset(PROTOCOL_ERROR)), "{name}: {value}");
    }
}

// S21, K7 to K9
#[test]
fn what_would_end_a_line_of_http_1_is_refused() {
    let stage = Stage::at_34();
    let bad: &[(&str, &[u8], &[u8])] = &[
        ("CR LF in a value", b"x-a", b"1\r\nfencing-token: 99"),
        ("LF in a value", b"x-a", b"1\nx"),
        ("CR in a value", b"x-a", b"1\rx"),
        ("NUL in a value", b"x-a", b"1\0x"),
        ("DEL in a value", b"x-a", b"1\x7fx"),
        ("a colon in a name", b"x-a: b", b"1"),
        ("a space in a name", b"x a", b"1"),
        ("a colon before a name", b":x-a", b"1"),
        ("LF in a name", b"x-a\n", b"1"),
        ("CR LF in a name", b"x-a: 1\r\nx-b", b"1"),
        ("NUL in a name", b"x-a\0", b"1"),
        ("a name of other bytes", b"x-\xc3\xa9", b"1"),
    ];
    for (what, name, value) in bad {
        let answer = assert_bad(&stage, what, |client| {
            let mut bytes = block(&put(&[("fencing-token", "34")]));
            bytes.extend(block(&[(name, value)]));
            let stream = client.stream();
            client.send(&Frame::new(
                HEADERS,
                END_HEADERS | END_STREAM,
                stream,
                bytes,
            ));
            stream
        });
        assert!(
            matches!(
                answer,
                Err(Gone::Reset(PROTOCOL_ERROR) | Gone::Away(PROTOCOL_ERROR))
            ),
            "{what}: {answer:?}"
        );
    }
    for path in [
        "/objects/42\r\nx: y".as_bytes(),
        b"/objects/42\n",
        b"/objects/42\0",
        b"/objects/42 HTTP/1.1",
        b"/objects/4\t2",
        b"/objects/4\x7f2",
        b"/objects/\xc3\xa9",
        b"/objects/\xff",
        b"/objects/<42>",
        b"/objects/a\"b",
        b"/objects/a\\b",
        b"/objects/../42",
        b"/objects/%2e%2e/42",
        b"objects/42",
        b"http://store.test/objects/42",
        b"?x",
        b"",
    ] {
        let what = String::from_utf8_lossy(path).into_owned();
        let answer = assert_bad(&stage, &what, |client| {
            let fields: [(&[u8], &[u8]); 5] = [
                (b":method", b"PUT"),
                (b":scheme", b"http"),
                (b":authority", b"store.test"),
                (b":path", path),
                (b"fencing-token", b"34"),
            ];
            client.headers(&fields, END_STREAM)
        });
        assert!(
            matches!(
                answer,
                Ok(400 | 404) | Err(Gone::Reset(PROTOCOL_ERROR) | Gone::Away(PROTOCOL_ERROR))
            ),
            "{what:?}: {answer:?}"
        );
    }
}

// K12
#[test]
fn a_fragment_is_refused() {
    let stage = Stage::at_34();
    let token = ("fencing-token", "34");
    for path in ["/objects/42#/../43", "/objects/42?a#b", "/objects/42#"] {
        let mut fields = pseudo("PUT", path);
        fields.push(token);
        let answer = assert_bad(&stage, path, |client| client.headers(&fields, END_STREAM));
        assert_eq!(answer, Ok(400), "{path}");
    }
    // In Huffman's code, and from the table: "/objects/42#".
    let huffman = b"\x44\x8a\x60\xf1\xf4\x29\x12\x86\x1a\x17\xfd\x7f";
    assert_eq!(
        loona_hpack::Decoder::new().decode(huffman).unwrap(),
        [(b":path"[..].into(), b"/objects/42#"[..].into())]
    );
    let mut client = open(&stage);
    let rest = &pseudo("PUT", "")[..3];
    for path in [&huffman[..], b"\xbe"] {
        let mut fields = block(rest);
        fields.extend(path);
        fields.extend(block(&[token]));
        let stream = client.stream();
        let flags = END_HEADERS | END_STREAM;
        client.send(&Frame::new(HEADERS, flags, stream, fields));
        let answer = client.response(stream);
        answer.assert_refused(400, "bad-request", "not-forwarded", "a fragment");
    }
    // A field is free to have it.
    let fields = put(&[token, ("x-tag", "a#b"), ("referer", "/objects/42#part")]);
    let stream = client.headers(&fields, END_STREAM);
    client.response(stream).assert_ok("a write");
}

// RFC 9113, section 8.1
#[test]
fn trailers_with_a_pseudo_header_are_none() {
    let stage = Stage::with(|config| config.settle("300ms"));
    let mut client = open(&stage);
    // By number, in words, behind a field, and in a frame of its own.
    let cases: [(&str, &[u8], &[u8]); 4] = [
        ("static", b"\x82", b""),
        ("literal", b"\x00\x07:status\x03200", b""),
        ("beside", b"\x00\x01a\x01b\x84", b""),
        ("continued", b"\x00\x01a", b"\x01b\x84"),
    ];
    for (at, (tag, first, more)) in cases.into_iter().enumerate() {
        let token = 34 + u64::try_from(at).unwrap();
        let stream = client.begin(&write(token, tag), None);
        client.data(stream, "data", 0);
        stage.recorder.has_body(tag, 4);
        let flags = match more {
            [] => END_HEADERS | END_STREAM,
            _ => END_STREAM,
        };
        client.send(&Frame::new(HEADERS, flags, stream, first));
        if flags & END_HEADERS == 0 {
            client.send(&Frame::new(CONTINUATION, END_HEADERS, stream, more));
        }
        assert_eq!(client.reset_code(stream), Ok(PROTOCOL_ERROR), "{tag}");
        let write = stage.recorder.broke(tag);
        assert!(write.body_done.is_none(), "{tag}: never whole upstream");
    }
    // The connection is as good as before, and so is its table.
    let stream = client.request(&write(99, "after"));
    client.response(stream).assert_ok("a write");
    stage.recorder.history().assert_ordered();
}

// What the codec refuses

/// Waits for so many lines of the access log that tell of a refusal by the codec, and have `what`.
fn wait_for_lines(stage: &Stage, what: &str, count: usize) {
    eventually(&format!("{count} lines with {what}"), || {
        let errors = stage.gateway.errors();
        let told = errors.lines().filter(|line| {
            line.contains("broken request refused") && line.contains("fencegate::access")
        });
        (told.filter(|line| line.contains(what)).count() == count).then_some(())
    });
}

#[test]
fn what_the_codec_refuses_is_in_the_access_log() {
    let stage = Stage::with(|config| config.set("limits.http2_streams", 2));
    let gate = stage.recorder.hold("held");
    let mut client = open(&stage);
    let broken = client.headers(&put(&[("connection", "close")]), END_STREAM);
    assert_eq!(client.reset_code(broken), Ok(PROTOCOL_ERROR));
    let held: Vec<u32> = (0..2)
        .map(|id| client.request(&Request::put(&format!("/objects/{id}")).token(1).tag("held")))
        .collect();
    let beyond = client.request(&write(1, "beyond"));
    assert_eq!(client.reset_code(beyond), Ok(REFUSED_STREAM));
    gate.open();
    for stream in held {
        client.response(stream).assert_ok("a write");
    }
    wait_for_lines(&stage, &format!("\"stream\":{broken}"), 1);
    wait_for_lines(&stage, "PROTOCOL_ERROR", 1);
    wait_for_lines(&stage, &format!("\"stream\":{beyond}"), 1);
    wait_for_lines(&stage, "REFUSED_STREAM", 1);
    wait_for_lines(&stage, r#""reason":"busy""#, 1);

    let long = "x".repeat(9 * 1024);
    let names: Vec<String> = (0..16).map(|number| format!("x-{number}")).collect();
    let mut fields = put(&[]);
    fields.extend(names.iter().map(|name| (name.as_str(), long.as_str())));
    let stream = client.stream();
    let all = block(&fields);
    let mut pieces = all.chunks(16_384).peekable();
    let (mut kind, mut flags) = (HEADERS, END_STREAM);
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= END_HEADERS;
        }
        client.send(&Frame::new(kind, flags, stream, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    assert_eq!(client.head(stream), 431);
    wait_for_lines(&stage, r#""reason":"headers-too-large""#, 1);

    // A header block that is none is the end of the connection.
    let stream = client.next_stream();
    client.send(&Frame::new(HEADERS, END_HEADERS, stream, [0x80]));
    assert_eq!(client.ended(), Some(PROTOCOL_ERROR));
    wait_for_lines(&stage, "PROTOCOL_ERROR", 2);
    wait_for_lines(&stage, r#""reason":"bad-request""#, 2);
    wait_for_lines(&stage, "", 4);
    stage.assert_alive();
}

// Clients with much to do

/// Whatever is done about floods, it is none to make all requests that may be made, many times over.
#[test]
fn many_connections_with_all_their_streams_are_no_flood() {
    let stage = Stage::new();
    let address = stage.http();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Http2::open(address);
                client.sync().unwrap();
                for _ in 0..3 {
                    let streams: Vec<u32> = (0..100)
                        .map(|_| client.request(&Request::get("/objects/42")))
                        .collect();
                    for stream in streams {
                        client.response(stream).assert_ok("one of a hundred");
                    }
                }
            });
        }
    });
}

// K18
#[test]
fn methods_and_forms_that_name_no_resource_are_refused() {
    let stage = Stage::at_34();
    let token = ("fencing-token", "34");
    let connect = vec![
        (":method", "CONNECT"),
        (":authority", "store.test:80"),
        token,
    ];
    let mut extended = pseudo("CONNECT", "/objects/42");
    extended.extend([(":protocol", "websocket"), token]);
    let mut asterisk = pseudo("OPTIONS", "*");
    asterisk.push(token);
    let mut trace = pseudo("TRACE", "/objects/42");
    trace.push(token);
    let mut ftp = put(&[token]);
    ftp[1].1 = "ftp";
    for (what, fields, wanted) in [
        ("CONNECT", connect, Ok(400)),
        (
            "extended CONNECT",
            extended,
            Err(Gone::Reset(PROTOCOL_ERROR)),
        ),
        ("OPTIONS *", asterisk, Ok(400)),
        ("TRACE", trace, Ok(405)),
        ("another scheme", ftp, Ok(400)),
    ] {
        let answer = assert_bad(&stage, what, |client| client.headers(&fields, END_STREAM));
        assert_eq!(answer, wanted, "{what}");
    }
}

// S19
#[test]
fn a_body_is_as_long_as_it_says() {
    let stage = Stage::with(|config| config.settle("300ms"));
    stage.raise("/objects/42", "34");
    type Pieces = &'static [(usize, u8)];
    let cases: [(&str, Option<usize>, Pieces); 4] = [
        ("too-short", Some(10), &[(4, 0), (0, END_STREAM)]),
        ("too-long", Some(4), &[(4, 0), (1, END_STREAM)]),
        ("too-long-at-once", Some(4), &[(5, END_STREAM)]),
        ("nothing", Some(4), &[(0, END_STREAM)]),
    ];
    for (at, (tag, length, pieces)) in cases.into_iter().enumerate() {
        let token = 35 + 10 * u64::try_from(at).unwrap();
        let mut client = open(&stage);
        let stream = client.begin(&write(token, tag), length);
        stage.recorder.arrived(tag);
        for (count, flags) in pieces {
            client.data(stream, vec![b'x'; *count], *flags);
        }
        assert_eq!(
            client.try_response(stream).map(|response| response.status),
            Err(Gone::Reset(PROTOCOL_ERROR)),
            "{tag}"
        );
        let seen = stage.recorder.broke(tag);
        assert!(
            seen.body_done.is_none(),
            "{tag}: the upstream never gets it whole: {seen:?}"
        );
        // The connection serves on, and the next token waits until the outcome has settled.
        let newer = client.request(&write(token + 1, "newer"));
        client.response(newer).assert_ok("a newer write");
    }
    stage.recorder.history().assert_ordered();
    for fields in [
        put(&[
            ("fencing-token", "999"),
            ("content-length", "4"),
            ("content-length", "5"),
        ]),
        put(&[
            ("fencing-token", "999"),
            ("content-length", "4"),
            ("content-length", "4"),
        ]),
        put(&[("fencing-token", "999"), ("content-length", "4, 4")]),
        put(&[("fencing-token", "999"), ("content-length", "+4")]),
        put(&[("fencing-token", "999"), ("content-length", "")]),
        put(&[
            ("fencing-token", "999"),
            ("content-length", "18446744073709551616"),
        ]),
    ] {
        let _ = assert_bad(&stage, &format!("{:?}", fields.last()), |client| {
            let stream = client.headers(&fields, 0);
            client.data(stream, "data", END_STREAM);
            stream
        });
    }
    let fields = put(&[("fencing-token", "999"), ("content-length", "4")]);
    let _ = assert_bad(&stage, "a length and no body", |client| {
        client.headers(&fields, END_STREAM)
    });
}

// R4
#[test]
fn heads_have_limits() {
    let stage = Stage::with(|config| config.set("limits.header_bytes", "16KiB"));
    stage.raise("/objects/42", "34");
    let token = ("fencing-token", "34");
    let long = "x".repeat(17 * 1024);
    let fields = put(&[token, ("x-long", &long)]);
    let in_pieces = |fields: &[(&str, &str)], client: &mut Http2| {
        let bytes = block(fields);
        let mut pieces = bytes.chunks(16_384).peekable();
        let stream = client.stream();
        let mut kind = HEADERS;
        let mut flags = END_STREAM;
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= END_HEADERS;
            }
            client.send(&Frame::new(kind, flags, stream, piece));
            (kind, flags) = (CONTINUATION, 0);
        }
        stream
    };
    let answer = assert_bad(&stage, "a long field", |client| in_pieces(&fields, client));
    assert_eq!(answer, Ok(431));
    let names: Vec<String> = (0..101).map(|number| format!("x-{number}")).collect();
    let mut fields = put(&[token]);
    fields.extend(names.iter().map(|name| (name.as_str(), "1")));
    let answer = assert_bad(&stage, "many fields", |client| in_pieces(&fields, client));
    assert_eq!(answer, Ok(431));
    let path = format!("/objects/{}", "x".repeat(17 * 1024));
    let mut fields = pseudo("PUT", &path);
    fields.push(token);
    let answer = assert_bad(&stage, "a long path", |client| in_pieces(&fields, client));
    assert_eq!(answer, Ok(414));
    // What is far beyond is refused by the codec, and what is farther ends the connection.
    let long = "x".repeat(60 * 1024);
    let fields = put(&[token, ("x-long", &long)]);
    let answer = assert_bad(&stage, "a very long field", |client| {
        in_pieces(&fields, client)
    });
    assert_eq!(answer, Ok(431));
}

// Clients that leave

// R18
#[test]
fn a_reset_in_mid_upload_cuts_the_upstream() {
    let stage = Stage::with(|config| config.settle("300ms"));
    let mut client = open(&stage);
    let older = client.begin(&write(33, "older"), Some(100));
    client.data(older, "half", 0);
    stage.recorder.has_body("older", 4);
    client.reset(older, CANCEL);
    let broke = stage.recorder.broke("older").broke.unwrap().at;
    let newer = client.request(&write(34, "newer"));
    client.response(newer).assert_ok("the newer write");
    let began = stage.recorder.arrived("newer").began.at;
    assert!(
        began.saturating_duration_since(broke) >= Duration::from_millis(150),
        "what was cut is unknown, and settles"
    );
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_write_that_was_sent_whole_runs_on_when_its_stream_is_reset() {
    let stage = Stage::with(|config| config.settle("20s"));
    let gate = stage.recorder.hold("older");
    let mut client = open(&stage);
    let older = client.request(&write(33, "older"));
    stage.recorder.received("older");
    client.reset(older, CANCEL);
    client.sync().unwrap();
    let newer = client.request(&write(34, "newer"));
    stage.gateway.wait_key(KEY, "waiting", 1);
    assert_eq!(stage.gateway.key(KEY).unwrap()["in_flight"], 1);
    gate.open();
    client.response(newer).assert_ok("the newer write, at once");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_connection_that_ends_ends_its_streams() {
    let stage = Stage::with(|config| config.settle("300ms"));
    let mut client = open(&stage);
    let streams: Vec<u32> = (0..10)
        .map(|id| {
            let request = Request::put(&format!("/objects/{id}")).token(1);
            client.begin(&request.tag(&format!("half-{id}")), Some(100))
        })
        .collect();
    for (id, stream) in streams.into_iter().enumerate() {
        client.data(stream, "half", 0);
        stage.recorder.has_body(&format!("half-{id}"), 4);
    }
    client.connection.abort();
    for id in 0..10 {
        stage.recorder.broke(&format!("half-{id}"));
        stage
            .gateway
            .wait_key(&format!("objects/{id}"), "in_flight", 0);
    }
    eventually("the connection is counted no more", || {
        (stage.gateway.metric("fencegate_connections", &[]) < 0.5).then_some(())
    });
}

#[test]
fn a_waiting_request_whose_stream_is_reset_leaves_the_queue() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let mut client = open(&stage);
    let older = client.request(&write(33, "older"));
    stage.recorder.received("older");
    let newer = client.request(&write(34, "newer"));
    stage.gateway.wait_key(KEY, "waiting", 1);
    client.reset(newer, CANCEL);
    stage.gateway.wait_key(KEY, "waiting", 0);
    gate.open();
    client.response(older).assert_ok("the older write");
    assert_eq!(
        stage.mark(KEY).as_deref(),
        Some("34"),
        "the mark stays raised"
    );
    assert!(stage.recorder.history().tagged("newer").is_empty());
}

// C1
#[test]
fn a_newer_token_cuts_an_upload_on_the_same_connection() {
    let stage = Stage::with(|config| config.settle("300ms"));
    let mut client = open(&stage);
    let older = client.begin(&write(33, "older"), Some(100));
    client.data(older, "half", 0);
    stage.recorder.has_body("older", 4);
    let newer = client.request(&write(34, "newer"));
    client
        .response(older)
        .assert_refused(409, "superseded", "unknown", "it was cut");
    assert_eq!(client.reset_code(older), Ok(NO_ERROR));
    client.response(newer).assert_ok("the newer write");
    let cut = stage.recorder.broke("older").broke.unwrap().at;
    let began = stage.recorder.arrived("newer").began.at;
    assert!(began.saturating_duration_since(cut) >= Duration::from_millis(150));
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_response_that_breaks_off_is_a_reset() {
    let stage = Stage::with(|config| config.settle("300ms"));
    let gate = Gate::new();
    let opened = gate.clone();
    stage.recorder.on("breaks", move |exchange| {
        exchange.read_body()?;
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")?;
        exchange.wait(&opened)?;
        Ok(Next::Reset)
    });
    let mut client = open(&stage);
    let stream = client.request(&write(1, "breaks"));
    assert_eq!(client.head(stream), 200);
    gate.open();
    assert!(matches!(client.try_response(stream), Err(Gone::Reset(_))));
    let stream = client.request(&write(2, "next"));
    client.response(stream).assert_ok("the next request");
    stage.recorder.history().assert_ordered();
}

// Times and limits

// R3
#[test]
fn a_stream_that_is_not_read_is_given_up() {
    let stage = Stage::with(|config| {
        config
            .set("timeouts.idle", "500ms")
            .fence("drain", json!({ "timeout": "20s" }))
    });
    let long = "x".repeat(8 << 20);
    stage.recorder.on("long", move |exchange| {
        exchange.read_body()?;
        exchange.respond(200, &long)
    });
    let mut client = open(&stage);
    client.reads = false;
    let slow = client.request(&write(33, "long"));
    assert_eq!(client.head(slow), 200);
    // It is asked for all the while, so that it is not the connection that is idle.
    let start = Instant::now();
    let code = loop {
        let other = client.request(&Request::get("/objects/other"));
        match client.try_response(other) {
            Ok(answer) => answer.assert_ok("a read beside it"),
            // What is left of the connection's window, the slow one has.
            Err(gone) => assert!(matches!(gone, Gone::Reset(CANCEL)), "{gone:?}"),
        }
        if let Ok(code) = client.reset_code(slow) {
            break code;
        }
    };
    assert_eq!(code, CANCEL);
    assert!(start.elapsed() < Duration::from_secs(10));
    // What it held is let go.
    stage.send(&write(34, "newer")).assert_ok("a newer write");
    stage.recorder.history().assert_ordered();
}

// R2
#[test]
fn a_body_that_stops_is_not_waited_for() {
    let stage = Stage::with(|config| config.set("timeouts.body", "300ms").settle("300ms"));
    let mut client = open(&stage);
    let stream = client.begin(&write(33, "slow"), Some(100));
    client.data(stream, "half", 0);
    client
        .response(stream)
        .assert_refused(408, "request-timeout", "unknown", "it stopped");
    stage.recorder.broke("slow");
    let newer = client.request(&write(34, "newer"));
    client.response(newer).assert_ok("a newer write");
    stage.recorder.history().assert_ordered();
}

// R1
#[test]
fn frames_that_do_not_end_are_not_waited_for() {
    let stage = Stage::with(|config| config.set("timeouts.header", "300ms"));
    let fields = block(&put(&[("fencing-token", "1")]));
    let unended = Frame::new(HEADERS, END_STREAM, 1, &fields).bytes();
    let part = Frame::new(HEADERS, END_STREAM | END_HEADERS, 1, &fields).bytes();
    let begun = [
        crate::common::http2::PREFACE,
        &Frame::new(SETTINGS, 0, 0, []).bytes(),
    ]
    .concat();
    for (what, bytes) in [
        (
            "a preface that stops",
            crate::common::http2::PREFACE[..20].to_vec(),
        ),
        ("a block without its end", [&begun[..], &unended].concat()),
        ("a head that stops", [&begun[..], &part[..20]].concat()),
        (
            "a frame's head that stops",
            [&begun[..], &part[..5]].concat(),
        ),
    ] {
        let start = Instant::now();
        let mut client = Connection::open(stage.http());
        client.send(bytes);
        assert_ne!(client.ended(), Ended::Silent, "{what}");
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{what}: {took:?}");
    }
    assert_eq!(stage.recorder.bytes(), 0);
}

#[test]
fn an_idle_connection_is_told_so_and_closed_whatever_it_pings() {
    let stage = Stage::with(|config| config.set("timeouts.idle", "500ms"));
    let mut client = open(&stage);
    let stream = client.request(&write(1, ""));
    client.response(stream).assert_ok("a write");
    let start = Instant::now();
    while client.sync().is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(client.ended(), Some(NO_ERROR));
}

#[test]
fn streams_at_once_have_a_limit() {
    let stage = Stage::with(|config| config.set("limits.http2_streams", 3));
    let gate = stage.recorder.hold("held");
    let mut client = open(&stage);
    let streams: Vec<u32> = (0..4)
        .map(|id| client.request(&Request::put(&format!("/objects/{id}")).token(1).tag("held")))
        .collect();
    assert_eq!(client.reset_code(streams[3]), Ok(REFUSED_STREAM));
    gate.open();
    for stream in &streams[..3] {
        client
            .response(*stream)
            .assert_ok("a write within the limit");
    }
    let stream = client.request(&Request::put("/objects/3").token(1));
    client
        .response(stream)
        .assert_ok("a write once there is room");
    let settings = client.others.iter().find(|frame| frame.kind == SETTINGS);
    let settings = &settings.unwrap().payload;
    let told = settings.chunks(6).any(|one| one == [0, 3, 0, 0, 0, 3]);
    assert!(told, "SETTINGS_MAX_CONCURRENT_STREAMS: {settings:?}");
}

#[test]
fn requests_of_a_connection_have_a_limit() {
    let stage = Stage::with(|config| config.set("limits.requests_per_connection", 3));
    let mut client = open(&stage);
    for _ in 0..3 {
        let stream = client.request(&write(1, ""));
        client
            .response(stream)
            .assert_ok("a write within the limit");
    }
    assert_eq!(client.goaway(), NO_ERROR);
    assert_eq!(client.ended(), Some(NO_ERROR));
    assert_eq!(client.last_served, Some(5));

    // One that does not care is refused all the same.
    let mut client = open(&stage);
    let streams: Vec<u32> = (0..6).map(|_| client.request(&write(1, ""))).collect();
    for (number, stream) in streams.into_iter().enumerate() {
        match client.try_response(stream) {
            Ok(answer) => {
                answer.assert_ok("a write");
                assert!(number < 3, "number {number}");
            }
            Err(_) => assert!(number >= 3, "number {number}"),
        }
    }
    assert_eq!(stage.recorder.count(), 6);
}

#[test]
fn a_stop_lets_streams_end_and_takes_no_more() {
    let mut stage = Stage::new();
    let gate = stage.recorder.hold("held");
    let mut idle = open(&stage);
    idle.sync().unwrap();
    let mut client = open(&stage);
    let held = client.request(&write(1, "held"));
    stage.recorder.received("held");
    stage.gateway.signal(Signal::TERM);
    assert_eq!(client.goaway(), NO_ERROR);
    assert_eq!(idle.ended(), Some(NO_ERROR));
    gate.open();
    client
        .response(held)
        .assert_ok("the write that was in flight");
    assert_eq!(client.ended(), Some(NO_ERROR));
    assert_eq!(stage.gateway.wait().code(), Some(0));
}

#[test]
fn a_client_that_ignores_the_stop_does_not_hold_it_up() {
    let mut stage = Stage::new();
    let mut client = open(&stage);
    let stream = client.request(&write(1, ""));
    client.response(stream).assert_ok("a write");
    let start = Instant::now();
    // It reads nothing from now on, and so never answers the PING.
    stage.gateway.signal(Signal::TERM);
    assert_eq!(stage.gateway.wait().code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    drop(client);
}

#[test]
fn bodies_have_a_limit() {
    let stage = Stage::with(|config| config.set("limits.body", "1KiB").settle("300ms"));
    let mut client = open(&stage);
    let stream = client.begin(&write(1, "announced"), Some(2000));
    client
        .response(stream)
        .assert_fenced(413, "body-too-large", "its length says so");
    let stream = client.begin(&write(1, "grows"), None);
    stage.recorder.arrived("grows");
    for _ in 0..3 {
        client.data(stream, vec![0; 500], 0);
    }
    client
        .response(stream)
        .assert_refused(413, "body-too-large", "unknown", "it grew too large");
    stage.recorder.broke("grows");
}

#[test]
fn a_spooled_body_is_received_whole_first() {
    let stage = Stage::with(|config| config.fence("body", "spool").set("limits.body", "1MiB"));
    stage.raise("/objects/42", "34");
    let mut client = open(&stage);
    let stream = client.begin(&write(33, "stale"), Some(100));
    client
        .response(stream)
        .assert_fenced(409, "stale-token", "compared before it is received");
    let stream = client.begin(&write(35, "spooled"), None);
    client.data(stream, "one ", 0);
    client.sync().unwrap();
    assert!(stage.recorder.history().tagged("spooled").is_empty());
    client.data(stream, "two", END_STREAM);
    client.response(stream).assert_ok("a spooled write");
    assert_eq!(stage.recorder.received("spooled").body, b"one two");
}

#[test]
fn large_bodies_go_both_ways_with_flow_control() {
    let stage = Stage::new();
    stage.recorder.on("echo", |exchange| {
        exchange.read_body()?;
        let long = "y".repeat(5 << 20);
        exchange.respond(200, &long)
    });
    let mut client = open(&stage);
    client.sync().unwrap();
    let stream = client.begin(&write(1, "echo"), Some(200_000));
    for _ in 0..20 {
        client.data(stream, vec![b'x'; 10_000], 0);
    }
    client.data(stream, "", END_STREAM);
    let answer = client.response(stream);
    assert_eq!(answer.body.len(), 5 << 20);
    assert_eq!(stage.recorder.received("echo").body.len(), 200_000);
}

/// The preface may come in pieces; what only begins like it is HTTP/1.
#[test]
fn the_protocol_is_told_by_the_first_bytes() {
    let stage = Stage::new();
    let mut client = Http2::silent(stage.http());
    for piece in crate::common::http2::PREFACE.chunks(5) {
        client.send_bytes(piece);
        std::thread::sleep(Duration::from_millis(5));
    }
    client.send(&Frame::new(SETTINGS, 0, 0, []));
    let stream = client.request(&write(1, ""));
    client.response(stream).assert_ok("a preface in pieces");

    for bytes in [
        "PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "PRI * HTTP/1.1\r\nHost: store.test\r\n\r\n",
        "PROPFIND /nowhere HTTP/1.1\r\nHost: store.test\r\n\r\n",
    ] {
        let mut client = Connection::open(stage.http());
        client.send(bytes);
        let answer = client.response();
        assert!((400..500).contains(&answer.status), "{bytes:?}: {answer:?}");
    }
    // A second preface on a connection of HTTP/1 is a broken request.
    let mut client = Connection::open(stage.http());
    client.send(write(1, "").whole());
    client.response().assert_ok("a request of HTTP/1");
    client.send(crate::common::http2::PREFACE);
    assert_eq!(client.response().status, 400);
}

// With a real client

#[test]
fn a_real_client_uploads_and_downloads_in_parallel() {
    // An upstream that reads nothing for so long is given up, and this one has threads that may have
    // to wait for a core.
    let stage = Stage::with(|config| config.settle("30s"));
    stage.recorder.otherwise(|exchange| {
        exchange.read_body()?;
        let length = exchange.head.get("x-length").unwrap_or("0").to_owned();
        let body = "z".repeat(length.parse().unwrap());
        exchange.respond(200, &body)
    });
    let address = stage.http();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut requests = tokio::task::JoinSet::new();
        for number in 0_usize..60 {
            let mut sender = sender.clone().ready().await.unwrap();
            requests.spawn(async move {
                let length = number * 20_000;
                let request = http::Request::put(format!("http://store.test/objects/{number}"))
                    .header("fencing-token", "1")
                    .header("x-length", length.to_string())
                    .body(())
                    .unwrap();
                let (response, mut upload) = sender.send_request(request, false).unwrap();
                upload
                    .send_data(bytes::Bytes::from(vec![b'a'; length]), true)
                    .unwrap();
                let response = response.await.unwrap();
                assert_eq!(response.status(), 200);
                let mut body = response.into_body();
                let mut received = 0;
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    received += data.len();
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
                assert_eq!(received, length);
            });
        }
        while let Some(done) = requests.join_next().await {
            done.unwrap();
        }
        drop(sender);
        driver.abort();
    });
    for write in stage.recorder.history().0 {
        let number: usize = write.key.rsplit('/').next().unwrap().parse().unwrap();
        assert_eq!(write.body.len(), number * 20_000);
    }
    stage.recorder.history().assert_ordered();
}
