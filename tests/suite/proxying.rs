//! The gateway as a proxy: what goes through it unchanged, and what it must not pass on.

use std::time::Duration;

use crate::common::{Connection, Gate, Next, Request, Stage};
use serde_json::json;

#[test]
fn a_request_body_streams_before_it_is_there_whole() {
    let stage = Stage::new();
    let mut client = Connection::open(stage.http());
    let request = Request::put("/objects/42").token(34).tag("upload");
    client.send(request.head(10)).send("first");
    stage.recorder.has_body("upload", 5);
    client.send("after");
    client.response().assert_ok("the upload");
    assert_eq!(stage.recorder.last().body, b"firstafter");
    assert_eq!(
        stage.recorder.last().header("content-length"),
        Some("10"),
        "the framing is kept"
    );
}

#[test]
fn a_response_body_streams_before_it_is_there_whole() {
    let stage = Stage::new();
    let gate = Gate::new();
    let opened = gate.clone();
    stage.recorder.on("download", move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
        exchange.wait(&opened)?;
        exchange.end();
        exchange.send("5\r\nafter\r\n0\r\n\r\n")?;
        Ok(Next::KeepAlive)
    });
    let mut client = Connection::open(stage.http());
    client.send(Request::get("/objects/42").tag("download").whole());
    let head = client.head().unwrap();
    assert_eq!(head.get("transfer-encoding"), Some("chunked"));
    let first = client.take(10).unwrap();
    assert_eq!(
        first, b"5\r\nfirst\r\n",
        "the first chunk comes before the second is made"
    );
    gate.open();
    assert_eq!(client.take(15).unwrap(), b"5\r\nafter\r\n0\r\n\r\n");
}

#[test]
fn trailers_go_both_ways() {
    let stage = Stage::new();
    stage.recorder.on("trailers", |exchange| {
        exchange.read_body()?;
        exchange.end();
        exchange.send(
            "HTTP/1.1 200 OK\r\nTrailer: X-Back\r\nTransfer-Encoding: chunked\r\n\r\n\
             2\r\nok\r\n0\r\nX-Back: two\r\n\r\n",
        )?;
        Ok(Next::KeepAlive)
    });
    let request = Request::put("/objects/42").token(34).tag("trailers");
    let request = request
        .header("Trailer", "X-Forth")
        .header("TE", "trailers");
    let mut client = Connection::open(stage.http());
    client
        .send(request.chunked_head())
        .send("4\r\ndata\r\n0\r\nX-Forth: one\r\n\r\n");
    let answer = client.response();
    assert_eq!(
        answer.trailer("x-back"),
        Some("two"),
        "the response's trailer"
    );
    let seen = stage.recorder.received("trailers");
    assert_eq!(seen.body, b"data");
    let trailer = seen.trailers.first().map(|(_, value)| value.as_str());
    assert_eq!(trailer, Some("one"), "the request's trailer");
    assert_eq!(
        seen.header("te"),
        Some("trailers"),
        "TE: trailers is kept, since trailers pass"
    );
}

#[test]
fn ranges_go_through_and_partial_content_comes_back() {
    let stage = Stage::new();
    stage.recorder.on("range", |exchange| {
        let fields = "Content-Range: bytes 2-3/10\r\nETag: \"a\"\r\nAccept-Ranges: bytes\r\n";
        exchange.respond_with(206, fields, "cd")
    });
    let request = Request::get("/objects/42")
        .tag("range")
        .header("Range", "bytes=2-3");
    let answer = stage.send(&request.header("If-Range", "\"a\""));
    assert_eq!((answer.status, answer.text().as_str()), (206, "cd"));
    assert_eq!(answer.header("content-range"), Some("bytes 2-3/10"));
    let seen = stage.recorder.last();
    assert_eq!(seen.header("range"), Some("bytes=2-3"));
    assert_eq!(seen.header("if-range"), Some("\"a\""));
}

