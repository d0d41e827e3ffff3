//! The document of the lock service, and whether the service does what it says.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it skips"
)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Request, Stage};
use serde_json::json;

/// What `make setup` installs.
const SCHEMATHESIS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/schemathesis");

const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi");

fn stage() -> Stage {
    Stage::with(|config| {
        config
            .set("locks.address", "127.0.0.1:0")
            .fence("trust", "issued")
    })
}

#[test]
fn the_document_is_served_to_those_who_may_call() {
    let stage = stage();
    let ask = Request::get("/openapi.json").host("localhost");
    let answer = ask.send(stage.gateway.locks());
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json()["openapi"], "3.1.0");
    // "sesame"
    let hash = "sha256:d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
    let stage = Stage::with(|config| {
        config
            .set("locks.address", "127.0.0.1:0")
            .set("locks.tokens", json!([hash]))
    });
    let refused = ask.send(stage.gateway.locks());
    refused.assert_fenced(403, "forbidden", "it is a call as the others are");
    let good = ask.header("Authorization", "Bearer sesame");
    assert_eq!(good.send(stage.gateway.locks()).status, 200);
}

#[test]
fn the_service_does_what_its_document_says() {
    if !Path::new(SCHEMATHESIS).join("schemathesis").is_dir() {
        common::skip("schemathesis is not installed");
        return;
    }
    let seed = std::env::var("FENCEGATE_SEED").unwrap_or_else(|_| "1".to_owned());
    let seconds = std::env::var("FENCEGATE_OPENAPI_SECONDS").unwrap_or_else(|_| "15".to_owned());
    println!("seed {seed}: FENCEGATE_SEED={seed} FENCEGATE_OPENAPI_SECONDS={seconds} repeats it");
    let stage = stage();
    let dir = tempfile::tempdir().unwrap();
    let document = format!("http://{}/openapi.json", stage.gateway.locks());
    let output = Command::new("python3")
        .current_dir(dir.path())
        .env("PYTHONPATH", format!("{SCHEMATHESIS}:{HOOKS}"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .args(["-m", "schemathesis.cli", "run", &document])
        // Events never end; they have tests of their own.
        .args(["--exclude-path-regex", "events$"])
        .args(["--max-time", &seconds, "--seed", &seed])
        .args(["--request-timeout", "10", "--no-color", "--warnings", "off"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("No issues found"), "{text}");
    assert!(text.contains("5 passed"), "all calls were tried: {text}");
    // And it is as well as before.
    let body = json!({ "holder": "after", "ttl_ms": 1000 });
    let call = stage.gateway.lock_call("objects/after", "acquire", &body);
    assert_eq!(call.send(stage.gateway.locks()).status, 200);
}
