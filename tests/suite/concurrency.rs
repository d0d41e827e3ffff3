//! Races: whatever comes at once, the resource sees one order.

use std::time::{Duration, Instant};

use crate::common::{
    Config, Connection, Gate, Gateway, Recorder, Request, Signal, Stage, eventually,
};
use serde_json::json;

const KEY: &str = "objects/42";

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

// C2
#[test]
fn a_request_that_waited_for_a_connection_is_compared_again_before_it_is_sent() {
    let gate = Gate::new();
    let stage = Stage::before(Recorder::behind(&gate), |config| {
        config.upstream("connect_timeout", "20s")
    });
    let admitted = write(34, "admitted").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "34");
    stage.gateway.wait_key(KEY, "waiting", 0);
    let newer = write(35, "newer").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "35");
    gate.open();
    newer
        .join()
        .unwrap()
        .assert_ok("admitted but unsent holds nobody");
    admitted
        .join()
        .unwrap()
        .assert_fenced(409, "stale-token", "overtaken before its first byte");
    assert!(stage.recorder.history().tagged("admitted").is_empty());
    stage.recorder.history().assert_ordered();
}

// R19
#[test]
fn a_client_that_leaves_before_its_request_is_sent_leaves_its_mark_only() {
    let gate = Gate::new();
    let stage = Stage::before(Recorder::behind(&gate), |config| {
        config.settle("20s").upstream("connect_timeout", "20s")
    });
    let mut client = Connection::open(stage.http());
    client.send(write(34, "left").whole());
    stage.gateway.wait_mark(KEY, "34");
    client.abort();
    gate.open();
    stage
        .send(&write(35, "newer"))
        .assert_ok("not forwarded, so there is nothing to settle");
    stage.recorder.history().assert_ordered();
}

// C3
#[test]
fn advances_that_race_end_in_one_order() {
    let stage = Stage::new();
    for round in 0..30 {
        let base = round * 10 + 1;
        let racing: Vec<_> = (0..4)
            .map(|ahead| (base + ahead, write(base + ahead, "").spawn(stage.http())))
            .collect();
        for (token, racing) in racing {
            let answer = racing.join().unwrap();
            if token == base + 3 {
                answer.assert_ok("the newest of those that race");
            } else {
                assert!([200, 409].contains(&answer.status), "{answer:?}");
            }
        }
        stage
            .send(&write(base + 2, ""))
            .assert_fenced(409, "stale-token", "after a newer one");
    }
    stage.recorder.history().assert_ordered();
}

// C4
#[test]
fn many_advances_share_a_sync() {
    let stage = Stage::new();
    let before = stage
        .gateway
        .metric("fencegate_store_commit_seconds_count", &[]);
    let writes: Vec<_> = (0..200)
        .map(|key| {
            let write = Request::put(&format!("/objects/{key}")).token(1);
            write.spawn(stage.http())
        })
        .collect();
    for write in writes {
        write.join().unwrap().assert_ok("one of many advances");
    }
    let commits = stage
        .gateway
        .metric("fencegate_store_commit_seconds_count", &[])
        - before;
    assert!(
        (1.0..190.0).contains(&commits),
        "commits are grouped: {commits} of them for 200 advances"
    );
    assert!((stage.gateway.metric("fencegate_keys", &[]) - 200.0).abs() < 0.5);
}

// C5
#[test]
fn a_gateway_that_stood_still_lets_nothing_stale_through() {
    let stage = Stage::with(|config| config.settle("300ms"));
    stage.raise("/objects/42", "30");
    for round in 0..5 {
        let base = 100 * (round + 1);
        let mut older = Connection::open(stage.http());
        let tag = format!("older-{round}");
        older.send(write(base, &tag).head(8)).send("half");
        stage.recorder.has_body(&tag, 4);
        stage.gateway.signal(Signal::STOP);
        older.send("half");
        let racing: Vec<_> = [base + 2, base + 1, base, base + 2]
            .map(|token| write(token, "").spawn(stage.http()))
            .into();
        std::thread::sleep(Duration::from_millis(100));
        stage.gateway.signal(Signal::CONT);
        let _ = older.try_response("PUT");
        for racing in racing {
            racing.join().unwrap();
        }
    }
    stage.recorder.history().assert_ordered();
}

/// For how long the gateway stands still: `make soak` asks for a minute.
fn stop() -> Duration {
    let stop = std::env::var("FENCEGATE_STOP_MS").ok();
    Duration::from_millis(stop.map_or(200, |stop| stop.parse().unwrap()))
}