#[test]
fn responses_without_a_body_keep_the_connection() {
    let stage = Stage::new();
    stage.recorder.on("204", |exchange| {
        exchange.read_body()?;
        exchange.end();
        exchange.send("HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n")?;
        Ok(Next::KeepAlive)
    });
    stage.recorder.on("304", |exchange| {
        exchange.end();
        exchange.send("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n")?;
        Ok(Next::KeepAlive)
    });
    stage.recorder.on("head", |exchange| {
        exchange.end();
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")?;
        Ok(Next::KeepAlive)
    });
    let mut client = Connection::open(stage.http());
    for (request, method, status) in [
        (Request::new("HEAD", "/objects/42").tag("head"), "HEAD", 200),
        (Request::get("/objects/42").tag("304"), "GET", 304),
        (
            Request::new("DELETE", "/objects/42").token(1).tag("204"),
            "DELETE",
            204,
        ),
        (Request::get("/objects/42"), "GET", 200),
    ] {
        client.send(request.whole());
        let answer = client.try_response(method).unwrap();
        assert_eq!(answer.status, status, "{method}");
        if method == "HEAD" {
            assert_eq!(
                answer.header("content-length"),
                Some("1234"),
                "HEAD tells the length of what GET would send"
            );
        }
    }
    assert_eq!(
        stage.recorder.connections(),
        1,
        "nor does the upstream's end"
    );
}

#[test]
fn the_host_and_every_value_go_through_as_they_came() {
    let stage = Stage::new();
    let request = Request::put("/objects/42")
        .host("Photos.S3.test:8443")
        .token("034")
        .header("X-Many", "one")
        .header("X-Other", "  spaced   inside ")
        .header("X-Many", "two, three")
        .header("Authorization", "AWS4-HMAC-SHA256 Credential=x")
        .header("X-Empty", "")
        .header("Cookie", "a=b; c=d");
    stage.send(&request).assert_ok("a request with fields");
    let seen = stage.recorder.last();
    assert_eq!(
        seen.header("host"),
        Some("Photos.S3.test:8443"),
        "signatures need it"
    );
    assert_eq!(seen.header("fencing-token"), Some("034"));
    assert_eq!(seen.headers("x-many"), ["one", "two, three"]);
    assert_eq!(seen.header("x-other"), Some("spaced   inside"));
    assert_eq!(
        seen.header("authorization"),
        Some("AWS4-HMAC-SHA256 Credential=x")
    );
    assert_eq!(seen.header("x-empty"), Some(""));
    assert_eq!(seen.header("cookie"), Some("a=b; c=d"));
}

#[test]
fn response_fields_come_back_as_they_were() {
    let stage = Stage::new();
    stage.recorder.on("fields", |exchange| {
        let fields = "Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nX-High: \u{e9}\r\nServer: legacy\r\n\
                      Date: Mon, 01 Jan 2001 00:00:00 GMT\r\n";
        exchange.respond_with(201, fields, "made")
    });
    let answer = stage.send(&Request::get("/objects/42").tag("fields"));
    assert_eq!((answer.status, answer.text().as_str()), (201, "made"));
    assert_eq!(answer.headers("set-cookie"), ["a=b", "c=d"]);
    assert_eq!(answer.header("server"), Some("legacy"));
    assert_eq!(answer.headers("date"), ["Mon, 01 Jan 2001 00:00:00 GMT"]);
    assert_eq!(answer.header("x-high"), Some("\u{e9}"));
}

