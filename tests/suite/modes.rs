//! Modes of the fence other than the plain one: observing, and receiving bodies whole first.

use crate::common::{Connection, Request, Stage};

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

fn observing() -> Stage {
    let stage = Stage::at_34_with(|config| config.fence("mode", "observe"));
    // What is observed is answered at once, and its token may be compared after that.
    stage.gateway.wait_mark("objects/42", "34");
    stage
}

#[test]
fn observing_forwards_what_it_would_refuse_and_says_so() {
    let stage = observing();
    for (request, reason) in [
        (write(33, "stale"), "stale-token"),
        (Request::put("/objects/42"), "token-required"),
        (Request::put("/objects/42").token("x"), "malformed-token"),
        (
            Request::put("/objects/42/")
                .token("34")
                .header("Fencing-Token", "34"),
            "malformed-token",
        ),
    ] {
        let before = stage.recorder.count();
        let answer = stage.send(&request);
        answer.assert_ok("observed, not refused");
        let decision = format!("would-refuse; reason={reason}");
        assert_eq!(answer.header("fencing-decision"), Some(decision.as_str()));
        assert_eq!(stage.recorder.count(), before + 1, "forwarded once");
    }
    let answer = stage.send(&write(34, "fine"));
    assert!(
        !answer
            .header("fencing-decision")
            .unwrap_or_default()
            .contains("would-refuse"),
        "an equal token would not be refused: {:?}",
        answer.head
    );
    assert_eq!(stage.mark("objects/42").as_deref(), Some("34"));
}

#[test]
fn observing_minds_no_path_but_broken_http() {
    let stage = Stage::with(|config| {
        config
            .set("routes.0.path", "/{*path}")
            .fence("key", "{path}")
            .fence("mode", "observe")
    });
    let answer = stage.send(&Request::put("/objects/a%2Fb").token(1));
    answer.assert_ok("a path that would be refused");
    assert_eq!(
        answer.header("fencing-decision"),
        Some("would-refuse; reason=ambiguous-path")
    );
    let broken = "PUT /objects/42 HTTP/1.1\r\nHost: a\r\nHost: b\r\nFencing-Token: 1\r\n\r\n";
    stage.assert_bad(broken, "broken HTTP is refused as ever");
}

#[test]
fn observing_never_delays() {
    let stage = observing();
    let gate = stage.recorder.hold("older");
    let older = write(34, "older").spawn(stage.http());
    stage.recorder.received("older");
    stage
        .send(&write(35, "newer"))
        .assert_ok("forwarded while an older write is in flight");
    gate.open();
    older
        .join()
        .unwrap()
        .assert_ok("and the older one is not cut");
}

fn spooling() -> Stage {
    Stage::at_34_with(|config| {
        config
            .settle("20s")
            .fence("body", "spool")
            .set("limits.body", "8MiB")
    })
}

#[test]
fn a_spooled_upload_reaches_the_upstream_only_when_it_is_whole() {
    let stage = spooling();
    let mut slow = Connection::open(stage.http());
    slow.send(write(35, "slow").head(10)).send("first");
    for token in [34, 35] {
        stage.raise("/objects/42", &token.to_string());
    }
    assert!(
        stage.recorder.history().tagged("slow").is_empty(),
        "a slow upload neither holds the lane nor goes upstream half-sent"
    );
    slow.send("after");
    slow.response().assert_ok("the upload, once it is whole");
    assert_eq!(stage.recorder.ended("slow").body, b"firstafter");
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_spooled_upload_is_compared_before_it_is_read_and_again_after() {
    let stage = spooling();
    let mut stale = Connection::open(stage.http());
    stale.send(write(33, "stale").head(1 << 20));
    stale
        .response()
        .assert_fenced(409, "stale-token", "refused without reading");

    let mut overtaken = Connection::open(stage.http());
    overtaken
        .send(write(34, "overtaken").head(10))
        .send("first");
    stage.raise("/objects/42", "35");
    overtaken.send("after");
    overtaken
        .response()
        .assert_fenced(409, "stale-token", "overtaken while its body came");
    assert_eq!(stage.recorder.count(), 2, "neither of them went upstream");
}

#[test]
fn a_spooled_upload_above_memory_comes_whole() {
    let stage = spooling();
    let body: Vec<u8> = (0..5 << 20).map(|i: u32| (i % 251) as u8).collect();
    stage
        .send(&write(34, "large").body(&body))
        .assert_ok("5 MiB, through a temporary file");
    assert!(
        stage.recorder.ended("large").body == body,
        "byte by byte the same"
    );
    let answer = stage.send(&write(34, "huge").body(vec![0; 9 << 20]));
    answer.assert_fenced(413, "body-too-large", "9 MiB where 8 MiB are allowed");
}

#[test]
fn a_client_that_leaves_while_its_upload_is_spooled_leaves_nothing() {
    let stage = spooling();
    let mut client = Connection::open(stage.http());
    client.send(write(35, "left").head(1000)).send("half");
    client.abort();
    stage.raise("/objects/42", "36");
    assert!(stage.recorder.history().tagged("left").is_empty());
}

#[test]
fn a_spooled_upload_that_stalls_times_out_before_anything_is_forwarded() {
    let stage = Stage::at_34_with(|config| {
        config
            .settle("20s")
            .fence("body", "spool")
            .set("limits.body", "1MiB")
            .set("timeouts.body", "300ms")
    });
    let mut client = Connection::open(stage.http());
    client.send(write(35, "slow").head(100)).send("half");
    client
        .response()
        .assert_fenced(408, "request-timeout", "the body stalled at the gateway");
    assert_eq!(
        stage.mark("objects/42").as_deref(),
        Some("34"),
        "it was not admitted yet"
    );
    stage.raise("/objects/42", "36");
}
