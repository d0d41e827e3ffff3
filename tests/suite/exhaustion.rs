//! Clients and upstreams that use up time, room or connections.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::issuer::{Issuer, jwks};
use crate::common::{Connection, Ended, Next, Request, Response, Stage, eventually};
use serde_json::json;

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

// R1
#[test]
fn slow_headers_are_not_waited_for() {
    let stage = Stage::with(|config| config.set("timeouts.header", "300ms"));
    for piece in [
        "",
        "PUT /obj",
        "PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\nFencing-To",
    ] {
        let start = Instant::now();
        let mut client = Connection::open(stage.http());
        client.send(piece);
        if let Ok(answer) = client.try_response("PUT") {
            assert_eq!(answer.status, 408, "{piece:?}");
        }
        assert_ne!(client.ended(), Ended::Silent);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{piece:?}: {:?}",
            start.elapsed()
        );
    }
    assert_eq!(stage.recorder.bytes(), 0);
}

// R1
#[test]
fn headers_that_drip_are_not_waited_for_either() {
    let stage = Stage::with(|config| config.set("timeouts.header", "300ms"));
    let mut client = Connection::open(stage.http());
    client.send("PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\n");
    let start = Instant::now();
    while client.try_send("X-A: b\r\n").is_ok() && start.elapsed() < Duration::from_secs(10) {
        if !client.silent_for(Duration::from_millis(50)) {
            break;
        }
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "the time is for the whole header: {:?}",
        start.elapsed()
    );
}

#[test]
fn an_idle_connection_is_closed() {
    let stage = Stage::with(|config| config.set("timeouts.idle", "300ms"));
    let mut client = Connection::open(stage.http());
    client.send(write(1, "").whole());
    client.response().assert_ok("a write");
    let start = Instant::now();
    assert_ne!(client.ended(), Ended::Silent);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

// R3
#[test]
fn a_client_that_never_reads_does_not_keep_its_exchange_for_ever() {
    let stage = Stage::with(|config| {
        config
            .settle("300ms")
            .set(
                "timeouts",
                json!({ "header": "500ms", "idle": "500ms", "body": "500ms" }),
            )
            .upstream("timeout", "500ms")
    });
    stage.recorder.on("large", |exchange| {
        exchange.read_body()?;
        let piece = "b".repeat(1 << 20);
        exchange.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            64 << 20
        ))?;
        for _ in 0..64 {
            exchange.send(&piece)?;
        }
        Ok(Next::Close)
    });
    let mut client = Connection::open(stage.http());
    client.send(write(1, "large").whole());
    stage.recorder.ended("large");
    stage.gateway.wait_key("objects/42", "in_flight", 0);
    stage
        .send(&write(2, "newer"))
        .assert_ok("a slow reader holds nobody for ever");
    stage.recorder.history().assert_ordered();
    drop(client);
}

// R4
#[test]
fn as_many_header_lines_as_the_limit_are_taken_and_one_more_is_not() {
    // That of the codec itself, one below it and one above it.
    for most in [99, 100, 101, 200] {
        let limits = json!({ "header_count": most });
        let stage = Stage::at_34_with(|config| config.set("limits", limits));
        let head = |lines: usize| {
            format!(
                "PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\nFencing-Token: 34\r\n{}\
                 Content-Length: 0\r\n\r\n",
                "X-A: b\r\n".repeat(lines - 3)
            )
        };
        let mut client = Connection::open(stage.http());
        client.send(head(most));
        client.response().assert_ok("as many as the limit");
        let answer = stage.assert_bad(head(most + 1), "one more").unwrap();
        answer.assert_fenced(431, "headers-too-large", "header_count");
    }
}

// R4
#[test]
fn headers_have_a_limit_in_bytes_and_in_number() {
    let stage = Stage::at_34_with(|config| {
        config.set(
            "limits",
            json!({ "header_bytes": "16KiB", "header_count": 20 }),
        )
    });
    let head = |lines: &str| {
        format!(
            "PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\nFencing-Token: 34\r\n{lines}\
             Content-Length: 0\r\n\r\n"
        )
    };
    let too_long = head(&format!("X-Long: {}\r\n", "v".repeat(20 * 1024)));
    let answer = stage.assert_bad(too_long, "20 KiB of header").unwrap();
    answer.assert_fenced(431, "headers-too-large", "header_bytes");
    let answer = stage
        .assert_bad(head(&"X-A: b\r\n".repeat(30)), "33 headers")
        .unwrap();
    answer.assert_fenced(431, "headers-too-large", "header_count");
    let long = format!(
        "GET /objects/{} HTTP/1.1\r\nHost: store.test\r\n\r\n",
        "a".repeat(20 * 1024)
    );
    let answer = stage.assert_bad(long, "a target of 20 KiB").unwrap();
    answer.assert_fenced(414, "uri-too-long", "header_bytes");
    let mut client = Connection::open(stage.http());
    client.send(head(&"X-A: b\r\n".repeat(10)));
    client.response().assert_ok("within the limits");
    stage.assert_alive();
}

