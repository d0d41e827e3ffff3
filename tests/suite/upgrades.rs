//! Upgrades: a tunnel is a write for as long as it is open. And Expect, the other handshake.

use crate::common::{Connection, Gate, Next, Recorder, Request, Stage};

fn upgrade(tag: &str) -> Request {
    Request::get("/objects/42")
        .tag(tag)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
}

/// Switches protocols, then sends back what comes.
fn echo(recorder: &Recorder, tag: &str) {
    recorder.on(tag, |exchange| {
        exchange.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )?;
        loop {
            let bytes = exchange.receive()?;
            exchange.send(bytes)?;
        }
    });
}

// C12
#[test]
fn an_upgrade_is_a_write_even_by_get() {
    let stage = Stage::at_34();
    echo(&stage.recorder, "tunnel");
    let answer = stage.send(&upgrade("tunnel"));
    answer.assert_fenced(428, "token-required", "GET with Upgrade and no token");
    let answer = stage.send(&upgrade("tunnel").token(33));
    answer.assert_fenced(409, "stale-token", "GET with Upgrade and a stale token");
    assert!(stage.recorder.history().tagged("tunnel").is_empty());
}

#[test]
fn a_tunnel_carries_bytes_both_ways() {
    let stage = Stage::at_34();
    echo(&stage.recorder, "tunnel");
    let mut client = Connection::open(stage.http());
    client.send(upgrade("tunnel").token(34).whole());
    let head = client.head().unwrap();
    assert!(head.line.contains(" 101 "), "{head:?}");
    assert_eq!(head.get("upgrade"), Some("websocket"));
    for message in ["one", "two", "\0\u{1}three"] {
        client.send(message);
        assert_eq!(client.take(message.len()).unwrap(), message.as_bytes());
    }
    stage.gateway.wait_key("objects/42", "in_flight", 1);
    client.finish();
    drop(client);
    stage.recorder.ended("tunnel");
}

#[test]
fn a_newer_token_cuts_a_tunnel_at_once() {
    let stage = Stage::at_34_with(|config| config.settle("300ms"));
    echo(&stage.recorder, "tunnel");
    let mut client = Connection::open(stage.http());
    client.send(upgrade("tunnel").token(34).whole());
    client.head().unwrap();
    client.send("ping");
    client.take(4).unwrap();
    let newer = Request::put("/objects/42")
        .token(35)
        .tag("newer")
        .spawn(stage.http());
    let cut = stage.recorder.broke("tunnel");
    client.ended();
    newer.join().unwrap().assert_ok("the newer write");
    let newer = stage.recorder.arrived("newer");
    let pause = newer.began.at.duration_since(cut.broke.unwrap().at);
    assert!(
        pause.as_millis() >= 200,
        "a cut tunnel is unknown, and settles before the newer write: {pause:?}"
    );
    stage.recorder.history().assert_ordered();
}

// S16
#[test]
fn bytes_before_the_101_are_held_back() {
    let stage = Stage::at_34();
    let gate = Gate::new();
    let opened = gate.clone();
    stage.recorder.on("early", move |exchange| {
        exchange.wait(&opened)?;
        exchange.respond(400, "no upgrade here")
    });
    let mut client = Connection::open(stage.http());
    let smuggled = Request::put("/objects/42").token(1).tag("smuggled");
    client
        .send(upgrade("early").token(34).whole())
        .send(smuggled.whole());
    let seen = stage.recorder.arrived("early");
    gate.open();
    assert_eq!(
        client.response().status,
        400,
        "the upgrade is refused by the upstream"
    );
    let raw = String::from_utf8_lossy(&stage.recorder.raw(seen.connection)).into_owned();
    assert!(
        !raw.contains("smuggled"),
        "nothing after the head goes upstream before the 101: {raw}"
    );
    // Whatever the gateway makes of the rest, it is a request that is fenced.
    if let Ok(next) = client.try_response("PUT") {
        assert_eq!(next.status, 409, "the bytes are a request below the mark");
    }
    assert!(stage.recorder.history().tagged("smuggled").is_empty());
}

// S17
#[test]
fn an_upgrade_that_is_answered_200_stays_http() {
    let stage = Stage::at_34();
    let mut client = Connection::open(stage.http());
    client.send(upgrade("plain").token(34).whole());
    let answer = client.response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    client.send(Request::put("/objects/42").token(1).whole());
    if let Ok(next) = client.try_response("PUT") {
        next.assert_fenced(409, "stale-token", "what follows is fenced");
    }
    assert_eq!(stage.recorder.history().tagged("plain").len(), 1);
    assert_eq!(stage.recorder.count(), 2);
}

fn expecting(token: u64, tag: &str) -> Request {
    let request = Request::put("/objects/42").token(token).tag(tag);
    request.header("Expect", "100-continue")
}

// S13
#[test]
fn a_stale_uploader_is_never_told_to_continue() {
    let stage = Stage::at_34();
    for request in [
        expecting(33, "stale"),
        Request::put("/objects/42").header("Expect", "100-continue"),
    ] {
        let mut client = Connection::open(stage.http());
        client.send(request.head(1 << 20));
        let answer = client.response();
        assert!([409, 428].contains(&answer.status), "{answer:?}");
        assert!(
            answer.informational.is_empty(),
            "a refusal comes before any 100 Continue: {answer:?}"
        );
    }
    assert_eq!(stage.recorder.count(), 1, "nothing was forwarded");
}

