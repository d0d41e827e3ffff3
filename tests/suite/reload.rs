//! Another config while the gateway runs: whole or not at all, and never open in between.

use std::time::{Duration, Instant};

use crate::common::{Config, Gateway, Request, Signal, Stage, eventually};
use serde_json::json;

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

fn reloads(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric("fencegate_config_reloads_total", &[result])
}

/// Puts a config in the place of the one in force and asks for it to be read.
fn reload(stage: &mut Stage, config: Config) {
    stage.gateway.rewrite(config);
    stage.gateway.signal(Signal::HUP);
}

fn wait_for_reload(stage: &Stage, result: &str, before: f64) {
    eventually(&format!("a reload that is {result}"), || {
        (reloads(&stage.gateway, result) > before + 0.5).then_some(())
    });
}

#[test]
fn routes_and_limits_change_without_a_restart() {
    let mut stage = Stage::at_34();
    let config = Config::new(&stage.recorder.url())
        .fence("refuse_status", 412)
        .set("limits.body", "1KiB")
        .route(json!({
            "name": "more", "path": "/more/{id}", "upstream": "objects", "fence": { "key": "{id}" },
        }));
    let before = reloads(&stage.gateway, "ok");
    reload(&mut stage, config);
    wait_for_reload(&stage, "ok", before);
    stage
        .send(&write(33, ""))
        .assert_fenced(412, "stale-token", "the new status, the old mark");
    stage
        .send(&write(34, "").body(vec![0; 2048]))
        .assert_fenced(413, "body-too-large", "the new limit");
    stage.raise("/more/1", "1");
}

#[test]
fn a_changed_file_is_read_without_a_signal() {
    let mut stage = Stage::at_34();
    let before = reloads(&stage.gateway, "ok");
    let config = Config::new(&stage.recorder.url()).fence("refuse_status", 423);
    stage.gateway.rewrite(config);
    wait_for_reload(&stage, "ok", before);
    stage
        .send(&write(33, ""))
        .assert_fenced(423, "stale-token", "the new status");
}

// A10
#[test]
fn a_bad_file_changes_nothing_and_is_reported() {
    let mut stage = Stage::at_34();
    let good = Config::new(&stage.recorder.url());
    for bad in [
        good.clone().set("routes.0.unknown", true),
        good.clone().routes(json!([])),
        good.set("routes.0.upstream", "elsewhere"),
    ] {
        let before = reloads(&stage.gateway, "failed");
        reload(&mut stage, bad);
        wait_for_reload(&stage, "failed", before);
        stage
            .send(&write(33, ""))
            .assert_fenced(409, "stale-token", "the old config stays");
        stage.send(&write(34, "")).assert_ok("the old config stays");
    }
    stage.gateway.says("not reloaded");
}

#[test]
fn what_can_not_be_reloaded_says_so() {
    let mut stage = Stage::at_34();
    let good = Config::new(&stage.recorder.url());
    reload(&mut stage, good.set("listeners.0.address", "127.0.0.1:1"));
    stage.gateway.says("restart to change it");
    stage
        .send(&write(33, ""))
        .assert_fenced(409, "stale-token", "the address stays");
}

// C13
#[test]
fn other_rules_for_known_marks_are_refused_without_rekey() {
    let mut stage = Stage::at_34();
    let good = Config::new(&stage.recorder.url());
    for other in [
        good.clone().fence("key", "v2-{id}"),
        good.clone().fence("case", "insensitive"),
        good.clone().fence("path", "opaque"),
        good.clone().fence("mode", "observe"),
        good.clone().fence("require", "never"),
        good.fence("safe_methods", json!(["GET", "PUT"])),
    ] {
        let before = reloads(&stage.gateway, "failed");
        reload(&mut stage, other);
        wait_for_reload(&stage, "failed", before);
        stage
            .send(&write(33, ""))
            .assert_fenced(409, "stale-token", "the old rules stay");
        stage.send(&Request::put("/objects/42")).assert_fenced(
            428,
            "token-required",
            "the old rules stay",
        );
    }
    stage.gateway.says("rekey");
}

// C13
#[test]
fn other_rules_apply_once_what_was_forwarded_under_the_old_ones_has_ended() {
    let mut stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(33, "older").spawn(stage.http());
    stage.recorder.received("older");
    // Under the new rules the same resource has another key, without a mark.
    let other = Config::new(&stage.recorder.url())
        .fence("key", "v2-{id}")
        .set("routes.0.rekey", true);
    let before = reloads(&stage.gateway, "ok");
    reload(&mut stage, other);
    let probe = Request::get("/objects/probe");
    eventually("the route is closed, or the reload is done", || {
        let closed = stage.send(&probe).status == 503;
        (closed || reloads(&stage.gateway, "ok") > before + 0.5).then_some(())
    });
    let newer = stage.send(&write(34, "newer"));
    newer.assert_fenced(503, "draining", "told to come again");
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    wait_for_reload(&stage, "ok", before);
    stage
        .send(&write(35, "newest"))
        .assert_ok("under the new rules");
    assert_eq!(stage.mark("objects/v2-42").as_deref(), Some("35"));
    stage.recorder.history().assert_ordered();
}