#[test]
fn hop_by_hop_fields_stay_on_their_hop() {
    let stage = Stage::new();
    stage.recorder.on("hops", |exchange| {
        let fields = "Connection: keep-alive, X-Hop\r\nConnection: x-second\r\nX-Hop: 1\r\n\
                      X-Second: 2\r\nKeep-Alive: timeout=60\r\nProxy-Authenticate: Basic\r\nX-End: 3\r\n";
        exchange.respond_with(200, fields, "ok")
    });
    let request = Request::get("/objects/42")
        .tag("hops")
        .header("Connection", "X-Hop, keep-alive")
        .header("Connection", "x-second")
        .header("X-Hop", "1")
        .header("X-Second", "2")
        .header("X-End", "3")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "keep-alive")
        .header("Proxy-Authorization", "Basic eDp5")
        .header("TE", "gzip;q=0.5");
    let answer = stage.send(&request);
    answer.assert_ok("a request with hop-by-hop fields");
    let seen = stage.recorder.last();
    for name in [
        "x-hop",
        "x-second",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
    ] {
        assert_eq!(seen.header(name), None, "{name} is for the gateway only");
    }
    for name in ["x-hop", "x-second"] {
        assert_eq!(answer.header(name), None, "{name} is for the gateway only");
    }
    assert_eq!(seen.header("x-end"), Some("3"), "others are end to end");
    assert_eq!(answer.header("x-end"), Some("3"), "others are end to end");
}

#[test]
fn the_gateway_says_that_it_was_there() {
    let stage = Stage::new();
    let request = Request::get("/objects/42").header("Via", "1.0 front");
    let answer = stage.send(&request.header("X-Forwarded-For", "203.0.113.9"));
    let seen = stage.recorder.last();
    let via = seen.headers("via").join(", ");
    assert!(
        via.starts_with("1.0 front") && via.contains("1.1 "),
        "Via is appended on requests: {via:?}"
    );
    assert!(
        answer.header("via").is_some(),
        "and on responses: {:?}",
        answer.head
    );
    assert_eq!(
        seen.headers("x-forwarded-for").join(", "),
        "127.0.0.1",
        "an untrusted peer's word is replaced"
    );
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-host"), Some("store.test"));
    assert_eq!(
        seen.header("forwarded"),
        None,
        "only where it is configured"
    );
}

#[test]
fn a_trusted_proxy_is_believed() {
    let stage = Stage::with(|config| {
        config
            .set("trusted_proxies", json!(["127.0.0.0/8"]))
            .set("forwarded", true)
    });
    let request = Request::get("/objects/42")
        .header("X-Forwarded-For", "203.0.113.9")
        .header("X-Forwarded-Proto", "https");
    stage
        .send(&request)
        .assert_ok("a request from a trusted proxy");
    let seen = stage.recorder.last();
    let appended = seen.headers("x-forwarded-for").join(", ");
    assert_eq!(appended, "203.0.113.9, 127.0.0.1", "appended");
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    let forwarded = seen.header("forwarded").unwrap_or_default();
    assert!(forwarded.contains("for="), "Forwarded too: {forwarded:?}");
}

#[test]
fn a_credential_that_only_the_gateway_knows_replaces_the_clients() {
    let stage = Stage::with(|config| {
        config.upstream("headers", json!({ "authorization": "Bearer gateway" }))
    });
    let request = Request::put("/objects/42").token(1);
    let request = request.header("Authorization", "Bearer client");
    stage
        .send(&request.header("authorization", "Bearer second"))
        .assert_ok("a request with a credential");
    let seen = stage.recorder.last();
    assert_eq!(seen.headers("authorization"), ["Bearer gateway"]);
}

#[test]
fn a_credential_that_only_the_gateway_knows_has_no_twin_and_is_in_no_trailer() {
    let stage = Stage::with(|config| config.upstream("headers", json!({ "x-api-key": "gateway" })));
    let head = Request::put("/objects/42")
        .token(1)
        .tag("twins")
        .header("X-Api-Key", "client")
        .header("X_Api_Key", "client")
        .header("X.Api.Key", "client")
        .header("Trailer", "X-Api-Key, X_Api_Key, X-Sum")
        .chunked_head();
    let mut client = Connection::open(stage.http());
    client
        .send(head)
        .send("4\r\ndata\r\n0\r\nX-Api-Key: client\r\nX_Api_Key: client\r\nX-Sum: one\r\n\r\n");
    client.response().assert_ok("a request with twins");
    let seen = stage.recorder.received("twins");
    let twins = ["x-api-key", "x_api_key", "x.api.key"].map(|name| seen.headers(name));
    assert_eq!(twins, [vec!["gateway"], vec![], vec![]]);
    let trailers: Vec<_> = seen.trailers.iter().map(|(_, value)| value).collect();
    assert_eq!(trailers, ["one"], "only what is nobody's credential");
}