#[test]
fn expect_is_passed_on_and_the_body_is_held_until_the_upstreams_100() {
    let stage = Stage::at_34();
    let gate = Gate::new();
    let opened = gate.clone();
    stage.recorder.on("expect", move |exchange| {
        exchange.wait(&opened)?;
        exchange.read_body()?;
        exchange.respond(200, "ok")
    });
    let mut client = Connection::open(stage.http());
    client.send(expecting(34, "expect").head(4));
    let seen = stage.recorder.arrived("expect");
    assert_eq!(
        seen.header("expect"),
        Some("100-continue"),
        "Expect is passed on"
    );
    gate.open();
    let head = client.head().unwrap();
    assert!(
        head.line.contains(" 100 "),
        "the upstream's 100 comes through: {head:?}"
    );
    client.send("data");
    client.response().assert_ok("the upload");
    assert_eq!(stage.recorder.ended("expect").body, b"data");
}

#[test]
fn the_body_goes_after_a_second_where_the_upstream_knows_no_100() {
    let stage = Stage::at_34();
    stage.recorder.on("deaf", |exchange| {
        exchange.read_some(4)?;
        exchange.respond(200, "ok")
    });
    let mut client = Connection::open(stage.http());
    client.send(expecting(34, "deaf").head(4)).send("data");
    client
        .response()
        .assert_ok("an upstream that never says 100");
    assert_eq!(stage.recorder.ended("deaf").body, b"data");
}

// S14
#[test]
fn an_early_final_answer_to_expect_is_relayed_and_its_connection_not_used_again() {
    let stage = Stage::at_34();
    stage.recorder.on("refuse", |exchange| {
        exchange.end();
        exchange.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")?;
        Ok(Next::KeepAlive)
    });
    let mut client = Connection::open(stage.http());
    client.send(expecting(34, "refuse").head(1 << 20));
    let answer = client.response();
    assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
    let used = stage.recorder.arrived("refuse").connection;
    stage
        .send(&Request::get("/objects/42").tag("next"))
        .assert_ok("the next request");
    assert_ne!(
        stage.recorder.arrived("next").connection,
        used,
        "its framing is open: the upstream connection is discarded"
    );
}

// S14
#[test]
fn an_expectation_that_nobody_can_have_is_not_passed_on() {
    let stage = Stage::new();
    for (version, value) in [("1.0", "100-continue"), ("1.1", ""), ("1.1", ",")] {
        let head = format!(
            "PUT /objects/42 HTTP/{version}\r\nHost: store.test\r\nFencing-Token: 34\r\n\
             Expect: {value}\r\nContent-Length: 5\r\n\r\ndatum"
        );
        let answer = Connection::open(stage.http()).send(head).response();
        answer.assert_ok(&format!("HTTP/{version} with Expect: {value:?}"));
        assert_eq!(stage.recorder.last().headers("expect"), [""; 0]);
    }
}

// S15
#[test]
fn an_unknown_expectation_fails() {
    let stage = Stage::at_34();
    for value in ["200-ok", "100-continue, x", "continue"] {
        let request = Request::put("/objects/42")
            .token(34)
            .header("Expect", value);
        stage
            .send(&request)
            .assert_fenced(417, "expectation-failed", value);
    }
    assert_eq!(stage.recorder.count(), 1, "nothing was forwarded");
}

#[test]
fn of_informational_responses_only_100_comes_through() {
    let stage = Stage::new();
    stage.recorder.on("hints", |exchange| {
        exchange.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
        exchange.send("HTTP/1.1 102 Processing\r\n\r\n")?;
        exchange.respond(200, "ok")
    });
    let answer = stage.send(&Request::get("/objects/42").tag("hints"));
    answer.assert_ok("the final response");
    assert!(answer.informational.is_empty(), "{answer:?}");
}

// S12 S13
#[test]
fn the_body_behind_a_refused_expectation_is_never_a_request() {
    let stage = Stage::at_34();
    let smuggled = Request::put("/objects/42").token(99).whole();
    let mut client = Connection::open(stage.http());
    client.send(expecting(33, "stale").head(smuggled.len()));
    client
        .response()
        .assert_fenced(409, "stale-token", "33 after 34");
    client.send(&smuggled);
    client.finish();
    client.ended();
    assert_eq!(
        stage.mark("objects/42").as_deref(),
        Some("34"),
        "its bytes are a body"
    );
    assert_eq!(stage.recorder.count(), 1);
}

#[test]
fn a_response_head_without_end_is_invalid() {
    let stage = Stage::at_34_with(|config| config.settle("100ms"));
    stage.recorder.on("endless", |exchange| {
        exchange.read_body()?;
        exchange.send("HTTP/1.1 200 OK\r\n")?;
        let line = format!("X-Long: {}\r\n", "v".repeat(64 * 1024));
        for _ in 0..256 {
            exchange.send(&line)?;
        }
        exchange.never()
    });
    let answer = stage.send(&Request::put("/objects/42").token(34).tag("endless"));
    answer.assert_refused(502, "upstream-failed", "unknown", "16 MiB of a head");
}
