//! Connections that are quiet for a while: their codecs are taken down, and nobody notices.

use crate::common::{Connection, Ended, Request, Stage, eventually};

fn write(token: u64) -> Request {
    Request::put("/objects/42").token(token)
}

pub(super) fn wait_resting(stage: &Stage, connections: f64) {
    eventually("a connection comes to rest", || {
        let resting = stage.gateway.metric("fencegate_connections_resting", &[]);
        ((resting - connections).abs() < 0.5).then_some(())
    });
}

#[test]
fn requests_before_and_after_a_rest_are_alike() {
    let stage = Stage::with(|config| config.set("limits.requests_per_connection", 4));
    let mut client = Connection::open(stage.http());
    for token in 34..36 {
        client.send(write(token).whole());
        client.response().assert_ok("before it");
    }
    wait_resting(&stage, 1.0);
    client.send(write(36).whole());
    client.response().assert_ok("after it");
    wait_resting(&stage, 1.0);
    client.send(write(35).whole());
    let last = client.response();
    last.assert_fenced(409, "stale-token", "the fence holds after a second rest");
    assert_eq!(
        last.header("connection"),
        Some("close"),
        "the requests of a connection are counted through its rests"
    );
    assert_eq!(client.ended(), Ended::Closed);
    wait_resting(&stage, 0.0);
}

#[test]
fn a_head_that_comes_in_parts_wakes_a_connection_once() {
    let stage = Stage::new();
    let mut client = Connection::open(stage.http());
    // One that has sent nothing yet rests as well.
    wait_resting(&stage, 1.0);
    let bytes = write(34).body("hello").whole();
    let (first, rest) = bytes.split_at(3);
    client.send(first);
    wait_resting(&stage, 0.0);
    for byte in rest {
        client.send([*byte]);
    }
    client.response().assert_ok("a head byte by byte");
    wait_resting(&stage, 1.0);
    // Line ends between requests begin nothing, and several requests at once are several.
    client.send("\r\n");
    let mut both = write(35).whole();
    both.extend(write(36).whole());
    client.send(both);
    client.response().assert_ok("the first of two");
    client.response().assert_ok("the second of two");
    wait_resting(&stage, 1.0);
    client.send("GARBAGE\r\n\r\n");
    assert_eq!(client.response().status, 400, "it is judged as ever");
}

#[test]
fn a_rest_ends_with_the_time_between_requests() {
    let stage = Stage::with(|config| {
        config
            .set("timeouts.idle", "2s")
            .set("timeouts.header", "3s")
    });
    let mut quiet = Connection::open(stage.http());
    quiet.send(write(34).whole());
    quiet.response().assert_ok("it is kept open");
    let mut silent = Connection::open(stage.http());
    wait_resting(&stage, 2.0);
    assert_eq!(quiet.ended(), Ended::Closed, "timeouts.idle");
    assert_eq!(silent.ended(), Ended::Closed, "timeouts.header");
    wait_resting(&stage, 0.0);
}

#[test]
fn a_client_that_leaves_at_rest_is_gone() {
    let stage = Stage::new();
    let polite = Connection::open(stage.http());
    let rude = Connection::open(stage.http());
    wait_resting(&stage, 2.0);
    drop(polite);
    rude.abort();
    wait_resting(&stage, 0.0);
    eventually("no connection is open", || {
        (stage.gateway.metric("fencegate_connections", &[]) < 0.5).then_some(())
    });
}

#[test]
fn a_stop_ends_a_rest_at_once() {
    let mut stage = Stage::new();
    let mut client = Connection::open(stage.http());
    wait_resting(&stage, 1.0);
    assert!(stage.gateway.terminate().success());
    assert_eq!(client.ended(), Ended::Closed);
}

#[test]
fn what_comes_after_a_rest_may_be_http2() {
    let stage = Stage::new();
    let mut client = Connection::open(stage.http());
    wait_resting(&stage, 1.0);
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.send([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let settings = client.take(9).unwrap();
    assert_eq!(settings[3], 4, "SETTINGS: {settings:?}");
}
