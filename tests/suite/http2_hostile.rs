//! What the tests of HTTP/1 ask of expectations, compressed bodies and floods, asked of HTTP/2.

use std::net::SocketAddr;

use crate::common::http2::{DATA, END_STREAM, Frame, Http2};
use crate::common::{Connection, Ended, Next, Request, Stage, eventually};
use crate::exhaustion::{Ask, assert_no_state, assert_refused_tokens_leave_no_state, flood};

fn write(token: u64) -> Request {
    Request::put("/objects/42").token(token)
}

// S14
#[test]
fn an_early_final_answer_to_expect_is_relayed() {
    let stage = Stage::at_34();
    stage.recorder.on("refuse", |exchange| {
        exchange.end();
        exchange.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")?;
        Ok(Next::KeepAlive)
    });
    let mut client = Http2::open(stage.http());
    let expecting = write(34).tag("refuse").header("Expect", "100-continue");
    let stream = client.begin(&expecting, Some(1 << 20));
    let answer = client.response(stream);
    assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
    let none = answer.informational.is_empty();
    assert!(none, "nobody has asked for the body");
    let used = stage.recorder.arrived("refuse").connection;
    let next = Request::get("/objects/42").tag("next");
    let stream = client.request(&next);
    client.response(stream).assert_ok("the next request");
    assert_ne!(
        stage.recorder.arrived("next").connection,
        used,
        "its framing is open: the upstream connection is discarded"
    );
}

// S15
#[test]
fn an_unknown_expectation_fails() {
    let stage = Stage::at_34();
    let mut client = Http2::open(stage.http());
    for value in ["200-ok", "100-continue, x", "continue"] {
        let stream = client.request(&write(34).header("Expect", value));
        let answer = client.response(stream);
        answer.assert_fenced(417, "expectation-failed", value);
    }
    assert_eq!(stage.recorder.count(), 1, "nothing was forwarded");
}

// R11
#[test]
fn a_compressed_body_is_never_inflated() {
    let stage = Stage::new();
    let bomb = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xff];
    let mut client = Http2::open(stage.http());
    let compressed = write(1).header("Content-Encoding", "gzip");
    let stream = client.begin(&compressed, Some(bomb.len()));
    client.send(&Frame::new(DATA, END_STREAM, stream, bomb));
    client.response(stream).assert_ok("a compressed body");
    let seen = stage.recorder.last();
    assert_eq!(seen.body, bomb, "it goes through as bytes");
    assert_eq!(seen.header("content-encoding"), Some("gzip"));
    assert_eq!(
        seen.header("accept-encoding"),
        None,
        "and none is asked for"
    );
}

// R12
#[test]
fn a_flood_of_connections_is_shed_and_forgotten() {
    const MOST: u32 = 20;
    // The flood is to last as long as the test.
    let stage = Stage::with(|config| {
        config
            .set("limits.connections", MOST)
            .set("timeouts.header", "5m")
            .set("timeouts.idle", "5m")
    });
    let connections = || stage.gateway.metric("fencegate_connections", &[]);
    let mut inside = Http2::open(stage.http());
    let mut advance = |token: u64| {
        let stream = inside.request(&write(token));
        inside.response(stream)
    };
    advance(1).assert_ok("before the flood");
    let mut flood: Vec<_> = (1..MOST).map(|_| Http2::open(stage.http())).collect();
    for client in &mut flood {
        client.sync().unwrap();
    }
    assert!((connections() - f64::from(MOST)).abs() < 0.5);
    for token in 2..=41 {
        // No frame has come yet by which it would be known to speak HTTP/2.
        let mut above = Connection::open(stage.http());
        match above.try_response("GET") {
            Ok(answer) => answer.assert_refused(503, "busy", "not-forwarded", "one too many"),
            Err(ended) => assert_ne!(ended, Ended::Silent),
        }
        assert!(connections() <= f64::from(MOST));
        advance(token).assert_ok("one within the limit");
    }
    drop(flood);
    eventually("the gateway serves again", || {
        let mut client = Http2::open(stage.http());
        client.sync().ok()
    });
}

/// All requests over one connection.
fn by_http2(gateway: SocketAddr) -> Ask {
    let mut client = Http2::open(gateway);
    Box::new(move |request| {
        let stream = client.request(request);
        client.response(stream)
    })
}

// R13
#[test]
fn a_flood_of_keys_with_bad_or_refused_tokens_leaves_no_state() {
    let stage = Stage::at_34();
    let ask = by_http2(stage.http());
    assert_no_state(&stage, ask, 400, "malformed-token", |key| flood(key, "x"));
    assert_refused_tokens_leave_no_state(by_http2);
}

// R14
#[test]
fn the_number_of_keys_can_be_capped_and_no_mark_is_evicted() {
    let stage = Stage::with(|config| config.set("limits.keys", 3));
    let mut client = Http2::open(stage.http());
    let mut send = |key: usize, token: &str| {
        let stream = client.request(&flood(key, token));
        client.response(stream)
    };
    for key in 0..3 {
        send(key, "34").assert_ok("within the limit");
    }
    for key in 3..20 {
        let answer = send(key, "1");
        answer.assert_fenced(503, "busy", "a new key above limits.keys");
        assert!(answer.header("retry-after").is_some());
    }
    for key in 0..3 {
        send(key, "33").assert_fenced(409, "stale-token", "a mark is never evicted");
        send(key, "35").assert_ok("a known key");
    }
}
