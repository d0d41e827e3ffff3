//! Requests that touch two resources: a COPY or a MOVE, and a copy from another object.

use crate::common::{Config, Request, Stage};
use serde_json::json;

/// A WebDAV tree: the target, and the Destination where there is one, each with a token of its own.
fn dav(config: Config) -> Config {
    config
        .set("routes.0.path", "/dav/{*path}")
        .without("routes.0.fence.key")
        .fence(
            "keys",
            json!([
                { "key": "{path}" },
                {
                    "key": "{header.destination|path}", "when": "present",
                    "token_header": "fencing-token-destination",
                },
            ]),
        )
}

fn moving(from: &str, to: &str) -> Request {
    Request::new("MOVE", from).header("Destination", to)
}

fn marks(stage: &Stage) -> (Option<String>, Option<String>) {
    (stage.mark("objects/dav/a"), stage.mark("objects/dav/b"))
}

fn both(a: &str, b: &str) -> (Option<String>, Option<String>) {
    (Some(a.to_owned()), Some(b.to_owned()))
}

// K22 C17
#[test]
fn a_move_needs_the_token_of_each_of_its_keys() {
    let stage = Stage::with(dav);
    stage.raise("/dav/a", "10");
    stage.raise("/dav/b", "20");
    let go = moving("/dav/a", "http://store.test/dav/b");
    let destination = "Fencing-Token-Destination";

    stage.send(&go.clone().token(11)).assert_fenced(
        428,
        "token-required",
        "the destination's token is missing",
    );
    assert_eq!(marks(&stage), both("10", "20"), "nothing is raised");
    stage
        .send(&go.clone().header(destination, "21"))
        .assert_fenced(428, "token-required", "the target's token is missing");
    assert_eq!(marks(&stage), both("10", "20"), "nothing is raised");
    stage
        .send(&go.clone().token(11).header(destination, "19"))
        .assert_fenced(409, "stale-token", "one stale key");
    assert_eq!(marks(&stage), both("10", "20"), "one stale key raises none");
    stage
        .send(&go.token(11).header(destination, "21"))
        .assert_ok("both tokens");
    assert_eq!(
        marks(&stage),
        both("11", "21"),
        "each lock's token raises its own key only"
    );
}

#[test]
fn a_refusal_for_the_destination_says_so_everywhere() {
    let stage = Stage::with(dav);
    stage.raise("/dav/a", "10");
    stage.raise("/dav/b", "20");
    let go = moving("/dav/a", "http://store.test/dav/b").token(10);
    let destination = "Fencing-Token-Destination";
    for (token, status, reason) in [
        (Some("19"), 409, "stale-token"),
        (None, 428, "token-required"),
        (Some("x"), 400, "malformed-token"),
    ] {
        let request = match token {
            Some(token) => go.clone().header(destination, token),
            None => go.clone(),
        };
        let answer = stage.send(&request);
        answer.assert_fenced(status, reason, reason);
        let (problem, line) = (answer.json(), stage.access_line(reason));
        for told in [&problem, &line] {
            assert_eq!(told["key"], "objects/dav/b", "{told}");
            assert_ne!(told["token"], "10", "that of the target: {told}");
        }
    }
    let stale = stage.access_line("stale-token");
    assert_eq!(
        (&stale["token"], &stale["mark"]),
        (&json!("19"), &json!("20"))
    );
}

#[test]
fn a_write_without_a_destination_has_one_key() {
    let stage = Stage::with(dav);
    stage.raise("/dav/a", "10");
    assert_eq!(marks(&stage), (Some("10".to_owned()), None));
}

#[test]
fn two_tokens_for_one_key_are_refused() {
    let stage = Stage::with(dav);
    let onto_itself = moving("/dav/a", "/dav/a").token(11);
    stage
        .send(
            &onto_itself
                .clone()
                .header("Fencing-Token-Destination", "11"),
        )
        .assert_ok("the same token for the same key");
    let answer = stage.send(&onto_itself.header("Fencing-Token-Destination", "12"));
    assert_eq!(answer.status, 400, "two different tokens for one key");
    assert_eq!(stage.recorder.count(), 1);
}

// K22
#[test]
fn a_destination_is_read_by_the_rules_of_the_path() {
    let stage = Stage::with(dav);
    stage.raise("/dav/b", "20");
    let go = |destination: &str| {
        let request = moving("/dav/a", destination).token(11);
        stage.send(&request.header("Fencing-Token-Destination", "20"))
    };
    for destination in [
        "http://other.test/dav/b",
        "http://user@store.test/dav/b",
        "//other.test/dav/b",
        "http://store.test/dav/../b",
        "http://store.test/dav/%2e%2e/b",
        "/dav//b",
        "/dav%2Fb",
        "/dav/b%00",
        "/dav/b%zz",
        "",
        "dav/b",
        "/dav/b;x",
        "/dav/\\b",
    ] {
        let answer = go(destination);
        assert_eq!(
            answer.status,
            400,
            "Destination {destination:?}: {}",
            answer.text()
        );
    }
    assert_eq!(stage.recorder.count(), 1, "none of them is forwarded");
    assert_eq!(stage.mark("objects/dav/a"), None, "and none raises a mark");
    for destination in [
        "/dav/b",
        "http://store.test/dav/b",
        "http://STORE.test/dav/%62",
        "/dav/b/",
    ] {
        go(destination).assert_ok(destination);
    }
    assert_eq!(stage.mark("objects/dav/b").as_deref(), Some("20"));
    let twice = moving("/dav/a", "/dav/b")
        .header("Destination", "/dav/c")
        .token(11);
    assert_eq!(
        stage
            .send(&twice.header("Fencing-Token-Destination", "20"))
            .status,
        400,
        "two Destinations"
    );
}

