//! The drain: a newer token is forwarded only when every older write is known to have ended.

use std::time::{Duration, Instant};

use crate::common::{Config, Connection, Request, Stage, eventually};
use serde_json::json;

const KEY: &str = "objects/42";

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

/// Starts an upload that stalls when half of it is there.
fn stalled_upload(stage: &Stage, token: u64, tag: &str) -> Connection {
    let mut client = Connection::open(stage.http());
    client.send(write(token, tag).head(10)).send("older");
    stage.recorder.has_body(tag, 5);
    client
}

fn pause(stage: &Stage, cut: &str, next: &str) -> Duration {
    let cut = stage.recorder.broke(cut).broke.unwrap().at;
    let next = stage.recorder.arrived(next).began.at;
    next.saturating_duration_since(cut)
}

// C1
#[test]
fn an_upload_is_cut_by_a_newer_token_and_settles() {
    let stage = Stage::with(|config| config.settle("500ms"));
    stage.recorder.on("older", |exchange| {
        exchange.works_on(Duration::from_millis(200));
        exchange.read_body()?;
        exchange.respond(200, "ok")
    });
    let mut older = stalled_upload(&stage, 34, "older");
    let newer = write(35, "newer").spawn(stage.http());
    older
        .response()
        .assert_refused(409, "superseded", "unknown", "a cut request is told so");
    newer.join().unwrap().assert_ok("the newer write");
    assert!(
        pause(&stage, "older", "newer") >= Duration::from_millis(250),
        "the settle time passes between the cut and the newer write"
    );
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_write_that_was_sent_whole_is_waited_for() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let newer = write(35, "newer").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "35");
    stage.gateway.wait_key(KEY, "waiting", 1);
    stage.send(&write(34, "late")).assert_fenced(
        409,
        "stale-token",
        "from the raise on, older tokens are refused",
    );
    // Later in the log than the newer mark: it is not the sync that the newer write waits for.
    stage.raise("/objects/other", "1");
    assert!(stage.recorder.history().tagged("newer").is_empty());
    gate.open();
    older
        .join()
        .unwrap()
        .assert_ok("the older write ends in peace");
    newer.join().unwrap().assert_ok("the newer write follows");
    stage.recorder.history().assert_ordered();
}

#[test]
fn equal_tokens_wait_with_the_advance_and_run_side_by_side() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let newer: Vec<_> = (0..3)
        .map(|_| write(35, "newer").spawn(stage.http()))
        .collect();
    stage.gateway.wait_key(KEY, "waiting", 3);
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    for newer in newer {
        newer.join().unwrap().assert_ok("one of three equal tokens");
    }
    stage.recorder.history().assert_ordered();
}

#[test]
fn writes_with_one_token_are_in_flight_together() {
    let stage = Stage::new();
    let (first, second) = (stage.recorder.hold("first"), stage.recorder.hold("second"));
    let writes = [write(34, "first"), write(34, "second")].map(|write| write.spawn(stage.http()));
    stage.recorder.received("first");
    stage.recorder.received("second");
    first.open();
    second.open();
    for write in writes {
        write.join().unwrap().assert_ok("an equal token");
    }
}

#[test]
fn a_still_newer_token_refuses_those_that_waited_below_it() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let waiting = write(35, "waiting").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "35");
    let newest = write(36, "newest").spawn(stage.http());
    waiting
        .join()
        .unwrap()
        .assert_fenced(409, "stale-token", "overtaken while it waited");
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    newest.join().unwrap().assert_ok("the newest write");
    assert!(stage.recorder.history().tagged("waiting").is_empty());
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_full_queue_never_refuses_an_advance() {
    let stage = Stage::with(|config| config.set("limits.waiting_per_key", 2));
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let waiting: Vec<_> = (0..2)
        .map(|_| write(35, "35").spawn(stage.http()))
        .collect();
    stage.gateway.wait_key(KEY, "waiting", 2);
    let busy = stage.send(&write(35, "35"));
    busy.assert_fenced(503, "busy", "the queue is full");
    assert!(busy.header("retry-after").is_some(), "{busy:?}");
    let newest = write(36, "newest").spawn(stage.http());
    for waiting in waiting {
        waiting
            .join()
            .unwrap()
            .assert_fenced(409, "stale-token", "an advance empties the queue");
    }
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    newest.join().unwrap().assert_ok("the advance");
}

#[test]
fn the_client_of_a_waiting_request_can_go_away_and_the_mark_stays() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let mut waiting = Connection::open(stage.http());
    waiting.send(write(35, "waiting").whole());
    stage.gateway.wait_key(KEY, "waiting", 1);
    waiting.abort();
    stage.gateway.wait_key(KEY, "waiting", 0);
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    stage.gateway.wait_key(KEY, "in_flight", 0);
    assert_eq!(
        stage.mark(KEY).as_deref(),
        Some("35"),
        "the mark stays raised"
    );
    stage
        .send(&write(34, "late"))
        .assert_fenced(409, "stale-token", "the mark stays raised");
    assert!(
        stage.recorder.history().tagged("waiting").is_empty(),
        "who left the queue is not forwarded"
    );
}