// C5
#[test]
fn what_was_unsent_while_the_gateway_stood_still_is_compared_again() {
    let gate = Gate::shut_for(stop());
    let stage = Stage::before(Recorder::behind(&gate), |config| {
        // The connection that it waits for must not be given up before the test lets it come.
        config.upstream("connect_timeout", "10m")
    });
    let mut unsent = Connection::open(stage.http());
    unsent.send(write(34, "unsent").whole());
    stage.gateway.wait_mark(KEY, "34");
    stage.gateway.wait_key(KEY, "waiting", 0);

    stage.gateway.signal(Signal::STOP);
    let stopped = Instant::now();
    let mut newer = Connection::open(stage.http());
    newer.send(write(35, "newer").whole());
    let other = Gateway::fails(Config::new(&stage.recorder.url()), &stage.gateway.store());
    let pid = stage.gateway.pid().to_string();
    assert!(
        other.errors.contains(&pid),
        "no other gateway takes its place: {other:?}"
    );
    std::thread::sleep(stop().saturating_sub(stopped.elapsed()));
    stage.gateway.signal(Signal::CONT);
    println!("stood still for {:.1} s", stopped.elapsed().as_secs_f32());

    stage.gateway.wait_mark(KEY, "35");
    gate.open();
    newer.response().assert_ok("the newer one");
    unsent
        .response()
        .assert_fenced(409, "stale-token", "overtaken before its first byte");
    assert!(stage.recorder.history().tagged("unsent").is_empty());
    stage.recorder.history().assert_ordered();
}

// C14
#[test]
fn cold_marks_that_are_read_while_newer_tokens_come_change_nothing() {
    let mut stage = Stage::new();
    let keys = 150;
    for key in 0..keys {
        stage.raise(&format!("/objects/{key}"), "33");
    }
    assert!(stage.gateway.terminate().success());
    stage.gateway.restart();
    let racing: Vec<_> = (0..keys)
        .flat_map(|key| {
            [33, 34, 33].map(|token| {
                let write = Request::put(&format!("/objects/{key}")).token(token);
                (token, write.spawn(stage.http()))
            })
        })
        .collect();
    for (token, racing) in racing {
        let answer = racing.join().unwrap();
        assert!(
            answer.status == 200 || (token == 33 && answer.status == 409),
            "{token}: {answer:?}"
        );
    }
    for key in 0..keys {
        stage
            .send(&Request::put(&format!("/objects/{key}")).token(33))
            .assert_fenced(409, "stale-token", "the mark is 34");
    }
    stage.recorder.history().assert_ordered();
}

// C8
#[test]
fn a_stop_drains_and_a_clean_restart_holds_nothing() {
    let mut stage = Stage::with(|config| config.settle("20s"));
    let gate = stage.recorder.hold("last");
    let last = write(34, "last").spawn(stage.http());
    stage.recorder.received("last");
    stage.gateway.signal(Signal::TERM);
    eventually("the gateway is not ready any more", || {
        let probe = std::net::TcpStream::connect(stage.gateway.admin).ok();
        let Some(probe) = probe else { return Some(()) };
        let mut probe = Connection::over(probe);
        probe.send("GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        let ready = probe
            .try_response("GET")
            .is_ok_and(|answer| answer.status == 200);
        (!ready).then_some(())
    });
    gate.open();
    last.join()
        .unwrap()
        .assert_ok("what is in flight is drained");
    assert_eq!(
        stage.gateway.wait().code(),
        Some(0),
        "a drained stop is a success"
    );
    stage.gateway.restart();
    let start = Instant::now();
    stage
        .send(&write(35, "next"))
        .assert_ok("after a clean stop");
    assert!(start.elapsed() < Duration::from_secs(10), "nothing is held");
    stage.recorder.history().assert_ordered();
}

// C8
#[test]
fn a_stop_cuts_what_lasts_too_long_waits_for_its_settle_and_is_clean() {
    let mut stage = Stage::with(|config| {
        config
            .settle("700ms")
            .set("shutdown", json!({ "timeout": "200ms" }))
    });
    stage.recorder.on("stuck", |exchange| {
        exchange.works_on(Duration::from_millis(200));
        exchange.read_body()?;
        exchange.never()
    });
    let stuck = write(34, "stuck").spawn(stage.http());
    stage.recorder.received("stuck");
    let status = stage.gateway.terminate();
    let ended = Instant::now();
    let broke = stage.recorder.broke("stuck").broke.unwrap().at;
    assert_eq!(status.code(), Some(0), "{}", stage.gateway.errors());
    assert!(
        ended.duration_since(broke) >= Duration::from_millis(500),
        "the stop waits for what is unsettled"
    );
    drop(stuck.join());
    stage
        .gateway
        .restart_as(Config::new(&stage.recorder.url()).settle("20s"));
    let start = Instant::now();
    stage
        .send(&write(35, "next"))
        .assert_ok("the store was left clean");
    assert!(start.elapsed() < Duration::from_secs(10), "nothing is held");
    stage.recorder.history().assert_ordered();
}

// C8
#[test]
fn a_second_sigterm_leaves_the_store_unclean_and_holds_apply() {
    let mut stage = Stage::with(|config| config.settle("1s"));
    stage.recorder.on("stuck", |exchange| {
        exchange.works_on(Duration::from_millis(400));
        exchange.read_body()?;
        exchange.never()
    });
    let stuck = write(34, "stuck");
    let address = stage.http();
    let stuck = std::thread::spawn(move || drop(stuck.try_send(address)));
    stage.recorder.received("stuck");
    stage.gateway.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(200));
    stage.gateway.signal(Signal::TERM);
    assert_eq!(
        stage.gateway.wait().code(),
        Some(1),
        "a second SIGTERM skips the waits"
    );
    stuck.join().unwrap();
    let start = Instant::now();
    stage.gateway.restart();
    stage.send(&write(35, "next")).assert_ok("after the hold");
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "an advance on a key with a mark is held for the settle time: {:?}",
        start.elapsed()
    );
    stage.recorder.history().assert_ordered();
}

