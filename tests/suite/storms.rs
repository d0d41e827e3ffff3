//! Many writers, some of whom misbehave, under every way to drain: the history stays ordered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{Config, Request, Signal, Stage, Storm, eventually, weather};
use serde_json::json;

/// Lets a storm rage until `writes` have reached the resource, and asserts what must be true after.
fn ride(seed: u64, writes: usize, change: impl FnOnce(Config) -> Config) {
    let stage = Stage::with(|config| change(config.settle("300ms")));
    weather(&stage.recorder);
    let counter = Arc::new(AtomicU64::new(1));
    let storm = Storm::start(stage.http(), 16, 3, &counter, seed);
    eventually("enough writes reach the resource", || {
        (stage.recorder.count() >= writes).then_some(())
    });
    storm.stop();
    stage.recorder.history().assert_ordered();
    for key in ["objects/0", "objects/1", "objects/2"] {
        // What is still in flight or unsettled ends by itself, and nothing is wedged.
        let token = counter.load(Ordering::SeqCst) + 10;
        let request = Request::put(&format!("/{key}")).token(token);
        eventually("an advance after the storm", || {
            (stage.send(&request).status == 200).then_some(())
        });
        for field in ["in_flight", "waiting", "unsettled"] {
            stage.gateway.wait_key(key, field, 0);
        }
    }
    stage.recorder.history().assert_ordered();
}

// C3
#[test]
fn as_configured_by_default() {
    ride(7, 400, |config| config);
}

#[test]
fn with_drains_that_cut_soon() {
    ride(8, 250, |config| {
        let drain = json!({ "timeout": "100ms", "on_timeout": "cut" });
        config.fence("drain", drain)
    });
}

#[test]
fn with_drains_that_give_up_soon() {
    ride(9, 250, |config| {
        config.fence("drain", json!({ "timeout": "100ms" }))
    });
}

#[test]
fn with_uploads_that_are_waited_for() {
    ride(10, 250, |config| {
        config.fence("drain", json!({ "uploads": "wait" }))
    });
}

#[test]
fn with_bodies_that_are_received_whole_first() {
    ride(11, 400, |config| {
        config.fence("body", "spool").set("limits.body", "1MiB")
    });
}

#[test]
fn with_holders_bound() {
    ride(12, 400, |config| config.fence("holder", "bind"));
}

#[test]
fn with_few_connections_to_the_upstream_kept() {
    ride(13, 400, |config| {
        config.upstream("pool", json!({ "max_idle": 1, "idle_timeout": "10ms" }))
    });
}

#[test]
fn with_a_short_queue() {
    ride(14, 300, |config| config.set("limits.waiting_per_key", 2));
}

// C5
#[test]
fn with_a_gateway_that_stands_still_now_and_then() {
    let stage = Stage::with(|config| config.settle("300ms"));
    weather(&stage.recorder);
    let counter = Arc::new(AtomicU64::new(1));
    let storm = Storm::start(stage.http(), 12, 2, &counter, 15);
    for _ in 0..10 {
        let enough = stage.recorder.count() + 15;
        eventually("some writes reach the resource", || {
            (stage.recorder.count() >= enough).then_some(())
        });
        stage.gateway.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(60));
        stage.gateway.signal(Signal::CONT);
    }
    storm.stop();
    stage.recorder.history().assert_ordered();
}

// C8
#[test]
fn with_a_gateway_that_is_restarted_in_order() {
    let mut stage = Stage::with(|config| {
        config
            .settle("300ms")
            .set("shutdown", json!({ "timeout": "100ms" }))
    });
    weather(&stage.recorder);
    let counter = Arc::new(AtomicU64::new(1));
    for round in 0..5 {
        let storm = Storm::start(stage.http(), 12, 3, &counter, 20 + round);
        let enough = stage.recorder.count() + 40;
        eventually("some writes reach the resource", || {
            (stage.recorder.count() >= enough).then_some(())
        });
        assert_eq!(stage.gateway.terminate().code(), Some(0));
        storm.stop();
        stage.gateway.restart();
        stage.assert_marks_hold();
    }
    stage.recorder.history().assert_ordered();
}