#[test]
fn a_drain_that_takes_too_long_is_refused_and_the_older_write_runs_on() {
    let stage = Stage::with(|config| config.fence("drain", json!({ "timeout": "300ms" })));
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let start = Instant::now();
    let answer = stage.send(&write(35, "newer"));
    answer.assert_fenced(503, "draining", "the drain's time is up");
    assert!(
        start.elapsed() >= Duration::from_millis(250),
        "{:?}",
        start.elapsed()
    );
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    stage
        .send(&write(34, "late"))
        .assert_fenced(409, "stale-token", "the mark stays raised");
    gate.open();
    older.join().unwrap().assert_ok("the older write ran on");
    stage
        .send(&write(35, "again"))
        .assert_ok("tried again when it was over");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_drain_that_takes_too_long_can_cut() {
    let stage = Stage::with(|config| {
        config
            .settle("300ms")
            .fence("drain", json!({ "timeout": "300ms", "on_timeout": "cut" }))
    });
    stage.recorder.on("older", |exchange| {
        exchange.works_on(Duration::from_millis(100));
        exchange.read_body()?;
        exchange.never()
    });
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    stage
        .send(&write(35, "newer"))
        .assert_ok("after the cut and one settle more");
    let older = older.join().unwrap();
    older.assert_refused(409, "superseded", "unknown", "the older one was cut");
    assert!(pause(&stage, "older", "newer") >= Duration::from_millis(200));
    stage.recorder.history().assert_ordered();
}

#[test]
fn uploads_can_be_waited_for() {
    let stage = Stage::with(|config| config.fence("drain", json!({ "uploads": "wait" })));
    let mut older = stalled_upload(&stage, 34, "older");
    let newer = write(35, "newer").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "35");
    older.send("write");
    older.response().assert_ok("the upload was waited for");
    newer.join().unwrap().assert_ok("the newer write");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_response_that_has_begun_is_drained_to_its_end() {
    let stage = Stage::new();
    let gate = crate::common::Gate::new();
    let opened = gate.clone();
    stage.recorder.on("older", move |exchange| {
        exchange.read_body()?;
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")?;
        exchange.wait(&opened)?;
        exchange.end();
        exchange.send("done")?;
        Ok(crate::common::Next::KeepAlive)
    });
    let mut older = Connection::open(stage.http());
    older.send(write(34, "older").whole());
    older.head().unwrap();
    assert_eq!(older.take(4).unwrap(), b"half");
    let newer = write(35, "newer").spawn(stage.http());
    let arrived = || !stage.recorder.history().tagged("newer").is_empty();
    eventually("the newer write waits or arrives", || {
        let view = stage.gateway.key(KEY)?;
        (view["waiting"] == 1 || arrived()).then_some(())
    });
    // What it may have waited for is its sync; a later one of another key is durable after it.
    stage.raise("/objects/other", "1");
    assert!(!arrived(), "the older response is still to come to its end");
    gate.open();
    assert_eq!(
        older.take(4).unwrap(),
        b"done",
        "sent whole, so its response is waited for"
    );
    newer.join().unwrap().assert_ok("the newer write");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_client_that_reads_slowly_does_not_hold_the_drain() {
    let stage = Stage::new();
    stage.recorder.on("older", |exchange| {
        exchange.read_body()?;
        exchange.end();
        let body = "b".repeat(600 * 1024);
        exchange.respond(200, &body)
    });
    // It never reads; what the sockets do not take is read ahead by the gateway, up to 1 MiB.
    let mut slow = Connection::open(stage.http());
    slow.send(write(34, "older").whole());
    stage.recorder.ended("older");
    let start = Instant::now();
    stage.send(&write(35, "newer")).assert_ok("the newer write");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        slow.response().body.len(),
        600 * 1024,
        "and nothing of it is lost"
    );
}

#[test]
fn a_client_that_stops_reading_has_no_longer_than_its_upstream() {
    let stage = Stage::with(|config| {
        let config = config.settle("200ms").upstream("timeout", "1s");
        config.fence("drain", json!({ "timeout": "25s" }))
    });
    stage.recorder.on("older", |exchange| {
        exchange.read_body()?;
        // More than the gateway reads ahead and the sockets take.
        let body = "b".repeat(24 * 1024 * 1024);
        exchange.respond(200, &body)
    });
    let mut slow = Connection::open(stage.http());
    slow.send(write(34, "older").whole());
    stage.recorder.received("older");
    let newer = stage.send(&write(35, "newer"));
    newer.assert_ok("the newer write, once the older one's time is over");
    stage.recorder.ended("older");
    drop(slow);
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_read_holds_nobody_back() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("read");
    let read = Request::get("/objects/42").token(34).tag("read");
    let read = read.spawn(stage.http());
    stage.recorder.received("read");
    stage
        .send(&write(35, "newer"))
        .assert_ok("only writes are drained");
    gate.open();
    read.join().unwrap().assert_ok("the read");
}

#[test]
fn a_read_with_a_newer_token_drains_older_writes() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let read = Request::get("/objects/42").token(35).tag("read");
    let read = read.spawn(stage.http());
    stage.gateway.wait_mark(KEY, "35");
    assert!(stage.recorder.history().tagged("read").is_empty());
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    read.join()
        .unwrap()
        .assert_ok("the new holder reads what it wrote");
    stage.recorder.history().assert_ordered();
}