#[test]
fn a_body_has_a_limit_however_it_is_framed() {
    let stage = Stage::at_34_with(|config| config.settle("100ms").set("limits.body", "1KiB"));
    stage
        .send(&write(34, "").body(vec![b'x'; 1024]))
        .assert_ok("1 KiB");
    let count = stage.recorder.count();
    stage
        .send(&write(34, "").body(vec![b'x'; 1025]))
        .assert_fenced(
            413,
            "body-too-large",
            "a length is known before anything is sent",
        );
    assert_eq!(stage.recorder.count(), count);
    let mut client = Connection::open(stage.http());
    client.send(write(34, "chunked").chunked_head());
    client.send(format!("800\r\n{}\r\n0\r\n\r\n", "x".repeat(0x800)));
    let answer = client.response();
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (413, "body-too-large")
    );
    let history = stage.recorder.history();
    assert!(
        history
            .tagged("chunked")
            .iter()
            .all(|write| write.body_done.is_none()),
        "half of it may have gone upstream, but never as a whole request"
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
    });
    let connections = || stage.gateway.metric("fencegate_connections", &[]);
    let mut inside = Connection::open(stage.http());
    inside.send(write(1, "").whole());
    inside.response().assert_ok("before the flood");
    let mut flood: Vec<_> = (1..MOST).map(|_| Connection::open(stage.http())).collect();
    for client in &mut flood {
        client.send("PUT /obj");
    }
    eventually("all places are taken", || {
        (connections() >= f64::from(MOST)).then_some(())
    });
    for token in 2..=41 {
        let mut above = Connection::open(stage.http());
        match above.try_response("GET") {
            Ok(answer) => answer.assert_refused(503, "busy", "not-forwarded", "one too many"),
            Err(ended) => assert_ne!(ended, Ended::Silent),
        }
        assert!(
            connections() <= f64::from(MOST),
            "the limit is never exceeded"
        );
        inside.send(write(token, "").whole());
        inside.response().assert_ok("one within the limit");
    }
    assert_eq!(
        stage.gateway.admin_get("/livez").status,
        200,
        "the admin's is another listener"
    );
    drop(flood);
    eventually("the gateway serves again", || {
        let answer = write(42, "").try_send(stage.http()).ok()?;
        (answer.status == 200).then_some(())
    });
}

// R12
#[test]
fn many_connections_at_once_are_all_served() {
    let stage = Stage::new();
    let mut clients: Vec<_> = (0..300).map(|_| Connection::open(stage.http())).collect();
    for (key, client) in clients.iter_mut().enumerate() {
        client.send(Request::put(&format!("/objects/{key}")).token(1).whole());
    }
    for client in &mut clients {
        client.response().assert_ok("one of 300 connections");
    }
}

// R13
#[test]
fn a_flood_of_keys_with_bad_tokens_leaves_no_state() {
    let stage = Stage::at_34();
    let before = stage.gateway.metric("fencegate_keys", &[]);
    let mut client = Connection::open(stage.http());
    let mut bad = 0;
    for key in 0..2000 {
        let read = Request::get(&format!("/objects/flood-{key}")).token("x");
        client.send(read.whole());
        match client.try_response("GET") {
            Ok(answer) => {
                bad += 1;
                assert_eq!(answer.status, 400);
            }
            Err(_) => client = Connection::open(stage.http()),
        }
    }
    assert!(bad > 500, "{bad} of them were answered");
    assert!(
        (stage.gateway.metric("fencegate_keys", &[]) - before).abs() < 0.5,
        "a malformed token makes no key"
    );
    for field in [
        "fencegate_in_flight",
        "fencegate_waiting",
        "fencegate_unsettled",
    ] {
        assert!(
            stage.gateway.metric(field, &[]).abs() < 0.5,
            "{field} is back to none"
        );
    }
    assert_eq!(stage.mark("objects/flood-1"), None);
}

/// Sends one client's requests, one after the other.
pub(crate) type Ask = Box<dyn FnMut(&Request) -> Response>;

/// Sends many requests that are all refused so, and looks for what they leave.
pub(crate) fn assert_no_state(
    stage: &Stage,
    mut ask: Ask,
    status: u16,
    reason: &str,
    bad: impl Fn(usize) -> Request,
) {
    const STATE: [&str; 4] = [
        "fencegate_keys",
        "fencegate_in_flight",
        "fencegate_waiting",
        "fencegate_unsettled",
    ];
    let state = || STATE.map(|field| stage.gateway.metric(field, &[]));
    let (before, count) = (state(), stage.recorder.count());
    for key in 0..500 {
        ask(&bad(key)).assert_fenced(status, reason, "one of a flood");
    }
    for ((field, before), after) in STATE.iter().zip(before).zip(state()) {
        assert!(
            (after - before).abs() < 0.5,
            "{reason}: {field} was {before} and is {after}"
        );
    }
    assert_eq!(stage.recorder.count(), count, "nothing was forwarded");
    assert_eq!(stage.mark("objects/flood-1"), None);
}

