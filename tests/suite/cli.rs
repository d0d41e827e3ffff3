//! The command: its exit codes, what `check` says, and how it stops.

use std::path::PathBuf;

use crate::common::{Config, Gateway, Request, Signal, Stage, run};

/// A config file with this text, in a directory that goes with the guard.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

const GOOD: &str = r#"
listeners:
  - address: 127.0.0.1:0
upstreams:
  objects: { urls: ["http://127.0.0.1:9"] }
routes:
  - name: objects
    path: /objects/{id}
    upstream: objects
    fence: { key: "{id}" }
"#;

fn check(text: &str) -> (Option<i32>, String) {
    let (_dir, path) = file(text);
    let output = run(&["check", "--config", path.to_str().unwrap()]);
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn a_good_config_is_accepted() {
    let (code, said) = check(GOOD);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn check_names_every_problem_with_its_place() {
    let text = r#"
listeners:
  - address: nowhere
upstreams:
  objects: { urls: ["http://127.0.0.1:9"], settle: soon, sttle: 1s }
routes:
  - name: objects
    path: /objects/{id
    upstream: elsewhere
    fence: { key: "{nothing}", mode: sometimes }
unknown: true
"#;
    let (code, said) = check(text);
    assert_eq!(
        code,
        Some(2),
        "a config with problems is a usage error: {said}"
    );
    for (problem, place) in [
        ("nowhere", ":3:"),
        ("settle", ":5:"),
        ("sttle", ":5:"),
        ("elsewhere", ":9:"),
        ("mode", ":10:"),
        ("unknown", ":11:"),
    ] {
        assert!(
            said.lines()
                .any(|line| line.contains(problem) && line.contains(place)),
            "{problem} with line {place} is missing in:\n{said}"
        );
    }
}

#[test]
fn a_key_that_does_nothing_yet_is_refused() {
    for (what, text) in [
        ("telemetry", format!("{GOOD}telemetry: {{ otlp: {{}} }}\n")),
        (
            "partition",
            GOOD.replace("key: \"{id}\"", "key: \"{id}\", partition: a"),
        ),
    ] {
        let (code, said) = check(&text);
        assert_eq!(code, Some(2), "{what} is never accepted silently: {said}");
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn broken_yaml_and_a_missing_file_are_usage_errors() {
    let (code, said) = check("listeners: [\n");
    assert_eq!(code, Some(2), "{said}");
    for command in [&["check"][..], &["serve"]] {
        let output = run(&[command, &["--config", "/nowhere/config.yaml"]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        assert!(said.contains("/nowhere/config.yaml"), "{said}");
    }
}

#[test]
fn unknown_commands_and_options_are_usage_errors() {
    for arguments in [
        &["frobnicate"][..],
        &["serve", "--frobnicate"],
        &["store", "eat", "x"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}

#[test]
fn version_and_help_are_told() {
    for arguments in [["--version"], ["--help"]] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("fencegate"),
            "{output:?}"
        );
    }
}

#[test]
fn the_reference_config_is_good() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config.yaml");
    let output = run(&["check", "--config", path]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn an_address_that_is_taken_is_a_runtime_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new("http://127.0.0.1:9").set("admin.address", address.as_str());
    let failed = Gateway::fails(config, &dir.path().join("store"));
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(failed.errors.contains(&address), "{failed:?}");
}

#[test]
fn an_admin_address_for_all_needs_a_token_or_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new("http://127.0.0.1:9").set("admin.address", "0.0.0.0:0");
    let failed = Gateway::fails(config, &dir.path().join("store"));
    assert_eq!(failed.status.code(), Some(2), "{failed:?}");
}

#[test]
fn the_ready_line_comes_when_all_listeners_are_bound() {
    let stage = Stage::new();
    let line = stage.gateway.says("ready");
    assert!(line.contains(&format!("http={}", stage.http())), "{line}");
    assert!(
        line.contains(&format!("admin={}", stage.gateway.admin)),
        "{line}"
    );
    for target in ["/readyz", "/livez"] {
        assert_eq!(stage.gateway.admin_get(target).status, 200, "{target}");
    }
}

// C8
#[test]
fn sigterm_stops_an_idle_gateway_at_once() {
    let mut stage = Stage::with(|config| config.settle("20s"));
    stage.raise("/objects/42", "34");
    let mut idle = crate::common::Connection::open(stage.http());
    idle.send(Request::get("/objects/42").whole());
    idle.response()
        .assert_ok("a read that leaves its connection idle");
    let start = std::time::Instant::now();
    assert_eq!(stage.gateway.terminate().code(), Some(0));
    assert!(
        start.elapsed().as_secs() < 10,
        "nothing is in flight: {:?}",
        start.elapsed()
    );
}

#[test]
fn sigint_stops_it_too() {
    let mut stage = Stage::new();
    stage.gateway.signal(Signal::INT);
    assert_eq!(stage.gateway.wait().code(), Some(0));
}

#[test]
fn other_rules_for_known_marks_are_refused_unless_rekey_is_set() {
    let mut stage = Stage::at_34();
    assert!(stage.gateway.terminate().success());
    let other = Config::new(&stage.recorder.url()).fence("key", "v2-{id}");
    let failed = stage.gateway.try_restart_as(other.clone()).unwrap_err();
    assert_eq!(failed.status.code(), Some(2), "{failed:?}");
    assert!(
        failed.errors.contains("rekey"),
        "it says what to do: {}",
        failed.errors
    );
    stage.gateway.restart_as(other.set("routes.0.rekey", true));
    stage.raise("/objects/42", "1");
    assert_eq!(stage.mark("objects/v2-42").as_deref(), Some("1"));
}

#[test]
fn rules_that_make_no_key_can_change_freely() {
    let mut stage = Stage::at_34();
    assert!(stage.gateway.terminate().success());
    let config = Config::new(&stage.recorder.url());
    stage
        .gateway
        .restart_as(config.fence("reveal_mark", false).settle("100ms"));
    stage
        .send(&Request::put("/objects/42").token(33))
        .assert_fenced(409, "stale-token", "the same marks");
}