// C13
#[test]
fn other_rules_apply_once_an_unknown_outcome_has_settled() {
    let mut stage = Stage::with(|config| config.settle("1s"));
    stage.recorder.on("older", |exchange| {
        exchange.works_on(Duration::from_millis(500));
        exchange.read_body()?;
        exchange.never()
    });
    let mut client = crate::common::Connection::open(stage.http());
    client.send(write(33, "older").head(100)).send("half");
    stage.recorder.has_body("older", 4);
    client.abort();
    stage.recorder.broke("older");
    let other = Config::new(&stage.recorder.url())
        .settle("1s")
        .fence("key", "v2-{id}")
        .set("routes.0.rekey", true);
    reload(&mut stage, other);
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    let newer = stage.send(&write(34, "newer"));
    if newer.status != 200 {
        newer.assert_fenced(503, "draining", "held, or told to come again");
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    stage.recorder.ended("older");
    stage.recorder.history().assert_ordered();
}

// C13
#[test]
fn requests_during_a_reload_are_fenced_by_the_old_rules_or_by_the_new() {
    let mut stage = Stage::with(|config| config.settle("200ms"));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..6_u64)
        .map(|writer| {
            let (stop, address) = (std::sync::Arc::clone(&stop), stage.http());
            std::thread::spawn(move || {
                let mut token = 1 + writer;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    drop(write(token, "").try_send(address));
                    token += 5;
                }
            })
        })
        .collect();
    for round in 0..6 {
        let config = Config::new(&stage.recorder.url())
            .settle("200ms")
            .fence("key", format!("r{}-{{id}}", round % 2))
            .set("routes.0.rekey", true);
        let before = reloads(&stage.gateway, "ok");
        reload(&mut stage, config);
        wait_for_reload(&stage, "ok", before);
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    for writer in writers {
        writer.join().unwrap();
    }
    // A key without a mark takes lower tokens again: only overlaps are forbidden here.
    let history = stage.recorder.history();
    for older in &history.0 {
        for newer in &history.0 {
            let overlap = older.began < newer.began && older.ended > Some(newer.began);
            assert!(
                !overlap || older.token == newer.token,
                "two tokens at once across a change of rules:\n{older:?}\n{newer:?}"
            );
        }
    }
}

#[test]
fn a_route_that_shares_no_path_is_added_while_requests_are_in_flight() {
    let mut stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(33, "older").spawn(stage.http());
    stage.recorder.received("older");
    let mut config = Config::new(&stage.recorder.url());
    for require in ["never", "writes"] {
        config = config.route(json!({
            "name": require, "path": format!("/{require}/{{*id}}"), "upstream": "objects",
            "fence": { "require": require },
        }));
        let before = reloads(&stage.gateway, "ok");
        reload(&mut stage, config.clone());
        eventually("the reload is done, and no route was closed", || {
            stage
                .send(&Request::put("/objects/other").token(1))
                .assert_ok("a write on another key");
            (reloads(&stage.gateway, "ok") > before + 0.5).then_some(())
        });
        stage
            .send(&Request::put(&format!("/{require}/1")).token(1))
            .assert_ok("on the new route");
    }
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    stage.recorder.history().assert_ordered();
}

// C13
#[test]
fn a_route_that_may_take_others_requests_is_added_once_those_have_ended() {
    let mut stage = Stage::new();
    let gate = stage.recorder.hold("older");
    let older = write(33, "older").spawn(stage.http());
    stage.recorder.received("older");
    let config = Config::new(&stage.recorder.url()).route(json!({
        "name": "another", "path": "/objects/{id}", "methods": ["DELETE"], "upstream": "objects",
    }));
    let before = reloads(&stage.gateway, "ok");
    reload(&mut stage, config);
    let probe = Request::get("/objects/probe");
    eventually("the route is closed, or the reload is done", || {
        let closed = stage.send(&probe).status == 503;
        (closed || reloads(&stage.gateway, "ok") > before + 0.5).then_some(())
    });
    let newer = Request::new("DELETE", "/objects/42").token(34).tag("newer");
    stage
        .send(&newer)
        .assert_fenced(503, "draining", "not while the older write is in flight");
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    wait_for_reload(&stage, "ok", before);
    stage.send(&newer).assert_ok("by the new route");
    stage.recorder.history().assert_ordered();
}

fn rekeyed(stage: &Stage) -> Config {
    Config::new(&stage.recorder.url())
        .settle("300ms")
        .fence("key", "v2-{id}")
        .set("routes.0.rekey", true)
}

// C13
#[test]
fn a_tunnel_does_not_hold_up_other_rules() {
    let mut stage = Stage::with(|config| config.settle("300ms"));
    stage.recorder.on("tunnel", |exchange| {
        exchange.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )?;
        exchange.receive()?;
        exchange.never()
    });
    let mut client = crate::common::Connection::open(stage.http());
    let upgrade = Request::get("/objects/42").tag("tunnel").token(33);
    let upgrade = upgrade.header("Connection", "Upgrade");
    client.send(upgrade.header("Upgrade", "websocket").whole());
    client.head().unwrap();
    let before = reloads(&stage.gateway, "ok");
    let other = rekeyed(&stage);
    reload(&mut stage, other);
    stage.recorder.broke("tunnel");
    wait_for_reload(&stage, "ok", before);
    stage
        .send(&write(34, "newer"))
        .assert_ok("under the new rules");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_change_of_rules_can_be_taken_back_while_it_waits() {
    let mut stage = Stage::with(|config| config.settle("300ms"));
    let gate = stage.recorder.hold("older");
    let older = write(33, "older").spawn(stage.http());
    stage.recorder.received("older");
    let other = rekeyed(&stage);
    reload(&mut stage, other);
    let probe = Request::get("/objects/probe");
    eventually("the route is closed", || {
        (stage.send(&probe).status == 503).then_some(())
    });
    let before = reloads(&stage.gateway, "ok");
    let good = Config::new(&stage.recorder.url()).settle("300ms");
    stage.gateway.rewrite(good);
    wait_for_reload(&stage, "ok", before);
    stage.send(&probe).assert_ok("open again");
    gate.open();
    older.join().unwrap().assert_ok("the older write");
    stage
        .send(&write(32, "stale"))
        .assert_fenced(409, "stale-token", "by the rules of before");
}
