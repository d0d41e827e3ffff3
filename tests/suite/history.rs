//! The checker of histories bites: it is shown broken ones.

use crate::common::{Connection, History, Recorder, Request};

/// Lets a test play the gateway: sends straight to the resource.
fn write(recorder: &Recorder, token: u64) {
    Request::put("/objects/42")
        .token(token)
        .send(recorder.address())
        .assert_ok("a write straight to the resource");
}

fn rule(history: &History) -> Option<&'static str> {
    history.check().err().map(|violation| violation.rule)
}

#[test]
fn writes_in_order_one_after_the_other_pass() {
    let recorder = Recorder::start();
    for token in [33, 33, 34, 90] {
        write(&recorder, token);
    }
    recorder.history().assert_ordered();
}

#[test]
fn a_lower_token_after_a_higher_one_is_found() {
    let recorder = Recorder::start();
    write(&recorder, 34);
    write(&recorder, 33);
    assert_eq!(rule(&recorder.history()), Some("G1"));
}

#[test]
fn a_lower_token_still_under_way_when_a_higher_one_begins_is_found() {
    let recorder = Recorder::start();
    let gate = recorder.hold("slow");
    let slow = Request::put("/objects/42").token(33).tag("slow");
    let slow = slow.spawn(recorder.address());
    recorder.received("slow");
    write(&recorder, 34);
    gate.open();
    slow.join().unwrap().assert_ok("the slow write");
    assert_eq!(rule(&recorder.history()), Some("G2"));
    let report = recorder.history().check().unwrap_err().to_string();
    assert!(
        report.contains("token 33") && report.contains("token 34"),
        "the report names the pair: {report}"
    );
}

#[test]
fn a_write_that_works_on_after_its_connection_broke_has_not_ended() {
    let recorder = Recorder::start();
    recorder.on("orphan", |exchange| {
        exchange.works_on(std::time::Duration::from_millis(300));
        exchange.never()
    });
    let mut client = Connection::open(recorder.address());
    client.send(Request::put("/objects/42").token(33).tag("orphan").whole());
    recorder.arrived("orphan");
    client.abort();
    recorder.broke("orphan");
    write(&recorder, 34);
    recorder.ended("orphan");
    assert_eq!(rule(&recorder.history()), Some("G2"));
}

#[test]
fn keys_are_apart_and_equal_tokens_may_overlap() {
    let recorder = Recorder::start();
    let gate = recorder.hold("slow");
    let slow = Request::put("/objects/42").token(34).tag("slow");
    let slow = slow.spawn(recorder.address());
    recorder.received("slow");
    write(&recorder, 34);
    Request::put("/objects/43")
        .token(99)
        .send(recorder.address())
        .assert_ok("another key");
    gate.open();
    slow.join().unwrap().assert_ok("the slow write");
    recorder.history().assert_ordered();
}

#[test]
fn a_lower_token_may_follow_a_reset_that_let_everything_end() {
    let recorder = Recorder::start();
    write(&recorder, 50);
    let asked = recorder.now();
    write(&recorder, 50);
    recorder.was_reset("/objects/42", asked);
    write(&recorder, 34);
    recorder.history().assert_ordered();
    Request::put("/objects/43")
        .token(2)
        .send(recorder.address());
    Request::put("/objects/43")
        .token(1)
        .send(recorder.address());
    assert_eq!(
        rule(&recorder.history()),
        Some("G1"),
        "the reset was another key's"
    );
}

#[test]
fn a_reset_excuses_only_what_came_after_it() {
    let recorder = Recorder::start();
    let asked = recorder.now();
    recorder.was_reset("/objects/42", asked);
    write(&recorder, 50);
    write(&recorder, 34);
    assert_eq!(rule(&recorder.history()), Some("G1"));
}

#[test]
fn a_write_in_flight_over_a_reset_is_found() {
    let recorder = Recorder::start();
    let gate = recorder.hold("slow");
    let slow = Request::put("/objects/42").token(50).tag("slow");
    let slow = slow.spawn(recorder.address());
    recorder.received("slow");
    let asked = recorder.now();
    recorder.was_reset("/objects/42", asked);
    assert_eq!(rule(&recorder.history()), Some("G2"));
    write(&recorder, 34);
    gate.open();
    slow.join().unwrap().assert_ok("the slow write");
    assert_eq!(rule(&recorder.history()), Some("G2"));
}