#[test]
fn trailers_say_nothing_that_a_decision_was_made_of() {
    let stage = Stage::with(|config| {
        config
            .set("routes.0.path", "/objects")
            .fence("key", "{header.x-object}")
    });
    let names = "X-Object, Fencing-Holder, X-Forwarded-For, Forwarded, X-Real-IP, X-Sum";
    let head = Request::put("/objects")
        .token(1)
        .tag("trailers")
        .header("X-Object", "42")
        .header("Trailer", names)
        .chunked_head();
    let trailers: String = names
        .split(", ")
        .map(|name| format!("{name}: 43\r\n"))
        .collect();
    let mut client = Connection::open(stage.http());
    client
        .send(head)
        .send(format!("4\r\ndata\r\n0\r\n{trailers}\r\n"));
    client.response().assert_ok("a request with trailers");
    let seen = stage.recorder.received("trailers");
    let left: Vec<_> = seen
        .trailers
        .iter()
        .map(|(name, _)| name.to_lowercase())
        .collect();
    assert_eq!(left, ["x-sum"]);
}

// R11
#[test]
fn a_compressed_body_is_never_inflated() {
    let stage = Stage::new();
    let bomb = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xff];
    let request = Request::put("/objects/42").token(1).body(bomb);
    let request = request.header("Content-Encoding", "gzip");
    stage.send(&request).assert_ok("a compressed body");
    assert_eq!(stage.recorder.last().body, bomb, "it goes through as bytes");
    assert_eq!(
        stage.recorder.last().header("accept-encoding"),
        None,
        "and none is asked for"
    );
}

// S18
#[test]
fn an_upgrade_to_http_2_is_stripped() {
    let stage = Stage::new();
    let request = Request::get("/objects/42")
        .header("Connection", "Upgrade, HTTP2-Settings")
        .header("Upgrade", "h2c")
        .header("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA");
    stage
        .send(&request)
        .assert_ok("the request without the upgrade");
    let seen = stage.recorder.last();
    for name in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(
            seen.header(name),
            None,
            "{name} would open an unfenced channel"
        );
    }
}

// S18
#[test]
fn an_upgrade_that_is_no_protocol_by_its_form_is_stripped() {
    let stage = Stage::new();
    for protocol in [
        "\"h2c\"",
        "h2c;q=1",
        "h2c websocket",
        "(h2c)",
        "websocket, h2c;x",
        "x/",
        "/x",
    ] {
        let request = Request::put("/objects/42")
            .token(1)
            .header("Connection", "Upgrade")
            .header("Upgrade", protocol);
        stage.send(&request).assert_ok(protocol);
        let seen = stage.recorder.last();
        assert_eq!(seen.header("upgrade"), None, "{protocol}");
        assert_eq!(seen.header("connection"), None, "{protocol}");
    }
}

#[test]
fn a_connection_is_kept_for_the_next_request_on_both_sides() {
    let stage = Stage::new();
    let mut client = Connection::open(stage.http());
    for token in 1..20 {
        client.send(Request::put("/objects/42").token(token).whole());
        client.response().assert_ok("one of many on one connection");
    }
    assert_eq!(
        stage.recorder.connections(),
        1,
        "one upstream connection serves them all"
    );
    stage.recorder.history().assert_ordered();
}