// C7
#[test]
fn after_a_crash_a_key_that_was_draining_holds_even_an_equal_token() {
    let mut stage = Stage::with(|config| config.settle("1s"));
    stage.recorder.on("orphan", |exchange| {
        exchange.works_on(Duration::from_millis(500));
        exchange.read_body()?;
        exchange.never()
    });
    let address = stage.http();
    let send = |request: Request| std::thread::spawn(move || drop(request.try_send(address)));
    let orphan = send(write(33, "orphan"));
    stage.recorder.received("orphan");
    let draining = send(write(34, "draining"));
    stage.gateway.wait_mark(KEY, "34");
    // The view may show the mark before it is durable; it is when another key's later one is.
    stage.raise("/objects/other", "1");
    stage.gateway.kill();
    orphan.join().unwrap();
    draining.join().unwrap();
    let start = Instant::now();
    stage.gateway.restart();
    stage.send(&write(34, "again")).assert_ok("after the hold");
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "the orphan may still run: {:?}",
        start.elapsed()
    );
    stage.recorder.history().assert_ordered();
}

#[test]
fn after_a_crash_only_what_may_have_an_orphan_is_held() {
    let mut stage = Stage::with(|config| {
        config
            .settle("20s")
            .fence("drain", json!({ "timeout": "300ms" }))
    });
    stage.raise("/objects/42", "33");
    stage.raise("/objects/42", "34");
    stage.gateway.kill();
    stage.gateway.restart();
    stage
        .send(&write(34, "equal"))
        .assert_ok("an equal token on a key that was not draining");
    stage.raise("/objects/new", "1");
    stage.send(&write(33, "stale")).assert_fenced(
        409,
        "stale-token",
        "the mark outlived the crash",
    );
    let answer = stage.send(&write(35, "advance"));
    answer.assert_fenced(503, "settling", "an advance on a key that has a mark");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

#[test]
fn a_gateway_that_stops_refuses_what_still_waits() {
    let mut stage = Stage::with(|config| {
        config
            .settle("300ms")
            .set("shutdown", json!({ "timeout": "500ms" }))
    });
    let gate = stage.recorder.hold("older");
    let mut older = Connection::open(stage.http());
    older.send(write(34, "older").whole());
    stage.recorder.received("older");
    let mut waiting = Connection::open(stage.http());
    waiting.send(write(35, "waiting").whole());
    stage.gateway.wait_key(KEY, "waiting", 1);
    stage.gateway.signal(Signal::TERM);
    let answer = waiting
        .try_response("PUT")
        .expect("who waits is told that nothing happened, not just hung up on");
    assert_eq!(
        answer.status, 503,
        "it can't be forwarded any more: {answer:?}"
    );
    assert_eq!(answer.header("fencing-outcome"), Some("not-forwarded"));
    gate.open();
    drop(older);
    assert_eq!(stage.gateway.wait().code(), Some(0));
    assert!(stage.recorder.history().tagged("waiting").is_empty());
}
