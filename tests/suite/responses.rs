//! What a client is told: problems, headers, and the forms that gRPC and old clients know.

use crate::common::{Request, Stage};

#[test]
fn a_refusal_is_a_problem_that_tells_what_to_do() {
    let stage = Stage::at_34();
    let answer = stage.send(&Request::put("/objects/42").token("033"));
    answer.assert_fenced(409, "stale-token", "33 after 34");
    let problem = answer.json();
    assert_eq!(problem["type"], "urn:fencegate:stale-token");
    assert_eq!(problem["status"], 409);
    assert_eq!(problem["reason"], "stale-token");
    assert_eq!(problem["key"], "objects/42", "the key with its namespace");
    assert_eq!(problem["token"], "33", "a token is printed without zeros");
    assert_eq!(problem["mark"], "34");
    assert!(!problem["title"].as_str().unwrap().is_empty());
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.len() > 20,
        "one sentence that tells what to do: {detail:?}"
    );
    assert_eq!(answer.header("fencing-mark"), Some("34"));
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_str()));
}

#[test]
fn tokens_are_printed_with_their_epoch_where_there_is_one() {
    let stage = Stage::new();
    stage.raise("/objects/42", "007.042");
    let answer = stage.send(&Request::put("/objects/42").token("7.041"));
    assert_eq!(answer.json()["token"], "7.41");
    assert_eq!(answer.json()["mark"], "7.42");
    assert_eq!(answer.header("fencing-mark"), Some("7.42"));
}

// A11
#[test]
fn a_mark_can_be_kept_from_strangers() {
    let stage = Stage::at_34_with(|config| config.fence("reveal_mark", false));
    let answer = stage.send(&Request::put("/objects/42").token(33));
    answer.assert_fenced(409, "stale-token", "33 after 34");
    assert_eq!(answer.json().get("mark"), None, "{}", answer.text());
    assert_eq!(answer.header("fencing-mark"), None);
    assert!(!answer.text().contains("34"), "{}", answer.text());
}

#[test]
fn a_route_can_refuse_with_another_status() {
    for status in [412, 423] {
        let stage = Stage::at_34_with(|config| config.fence("refuse_status", status));
        let answer = stage.send(&Request::put("/objects/42").token(33));
        answer.assert_fenced(status, "stale-token", "refuse_status");
        assert_eq!(answer.json()["status"], status, "the body says the same");
        stage.send(&Request::put("/objects/42")).assert_fenced(
            428,
            "token-required",
            "only 409 is overridden",
        );
    }
}

#[test]
fn every_error_of_the_gateways_is_a_problem_with_an_outcome() {
    let stage = Stage::at_34_with(|config| config.set("limits.body", "64KiB"));
    for (request, status, reason) in [
        (Request::get("/nowhere"), 404, "no-route"),
        (Request::put("/objects/42"), 428, "token-required"),
        (
            Request::put("/objects/42").token("x"),
            400,
            "malformed-token",
        ),
        (Request::put("/objects/42").token(33), 409, "stale-token"),
        (
            Request::put("/objects//42").token(34),
            400,
            "ambiguous-path",
        ),
        (
            Request::put("/objects/42").token(34).header("Expect", "x"),
            417,
            "expectation-failed",
        ),
        (
            Request::put("/objects/42")
                .token(34)
                .body("b".repeat(65537)),
            413,
            "body-too-large",
        ),
        (
            Request::new("TRACE", "/objects/42").token(34),
            405,
            "method-not-allowed",
        ),
    ] {
        let answer = stage.send(&request);
        answer.assert_fenced(status, reason, reason);
        let problem = answer.json();
        assert_eq!(problem["type"], format!("urn:fencegate:{reason}"));
        assert_eq!(problem["status"], status);
        assert!(problem["detail"].is_string() && problem["title"].is_string());
        assert_eq!(
            answer.header("retry-after").is_some(),
            status == 503,
            "only what passes is worth trying again"
        );
    }
    assert_eq!(stage.recorder.count(), 1, "none of them was forwarded");
}

#[test]
fn a_refusal_of_head_has_no_body() {
    let stage = Stage::at_34();
    let mut client = crate::common::Connection::open(stage.http());
    client.send(Request::new("HEAD", "/objects/42").token(33).whole());
    let answer = client.try_response("HEAD").unwrap();
    assert_eq!(answer.status, 409);
    assert_eq!(
        answer.header("fencing-mark"),
        Some("34"),
        "the headers say it all"
    );
    client.finish();
    assert!(
        client.take(1).is_err(),
        "no body follows the answer to HEAD"
    );
}

#[test]
fn the_upstreams_own_errors_are_not_the_gateways() {
    let stage = Stage::at_34();
    stage.recorder.on("own", |exchange| {
        exchange.read_body()?;
        exchange.respond_with(409, "Fencing-Note: mine\r\n", "the store's own conflict")
    });
    let answer = stage.send(&Request::put("/objects/42").token(34).tag("own"));
    assert_eq!(answer.text(), "the store's own conflict");
    assert_eq!(
        answer.header("fencing-outcome"),
        None,
        "only errors that the gateway makes carry an outcome"
    );
}

#[test]
fn grpc_is_refused_in_its_own_form() {
    let stage = Stage::at_34();
    for (request, code) in [
        (Request::put("/objects/42").token(33), "10"),
        (Request::put("/objects/42"), "9"),
        (Request::put("/objects/42").token("x"), "3"),
        (Request::put("/nowhere").token("34"), "12"),
    ] {
        for kind in ["application/grpc", "application/grpc+proto"] {
            let answer = stage.send(&request.clone().header("Content-Type", kind));
            assert_eq!(answer.status, 200, "a trailers-only response: {answer:?}");
            assert_eq!(answer.header("grpc-status"), Some(code), "{answer:?}");
            assert!(
                answer
                    .header("grpc-message")
                    .is_some_and(|text| !text.is_empty()),
                "{answer:?}"
            );
            assert!(
                answer
                    .header("content-type")
                    .unwrap_or_default()
                    .starts_with("application/grpc"),
                "{answer:?}"
            );
            assert_eq!(answer.header("fencing-outcome"), Some("not-forwarded"));
            assert!(answer.body.is_empty(), "{answer:?}");
        }
    }
    assert_eq!(stage.recorder.count(), 1);
}

#[test]
fn a_grpc_message_has_no_line_ends_or_raw_bytes() {
    let stage = Stage::at_34();
    let request = Request::put("/objects/42%20%C3%B6").token("x");
    let answer = stage.send(&request.header("Content-Type", "application/grpc"));
    let message = answer.header("grpc-message").unwrap();
    assert!(
        message.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "percent-encoded: {message:?}"
    );
}

#[test]
fn a_stale_request_with_a_key_of_odd_bytes_is_still_a_valid_problem() {
    let stage = Stage::new();
    let target = "/objects/a%22b%3Cscript%3E%E2%80%A8";
    stage.raise(target, "34");
    let answer = stage.send(&Request::put(target).token(33));
    answer.assert_fenced(409, "stale-token", "33 after 34");
    assert_eq!(answer.json()["key"], "objects/a\"b<script>\u{2028}");
}
