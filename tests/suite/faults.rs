//! The tests bite: each guarantee is broken on purpose, and the history tells.
//!
//! Every scenario passes without the fault and fails with it. Only a build with the feature
//! `faults` has them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{Config, Gate, Gateway, Recorder, Request, Stage, Token, eventually};

const KEY: &str = "objects/42";

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

fn stage(fault: Option<&'static str>, recorder: Recorder) -> Stage {
    let config = Config::new(&recorder.url()).upstream("connect_timeout", "20s");
    let gateway = Gateway::start_with_fault(config, fault);
    Stage { gateway, recorder }
}

/// Sends from a thread, whatever becomes of it.
fn send(stage: &Stage, request: Request) -> std::thread::JoinHandle<()> {
    let address = stage.http();
    std::thread::spawn(move || drop(request.try_send(address)))
}

/// What the history says: the rule that is broken, or nothing.
fn verdict(stage: &Stage) -> Option<&'static str> {
    stage.recorder.history().check().err().map(|violation| {
        println!("{violation}");
        violation.rule
    })
}

/// Waits until the newer write waits in its lane, or is let through.
fn waits_or_arrives(stage: &Stage, tag: &str) {
    let arrived = || !stage.recorder.history().tagged(tag).is_empty();
    eventually("the newer write waits or arrives", || {
        let waits = stage
            .gateway
            .key(KEY)
            .is_some_and(|view| view["waiting"] == 1);
        (waits || arrived()).then_some(())
    });
    // It may wait for its sync only, which is over when a later advance is durable.
    stage.raise("/objects/other", "1");
    for _ in 0..60 {
        if arrived() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn assert_bites(
    fault: &'static str,
    scenario: impl Fn(Option<&'static str>) -> Option<&'static str>,
) {
    assert_eq!(scenario(None), None, "without the fault nothing is broken");
    assert!(
        scenario(Some(fault)).is_some(),
        "{fault} breaks a guarantee, and the checker must see it"
    );
}

#[test]
fn no_drain_is_seen() {
    assert_bites("no-drain", |fault| {
        let stage = stage(fault, Recorder::start());
        let gate = stage.recorder.hold("older");
        let older = send(&stage, write(34, "older"));
        stage.recorder.received("older");
        let newer = send(&stage, write(35, "newer"));
        waits_or_arrives(&stage, "newer");
        gate.open();
        older.join().unwrap();
        newer.join().unwrap();
        verdict(&stage)
    });
}

#[test]
fn a_lane_that_is_released_when_the_client_leaves_is_seen() {
    assert_bites("release-on-leave", |fault| {
        let stage = stage(fault, Recorder::start());
        let gate = Gate::new();
        let opened = gate.clone();
        stage.recorder.on("older", move |exchange| {
            exchange.read_body()?;
            // The resource works on whether or not anybody waits for it.
            opened.wait();
            exchange.respond(200, "ok")
        });
        let mut older = crate::common::Connection::open(stage.http());
        older.send(write(34, "older").whole());
        stage.recorder.received("older");
        older.abort();
        // The gateway must have had the time to see that its client is gone.
        std::thread::sleep(Duration::from_millis(200));
        let newer = send(&stage, write(35, "newer"));
        waits_or_arrives(&stage, "newer");
        gate.open();
        newer.join().unwrap();
        verdict(&stage)
    });
}

#[test]
fn forgotten_marks_are_seen() {
    assert_bites("forget-marks", |fault| {
        let mut stage = stage(fault, Recorder::start());
        stage.raise("/objects/42", "34");
        stage.gateway.kill();
        stage.gateway.restart();
        send(&stage, write(33, "late")).join().unwrap();
        verdict(&stage)
    });
}

#[test]
fn a_key_that_was_draining_at_the_crash_and_is_not_held_is_seen() {
    assert_bites("no-draining-hold", |fault| {
        let mut stage = stage(fault, Recorder::start());
        stage.recorder.on("orphan", |exchange| {
            exchange.works_on(Duration::from_millis(600));
            exchange.read_body()?;
            exchange.never()
        });
        let orphan = send(&stage, write(33, "orphan"));
        stage.recorder.received("orphan");
        let draining = send(&stage, write(34, "draining"));
        stage.gateway.wait_mark(KEY, "34");
        stage.raise("/objects/other", "1");
        stage.gateway.kill();
        stage.gateway.restart();
        send(&stage, write(34, "again")).join().unwrap();
        orphan.join().unwrap();
        draining.join().unwrap();
        stage.recorder.ended("orphan");
        verdict(&stage)
    });
}

#[test]
fn a_request_that_is_not_compared_again_is_seen() {
    assert_bites("no-second-check", |fault| {
        let gate = Gate::new();
        let stage = stage(fault, Recorder::behind(&gate));
        stage.recorder.otherwise(|exchange| {
            exchange.read_body()?;
            exchange.work(Duration::from_millis(300));
            exchange.respond(200, "ok")
        });
        let older = send(&stage, write(34, "older"));
        stage.gateway.wait_mark(KEY, "34");
        // Connecting is tried after 0, 1 and 3 seconds. The newer one, half a second behind, is
        // the first to try when the resource begins to accept.
        std::thread::sleep(Duration::from_millis(500));
        let newer = send(&stage, write(35, "newer"));
        stage.gateway.wait_mark(KEY, "35");
        std::thread::sleep(Duration::from_millis(700));
        gate.open();
        older.join().unwrap();
        newer.join().unwrap();
        verdict(&stage)
    });
}

/// Many advances at once, then a kill: which forwarded token is above its mark?
fn forwarded_above_the_mark(fault: Option<&'static str>) -> Option<&'static str> {
    let mut stage = stage(fault, Recorder::start());
    let counter = Arc::new(AtomicU64::new(1));
    for _ in 0..8 {
        let stop = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..48)
            .map(|key| {
                let (counter, stop) = (Arc::clone(&counter), Arc::clone(&stop));
                let address = stage.http();
                std::thread::spawn(move || {
                    while stop.load(Ordering::SeqCst) == 0 {
                        let token = counter.fetch_add(1, Ordering::SeqCst);
                        let target = format!("/objects/{key}");
                        let Ok(stream) = std::net::TcpStream::connect(address) else {
                            return;
                        };
                        let mut client = crate::common::Connection::over(stream);
                        client.send(Request::put(&target).token(token).whole());
                        let _ = client.try_response("PUT");
                    }
                })
            })
            .collect();
        let enough = stage.recorder.count() + 300;
        eventually("advances reach the resource", || {
            (stage.recorder.count() >= enough).then_some(())
        });
        stage.gateway.kill();
        stop.store(1, Ordering::SeqCst);
        for writer in writers {
            writer.join().unwrap();
        }
        stage.gateway.restart();
        let history = stage.recorder.history();
        for path in history.keys() {
            let mark = stage.mark(path.trim_start_matches('/'));
            if mark.and_then(|mark| Token::parse(&mark)) < history.highest(&path) {
                return Some("G3");
            }
        }
    }
    None
}

#[test]
fn forwarding_before_the_sync_is_seen() {
    assert_bites("forward-before-sync", forwarded_above_the_mark);
}

#[test]
fn a_crash_after_which_nothing_is_held_is_seen() {
    assert_bites("no-crash-hold", |fault| {
        let mut stage = stage(fault, Recorder::start());
        stage.recorder.on("orphan", |exchange| {
            exchange.works_on(Duration::from_millis(900));
            exchange.read_body()?;
            exchange.never()
        });
        let orphan = send(&stage, write(33, "orphan"));
        stage.recorder.received("orphan");
        stage.gateway.kill();
        stage.gateway.restart();
        send(&stage, write(34, "newer")).join().unwrap();
        orphan.join().unwrap();
        stage.recorder.ended("orphan");
        verdict(&stage)
    });
}

#[test]
fn a_store_that_is_marked_clean_with_a_write_unsettled_is_seen() {
    assert_bites("clean-unsettled", |fault| {
        let recorder = Recorder::start();
        let config =
            Config::new(&recorder.url()).set("shutdown", serde_json::json!({ "timeout": "200ms" }));
        let gateway = Gateway::start_with_fault(config, fault);
        let mut stage = Stage { gateway, recorder };
        stage.recorder.on("stuck", |exchange| {
            exchange.works_on(Duration::from_millis(900));
            exchange.read_body()?;
            exchange.never()
        });
        let stuck = send(&stage, write(33, "stuck"));
        stage.recorder.received("stuck");
        assert!(stage.gateway.terminate().success());
        stage.gateway.restart();
        send(&stage, write(34, "newer")).join().unwrap();
        stuck.join().unwrap();
        stage.recorder.ended("stuck");
        verdict(&stage)
    });
}
