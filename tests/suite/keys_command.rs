//! `fencegate keys`: marks seen and changed from a shell.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use crate::common::{Stage, binary};
use serde_json::{Value, json};

fn command(url: &str) -> Command {
    let mut command = binary();
    command
        .arg("keys")
        .env_remove("FENCEGATE_ADMIN_TOKEN")
        .env("FENCEGATE_ADMIN_URL", url)
        .stdin(Stdio::null());
    command
}

fn keys(stage: &Stage, arguments: &[&str]) -> Output {
    let url = format!("http://{}", stage.gateway.admin);
    command(&url).args(arguments).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn marks_are_listed_shown_raised_and_reset() {
    let stage = Stage::new();
    for (key, token) in [("b", "2"), ("a", "1"), ("c%20d", "3")] {
        stage.raise(&format!("/objects/{key}"), token);
    }
    let all = lines(&keys(&stage, &["list"]));
    let names: Vec<_> = all.iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert_eq!(names, ["objects/a", "objects/b", "objects/c d"]);
    let one = lines(&keys(&stage, &["list", "objects/b"]));
    assert_eq!((one.len(), &one[0]["mark"]), (1, &json!("2")));
    let one = lines(&keys(&stage, &["get", "objects/c d"]));
    assert_eq!(one[0]["mark"], "3");
    let raised = lines(&keys(&stage, &["raise", "objects/b", "7.50"]));
    assert_eq!(raised[0]["mark"], "7.50");
    let reset = ["reset", "objects/b", "--from", "7.50", "--to", "34"];
    assert_eq!(lines(&keys(&stage, &reset))[0]["mark"], "34");
    assert_eq!(stage.mark("objects/b").as_deref(), Some("34"));

    let again = keys(&stage, &reset);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        said(&again).contains("34"),
        "it names the mark: {}",
        said(&again)
    );
    let none = keys(&stage, &["get", "objects/none"]);
    assert_eq!(none.status.code(), Some(1), "{}", said(&none));
    let bad = keys(&stage, &["raise", "objects/b", "0x22"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(said(&bad).contains("digits"), "{}", said(&bad));
}

#[test]
fn the_config_says_where_the_api_is() {
    let stage = Stage::at_34();
    let config = stage.gateway.config_file();
    let text = std::fs::read_to_string(&config).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["admin"]["address"] = json!(stage.gateway.admin.to_string());
    let beside = config.with_file_name("beside.yaml");
    std::fs::write(&beside, value.to_string()).unwrap();
    let get = |config: &std::path::Path| {
        command("")
            .env_remove("FENCEGATE_ADMIN_URL")
            .args(["get", "objects/42", "--config"])
            .arg(config)
            .output()
            .unwrap()
    };
    assert_eq!(lines(&get(&beside))[0]["mark"], "34");
    value.as_object_mut().unwrap().remove("admin");
    std::fs::write(&beside, value.to_string()).unwrap();
    let none = get(&beside);
    assert_eq!(none.status.code(), Some(2), "{}", said(&none));
    assert!(said(&none).contains("--url"), "{}", said(&none));
    let missing = get(&beside.with_file_name("missing.yaml"));
    assert_eq!(missing.status.code(), Some(2), "{}", said(&missing));
}

#[test]
fn the_bearer_token_comes_from_the_environment_or_a_file() {
    // "sesame"
    let hash = "sha256:d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
    let stage = Stage::with(|config| config.set("admin.tokens", json!([hash])));
    let url = format!("http://{}", stage.gateway.admin);
    let list = || {
        let mut list = command(&url);
        list.arg("list");
        list
    };
    let without = list().output().unwrap();
    assert_eq!(without.status.code(), Some(1));
    assert!(said(&without).contains("403"), "{}", said(&without));
    let with = list()
        .env("FENCEGATE_ADMIN_TOKEN", "sesame")
        .output()
        .unwrap();
    assert!(with.status.success(), "{}", said(&with));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "sesame\n").unwrap();
    let with = list().arg("--token-file").arg(&file).output().unwrap();
    assert!(with.status.success(), "{}", said(&with));
    std::fs::write(&file, "ses\u{1}ame\n").unwrap();
    let bad = list().arg("--token-file").arg(&file).output().unwrap();
    assert_eq!(bad.status.code(), Some(2), "{}", said(&bad));
    assert!(!said(&bad).contains("ame"), "it is not repeated");
}

#[test]
fn what_is_no_gateway_is_told_so() {
    for url in [
        "ftp://127.0.0.1:1",
        "127.0.0.1:1",
        "http://u:p@h:1",
        "http://h/x",
    ] {
        let output = command(url).arg("list").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{url}: {}", said(&output));
    }
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = socket.local_addr().unwrap();
    drop(socket);
    let output = command(&format!("http://{nobody}"))
        .arg("list")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn a_watch_prints_what_changes() {
    let stage = Stage::at_34();
    let url = format!("http://{}", stage.gateway.admin);
    let mut watch = command(&url)
        .args(["watch", "objects/"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["mark"], "34");
    stage.raise("/objects/42", "35");
    assert_eq!(next()["mark"], "35");
    stage.raise("/objects/43", "1");
    assert_eq!(next()["key"], "objects/43");
    watch.kill().unwrap();
    watch.wait().unwrap();
}
