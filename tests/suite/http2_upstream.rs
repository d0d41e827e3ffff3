//! Upstreams that speak HTTP/2: the same outcomes, and one request on a connection.

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::http2::{CANCEL, END_HEADERS, END_STREAM, Frame, Gone, HEADERS, Http2, block};
use crate::common::http2_server::{Http2Server, response};
use crate::common::{Config, Connection, Gate, Gateway, Recorder, Request, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

const KEY: &str = "objects/42";
const SETTLE: Duration = Duration::from_millis(400);

struct Stage {
    gateway: Gateway,
    upstream: Http2Server,
}

impl Stage {
    fn new() -> Self {
        Self::with(|config| config)
    }

    fn with(change: impl FnOnce(Config) -> Config) -> Self {
        let upstream = Http2Server::start();
        let config = Config::new(&upstream.url())
            .upstream("http2", true)
            .settle("400ms");
        Self {
            gateway: Gateway::start(change(config)),
            upstream,
        }
    }

    fn http(&self) -> SocketAddr {
        self.gateway.http
    }

    fn send(&self, request: &Request) -> Response {
        request.send(self.http())
    }

    /// Asserts that `newer` began about `SETTLE` after `older` broke, or later: that it broke may have been
    /// noticed late.
    fn assert_settled(&self, older: &str, newer: &str) {
        let broke = self.upstream.broke(older).broke.unwrap().at;
        let began = self.upstream.arrived(newer).began.at;
        let held = began.saturating_duration_since(broke);
        assert!(held >= SETTLE.mul_f32(0.5), "held for {held:?}");
        self.upstream.history().assert_ordered();
    }
}

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

async fn opened(gate: &Gate) {
    while !gate.is_open() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn a_request_of_http_1_is_one_of_http_2() {
    let stage = Stage::new();
    let request = write(1, "first")
        .header("Connection", "keep-alive, x-hop")
        .header("X-Hop", "1")
        .header("TE", "trailers")
        .header("X-Kept", "yes");
    // One connection, so that it is one worker whose connections are kept.
    let mut client = Connection::open(stage.http());
    client.send(request.whole());
    let answer = client.response();
    answer.assert_ok("a write");
    assert_eq!(answer.text(), "ok");
    let seen = stage.upstream.arrived("first");
    assert_eq!(seen.header(":authority"), Some("store.test"));
    assert_eq!(seen.header("via"), Some("1.1 fencegate"));
    assert_eq!(seen.header("te"), Some("trailers"));
    assert_eq!(seen.header("x-kept"), Some("yes"));
    assert_eq!(seen.header("content-length"), Some("4"));
    for gone in ["host", "connection", "x-hop", "transfer-encoding"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert_eq!(seen.body, b"data");

    let target = "/objects/%61%7e~?b=%2F&a";
    client.send(Request::get(target).tag("target").whole());
    client.response().assert_ok("a read");
    assert_eq!(
        stage.upstream.arrived("target").target,
        target,
        "byte for byte"
    );
    assert_eq!(stage.upstream.connections(), 1, "the connection is kept");

    // A body of unknown length, and trailers both ways.
    stage.upstream.on("trailers", |mut exchange| async move {
        exchange.read_body().await?;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        exchange.answer_with_trailers("ok", trailers)
    });
    let mut client = Connection::open(stage.http());
    let chunked = write(1, "trailers").header("TE", "trailers");
    client
        .send(chunked.header("Trailer", "x-check").chunked_head())
        .send("4\r\ndata\r\n0\r\nX-Check: ok\r\nFencing-Token: 99\r\n\r\n");
    let answer = client.response();
    answer.assert_ok("a chunked write");
    let seen = stage.upstream.arrived("trailers");
    assert_eq!(seen.trailers, [("x-check".to_owned(), "ok".to_owned())]);
    assert_eq!(seen.body, b"data");
    let mut client = Http2::open(stage.http());
    let stream = client.request(&write(1, "trailers"));
    assert_eq!(client.response(stream).trailer("x-sum"), Some("7"));
}

#[test]
fn large_bodies_go_both_ways() {
    let stage = Stage::new();
    stage.upstream.on("echo", |mut exchange| async move {
        exchange.read_body().await?;
        let mut sender = exchange.respond.send_response(response(200), false)?;
        for part in 0..50 {
            let part = Bytes::from(vec![u8::try_from(part).unwrap(); 100_000]);
            sender.reserve_capacity(part.len());
            sender.send_data(part, false)?;
        }
        sender.send_data(Bytes::new(), true)
    });
    let mut client = Connection::open(stage.http());
    for _ in 0..3 {
        client.send(write(1, "echo").body(vec![b'x'; 3 << 20]).whole());
        let answer = client.response();
        assert_eq!((answer.status, answer.body.len()), (200, 5_000_000));
    }
    for seen in stage.upstream.history().0 {
        assert_eq!(seen.body.len(), 3 << 20);
    }
    assert_eq!(stage.upstream.connections(), 1);
}

#[test]
fn a_connection_carries_one_request_at_a_time() {
    let stage = Stage::new();
    let gate = Gate::new();
    let held = gate.clone();
    stage.upstream.on("held", move |mut exchange| {
        let held = held.clone();
        async move {
            exchange.read_body().await?;
            opened(&held).await;
            exchange.answer(200, "ok")
        }
    });
    let mut client = Http2::open(stage.http());
    let streams: Vec<u32> = (0..5)
        .map(|id| client.request(&Request::put(&format!("/objects/{id}")).token(1).tag("held")))
        .collect();
    crate::common::eventually("all are there", || {
        (stage.upstream.history().0.len() == 5).then_some(())
    });
    gate.open();
    for stream in streams {
        client.response(stream).assert_ok("a write");
    }
    let mut connections: Vec<u64> = stage
        .upstream
        .history()
        .0
        .iter()
        .map(|write| write.connection)
        .collect();
    connections.sort_unstable();
    connections.dedup();
    assert_eq!(connections.len(), 5);
}

// C1
#[test]
fn a_cut_drops_the_connection() {
    let stage = Stage::new();
    let mut older = Connection::open(stage.http());
    older.send(write(33, "older").head(100)).send("half");
    stage
        .upstream
        .wait("older", "bring its bytes", |write| write.body.len() == 4);
    let newer = write(34, "newer").spawn(stage.http());
    older
        .response()
        .assert_refused(409, "superseded", "unknown", "it was cut");
    newer.join().unwrap().assert_ok("the newer write");
    stage.assert_settled("older", "newer");
    let history = stage.upstream.history().0;
    assert_ne!(history[0].connection, history[1].connection);
}

#[test]
fn what_was_sent_whole_is_waited_for() {
    let stage = Stage::with(|config| config.settle("20s"));
    let gate = Gate::new();
    let held = gate.clone();
    stage.upstream.on("older", move |mut exchange| {
        let held = held.clone();
        async move {
            exchange.read_body().await?;
            opened(&held).await;
            exchange.answer(200, "ok")
        }
    });
    let older = write(33, "older").spawn(stage.http());
    stage
        .upstream
        .wait("older", "be received", |write| write.body_done.is_some());
    let newer = write(34, "newer").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "34");
    // Later in the log than the newer mark: it is not the sync that the newer write waits for.
    stage
        .send(&Request::put("/objects/other").token(1))
        .assert_ok("a write of another object");
    assert!(stage.upstream.history().tagged("newer").is_empty());
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    newer.join().unwrap().assert_ok("the newer write");
    stage.upstream.history().assert_ordered();
}

#[test]
fn a_client_that_leaves_is_treated_as_with_http_1() {
    let stage = Stage::new();
    let mut client = Connection::open(stage.http());
    client.send(write(33, "half").head(100)).send("half");
    stage
        .upstream
        .wait("half", "bring its bytes", |write| write.body.len() == 4);
    client.abort();
    stage.send(&write(34, "next")).assert_ok("the next write");
    stage.assert_settled("half", "next");

    let gate = Gate::new();
    let held = gate.clone();
    stage.upstream.on("whole", move |mut exchange| {
        let held = held.clone();
        async move {
            exchange.read_body().await?;
            opened(&held).await;
            exchange.answer(200, "ok")
        }
    });
    let mut client = Connection::open(stage.http());
    client.send(write(35, "whole").whole());
    stage
        .upstream
        .wait("whole", "be received", |write| write.body_done.is_some());
    client.abort();
    let newer = write(36, "newer").spawn(stage.http());
    stage.gateway.wait_key(KEY, "waiting", 1);
    gate.open();
    newer.join().unwrap().assert_ok("the newer write");
    let whole = stage.upstream.arrived("whole");
    assert!(whole.broke.is_none(), "it ran on to its end");
    stage.upstream.history().assert_ordered();
}

// R15, R16, G5
#[test]
fn what_goes_wrong_is_unknown_and_not_sent_again() {
    let stage = Stage::with(|config| config.upstream("timeout", "300ms"));
    stage.upstream.on("silent", |mut exchange| async move {
        exchange.read_body().await?;
        exchange.gone().await
    });
    stage.upstream.on("refused", |mut exchange| async move {
        exchange.respond.send_reset(h2::Reason::REFUSED_STREAM);
        exchange.gone().await
    });
    stage.upstream.on("reset", |mut exchange| async move {
        exchange.read_body().await?;
        exchange.respond.send_reset(h2::Reason::INTERNAL_ERROR);
        exchange.gone().await
    });
    stage.upstream.on("balancer", |mut exchange| async move {
        exchange.read_body().await?;
        exchange.answer(504, "lb")
    });
    for (number, (tag, status, reason)) in [
        ("silent", 504, "upstream-timeout"),
        ("refused", 502, "upstream-failed"),
        ("reset", 502, "upstream-failed"),
        ("balancer", 504, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let token = 10 * u64::try_from(number + 1).unwrap();
        let answer = stage.send(&write(token, tag));
        if reason.is_empty() {
            assert_eq!((answer.status, answer.text().as_str()), (status, "lb"));
        } else {
            answer.assert_refused(status, reason, "unknown", tag);
        }
        assert_eq!(
            stage.upstream.history().tagged(tag).len(),
            1,
            "{tag}: not sent again"
        );
        assert_eq!(stage.gateway.key(KEY).unwrap()["unsettled"], 1, "{tag}");
        let newer = format!("after {tag}");
        stage
            .send(&write(token + 1, &newer))
            .assert_ok("the newer write");
        stage.upstream.history().assert_ordered();
    }
}

#[test]
fn a_response_that_breaks_off_breaks_off() {
    let stage = Stage::new();
    let gate = Gate::new();
    let held = gate.clone();
    stage.upstream.on("breaks", move |mut exchange| {
        let held = held.clone();
        async move {
            exchange.read_body().await?;
            let mut sender = exchange.respond.send_response(response(200), false)?;
            sender.send_data(Bytes::from_static(b"half"), false)?;
            opened(&held).await;
            sender.send_reset(h2::Reason::INTERNAL_ERROR);
            exchange.gone().await
        }
    });
    let mut client = Http2::open(stage.http());
    let stream = client.request(&write(33, "breaks"));
    assert_eq!(client.head(stream), 200);
    gate.open();
    assert!(matches!(client.try_response(stream), Err(Gone::Reset(_))));
    stage.send(&write(34, "newer")).assert_ok("the newer write");
    stage.assert_settled("breaks", "newer");
}

// R17, C10
#[test]
fn a_whole_response_before_the_whole_request_is_unknown() {
    let stage = Stage::new();
    stage.upstream.on("early", |mut exchange| async move {
        exchange.read().await?;
        exchange.respond.send_response(response(200), true)?;
        while exchange.read().await?.is_some() {}
        exchange.gone().await
    });
    let mut client = Connection::open(stage.http());
    client.send(write(33, "early").head(100)).send("half");
    let answer = client.response();
    answer.assert_ok("it is relayed");
    let newer = stage.send(&write(34, "newer"));
    newer.assert_ok("the newer write");
    stage.assert_settled("early", "newer");
}

#[test]
fn a_response_may_begin_before_its_request_has_ended() {
    let stage = Stage::new();
    stage.upstream.on("echo", |mut exchange| async move {
        let mut sender = exchange.respond.send_response(response(200), false)?;
        while let Some(data) = exchange.read().await? {
            sender.send_data(data, false)?;
        }
        exchange.read_body().await?;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        sender.send_trailers(trailers)
    });
    let mut client = Http2::open(stage.http());
    let stream = client.begin(&write(33, "echo"), None);
    assert_eq!(client.head(stream), 200);
    for round in 1..=20 {
        client.data(stream, "ping", 0);
        while client.received(stream) < 4 * round {
            client.step().unwrap();
        }
    }
    let trailers = block(&[("x-check", "ok")]);
    client.send(&Frame::new(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        trailers,
    ));
    let answer = client.response(stream);
    assert_eq!(
        (answer.body.len(), answer.trailer("x-sum")),
        (80, Some("7"))
    );
    let seen = stage.upstream.arrived("echo");
    assert_eq!(seen.trailers, [("x-check".to_owned(), "ok".to_owned())]);
    // It is whole, so that it holds nobody and its connection is kept.
    assert_eq!(stage.gateway.key(KEY).unwrap()["unsettled"], 0);
    let stream = client.request(&write(34, "newer"));
    client.response(stream).assert_ok("the newer write");
    assert_eq!(stage.upstream.connections(), 1);

    // And one that is cut in the middle is unknown.
    let older = client.begin(&write(35, "echo"), None);
    assert_eq!(client.head(older), 200);
    client.data(older, "half", 0);
    let newest = client.request(&write(36, "newest"));
    assert!(matches!(client.try_response(older), Err(Gone::Reset(_))));
    client.response(newest).assert_ok("the newest write");
    let broke = stage
        .upstream
        .history()
        .0
        .iter()
        .any(|one| one.tag == "echo" && one.broke.is_some());
    assert!(broke, "its connection was dropped");
    stage.upstream.history().assert_ordered();

    let last = client.begin(&write(37, "echo"), None);
    assert_eq!(client.head(last), 200);
    client.reset(last, CANCEL);
    stage
        .send(&write(38, "after"))
        .assert_ok("after it settled");
    stage.upstream.history().assert_ordered();
}

#[test]
fn a_kept_connection_that_has_ended_is_replaced() {
    let stage =
        Stage::with(|config| config.upstream("pool", serde_json::json!({ "idle_timeout": "60s" })));
    let mut client = Connection::open(stage.http());
    for round in 1..=3 {
        client.send(write(2 * round, "goes away").whole());
        client
            .response()
            .assert_ok("the last write on a connection");
        client.send(write(2 * round + 1, "next").whole());
        client.response().assert_ok("the first on another");
        assert_eq!(stage.upstream.connections(), round + 1);
    }
    assert_eq!(stage.upstream.history().0.len(), 6, "each was sent once");
    stage.upstream.history().assert_ordered();
}

#[test]
fn an_upstream_that_does_not_speak_it_gets_nothing() {
    let recorder = Recorder::start();
    let gateway = Gateway::start(Config::new(&recorder.url()).upstream("http2", true));
    let answer = write(1, "").send(gateway.http);
    answer.assert_fenced(502, "upstream-unreachable", "it is no HTTP/2");
    assert_eq!(
        gateway.mark(KEY).as_deref(),
        Some("1"),
        "the mark is raised all the same"
    );

    // One that only listens.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let config = Config::new(&url)
        .upstream("http2", true)
        .upstream("connect_timeout", "300ms");
    let gateway = Gateway::start(config);
    let answer = write(1, "").send(gateway.http);
    answer.assert_fenced(502, "upstream-unreachable", "it says nothing");
}

// S14
#[test]
fn expect_is_passed_on() {
    let stage = Stage::new();
    stage.upstream.on("continues", |mut exchange| async move {
        exchange.respond.send_informational(response(100))?;
        exchange.read_body().await?;
        exchange.answer(200, "ok")
    });
    stage.upstream.on("declines", |mut exchange| async move {
        exchange.answer(413, "no")?;
        exchange.gone().await
    });
    let mut client = Connection::open(stage.http());
    client.send(
        write(1, "continues")
            .header("Expect", "100-continue")
            .head(4),
    );
    let head = client.head().unwrap();
    assert!(head.line.contains(" 100 "), "{head:?}");
    client.send("data");
    client.response().assert_ok("a write that expects");
    let mut client = Connection::open(stage.http());
    client.send(
        write(1, "declines")
            .header("Expect", "100-continue")
            .head(4),
    );
    let answer = client.response();
    assert_eq!((answer.status, answer.informational.len()), (413, 0));
}
