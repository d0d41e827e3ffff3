//! One resource, one lock: a name that comes without a request is the key that requests have.

use crate::common::{Config, Request, Response, Stage};
use serde_json::{Value, json};

fn stage(change: impl FnOnce(Config) -> Config) -> Stage {
    Stage::with(|config| {
        change(
            config
                .set("locks.address", "127.0.0.1:0")
                .fence("trust", "issued"),
        )
    })
}

fn call(stage: &Stage, key: &str, action: &str, body: &Value) -> Response {
    let call = stage.gateway.lock_call(key, action, body);
    call.send(stage.gateway.locks())
}

fn acquire(stage: &Stage, key: &str, holder: &str) -> Response {
    call(
        stage,
        key,
        "acquire",
        &json!({ "holder": holder, "ttl_ms": 60_000 }),
    )
}

#[test]
fn spellings_of_one_name_are_one_lock() {
    let stage = stage(|config| config.fence("case", "insensitive"));
    let granted = acquire(&stage, "objects/Obj", "one");
    assert_eq!(granted.status, 200, "{}", granted.text());
    assert_eq!(granted.json()["key"], "objects/obj");
    for (name, holder) in [
        ("objects/obj", "two"),
        ("objects/OBJ", "three"),
        ("objects/ｏbj/", "four"),
    ] {
        let refused = acquire(&stage, name, holder);
        assert_eq!(refused.status, 409, "{name}: {}", refused.text());
        assert_eq!(stage.gateway.lock_view(name).json()["holder"], "one");
    }
    let write = Request::put("/objects/oBJ").token(1);
    stage
        .send(&write)
        .assert_ok("the holder's write, whatever the spelling");
    let body = json!({ "token": "1", "ttl_ms": 60_000 });
    assert_eq!(call(&stage, "objects/OBj", "renew", &body).status, 200);
    assert_eq!(
        call(&stage, "objects/Obj", "release", &json!({ "token": "1" })).status,
        204
    );
    let next = acquire(&stage, "objects/OBJ", "two").json();
    assert_eq!(next["token"], "2");
}

#[test]
fn what_no_request_can_have_is_no_lock() {
    let stage = stage(|config| config);
    let granted = acquire(&stage, "objects/42", "one");
    assert_eq!(granted.status, 200, "{}", granted.text());
    assert_eq!(
        acquire(&stage, "objects/42/", "two").status,
        409,
        "a slash at the end is not in the key"
    );
    for name in [
        "objects/..",
        "objects/a;b",
        "objects/a\\b",
        "objects/a\nb",
        "objects/a//b",
    ] {
        let refused = acquire(&stage, name, "two");
        assert_eq!(refused.status, 400, "{name}: {}", refused.text());
        assert_eq!(refused.json()["reason"], "bad-request");
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(
            detail.starts_with("No request has this key: the path has"),
            "{detail}"
        );
    }
    let raised = stage
        .gateway
        .raise_call("objects/a;b", "7")
        .send(stage.gateway.admin);
    assert_eq!(
        raised.status,
        400,
        "to fence it would fence nothing: {}",
        raised.text()
    );
    let raised = stage
        .gateway
        .raise_call("objects/7/", "7")
        .send(stage.gateway.admin);
    assert_eq!(raised.status, 200, "{}", raised.text());
    assert_eq!(stage.mark("objects/7").as_deref(), Some("7"));
}

#[test]
fn an_object_store_has_locks_by_any_name() {
    let stage = stage(|config| {
        let fence = json!({ "key": "{path}", "path": "opaque", "trust": "issued" });
        config.routes(json!([{
            "name": "objects", "path": "/{*path}", "upstream": "objects", "fence": fence
        }]))
    });
    for name in ["objects/a/", "objects/a", "objects/a;b", "objects/a//b"] {
        let granted = acquire(&stage, name, "one");
        assert_eq!(granted.status, 200, "{name}: {}", granted.text());
        assert_eq!(granted.json()["key"], name);
    }
}