pub(crate) fn flood(key: usize, token: &str) -> Request {
    Request::put(&format!("/objects/flood-{key}")).token(token)
}

fn by_http1(gateway: SocketAddr) -> Ask {
    Box::new(move |request| request.send(gateway))
}

pub(crate) fn assert_refused_tokens_leave_no_state(open: impl Fn(SocketAddr) -> Ask) {
    let stage = Stage::at_34();
    assert_no_state(&stage, open(stage.http()), 409, "stale-token", |_| {
        write(33, "")
    });
    assert_eq!(stage.mark("objects/42").as_deref(), Some("34"));

    let issued = Stage::locking_with(|config| config.fence("trust", "issued"));
    assert_no_state(&issued, open(issued.http()), 403, "unknown-token", |key| {
        flood(key, "7")
    });

    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.json");
    std::fs::write(&keys, jwks(&[&Issuer::ed25519("one")])).unwrap();
    let signed = Stage::with(|config| {
        let config = config.fence("trust", "signed");
        config.fence("jwks", keys.to_str().unwrap())
    });
    // Another key by the same name.
    let forger = Issuer::ed25519("one");
    assert_no_state(&signed, open(signed.http()), 403, "bad-signature", |key| {
        let claims = json!({ "key": format!("objects/flood-{key}"), "tok": "7" });
        flood(key, &forger.token(&claims))
    });
}

// R13
#[test]
fn a_flood_of_refused_tokens_leaves_no_state() {
    assert_refused_tokens_leave_no_state(by_http1);
}

// R14
#[test]
fn the_number_of_keys_can_be_capped_and_no_mark_is_evicted() {
    let mut stage = Stage::with(|config| config.settle("100ms").set("limits.keys", 3));
    for key in 0..3 {
        stage.raise(&format!("/objects/{key}"), "34");
    }
    for key in 3..20 {
        let answer = stage.send(&Request::put(&format!("/objects/{key}")).token(1));
        answer.assert_fenced(503, "busy", "a new key above limits.keys");
        assert!(answer.header("retry-after").is_some());
    }
    let known = |stage: &Stage, token: u64| {
        for key in 0..3 {
            let target = format!("/objects/{key}");
            stage.send(&Request::put(&target).token(33)).assert_fenced(
                409,
                "stale-token",
                "a mark is never evicted",
            );
            stage.raise(&target, &token.to_string());
        }
    };
    known(&stage, 34);
    known(&stage, 36);
    stage.gateway.kill();
    stage.gateway.restart();
    known(&stage, 36);
    stage
        .send(&Request::put("/objects/19").token(1))
        .assert_fenced(503, "busy", "counted across restarts");
    stage
        .send(&Request::get("/objects/19"))
        .assert_ok("a read without a token needs no mark");
}

#[test]
fn a_connection_can_be_limited_in_requests() {
    let stage = Stage::with(|config| config.set("limits.requests_per_connection", 3));
    let mut client = Connection::open(stage.http());
    for token in 1..=3 {
        client.send(write(token, "").whole());
        client.response().assert_ok("within the limit");
    }
    assert_ne!(client.ended(), Ended::Silent, "closed after the third");
}

/// `FENCEGATE_BODY_MIB` says how many MiB go each way; `make soak` sends 1 GiB.
// R20
#[test]
fn memory_stays_flat_with_large_bodies() {
    let mib: usize = std::env::var("FENCEGATE_BODY_MIB").map_or(64, |mib| mib.parse().unwrap());
    let length = mib << 20;
    let stage = Stage::new();
    // Reads the upload without keeping it, then sends as much back.
    stage.recorder.on("large", move |exchange| {
        let mut left = length;
        while left > 0 {
            left -= exchange.receive()?.len().min(left);
        }
        exchange.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        ))?;
        let piece = vec![b'b'; 1 << 20];
        exchange.end();
        for _ in 0..mib {
            exchange.send(&piece)?;
        }
        Ok(Next::Close)
    });
    stage.raise("/objects/42", "1");
    let before = stage.gateway.resident_kib();
    let mut client = Connection::open(stage.http());
    client.send(write(1, "large").head(length));
    let piece = vec![b'a'; 1 << 20];
    for _ in 0..mib {
        client.try_send(&piece).unwrap();
    }
    assert!(client.head().unwrap().line.contains(" 200 "));
    let mut left = length;
    while left > 0 {
        left -= client.take(left.min(1 << 20)).unwrap().len();
    }
    let grown = stage.gateway.peak_kib().saturating_sub(before);
    assert!(
        grown < 32 * 1024,
        "{mib} MiB each way took {grown} KiB of memory"
    );
    println!("{mib} MiB each way: {grown} KiB more");
}