#[test]
fn http_1_0_is_answered_and_closed_unless_it_asks_to_be_kept() {
    let stage = Stage::new();
    let mut client = Connection::open(stage.http());
    client.send("GET /objects/42 HTTP/1.0\r\nHost: store.test\r\n\r\n");
    let answer = client.response();
    answer.assert_ok("HTTP/1.0");
    assert_eq!(answer.text(), "ok");
    assert_eq!(
        answer.header("transfer-encoding"),
        None,
        "HTTP/1.0 knows no chunks"
    );
    assert!(
        client.try_response("GET").is_err(),
        "closed after the response"
    );

    let mut kept = Connection::open(stage.http());
    for _ in 0..2 {
        kept.send("GET /objects/42 HTTP/1.0\r\nHost: store.test\r\nConnection: keep-alive\r\n\r\n");
        kept.response().assert_ok("HTTP/1.0 with keep-alive");
    }
}

// K21
#[test]
fn a_body_on_a_read_is_forwarded_whole() {
    let stage = Stage::at_34();
    let smuggled = "PUT /objects/42 HTTP/1.1\r\nHost: store.test\r\nContent-Length: 0\r\n\r\n";
    for request in [
        Request::get("/objects/42").body(smuggled),
        Request::get("/objects/42").token(34).body(smuggled),
        Request::new("HEAD", "/objects/42").token(34).body(smuggled),
        Request::new("SEARCH", "/objects/42").body(smuggled),
    ] {
        let before = stage.recorder.count();
        let answer = request.try_send(stage.http()).unwrap();
        if answer.status < 400 {
            let seen = stage.recorder.last();
            assert_eq!(seen.body, smuggled.as_bytes(), "framed and forwarded whole");
            assert_eq!(stage.recorder.count(), before + 1, "as one request");
        } else {
            assert_eq!(
                stage.recorder.count(),
                before,
                "or refused, and not forwarded"
            );
        }
    }
    stage.assert_alive();
}

#[test]
fn a_pooled_connection_that_had_closed_costs_no_request() {
    let stage = Stage::new();
    for token in 1..=10 {
        let request = Request::put("/objects/42").token(token);
        stage
            .send(&request)
            .assert_ok("a write over a fresh connection");
        stage.recorder.close_connections();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        stage.recorder.count(),
        10,
        "each write reached the upstream once"
    );
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_connection_that_closes_behind_a_response_that_is_still_read_costs_no_request() {
    let stage = Stage::new();
    stage.recorder.otherwise(|exchange| {
        exchange.read_body()?;
        exchange.end();
        exchange.respond(200, &"b".repeat(400 * 1024))?;
        Ok(Next::Close)
    });
    for token in 1..=10 {
        let request = Request::put("/objects/42").token(token);
        let mut client = Connection::open(stage.http());
        client.send(request.whole());
        let head = client.head().unwrap();
        assert!(head.line.contains(" 200 "), "write {token}: {}", head.line);
        // The upstream has closed by the time that the last of it is read.
        std::thread::sleep(Duration::from_millis(20));
        client.take(400 * 1024).unwrap();
    }
    assert_eq!(stage.recorder.count(), 10, "each write came there once");
    stage.recorder.history().assert_ordered();
}

#[test]
fn idle_upstream_connections_are_closed_sooner_than_servers_close_them() {
    let stage = Stage::with(|config| config.upstream("pool", json!({ "idle_timeout": "100ms" })));
    stage.raise("/objects/42", "1");
    std::thread::sleep(Duration::from_millis(600));
    stage.raise("/objects/42", "2");
    assert_eq!(
        stage.recorder.connections(),
        2,
        "an idle connection is not used again"
    );
}

#[test]
fn an_upstreams_own_idle_time_is_minded() {
    let stage = Stage::new();
    stage.recorder.otherwise(|exchange| {
        exchange.read_body()?;
        exchange.respond_with(200, "Keep-Alive: timeout=1\r\n", "ok")
    });
    stage.raise("/objects/42", "1");
    std::thread::sleep(Duration::from_millis(1200));
    stage.raise("/objects/42", "2");
    assert_eq!(
        stage.recorder.connections(),
        2,
        "Keep-Alive: timeout=1 is up"
    );
}