#[test]
fn keys_do_not_wait_for_each_other() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let newer = write(35, "newer").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "35");
    for token in 1..5 {
        stage.raise("/objects/other", &token.to_string());
    }
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    newer.join().unwrap().assert_ok("the newer write");
}

/// A resource that is slow to read, behind a gateway that has sent it all it can.
// C9
#[test]
fn bytes_in_the_send_buffer_are_discarded_by_a_cut() {
    let recorder = crate::common::Recorder::with_small_buffers();
    let gate = crate::common::Gate::new();
    let opened = gate.clone();
    recorder.on("older", move |exchange| {
        // Wakes after the settle time and reads whatever is there to be read.
        opened.wait();
        exchange.read_body()?;
        exchange.respond(200, "ok")
    });
    // A connection whose bytes nobody takes for `settle` is given up: longer than a busy machine makes this test wait.
    let stage = Stage::before(recorder, |config: Config| config.settle("2s"));
    let length = 256 * 1024;
    let mut older = Connection::open(stage.http());
    older
        .send(write(34, "older").head(length))
        .send(vec![b'x'; length / 2]);
    stage.recorder.arrived("older");
    eventually(
        "the gateway's kernel holds what the resource does not read",
        || (stage.recorder.unacknowledged() >= length as u64 / 4).then_some(()),
    );
    stage
        .send(&write(35, "newer"))
        .assert_ok("after the cut and its settle");
    let received = stage.recorder.bytes();
    gate.open();
    let older = stage.recorder.ended("older");
    assert_eq!(older.body_done, None, "it never gets the rest");
    let late = stage.recorder.bytes() - received;
    assert!(
        late < length as u64 / 4,
        "what sat in the gateway's send buffer is discarded, {late} bytes came late"
    );
}

// C9
#[test]
fn bytes_in_the_send_buffer_are_discarded_by_a_kill() {
    let recorder = crate::common::Recorder::with_small_buffers();
    let gate = crate::common::Gate::new();
    let opened = gate.clone();
    recorder.on("older", move |exchange| {
        opened.wait();
        exchange.read_body()?;
        exchange.respond(200, "ok")
    });
    let mut stage = Stage::before(recorder, |config: Config| config.settle("2s"));
    let length = 256 * 1024;
    let mut older = Connection::open(stage.http());
    older
        .send(write(34, "older").head(length))
        .send(vec![b'x'; length]);
    stage.recorder.arrived("older");
    eventually(
        "the gateway's kernel holds what the resource does not read",
        || (stage.recorder.unacknowledged() >= length as u64 / 4).then_some(()),
    );
    stage.gateway.kill();
    stage.gateway.restart();
    stage.send(&write(35, "newer")).assert_ok("after the hold");
    let received = stage.recorder.bytes();
    gate.open();
    let older = stage.recorder.ended("older");
    let late = stage.recorder.bytes() - received;
    assert_eq!(
        older.body_done, None,
        "it never gets the rest, {late} bytes came late"
    );
}

#[test]
fn a_still_newer_token_does_not_start_the_clock_anew() {
    let stage = Stage::with(|config| config.fence("drain", json!({ "timeout": "1s" })));
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    let start = Instant::now();
    let waiting = write(35, "waiting").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "35");
    std::thread::sleep(Duration::from_millis(600));
    let answer = stage.send(&write(36, "newest"));
    answer.assert_fenced(503, "draining", "the drain's time is up");
    assert!(
        start.elapsed() < Duration::from_millis(1500),
        "the clock runs from the first raise: {:?}",
        start.elapsed()
    );
    let waiting = waiting.join().unwrap();
    waiting.assert_fenced(409, "stale-token", "overtaken while it waited");
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    stage.recorder.history().assert_ordered();
}

#[test]
fn uploads_that_are_waited_for_are_cut_when_the_time_is_up() {
    let stage = Stage::with(|config| {
        config.settle("300ms").fence(
            "drain",
            json!({ "timeout": "300ms", "on_timeout": "cut", "uploads": "wait" }),
        )
    });
    let mut older = stalled_upload(&stage, 34, "older");
    let newer = write(35, "newer").spawn(stage.http());
    let older = older.response();
    older.assert_refused(409, "superseded", "unknown", "cut at the timeout");
    newer
        .join()
        .unwrap()
        .assert_ok("after the cut and one settle more");
    stage.recorder.history().assert_ordered();
}
