//! The admin listener: what it tells, and to whom. And what the logs say.

use crate::common::{Connection, Request, Stage, eventually, send_raw};
use serde_json::Value;

// A1
#[test]
fn admin_paths_are_not_on_the_public_listener() {
    let stage = Stage::at_34();
    for target in [
        "/livez",
        "/readyz",
        "/metrics",
        "/v1/keys",
        "/v1/keys/objects",
    ] {
        let answer = stage.send(&Request::get(target));
        answer.assert_fenced(404, "no-route", target);
    }
}

// A2
#[test]
fn other_hosts_and_origins_are_refused() {
    let stage = Stage::at_34();
    let ask = |request: Request| request.send(stage.gateway.admin).status;
    let keys = || Request::get("/v1/keys").host(&stage.gateway.admin.to_string());
    assert_eq!(ask(keys()), 200);
    assert_eq!(
        ask(keys().host("evil.test")),
        403,
        "a name that was rebound to loopback"
    );
    assert_eq!(
        ask(keys().header("Origin", "http://evil.test")),
        403,
        "a web page of another site"
    );
    let answer = keys().send(stage.gateway.admin);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        None,
        "no CORS"
    );
}

#[test]
fn keys_are_listed_in_order_by_pages() {
    let stage = Stage::new();
    for (key, token) in [("b", 2), ("a", 1), ("d", 4), ("c", 3)] {
        stage.raise(&format!("/objects/{key}"), &token.to_string());
    }
    let page = stage
        .gateway
        .admin_get("/v1/keys?prefix=objects/&limit=3")
        .json();
    let keys = |page: &Value| -> Vec<String> {
        let keys = page["keys"].as_array().unwrap();
        keys.iter()
            .map(|key| key["key"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(keys(&page), ["objects/a", "objects/b", "objects/c"]);
    let next = page["next"].as_str().unwrap();
    let rest = stage
        .gateway
        .admin_get(&format!("/v1/keys?prefix=objects/&limit=3&after={next}"));
    let rest = rest.json();
    assert_eq!(keys(&rest), ["objects/d"]);
    assert!(rest["next"].is_null(), "{rest}");
    assert_eq!(rest["keys"][0]["mark"], "4");
}

#[test]
fn a_key_without_a_mark_is_not_found() {
    let stage = Stage::new();
    stage
        .send(&Request::get("/objects/42"))
        .assert_ok("a read without a token");
    assert_eq!(stage.gateway.key("objects/42"), None);
}

#[test]
fn the_view_of_a_key_counts_what_is_under_way() {
    let stage = Stage::new();
    let gate = stage.recorder.hold("held");
    let held = Request::put("/objects/42")
        .token(34)
        .tag("held")
        .spawn(stage.http());
    stage.recorder.received("held");
    let view = stage.gateway.key("objects/42").unwrap();
    assert_eq!(view["key"], "objects/42");
    assert_eq!(view["mark"], "34");
    assert!(view["holder"].is_null());
    assert_eq!(
        (&view["in_flight"], &view["waiting"]),
        (&1.into(), &0.into())
    );
    gate.open();
    held.join().unwrap().assert_ok("the write");
    stage.gateway.wait_key("objects/42", "in_flight", 0);
}

// A7
#[test]
fn metrics_count_decisions_and_never_carry_keys() {
    let stage = Stage::at_34();
    stage.send(&Request::put("/objects/42").token(33));
    for key in 0..20 {
        stage.raise(&format!("/objects/secret-{key}"), "1");
    }
    let stale = stage
        .gateway
        .metric("fencegate_requests_total", &["stale-token", "objects"]);
    assert!((stale - 1.0).abs() < 0.5, "{stale} refused as stale");
    let text = stage.gateway.admin_get("/metrics").text();
    assert!(!text.contains("secret"), "keys are never labels");
    for name in [
        "fencegate_admission_seconds",
        "fencegate_store_commit_seconds",
        "fencegate_keys",
        "fencegate_in_flight",
        "fencegate_waiting",
        "fencegate_unsettled",
        "fencegate_connections",
        "fencegate_build_info",
    ] {
        assert!(text.contains(name), "{name} is missing");
    }
}

#[test]
fn a_binary_for_tests_says_so() {
    let stage = Stage::new();
    let features: Vec<_> = [
        ("faults", cfg!(feature = "faults")),
        ("fuzzing", cfg!(feature = "fuzzing")),
        ("shuttle", cfg!(feature = "shuttle")),
        ("sim", cfg!(feature = "sim")),
    ]
    .into_iter()
    .filter_map(|(name, built)| built.then_some(name))
    .collect();
    let metrics = stage.gateway.admin_get("/metrics").text();
    let build = metrics
        .lines()
        .find(|line| line.starts_with("fencegate_build_info{"))
        .expect("the build is told");
    let warned = stage.gateway.errors().contains("built for tests");
    if features.is_empty() {
        assert!(!build.contains("test_features"), "{build}");
        assert!(!warned, "{}", stage.gateway.errors());
    } else {
        let label = format!("test_features=\"{}\"", features.join(","));
        assert!(build.contains(&label), "{build}");
        assert!(warned, "{}", stage.gateway.errors());
    }
}

#[test]
fn an_access_line_tells_decision_reason_key_token_and_mark() {
    let stage = Stage::at_34();
    stage.send(&Request::put("/objects/42").token(33));
    let line = stage.access_line("stale-token");
    for (name, value) in [
        ("decision", "refused"),
        ("reason", "stale-token"),
        ("key", "objects/42"),
        ("token", "33"),
        ("mark", "34"),
    ] {
        assert_eq!(line[name], value, "{name} in {line}");
    }
    stage.raise("/objects/admitted", "7");
    let line = stage.access_line("objects/admitted");
    for (name, value) in [("decision", "admitted"), ("token", "7"), ("mark", "7")] {
        assert_eq!(line[name], value, "{name} in {line}");
    }
}

// A6
#[test]
fn control_bytes_never_reach_the_log() {
    let stage = Stage::at_34();
    let target = "/objects/a%1b%5b31mb";
    let bytes = format!(
        "PUT {target} HTTP/1.1\r\nHost: store.test\r\nFencing-Token: 3\u{1b}[31m4\r\n\
         User-Agent: x\u{1b}[2J\r\nContent-Length: 0\r\n\r\n"
    );
    stage.assert_bad(&bytes, "escapes in token and path");
    let mut client = Connection::open(stage.http());
    client.send("GET /objects/42 HTTP/1.1\r\nHost: store.test\r\nUser-Agent: \u{1b}[2J\r\n\r\n");
    let _ = client.try_response("GET");
    stage.send(&Request::put("/objects/marker").token(1));
    stage.access_line("objects/marker");
    assert!(
        !stage.gateway.errors().contains('\u{1b}'),
        "control bytes are escaped"
    );
}

// A8
#[test]
fn secrets_are_neither_logged_nor_shown() {
    let stage = Stage::with(|config| {
        config
            .upstream(
                "headers",
                serde_json::json!({ "authorization": "Bearer sesame" }),
            )
            .set("log.level", "trace")
    });
    stage.raise("/objects/42", "34");
    stage.access_line("objects/42");
    assert!(
        !stage.gateway.errors().contains("sesame"),
        "not even at the level trace"
    );
}

// A6
#[test]
fn a_flood_of_refusals_hides_nothing_that_was_forwarded() {
    let stage = Stage::at_34_with(|config| config.settle("100ms"));
    let stale = Request::put("/objects/42").token(33).whole();
    for _ in 0..10 {
        let mut flood = Connection::open(stage.http());
        for _ in 0..30 {
            flood.send(&stale).response();
        }
        // Broken heads are refused elsewhere, and are as many.
        for _ in 0..30 {
            let _ = send_raw(stage.http(), "GET / HTTP/1.1\r\n: x\r\n\r\n");
        }
        let mut upload = Connection::open(stage.http());
        upload.send(Request::put("/objects/broken").token(34).chunked_head());
        let answer = upload.send("x\r\n").response();
        answer.assert_refused(400, "bad-request", "unknown", "a body that broke off");
    }
    let lines = |text: &str| stage.gateway.errors().matches(text).count();
    eventually("every write that was forwarded is logged", || {
        (lines(r#""path":"/objects/broken""#) == 10).then_some(())
    });
    let refused = lines(r#""reason":"stale-token""#) + lines("broken request refused");
    assert!(refused < 600, "refusals are sampled: {refused} of 600");
}
