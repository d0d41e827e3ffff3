//! Clocks that must not run: whoever waits for somebody else is not slow.

use std::time::Duration;

use crate::common::{Connection, Next, Recorder, Request, Stage};

const SHORT: &str = "400ms";
const LONGER: Duration = Duration::from_millis(1000);

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

#[test]
fn a_body_that_waits_for_a_drain_is_not_slow() {
    let stage = Stage::with(|config| config.set("timeouts.body", SHORT));
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let newer = write(35, "newer").body(vec![b'x'; 8 << 20]);
    let newer = newer.spawn(stage.http());
    stage.gateway.wait_key("objects/42", "waiting", 1);
    std::thread::sleep(LONGER);
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    newer
        .join()
        .unwrap()
        .assert_ok("nobody read its body while it waited");
    assert_eq!(stage.recorder.ended("newer").body.len(), 8 << 20);
}

#[test]
fn a_body_that_waits_for_the_upstream_is_not_slow() {
    let stage = Stage::before(Recorder::with_small_buffers(), |config| {
        config.set("timeouts.body", SHORT)
    });
    stage.recorder.on("slow", |exchange| {
        exchange.work(LONGER);
        exchange.read_body()?;
        exchange.respond(200, "ok")
    });
    stage
        .send(&write(34, "slow").body(vec![b'x'; 8 << 20]))
        .assert_ok("the upstream is slow, not the client");
}

#[test]
fn the_upstreams_time_begins_with_the_requests_last_byte() {
    let stage = Stage::with(|config| config.upstream("timeout", SHORT));
    let mut client = Connection::open(stage.http());
    client.send(write(34, "upload").head(10));
    for _ in 0..10 {
        client.send("x");
        std::thread::sleep(Duration::from_millis(100));
    }
    client
        .response()
        .assert_ok("an upload that lasts longer than the upstream may take to answer");
}

#[test]
fn the_upstreams_time_is_between_two_reads_of_its_response() {
    let stage = Stage::with(|config| config.upstream("timeout", SHORT));
    stage.recorder.on("slow", |exchange| {
        exchange.read_body()?;
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")?;
        for _ in 0..9 {
            exchange.send("x")?;
            exchange.work(Duration::from_millis(100));
        }
        exchange.end();
        exchange.send("x")?;
        Ok(Next::KeepAlive)
    });
    let answer = stage.send(&write(34, "slow"));
    assert_eq!(
        (answer.body.len(), answer.broken),
        (10, None),
        "slow but moving"
    );
}

#[test]
fn a_response_that_stalls_is_cut_and_unknown() {
    let stage = Stage::with(|config| config.settle("500ms").upstream("timeout", SHORT));
    stage.recorder.on("stalls", |exchange| {
        exchange.read_body()?;
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
        exchange.never()
    });
    let answer = stage.send(&write(34, "stalls"));
    assert!(
        answer.broken.is_some(),
        "half a response is never made to look whole"
    );
    stage.send(&write(35, "newer")).assert_ok("the newer write");
    let broke = stage.recorder.broke("stalls").broke.unwrap().at;
    let newer = stage.recorder.arrived("newer").began.at;
    assert!(
        newer.duration_since(broke) >= Duration::from_millis(250),
        "it settles"
    );
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_connection_that_waits_for_its_response_is_not_idle() {
    let stage = Stage::with(|config| {
        config
            .set("timeouts.idle", SHORT)
            .set("timeouts.header", SHORT)
            .set("timeouts.body", SHORT)
    });
    let gate = stage.recorder.hold("slow");
    let slow = write(34, "slow").spawn(stage.http());
    stage.recorder.received("slow");
    std::thread::sleep(LONGER);
    gate.open();
    slow.join().unwrap().assert_ok("the upstream took its time");
}

#[test]
fn the_time_for_a_header_begins_with_its_first_byte() {
    let stage = Stage::with(|config| config.set("timeouts.header", SHORT));
    let mut client = Connection::open(stage.http());
    for token in 1..3 {
        client.send(write(token, "").whole());
        client
            .response()
            .assert_ok("between requests a connection idles, by another clock");
        std::thread::sleep(LONGER);
    }
}

#[test]
fn a_response_that_ends_with_its_connection_is_completed() {
    let stage = Stage::with(|config| config.settle("20s"));
    for head in [
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    ] {
        let tag = head.len().to_string();
        stage.recorder.on(&tag, move |exchange| {
            exchange.read_body()?;
            exchange.end();
            exchange.send(format!("{head}all of it"))?;
            Ok(Next::Close)
        });
        let answer = stage.send(&write(34, &tag));
        assert_eq!((answer.text().as_str(), answer.broken), ("all of it", None));
        let view = stage.gateway.key("objects/42").unwrap();
        assert_eq!(view["unsettled"], 0, "received whole: {view}");
    }
}

#[test]
fn a_header_just_below_the_limit_is_forwarded() {
    let stage = Stage::new();
    let long = "v".repeat(60 * 1024);
    let request = write(34, "").header("X-Long", &long);
    stage
        .send(&request)
        .assert_ok("60 KiB where 64 KiB are allowed");
    assert_eq!(stage.recorder.last().header("x-long"), Some(long.as_str()));
}