#[test]
fn a_destination_can_be_made_the_upstreams() {
    let stage = Stage::with(|config| dav(config).upstream("rewrite_destination", true));
    stage
        .send(
            &moving("/dav/a", "http://store.test/dav/b%20c")
                .token(11)
                .header("Fencing-Token-Destination", "20"),
        )
        .assert_ok("a move");
    let seen = stage.recorder.last();
    let expected = format!("{}/dav/b%20c", stage.recorder.url());
    assert_eq!(
        seen.header("destination"),
        Some(expected.as_str()),
        "rewrite_destination makes the authority the upstream's, and no more"
    );
}

/// An object store whose copies name their source in a header.
fn s3(config: Config) -> Config {
    config
        .set("routes.0.path", "/{*path}")
        .without("routes.0.fence.key")
        .fence("path", "opaque")
        .fence(
            "keys",
            json!([
                { "key": "{path}" },
                { "key": "{header.x-amz-copy-source|path}", "when": "present", "access": "read" },
            ]),
        )
}

// K23
#[test]
fn a_copy_is_fenced_by_its_source_and_raises_nothing_there() {
    let stage = Stage::with(s3);
    stage.raise("/bucket/source", "30");
    let copy = |source: &str, token: u64| {
        let request = Request::new("PUT", "/bucket/copy").token(token);
        stage.send(&request.header("X-Amz-Copy-Source", source))
    };
    copy("/bucket/source", 29).assert_fenced(409, "stale-token", "below the source's mark");
    copy("bucket/source", 29).assert_fenced(409, "stale-token", "without its leading slash");
    copy("/bucket/%73ource", 29).assert_fenced(409, "stale-token", "escaped");
    assert_eq!(
        stage.mark("objects/bucket/copy"),
        None,
        "one stale key raises none"
    );
    copy("/bucket/source", 31).assert_ok("above the source's mark");
    assert_eq!(
        stage.mark("objects/bucket/source").as_deref(),
        Some("30"),
        "a key that is only read is not raised"
    );
    assert_eq!(stage.mark("objects/bucket/copy").as_deref(), Some("31"));
    for source in ["/bucket/../source", "/bucket/%2e%2e/source", "/bucket/a%00"] {
        assert_eq!(copy(source, 40).status, 400, "{source}");
    }
}

#[test]
fn a_copy_waits_for_writes_to_its_source() {
    let stage = Stage::with(s3);
    let gate = stage.recorder.hold("writing");
    let writing = Request::put("/bucket/source").token(30).tag("writing");
    let writing = writing.spawn(stage.http());
    stage.recorder.received("writing");
    let copy = Request::new("PUT", "/bucket/copy").token(31).tag("copy");
    let copy = copy.header("X-Amz-Copy-Source", "/bucket/source");
    let copy = copy.spawn(stage.http());
    stage.gateway.wait_mark("objects/bucket/copy", "31");
    assert!(
        stage.recorder.history().tagged("copy").is_empty(),
        "a read of a key drains the older writes on it"
    );
    gate.open();
    writing.join().unwrap().assert_ok("the write");
    copy.join().unwrap().assert_ok("the copy");
    let (writing, copy) = (
        stage.recorder.ended("writing"),
        stage.recorder.ended("copy"),
    );
    assert!(
        writing.ended < Some(copy.began),
        "the source's write ended before the copy began"
    );
}

#[test]
fn moves_that_cross_each_other_all_end() {
    let stage = Stage::with(dav);
    let crossing: Vec<_> = (1..=40)
        .map(|token| {
            let (from, to) = if token % 2 == 0 {
                ("/dav/a", "/dav/b")
            } else {
                ("/dav/b", "/dav/a")
            };
            let request = moving(from, to).token(token);
            let request = request.header("Fencing-Token-Destination", &token.to_string());
            (token, request.spawn(stage.http()))
        })
        .collect();
    for (token, crossing) in crossing {
        let answer = crossing.join().unwrap();
        if token == 40 {
            answer.assert_ok("the newest of those that cross");
        } else {
            assert!([200, 409].contains(&answer.status), "{answer:?}");
        }
    }
    assert_eq!(
        marks(&stage),
        both("40", "40"),
        "none waits for ever, holding the other key"
    );
    for key in ["objects/dav/a", "objects/dav/b"] {
        stage.gateway.wait_key(key, "in_flight", 0);
    }
}
