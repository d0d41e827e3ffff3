//! Marks that are forgotten (`store.forget`), and what stands for them, over real sockets.

use crate::common::{Config, Dice, Request, Response, Stage, eventually};
use serde_json::json;

/// Keys that are not used for so long are forgotten, some seconds later.
fn forgetful(config: Config, after: &str) -> Config {
    config.settle("100ms").set(
        "store.forget",
        json!({ "namespaces": ["objects"], "after": after }),
    )
}

fn stage(after: &str) -> Stage {
    Stage::with(|config| forgetful(config, after))
}

fn put(stage: &Stage, key: &str, token: u64) -> Response {
    stage.send(&Request::put(&format!("/objects/{key}")).token(token))
}

fn forgotten(stage: &Stage, key: &str) {
    eventually("the key is forgotten", || {
        stage
            .mark(&format!("objects/{key}"))
            .is_none()
            .then_some(())
    });
}

/// Asserts that a write is refused by a floor above `token`; gives the floor.
fn floor_above(stage: &Stage, key: &str, token: u64) -> u64 {
    let refused = put(stage, key, token);
    refused.assert_fenced(409, "stale-token", "forgotten, and below the floor");
    let floor = refused.json()["mark"].as_str().unwrap().parse().unwrap();
    assert!(floor > token, "{floor}");
    floor
}

#[test]
fn a_forgotten_key_is_fenced_by_the_floor_over_crashes_and_restarts() {
    let mut stage = stage("1s");
    for key in 1..=20 {
        put(&stage, &key.to_string(), 100 + key).assert_ok("the write that raises the mark");
    }
    for key in 1..=20 {
        forgotten(&stage, &key.to_string());
    }
    eventually("they are counted no more", || {
        (stage.gateway.metric("fencegate_keys", &[]) == 0.0).then_some(())
    });
    for clean in [false, true, false] {
        assert_eq!(floor_above(&stage, "7", 107), 121);
        assert_eq!(floor_above(&stage, "20", 120), 121);
        assert_eq!(floor_above(&stage, "never-seen", 1), 121);
        if clean {
            assert!(stage.gateway.terminate().success());
        } else {
            stage.gateway.kill();
        }
        stage.gateway.restart();
    }
    put(&stage, "7", 121).assert_ok("the floor stands for the mark, and this is equal to it");
    floor_above(&stage, "8", 120);
    // Nothing is forgotten any more, and the floor stays.
    let config = Config::new(&stage.recorder.url()).settle("100ms");
    stage.gateway.kill();
    stage.gateway.restart_as(config);
    floor_above(&stage, "8", 120);
    stage.recorder.history().assert_ordered();
}

#[test]
fn what_is_in_flight_or_used_is_never_forgotten() {
    let stage = stage("4s");
    let gate = stage.recorder.hold("long");
    let long = Request::put("/objects/long").token(50).tag("long");
    let long = long.spawn(stage.http());
    stage.recorder.arrived("long");
    put(&stage, "used", 51).assert_ok("the write that raises the mark");
    put(&stage, "idle", 70).assert_ok("the write that raises the mark");
    // Only equal tokens: they commit nothing by themselves.
    eventually("what is idle is forgotten", || {
        put(&stage, "used", 51).assert_ok("it is in use");
        stage.mark("objects/idle").is_none().then_some(())
    });
    assert_eq!(floor_above(&stage, "idle", 70), 71);
    gate.open();
    long.join()
        .unwrap()
        .assert_ok("its mark is still what it was");
    put(&stage, "long", 50).assert_ok("its mark is still what it was");
    put(&stage, "used", 51).assert_ok("its mark is still what it was");
    assert_eq!(stage.mark("objects/long").as_deref(), Some("50"));
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_key_with_a_lease_is_never_forgotten_and_grants_begin_above_the_floor() {
    let mut stage =
        Stage::with(|config| forgetful(config, "1s").set("locks.address", "127.0.0.1:0"));
    put(&stage, "other", 70).assert_ok("the write that raises the mark");
    let acquire = |stage: &Stage, key: &str, ttl_ms: u64| {
        let body = json!({ "holder": "pod", "ttl_ms": ttl_ms, "wait_ms": 0 });
        let call = stage.gateway.lock_call(key, "acquire", &body);
        let answer = call.send(stage.gateway.locks());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["token"].as_str().unwrap().to_owned()
    };
    assert_eq!(acquire(&stage, "objects/leased", 3_600_000), "1");
    forgotten(&stage, "other");
    // The lease comes back with the process, for its whole time, and nobody asks for it.
    stage.gateway.kill();
    stage.gateway.restart();
    put(&stage, "later", 90).assert_ok("the write that raises the mark");
    forgotten(&stage, "later");
    assert_eq!(stage.mark("objects/leased").as_deref(), Some("1"));
    put(&stage, "leased", 1).assert_ok("its lease and its mark are what they were");
    assert_eq!(acquire(&stage, "objects/new", 3_600_000), "92");
    assert_eq!(acquire(&stage, "objects/other", 3_600_000), "92");
    stage.recorder.history().assert_ordered();
}

#[test]
fn no_kill_brings_a_stale_token_back_while_marks_are_forgotten() {
    let mut stage = stage("1s");
    let mut dice = Dice::new(7);
    let (mut token, mut newest) = (1, std::collections::BTreeMap::new());
    for round in 0..5 {
        for _ in 0..40 {
            token += 1;
            let key = format!("key-{}", dice.below(60));
            put(&stage, &key, token).assert_ok("the newest of all");
            newest.insert(key, token);
        }
        if round % 2 == 0 {
            let key = newest.keys().next().unwrap().clone();
            forgotten(&stage, &key);
        }
        stage.gateway.kill();
        stage.gateway.restart();
        for (key, newest) in &newest {
            put(&stage, key, newest - 1).assert_fenced(409, "stale-token", "after a crash");
        }
    }
    stage.recorder.history().assert_ordered();
}
